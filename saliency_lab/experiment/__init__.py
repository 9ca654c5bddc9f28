"""A study declared in a TOML file: read it, run it, check its files."""

from saliency_lab.experiment.schema import list_studies
from saliency_lab.experiment.verify import verify

__all__ = ["list_studies", "verify"]
