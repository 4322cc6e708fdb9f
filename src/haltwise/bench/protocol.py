"""One protocol for all rules: groups held out, settings and levels chosen on the other groups.

The groups are dealt to folds. For the runs of a fold, a rule's settings and its level are chosen on
the runs of the other folds alone: a rule that learns is fitted to some of their groups and scores
the rest, by turns (cross-fitting), and the setting and level that would have done best on these
scores are taken, the rule fitted to all of them. Every rule, hand-made or learned, goes this way.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from haltwise._core.errors import require
from haltwise.bench.cases import Case
from haltwise.bench.domain import Question
from haltwise.curves.curves import Curves, Floats, Integers
from haltwise.curves.folds import deal
from haltwise.curves.learning import LOST
from haltwise.curves.levels import GiveUps, candidate_levels, quantile_levels, stops_below
from haltwise.curves.rule import CurveRule, Scores, checked_scores, cross_fitted
from haltwise.curves.rules.learned import ForecastRule
from haltwise.curves.rules.learners import LearnedCurveRule, with_inputs

__all__ = ["Judged", "judge_rule"]

_INNER = 2  # folds within the training groups

Candidates = Callable[[float | None], Sequence[CurveRule]]


class Judged(NamedTuple):
    """What a rule did to each run while the run's group was held out.

    Attributes:
        figures: By name, shapes [n]: `charge@PRICE`, or `saved@LOST` and `lost@LOST`.
        settings: The setting and level chosen for each fold, by price or share lost.
    """

    figures: dict[str, Floats]
    settings: dict[str, list[str]]


def judge_rule(
    candidates: Candidates, case: Case, num_folds: int = 3, seed: int = 0
) -> Judged | None:
    """Judge a rule by the protocol; None if it has nothing to say on these runs.

    Args:
        candidates: The rule's settings to choose among, of a price; see `CurveRule.candidates`.
        case: The runs and the question.
        num_folds: Folds that groups are dealt to, at most one a group.
        seed: Of the folds.

    Raises:
        InputError: There is one group only, a rule that learns has one run to learn from, or scores
            are not one number a point.
    """
    fold = deal(case.shown.group, num_folds, seed)
    require(
        fold.max() > 0,
        f"all runs are of one group, {str(case.shown.group[0])!r}, and none is left to learn from; "
        "give runs of several groups",
    )
    prices: tuple[float | None, ...] = case.prices if case.question is Question.STOP else (None,)
    found = Judged({}, {})
    rules: Sequence[CurveRule] = ()
    scorer = None
    for price in prices:
        before, rules = rules, candidates(price)
        if not rules:
            return None
        if scorer is None or list(before) != list(rules):  # most do not depend on the price
            scorer = _Scorer(rules, case, fold, price, seed)
        if scorer.is_silent:
            return None
        for number in range(fold.max() + 1):
            train, test = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            judged = case.select(test)
            chosen = _choose(rules, case.select(train), scorer.tuning(number), price)
            for name, place, level in chosen:
                scores, levels = scorer.judged(number, place), np.array([level])
                if price is not None:
                    figures = {f"charge@{name}": judged.charges(stops_below(scores, levels), price)}
                else:
                    ends = GiveUps.of(judged.shown, scores, levels)
                    figures = {f"saved@{name}": ends.saved, f"lost@{name}": ends.lost.astype(float)}
                for key, values in figures.items():
                    empty = np.full(case.shown.num_runs, np.nan)
                    found.figures.setdefault(key, empty)[test] = values[:, 0]
                found.settings.setdefault(name, []).append(f"{rules[place]!r} below {level:.6g}")
    return found


class _Scorer:
    """The scores of a rule's settings, each computed once.

    Args:
        rules: The settings.
        case: The runs.
        fold: Of each run.
        price: See `CurveRule.candidates`.
        seed: Of the folds within the training groups.
    """

    def __init__(
        self,
        rules: Sequence[CurveRule],
        case: Case,
        fold: Integers,
        price: float | None,
        seed: int,
    ) -> None:
        self._rules, self._fold, self._seed = rules, fold, seed
        self._learns = type(rules[0]).fit is not CurveRule.fit
        reads = isinstance(rules[0], LearnedCurveRule | ForecastRule)
        self._shown = with_inputs(case.shown, price) if reads else case.shown
        self._tuning: dict[int, list[Scores]] = {}
        self._judged: dict[tuple[int, int], Scores] = {}
        self._all = [] if self._learns else [checked_scores(rule, self._shown) for rule in rules]

    @property
    def is_silent(self) -> bool:
        """Whether a hand-made rule says nothing at all, as where a column is missing."""
        return not self._learns and all(
            np.isposinf(score).all() for scores in self._all for score in scores
        )

    def tuning(self, number: int) -> list[Scores]:
        """Of each setting, the scores of the runs outside a fold by rules that do not know them."""
        if number not in self._tuning:
            train = np.flatnonzero(self._fold != number)
            own = self._shown.select(train)
            self._tuning[number] = (
                [cross_fitted(rule, own, _inner(own, self._seed)) for rule in self._rules]
                if self._learns
                else [[scores[i] for i in train] for scores in self._all]
            )
        return self._tuning[number]

    def judged(self, number: int, place: int) -> Scores:
        """The scores of the runs of a fold by a setting that has learned from all others."""
        if (number, place) not in self._judged:
            test = np.flatnonzero(self._fold == number)
            if self._learns:
                rule = self._rules[place].fit(self._shown.select(self._fold != number))
                scores = checked_scores(rule, self._shown.select(test))
            else:
                scores = [self._all[place][i] for i in test]
            self._judged[number, place] = scores
        return self._judged[number, place]


def _inner(curves: Curves, seed: int) -> Integers:
    """Folds within the training runs, of groups, or of runs where there is but one group."""
    require(
        curves.num_runs > 1,
        "a rule that learns has one run alone to learn from where the groups of a fold are held "
        "out; give more runs, in more groups",
    )
    if len(np.unique(curves.group)) > 1:
        return deal(curves.group, _INNER, seed + 1)
    return deal(np.arange(curves.num_runs).astype(str), _INNER, seed + 1)


def _choose(
    rules: Sequence[CurveRule], case: Case, tuning: list[Scores], price: float | None
) -> list[tuple[str, int, float]]:
    """The best setting and level on the training runs: of the price, or of each share lost."""
    best: dict[str, tuple[float, int, float]] = {}
    for number, (rule, scores) in enumerate(zip(rules, tuning, strict=True)):
        if rule.fixed_level is not None:
            levels = np.array([rule.fixed_level])
        elif price is not None:
            levels = quantile_levels(scores)
        else:
            levels = np.append(-np.inf, candidate_levels(case.shown, scores))
        if price is not None:
            totals = {f"{price:g}": -case.charges(stops_below(scores, levels), price).mean(0)}
        else:
            ends = GiveUps.of(case.shown, scores, levels)
            totals = {
                f"{share:g}": np.where(ends.share_lost <= share, ends.share_saved, -np.inf)
                for share in LOST
            }
        for name, values in totals.items():
            place = int(np.argmax(values))
            if name not in best or values[place] > best[name][0]:
                best[name] = (float(values[place]), number, float(levels[place]))
    return [(name, number, level) for name, (_, number, level) in best.items()]
