"""The one record of recorded learning curves: ragged, with costs, targets, budgets and groups."""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, final, get_args

import numpy as np
import numpy.typing as npt

from haltwise._core.arrays import real_numbers
from haltwise._core.errors import DataWarning, require, warn
from haltwise._core.files import write_atomically
from haltwise._core.settings import one_of, shown
from haltwise.curves.columns import Direction
from haltwise.curves.raw import Keys
from haltwise.curves.tables import frame_runs

__all__ = ["Curve", "Curves", "Direction", "aim", "last_known", "points_of"]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
Names = npt.NDArray[np.str_]

_LONGEST = 2**24  # points of one run
_ROUNDING = 1e-9  # of a budget, which a cost that is rounded may exceed


def aim(target: float, budget: float) -> str:
    """Name the target and the budget of a run, which are NaN where there is none.

    Examples:
        >>> aim(0.76, np.nan)
        'target 0.76, no budget'
    """
    known = {"target": target, "budget": budget}
    return ", ".join(
        f"no {name}" if np.isnan(value) else f"{name} {value:.4g}" for name, value in known.items()
    )


@final
class Curve(NamedTuple):
    """One run of `Curves`, or as much of it as is known by now.

    Attributes:
        cost: What had been spent at each of n points, increasing, shape [n].
        columns: What was measured there, by name, NaN where it was not; shapes [n].
        metric: The name of the column that is judged.
        direction: Whether lower or higher values of it are better.
        target: The value of the metric that is a success; NaN if there is none.
        budget: What a run may spend, in units of cost; NaN if unknown.
        task: What the run works on: metrics of the same task can be compared.
    """

    cost: Floats
    columns: Mapping[str, Floats]
    metric: str
    direction: Direction
    target: float = np.nan
    budget: float = np.nan
    task: str = ""

    def __repr__(self) -> str:
        spent = f"{self.cost[-1]:.4g}" if len(self.cost) else "nothing"
        last = self.columns[self.metric][-1:]
        return (
            f"Curve({self.num_points:,} points, {self.metric} ({self.direction}) "
            f"{', '.join(f'{value:.4g}' for value in last) or 'unknown'} after {spent}, "
            f"{aim(self.target, self.budget)})"
        )

    @property
    def num_points(self) -> int:
        """Number of points."""
        return len(self.cost)

    @property
    def loss(self) -> Floats:
        """The metric with the sign that makes lower better, shape [n]."""
        sign = -1.0 if self.direction == "max" else 1.0
        return sign * self.columns[self.metric]

    def lowest(self, num_points: int | None = None) -> float:
        """The lowest loss that is known of the first points, all if None; infinite if none is."""
        values = self.columns[self.metric][:num_points]
        best: tuple[np.ufunc, ...] = (np.minimum, np.fmin)
        sign = 1.0
        if self.direction == "max":
            best, sign = (np.maximum, np.fmax), -1.0
        # The first is several times as fast, and NaN where any value is.
        found = (float(each.reduce(values, initial=sign * np.inf)) for each in best)
        return sign * next(value for value in found if not np.isnan(value))

    @property
    def loss_target(self) -> float:
        """The target with the sign that makes lower better."""
        return -self.target if self.direction == "max" else self.target

    @property
    def success(self) -> int:
        """The first point at which the target is met, -1 if it never is."""
        if np.isnan(self.target) or self.num_points == 0:
            return -1
        value = self.columns[self.metric]
        met = value >= self.target if self.direction == "max" else value <= self.target
        first = int(met.argmax())
        return first if met[first] else -1

    @property
    def is_measured(self) -> Booleans:
        """At which points the metric was measured, also as infinite, shape [n]."""
        return ~np.isnan(self.columns[self.metric])

    def measured(self) -> "Curve":
        """The points at which the metric was measured, each with what else was last known there."""
        known = self.is_measured
        if known.all():
            return self
        columns = {name: last_known(values)[known] for name, values in self.columns.items()}
        return self._replace(cost=self.cost[known], columns=columns)

    def until(self, num_points: int) -> "Curve":
        """The first points of the curve, all that was known then."""
        return self._at(slice(num_points))

    def since(self, point: int) -> "Curve":
        """The points from this one on; all where it lies before the first."""
        return self._at(slice(max(point, 0), None))

    def _at(self, points: slice) -> "Curve":
        columns = {name: values[points] for name, values in self.columns.items()}
        return self._replace(cost=self.cost[points], columns=columns)


