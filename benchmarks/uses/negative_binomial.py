"""Negative-binomial regression per gene: 10^5 genes, 30 samples, 4 effects and a dispersion.

python benchmarks/uses/negative_binomial.py --threads 1
python benchmarks/uses/negative_binomial.py --signs 300   # against statsmodels
"""

import sys
from typing import Any

import numpy as np
from race import Array, Way, command
from ways import Solve, bfgs, haltwise_way, joblib_way, vmap_way

SAMPLES, EFFECTS = 30, 4
LEAST, MOST = 1e-6, 1e3  # of a dispersion; counts of a smaller one are Poisson's
ALONE = {"method": "bfgs", "price": 1e-5}
GIVEN = {"method": "newton", "price": 1e-4}
_CLIP = 3.0  # of a step of the Newton by hand, which has no line search


def simulate(number: int) -> dict[str, Array]:
    """Counts [B, N] of genes, and the design [B, N, 4]: intercept, treatment, batch, age.

    Half of the genes respond to the treatment; the intercept is of a log-normal expression, the
    dispersion log-normal about 0.2. Genes with fewer than 10 reads in all are drawn again, as
    such genes are filtered before an analysis.
    """
    generator = np.random.default_rng(4)
    design = np.column_stack(
        (
            np.ones(SAMPLES),
            np.arange(SAMPLES) % 2,
            np.arange(SAMPLES) // 15,
            generator.standard_normal(SAMPLES),
        )
    )
    counts = np.empty((0, SAMPLES))
    while len(counts) < number:
        effects = generator.normal(0, 0.3, (number, EFFECTS))
        effects[:, 0] = generator.normal(3.5, 1.5, number)
        effects[:, 1] = np.where(generator.random(number) < 0.5, generator.normal(0, 1, number), 0)
        dispersion = np.exp(generator.normal(np.log(0.2), 0.7, number))[:, None]
        gamma = generator.gamma(1 / dispersion, dispersion, (number, SAMPLES))
        drawn = generator.poisson(gamma * np.exp(effects @ design.T)).astype(float)
        counts = np.concatenate((counts, drawn[drawn.sum(1) >= 10]))
    return {"x": np.broadcast_to(design, (number, SAMPLES, EFFECTS)), "y": counts[:number]}


def start_of(data: dict[str, Array]) -> Array:
    """Where all begin: the logarithm of the mean count, no effects, a dispersion of 0.1."""
    start = np.zeros((len(data["y"]), EFFECTS + 1))
    start[:, 0] = np.log(data["y"].mean(1))
    start[:, -1] = np.log(0.1)
    return start


def losses(params: Array, x: Array, y: Array) -> Array:
    """Negative log-likelihood of effects and the logarithm of the dispersion, bounded from below.

    Where 1 / dispersion is large, lnG(y + 1/dispersion) - lnG(1/dispersion) is the difference of
    two Stirling series, which does not cancel.
    """
    from scipy.special import gammaln

    eta = np.einsum("bnd,bd->bn", x, params[:, :-1])
    size = np.exp(-np.maximum(params[:, -1:], np.log(LEAST)))
    rising = gammaln(y + size) - gammaln(size)
    stirling = (size + y - 0.5) * np.log1p(y / size) + y * np.log(size) - y
    stirling += (1 / (size + y) - 1 / size) / 12
    rising = np.where(size > 1e3, stirling, rising)
    shrunk = np.log1p(np.exp(eta) / size)
    return -(rising - gammaln(y + 1) + y * (eta - np.log(size) - shrunk) - size * shrunk).sum(1)


def torch_loss(params: dict[str, Any], x: Any, y: Any) -> Any:
    """The same, as a user of Haltwise writes it."""
    import torch

    eta = (params["effect"].unsqueeze(1) @ x.mT).squeeze(1)
    size = 1 / params["dispersion"].unsqueeze(1)
    shrunk = torch.log1p(eta.exp() / size)
    likelihood = torch.lgamma(y + size) - torch.lgamma(size) - torch.lgamma(y + 1)
    likelihood = likelihood + y * (eta - size.log() - shrunk) - size * shrunk
    return -likelihood.sum(1)


