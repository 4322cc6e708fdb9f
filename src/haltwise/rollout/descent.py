"""Safeguarded L-BFGS: what goes on, in any units, where a learned rule does not fit.

Directions are those of Nocedal 1980 (Nocedal & Wright 2006, algorithm 7.4); a step is taken only if
it lowers the loss (Armijo's condition, chapter 3), else the parabola through what is known shortens
it. A trial costs a gradient, whether taken or not.
"""

import copy
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from haltwise._core.plugins import comes_with_the_package
from haltwise._core.tensors import nested_state, select_state, tensors_of
from haltwise.rollout.early_exit import Outcome
from haltwise.rollout.ledger import MEMORY, Ledger
from haltwise.rollout.rows import Rows, gather_rows, scatter_rows
from haltwise.rollout.step_graphs import (
    Loop,
    StepGraphs,
    batch_kind,
)
from haltwise.tasks.base import TaskBatch, ask

__all__ = ["DESCENT_REASONS", "FLAT", "Descent", "descend", "forecast_gain"]

FLAT = 1e-2
"""Times the first gradient's norm: where a gradient is smaller, a problem is as good as solved."""

_DECREASE = 1e-4  # of the decrease forecast by the slope that a step must reach
_SHORTEST, _LONGEST = 0.1, 0.5  # times its length, by which a step that failed is shortened
_GROWTH = 4.0  # of the next step after one along which the loss is not convex
_REACH = 10.0  # times the last step: pairs of tiny steps hold more rounding than curvature
_FAILURES = 4  # steps in a row that failed, after which the memory is dropped
_PATIENCE = 3  # steps in a row that may fail to earn their price where little is left to gain
_LONG_PATIENCE = 10  # and anywhere else: from one valley to the next

DESCENT_REASONS = (
    "the last steps of L-BFGS, which took over, earned less than their price",
    "the gradient is zero",
)
"""Why `descend` halts a problem, in words."""

State = dict[str, Tensor]


@final
@dataclass
class Descent:
    """B problems at the best points known, from which `descend` goes on.

    Attributes:
        params: Shape [B, D].
        loss: The loss there, shape [B].
        grad: The gradient there, shape [B, D].
        length: Of the first step, in gradients, shape [B].
        budget: Gradients each problem may still cost, int64 [B].
        first_norm: Norm of the gradient at which the problem began, shape [B].
    """

    params: Tensor
    loss: Tensor
    grad: Tensor
    length: Tensor
    budget: Tensor
    first_norm: Tensor


@torch.no_grad()
def descend(
    batch: TaskBatch,
    begun: Descent,
    price: Tensor,
    ledger: Ledger,
    items: Tensor,
    *,
    graphs: StepGraphs | None = None,
) -> tuple[Tensor, Tensor]:
    """Lower the loss of B problems until a step is not worth its price.

    The result is the best point of the ledger. A problem halts once 10 steps in a row have each
    earned less than the price; 3 are enough where the slope forecasts the same of the next and the
    gradient is below `FLAT` times the first.

    Args:
        batch: B problems, deterministic.
        begun: Where they are.
        price: What a gradient must earn, shape [B].
        ledger: Where every evaluation is noted.
        items: Which of its problems these are, int64 [B].
        graphs: Where steps are recorded, if they are to be and the batch is one of this package.

    Returns:
        `Outcome` values, int64 [B], and the index into `DESCENT_REASONS` of what halted each, -1
        where nothing did, int64 [B].
    """
    run = _Run(batch, _init(begun, price), ledger, items)
    most: int | None = None  # places, of a recording that is not refused
    while len(run.items):
        places = None
        if graphs is not None and run.kind is not None:
            places = graphs.places(len(run.items), batch.dim, most)
        if graphs is None or places is None:
            run.step()
            continue
        with graphs.advanced(run.spread(places.number), places.fewer) as loop:
            if loop is None:
                most = places.fewer
            else:
                run.gather(loop)
    return run.results["outcome"][:-1], run.results["reason"][:-1]


