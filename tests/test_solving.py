"""`haltwise.solve`: one call equals a slow loop, in any chunks, and no problem disturbs another."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import haltwise
from haltwise import FunctionBatch, InputError, Outcome
from haltwise._core.random import stream
from haltwise.rollout.early_exit import execute
from haltwise.stop_rules.accounts import StopPolicy, ReturnedIterate
from haltwise.stop_rules import FixedBudget, GradientNorm, HazardThreshold, Patience, Sampling
from haltwise.models.optimizer_model import OptimizerModel, ModelConfig
from haltwise.tasks import TaskBatch, family

PROBLEMS = 12


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


@pytest.fixture
def noisy_batch() -> TaskBatch:
    return family("regression-10d-noisy").sample(PROBLEMS, stream(4), dtype=torch.float64)


@pytest.fixture
def batch() -> TaskBatch:
    return family("regression-10d").sample(PROBLEMS, stream(2), dtype=torch.float64)


def alone(
    optimizer: OptimizerModel, batch: TaskBatch, policy: StopPolicy, price: float
) -> dict[str, Any]:
    """The slow twin: one problem, step by step, nothing shared with `execute` but the rules."""
    params, state = batch.start, optimizer.init(batch.start)
    memory = policy.rule.init(1, params)
    prices, losses, seen = params.new_full((1,), price), [], [params]
    for step in range(60):
        loss, grad = batch.observe(params, step)
        losses.append(loss.item())
        update, said, state = optimizer.step(step, loss, grad, prices, state)
        stop, memory = policy.rule.step(
            haltwise.stop_rules.StepObservation(
                step, loss, grad.square().mean(1).sqrt().log(), *said
            ),
            memory,
        )
        if stop:
            break
        params = params + update
        seen.append(params)
    taken = step + 1
    if policy.recall is ReturnedIterate.BEST:
        best = min(range(taken), key=losses.__getitem__)
        params, steps = seen[best], best
    elif not stop:
        steps = taken
    elif policy.recall is ReturnedIterate.NEXT or (
        policy.recall is ReturnedIterate.LEARNED and not said.hold_logits > 0
    ):
        params, steps = params + update, taken
    else:
        steps = step
    return {
        "params": params[0],
        "loss": batch.observe(params, steps).loss[0],
        "steps": steps,
        "num_gradients": taken,
        "outcome": int(Outcome.HALTED if stop else Outcome.OUT_OF_STEPS),
        "history": torch.tensor(losses, dtype=torch.float64),
    }


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
    optimizer = haltwise.load("regression-10d").double()
    policy = StopPolicy(stop, ReturnedIterate.NEXT) if isinstance(stop, GradientNorm) else stop
    policy = policy or optimizer.policy()
    solution = haltwise.solve(problem, stop=stop, history=True, chunk_size=chunk_size)
    assert solution.history is not None
    assert solution.history.shape == (PROBLEMS, solution.num_gradients.max())
    for number in range(PROBLEMS):
        single = problem.select(torch.tensor([number]))
        expected = alone(optimizer, single, policy, 0.0527)
        seen = expected.pop("history")
        torch.testing.assert_close(solution.history[number, : len(seen)], seen)
        assert solution.history[number, len(seen) :].isnan().all()
        for name, value in expected.items():
            torch.testing.assert_close(
                getattr(solution, name)[number], torch.as_tensor(value), msg=f"{name} of {number}"
            )


@settings(max_examples=12)
@given(chunk_size=st.integers(1, PROBLEMS + 5), seed=st.integers(0, 3))
def test_chunks_change_nothing(chunk_size: int, seed: int) -> None:
    problem = family("regression-10d").sample(PROBLEMS, stream(seed), dtype=torch.float64)
    stop = Sampling(seed) if seed % 2 else None  # lots are drawn by position in the whole batch
    whole, parts = (
        haltwise.solve(problem, stop=stop, history=True, chunk_size=size)
        for size in (None, chunk_size)
    )
    for name in ("steps", "num_gradients", "outcome"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))
    for name in ("params", "loss", "history"):
        torch.testing.assert_close(
            getattr(whole, name), getattr(parts, name), rtol=1e-9, atol=1e-9, equal_nan=True
        )


def test_solving_is_executing(batch: TaskBatch) -> None:
    optimizer = haltwise.load("regression-10d").double()
    price = torch.linspace(0.01, 0.3, PROBLEMS).double()
    run = execute(optimizer, batch, optimizer.policy(), price, 9)
    solution = haltwise.solve(batch, optimizer, price=price, max_steps=9)
    assert torch.equal(solution.params, run.params)
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
        haltwise.solve(problem) for problem in (FunctionBatch(batch.start, loss, data), batch)
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
    torch.testing.assert_close(haltwise.solve(mapped).params, haltwise.solve(least_squares).params)


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
    clean = haltwise.solve(least_squares)
    y = least_squares.data["y"].clone()
    y[4] = torch.nan
    y[7] = 1e200  # overflows
    broken = FunctionBatch(least_squares.start, squares, {**least_squares.data, "y": y})
    solution = haltwise.solve(broken)
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
    ours, double = haltwise.solve(single), haltwise.solve(least_squares)
    assert ours.params.dtype == ours.loss.dtype == torch.float32
    assert double.params.dtype == double.loss.dtype == torch.float64
    same = ours.steps == double.steps  # a decision may lie within rounding
    assert same.sum() >= PROBLEMS - 2
    torch.testing.assert_close(
        ours.params[same].double(), double.params[same], rtol=1e-3, atol=1e-3
    )


def test_the_caller_s_optimizer_is_left_as_it_is(batch: TaskBatch) -> None:
    optimizer = haltwise.load("regression-10d")
    haltwise.solve(batch, optimizer)
    assert next(optimizer.parameters()).dtype == torch.float32


def test_a_step_on_the_batch_evaluates_no_more_than_it_says(least_squares: FunctionBatch) -> None:
    rows: list[int] = []

    def counted(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
        rows.append(len(params) if params.requires_grad else 0)
        return squares(params, x, y)

    solution = haltwise.solve(FunctionBatch(least_squares.start, counted, least_squares.data))
    probes = 3 + 3  # three problems together, then each alone
    assert sum(rows) - probes == int(solution.num_gradients.sum())


def test_weights_come_by_path_too(tmp_path: Path, batch: TaskBatch) -> None:
    source = (
        Path(haltwise.models.loading.__file__).parent / "weights" / "regression-10d.safetensors"
    )
    path = tmp_path / "best.safetensors"
    path.write_bytes(source.read_bytes())
    named = haltwise.solve(batch)
    for optimizer in (path, tmp_path, str(tmp_path)):
        assert torch.equal(haltwise.solve(batch, optimizer).params, named.params)


def test_importing_stays_cheap() -> None:
    heavy = ("scipy", "rich", "plotly", "sklearn", "click", "pooch")
    code = f"import sys, haltwise; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_nothing_is_shown(batch: TaskBatch, capfd: pytest.CaptureFixture[str]) -> None:
    haltwise.solve(batch)
    assert capfd.readouterr() == ("", "")


ONES = torch.ones(5, 2)


def centred(params: Tensor) -> Tensor:
    return (params - params.mean(0)).square().sum(1)


def noisy(params: Tensor) -> Tensor:
    return params.square().sum(1) * torch.rand((), generator=NOISE)


NOISE = torch.Generator().manual_seed(0)
OUTSIDE = torch.arange(5.0)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ONES, "must be a TaskBatch, got Tensor; make one of a loss"),
        (lambda: FunctionBatch(ONES[0], centred), r"shape \[B, D\].*got shape \[2\]"),
        (lambda: FunctionBatch(ONES[:0], centred), r"got shape \[0, 2\]"),
        (lambda: FunctionBatch([[1.0]], centred), "got list"),  # type: ignore[arg-type]
        (lambda: FunctionBatch(ONES.long(), centred), r"got torch.int64; convert"),
        (lambda: FunctionBatch(ONES.half(), centred), r"got torch.float16; convert"),
        (
            lambda: FunctionBatch(torch.where(OUTSIDE[:, None] > 2, torch.nan, ONES), centred),
            "NaN or infinity in 2 of 5 problems, first in problem 3",
        ),
        (lambda: FunctionBatch(ONES, centred), "problem 0 or its gradient changes with"),
        (lambda: FunctionBatch(ONES, lambda p: p.square().sum(1) / len(p)), "problem 0 or"),
        (lambda: FunctionBatch(ONES, noisy), "and not random"),
        (lambda: FunctionBatch(ONES, lambda p: p.square().sum()), r"shape \[3\].*got shape \[\]"),
        (lambda: FunctionBatch(ONES, lambda p: p.square()), r"got shape \[3, 2\]"),
        (lambda: FunctionBatch(ONES, lambda p: 3.0), "got 3.0"),  # type: ignore[arg-type,return-value]
        (lambda: FunctionBatch(ONES, lambda p: p.double().sum(1)), "torch.float64 for param"),
        (lambda: FunctionBatch(ONES, lambda p: p.detach().sum(1)), "no gradient in its param"),
        (
            lambda: FunctionBatch(ONES, lambda p: p.sum(1) * OUTSIDE),
            "fails for 3 of the 5 problems",
        ),
        (
            lambda: FunctionBatch(ONES, lambda p, x: x.sum(1), {"x": ONES[:4]}),
            r"data\['x'\] must be a tensor with the 5 problems .* got shape \[4, 2\]",
        ),
        (
            lambda: FunctionBatch(ONES, lambda p, x: p.sum(1), {"x": 3}),  # type: ignore[dict-item]
            r"data\['x'\] .* got 3",
        ),
    ],
)
def test_problems_that_will_not_do(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        haltwise.solve(make())


@pytest.mark.parametrize(
    ("given_settings", "said"),
    [
        ({"optimizer": "regresion-10d"}, "did you mean 'regression-10d'"),
        ({"stop": 5}, "stop must be a StopRule"),
        ({"price": 0.0}, "above 0 and finite, got 0"),
        ({"price": torch.ones(3)}, r"shape \[12\], got shape \[3\]"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"optimizer": OptimizerModel(ModelConfig())}, "no card that says its price; give"),
        (
            {"optimizer": OptimizerModel(ModelConfig()), "price": 0.1},
            "no card that says its horizon; give max_steps",
        ),
    ],
)
def test_settings_that_will_not_do(
    given_settings: dict[str, Any], said: str, batch: TaskBatch
) -> None:
    with pytest.raises(InputError, match=said):
        haltwise.solve(batch, **given_settings)
