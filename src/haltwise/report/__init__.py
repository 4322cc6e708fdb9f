"""Records as one self-contained HTML page: words first, then tables, figures and provenance."""

from haltwise.report.explorer import write_explorer
from haltwise.report.page import write_report, write_stopping_report

__all__ = ["write_explorer", "write_report", "write_stopping_report"]
