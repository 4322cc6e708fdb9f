"""Every gradient estimator keeps its contract, and the public check finds each way to break it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from haltwise.models import OptimizerModel
from haltwise.tasks import TaskBatch
from haltwise.testing import check_gradient_estimator
from haltwise.training.gradients import (
    BoundEstimator,
    Estimate,
    GradientEstimator,
    Pathwise,
    estimators,
)
from haltwise.training.gradients.base import Objective


@pytest.mark.parametrize("name", estimators())
def test_every_estimator_keeps_the_contract(name: str) -> None:
    check_gradient_estimator(estimators()[name]())


class Bound(BoundEstimator):
    """The pathwise gradient, after which something is done to the model and what is returned."""

    def __init__(self, model: OptimizerModel, after: Callable[[Any, Estimate], Any]) -> None:
        self.model, self.after = model, after

    def accumulate(
        self,
        batch: TaskBatch,
        price: Tensor,
        objective: Objective,
        size: int,
        generator: torch.Generator,
    ) -> Estimate:
        bound = Pathwise().bind(self.model, 4)
        estimate = bound.accumulate(batch, price, objective, size, generator)
        found: Estimate = self.after(self.model, estimate)
        return found


@dataclass(frozen=True)
class Mistaken(GradientEstimator):
    """An estimator with one of the mistakes below."""

    mistake: str = ""

    def bind(self, model: OptimizerModel, num_steps: int) -> BoundEstimator:
        return Bound(model, MISTAKES[self.mistake][0])


@torch.no_grad()
def displace(model: OptimizerModel, estimate: Estimate) -> Estimate:
    next(model.parameters()).add_(0.1)
    return estimate


def scaled(factor: float) -> Callable[[OptimizerModel, Estimate], Estimate]:
    def scale(model: OptimizerModel, estimate: Estimate) -> Estimate:
        for weight in model.parameters():
            if weight.grad is not None:
                weight.grad.mul_(factor)
        return estimate

    return scale


def replace_gradient(model: OptimizerModel, estimate: Estimate) -> Estimate:
    """A gradient that depends on nothing, put in the place of what was there."""
    for weight in model.parameters():
        if weight.grad is not None:
            weight.grad = torch.ones_like(weight)
    return estimate


def draw(model: OptimizerModel, estimate: Estimate) -> Estimate:
    torch.rand(())
    return estimate


def forget(model: OptimizerModel, estimate: Estimate) -> Estimate:
    model.zero_grad()
    return estimate


MISTAKES: Mapping[str, tuple[Callable[[OptimizerModel, Estimate], Any], str]] = {
    "displaced": (displace, "the weight .* is another after `accumulate`"),
    "nan": (scaled(float("nan")), "the gradient of .* is not finite"),
    "downhill": (scaled(-1.0), "not added to what is in `.grad`|does not point uphill"),
    "replaced": (replace_gradient, "is not summed over problems / size"),
    "random": (draw, "the global generator of PyTorch is drawn from"),
    "forgotten": (forget, "leaves no gradient"),
    "nothing": (lambda _m, _e: None, "what `accumulate` returns must be an Estimate, got None"),
    "mean": (
        lambda _, estimate: estimate._replace(losses=estimate.losses.mean()),
        r"losses of the 6 problems used must have shape \[6\], got \[\]",
    ),
    "uncounted": (
        lambda _, estimate: estimate._replace(num_left_out=0),
        "1 of the problems are not finite, and num_left_out is 0",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_check_finds_the_mistake(mistake: str) -> None:
    with pytest.raises(AssertionError, match=MISTAKES[mistake][1]):
        check_gradient_estimator(replace(Mistaken(), mistake=mistake))


def test_the_check_refuses_what_is_none() -> None:
    other: Any = Pathwise
    with pytest.raises(AssertionError, match="a gradient estimator must be a GradientEstimator"):
        check_gradient_estimator(other)
