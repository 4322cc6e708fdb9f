"""Which courses are called strange: against the law of normal vectors, whose distance is known."""

import math

import numpy as np
import pytest
import torch
from draws import DOUBLE, seeded
from scipy.stats import chi2

from haltwise.models.scales import Likeness, Scales
from haltwise.processes.signals import SIGNALS
from haltwise.rollout import record
from haltwise.tasks import family
from haltwise.update_rules import Adam

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


def test_a_feature_that_follows_from_others_tells_nothing_by_its_rounding() -> None:
    rows, fresh = normal(2000, 1), normal(2000, 2)
    twice, again = (torch.cat((each, each[:, :1] + 1e-9), 1) for each in (rows, fresh))
    one, two = Likeness.of(rows), Likeness.of(twice)
    assert np.isfinite(two.precision).all()
    assert abs(two.is_strange(again).double().mean() - one.is_strange(fresh).double().mean()) < 0.01
    again[:, -1] += 1e-6 * rows[:, 0].std()  # other rounding, as on another machine
    assert not two.is_foreign(again).any()


def test_the_longest_wait_is_that_before_the_stop_of_all_but_one_in_a_thousand() -> None:
    batch = family("quadratic-10d").sample(600, seeded(0))
    recorded = record(Adam(0.3), batch, 20)
    stops = torch.randint(1, 7, (600,), generator=seeded(1))
    price = torch.full((600,), 0.1)
    waits = []
    for losses, stop in zip(recorded.loss.tolist(), stops.tolist(), strict=True):
        lowest, at, longest = np.inf, 0, 0
        for step in range(stop + 1):
            if losses[step] < lowest:
                lowest, at = losses[step], step
            longest = max(longest, step - at)
        waits.append(longest)
    found = Scales.of(recorded, stops, price, 10)
    assert found is not None
    assert found.longest_wait == math.ceil(np.quantile(waits, 0.999))
    assert 2 < found.longest_wait < 7
    first = recorded.known("signals")[:, 0, SIGNALS.index("log_grad")]
    expected = np.quantile(first.double(), (0.001, 0.5, 0.999))
    usual = found.grad
    assert (usual.low, usual.middle, usual.high) == pytest.approx(tuple(expected))
