"""The `saliency-lab` command: one small file a verb. Heavy libraries are imported when a verb runs."""

from saliency_lab.cli.app import main

__all__ = ["main"]