def derivatives(params: Any, x: Any, y: Any) -> tuple[Any, Any, Any]:
    """Loss, gradient and curvature by hand, in effects and a: the dispersion is LEAST + exp(a)."""
    import torch

    eta, grown = (params[:, None, :-1] @ x.mT).squeeze(1), params[:, -1:].exp()
    size = 1 / (LEAST + grown)
    slope = -grown * size.square()  # of size in a
    bend = slope + 2 * grown.square() * size**3
    mean = eta.exp()
    shrunk, total = torch.log1p(mean / size), size + mean
    share = mean / total
    loss = torch.lgamma(size) + torch.lgamma(y + 1) - torch.lgamma(y + size) + size * shrunk
    loss = loss - y * (eta - size.log() - shrunk)
    by_eta = (y + size) * share - y
    by_size = torch.digamma(y + size) - torch.digamma(size) - shrunk + (mean - y) / total
    by_size2 = torch.polygamma(1, y + size) - torch.polygamma(1, size) + 1 / size - 1 / total
    by_size2 = by_size2 - (mean - y) / total.square()
    mixed = -slope * share * (y - mean) / total
    grad = torch.cat(((by_eta.unsqueeze(1) @ x).squeeze(1), -(slope * by_size).sum(1, True)), 1)
    curvature = x.new_empty(len(x), EFFECTS + 1, EFFECTS + 1)
    curvature[:, :-1, :-1] = x.mT @ (((y + size) * share * (1 - share)).unsqueeze(-1) * x)
    curvature[:, -1, :-1] = curvature[:, :-1, -1] = (mixed.unsqueeze(1) @ x).squeeze(1)
    curvature[:, -1, -1] = -(by_size * bend + by_size2 * slope.square()).sum(1)
    return loss.sum(1), grad, curvature


def shown(params: Array) -> Array:
    """The logarithm of the dispersion in place of a."""
    return np.column_stack((params[:, :-1], np.log(LEAST + np.exp(params[:, -1]))))


def newton(start: Array, data: dict[str, Array], steps: int = 25) -> Solve:
    """A batched Newton written for this loss: steps clipped, eigenvalues made positive."""
    import torch

    x, y, begun = (torch.from_numpy(np.array(v)) for v in (data["x"], data["y"], start))

    def solve(number: int) -> Array:
        params = begun[:number].clone()
        for _ in range(steps):
            _, grad, curvature = derivatives(params, x[:number], y[:number])
            values, vectors = torch.linalg.eigh(curvature)
            inverse = vectors / values.abs().clamp_min(1e-8).unsqueeze(1) @ vectors.mT
            move = (inverse @ grad.unsqueeze(-1)).squeeze(-1)
            params = params - move * (_CLIP / move.norm(dim=1, keepdim=True)).clamp_max(1)
        return shown(params.numpy())

    return solve


def scipy_one(start: Array, x: Array, y: Array) -> Array:
    """SciPy's L-BFGS-B with the gradient by hand."""
    from scipy.optimize import minimize
    from scipy.special import digamma, gammaln

    constant = gammaln(y + 1).sum()

    def value(params: Array) -> tuple[float, Array]:
        eta, size = x @ params[:-1], np.exp(-params[-1])
        mean = np.exp(eta)
        shrunk, total = np.log1p(mean / size), size + mean
        loss = gammaln(size) - gammaln(y + size) + size * shrunk
        loss -= y * (eta - np.log(size) - shrunk)
        by_size = digamma(y + size) - digamma(size) - shrunk + (mean - y) / total
        by_eta = (y + size) * mean / total - y
        return loss.sum() + constant, np.append(by_eta @ x, size * by_size.sum())

    bounds = [(None, None)] * EFFECTS + [(np.log(LEAST), np.log(MOST))]
    found: Array = minimize(value, start, jac=True, method="L-BFGS-B", bounds=bounds).x
    return found


