"""Pruning Optuna's trials by a rule on their curves: `pip install 'haltwise[optuna]'`."""

import math
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import final

import numpy as np

from haltwise._core.errors import FitWarning, require, warn
from haltwise._core.settings import real_number, require_flags, whole_number
from haltwise.curves.curves import Curve, Curves, Direction
from haltwise.curves.model import CurveModel
from haltwise.curves.rule import CurveRule
from haltwise.interfaces.levelled_rule import LevelledRule
from haltwise.interfaces.run_monitor import Number

try:
    from optuna.pruners import BasePruner
    from optuna.study import Study, StudyDirection
    from optuna.trial import FrozenTrial, TrialState
except ImportError:
    raise ImportError("Optuna is not installed: pip install 'haltwise[optuna]'") from None

__all__ = ["HaltwisePruner"]

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)
_FEWEST_PEERS = 4  # of which the worse half is pruned
_MANY_TRIALS = 10  # completed before it is strange that a learned rule has pruned none


@final
class HaltwisePruner(BasePruner):  # type: ignore[misc]
    """Prunes a trial where a rule gives its curve of intermediate values up.

    A trial succeeds if it becomes as good as the best completed one; it is pruned where that is no
    longer likely enough by the rule. A trial that has been as good already is not pruned. The
    metric is called `value` on the curve, and the steps that are reported are its cost. Report what
    the objective returns: of a best trial that returned what it never came near to by its reports,
    such as a percentage beside shares, the nearest value that it reported is the target.

    A trial is not pruned while nothing tells its target or a learned rule's budget, for instance
    where all completed trials violate constraints, or came from elsewhere without their values; nor
    while the best value is infinite, or there are no peers yet to learn from.

    Unless told otherwise, a learned rule goes by the pace of the study. A random search that has
    spent C finds its next best trial in about as much again, so that to spend c elsewhere is worth
    c / C of a success, and a trial is pruned where its chance of success is below c / C, with c
    what it would still spend: all that is left if it fails, half of that if it succeeds. It is also
    pruned where it is in the worse half of four trials or more that came as far: chances that were
    learned elsewhere may all be too high or too low, ranks may not.

    Args:
        rule: A rule on curves, or the name or path of a learned one; see `haltwise.RunMonitor`.
        target: The value that is a success; that of the best completed trial if None.
        min_delta: By how much, in units of the value, a trial must be better than the best
            completed one to count as a success. Choose the least gain that you would pay for:
            until one trial has learned anything, all gains are tiny, and each runs to its end.
        budget: The last step of a trial; the highest that a completed trial reported if None.
        peers: Whether the rule learns anew from the study's finished trials, completed and pruned,
            whenever there is another: for rules that compare a run with others, such as the median
            rule.
        level: See `haltwise.RunMonitor`; so `price`, `lost` and `cost_unit`. If none of the three
            is given, a learned rule goes by the pace of the study.
        price: What a step is worth, in values of a success.
        lost: The share of successes that may be lost. It was measured on recorded runs, many of
            which met their target; few trials beat the best one, so that a level for it may prune
            none. Without it, trials go by the pace of the study.
        cost_unit: What steps are called on the card of a learned rule.
        n_startup_trials: Trials that must have been completed before one is pruned.
        min_points: Values that a trial must have reported before it is pruned.

    Raises:
        InputError: There is no such rule, or a setting is impossible.

    Warns:
        FitWarning: A fixed level of a learned rule pruned none of ten trials or more.

    Examples:
        >>> study = optuna.create_study(  # doctest: +SKIP
        ...     pruner=HaltwisePruner("training-runs")
        ... )
    """

    def __init__(
        self,
        rule: CurveRule | str | Path,
        *,
        target: Number | None = None,
        min_delta: Number = 0.0,
        budget: Number | None = None,
        peers: bool = False,
        level: float | None = None,
        price: float | None = None,
        lost: float | None = None,
        cost_unit: str | None = None,
        n_startup_trials: int = 1,
        min_points: int = 2,
    ) -> None:
        require_flags(peers=peers)
        self._rule = LevelledRule(
            rule, level=level, price=price, lost=lost, cost_unit=cost_unit, min_points=min_points
        )
        is_free = all(value is None for value in (level, price, lost))
        self._goes_by_pace = is_free and self._rule.is_learned
        self._target = None if target is None else _finite("the target", target)
        self._min_delta = _finite("min_delta", min_delta)
        require(self._min_delta >= 0, f"min_delta must not be negative, got {min_delta}")
        self._budget = None if budget is None else _finite("the budget", budget)
        require(
            self._budget is None or self._budget > 0, f"the budget must be above 0, got {budget}"
        )
        self._peers = peers
        self._num_startup = whole_number("n_startup_trials", n_startup_trials, least=0)
        # What was made of which trials of which study.
        self._learned: tuple[object, ...] | None = None
        self._best: tuple[tuple[object, ...] | None, float] = (None, math.nan)
        self._courses = _Courses()
        self._warned = False

    def __repr__(self) -> str:
        target = "that of the best trial" if self._target is None else f"{self._target:g}"
        budget = "that of the longest trial" if self._budget is None else f"{self._budget:g}"
        pace = ", at the pace of the study" if self._goes_by_pace else ""
        rule = type(self._rule.rule).__name__
        return f"HaltwisePruner({rule}{pace}; target {target}, budget {budget})"

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        trials = study.get_trials(deepcopy=False)
        finished = [each for each in trials if each.state in _FINISHED]
        completed = [each for each in finished if each.state is TrialState.COMPLETE]
        needed = max(self._num_startup, self._target is None)
        if len(completed) < needed or not trial.intermediate_values:
            return False
        maximizes = study.direction is StudyDirection.MAXIMIZE
        direction: Direction = "max" if maximizes else "min"
        target = self._target
        if target is None:
            best = self._best_value(study, completed)
            target = best + self._min_delta * (1 if maximizes else -1)
        courses = self._courses.of(study, trials)
        whole = [
            course
            for course, other in zip(courses, trials, strict=True)
            if other.state is TrialState.COMPLETE and course.steps
        ]
        longest = max((course.steps[-1] for course in whole), default=0)
        budget = self._budget or longest or math.nan
        if not math.isfinite(target) or (self._rule.is_learned and math.isnan(budget)):
            return False
        if self._peers and not self._learn(study, finished, direction, target, budget):
            return False
        curve = _curve(trial, direction, target, budget)
        if self._goes_by_pace:
            # Cost is counted in whole trials here, whether steps start at 0 or at 1.
            num_points = max((len(course.steps) for course in whole), default=0)
            return self._falls_behind(courses, curve, num_points)
        if self._rule.gives_up(curve, curve.num_points - 1) is not None:
            return True
        if self._rule.is_learned and len(completed) == len(finished) >= _MANY_TRIALS:
            self._warn_of_level(budget, len(completed))
        return False

    def _warn_of_level(self, budget: float, num_trials: int) -> None:
        """Say once that a level which was learned elsewhere prunes nothing here."""
        if self._warned:
            return
        self._warned = True
        settings = self._rule.settings
        name = next(key for key in ("lost", "price", "level") if settings[key] is not None)
        warn(
            f"{name}={settings[name]} has pruned none of {num_trials} trials: no score fell below "
            f"the level {self._rule.level(budget):.2g}, for few trials beat the best one, while "
            f"levels are learned from runs many of which succeed; leave {name}= out to prune by "
            "the pace of the study",
            FitWarning,
        )

    def _falls_behind(self, courses: Sequence["_Course"], curve: Curve, num: int) -> bool:
        """Whether the trial promises too little for the pace of the study, or lags its peers.

        Args:
            courses: Of all trials.
            curve: Of this one.
            num: Points of a whole trial.
        """
        if curve.num_points < self._rule.min_points or curve.success >= 0 or num == 0:
            return False
        model = self._rule.rule
        assert isinstance(model, CurveModel)
        if _is_in_worse_half(curve, courses):
            return True
        values = sum(len(course.steps) for course in courses)
        left = max(1 - curve.cost[-1] / curve.budget, 0.0)
        chance = model.last_chance(curve)
        return bool(chance * values < left * (1 - chance / 2) * num)

    def _best_value(self, study: Study, completed: list[FrozenTrial]) -> float:
        """The best value so far; it is looked for when another trial has completed."""
        key = _version(study, completed)
        if key != self._best[0]:
            self._best = key, _best_value(study)
        return self._best[1]

    def _learn(
        self,
        study: Study,
        finished: list[FrozenTrial],
        direction: Direction,
        target: float,
        budget: float,
    ) -> bool:
        """Let the rule learn from the trials that have finished; whether there are any."""
        key = _version(study, finished)
        if key == self._learned:
            return True
        curves = [
            _curve(other, direction, target, budget)
            for other in finished
            if other.intermediate_values
        ]
        if not curves:
            return False
        self._rule.learn(
            Curves.from_runs(
                [{"cost": curve.cost, **curve.columns} for curve in curves],
                metric="value",
                direction=direction,
                target=target,
                budget=budget,
            )
        )
        self._learned = key
        return True


