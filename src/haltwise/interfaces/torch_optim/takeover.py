"""What the guard does to a group: it keeps its best parameters, goes back, and moves by Adam."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from haltwise._core.errors import FitWarning, warn
from haltwise.interfaces.torch_optim.chunks import by_place, gathered, working_dtype
from haltwise.interfaces.torch_optim.groups import Group, num_coordinates
from haltwise.interfaces.torch_optim.guard import Action, Guard, adam_
from haltwise.interfaces.torch_optim.problem import Problem, are_finite

__all__ = [
    "follows",
    "guard_of",
    "note_failures",
    "note_learned_step",
    "warn_of_adam",
    "warn_of_new_start",
]

_AT_ONCE = 2**16  # coordinates, of which Adam writes down numbers that are not kept


def guard_of(problem: Problem) -> Guard:
    """The guard of a group, whose state is made with the first call."""
    card, record = problem.models.of(problem.group).card, problem.record
    price = problem.group["price"]
    state = record.setdefault("guard", {})
    return Guard(state, record["step"], card.horizon, card.price if price is None else price)


def follows(problem: Problem, loss: Tensor | None, *, is_in_doubt: bool = False) -> bool:
    """Whether the learned rule is to move the group at this step; if not, Adam has.

    Args:
        problem: The group.
        loss: That the step came with.
        is_in_doubt: Whether it may be that of another start, of which the guard knows nothing.
    """
    guard, group, record = guard_of(problem), problem.group, problem.record
    sign = -1 if group["maximize"] else 1
    action = guard.observe(None if loss is None or is_in_doubt else sign * float(loss))
    _obey(problem, action)
    if not guard.has_taken_over:
        return True
    if not action.go_back:  # the gradient is that of other parameters
        for own in by_place(problem.params):
            for params in gathered(own, _AT_ONCE):
                _move_by_adam(problem, params, guard)
        stops = guard.note_adam_step(has_loss=loss is not None and not is_in_doubt)
        if "stop" in record:
            record["stop"] = record["stop"] | stops
    record["step"] += 1
    record["judged"] += loss is not None
    return False


def note_failures(problems: Iterable[Problem], values: Iterable[Sequence[Tensor]]) -> None:
    """Note a step that is given up; those problems failed of whose `values` one is not finite."""
    for problem, own in zip(problems, values, strict=True):
        if not are_finite(list(own)):
            _obey(problem, guard_of(problem).fail())


def note_learned_step(problem: Problem, products: Tensor) -> None:
    """Note that the learned update was applied, by the step's `sum_products`, [1, 5, 5]."""
    lr, dim = float(problem.group["lr"]), num_coordinates(problem.params)
    size = float(products[0, 1, 1]) / dim / lr**2 if lr else None
    guard_of(problem).note_learned_step(size)


def warn_of_adam(group: Group, why: str) -> None:
    """Say that Adam takes over, and why, in words."""
    warn(
        f"Adam takes over from the weights {group['weights']!r} {why}, with a learning rate that "
        "falls from now on; to follow the weights all the same give guard=False",
        FitWarning,
    )


def warn_of_new_start(group: Group, step: int) -> None:
    """Say that a group begins anew, as it was changed by others."""
    warn(
        f"parameters were changed by others shortly before step {step}, and the loss is none that "
        f"steps have led to: the weights {group['weights']!r} begin anew from there; build another "
        "optimizer for another run",
        FitWarning,
    )


def _obey(problem: Problem, action: Action) -> None:
    # All of the group's, for some may have no gradient at this step but had one before.
    for param in problem.group["params"]:
        kept = problem.states[param].get("guard.params") if param in problem.states else None
        if kept is not None and action.remember:
            kept.copy_(param)
        elif kept is not None and action.go_back:
            param.copy_(kept)
    if action.takes_over:
        warn_of_adam(problem.group, action.takes_over)


def _move_by_adam(problem: Problem, params: list[Tensor], guard: Guard) -> None:
    """Move tensors on one device that are moved in one dtype."""
    group, dtype = problem.group, working_dtype(params[0])
    rate = float(group["lr"]) * guard.rate
    grads = [
        param.grad.detach().reshape(-1).to(dtype) for param in params if param.grad is not None
    ]
    grads = [-grad for grad in grads] if group["maximize"] else grads
    states = [problem.states[param] for param in params]
    updates = adam_(states, grads, guard.num_adam_steps, rate)
    if group["weight_decay"]:
        values = [param.detach().reshape(-1).to(dtype) for param in params]
        torch._foreach_add_(updates, values, alpha=-rate * group["weight_decay"])
    moves = [update.view(param.shape) for update, param in zip(updates, params, strict=True)]
    torch._foreach_add_(params, moves)
