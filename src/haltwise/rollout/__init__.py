"""Run processes: recorded, unrolled for meta-training, with early exit in use."""

from haltwise.rollout.cuda_graph import CapturedUnroll
from haltwise.rollout.early_exit import Execution, Outcome, run_until_halted
from haltwise.rollout.record import record, record_process, run_rule
from haltwise.rollout.unroll import Unroll, backpropagate, unroll

__all__ = [
    "CapturedUnroll",
    "Execution",
    "Outcome",
    "Unroll",
    "backpropagate",
    "record",
    "record_process",
    "run_rule",
    "run_until_halted",
    "unroll",
]
