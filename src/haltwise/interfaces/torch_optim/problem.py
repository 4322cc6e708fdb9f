"""A parameter group at a step: what is known of it, and one step of its learned rule."""

from collections.abc import MutableMapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from haltwise._core.errors import InputError
from haltwise._core.tensors import widest
from haltwise._kernels import available
from haltwise.interfaces.torch_optim.chunks import (
    Row,
    UpdateStatistics,
    by_place,
    init_state,
    leaves,
    move,
    pool,
    rows,
    working_dtype,
)
from haltwise.interfaces.torch_optim.groups import (
    Group,
    GroupModels,
    Record,
    check_parameter,
    check_present_settings,
    name_of,
    num_coordinates,
)
from haltwise.interfaces.torch_optim.guard import init_tensors
from haltwise.interfaces.torch_optim.states import FRESH
from haltwise.update_rules import PooledGradient

__all__ = ["Problem", "are_finite", "decay_of", "survey"]

_PLAIN_CHUNK, _CHUNK, _ACCELERATOR_CHUNK = 2**14, 2**16, 2**20

States = MutableMapping[Tensor, dict[str, Any]]
"""What is remembered of each tensor, as `torch.optim.Optimizer.state`."""


class Problem(NamedTuple):
    """A group at a step.

    Attributes:
        group: Its settings.
        record: What is remembered of it on the host.
        by_leaf: Its tensors with a gradient, by the leaf of the group's rule that moves them.
        states: See `States`.
        models: Its weights are among them.
        decay: The share of a parameter that the step takes off, whatever its gradient.
    """

    group: Group
    record: Record
    by_leaf: dict[int, list[Tensor]]
    states: States
    models: GroupModels
    decay: float

    @property
    def params(self) -> list[Tensor]:
        """Its tensors with a gradient."""
        return [param for params in self.by_leaf.values() for param in params]

    @property
    def is_dummy(self) -> bool:
        """Whether this is the group's first step and nothing is to be seen or moved in it.

        Tools take such a step to have the states made, as torch.distributed.checkpoint does.
        """
        shows = any(each.grad is not None and bool(each.grad.any()) for each in self.params)
        return self.record["step"] == 0 and self.decay == 0 and not shows

    def sums(self) -> list[Tensor]:
        """The sum of each gradient, in the widest dtype: not finite where an entry is not."""
        grads = [param.grad for param in self.params if param.grad is not None]
        return [grad.sum(dtype=widest(grad.device)) for grad in grads]

    def rows(self, chunk_size: int | None) -> dict[int, list[Row]]:
        """Its tensors in rows to pool and move at once, by leaf."""
        dim = num_coordinates(self.group["params"])
        found: dict[int, list[Row]] = {}
        for leaf, params in self.by_leaf.items():
            for own in by_place(params):
                model = self.models.cast(self.group, own[0])
                rule, chunk = leaves(model.rule, dim)[leaf][0], _chunk_of(own[0], chunk_size)
                found.setdefault(leaf, []).extend(rows(rule, own, self.states, chunk))
        return found

    def pool(self, rows: dict[int, list[Row]]) -> dict[int, PooledGradient]:
        """What is pooled of the gradient, by leaf."""
        maximize = self.group["maximize"]
        return {leaf: pool(own, maximize=maximize) for leaf, own in rows.items()}

    def move(
        self, rows: dict[int, list[Row]], pooled: dict[int, PooledGradient]
    ) -> UpdateStatistics:
        """Advance the states; every displacement is left in its `signals.update`."""
        group, rule = self.group, self.models.of(self.group).rule
        device = self.params[0].device
        # Leaves without a gradient show zeros.
        readouts = [
            torch.zeros(1, own.readout_size, device=device)
            for own, _ in leaves(rule, num_coordinates(group["params"]))
        ]
        products = torch.zeros((), device=device)
        lr, weight_decay, maximize = float(group["lr"]), group["weight_decay"], group["maximize"]
        for leaf, some in rows.items():
            total = torch.zeros((), device=device)
            for row in some:
                moved = move(row, pooled[leaf], lr=lr, weight_decay=weight_decay, maximize=maximize)
                total = total + moved.readout.to(device)
                products = products + moved.products.to(device)
            readouts[leaf] = total / num_coordinates(self.by_leaf[leaf])
        return UpdateStatistics(torch.cat(readouts, 1), products)

    def apply(self, *, finite: bool) -> None:
        """Add the displacements to the parameters, or forget them where one is not finite."""
        for param in self.params:
            update, touched = self._last(param)
            if finite:
                # The halter was trained on updates of all coordinates and is shown them.
                param.add_(torch.where(touched, update, -self.decay * param if self.decay else 0.0))
            else:
                update.zero_()

    def take_back(self) -> None:
        """Undo what `apply` has done."""
        # Of what never had a gradient 1 - decay times is left; where that is nothing, it stays so.
        growth = self.decay / (1 - self.decay) if self.decay != 1 else 0.0
        for param in self.params:
            update, touched = self._last(param)
            param.sub_(torch.where(touched, update, -growth * param if growth else 0.0))

    def _last(self, param: Tensor) -> tuple[Tensor, Tensor]:
        """The last displacement, and which coordinates have ever had a gradient to follow it."""
        state = self.states[param]
        update, touched = (state[name].view(param.shape) for name in ("signals.update", "touched"))
        return update, touched


