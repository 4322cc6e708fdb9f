"""Standard errors of maximum likelihood, by the curvature where problems ended."""

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.tensors import widened
from haltwise.engines.curvature import eigh
from haltwise.interfaces.engine_run import cached_chunk
from haltwise.interfaces.own_form import Values, as_given, coordinates_of
from haltwise.tasks.base import SupportsCurvature, TaskBatch, ask

__all__ = ["FAR", "WRONG", "StandardErrors", "require_curvature", "standard_errors_at"]

_FAR = 0.5  # standard errors; as far may an estimate be off beside its own uncertainty
_LOOSE = 3.0  # of a bounded parameter, in its free coordinate: a factor of 20 of a positive one

NONFINITE, INDEFINITE, FAR, AT_BOUND, WRONG = range(5)
_REASONS = (
    "the loss or its curvature is not finite there",
    "the curvature is not positive definite there: it is no strict minimum, or the data do not "
    "determine all parameters",
    "by gradient and curvature the minimum lies more than half a standard error away; solve more "
    "exactly",
    "a bounded parameter lies at its bound or is not determined by the data; the others have their "
    "errors as if it were known",
    "the second derivatives of the loss are not those of its gradient, as where it has kinks; "
    "write it by functions that PyTorch can differentiate twice",
)


@final
@dataclass(frozen=True, repr=False)
class StandardErrors:
    """Standard errors of B estimates, the loss being a negative log-likelihood.

    With H the matrix of second derivatives of the loss where a problem ended (the observed
    information), or what `derivatives` of the problem return for it, the estimates have the
    covariance H^-1, and the standard errors are the roots of its diagonal. Of bounded parameters H
    is computed in free coordinates u and carried over by the slopes dx/du (the delta method); at a
    minimum that is the same.

    So the loss must be a sum over observations, not a mean, and in units of log-likelihood: that
    of least squares is the sum of residual^2 / (2 sigma^2). Where sigma = 1 was taken instead, all
    standard errors are to be multiplied by sigma.

    Attributes:
        params: The standard errors, in the form of `Solution.params`, NaN where there is none.
        covariance: Covariances of the parameters in order, named ones flattened one after the
            other, shape [B, D, D].
        distance: How far the minimum is by gradient and curvature, in standard errors, shape [B].
        reason: Index into `reasons` of why some or all errors are NaN, -1 where none is; int64 [B].
        reasons: Why there may be none, in words.
    """

    params: Any
    covariance: Values
    distance: Values
    reason: Values
    reasons: tuple[str, ...] = _REASONS

    def __repr__(self) -> str:
        number = len(self.reason)
        known = int((self.reason < 0).sum())
        return f"StandardErrors({number:,} problems: {known:,} with, {number - known:,} without)"

    def why(self, problem: int) -> str:
        """Say in words why a problem has no standard errors.

        Args:
            problem: Its index.
        """
        reason = int(self.reason[problem])
        return self.reasons[reason] if reason >= 0 else "it has them all"


def require_curvature(problem: TaskBatch) -> None:
    """Raise an `InputError` unless a problem has second derivatives."""
    refusal: str | None = f"{type(problem).__name__} has none"
    if isinstance(problem, SupportsCurvature):
        refusal = problem.curvature_refusal
    require(
        refusal is None,
        f"standard errors need second derivatives of the loss: {refusal}",
    )


def standard_errors_at(problem: TaskBatch, params: Tensor) -> StandardErrors:
    """Compute standard errors at coordinates [B, D].

    Raises:
        InputError: The problem has no second derivatives.
    """
    require_curvature(problem)
    index = torch.arange(len(params), device=params.device)
    chunks = index.split(cached_chunk(problem))
    parts = [_errors(problem.select(chosen), params[chosen]) for chosen in chunks]
    errors, covariance, distance, reason = (torch.cat(part) for part in zip(*parts, strict=True))
    if not _second_derivatives_agree(problem, params):
        none = (torch.full_like(value, torch.nan) for value in (errors, covariance, distance))
        errors, covariance, distance = none
        reason = torch.full_like(reason, WRONG)
    coordinates = coordinates_of(problem)
    own = errors if coordinates is None else coordinates.shaped(errors)
    return as_given(StandardErrors(own, covariance, distance, reason), coordinates)


