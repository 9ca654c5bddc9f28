"""A study declared in a TOML file: read it, run it."""

from saliency_lab.experiment.schema import list_studies

__all__ = ["list_studies"]
