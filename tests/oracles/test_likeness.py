"""Which courses are called strange: against the law of normal vectors, whose distance is known."""

import numpy as np
import torch
from draws import DOUBLE
from scipy.stats import chi2

from haltwise.models.scales import Likeness

WIDTH, NUM = 11, 60_000


def normal(num: int, seed: int) -> torch.Tensor:
    """Correlated features [num, WIDTH] of unlike sizes."""
    random = np.random.default_rng(0)
    mix = random.standard_normal((WIDTH, WIDTH)) * np.logspace(-1, 2, WIDTH)
    rows = np.random.default_rng(seed).standard_normal((num, WIDTH))
    return torch.tensor(rows @ mix + 5.0, dtype=DOUBLE)


def test_one_in_a_hundred_is_strange_at_the_quantile_of_chi_squared() -> None:
    found = Likeness.of(normal(NUM, 1))
    quantile = chi2.ppf(0.99, WIDTH)
    assert abs(found.limit / quantile - 1) < 0.03
    fresh = normal(NUM, 2)
    away = np.linalg.solve(np.linalg.cholesky(np.cov(fresh.T)), (fresh - fresh.mean(0)).T.numpy())
    distance = (away**2).sum(0)
    strange = found.is_strange(fresh).numpy()
    assert abs(strange.mean() - 0.01) < 0.002
    clear = abs(distance / quantile - 1) > 0.05
    assert np.array_equal(strange[clear], (distance > quantile)[clear])


def test_a_single_one_is_foreign_at_ten_times_the_limit() -> None:
    found = Likeness.of(normal(NUM, 1))
    middle = torch.tensor(found.middle, dtype=DOUBLE)
    move = normal(1, 3)[0] - middle
    move *= (found.limit / (move @ torch.tensor(found.precision, dtype=DOUBLE) @ move)).sqrt()
    rows = torch.stack([middle + move * size**0.5 for size in (0.99, 1.01, 9.9, 10.1)])
    assert found.is_strange(rows).tolist() == [False, True, True, True]
    assert found.is_foreign(rows).tolist() == [False, False, False, True]


def test_what_is_not_known_is_strange_but_tells_nothing_alone() -> None:
    found = Likeness.of(normal(1000, 1))
    row = torch.tensor([found.middle], dtype=DOUBLE)
    row[0, 3] = torch.nan
    assert found.is_strange(row).all()
    assert not found.is_foreign(row).any()


def test_rows_with_something_unknown_are_not_learned_from() -> None:
    rows = normal(1000, 1)
    holes = torch.full((500, WIDTH), torch.nan, dtype=DOUBLE)
    assert Likeness.of(torch.cat((rows, holes))) == Likeness.of(rows)
