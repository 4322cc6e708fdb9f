"""Losses that overflow, huge and tiny gradients, NaN and singular designs for some problems."""

import math

import pytest
import torch
from hostile_problems import (
    BAD,
    EVILS,
    GOOD,
    HORIZON,
    PRICE,
    TAME,
    good_problems,
    hostile_problems,
)
from torch import Tensor

import haltwise
from haltwise import FunctionBatch, Outcome
from haltwise._core.random import stream
from haltwise.halting import HaltingSession
from haltwise.models import OptimizerModel
from haltwise.processes import OptimizationProcess
from haltwise.rollout import Execution, record, record_process, run_until_halted
from haltwise.tasks import TaskBatch
from haltwise.tasks.least_squares import gaussian_regression


def execute(model: OptimizerModel, batch: TaskBatch, max_steps: int) -> Execution:
    price = torch.full((batch.num_problems,), PRICE, dtype=batch.start.dtype)
    session = HaltingSession(model.policy(), price, model.halting)
    return run_until_halted(OptimizationProcess(model.rule, batch), session, max_steps)


@pytest.mark.parametrize("name", ["regression-2d", "regression-2d-mode", "regression-2d-thesis"])
@pytest.mark.parametrize("evil", EVILS)
def test_other_problems_are_unaffected_and_the_outcome_is_recorded(evil: str, name: str) -> None:
    model = haltwise.load(name)
    clean = execute(model, good_problems(), HORIZON)
    mixed = execute(model, hostile_problems(evil), HORIZON)
    for field in ("result", "num_updates", "num_gradients", "outcome"):
        torch.testing.assert_close(getattr(mixed, field)[GOOD], getattr(clean, field)[GOOD])
    assert torch.isin(mixed.outcome, torch.tensor([*Outcome])).all()
    assert mixed.result[BAD].isfinite().all()
    if evil in ("NaN", "infinite"):
        assert (mixed.outcome[BAD] == Outcome.NONFINITE).all()
    if evil in TAME:
        assert (mixed.outcome[BAD] != Outcome.NONFINITE).all()


@pytest.mark.parametrize("through", ["the rule", "its process"])
@pytest.mark.parametrize("evil", EVILS)
def test_recordings_keep_problems_apart(evil: str, through: str) -> None:
    rule = haltwise.load("regression-2d").rule
    clean, mixed = (
        record(rule, batch, HORIZON)
        if through == "the rule"
        else record_process(OptimizationProcess(rule, batch), HORIZON)
        for batch in (good_problems(), hostile_problems(evil))
    )
    assert mixed.finite[GOOD].all()
    for field in ("loss", "excess", "signals", "readouts", "final"):
        torch.testing.assert_close(getattr(mixed, field)[GOOD], getattr(clean, field)[GOOD])
    if evil in TAME:
        assert mixed.finite[BAD].all()
    if evil in ("NaN", "infinite"):
        assert not mixed.finite[BAD].any()


def test_singular_designs_are_solved_in_the_directions_that_count() -> None:
    """Two equal columns, a column of zeros, fewer rows than parameters, and all of it zero."""
    draw = torch.randn(4, 6, 3, generator=stream(0), dtype=torch.float64)
    draw[0, :, 1] = draw[0, :, 0]
    draw[1, :, 2] = 0
    draw[2, 2:] = 0
    draw[3] = 0
    observed = torch.randn(4, 6, generator=stream(1), dtype=torch.float64)
    batch = gaussian_regression(
        draw, observed, torch.full((4,), 6.0), 1.0, torch.zeros(4, 3, dtype=torch.float64)
    )
    seen = batch.evaluate(batch.minimizer, 0)
    torch.testing.assert_close(seen.excess, torch.zeros(4, dtype=torch.float64))
    assert seen.grad.abs().max() < 1e-10
    result = execute(haltwise.load("regression-10d").double(), batch, 40)
    assert (result.outcome != Outcome.NONFINITE).all()


def test_solve_reports_of_each_problem_what_went_wrong() -> None:
    def loss(params: Tensor, kind: Tensor) -> Tensor:
        scale = torch.tensor([1.0, math.nan, 1e30, 1e-30, 1e38])  # the last overflows
        return params.square().sum(1) * scale[kind]

    kind = torch.arange(5).repeat(4)
    problem = FunctionBatch(torch.ones(20, 10), loss, {"kind": kind})
    solution = haltwise.solve(problem, optimizer="regression-10d", price=0.05)
    clean = haltwise.solve(
        FunctionBatch(torch.ones(4, 10), loss, {"kind": torch.zeros(4, dtype=torch.int64)}),
        optimizer="regression-10d",
        price=0.05,
    )
    torch.testing.assert_close(solution.params[kind == 0], clean.params)
    assert (solution.outcome[kind == 1] == Outcome.NONFINITE).all()
    assert (solution.outcome[kind == 4] == Outcome.NONFINITE).all()
    assert (solution.outcome[(kind == 0) | (kind == 3)] != Outcome.NONFINITE).all()
    assert solution.params.isfinite().all()
