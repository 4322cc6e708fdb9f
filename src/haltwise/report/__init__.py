"""Self-contained HTML pages: a run's report, a stopping report and the explorer."""

from haltwise.report.explorer import write_explorer
from haltwise.report.run import write_report
from haltwise.report.stopping import write_stopping_report

__all__ = ["write_explorer", "write_report", "write_stopping_report"]
