"""Damped random walks of light curves: 10^4 quasars of 200 points, amplitude, time scale and mean.

The likelihood is that of a Kalman filter, in a number of operations proportional to the points.

    python benchmarks/uses/light_curves.py --threads 1
"""

from typing import Any

import numpy as np
from race import Array, Way, command
from ways import bfgs_ways, haltwise_way, joblib_way

POINTS = 200
CENTER = np.log([0.15, 150.0])  # of log-normal priors of width 1: magnitudes, days
CHUNK = 5000  # a loop over points is bound by dispatch, so many problems at once


def simulate(number: int) -> dict[str, Array]:
    """Days since the point before, magnitudes and variances of their errors, each [B, N]."""
    generator = np.random.default_rng(6)
    days = np.sort(generator.uniform(0, 2000, (number, POINTS)), 1)
    gap = np.diff(days, axis=1, prepend=-1e6)  # nothing is known before the first
    sigma, tau = np.exp(generator.normal(CENTER, [0.4, 0.6], (number, 2))).T
    decay = np.exp(-gap / tau[:, None])
    value, walk = np.zeros(number), np.empty((number, POINTS))
    for point in range(POINTS):
        kick = sigma * np.sqrt(1 - decay[:, point] ** 2)
        value = decay[:, point] * value + kick * generator.standard_normal(number)
        walk[:, point] = value
    error = generator.uniform(0.01, 0.05, (number, POINTS))
    magnitude = 18 + walk + error * generator.standard_normal((number, POINTS))
    return {"gap": gap, "magnitude": magnitude, "variance": error**2}


def start_of(data: dict[str, Array]) -> Array:
    """Logarithms of amplitude and time scale, and the mean."""
    magnitude = data["magnitude"]
    return np.column_stack(
        (np.log(magnitude.std(1)), np.full(len(magnitude), CENTER[1]), magnitude.mean(1))
    )


def losses(params: Array, gap: Array, magnitude: Array, variance: Array) -> Array:
    """Negative logarithm of the posterior, up to a constant."""
    power, tau = np.exp(2 * params[:, 0]), np.exp(params[:, 1])
    mean, spread, total = np.zeros(len(params)), power, np.zeros(len(params))
    for point in range(gap.shape[1]):
        decay = np.exp(-gap[:, point] / tau)
        mean, spread = decay * mean, decay**2 * (spread - power) + power
        expected = spread + variance[:, point]
        surprise = magnitude[:, point] - params[:, 2] - mean
        total += np.log(expected) + surprise**2 / expected
        gain = spread / expected
        mean, spread = mean + gain * surprise, gain * variance[:, point]
    return (total + ((params[:, :2] - CENTER) ** 2).sum(1)) / 2


def torch_loss(params: Any, gap: Any, magnitude: Any, variance: Any) -> Any:
    """The same, as a user of Haltwise writes it."""
    import torch

    gap, magnitude, variance = (
        v.T.contiguous() for v in (gap, magnitude, variance)
    )  # points first
    power, tau = (2 * params[:, 0]).exp(), params[:, 1].exp()
    decays, above = (-gap / tau).exp(), magnitude - params[:, 2]
    mean, spread, total = torch.zeros_like(power), power, torch.zeros_like(power)
    for decay, seen, noise in zip(decays, above, variance, strict=True):
        mean, spread = decay * mean, decay.square() * (spread - power) + power
        expected, surprise = spread + noise, seen - mean
        total = total + expected.log() + surprise.square() / expected
        gain = spread / expected
        mean, spread = mean + gain * surprise, gain * noise
    prior = (params[:, :2] - params.new_tensor(CENTER)).square().sum(1)
    return (total + prior) / 2


