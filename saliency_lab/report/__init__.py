"""The report: one self-contained HTML page from a study; it opens from disk and asks the network nothing."""

from saliency_lab.report.html import write_report

__all__ = ["write_report"]
