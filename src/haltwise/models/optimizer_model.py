"""A learned optimizer: an update rule and, beside it, a head that knows when to stop."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor, nn

from haltwise import update_rules
from haltwise._core.errors import require
from haltwise._kernels import one_thread
from haltwise._core.tensors import nested_state, require_like, sub_state
from haltwise._core.settings import require_types
from haltwise.stop_rules.accounts import RETURNABLE, CostUnit, StopPolicy, ReturnedIterate
from haltwise.halting.halter import AFTER, BEFORE, Halter, HaltingOutput
from haltwise.halting.posteriors import stop_rules
from haltwise.processes.signals import (
    extract_features,
    init_features,
    init_signals,
    measure_signals,
)
from haltwise.stop_rules import (
    FixedBudget,
    HazardThreshold,
    PonderThreshold,
    PosteriorMode,
)
from haltwise.update_rules import State, UpdateRule, update_

__all__ = ["OptimizerModel", "ModelConfig", "ModelStep"]


class ModelStep(NamedTuple):
    """One step of a learned optimizer.

    Attributes:
        update: g_t, shape [B, D].
        halting: What the head says, the prior's increments included.
        state: For the next step.
    """

    update: Tensor
    halting: HaltingOutput
    state: State


@final
@dataclass(frozen=True)
class ModelConfig:
    """What a learned optimizer is made of, in plain JSON values."""

    rule: str = "lstm"
    """A name in `haltwise.update_rules.rules()`."""
    rule_settings: dict[str, Any] = field(default_factory=dict)
    head_width: int = 64
    """Units of the halting head's two hidden layers; 0 for the thesis' linear read-out."""
    head_memory: int = 32
    """Units of the LSTM by which the head remembers; 0 judges every step by itself."""
    head_features: bool = True
    """Whether the head reads problem-level signals."""
    head_readout: bool = True
    """Whether the head reads the rule's pooled hidden state."""
    temperature: float | None = None
    """tau in units of the loss, or None: it follows the price."""
    temperature_per_price: float = 1.0
    """tau / c where `temperature` is None."""

    def __post_init__(self) -> None:
        require_types(type(self).__init__, vars(self))
        for name in ("temperature", "temperature_per_price"):
            value = getattr(self, name)
            require(value is None or value > 0, f"{name} must be above 0, got {value}")
        for name in ("head_width", "head_memory"):
            require(
                getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}"
            )
        require(
            self.head_features or self.head_readout,
            "the halting head reads nothing: set head_features or head_readout",
        )


