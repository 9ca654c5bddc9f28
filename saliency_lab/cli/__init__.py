"""The `saliency-lab` command: one file per subcommand. A subcommand imports heavy libraries when it runs."""

from saliency_lab.cli.app import main

__all__ = ["main"]
