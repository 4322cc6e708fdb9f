"""Trials of a user's families and batches, before hours are spent on one that does not work."""

import json
from dataclasses import asdict

import torch
from torch import Tensor

from haltwise._core import plugins
from haltwise._core.errors import InputError, require
from haltwise._core.random import stream
from haltwise._core.settings import got
from haltwise._core.tensors import kind_of, tensors_of, undisturbed
from haltwise.tasks.base import Observation, TaskBatch, TaskFamily
from haltwise.tasks.coordinates import no_dtype
from haltwise.tasks.function import FunctionBatch
from haltwise.tasks.function_trial import require_sound_functions
from haltwise.tasks.own_errors import require_apart, require_selectable

__all__ = ["require_solvable", "require_usable"]


def require_solvable(problem: TaskBatch) -> None:
    """Try a batch of problems before it is solved.

    Raises:
        InputError: It is no batch, its start is no good, or the functions of a `FunctionBatch` or
            a batch of a user's own class return what they must not.

    Warns:
        GradientWarning: See `require_sound_functions`.
    """
    require(
        isinstance(problem, TaskBatch),
        "a problem must be a TaskBatch, "
        + (got(problem) if isinstance(problem, type) else f"got {type(problem).__name__}")
        + "; "
        "make one of a loss by haltwise.FunctionBatch(start, loss, data)",
    )
    start = problem.start
    require(
        isinstance(start, Tensor) and start.ndim == 2 and start.numel() > 0,
        "start must be a tensor or an array of shape [B, D], a row of parameters for each problem, "
        "got "
        + (
            f"shape {list(start.shape)}"
            if isinstance(start, Tensor)
            else f"{type(start).__name__}; make one by torch.tensor, or an array by numpy.array"
        ),
    )
    coordinates = problem.coordinates if isinstance(problem, FunctionBatch) else None
    as_array = coordinates is not None and coordinates.as_arrays
    require(
        start.dtype in (torch.float32, torch.float64), no_dtype("start", start, as_array=as_array)
    )
    require(
        start.layout == torch.strided,
        f"start is {str(start.layout).removeprefix('torch.')}; make it dense by start.to_dense()",
    )
    require(
        start.device.type != "meta",
        "the problems are on the device meta, which holds no numbers; make them on another, such "
        "as 'cpu'",
    )
    bad = (~start.isfinite()).any(1).nonzero().flatten().tolist()
    require(
        not bad,
        f"start holds NaN or infinity in {len(bad)} of {len(start)} problems, first in problem "
        f"{bad[0] if bad else None}; start from finite parameters",
    )
    if isinstance(problem, FunctionBatch):
        require_sound_functions(problem)
    elif not plugins.comes_with_the_package(problem):
        _require_sound(problem)


