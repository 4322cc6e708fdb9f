"""A monitor that gives a run up by its log alone, whatever it is that runs."""

import itertools
import math
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Self, SupportsFloat, final, get_args

import numpy as np
import numpy.typing as npt

from haltwise._core.errors import DataWarning, InputError, refusing_others, require, warn
from haltwise._core.settings import one_of, price_per_unit, real_number, shown
from haltwise.certificates import Certificate
from haltwise.curves.columns import direction_of
from haltwise.curves.curves import Curve, Direction, aim
from haltwise.curves.levels import MIN_POINTS
from haltwise.curves.rule import CurveRule
from haltwise.curves.rules.windowed_improvement import WindowedImprovementRule
from haltwise.curves.stop_model import StopModel
from haltwise.interfaces.levelled_rule import LevelledRule

__all__ = ["Number", "RunMonitor", "warn_of_direction"]

Number = SupportsFloat | npt.NDArray[Any]
"""A single real number of Python, NumPy or PyTorch, also an array or a tensor of size one."""

_SUMMED, _FEW = 12, 3  # updates, of which less than a third are left where costs are no sums
_STATE: Final = {"cost", "columns", "counted", "steps", "reason", "budget", "settings"}


@final
class RunMonitor:
    """Watch any iterative process by what it logs, and say when to give it up.

    Call `update` whenever the process has measured its metric. The monitor needs no model, no
    gradients and no framework, nor a recording of one's own: its rule is hand-made, or was learned
    on recorded runs of others. A `haltwise.HaltingMonitor`, in contrast, is learned on recorded
    runs of one's own loop, sees gradients and parameters if they are shown, and stops where another
    round is not worth its price.

    A value that is NaN counts as the worst there is, since the run diverged, as it does where it is
    written in a log (`haltwise.curves.read`). Where the cost goes back, the run was resumed from
    there, and what had been logged after that point is forgotten. The rule reads the whole log
    each time, in well under a millisecond for some hundred points, with a price alone for a
    million; of a long loop show a learned rule every tenth or hundredth step.

    Args:
        rule: A rule on curves, or the name or path of a learned one: `"training-runs"`, which comes
            with the package, or a directory that `haltwise learn` wrote, to give runs up or, with
            `--stop-early`, to stop them where another step is not worth its price; it takes a
            megabyte, so of thousands of monitors give each the one that
            `haltwise.curves.load_curve_rule` returns. None, with a
            price, ends the run after a point that gained less than it cost; where the metric is
            noisy or stands still, after twenty that did so together
            (`haltwise.curves.rules.windowed_improvement.WindowedImprovementRule`).
        metric: The name of the column that is judged; "loss" if None, or "metric" where higher is
            better.
        direction: Whether lower or higher values of it are better.
        target: The value that is a success; None if there is none.
        budget: What a run may spend, in units of cost; None if unknown.
        level: The run is given up at the first point whose score lies below; or a certificate of
            the rule, such as one on the card of a learned one.
        price: Without a rule: what a unit of cost must gain, in units of the metric. For a learned
            one, instead of a level: (value of a unit of cost) / (value of a success).
        lost: For a learned rule, instead: the share of the successes that may be lost, one of those
            that it remembers a level for; .01 if nothing is given. It holds for runs like those
            that it was learned on, for `"training-runs"` trainings of networks.
        cost_unit: What cost is counted in. Where it is that of the card of a learned rule, levels
            for `lost` hold as they are; where it is another or nobody says, they are translated by
            the budget.
        min_points: The run is not given up before it has as many points.

    Raises:
        InputError: There is no such rule, a setting is impossible, or a learned rule has no target.

    Warns:
        DataWarning: By the name of the metric, the other direction is better; or a learned rule
            sees a first value that meets the target, and no name says that lower is better, or a
            cost beyond the budget before the run could have been given up; or costs seem to be
            those of single rounds.

    Examples:
        End a loop once a step lowers its loss by less than .01:

        >>> monitor = RunMonitor(price=0.01)
        >>> while not monitor.should_stop:
        ...     monitor.update(1 / (1 + monitor.steps))
        >>> monitor.steps, monitor.reason
        (11, 'the last gain was 0.00909 per unit of cost, below its price of 0.01')

        Give up what has not improved by a hundredth for ten points:

        >>> import numpy as np
        >>> class Improvement(CurveRule):
        ...     def score(self, curve):
        ...         best = np.minimum.accumulate(curve.loss)
        ...         return np.append(np.full(10, np.inf), best[:-10] - best[10:])[: len(best)]
        >>> monitor = RunMonitor(Improvement(), level=0.01)
        >>> for step in range(1000):
        ...     monitor.update(1 / (1 + step))  # what your loop measures
        ...     if monitor.should_stop:
        ...         break
        >>> monitor.steps, monitor.reason
        (38, 'the score is 0.0094')
    """

    def __init__(
        self,
        rule: CurveRule | str | Path | None = None,
        *,
        metric: str | None = None,
        direction: Direction = "min",
        target: Number | None = None,
        budget: Number | None = None,
        level: float | Certificate | None = None,
        price: float | None = None,
        lost: float | None = None,
        cost_unit: str | None = None,
        min_points: int = MIN_POINTS,
    ) -> None:
        one_of("direction", direction, get_args(Direction))
        require(
            isinstance(metric, str | None),
            f"metric must be the name of a column, got {shown(metric)}",
        )
        warn_of_direction(metric, direction)
        given: object = rule
        if isinstance(given, SupportsFloat):
            number = real_number("a rule", given)
            raise InputError(
                f"{number:g} is no rule on curves; if it is a price, name it: "
                f"RunMonitor(price={number:g})"
            )
        if rule is None:
            require(price is not None, "give a price, which ends the run, or a rule that does")
            rule, price = WindowedImprovementRule(price_per_unit(price)), None
        self._rule = LevelledRule(
            rule, level=level, price=price, lost=lost, cost_unit=cost_unit, min_points=min_points
        )
        self._metric = metric or ("loss" if direction == "min" else "metric")
        self._direction: Direction = direction
        known = None if metric is None else direction_of(metric)
        self._is_assumed = direction == "min" and known is None  # perhaps nobody thought of it
        self._target = math.nan if target is None else real_number("the target", target)
        require(
            math.isfinite(self._target) or not self._rule.is_learned,
            "a learned rule forecasts whether a run will meet its target, but there is none; give "
            "a target",
        )
        require(
            target is None or not isinstance(self._rule.rule, StopModel),
            "this model stops runs early, whether they succeed or not, and was judged by that; "
            "leave the target out",
        )
        self._own_budget = math.nan if budget is None else real_number("the budget", budget)
        require(not self._own_budget <= 0, f"the budget must be above 0, got {self._own_budget:g}")
        self._begin()  # a loop may still tell its budget, by `start`

    def start(self, *, budget: Number | None = None) -> None:
        """Begin a run; what was seen of another is forgotten.

        Args:
            budget: What it may spend, for loops that know; a budget of the constructor goes first.

        Raises:
            InputError: The rule is a learned one, and nobody knows the budget.
        """
        self._begin(budget)
        self._require_budget()

    def _known_budget(self, budget: Number | None) -> float:
        if math.isnan(self._own_budget) and budget is not None:
            return real_number("the budget", budget)
        return self._own_budget

    def _begin(self, budget: Number | None = None) -> None:
        self._budget = self._known_budget(budget)
        self._cost = array("d")
        self._columns = {self._metric: array("d")}
        self._counted: bool | None = None  # whether costs count the updates
        self._steps = 0
        self._reason: str | None = None

    def resume(self, *, budget: Number | None = None) -> None:
        """Go on with the run that is known, after a break.

        Where the loop has another budget now, the run is judged by that one, and anew: one that was
        given up in so many epochs may be worth twice as many.

        Args:
            budget: What it may spend in all, for loops that know; a budget of the constructor goes
                first.

        Raises:
            InputError: The rule is a learned one, and nobody knows the budget.

        Examples:
            >>> monitor = RunMonitor(price=0.01)
            >>> monitor.start(budget=10)
            >>> monitor.update(0.5)
            >>> monitor.resume(budget=20)
            >>> monitor.steps, monitor.curve.budget
            (1, 20.0)
        """
        known = self._known_budget(budget)
        if known > 0 and known != self._budget:
            self._budget, self._reason = known, None
        self._require_budget()

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        copied._cost = self._cost[:]
        copied._columns = {name: column[:] for name, column in self._columns.items()}
        return copied

    @property
    def identity(self) -> str:
        """What tells it from other monitors: its rule and settings."""
        return str(self._settings())

    def __repr__(self) -> str:
        state = "met its target" if self._cost and self.succeeded else f"stops: {self._reason}"
        if self._reason is None and not (self._cost and self.succeeded):
            state = "goes on"
        seen = f"{self._steps} point{'s' * (self._steps != 1)} seen"
        return (
            f"RunMonitor({type(self._rule.rule).__name__} on {self._metric} ({self._direction}), "
            f"{aim(self._target, self._budget)}; {seen}, {state})"
        )

    @property
    def steps(self) -> int:
        """Points seen, the calls of `update`."""
        return self._steps

    @property
    def reason(self) -> str | None:
        """Why the run should be given up, in words; None while it should not."""
        return self._reason

    @property
    def should_stop(self) -> bool:
        """Whether the run should be given up; once so, it stays so.

        A run that has met its target should not: see `succeeded`.

        Raises:
            InputError: The rule is a learned one, and nobody knows the budget.
        """
        self._require_budget()
        return self._reason is not None

    @property
    def succeeded(self) -> bool:
        """Whether the metric has met the target."""
        return self._shown().success >= 0

    @property
    def direction(self) -> Direction:
        """Whether lower or higher values of the metric are better."""
        return self._direction

    @property
    def curve(self) -> Curve:
        """What is known of the run."""
        seen = self._shown()
        columns = {name: values.copy() for name, values in seen.columns.items()}
        return seen._replace(cost=seen.cost.copy(), columns=columns)

    def _shown(self) -> Curve:
        """What is known of the run, lent: of a long one copies would take longer than the rule."""
        return Curve(
            _lent(self._cost),
            {name: _lent(values) for name, values in self._columns.items()},
            self._metric,
            self._direction,
            self._target,
            self._budget,
        )

    def update(self, value: Number, *, cost: Number | None = None, **columns: Number) -> None:
        """See one point of the run.

        Args:
            value: The metric, a single number; NaN or infinite where the run diverged.
            cost: What has been spent since the run began, in all, such as seconds or steps; 0, 1,
                2, ... if no update gives one.
            **columns: What else was measured, by name; NaN where it is not given.

        Raises:
            InputError: A number is none, or a cost is negative, not finite, or given in some
                updates only.

        Warns:
            DataWarning: The value is infinitely good, and counts as the worst.
        """
        self._require_budget()
        require(
            self._counted in (None, cost is None),
            "some updates of this run gave a cost and some did not; give every update() one, or "
            "none",
        )
        require(
            self._metric not in columns,
            f"{self._metric!r} is the metric, which is given first; name another column",
        )
        spent = float(self._steps) if cost is None else real_number("the cost", cost)
        require(
            0 <= spent < math.inf,
            f"the cost must be a finite number of at least 0, got {spent:g}; it is what was spent "
            "since the run began",
        )
        found = real_number("the value", value)
        worst = math.inf if self._direction == "min" else -math.inf
        if found == -worst:
            warn(
                f"the value is {found:g}, better than any number; it counts as {worst:g}, as of a "
                "run that diverged. If it is the logarithm of 0, give a finite number",
                DataWarning,
            )
        measured = {self._metric: found if math.isfinite(found) else worst}
        measured |= {name: real_number(name, number) for name, number in columns.items()}
        self._counted = cost is None
        self._append(spent, measured)
        assumed_and_learned = self._is_assumed and self._rule.is_learned
        if assumed_and_learned and self._steps == 1 and self.succeeded:
            warn(
                f"the first value, {found:g}, meets the target of {self._target:g} already, as "
                "lower is taken for better, so this run is never given up; if higher is, make the "
                'monitor with direction="max"',
                DataWarning,
            )
        self._compare_costs(self._rule.known_until(self._budget))
        if self._reason is None:
            curve = self._shown()
            if self._rule.gives_up(curve, curve.num_points - 1) is not None:
                self._reason = self._rule.rule.why(curve)
                if self._is_assumed and curve.loss[0] == curve.lowest() < curve.loss[-1] < math.inf:
                    self._reason += (
                        "; no value was below the first, so if higher is better make the monitor "
                        'with direction="max"'
                    )

    def _require_budget(self) -> None:
        require(
            0 < self._budget < math.inf or not self._rule.is_learned,
            "a learned rule forecasts what a run will reach in its budget, but there is no "
            "finite one; give a budget, in the unit in which cost is counted",
        )

    def _compare_costs(self, known_until: float) -> None:
        """Say once where costs are no sums, or beyond the budget before a run could be given up."""
        if self._steps == _SUMMED >= _FEW * len(self._cost):
            warn(
                f"of {_SUMMED} updates {len(self._cost)} count, as costs repeat or go back; give "
                "as cost what was spent since the run began, in all, not what one round took",
                DataWarning,
            )
        if len(self._cost) > self._rule.min_points:
            return
        before, spent = [0.0, *self._cost][-2:]
        if before <= known_until < spent:
            warn(
                f"a cost of {spent:g} at point {len(self._cost)} of a run is beyond a budget of "
                f"{known_until:g}, within which the rule was to judge it; count both in one unit, "
                "and the cost from where the run began",
                DataWarning,
            )

    def _append(self, spent: float, measured: Mapping[str, float]) -> None:
        """Note a point, and forget those that it replaces."""
        self._cost = _unlent(self._cost)
        self._columns = {name: _unlent(column) for name, column in self._columns.items()}
        place = bisect_left(self._cost, spent)
        again = self._cost[-1:] == array("d", [spent])  # measured in two goes
        for name in [each for each in measured if each not in self._columns]:
            self._columns[name] = array("d", [math.nan]) * len(self._cost)
        for name, column in self._columns.items():
            before = column[place] if again else math.nan
            del column[place:]
            value = measured.get(name, math.nan)
            column.append(before if math.isnan(value) else value)
        del self._cost[place:]
        self._cost.append(spent)
        self._steps += 1

    # -------------------------------------------------------------------------------- persistence

    def state_dict(self) -> dict[str, Any]:
        """All that the run depends on, to go on exactly; JSON has a value for all of it."""
        return {
            "cost": self._cost.tolist(),
            "columns": {name: _plain(column) for name, column in self._columns.items()},
            "counted": self._counted,
            "steps": self._steps,
            "reason": self._reason,
            "budget": _plain([self._budget])[0],
            "settings": self._settings(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            InputError: It is no monitor's state, or that of one with other settings.
        """
        message = "this is no state of a RunMonitor; load what its state_dict() gave"
        with refusing_others(message):
            settings, steps, reason = dict(state["settings"]), state["steps"], state["reason"]
            cost, counted, budget = array("d", state["cost"]), state["counted"], state["budget"]
            columns = {name: array("d", map(float, v)) for name, v in state["columns"].items()}
            whole = (
                state.keys() == _STATE
                and isinstance(steps, int)
                and steps >= len(cost)
                and all(a < b for a, b in itertools.pairwise((-1.0, *cost)))
                and isinstance(reason, str | None)
                and isinstance(counted, bool | None)
                and math.isfinite(sum(cost))
                and settings.get("metric") in columns
                and {len(column) for column in columns.values()} == {len(cost)}
            )
            known, own = float(budget), self._settings()
            differ = [name for name, mine in own.items() if bool(settings.get(name) != mine)]
        require(whole and not known <= 0, message)
        require(
            not differ,
            "the state was taken by a monitor with another "
            + " and another ".join(f"{name} ({settings.get(name)!s:.50})" for name in differ)
            + "; build this one in the same way",
        )
        self._budget, self._cost, self._columns = known, cost, columns
        self._counted, self._steps, self._reason = counted, steps, reason

    def _settings(self) -> dict[str, Any]:
        target, budget = _plain([self._target, self._own_budget])
        return {
            **self._rule.settings,
            "metric": self._metric,
            "direction": self._direction,
            "target": target,
            "budget": budget,
        }


def warn_of_direction(metric: str | None, direction: Direction) -> None:
    """Say where the name of a metric tells that the other direction is better."""
    known = None if metric is None else direction_of(metric)
    if known not in (None, direction):
        warn(
            f"{'higher' if known == 'max' else 'lower'} values of a metric called {metric!r} are "
            f"better, but the monitor was made with direction={direction!r}; make it with "
            f"{known!r}, or give the metric another name",
            DataWarning,
        )


def _lent(numbers: "array[float]") -> npt.NDArray[np.float64]:
    """The numbers themselves, not to be written to."""
    shown = np.frombuffer(numbers) if numbers else np.empty(0)
    shown.flags.writeable = False
    return shown


def _unlent(numbers: "array[float]") -> "array[float]":
    """The numbers; a copy where somebody, such as a rule, still has those that it was lent."""
    try:
        numbers.append(0.0)
    except BufferError:
        return numbers[:]
    numbers.pop()
    return numbers


def _plain(numbers: Iterable[float]) -> list[float | str]:
    """Numbers for JSON, which has neither NaN nor infinity: those are written in words."""
    return [number if math.isfinite(number) else str(number) for number in numbers]
