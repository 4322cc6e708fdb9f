"""The parameters of a loop that is not ours, as a monitor sees them move."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from haltwise._core.errors import require
from haltwise._core.tensors import copied_array, is_plain, require_like, widest
from haltwise.processes.signals import sum_products

__all__ = ["Memory", "Model", "WatchedParameters"]

_CHUNK = 2**18  # coordinates measured at once; their products take 10 MB in float64

Array = Tensor | npt.NDArray[Any]
Model = nn.Module | Array | Iterable[Array] | Mapping[Any, Array]
Memory = dict[int, dict[str, Tensor]]
"""By the place of a parameter among all: where it was, its last gradient and last update, [N]."""


@final
class WatchedParameters:
    """What is remembered of a model's parameters, three numbers of each, in their precision.

    A parameter that is frozen is forgotten; one that is unfrozen begins at zero.

    Args:
        memory: To go on from; None before the first look, which then counts as no update.
    """

    def __init__(self, memory: Memory | None = None) -> None:
        self.memory = memory

    @classmethod
    def of(cls, model: Model) -> "WatchedParameters":
        """Begin at the parameters as they are."""
        return cls({key: _first(param) for key, param in parameters_of(model).items()})

    @property
    def dim(self) -> int:
        """D, coordinates seen at the last look; 1 if there was none."""
        return sum(len(seen["params"]) for seen in (self.memory or {}).values()) or 1

    def look(self, model: Model, *, with_gradients: bool) -> Tensor:
        """See parameters after an update, and their gradients before it if these are to be seen.

        Returns:
            The products of `haltwise.processes.signals`, float64 [1, 5, 5] on the CPU.

        Raises:
            InputError: A parameter is none that can be seen, or has another size than at the last
                look, or no parameter has a gradient.
        """
        params, memory = parameters_of(model), self.memory or {}
        for key, param in params.items():
            kept = memory[key]["params"] if key in memory else param.detach().reshape(-1)
            require(
                len(kept) == param.numel(),
                f"parameter {key} of the model has {param.numel()} entries, but had {len(kept)} at "
                "the last call; give start() and every update() the same model, with its frozen "
                "parameters",
            )
        # A state may have been loaded elsewhere, and the model moved since.
        self.memory = {
            key: {name: value.to(param.device) for name, value in memory[key].items()}
            if key in memory
            else _first(param)
            for key, param in params.items()
        }
        require(
            not with_gradients or has_gradients(params),
            "no parameter has a gradient, but gradients were seen before; call update() after the "
            "optimizer's step and before the gradients are cleared",
        )
        total = torch.zeros(1, 5, 5, dtype=torch.float64)
        for key, param in params.items():
            total += _measure(param, self.memory[key], with_gradient=with_gradients).cpu()
        return total

    def take_back(self, model: Model) -> bool:
        """Undo the last update of the parameters that are seen, if they are still where it led."""
        params, memory = parameters_of(model), self.memory or {}
        is_there = params.keys() <= memory.keys() and all(
            torch.equal(param.detach().reshape(-1), memory[key]["params"])
            for key, param in params.items()
        )
        for key, param in params.items() if is_there else ():
            param.detach().sub_(memory[key]["update"].view(param.shape))
        return is_there

    @staticmethod
    def check(memory: Memory, message: str) -> None:
        """Refuse a memory that none can have, with a message."""
        for seen in memory.values():
            like = seen["params"]
            require(like.ndim == 1, message)  # of a run that diverged it is not finite
            require_like(seen, dict.fromkeys(("params", "grad", "update"), like))


def has_gradients(params: dict[int, Tensor]) -> bool:
    """Whether any parameter has one."""
    return any(param.grad is not None for param in params.values())


def parameters_of(model: Model) -> dict[int, Tensor]:
    """The parameters that are not frozen, by their place among all.

    Raises:
        InputError: There are none, or one of them is no dense, real tensor that is in memory.
    """
    found: Any = model
    if isinstance(model, nn.Module):
        found = list(model.parameters())
    elif isinstance(model, Mapping):
        found = model.values()
    require(
        isinstance(found, Iterable),
        f"the model must be a module, tensors or NumPy arrays, got {type(found).__name__}",
    )
    params: dict[int, Tensor] = {}
    members = [found] if isinstance(found, Tensor | np.ndarray) else list(found)
    require(
        bool(members) or not isinstance(found, Iterator),
        "the model is an iterator that is used up; give every call a list, or the module itself",
    )
    for key, param in enumerate(members):
        if isinstance(param, np.ndarray):  # nothing is frozen there
            params[key] = copied_array(param, "a parameter")
            continue
        require(
            isinstance(param, Tensor),
            "the model must be a module, tensors or NumPy arrays, but there is a "
            f"{type(param).__name__}; give update() those that the loop changes",
        )
        require(
            is_plain(param),
            f"a parameter is a {type(param).__name__} on {param.device}, which is not whole and in "
            "memory; the monitor does not see sharded (FSDP, DTensor), lazy and meta parameters",
        )
        if param.requires_grad:
            params[key] = param
    params = {key: param for key, param in params.items() if param.numel()}
    require(
        len(params) > 0,
        "the model has no parameter that is not frozen; give the monitor others, as NumPy arrays "
        "where they require no gradient",
    )
    for param in params.values():
        require(
            param.layout == torch.strided and param.is_floating_point(),
            f"a parameter of shape {list(param.shape)} is a {param.layout} tensor of "
            f"{param.dtype}; the monitor sees dense, real ones: give it a list without this one",
        )
    return params


def _first(param: Tensor) -> dict[str, Tensor]:
    """The memory of a parameter before the first round."""
    flat = param.detach().reshape(-1)
    zeros = {name: torch.zeros_like(flat) for name in ("grad", "update")}
    return {"params": flat.clone(), **zeros}


def _measure(param: Tensor, memory: dict[str, Tensor], *, with_gradient: bool) -> Tensor:
    """The products of one tensor, float64 [1, 5, 5]; its memory is advanced."""
    grad = param.grad if with_gradient else None
    if grad is not None and grad.layout != torch.strided:
        grad = grad.to_dense()
    values = param.detach().reshape(-1)
    wide = widest(values.device)
    products = torch.zeros(1, 5, 5, dtype=wide, device=values.device)
    for begin in range(0, len(values), _CHUNK):
        span = slice(begin, begin + _CHUNK)
        old = {name: value[span].to(wide).unsqueeze(0) for name, value in memory.items()}
        now = values[span].to(wide).unsqueeze(0)
        new = torch.zeros_like(now) if grad is None else grad.reshape(1, -1)[:, span].to(wide)
        update = (now - old["params"]).masked_fill_(now == old["params"], 0)  # and of infinities
        products += sum_products(new, update, old)
        for name, value in (("params", now), ("grad", new), ("update", update)):
            memory[name][span].copy_(value.squeeze(0))
    return products
