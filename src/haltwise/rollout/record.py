"""T steps of an optimizer, and the gradient of any objective of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from haltwise import update_rules
from haltwise._core.errors import require
from haltwise._core.tensors import log_rms, map_tensors, flush_negligible
from haltwise.halting.halter import HaltingOutput
from haltwise.processes.signals import SIGNALS, init_signals, measure_sequence
from haltwise.stop_rules import Traces
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.update_rules import State, UpdateRule, UpdateStep, prepare, select_state, update_
from haltwise.tasks import Evaluation, TaskBatch

__all__ = ["Recording", "Trajectory", "backpropagate", "record", "unroll"]

_MEASURED = 2**16  # coordinate-steps whose signals are measured at once: they fill a cache


@final
@dataclass(frozen=True)
class Recording:
    """What B problems went through in T steps of a rule; no autograd graph hangs on it.

    Nothing in it depends on a price or on a halting head.
    """

    loss: Tensor
    """Observed loss at theta_0..theta_T, shape [B, T+1]."""
    excess: Tensor
    """Scored loss above the reference, shape [B, T+1]."""
    log_grad_norm: Tensor
    """log of the root mean square gradient at theta_0..theta_T, shape [B, T+1]."""
    signals: Tensor
    """See `haltwise.processes.signals`, at theta_0..theta_{T-1}, shape [B, T, S]."""
    readouts: Tensor
    """What the rule offers a head to read, at theta_0..theta_{T-1}, shape [B, T, R]."""
    params: Tensor
    """theta_T, shape [B, D]; [B, 0] where problems of several sizes were joined."""
    grad: Tensor | None = None
    """Observed gradients at theta_0..theta_{T-1}, shape [B, T, D], if kept."""
    excess_grad: Tensor | None = None
    """Gradients of the excess at theta_0..theta_T, shape [B, T+1, D], if kept."""
    states: tuple[State, ...] = ()
    """The rule's state at the start of every segment, if kept."""
    segment: int = 0
    """Steps of a segment."""

    @property
    def num_problems(self) -> int:
        """B."""
        return self.loss.shape[0]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.loss.shape[1] - 1

    @property
    def finite(self) -> Tensor:
        """Which problems stayed finite throughout, bool [B]."""
        finite = self.excess.isfinite().all(1) & self.loss.isfinite().all(1)
        if self.excess_grad is not None:
            finite &= self.excess_grad.isfinite().flatten(1).all(1)
        finite &= self.readouts.isfinite().flatten(1).all(1)
        return finite & self.signals.isfinite().flatten(1).all(1)

    @staticmethod
    def join(recordings: Sequence["Recording"]) -> "Recording":
        """The problems of all in order, without what only `backpropagate` needs."""
        names = ("loss", "excess", "log_grad_norm", "signals", "readouts", "params")
        dims = {part.params.shape[1] for part in recordings}
        if len(dims) > 1:
            recordings = [replace(part, params=part.params[:, :0]) for part in recordings]
        joined: dict[str, Any] = {
            name: torch.cat([getattr(part, name) for part in recordings]) for name in names
        }
        return Recording(**joined)

    def select(self, index: Tensor) -> "Recording":
        """The problems at `index` (int64 [K])."""
        chosen = map_tensors(self, lambda value: value.index_select(0, index))
        states = tuple(select_state(state, index) for state in self.states)
        return replace(chosen, states=states)


