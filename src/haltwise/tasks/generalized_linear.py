"""Generalised linear models: derivatives of sums over linear predictors."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from haltwise._core.arrays import require_unmasked
from haltwise._core.errors import InputError, require
from haltwise._core.settings import shown

__all__ = ["generalized_linear"]


def generalized_linear(
    unit_loss: Callable[..., Tensor], ridge: float | Tensor = 0.0
) -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    """Make the `derivatives` of a `FunctionBatch` whose losses are sums over linear predictors.

    f(theta) = sum_n l(x_n^T theta, data_n) + 1/2 sum_d ridge_d theta_d^2. The first two derivatives
    of l are found automatically and cost little, as l acts on each number by itself; gradient and
    Hessian X^T diag(l'') X then are products, as in IRLS. Automatic second derivatives of the whole
    loss would cost D backward passes.

    The data are `x`, shape [B, N, D], and what else `unit_loss` takes, each [B, N]: answers,
    offsets, or weights, which are 0 for rows that pad a problem.

    Args:
        unit_loss: From predictors [B, N] and data to a loss of each, [B, N], twice differentiable.
        ridge: At least 0, one for all or one for each parameter, shape [D].

    Raises:
        InputError: The ridge is below 0, or holds no real, finite numbers.

    Examples:
        Poisson regressions:

        >>> import haltwise
        >>> x = torch.randn(100, 20, 3, dtype=torch.float64)
        >>> y = torch.poisson(x[..., 0].exp())
        >>> poisson = generalized_linear(lambda z, y: z.exp() - y * z, ridge=0.1)
        >>> problem = haltwise.FunctionBatch(
        ...     torch.zeros(100, 3, dtype=torch.float64), derivatives=poisson, data={"x": x, "y": y}
        ... )
        >>> haltwise.solve(problem, method="auto").success.all()
        tensor(True)
    """
    require_unmasked(ridge, "ridge")
    weights = ridge
    if not isinstance(weights, Tensor):
        try:
            weights = torch.from_numpy(np.array(ridge, np.float64))
        except (TypeError, ValueError, OverflowError) as error:
            raise InputError(f"ridge must hold real numbers, got {shown(ridge)}") from error
    require(
        not weights.is_complex() and bool(((weights >= 0) & weights.isfinite()).all()),
        f"ridge must be finite and at least 0, got {shown(ridge)}",
    )

    def derivatives(params: Tensor, x: Tensor, **data: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        params = params.detach()
        # X theta is two to four times as slow as theta^T X^T.
        predictors = (params.unsqueeze(1) @ x.mT).squeeze(1).requires_grad_()
        losses = unit_loss(predictors, **data)
        require(
            isinstance(losses, Tensor) and losses.shape == predictors.shape,
            "unit_loss must return a loss of each observation, a tensor of shape "
            f"{list(predictors.shape)}; got "
            + (f"shape {list(losses.shape)}" if isinstance(losses, Tensor) else repr(losses)),
        )
        if not losses.requires_grad:
            raise InputError(
                "unit_loss does not depend on the linear predictors, its first argument; compute "
                "it from them by PyTorch alone"
            )
        (slopes,) = torch.autograd.grad(losses.sum(), predictors, create_graph=True)
        bends = torch.zeros_like(slopes)
        if slopes.requires_grad:
            (bends,) = torch.autograd.grad(slopes.sum(), predictors)
        penalty = weights.to(params) * params
        hessian = x.mT @ (bends.unsqueeze(-1) * x)
        hessian.diagonal(dim1=1, dim2=2).add_(weights.to(params))
        return (
            losses.detach().sum(1) + 0.5 * (penalty * params).sum(1),
            (slopes.detach().unsqueeze(1) @ x).squeeze(1) + penalty,
            hessian,
        )

    return derivatives
