"""`haltwise.solve`: one call equals a slow loop, in any chunks, and no problem disturbs another."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from draws import DOUBLE
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_runs import plain_run
from stop_rule_cases import Drawn
from torch import Tensor

import haltwise
from haltwise import FitWarning, FunctionBatch, Outcome, Solution
from haltwise._core.random import stream
from haltwise.halting import HaltingSession
from haltwise.models import loading
from haltwise.processes import OptimizationProcess
from haltwise.rollout import record, run_until_halted
from haltwise.stop_rules import (
    FixedBudget,
    GradientNorm,
    HazardThreshold,
    Patience,
    ReturnedIterate,
    StopPolicy,
)
from haltwise.tasks import Observation, TaskBatch, family

PROBLEMS = 12


def solve_learned(
    problem: TaskBatch, optimizer: Any = "regression-10d", *stop: Any, **settings_: Any
) -> Solution:
    return haltwise.solve(problem, optimizer, *stop, **settings_)


def squares(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
    residual = y - (x @ params.unsqueeze(-1)).squeeze(-1)
    return residual.square().sum(1) / 2


@pytest.fixture
def least_squares() -> FunctionBatch:
    draw: dict[str, Any] = {"generator": stream(3), "dtype": torch.float64}
    x, truth = torch.randn(PROBLEMS, 20, 10, **draw), torch.randn(PROBLEMS, 10, 1, **draw)
    y = (x @ truth).squeeze(-1) + torch.randn(PROBLEMS, 20, **draw)
    start = 0.1 * torch.randn(PROBLEMS, 10, **draw)
    return FunctionBatch(start, squares, {"x": x, "y": y})


def test_weights_are_asked_for_by_name(
    least_squares: FunctionBatch, batch: TaskBatch, noisy_batch: TaskBatch
) -> None:
    """Of problems that nobody said they know, an engine finds the minimum."""
    solution = haltwise.solve(least_squares)
    x, y = least_squares.data["x"], least_squares.data["y"]
    expected = torch.linalg.lstsq(x, y.unsqueeze(2)).solution.squeeze(2)
    torch.testing.assert_close(solution.params, expected, rtol=1e-5, atol=1e-6)
    assert solution.method.startswith("bfgs, as a smooth loss")
    assert haltwise.solve(batch, price=0.01).method.startswith("lbfgs, as")
    asked: list[dict[str, Any]] = [
        {"optimizer": "regression-10d"},
        {"param_scale": 1.0},
        {"guard": False},
    ]
    for settings_ in asked:
        assert haltwise.solve(least_squares, **settings_).method == "lstm"
    assert haltwise.solve(noisy_batch).method == "lstm"  # no other takes a loss that changes


def peaks(params: Tensor, u: Tensor, z: Tensor) -> Tensor:
    height, place, width = params.unsqueeze(2).unbind(1)
    mean = height * torch.exp(-((u - place) ** 2) / 2 / (2 * width).exp())
    return torch.log1p(((z - mean) / 0.2) ** 2).sum(1)


def test_weights_that_do_not_halt_in_their_horizon_are_warned_of() -> None:
    """Those for quadratics spend seven times the gradients of BFGS on these, and print it."""
    draw: dict[str, Any] = {"generator": stream(5), "dtype": DOUBLE}
    u, noise = torch.randn(40, 32, **draw), torch.randn(40, 32, **draw)
    truth = torch.tensor([1.5, 0, 0]) + torch.randn(40, 3, **draw) * torch.tensor([0.5, 0.6, 0.3])
    height, place, width = truth.unsqueeze(2).unbind(1)
    z = height * torch.exp(-((u - place) ** 2) / 2 / (2 * width).exp()) + 0.1 * noise
    start = torch.tensor([1.0, 0, 0], dtype=DOUBLE).expand(40, 3)
    problem = FunctionBatch(start, peaks, {"u": u, "z": z})
    with pytest.warns(FitWarning, match=r"do not fit \d\d of the 40 problems.*method, as 'auto'"):
        haltwise.solve(problem, "quadratic-10d")
    haltwise.solve(problem, "regression-10d")  # which do fit: a warning would be an error


@pytest.fixture
def noisy_batch() -> TaskBatch:
    return family("regression-10d-noisy").sample(PROBLEMS, stream(4), dtype=torch.float64)


@pytest.fixture
def batch() -> TaskBatch:
    return family("regression-10d").sample(PROBLEMS, stream(2), dtype=torch.float64)


@pytest.mark.parametrize(
    "stop",
    [
        None,
        GradientNorm(0.5),
        StopPolicy(Patience(3), ReturnedIterate.BEST),
        StopPolicy(FixedBudget(7), ReturnedIterate.CURRENT),
        StopPolicy(HazardThreshold(-3.0), ReturnedIterate.LEARNED),
    ],
    ids=repr,
)
@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("kind", ["batch", "least_squares", "noisy_batch"])
def test_solving_equals_a_slow_loop(
    kind: str, chunk_size: int | None, stop: Any, request: pytest.FixtureRequest
) -> None:
    problem: TaskBatch = request.getfixturevalue(kind)
    model = haltwise.load("regression-10d").double()
    policy = StopPolicy(stop, ReturnedIterate.NEXT) if isinstance(stop, GradientNorm) else stop
    policy = policy or model.policy()
    solution = solve_learned(problem, stop=stop, history=True, chunk_size=chunk_size, guard=False)
    assert solution.history is not None
    assert solution.history.shape == (PROBLEMS, solution.num_gradients.max())
    for number in range(PROBLEMS):
        expected = plain_run(model, problem, number, policy, 0.0527, 60)
        seen = torch.tensor(expected.losses, dtype=DOUBLE)
        torch.testing.assert_close(solution.history[number, : len(seen)], seen)
        assert solution.history[number, len(seen) :].isnan().all()
        for name in ("params", "loss", "steps", "num_gradients", "outcome"):
            found, value = getattr(solution, name)[number], getattr(expected, name)
            torch.testing.assert_close(found, torch.as_tensor(value), msg=f"{name} of {number}")


@settings(max_examples=12)
@given(chunk_size=st.integers(1, PROBLEMS + 5), seed=st.integers(0, 3))
def test_chunks_change_nothing(chunk_size: int, seed: int) -> None:
    problem = family("regression-10d").sample(PROBLEMS, stream(seed), dtype=torch.float64)
    stop = Drawn(seed) if seed % 2 else None  # lots are drawn by position in the whole batch
    whole, parts = (
        solve_learned(problem, stop=stop, history=True, chunk_size=size)
        for size in (None, chunk_size)
    )
    for name in ("steps", "num_gradients", "outcome"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))
    for name in ("params", "loss", "history"):
        torch.testing.assert_close(
            getattr(whole, name), getattr(parts, name), rtol=1e-9, atol=1e-9, equal_nan=True
        )


def test_solving_is_running_the_process_until_it_halts(batch: TaskBatch) -> None:
    model = haltwise.load("regression-10d").double()
    price = torch.linspace(0.01, 0.3, PROBLEMS).double()
    session = HaltingSession(model.policy(), price, model.halting)
    run = run_until_halted(OptimizationProcess(model.rule, batch), session, 9)
    solution = solve_learned(batch, model, price=price, max_steps=9, guard=False)
    assert torch.equal(solution.params, run.result)
    assert torch.equal(solution.steps, run.num_updates)
    assert torch.equal(solution.num_gradients, run.num_gradients)
    assert torch.equal(solution.outcome, run.outcome)
    assert {0, 1} == set(solution.outcome.tolist())
    assert solution.history is None


def test_a_function_is_the_task_it_computes(batch: TaskBatch) -> None:
    known: Any = batch

    def loss(params: Tensor, factor: Tensor, target: Tensor, rest: Tensor) -> Tensor:
        residual = (factor @ params.unsqueeze(-1)).squeeze(-1) - target
        return rest[:, 0] + rest[:, 1] * residual.square().sum(1)

    rest = torch.stack((known.minimum, known.scale), 1)
    data = {"factor": known.factor, "target": known.target, "rest": rest}
    ours, theirs = (
        solve_learned(problem) for problem in (FunctionBatch(batch.start, loss, data), batch)
    )
    assert torch.equal(ours.steps, theirs.steps)
    torch.testing.assert_close(ours.params, theirs.params, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ours.loss, theirs.loss)


def test_a_function_of_one_problem_will_do_under_vmap(least_squares: FunctionBatch) -> None:
    def one(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (y - x @ params).square().sum() / 2

    mapped = FunctionBatch(
        least_squares.start,
        lambda params, x, y: torch.vmap(one)(params, x, y),  # noqa: PLW0108 (takes no keywords)
        least_squares.data,
    )
    torch.testing.assert_close(solve_learned(mapped).params, solve_learned(least_squares).params)


def test_a_function_s_gradient_is_that_of_finite_differences(least_squares: FunctionBatch) -> None:
    params, width = least_squares.start, 1e-6
    seen = least_squares.observe(params, 0)
    assert not seen.loss.requires_grad
    torch.testing.assert_close(least_squares.observe_loss(params, 0), seen.loss)
    for column in range(10):
        shift = width * torch.eye(10).double()[column]
        up, down = (squares(params + sign * shift, **least_squares.data) for sign in (1, -1))
        torch.testing.assert_close(
            (up - down) / (2 * width), seen.grad[:, column], atol=1e-5, rtol=0
        )


def test_problems_of_which_some_go_wrong_leave_the_others_alone(
    least_squares: FunctionBatch,
) -> None:
    clean = solve_learned(least_squares)
    y = least_squares.data["y"].clone()
    y[4] = torch.nan
    y[7] = 1e200  # overflows
    broken = FunctionBatch(least_squares.start, squares, {**least_squares.data, "y": y})
    solution = solve_learned(broken)
    assert (solution.outcome[[4, 7]] == Outcome.NONFINITE).all()
    assert torch.equal(solution.params[4], broken.start[4])
    assert solution.loss[4].isnan()
    others = torch.tensor([number not in (4, 7) for number in range(PROBLEMS)])
    torch.testing.assert_close(solution.params[others], clean.params[others], rtol=0, atol=1e-10)
    for name in ("steps", "num_gradients", "outcome"):
        assert torch.equal(getattr(solution, name)[others], getattr(clean, name)[others])


def test_single_precision_finds_what_double_finds(least_squares: FunctionBatch) -> None:
    single = FunctionBatch(
        least_squares.start.float(),
        squares,
        {name: value.float() for name, value in least_squares.data.items()},
    )
    ours, double = solve_learned(single), solve_learned(least_squares)
    assert ours.params.dtype == ours.loss.dtype == torch.float32
    assert double.params.dtype == double.loss.dtype == torch.float64
    same = ours.steps == double.steps  # a decision may lie within rounding
    assert same.sum() >= PROBLEMS - 2
    torch.testing.assert_close(
        ours.params[same].double(), double.params[same], rtol=1e-3, atol=1e-3
    )


def test_the_caller_s_optimizer_is_left_as_it_is(batch: TaskBatch) -> None:
    optimizer = haltwise.load("regression-10d")
    solve_learned(batch, optimizer)
    assert next(optimizer.parameters()).dtype == torch.float32


def test_a_step_on_the_batch_evaluates_no_more_than_it_says(least_squares: FunctionBatch) -> None:
    rows: list[int] = []

    def counted(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
        rows.append(len(params))
        return squares(params, x, y)

    solution = solve_learned(FunctionBatch(least_squares.start, counted, least_squares.data))
    probes = 3 + 3 + 12  # three problems together, each alone, and two steps each of two ways
    # The last call is for the losses of updates that were applied but never observed.
    assert sum(rows[:-1]) - probes == int(solution.num_gradients.sum())
    assert rows[-1] <= 12


def test_weights_come_by_path_too(tmp_path: Path, batch: TaskBatch) -> None:
    source = Path(loading.__file__).parent / "weights" / "regression-10d.safetensors"
    path = tmp_path / "best.safetensors"
    path.write_bytes(source.read_bytes())
    named = solve_learned(batch)
    for optimizer in (path, tmp_path, str(tmp_path)):
        assert torch.equal(solve_learned(batch, optimizer).params, named.params)


def test_importing_stays_cheap() -> None:
    heavy = ("scipy", "rich", "plotly", "sklearn", "click", "pooch")
    code = f"import sys, haltwise; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_nothing_is_shown(batch: TaskBatch, capfd: pytest.CaptureFixture[str]) -> None:
    solve_learned(batch)
    assert capfd.readouterr() == ("", "")


def test_a_loss_may_differentiate_inside(least_squares: FunctionBatch) -> None:
    """A penalty on its own gradient, wherever it is evaluated."""

    def loss(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
        value = squares(params, x, y)
        (slope,) = torch.autograd.grad(value.sum(), params, create_graph=True)
        return value + 1e-3 * slope.square().sum(1)

    problem = FunctionBatch(least_squares.start, loss, least_squares.data)
    for guard in (True, False):
        solution = solve_learned(problem, max_steps=6, guard=guard)
        expected = problem.observe_loss(solution.params, 0)
        assert torch.equal(solution.loss, expected)
        assert not expected.requires_grad


class Undetached(TaskBatch):
    """A batch of a user's that differentiates without enabling gradients or detaching."""

    reference_loss = torch.zeros(())

    def observe(self, params: Tensor, step: int) -> Observation:
        leaf = params.clone().requires_grad_()
        loss = (leaf - 1).square().sum(1)
        (grad,) = torch.autograd.grad(loss.sum(), leaf, create_graph=True)
        return Observation(loss, grad)


