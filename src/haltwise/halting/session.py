"""The online loop: observe a step, ask the halting model, apply the stop rule, remember."""

import copy
from typing import NamedTuple, Protocol, final, runtime_checkable

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.tensors import nested_state, select_state, sub_state
from haltwise.halting.methods import HaltingMethod
from haltwise.processes.observation import StepObservation
from haltwise.processes.signals import SIGNALS
from haltwise.stop_rules import CostUnit, StopPolicy, takes_update
from haltwise.stop_rules.base import begin, decide, number_reasons

__all__ = ["Decision", "HaltingSession", "Halts", "SupportsPolicy"]

State = dict[str, Tensor]


class Halts(Protocol):
    """The part of a halting model that a session uses; see `haltwise.models.HaltingModel`."""

    method: HaltingMethod

    @property
    def readout_size(self) -> int: ...

    def trained_price(self, price: Tensor) -> Tensor: ...

    def init(self, num_items: int, like: Tensor) -> State: ...

    def step(
        self, signals: Tensor | None, readout: Tensor | None, price: Tensor, state: State
    ) -> tuple[dict[str, Tensor], State]: ...


@runtime_checkable
class SupportsPolicy(Protocol):
    """What knows when to stop by itself, once it is calibrated."""

    def policy(self, unit: CostUnit | None = None) -> StopPolicy: ...

    def warn_of_prices(self, asked: Tensor) -> None: ...


class Decision(NamedTuple):
    """A decision about B items at one step.

    Attributes:
        stop: Which items stop, bool [B].
        reason: Index into `HaltingSession.reasons`, -1 where an item goes on; int64 [B].
        takes_update: Whether a stop here returns the next iterate, bool [B].
        observation: What was known, the halting model's outputs included.
    """

    stop: Tensor
    reason: Tensor
    takes_update: Tensor
    observation: StepObservation


@final
class HaltingSession:
    """B items that are watched from their first step on, and stopped apart.

    The one loop behind `haltwise.solve`, the torch optimizer, the monitor and the callbacks: each
    of them only observes and obeys.

    Args:
        policy: When to stop and what to return.
        price: c, in units of the loss, shape [B].
        model: The halting model whose outputs the policy's rule reads; None for a rule that needs
            what the process shows alone.
        memory: Of the stop rule, for a part of a larger batch; its own beginning if None.
        in_model_units: Whether the rule's settings are in the units that the model sees the items
            in, as those of a card are, where these differ from the items' own.

    Examples:
        >>> from haltwise.stop_rules import Patience, ReturnedIterate
        >>> policy = StopPolicy(Patience(2), ReturnedIterate.CURRENT)
        >>> session = HaltingSession(policy, torch.tensor([0.1]))
        >>> losses = [1.0, 0.5, 0.5, 0.5]
        >>> seen = (StepObservation(t, torch.tensor([loss])) for t, loss in enumerate(losses))
        >>> [bool(session.observe(step).stop) for step in seen]
        [False, False, False, True]
    """

    def __init__(
        self,
        policy: StopPolicy,
        price: Tensor,
        model: Halts | None = None,
        memory: State | None = None,
        *,
        in_model_units: bool = True,
    ) -> None:
        self.policy, self.price = policy, price
        self._model = model
        self._in_model_units = in_model_units
        self._rule_memory = memory
        self._model_memory: State | None = None

    def __repr__(self) -> str:
        prices = " to ".join(dict.fromkeys(f"{price:.4g}" for price in self._extreme_prices()))
        at = f" at a price of {prices}" if prices else ""
        return f"HaltingSession({len(self.price):,} items{at}, {self.policy.rule})"

    def _extreme_prices(self) -> list[float]:
        return [float(price) for price in self.price.aminmax()] if len(self.price) else []

    @property
    def reasons(self) -> tuple[str, ...]:
        """Possible reasons of a stop, in words."""
        return self.policy.rule.reasons

    @torch.no_grad()
    def observe(self, observation: StepObservation) -> Decision:
        """Decide which items stop at this step; steps must come in order, from 0 on."""
        rule, loss = self.policy.rule, observation.loss
        if self._rule_memory is None:
            self._rule_memory = begin(rule, len(loss), loss)
        if self._model is not None:
            if self._model_memory is None:
                self._model_memory = self._model.init(len(loss), loss)
            price = self.price
            if observation.loss_scale is not None:
                price = price * observation.loss_scale
            outputs, self._model_memory = self._model.step(
                observation.signals, observation.readout, price, self._model_memory
            )
            observation = observation._replace(outputs=outputs)
        seen = observation
        if self._in_model_units and observation.loss_scale is not None:
            signals = dict(zip(SIGNALS, observation.known("signals").unbind(-1), strict=True))
            seen = observation._replace(loss=signals["loss"], log_grad_norm=signals["log_grad"])
        stop, self._rule_memory = decide(rule, seen, self._rule_memory)
        return Decision(
            stop,
            torch.where(stop, number_reasons(rule, stop, self._rule_memory), -1),
            takes_update(self.policy.returns, observation.outputs.get("hold_logits"), stop),
            observation,
        )

    def explain(self, decision: Decision, item: int = 0, step_name: str = "step") -> str:
        """Say in a sentence why an item stops, with the forecast where the method has one.

        `step_name` is what the host calls a step.

        Raises:
            InputError: The item goes on at this decision.
        """
        step = decision.observation.step
        require(bool(decision.stop[item]), f"item {item} goes on at step {step}")
        reason = self.reasons[int(decision.reason[item])]
        if self._model is None:
            return reason
        scale = decision.observation.loss_scale
        scale = torch.ones_like(self.price) if scale is None else scale
        gains = self._model.method.forecast_gain(
            decision.observation.outputs,
            self.policy.rule,
            self._model.trained_price(self.price * scale),
        )
        if gains is None:
            return reason
        gain, price = (gains / scale)[item].item(), self.price[item].item()
        if gain < 0:
            return f"another {step_name} is forecast to lose {-gain:.2g}, at a price of {price:.2g}"
        return (
            f"another {step_name} is forecast to gain {gain:.2g}, less than its price of "
            f"{price:.2g}"
        )

    def select(self, index: Tensor) -> None:
        """Go on with the items at `index` (int64 [M]) alone."""
        self.price = self.price[index]
        if self._rule_memory is not None:
            self._rule_memory = select_state(self._rule_memory, index)
        if self._model_memory is not None:
            self._model_memory = select_state(self._model_memory, index)

    def part(self, index: Tensor) -> "HaltingSession":
        """A session of its own that goes on with the items at `index` (int64 [M])."""
        chosen = copy.copy(self)
        chosen.select(index)
        return chosen

    @property
    def parts(self) -> tuple[object, ...]:
        """What decides: the stop rule, and the halting method."""
        return self.policy.rule, *(() if self._model is None else (self._model.method,))

    @property
    def kind(self) -> tuple[object, ...]:
        """All that decisions depend on beside the model, the price and the state."""
        return self.policy, self._in_model_units, self._model is None

    def state(self) -> State:
        """All that later decisions depend on beside the model, the policy and the price."""
        return {
            **nested_state(self._rule_memory or {}, "rule."),
            **nested_state(self._model_memory or {}, "model."),
        }

    def restore(self, state: State) -> None:
        """Go on where `state` was taken after a step or more."""
        self._rule_memory = sub_state(state, "rule.")
        self._model_memory = sub_state(state, "model.")
