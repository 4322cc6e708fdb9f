"""Optimizers to compare with: hand-designed rules at tuned learning rates, and L-BFGS."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from haltwise._core.tensors import widened
from haltwise._core.workers import Workers
from haltwise.processes.trajectory import Trajectory
from haltwise.tasks.base import TaskBatch, ask
from haltwise.update_rules import SGD, Adam, RMSprop, UpdateRule

__all__ = [
    "HAND_DESIGNED",
    "LEARNING_RATES",
    "TunedRule",
    "lbfgs_curve",
    "loss_curves",
    "tune_rule",
]

HAND_DESIGNED: Mapping[str, Callable[[float], UpdateRule]] = MappingProxyType(
    {
        "sgd": SGD,
        "nesterov": lambda learning_rate: SGD(learning_rate, momentum=0.9, nesterov=True),
        "rmsprop": RMSprop,
        "adam": Adam,
    }
)

LEARNING_RATES = tuple(10 ** (power / 6) for power in range(-30, 10))
"""1e-5 to 32, six to a decade, apart by a factor of 1.47."""

_LEAST_PROBLEMS, _TUNING_COORDINATES = 4, 2**18


@final
@dataclass(frozen=True)
class TunedRule:
    """A rule at its best learning rate."""

    rule: UpdateRule
    learning_rate: float
    """The one of `LEARNING_RATES` with the least mean excess over steps 1..T."""
    at_edge: bool
    """Whether that is an end of the grid, so that a wider one might do better."""


@torch.no_grad()
def loss_curves(rule: UpdateRule, batch: TaskBatch, num_steps: int) -> Trajectory:
    """T steps of `rule` on every problem: losses, excess and the last iterate, no signals."""
    params, state, scores = batch.start, rule.init(batch.start), []
    for step in range(num_steps):
        scores.append(ask(batch.score, params, step))
        update, _, state = rule.update(scores[-1].grad, state)
        params = params + update
    scores.append(ask(batch.score, params, num_steps))
    return Trajectory(
        loss=torch.stack([score.loss for score in scores], 1),
        excess=torch.stack([score.excess for score in scores], 1),
        final=params,
    )


def tune_rule(
    make: Callable[[float], UpdateRule],
    batch: TaskBatch,
    num_steps: int,
    workers: Workers | None = None,
) -> TunedRule:
    """The learning rate with the least mean excess over problems and steps 1..T.

    Of large problems a few are enough, since a rate that is right for one network is right for the
    next. For them every fourth rate is tried first, then those around the best one, twice closer,
    since a mean excess has one valley. Workers share the work; all find the same rate.
    """
    workers = workers or Workers()
    few = min(batch.num_problems, max(_LEAST_PROBLEMS, _TUNING_COORDINATES // batch.dim))
    strides = (1,) if few == batch.num_problems else (4, 2, 1)
    batch = batch.select(torch.arange(few, device=batch.start.device))
    places: Sequence[int] = range(0, len(LEARNING_RATES), strides[0])
    scores: dict[int, float] = {}
    for stride in strides:
        if scores:
            best = min(scores, key=scores.__getitem__)
            places = [p for p in (best - stride, best + stride) if 0 <= p < len(LEARNING_RATES)]
        found = widened(batch.start.new_zeros(len(places)))
        for number in workers.share(len(places)):
            rule = make(LEARNING_RATES[places[number]])
            excess = loss_curves(rule, batch, num_steps).excess
            begun = excess[:, 0].isfinite()  # no rate helps where a problem begins at NaN
            found[number] = widened(excess[begun, 1:]).mean().nan_to_num(math.inf, math.inf)
        workers.sum(found)
        scores |= zip(places, found.tolist(), strict=True)
    best = min(scores, key=scores.__getitem__)
    learning_rate = LEARNING_RATES[best]
    return TunedRule(make(learning_rate), learning_rate, best in (0, len(LEARNING_RATES) - 1))


def lbfgs_curve(batch: TaskBatch, num_gradients: int) -> Tensor:
    """Lowest excess seen by L-BFGS after 0..G evaluations, shape [B, G+1].

    `torch.optim.LBFGS` with strong Wolfe line search, one problem at a time in float64; line
    searches are charged for every evaluation. On quadratics it is conjugate gradients.
    The losses of the batch must be exact; infinite is what has seen none that is finite.
    """
    seen = torch.tensor(
        [
            _lbfgs_excess(batch.select(problem), num_gradients)
            for problem in torch.arange(batch.num_problems, device=batch.start.device).split(1)
        ],
        dtype=torch.float64,
        device="cpu",
    ).nan_to_num(math.inf, math.inf, -math.inf)
    # The first evaluation is at theta_0 and buys the first move.
    return torch.cat((seen[:, :1], seen.cummin(1).values), 1)


def _lbfgs_excess(problem: TaskBatch, num_gradients: int) -> list[float]:
    """The excess at each evaluation, the last one repeated where L-BFGS ends early."""
    params = problem.start.double().clone().requires_grad_()
    seen: list[float] = []
    solver = torch.optim.LBFGS(
        [params],
        max_iter=num_gradients,
        max_eval=num_gradients,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        evaluation = problem.evaluate(params.detach().to(problem.start.dtype), 0)
        seen.append(evaluation.excess.item())
        params.grad = evaluation.grad.to(params)
        return evaluation.excess[0].double()

    # PyTorch's line search finds no bracket among losses that are NaN, and says so by IndexError.
    with contextlib.suppress(IndexError):
        solver.step(closure)
    return (seen + [seen[-1]] * num_gradients)[:num_gradients]
