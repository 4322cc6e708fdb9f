"""What the head sees, against plain formulas, closed forms and invariances; what it says."""

import itertools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from haltwise.halting.halter import BEFORE, Halter
from haltwise.processes.signals import (
    NUM_FEATURES,
    SIGNALS,
    blank_features,
    combine_products,
    extract_features,
    init_features,
    init_signals,
    measure_signals,
    sum_products,
)

DOUBLE = torch.float64
B, T, D = 5, 9, 4
PRICE = torch.tensor([0.01, 0.05, 0.3, 2.0, 40.0], dtype=DOUBLE)


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


def measured(losses: Tensor, grads: Tensor, updates: Tensor) -> Tensor:
    """Signals [B, T, S] of losses [B, T], gradients and updates [B, T, D]."""
    memory, found = init_signals(grads[:, 0]), []
    for step in range(losses.shape[1]):
        signals, memory = measure_signals(
            step, losses[:, step], grads[:, step], updates[:, step], memory
        )
        found.append(signals)
    return torch.stack(found, 1)


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


def test_products_beyond_all_numbers_leave_the_signals_finite() -> None:
    grad, update = torch.full((1, D), 1e200, dtype=DOUBLE), torch.full((1, D), -1e200, dtype=DOUBLE)
    products = sum_products(grad, update, {"grad": update, "update": grad})
    assert combine_products(1, torch.ones(1, dtype=DOUBLE), products, D).isfinite().all()


def features_of(signals: Tensor, price: Tensor) -> Tensor:
    return extract_features(signals, price, init_features(len(price), signals))[0]


def named(signals: Tensor) -> dict[str, Tensor]:
    return dict(zip(SIGNALS, signals.unbind(-1), strict=True))


class Descent:
    """1/2 (theta - m)^T A (theta - m) under updates that are no function of it."""

    def __init__(self, dim: int = D, seed: int = 3) -> None:
        root = randn(B, dim, dim, seed=seed)
        self.hessian = root @ root.mT + 0.1 * torch.eye(dim, dtype=DOUBLE)
        self.errors = [3 * randn(B, dim, seed=seed + 1)]
        self.updates = 0.4 * randn(B, T, dim, seed=seed + 2)
        for update in self.updates.unbind(1):
            self.errors.append(self.errors[-1] + update)
        self.grads = torch.stack([self.grad(error) for error in self.errors[:T]], 1)
        self.losses = torch.stack([self.loss(error) for error in self.errors[:T]], 1)

    def grad(self, error: Tensor) -> Tensor:
        return torch.einsum("bij,bj->bi", self.hessian, error)

    def loss(self, error: Tensor) -> Tensor:
        return (error * self.grad(error)).sum(1) / 2

    def signals(self) -> Tensor:
        return measured(self.losses, self.grads, self.updates)


# --- Signals -------------------------------------------------------------------------------------


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


# --- Features ------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1e-6, 3.0, 1e8])
def test_the_unit_of_the_loss_shows_in_its_logarithms_alone(factor: float) -> None:
    quadratic = Descent()
    losses, grads = factor * quadratic.losses, factor * quadratic.grads
    found = features_of(measured(losses, grads, quadratic.updates), factor * PRICE)
    expected = features_of(quadratic.signals(), PRICE)
    shift = torch.zeros(T, NUM_FEATURES, dtype=DOUBLE)
    shift[:, 0] = math.log(factor) / 4  # log_grad
    shift[1:, 8] = math.log(factor) / 4  # log_curvature, 0 at the first step ...
    shift[1, 9 + 8] = math.log(factor) / 4  # ... so that it changes at the second
    shift[:, -1] = math.log(factor) / 2  # the price itself
    assert_close(found - expected, shift.expand(B, T, -1), rtol=1e-7, atol=1e-7)


def test_the_order_of_coordinates_is_not_seen() -> None:
    quadratic, order = Descent(), torch.tensor([2, 0, 3, 1])
    found = measured(quadratic.losses, quadratic.grads[..., order], quadratic.updates[..., order])
    assert_close(found, quadratic.signals(), rtol=1e-12, atol=1e-12)


def test_a_problem_beside_its_copy_is_worth_twice_and_looks_the_same() -> None:
    quadratic = Descent()
    grads, updates = (torch.cat((v, v), -1) for v in (quadratic.grads, quadratic.updates))
    found = features_of(measured(2 * quadratic.losses, grads, updates), 2 * PRICE)
    expected = features_of(quadratic.signals(), PRICE)
    assert_close(found[..., :-1], expected[..., :-1], rtol=1e-10, atol=1e-10)


