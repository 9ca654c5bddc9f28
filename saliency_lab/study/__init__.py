"""A grid of models × methods × metrics × attacks on the same images, computed once and stored."""

from saliency_lab.study.study import Study

__all__ = ["Study"]
