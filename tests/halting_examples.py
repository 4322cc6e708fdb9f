"""Random outputs of every halting method, and the losses they are judged by."""

import torch
from draws import DOUBLE, randn, seeded
from torch import Tensor

from haltwise.halting import HaltingExamples, HaltingMethod

__all__ = ["EXCESS", "PRICE", "B", "T", "examples", "objective", "outputs"]

B, T = 4, 6
PRICE = torch.tensor([0.05, 0.3, 1.0, 4.0], dtype=DOUBLE)
EXCESS = 3 * randn(B, T + 1, seed=5).exp()


def outputs() -> dict[str, Tensor]:
    """Of every method at steps 0..T-1, by name."""
    return {
        "increments": randn(B, T, 2, seed=2),
        "hazard_logits": 2 * randn(B, T, 2, seed=3),
        "halting_logits": 2 * randn(B, T, 2, seed=3),
        "hold_logits": randn(B, T, seed=4),
    }


def examples(**changes: Tensor | float | None) -> HaltingExamples:
    """Examples at the end of training.

    Args:
        changes: Outputs by name, `excess`, `progress`, or `initial` increments.
    """
    excess = changes.pop("excess", EXCESS)
    initial = changes.pop("initial", randn(B, 2, seed=9))
    progress = changes.pop("progress", 1.0)
    assert isinstance(excess, Tensor)
    assert isinstance(initial, Tensor)
    assert not isinstance(progress, Tensor)
    found = outputs()
    for name, value in changes.items():
        assert isinstance(value, Tensor)
        found[name] = value
    return HaltingExamples(excess, found, {"increments": initial}, PRICE, progress, seeded())


def objective(method: HaltingMethod, **changes: Tensor | float | None) -> Tensor:
    """The objective of `examples(**changes)`, in prices, shape [B]."""
    return method.objective(examples(**changes))