def test_features_are_those_of_a_loop_over_one_problem() -> None:
    quadratic = Descent()
    signals = quadratic.signals()
    found = features_of(signals, PRICE)

    def units(gain: float, price: float) -> float:
        return math.asinh(gain / price) / 4

    for i, price in enumerate(PRICE.tolist()):
        before: list[float] = []
        losses: list[float] = signals[i, :, 1].tolist()
        for t in range(T):
            seen = {name: value[i, t].item() for name, value in named(signals).items()}
            now = [
                seen["log_grad"] / 4,
                seen["log_update"] / 4,
                units(losses[t], price) / 2,
                units(losses[t - 1] - losses[t], price) if t else 0.0,
                units(seen["gain"], price),
                units(seen["gain"] - seen["bend"], price),
                units(seen["least_gain"], price),
                units(seen["most_gain"], price),
                seen["log_curvature"] / 4,
            ]
            lowest = min(losses[: t + 1])
            expected = [
                *now,
                *([a - b for a, b in zip(now, before, strict=True)] if t else [0.0] * 9),
                units(losses[t] - lowest, price),
                units(lowest, price) / 2,
                units(seen["overshoot"], price),
                *(seen[f"{name}_cosine"] for name in ("descent", "grad", "update")),
                math.log1p(t) / 2,
                math.log(price) / 2,
            ]
            before = now
            assert found[i, t].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(cuts=st.sets(st.integers(1, T - 1)), seed=st.integers(0, 10**6))
def test_features_in_pieces_are_those_at_once(cuts: set[int], seed: int) -> None:
    signals = measured(*(randn(B, T, *s, seed=seed + i) for i, s in enumerate(((), (D,), (D,)))))
    memory, pieces = init_features(B, signals), []
    edges = [0, *sorted(cuts), T]
    for begin, end in itertools.pairwise(edges):
        features, memory = extract_features(signals[:, begin:end], PRICE, memory)
        pieces.append(features)
    assert torch.equal(torch.cat(pieces, 1), features_of(signals, PRICE))


def test_blank_features_know_the_price_and_no_step() -> None:
    blank, known = blank_features(PRICE), features_of(Descent().signals(), PRICE)[:, 0]
    assert torch.equal(blank[:, -1], known[:, -1])
    assert (blank[:, -2] < known[:, -2]).all()
    assert not blank[:, :-2].any()


# --- Whatever comes ------------------------------------------------------------------------------

SIZES = (0.0, 1e-38, 1e-30, 1.0, 1e15, 1e30)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("update_size", SIZES)
@pytest.mark.parametrize("grad_size", SIZES)
def test_extremes_stay_finite(grad_size: float, update_size: float, dtype: torch.dtype) -> None:
    steps, dim = 6, 3
    grads = (grad_size * randn(2, steps, dim).clamp(-3, 3)).to(dtype)
    updates = (update_size * randn(2, steps, dim, seed=2).clamp(-3, 3)).to(dtype)
    grads[:, 3], updates[:, 4] = 1.0, 0.0  # and sudden changes
    losses = (grad_size * randn(2, steps, seed=4)).to(dtype)
    signals = measured(losses, grads, updates)
    assert signals.isfinite().all()
    assert signals.dtype == dtype
    for price in (1e-9, 1.0, 1e6):
        features = features_of(signals, torch.full((2,), price, dtype=dtype))
        assert features.isfinite().all()
        assert features.abs().max() < 100