def test_a_batch_of_one_s_own_may_differentiate_inside() -> None:
    problem = Undetached(torch.zeros(4, 10))
    solve_learned(problem)
    solution = solve_learned(problem, guard=False, max_steps=2)  # its last update is evaluated
    rule = haltwise.load("regression-10d").rule
    assert (
        haltwise.run(OptimizationProcess(rule, problem), "regression-10d").result.isfinite().all()
    )
    recorded = record(rule, problem, 3)
    assert not any(v.requires_grad for v in (solution.loss, solution.params, recorded.loss))


def test_numpy_arrays_are_taken_for_tensors(least_squares: FunctionBatch) -> None:
    start = least_squares.start.numpy()[::-1].copy()
    start.flags.writeable = False  # as of other libraries
    data = {name: value.numpy()[::-1] for name, value in least_squares.data.items()}
    given = FunctionBatch(start, least_squares.loss, data)
    flipped = torch.from_numpy(solve_learned(given).params).flip(0)
    assert torch.equal(flipped, solve_learned(least_squares).params)


@pytest.mark.parametrize("guard", [False, True])
def test_every_problem_keeps_its_own_price_in_chunks(batch: TaskBatch, *, guard: bool) -> None:
    prices = torch.logspace(-2, -0.5, PROBLEMS, dtype=torch.float64)
    whole, chunked = (
        solve_learned(batch, price=prices, chunk_size=size, guard=guard) for size in (None, 5)
    )
    assert torch.equal(whole.num_gradients, chunked.num_gradients)
    assert len(whole.num_gradients.unique()) > 2
