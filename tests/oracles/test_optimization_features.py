"""The features of an optimization against a loop over one problem, and their invariances."""

import math

import pytest
import torch
from descents import PRICE, B, Descent, T, measured, named
from draws import DOUBLE
from torch import Tensor
from torch.testing import assert_close

from haltwise.halting.features import OptimizationFeatures

FEATURES = OptimizationFeatures()


def features_of(signals: Tensor, price: Tensor) -> Tensor:
    return FEATURES.extract(signals, price, FEATURES.init(len(price), signals))[0]


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


@pytest.mark.parametrize("factor", [1e-6, 3.0, 1e8])
def test_the_unit_of_the_loss_shows_in_its_logarithms_alone(factor: float) -> None:
    quadratic = Descent()
    losses, grads = factor * quadratic.losses, factor * quadratic.grads
    found = features_of(measured(losses, grads, quadratic.updates), factor * PRICE)
    expected = features_of(quadratic.signals(), PRICE)
    shift = torch.zeros(T, FEATURES.num_features, dtype=DOUBLE)
    shift[:, 0] = math.log(factor) / 4  # log_grad
    shift[1:, 8] = math.log(factor) / 4  # log_curvature, 0 at the first step ...
    shift[1, 9 + 8] = math.log(factor) / 4  # ... so that it changes at the second
    shift[:, -1] = math.log(factor) / 2  # the price itself
    assert_close(found - expected, shift.expand(B, T, -1), rtol=1e-7, atol=1e-7)


def test_a_problem_beside_its_copy_is_worth_twice_and_looks_the_same() -> None:
    quadratic = Descent()
    grads, updates = (torch.cat((v, v), -1) for v in (quadratic.grads, quadratic.updates))
    found = features_of(measured(2 * quadratic.losses, grads, updates), 2 * PRICE)
    expected = features_of(quadratic.signals(), PRICE)
    assert_close(found[..., :-1], expected[..., :-1], rtol=1e-10, atol=1e-10)


def test_blank_features_know_the_price_and_no_step() -> None:
    blank, known = FEATURES.blank(PRICE), features_of(Descent().signals(), PRICE)[:, 0]
    assert torch.equal(blank[:, -1], known[:, -1])
    assert (blank[:, -2] < known[:, -2]).all()
    assert not blank[:, :-2].any()
