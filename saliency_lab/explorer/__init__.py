"""A study to look at in Jupyter: pick images, models and methods; maps are made when asked for."""

from saliency_lab.explorer.api import explore

__all__ = ["explore"]