def _require_sound(batch: TaskBatch) -> None:
    """Evaluate a few problems of a batch of a user's own class at their starts, and each alone.

    Raises:
        InputError: A tensor field does not have the problems along its first dimension, or
            `observe` returns what it must not, changes its arguments, or losses that depend on the
            problems beside them or on chance.
    """
    title, number = type(batch).__name__, batch.num_problems
    for name, value in tensors_of(batch).items():
        require(
            value.shape[:1] == (number,),
            f"the field {name} of {title} must have the {number} problems along its first "
            f"dimension, got shape {list(value.shape)}; what all problems share goes into a field "
            "that is no tensor, such as a tuple of tensors",
        )
        require_selectable(f"the field {name} of {title}", value)
    index = sorted({0, number // 2, number - 1})
    some = batch.select(torch.tensor(index, device=batch.start.device))
    together = _observed(some)
    if batch.stochastic:
        return
    require_apart(
        lambda row: _observed(some.select(row)),
        together,
        index,
        f" of {title}",
        ", but for minibatches, where `stochastic` is true",
    )


def _observed(batch: TaskBatch) -> Observation:
    """What a batch of a user's own class observes at its start."""
    title, params = type(batch).__name__, batch.start.detach().clone()
    with torch.enable_grad():  # a loss may differentiate inside
        seen: object = batch.observe(params, 0)
    require(
        isinstance(seen, Observation),
        f"{title}.observe must return an Observation(loss, grad), got {type(seen).__name__}",
    )
    assert isinstance(seen, Observation)
    for what, value, shape in (
        ("loss", seen.loss, list(params.shape[:1])),
        ("gradient", seen.grad, list(params.shape)),
    ):
        require(
            isinstance(value, Tensor)
            and list(value.shape) == shape
            and value.dtype == params.dtype,
            f"the {what} that {title}.observe returns must be a tensor of {params.dtype} in shape "
            f"{shape} for parameters of shape {list(params.shape)}, got {kind_of(value)}",
        )
    require(
        torch.equal(params, batch.start),
        f"{title}.observe changes the parameters that it is given in place; compute a new tensor",
    )
    return Observation(seen.loss.detach(), seen.grad.detach())


@undisturbed(grad=True, on_cpu=True)
def require_usable(family: TaskFamily, name: str) -> None:
    """Draw two problems of the family PATH.py:NAME and evaluate them at their start, and one alone.

    Raises:
        InputError: A method fails or returns what it must not; the message names file and line.

    Warns:
        GradientWarning: See `require_sound_functions`.
    """
    title = type(family).__name__
    with plugins.place(name, type(family)).errors():
        dim = family.dim
        require(
            isinstance(dim, int) and dim >= 1,
            f"{title}.dim must be a number of parameters, at least 1, got {dim!r}",
        )
        try:
            json.dumps(asdict(family))
        except (TypeError, ValueError) as error:
            raise InputError(
                f"the fields of {title} must be JSON values, as they are written on the card "
                f"({error}); give a TaskFamily with such fields, whose _sample makes or asks "
                "whatever holds code or data"
            ) from error
        drawn: object = family._sample(2, stream(0, "try"))
        require(
            isinstance(drawn, TaskBatch),
            f"{title}._sample must return a TaskBatch such as haltwise.FunctionBatch, got "
            f"{type(drawn).__name__}",
        )
        batch, again = (family.sample(2, stream(0, "try")) for _ in range(2))
        _require_shapes(
            title, ("start", batch.start, [2, dim]), ("reference_loss", batch.reference_loss, [2])
        )
        observed, seen = _observed(batch), batch.evaluate(batch.start, 0)
        _require_shapes(
            title,
            ("the loss", seen.loss, [2]),
            ("the gradient", seen.grad, [2, dim]),
            ("the excess loss", seen.excess, [2]),
        )
        require(
            bool(seen.loss.isfinite().any()),
            "the loss at the start of both problems tried is not finite; start elsewhere",
        )
        require(
            bool(seen.excess[seen.loss.isfinite()].isfinite().all()),
            f"the excess loss is not finite where the loss is; reference_loss of {title} must be "
            "finite, and zero where the least loss is unknown",
        )
        if isinstance(batch, FunctionBatch):
            require_sound_functions(batch)
        _require_repeatable(title, batch, observed)
        require(
            _are_same(again.observe(again.start, 0).loss, seen.loss),
            f"{title}._sample draws other problems from the same generator; pass it on, as in "
            "`torch.randn(..., generator=generator)`",
        )


def _require_repeatable(title: str, batch: TaskBatch, observed: Observation) -> None:
    """Refuse losses of two problems that change with company, from call to call or by the step."""
    alone, repeated = _observed(batch.select(torch.tensor([1]))), _observed(batch)
    for what, value, beside, once_more in zip(
        ("loss", "gradient"), alone, observed, repeated, strict=True
    ):
        size = beside.abs().nan_to_num().amax().item()
        require(
            torch.allclose(value, beside[1:], 1e-3, 1e-6 + 1e-4 * size, equal_nan=True),
            f"the {what} of a problem changes with the problems beside it; what is of one "
            "problem must lie in tensor fields with the problems along the first dimension",
        )
        require(
            _are_same(once_more, beside),
            f"the {what} differs when it is computed again for the same problems, parameters "
            "and step; draw what is random in _sample",
        )
    require(
        batch.stochastic or _are_same(batch.observe(batch.start, 1).loss, observed.loss),
        f"the loss of {title} depends on the step; make `stochastic` true, and give `score` as "
        "a function of the parameters alone",
    )


def _require_shapes(title: str, *values: tuple[str, object, list[int]]) -> None:
    """Refuse what is of two problems of a family in another shape than is given."""
    for what, value, shape in values:
        given = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
        require(
            given == shape, f"{what} of 2 problems of {title} must have shape {shape}, got {given}"
        )


def _are_same(one: Tensor, other: Tensor) -> bool:
    """Whether numbers are the same, NaN among them."""
    return torch.allclose(one, other, 0, 0, equal_nan=True)
