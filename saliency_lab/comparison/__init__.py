"""Statistics and tables computed from tidy scores: intervals, paired tests, rankings, claims."""

from saliency_lab.comparison.claims import Answered, Claim, Purpose
from saliency_lab.comparison.comparison import Comparison
from saliency_lab.comparison.ranking import Ranking

__all__ = ["Answered", "Claim", "Comparison", "Purpose", "Ranking"]
