"""Public checks of contracts: what a family, a rule, an engine or a process of one's own must keep.

Each raises an `AssertionError` that says in a sentence what is wrong.
"""

from haltwise.testing.adaptive_process import check_adaptive_process
from haltwise.testing.engine import check_engine
from haltwise.testing.family import check_family
from haltwise.testing.gradient_estimator import check_gradient_estimator
from haltwise.testing.halting_method import check_halting_method
from haltwise.testing.process import check_process
from haltwise.testing.stop_rule import check_stop_rule
from haltwise.testing.update_rule import check_update_rule

__all__ = [
    "check_adaptive_process",
    "check_engine",
    "check_family",
    "check_gradient_estimator",
    "check_halting_method",
    "check_process",
    "check_stop_rule",
    "check_update_rule",
]