@final
class _Course:
    """The values that a trial reported, by step, and the best ones until each, as losses."""

    def __init__(self, trial: FrozenTrial, sign: float) -> None:
        reported = sorted(trial.intermediate_values.items())
        self.steps = [step for step, _ in reported]
        # NaN never is the best: `fmin` passes it over.
        losses = sign * np.array([value for _, value in reported], np.float64)
        self._best: list[float] = np.fmin.accumulate(losses).tolist()

    def best_until(self, step: float) -> float | None:
        """The best value until a step that was reported; None for others."""
        place = bisect_left(self.steps, step)
        return self._best[place] if step in self.steps[place : place + 1] else None


@final
class _Courses:
    """The courses of trials, each made but once of those that have finished."""

    def __init__(self) -> None:
        self._study = ""
        self._finished: dict[tuple[object, ...], _Course] = {}

    def of(self, study: Study, trials: Sequence[FrozenTrial]) -> list[_Course]:
        """One of each trial of a study."""
        if study.study_name != self._study:
            self._study, self._finished = study.study_name, {}
        sign = -1.0 if study.direction is StudyDirection.MAXIMIZE else 1.0
        found = []
        for trial in trials:
            key = trial.number, trial.datetime_complete
            course = self._finished.get(key) or _Course(trial, sign)
            if trial.datetime_complete is not None:
                self._finished[key] = course
            found.append(course)
        return found


