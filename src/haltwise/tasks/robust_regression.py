"""Regression with Student-t noise: a non-convex loss that outliers do not dominate."""

import math
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import require_positive
from haltwise.tasks.base import Observation, TaskBatch
from haltwise.tasks.regression import NormalRegression

__all__ = ["FAMILIES", "StudentTBatch", "StudentTRegression"]


@final
@dataclass(frozen=True)
class StudentTBatch(TaskBatch):
    """f(theta) = sum_n (nu + 1)/2 log(1 + r_n^2 / (nu s^2)) + log-normalizer, r = y - X theta."""

    design: Tensor
    """Shape [B, N, D]."""
    observed: Tensor
    """Shape [B, N]."""
    reference: Tensor
    """Loss at the best known local minimum, shape [B]; see `StudentTRegression`."""
    degrees: float
    """nu, the degrees of freedom."""
    noise_scale: float
    """s, the scale of the noise."""

    @property
    def reference_loss(self) -> Tensor:
        return self.reference

    def observe(self, params: Tensor, step: int) -> Observation:
        del step  # deterministic
        residual = self.observed - torch.bmm(self.design, params.unsqueeze(-1)).squeeze(-1)
        width = self.degrees * self.noise_scale**2
        loss = 0.5 * (self.degrees + 1) * torch.log1p(residual.square() / width).sum(1)
        weight = (self.degrees + 1) / (width + residual.square())
        grad = -torch.bmm(self.design.mT, (weight * residual).unsqueeze(-1)).squeeze(-1)
        return Observation(loss + self._log_normalizer(), grad)

    def _log_normalizer(self) -> float:
        half = self.degrees / 2
        single = math.lgamma(half) - math.lgamma(half + 0.5)
        single += 0.5 * math.log(math.pi * self.degrees) + math.log(self.noise_scale)
        return self.design.shape[1] * single


@final
@dataclass(frozen=True)
class StudentTRegression(NormalRegression):
    """Regression with Student-t noise, with the designs of `NormalRegression`.

    The loss has no closed-form minimum and may have several; the reference is the end of
    `num_reference_steps` of expectation maximisation (iteratively reweighted least squares) started
    at the true parameters. Excess losses can therefore be slightly negative in the rare problem
    with a better minimum elsewhere. Source: Lange, Little & Taylor 1989, "Robust statistical
    modeling using the t distribution".
    """

    num_observations: int = 20
    """N, observations of a problem."""
    spread: float = 0.0
    """Standard deviation of ln s."""
    degrees: float = 3.0
    """nu, the degrees of freedom of the noise."""
    noise_scale: float = 1.0
    """Scale of the noise."""
    num_reference_steps: int = 200
    """Steps of expectation maximisation towards the reference minimum."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "degrees", "noise_scale")
        require(
            self.num_observations >= self.num_params,
            f"num_observations must be at least num_params = {self.num_params} for a reference "
            f"solution, got {self.num_observations}",
        )

    def _sample(self, num_problems: int, generator: torch.Generator) -> StudentTBatch:
        design, truth = self._draw(num_problems, generator)
        normal = torch.randn(design.shape[:2], generator=generator, dtype=torch.float64)
        # chi^2_nu / nu as a Gamma drawn by inversion-free rejection inside torch
        gamma = torch._standard_gamma(
            torch.full(normal.shape, self.degrees / 2, dtype=torch.float64), generator=generator
        )
        noise = self.noise_scale * normal / (2 * gamma / self.degrees).sqrt()
        observed = torch.einsum("bnd,bd->bn", design, truth) + noise
        minimizer = self._expectation_maximisation(design, observed, truth)
        batch = StudentTBatch(
            start=torch.zeros_like(truth),
            design=design,
            observed=observed,
            reference=torch.zeros(num_problems, dtype=torch.float64),
            degrees=self.degrees,
            noise_scale=self.noise_scale,
        )
        return replace(batch, reference=batch.observe(minimizer, 0).loss)

    def _expectation_maximisation(self, design: Tensor, observed: Tensor, params: Tensor) -> Tensor:
        width = self.degrees * self.noise_scale**2
        for _ in range(self.num_reference_steps):
            residual = observed - torch.einsum("bnd,bd->bn", design, params)
            weighted = design * ((self.degrees + 1) / (width + residual.square())).unsqueeze(-1)
            params = torch.linalg.solve(
                weighted.mT @ design, torch.einsum("bnd,bn->bd", weighted, observed)
            )
        return params


FAMILIES = {"student-t-10d": StudentTRegression()}
