"""Chances of success: for each point of a curve, that it will meet its target within its budget."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self, final

import numpy as np
import numpy.typing as npt

from haltwise._core.errors import require
from haltwise._core.extras import extra
from haltwise.curves.bins import Bins
from haltwise.curves.curves import Booleans, Floats
from haltwise.curves.features import FEATURES
from haltwise.curves.trees import JoinedTrees, Trees

__all__ = ["MOST_ROWS", "Forecast", "Rows"]

_BOOSTED: dict[str, Any] = {
    "max_iter": 150,
    "learning_rate": 0.06,
    "l2_regularization": 5.0,
    "max_features": 0.3,
    "max_bins": 64,
    "early_stopping": False,
}
_LEAST_LEAF = 100  # rows of a leaf, where there are many
# Leaves of members fitted to the runs' own targets alone, and to easier ones, too. Measured on
# AlgoPerf: the first are better on new submissions to known tasks, the second on unknown tasks.
# Forests of random trees beside them lose: docs/results.md.
_LEAVES = {"own": 15, "all": 8}
_SURE = 1e-4  # no chance is nearer to 0 or 1


MOST_ROWS = 40_000
"""Rows that trees are fitted to where nobody asks for more: a million points take minutes."""


class Rows(NamedTuple):
    """What a forecast is fitted to: points of recorded runs.

    Attributes:
        features: Shape [n, F]; see `haltwise.curves.features`.
        success: Whether the run met its target, bool [n].
        weight: Shape [n]; points of a long run weigh less.
        run: The run of each point, int64 [n].
        easier: Whether the target was made easier than the run's own, bool [n].
    """

    features: Floats
    success: Booleans
    weight: Floats
    run: npt.NDArray[np.int64]
    easier: Booleans

    @staticmethod
    def join(parts: Sequence["Rows"]) -> "Rows":
        """The rows of all parts; runs of different parts keep their numbers."""
        joined: Any = [np.concatenate(values) for values in zip(*parts, strict=True)]
        return Rows(*joined)

    def select(self, where: Booleans) -> "Rows":
        """The rows at `where`, bool [n]."""
        chosen: Any = [values[where] for values in self]
        return Rows(*chosen)

    def thinned(self, most: int, seed: int) -> "Rows":
        """At most so many rows, drawn by their weight from each run alike; all if they are fewer.

        Args:
            most: Rows to draw.
            seed: Of the draw.

        Returns:
            The rows, each with the number of times it was drawn for its weight.
        """
        if len(self.weight) <= most:
            return self
        ends = np.cumsum(self.weight) * (most / self.weight.sum())
        drawn = np.diff(np.floor(ends + np.random.default_rng(seed).random()), prepend=0.0)
        return self._replace(weight=drawn).select(drawn > 0)


@final
class Forecast:
    """The mean of the log-odds of members, each of them boosted trees.

    Args:
        members: By name, sums of trees that are log-odds.
        base: A forecast learned elsewhere, whose log-odds are one more feature; None for none.
        num_features: F, without that of the base.
    """

    def __init__(
        self,
        members: Mapping[str, Trees],
        base: "Forecast | None" = None,
        num_features: int = len(FEATURES),
    ) -> None:
        num = num_features + (base is not None)
        for trees in members.values():
            require(
                trees.num_features == num,
                f"the trees read {trees.num_features} features, not {num}; learn them again with "
                "this version",
            )
        require(len(members) > 0, "a forecast needs trees; learn it again with this version")
        self.members, self.base = dict(members), base
        self._joined = JoinedTrees([*members.values()])

    def chance(self, features: Floats) -> Floats:
        """The probability of success at each of n points, shape [n], from features [n, F]."""
        if self.base is not None:
            features = _with_base(self.base, features)
        logit = np.mean(self._joined(features), 0)
        chance: Floats = 1 / (1 + np.exp(-np.clip(logit, -50, 50)))
        return np.clip(chance, _SURE, 1 - _SURE)

    @classmethod
    def fit(
        cls, rows: Rows, *, seed: int, base: Self | None = None, most_rows: int = MOST_ROWS
    ) -> Self:
        """Fit to rows of which some are successes and some are not; of many to `most_rows`.

        Raises:
            InputError: All rows are successes, or none is.
        """
        import torch

        with extra("learn"):
            from threadpoolctl import threadpool_limits

        # scikit-learn's threads spin where others have the cores.
        with threadpool_limits(limits=torch.get_num_threads()):
            return cls._fit(rows, seed, base, most_rows)

    @classmethod
    def _fit(cls, rows: Rows, seed: int, base: Self | None, most_rows: int) -> Self:
        with extra("learn"):
            from sklearn.ensemble import HistGradientBoostingClassifier

        members = {}
        for name, leaves in _LEAVES.items():
            some = (rows if name == "all" else rows.select(~rows.easier)).thinned(most_rows, seed)
            runs = len(np.unique(some.run[some.success])), len(np.unique(some.run[~some.success]))
            require(
                min(runs) > 0,
                f"{runs[0]} runs met their target and {runs[1]} did not; to learn which will, both "
                "are needed: set another target",
            )
            features = some.features if base is None else _with_base(base, some.features)
            # scikit-learn bins no feature that is never known; a constant is never split.
            features = np.where(np.isnan(features).all(0), 0.0, features)
            num, weight = features.shape[1], some.weight / some.weight.mean()
            leaf = int(np.clip(len(features) // 200, 3, _LEAST_LEAF))
            model = HistGradientBoostingClassifier(
                **_BOOSTED,
                max_leaf_nodes=leaves,
                min_samples_leaf=leaf,
                random_state=seed,
            )
            bins = Bins.of(features, weight, _BOOSTED["max_bins"])
            model.fit(bins.number, some.success, sample_weight=weight)
            members[name] = Trees.of(model, num, bins)
        return cls(members, base, rows.features.shape[1])

    # --------------------------------------------------------------------------------- in a file

    def to_arrays(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
        """Arrays by name and a JSON object, from which `from_arrays` makes the same forecast."""
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, trees in self.members.items():
            arrays |= {f"member.{name}.{key}": each for key, each in trees.to_arrays().items()}
        bases = {name: trees.base for name, trees in self.members.items()}
        document: dict[str, Any] = {"members": bases}
        if self.base is not None:
            below, document["base"] = self.base.to_arrays()
            arrays |= {f"base.{key}": array for key, array in below.items()}
        return arrays, document

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, npt.NDArray[Any]],
        document: Mapping[str, Any],
        num_features: int = len(FEATURES),
    ) -> "Forecast":
        """The forecast of F features that `to_arrays` wrote; every value is checked.

        Raises:
            InputError: It is not what `to_arrays` writes.
        """
        base = None
        if "base" in document:
            require("base" not in document["base"], "a forecast has one base at most")
            base = cls.from_arrays(_below(arrays, "base"), document["base"], num_features)
        num = num_features + (base is not None)
        members = {
            str(name): Trees.from_arrays(_below(arrays, f"member.{name}"), float(value), num)
            for name, value in document.get("members", {}).items()
        }
        return cls(members, base, num_features)


def _with_base(base: Forecast, features: Floats) -> Floats:
    return np.concatenate((features, _logit(base.chance(features))[:, None]), 1)


def _below(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    start = f"{name}."
    return {key[len(start) :]: value for key, value in entries.items() if key.startswith(start)}


def _logit(probability: Floats) -> Floats:
    clipped = np.clip(probability, _SURE, 1 - _SURE)
    logit: Floats = np.log(clipped / (1 - clipped))
    return logit
