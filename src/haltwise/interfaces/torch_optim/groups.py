"""Parameter groups of `torch.optim`, and the weights that move each."""

import copy
from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from haltwise._core.errors import FitWarning, InputError, require, warn
from haltwise._core.settings import real_number, require_flags
from haltwise._core.tensors import is_plain
from haltwise.halting.session import HaltingSession
from haltwise.interfaces.run import price_of_each
from haltwise.interfaces.torch_optim.chunks import leaves, working_dtype
from haltwise.interfaces.torch_optim.guard import FAILURES
from haltwise.models.files import fingerprint
from haltwise.models.loading import load
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.stop_rules import CostUnit
from haltwise.update_rules.capabilities import supporting_chunks

__all__ = [
    "NUMBERS",
    "Group",
    "GroupModels",
    "Record",
    "Weights",
    "check_parameter",
    "check_present_settings",
    "check_settings",
    "head_of",
    "name_of",
    "nonfinite_gradient",
    "num_coordinates",
    "warn_of_rate",
]

_LEAST_RATE = 0.05  # below it, an lr that is given at the start is likely one of Adam's
NUMBERS = ("lr", "weight_decay", "price")
"""Settings of a group that are numbers."""
_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

Weights = str | Path | OptimizerModel
Group = dict[str, Any]
Record = dict[str, Any]
"""What is remembered of a group."""


@final
class GroupModels:
    """The weights of all groups, once for each digest, and cast to where they are used.

    A group names its weights by their `digest`, so that its state says what it is of.
    """

    def __init__(self) -> None:
        self._models: dict[str, OptimizerModel] = {}
        self._casts: dict[object, OptimizerModel] = {}
        self._told: set[str] = set()  # what was warned of: digests, for a level, and else words

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_casts": {}}  # made when needed

    def add(self, group: Group) -> None:
        """Load the `weights` of a group and note their name and `digest` in it."""
        weights = group["weights"]
        require(
            isinstance(weights, Weights),
            f"weights must be a name, a path or an OptimizerModel, got {weights!r:.100}; a "
            "learned optimizer needs no learning rate: lr, given by its name, multiplies its "
            "updates and is 1 if left out",
        )
        if isinstance(weights, OptimizerModel):  # copied: meta-training may go on
            model, group["weights"] = copy.deepcopy(weights), "OptimizerModel"
        else:
            model, group["weights"] = load(weights), str(weights)
        group["digest"] = fingerprint(model)
        self._models.setdefault(group["digest"], model.eval().requires_grad_(False))

    def of(self, group: Group) -> OptimizerModel:
        """The group's weights as they were loaded."""
        return self._models[group["digest"]]

    def cast(self, group: Group, like: Tensor) -> OptimizerModel:
        """The group's weights where `like` is, in its working dtype."""
        dtype = working_dtype(like)
        key = group["digest"], like.device, dtype
        if key not in self._casts:
            self._casts[key] = copy.deepcopy(self.of(group)).to(like.device, dtype)
        return self._casts[key]

    def leaf_of_each(self, group: Group) -> list[int]:
        """Which of the rule's leaves moves each of the group's parameters."""
        if not group["params"]:
            return []
        rule, name = self.of(group).rule, group["weights"]
        dim = num_coordinates(group["params"])
        try:
            ends = list(accumulate(size for _, size in leaves(rule, dim)))
        except InputError as error:
            raise InputError(
                f"the weights {name!r} do not fit this parameter group: {error}; give them the "
                "parameters they were meta-trained for, without frozen ones"
            ) from None
        found, end = [], 0
        for number, param in enumerate(group["params"]):
            begin, end = end, end + param.numel()
            leaf = bisect_left(ends, end)
            border = ends[leaf - 1] if leaf else 0
            require(
                begin >= border,
                f"the weights {name!r} have another rule from coordinate {border} on, which lies "
                f"within {name_of(group, number)}; order the parameters as in meta-training",
            )
            found.append(leaf)
        return found

    def check(self, group: Group) -> None:
        """Refuse settings and parameters that the group's weights cannot move."""
        check_settings(group)
        first = {param: number for number, param in reversed([*enumerate(group["params"])])}
        for number, param in enumerate(group["params"]):
            require(
                first[param] == number,
                f"{name_of(group, number)} is in this parameter group twice, as where modules "
                "share it, and would be moved twice in a step; give it once",
            )
            check_parameter(group, number)
        if group["price"] is not None:
            halting = self.of(group).halting
            # A group may be empty, as where no parameter is to decay.
            dtype = working_dtype(head_of(group)) if group["params"] else torch.float32
            price = price_of_each(group["price"], 1, torch.zeros((), dtype=dtype, device="cpu"))
            halting.warn_of_prices(price)
            group["price"] = price.item()
        self.leaf_of_each(group)
        for rule, _ in leaves(self.of(group).rule, num_coordinates(group["params"])):
            supporting_chunks(rule)

    def warn_of_level(self, group: Group) -> None:
        """Say, once for the weights, that a loss is below all that they know."""
        if group["digest"] in self._told:
            return
        self._told.add(group["digest"])
        loss = "the negative of the loss" if group["maximize"] else "the loss"
        warn(
            f"{loss} is below 0, where the weights {group['weights']!r} have seen none: how much "
            "is left to gain is not known, and they do not ask to stop before their horizon; shift "
            "the loss by a constant so that this stays above 0, or end the loop yourself",
            FitWarning,
        )

    def warn_of_no_step(self, group: Group, record: Record) -> None:
        """Say, once, that all steps of a group are skipped, and so that it never moves."""
        if record["step"] > 0 or record["skipped"] < FAILURES or "no step" in self._told:
            return
        self._told.add("no step")
        culprit = nonfinite_gradient(group)
        where = "" if culprit is None else f" (as the gradient of {culprit})"
        warn(
            f"the first {record['skipped']} steps were skipped, as the loss, a gradient or an "
            f"update is not finite{where}, and nothing has moved; mend what computes it, or end at "
            "the first such step by nonfinite='raise'",
            FitWarning,
        )

    def can_judge(self, group: Group) -> bool:
        """Whether the weights have learned when to stop."""
        return CostUnit.GRADIENTS in self.of(group).card.policies

    def new_session(self, group: Group, like: Tensor) -> HaltingSession:
        """The online loop that judges the group, at its step 0, where `like` is."""
        halting = self.cast(group, like).halting
        price = halting.card.price if group["price"] is None else group["price"]
        prices = torch.full((1,), price, dtype=working_dtype(like), device=like.device)
        return HaltingSession(halting.policy(CostUnit.GRADIENTS), prices, halting)


