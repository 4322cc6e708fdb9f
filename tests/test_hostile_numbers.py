"""Losses that overflow, huge and tiny gradients, NaN and singular designs for some problems."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import tiny
from torch import Tensor

import haltwise
from haltwise._core.random import stream
from haltwise.rollout.early_exit import Outcome, execute
from haltwise.tasks import family
from haltwise.tasks.function import FunctionBatch
from haltwise.tasks.least_squares import LeastSquaresBatch, gaussian_regression
from haltwise.training import Trainer
from haltwise.training.problems import FamilyProblems
from haltwise.rollout.record import record

NUM_PROBLEMS, HORIZON, PRICE = 24, 12, 0.05
BAD = torch.tensor([1, 7, 8, 23])
GOOD = torch.tensor([number for number in range(NUM_PROBLEMS) if number not in BAD])


def problems() -> LeastSquaresBatch:
    batch = family("regression-2d").sample(NUM_PROBLEMS, stream(0, "hostile"))
    assert isinstance(batch, LeastSquaresBatch)
    return batch


def spoil(name: str, value: float) -> LeastSquaresBatch:
    batch = problems()
    spoiled: Tensor = getattr(batch, name).clone()
    spoiled[BAD] = value
    return replace(batch, **{name: spoiled})


EVILS: dict[str, Callable[[], LeastSquaresBatch]] = {
    "NaN": lambda: spoil("target", math.nan),
    "infinite": lambda: spoil("target", math.inf),
    "loss overflows": lambda: spoil("target", 1e25),
    "gradients of 1e30": lambda: spoil("scale", 1e28),
    "gradients of 1e-30": lambda: spoil("scale", 1e-30),
    "no gradient at all": lambda: spoil("scale", 0.0),
    "singular designs": lambda: spoil("factor", 0.0),
    "huge designs": lambda: spoil("factor", 1e18),
    "far starts": lambda: spoil("start", 1e19),
}
TAME = ("gradients of 1e-30", "no gradient at all", "singular designs")


@pytest.mark.parametrize("name", ["regression-2d", "regression-2d-mode", "regression-2d-thesis"])
@pytest.mark.parametrize("evil", EVILS)
def test_other_problems_are_unaffected_and_the_outcome_is_recorded(evil: str, name: str) -> None:
    optimizer = haltwise.load(name)
    price = torch.full((NUM_PROBLEMS,), PRICE)
    policy = optimizer.policy()
    clean = execute(optimizer, problems(), policy, price, HORIZON)
    mixed = execute(optimizer, EVILS[evil](), policy, price, HORIZON)
    for field in ("params", "num_updates", "num_gradients", "outcome"):
        torch.testing.assert_close(getattr(mixed, field)[GOOD], getattr(clean, field)[GOOD])
    assert torch.isin(mixed.outcome, torch.tensor([*Outcome])).all()
    assert mixed.params[BAD].isfinite().all()
    if evil in ("NaN", "infinite"):
        assert (mixed.outcome[BAD] == Outcome.NONFINITE).all()
    if evil in TAME:
        assert (mixed.outcome[BAD] != Outcome.NONFINITE).all()


@pytest.mark.parametrize("evil", EVILS)
def test_recordings_keep_problems_apart(evil: str) -> None:
    rule = haltwise.load("regression-2d").rule
    clean, mixed = (record(rule, batch, HORIZON) for batch in (problems(), EVILS[evil]()))
    assert mixed.finite[GOOD].all()
    for field in ("loss", "excess", "signals", "readouts", "params"):
        torch.testing.assert_close(getattr(mixed, field)[GOOD], getattr(clean, field)[GOOD])
    if evil in TAME:
        assert mixed.finite[BAD].all()
    if evil in ("NaN", "infinite"):
        assert not mixed.finite[BAD].any()


@pytest.mark.parametrize("evil", EVILS)
def test_meta_training_leaves_out_or_skips_what_is_not_finite_and_counts_it(
    evil: str, tmp_path: Path
) -> None:
    trainer = Trainer(tiny(batch_size=NUM_PROBLEMS, warmup=0.0), tmp_path)

    class Spoiled:
        def sample(self, *arguments: object, **settings: object) -> LeastSquaresBatch:
            return EVILS[evil]()

    assert isinstance(trainer.problems, FamilyProblems)
    trainer.problems.family = Spoiled()  # type: ignore[assignment]
    before = {name: value.clone() for name, value in trainer.optimizer.state_dict().items()}
    loss = trainer._meta_step()
    after = trainer.optimizer.state_dict()
    moved = any(not torch.equal(value, after[name]) for name, value in before.items())
    assert all(value.isfinite().all() for value in after.values())
    assert moved == math.isfinite(loss) == (trainer.num_skipped == 0)
    if evil in ("NaN", "infinite"):
        assert trainer.num_nonfinite == len(BAD)
        assert moved
    if evil in TAME:
        assert (trainer.num_nonfinite, trainer.num_skipped) == (0, 0)
    assert moved or trainer.num_skipped == 1


def test_the_meta_gradient_of_the_others_is_that_without_the_bad(tmp_path: Path) -> None:
    """Left out means left out: weights move as if the batch had never held them."""
    weights = []
    for spoiled in (True, False):
        trainer = Trainer(tiny(batch_size=20, warmup=1.0), tmp_path / str(spoiled))

        class Fixed:
            def sample(self, *_: object, spoiled: bool = spoiled, **__: object) -> object:
                return EVILS["NaN"]() if spoiled else problems().select(GOOD)

        assert isinstance(trainer.problems, FamilyProblems)
        trainer.problems.family = Fixed()  # type: ignore[assignment]
        if spoiled:
            trainer._draw_prices = lambda *_: torch.full((NUM_PROBLEMS,), PRICE)  # type: ignore[method-assign]
        trainer._meta_step()
        weights.append(trainer.optimizer.state_dict())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name])


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
    optimizer = haltwise.load("regression-10d").double()
    price = torch.full((4,), 0.05, dtype=torch.float64)
    result = execute(optimizer, batch, optimizer.policy(), price, 40)
    assert (result.outcome != Outcome.NONFINITE).all()


def test_solve_says_of_each_problem_what_went_wrong() -> None:
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
