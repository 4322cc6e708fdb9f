"""The signals of a step: a few numbers per problem, from which halting features are made.

None depends on the number of parameters or on their order, so a halting model serves problems of
any size. They know nothing of the price, so one recording serves every price. All are data: no
gradient flows through them.
"""

import math

import torch
from torch import Tensor

from haltwise._core.tensors import are_finite, log_rms, widened
from haltwise._kernels import fused, native
from haltwise._kernels.native_signals import measure

__all__ = [
    "SIGNALS",
    "combine_products",
    "init_signals",
    "is_flat",
    "log_norm",
    "loss_signals",
    "loss_signals_of_steps",
    "measure_sequence",
    "measure_signals",
    "sum_products",
]

SIGNALS = (
    "step",  # t
    "loss",  # f(theta_t)
    "log_grad",  # log rms gamma_t
    "log_update",  # log rms g_t
    "gain",  # -<gamma_t, g_t>, what the update gains to first order
    "bend",  # 1/2 kappa |g_t|^2, what curvature takes of it
    "least_gain",  # 1/2 |gamma_t|^2 <s, y> / |y|^2, what is left to gain if gamma_t is stiff
    "most_gain",  # 1/2 |gamma_t|^2 / kappa, if its curvature is that of the last step
    "overshoot",  # -<gamma_t, g_{t-1}>: below 0 if the last step went too far
    "log_curvature",  # log kappa
    "descent_cosine",  # between -gamma_t and g_t
    "grad_cosine",  # between gamma_t and gamma_{t-1}: about 0 if noise is all there is
    "update_cosine",  # between g_t and g_{t-1}: -1 if the iterates swing
)
"""The columns of a step's signals. With s = g_{t-1} and y = gamma_t - gamma_{t-1}, the curvature
along the last step is kappa = <s, y> / |s|^2; it and |y|^2 / <s, y> bound the two step lengths of
Barzilai & Borwein (1988). Whatever looks back is 0 at the first step."""

_PAIRS = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (2, 3), (0, 3), (0, 1), (0, 4), (1, 3))
"""Which of the products of `sum_products` are used; squares come first, cosines' last."""
_TINY, _HUGE = 1e-30, 1e30  # squares of them are still finite in float64, quotients in float32
_FLAT = 1e-8  # the least curvature told from none


def is_flat(log_curvature: Tensor) -> Tensor:
    """Whether no curvature was found along the last step: a signal at its floor."""
    return log_curvature <= math.log(_FLAT) + 1e-3


def init_signals(params: Tensor) -> dict[str, Tensor]:
    """The memory of `measure_signals` before the first step, for parameters [B, D]."""
    zeros = torch.zeros_like(params)
    return {"grad": zeros, "update": zeros}


