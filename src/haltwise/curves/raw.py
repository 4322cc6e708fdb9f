"""Runs as files and tables hold them, before it is settled which column is judged."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, final

import numpy as np
import numpy.typing as npt

from haltwise._core.arrays import real_numbers
from haltwise._core.errors import DataWarning, InputError, require, warn
from haltwise.curves.cells import Floats, is_missing, parse_numbers
from haltwise.curves.columns import (
    Direction,
    choose_cost,
    choose_metric,
    direction_of,
    find_column,
)

__all__ = [
    "MOST_CELLS",
    "Keys",
    "LearnedOn",
    "NothingRecordedError",
    "RawRuns",
]

Codes = npt.NDArray[np.int64]

MOST_CELLS = 12 * 2**20
"""Of a dense table that is mostly empty: it takes 8 bytes a cell and is copied twice."""

_EPOCH = 1e9  # seconds: 2001
_YEARS = 1.02  # later in a run than at its start: by one year in 2026
_RUN = ("run", "run_id", "run_name", "run_uuid", "trial", "trial_id", "trial_name", "experiment")


@final
class NothingRecordedError(InputError):
    """A source without a single point, such as the log of a run that has only begun."""


@final
class Keys(NamedTuple):
    """The columns of a table that tell its runs apart, as far as the user names them."""

    run: str | None = None
    group: str | None = None
    task: str | None = None

    def of(self, names: Iterable[str]) -> "Keys":
        """The same with the columns that are named like that where nobody says which.

        Raises:
            InputError: The column of runs is not there.
        """
        names = list(names)
        require(
            self.run is None or self.run in names,
            f"there is no column {self.run!r} of runs; name one of {', '.join(names)}",
        )
        return self.among(names)

    def among(self, names: Iterable[str]) -> "Keys":
        """The same, where others may follow these names."""
        names = list(names)
        return Keys(
            self.run or find_column(names, _RUN),
            self.group if self.group in names else find_column(names, ("group",)),
            self.task if self.task in names else find_column(names, ("task",)),
        )


@final
class LearnedOn(NamedTuple):
    """What a model was learned on: it is meant where nobody names another and a log has it.

    Attributes:
        metric: The column that was judged.
        direction: Whether lower or higher values of it were better.
        cost_unit: What cost was counted in, such as the name of its column.
    """

    metric: str
    direction: Direction
    cost_unit: str


@final
@dataclass(frozen=True)
class RawRuns:
    """n runs with all their columns, and what their format says of them.

    A format that knows says what is the cost, the metric and so on; what it leaves open is chosen
    by the names of the columns.
    """

    runs: Sequence[Mapping[str, Floats]]
    """The columns of each run, of one length in a run."""
    labels: Sequence[Mapping[str, str]]
    """Texts of each run by name; "run" is its name."""
    cost: str | None = None
    """The column of what was spent."""
    metric: str | None = None
    """The column that is judged."""
    direction: Direction | None = None
    """Whether lower or higher values of the metric are better."""
    group: str | None = None
    """The label by which runs are grouped."""
    task: str | None = None
    """The label of what a run worked on."""
    cost_unit: str | None = None
    """In words; the name of the cost column if None."""
    target: Floats | None = None
    """The value of the format's metric that is a success, shape [n]."""
    budgets: Mapping[str, Floats] = field(default_factory=dict)
    """What a run may spend, in the units of each cost column that is named, shape [n]."""
    is_log: bool = True
    """Whether rows stand in the order of time; those of a table may stand in any."""
    is_since_start: bool = False
    """Whether the format's cost counts from the start of a run, however large it is."""
    is_told_apart: bool = True
    """Whether it is certain where a run ends and the next begins."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Columns that hold texts, with a sentence that names the first that is no number."""
    mixed: frozenset[str] = frozenset()
    """Those of them that hold numbers as well in a run, and so are neither labels nor measured."""
    unread: frozenset[str] = frozenset()
    """Those of them that hold numbers as people write them, "1,000" or "50 %"."""
    changing: Sequence[Mapping[str, Codes]] = ()
    """Of each run, codes of the texts in columns of texts that change within it; empty if none."""

    @classmethod
    def merged(cls, parts: Sequence["RawRuns"]) -> "RawRuns":
        """The runs of several sources of one format, in this order.

        Raises:
            InputError: Their formats differ in what is judged or spent.
        """
        first = parts[0]
        for name in ("direction", "group", "task", "cost_unit", "is_log"):
            found = {str(getattr(part, name)) for part in parts}
            require(
                len(found) == 1,
                f"these files differ in their {name.replace('_', ' ')} "
                f"({' and '.join(sorted(found))}); read them one by one",
            )
        # Where they differ, columns are chosen by their names.
        cost = first.cost if all(part.cost == first.cost for part in parts) else None
        metric = first.metric if all(part.metric == first.metric for part in parts) else None
        sizes = [len(part.runs) for part in parts]
        budgets = {
            name: np.concatenate(
                [
                    part.budgets.get(name, np.full(size, np.nan))
                    for part, size in zip(parts, sizes, strict=True)
                ]
            )
            for name in dict.fromkeys(name for part in parts for name in part.budgets)
        }
        targets = [
            np.full(size, np.nan) if part.target is None else part.target
            for part, size in zip(parts, sizes, strict=True)
        ]
        return replace(
            first,
            cost=cost,
            metric=metric,
            is_told_apart=all(part.is_told_apart for part in parts),
            texts={name: why for part in parts[::-1] for name, why in part.texts.items()},
            mixed=frozenset().union(*(part.mixed for part in parts)),
            unread=frozenset().union(*(part.unread for part in parts)),
            runs=[run for part in parts for run in part.runs],
            labels=[labels for part in parts for labels in part.labels],
            changing=[codes for part in parts for codes in part.changing or [{}] * len(part.runs)],
            target=np.concatenate(targets),
            budgets=budgets,
        )

    def settled(
        self,
        *,
        cost: str | None = None,
        metric: str | None = None,
        direction: Direction | None = None,
        target: npt.ArrayLike | str | None = None,
        budget: npt.ArrayLike | str | None = None,
        group: str | Sequence[str] | None = None,
        task: str | Sequence[str] | None = None,
        columns: Sequence[str] | None = None,
        like: LearnedOn | None = None,
    ) -> dict[str, Any]:
        """The arguments of `Curves.from_runs`; see `haltwise.curves.read` for those here.

        Where a model is to read the runs, `like` is what it was learned on.

        Raises:
            InputError: A column is missing, or what nobody names cannot be chosen.

        Warns:
            DataWarning: Something was chosen by the names of columns, a column was left out, rows
                were sorted, or numbers follow a metric that is NaN.
        """
        if like is not None:
            metric, direction = self._judged_as(like, metric, direction)
        known = _known_columns(self.runs, metric or self.metric)
        self._require_columns(known, cost, metric, columns)
        for name in sorted(self.mixed - known.keys()):
            warn(f"{self.texts[name]}: the column is left out", DataWarning)
        chosen = []
        judged = metric or (self.metric if self.metric in known else None)
        if judged is None:
            judged = choose_metric({**known, **dict.fromkeys(sorted(self.unread))})
            self._require_read(judged, "metric")
            chosen.append(f"the metric is {judged!r}")
        own = self.direction if judged == self.metric else None
        better = direction or own or direction_of(judged)
        require(
            better is not None,
            f"is a lower or a higher {judged!r} better? give direction='min' or 'max'",
        )
        if chosen and direction is None:
            chosen[-1] += f" ({'lower' if better == 'min' else 'higher'} is better)"
        spent = cost or self._spent_as(like, judged) or (self.cost if self.cost in known else None)
        if spent is None:
            spent = choose_cost(
                known,
                lambda name: _is_complete(self.runs, name, judged) and _goes_on(self.runs, name),
                lambda name: _is_complete(self.runs, name, judged),
            )
            if spent is None:  # rather refuse a column that cannot be read than count points
                self._require_read(choose_cost(sorted(self.unread)), "cost")
            chosen.append(f"the cost is {spent!r}" if spent else "the cost is the number of points")
        if chosen:
            warn(
                f"nobody named them, so {' and '.join(chosen)}; name cost= and metric= to choose",
                DataWarning,
            )
        own_metric = judged == self.metric and better == self.direction
        kept = list(known if columns is None else dict.fromkeys((judged, *columns)))
        wanted = dict.fromkeys(kept if spent is None else (*kept, spent))
        parts = [{name: run[name] for name in wanted if name in run} for run in self.runs]
        runs = _with_worst(parts, judged, np.inf if better == "min" else -np.inf)
        _require_room(runs, len(kept))
        limit = self._numbers(self.budgets.get(spent or "") if budget is None else budget)
        if spent is not None:
            counts = self.is_since_start and spent == self.cost
            if not counts and _are_times_of_day(runs, spent):
                warn(
                    f"{spent!r} holds times of day: they are counted from the first of a run",
                    DataWarning,
                )
                first = np.array([_first(run, spent) for run in runs])
                runs = [_since(run, spent, start) for run, start in zip(runs, first, strict=True)]
                limit = _limit_since(limit, first)
            if not self.is_told_apart:
                _require_one_run(runs, self.labels, spent)
            self._require_unmerged(spent, judged)
            if not self.is_log:
                runs = _sorted(runs, spent)
        names = [labels.get("run", str(place)) for place, labels in enumerate(self.labels)]
        unit = self.cost_unit if spent == self.cost else None
        return {
            "runs": runs,
            **({} if spent is None else {"cost": spent}),
            "metric": judged,
            "direction": better,
            "target": self._numbers(self.target if target is None and own_metric else target),
            "budget": limit,
            "group": self._texts(group, self.group, "group"),
            "task": self._texts(task, self.task, "task"),
            "name": _told_apart(names),
            "cost_unit": unit or (spent.strip("_") if spent else "points"),
        }

    def _judged_as(
        self, like: LearnedOn, metric: str | None, direction: Direction | None
    ) -> tuple[str | None, Direction | None]:
        """The metric and its direction, those of a model where they are there and not named."""
        if metric is None and any(like.metric in run for run in self.runs):
            metric = like.metric
        return metric, like.direction if direction is None and metric == like.metric else direction

    def _spent_as(self, like: LearnedOn | None, judged: str) -> str | None:
        """The cost of a model, where every point that measured the metric has it."""
        if like is None:
            return None
        names = dict.fromkeys(name for run in self.runs for name in run if name != judged)
        same = (name for name in names if name.strip("_") == like.cost_unit)
        return next((name for name in same if _is_complete(self.runs, name, judged)), None)

    def _require_columns(
        self,
        known: Mapping[str, None],
        cost: str | None,
        metric: str | None,
        columns: Sequence[str] | None,
    ) -> None:
        require(
            cost is None or cost != metric,
            f"cost and metric both name {cost!r}; name two columns, or leave the cost out",
        )
        for name in (cost, metric, *(columns or ())):
            if name is None or name in known:
                continue
            if name in self.texts:
                raise InputError(f"{self.texts[name]}; mend it, or leave the cell empty")
            raise InputError(
                f"there is no column {name!r} of numbers; name one of {', '.join(known) or 'none'}"
            )

    def _require_unmerged(self, cost: str, metric: str) -> None:
        every = self.changing or [{}] * len(self.runs)
        for run, label, changing in zip(self.runs, self.labels, every, strict=True):
            if cost in run and metric in run:
                _require_unmerged(run, changing, label, cost, metric)

    def _require_read(self, name: str | None, what: str) -> None:
        """Refuse to choose a column whose numbers could not be read, or another in its place."""
        if name in self.unread:
            raise InputError(f"{self.texts[name]}; mend it, or name another {what} ({what}=...)")

    def _numbers(self, value: npt.ArrayLike | str | None) -> npt.ArrayLike | None:
        """A number, one a run, or what a column or label of that name holds throughout a run.

        It is NaN for runs that leave it empty while others do not.
        """
        if not isinstance(value, str):
            return value
        is_known = any(
            value in labels or (value in run and not np.isnan(run[value]).all())
            for run, labels in zip(self.runs, self.labels, strict=True)
        )
        numbers = parse_numbers(self._label(value, empty="" if is_known else None))
        require(numbers is not None, f"{value!r} holds texts; name a column or label of numbers")
        return numbers

    def _texts(
        self, asked: str | Sequence[str] | None, default: str | None, kind: str
    ) -> list[str] | None:
        """The group or the task of each run."""
        if asked is not None and not isinstance(asked, str):
            return list(asked)
        name = asked or default
        if name is None and all(kind in labels for labels in self.labels):
            name = kind
        return None if name is None else self._label(name)

    def _label(self, name: str, empty: str | None = None) -> list[str]:
        """What each run calls `name`; `empty`, if there is such a text, where it says nothing."""
        found: list[str] = []
        for run, labels in zip(self.runs, self.labels, strict=True):
            if name in labels:
                found.append(labels[name])
                continue
            known = run[name][~np.isnan(run[name])] if name in run else np.empty(0)
            where = f"run {labels.get('run', len(found))!r}"
            if len(known) == 0 and empty is not None:
                found.append(empty)
                continue
            if len(known) == 0:
                others = [*dict.fromkeys((*labels, *run))]
                raise InputError(f"{where} has no {name!r}; name one of {', '.join(others)}")
            require(
                bool((known == known[0]).all()),
                f"{name!r} changes within {where}; name a column that is the same throughout a run",
            )
            number = float(known[0])
            found.append(str(int(number)) if number.is_integer() else repr(number))
        return found


