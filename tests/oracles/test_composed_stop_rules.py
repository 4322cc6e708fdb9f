"""Rules made of rules obey the laws of sets, and give the reason of the part that stops."""

import math
from collections.abc import Callable

import hypothesis
import pytest
import torch
from hypothesis import given
from stop_rule_cases import TRAJECTORY, any_rule, reasons_at_every_step
from torch import Tensor

from haltwise import InputError
from haltwise.stop_rules import (
    AllOf,
    AnyOf,
    FixedBudget,
    GradientNorm,
    Patience,
    StopRule,
    decisions,
)


@hypothesis.settings(max_examples=25)
@given(a=any_rule, b=any_rule, c=any_rule)
def test_composed_rules_obey_the_laws_of_sets(a: StopRule, b: StopRule, c: StopRule) -> None:
    def stops(rule: StopRule) -> Tensor:  # at every step, not only the first
        return torch.tensor(reasons_at_every_step(rule, TRAJECTORY)) >= 0

    first, second, third = stops(a), stops(b), stops(c)
    assert torch.equal(stops(a | a), first)
    assert torch.equal(stops(a & a), first)
    assert torch.equal(stops(a | b), first | second)
    assert torch.equal(stops(b | a), first | second)
    assert torch.equal(stops(a & b), first & second)
    assert torch.equal(stops(b & a), first & second)
    assert torch.equal(stops((a | b) | c), first | second | third)
    assert torch.equal(stops((a | b) & c), stops((a & c) | (b & c)))
    earliest = torch.minimum(decisions(a, TRAJECTORY), decisions(b, TRAJECTORY))
    assert torch.equal(decisions(a | b, TRAJECTORY), earliest)


@given(a=any_rule, b=any_rule)
def test_a_composed_rule_names_the_part_that_it_is_due_to(a: StopRule, b: StopRule) -> None:
    alone = [reasons_at_every_step(rule, TRAJECTORY) for rule in (a, b)]
    for step, of_step in enumerate(reasons_at_every_step(a | b, TRAJECTORY)):
        for i, reason in enumerate(of_step):
            x, y = alone[0][step][i], alone[1][step][i]
            due = a.reasons[x] if x >= 0 else b.reasons[y] if y >= 0 else None
            assert (None if reason < 0 else (a | b).reasons[reason]) == due
    for step, of_step in enumerate(reasons_at_every_step(a & b, TRAJECTORY)):
        for i, reason in enumerate(of_step):
            x, y = alone[0][step][i], alone[1][step][i]
            due = f"{a.reasons[x]} and {b.reasons[y]}" if min(x, y) >= 0 else None
            assert (None if reason < 0 else (a & b).reasons[reason]) == due


def test_reasons_are_words_with_their_settings() -> None:
    rule = GradientNorm(math.log(0.001)) | Patience(5, 0.1) | FixedBudget(40)
    assert rule.reasons == (
        "the gradient's rms is at most 0.001",
        "the loss has not fallen by more than 0.1 for 5 steps",
        "40 steps are done",
    )


@pytest.mark.parametrize("rule", [AnyOf, AllOf])
def test_composing_nothing_is_refused(rule: Callable[[tuple[StopRule, ...]], StopRule]) -> None:
    with pytest.raises(InputError, match="at least one rule"):
        rule(())