def _finite(name: str, value: Number) -> float:
    found = real_number(name, value)
    require(math.isfinite(found), f"{name} must be a finite number, got {found}")
    return found


def _version(study: Study, finished: list[FrozenTrial]) -> tuple[object, ...]:
    """What tells the finished trials of a study from those at another time, or of another."""
    last = [(trial.number, trial.datetime_complete) for trial in finished[-1:]]
    return study.study_name, len(finished), *last


def _best_value(study: Study) -> float:
    """The value of the best trial in the unit of its reports, NaN if none satisfies constraints."""
    try:
        best = study.best_trial
    except ValueError:  # no feasible trial
        return math.nan
    reported: list[float] = [
        value for value in best.intermediate_values.values() if not math.isnan(value)
    ]
    value = float(best.value)
    return min(max(value, min(reported)), max(reported)) if reported else value


def _is_in_worse_half(curve: Curve, courses: Sequence[_Course]) -> bool:
    """Whether at least half of the other trials that came as far had been better by then."""
    step, mine = float(curve.cost[-1]), float(curve.loss.min())
    bests = [best for course in courses if (best := course.best_until(step)) is not None]
    ahead = sum(best < mine for best in bests)
    return len(bests) >= _FEWEST_PEERS and 2 * ahead >= len(bests) - 1


def _curve(trial: FrozenTrial, direction: Direction, target: float, budget: float) -> Curve:
    """The values that a trial reported; NaN is the worst, since the trial diverged."""
    steps, reported = zip(*sorted(trial.intermediate_values.items()), strict=True)
    values = np.array(reported, np.float64)
    values[np.isnan(values)] = np.inf if direction == "min" else -np.inf
    return Curve(
        np.array(steps, np.float64),
        {"value": values},
        "value",
        direction,
        target,
        budget,
    )
