"""The signals of a step against plain formulas, closed forms and invariances."""

import itertools
import math

import pytest
import torch
from descents import B, D, Descent, T, measured, named
from draws import DOUBLE, randn
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from haltwise.processes.signals import (
    SIGNALS,
    combine_products,
    init_signals,
    loss_signals,
    measure_sequence,
    measure_signals,
    sum_products,
)


def dot(left: list[float], right: list[float]) -> float:
    return math.fsum(x * y for x, y in zip(left, right, strict=True))


def cosine(left: list[float], right: list[float]) -> float:
    lengths = math.sqrt(dot(left, left) * dot(right, right))
    return dot(left, right) / lengths if lengths else 0.0


def by_definition(
    step: int, loss: float, grads: list[list[float]], updates: list[list[float]]
) -> dict[str, float]:
    """The signals of one problem; gradients and updates are those up to this step."""
    grad, update, num = grads[-1], updates[-1], len(grads[-1])
    found = {
        "step": float(step),
        "loss": loss,
        "log_grad": math.log(math.sqrt(dot(grad, grad) / num)),
        "log_update": math.log(math.sqrt(dot(update, update) / num)),
        "gain": -dot(grad, update),
        "descent_cosine": -cosine(grad, update),
    }
    looking_back = set(SIGNALS) - set(found)
    if step == 0:
        return found | dict.fromkeys(looking_back, 0.0)
    s, y = updates[-2], [new - old for new, old in zip(grad, grads[-2], strict=True)]
    curvature = min(max(dot(s, y) / dot(s, s), 1e-8), 1e30)
    inverse = min(max(dot(s, y) / dot(y, y), 0.0), 1e8)
    return found | {
        "bend": curvature * dot(update, update) / 2,
        "least_gain": dot(grad, grad) * inverse / 2,
        "most_gain": dot(grad, grad) / curvature / 2,
        "overshoot": -dot(grad, s),
        "log_curvature": math.log(curvature),
        "grad_cosine": cosine(grad, grads[-2]),
        "update_cosine": cosine(update, s),
    }


def test_signals_are_those_of_a_loop_over_one_problem() -> None:
    losses, grads, updates = randn(B, T), 3 * randn(B, T, D, seed=2), randn(B, T, D, seed=3)
    found = named(measured(losses, grads, updates))
    for problem in range(B):
        for step in range(T):
            expected = by_definition(
                step,
                losses[problem, step].item(),
                grads[problem, : step + 1].tolist(),
                updates[problem, : step + 1].tolist(),
            )
            assert expected.keys() == found.keys()
            for name, value in expected.items():
                assert found[name][problem, step].item() == pytest.approx(value, rel=1e-12), name


# --- In parts ------------------------------------------------------------------------------------


@given(scale=st.floats(-20, 20), zeros=st.sets(st.integers(0, T - 1)))
def test_products_add_up_to_the_signals_of_the_whole(scale: float, zeros: set[int]) -> None:
    losses = randn(B, T)
    grads, updates = 10**scale * randn(B, T, D, seed=2), randn(B, T, D, seed=3)
    for step in zeros:
        grads[:, step] = 0
        updates[:, step] = 0
    memory = init_signals(grads[:, 0])
    for step in range(T):
        grad, update = grads[:, step], updates[:, step]
        products = sum(
            sum_products(
                grad[:, span], update[:, span], {name: v[:, span] for name, v in memory.items()}
            )
            for span in (slice(0, 1), slice(1, D))
        )
        signals, memory = measure_signals(step, losses[:, step], grad, update, memory)
        found = combine_products(step, losses[:, step], torch.as_tensor(products), D)
        assert_close(found, signals, rtol=1e-9, atol=1e-11)


@given(cuts=st.sets(st.integers(1, T - 1)), seed=st.integers(0, 10**6))
def test_signals_of_many_steps_at_once_are_those_step_by_step(cuts: set[int], seed: int) -> None:
    losses, grads, updates = (
        randn(B, T, *shape, seed=seed + i) for i, shape in enumerate(((), (D,), (D,)))
    )
    memory, pieces = init_signals(grads[:, 0]), []
    for begin, end in itertools.pairwise([0, *sorted(cuts), T]):
        span = slice(begin, end)
        signals, memory = measure_sequence(
            begin, losses[:, span], grads[:, span], updates[:, span], memory
        )
        pieces.append(signals)
    assert_close(torch.cat(pieces, 1), measured(losses, grads, updates), rtol=1e-12, atol=1e-12)


