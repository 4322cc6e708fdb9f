"""The guard of solve: units, stray problems, prices beyond training, flat losses, best points."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import haltwise
from haltwise import FitWarning, FunctionBatch, Outcome
from haltwise.engines.base import Point
from haltwise.engines.lbfgs import LBFGS
from haltwise.engines.run import Begun, descend, reasons_of
from haltwise.engines.stops import PriceStop
from haltwise.rollout.ledger import Ledger
from haltwise.stop_rules import (
    CostUnit,
    GradientNorm,
    Patience,
    Plateau,
    ReturnedIterate,
    StopPolicy,
    StopRule,
)
from haltwise.tasks import Observation, TaskBatch, family

SOLVERS = ("regression-2d", "regression-10d", "quadratic-10d", "student-t-10d")


@dataclass(frozen=True, eq=False)
class InOtherUnits(TaskBatch):
    """Another batch, with parameters that count `params` times and losses `loss` times."""

    inner: TaskBatch
    params: Tensor
    loss: Tensor

    @classmethod
    def of(cls, inner: TaskBatch, params: float | Tensor, loss: float) -> "InOtherUnits":
        ones = torch.ones_like(inner.start)
        return cls(inner.start / (ones * params), inner, ones * params, ones[:, 0] * loss)

    @property
    def reference_loss(self) -> Tensor:
        return self.inner.reference_loss * self.loss

    def observe(self, params: Tensor, step: int) -> Observation:
        loss, grad = self.inner.observe(params * self.params, step)
        return Observation(loss * self.loss, grad * self.params * self.loss.unsqueeze(1))

    def select(self, index: Tensor) -> "InOtherUnits":
        return InOtherUnits(
            self.start[index], self.inner.select(index), self.params[index], self.loss[index]
        )


def sample(name: str, number: int) -> TaskBatch:
    return family(name).sample(number, torch.Generator().manual_seed(5))


@cache
def solved(name: str) -> tuple[TaskBatch, haltwise.Solution]:
    """Problems in the units of training, and their solution."""
    problem = sample(name, 300)
    return problem, haltwise.solve(problem, name)


def rosenbrock(params: Tensor) -> Tensor:
    ahead, behind = params[:, 1:], params[:, :-1]
    return (100 * (ahead - behind.square()).square() + (1 - behind).square()).sum(1)


def himmelblau(params: Tensor) -> Tensor:
    x, y = params.unbind(1)
    return (x.square() + y - 11).square() + (x + y.square() - 7).square()


# ------------------------------------------------------------------------------------------- units


@pytest.mark.parametrize(
    ("params", "loss"),
    [(0.01, 1), (0.1, 1), (10, 1), (100, 1), (1, 1e-4), (1, 0.1), (1, 10), (1, 1e4), (30, 1e-3)],
)
@pytest.mark.parametrize("name", SOLVERS)
def test_the_same_problem_in_other_units_is_the_same_problem(
    name: str, params: float, loss: float
) -> None:
    (problem, own), price = solved(name), haltwise.load(name).card.price
    other = InOtherUnits.of(problem, params, loss)
    found = haltwise.solve(other, name, price=price * loss)
    excess = ((found.loss - other.reference_loss) / loss).mean()
    expected = (own.loss - problem.reference_loss).mean()
    assert excess < 1.25 * expected
    extra = found.num_gradients.double().mean() - own.num_gradients.double().mean()
    assert extra < 4  # what was tried in other units


@pytest.mark.parametrize(
    "make", [Plateau, partial(Patience, 2), lambda at: GradientNorm(math.log(at))]
)
@pytest.mark.filterwarnings("ignore::haltwise.FitWarning")
def test_a_stop_rule_in_units_of_the_loss_knows_in_whose(make: Callable[[float], StopRule]) -> None:
    """Those of a card are in the units of the weights, those that are given in the problems'."""
    model, problem, scale = haltwise.load("regression-2d"), sample("regression-2d", 200), 1e-3
    policy = StopPolicy(make(0.1), ReturnedIterate.NEXT)
    model.halting.card = replace(model.card, policies={CostUnit.GRADIENTS: policy})
    other, price = InOtherUnits.of(problem, 1.0, scale), model.card.price * scale
    for own, found in (
        (haltwise.solve(problem, model), haltwise.solve(other, model, price=price)),
        (
            haltwise.solve(problem, "regression-2d", make(0.1)),
            haltwise.solve(other, "regression-2d", make(0.1 * scale), price=price),
        ),
    ):
        assert found.steps.double().mean() > 2
        assert (own.steps == found.steps).double().mean() > 0.95


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("params", [1e-3, 1e-4, 1e-6])
@pytest.mark.parametrize("share", [0.3, 0.95, 1.0, 1.2])
@pytest.mark.filterwarnings("ignore::haltwise.FitWarning")
def test_a_tiny_first_gradient_is_no_minimum(name: str, params: float, share: float) -> None:
    """Whatever of it a price explains, the start is not returned as the end."""
    problem, own = solved(name)
    price = share * haltwise.load(name).card.price
    found = haltwise.solve(InOtherUnits.of(problem, params, 1.0), name, price=price)
    excess = (found.loss - problem.reference_loss).median()
    assert excess < 1.5 * (own.loss - problem.reference_loss).median() + price


