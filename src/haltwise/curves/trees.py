"""Boosted regression trees as plain arrays: small files, no pickles, scikit-learn only to train."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self, final

import numpy as np
import numpy.typing as npt

from haltwise._core.errors import InputError, require
from haltwise.curves.bins import Bins
from haltwise.curves.curves import Floats

__all__ = ["JoinedTrees", "Trees"]

_BLOCK = 256  # rows at once
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
    def of(cls, model: Any, num_features: int, bins: Bins | None = None) -> Self:
        """The trees of a fitted `HistGradientBoostingClassifier` of two classes, or `...Regressor`.

        Their sum is `decision_function` of the one and `predict` of the other (squared error).

        Args:
            model: Fitted to features, or to the numbers of their bins.
            num_features: F.
            bins: Those it was fitted to; the trees still read features.
        """
        parts = []
        for stage in model._predictors:
            tree = stage[0].nodes
            threshold, leaf = tree["num_threshold"].copy(), tree["is_leaf"].astype(bool)
            if bins is not None:  # a leaf may name a feature that has a single bin
                threshold[~leaf] = bins.threshold(tree["feature_idx"][~leaf], threshold[~leaf])
            parts.append(
                _Tree(
                    leaf=leaf,
                    feature=tree["feature_idx"],
                    threshold=threshold,
                    missing_left=tree["missing_go_to_left"],
                    left=tree["left"],
                    right=tree["right"],
                    value=tree["value"],
                )
            )
        return cls(_stacked(parts), float(np.ravel(model._baseline_prediction)[0]), num_features)

    def __call__(self, rows: Floats) -> Floats:
        """The sum for each row, shape [n], of rows [n, F]."""
        return JoinedTrees([self])(rows)[0]

    # --------------------------------------------------------------------------------- in a file

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Arrays by name, shape [M, N] each, from which `from_arrays` makes the same trees.

        Level by level, so that the children of the k-th inner node, from 0, are at 2k + 1 and
        2k + 2 and need not be written. A `number` is an inner node's threshold or a leaf's value;
        what is no inner node has -1 for its `feature`.
        """
        _depths(self.nodes)  # a tree that goes in circles has no levels
        children = zip(self.nodes["left"], self.nodes["right"], strict=True)
        orders = [_level_order(*each) for each in children]
        shape = len(orders), max(len(order) for order in orders)
        arrays = {
            "feature": np.full(shape, -1, np.min_scalar_type(-self.num_features)),
            "number": np.zeros(shape, np.float32),
            "missing_left": np.ones(shape, np.bool_),
        }
        for row, order in enumerate(orders):
            tree = {name: array[row, order] for name, array in self.nodes.items()}
            leaf = tree["left"] == order
            arrays["feature"][row, : len(order)] = np.where(leaf, -1, tree["feature"])
            arrays["number"][row, : len(order)] = np.where(leaf, tree["value"], tree["threshold"])
            arrays["missing_left"][row, : len(order)] = leaf | tree["missing_left"]
        return arrays

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, npt.NDArray[Any]], base: float, num_features: int
    ) -> Self:
        """The trees that `to_arrays` wrote; see the class for what is checked."""
        names = ("feature", "number", "missing_left")
        require(
            arrays.keys() == set(names),
            f"trees in a file have the arrays {', '.join(names)}; got {', '.join(arrays)}; learn "
            "them again with this version",
        )
        feature, number, missing_left = (arrays[name] for name in names)
        require(
            feature.ndim == 2 and feature.shape == number.shape == missing_left.shape,
            f"the arrays of trees must have one shape [M, N], got {feature.shape}, "
            f"{number.shape} and {missing_left.shape}",
        )
        leaf = feature < 0
        first = 2 * np.cumsum(~leaf, 1) - 1  # the left child of each inner node
        itself = np.arange(feature.shape[1])
        nodes = {
            "feature": np.where(leaf, 0, feature),
            "threshold": np.where(leaf, 0, number),
            "missing_left": missing_left,
            "left": np.where(leaf, itself, first),
            "right": np.where(leaf, itself, first + 1),
            "value": np.where(leaf, number, 0),
        }
        return cls(nodes, base, num_features)


