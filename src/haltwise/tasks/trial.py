"""A trial of a family from a user's file, before hours are spent on one that does not work."""

import json
from dataclasses import asdict

import torch
from torch import Tensor

from haltwise._core import plugins
from haltwise._core.errors import InputError, require
from haltwise._core.random import stream
from haltwise.tasks.base import TaskBatch, TaskFamily
from haltwise.tasks.function import FunctionBatch

__all__ = ["require_usable"]


def require_usable(family: TaskFamily, name: str) -> None:
    """Draw two problems of the family PATH.py:NAME and evaluate them at their start, and one alone.

    Raises:
        InputError: A method fails or returns what it must not; the message names file and line.

    Warns:
        GradientWarning: See `FunctionBatch.check`.
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
                f"({error})"
            ) from error
        drawn: object = family._sample(2, stream(0, "try"))
        require(
            isinstance(drawn, TaskBatch),
            f"{title}._sample must return a TaskBatch such as haltwise.FunctionBatch, got "
            f"{type(drawn).__name__}",
        )
        batch, again = (family.sample(2, stream(0, "try")) for _ in range(2))
        seen = batch.evaluate(batch.start, 0)
        for what, tensor, shape in (
            ("start", batch.start, [2, dim]),
            ("the loss", seen.loss, [2]),
            ("the gradient", seen.grad, [2, dim]),
            ("the excess loss", seen.excess, [2]),
        ):
            given = list(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            require(
                given == shape,
                f"{what} of 2 problems of {title} must have shape {shape}, got {given}",
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
            batch.check()
        alone = batch.select(torch.tensor([1])).evaluate(batch.start[1:], 0).loss
        require(
            torch.allclose(alone, seen.loss[1:], 1e-3, 1e-6, equal_nan=True),
            "the loss of a problem changes with the problems beside it; what is of one problem "
            "must lie in tensor fields with the problems along the first dimension",
        )
        require(
            _are_same(batch.observe(batch.start, 0).loss, seen.loss),
            "the loss differs when it is computed again for the same problems, parameters and "
            "step; draw what is random in _sample",
        )
        require(
            _are_same(again.observe(again.start, 0).loss, seen.loss),
            f"{title}._sample draws other problems from the same generator; pass it on, as in "
            "`torch.randn(..., generator=generator)`",
        )


def _are_same(one: Tensor, other: Tensor) -> bool:
    """Whether numbers are the same, NaN among them."""
    return torch.allclose(one, other, 0, 0, equal_nan=True)