def survey(
    group: Group,
    states: States,
    models: GroupModels,
    *,
    state_dtype: torch.dtype | None,
    guarded: bool,
) -> Problem | None:
    """The group at this step, with states made where there are none yet; None without a gradient.

    Args:
        group: Its settings and parameters.
        states: See `States`; new ones are added.
        models: The weights of all groups.
        state_dtype: In which the rule's states are kept, if not as the parameters say.
        guarded: Whether Adam may take over, which needs states, too.

    Raises:
        InputError: A setting has become impossible, a gradient is sparse or of another shape than
            its parameter, or a parameter no longer is what its state is of.
    """
    check_present_settings(group, waits=True)
    params: list[Tensor] = group["params"]
    by_leaf: dict[int, list[Tensor]] = {}
    for number, (param, leaf) in enumerate(zip(params, models.leaf_of_each(group), strict=True)):
        _check_unchanged(group, number, states)
        if param.grad is None or param.numel() == 0:
            continue
        if param not in states:  # it may have come to the group since
            check_parameter(group, number)
        _check_gradient(group, number)
        by_leaf.setdefault(leaf, []).append(param)
    if not by_leaf:
        return None
    for leaf, own in by_leaf.items():
        for param in own:
            if "signals.grad" not in states[param]:
                rule, _ = leaves(models.cast(group, param).rule, num_coordinates(params))[leaf]
                states[param] |= init_state(rule, param, state_dtype)
    for param in params:
        state = states.get(param, {})
        if "guard.params" in state:  # follows the parameter's dtype, which kernels take it to have
            state["guard.params"] = state["guard.params"].to(param.dtype)
        elif guarded and "signals.grad" in state:
            state |= init_tensors(param, state["signals.grad"][0])
    # A tuple, which the tools of torch.distributed.checkpoint leave as it is.
    record = states[params[0]].setdefault("group", ({**FRESH},))[0]
    return Problem(group, record, by_leaf, states, models, decay_of(group))


def decay_of(group: Group) -> float:
    """The share of a parameter that a step takes off, by the settings as they are."""
    return float(group["lr"]) * group["weight_decay"] if group["weight_decay"] else 0.0


def are_finite(values: list[Tensor]) -> bool:
    """Whether all values are, of any device, in one transfer."""
    flat = [value.to(values[0].device).reshape(-1) for value in values]
    return not flat or bool(torch.cat(flat).isfinite().all())


def _check_unchanged(group: Group, number: int, states: States) -> None:
    """Refuse a parameter that no longer is what its state is of."""
    param: Tensor = group["params"][number]
    state = states.get(param, {})
    kept = state.get("signals.grad")
    if kept is None:
        return
    now = param.numel(), param.device, working_dtype(param)
    is_same = now == (kept.numel(), kept.device, kept.dtype)
    if is_same and param.shape == state.get("guard.params", param).shape:
        return  # at every step of every tensor: words take longer than looking
    raise InputError(
        f"{name_of(group, number)} has {now[0]} entries on {now[1]} to be moved in {now[2]}, "
        f"but its state is of {kept.numel()} on {kept.device} in {kept.dtype}; resize, reshape "
        "and move parameters before the optimizer is built"
    )


def _check_gradient(group: Group, number: int) -> None:
    """Refuse a gradient that cannot be followed."""
    param: Tensor = group["params"][number]
    grad = param.grad
    assert grad is not None
    if grad.layout != torch.strided:
        raise InputError(
            f"the gradient of {name_of(group, number)} is sparse ({grad.layout}), which learned "
            "optimizers do not support; make it dense, as by sparse=False of an embedding"
        )
    if grad.shape != param.shape or grad.device != param.device:
        raise InputError(
            f"the gradient of {name_of(group, number)} is of shape {list(grad.shape)} on "
            f"{grad.device}; compute it anew after a change of the parameter"
        )


def _chunk_of(param: Tensor, asked: int | None) -> int:
    """Coordinates of a tensor that are moved at once: a CPU's caches fit fewer.

    PyTorch's operations write down more of each than the compiled kernel does.
    """
    if asked or not param.is_cpu:
        return asked or _ACCELERATOR_CHUNK
    return _CHUNK if available() else _PLAIN_CHUNK
