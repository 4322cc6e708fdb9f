"""The examples of classes of one's own pass the public checks."""

from pathlib import Path
from typing import Any

from haltwise._core.plugins import load_object
from haltwise.halting import HaltingMethod
from haltwise.stop_rules import StopRule
from haltwise.testing import check_halting_method, check_stop_rule

OWN = Path(__file__).parent.parent / "own"


def test_the_stop_rule_of_ones_own() -> None:
    kind: Any = load_object(f"{OWN / 'own_stop_rule.py'}:LossBelow", StopRule, "stop rule")
    for level in (0.5, 1.0, 2.0):
        check_stop_rule(kind(level))


def test_the_method_of_ones_own() -> None:
    kind: Any = load_object(f"{OWN / 'own_method.py'}:AlwaysThird", HaltingMethod, "method")
    check_halting_method(kind())
