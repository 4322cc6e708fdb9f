"""The features of a descent against a loop over one problem: shipped stops of engines read them."""

import math

import pytest
import torch
from descents import PRICE, B, Descent, T, named

from haltwise.halting.features.descent import DescentFeatures

FEATURES = DescentFeatures()


def test_features_are_those_of_a_loop_over_one_problem() -> None:
    signals = Descent().signals()
    found = FEATURES.extract(signals, PRICE, FEATURES.init(B, signals))[0]
    for i, price in enumerate(PRICE.tolist()):
        runs = [
            {name: value[i, t].item() for name, value in named(signals).items()} for t in range(T)
        ]
        losses = [seen["loss"] for seen in runs]
        before: list[float] = []
        for t, seen in enumerate(runs):
            gains = [
                losses[t - 1] - losses[t] if t else 0.0,
                seen["gain"],
                seen["gain"] - seen["bend"],
                seen["least_gain"],
                seen["most_gain"],
                losses[0] - losses[t],
                losses[t] - min(losses[: t + 1]),
                seen["overshoot"],
            ]
            gains = [math.asinh(gain / price) / 4 for gain in gains]
            # By what factors sizes have changed; curvature is known from the second step on.
            factors = [
                (seen[name] - runs[begin][name]) / 4
                for name, begin in (
                    ("log_grad", 0),
                    ("log_update", 0),
                    ("log_curvature", min(t, 1)),
                )
            ]
            now = [*gains[:5], factors[0]]
            expected = [
                *now,
                *([a - b for a, b in zip(now, before, strict=True)] if t else [0.0] * 6),
                *gains[5:],
                *factors[1:],
                *(seen[f"{name}_cosine"] for name in ("descent", "grad", "update")),
                math.log1p(t) / 2,
            ]
            before = now
            assert found[i, t].tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_gains_beyond_a_hundred_million_prices_are_told_from_no_others() -> None:
    signals = Descent().signals()
    least = torch.full_like(PRICE, 1e-12)
    found = FEATURES.extract(signals, least, FEATURES.init(B, signals))[0]
    assert found[..., :5].abs().amax() == pytest.approx(math.asinh(1e8) / 4)


def test_blank_features_know_no_step() -> None:
    blank = FEATURES.blank(PRICE)
    assert blank[:, -1].tolist() == [-1.0] * B
    assert not blank[:, :-1].any()
