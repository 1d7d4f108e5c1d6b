"""``report.html``: one page without a network, with the results of a matrix."""

from harness.report.page import write_report

__all__ = ["write_report"]
