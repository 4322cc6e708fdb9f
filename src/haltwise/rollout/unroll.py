"""T steps of an optimizer model, and the meta-gradient of any objective of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from haltwise import update_rules
from haltwise._core.errors import require
from haltwise._core.tensors import flush_negligible, select_state
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.trajectory import Trajectory
from haltwise.rollout.record import run_rule
from haltwise.tasks.base import TaskBatch
from haltwise.update_rules import SupportsBackpropagation
from haltwise.update_rules.base import State, UpdateStep

__all__ = ["Unroll", "backpropagate", "unroll"]


@final
@dataclass(frozen=True)
class Unroll:
    """T steps of an optimizer model at a price, and what the meta-gradient needs of them."""

    trajectory: Trajectory
    """With the halting model's outputs, detached."""
    grad: Tensor
    """Observed gradients at theta_0..theta_{T-1}, shape [B, T, D]."""
    excess_grad: Tensor
    """Gradients of the excess at theta_0..theta_T, shape [B, T+1, D]."""
    states: tuple[State, ...]
    """The rule's state at the start of every segment."""
    segment: int
    """Steps of a segment, which the backward pass recomputes at once."""
    price: Tensor
    """c, shape [B]."""
    outputs: Mapping[str, Tensor] | None = None
    """The outputs with their graph, if kept: `backpropagate` will not run the halter again."""
    readouts: Tensor | None = None
    """The read-outs [B, T, R] at the root of that graph."""

    def select(self, index: Tensor) -> "Unroll":
        """The problems at `index` (int64 [M]), without a graph."""
        return Unroll(
            self.trajectory.select(index),
            self.grad.index_select(0, index),
            self.excess_grad.index_select(0, index),
            tuple(select_state(state, index) for state in self.states),
            self.segment,
            self.price[index],
        )

    @cached_property
    def finite(self) -> Tensor:
        """Which problems stayed finite throughout, bool [B]."""
        return self.trajectory.finite & self.excess_grad.isfinite().flatten(1).all(1)


@torch.no_grad()
def unroll(
    model: OptimizerModel,
    batch: TaskBatch,
    num_steps: int,
    price: Tensor,
    *,
    segment: int,
    graph: bool = False,
) -> Unroll:
    """Run T steps of an optimizer model on every problem, for meta-training.

    Args:
        model: What moves the parameters and judges halting.
        batch: B problems.
        num_steps: T >= 1.
        price: c, shape [B].
        segment: Steps that are recomputed at once in the backward pass; the rule's state before
            each segment is kept.
        graph: Whether the halter's graph is kept, for one call of `backpropagate`; the rule never
            has one.
    """
    require(
        price.shape == (batch.num_problems,),
        f"price must have the shape [{batch.num_problems}], got {list(price.shape)}",
    )
    trajectory, grad, excess_grad, states = run_rule(model.rule, batch, num_steps, segment)
    outputs = readouts = None
    if graph:
        outputs, readouts = _outputs(model, trajectory, price)
        detached = {name: value.detach() for name, value in outputs.items()}
        trajectory = replace(trajectory, outputs=detached)
    else:
        trajectory = model.halting.attach(trajectory, price)
    return Unroll(trajectory, grad, excess_grad, states, segment, price, outputs, readouts)


def _outputs(
    model: OptimizerModel, trajectory: Trajectory, price: Tensor
) -> tuple[dict[str, Tensor], Tensor]:
    """Outputs with a graph that reaches down to the read-outs, which are returned beside them."""
    assert trajectory.signals is not None
    assert trajectory.readouts is not None
    learns = any(weight.requires_grad for weight in model.rule_parameters())
    readouts = trajectory.readouts.detach().requires_grad_(learns)
    with torch.enable_grad():
        return model.halting(trajectory.signals, readouts, price), readouts


