"""The workloads that speed is measured by, and one meta-gradient of each.

W1: 2-D regression, 128 functions; W2: 10-D quadratics, 128 functions, truncation 20; W3: L2L's
perceptron of 15,910 parameters, minibatches of 128, truncation 20. T = 100, two layers of 20 units
with the shipped weights, the halter on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn

import haltwise
from haltwise._core.random import stream
from haltwise.halting.objectives import free_energy, stick_breaking_log_prob, sum_of_losses
from haltwise.models import OptimizerModel
from haltwise.rollout import backpropagate, unroll
from haltwise.stop_rules import DecisionTime
from haltwise.tasks import TaskBatch, family
from haltwise.tasks.module import Examples, ModuleTask

__all__ = ["NAMES", "Workload", "make", "meta_gradient", "objective", "zero_grad"]

NAMES = ("W1", "W2", "W3")
_PRICE = 0.05


@final
@dataclass(frozen=True)
class Workload:
    """One meta-gradient: what is unrolled, how far and cut where."""

    name: str
    optimizer: OptimizerModel
    batch: TaskBatch
    num_steps: int
    segment: int
    """Steps between cuts of the state's gradient; `num_steps` for none."""

    @property
    def price(self) -> Tensor:
        """c, shape [B]: the nearest to `_PRICE` that the weights were trained for."""
        price = self.batch.start.new_full((self.batch.num_problems,), _PRICE)
        return self.optimizer.halting.trained_price(price)

    def to(self, dtype: torch.dtype) -> "Workload":
        """The same in another precision, the optimizer in place."""
        batch = make(self.name, dtype=dtype, num_problems=self.batch.num_problems).batch
        return replace(self, optimizer=self.optimizer.to(dtype), batch=batch)


def _perceptron(num_hidden: int) -> ModuleTask:
    """Shaped like MNIST's; its images are noise, which costs as much."""
    generator = stream(0, "images")
    images = torch.randint(256, (2048, 28, 28), generator=generator).byte()
    labels = torch.randint(10, (2048,), generator=generator)
    return ModuleTask(
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(784, num_hidden), nn.Sigmoid(), nn.Linear(num_hidden, 10)
        ),
        nn.functional.cross_entropy,
        Examples(images, labels, scale=1 / 255),
        batch_size=128,
        init="normal",
        init_std=0.01,
    )


def make(
    name: str,
    *,
    num_problems: int | None = None,
    num_steps: int = 100,
    segment: int | None = None,
    num_hidden: int = 20,
    dtype: torch.dtype = torch.float32,
) -> Workload:
    """Workload `name`, of its own size unless another is given.

    Args:
        name: One of `NAMES`.
        num_problems: B.
        num_steps: T.
        segment: Truncation.
        num_hidden: Hidden units of W3's perceptron: D = 795 a unit + 10.
        dtype: Of everything.
    """
    weights, size, truncation = {
        "W1": ("regression-2d", 128, num_steps),
        "W2": ("quadratic-10d", 128, 20),
        "W3": ("mnist-mlp", 1, 20),
    }[name]
    source = _perceptron(num_hidden) if name == "W3" else family(weights)
    batch = source.sample(num_problems or size, stream(2026, name), dtype=dtype)
    optimizer = haltwise.load(weights).to(dtype).requires_grad_(True)
    return Workload(name, optimizer, batch, num_steps, segment or truncation)


def objective(excess: Tensor, hazard_logits: Tensor, price: Tensor) -> Tensor:
    """Mean loss over the steps plus the free energy of the causal hazard, a scalar."""
    log_prob = stick_breaking_log_prob(hazard_logits[..., DecisionTime.AFTER_GRADIENT])
    halts = free_energy(excess, log_prob, price=price, temperature=price)
    return (sum_of_losses(excess) / (excess.shape[1] - 1) + halts).mean()


def zero_grad(workload: Workload) -> None:
    """Forget the gradients of the optimizer's weights."""
    workload.optimizer.zero_grad()


def meta_gradient(workload: Workload) -> Tensor:
    """Haltwise's way: forward and backward of a whole unroll into `.grad`; the objective."""
    optimizer, price = workload.optimizer, workload.price
    unrolled = unroll(
        optimizer, workload.batch, workload.num_steps, price, segment=workload.segment, graph=True
    )
    trajectory = unrolled.trajectory
    excess = trajectory.excess.clone().requires_grad_()
    outputs: Mapping[str, Tensor] = {
        name: value.clone().requires_grad_() for name, value in trajectory.outputs.items()
    }
    loss = objective(excess, outputs["hazard_logits"], price)
    loss.backward()
    cotangents = {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in outputs.items()
    }
    assert excess.grad is not None
    truncate = workload.segment < workload.num_steps
    backpropagate(optimizer, unrolled, excess.grad, cotangents, truncate=truncate)
    return loss.detach()
