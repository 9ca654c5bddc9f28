"""The `saliency-lab` command: one file per subcommand. Heavy libraries are imported when a subcommand runs."""

from saliency_lab.cli.app import main

__all__ = ["main"]
