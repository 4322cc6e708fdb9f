"""An update rule on a batch of tasks, as a process."""

import copy
from typing import cast, final

import torch
from torch import Tensor

from haltwise._core.tensors import (
    ZERO,
    nested_state,
    sub_state,
    tensors_of,
)
from haltwise._kernels import one_thread
from haltwise.processes.base import Process, ProcessStep, State
from haltwise.processes.observation import StepObservation
from haltwise.processes.signals import init_signals, log_norm, measure_signals
from haltwise.processes.units import Units
from haltwise.tasks.base import Observation, TaskBatch, ask
from haltwise.update_rules import UpdateRule, prepare, update_

__all__ = ["OptimizationProcess"]


@final
class OptimizationProcess(Process):
    """B problems moved by an update rule: theta_{t+1} = theta_t + g_t (thesis Eq. 1).

    Args:
        rule: What moves the parameters; learned or not.
        batch: B problems.
        units: In which the rule sees them, and signals are measured; their own if None.
        first: What was observed at their start, if it was; it is then not evaluated again.
    """

    def __init__(
        self,
        rule: UpdateRule,
        batch: TaskBatch,
        units: Units | None = None,
        first: Observation | None = None,
    ) -> None:
        self.rule, self.batch, self.units, self._first = prepare(rule), batch, units, first
        self._given = rule

    @property
    def num_items(self) -> int:
        return self.batch.num_problems

    def init(self) -> State:
        start = self.batch.start
        return {
            "params": start,
            **({} if self._first is None else nested_state(self._first._asdict(), "first.")),
            **nested_state(self.rule.init(start), "rule."),
            **nested_state(init_signals(start), "signals."),
        }

    @torch.no_grad()
    def step(self, step: int | Tensor, state: State) -> ProcessStep:
        params = state["params"]
        loss, grad = self._observe(step, state)
        observed = grad
        norm = log_norm(grad)
        seen, scale = loss, None
        if self.units is not None:
            scale = self.units.loss
            seen, grad = loss * scale, grad * (self.units.params * scale.unsqueeze(1))
        with one_thread():
            update, readout, rule_state = update_(self.rule, grad, sub_state(state, "rule."))
            signals, last = measure_signals(step, seen, grad, update, sub_state(state, "signals."))
        # Where nothing is to be gained nothing moves; what a rule makes of zeros was never trained.
        update = update.masked_fill((norm <= ZERO).unsqueeze(1), 0)
        if self.units is not None:
            update = update * self.units.params
        observation = StepObservation(
            cast("int", step),
            loss,
            norm,
            signals,
            readout,
            loss_scale=scale,
            params=params,
            grad=observed,
        )
        return ProcessStep(
            observation,
            {
                "params": params + update,
                **nested_state(rule_state, "rule."),
                **nested_state(last, "signals."),
            },
        )

    def _observe(self, step: int | Tensor, state: State) -> Observation:
        if "first.loss" in state:
            return Observation(**sub_state(state, "first."))
        # Steps are numbered by a tensor only where the loss does not depend on them.
        return ask(self.batch.observe, state["params"], step if isinstance(step, int) else 0)

    def hold(self, state: State, params: Tensor, still: Tensor) -> State:
        """The state with the parameters [B, D] where `still` (bool [B]) says so."""
        return {**state, "params": torch.where(still.unsqueeze(1), params, state["params"])}

    def result(self, state: State) -> Tensor:
        return state["params"]

    def score(self, state: State, step: int, observation: StepObservation) -> Tensor:
        return ask(self.batch.score, state["params"], step).excess

    def select(self, index: Tensor) -> "OptimizationProcess":
        units = None if self.units is None else self.units.select(index)
        chosen = copy.copy(self)
        chosen.batch, chosen.units = self.batch.select(index), units
        if self._first is not None:
            chosen._first = Observation(*(value[index] for value in self._first))
        return chosen

    def is_moved_by(self, rule: UpdateRule) -> bool:
        """Whether this is the rule that was given."""
        return self._given is rule

    def tensors(self) -> dict[str, Tensor]:
        """All that steps read beside the state and the rule."""
        units = {} if self.units is None else nested_state(self.units._asdict(), "units.")
        return {**nested_state(tensors_of(self.batch), "batch."), **units}
