"""Honest figures: held-out problems, tuned opponents, both accounts of cost."""

from haltwise.evaluation.evaluate import Contender, Evaluation, evaluate
from haltwise.evaluation.statistics import Interval, captured_gain
from haltwise.evaluation.stopping import stopping_report
from haltwise.evaluation.study import study_heads, study_runs, study_stopping
from haltwise.stop_rules.accounts import CostUnit, calibrate, costs, returned_steps

__all__ = [
    "Contender",
    "CostUnit",
    "Evaluation",
    "Interval",
    "calibrate",
    "captured_gain",
    "costs",
    "evaluate",
    "returned_steps",
    "stopping_report",
    "study_heads",
    "study_runs",
    "study_stopping",
]