@final
@dataclass(frozen=True, eq=False)
class Curves:
    """n recorded runs of any iterative process, each with as many points as it has.

    At every point something had been spent and something was measured. One column, the metric,
    is what a run is judged by. A run is a success where the metric meets its target; what comes
    after that is never looked at, since a run could have ended there. A run that neither meets its
    target nor spends its budget was ended early by someone: whether it would have met the target
    is not known (`censored`).

    Make it with `from_runs`, `from_matrix` or `haltwise.curves.read`; they put data in order.

    Examples:
        >>> curves = Curves.from_matrix([[3.0, 2.0, 1.5], [3.0, 2.9, 2.9]], target=2.0)
        >>> curves.succeeded.tolist(), curves.spent.tolist()
        ([True, False], [1.0, 2.0])
    """

    cost: Floats
    """Spent since the run began, increasing within a run, shape [P]: all points of all runs."""
    values: Floats
    """What was measured, NaN where it was not, shape [P, C]."""
    columns: tuple[str, ...]
    """The names of the C columns."""
    offset: Integers
    """Run i has the points offset[i]:offset[i+1], shape [n+1]."""
    metric: str
    """The column that is judged."""
    direction: Direction
    """Whether lower or higher values of the metric are better."""
    target: Floats
    """The value of the metric that is a success, NaN where there is none, shape [n]."""
    budget: Floats
    """What a run may spend, in units of cost, NaN where unknown, shape [n]."""
    group: Names
    """The group of each run, such as a submission or a project, shape [n]: what is learned must
    hold for groups that were not seen."""
    task: Names
    """What each run worked on, shape [n]: metrics of the same task can be compared."""
    name: Names
    """What tells the runs apart, shape [n]."""
    cost_unit: str = "steps"
    """What cost is counted in, in words."""

    def __post_init__(self) -> None:
        num, points = len(self.offset) - 1, len(self.cost)
        require(
            self.values.shape == (points, len(self.columns)),
            f"values must have shape [{points}, {len(self.columns)}], got "
            f"{list(self.values.shape)}",
        )
        require(
            self.metric in self.columns,
            f"there is no column {self.metric!r}; name one of {', '.join(self.columns)}",
        )
        one_of("direction", self.direction, get_args(Direction))
        for name in ("target", "budget", "group", "task", "name"):
            got = getattr(self, name).shape
            require(got == (num,), f"{name} must have one entry for each of {num} runs, got {got}")

    # ------------------------------------------------------------------------------ construction

    @classmethod
    def from_runs(
        cls,
        runs: Sequence[Mapping[str, npt.ArrayLike]],
        *,
        cost: str = "cost",
        metric: str,
        direction: Direction = "min",
        target: npt.ArrayLike | None = None,
        budget: npt.ArrayLike | None = None,
        group: Sequence[str] | None = None,
        task: Sequence[str] | None = None,
        name: Sequence[str] | None = None,
        cost_unit: str | None = None,
    ) -> "Curves":
        """Put runs in order, each given by its columns.

        Points whose cost is not known are left out, and so are runs that never measured the metric
        where others did. Points of one cost that follow each other are one: of a column that
        several know, the last counts. Where the cost goes back, the run was resumed from there:
        what had been recorded after that point is replaced by what followed. A metric that is
        infinite, whatever its sign, is the worst there is: the run diverged.

        Args:
            runs: Columns of each run by name, all of one length in a run; a column that a run lacks
                is NaN in it.
            cost: The column of what had been spent, or counts 0, 1, 2, ... where no run has it.
            metric: The column that is judged.
            direction: Whether lower or higher values of the metric are better.
            target: The value that is a success, one for all or one a run; NaN for none.
            budget: What a run may spend, one for all or one a run. Where it is unknown it is the
                most that a run of the same task spent.
            group: Of each run; each run is a group of its own if None.
            task: Of each run; all are of one task if None.
            name: Of each run; its number if None.
            cost_unit: In words; the name of the cost column if None.

        Raises:
            InputError: There are no runs, lengths differ within a run, a cost is negative or the
                metric is missing.

        Warns:
            DataWarning: Runs or points were left out; the message says how many and why.
        """
        require(
            not isinstance(runs, Mapping) and all(isinstance(run, Mapping) for run in runs),
            "runs must be a list with one dictionary a run, of its columns by name",
        )
        require(len(runs) > 0, "there are no runs; give at least one")
        for what, column in (("cost", cost), ("metric", metric)):
            require(
                isinstance(column, str),
                f"{what} must be the name of a column, got {shown(column)}; numbers are columns of "
                "the runs, or of a matrix its costs",
            )
        for what, given in (("name", name), ("group", group), ("task", task)):
            require(
                given is None or len(given) == len(runs),
                f"{what} must have one entry for each of {len(runs)} runs, got {given}",
            )
            lacking = [
                i for i, each in enumerate(() if given is None else given) if _is_missing(each)
            ]
            require(
                not lacking,
                f"{what} has no entry for run {lacking[:1]}; give it one of its own, or leave "
                f"{what} out",
            )
        names = np.array([str(i) for i in range(len(runs))] if name is None else list(name), str)
        counted = not any(cost in run for run in runs)
        columns = tuple(dict.fromkeys(c for run in runs for c in run if c != cost))
        require(
            metric in columns,
            f"no run has a column {metric!r}; name one of {', '.join(columns) or 'none there are'}",
        )
        costs, values, sizes, report = [], [], [], _LeftOut()
        judged = columns.index(metric)
        seen = np.empty(len(runs), bool)
        for place, (label, run) in enumerate(zip(names, runs, strict=True)):
            spent, measured = _put_in_order(
                str(label), run, cost, columns, counted=counted, report=report
            )
            costs.append(spent)
            values.append(measured)
            sizes.append(len(spent))
            seen[place] = not np.isnan(measured[:, judged]).all()
        table = _without_perfect(np.concatenate(values), judged, metric, direction)
        num = len(runs)
        offset = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
        curves = cls(
            np.concatenate(costs),
            table,
            columns,
            offset,
            metric,
            direction,
            _each(target, num, "target"),
            _each(budget, num, "budget"),
            names if group is None else np.array(list(group), str),
            np.full(num, "") if task is None else np.array(list(task), str),
            names,
            cost_unit or ("steps" if counted else cost),
        )
        empty = np.diff(offset) == 0
        report.runs["have no point"] = int(empty.sum())
        kept = seen if seen.any() else ~empty
        report.runs[f"never measured {metric!r}"] = int((~empty & ~kept).sum())
        report.warn(num)
        require(bool(kept.any()), "no run has a point; check the columns that were named")
        wrong = curves.budget[(curves.budget < 0) | np.isinf(curves.budget)]
        require(
            len(wrong) == 0, f"a budget must be finite and not negative, got {wrong[:1].tolist()}"
        )
        return (curves if kept.all() else curves.select(kept)).with_budgets()

    @classmethod
    def from_matrix(
        cls, losses: npt.ArrayLike, costs: npt.ArrayLike | None = None, **settings: Any
    ) -> "Curves":
        """Runs of one length, or of several with NaN where a run had ended.

        Args:
            losses: Of n runs at steps 0..T, shape [n, T+1]. A run ends before the NaN that nothing
                but NaN follows; if its losses were NaN because it diverged, give inf.
            costs: Spent by then, shape [T+1] or [n, T+1]; steps if None.
            **settings: Those of `from_runs` but for `cost` and `metric`.

        Raises:
            InputError: See `from_runs`.
        """
        table = real_numbers(
            losses,
            "losses",
            "fill shorter rows up with NaN, or give each run its own columns (from_runs)",
        )
        require(
            table.ndim == 2 and table.shape[1] > 0,
            "losses must be a matrix [n, T+1] of one column or more, got shape "
            f"{list(table.shape)}",
        )
        spent = real_numbers(np.arange(table.shape[1]) if costs is None else costs, "costs")
        require(
            spent.shape in (table.shape, table.shape[1:]),
            f"costs must have shape {list(table.shape)} or {list(table.shape[1:])}, got "
            f"{list(spent.shape)}",
        )
        spent = np.broadcast_to(spent, table.shape)
        ends = table.shape[1] - np.argmax(~np.isnan(table[:, ::-1]), 1)
        ends[np.isnan(table).all(1)] = 0
        runs = [
            {"cost": c[:end], "loss": row[:end]}
            for c, row, end in zip(spent, table, ends, strict=True)
        ]
        unit = {"cost_unit": "steps"} if costs is None else {}
        return cls.from_runs(runs, metric="loss", **{**unit, **settings})

    @classmethod
    def from_frame(
        cls,
        frame: Any,
        *,
        run: str | None = None,
        group: str | None = None,
        task: str | None = None,
        **settings: Any,
    ) -> "Curves":
        """Runs in a data frame with one row a point: of pandas, polars, pyarrow or a dictionary.

        Rows may stand in any order, and those of one cost are one point; see
        `haltwise.curves.read`, which treats tables alike.

        Args:
            frame: Anything with columns by name, each of which NumPy takes.
            run: The column that tells runs apart, together with the group and the task; one named
                run or trial if None. All rows are one run if there is none.
            group: The column of groups; one named group if None.
            task: The column of tasks; one named task if None.
            **settings: `cost`, `metric`, `direction`, `target`, `budget` and `columns`, as in
                `haltwise.curves.read`.

        Raises:
            InputError: There is no such column, or what nobody names cannot be chosen.

        Examples:
            >>> frame = {"run": ["a", "a", "b"], "step": [1, 2, 1], "loss": [3.0, 2.0, 5.0]}
            >>> Curves.from_frame(frame, cost="step", metric="loss").num_points.tolist()
            [2, 1]
        """
        # Columns may have numbers for names.
        run, group, task = (str(n) if isinstance(n, int) else n for n in (run, group, task))
        for name in ("cost", "metric"):
            if isinstance(settings.get(name), int):
                settings[name] = str(settings[name])
        raw = frame_runs(frame, Keys(run, group, task))
        return cls.from_runs(**raw.settled(group=group, task=task, **settings))

    def save(self, path: str | Path) -> None:
        """Write an .npz archive, which `haltwise.curves.read` takes.

        Raises:
            InputError: It cannot be written.
        """
        content = io.BytesIO()
        entries: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        np.savez_compressed(content, **entries)
        write_atomically(Path(path), content.getvalue())

    def with_budgets(self) -> "Curves":
        """The same with the most that a run of the same task spent where a budget is unknown."""
        budget = self.budget.copy()
        most = self.cost[self.offset[1:] - 1]
        for task in np.unique(self.task[np.isnan(budget)]):
            mine = self.task == task
            budget[mine & np.isnan(budget)] = most[mine].max()
        return replace(self, budget=budget)

    def within_budgets(self) -> "Curves":
        """The same without the points beyond the budget of a run.

        Runs are left out that measured their metric nowhere else, where others did.

        Raises:
            InputError: No point lies within.

        Warns:
            DataWarning: Some do not.
        """
        run = np.repeat(np.arange(self.num_runs), self.num_points)
        within = ~(self.cost > self.budget[run] * (1 + _ROUNDING))
        if within.all():
            return self
        require(
            bool(within.any()),
            "every point lies beyond the budget of its run; name a larger one, in units of "
            f"{self.cost_unit}",
        )
        cut = np.unique(run[~within])
        known = within & self.is_measured
        left = np.unique(run[known if known.any() else within])
        whole = self.num_runs - len(left)
        also = f", and {whole} of these runs whole, which measured no {self.metric!r} before it"
        warn(
            f"{int((~within).sum())} points of {len(cut)} of {self.num_runs} runs lie beyond their "
            f"budget and are left out{also if whole else ''}: a run that meets its target there "
            "does not succeed",
            DataWarning,
        )
        ends = np.cumsum(np.bincount(run[within], minlength=self.num_runs))
        return replace(
            self,
            cost=self.cost[within],
            values=self.values[within],
            offset=np.concatenate(([0], ends)).astype(np.int64),
        ).select(left)

    # ------------------------------------------------------------------------------- what is known

    @property
    def num_runs(self) -> int:
        """Number of runs."""
        return len(self.offset) - 1

    @property
    def num_points(self) -> Integers:
        """Of each run, shape [n]."""
        return np.diff(self.offset)

    @property
    def is_measured(self) -> Booleans:
        """At which points the metric was measured, also as infinite, shape [P]."""
        return ~np.isnan(self.values[:, self.columns.index(self.metric)])

    @property
    def success(self) -> Integers:
        """The first point of each run at which its target is met, -1 if it never is; shape [n]."""
        sign = -1.0 if self.direction == "max" else 1.0
        loss = sign * self.values[:, self.columns.index(self.metric)]
        run = np.repeat(np.arange(self.num_runs), self.num_points)
        met = np.flatnonzero(loss <= sign * self.target[run])
        first = np.full(self.num_runs, -1, np.int64)
        # In reverse, so that of several points of a run the first is written last.
        first[run[met][::-1]] = (met - self.offset[run[met]])[::-1]
        return first

    @property
    def succeeded(self) -> Booleans:
        """Which runs met their target, shape [n]."""
        return self.success >= 0

    @property
    def spent(self) -> Floats:
        """What each run spent until it met its target or ended, shape [n]."""
        last = np.where(self.success >= 0, self.success, self.num_points - 1)
        return self.cost[self.offset[:-1] + last]

    @property
    def censored(self) -> Booleans:
        """Which runs ended before their budget, by more than one of their gaps, without success."""
        gaps = np.array([np.diff(curve.cost, prepend=0.0).max() for curve in self])
        return ~self.succeeded & (self.spent + 1.5 * gaps < self.budget)

    @property
    def late(self) -> Booleans:
        """Which runs met their target beyond their budget, shape [n]."""
        return self.succeeded & (self.spent > self.budget * (1 + _ROUNDING))

    def __len__(self) -> int:
        return self.num_runs

    def __iter__(self) -> Iterator[Curve]:
        return (self[i] for i in range(self.num_runs))

    def __getitem__(self, run: int) -> Curve:
        run = range(self.num_runs)[run]  # from the end if negative; an IndexError beyond
        where = slice(self.offset[run], self.offset[run + 1])
        return Curve(
            self.cost[where],
            dict(zip(self.columns, self.values[where].T, strict=True)),
            self.metric,
            self.direction,
            float(self.target[run]),
            float(self.budget[run]),
            str(self.task[run]),
        )

    def __repr__(self) -> str:
        return (
            f"<Curves: {self.num_runs} runs, {len(self.cost)} points, "
            f"{len(np.unique(self.group))} groups, metric {self.metric} ({self.direction}), "
            f"{int(self.succeeded.sum())} met their target>"
        )

    # ------------------------------------------------------------------------------------- changes

    def select(self, index: npt.ArrayLike) -> "Curves":
        """The runs at `index`, integers [k] or booleans [n]."""
        chosen: Integers = np.arange(self.num_runs)[np.asarray(index)]
        points, sizes = points_of(self, chosen), self.num_points[chosen]
        each = ("target", "budget", "group", "task", "name")
        return replace(
            self,
            cost=self.cost[points],
            values=self.values[points],
            offset=np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
            **{field: getattr(self, field)[chosen] for field in each},
        )

    def measured(self) -> "Curves":
        """The same with the points of each run at which its metric was measured; others are lost.

        What else was known stands on, as where training and validation have rows of their own.

        Raises:
            InputError: It was measured nowhere.
        """
        known = self.is_measured
        require(bool(known.any()), f"no run ever measured its metric {self.metric!r}; name another")
        if known.all():
            return self
        parts = [curve.measured() for curve in self]
        sizes = [curve.num_points for curve in parts]
        return replace(
            self,
            cost=self.cost[known],
            values=np.concatenate([np.stack([*part.columns.values()], 1) for part in parts]),
            offset=np.concatenate(([0], np.cumsum(sizes))).astype(np.int64),
        )

    def with_targets(self, target: npt.ArrayLike) -> "Curves":
        """The same with other targets, one for all or one a run."""
        return replace(self, target=_each(target, self.num_runs, "target"))

    def with_groups(self, group: Sequence[str] | Names) -> "Curves":
        """The same with other groups, one a run."""
        return replace(self, group=np.array(list(group), str))

    def targets_among_peers(self, quantile: float = 0.5) -> "Curves":
        """The same with a quantile of the final metric of each task's runs as their target.

        Where there is no target of one's own, this asks whether a run will end better than so many
        of its peers. A run whose last metric is not finite ends worst.

        Args:
            quantile: The share of a task's runs that shall fall short: of n runs from the best on,
                counted from 0, the one at (n - 1) (1 - quantile), rounded, is the target.
        """
        require(0 < quantile < 1, f"a quantile lies between 0 and 1, got {quantile}")
        sign = -1.0 if self.direction == "max" else 1.0
        finals = np.array([_final(curve.loss) for curve in self])
        target = np.empty(self.num_runs)
        for task in np.unique(self.task):
            mine = self.task == task
            ranked = np.sort(finals[mine])
            target[mine] = sign * ranked[round((len(ranked) - 1) * (1 - quantile))]
        return replace(self, target=np.where(np.isfinite(target), target, np.nan))