@final
@dataclass(frozen=True)
class Trajectory:
    """A recording, and what a halting head says of it at a price."""

    recording: Recording
    price: Tensor
    """c, shape [B]."""
    halting: HaltingOutput
    """Said at theta_0..theta_{T-1}: shapes [B, T, 2], [B, T, 2] and [B, T]."""
    spoken: HaltingOutput | None = None
    """`halting` with its graph, if kept: `backpropagate` will then not run the head again."""
    heard: Tensor | None = None
    """The read-outs [B, T, R] at the root of that graph."""

    @property
    def excess(self) -> Tensor:
        """Scored loss above the reference, shape [B, T+1]."""
        return self.recording.excess

    @property
    def num_problems(self) -> int:
        """B."""
        return self.recording.num_problems

    @property
    def num_steps(self) -> int:
        """T."""
        return self.recording.num_steps

    @property
    def finite(self) -> Tensor:
        """Which problems stayed finite throughout, bool [B]."""
        finite = self.recording.finite
        for value in self.halting:
            finite = finite & value.isfinite().flatten(1).all(1)
        return finite

    def traces(self) -> Traces:
        """What stop rules are fed with and judged by."""
        recording = self.recording
        return Traces(recording.loss, recording.excess, recording.log_grad_norm, *self.halting)

    def select(self, index: Tensor) -> "Trajectory":
        """The problems at `index` (int64 [K]), without a graph."""
        return Trajectory(
            self.recording.select(index),
            self.price[index],
            HaltingOutput(*(value[index] for value in self.halting)),
        )


@torch.no_grad()
def record(
    rule: UpdateRule, batch: TaskBatch, num_steps: int, *, segment: int | None = None
) -> Recording:
    """Run T steps of any rule on every problem, without a graph.

    Args:
        rule: What moves the parameters, learned or not.
        batch: B problems.
        num_steps: T >= 1.
        segment: If given, gradients and the rule's state at every `segment` steps are kept, as
            `backpropagate` needs them, and the excess is what meta-training minimises
            (`TaskBatch.evaluate`); else it is what stopping is judged by (`TaskBatch.score`).

    Returns:
        The recording.
    """
    require(num_steps >= 1, f"num_steps must be at least 1, got {num_steps}")
    require(segment is None or segment >= 1, f"segment must be at least 1, got {segment}")
    keep = segment is not None
    loss, excess, signals, readouts = ([] for _ in range(4))
    states: list[State] = []
    rule = prepare(rule)
    params, state = batch.start, rule.init(batch.start)
    memory, grads, updates = init_signals(params), [], []
    shape = (num_steps + 1, batch.num_problems, batch.dim)  # a step is written at a time
    excess_grads = params.new_empty(shape).transpose(0, 1) if keep else params.new_empty(0)
    kept_grads = excess_grads[:, :-1] if keep else excess_grads  # for most tasks they are the same
    for step in range(num_steps + 1):
        seen = batch.evaluate(params, step) if keep else batch.score(params, step)
        loss.append(seen.loss)
        excess.append(seen.excess)
        if isinstance(seen, Evaluation):
            excess_grads[:, step] = seen.excess_grad
            if seen.grad is not seen.excess_grad:
                if kept_grads.data_ptr() == excess_grads.data_ptr():
                    kept_grads = kept_grads.clone()
                if step < num_steps:
                    kept_grads[:, step] = seen.grad
        if step == num_steps:
            break
        if segment is not None and step % segment == 0:
            states.append(state)
            update, readout, state = rule.update(seen.grad, state)
        else:
            update, readout, state = update_(rule, seen.grad, state)
        grads.append(seen.grad)
        updates.append(update)
        readouts.append(readout)
        params = params + update
        if len(grads) * params.numel() >= _MEASURED or step == num_steps - 1:
            first = len(loss) - len(grads)
            measured, memory = measure_sequence(
                first,
                torch.stack(loss[first:], 1),
                torch.stack(grads, 1),
                torch.stack(updates, 1),
                memory,
            )
            signals.append(measured)
            grads, updates = [], []
    last = log_rms(seen.grad)
    return Recording(
        loss=torch.stack(loss, 1),
        excess=torch.stack(excess, 1),
        log_grad_norm=torch.cat(
            (*(part[..., SIGNALS.index("log_grad")] for part in signals), last.unsqueeze(1)), 1
        ),
        signals=torch.cat(signals, 1),
        readouts=torch.stack(readouts, 1),
        params=params,
        grad=kept_grads if keep else None,
        excess_grad=excess_grads if keep else None,
        states=tuple(states),
        segment=segment or 0,
    )


