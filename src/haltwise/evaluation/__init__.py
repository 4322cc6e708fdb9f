"""Judging stops: held-out items, tuned baselines, both units of cost, honest intervals."""

from haltwise.evaluation.evaluate import Evaluation, evaluate
from haltwise.evaluation.judge import Stops, judge
from haltwise.evaluation.processes import judge_processes
from haltwise.evaluation.recommend import Recommendation, Trial, recommend
from haltwise.evaluation.records import EvaluationRecord, Interval, StoppingRecord, StudyRecord
from haltwise.evaluation.stopping_report import stopping_report
from haltwise.evaluation.study import judge_runs, study

__all__ = [
    "Evaluation",
    "EvaluationRecord",
    "Interval",
    "Recommendation",
    "StoppingRecord",
    "Stops",
    "StudyRecord",
    "Trial",
    "evaluate",
    "judge",
    "judge_processes",
    "judge_runs",
    "recommend",
    "stopping_report",
    "study",
]