def measure_signals(
    step: int | Tensor, loss: Tensor, grad: Tensor, update: Tensor, memory: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The signals of step t and the memory for step t + 1.

    Args:
        step: t, the same for all problems; or of every entry of `loss`.
        loss: Observed loss at theta_t, shape [B] or [..., T], of T steps.
        grad: Gradient at theta_t, shape [B, D] or [..., T, D].
        update: g_t, which would lead to theta_{t+1}, in the shape of `grad`.
        memory: From `init_signals` or the step before, in the shape of `grad`.

    Returns:
        Signals [..., len(SIGNALS)] and the new memory.
    """
    given = grad, update, *memory.values()
    if fused.serves_problems(*given) and fused.serves_problems(loss.unsqueeze(-1)):
        from haltwise._kernels.fused.signals import measure as fused_measure

        steps = step if isinstance(step, Tensor) else loss.new_full((), step, dtype=torch.int64)
        return fused_measure(steps, loss, grad, update, memory), {"grad": grad, "update": update}
    fits = loss.ndim == 1 and native.serves_all(grad, loss, update, *memory.values())
    if isinstance(step, int) and fits:
        losses, grads, updates = (value.unsqueeze(1) for value in (loss, grad, update))
        signals = measure(step, losses, grads, updates, memory).squeeze(1)
        return signals, {"grad": grad, "update": update}
    products = sum_products(
        widened(grad), widened(update), {name: widened(value) for name, value in memory.items()}
    )
    signals = combine_products(step, loss, products, grad.shape[-1])
    return signals, {"grad": grad, "update": update}


def measure_sequence(
    first: int, losses: Tensor, grads: Tensor, updates: Tensor, memory: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The signals of T consecutive steps at once, and the memory for the step after them.

    Args:
        first: The first of the steps.
        losses: Shape [B, T].
        grads: Shape [B, T, D].
        updates: Shape [B, T, D].
        memory: From `init_signals` or the steps before.
    """
    after = {"grad": grads[:, -1], "update": updates[:, -1]}
    if native.serves_all(grads, losses, updates, *memory.values()):
        return measure(first, losses, grads, updates, memory), after
    last = {
        name: torch.cat((memory[name].unsqueeze(1), now[:, :-1]), 1)
        for name, now in (("grad", grads), ("update", updates))
    }
    steps = torch.arange(first, first + losses.shape[1], device=losses.device)
    signals, _ = measure_signals(steps, losses, grads, updates, last)
    return signals, after


def log_norm(grad: Tensor) -> Tensor:
    """The log rms of gradients [..., D], shape [...]; NaN where an entry is not finite."""
    if fused.serves_problems(grad):
        from haltwise._kernels.fused.signals import log_norms

        return log_norms(grad)
    # Any entry that is not finite must show, also where the norm is finite.
    return log_rms(grad).masked_fill(~are_finite(grad).all(-1), torch.nan)


def sum_products(grad: Tensor, update: Tensor, memory: dict[str, Tensor]) -> Tensor:
    """Inner products that add up over coordinates, to measure a problem part by part.

    Gradient, update and memory are those of `measure_signals`, of some of the coordinates, in a
    dtype that had better be float64.

    Returns:
        Products of all pairs of gamma_t, g_t, y, g_{t-1} and gamma_{t-1}, shape [..., 5, 5].
    """
    last_grad, last_update = memory["grad"], memory["update"]
    vectors = torch.stack((grad, update, grad - last_grad, last_update, last_grad), dim=-2)
    return vectors @ vectors.mT


def combine_products(step: int | Tensor, loss: Tensor, products: Tensor, dim: int) -> Tensor:
    """The signals of step t from the sum of `sum_products` over all coordinates.

    Args:
        step: t, one for all or of every entry of `loss`.
        loss: Observed loss, shape [B] or [..., T].
        products: The sum, shape [..., 5, 5].
        dim: D, the number of all coordinates.

    Returns:
        Shape [..., len(SIGNALS)], in the dtype of the loss.
    """
    # Planes of one product each: few operations, on contiguous memory.
    planes = torch.stack([products[..., i, j] for i, j in _PAIRS])
    squares = planes[:5].clamp_max(torch.finfo(products.dtype).max)
    # Roots first: a product of two squares might vanish.
    grad, update, _, last_update, last_grad = squares.sqrt().clamp_min_(_TINY)
    cosines = planes[7:].clone()
    cosines /= torch.stack((grad, grad, update))
    cosines /= torch.stack((update, last_grad, last_update))
    cosines.clamp_(-1, 1).nan_to_num_(0)
    held = planes[:8].nan_to_num(_HUGE, _HUGE, -_HUGE).clamp_(-_HUGE, _HUGE)
    # The floor is that of `log_rms`.
    logs = (squares[:2] / dim).log_().clamp_min_(3 * math.log(_TINY)).div_(2)
    # Whether there is a step to look back at.
    known: Tensor | float
    wide = loss.to(products.dtype)
    if isinstance(step, Tensor):
        known, steps = (step > 0).to(wide.dtype), step.to(wide.dtype).expand_as(wide)
    else:
        known, steps = float(step > 0), torch.full_like(wide, step)
    half = 0.5 * known
    grad_square, update_square, difference_square, last_update_square = held[:4]
    secant, grad_last_update, grad_update = held[5:]  # <s, y> is above 0 where the loss is convex
    curvature = (secant / last_update_square.clamp_min(_TINY)).clamp(_FLAT, _HUGE)
    inverse_curvature = (secant / difference_square.clamp_min(_TINY)).clamp(0, 1 / _FLAT)
    signals = torch.stack(
        (
            steps,
            wide,
            *logs,
            -grad_update,
            half * curvature * update_square,
            half * inverse_curvature * grad_square,
            half * grad_square / curvature,
            -grad_last_update,
            known * curvature.log(),
            -cosines[0],
            *cosines[1:],
        )
    )
    return signals.to(loss.dtype).movedim(0, -1)


def loss_signals(step: int | Tensor, loss: Tensor) -> Tensor:
    """The signals of a step of which the loss [B] alone is known, shape [B, len(SIGNALS)].

    The step is one for all, or that of each item [B].
    """
    still = loss.new_zeros(len(loss), 1)
    return measure_signals(step, loss, still, still, init_signals(still))[0]


def loss_signals_of_steps(losses: Tensor) -> Tensor:
    """The signals of steps 0..T whose losses [B, T+1] alone are known, [B, T+1, len(SIGNALS)]."""
    return torch.stack([loss_signals(step, loss) for step, loss in enumerate(losses.unbind(1))], 1)
