"""The trial of a `FunctionBatch`: its functions, asked for a few problems together and alone."""

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from haltwise._core.errors import GradientWarning, InputError, require, warn
from haltwise._core.random import stream
from haltwise._core.tensors import widest
from haltwise.tasks.base import Observation
from haltwise.tasks.function import FunctionBatch, shape_of
from haltwise.tasks.own_errors import likely_cause, require_apart, require_selectable

__all__ = ["require_sound_functions"]

_TELLS, _WRONG = 0.01, 0.1  # of a difference of losses, see `_compare_gradient`
_LARGE = 2**22  # numbers in parameters and data, of which a trial is no longer cheap


def require_sound_functions(batch: FunctionBatch) -> None:
    """Try the functions of a batch on a few of its problems, together and alone.

    Raises:
        InputError: Data have the wrong length, a function fails on a subset of the problems, a
            loss changes with the problems beside it, or derivatives are not those of the loss.

    Warns:
        GradientWarning: Automatic gradients are not those of the loss, as where a part of it is
            detached.
    """
    require(
        batch.loss is not None or batch.residuals is not None or batch.derivatives is not None,
        "there is nothing to minimise; give a loss, residuals or derivatives",
    )
    require(
        batch.loss is None or batch.residuals is None,
        "give a loss or residuals, not both: the loss of residuals is half the sum of their "
        "squares",
    )
    _require_rows(batch)
    index = sorted({0, batch.num_problems // 2, batch.num_problems - 1})
    some = batch.select(torch.tensor(index, device=batch.start.device))
    # Between problems with equal starts, a loss that compares them may have no gradient.
    draw: dict[str, Any] = {"generator": stream(0, "check"), "device": "cpu"}
    away = 0.01 * torch.rand(some.start.shape, dtype=torch.float32, **draw).to(some.start)
    params = torch.where(some.start == 0, away, some.start * (1 + away))
    together = _observed(batch, some, params)
    if batch.derivatives is not None:
        with _explained(batch, some, params):
            _require_derivatives(some, params, together)
    require_apart(lambda row: _observed(batch, some.select(row), params[row]), together, index)
    if batch.derivatives is None:
        _compare_gradient(some, params, together)


def _require_rows(batch: FunctionBatch) -> None:
    """Refuse data that are no rows of tensors, one for each problem."""
    require(
        isinstance(batch.data, Mapping),
        "data must be a dictionary of tensors, the keyword arguments of the loss, got "
        + type(batch.data).__name__
        + ("; give its .data" if isinstance(getattr(batch.data, "data", 0), Mapping) else ""),
    )
    for name, value in batch.data.items():
        require(
            isinstance(value, Tensor) and value.shape[:1] == batch.start.shape[:1],
            f"data[{name!r}] must be a tensor with the {batch.num_problems} problems along its "
            f"first dimension, got {shape_of(value)}",
        )
        require(
            value.layout == torch.strided,
            f"data[{name!r}] is {str(value.layout).removeprefix('torch.')}, of which problems "
            f"cannot be selected; make it dense by data[{name!r}].to_dense()",
        )
        require_selectable(f"data[{name!r}]", value)
        require(
            value.device == batch.start.device,
            f"data[{name!r}] is on {value.device} and start on {batch.start.device}; move both "
            f"by FunctionBatch(...).to('{batch.start.device}')",
        )


def _compare_gradient(batch: FunctionBatch, params: Tensor, seen: Observation) -> None:
    """Compare automatic gradients along two directions with differences of losses.

    A difference tells nothing where that of twice the step is another, as in rounding and on
    curves too sharp for it. In float64, if the functions take it, there is less rounding.
    """
    step = torch.finfo(params.dtype).eps ** 0.4
    batch, params, seen = _in_float64(batch, params) or (batch, params, seen)
    eps = torch.finfo(params.dtype).eps
    uniform = torch.rand(params.shape, generator=stream(0, "direction"), device="cpu")
    drawn = (2 * uniform.round() - 1) * (0.5 + uniform)  # no two coordinates cancel
    along = torch.where(seen.grad * params < 0, -1, 1)  # all of them add up
    move = step * torch.cat((params * drawn.to(params), params * along))
    ways = torch.arange(len(params), device=params.device).repeat(4)
    params, grad, loss = (value.repeat(2, 1) for value in (params, seen.grad, seen.loss[:, None]))
    there = torch.cat((params + move, params + 2 * move))
    with _explained(batch, batch, params):
        losses = batch.select(ways).observe_loss(there, 0)
    loss = loss.squeeze(1)
    near, far = (losses - loss.repeat(2)).chunk(2)
    forecast = (grad * move).sum(1)
    noise = 16 * eps * loss.abs()
    clear = (near - far / 2).abs() + noise < _TELLS * near.abs()
    clear |= (near == 0) & (far == 0) & (noise < _TELLS * forecast.abs())
    wrong = clear & ((near - forecast).abs() > _WRONG * torch.maximum(near.abs(), forecast.abs()))
    if wrong.sum() > max(1, clear.sum() / 2):  # one may seem clear by chance
        warn(
            "the gradient of the loss is not that of its values, so what is found need be no "
            "minimum: is a part of it computed in NumPy, under torch.no_grad(), by .item(), "
            ".detach() or round(), or by a function with a backward of its own? If that is "
            "meant, give loss and gradient as derivatives",
            GradientWarning,
        )


def _in_float64(
    batch: FunctionBatch, params: Tensor
) -> tuple[FunctionBatch, Tensor, Observation] | None:
    """The batch, parameters and what is observed there in float64; None if it cannot be.

    Nor is it where functions convert to less by themselves: then a small step changes nothing.
    """
    if params.dtype == torch.float64 or widest(params.device) != torch.float64:
        return None
    batch, params = batch.to(dtype=torch.float64), params.double()
    try:
        seen = batch.observe(params, 0)
        beside = batch.observe_loss(params * (1 + 1e-9), 0)
    except Exception:  # functions may bring tensors of their own
        return None
    is_narrow = torch.equal(beside, seen.loss) and bool(seen.grad.any())
    return (batch, params, seen) if seen.loss.dtype == torch.float64 and not is_narrow else None


def _require_derivatives(batch: FunctionBatch, params: Tensor, given: Observation) -> None:
    """Compare given losses and gradients with automatic ones, where there are any."""
    automatic = batch._automatic(params)
    if automatic is None:
        return
    tolerance = torch.finfo(params.dtype).eps ** 0.4
    for name, expected, found in zip(("loss", "gradient"), automatic, given, strict=True):
        finite = expected.isfinite() & found.isfinite()
        size = expected[finite].abs().amax().item() if finite.any() else 0.0
        require(
            torch.allclose(found[finite], expected[finite], tolerance, tolerance * size),
            f"the {name} that derivatives returns is not that of "
            f"{'the residuals' if batch.residuals is not None else 'the loss'}: it differs by "
            f"{(found - expected)[finite].abs().amax().item() if size else math.nan:.2g} from "
            "what automatic differentiation finds; correct it, or leave derivatives out",
        )


def _observed(whole: FunctionBatch, part: FunctionBatch, params: Tensor) -> Observation:
    with _explained(whole, part, params):
        return part.observe(params, 0)


@contextlib.contextmanager
def _explained(whole: FunctionBatch, part: FunctionBatch, params: Tensor) -> Iterator[None]:
    """Say of an error inside a function of a part of the problems what its likely cause is."""
    try:
        yield
    except InputError:
        raise
    except (RuntimeError, IndexError, TypeError, ValueError) as error:
        names = ("loss", "residuals", "derivatives")
        given = {name: getattr(part, name) for name in names if getattr(part, name) is not None}
        own = part.own(params)
        cause = likely_cause(error, given, own, part.data)
        among = ""
        if cause is None and _fails_for_its_size(whole, params):
            among = f" for {len(params)} of the {whole.num_problems} problems"
            cause = (
                "it must take any subset of them, even a single one, so what belongs to a "
                "problem must come in `data`"
            )
        if cause is None:
            tensors = (
                {f"params[{key!r}]": v for key, v in own.items()}
                if isinstance(own, dict)
                else {"params": own}
            )
            shapes = (f"{name} {list(v.shape)}" for name, v in {**tensors, **part.data}.items())
            cause = "it was called with " + ", ".join(shapes)
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"the loss fails{among} ({text}); {cause}") from error


def _fails_for_its_size(whole: FunctionBatch, params: Tensor) -> bool:
    """Whether a function that failed for some problems takes all of them."""
    if len(params) == 1 < whole.num_problems:  # it was called with three of them before
        return True
    if sum(value.numel() for value in (whole.start, *whole.data.values())) > _LARGE:
        return False
    try:
        whole.observe(whole.start, 0)
    except Exception:  # whatever it is, it is no matter of the size
        return False
    return True
