"""Whole groups dealt to folds: what is learned must hold for groups that were not seen."""

import numpy as np

from haltwise._core.settings import whole_number
from haltwise.curves.curves import Integers, Names

__all__ = ["deal"]


def deal(groups: Names, most: int, seed: int) -> Integers:
    """Deal whole groups to folds of about as many runs, the largest first.

    Args:
        groups: Of each run, shape [n].
        most: Folds; fewer where there are fewer groups.
        seed: Of the order of groups of one size, at least 0.

    Returns:
        The fold of each run, int64 [n].

    Raises:
        InputError: The seed is negative.

    Examples:
        >>> deal(np.array(["a", "b", "a", "c"]), 2, seed=0).tolist()
        [0, 1, 0, 1]
    """
    seed = whole_number("seed", seed, 0)
    names, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-sizes[order], kind="stable")]
    load = np.zeros(min(most, len(names)))
    fold = np.empty(len(names), np.int64)
    for each in order:
        fold[each] = int(load.argmin())
        load[fold[each]] += sizes[each]
    dealt: Integers = fold[group]
    return dealt
