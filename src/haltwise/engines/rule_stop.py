"""A stop rule, learned or not, as what stops an engine."""

from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.tensors import nested_state, sub_state
from haltwise.engines.base import Memory, Point, Proposal
from haltwise.engines.process import View
from haltwise.engines.stops import CLEARLY, EngineStop
from haltwise.halting.session import HaltingSession
from haltwise.models.halting_model import HaltingModel
from haltwise.stop_rules import RETURNABLE, CostUnit, StopPolicy

__all__ = ["RuleStop"]


@final
class RuleStop(EngineStop):
    """Stop where a stop rule does, that of a halting model for instance.

    A model is not asked where the step at hand is too short to tell it what is left to gain.
    Whatever is returned at the cost of updates is what an engine returns anyway, or worse. A stop
    is no success where the step at hand is forecast to gain clearly more than the price, or, of an
    engine that takes that step where it halts, to have gained clearly more than it did.

    Args:
        policy: The rule and what it returns.
        price: c, what an evaluation must earn, in units of the loss, shape [M].
        model: The halting model that the rule asks, in the dtype of the price; None if it asks
            none.
        from_first: See `View`.
        completes: See `haltwise.engines.Engine`.

    Raises:
        InputError: The policy returns what engines do not.
    """

    is_recordable = False

    def __init__(
        self,
        policy: StopPolicy,
        price: Tensor,
        model: HaltingModel | None = None,
        *,
        from_first: bool = True,
        completes: bool = False,
    ) -> None:
        require(
            policy.returns in RETURNABLE[CostUnit.UPDATES],
            f"an engine returns the best point that it has evaluated, not {policy.returns.value!r};"
            " give the stop rule alone",
        )
        self._policy, self._price, self._view = policy, price, View(from_first=from_first)
        self._model = None if model is None else model.prepare()
        self._completes = completes

    @property
    def reasons(self) -> tuple[str, ...]:
        own = self._policy.rule.reasons
        if self._model is None:
            return own
        return (
            *own,
            *(f"{reason}, but the step at hand is forecast to gain far more" for reason in own),
        )

    @property
    def failures(self) -> tuple[int, ...]:
        return tuple(range(len(self._policy.rule.reasons), len(self.reasons)))

    def init(self, point: Point) -> Memory:
        return {
            "price": self._price,
            "step": torch.zeros(len(point.loss), dtype=torch.int64, device=point.loss.device),
            **nested_state(self._view.init(point), "view."),
        }

    def decide(self, point: Point, proposal: Proposal, memory: Memory) -> tuple[Tensor, Memory]:
        session = HaltingSession(self._policy, memory["price"], self._model)
        state = sub_state(memory, "session.")
        if state:
            session.restore(state)
        step = int(memory["step"][0])  # all began together
        decision = session.observe(
            self._view.show(step, point, proposal, sub_state(memory, "view."))
        )
        reason = decision.reason
        if self._model is not None:  # it reads what the step at hand is forecast to gain
            assert proposal.is_short is not None
            reason = reason.masked_fill(proposal.is_short, -1)
        if not self._completes:
            reason = self._early(reason, proposal.gain, memory["price"])
        return reason, {**memory, **nested_state(session.state(), "session.")}

    def learn(
        self, before: Point, proposal: Proposal, after: Point, taken: Tensor, memory: Memory
    ) -> Memory:
        viewed = self._view.learn(before, proposal, taken, sub_state(memory, "view."))
        return {**memory, "step": memory["step"] + 1, **nested_state(viewed, "view.")}

    def completed(self, reason: Tensor, left: Tensor) -> Tensor:
        return self._early(reason, left, self._price)

    def _early(self, reason: Tensor, left: Tensor, price: Tensor) -> Tensor:
        """The reasons, another where a model stops though clearly more than the price is left."""
        if self._model is None:
            return reason
        number = len(self._policy.rule.reasons)
        early = (reason >= 0) & (reason < number) & (left > CLEARLY * price)
        return torch.where(early, reason + number, reason)