def test_one_problem_alone_is_recognised_too() -> None:
    problem = sample("quadratic-10d", 20)
    own = haltwise.solve(problem, "quadratic-10d").loss
    for number in range(20):
        alone = InOtherUnits.of(problem.select(torch.tensor([number])), 50.0, 1.0)
        found = haltwise.solve(alone, "quadratic-10d")
        assert found.loss.item() < own[number] + 0.05


def test_known_sizes_of_parameters_undo_their_units() -> None:
    problem = sample("regression-10d", 100)
    sizes = torch.logspace(-2, 2, 10)
    found = haltwise.solve(
        InOtherUnits.of(problem, sizes, 1.0), "regression-10d", param_scale=1 / sizes
    )
    own = haltwise.solve(problem, "regression-10d")
    torch.testing.assert_close(found.loss, own.loss, rtol=1e-3, atol=1e-2)
    assert torch.equal(found.param_scale, own.param_scale)


@pytest.mark.parametrize("name", ["regression-2d", "regression-10d"])
def test_where_coordinates_have_unknown_units_the_horizon_is_not_the_end(name: str) -> None:
    problem = sample(name, 100)
    sizes = torch.logspace(-1, 1, problem.dim)
    other = InOtherUnits.of(problem, sizes, 1.0)
    horizon = haltwise.load(name).card.horizon
    cut, found = (haltwise.solve(other, name, max_steps=steps) for steps in (horizon, None))
    out = [(each.outcome == Outcome.OUT_OF_STEPS).sum() for each in (cut, found)]
    assert out[1] < out[0] / 3
    assert (found.loss <= cut.loss).all()
    assert (found.num_gradients <= 2 * horizon).all()
    free = haltwise.solve(other, name, guard=False)
    assert free.num_gradients.max() <= horizon


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, torch.ones(3), torch.zeros(10)])
def test_impossible_sizes_are_refused(scale: Any) -> None:
    with pytest.raises(haltwise.InputError, match="param_scale must be one number above 0"):
        haltwise.solve(sample("regression-10d", 2), "regression-10d", param_scale=scale)


@pytest.mark.parametrize("name", SOLVERS)
def test_nothing_changes_for_problems_that_fit(name: str) -> None:
    problem, price = sample(name, 1000), haltwise.load(name).card.price
    free, guarded = (haltwise.solve(problem, name, guard=guard) for guard in (False, True))
    assert (guarded.param_scale == 1).double().mean() > 0.99
    assert guarded.fallback.double().mean() < 0.03

    def j(solution: haltwise.Solution) -> float:
        costs = solution.loss - problem.reference_loss + price * solution.num_gradients
        mean: float = costs.double().mean().item()
        return mean

    assert j(guarded) < 1.01 * j(free)


