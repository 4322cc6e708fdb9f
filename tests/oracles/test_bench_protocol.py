"""The protocol of StopBench: nothing of a held-out group is used, and hindsight bounds all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np
import pytest

from haltwise._core.errors import InputError
from haltwise.bench.cases import Case, give_up_case, stop_case
from haltwise.bench.domain import Question
from haltwise.bench.protocol import Judged, judge_rule
from haltwise.bench.records import (
    BenchCase,
    BenchCell,
    captured,
    case_of,
    cell_of,
    failed_share,
    lead,
    lost,
    saved,
)
from haltwise.curves.budgets import SHARES, stops_at_shares
from haltwise.curves.curves import Curve, Curves, Floats
from haltwise.curves.folds import deal
from haltwise.curves.learning import LOST
from haltwise.curves.levels import GiveUps, quantile_levels, stops_below
from haltwise.curves.rule import CurveRule
from haltwise.curves.rules import curve_rules
from haltwise.curves.rules.best_so_far import BestSoFarRule
from haltwise.curves.rules.fixed_budget import BudgetRule
from haltwise.curves.rules.logistic import LogisticCurveRule
from haltwise.curves.rules.patience import PatienceRule
from haltwise.curves.rules.peers import PeersRule

NUM, POINTS = 48, 10


def runs(seed: int = 0, *, scored: bool = False) -> Curves:
    generator = np.random.default_rng(seed)
    rates = generator.uniform(0.05, 0.9, NUM)
    losses = np.exp(-rates[:, None] * np.arange(POINTS))
    losses = losses + generator.normal(0, 0.02, losses.shape)
    tests = losses + generator.normal(0, 0.02, losses.shape)
    groups = [f"group {i % 6}" for i in range(NUM)]
    rows = [
        {"cost": np.arange(POINTS) + 1.0, "loss": a, **({"test": b} if scored else {})}
        for a, b in zip(losses, tests, strict=True)
    ]
    return Curves.from_runs(rows, metric="loss", target=0.25, budget=float(POINTS), group=groups)


RULES = (BudgetRule, PatienceRule, BestSoFarRule, PeersRule, LogisticCurveRule)


@pytest.fixture(scope="module", params=list(Question))
def case(request: pytest.FixtureRequest) -> Case:
    if request.param is Question.STOP:
        return stop_case(runs(scored=True), "test", (0.1, 0.5))
    return give_up_case(runs())


def scrambled(case: Case, index: np.ndarray) -> Case:
    """Other losses in some of the runs."""
    generator = np.random.default_rng(9)
    point = np.isin(np.repeat(np.arange(NUM), POINTS), index)
    values, loss = case.shown.values.copy(), case.loss.copy()
    values[point] = generator.uniform(0, 3, values[point].shape)
    loss[point] = generator.uniform(0, 3, int(point.sum()))
    return replace(case, shown=replace(case.shown, values=values), loss=loss)


@pytest.mark.parametrize("kind", RULES)
def test_what_is_held_out_chooses_nothing(kind: type[CurveRule], case: Case) -> None:
    fold = deal(case.shown.group, 3, 0)
    before = judge_rule(kind.candidates, case, 3)
    assert before is not None
    for number in range(3):
        after = judge_rule(kind.candidates, scrambled(case, np.flatnonzero(fold == number)), 3)
        assert after is not None
        for key, chosen in before.settings.items():
            assert after.settings[key][number] == chosen[number]
    assert after is not None
    # The test can fail: for other folds they are training runs. Equal budgets give nothing up here.
    assert kind is BudgetRule or any(
        after.settings[key][n] != chosen[n]
        for key, chosen in before.settings.items()
        for n in range(2)
    )


SEEN: list[tuple[set[str], set[str]]] = []


@dataclass(frozen=True)
class Spy(CurveRule):
    """Remembers which groups it was fitted to when it scores."""

    fitted_to: frozenset[str] = frozenset()

    def fit(self, curves: Curves) -> Self:
        return replace(self, fitted_to=frozenset(curves.group.tolist()))

    def scores(self, curves: Curves) -> list[Floats]:
        SEEN.append((set(self.fitted_to), set(curves.group.tolist())))
        return super().scores(curves)

    def score(self, curve: Curve) -> Floats:
        return -curve.cost


def test_no_group_is_scored_by_a_rule_that_was_fitted_to_it(case: Case) -> None:
    SEEN.clear()
    judge_rule(Spy.candidates, case, 3)
    assert len(SEEN) == 3 * (2 + 1)
    assert all(fitted and not fitted & scored for fitted, scored in SEEN)


def test_groups_are_dealt_whole_and_evenly() -> None:
    groups = np.repeat(np.array(list("abcdefg")), [9, 1, 5, 3, 3, 2, 7])
    fold = deal(groups, 3, 0)
    assert all(len(set(fold[groups == group])) == 1 for group in "abcdefg")
    assert np.ptp(np.bincount(fold)) <= 3
    assert set(deal(groups, 99, 0)) == set(range(7))


def test_one_group_is_refused(case: Case) -> None:
    alone = replace(case, shown=case.shown.with_groups(["all"] * NUM))
    with pytest.raises(InputError, match="of one group, 'all'"):
        judge_rule(BudgetRule.candidates, alone)


@pytest.mark.parametrize("name", curve_rules())
def test_nothing_is_learned_from_a_single_run(name: str) -> None:
    """Two runs of one group and one of another: where the two are held out, one is left."""
    kind = curve_rules()[name]
    few = stop_case(runs().select(np.array([0, 1, 6])))
    if kind.fit is CurveRule.fit:
        judge_rule(kind.candidates, few)
    else:
        with pytest.raises(InputError, match="one run alone to learn from"):
            judge_rule(kind.candidates, few)


def test_first_below_is_the_stops_below() -> None:
    generator = np.random.default_rng(3)
    scores = [generator.normal(size=n) for n in (1, 5, 9)]
    scores[1][0] = np.inf
    levels = np.array([-np.inf, -0.5, 0.0, 0.7, np.inf])
    found = stops_below(scores, levels)
    for score, row in zip(scores, found, strict=True):
        for level, place in zip(levels, row, strict=True):
            expected = next((t for t in range(len(score)) if score[t] < level), len(score))
            assert place == expected


def test_levels_go_from_never_to_at_once() -> None:
    scores = [np.array([3.0, 1.0]), np.array([np.inf, 2.0])]
    stops = stops_below(scores, quantile_levels(scores))
    assert stops[:, 0].tolist() == [2, 2]
    assert stops[:, -1].tolist() == [0, 1]


def test_the_level_chosen_is_the_best_on_the_other_folds() -> None:
    case = stop_case(runs(), None, (0.1,))
    judged = judge_rule(BudgetRule.candidates, case, 3)
    assert judged is not None
    fold = deal(case.shown.group, 3, 0)
    for number, text in enumerate(judged.settings["0.1"]):
        level = float(text.rpartition(" ")[2])
        train = case.select(np.flatnonzero(fold != number))
        table = train.loss.reshape(-1, POINTS) + 0.1 * train.shown.cost.reshape(-1, POINTS)
        best = int(table.mean(0).argmin())
        chosen = next((t for t in range(POINTS) if -(t + 1) / POINTS < level), POINTS - 1)
        assert chosen == best


def test_levels_keep_the_share_of_successes_on_training_runs() -> None:
    case = give_up_case(runs())
    judged = judge_rule(BestSoFarRule.candidates, case, 3)
    assert judged is not None
    fold = deal(case.shown.group, 3, 0)
    for share in LOST:
        for number, text in enumerate(judged.settings[f"{share:g}"]):
            power, level = text.partition("power=")[2].split(") below ")
            train = case.select(np.flatnonzero(fold != number))
            scores = BestSoFarRule(float(power)).scores(train.shown)
            gone = GiveUps.of(train.shown, scores, np.array([float(level)])).share_lost
            assert gone[0] <= share


def test_what_is_returned_is_scored_at_the_best_point_seen() -> None:
    rows = [{"valid": [4.0, 2.0, 3.0, np.nan, 1.0], "test": [5.0, 3.0, 0.0, 0.0, np.nan]}] * 2
    case = stop_case(Curves.from_runs(rows, metric="valid"), "test", (0.5,))
    # A typical gain is 3; the last best has no known test loss, so the one before counts.
    np.testing.assert_allclose(case.loss[:5], np.array([5, 3, 3, 3, 3]) / 3)
    assert "test" not in case.shown.columns
    assert case.shown.columns == ("valid",)
    np.testing.assert_allclose(case.shown[0].loss, np.array([4, 2, 3, np.nan, 1]) / 3)
    np.testing.assert_allclose(case.shown.cost[:5], np.arange(5) / 4)


def test_metrics_to_be_maximised_are_shown_as_losses() -> None:
    rows = [{"accuracy": [0.2, 0.6, 0.8]}] * 2
    case = stop_case(Curves.from_runs(rows, metric="accuracy", direction="max"), None, (0.5,))
    np.testing.assert_allclose(case.shown[0].loss, -np.array([0.2, 0.6, 0.8]) / 0.6)
    np.testing.assert_allclose(case.loss[:3], -np.array([0.2, 0.6, 0.8]) / 0.6)


def test_runs_that_cannot_be_judged_are_left_out() -> None:
    case = stop_case(
        Curves.from_matrix([[np.inf, 1.0, 0.0], [3.0, 2.0, 1.0], [1.0, 2.0, 2.0]]), None, (0.1,)
    )
    assert (case.num_left_out, case.shown.num_runs) == (1, 2)
    with pytest.raises(InputError, match="no run can be stopped early"):
        stop_case(Curves.from_matrix([[1.0, 1.0], [2.0, 2.0]]), None, (0.1,))
    with pytest.raises(InputError, match="no run has a target"):
        give_up_case(Curves.from_matrix([[1.0, 1.0]]))


@pytest.mark.parametrize("price", [0.03, 0.3, 3.0])
@pytest.mark.parametrize("seed", range(3))
def test_the_best_budget_is_the_best_of_all_that_there_are(seed: int, price: float) -> None:
    """Also of many steps, which runs take at costs of their own, and some end early."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(12):
        num = int(generator.integers(2, 300))
        loss = np.exp(-generator.uniform(0.1, 0.6) * np.arange(num))
        rows.append(
            {
                "cost": np.cumsum(generator.integers(1, 4, num)) / 7,
                "loss": loss + generator.normal(0, 0.01, num),
            }
        )
    budget = generator.uniform(40, 70, 12)
    case = stop_case(Curves.from_runs(rows, metric="loss", budget=budget), None, (price,))

    def mean_at(share: float) -> float:
        charges = []
        for i, run in enumerate(case.shown):
            reached = np.flatnonzero(run.cost >= share * (1 - 1e-12))
            at = case.shown.offset[i] + (reached[0] if len(reached) else run.num_points - 1)
            charges.append(case.loss[at] + price * case.shown.cost[at])
        return float(np.mean(charges))

    every = [share for share in np.append(case.shown.cost, 1.0) if share <= 1 + 1e-12]
    assert case.fixed(price).mean(0).min() == pytest.approx(min(map(mean_at, every)), rel=1e-12)