def _with_worst(
    runs: Sequence[Mapping[str, Floats]], metric: str, worst: float
) -> list[Mapping[str, Floats]]:
    """The runs, with the worst value where the metric was measured and is NaN."""
    found, recovered = [], 0
    for run in runs:
        values = run.get(metric, np.empty(0))
        diverged = np.isnan(values) & ~is_missing(values)
        numbers = np.flatnonzero(~np.isnan(values))
        recovered += int(diverged[: numbers[-1]].sum()) if len(numbers) else 0
        found.append({**run, metric: np.where(diverged, worst, values)} if diverged.any() else run)
    if recovered:
        warn(
            f"{metric!r} is NaN at {recovered} points, with numbers after them; it counts as "
            f"{worst:g} there, as in a run that diverged. Where it was not measured, leave the "
            "cell empty",
            DataWarning,
        )
    return found


def _known_columns(runs: Sequence[Mapping[str, Floats]], metric: str | None) -> dict[str, None]:
    """The names of columns that hold a number anywhere, in the order in which they appear.

    Of a metric that is known to be one, NaN that was measured will do: all runs diverged.
    """
    found: dict[str, None] = {}
    empty: dict[str, None] = {}
    for run in runs:
        for name, values in run.items():
            unknown = is_missing if name == metric else np.isnan
            if name not in found and not unknown(values).all():
                found[name] = None
            empty[name] = None
    return {name: None for name in empty if name in found}


