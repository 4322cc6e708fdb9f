"""T steps of a learned optimizer, and the gradient of any objective of them."""

from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from haltwise._errors import require
from haltwise._tensors import log_rms, map_tensors
from haltwise.halting.head import HaltingOutput
from haltwise.halting.stopping import Traces
from haltwise.optimizer import LearnedOptimizer, strip
from haltwise.rules import State, select_state
from haltwise.tasks import Evaluation, TaskBatch

__all__ = ["Trajectory", "backpropagate", "unroll"]


@final
@dataclass(frozen=True)
class Trajectory:
    """What B problems went through in T steps; no autograd graph hangs on it."""

    loss: Tensor
    """Observed loss at theta_0..theta_T, shape [B, T+1]."""
    excess: Tensor
    """Scored loss above the reference, shape [B, T+1]."""
    log_grad_norm: Tensor
    """log of the root mean square gradient at theta_0..theta_T, shape [B, T+1]."""
    increments: Tensor
    """Of the softmax posterior, said at theta_0..theta_{T-1}, shape [B, T, 2]."""
    hazard_logits: Tensor
    """Of the stick-breaking posterior, said at theta_0..theta_{T-1}, shape [B, T, 2]."""
    features: Tensor
    """What the head saw, shape [B, T, F]."""
    params: Tensor
    """theta_T, shape [B, D]."""
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
        finite = self.excess.isfinite().all(1) & self.increments.isfinite().flatten(1).all(1)
        if self.excess_grad is not None:
            finite &= self.excess_grad.isfinite().flatten(1).all(1)
        finite &= self.hazard_logits.isfinite().flatten(1).all(1)
        return finite & self.features.isfinite().flatten(1).all(1)

    def traces(self) -> Traces:
        """What stop rules are fed with and judged by."""
        return Traces(
            self.loss, self.excess, self.log_grad_norm, self.increments, self.hazard_logits
        )

    def select(self, index: Tensor) -> "Trajectory":
        """The problems at `index` (int64 [K])."""
        chosen = map_tensors(self, lambda value: value.index_select(0, index))
        states = tuple(select_state(state, index) for state in self.states)
        return replace(chosen, states=states)


def unroll(
    optimizer: LearnedOptimizer,
    batch: TaskBatch,
    num_steps: int,
    price: Tensor,
    *,
    segment: int | None = None,
) -> Trajectory:
    """Run T steps on every problem, without a graph.

    Args:
        optimizer: What moves the parameters.
        batch: B problems.
        num_steps: T >= 1.
        price: c, shape [B].
        segment: If given, gradients and the rule's state at every `segment` steps are kept, as
            `backpropagate` needs them, and the excess is what meta-training minimises
            (`TaskBatch.evaluate`); else it is what stopping is judged by (`TaskBatch.score`).

    Returns:
        The trajectory.
    """
    require(num_steps >= 1, f"num_steps must be at least 1, got {num_steps}")
    require(segment is None or segment >= 1, f"segment must be at least 1, got {segment}")
    require(
        price.shape == (batch.num_problems,),
        f"price must have the shape [{batch.num_problems}], got {list(price.shape)}",
    )
    keep = segment is not None
    loss, excess, norm, increments, hazards, features, grads, excess_grads = ([] for _ in range(8))
    states: list[State] = []
    with torch.no_grad():
        params = batch.start
        state = optimizer.init(params)
        for step in range(num_steps + 1):
            seen = batch.evaluate(params, step) if keep else batch.score(params, step)
            loss.append(seen.loss)
            excess.append(seen.excess)
            norm.append(log_rms(seen.grad))
            if isinstance(seen, Evaluation):
                excess_grads.append(seen.excess_grad)
            if step == num_steps:
                break
            if segment is not None:
                grads.append(seen.grad)
                if step % segment == 0:
                    states.append(strip(state, "rule."))
            taken = optimizer.step(step, seen.loss, seen.grad, price, state)
            increments.append(taken.halting.increments)
            hazards.append(taken.halting.hazard_logits)
            features.append(taken.features)
            params, state = params + taken.update, taken.state
    return Trajectory(
        loss=torch.stack(loss, 1),
        excess=torch.stack(excess, 1),
        log_grad_norm=torch.stack(norm, 1),
        increments=torch.stack(increments, 1),
        hazard_logits=torch.stack(hazards, 1),
        features=torch.stack(features, 1),
        params=params,
        grad=torch.stack(grads, 1) if keep else None,
        excess_grad=torch.stack(excess_grads, 1) if keep else None,
        states=tuple(states),
        segment=segment or 0,
    )


def backpropagate(
    optimizer: LearnedOptimizer,
    trajectory: Trajectory,
    excess_cotangent: Tensor,
    halting_cotangent: HaltingOutput,
    *,
    truncate: bool = False,
) -> None:
    """Add the meta-gradient of an objective to `.grad` of the optimizer's parameters.

    The optimizee's gradients are constants (first-order meta-gradients, L2L), so an objective's
    gradient with respect to the update g_t is sum_{s>t} w_s gamma_s with w_s its derivative with
    respect to the loss at theta_s: no graph of the optimizee is needed. Segments are recomputed
    from their stored state, last first, so memory does not grow with T.

    Args:
        optimizer: The optimizer that made the trajectory, its weights unchanged since.
        trajectory: From `unroll` with a `segment`.
        excess_cotangent: w, derivative with respect to the excess loss, shape [B, T+1].
        halting_cotangent: Derivatives with respect to the increments and the hazard logits, each
            of shape [B, T, 2].
        truncate: Whether the state's gradient is cut between segments (truncated backpropagation
            through time). Even then an update answers for all later losses.
    """
    assert trajectory.grad is not None
    assert trajectory.excess_grad is not None
    pull = excess_cotangent.unsqueeze(-1) * trajectory.excess_grad  # w_s gamma_s, [B, T+1, D]
    update_cotangent = pull.flip(1).cumsum(1).flip(1)[:, 1:]  # sum over s > t, [B, T, D]
    learns = any(weight.requires_grad for weight in optimizer.rule_parameters())
    state_cotangent: State = {}
    for index in reversed(range(len(trajectory.states))):
        begin = index * trajectory.segment
        end = min(begin + trajectory.segment, trajectory.num_steps)
        carried = learns and not truncate and begin > 0
        first = {
            name: value.detach().requires_grad_(carried)
            for name, value in trajectory.states[index].items()
        }
        updates, readouts, state = optimizer.rule.replay(trajectory.grad[:, begin:end], first)
        outputs = optimizer.head(trajectory.features[:, begin:end], readouts)
        roots = [updates, *outputs]
        cotangents = [
            cotangent[:, begin:end] for cotangent in (update_cotangent, *halting_cotangent)
        ]
        for name, cotangent in state_cotangent.items():
            roots.append(state[name])
            cotangents.append(cotangent)
        torch.autograd.backward(
            [root for root in roots if root.requires_grad],
            [
                cotangent
                for root, cotangent in zip(roots, cotangents, strict=True)
                if root.requires_grad
            ],
        )
        if carried:
            state_cotangent = {
                name: value.grad for name, value in first.items() if value.grad is not None
            }
