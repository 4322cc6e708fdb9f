"""Captured unrolls against plain ones."""

import pytest
import torch

from haltwise._core.tensors import map_tensors
from haltwise.rollout.cuda_graph import CapturedUnroll
from haltwise.models.optimizer_model import OptimizerModel, ModelConfig
from haltwise.tasks import family
from haltwise.rollout.record import unroll

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here"),
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["regression-10d-noisy", "digits-mlp"])
def test_agrees_with_unroll_on_batch_after_batch_and_with_weights_that_change(
    device: str, name: str
) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = OptimizerModel(ModelConfig(), generator).to(device)
    captured = CapturedUnroll(optimizer, 6, 4)
    for scale in (1.0, 1.0, 1.1):
        with torch.no_grad():
            for weight in optimizer.parameters():
                weight.mul_(scale)
        batch = family(name).sample(3, generator, device=device)
        price = torch.rand(3, generator=generator).to(device)
        found = captured(batch, price)
        expected = unroll(optimizer, batch, 6, price, segment=4)
        torch.testing.assert_close(found.excess, expected.excess)
        torch.testing.assert_close(found.halting, expected.halting)
        assert found.recording.grad is not None
        torch.testing.assert_close(found.recording.grad, expected.recording.grad)
        torch.testing.assert_close(found.recording.states, expected.recording.states)


def test_leaves_the_batch_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = family("regression-2d").sample(2, generator)
    before = map_tensors(batch, torch.clone)
    optimizer = OptimizerModel(ModelConfig(), generator)
    CapturedUnroll(optimizer, 3, 2)(batch, torch.ones(2))
    torch.testing.assert_close(batch.start, before.start)
