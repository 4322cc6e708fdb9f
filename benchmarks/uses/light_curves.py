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

    Derivatives of mean and spread are carried along (Gupta & Mehra 1974): `_power` in the logarithm
    of the amplitude, `_tau` of the time scale, `_level` in the mean.
    """
    import torch

    power, tau = (2 * params[:, 0]).exp(), params[:, 1].exp()
    age = gap / tau.unsqueeze(1)
    decays = (-age).exp()
    grown = (decays * age).unbind(1)  # derivatives of decays in the logarithm of tau
    above = (magnitude - params[:, 2:]).unbind(1)
    zero = torch.zeros_like(power)
    mean, spread, total = zero, power, zero
    mean_power = mean_tau = mean_level = spread_tau = zero
    spread_power = 2 * power
    grad, information = torch.zeros_like(params), params.new_zeros(len(params), 3, 3)
    curves = zip(decays.unbind(1), grown, above, variance.unbind(1), strict=True)
    for decay, slope, seen, noise in curves:
        square = decay.square()
        spread_tau = square * spread_tau + 2 * decay * slope * (spread - power)
        spread_power = square * (spread_power - 2 * power) + 2 * power
        mean_tau = decay * mean_tau + slope * mean
        mean_power, mean_level = decay * mean_power, decay * mean_level
        mean, spread = decay * mean, square * (spread - power) + power
        expected, surprise = spread + noise, seen - mean
        total = total + expected.log() + surprise.square() / expected
        by_mean = torch.stack((-mean_power, -mean_tau, -1 - mean_level), 1)
        by_spread = torch.stack((spread_power, spread_tau, zero), 1) / expected.unsqueeze(1)
        scaled = (surprise / expected).unsqueeze(1)
        grad = grad + by_spread * (0.5 - 0.5 * surprise.unsqueeze(1) * scaled) + by_mean * scaled
        lever = torch.stack((by_mean / expected.sqrt().unsqueeze(1), by_spread / 2**0.5), 2)
        information = information + lever @ lever.mT
        gain = spread / expected
        kept = noise / expected.square()
        gain_power, gain_tau = spread_power * kept, spread_tau * kept
        mean_power = mean_power + gain_power * surprise - gain * mean_power
        mean_tau = mean_tau + gain_tau * surprise - gain * mean_tau
        mean_level = mean_level - gain * (1 + mean_level)
        mean, spread = mean + gain * surprise, gain * noise
        spread_power, spread_tau = gain_power * noise, gain_tau * noise
    away = torch.cat((params[:, :2] - params.new_tensor(CENTER), zero.unsqueeze(1)), 1)
    prior = torch.diag(params.new_tensor([1.0, 1.0, 0.0]))
    return (total + away.square().sum(1)) / 2, grad + away, information + prior


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