@final
class _Run:
    """Problems that descend side by side, and what has become of all.

    Attributes:
        items: Which of the B problems descend, int64 [K]; B where a place is empty.
        results: What has become of all, rows of B + 1.
    """

    def __init__(self, batch: TaskBatch, state: State, ledger: Ledger, of_ledger: Tensor) -> None:
        self.batch, self.state, self.ledger = batch, state, ledger
        self.num_items = batch.num_problems
        self.items = torch.arange(self.num_items, device=of_ledger.device)
        self.of_ledger = pad(of_ledger, (0, 1), value=len(ledger.count))
        outcome = self.items.new_full((self.num_items + 1,), int(Outcome.OUT_OF_STEPS))
        self.results: Rows = {"outcome": outcome, "reason": torch.full_like(outcome, -1)}

    def step(self) -> None:
        """Take a step with those that do not end before it; the others leave."""
        plan = _plan(self.state)
        if plan.ended.any():
            self._settle(plan)
            kept = (~plan.ended).nonzero().squeeze(1)
            self.items = self.items[kept]
            if len(kept) == 0:
                return
            self.batch, self.state = self.batch.select(kept), select_state(self.state, kept)
            plan = _Plan(*(value[kept] for value in plan))
        self._try(plan)

    def step_in_place(self) -> None:
        """Take a step with those that do not end before it; the places of others are empty."""
        plan = _plan(self.state)
        self._settle(plan)
        self.items = self.items.masked_fill(plan.ended, self.num_items)
        self._try(plan)

    def _settle(self, plan: "_Plan") -> None:
        """Write down what has become of those that halt."""
        rows = self.items.masked_fill(~plan.halts, self.num_items)
        halted = torch.full_like(rows, int(Outcome.HALTED))
        self.results["outcome"].index_copy_(0, rows, halted)
        self.results["reason"].index_copy_(0, rows, plan.is_flat.long())

    def _try(self, plan: "_Plan") -> None:
        trial = self.state["params"] + plan.move
        loss, grad = ask(self.batch.observe, trial, 0)  # the loss does not depend on the step
        self.ledger.note(self.of_ledger[self.items], trial, loss, grad)
        self.state = _advance(self.state, plan.move, plan.slope, loss, grad)

    # -------------------------------------------------------------------------- recorded

    @property
    def kind(self) -> tuple[object, ...] | None:
        """What steps depend on beside values of tensors; None if they cannot be recorded."""
        kind = batch_kind(self.batch)
        if kind is None or not comes_with_the_package(self.batch):
            return None
        return "descent", *kind, *self.ledger.kind

    def spread(self, places: int) -> "_RecordedRun":
        """A copy, with so many places."""
        rows, part = self._rows(places), copy.copy(self)
        index = torch.arange(places, device=rows.device)
        part.items = torch.where(rows < self.num_items, index, places)
        part.num_items = places
        index = index.clamp_max(len(self.items) - 1)  # empty places hold something sound
        part.batch, part.state = self.batch.select(index), select_state(self.state, index)
        part.results = gather_rows(self.results, rows)
        part.ledger = self.ledger.part(self.of_ledger[rows])
        part.of_ledger = torch.arange(places + 1, device=rows.device)
        return _RecordedRun(part)

    def gather(self, loop: "_RecordedRun") -> None:
        """Go on where a copy has ended, with the problems that are left."""
        part, number = loop.run, len(self.items)
        rows = self._rows(part.num_items)
        scatter_rows(self.results, rows, part.results)
        scatter_rows(self.ledger.rows, self.of_ledger[rows], part.ledger.rows)
        kept = (part.items[:number] < part.num_items).nonzero().squeeze(1)
        self.items = self.items[kept]
        if len(kept):
            self.batch, self.state = self.batch.select(kept), select_state(part.state, kept)

    def _rows(self, places: int) -> Tensor:
        """Which problem is in each of so many places, int64 [places]."""
        return pad(self.items, (0, places - len(self.items)), value=self.num_items)


