"""Steps from a matrix of curvature: Cholesky's where it is positive definite."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from haltwise.engines.base import first_length

__all__ = ["PositiveInverse", "eigh", "newton_direction", "positive_inverse"]

_TOLD = 8  # roundings of a diagonal entry; of singular matrices up to some four are left of it
_FLAT = 2e-16  # of the largest curvature: the rounding of float64, so that units matter little
_FELT = 1.5e-8  # likewise in units of the parameters' sizes, of what is felt of each


def newton_direction(
    curvature: Tensor, grad: Tensor, params: Tensor, *, flat: float = _FLAT
) -> tuple[Tensor, Tensor]:
    """-C^-1 g, and where C is positive definite, bool [M].

    Where it is not, so far as that can be told from rounding, eigenvalues are replaced by their
    sizes, so that the direction descends and leaves saddles (Dauphin et al. 2014; Nocedal & Wright
    2006, section 3.4), and small ones by a floor. Where C or g is not finite, nor is the direction.

    Args:
        curvature: C, symmetric, shape [M, D, D].
        grad: g, shape [M, D].
        params: Where, shape [M, D]; what is small beside others may be so for its unit.
        flat: Share of the largest curvature below which nothing is told of a direction, whatever
            the rounding.
    """
    factor, info = torch.linalg.cholesky_ex(curvature)
    direction = torch.cholesky_solve(grad.unsqueeze(-1), factor).squeeze(-1).neg_()
    pivots, own = (matrix.diagonal(dim1=-2, dim2=-1) for matrix in (factor, curvature))
    left = pivots.square()
    # What is left of a diagonal entry, whatever its units; also false where anything is not finite.
    told = (left > _TOLD * torch.finfo(grad.dtype).eps * own).all(1) & (info == 0)
    definite = told & (left.amin(1) > flat * left.amax(1))
    if not definite.all():
        rows = (~definite).nonzero().squeeze(1)
        units = _units(curvature[rows], params[rows])
        left = left[rows] * units.square()
        definite[rows] = told[rows] & (left.amin(1) > flat * left.amax(1))
        others = ~definite[rows]
        rows, units = rows[others], units[others]
        found = _along_eigenvectors(_in_units(curvature[rows], units), units * grad[rows])
        direction[rows] = units * found
    return direction, definite


def _units(curvature: Tensor, params: Tensor) -> Tensor:
    """Units in which curvatures are alike, shape [M, D]; 1 where they are already.

    They are the sizes of the parameters, if these make them alike: what is hardly felt of one that
    is changed by its own size is flat in any unit. One that is 0 tells no size, and counts as felt
    as much as the others.
    """
    own, size = curvature.diagonal(dim1=1, dim2=2).abs(), params.abs()
    most = (own * size.square()).amax(1, keepdim=True)
    most = torch.where(most > 0, most, 1)
    units = torch.where(size > 0, size, torch.where(own > 0, most / own, 1).sqrt())
    differ = ~_are_alike(own, torch.finfo(own.dtype).eps ** 0.5)  # less is lost beside the largest
    helps = differ & _are_alike(own * units.square(), _FELT)
    helps &= _in_units(curvature, units).isfinite().flatten(1).all(1)
    return torch.where(helps.unsqueeze(1), units, 1)


def _are_alike(own: Tensor, share: float) -> Tensor:
    """Where all of the curvatures [M, D] above 0 are more than a share of the largest."""
    least = torch.where(own > 0, own, torch.inf).amin(1)
    return least > share * own.amax(1)


def _in_units(curvature: Tensor, units: Tensor) -> Tensor:
    return units.unsqueeze(2) * curvature * units.unsqueeze(1)


def _along_eigenvectors(curvature: Tensor, grad: Tensor) -> Tensor:
    finite = curvature.isfinite().flatten(1).all(1) & grad.isfinite().all(1)
    curvature = torch.where(finite.view(-1, 1, 1), curvature, 0)
    values, vectors = eigh(curvature)
    sizes = values.abs()
    norm = grad.square().sum(1, keepdim=True).sqrt()
    largest = sizes.amax(1, keepdim=True)
    # Where the loss is linear, a step of length 1.
    floor = torch.where(largest > 0, largest * torch.finfo(grad.dtype).eps ** 0.5, norm)
    inner = (vectors.mT @ grad.unsqueeze(-1)).squeeze(-1) / torch.maximum(sizes, floor)
    direction = -(vectors @ inner.unsqueeze(-1)).squeeze(-1)
    return torch.where(finite.unsqueeze(1), direction.nan_to_num(0), torch.nan)


class PositiveInverse(NamedTuple):
    """Positive definite matrices for the inverses of M Hessians.

    Attributes:
        whole: Shape [M, D, D].
        bounded: For steps that are not too long, shape [M, D, D].
        is_inverse: Whether `whole` is the inverse itself, bool [M].
        is_bounded: Whether `bounded` is another, bool [M].
        units: Of the parameters, in which these were computed, shape [M, D].
    """

    whole: Tensor
    bounded: Tensor
    is_inverse: Tensor
    is_bounded: Tensor
    units: Tensor


def positive_inverse(curvature: Tensor, grad: Tensor, params: Tensor) -> PositiveInverse:
    """Positive definite matrices for C^-1.

    Eigenvalues are replaced by their sizes, and small ones by a floor. Of `bounded` they are made
    so large, too, that -C^-1 g goes at most `first_length` along each eigenvector: longer steps
    may end on plateaus where nothing is left to learn.

    Args:
        curvature: C, symmetric and finite, shape [M, D, D].
        grad: g, shape [M, D].
        params: Where, shape [M, D].
    """
    units = _units(curvature, params)
    longest = first_length(params / units)
    values, vectors = eigh(_in_units(curvature, units))
    sizes, eps = values.abs(), torch.finfo(grad.dtype).eps
    grad = units * grad.nan_to_num(0, 0, 0)
    along = (vectors.mT @ grad.unsqueeze(-1)).squeeze(-1).abs()
    flat = eps**0.5 * sizes.amax(1, keepdim=True)

    def inverse(sizes: Tensor) -> Tensor:
        return _in_units((vectors / sizes.unsqueeze(1)) @ vectors.mT, units)

    whole = torch.maximum(sizes, flat)
    bounded = torch.maximum(whole, along / longest.unsqueeze(1))
    is_inverse, is_bounded = (values >= flat).all(1), (bounded > whole).any(1)
    return PositiveInverse(inverse(whole), inverse(bounded), is_inverse, is_bounded, units)


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [M, D] and eigenvectors [M, D, D] of symmetric matrices that are finite.

    Of large entries LAPACK may find none, and then there are none of the other matrices either. A
    power of two changes no bit of what it finds.
    """
    exponent = matrix.abs().amax((1, 2)).frexp().exponent
    most = math.frexp(torch.finfo(matrix.dtype).max)[1]
    exponent = exponent.where(exponent > most // 8, 0).clamp_max(most - 2).view(-1, 1, 1)
    values, vectors = torch.linalg.eigh(matrix.ldexp(-exponent))
    return values.ldexp(exponent.squeeze(2)), vectors
