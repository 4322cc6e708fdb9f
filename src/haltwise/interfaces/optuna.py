"""Pruning Optuna's trials by a rule on their curves: `pip install 'haltwise[optuna]'`."""

import math
import threading
from bisect import bisect_left, insort
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

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
        self._trials: _Trials | None = None
        self._lock = threading.Lock()  # trials may run in several threads
        self._warned = False

    def __repr__(self) -> str:
        target = "that of the best trial" if self._target is None else f"{self._target:g}"
        budget = "that of the longest trial" if self._budget is None else f"{self._budget:g}"
        pace = ", at the pace of the study" if self._goes_by_pace else ""
        rule = type(self._rule.rule).__name__
        return f"HaltwisePruner({rule}{pace}; target {target}, budget {budget})"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_trials": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        with self._lock:
            return self._prunes(study, trial)

    def _prunes(self, study: Study, trial: FrozenTrial) -> bool:
        every = study.get_trials(deepcopy=False)
        if self._trials is None or not self._trials.began(study, every):
            self._trials = _Trials(study)
        trials = self._trials
        trials.look_at(every)
        needed = max(self._num_startup, self._target is None)
        if trials.num_completed < needed or not trial.intermediate_values:
            return False
        maximizes = study.direction is StudyDirection.MAXIMIZE
        direction: Direction = "max" if maximizes else "min"
        target = self._target
        if target is None:
            target = trials.best_value(study) + self._min_delta * (1 if maximizes else -1)
        budget = self._budget or trials.last_step or math.nan
        if not math.isfinite(target) or (self._rule.is_learned and math.isnan(budget)):
            return False
        if self._peers and not self._learn(every, direction, target, budget):
            return False
        curve = _curve(trial, direction, target, budget)
        if self._goes_by_pace:
            return self._falls_behind(curve)
        if self._rule.gives_up(curve, curve.num_points - 1) is not None:
            return True
        if self._rule.is_learned and trials.num_completed == trials.num_finished >= _MANY_TRIALS:
            self._warn_of_level(budget, trials.num_completed)
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

    def _falls_behind(self, curve: Curve) -> bool:
        """Whether the trial promises too little for the pace of the study, or lags its peers."""
        trials = self._trials
        assert trials is not None
        num = trials.num_points
        if curve.num_points < self._rule.min_points or curve.success >= 0 or num == 0:
            return False
        model = self._rule.rule
        assert isinstance(model, CurveModel)
        if trials.are_ahead_of(curve):
            return True
        # Cost is counted in whole trials here, whether steps start at 0 or at 1.
        left = max(1 - curve.cost[-1] / curve.budget, 0.0)
        chance = model.last_chance(curve)
        return bool(chance * trials.num_values() < left * (1 - chance / 2) * num)

    def _learn(
        self, every: Sequence[FrozenTrial], direction: Direction, target: float, budget: float
    ) -> bool:
        """Let the rule learn from the trials that have finished; whether there are any."""
        assert self._trials is not None
        if self._trials.are_learned:
            return True
        curves = [
            _curve(other, direction, target, budget)
            for other in every
            if other.state in _FINISHED and other.intermediate_values
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
        self._trials.are_learned = True
        return True


@final
class _Trials:
    """What the trials of a study tell, those that have ended being looked at once.

    Attributes:
        num_completed: Trials that were completed.
        num_finished: Those, and those that were pruned.
        last_step: The highest that a completed trial reported.
        num_points: The most values that one reported.
        are_learned: Whether a rule has learned from all that have finished.
    """

    def __init__(self, study: Study) -> None:
        self._kind = study.study_name, study.direction
        self._sign = -1.0 if study.direction is StudyDirection.MAXIMIZE else 1.0
        self._open: list[int] = []  # places of those that have not ended
        self._running: list[_Course] = []
        self._num_seen = self._num_values = 0
        self._last: tuple[int, object] | None = None  # the place of one that has ended, and when
        self._bests: dict[int, list[float]] = {}  # of those that have, by step, ascending
        self._best: float | None = None
        self.num_completed = self.num_finished = self.last_step = self.num_points = 0
        self.are_learned = False

    def began(self, study: Study, every: Sequence[FrozenTrial]) -> bool:
        """Whether these are the same trials, or more of them."""
        if (study.study_name, study.direction) != self._kind or len(every) < self._num_seen:
            return False
        if self._last is None:
            return True
        place, when = self._last
        return bool(every[place].datetime_complete == when)

    def look_at(self, every: Sequence[FrozenTrial]) -> None:
        """See which trials have ended since, and how far the others are."""
        self._open += range(self._num_seen, len(every))
        self._num_seen = len(every)
        places, self._open = self._open, []
        for place in places:
            trial = every[place]
            if trial.state.is_finished():
                self._end(trial)
                self._last = place, trial.datetime_complete
            else:
                self._open.append(place)
        self._running = [_Course(every[place], self._sign) for place in self._open]

    def _end(self, trial: FrozenTrial) -> None:
        course = _Course(trial, self._sign)
        self._num_values += len(course.steps)
        for step, best in zip(course.steps, course.bests, strict=True):
            insort(self._bests.setdefault(step, []), best)
        if trial.state in _FINISHED:
            self.num_finished += 1
            self.are_learned = False
        if trial.state is TrialState.COMPLETE:
            self.num_completed += 1
            self.last_step = max([self.last_step, *course.steps[-1:]])
            self.num_points = max(self.num_points, len(course.steps))
            self._best = None

    def best_value(self, study: Study) -> float:
        """The value of the best trial in the unit of its reports, NaN if none is feasible."""
        if self._best is None:
            self._best = _best_value(study)
        return self._best

    def num_values(self) -> int:
        """How many were reported."""
        return self._num_values + sum(len(course.steps) for course in self._running)

    def are_ahead_of(self, curve: Curve) -> bool:
        """Whether at least half of the other trials that came as far had been better by then."""
        step, mine = int(curve.cost[-1]), float(curve.loss.min())
        bests = self._bests.get(step, [])
        running = [
            course.bests[place]
            for course in self._running
            if step in course.steps[(place := bisect_left(course.steps, step)) :][:1]
        ]
        ahead = bisect_left(bests, mine) + sum(best < mine for best in running)
        number = len(bests) + len(running)
        return number >= _FEWEST_PEERS and 2 * ahead >= number - 1


@final
class _Course:
    """The values that a trial reported, by step, and the best ones until each, as losses."""

    def __init__(self, trial: FrozenTrial, sign: float) -> None:
        reported = sorted(trial.intermediate_values.items())
        self.steps = [step for step, _ in reported]
        losses = sign * np.array([value for _, value in reported], np.float64)
        losses[np.isnan(losses)] = np.inf  # never the best
        self.bests: list[float] = np.minimum.accumulate(losses).tolist()


def _finite(name: str, value: Number) -> float:
    found = real_number(name, value)
    require(math.isfinite(found), f"{name} must be a finite number, got {found}")
    return found


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