@final
class _RecordedRun(Loop):
    """Problems that descend in their places."""

    def __init__(self, run: _Run) -> None:
        self.run = run

    @property
    def kind(self) -> tuple[object, ...]:
        kind = self.run.kind
        assert kind is not None
        return kind

    def tensors(self) -> dict[str, Tensor]:
        run = self.run
        return {
            "items": run.items,
            "of_ledger": run.of_ledger,
            **nested_state(run.state, "state."),
            **nested_state(tensors_of(run.batch), "batch."),
            **nested_state(run.results, "results."),
            **nested_state(run.ledger.rows, "ledger."),
        }

    def advance(self, num_steps: int) -> dict[str, Tensor]:
        run = copy.copy(self.run)
        for _ in range(num_steps):
            run.step_in_place()
        return {"items": run.items, **nested_state(run.state, "state.")}

    def num_left(self) -> int:
        return int((self.run.items < self.run.num_items).sum())


class _Plan(NamedTuple):
    """The next step of K problems, and which end before it."""

    move: Tensor
    slope: Tensor
    is_flat: Tensor
    halts: Tensor
    ended: Tensor


def _plan(state: State) -> _Plan:
    direction = _direction(state)
    size = direction.square().sum(1).sqrt()
    direction = direction * (state["reach"] / size).clamp_max(1).nan_to_num(0).unsqueeze(1)
    slope = (direction * state["grad"]).sum(1)  # per unit of length, below 0
    is_flat = ~(slope < 0)
    solved = -0.5 * state["length"] * slope <= state["price"]
    solved &= state["grad"].square().sum(1).sqrt() <= FLAT * state["first_norm"]
    waited = state["waited"]
    halts = ((waited >= _PATIENCE) & solved) | (waited >= _LONG_PATIENCE) | is_flat
    move = state["length"].unsqueeze(1) * direction
    return _Plan(move, slope, is_flat, halts, halts | (state["budget"] <= 0))


def _init(begun: Descent, price: Tensor) -> State:
    num, dim = begun.params.shape
    pairs = begun.params.new_zeros(num, MEMORY, dim)
    return {
        "params": begun.params,
        "loss": begun.loss,
        "grad": begun.grad,
        "budget": begun.budget,
        "first_norm": begun.first_norm,
        "price": price,
        "scale": begun.length,  # of the inverse Hessian to begin with
        "length": torch.ones_like(begun.length),
        "reach": torch.full_like(begun.length, torch.inf),  # of the next step
        "waited": torch.zeros_like(begun.budget),
        "failures": torch.zeros_like(begun.budget),
        "steps": pairs,
        "changes": pairs.clone(),
        "inverse": begun.params.new_zeros(num, MEMORY),  # 1 / <s, y>, 0 where there is no pair
    }


def _direction(state: State) -> Tensor:
    """-H gamma by the two loops; pairs that are not there have inverse 0 and change nothing."""
    steps, changes, inverse = state["steps"], state["changes"], state["inverse"]
    vector, weights = state["grad"], []
    for k in range(MEMORY):  # from the newest
        weight = inverse[:, k] * (steps[:, k] * vector).sum(1)
        vector = vector - weight.unsqueeze(1) * changes[:, k]
        weights.append(weight)
    vector = state["scale"].unsqueeze(1) * vector
    for k in reversed(range(MEMORY)):
        weight = weights[k] - inverse[:, k] * (changes[:, k] * vector).sum(1)
        vector = vector + weight.unsqueeze(1) * steps[:, k]
    return -vector