def _is_complete(runs: Sequence[Mapping[str, Floats]], name: str, metric: str) -> bool:
    return all(
        name in run and not np.isnan(run[name][~np.isnan(run[metric])]).any()
        for run in runs
        if metric in run
    )


def _goes_on(runs: Sequence[Mapping[str, Floats]], name: str) -> bool:
    """Whether a column rises within runs; how long an epoch took falls, and a setting stays."""
    known = [run[name][~np.isnan(run[name])] for run in runs if name in run]
    falls = any((spent[1:] < spent[:-1]).any() for spent in known)
    return not falls and any(spent[-1] > spent[0] for spent in known if len(spent))


def _require_room(runs: Sequence[Mapping[str, Floats]], num_columns: int) -> None:
    """Refuse runs that would take far more room with all columns than they do now."""
    points = sum(len(next(iter(run.values()), ())) for run in runs)
    held = sum(len(values) for run in runs for values in run.values())
    require(
        points * num_columns <= max(MOST_CELLS, 2 * held),
        f"{points} points with {num_columns} columns are too many to be held; name those to keep "
        "(columns=[...])",
    )


def _are_times_of_day(runs: Sequence[Mapping[str, Floats]], cost: str) -> bool:
    """Whether all costs are after 2001 and no run took years; a count of tokens grows faster."""
    known = [run[cost][np.isfinite(run[cost])] for run in runs if cost in run]
    known = [spent for spent in known if len(spent) > 0]
    return (
        any(len(spent) > 1 for spent in known)
        and min(spent.min() for spent in known) >= _EPOCH
        and all(spent.max() < _YEARS * spent.min() for spent in known)
    )