# ---------------------------------------------------------------------------------- the best point


@pytest.mark.filterwarnings("ignore::haltwise.FitWarning")
@settings(max_examples=15)
@given(
    st.sampled_from(SOLVERS),
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 7, 40]),
    st.floats(-3, 3),
)
def test_no_result_is_worse_than_any_point_seen(
    name: str, seed: int, dim: int, decades: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    start = 10**decades * torch.randn(3, dim, generator=generator)
    wave = torch.randn(3, dim, generator=generator)

    def loss(params: Tensor, wave: Tensor) -> Tensor:
        return (params * wave).sin().sum(1) + 0.1 * params.square().mean(1)

    calls: list[Tensor] = []

    def noted(params: Tensor, wave: Tensor) -> Tensor:
        value = loss(params, wave)
        if params.requires_grad:
            calls.append(value.detach())
        return value

    problem = FunctionBatch(start, noted, {"wave": wave})
    checks = len(calls)
    solution = haltwise.solve(problem, name, history=True)
    assert solution.history is not None
    torch.testing.assert_close(solution.loss, loss(solution.params, wave))
    assert (solution.loss.unsqueeze(1) <= solution.history.nan_to_num(math.inf)).all()
    assert (solution.loss <= loss(start, wave)).all()
    assert (solution.num_gradients <= 2 * haltwise.load(name).card.horizon).all()
    evaluated = solution.history.isfinite().sum(1)
    assert torch.equal(evaluated, solution.num_gradients)
    assert checks == 0
    assert solution.num_gradients.sum() <= sum(map(len, calls))


@pytest.mark.filterwarnings("ignore::haltwise.FitWarning")
@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    ("loss", "start"),
    [(rosenbrock, [-1.2, 1.0]), (rosenbrock, [-1.2, 1.0] * 10), (himmelblau, [0.0, 0.0])],
)
def test_strange_functions_end_below_their_start(name: str, loss: Any, start: list[float]) -> None:
    problem = FunctionBatch(torch.tensor([start]), loss)
    solution = haltwise.solve(problem, name, max_steps=300)
    assert solution.loss.item() < 0.7 * loss(problem.start).item()
    assert f"{solution.params.shape[1]} parameters" in repr(solution)
    assert "\n" not in repr(solution)
    assert solution.why(0)


def test_without_the_guard_the_optimizer_is_followed() -> None:
    problem = InOtherUnits.of(sample("quadratic-10d", 20), 300.0, 1.0)
    start = problem.observe(problem.start, 0).loss
    free, guarded = (haltwise.solve(problem, "quadratic-10d", guard=g) for g in (False, True))
    assert (free.loss > start).any()
    assert not free.fallback.any()
    assert (free.param_scale == 1).all()
    assert (guarded.loss < start).all()


def test_stochastic_losses_are_not_compared() -> None:
    problem = sample("regression-10d-noisy", 20)
    assert problem.stochastic
    free, guarded = (haltwise.solve(problem, "regression-10d", guard=g) for g in (False, True))
    assert torch.equal(free.params, guarded.params)


# ---------------------------------------------------------------------------- nothing to be gained


def test_a_flat_problem_ends_at_once_where_it_is() -> None:
    start = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    problem = FunctionBatch(start, lambda params: 0 * params.sum(1) + 3)
    solution = haltwise.solve(problem, "regression-10d")
    assert torch.equal(solution.params, start)
    assert (solution.num_gradients == 1).all()
    assert (solution.outcome == Outcome.HALTED).all()
    assert solution.why(0) == "the gradient is zero"


@pytest.mark.parametrize("name", ["regression-2d", "regression-10d", "regression-10d-plain-adam"])
def test_gradients_never_rise_with_the_price(name: str) -> None:
    problem = sample(haltwise.load(name).card.family.name, 200)  # type: ignore[union-attr]
    used = []
    for price in (0.005, 0.05, 0.5, 5, 50, 500, 5e4, 5e7):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)
            solution = haltwise.solve(problem, name, price=price)
        used.append(solution.num_gradients.double().mean().item())
    assert all(after <= before * 1.02 for before, after in pairwise(used))