@final
class JoinedTrees:
    """Several sums of trees, evaluated in one pass down all of them.

    Args:
        parts: Sums of trees that read the same features.
    """

    def __init__(self, parts: Sequence[Trees]) -> None:
        self._num_features = num_features = parts[0].num_features
        self._bases = [part.base for part in parts]
        sizes = [part.nodes["feature"].shape for part in parts]
        self._ends = np.cumsum([size[0] for size in sizes])[:-1]
        width = max(size[1] for size in sizes)
        wider = [((0, 0), (0, width - size[1])) for size in sizes]
        nodes = {
            name: np.concatenate(
                [np.pad(part.nodes[name], by) for part, by in zip(parts, wider, strict=True)]
            )
            for name in _DTYPES
        }
        depths = _depths(nodes)
        self._order = np.argsort(-depths, kind="stable")  # the deepest first
        # How many trees go on below each level.
        self._num_deeper = [int((depths > level).sum()) for level in range(int(depths.max()))]
        nodes = {name: array[self._order] for name, array in nodes.items()}
        self._roots = width * np.arange(len(depths))[:, None]
        # Rows are looked up twice over: with -inf where a value is missing, which goes left
        # everywhere, and with NaN, which goes right.
        feature = nodes["feature"].astype(np.int64) + num_features * ~nodes["missing_left"]
        self._feature = feature.ravel()
        self._threshold = nodes["threshold"].ravel()
        children = np.stack((nodes["right"], nodes["left"]), -1).astype(np.int64)
        self._children = (children + self._roots[..., None]).ravel()
        self._value = nodes["value"].ravel()

    def __call__(self, rows: Floats) -> list[Floats]:
        """The sums of each part for each row, shapes [n], of rows [n, F]."""
        require(
            rows.ndim == 2 and rows.shape[1] == self._num_features,
            f"rows must have shape [n, {self._num_features}], got {list(rows.shape)}",
        )
        blocks = range(0, max(len(rows), 1), _BLOCK)
        sums = [
            [part.sum(0, dtype=np.float64) for part in np.split(values, self._ends)]
            for values in (
                self._leaves(rows[start : start + _BLOCK].astype(np.float32)) for start in blocks
            )
        ]
        return [
            base + np.concatenate(part)
            for base, part in zip(self._bases, zip(*sums, strict=True), strict=True)
        ]

    def _leaves(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The value of the leaf of each tree that each row ends in, shape [M, n]."""
        missing_left = np.where(np.isnan(rows), np.float32(-np.inf), rows)
        table = np.concatenate((missing_left, rows), 1)
        width = table.shape[1]
        begins, table = width * np.arange(len(rows)), table.ravel()
        place = np.repeat(self._roots, len(rows), 1)
        for num in self._num_deeper:
            here = place[:num]
            left = table.take(self._feature.take(here) + begins) <= self._threshold.take(here)
            place[:num] = self._children.take(2 * here + left)
        found = np.empty(place.shape, np.float32)
        found[self._order] = self._value.take(place)
        return found


def _depths(nodes: Mapping[str, npt.NDArray[Any]]) -> npt.NDArray[np.int64]:
    """The number of steps from the root of each of M trees to its deepest leaf, shape [M].

    Raises:
        InputError: A tree is too deep, or goes in circles.
    """
    left, right = (nodes[name].astype(np.int64) for name in ("left", "right"))
    itself = np.arange(left.shape[1])
    reached = np.zeros(left.shape, bool)
    reached[:, 0] = True
    depths = np.zeros(len(left), np.int64)
    for _ in range(_DEEPEST):
        inner = reached & (left != itself)
        if not inner.any():
            return depths
        depths += inner.any(1)
        reached = np.zeros(left.shape, bool)
        trees, places = np.nonzero(inner)
        for child in (left, right):
            reached[trees, child[trees, places]] = True
    raise InputError(f"a tree has more than {_DEEPEST} levels; the file is damaged")


def _level_order(
    left: npt.NDArray[np.int16], right: npt.NDArray[np.int16]
) -> npt.NDArray[np.int64]:
    """The places of the nodes of one tree that its root leads to, level by level."""
    level = np.zeros(1, np.int64)
    levels = []
    while len(level):
        levels.append(level)
        inner = level[left[level] != level]
        level = np.stack((left[inner], right[inner]), 1).ravel().astype(np.int64)
    return np.concatenate(levels)


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