def _first(run: Mapping[str, Floats], cost: str) -> float:
    """The least cost of a run, 0 where none is known."""
    known = run[cost][np.isfinite(run[cost])] if cost in run else np.empty(0)
    return float(known.min()) if len(known) else 0.0


def _since(run: Mapping[str, Floats], cost: str, first: float) -> Mapping[str, Floats]:
    return {**run, cost: run[cost] - first} if first > 0 else run


def _limit_since(limit: npt.ArrayLike | None, first: Floats) -> npt.ArrayLike | None:
    """Budgets that are times of day as well, counted from the first; others last so long."""
    if limit is None:
        return None
    given = real_numbers(limit, "budget", "give one or one for each run")
    if given.shape not in ((), first.shape):
        return limit
    return np.where(given >= _EPOCH, given - first, given)


def _require_one_run(
    runs: Sequence[Mapping[str, Floats]], labels: Sequence[Mapping[str, str]], cost: str
) -> None:
    """Refuse what looks like several runs one after the other, of which one would be left."""
    for run, label in zip(runs, labels, strict=True):
        spent = run.get(cost, np.empty(0))
        spent = spent[np.isfinite(spent)]
        backwards = spent[1:] < spent[:-1]
        begins_again = bool((spent[1:][backwards] <= spent[:2].max(initial=-np.inf)).any())
        require(
            not begins_again or bool(backwards.all()),
            f"in {label['run']} the cost {cost!r} begins again, as if there were several runs; "
            "name the column that tells them apart (run=...), or sort the rows if it is one run",
        )


