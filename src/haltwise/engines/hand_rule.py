"""Hand-designed update rules as engines: gradient descent, momentum, Adam."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.tensors import nested_state, sub_state
from haltwise.engines.base import Engine, EngineObservation, Memory, Point, Proposal
from haltwise.update_rules import SGD, Adam, RMSprop, UpdateRule

__all__ = ["RuleEngine"]

_SHORTER = 0.1


@final
@dataclass(frozen=True)
class RuleEngine(Engine):
    """An update rule, whose steps are taken whatever they do; the best point is returned.

    What a step gains is forecast by the curvature along the last one.

    Args:
        rule: What moves the parameters.
    """

    is_monotone = False

    rule: UpdateRule

    def init(self, point: Point, seen: EngineObservation) -> Memory:
        step = self.rule.update(seen.grad, self.rule.init(point.params))
        return {
            "update": step.update,
            "curvature": torch.zeros_like(seen.loss),
            **nested_state(step.state, "rule."),
        }

    def propose(self, point: Point, memory: Memory) -> Proposal:
        move = memory["update"]
        gain = -(point.grad * move).sum(1) - 0.5 * memory["curvature"] * move.square().sum(1)
        # There is nothing to gain where there is no slope at all, whichever way momentum goes.
        slope = -point.grad.square().sum(1)
        return Proposal(move, slope, gain, torch.zeros_like(slope).bool())

    def learn(
        self, point: Point, proposal: Proposal, seen: EngineObservation, memory: Memory
    ) -> tuple[Tensor, Memory]:
        taken = seen.is_finite()
        move = proposal.move
        step = self.rule.update(seen.grad, sub_state(memory, "rule."))
        bend = (move * (seen.grad - point.grad)).sum(1) / move.square().sum(1)
        after = {
            "update": step.update,
            "curvature": bend.nan_to_num(0, 0, 0),
            **nested_state(step.state, "rule."),
        }

        # A step to where nothing is finite is tried again, shorter.
        before = {**memory, "update": _SHORTER * memory["update"]}

        def kept(name: str, value: Tensor) -> Tensor:
            return torch.where(taken.view(-1, *[1] * (value.ndim - 1)), value, before[name])

        return taken, {name: kept(name, value) for name, value in after.items()}


ENGINES = {
    "adam": RuleEngine(Adam(0.1)),
    "gradient-descent": RuleEngine(SGD(0.01)),
    "momentum": RuleEngine(SGD(0.01, momentum=0.9)),
    "nesterov": RuleEngine(SGD(0.01, momentum=0.9, nesterov=True)),
    "rmsprop": RuleEngine(RMSprop(0.01)),
}