def test_products_beyond_all_numbers_leave_the_signals_finite() -> None:
    grad, update = torch.full((1, D), 1e200, dtype=DOUBLE), torch.full((1, D), -1e200, dtype=DOUBLE)
    products = sum_products(grad, update, {"grad": update, "update": grad})
    assert combine_products(1, torch.ones(1, dtype=DOUBLE), products, D).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_process_without_gradients_has_the_signals_of_one_that_does_not_move(
    dtype: torch.dtype,
) -> None:
    losses, still = randn(B, T, dtype=dtype), torch.zeros(B, T, 1, dtype=dtype)
    expected = measured(losses, still, still)
    for step in range(T):
        assert torch.equal(loss_signals(step, losses[:, step]), expected[:, step])


# --- Closed forms --------------------------------------------------------------------------------


def test_bend_is_what_curvature_takes_of_an_update_along_the_last() -> None:
    quadratic = Descent()
    quadratic.updates[:, T - 1] = -0.7 * quadratic.updates[:, T - 2]
    seen = {name: value[:, -1] for name, value in named(quadratic.signals()).items()}
    moved = quadratic.errors[T - 1] + quadratic.updates[:, T - 1]
    gained = quadratic.loss(quadratic.errors[T - 1]) - quadratic.loss(moved)
    assert_close(seen["gain"] - seen["bend"], gained, rtol=1e-10, atol=1e-10)
    assert (seen["bend"] > 0.01).all()


@given(seed=st.integers(0, 10**6), dim=st.integers(1, 6))
def test_what_is_left_is_bracketed_on_convex_quadratics(seed: int, dim: int) -> None:
    """Both are (1/2) |gamma|^2 over a curvature within the Hessian's spectrum."""
    quadratic = Descent(dim, seed)
    seen = named(quadratic.signals()[:, 1:])
    least, most = seen["least_gain"], seen["most_gain"]
    assert (least <= most * (1 + 1e-9)).all()
    eigenvalues = torch.linalg.eigvalsh(quadratic.hessian)
    half = quadratic.grads[:, 1:].square().sum(2) / 2
    assert (least >= half / eigenvalues[:, -1:] * (1 - 1e-7)).all()
    assert (most <= half / eigenvalues[:, :1] * (1 + 1e-7)).all()


def test_what_is_left_is_exact_in_one_dimension() -> None:
    quadratic = Descent(1)
    seen = named(quadratic.signals()[:, 1:])
    for name in ("least_gain", "most_gain"):
        assert_close(seen[name], quadratic.losses[:, 1:], rtol=1e-9, atol=1e-12)


def test_overshooting_is_seen_by_its_sign() -> None:
    """On the line of the last step the minimum lies ahead while overshoot is above 0."""
    errors = torch.tensor([[-1.0], [-1.0]], dtype=DOUBLE)
    updates = torch.tensor([[[0.5], [0.1]], [[1.5], [0.1]]], dtype=DOUBLE)
    grads = torch.stack((errors, errors + updates[:, 0]), 1)
    overshoot = named(measured(grads[..., 0].square() / 2, grads, updates))["overshoot"][:, 1]
    assert overshoot.sign().tolist() == [1, -1]


def test_the_order_of_coordinates_is_not_seen() -> None:
    quadratic, order = Descent(), torch.tensor([2, 0, 3, 1])
    found = measured(quadratic.losses, quadratic.grads[..., order], quadratic.updates[..., order])
    assert_close(found, quadratic.signals(), rtol=1e-12, atol=1e-12)


def test_measuring_leaves_the_memory_untouched() -> None:
    quadratic = Descent()
    memory = init_signals(quadratic.grads[:, 0])
    first = (quadratic.losses[:, 0], quadratic.grads[:, 0], quadratic.updates[:, 0])
    once, _ = measure_signals(0, *first, memory)
    again, _ = measure_signals(0, *first, memory)
    assert torch.equal(once, again)
    assert not memory["grad"].any()
    assert not memory["update"].any()
