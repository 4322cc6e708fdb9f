"""Every posterior as a function of [B, T+1] numbers, and its twin for the numbers of one item."""

import math
from collections.abc import Callable

import pytest
from torch import Tensor

from haltwise.halting import (
    GravesPosterior,
    Posterior,
    SoftmaxPosterior,
    StickBreakingPosterior,
)

__all__ = ["POSTERIORS", "Make", "Twin", "every_posterior", "graves_loop", "sigmoid"]

Make = Callable[[Tensor], Posterior]
Twin = Callable[[list[float]], list[float]]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def softmax_loop(values: list[float]) -> list[float]:
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / math.fsum(weights) for weight in weights]


def stick_breaking_loop(values: list[float]) -> list[float]:
    probabilities, left = [], 1.0
    for value in values[:-1]:
        probabilities.append(left * sigmoid(value))
        left *= 1 - sigmoid(value)
    return [*probabilities, left]


def graves_loop(values: list[float], epsilon: float) -> list[float]:
    """Graves' N(t), R(t) and p: his steps are 1-based and the last one halts for certain."""
    h = [sigmoid(value) for value in values[:-1]] + [1.0]
    n = min(m for m in range(1, len(h) + 1) if sum(h[:m]) >= 1 - epsilon)
    remainder = 1 - sum(h[: n - 1])
    return [*h[: n - 1], remainder, *[0.0] * (len(h) - n)]


POSTERIORS: dict[str, tuple[Make, Twin]] = {
    "softmax": (SoftmaxPosterior, softmax_loop),
    "stick-breaking": (lambda x: StickBreakingPosterior(x[:, :-1]), stick_breaking_loop),
    "graves": (lambda x: GravesPosterior(x[:, :-1]), lambda values: graves_loop(values, 0.01)),
    "graves, epsilon .3": (
        lambda x: GravesPosterior(x[:, :-1], 0.3),
        lambda values: graves_loop(values, 0.3),
    ),
}
every_posterior = pytest.mark.parametrize(("make", "twin"), POSTERIORS.values(), ids=POSTERIORS)
