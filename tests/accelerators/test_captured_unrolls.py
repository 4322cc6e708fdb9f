"""Captured unrolls against plain ones."""

import pytest
import torch
from draws import seeded

from haltwise._core.tensors import map_tensors
from haltwise.models import Card, Choice, OptimizerModel
from haltwise.rollout import CapturedUnroll, backpropagate, unroll
from haltwise.rollout.cuda_graph import are_alike
from haltwise.tasks import family

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
    ),
]
CARD = Card(method=Choice("stick-breaking"), price=0.1, horizon=6, rule=Choice("lstm"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["regression-10d-noisy", "digits-mlp"])
def test_it_agrees_with_unroll_on_batch_after_batch_and_with_weights_that_change(
    device: str, name: str
) -> None:
    generator = seeded(0)
    model = OptimizerModel(CARD, generator).to(device)
    captured = CapturedUnroll(model, 6, 4)
    for scale in (1.0, 1.0, 1.1):
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(scale)
        batch = family(name).sample(3, generator, device=device)
        price = torch.rand(3, generator=generator).to(device)
        found = captured(batch, price)
        expected = unroll(model, batch, 6, price, segment=4)
        torch.testing.assert_close(found.trajectory.excess, expected.trajectory.excess)
        torch.testing.assert_close(found.trajectory.outputs, expected.trajectory.outputs)
        torch.testing.assert_close(found.grad, expected.grad)
        torch.testing.assert_close(found.states, expected.states)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("truncate", [False, True])
def test_its_backward_pass_is_that_of_plain_unrolls(device: str, truncate: bool) -> None:
    """Replayed, too, for weights and batches that change, and added to what `.grad` holds."""
    generator = seeded(0)
    model = OptimizerModel(CARD, generator).to(device)
    segment = 3 if truncate else 4
    captured = CapturedUnroll(model, 6, segment, truncate=truncate)
    for scale in (1.0, 1.1, 0.9):
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(scale)
        batch = family("regression-10d-noisy").sample(3, generator, device=device)
        price = torch.rand(3, generator=generator).to(device)

        unrolled = unroll(model, batch, 6, price, segment=segment)
        of_excess = unrolled.trajectory.excess.sin()
        of_outputs = {name: v.cos() for name, v in unrolled.trajectory.outputs.items()}
        model.zero_grad()
        backpropagate(model, unrolled, of_excess, of_outputs, truncate=truncate)
        expected = [weight.grad for weight in model.parameters()]
        model.zero_grad()
        for _ in range(2):
            captured.backpropagate(captured(batch, price), of_excess, of_outputs)
        for weight, exact in zip(model.parameters(), expected, strict=True):
            assert weight.grad is not None
            assert exact is not None
            torch.testing.assert_close(weight.grad, 2 * exact, rtol=1e-4, atol=1e-5)


def test_it_leaves_the_batch_alone() -> None:
    generator = seeded(0)
    batch = family("regression-2d").sample(2, generator)
    before = map_tensors(batch, torch.clone)
    CapturedUnroll(OptimizerModel(CARD, generator), 3, 2)(batch, torch.ones(2))
    torch.testing.assert_close(batch.start, before.start)


@pytest.mark.parametrize("device", DEVICES)
def test_batches_of_other_families_are_unrolled_as_they_are(device: str) -> None:
    """Such as have as many parameters, too: a captured graph would run another network."""
    generator = seeded(0)
    model = OptimizerModel(CARD, generator).to(device)
    captured, price = CapturedUnroll(model, 6, 4), torch.full((2,), 0.1, device=device)
    batches = [
        family("digits-tanh", {"activation": activation, "num_hidden": size}).sample(
            2, generator, device=device
        )
        for activation, size in (("tanh", 3), ("relu", 3), ("tanh", 4), ("tanh", 3))
    ]
    assert [are_alike(batches[0], other) for other in batches] == [True, False, False, True]
    for batch in batches:
        expected = unroll(model, batch, 6, price, segment=4)
        torch.testing.assert_close(captured(batch, price).grad, expected.grad)