def test_a_price_beyond_the_trained_ones_is_warned_of() -> None:
    with pytest.warns(FitWarning, match=r"know prices from 0\.00527 to 0\.527, but 5 of 5"):
        haltwise.solve(sample("regression-10d", 5), "regression-10d", price=50.0)


def test_low_prices_go_on_where_the_weights_would_stop() -> None:
    problem = sample("regression-10d", 50)
    with pytest.warns(FitWarning, match="prices"):
        solution = haltwise.solve(problem, "regression-10d", price=1e-6, max_steps=300)
    assert (solution.loss - problem.reference_loss).max() < 1e-2
    assert solution.fallback.all()


def test_problems_that_do_not_fit_are_counted() -> None:
    problem = FunctionBatch(torch.tensor([[-1.2, 1.0]]).repeat(30, 1), rosenbrock)
    with pytest.warns(FitWarning, match="do not fit 30 of the 30 problems"):
        haltwise.solve(problem, "student-t-10d")


# ---------------------------------------------------------------------------------------- fallback


def test_descent_finds_the_minimum_of_quadratics() -> None:
    generator = torch.Generator().manual_seed(1)
    factor = torch.randn(6, 12, 8, generator=generator, dtype=torch.float64)
    target = torch.randn(6, 12, generator=generator, dtype=torch.float64)

    def loss(params: Tensor, factor: Tensor, target: Tensor) -> Tensor:
        return ((factor @ params.unsqueeze(-1)).squeeze(-1) - target).square().sum(1)

    start = torch.zeros(6, 8, dtype=torch.float64)
    problem = FunctionBatch(start, loss, {"factor": factor, "target": target})
    first = problem.observe(start, 0)
    ledger, everything = Ledger(start), torch.arange(6)
    ledger.note(everything, start, *first)

    point = Point(start, *first)
    memory = LBFGS().init_scaled(point, torch.full((6,), 1e-4, dtype=torch.float64))
    stops = [PriceStop(torch.full((6,), 1e-12, dtype=torch.float64))]
    begun = Begun(point, memory, torch.full((6,), 200))
    found = descend(LBFGS(), problem, begun, stops, ledger=ledger, items=everything)
    exact = torch.linalg.lstsq(factor, target.unsqueeze(-1)).solution.squeeze(-1)
    least = loss(exact, factor, target)
    torch.testing.assert_close(ledger.loss, least, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss(ledger.params, factor, target), ledger.loss)
    torch.testing.assert_close(found.point.loss, least, rtol=1e-9, atol=1e-9)
    assert (found.outcome == Outcome.HALTED).all()
    assert set(found.reason.tolist()) <= set(range(len(reasons_of(stops))))


def test_of_equal_losses_the_ledger_keeps_the_first() -> None:
    ledger, one = Ledger(torch.zeros(1, 2)), torch.arange(1)
    for place, loss in enumerate((3.0, 1.0, 1.0, 2.0)):
        ledger.note(one, torch.full((1, 2), float(place)), torch.tensor([loss]), torch.ones(1, 2))
    assert (ledger.at.item(), ledger.params.tolist()) == (1, [[1.0, 1.0]])


def test_descent_survives_walls_of_infinity() -> None:
    def loss(params: Tensor) -> Tensor:
        inside = (1 - params.square()).clamp_min(0)
        return (-inside.log() + 3 * params).sum(1)

    start = torch.zeros(1, 2, dtype=torch.float64)
    solution = haltwise.solve(FunctionBatch(start, loss), "regression-2d", max_steps=200)
    x = (1 - math.sqrt(10)) / 3  # 2 x / (1 - x^2) = -3
    torch.testing.assert_close(solution.params, torch.full_like(start, x), rtol=0, atol=0.1)