@pytest.mark.parametrize("where", ["loss", "grad", "update"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_problem_leaves_the_others_bit_identical(where: str, value: float) -> None:
    quadratic = Descent()
    inputs = {"loss": quadratic.losses, "grad": quadratic.grads, "update": quadratic.updates}
    clean = features_of(measured(*inputs.values()), PRICE)
    inputs[where] = inputs[where].clone()
    inputs[where][1, 3] = value
    broken = features_of(measured(*inputs.values()), PRICE)
    others = [0, 2, 3, 4]
    assert torch.equal(broken[others], clean[others])
    assert torch.equal(broken[1, :3], clean[1, :3])
    assert not torch.equal(broken[1, 3:], clean[1, 3:])


def test_memory_is_left_untouched() -> None:
    quadratic = Descent()
    memory = init_signals(quadratic.grads[:, 0])
    first = (quadratic.losses[:, 0], quadratic.grads[:, 0], quadratic.updates[:, 0])
    once, _ = measure_signals(0, *first, memory)
    again, _ = measure_signals(0, *first, memory)
    assert torch.equal(once, again)
    recent = init_features(B, once)
    one, other = (extract_features(once.unsqueeze(1), PRICE, recent)[0] for _ in range(2))
    assert torch.equal(one, other)


# --- The head ------------------------------------------------------------------------------------

READOUT = 3
HEADS: dict[str, dict[str, Any]] = {
    "remembers": {"memory": 6},
    "judges every step by itself": {"memory": 0},
    "linear": {"memory": 6, "width": 0},
    "the thesis'": {"memory": 0, "width": 0, "use_features": False},
    "features alone": {"memory": 6, "use_readout": False},
    "read-out alone": {"memory": 6, "use_features": False},
}
every_head = pytest.mark.parametrize("settings", HEADS.values(), ids=HEADS)


def head_of(settings: dict[str, Any]) -> Halter:
    head = Halter(READOUT, **{"width": 5, **settings}, generator=seeded()).double()
    for index, weight in enumerate(head.parameters()):  # a new head's outputs are constant
        weight.data += 0.3 * randn(*weight.shape, seed=index)
    return head.requires_grad_(False)


@every_head
def test_a_head_says_the_same_step_by_step(settings: dict[str, Any]) -> None:
    head = head_of(settings)
    features, readouts = randn(B, T, NUM_FEATURES), randn(B, T, READOUT, seed=2)
    whole, state = head(features, readouts), head.init(B, features)
    for step in range(T):
        said, state = head.step(features[:, step], readouts[:, step], state)
        for part, expected in zip(said, whole, strict=True):
            assert_close(part, expected[:, step], rtol=1e-12, atol=1e-12)


@every_head
@pytest.mark.parametrize("step", range(1, T))
def test_what_comes_later_is_not_known(settings: dict[str, Any], step: int) -> None:
    head = head_of(settings)
    features, readouts = randn(B, T, NUM_FEATURES), randn(B, T, READOUT, seed=2)
    before = head(features, readouts)
    features[:, step], readouts[:, step] = 1.0, -1.0
    after = head(features, readouts)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[:, :step], new[:, :step])
        assert not torch.equal(old[:, step], new[:, step])
        remembered = not torch.equal(old[:, step + 1 :], new[:, step + 1 :])
        assert remembered == (head.memory > 0 and step < T - 1)


@pytest.mark.parametrize("step", range(1, T))
def test_features_do_not_look_ahead(step: int) -> None:
    losses, grads, updates = randn(B, T), randn(B, T, D, seed=2), randn(B, T, D, seed=3)
    before = features_of(measured(losses, grads, updates), PRICE)
    losses[:, step:], grads[:, step:], updates[:, step:] = -3.0, 5.0, 1e3
    after = features_of(measured(losses, grads, updates), PRICE)
    assert torch.equal(before[:, :step], after[:, :step])
    assert not torch.equal(before[:, step], after[:, step])


@every_head
def test_the_first_word_is_spoken_with_the_price_alone(settings: dict[str, Any]) -> None:
    head = head_of(settings)
    zeros = torch.zeros(B, 1, READOUT, dtype=DOUBLE)
    inputs = head._inputs(blank_features(PRICE), zeros[:, 0])
    expected = head._speak(inputs, torch.zeros(B, head.memory, dtype=DOUBLE))
    assert torch.equal(head.first(PRICE), expected.increments[:, BEFORE])
    assert (len(set(head.first(PRICE).tolist())) == B) == head.use_features


def test_a_new_head_says_the_same_of_everything() -> None:
    head = Halter(READOUT, generator=seeded()).double()
    said = head(randn(B, T, NUM_FEATURES), randn(B, T, READOUT, seed=2))
    assert not said.increments.any()
    assert (said.hazard_logits == -2).all()
    assert (said.hold_logits == -2).all()


def test_hidden_states_hear_from_the_perceptron_alone() -> None:
    """Through the memory nothing flows back to what it read, as `Halter.forward` says."""
    head = head_of({"memory": 6, "width": 0}).requires_grad_()
    features, readouts = randn(B, T, NUM_FEATURES), randn(B, T, READOUT, seed=2).requires_grad_()
    said = head(features, readouts)
    sum(value[:, -1].sum() for value in said).backward()
    assert readouts.grad is not None
    assert not readouts.grad[:, :-1].any()
    assert readouts.grad[:, -1].all()
    assert all(weight.grad is not None and weight.grad.any() for weight in head.parameters())