def test_each_of_forty_steps_is_a_budget() -> None:
    """A share of the budget that a point has reached but for rounding is reached there."""
    losses = 2.0 - np.eye(41)  # run i has its one good point after i steps
    case = stop_case(Curves.from_matrix(losses), None, (0.1,))
    stops = stops_at_shares(case.shown, SHARES)
    assert (stops == np.arange(41)).all()


@pytest.mark.parametrize("kind", RULES)
def test_hindsight_bounds_every_rule(kind: type[CurveRule], case: Case) -> None:
    judged = judge_rule(kind.candidates, case, 3)
    record = case_of("here", "title", case)
    cell = cell_of("here", "rule", case, judged, "", 0.0)
    assert judged is not None
    for key in record.keys:
        if case.question is Question.STOP:
            assert (judged.figures[f"charge@{key}"] >= case.oracle(float(key)) - 1e-12).all()
            assert captured(record, cell, key).value <= 1
        else:
            assert 0 <= saved(record, cell, key).value <= 1
            met = case.shown.succeeded
            assert judged.figures[f"saved@{key}"][~met].sum() <= case.shown.spent[~met].sum()
            assert 0 <= lost(record, cell, key).value <= 1


def test_the_oracle_captures_all_and_the_best_budget_nothing() -> None:
    case = stop_case(runs(), None, (0.1, 0.5))
    record = case_of("here", "title", case)
    for price in case.prices:
        table = case.fixed(price)
        best = table[:, table.mean(0).argmin()]
        rounded = best * (1 + 4e-12)
        cell = cell_of("here", "rule", case, _judged(f"charge@{price:g}", rounded), "", 0.0)
        assert captured(record, cell, f"{price:g}").value == 0
        for charge, gain in ((case.oracle(price), 1.0), (best, 0.0)):
            cell = cell_of("here", "rule", case, _judged(f"charge@{price:g}", charge), "", 0.0)
            found = captured(record, cell, f"{price:g}")
            assert found.value == pytest.approx(gain, abs=1e-9)
            assert found.low <= found.value + 1e-9


