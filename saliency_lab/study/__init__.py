"""The grid of models × methods × metrics × attacks on the same images, its store and its statistics."""

from saliency_lab.study.claims import Answered, Claim, Purpose
from saliency_lab.study.comparison import Comparison
from saliency_lab.study.declaration import list_studies
from saliency_lab.study.ranking import Ranking
from saliency_lab.study.study import Study

__all__ = ["Answered", "Claim", "Comparison", "Purpose", "Ranking", "Study", "list_studies"]
