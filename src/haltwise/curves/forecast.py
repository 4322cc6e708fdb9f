"""Chances of success: for each point of a curve, that it will meet its target within its budget."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self, final

import numpy as np
import numpy.typing as npt

from haltwise._core.errors import require
from haltwise.curves.curves import Booleans, Floats
from haltwise.curves.features import FEATURES
from haltwise.curves.trees import Trees

__all__ = ["Forecast", "Rows"]

_BOOSTED = {
    "max_iter": 150,
    "learning_rate": 0.06,
    "max_leaf_nodes": 8,
    "l2_regularization": 5.0,
    "max_features": 0.3,
    "max_bins": 64,
    "early_stopping": False,
}
_LEAST_LEAF = 100  # rows of a leaf, where there are many
_FOREST = {"n_estimators": 60, "max_features": 0.4, "max_leaf_nodes": 250}
_MISSING = -100.0  # below every feature: a forest knows no NaN
_SURE = 1e-4  # no chance is nearer to 0 or 1


class Rows(NamedTuple):
    """What a forecast is fitted to: points of recorded runs.

    Attributes:
        features: Shape [n, F]; see `haltwise.curves.features`.
        success: Whether the run met its target, bool [n].
        weight: Shape [n]; points of a long run weigh less.
        run: The run of each point, int64 [n].
    """

    features: Floats
    success: Booleans
    weight: Floats
    run: npt.NDArray[np.int64]

    @staticmethod
    def join(parts: Sequence["Rows"]) -> "Rows":
        """The rows of all parts; runs of different parts keep their numbers."""
        joined: Any = [np.concatenate(values) for values in zip(*parts, strict=True)]
        return Rows(*joined)

    def select(self, where: Booleans) -> "Rows":
        """The rows at `where`, bool [n]."""
        chosen: Any = [values[where] for values in self]
        return Rows(*chosen)


@final
class Forecast:
    """The mean of boosted trees and of a forest of random trees, which err differently.

    Args:
        boosted: Sums of trees that are log-odds.
        forest: Trees whose sum is a probability.
        base: A forecast learned elsewhere, whose log-odds are one more feature; None for none.
    """

    def __init__(
        self, boosted: Sequence[Trees], forest: Trees, base: "Forecast | None" = None
    ) -> None:
        num = len(FEATURES) + (base is not None)
        for trees in (*boosted, forest):
            require(
                trees.num_features == num,
                f"the trees read {trees.num_features} features, not {num}; learn them again with "
                "this version",
            )
        self.boosted, self.forest, self.base = tuple(boosted), forest, base

    def chance(self, features: Floats) -> Floats:
        """The probability of success at each of n points, shape [n], from features [n, F]."""
        features = self._read(features)
        boosted = [_sigmoid(trees(features)) for trees in self.boosted]
        forest = self.forest(np.nan_to_num(features, nan=_MISSING))
        mean: Floats = (np.mean(boosted, 0) + np.clip(forest, 0, 1)) / 2
        return np.clip(mean, _SURE, 1 - _SURE)

    def _read(self, features: Floats) -> Floats:
        return features if self.base is None else _with_base(self.base, features)

    @classmethod
    def fit(cls, rows: Rows, *, seed: int, num_boosted: int = 2, base: Self | None = None) -> Self:
        """Fit to rows of which some are successes and some are not.

        Raises:
            InputError: All rows are successes, or none is.
        """
        from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier

        num_runs = len(np.unique(rows.run[rows.success])), len(np.unique(rows.run[~rows.success]))
        require(
            min(num_runs) > 0,
            f"{num_runs[0]} runs met their target and {num_runs[1]} did not; to learn which will, "
            "both are needed: set another target",
        )
        features = rows.features if base is None else _with_base(base, rows.features)
        num = features.shape[1]
        leaf = int(np.clip(len(features) // 200, 3, _LEAST_LEAF))
        boosted = []
        for member in range(num_boosted):
            model = HistGradientBoostingClassifier(
                **_BOOSTED, min_samples_leaf=leaf, random_state=seed + member
            )
            model.fit(features, rows.success, sample_weight=rows.weight)
            boosted.append(Trees.of(model, num))
        forest = ExtraTreesClassifier(
            **_FOREST, min_samples_leaf=max(2, leaf // 5), random_state=seed
        )
        finite = np.clip(np.nan_to_num(features, nan=_MISSING), _MISSING, -_MISSING)
        forest.fit(finite, rows.success, sample_weight=rows.weight)
        return cls(boosted, Trees.of_forest(forest, num), base)

    # --------------------------------------------------------------------------------- in a file

    def to_arrays(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Arrays by name and a JSON object, from which `from_arrays` makes the same forecast."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        parts = {f"boosted.{i}": trees for i, trees in enumerate(self.boosted)}
        parts["forest"] = self.forest
        for name, trees in parts.items():
            arrays |= {f"{name}.{key}": array for key, array in trees.nodes.items()}
        document: dict[str, Any] = {"bases": {name: trees.base for name, trees in parts.items()}}
        if self.base is not None:
            below, document["base"] = self.base.to_arrays()
            arrays |= {f"base.{key}": array for key, array in below.items()}
        return arrays, document

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], document: Mapping[str, Any]
    ) -> "Forecast":
        """The forecast that `to_arrays` wrote; every value is checked.

        Raises:
            InputError: It is not what `to_arrays` writes.
        """
        base = None
        if "base" in document:
            require("base" not in document["base"], "a forecast has one base at most")
            base = cls.from_arrays(_below(arrays, "base"), document["base"])
        num = len(FEATURES) + (base is not None)
        bases = {str(name): float(value) for name, value in document["bases"].items()}
        require(len(bases) <= 20 and "forest" in bases, "the file is no forecast")
        parts = {name: Trees(_below(arrays, name), value, num) for name, value in bases.items()}
        forest = parts.pop("forest")
        return cls(list(parts.values()), forest, base)


def _with_base(base: Forecast, features: Floats) -> Floats:
    chance = base.chance(features)
    return np.concatenate((features, np.log(chance / (1 - chance))[:, None]), 1)


def _below(arrays: Mapping[str, npt.NDArray[Any]], name: str) -> dict[str, npt.NDArray[Any]]:
    start = f"{name}."
    return {key[len(start) :]: array for key, array in arrays.items() if key.startswith(start)}


def _sigmoid(logits: Floats) -> Floats:
    probabilities: Floats = 1 / (1 + np.exp(-np.clip(logits, -50, 50)))
    return probabilities
