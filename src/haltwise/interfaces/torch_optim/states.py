"""Saved states of a learned optimizer: whether they fit, and how they are taken up again.

PyTorch casts the states that it loads to the dtype of their parameters, which would not be exact.
So all entries are checked before it does, and copied once more after.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from haltwise._core.errors import refusing_others, require
from haltwise._core.tensors import is_plain
from haltwise.interfaces.torch_optim.chunks import init_state, leaves
from haltwise.interfaces.torch_optim.groups import (
    NUMBERS,
    Group,
    GroupModels,
    Record,
    check_settings,
    head_of,
    name_of,
    num_coordinates,
)
from haltwise.interfaces.torch_optim.guard import Guard, init_tensors
from haltwise.processes.observation import StepObservation
from haltwise.processes.signals import SIGNALS

__all__ = ["FRESH", "check", "restore"]

FRESH: Mapping[str, int] = {"step": 0, "skipped": 0, "judged": 0}
"""What is remembered of a group before its first step."""
_JUDGED = ("session", "outputs", "stop")

State = dict[str, Any]


def check(
    given: State,
    optimizer: torch.optim.Optimizer,
    models: GroupModels,
    state_dtype: torch.dtype | None,
) -> None:
    """Raise unless `given` fits weights and parameters; PyTorch checks how many there are.

    Args:
        given: From `state_dict`.
        optimizer: That is to go on with it.
        models: Its weights.
        state_dtype: In which it keeps the states of rules.

    Raises:
        InputError: It does not fit.
    """
    foreign = (
        "this state is not that of a learned optimizer; load one that "
        "haltwise.LearnedOptimizer.state_dict() gave"
    )
    with refusing_others(foreign):
        _check_groups(given, optimizer, models, state_dtype, foreign)


def _check_groups(
    given: State,
    optimizer: torch.optim.Optimizer,
    models: GroupModels,
    state_dtype: torch.dtype | None,
    foreign: str,
) -> None:
    require(isinstance(given["state"], dict), foreign)
    _check_order(optimizer.param_groups, given["param_groups"])
    for own, other in zip(optimizer.param_groups, given["param_groups"], strict=False):
        require("digest" in other and isinstance(other["weights"], str), foreign)
        require(
            own["digest"] == other["digest"],
            f"the state was taken with the weights {other['weights']!r} of digest "
            f"{other['digest'][:12]}, but this optimizer has {own['weights']!r} of digest "
            f"{own['digest'][:12]}; build it with the same weights",
        )
        require(
            not (missing := {"maximize", *NUMBERS} - other.keys()),
            f"a parameter group of the state lacks {missing}; load one that state_dict() gave",
        )
        check_settings(other)
        if len(own["params"]) == len(other["params"]):
            states = [given["state"].get(key, {}) for key in other["params"]]
            together = {**own, **other, "params": own["params"]}
            _check_group(models, own, together, states, state_dtype)


def _check_order(groups: list[Group], given: list[Group]) -> None:
    """Refuse a state of the same names in another order, in which its entries would be mixed up.

    Other names are those of a module that is wrapped, for instance, and go by their places.
    """
    names, others = (
        [name for group in each for name in group.get("param_names", ())]
        for each in (groups, given)
    )
    if sorted(names) != sorted(others):
        return
    for name, other in zip(names, others, strict=True):
        require(
            name == other,
            f"the state was taken of the same parameters in another order, of {other!r} in the "
            f"place of {name!r}; give them in the order that they had then",
        )


def _check_group(
    models: GroupModels,
    group: Group,
    other: Group,
    states: list[State],
    state_dtype: torch.dtype | None,
) -> None:
    """Raise unless all entries are those of a fresh state, with possible values."""
    params = group["params"]
    if not any(states):
        return
    name = f"the group of {name_of(group, 0)}"
    held: Any = states[0].get("group")
    require(
        isinstance(held, tuple) and len(held) == 1 and isinstance(held[0], dict),
        f"the state lacks the steps of {name}; load one that state_dict() gave",
    )
    _check_record(models, name, held[0], other)
    rules = leaves(models.of(group).rule, num_coordinates(params))
    for number, leaf in enumerate(models.leaf_of_each(group)):
        param = params[number]
        state = {name: value for name, value in states[number].items() if name != "group"}
        if not state:
            continue
        fresh = init_state(rules[leaf][0], param.detach().to("meta"), state_dtype)
        if "guard" in held[0]:
            fresh |= init_tensors(param.detach().to("meta"), fresh["signals.grad"][0])
        _check_entries(name_of(group, number), state, fresh)


def _check_record(models: GroupModels, name: str, record: Record, group: Group) -> None:
    counts = {key: record.get(key) for key in FRESH}
    require(
        all(type(count) is int and count >= 0 for count in counts.values())
        and record["judged"] <= record["step"]
        and record.keys() <= {*FRESH, *_JUDGED, "guard"},
        f"the state of {name} is impossible: {counts} and {sorted(record.keys() - counts)}",
    )
    if "guard" in record:
        Guard.check(record["guard"], record["step"])
    judged = models.can_judge(group) and record["judged"] == record["step"] > 0
    if not judged and not record.keys() & set(_JUDGED):
        return
    require(
        set(_JUDGED) <= record.keys() and models.can_judge(group),
        f"the state of {name} lacks {sorted(set(_JUDGED) - record.keys())}, on which its stop "
        "depends; load one that state_dict() gave",
    )
    session = models.new_session(group, head_of(group))
    zeros = torch.zeros_like(session.price)
    rule = models.of(group).rule
    signals, readout = (zeros.new_zeros(1, n) for n in (len(SIGNALS), rule.readout_size))
    decision = session.observe(StepObservation(0, zeros, zeros, signals, readout))
    _check_entries(name, record["session"], session.state())
    _check_entries(name, {"stop": record["stop"]}, {"stop": decision.stop})
    outputs, length = record["outputs"], 0
    if isinstance(outputs, dict) and all(isinstance(one, Tensor) for one in outputs.values()):
        length = min((one.shape[1] for one in outputs.values() if one.ndim > 1), default=0)
    require(
        0 < length <= record["judged"] or outputs == {},  # of weights without halting
        f"the state of {name} has outputs of {length} steps, of {record['judged']} judged",
    )
    fresh = {
        key: one.unsqueeze(1).expand(-1, length, *one.shape[1:])
        for key, one in decision.observation.outputs.items()
    }
    _check_entries(name, outputs, fresh)


def _check_entries(name: str, state: object, fresh: dict[str, Tensor]) -> None:
    """Refuse a state whose entries differ in name, kind, shape or dtype from a fresh one's."""
    names = state.keys() if isinstance(state, dict) else ()
    require(
        isinstance(state, dict) and names == fresh.keys(),
        f"the state of {name} must have the entries {sorted(fresh)}, got {sorted(names)}; build "
        "the optimizer as it was built when the state was taken",
    )
    assert isinstance(state, dict)
    for key, like in fresh.items():
        value = state[key]
        require(
            isinstance(value, Tensor)
            and is_plain(value)
            and (value.shape, value.dtype, value.layout) == (like.shape, like.dtype, like.layout),
            f"the entry {key!r} of the state of {name} must be a {like.dtype} tensor of shape "
            f"{list(like.shape)}, got "
            + (f"{value.dtype}, {list(value.shape)}" if isinstance(value, Tensor) else repr(value))
            + "; build the optimizer for the same model in the same precision",
        )
        # A rule of one's own may hold infinities, and so may parameters.
        may_be_infinite = key.startswith("rule.") or key == "guard.params"
        bad = value.isnan() if may_be_infinite else ~value.isfinite()
        require(not bad.any(), f"the entry {key!r} of the state of {name} is not finite")


def restore(given: State, optimizer: torch.optim.Optimizer) -> None:
    """Give the optimizer exact copies of all entries of `given`, where its parameters are."""
    for group, other in zip(optimizer.param_groups, given["param_groups"], strict=True):
        for param, key in zip(group["params"], other["params"], strict=True):
            if key not in given["state"]:
                continue
            state = dict(given["state"][key])
            record = state.pop("group", None)
            optimizer.state[param] = _copy_to(param.device, state)
            if record is not None:
                optimizer.state[param]["group"] = (_copy_to(head_of(group).device, record[0]),)


def _copy_to(device: torch.device, value: Any) -> Any:
    """A deep copy of a tensor or a dictionary on a device."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return {name: _copy_to(device, entry) for name, entry in value.items()}
    return value