def test_the_oracle_gives_up_what_fails() -> None:
    case = give_up_case(runs())
    record = case_of("here", "title", case)
    met = case.shown.succeeded
    spent = case.shown.spent
    assert failed_share(record) == pytest.approx(spent[~met].sum() / spent.sum())


def test_a_lead_is_paired() -> None:
    case = stop_case(runs(), None, (0.1,))
    record = case_of("here", "title", case)
    one = cell_of("here", "a", case, judge_rule(PatienceRule.candidates, case, 3), "", 0.0)
    two = cell_of("here", "b", case, judge_rule(BudgetRule.candidates, case, 3), "", 0.0)
    ahead = lead(record, one, two, "0.1")
    expected = captured(record, one, "0.1").value - captured(record, two, "0.1").value
    assert ahead.value == pytest.approx(expected)
    assert ahead.low <= ahead.value <= ahead.high
    sums = {key: [value * (1 - 1e-13) for value in values] for key, values in one.sums.items()}
    for same in (one, replace(one, sums=sums)):
        found = lead(record, one, same, "0.1")
        assert (found.value, found.low, found.high) == (0, 0, 0)


def alike(num_groups: int) -> BenchCase:
    """A case in which runs are given up, of groups of one size."""
    sums = {"runs": 10.0, "cost": 100.0, "failed": 70.0, "successes": 3.0}
    groups = [str(number) for number in range(num_groups)]
    return BenchCase(
        "here", Question.GIVE_UP, "title", 10 * num_groups, 0, "", ["0.05"], groups,
        {name: [value] * num_groups for name, value in sums.items()}, {},
    )  # fmt: skip