def scores(params: Any, gap: Any, magnitude: Any, variance: Any) -> tuple[Any, Any, Any]:
    """The same with its gradient and the expected information, by one pass of the filter.

    Derivatives are carried along (Gupta & Mehra 1974): `means` are those of the mean in the
    logarithms of amplitude and time scale and in the level, `spreads` those of the spread in the
    first two. Where nothing is differentiated, sums grow in place; and a point's numbers are made
    when it is reached, for pages of memory cost more than products.
    """
    import torch

    gap, magnitude, variance = (v.T.contiguous() for v in (gap, magnitude, variance))
    power, rate, level = (2 * params[:, 0]).exp(), (-params[:, 1]).exp(), params[:, 2]
    mean, spread, total = level, power, torch.zeros_like(power)
    means, spreads = power.new_zeros(3, len(power)), power.new_zeros(2, len(power))
    means[2], spreads[0] = 1, 2 * power
    grad, information = torch.zeros_like(means), power.new_zeros(3, 3, len(power))
    for days, seen, noise in zip(gap, magnitude, variance, strict=True):
        age = days * rate
        decay = (-age).exp()
        square, below, away = decay.square(), spread - power, mean - level
        means[2].sub_(1)
        means[1].addcmul_(age, away)
        means.mul_(decay)[2].add_(1)
        spreads[0].sub_(power, alpha=2)
        spreads[1].addcmul_(age, below, value=2)
        spreads.mul_(square)[0].add_(power, alpha=2)
        mean, spread = torch.addcmul(level, decay, away), torch.addcmul(power, square, below)
        inverse, surprise = (spread + noise).reciprocal(), seen - mean
        scaled = surprise * inverse
        pull = surprise * scaled
        total = total + pull - inverse.log()
        part = spreads * inverse
        grad.addcmul_(means, scaled, value=-1)
        grad[:2].addcmul_(part, 1 - pull, value=0.5)
        information.addcmul_((means * inverse).unsqueeze(1), means)
        information[:2, :2].addcmul_(part.unsqueeze(1), part, value=0.5)
        kept = noise * inverse
        means.mul_(kept)[:2].addcmul_(part, kept * surprise)
        spreads.mul_(kept.square())
        mean, spread = mean + spread * scaled, spread * kept
    far = params - params.new_tensor([*CENTER, 0.0])
    prior = params.new_tensor([1.0, 1.0, 0.0])
    loss = (total + (prior * far.square()).sum(1)) / 2
    return loss, grad.T + prior * far, information.permute(2, 0, 1) + torch.diag(prior)


def celerite_one(start: Array, gap: Array, magnitude: Array, variance: Array) -> Array:
    """celerite2's likelihood in SciPy's L-BFGS-B, gradients by differences."""
    import celerite2
    from scipy.optimize import minimize

    days = np.cumsum(np.append(0.0, gap[1:]))

    def value(params: Array) -> float:
        term = celerite2.terms.RealTerm(a=np.exp(2 * params[0]), c=np.exp(-params[1]))
        process = celerite2.GaussianProcess(term, mean=params[2])
        process.compute(days, diag=variance, quiet=True)
        prior = ((params[:2] - CENTER) ** 2).sum() / 2
        return float(prior - process.log_likelihood(magnitude))

    found: Array = minimize(value, start, method="L-BFGS-B").x
    return found


def jax_loss(params: Any, gap: Any, magnitude: Any, variance: Any) -> Any:
    """The same for one light curve of JAX."""
    import jax
    import jax.numpy as jnp

    power, tau = jnp.exp(2 * params[0]), jnp.exp(params[1])

    def step(state: Any, point: Any) -> Any:
        mean, spread, total = state
        decay, seen, noise = point
        mean, spread = decay * mean, decay**2 * (spread - power) + power
        expected, surprise = spread + noise, seen - mean
        total = total + jnp.log(expected) + surprise**2 / expected
        gain = spread / expected
        return (mean + gain * surprise, gain * noise, total), None

    points = (jnp.exp(-gap / tau), magnitude - params[2], variance)
    (_, _, total), _ = jax.lax.scan(step, (0.0 * power, power, 0.0 * power), points)
    return (total + ((params[:2] - CENTER) ** 2).sum()) / 2


def ways(problems: int, threads: int) -> tuple[list[Way], Any]:
    """All ways, and what judges them."""
    data = simulate(problems)
    start = start_of(data)
    settings = {"price": 1e-4, "chunk_size": CHUNK}
    found = [
        Way(
            "haltwise, the loss alone",
            haltwise_way(start, data, settings | {"method": "bfgs"}, loss=torch_loss),
            problems,
        ),
        Way(
            "haltwise, Fisher scoring",
            haltwise_way(start, data, settings | {"method": "newton"}, derivatives=scores),
            problems,
        ),
        *bfgs_ways(start, data, jax_loss),
        Way(
            "celerite2, SciPy L-BFGS-B, joblib",
            joblib_way(start, data, celerite_one, threads),
            min(200, problems),
        ),
    ]
    return found, lambda params: losses(params, **{k: v[: len(params)] for k, v in data.items()})


if __name__ == "__main__":
    command("light-curves", ways, 10_000)