def points_of(curves: Curves, index: Integers | Booleans) -> Integers:
    """Where the points of the runs at `index` lie, in their order, int64 [p]."""
    sizes = curves.num_points[index]
    begins = np.repeat(curves.offset[:-1][index] - (np.cumsum(sizes) - sizes), sizes)
    return begins + np.arange(len(begins))


# ------------------------------------------------------------------------------------------ details


def last_known(values: Floats) -> Floats:
    """The last known value where one is NaN, NaN before there is one; shape [n]."""
    last = np.maximum.accumulate(np.where(np.isnan(values), 0, np.arange(len(values))))
    return values[last]


def _final(loss: Floats) -> float:
    known = loss[~np.isnan(loss)]
    return float(known[-1]) if len(known) else np.inf


def _is_missing(label: object) -> bool:
    return label is None or label is np.ma.masked or (isinstance(label, float) and np.isnan(label))


def _each(value: npt.ArrayLike | None, num: int, what: str) -> Floats:
    given = real_numbers(np.nan if value is None else value, what, "give one or one for each run")
    require(
        given.shape in ((), (num,)),
        f"{what} must be one number or one for each of {num} runs, got shape {list(given.shape)}",
    )
    return np.array(np.broadcast_to(given, (num,)))


class _LeftOut:
    """What was left out, for one warning."""

    def __init__(self) -> None:
        self.runs: dict[str, int] = {}
        self.points: dict[str, int] = {}

    def warn(self, num_runs: int) -> None:
        parts = [f"{num} of {num_runs} runs: they {why}" for why, num in self.runs.items() if num]
        parts += [f"{num} points {why}" for why, num in self.points.items() if num]
        if parts:
            warn("left out: " + "; ".join(parts), DataWarning)