def _errors(problem: TaskBatch, params: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Standard errors [B, D], covariances, distances and reasons."""
    grad, hessian = (widened(value) for value in _derivatives(problem, params))
    dim = params.shape[1]
    one = torch.eye(dim, dtype=hessian.dtype, device=hessian.device)
    finite = hessian.isfinite().all(2).all(1) & grad.isfinite().all(1)
    hessian = torch.where(finite[:, None, None], (hessian + hessian.mT) / 2, one)
    grad = torch.where(finite.unsqueeze(1), grad, 0)

    # At its bound a parameter has no curvature in its free coordinate: the rest as if it were known
    coordinates = coordinates_of(problem)
    bounded = params.new_zeros(dim, dtype=torch.bool)
    slope = torch.ones_like(grad)
    if coordinates is not None:
        bounded = bounded.new_tensor(coordinates.bounded)
        slope = widened(coordinates.slope(params))
    loose = bounded & (hessian.diagonal(dim1=1, dim2=2).abs() < _LOOSE**-2)
    eps = torch.finfo(params.dtype).eps
    for _ in range(2):  # once more where it is the others that leave one without curvature
        fixed = loose.unsqueeze(2) | loose.unsqueeze(1)
        hessian = torch.where(fixed, one, hessian)
        definite, inverse = _inverse(hessian, eps)
        free = inverse.diagonal(dim1=1, dim2=2).sqrt()
        loose |= bounded & (free > _LOOSE)
    squared = (grad.unsqueeze(1) @ inverse @ grad.unsqueeze(2)).flatten()
    distance = torch.where(finite & definite, squared.clamp_min(0).sqrt(), torch.nan)

    reason = torch.full_like(distance, -1, dtype=torch.int64)
    for number, where in (
        (AT_BOUND, loose.any(1)),
        (FAR, distance > _FAR),
        (INDEFINITE, ~definite),
        (NONFINITE, ~finite),
    ):
        reason = torch.where(where, number, reason)
    unknown = loose | ((reason >= 0) & (reason < AT_BOUND)).unsqueeze(1)
    covariance = inverse * slope.unsqueeze(2) * slope.unsqueeze(1)
    covariance = torch.where(unknown.unsqueeze(2) | unknown.unsqueeze(1), torch.nan, covariance)
    errors = covariance.diagonal(dim1=1, dim2=2).sqrt()
    like = params.dtype
    return errors.to(like), covariance.to(like), distance.to(like), reason


def _inverse(hessian: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Which symmetric matrices [B, D, D] are positive definite but for rounding, and inverses."""
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    unit = torch.where(diagonal > 0, diagonal, 1).rsqrt()  # whatever the units of parameters
    outer = unit.unsqueeze(2) * unit.unsqueeze(1)
    scaled = hessian * outer
    finite = scaled.isfinite().flatten(1).all(1)
    values, vectors = eigh(scaled.where(finite.view(-1, 1, 1), 0))
    definite = (diagonal > 0).all(1) & (values[:, 0] > 10 * hessian.shape[1] * eps)
    values = torch.where(definite.unsqueeze(1), values, 1)
    return definite, (vectors / values.unsqueeze(1)) @ vectors.mT * outer


def _derivatives(problem: TaskBatch, params: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients [B, D] and second derivatives [B, D, D]."""
    assert isinstance(problem, SupportsCurvature)
    with torch.enable_grad():  # a loss may differentiate inside
        seen = problem.observe_curvature(params)
    return seen.grad, seen.curvature


def _second_derivatives_agree(problem: TaskBatch, params: Tensor) -> bool:
    """Whether automatic second derivatives along a direction are differences of gradients.

    A function whose derivative was written by hand may give a second one that is wrong or zero, and
    nothing says so. A loss may have kinks, so they disagree only where no problem out of three is
    as it should be.
    """
    assert isinstance(problem, SupportsCurvature)
    if problem.gives_curvature:
        return True
    few = torch.arange(min(3, len(params)), device=params.device)
    part, params = problem.select(few), params[few]
    hessian = _derivatives(part, params)[1]
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    size = params.abs().clamp_min(1)
    unit = torch.where(diagonal > 0, diagonal.rsqrt().minimum(size), size)
    move = torch.finfo(params.dtype).eps ** 0.2 * unit  # in standard errors, as far as known
    up, down = (ask(part.observe, params + sign * move, 0).grad for sign in (1, -1))
    found, forecast = unit * (up - down), 2 * unit * (hessian @ move.unsqueeze(2)).squeeze(2)
    wrong = (found - forecast).norm(dim=1) > 0.1 * (found.norm(dim=1) + forecast.norm(dim=1))
    return not bool(wrong.all())
