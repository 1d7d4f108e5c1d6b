"""``report.html``: one page without a network, with everything that a matrix has shown."""

from harness.report.page import write_report

__all__ = ["write_report"]
