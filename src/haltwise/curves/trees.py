"""Boosted regression trees as plain arrays: small files, no pickles, scikit-learn only to train."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self, final

import numpy as np
import numpy.typing as npt

from haltwise._core.errors import require
from haltwise.curves.curves import Floats

__all__ = ["Trees"]

_DEEPEST = 64  # levels of a tree; more in a file is an error, not a long walk
_DTYPES: dict[str, Any] = {
    "feature": np.int16,
    "threshold": np.float32,
    "missing_left": np.bool_,
    "left": np.int16,
    "right": np.int16,
    "value": np.float32,
}


@final
class Trees:
    """A sum of M regression trees of at most N nodes each, evaluated for all rows at once.

    Args:
        nodes: By name, shape [M, N] each. An inner node sends a row left where its `feature` is at
            most `threshold`, or where it is NaN and `missing_left`; `left` and `right` are places
            in the same tree. A leaf is its own left and right child and has a `value`.
        base: What is added to the sum.
        num_features: F; rows have as many.

    Raises:
        InputError: A shape, a feature or a child is impossible.
    """

    def __init__(
        self, nodes: Mapping[str, npt.NDArray[Any]], base: float, num_features: int
    ) -> None:
        require(
            nodes.keys() == _DTYPES.keys(),
            f"trees have the arrays {', '.join(_DTYPES)}; got {', '.join(nodes)}",
        )
        self.nodes: dict[str, npt.NDArray[Any]] = {
            name: np.asarray(nodes[name], dtype) for name, dtype in _DTYPES.items()
        }
        shapes = {array.shape for array in self.nodes.values()}
        require(
            len(shapes) == 1 and len(next(iter(shapes))) == 2 and min(next(iter(shapes))) > 0,
            f"the arrays of trees must have one shape [M, N], got {sorted(shapes)}",
        )
        num = next(iter(shapes))[1]
        for name, limit in (("feature", num_features), ("left", num), ("right", num)):
            array = self.nodes[name]
            require(
                bool((array >= 0).all() and (array < limit).all()),
                f"{name} of a tree must lie in 0..{limit - 1}; the file is damaged",
            )
        self.base, self.num_features = float(base), num_features

    @classmethod
    def of(cls, model: Any, num_features: int) -> Self:
        """The trees of a fitted `HistGradientBoostingClassifier` of two classes, or `...Regressor`.

        Their sum is `decision_function` of the one and `predict` of the other (squared error).
        """
        parts = []
        for stage in model._predictors:
            tree = stage[0].nodes
            parts.append(
                _Tree(
                    leaf=tree["is_leaf"].astype(bool),
                    feature=tree["feature_idx"],
                    threshold=tree["num_threshold"],
                    missing_left=tree["missing_go_to_left"],
                    left=tree["left"],
                    right=tree["right"],
                    value=tree["value"],
                )
            )
        return cls(_stacked(parts), float(np.ravel(model._baseline_prediction)[0]), num_features)

    @classmethod
    def of_forest(cls, model: Any, num_features: int) -> Self:
        """The trees of a fitted `ExtraTreesClassifier` of two classes, which knows no NaN.

        Their sum is `predict_proba` of the second class.
        """
        parts = []
        for estimator in model.estimators_:
            tree = estimator.tree_
            share = tree.value[:, 0] / tree.value[:, 0].sum(1, keepdims=True)
            parts.append(
                _Tree(
                    leaf=tree.children_left < 0,
                    feature=tree.feature,
                    threshold=tree.threshold,
                    missing_left=np.ones(tree.node_count, bool),
                    left=tree.children_left,
                    right=tree.children_right,
                    value=share[:, 1] / len(model.estimators_),
                )
            )
        return cls(_stacked(parts), 0.0, num_features)

    def __call__(self, rows: Floats) -> Floats:
        """The sum for each row, shape [n], of rows [n, F]."""
        require(
            rows.ndim == 2 and rows.shape[1] == self.num_features,
            f"rows must have shape [n, {self.num_features}], got {list(rows.shape)}",
        )
        rows = rows.astype(np.float32)
        tree = np.arange(len(self.nodes["feature"]))[:, None]
        row = np.arange(len(rows))[None, :]
        place = np.zeros((len(tree), len(rows)), np.int64)
        for _ in range(_DEEPEST):
            value = rows[row, self.nodes["feature"][tree, place]]
            left = value <= self.nodes["threshold"][tree, place]
            left |= np.isnan(value) & self.nodes["missing_left"][tree, place]
            child = np.where(
                left, self.nodes["left"][tree, place], self.nodes["right"][tree, place]
            )
            if np.array_equal(child, place):
                break
            place = child
        total: Floats = self.base + self.nodes["value"][tree, place].sum(0, dtype=np.float64)
        return total


class _Tree(NamedTuple):
    """One tree as scikit-learn has it; what a leaf has but its value is not looked at."""

    leaf: npt.NDArray[np.bool_]
    feature: npt.NDArray[Any]
    threshold: npt.NDArray[Any]
    missing_left: npt.NDArray[Any]
    left: npt.NDArray[Any]
    right: npt.NDArray[Any]
    value: npt.NDArray[Any]


def _stacked(trees: Sequence[_Tree]) -> dict[str, npt.NDArray[Any]]:
    size = max(len(tree.leaf) for tree in trees)
    nodes: dict[str, npt.NDArray[Any]] = {
        name: np.zeros((len(trees), size), dtype) for name, dtype in _DTYPES.items()
    }
    itself = np.arange(size, dtype=np.int16)
    nodes["left"][:], nodes["right"][:] = itself, itself
    for row, tree in enumerate(trees):
        num = len(tree.leaf)
        inner: dict[str, Any] = {
            "feature": 0,
            "threshold": 0,
            "left": itself[:num],
            "right": itself[:num],
        }
        for name, otherwise in inner.items():
            nodes[name][row, :num] = np.where(tree.leaf, otherwise, getattr(tree, name))
        nodes["missing_left"][row, :num] = tree.missing_left
        nodes["value"][row, :num] = np.where(tree.leaf, tree.value, 0)
    return nodes
