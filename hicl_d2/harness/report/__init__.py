"""``report.html``: one page without a network, with the results of a matrix."""

from hicl_d2.harness.report.page import write_report

__all__ = ["write_report"]