def jax_loss(params: Any, x: Any, y: Any) -> Any:
    """The same for one problem of JAX."""
    import jax.numpy as jnp
    from jax.scipy.special import gammaln

    eta, size = x @ params[:-1], 1 / (LEAST + jnp.exp(params[-1]))
    shrunk = jnp.log1p(jnp.exp(eta) / size)
    likelihood = gammaln(y + size) - gammaln(size) - gammaln(y + 1)
    return -(likelihood + y * (eta - jnp.log(size) - shrunk) - size * shrunk).sum()


def named(start: Array, data: dict[str, Array], settings: Any) -> Solve:
    """`haltwise.solve` of named parameters, the dispersion within bounds."""
    import haltwise

    def solve(number: int) -> Array:
        batch = haltwise.FunctionBatch(
            {"effect": start[:number, :-1], "dispersion": np.exp(start[:number, -1])},
            torch_loss,
            {name: value[:number] for name, value in data.items()},
            bounds={"dispersion": haltwise.interval(LEAST, MOST)},
        )
        found = haltwise.solve(batch, **settings).params
        return np.column_stack((found["effect"], np.log(found["dispersion"])))

    return solve


def ways(problems: int, threads: int) -> tuple[list[Way], Any]:
    """All ways, and what judges them."""
    data = simulate(problems)
    start = start_of(data)
    by_hand = haltwise_way(start, data, GIVEN, derivatives=derivatives)

    def jax_way(tolerance: float) -> Solve:
        solve = vmap_way(start, data, bfgs(jax_loss, tolerance))
        return lambda number: shown(solve(number))

    found = [
        Way("haltwise, the loss alone", named(start, data, ALONE), problems),
        Way("haltwise, derivatives given", lambda number: shown(by_hand(number)), problems),
        Way("torch, Newton by hand, 25 steps", newton(start, data), problems),
        *(
            Way(f"optimistix BFGS {tolerance:g}, vmap", jax_way(tolerance), problems)
            for tolerance in (1e-3, 1e-4, 1e-6)
        ),
        Way(
            "SciPy L-BFGS-B, joblib",
            joblib_way(start, data, scipy_one, threads),
            min(1000, problems),
        ),
    ]
    return found, lambda params: losses(params, **{k: v[: len(params)] for k, v in data.items()})


def compare_signs(number: int) -> None:
    """Effects and standard errors beside those of statsmodels, and count flipped signs."""
    import warnings

    import statsmodels.api as sm

    import haltwise

    data = simulate(number)
    start = start_of(data)
    batch = haltwise.FunctionBatch(
        {"effect": start[:, :-1], "dispersion": np.exp(start[:, -1])},
        torch_loss,
        data,
        bounds={"dispersion": haltwise.interval(LEAST, MOST)},
    )
    solution = haltwise.solve(batch, method="auto", standard_errors=True)
    assert solution.standard_errors is not None
    ours, errors = solution.params["effect"], solution.standard_errors.params["effect"]
    flips, large, compared, furthest, widest = 0, 0, 0, 0.0, 0.0
    for gene in range(number):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = sm.NegativeBinomial(data["y"][gene], data["x"][gene])
            begun = np.append(start[gene, :-1], 0.1)
            fit = model.fit(begun, method="bfgs", maxiter=500, gtol=1e-8, disp=False)
        theirs, bse = fit.params[:-1], fit.bse[:-1]
        clear = np.abs(theirs) > 2 * bse
        flips += int((np.sign(ours[gene]) != np.sign(theirs))[clear].sum())
        large += int(clear.sum())
        if fit.mle_retvals["converged"] and np.isfinite(bse).all():
            compared += 1
            furthest = max(furthest, float((np.abs(ours[gene] - theirs) / bse).max()))
            widest = max(widest, float(np.nanmax(np.abs(errors[gene] / bse - 1))))
    print(  # noqa: T201
        f"{number} genes: {flips} flips of {large} effects beyond two standard errors; where "
        f"statsmodels converged ({compared}) effects differ by at most {furthest:.1e} standard "
        f"errors, and these by {widest:.1e}"
    )


if __name__ == "__main__":
    if "--signs" in sys.argv:
        compare_signs(int(sys.argv[sys.argv.index("--signs") + 1]))
    else:
        command("negative-binomial", ways, 100_000)
