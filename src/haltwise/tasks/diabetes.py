"""Thousands of small regressions on real measurements."""

from dataclasses import dataclass
from typing import final

import torch

from haltwise._core.errors import require
from haltwise._core.extras import extra
from haltwise._core.settings import require_positive
from haltwise.tasks.base import TaskFamily
from haltwise.tasks.least_squares import LeastSquaresBatch, gaussian_regression, row_counts

__all__ = ["FAMILIES", "Diabetes"]


@final
@dataclass(frozen=True)
class Diabetes(TaskFamily):
    """Regressions on N random rows of the diabetes data (442 patients, 10 features).

    Features and target are centred and scaled to unit variance over the whole table; rows are
    drawn without replacement within a problem. Parameters [D = 10], theta_0 = 0. A test family:
    no shipped optimizer was trained on it. Source: Efron, Hastie, Johnstone & Tibshirani 2004,
    "Least angle regression", as shipped by scikit-learn's `load_diabetes`.
    """

    min_observations: int = 20
    """N is log-uniform on [min_observations, max_observations], per problem."""
    max_observations: int = 200
    """Largest N."""
    beta: float = 1.0
    """Noise precision."""

    def __post_init__(self) -> None:
        require(
            1 <= self.min_observations <= self.max_observations <= 442,
            "N needs 1 <= min_observations <= max_observations <= 442 (the table's rows), "
            f"got {self.min_observations} and {self.max_observations}",
        )
        require_positive(self, "beta")

    @property
    def dim(self) -> int:
        return 10

    def _sample(self, num_problems: int, generator: torch.Generator) -> LeastSquaresBatch:
        with extra("learn"):
            from sklearn.datasets import load_diabetes

        features, target = load_diabetes(return_X_y=True, scaled=False)
        table = torch.from_numpy(features).double()
        response = torch.from_numpy(target).double()
        table = (table - table.mean(0)) / table.std(0, unbiased=False)
        response = (response - response.mean()) / response.std(unbiased=False)

        low, high = self.min_observations, self.max_observations
        count = row_counts(num_problems, low, high, generator)
        keys = torch.rand(num_problems, len(table), generator=generator, dtype=torch.float64)
        order = keys.argsort(1)[:, :high]
        mask = torch.arange(high) < count[:, None]
        design = table[order] * mask.unsqueeze(-1)
        observed = response[order] * mask
        start = torch.zeros(num_problems, self.dim, dtype=torch.float64)
        return gaussian_regression(design, observed, count, self.beta, start)


FAMILIES = {
    "diabetes": Diabetes(),
    "diabetes-large": Diabetes(min_observations=50),
    "diabetes-small": Diabetes(max_observations=20),
}