def head_of(group: Group) -> Tensor:
    """The parameter whose device and precision the group's halter takes."""
    params: list[Tensor] = group["params"]
    return next((param for param in params if param.dtype == torch.float64), params[0])


def name_of(group: Group, number: int) -> str:
    """A parameter in words."""
    param, names = group["params"][number], group.get("param_names")
    if names:
        return f"parameter {names[number]!r}"
    return f"parameter {number}" + ("" if is_lazy(param) else f" of shape {list(param.shape)}")


def nonfinite_gradient(group: Group) -> str | None:
    """The first parameter, in words, whose gradient is not finite, if there is one."""
    for number, param in enumerate(group["params"]):
        if param.grad is not None and not param.grad.isfinite().all():
            return name_of(group, number)
    return None


def check_parameter(group: Group, number: int) -> None:
    """Refuse a parameter that no weights can move."""
    param = group["params"][number]
    require(
        is_plain(param),
        f"{name_of(group, number)} is a {type(param).__name__} on {param.device}, which is "
        "not whole and in memory; sharded (FSDP, DTensor), lazy and meta parameters are "
        "not supported: replicate the module (DistributedDataParallel) or initialize it",
    )
    require(
        param.dtype in _DTYPES and param.layout == torch.strided,
        f"{name_of(group, number)} is a {param.layout} tensor of {param.dtype}; only dense "
        "tensors of real floating-point numbers can be optimized (leave out those that are frozen, "
        "as by requires_grad, and view complex ones by torch.view_as_real)",
    )
    require(
        not any(
            stride == 0 and size > 1
            for stride, size in zip(param.stride(), param.shape, strict=True)
        ),
        f"{name_of(group, number)} has entries that share one place in memory, as expand() leaves "
        "them; clone it",
    )
    require(
        not param.is_inference(),
        f"{name_of(group, number)} was made in inference mode, so it has no gradients and "
        "cannot be changed; make it outside of torch.inference_mode()",
    )


def check_settings(group: Group) -> None:
    """Refuse settings that no group can have."""
    _check_settings(group, "{name} must be {bound} and finite, got {value}")


def check_present_settings(group: Group, *, waits: bool) -> None:
    """Refuse what schedulers and others have made of a group's settings.

    Args:
        group: Its settings.
        waits: Whether to look at a tensor on another device, for which one must wait.
    """
    _check_settings(
        group,
        "{name} has become {value}, but must be {bound} and finite; mend what sets it",
        waits=waits,
    )


def _check_settings(group: Group, refusal: str, *, waits: bool = True) -> None:
    require_flags(maximize=group["maximize"])
    for name in NUMBERS:
        given = group[name]
        if name == "price" and given is None:
            continue
        if isinstance(given, Tensor) and not (waits or given.is_cpu):
            continue
        value = real_number(name, given)
        fits = value > 0 if name == "price" else value >= 0
        bound = "above 0" if name == "price" else "at least 0"
        finite = abs(value) <= torch.finfo(torch.float32).max
        require(fits and finite, refusal.format(name=name, value=value, bound=bound))


def warn_of_rate(group: Group) -> None:
    """Warn of an `lr` that is another optimizer's."""
    rate = float(group["lr"])
    if 0 < rate < _LEAST_RATE:
        warn(
            f"lr = {rate:g} multiplies steps that were meta-trained for lr = 1, so they are "
            f"{round(1 / rate):,} times too short; leave lr out, a scheduler may lower it later",
            FitWarning,
        )


def num_coordinates(params: Iterable[Tensor]) -> int:
    """The entries of all tensors together."""
    return sum(param.numel() for param in params)
