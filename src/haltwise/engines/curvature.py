"""Steps from a matrix of curvature: Cholesky's where it is positive definite."""

import torch
from torch import Tensor

__all__ = ["newton_direction", "positive_inverse"]

_TOLD = 8  # roundings of a diagonal entry; of singular matrices up to some four are left of it
_FLAT = 2e-16  # of the largest curvature: the rounding of float64, so that units matter little


def newton_direction(
    curvature: Tensor, grad: Tensor, *, flat: float = _FLAT
) -> tuple[Tensor, Tensor]:
    """-C^-1 g, and where C is positive definite, bool [M].

    Where it is not, so far as that can be told from rounding, eigenvalues are replaced by their
    sizes, so that the direction descends and leaves saddles (Dauphin et al. 2014; Nocedal & Wright
    2006, section 3.4), and small ones by a floor. Where C or g is not finite, nor is the direction.

    Args:
        curvature: C, symmetric, shape [M, D, D].
        grad: g, shape [M, D].
        flat: Share of the largest curvature below which nothing is told of a direction, whatever
            the rounding.
    """
    factor, info = torch.linalg.cholesky_ex(curvature)
    direction = torch.cholesky_solve(grad.unsqueeze(-1), factor).squeeze(-1).neg_()
    pivots, own = (matrix.diagonal(dim1=-2, dim2=-1) for matrix in (factor, curvature))
    left = pivots.square()
    # What is left of a diagonal entry, whatever its units; also false where anything is not finite.
    told = (left > _TOLD * torch.finfo(grad.dtype).eps * own).all(1)
    definite = told & (left.amin(1) > flat * left.amax(1)) & (info == 0)
    if not definite.all():
        rows = (~definite).nonzero().squeeze(1)
        direction[rows] = _along_eigenvectors(curvature[rows], grad[rows])
    return direction, definite


def _along_eigenvectors(curvature: Tensor, grad: Tensor) -> Tensor:
    finite = curvature.isfinite().flatten(1).all(1) & grad.isfinite().all(1)
    curvature = torch.where(finite.view(-1, 1, 1), curvature, 0)
    values, vectors = torch.linalg.eigh(curvature)
    sizes = values.abs()
    norm = grad.square().sum(1, keepdim=True).sqrt()
    largest = sizes.amax(1, keepdim=True)
    # Where the loss is linear, a step of length 1.
    floor = torch.where(largest > 0, largest * torch.finfo(grad.dtype).eps ** 0.5, norm)
    inner = (vectors.mT @ grad.unsqueeze(-1)).squeeze(-1) / torch.maximum(sizes, floor)
    direction = -(vectors @ inner.unsqueeze(-1)).squeeze(-1)
    return torch.where(finite.unsqueeze(1), direction.nan_to_num(0), torch.nan)


def positive_inverse(curvature: Tensor, grad: Tensor, longest: Tensor) -> tuple[Tensor, Tensor]:
    """A positive definite matrix for C^-1, shape [M, D, D].

    Eigenvalues are replaced by their sizes, and made so large that -C^-1 g is at most `longest`
    along each eigenvector. Longer steps, as along a flat one, end on plateaus where nothing is left
    to learn.

    Args:
        curvature: C, symmetric and finite, shape [M, D, D].
        grad: g, shape [M, D].
        longest: Shape [M].

    Returns:
        The matrix, and of how many eigenvalues it is not the inverse, int64 [M].
    """
    values, vectors = torch.linalg.eigh(curvature)
    sizes, eps = values.abs(), torch.finfo(grad.dtype).eps
    along = (vectors.mT @ grad.nan_to_num(0, 0, 0).unsqueeze(-1)).squeeze(-1).abs()
    floor = torch.maximum(along / longest.unsqueeze(1), eps**0.5 * sizes.amax(1, keepdim=True))
    inverse = (vectors / torch.maximum(sizes, floor).unsqueeze(1)) @ vectors.mT
    return inverse, (values < floor).sum(1)