def _require_unmerged(
    run: Mapping[str, Floats],
    texts: Mapping[str, Codes],
    label: Mapping[str, str],
    cost: str,
    metric: str,
) -> None:
    """Refuse a run whose metric begins again for each value of a column that nobody named."""
    known = np.isfinite(run[cost]) & ~is_missing(run[metric])
    spent = run[cost][known]
    if (spent[1:] > spent[:-1]).all():
        return
    others: dict[str, Floats | Codes] = {**run, **texts}
    for name, values in others.items():
        mine = values[known]
        if name in (cost, metric) or np.isnan(mine).any():
            continue
        found, place = np.unique(mine, return_inverse=True)
        if not 2 <= len(found) <= len(mine) / 2:
            continue
        require(
            not _are_runs(spent, place),
            f"in run {label['run']!r} the cost {cost!r} begins again for each {name!r}, as if "
            f"there were {len(found)} runs; name that column as well (run=, group= or task=), or a "
            "cost that goes on",
        )


def _are_runs(spent: Floats, part: Codes) -> bool:
    """Whether costs rise within each part of a run, and all parts begin with it."""
    order = np.argsort(part, kind="stable")
    costs, begins = spent[order], np.flatnonzero(np.diff(part[order], prepend=-1))
    rises = np.append(True, costs[1:] > costs[:-1])
    rises[begins] = True
    first, ends = costs[begins], np.append(begins[1:], len(costs))
    second = costs[np.minimum(begins + 1, ends - 1)]
    soon = np.maximum(first, second)[first == first.min()].max()
    return bool(rises.all() and (first <= soon).all())


def _sorted(runs: Sequence[Mapping[str, Floats]], cost: str) -> list[Mapping[str, Floats]]:
    """The rows of a table by cost, but for runs that were resumed: those measure a cost twice."""
    found, num_sorted = [], 0
    for run in runs:
        spent = run.get(cost)
        if spent is None or not (spent[1:] < spent[:-1]).any():
            found.append(run)
            continue
        order = np.argsort(spent, kind="stable")
        rows = {name: values[order] for name, values in run.items()}
        again = rows[cost][1:] == rows[cost][:-1]
        if again.any() and _conflict(rows, cost):
            found.append(run)
            continue
        found.append(rows)
        num_sorted += 1
    if num_sorted:
        warn(
            f"the rows of {num_sorted} of {len(runs)} runs were not in the order of {cost!r}: "
            "they were sorted",
            DataWarning,
        )
    return found


def _conflict(rows: Mapping[str, Floats], cost: str) -> bool:
    """Whether rows of equal cost differ in a column that both know."""
    for values in rows.values():
        known = ~np.isnan(values)
        spent, seen = rows[cost][known], values[known]
        if ((spent[1:] == spent[:-1]) & (seen[1:] != seen[:-1])).any():
            return True
    return False


def _told_apart(names: Sequence[str]) -> list[str]:
    """The names, numbered where several runs have the same; no number makes that of another."""
    taken = set(names)
    seen: dict[str, int] = {}
    found = []
    for name in names:
        number = seen.get(name, 0) + 1
        while number > 1 and f"{name} ({number})" in taken:
            number += 1
        seen[name] = number
        found.append(name if number == 1 else f"{name} ({number})")
    return found
