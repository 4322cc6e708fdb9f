"""Rigid alignment of point clouds: 10^5 pairs of 50 points, a fifth of them wrong.

Without wrong points the answer is a closed form, a singular value decomposition (Kabsch 1976), and
no iteration is worth its time. With them a robust loss takes its place (Cauchy's), begun at the
closed form.

    python benchmarks/uses/alignment.py --threads 1
"""

from typing import Any

import numpy as np
from race import Array, Way, command
from ways import Solve, bfgs_ways, haltwise_way, joblib_way

POINTS, NOISE = 50, 0.02
SCALE = 2.5 * NOISE  # of Cauchy's loss


def simulate(number: int) -> dict[str, Array]:
    """Pairs of clouds [B, N, 3]; `source` is already turned by the closed form."""
    generator = np.random.default_rng(7)
    source = generator.standard_normal((number, POINTS, 3))
    axis = generator.standard_normal((number, 3))
    angle = generator.uniform(0, np.pi, number)
    half = np.tan(angle / 2)[:, None] * axis / np.linalg.norm(axis, axis=1, keepdims=True)
    half = np.clip(half, -50, 50)
    shift = generator.standard_normal((number, 1, 3))
    target = moved(np.concatenate((half, shift[:, 0]), 1), source)
    target = target + NOISE * generator.standard_normal(target.shape)
    wrong = generator.random((number, POINTS, 1)) < 0.2
    target = np.where(wrong, generator.standard_normal(target.shape) + shift, target)
    return {"source": kabsch(source, target, np.ones((number, POINTS))), "target": target}


def moved(params: Array, source: Array) -> Array:
    """Points turned by tan(angle / 2) * axis (Rodrigues), then shifted."""
    turn, shift = params[:, None, :3], params[:, None, 3:]
    square = (turn * turn).sum(-1)[..., None]
    along = (turn * source).sum(-1)[..., None]
    x, y, z = turn[..., 0], turn[..., 1], turn[..., 2]
    a, b, c = source[..., 0], source[..., 1], source[..., 2]
    cross = np.stack((y * c - z * b, z * a - x * c, x * b - y * a), -1)
    return ((1 - square) * source + 2 * along * turn + 2 * cross) / (1 + square) + shift


def kabsch(source: Array, target: Array, weight: Array) -> Array:
    """The source moved to the target by weighted least squares, in closed form."""
    weight = weight[..., None] / weight.sum(1)[:, None, None]
    center, goal = ((weight * cloud).sum(1, keepdims=True) for cloud in (source, target))
    left, _, right = np.linalg.svd(((source - center) * weight).swapaxes(1, 2) @ (target - goal))
    left[..., -1] *= np.linalg.det(left @ right)[:, None]
    return (source - center) @ (left @ right) + goal


def coordinates_first(data: dict[str, Array]) -> dict[str, Array]:
    """The clouds as [B, 3, N], which PyTorch takes faster."""
    return {name: np.ascontiguousarray(cloud.swapaxes(1, 2)) for name, cloud in data.items()}


def losses(params: Array, source: Array, target: Array) -> Array:
    """Cauchy's loss of distances, of parameters or of points that were moved already."""
    points = params if params.ndim == 3 else moved(params, source)
    return np.log1p(((points - target) ** 2).sum(2) / SCALE**2).sum(1)


def torch_loss(params: Any, source: Any, target: Any) -> Any:
    """The same, as a user of Haltwise writes it: a matrix turns clouds of shape [B, 3, N]."""
    import torch

    points = _rotation(params[:, :3]) @ source + params[:, 3:, None]
    return torch.log1p((points - target).square().sum(1) / SCALE**2).sum(1)


def reweighted(params: Any, source: Any, target: Any) -> tuple[Any, Any, Any]:
    """The same with its gradient and a curvature by iterated weights, which is never indefinite.

    A point q = R p moves with d q = s x q, where the velocity s is 2 (d w + w x d w) / (1 + |w|^2).
    So all that is needed of the cloud are weighted sums: of q, of q q^T and of q times what is left
    to the target.
    """
    import torch

    turn = params[:, :3]
    one = torch.eye(3, dtype=params.dtype, device=params.device)
    turned = _rotation(turn) @ source
    left = turned + params[:, 3:, None] - target
    square = left.square().sum(1, keepdim=True)
    weight = 2 / (SCALE**2 + square)
    weighted = weight * turned
    mass, middle, force = weight.sum(2), weighted.sum(2), (weight * left).sum(2)
    inertia, twist = weighted @ turned.mT, weighted @ left.mT
    inertia = inertia.diagonal(dim1=1, dim2=2).sum(1)[:, None, None] * one - inertia
    torque = (twist - twist.mT)[:, [1, 2, 0], [2, 0, 1]]
    spin = 2 * (one + _crossed(turn)) / (1 + turn.square().sum(1))[:, None, None]
    mixed = spin.mT @ _crossed(middle)
    gradient = torch.cat(((torque.unsqueeze(1) @ spin).squeeze(1), force), 1)
    rows = (spin.mT @ inertia @ spin, mixed), (mixed.mT, mass.unsqueeze(2) * one)
    curvature = torch.cat([torch.cat(row, 2) for row in rows], 1)
    return torch.log1p(square / SCALE**2).sum((1, 2)), gradient, curvature


