"""ROAR and KAR: retraining on images without their most, or least, important pixels."""

from saliency_lab.retraining.api import roar
from saliency_lab.retraining.result import RoarResult

__all__ = ["RoarResult", "roar"]
