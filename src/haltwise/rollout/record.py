"""Recording: T steps of a process on every item, without a graph."""

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import got, whole_number
from haltwise._core.tensors import log_rms, require_items, undisturbed
from haltwise.processes.base import Process, State, advanced, begun, result_of
from haltwise.processes.signals import SIGNALS, init_signals, measure_sequence
from haltwise.processes.trajectory import Trajectory
from haltwise.tasks.base import DifferentiatedScore, Score, TaskBatch, ask
from haltwise.update_rules import UpdateRule, prepare, update_
from haltwise.update_rules.base import require_step

__all__ = ["record", "record_process", "run_rule"]

# Coordinate-steps whose signals are measured at once: they fill a cache, or keep a GPU busy.
_MEASURED, _MEASURED_ON_GPU = 2**16, 2**23


@undisturbed()
def record_process(process: Process, num_steps: int) -> Trajectory:
    """Run T >= 1 steps of a process on every item.

    Raises:
        InputError: T is below 1, it is no process, or an observation comes without signals.
    """
    require(isinstance(process, Process), f"a process must be a Process, {got(process)}")
    num_steps = whole_number("num_steps", num_steps)
    state = begun(process)
    loss, excess, norms, signals, readouts = ([] for _ in range(5))
    for step in range(num_steps + 1):
        before = state
        observation, state = advanced(process, step, before)
        loss.append(observation.loss)
        score = process.score(before, step, observation)
        require_items({"what `score` returns": score}, len(loss[0]), type(process).__name__)
        excess.append(score)
        if observation.log_grad_norm is not None:
            norms.append(observation.log_grad_norm)
        if step == num_steps:
            break
        require(
            observation.signals is not None,
            f"{type(process).__name__} shows no signals to learn from; make its observations by "
            "`self.observe(step, loss)`",
        )
        assert observation.signals is not None
        signals.append(observation.signals)
        if observation.readout is not None:
            readouts.append(observation.readout)
    return Trajectory(
        loss=torch.stack(loss, 1),
        excess=torch.stack(excess, 1),
        log_grad_norm=torch.stack(norms, 1) if norms else None,
        signals=torch.stack(signals, 1),
        readouts=torch.stack(readouts, 1) if readouts else None,
        final=result_of(process, before),
    )


def record(rule: UpdateRule, batch: TaskBatch, num_steps: int) -> Trajectory:
    """Run T >= 1 steps of any update rule on B problems, judged as stopping is."""
    return run_rule(rule, batch, num_steps)[0]


@undisturbed()
def run_rule(
    rule: UpdateRule, batch: TaskBatch, num_steps: int, segment: int | None = None
) -> tuple[Trajectory, Tensor, Tensor, tuple[State, ...]]:
    """Run T steps of an update rule on every problem, keeping what its meta-gradient needs.

    Args:
        rule: What moves the parameters, learned or not.
        batch: B problems.
        num_steps: T >= 1.
        segment: Steps that are recomputed at once in the backward pass. None keeps nothing for it:
            problems are then judged as stopping is (`TaskBatch.score`), not as meta-training is
            (`TaskBatch.evaluate`).

    Returns:
        The trajectory; and, if asked for, the gradients observed [B, T, D], those of the excess
        [B, T+1, D] and the rule's state at the start of every segment.
    """
    require(segment is None or segment >= 1, f"segment must be at least 1, got {segment}")
    num_steps = whole_number("num_steps", num_steps)
    keep = segment is not None
    loss, excess, signals, readouts = ([] for _ in range(4))
    states: list[State] = []
    rule, batch = prepare(rule), batch.draw_ahead(num_steps + 1)
    measured_at_once = _MEASURED if batch.start.device.type == "cpu" else _MEASURED_ON_GPU
    params, state = batch.start, rule.init(batch.start)
    memory, grads, updates = init_signals(params), [], []
    shape = (num_steps + 1, batch.num_problems, batch.dim)  # a step is written at a time
    excess_grads = params.new_empty(shape).transpose(0, 1) if keep else params.new_empty(0)
    kept_grads = excess_grads[:, :-1] if keep else excess_grads  # for most tasks they are the same
    places = excess_grads.unbind(1) if keep else ()
    seen: DifferentiatedScore | Score
    for step in range(num_steps + 1):
        seen = ask(batch.evaluate, params, step) if keep else ask(batch.score, params, step)
        loss.append(seen.loss)
        excess.append(seen.excess)
        if isinstance(seen, DifferentiatedScore):
            places[step].copy_(seen.excess_grad)
            if seen.grad is not seen.excess_grad:
                if kept_grads.data_ptr() == excess_grads.data_ptr():
                    kept_grads = kept_grads.clone()
                if step < num_steps:
                    kept_grads[:, step] = seen.grad
        if step == num_steps:
            break
        if segment is not None and step % segment == 0:
            states.append(state)
            update, readout, state = require_step(rule, rule.update(seen.grad, state), seen.grad)
        else:
            update, readout, state = update_(rule, seen.grad, state)
        require_items(state, batch.num_problems, f"the state of {type(rule).__name__}")
        grads.append(seen.grad)
        updates.append(update)
        readouts.append(readout)
        params = params + update
        if len(grads) * params.numel() >= measured_at_once or step == num_steps - 1:
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
    log_norms = [part[..., SIGNALS.index("log_grad")] for part in signals]
    trajectory = Trajectory(
        loss=torch.stack(loss, 1),
        excess=torch.stack(excess, 1),
        log_grad_norm=torch.cat((*log_norms, log_rms(seen.grad).unsqueeze(1)), 1),
        signals=torch.cat(signals, 1),
        readouts=torch.stack(readouts, 1),
        final=params,
    )
    return trajectory, kept_grads, excess_grads, tuple(states)
