"""Every engine keeps its contract, and the check refuses those that do not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from haltwise.engines import Engine, EngineObservation, Memory, Point, Proposal, engines
from haltwise.testing import check_engine


@pytest.mark.parametrize("name", engines())
def test_every_engine_keeps_its_contract(name: str) -> None:
    check_engine(engines()[name])
    check_engine(engines()[name], dim=1)


class Descent(Engine):
    """A sound engine, of which each broken one changes one thing."""

    def init(self, point: Point, seen: EngineObservation) -> Memory:
        return {"count": torch.zeros_like(seen.loss)}

    def propose(self, point: Point, memory: Memory) -> Proposal:
        slope = -point.grad.square().sum(1)
        return Proposal(-0.01 * point.grad, slope, -0.01 * slope, torch.zeros_like(slope).bool())

    def learn(
        self, point: Point, proposal: Proposal, seen: EngineObservation, memory: Memory
    ) -> tuple[Tensor, Memory]:
        taken = seen.is_finite() & (seen.loss < point.loss)
        return taken, {"count": memory["count"] + 1}


class InPlace(Descent):
    def learn(self, *arguments: Any) -> tuple[Tensor, Memory]:
        arguments[3]["count"] += 1
        return super().learn(*arguments)


class Climbing(Descent):
    def propose(self, point: Point, memory: Memory) -> Proposal:
        proposal = super().propose(point, memory)
        return proposal._replace(move=-proposal.move)

    def learn(self, *arguments: Any) -> tuple[Tensor, Memory]:
        return arguments[2].is_finite(), arguments[3]


class Mixing(Descent):
    def propose(self, point: Point, memory: Memory) -> Proposal:
        proposal = super().propose(point, memory)
        return proposal._replace(move=proposal.move - 0.01 * point.grad.mean(0))


class Narrow(Descent):
    def propose(self, point: Point, memory: Memory) -> Proposal:
        proposal = super().propose(point, memory)
        return proposal._replace(gain=proposal.gain.unsqueeze(1))


class Growing(Descent):
    def learn(self, *arguments: Any) -> tuple[Tensor, Memory]:
        taken, memory = super().learn(*arguments)
        return taken, {**memory, "more": memory["count"]}


def test_the_check_refuses_what_breaks_the_contract() -> None:
    check_engine(Descent())
    for engine, message in (
        (InPlace(), "in place"),
        (Climbing(), "monotone"),
        (Mixing(), "alone|permutation"),
        (Narrow(), "gain must have shape"),
        (Growing(), "must keep its names"),
    ):
        with pytest.raises(AssertionError, match=message):
            check_engine(engine)
