"""Every engine keeps its contract, and the check refuses those that do not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from haltwise.engines import Engine, EngineObservation, Memory, Point, Proposal, engines
from haltwise.tasks import TaskBatch
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


class Hoping(Descent):
    def propose(self, point: Point, memory: Memory) -> Proposal:
        proposal = super().propose(point, memory)
        return proposal._replace(gain=-proposal.gain)


class Single(Descent):
    def propose(self, point: Point, memory: Memory) -> Proposal:
        proposal = super().propose(point, memory)
        return proposal._replace(move=proposal.move.float())


class Plain(Descent):
    def propose(self, point: Point, memory: Memory) -> Any:
        return tuple(super().propose(point, memory))


class Counting(Descent):
    def learn(self, *arguments: Any) -> tuple[Tensor, Memory]:
        taken, memory = super().learn(*arguments)
        return taken.double(), memory


class ByLossAlone(Descent):
    def learn(self, *arguments: Any) -> tuple[Tensor, Memory]:
        point, _, seen, memory = arguments
        return seen.loss.isfinite() & (seen.loss < point.loss), memory


class IntoTheDepths(Descent):
    def learn(self, *arguments: Any) -> tuple[Tensor, Memory]:
        point, _, seen, memory = arguments
        return (seen.loss < point.loss) & ~seen.grad.isnan().any(1), memory


class Credulous(Descent):
    def learn(self, *arguments: Any) -> tuple[Tensor, Memory]:
        return arguments[2].is_finite(), arguments[3]


class Doubling(Descent):
    def observe(self, batch: TaskBatch, params: Tensor) -> EngineObservation:
        seen = super().observe(batch, params)
        return seen._replace(grad=2 * seen.grad)


class Drawing(Descent):
    def propose(self, point: Point, memory: Memory) -> Proposal:
        torch.rand(1)
        return super().propose(point, memory)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (Hoping(), "a gain is not above 0"),
        (Single(), "move must be torch.float64"),
        (Plain(), "what propose returns must be a Proposal, got tuple"),
        (Counting(), "learn must say by a bool tensor"),
        (ByLossAlone(), "where an entry of the gradient is nan is taken"),
        (IntoTheDepths(), "where the loss is -inf is taken"),
        (Credulous(), "a step that raises the loss is taken"),
        (Doubling(), "the grad that observe_first gives"),
        (Drawing(), "the global generator of PyTorch"),
        (Descent, "must be an Engine, got the class Descent; make one of it"),
        ("newton", "must be an Engine, got 'newton'"),
    ],
)
def test_the_check_names_what_is_broken(engine: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_engine(engine)


def test_the_check_leaves_global_randomness_as_it_was() -> None:
    before = torch.get_rng_state()
    check_engine(Descent())
    assert torch.equal(torch.get_rng_state(), before)
