"""Self-contained HTML pages: a run's report, a stopping report, the explorer and the replay."""

from haltwise.report.explorer import write_explorer, write_run_explorer
from haltwise.report.replay import write_replay
from haltwise.report.run import write_report
from haltwise.report.stopping import write_stopping_report

__all__ = [
    "write_explorer",
    "write_replay",
    "write_report",
    "write_run_explorer",
    "write_stopping_report",
]
