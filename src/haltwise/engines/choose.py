"""The engine for a batch of problems, by what they give."""

from typing import NamedTuple

import torch

from haltwise._core.errors import InputError
from haltwise.tasks.base import SupportsCurvature, SupportsResiduals, TaskBatch

__all__ = ["EngineChoice", "choose"]

_FEW = 16  # parameters; automatic second derivatives of more cost as many backward passes


class EngineChoice(NamedTuple):
    """The name of an engine, and why it was chosen, a clause."""

    name: str
    why: str


def choose(batch: TaskBatch) -> EngineChoice:
    """Gauss-Newton for residuals, Newton where curvature is given, BFGS, or L-BFGS.

    BFGS takes few parameters of a loss that can be differentiated twice.
    """
    if isinstance(batch, SupportsResiduals) and batch.residuals_refusal is None:
        return EngineChoice("gauss-newton", "the losses are sums of squares of residuals")
    if not isinstance(batch, SupportsCurvature):
        return EngineChoice(
            "lbfgs", f"{type(batch).__name__} gives neither residuals nor curvature"
        )
    refusal = batch.curvature_refusal
    if refusal is None and batch.gives_curvature:
        return EngineChoice("newton", "the problems give their curvature")
    if refusal is None:
        refusal = _refusal_to_differentiate(batch)
    if refusal is not None:
        return EngineChoice("lbfgs", refusal)
    return EngineChoice(
        "bfgs", f"a smooth loss of {batch.dim} parameters has a Hessian to begin with"
    )


def _refusal_to_differentiate(batch: TaskBatch) -> str | None:
    """Why automatic second derivatives are no good, tried on a few problems."""
    assert isinstance(batch, SupportsCurvature)
    if batch.dim > _FEW:
        return f"second derivatives in {batch.dim} parameters would take long"
    few = batch.select(torch.arange(min(3, batch.num_problems), device=batch.start.device))
    try:
        curvature = few.observe_curvature(few.start).curvature
    except (InputError, RuntimeError, NotImplementedError) as error:
        return f"the loss cannot be differentiated twice ({error})"
    if not (curvature.isfinite() & (curvature != 0)).any():
        return "the loss has no curvature where it starts"
    return None