def _rotation(turn: Any) -> Any:
    """The matrix of Rodrigues' vector, shape [B, 3, 3]."""
    import torch

    one = torch.eye(3, dtype=turn.dtype, device=turn.device)
    square = turn.square().sum(1)[:, None, None]
    matrix = (1 - square) * one + 2 * (turn.unsqueeze(2) * turn.unsqueeze(1) + _crossed(turn))
    return matrix / (1 + square)


def _crossed(points: Any) -> Any:
    """The matrix of v -> p x v, shape [..., 3, 3]."""
    import torch

    x, y, z = points.unbind(-1)
    zero = torch.zeros_like(x)
    rows = (zero, -z, y, z, zero, -x, -y, x, zero)
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def iterated_svd(data: dict[str, Array], steps: int) -> Solve:
    """The closed form with iterated weights, by batched decompositions: points, not parameters."""

    def solve(number: int) -> Array:
        source, target = data["source"][:number], data["target"][:number]
        points = source
        for _ in range(steps):
            square = ((points - target) ** 2).sum(2)
            points = kabsch(source, target, 1 / (SCALE**2 + square))
        return points

    return solve


def scipy_one(start: Array, source: Array, target: Array) -> Array:
    """SciPy's L-BFGS-B with the gradient by hand."""
    from scipy.optimize import minimize

    def value(params: Array) -> tuple[float, Array]:
        turn, size = params[:3], 1 + params[:3] @ params[:3]
        points = moved(params[None], source[None])[0]
        residual = points - target
        square = (residual**2).sum(1)
        pull = residual * (2 / (SCALE**2 + square))[:, None]
        by_turn = source.T @ (pull @ turn) + pull.T @ (source @ turn)
        by_turn += np.cross(source, pull).sum(0)
        by_turn -= turn * ((source + points - params[3:]) * pull).sum()
        return float(np.log1p(square / SCALE**2).sum()), np.append(2 * by_turn / size, pull.sum(0))

    found: Array = minimize(value, start, jac=True, method="L-BFGS-B").x
    return found


def jax_loss(params: Any, source: Any, target: Any) -> Any:
    """The same for one pair of JAX."""
    import jax.numpy as jnp

    turn, square = params[:3], params[:3] @ params[:3]
    x, y, z = turn
    crossed = jnp.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    matrix = (1 - square) * jnp.eye(3) + 2 * (jnp.outer(turn, turn) + crossed)
    points = (matrix / (1 + square)) @ source + params[3:, None]
    return jnp.log1p(((points - target) ** 2).sum(0) / SCALE**2).sum()


def ways(problems: int, threads: int) -> tuple[list[Way], Any]:
    """All ways, and what judges them."""
    data = simulate(problems)
    start = np.zeros((problems, 6))
    settings = {"price": 1e-4}
    long = coordinates_first(data)
    own = haltwise_way(start, long, settings | {"method": "bfgs"}, loss=torch_loss)
    by_hand = haltwise_way(start, long, settings | {"method": "newton"}, derivatives=reweighted)
    found = [
        Way("haltwise, the loss alone", own, problems),
        Way("haltwise, iterated weights", by_hand, problems),
        *(
            Way(f"SVD by iterated weights, {steps}", iterated_svd(data, steps), problems)
            for steps in (6, 12)
        ),
        *bfgs_ways(start, long, jax_loss),
        Way(
            "SciPy L-BFGS-B, joblib",
            joblib_way(start, data, scipy_one, threads),
            min(1000, problems),
        ),
    ]
    return found, lambda params: losses(params, **{k: v[: len(params)] for k, v in data.items()})


if __name__ == "__main__":
    command("alignment", ways, 100_000)
