"""Models, batches and cotangents with which unrolls and their meta-gradients are checked."""

from dataclasses import dataclass
from typing import Any

import torch
from draws import DOUBLE, randn, seeded
from torch import Tensor

from haltwise.halting import HalterSettings
from haltwise.models import Card, Choice, OptimizerModel
from haltwise.tasks import Observation, TaskBatch, family
from haltwise.update_rules import UpdateRule, UpdateStep

__all__ = [
    "BATCHES",
    "LSTM",
    "PRICE",
    "VARIANTS",
    "B",
    "D",
    "NoisyBatch",
    "T",
    "cotangents",
    "make",
    "step_rule",
]

B, D, T = 3, 4, 7
LSTM = {"hidden_size": 3, "num_layers": 2, "output_scale": 0.3, "shared_gradient": False}
PRICE = torch.tensor([0.05, 0.3, 2.0], dtype=DOUBLE)


@dataclass(frozen=True)
class NoisyBatch(TaskBatch):
    """What is seen (another curvature at every step) is not what is scored."""

    center: Tensor

    @property
    def reference_loss(self) -> Tensor:
        return 0 * self.center[:, 0]

    def observe(self, params: Tensor, step: int) -> Observation:
        error, curvature = params - self.center, 1 + randn(D, seed=step).square()
        return Observation((curvature * error.square()).sum(1) / 2, curvature * error)

    def evaluate(self, params: Tensor, step: int) -> Any:
        error = params - self.center
        seen = super().evaluate(params, step)
        return seen._replace(excess=(error**4).sum(1), excess_grad=4 * error**3)


BATCHES: dict[str, TaskBatch] = {
    "noisy": NoisyBatch(randn(B, D), randn(B, D, seed=2)),
    "student-t": family("student-t-10d").sample(B, seeded(), dtype=DOUBLE),
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "softmax": {"method": "softmax"},
    "graves": {"method": "graves"},
    "every step by itself": {"memory": 0},
    "shared gradient": {"settings": {**LSTM, "shared_gradient": True}},
    "indirect gradient": {"settings": {**LSTM, "direct_gradient": False}},
    "linear update": {"settings": {**LSTM, "direct_gradient": False, "linear_readout": True}},
    "one layer": {"settings": {**LSTM, "num_layers": 1}},
    "features alone": {"readout": False},
    "read-out alone": {"features": "none"},
    "a linear halter that remembers": {"width": 0},
    "the thesis' linear halter": {
        "method": Choice("softmax", {"before_gradient": False}),
        "features": "none",
        "width": 0,
        "memory": 0,
    },
    "adam": {"rule": "adam", "settings": {"learning_rate": 0.1}},
    "gradient descent": {"rule": "sgd", "settings": {"learning_rate": 0.1}},
}


def make(
    rule: str = "lstm",
    settings: dict[str, Any] | None = None,
    method: str | Choice = "stick-breaking",
    **halter: Any,
) -> OptimizerModel:
    """A model in float64 none of whose weights is zero, so that every path counts."""
    card = Card(
        method=Choice(method) if isinstance(method, str) else method,
        price=0.3,
        price_range=100.0,
        horizon=T,
        rule=Choice(rule, LSTM if settings is None else settings),
        halter=HalterSettings(**{"width": 5, "memory": 4, **halter}),
    )
    model = OptimizerModel(card, seeded()).double()
    with torch.no_grad():
        for index, weight in enumerate(model.parameters()):
            weight.add_(randn(*weight.shape, seed=index), alpha=0.2)
    return model


def cotangents(model: OptimizerModel) -> tuple[Tensor, dict[str, Tensor]]:
    """Random derivatives with respect to the excess and to every output of the halting model."""
    sizes = model.halting.method.output_sizes
    return randn(B, T + 1, seed=5), {
        name: randn(B, T, *([size] if size > 1 else []), seed=6 + index)
        for index, (name, size) in enumerate(sizes.items())
    }


def step_rule(rule: UpdateRule, grad: Tensor, state: dict[str, Tensor]) -> UpdateStep:
    """One step of an update rule."""
    return rule.update(grad, state)
