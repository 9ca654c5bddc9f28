"""The report: one self-contained HTML page from a study; it opens from disk and asks the network nothing."""

from saliency_lab.reporting.html import report

__all__ = ["report"]