def _without_perfect(values: Floats, judged: int, metric: str, direction: Direction) -> Floats:
    """The values [P, C], the metric being worst where it is infinitely good: no run is."""
    best = np.inf if direction == "max" else -np.inf
    perfect = values[:, judged] == best
    if perfect.any():
        warn(
            f"{metric!r} is {best:g} at {int(perfect.sum())} points, better than any number; it "
            f"counts as {-best:g} there, as in a run that diverged",
            DataWarning,
        )
        values[perfect, judged] = -best
    return values


def _put_in_order(
    label: str,
    run: Mapping[str, npt.ArrayLike],
    cost: str,
    columns: tuple[str, ...],
    *,
    counted: bool,
    report: _LeftOut,
) -> tuple[Floats, Floats]:
    """Cost [n] and values [n, C] of one run."""
    given = {
        key: real_numbers(value, f"column {key!r} of run {label!r}") for key, value in run.items()
    }
    shapes = {value.shape for value in given.values()}
    require(
        len(shapes) == 1 and len(next(iter(shapes))) == 1,
        f"the columns of run {label!r} must be vectors of one length, got "
        + ", ".join(f"{key} {list(value.shape)}" for key, value in given.items()),
    )
    num = next(iter(shapes))[0]
    require(num <= _LONGEST, f"run {label!r} has {num} points; more than {_LONGEST} are too many")
    require(
        counted or cost in given,
        f"run {label!r} has no column {cost!r}, the cost; give it to every run or to none",
    )
    spent = np.arange(num, dtype=np.float64) if counted else given[cost]
    known = np.isfinite(spent)
    require(
        not (spent[known] < 0).any(),
        f"the cost of run {label!r} goes down to {spent[known].min(initial=0):g}; it counts what "
        "was spent since the run began, from 0",
    )
    lacking = np.full(num, np.nan)
    values = np.stack([given.get(name, lacking) for name in columns], 1)
    if known.all() and (spent[1:] > spent[:-1]).all():
        return spent, values
    spent, values = spent[known], values[known]
    whole, ends = _merge_equal(spent, values)
    # A point counts unless a later one has no greater cost: then the run was resumed before it.
    later = np.minimum.accumulate(np.append(spent[1:], np.inf)[::-1])[::-1]
    kept = spent < later
    merged = (np.isnan(values) | (values == whole)).all(1) & kept[ends]
    without, replaced = "without a cost", "that later ones of the same or a lower cost replace"
    report.points[without] = report.points.get(without, 0) + int((~known).sum())
    report.points[replaced] = report.points.get(replaced, 0) + int((~kept & ~merged).sum())
    return spent[kept], whole[kept]


def _merge_equal(spent: Floats, values: Floats) -> tuple[Floats, Integers]:
    """What is known [n, C] at the end of each point's block of equal costs, and that end [n]."""
    if not (spent[1:] == spent[:-1]).any():
        return values, np.arange(len(spent))
    starts = np.flatnonzero(np.diff(spent, prepend=-1.0))
    ends = np.append(starts[1:], len(spent)) - 1
    rows = np.where(np.isnan(values), -1, np.arange(len(spent))[:, None])
    last = np.maximum.accumulate(rows, 0)[ends]  # the last row that knows it
    known = np.where(
        last >= starts[:, None], np.take_along_axis(values, np.maximum(last, 0), 0), np.nan
    )
    sizes = ends - starts + 1
    return np.repeat(known, sizes, 0), np.repeat(ends, sizes)