@final
class OptimizerModel(nn.Module):
    """UpdateRule plus halting head; any rule will do, also a hand-designed one.

    The state of both travels in one flat dictionary, so that a halted problem leaves the batch by
    one `select_state`.

    Args:
        config: What to build.
        generator: Draws the initial weights.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.card: Mapping[str, Any] = {}
        """Where the weights come from; filled by `haltwise.load`."""
        self.rule: UpdateRule = update_rules.make(config.rule, config.rule_settings, generator)
        self.head = Halter(
            self.rule.readout_size,
            width=config.head_width,
            memory=config.head_memory,
            use_features=config.head_features,
            use_readout=config.head_readout,
            generator=generator,
        )

    @classmethod
    def from_weights(cls, config: ModelConfig, weights: dict[str, Tensor]) -> Self:
        """An optimizer with given weights, ready for use.

        Raises:
            InputError: The weights do not fit the configuration, or are not finite.
        """
        with torch.device("meta"):  # whatever sizes it names, nothing is allocated
            optimizer = cls(config)
        require_like(weights, optimizer.state_dict())
        for name, value in weights.items():
            require(bool(value.isfinite().all()), f"{name} holds NaN or infinity")
        optimizer.load_state_dict(weights, assign=True)
        return optimizer.eval().requires_grad_(False)

    def policy(self, account: CostUnit = CostUnit.GRADIENTS) -> StopPolicy:
        """When to stop and what to return then, as calibrated at the end of meta-training.

        Args:
            account: What is paid for. Where gradients are, one is asked for only if it is forecast
                to be worth its price; where updates are, the decision falls with it in hand.
        """
        output = AFTER if account is CostUnit.UPDATES else BEFORE
        default = RETURNABLE[account][0]
        config = self.card.get("config", {})
        if config.get("posterior") == "none":  # meta-trained without halting
            return StopPolicy(FixedBudget(config["horizon"]), default)
        if config.get("posterior") == "graves":
            return StopPolicy(PonderThreshold(output=output), default)
        brought = stop_rules().get(config.get("posterior", ""))
        if brought is not None:
            return StopPolicy(brought(output), default)
        if "thresholds" not in self.card:
            min_steps = self.card.get("min_steps", (0, 0))[output]
            return StopPolicy(PosteriorMode(output, min_steps), default)
        learned = ReturnedIterate.LEARNED if account is CostUnit.GRADIENTS else default
        return StopPolicy(HazardThreshold(self.card["thresholds"][output], output), learned)

    def rule_parameters(self) -> list[nn.Parameter]:
        """What can be learned of the rule: nothing if it is hand-designed."""
        return list(self.rule.parameters()) if isinstance(self.rule, nn.Module) else []

    def temperature(self, price: Tensor) -> Tensor:
        """Tau of the posterior at price c [B], in units of the loss, shape [B]."""
        if self.config.temperature is not None:
            return torch.full_like(price, self.config.temperature)
        return self.config.temperature_per_price * price

    def log_ratio(self, price: Tensor) -> Tensor:
        """Log r = -c / tau, the prior's increment of the logit, shape [B]."""
        return -price / self.temperature(price)

    def first_increment(self, price: Tensor) -> Tensor:
        """The forecast of delta_0, made when nothing but the price [B] is known, shape [B]."""
        return self.head.first(price) + self.log_ratio(price)

    def init(self, params: Tensor) -> State:
        """The state before the first step, for parameters [B, D]."""
        return {
            **nested_state(self.rule.init(params), "rule."),
            **nested_state(init_signals(params), "signals."),
            **self.init_halter(len(params), params),
        }

    def init_halter(self, num_problems: int, like: Tensor) -> State:
        """What `hear` remembers, before the first step, in the dtype and device of `like`."""
        return {
            **nested_state(init_features(num_problems, like), "features."),
            **nested_state(self.head.init(num_problems, like), "head."),
        }

    def step(
        self,
        step: int,
        loss: Tensor,
        grad: Tensor,
        price: Tensor,
        state: State,
        *,
        in_place: bool = False,
    ) -> ModelStep:
        """The update at theta_t and what the head says there, without a graph.

        Args:
            step: t.
            loss: Observed loss, shape [B].
            grad: Observed gradient, shape [B, D].
            price: c, shape [B].
            state: From `init` or the step before; left untouched unless `in_place`.
            in_place: Whether the new state may take the memory of the old.
        """
        with torch.no_grad(), one_thread():
            rule_state = sub_state(state, "rule.")
            taken = (
                update_(self.rule, grad, rule_state)
                if in_place
                else self.rule.update(grad, rule_state)
            )
            update, readout, rule_state = taken
            signals, last = measure_signals(step, loss, grad, update, sub_state(state, "signals."))
            said, memory = self.hear(signals, readout, price, state)
        state = {
            **nested_state(rule_state, "rule."),
            **nested_state(last, "signals."),
            **memory,
        }
        return ModelStep(update, said, state)

    @torch.no_grad()
    def hear(
        self, signals: Tensor, readout: Tensor, price: Tensor, state: State
    ) -> tuple[HaltingOutput, State]:
        """What the head says of one step, without a graph, and what it remembers of it.

        Args:
            signals: Shape [B, S].
            readout: Of the rule, shape [B, R].
            price: c, shape [B].
            state: From `init_halter` or the step before; other entries are not read.
        """
        features, recent = extract_features(signals.unsqueeze(1), price, sub_state(state, "features."))
        said, memory = self.head.step(features.squeeze(1), readout, sub_state(state, "head."))
        return self._with_prior(said, price), {
            **nested_state(recent, "features."),
            **nested_state(memory, "head."),
        }

    def speak(self, signals: Tensor, readouts: Tensor, price: Tensor) -> HaltingOutput:
        """What the head says along whole trajectories, differentiable in its weights.

        The updates do not depend on the price, so one recording serves every price.

        Args:
            signals: Of steps 0..T-1, shape [B, T, S]; see `haltwise.processes.signals`.
            readouts: Of the rule, shape [B, T, R].
            price: c, shape [B].
        """
        memory = init_features(len(price), signals)
        features, _ = extract_features(signals, price, memory)
        return self._with_prior(self.head(features, readouts), price)

    def _with_prior(self, said: HaltingOutput, price: Tensor) -> HaltingOutput:
        log_ratio = self.log_ratio(price).reshape(-1, *[1] * (said.increments.ndim - 1))
        return said._replace(increments=said.increments + log_ratio)
