"""Rounds of gradient boosting: when another tree does not pay, on the validation set seen."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, final

import numpy as np
import numpy.typing as npt

from haltwise._core.extras import extra
from haltwise.bench.domain import Domain, Sample
from haltwise.curves.curves import Curves, Floats

__all__ = ["BoostingDomain"]

_ROUNDS = 80
_ROWS = 700  # of a data set, at most


class _Data(NamedTuple):
    inputs: Floats
    answers: npt.NDArray[Any]
    is_class: bool


def _bundled(load: str, *, is_class: bool) -> Callable[[np.random.RandomState], _Data]:
    def make(random: np.random.RandomState) -> _Data:
        with extra("learn"):
            from sklearn import datasets

        inputs, answers = getattr(datasets, load)(return_X_y=True)
        rows = random.permutation(len(answers))[:_ROWS]
        return _Data(inputs[rows], answers[rows], is_class)

    return make


def _synthetic(load: str, *, is_class: bool, **settings: Any) -> Callable[..., _Data]:
    def make(random: np.random.RandomState) -> _Data:
        with extra("learn"):
            from sklearn import datasets

        inputs, answers = getattr(datasets, load)(n_samples=_ROWS, random_state=random, **settings)
        return _Data(inputs, answers, is_class)

    return make


_DATA: Mapping[str, Callable[[np.random.RandomState], _Data]] = MappingProxyType(
    {
        "breast cancer": _bundled("load_breast_cancer", is_class=True),
        "wine": _bundled("load_wine", is_class=True),
        "iris": _bundled("load_iris", is_class=True),
        "diabetes": _bundled("load_diabetes", is_class=False),
        "friedman 1": _synthetic("make_friedman1", is_class=False, noise=2.0),
        "friedman 2": _synthetic("make_friedman2", is_class=False, noise=100.0),
        "friedman 3": _synthetic("make_friedman3", is_class=False, noise=0.2),
        "linear": _synthetic(
            "make_regression", is_class=False, n_features=15, n_informative=5, noise=60.0
        ),
        "sparse": _synthetic("make_sparse_uncorrelated", is_class=False),
        "hastie": _synthetic("make_hastie_10_2", is_class=True),
        "moons": _synthetic("make_moons", is_class=True, noise=0.35),
        "circles": _synthetic("make_circles", is_class=True, noise=0.25, factor=0.6),
        "noisy classes": _synthetic(
            "make_classification", is_class=True, n_features=15, n_informative=4, flip_y=0.2
        ),
        "clean classes": _synthetic(
            "make_classification", is_class=True, n_features=15, n_informative=8, flip_y=0.0
        ),
    }
)


@final
@dataclass(frozen=True)
class BoostingDomain(Domain):
    """scikit-learn's gradient boosting on 14 data sets: parts, depths and rates drawn at random."""

    title: ClassVar[str] = "rounds of gradient boosting"
    is_made: ClassVar[bool] = True
    scored: ClassVar[str | None] = "test_loss"

    def curves(self, sample: Sample) -> Curves:
        names = [list(_DATA)[i % len(_DATA)] for i in range(sample.num_runs)]
        seeds = np.random.SeedSequence([sample.seed, 1]).spawn(len(names))
        runs = [_boost(name, seed) for name, seed in zip(names, seeds, strict=True)]
        return Curves.from_runs(
            runs, metric="valid_loss", group=names, task=names, budget=_ROUNDS, cost_unit="rounds"
        )


def _boost(name: str, seed: np.random.SeedSequence) -> dict[str, Floats]:
    """Losses of one boosting on parts of a data set, after each round."""
    with extra("learn"):
        from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

    generator = np.random.default_rng(seed)
    data = _DATA[name](np.random.RandomState(int(generator.integers(2**31))))
    rows = generator.permutation(len(data.answers))
    num = int(len(rows) * generator.uniform(0.15, 0.6))
    half = (len(rows) - num) // 2
    parts = (rows[:num], rows[num : num + half], rows[num + half :])
    kind = GradientBoostingClassifier if data.is_class else GradientBoostingRegressor
    model = kind(
        n_estimators=_ROUNDS, max_depth=int(generator.integers(1, 5)), subsample=0.8,
        learning_rate=float(np.exp(generator.uniform(np.log(0.03), np.log(0.6)))),
        random_state=int(generator.integers(2**31)),
    ).fit(data.inputs[parts[0]], data.answers[parts[0]])  # fmt: skip
    found = {"cost": np.arange(_ROUNDS + 1.0)}
    for column, part in zip(("train_loss", "valid_loss", "test_loss"), parts, strict=True):
        found[column] = np.array(_staged(model, data, part, parts[0]))
    return found


def _staged(model: Any, data: _Data, part: Any, train: Any) -> list[float]:
    """Log loss, or squared error in variances of the training answers; that of no tree first."""
    inputs, answers = data.inputs[part], data.answers[part]
    if not data.is_class:
        known = data.answers[train]
        unit = known.var() + 1e-12
        stages = [np.full(len(part), known.mean()), *model.staged_predict(inputs)]
        return [float(np.mean((answers - stage) ** 2) / unit) for stage in stages]
    classes, counts = np.unique(data.answers[train], return_counts=True)
    place = np.searchsorted(classes, answers).clip(0, len(classes) - 1)
    share = np.tile(counts / counts.sum(), (len(part), 1))
    stages = [share, *model.staged_predict_proba(inputs)]
    # A class that the training part lacks has the smallest probability there is.
    right = classes[place] == answers
    each = [np.where(right, stage[np.arange(len(part)), place], 0) for stage in stages]
    return [float(-np.log(np.clip(chance, 1e-6, 1)).mean()) for chance in each]


DOMAINS = {"boosting": BoostingDomain()}
