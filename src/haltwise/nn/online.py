"""Halting as steps are taken: which items end now, and what the mean over their exits weighs."""

import contextlib
from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.plugins import comes_with_the_package
from haltwise._core.settings import got
from haltwise._core.tensors import nested_state, sub_state, undisturbed
from haltwise.halting.methods import HaltingMethod
from haltwise.halting.session import HaltingSession, Halts, SupportsPolicy
from haltwise.nn.coupling import Coupling
from haltwise.processes.observation import StepObservation
from haltwise.processes.signals import SIGNALS, loss_signals
from haltwise.stop_rules import (
    AllOf,
    AnyOf,
    DecisionTime,
    FixedBudget,
    ReturnedIterate,
    StopPolicy,
    StopRule,
)
from haltwise.stop_rules.base import begin

__all__ = ["OnlineHalting", "parts_beside_head"]

State = dict[str, Tensor]
_AFTER = DecisionTime.AFTER_GRADIENT


def _log_prob_so_far(method: HaltingMethod, halting: Mapping[str, Tensor], known: Tensor) -> Tensor:
    """Log q of M items over exits 0..T if none of them halts after the steps that are known.

    Args:
        method: Whose outputs they are.
        halting: By name, shapes [M, T, ...].
        known: How many of the T are known of each item, int64 [M].
    """
    masked = {}
    for name, value in halting.items():
        steps = torch.arange(value.shape[1], device=value.device)
        unknown = (steps >= known.unsqueeze(1)).view(*value.shape[:2], *[1] * (value.ndim - 2))
        masked[name] = value.masked_fill(unknown, -torch.inf)
    return method.posterior(masked, _AFTER).log_prob()


@final
class OnlineHalting:
    """Decisions about items, each with a memory of its own.

    For the arguments see `haltwise.nn.AdaptiveComputation.run`.
    """

    def __init__(
        self,
        model: Halts,
        coupling: Coupling,
        num_exits: int,
        rule: StopRule | None,
        observe: Callable[[Tensor], Tensor] | None,
        generator: torch.Generator | None,
    ) -> None:
        require(
            isinstance(getattr(model, "method", None), HaltingMethod),
            f"model must be a halting model, {got(model)}; haltwise.load_halting(...) loads one",
        )
        require(
            rule is None or isinstance(rule, StopRule),
            f"rule must be a stop rule with its settings, {got(rule)}; a policy has one in .rule, "
            "a calibration or a certificate in .policy.rule",
        )
        self._model, self._observe = model, observe
        self._num_exits, self._generator = num_exits, generator
        self.draws = rule is None and coupling is Coupling.SAMPLED
        self.takes_means = coupling is Coupling.EXPECTED_STATE
        # The layer's own head is a part of the network; a model is what it was when it learned.
        self._apart = undisturbed if isinstance(model, SupportsPolicy) else contextlib.nullcontext
        own = model.method.rule(_AFTER)
        if self.draws:
            one = model.method.outputs(torch.zeros(1, 1, model.method.num_outputs), torch.ones(1))
            require(
                model.method.posterior(one, _AFTER).is_causal,
                f"{type(model.method).__name__} knows its law only when all steps are taken, so "
                "that no exit can be drawn from it before; give a rule",
            )
        self._policy = StopPolicy(own if rule is None else rule, ReturnedIterate.CURRENT)
        require(
            observe is not None or not parts_beside_head(self._policy.rule, model.method),
            f"{type(self._policy.rule).__name__} reads a loss, but none is observed of outputs; "
            "give observe, a function from outputs to their losses",
        )

    @property
    def takes_any_steps(self) -> bool:
        """Whether items at different steps may be decided on at once."""
        return comes_with_the_package(self._policy.rule)

    def begin(self, price: Tensor) -> State:
        """The memory of items at prices [M] before their first step."""
        num = len(price)
        state = {
            **nested_state(begin(self._policy.rule, num, price), "session.rule."),
            **nested_state(self._model.init(num, price), "session.model."),
        }
        if self.draws:
            generator = torch.default_generator if self._generator is None else self._generator
            drawn = torch.rand(num, generator=generator, dtype=price.dtype, device=generator.device)
            state["uniform"] = drawn.to(price.device)
        if self.draws or self.takes_means:
            for name, size in self._model.method.output_sizes.items():
                shape = (num, self._num_exits, *([] if size == 1 else [size]))
                state[f"halting.{name}"] = price.new_full(shape, -torch.inf)
        return state

    def decide(
        self, step: int | Tensor, output: Tensor, features: Tensor, price: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """Decide which items end at a step before the last, bool [M].

        Args:
            step: t < T, or that of each item [M].
            output: Shape [n, items..., ...].
            features: Shape [M, F].
            price: Shape [M].
            state: From `begin` or the step before.
        """
        signals, norm, loss = None, None, torch.full_like(price, torch.nan)
        if self._observe is not None:
            loss = self._observe(output)
            require(
                isinstance(loss, Tensor) and loss.numel() == len(price) and loss.ndim > 0,
                f"observe must make a loss of each of {len(price)} items, {got(loss)}",
            )
            loss = loss.flatten()
            signals = loss_signals(step, loss)
            norm = signals[:, SIGNALS.index("log_grad")]
        readout = features if self._model.readout_size else None
        session = HaltingSession(self._policy, price, self._model)
        session.restore(sub_state(state, "session."))
        # A number of each item is what rules compare with, too.
        observation = StepObservation(step, loss, norm, signals, readout)  # type: ignore[arg-type]
        with self._apart():
            decision = session.observe(observation)
        after = {**state, **nested_state(session.state(), "session.")}
        if self.draws or self.takes_means:
            rows = torch.arange(len(price), device=price.device)
            steps = torch.zeros_like(rows) + step
            for name, value in decision.observation.outputs.items():
                # An item that has gone wrong runs to its last exit, and disturbs no other.
                sound = value.nan_to_num(-torch.inf, torch.finfo(value.dtype).max, -torch.inf)
                after[f"halting.{name}"][rows, steps] = sound
            if self.draws:
                log_prob = self._log_prob(after, steps + 1)
                ended = 1 - log_prob[:, -1].exp()
                return ended >= state["uniform"], after
        return decision.stop, after

    def weights(self, state: State, exits: Tensor) -> Tensor:
        """What the mean over exits 0..T weighs of items that end at `exits` [M], shape [M, T+1].

        What is left of the unit falls on the exit at which an item ends.
        """
        weights = self._log_prob(state, exits).exp()
        before = torch.arange(weights.shape[1], device=exits.device) < exits.unsqueeze(1)
        weights = weights.masked_fill(~before, 0)
        return weights.scatter(1, exits.unsqueeze(1), 1 - weights.sum(1, keepdim=True))

    def _log_prob(self, state: State, known: Tensor) -> Tensor:
        halting = {name: value[:, :-1] for name, value in sub_state(state, "halting.").items()}
        return _log_prob_so_far(self._model.method, halting, known)


def parts_beside_head(rule: StopRule, method: HaltingMethod) -> list[StopRule]:
    """The parts of a rule that read more than steps and what a halting head puts out."""
    own = type(method.rule(_AFTER))
    return [part for part in _parts(rule) if not isinstance(part, FixedBudget | own)]


def _parts(rule: StopRule) -> list[StopRule]:
    """The rules that a rule is made of."""
    if isinstance(rule, AnyOf | AllOf):
        return [part for inner in rule.rules for part in _parts(inner)]
    return [rule]
