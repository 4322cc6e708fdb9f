"""Errors inside a user's loss, in a sentence that names their likely cause and the way out."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from haltwise._core.errors import refusing_others, require
from haltwise.tasks.base import Observation

__all__ = ["likely_cause", "require_apart", "require_selectable"]

_KEYWORD = re.compile(r"unexpected keyword argument '(\w+)'")
_DTYPE = re.compile(r"dtype|scalar type|not implemented for '|result type", re.IGNORECASE)
_DEVICE = re.compile(r"same device|on different devices", re.IGNORECASE)
_CAUSES = (
    (
        re.compile(r"leaf Variable that requires grad .* in-place", re.IGNORECASE),
        "it changes the parameters in place; compute a new tensor, as by params - 3 in the place "
        "of params -= 3",
    ),
    (
        re.compile(r"numpy\(\)|numpy\.ndarray|ufunc|__array", re.IGNORECASE),
        "it must compute by PyTorch alone, with tensors: torch.exp in the place of numpy.exp, and "
        "torch.as_tensor(array) of arrays that it brings itself",
    ),
    (
        re.compile(r"used as indices|index tensor", re.IGNORECASE),
        "what is an index must be whole numbers, and those of a table are not: convert it inside "
        "the function, by .long()",
    ),
)


def likely_cause(
    error: Exception,
    functions: Mapping[str, Callable[..., Any]],
    params: Any,
    data: Mapping[str, Any],
) -> str | None:
    """Say why a function of parameters and data may fail, and what to do.

    Args:
        error: What it raised.
        functions: The functions by what they are called, for instance "loss".
        params: The parameters that it was called with, a tensor or tensors by name.
        data: The keyword arguments that it was called with.

    Returns:
        Some clauses for the end of a sentence; None if the error tells nothing of its cause.

    Examples:
        >>> def loss(params, x):
        ...     return (params * x).sum(1)
        >>> found = likely_cause(TypeError(), {"loss": loss}, torch.ones(2, 2), {"z": 1})
        >>> found.partition(":")[0]
        'loss(params, x) does not take what it is called with, params, z=...'
    """
    text = str(error)
    if isinstance(error, TypeError):
        of_arguments = _by_arguments(text, functions, params, data)
        if of_arguments is not None:
            return of_arguments
    for pattern, cause in _CAUSES:
        if pattern.search(text):
            return cause
    if _DTYPE.search(text):
        return _by_dtypes(text, _one_of(params), data)
    if _DEVICE.search(text):
        place = _one_of(params).device
        return (
            f"start and data are on {place}, so a tensor that the function brings itself must be "
            f"there, too: convert it by .to('{place}')"
        )
    return None


def _one_of(params: Any) -> Tensor:
    tensor: Tensor = next(iter(params.values())) if isinstance(params, Mapping) else params
    return tensor


def _by_arguments(
    text: str, functions: Mapping[str, Callable[..., Any]], params: Any, data: Mapping[str, Any]
) -> str | None:
    for name, function in functions.items():
        if _refuses(function, params, data):
            called = ", ".join(("params", *(f"{key}=..." for key in data)))
            return (
                f"{name}({_arguments(function)}) does not take what it is called with, {called}: "
                "name every entry of data among its arguments, and put all that it needs beside "
                "the parameters into data"
            )
    inner = _KEYWORD.search(text)  # of a function that it hands its data on to
    if inner is not None and inner[1] in data:
        return (
            f"every entry of data is given to it by name, so name {inner[1]!r} among its "
            f"arguments, or leave {inner[1]!r} out of data"
        )
    return None


def _refuses(function: Callable[..., Any], params: Any, data: Mapping[str, Any]) -> bool:
    """Whether a function has other arguments than those it is called with."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a function that is not written in Python
        return False
    try:
        signature.bind(params, **data)
    except TypeError:
        return True
    return False


def _arguments(function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    return ", ".join(str(each.replace(annotation=each.empty)) for each in parameters)


def _by_dtypes(text: str, params: Tensor, data: Mapping[str, Any]) -> str:
    dtypes = {
        name: value.dtype
        for name, value in data.items()
        if isinstance(value, Tensor) and value.dtype != params.dtype
    }
    if "bool" not in text.lower():  # masks are multiplied by without an error
        dtypes = {name: dtype for name, dtype in dtypes.items() if dtype != torch.bool}
    short = str(params.dtype).removeprefix("torch.")
    if not dtypes:
        return (
            f"start and data are {params.dtype}, so a tensor that the function brings itself must "
            f"be, too: convert it by .to({params.dtype})"
        )
    those = " and ".join(f"data[{name!r}] is {dtype}" for name, dtype in dtypes.items())
    return (
        f"{those} and the parameters {params.dtype}, so convert what is a number and no index: an "
        f"array by .astype('{short}'), a tensor by .to({params.dtype})"
    )


def require_apart(
    observe: Callable[[Tensor], Observation],
    together: Observation,
    problems: Sequence[int],
    whose: str = "",
    unless: str = "",
) -> None:
    """Raise an `InputError` where the loss of a problem changes with the problems beside it.

    `observe` says what is observed of one of the `problems` alone, by its place (int64 [1]) among
    all that were observed `together`. `whose` they are, and `unless` what, are for the message.
    """
    tolerance = torch.finfo(together.loss.dtype).eps ** 0.5
    for place, problem in enumerate(problems):
        row = torch.tensor([place], device=together.loss.device)
        for own, beside in zip(observe(row), together, strict=True):
            size = own.abs().nan_to_num().amax().item()
            require(
                torch.allclose(own, beside[row], tolerance, tolerance * size, equal_nan=True),
                f"the loss of problem {problem}{whose} or its gradient changes with the problems "
                "beside it or from call to call; each loss must be a function of its own row of "
                f"parameters and data alone, and not random{unless}",
            )


def require_selectable(name: str, value: Tensor) -> None:
    """Raise an `InputError` where PyTorch cannot select rows, as of uint16, uint32 and uint64."""
    with refusing_others(
        f"{name} is {value.dtype}, of which PyTorch cannot select problems; convert it by "
        ".to(torch.int64), or .astype(numpy.int64) if it is an array"
    ):
        value.index_select(0, torch.arange(len(value[:1]), device=value.device))
