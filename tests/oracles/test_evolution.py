"""Evolution strategies against finite differences of the objective, which know no approximation."""

from collections.abc import Mapping

import pytest
import torch
from draws import seeded
from meta_gradient_cases import BATCHES, PRICE, VARIANTS, B, T, make
from torch import Tensor

from haltwise import InputError
from haltwise.models import OptimizerModel
from haltwise.rollout import unroll
from haltwise.tasks import TaskBatch
from haltwise.training.gradients.base import Objective
from haltwise.training.gradients.evolution import Evolution


def objective(excess: Tensor, outputs: Mapping[str, Tensor], price: Tensor) -> Tensor:
    """Of the losses and of what the halter says of them, for weights that are not asked again."""
    said = sum(value.flatten(1).sum(1) for value in outputs.values())
    return excess.clamp_min(1e-6).log().mean(1) + 0.1 * price * said


def asking(model: OptimizerModel) -> Objective:
    """Of what the halter says before the first step, too, as softmax' objective does."""

    def ask(excess: Tensor, outputs: Mapping[str, Tensor], price: Tensor) -> Tensor:
        first = model.halting.initial(price) if model.halting.method.has_initial else {}
        said = sum(value.flatten(1).sum(1) for value in first.values())
        return objective(excess, outputs, price) + price * said

    return ask


def value(model: OptimizerModel, batch: TaskBatch) -> Tensor:
    trajectory = unroll(model, batch, T, PRICE, segment=T).trajectory
    return asking(model)(trajectory.excess, trajectory.outputs, PRICE).sum() / 8


@pytest.mark.parametrize("variant", ["plain", "softmax"])
def test_a_draw_is_the_slope_along_it_times_it(variant: str) -> None:
    """So its mean is the gradient, for the mean of eps eps' is the identity."""
    model, batch = make(**VARIANTS[variant]), BATCHES["student-t"]
    weights = [*model.parameters()]
    before = [weight.detach().clone() for weight in weights]
    found = Evolution(sigma=1e-5, num_pairs=2).bind(model, T)
    found.accumulate(batch, PRICE, asking(model), 8, seeded(5))
    assert all(map(torch.equal, weights, before))
    generator = seeded(5)
    expected = [torch.zeros_like(weight) for weight in weights]
    for _ in range(2):
        draw = [torch.randn(w.shape, generator=generator, dtype=w.dtype) for w in weights]
        slopes = []
        for sign in (1, -1):
            with torch.no_grad():
                for weight, start, direction in zip(weights, before, draw, strict=True):
                    weight.copy_(start + sign * 1e-4 * direction)
            slopes.append(value(model, batch))
        slope = (slopes[0] - slopes[1]) / 2e-4
        expected = [
            one + slope * direction / 2 for one, direction in zip(expected, draw, strict=True)
        ]
    for weight, own in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, own, rtol=1e-3, atol=1e-5)


def test_the_losses_are_those_of_the_unrolls_it_took() -> None:
    model, batch = make(), BATCHES["noisy"]
    found = Evolution(sigma=1e-9, num_pairs=3).bind(model, T)
    estimate = found.accumulate(batch, PRICE, objective, 8, seeded())
    torch.testing.assert_close(estimate.losses.sum() / 8, value(model, batch))


def test_problems_that_do_not_stay_finite_are_left_out() -> None:
    model, batch = make(), BATCHES["noisy"]

    def broken(excess: Tensor, outputs: Mapping[str, Tensor], price: Tensor) -> Tensor:
        return objective(excess, outputs, price).index_fill(0, torch.tensor([1]), torch.nan)

    found = Evolution().bind(model, T).accumulate(batch, PRICE, broken, 8, seeded())
    assert (len(found.losses), found.num_left_out) == (B - 1, 1)
    assert all(w.grad is not None and w.grad.isfinite().all() for w in model.parameters())


@pytest.mark.parametrize("settings", [{"sigma": 0.0}, {"num_pairs": 0}])
def test_impossible_settings_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"{next(iter(settings))} must be"):
        Evolution(**settings)  # type: ignore[arg-type]
