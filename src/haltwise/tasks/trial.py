"""A trial of a family from a user's file, before hours are spent on one that does not work."""

import json
from dataclasses import asdict

import torch
from torch import Tensor

from haltwise._core import plugins
from haltwise._core.errors import InputError, require
from haltwise._core.random import stream
from haltwise.tasks.base import TaskBatch, TaskFamily

__all__ = ["require_usable"]


def require_usable(family: TaskFamily, name: str) -> None:
    """Draw two problems of the family PATH.py:NAME and evaluate them at their start.

    Raises:
        InputError: A method fails or returns what it must not; the message names file and line.
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
            torch.equal(again.observe(again.start, 0).loss, seen.loss),
            f"{title}._sample draws other problems from the same generator; pass it on, as in "
            "`torch.randn(..., generator=generator)`",
        )
