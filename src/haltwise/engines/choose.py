"""The engine for a batch of problems, by what they give."""

from typing import NamedTuple

import torch

from haltwise._core.errors import InputError
from haltwise.engines.lbfgs import LBFGS
from haltwise.engines.newton import Newton
from haltwise.engines.run import begin, descend
from haltwise.engines.stops import LBFGSB
from haltwise.tasks.base import SupportsCurvature, SupportsResiduals, TaskBatch

__all__ = ["EngineChoice", "choose"]

_FEW = 16  # parameters; automatic second derivatives of more cost as many backward passes
_MANY = 1000  # problems, from which on it pays to try
_TRIED, _MOST = 8, 60  # problems and evaluations of a trial
_DEARER = 1.6  # what its own operations and a longer wait for the slowest cost L-BFGS


class EngineChoice(NamedTuple):
    """The name of an engine, and why it was chosen, a clause."""

    name: str
    why: str


def choose(batch: TaskBatch) -> EngineChoice:
    """Gauss-Newton for residuals, Newton for few parameters of a smooth loss, or L-BFGS.

    Of many problems that do not give their second derivatives, some are tried.
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
    if refusal is None:
        refusal = _cheaper(batch)
    if refusal is not None:
        return EngineChoice("lbfgs", refusal)
    return EngineChoice("newton", f"a smooth loss of {batch.dim} parameters has second derivatives")


def _cheaper(batch: TaskBatch) -> str | None:
    """Why L-BFGS costs less than automatic second derivatives, tried on some of many problems.

    Costs are counted, not timed, so that the same problems are always solved by the same engine.
    """
    assert isinstance(batch, SupportsCurvature)
    if batch.num_problems < _MANY:
        return None
    index = torch.linspace(0, batch.num_problems - 1, _TRIED, device=batch.start.device).long()
    some, cost = batch.select(index), batch.curvature_cost
    spent = []
    for engine in (Newton(), LBFGS()):
        budget = torch.full_like(index, _MOST)
        begun, _ = begin(engine, some, budget)
        found = descend(engine, some, begun, [LBFGSB])
        spent.append(found.spent.double().mean().item() + 1)
    newton, lbfgs = spent
    if lbfgs > newton * cost / _DEARER:
        return None
    return (
        f"it took {lbfgs:.3g} gradients where Newton took {newton:.3g} matrices of second "
        f"derivatives, of which each costs {cost:.2g}"
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