@torch.no_grad()
def unroll(
    optimizer: OptimizerModel,
    batch: TaskBatch,
    num_steps: int,
    price: Tensor,
    *,
    segment: int | None = None,
    graph: bool = False,
) -> Trajectory:
    """Run T steps of a learned optimizer on every problem.

    Args:
        optimizer: What moves the parameters and speaks of halting.
        batch: B problems.
        num_steps: T >= 1.
        price: c, shape [B].
        segment: See `record`.
        graph: Whether the head's graph is kept, for one call of `backpropagate`; the rule never
            has one.

    Returns:
        The trajectory.
    """
    require(
        price.shape == (batch.num_problems,),
        f"price must have the shape [{batch.num_problems}], got {list(price.shape)}",
    )
    recording = record(optimizer.rule, batch, num_steps, segment=segment)
    if not graph:
        return Trajectory(
            recording, price, optimizer.speak(recording.signals, recording.readouts, price)
        )
    spoken, heard = _speak(optimizer, recording, price)
    said = HaltingOutput(*(value.detach() for value in spoken))
    return Trajectory(recording, price, said, spoken, heard)


def _speak(
    optimizer: OptimizerModel, recording: Recording, price: Tensor
) -> tuple[HaltingOutput, Tensor]:
    """What the head says, with a graph that reaches down to the read-outs, which are returned."""
    learns = any(weight.requires_grad for weight in optimizer.rule_parameters())
    heard = recording.readouts.detach().requires_grad_(learns)
    with torch.enable_grad():
        return optimizer.speak(recording.signals, heard, price), heard


def backpropagate(
    optimizer: OptimizerModel,
    trajectory: Trajectory,
    excess_cotangent: Tensor,
    halting_cotangent: HaltingOutput,
    *,
    truncate: bool = False,
) -> None:
    """Add the meta-gradient of an objective to `.grad` of the optimizer's parameters.

    The optimizee's gradients are constants (first-order meta-gradients, L2L), so an objective's
    gradient with respect to the update g_t is sum_{s>t} w_s gamma_s with w_s its derivative with
    respect to the loss at theta_s: no graph of the optimizee is needed. Segments of the rule are
    recomputed from their stored state, last first, so memory does not grow with T.
    See docs/theory.md, Eq. (meta-gradient).

    Args:
        optimizer: The optimizer that made the trajectory, its weights unchanged since.
        trajectory: From `unroll` with a `segment`.
        excess_cotangent: w, derivative with respect to the excess loss, shape [B, T+1].
        halting_cotangent: Derivatives with respect to what the head said, each in the shape of
            the trajectory's field.
        truncate: Whether the state's gradient is cut between segments (truncated backpropagation
            through time). Even then an update answers for all later losses.
    """
    recording = trajectory.recording
    assert recording.grad is not None
    assert recording.excess_grad is not None
    spoken, heard = trajectory.spoken, trajectory.heard
    if spoken is None or heard is None:
        spoken, heard = _speak(optimizer, recording, trajectory.price)
    _backward(spoken, halting_cotangent)
    if not heard.requires_grad:  # the rule has nothing to learn
        return
    of_readouts = torch.zeros_like(heard) if heard.grad is None else heard.grad
    later = torch.zeros_like(recording.params)  # sum of w_s gamma_s over s behind the segment
    of_state: State = {}
    for index in reversed(range(len(recording.states))):
        begin = index * recording.segment
        end = min(begin + recording.segment, recording.num_steps)
        behind = slice(begin + 1, end + 1)
        pull = excess_cotangent[:, behind].unsqueeze(-1) * recording.excess_grad[:, behind]
        of_updates = pull.flip(1).cumsum_(1).flip(1).add_(later.unsqueeze(1))
        later = of_updates[:, 0]
        of_state = update_rules.backpropagate(
            optimizer.rule,
            recording.grad[:, begin:end],
            recording.states[index],
            UpdateStep(flush_negligible(of_updates, 0, 1, 2), of_readouts[:, begin:end], of_state),
            wants_state=not truncate and begin > 0,
        )


def _backward(roots: Sequence[Tensor], cotangents: Sequence[Tensor]) -> None:
    """Backpropagate through those roots that have a graph."""
    pairs = [pair for pair in zip(roots, cotangents, strict=True) if pair[0].requires_grad]
    if pairs:
        roots, cotangents = zip(*pairs, strict=True)
        torch.autograd.backward(roots, cotangents)
