"""The contracts as public checks: what a rule, a method or a process of your own must satisfy.

Each check raises `AssertionError` with a sentence that says what is wrong, so it is a test of one
line: `check_stop_rule(MyRule())`.
"""

from haltwise.testing.halting_method import check_halting_method
from haltwise.testing.process import check_process
from haltwise.testing.stop_rule import check_stop_rule

__all__ = ["check_halting_method", "check_process", "check_stop_rule"]