def saving(saved: Sequence[float]) -> BenchCell:
    """A rule that saves so much in each group."""
    return BenchCell("here", Question.GIVE_UP, "rule", "", {"saved@0.05": [*saved]}, {}, 0.0)


def test_shares_saved_differ_by_no_more_than_all() -> None:
    found = lead(alike(2), saving([90, 0]), saving([0, 10]), "0.05")
    assert found.value == pytest.approx(0.4)
    assert (found.low, found.high) == (-1, 1)


@pytest.mark.parametrize("num_groups", [2, 3, 5, 12])
def test_of_rules_alike_one_is_ahead_for_sure_in_one_of_twenty_benches(num_groups: int) -> None:
    generator, case, sure = np.random.default_rng(num_groups), alike(num_groups), 0
    for _ in range(400):
        one, other = map(saving, generator.normal(30, 5, (2, num_groups)))
        ahead = lead(case, one, other, "0.05")
        sure += not ahead.low <= 0 <= ahead.high
    assert 4 <= sure <= 36  # of 400 by chance: 20 are due, and four standard deviations about them


@dataclass(frozen=True)
class Bad(CurveRule):
    """A stranger's rule that goes wrong."""

    wrong: ClassVar[float] = np.nan

    @classmethod
    def candidates(cls, price: float | None = None) -> Sequence[Self]:
        return [cls()]

    def score(self, curve: Curve) -> Floats:
        return np.full(curve.num_points, self.wrong)


def test_scores_that_are_none_are_refused(case: Case) -> None:
    with pytest.raises(InputError, match="Bad scores a point by NaN"):
        judge_rule(Bad.candidates, case)


def _judged(key: str, values: Floats) -> Judged:
    return Judged({key: values}, {})


def test_two_typical_gains_below_its_start_stand_for_a_target() -> None:
    """The features of an early stop need one; losses are counted in typical gains."""
    losses = [[6.0, 2.0], [5.0, 3.0], [9.0, 3.0]]  # gains of 4, 2 and 6: the typical one is 4
    shown = stop_case(Curves.from_matrix(losses)).shown
    np.testing.assert_allclose([curve.loss[0] for curve in shown], np.array([6, 5, 9]) / 4)
    np.testing.assert_allclose(shown.target, np.array([6, 5, 9]) / 4 - 2)