def _advance(state: State, move: Tensor, slope: Tensor, loss: Tensor, grad: Tensor) -> State:
    """Take the trial where it lowers the loss, else shorten the next."""
    length, before = state["length"], state["loss"]
    finite = loss.isfinite() & grad.isfinite().all(1)
    taken = finite & (loss <= before + _DECREASE * length * slope)
    change = grad - state["grad"]
    bend = (move * change).sum(1)
    size = change.square().sum(1)
    convex = taken & _is_convex(bend, size)
    failures = torch.where(taken, 0, state["failures"] + 1)
    forgets = (failures == _FAILURES) & (state["inverse"] != 0).any(1)
    # 0 / 0 where nothing moved is discarded by `convex`.
    scale = torch.where(convex, bend / size, state["scale"])
    scale = torch.where(taken & ~convex, _GROWTH * scale, scale)
    length = torch.where(taken | forgets, 1, _shortened(length, slope, loss - before, finite))

    def pushed(name: str, value: Tensor) -> Tensor:
        kept = state[name].masked_fill(forgets.view(-1, *[1] * (state[name].ndim - 1)), 0)
        grown = torch.cat((value.unsqueeze(1), kept[:, :-1]), 1)
        return torch.where(convex.view(-1, *[1] * (kept.ndim - 1)), grown, kept)

    column = taken.unsqueeze(1)
    return {
        "params": torch.where(column, state["params"] + move, state["params"]),
        "loss": torch.where(taken, loss, before),
        "grad": torch.where(column, grad, state["grad"]),
        "budget": state["budget"] - 1,
        "first_norm": state["first_norm"],
        "price": state["price"],
        "scale": scale,
        "length": length,
        "reach": torch.where(taken, _REACH * move.square().sum(1).sqrt(), state["reach"]),
        "waited": torch.where(taken & (before - loss > state["price"]), 0, state["waited"] + 1),
        "failures": failures,
        "steps": pushed("steps", move),
        "changes": pushed("changes", change),
        "inverse": pushed("inverse", 1 / bend),
    }


def forecast_gain(grad: Tensor, steps: Tensor, changes: Tensor) -> Tensor:
    """What a step of L-BFGS is forecast to gain by the curvature seen, 1/2 gamma' H gamma.

    Of a quadratic with conjugate steps in all directions, it is all that is left to gain.

    Args:
        grad: gamma, shape [B, D].
        steps: Steps, the newest first, shape [B, `MEMORY`, D]; zero where there was none.
        changes: Changes of the gradient along them, in the same shape.

    Returns:
        Shape [B]; infinite where the loss is convex along none of the steps.

    Examples:
        >>> hessian = torch.diag(torch.tensor([1.0, 10.0]))
        >>> steps = torch.zeros(1, MEMORY, 2)
        >>> steps[0, :2] = torch.tensor([[0.3, 0.0], [0.0, 0.4]])
        >>> grad = torch.tensor([[2.0, 10.0]])
        >>> forecast_gain(grad, steps, steps @ hessian)  # 2 * 2 / 2 + 10 * 1 / 2
        tensor([7.])
    """
    bend, size = (steps * changes).sum(-1), changes.square().sum(-1)
    convex = _is_convex(bend, size) & bend.isfinite() & size.isfinite()
    newest = convex.to(torch.uint8).argmax(1, keepdim=True)
    scale = torch.where(convex, bend / size, 0).gather(1, newest).squeeze(1)
    state = {
        "grad": grad,
        "scale": scale,
        "inverse": torch.where(convex, 1 / bend, 0),
        "steps": torch.where(convex.unsqueeze(2), steps, 0),
        "changes": torch.where(convex.unsqueeze(2), changes, 0),
    }
    gain = -0.5 * (_direction(state) * grad).sum(1)
    return torch.where(convex.any(1), gain, torch.inf)


def _is_convex(bend: Tensor, size: Tensor) -> Tensor:
    """Where <s, y> is told from rounding, given |y|^2."""
    return bend > torch.finfo(bend.dtype).eps * size


def _shortened(length: Tensor, slope: Tensor, rise: Tensor, finite: Tensor) -> Tensor:
    """The minimum of the parabola through loss, slope and the loss of the step that failed."""
    found = -0.5 * length * length * slope / (rise - length * slope)
    found = torch.where(finite, found, 0).nan_to_num(0.0)
    return torch.maximum(found, _SHORTEST * length).minimum(_LONGEST * length)