def backpropagate(
    model: OptimizerModel,
    unrolled: Unroll,
    excess_cotangent: Tensor,
    output_cotangents: Mapping[str, Tensor],
    *,
    truncate: bool = False,
) -> None:
    """Add the meta-gradient of an objective to `.grad` of the model's parameters.

    The optimizee's gradients are constants (first-order meta-gradients, L2L), so an objective's
    gradient with respect to the update g_t is sum_{s>t} w_s gamma_s with w_s its derivative with
    respect to the loss at theta_s: no graph of the optimizee is needed. Segments of the rule are
    recomputed from their stored state, last first: what grows with T are gradients, parameters and
    the states at the starts of segments, and no graph.
    See docs/theory.md, Eq. (meta-gradient).

    Args:
        model: The model that was unrolled, its weights unchanged since.
        unrolled: From `unroll`.
        excess_cotangent: w, derivative with respect to the excess loss, shape [B, T+1].
        output_cotangents: Derivatives with respect to the halting model's outputs, by name.
        truncate: Whether the state's gradient is cut between segments (truncated backpropagation
            through time). Even then an update answers for all later losses.
    """
    trajectory, segment = unrolled.trajectory, unrolled.segment
    outputs, readouts = unrolled.outputs, unrolled.readouts
    if outputs is None or readouts is None:
        outputs, readouts = _outputs(model, trajectory, unrolled.price)
    names = list(outputs)
    _backward([outputs[name] for name in names], [output_cotangents[name] for name in names])
    if not readouts.requires_grad:  # the rule has nothing to learn
        return
    of_readouts = torch.zeros_like(readouts) if readouts.grad is None else readouts.grad
    if truncate and _may_go_together(model, unrolled):
        _backpropagate_together(model, unrolled, excess_cotangent, of_readouts)
        return
    assert trajectory.final is not None
    later = torch.zeros_like(trajectory.final)  # sum of w_s gamma_s over s behind the segment
    of_state: State = {}
    for index in reversed(range(len(unrolled.states))):
        begin = index * segment
        end = min(begin + segment, trajectory.num_steps)
        of_updates = _sums_of_later(unrolled, excess_cotangent, begin, end)
        of_updates = of_updates.add_(later.unsqueeze(1))
        later = of_updates[:, 0]
        of_state = update_rules.backpropagate(
            model.rule,
            unrolled.grad[:, begin:end],
            unrolled.states[index],
            UpdateStep(flush_negligible(of_updates, 0, 1, 2), of_readouts[:, begin:end], of_state),
            wants_state=not truncate and begin > 0,
        )


def _sums_of_later(unrolled: Unroll, excess_cotangent: Tensor, begin: int, end: int) -> Tensor:
    """Sums of w_s gamma_s over t < s <= end, for t from begin to end - 1, [B, end - begin, D]."""
    behind = slice(begin + 1, end + 1)
    pull = excess_cotangent[:, behind].unsqueeze(-1) * unrolled.excess_grad[:, behind]
    sums: Tensor = pull.flip(1).cumsum_(1).flip(1)
    return sums


def _may_go_together(model: OptimizerModel, unrolled: Unroll) -> bool:
    """Whether there is memory and are idle processors for all segments at once, of one length."""
    return (
        unrolled.grad.is_cuda
        and isinstance(model.rule, SupportsBackpropagation)
        and unrolled.trajectory.num_steps % unrolled.segment == 0
    )


def _backpropagate_together(
    model: OptimizerModel, unrolled: Unroll, excess_cotangent: Tensor, of_readouts: Tensor
) -> None:
    """Backpropagate through truncated segments, which are then problems of their own."""

    def cut(value: Tensor) -> Tensor:
        return value.reshape(-1, unrolled.segment, value.shape[2])

    of_updates = _sums_of_later(unrolled, excess_cotangent, 0, unrolled.trajectory.num_steps)
    states = {
        name: torch.stack([state[name] for state in unrolled.states], 1).flatten(0, 1)
        for name in unrolled.states[0]
    }
    update_rules.backpropagate(
        model.rule,
        cut(unrolled.grad),
        states,
        UpdateStep(flush_negligible(cut(of_updates), 0, 1, 2), cut(of_readouts), {}),
        wants_state=False,
    )


def _backward(roots: Sequence[Tensor], cotangents: Sequence[Tensor]) -> None:
    """Backpropagate through those roots that have a graph."""
    pairs = [pair for pair in zip(roots, cotangents, strict=True) if pair[0].requires_grad]
    if pairs:
        roots, cotangents = zip(*pairs, strict=True)
        torch.autograd.backward(roots, cotangents)
