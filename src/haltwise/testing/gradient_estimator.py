"""The contract of a gradient estimator as a check."""

import json
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from haltwise.models import Card, Choice, OptimizerModel
from haltwise.tasks.function import FunctionBatch
from haltwise.testing.assertions import (
    expect,
    expect_alike,
    expect_instance,
    expect_shape,
    global_randomness_untouched,
    normal,
    seeded,
)
from haltwise.training.gradients import BoundEstimator, Estimate, GradientEstimator, Pathwise

__all__ = ["check_gradient_estimator"]

_NUM_ITEMS, _DIM, _NUM_STEPS = 6, 3, 4
_NUM_DRAWS = 64
_EXACT = 1e-9  # relative; of float64 numbers that were summed in another order


@global_randomness_untouched()
def check_gradient_estimator(estimator: GradientEstimator) -> None:
    """Check what training takes for granted of a gradient estimator.

    On a small LSTM that moves 6 problems with linear losses, in float64:

    - The settings survive JSON.
    - `accumulate` returns the objective of each problem used, and how many were left out; one that
      is not finite is left out, and the gradient stays finite.
    - Weights are as they were, to the bit; the gradient is added to what is in `.grad`, in shares
      of `size`, and equal generators give equal gradients.
    - On average over draws the gradient points uphill: there, where the gradients of the problems
      are constant, the pathwise one is exact.

    Args:
        estimator: In any settings.

    Raises:
        AssertionError: The estimator breaks the contract; the message says how.

    Examples:
        >>> check_gradient_estimator(Pathwise())
    """
    expect_instance(estimator, GradientEstimator, "a gradient estimator")
    again = type(estimator)(**json.loads(json.dumps(asdict(estimator))))
    expect(again == estimator, f"the settings do not survive JSON: {estimator!r} became {again!r}")
    model = _model()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    first = _gradients(estimator, model, _problems(), seed=0)
    after = {name: weight.detach() for name, weight in model.named_parameters()}
    expect_alike(after, before, "the weight {} is another after `accumulate`; put it back")
    expect(len(first) > 0, "`accumulate` leaves no gradient; add it to `.grad` of the weights")
    for name, value in first.items():
        expect(value.isfinite().all(), f"the gradient of {name} is not finite")
    expect_alike(
        _gradients(estimator, model, _problems(), seed=0),
        first,
        "equal generators give other gradients of {}; draw what is random from the generator",
    )
    expect_alike(
        _gradients(estimator, model, _problems(), seed=0, size=2 * _NUM_ITEMS),
        {name: value / 2 for name, value in first.items()},
        "the gradient of {} is not summed over problems / size",
        _EXACT,
        1.0,
    )
    present = {name: torch.full_like(value, 3.0) for name, value in first.items()}
    expect_alike(
        _gradients(estimator, model, _problems(), seed=0, present=present),
        {name: value + 3 for name, value in first.items()},
        "the gradient of {} is not added to what is in `.grad`",
        _EXACT,
        1.0,
    )
    spoilt = _gradients(estimator, model, _problems(spoil=True), seed=0, num_left_out=1)
    for name, value in spoilt.items():
        expect(
            value.isfinite().all(),
            f"a problem that is not finite spoils the gradient of {name}; leave it out",
        )
    _check_direction(estimator, model)


def _check_direction(estimator: GradientEstimator, model: OptimizerModel) -> None:
    exact = _gradients(Pathwise(), model, _problems(), seed=0)
    slopes = [
        sum(float((found.get(name, 0.0 * value) * value).sum()) for name, value in exact.items())
        for found in (
            _gradients(estimator, model, _problems(), seed=seed) for seed in range(_NUM_DRAWS)
        )
    ]
    mean = sum(slopes) / _NUM_DRAWS
    expect(
        mean > 0,
        f"the gradient does not point uphill: along the exact one it is {mean:.3g} on average over "
        f"{_NUM_DRAWS} draws; is its sign right?",
    )


def _model() -> OptimizerModel:
    """A new optimizer model that learns no halting."""
    small = Choice("lstm", {"hidden_size": 3, "num_layers": 1})
    card = Card(Choice("none"), price=0.1, horizon=_NUM_STEPS, rule=small)
    return OptimizerModel(card, seeded(0)).double().requires_grad_(True)


def _problems(*, spoil: bool = False) -> FunctionBatch:
    """Problems with linear losses, one of them not finite if asked for."""
    slopes = normal(1, _NUM_ITEMS, _DIM)
    if spoil:
        slopes[2] = torch.inf
    return FunctionBatch(
        torch.zeros(_NUM_ITEMS, _DIM, dtype=torch.float64), _linear, {"slopes": slopes}
    )


def _linear(params: Tensor, slopes: Tensor) -> Tensor:
    return (params * slopes).sum(1)


def _objective(excess: Tensor, outputs: Mapping[str, Tensor], price: Tensor) -> Tensor:
    del outputs, price
    return excess[:, 1:].mean(1)


def _gradients(
    estimator: GradientEstimator,
    model: OptimizerModel,
    batch: FunctionBatch,
    *,
    seed: int,
    size: int = _NUM_ITEMS,
    present: Mapping[str, Tensor] | None = None,
    num_left_out: int = 0,
) -> dict[str, Tensor]:
    """What an estimator leaves in `.grad` of the weights, by name."""
    for name, weight in model.named_parameters():
        weight.grad = None if present is None or name not in present else present[name].clone()
    price = torch.full((_NUM_ITEMS,), 0.1, dtype=torch.float64)
    bound: object = estimator.bind(model, _NUM_STEPS)
    expect_instance(bound, BoundEstimator, "what `bind` returns")
    assert isinstance(bound, BoundEstimator)
    estimate: object = bound.accumulate(batch, price, _objective, size, seeded(seed))
    expect_instance(estimate, Estimate, "what `accumulate` returns")
    assert isinstance(estimate, Estimate)
    expect(
        type(estimate.num_left_out) is int and estimate.num_left_out == num_left_out,
        f"{num_left_out} of the problems are not finite, and num_left_out is "
        f"{estimate.num_left_out!r}",
    )
    num_used = _NUM_ITEMS - num_left_out
    expect_shape(estimate.losses, [num_used], f"losses of the {num_used} problems used")
    expect(estimate.losses.isfinite().all(), "losses are not finite; leave such problems out")
    return {
        name: weight.grad.detach().clone()
        for name, weight in model.named_parameters()
        if weight.grad is not None
    }
