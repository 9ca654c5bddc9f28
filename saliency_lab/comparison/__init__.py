"""Statistics and tables computed from tidy scores: intervals, tests, rankings, claims, power, pooling."""

from saliency_lab.comparison.claims import Answered, Claim, Endpoint, Purpose
from saliency_lab.comparison.comparison import Comparison
from saliency_lab.comparison.pooling import PooledDifference, pool_comparisons, pool_differences
from saliency_lab.comparison.power_analysis import power
from saliency_lab.comparison.ranking import Ranking

__all__ = [
    "Answered",
    "Claim",
    "Comparison",
    "Endpoint",
    "PooledDifference",
    "Purpose",
    "Ranking",
    "pool_comparisons",
    "pool_differences",
    "power",
]
