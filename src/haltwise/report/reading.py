"""Looking things up in records that may be older, smaller or less finite than expected."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from haltwise.evaluation import Evaluation

__all__ = [
    "Range",
    "at_ends",
    "finite",
    "finite_list",
    "get",
    "initial_excess",
    "items",
    "mapping",
    "name_at",
    "number",
    "paired_difference",
    "range_of",
]


class Range(NamedTuple):
    """An estimate with its 95 % interval."""

    value: float
    low: float
    high: float


def get(tree: object, *path: str) -> Any:
    """The entry at `path` of nested mappings, None where there is none."""
    for key in path:
        if not isinstance(tree, Mapping):
            return None
        tree = tree.get(key)
    return tree


def mapping(tree: object, *path: str) -> Mapping[str, Any]:
    """The mapping at `path`, empty where there is none."""
    found = get(tree, *path)
    return found if isinstance(found, Mapping) else {}


def items(tree: object, *path: str) -> list[Any]:
    """The list at `path`, empty where there is none."""
    found = get(tree, *path)
    return found if isinstance(found, list) else []


def name_at(tree: object, *path: str) -> str:
    """The name at `path`, or else that there is none."""
    found = get(tree, *path)
    return found if isinstance(found, str) else "unnamed"


def finite(value: object) -> float | None:
    """`value` as a number, None where it is none or not finite."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def number(tree: object, *path: str) -> float | None:
    """The finite number at `path`, None where there is none."""
    return finite(get(tree, *path))


def range_of(tree: object, *path: str) -> Range | None:
    """The estimate at `path` if it and its interval are finite."""
    parts = [number(tree, *path, key) for key in ("value", "low", "high")]
    known = [part for part in parts if part is not None]
    return Range(*known) if len(known) == 3 else None


def finite_list(tree: object, *path: str) -> list[float | None]:
    """The list at `path`, what is not a finite number replaced by None."""
    return [finite(value) for value in items(tree, *path)]


def at_ends(record: Evaluation, account: str, rule: str) -> Tensor | None:
    """Where `rule` ended each problem, [n]; the oracle's are the same in both accounts."""
    return record.arrays.get("oracle" if rule == "oracle" else f"end.{account}.{rule}")


def initial_excess(record: Evaluation) -> Tensor | None:
    """Excess loss at theta_0, shape [n]: how far each problem has to go."""
    excess = record.arrays.get("excess")
    return None if excess is None or excess.ndim != 2 else excess[:, 0].double()


def paired_difference(record: Evaluation, account: str, first: str, second: str) -> Range | None:
    """J of `first` less J of `second`, problem by problem; the interval is the normal one."""
    costs = [record.arrays.get(f"j.{account}.{rule}") for rule in (first, second)]
    if costs[0] is None or costs[1] is None or len(costs[0]) < 2:
        return None
    if len(costs[0]) != len(costs[1]):
        return None
    difference = costs[0].double() - costs[1].double()
    mean = difference.mean().item()
    half = 1.96 * difference.std().item() / math.sqrt(len(difference))
    if not math.isfinite(mean) or not math.isfinite(half):
        return None
    return Range(mean, mean - half, mean + half)
