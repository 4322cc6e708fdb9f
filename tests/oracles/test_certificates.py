"""Certificates against brute force, SciPy and the frequency with which they are wrong."""

import itertools
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from draws import DOUBLE, seeded
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from haltwise import InputError
from haltwise._core.errors import CalibrationWarning
from haltwise.certificates import Certificate, Promise, Refusal, RiskTable, certify_table
from haltwise.certificates.p_values import betting_p_values, binomial_p_values, fewest_problems
from haltwise.certificates.per_group import (
    count_safe_in_expectation,
    count_safe_next_group,
    groups_for_confidence,
    groups_for_expectation,
)
from haltwise.certificates.per_problem import count_safe_means
from haltwise.stop_rules import CostUnit, FixedBudget, ReturnedIterate, StopPolicy

levels = st.sampled_from([0.01, 0.02, 0.05, 0.3, 0.7])
confidences = st.sampled_from([0.5, 0.9, 0.95, 0.999])
some_losses = st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.1, 0.5, 1.0]), min_size=1, max_size=60)


def column(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=DOUBLE).unsqueeze(1)


# --- P-values ------------------------------------------------------------------------------------


def slow_bets(num: int, level: float, confidence: float) -> list[float]:
    """A quarter each time, from 1 / (1 - level) down to the best against losses of 0 and 1."""
    bets, least = [], math.sqrt(2 * math.log(1 / (1 - confidence)) / (num * level * (1 - level)))
    bet = 1 / (1 - level)
    while bet > least:
        bets.append(bet)
        bet /= 4
    return [*bets, min(least, 1 / (1 - level))]


def slow_p_value(losses: Sequence[float], level: float, bets: Sequence[float]) -> float:
    """A gambler who keeps a purse for every bet, one problem at a time."""
    purses, richest = [1 / len(bets)] * len(bets), 1.0
    for loss in losses:
        stakes = [max(0.0, 1 + bet * (level - loss)) for bet in bets]
        purses = [purse * stake for purse, stake in zip(purses, stakes, strict=True)]
        richest = max(richest, math.fsum(purses))
    return 1 / richest


@given(losses=some_losses, level=levels, confidence=confidences)
def test_betting_is_a_gambler_with_several_purses(
    losses: list[float], level: float, confidence: float
) -> None:
    found = betting_p_values(column(losses), level, confidence).item()
    slow = slow_p_value(losses, level, slow_bets(len(losses), level, confidence))
    assert found == pytest.approx(slow, rel=1e-9)
    assert 0 < found <= 1


def test_problems_from_easy_to_hard_certify_what_shuffled_ones_do() -> None:
    ease = torch.linspace(1, 0, 1000, dtype=DOUBLE).unsqueeze(1)
    losses = (-ease * torch.arange(30, 0, -1)).exp()  # under 30 thresholds from the safest on
    savings = torch.arange(30).expand(1000, 30)
    shuffled = losses[torch.randperm(1000, generator=seeded(0))]
    found, other = (
        certify_table(RiskTable.of(each, savings), level=0.1, confidence=0.9)
        for each in (losses, shuffled)
    )
    assert isinstance(found, Certificate)
    assert isinstance(other, Certificate)
    assert found.mean_risk <= found.level
    assert abs(found.threshold - other.threshold) <= 2


@given(losses=some_losses, level=levels, place=st.integers(0), more=st.floats(0, 1))
def test_a_larger_loss_never_lowers_a_p_value(
    losses: list[float], level: float, place: int, more: float
) -> None:
    worse = [*losses]
    worse[place % len(losses)] += more * (1 - worse[place % len(losses)])
    before, after = (betting_p_values(column(each), level, 0.9).item() for each in (losses, worse))
    assert after >= before * (1 - 1e-9)


@given(losses=st.lists(st.booleans(), min_size=1, max_size=80), level=levels)
def test_the_binomial_p_value_is_the_tail_and_forgets_the_order(
    losses: list[bool], level: float
) -> None:
    stats = pytest.importorskip("scipy.stats")
    tail = stats.binom.cdf(sum(losses), len(losses), level)
    values = column([float(loss) for loss in losses])
    assert binomial_p_values(values, level).item() == pytest.approx(tail, rel=1e-9)
    assert torch.equal(binomial_p_values(values.flip(0), level), binomial_p_values(values, level))


def test_the_binomial_p_value_is_exact_for_many_problems() -> None:
    stats = pytest.importorskip("scipy.stats")
    counts = [0, 1, 900, 1000, 1040, 100_000]
    losses = (torch.arange(100_000).unsqueeze(1) < torch.tensor(counts)).double()
    tails = stats.binom.cdf(counts, 100_000, 0.01)
    assert binomial_p_values(losses, 0.01).numpy() == pytest.approx(tails, rel=1e-7, abs=1e-300)


@pytest.mark.parametrize(("level", "confidence"), [(0.05, 0.9), (0.01, 0.95), (0.3, 0.5)])
def test_without_a_loss_the_fewest_problems_just_do(level: float, confidence: float) -> None:
    num = fewest_problems(level, confidence)
    assert (1 - level) ** num <= 1 - confidence < (1 - level) ** (num - 1)
    for values, enough in (
        (torch.zeros(num, 1, dtype=DOUBLE), True),
        (column([0.0] * (num - 1)), 0),
    ):
        assert (betting_p_values(values, level, confidence).item() <= 1 - confidence) == enough
        assert (binomial_p_values(values, level).item() <= 1 - confidence + 1e-12) == enough


def two_sided(num: int, chance: float) -> float:
    """Above what count of wrong ones a share of at most `chance` is refuted at 1e-4."""
    return num * chance + 3.8 * math.sqrt(num * chance * (1 - chance))


LAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "0 or 1": lambda uniform: (uniform < 0.05).double(),
    "0 or 1/2": lambda uniform: (uniform < 0.1).double() / 2,
    "powers": lambda uniform: uniform**19,  # mean 1/20
    "one in 1,000": lambda uniform: 0.0490490490490 + 0.950950950951 * (uniform < 0.001),
    "constant": lambda uniform: torch.full_like(uniform, 0.05),
}


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("num", [50, 300])
def test_a_mean_at_the_level_is_refuted_as_rarely_as_promised(law: str, num: int) -> None:
    """At any time, not only at the end: bets for 300 problems are looked at after each."""
    uniform = torch.rand(num, 4000, generator=seeded(7), dtype=DOUBLE)
    losses = LAWS[law](uniform)
    wrong = (betting_p_values(losses, 0.05, 0.9, num_planned=300) <= 0.1).sum().item()
    assert wrong <= two_sided(4000, 0.1)
    if law == "0 or 1":
        wrong = (binomial_p_values(losses, 0.05) <= 0.1).sum().item()
        assert 0 < wrong <= two_sided(4000, 0.1)


# --- In sequence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("is_indicator", [True, False])
def test_thresholds_are_tested_until_one_fails(
    is_indicator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third column fails; the fourth is safe and not reached, in parts or at once."""
    chances = torch.tensor([0.0, 0.001, 0.5, 0.0])
    losses = (torch.rand(300, 4, generator=seeded(1)) < chances).double()
    for at_once in (2**21, 300):
        monkeypatch.setattr("haltwise.certificates.per_problem._AT_ONCE", at_once)
        assert count_safe_means(losses, 0.05, 0.9, is_indicator=is_indicator) == 2
    assert count_safe_means(losses[:, :2], 0.05, 0.9, is_indicator=is_indicator) == 2
    assert count_safe_means(losses[:, 2:], 0.05, 0.9, is_indicator=is_indicator) == 0


@pytest.mark.parametrize("num", [50, 400])
@pytest.mark.parametrize("is_indicator", [True, False])
def test_certificates_are_wrong_as_rarely_as_promised(num: int, is_indicator: bool) -> None:
    """Twenty thresholds of growing risk, half of them above the level; the pool is the truth."""
    chance = torch.linspace(0.005, 0.2, 20, dtype=DOUBLE)
    hardness = torch.rand(5000, 1, generator=seeded(3), dtype=DOUBLE)
    pool = (hardness < chance).double()
    if not is_indicator:
        pool *= 0.2 + 0.8 * torch.rand(5000, 1, generator=seeded(4), dtype=DOUBLE)
    truth, wrong, certified = pool.mean(0), 0, 0
    for seed in range(400):
        index = torch.randint(5000, (num,), generator=seeded(seed))
        table = RiskTable.of(pool[index], pool[index], is_indicator=is_indicator)
        found = certify_table(table, level=0.06, confidence=0.9)
        if isinstance(found, Certificate):
            certified += 1
            wrong += bool(truth[found.threshold] > 0.06)
    assert wrong <= two_sided(400, 0.1)
    assert certified > 100


# --- The next group ------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9, 0.95, 0.99, 0.999])
def test_groups_for_a_confidence_are_counted_in_decimals(confidence: float) -> None:
    num, miss = groups_for_confidence(confidence), 1 - Fraction(str(confidence))
    assert (num + 1) * miss >= 1 > num * miss


@pytest.mark.parametrize(("level", "num"), [(0.02, 49), (0.01, 99), (0.05, 19), (0.3, 3)])
def test_groups_for_an_expectation(level: float, num: int) -> None:
    assert groups_for_expectation(level) == num
    assert count_safe_in_expectation(torch.zeros(num, 1, dtype=DOUBLE), level) == 1
    assert count_safe_in_expectation(torch.zeros(num - 1, 1, dtype=DOUBLE), level) == 0


sparse = st.sampled_from([0.0] * 12 + [0.05, 0.3, 1.0])  # so that few groups decide
tables = st.integers(9, 25).flatmap(
    lambda g: st.lists(
        st.lists(sparse, min_size=4, max_size=4),
        min_size=g,
        max_size=g,
    )
)


@given(means=tables, level=st.sampled_from([0.01, 0.1, 0.4]), order=st.randoms())
def test_next_groups_by_brute_force_in_any_order(
    means: list[list[float]], level: float, order: Any
) -> None:
    num, width = len(means), 4
    exceeding = [
        sum(max(row[: k + 1]) > level for row in means) for k in range(width)
    ]  # under a threshold, or a safer one
    expected = [math.fsum(max(row[: k + 1]) for row in means) for k in range(width)]
    # Conformal risk control, of the indicator and of the mean itself.
    safe = sum(Fraction(count + 1, num + 1) <= Fraction(1, 10) for count in exceeding)
    mean = sum((total + 1) / (num + 1) <= level + 1e-12 for total in expected)
    order.shuffle(means)
    values = torch.tensor(means, dtype=DOUBLE)
    assert count_safe_next_group(values, level, 0.9) == safe
    assert count_safe_in_expectation(values, level) == mean


def test_the_next_group_is_above_the_level_as_rarely_as_promised() -> None:
    """Groups differ by orders of magnitude, and the last of each draw is held out."""
    wrong, risks = {0.9: 0, 0.8: 0}, []
    steps = torch.linspace(0, 1, 400, dtype=DOUBLE)  # hardly any ties
    for seed in range(1500):
        difficulty = torch.randn(20, 1, generator=seeded(seed), dtype=DOUBLE).exp()
        means = (steps**2 * difficulty).clamp_max(1)
        for confidence in wrong:
            safe = count_safe_next_group(means[:19], 0.1, confidence)
            wrong[confidence] += bool(means[19, safe - 1] > 0.1)
        safe = count_safe_in_expectation(means[:19], 0.1)
        risks.append(means[19, safe - 1].item() if safe else 0.0)
    for confidence, count in wrong.items():
        chance = 1 - confidence
        assert abs(count - 1500 * chance) <= 3.8 * math.sqrt(1500 * chance * confidence)  # exact
    spread = torch.tensor(risks).std().item() / math.sqrt(1500)
    assert 0.04 < sum(risks) / 1500 <= 0.1 + 3.8 * spread


# --- The table and its certificate ---------------------------------------------------------------


def test_too_few_groups_or_problems_are_told_how_many_are_needed() -> None:
    quiet = [[0.0, 0.0]] * 13
    found = certify_table(RiskTable.of(quiet, groups=range(13)), level=0.02, confidence=None)
    assert isinstance(found, Refusal)
    assert (found.promise, found.num_given, found.num_needed) == (Promise.EXPECTATION, 13, 49)
    with pytest.raises(InputError, match="not certifiable: 13 groups, 49 needed, to say that the"):
        found.require()
    found = certify_table(RiskTable.of(quiet, groups=range(13)), level=0.02, confidence=0.95)
    assert "13 groups, 19 needed" in repr(found)
    assert "confidence of 0.928" in repr(found)
    found = certify_table(RiskTable.of(quiet), level=0.02, confidence=0.9)
    assert "13 problems, 114 needed" in repr(found)
    assert json.loads(json.dumps(found.to_json()))["promise"] == "mean"


def test_the_way_out_of_a_refusal_is_one() -> None:
    quiet = RiskTable.of([[0.0, 0.0]] * 13, groups=range(13))
    certify_table(quiet, level=0.0715, confidence=None).require()
    certify_table(quiet, level=0.02, confidence=0.928).require()
    certify_table(RiskTable.of([[0.0]] * 114), level=0.02, confidence=0.9).require()


@pytest.mark.parametrize("bound", [1e-9, 20.0, 4e5, 1e300])
def test_the_way_out_of_a_refusal_is_one_in_any_units(bound: float) -> None:
    quiet = RiskTable.of([[0.0, 0.0]] * 13, groups=range(13), bound=bound)
    found = certify_table(quiet, level=0.02 * bound, confidence=None)
    assert isinstance(found, Refusal)
    level = float(found.reason.rpartition(" ")[2])
    assert bound / 14 <= level < 1.01 * bound / 14
    certify_table(quiet, level=level, confidence=None).require()


@pytest.mark.parametrize("boolean", [True, False])
def test_the_edges_of_what_can_be_asked_have_answers(boolean: bool) -> None:
    losses = torch.zeros(50, 1, dtype=torch.bool if boolean else DOUBLE)
    for groups, level, confidence in itertools.product(
        (None, range(50)), (1e-299, 0.5, 1 - 1e-15), (1e-299, 0.5, 1 - 1e-15)
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CalibrationWarning)
            found = certify_table(
                RiskTable.of(losses, groups=groups), level=level, confidence=confidence
            )
        assert found.level == level


def test_a_safest_threshold_that_is_not_safe_is_refused_with_a_forecast_or_none() -> None:
    losses = torch.zeros(200, 1, dtype=torch.bool)
    losses[:7] = True
    found = certify_table(RiskTable.of(losses), level=0.05, confidence=0.9)  # 0.035 on these
    assert isinstance(found, Refusal)
    assert found.num_needed is not None
    more = losses.repeat(math.ceil(1.5 * found.num_needed / 200), 1)
    assert isinstance(certify_table(RiskTable.of(more), level=0.05, confidence=0.9), Certificate)
    losses[:20] = True
    found = certify_table(RiskTable.of(losses), level=0.05, confidence=0.9)
    assert isinstance(found, Refusal)
    assert found.num_needed is None
    assert "risk of 0.1 on these" in found.reason


def example(**changes: Any) -> Certificate:
    losses = torch.zeros(300, 3, dtype=DOUBLE)
    losses[:9, 1] = 4.0
    losses[:, 2] = 10.0
    table = RiskTable.of(losses, [[1.0, 3.0, 9.0]] * 300, bound=8.0, clip=True, risk="mean harm")
    found = certify_table(table, level=0.4, confidence=0.9)
    assert isinstance(found, Certificate)
    return replace(found, **changes)


def test_losses_are_in_units_of_the_bound_and_clipping_is_told() -> None:
    found = example()
    assert (found.threshold, found.num_thresholds, found.num_clipped) == (1, 3, 300)
    assert found.mean_risk == pytest.approx(0.12)
    assert (found.savings, found.uncertified_savings, found.kept) == (3.0, 3.0, 1.0)
    assert "mean harm is at most 0.4 (a loss above 8 counts as 8)" in found.statement
    relative = RiskTable.of([[0.0, 0.5]] * 300)
    scaled = RiskTable.of([[0.0, 4.0]] * 300, bound=8.0)
    for level in (0.02, 0.51, 0.6):
        one = certify_table(relative, level=level, confidence=0.9).require()
        eight = certify_table(scaled, level=8 * level, confidence=0.9).require()
        assert one.threshold == eight.threshold


def test_what_is_clipped_is_what_is_above_the_bound_or_no_number() -> None:
    losses = [[0.0, 2.0], [0.0, math.nan], [0.0, math.inf], [0.0, 0.5], [-1.0, -1.0]]
    table = RiskTable.of(losses, clip=True)
    assert table.num_clipped == 3
    assert table.losses[:, 1].tolist() == [1.0, 1.0, 1.0, 0.5, -1.0]
    with pytest.raises(InputError, match="loss of 3 of 5 problems is above the bound of 1 or not"):
        RiskTable.of(losses)


def test_only_subjects_count_for_the_risk_and_all_problems_for_the_savings() -> None:
    losses = torch.zeros(400, 2, dtype=torch.bool)
    losses[200:] = True
    subjects = torch.arange(400) < 200
    savings = torch.arange(400.0).unsqueeze(1) * torch.tensor([0.0, 1.0])
    labels = [f"g{i % 20}" for i in range(400)]
    table = RiskTable.of(losses, savings, subjects=subjects)
    found = certify_table(table, level=0.05, confidence=0.9)
    assert isinstance(found, Certificate)
    assert (found.num_problems, found.threshold, found.savings) == (200, 1, 199.5)
    few = torch.arange(400) < 18  # two groups without a subject
    table = RiskTable.of(losses, savings, subjects=few, groups=labels)
    with pytest.warns(CalibrationWarning, match="more than 1 problems"):
        found = certify_table(table, level=0.05, confidence=0.9)
    assert isinstance(found, Certificate)
    assert (found.num_groups, found.promise) == (18, Promise.NEXT_GROUP)


def test_groups_of_one_say_no_more_and_no_less_than_no_groups() -> None:
    """Of one problem a share is 0 or 1, so that .001 would say of the next what .999 says."""
    chance = torch.rand(600, 1, generator=torch.Generator().manual_seed(3))
    lost = chance < torch.linspace(0, 0.2, 41)
    saved = torch.arange(41.0).expand(600, 41)
    single = RiskTable.of(lost, saved, groups=[f"run {i}" for i in range(600)])
    alone = RiskTable.of(lost, saved)
    for level in (0.05, 0.1):
        found = certify_table(single, level=level, confidence=0.9).require()
        assert found == certify_table(alone, level=level, confidence=0.9)
        assert found.promise is Promise.MEAN
        assert lost[:, found.threshold].double().mean() < level
    refused = certify_table(single, level=0.001, confidence=0.9)
    assert isinstance(refused, Refusal)
    assert "600 problems, 2302 needed" in repr(refused)
    # In expectation, and of losses of any size, a level says something of groups of one.
    in_expectation = certify_table(single, level=0.05, confidence=None).require()
    assert in_expectation.promise is Promise.EXPECTATION
    any_size = RiskTable.of(lost.double(), saved, groups=range(600))
    found = certify_table(any_size, level=0.05, confidence=0.9).require()
    assert found.promise is Promise.NEXT_GROUP


@pytest.mark.parametrize(("level", "warns"), [(0.33, True), (0.34, False)])
def test_groups_too_small_for_a_level_are_warned_of(level: float, warns: bool) -> None:
    lost = torch.zeros(60, 2, dtype=torch.bool)
    table = RiskTable.of(lost, groups=[i // 3 for i in range(60)])
    with warnings.catch_warnings(record=True, action="always") as caught:
        certify_table(table, level=level, confidence=0.9).require()
        certify_table(table, level=level, confidence=None).require()
    assert len(caught) == warns
    if warns:
        assert "no group has more than 3 problems" in str(caught[0].message)
        assert "0.334 or more" in str(caught[0].message)


def test_of_safe_thresholds_the_one_that_saves_most_is_certified() -> None:
    losses, saved = torch.zeros(100, 4), torch.tensor([1.0, 3.0, 2.0, 3.0])
    table = RiskTable.of(losses, saved.expand(100, 4))
    found = certify_table(table, level=0.05, confidence=0.9).require()
    assert (found.threshold, found.savings) == (1, 3.0)


def test_group_means_by_brute_force() -> None:
    labels = [["b", "a", "c"][i % 3] for i in range(31)]
    losses = torch.rand(31, 4, generator=seeded(2), dtype=DOUBLE)
    subjects = torch.arange(31) != 2
    means = RiskTable.of(losses, groups=labels, subjects=subjects, bound=2.0).group_means()
    for row, label in zip(means, "bac", strict=True):
        own = [i for i in range(31) if labels[i] == label and i != 2]
        assert torch.allclose(row, losses[own].mean(0) / 2)


def test_a_certificate_survives_json() -> None:
    for found in (
        example(),
        example(
            policy=StopPolicy(FixedBudget(3), ReturnedIterate.NEXT),
            unit=CostUnit.GRADIENTS,
            price=0.1,
            model="0123",
        ),
        example(promise=Promise.EXPECTATION, confidence=None, num_groups=49),
    ):
        assert Certificate.from_json(json.loads(json.dumps(found.to_json()))) == found
        assert "\n" not in repr(found)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("level", 0.0, r"level must be in \(0, 8\)"),
        ("level", "0.1", "this is no Certificate"),
        ("level", None, r"level must be in"),
        ("confidence", 1.5, "confidence must be in"),
        ("promise", "everything", "this is no Certificate"),
        ("threshold", 7, "threshold must be one of those tried"),
        ("num_problems", 2.5, "this is no Certificate"),
        ("policy", {"rule": {"kind": "patient"}, "returns": "next"}, "mean 'patience'"),
        ("policy", 3, "this is no certificate"),
        ("surplus", 1, "a certificate has the entries"),
    ],
)
def test_impossible_certificates_are_refused(name: str, value: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Certificate.from_json({**example().to_json(), name: value})


def test_no_certificate_is_of_certainty() -> None:
    for confidence, words in ((0.9, "90 %"), (0.9999999, "99.99999 %"), (0.07, "7 %")):
        assert f"with {words} confidence" in example(confidence=confidence).statement


def test_a_certificate_lacks_nothing() -> None:
    document = example().to_json()
    for name in document.keys() - {"cost_unit", "budgets"}:  # older files have neither
        with pytest.raises(InputError):
            Certificate.from_json({key: value for key, value in document.items() if key != name})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"losses": [0.1, 0.2]}, r"matrix \[n, C\] .* got shape \[2\]"),
        ({"losses": [[0.1]], "savings": [1.0]}, r"shape of losses \[1, 1\], got \[1\]"),
        ({"losses": [[0.1]], "groups": ["a", "b"]}, r"one label a problem, \[1\], got \[2\]"),
        ({"losses": [[0.1]], "groups": np.ma.masked_equal([7], 7)}, "group is a masked array"),
        ({"losses": [[0.1]], "subjects": [False]}, "about none of the problems"),
        ({"losses": [[0.1]], "subjects": [True, True]}, r"subjects must have shape \[1\]"),
        ({"losses": [[0.1]], "bound": 0.0}, "bound must be above 0"),
        ({"losses": [[0.1]], "is_indicator": True}, "an indicator must be 0 or 1"),
        ({"losses": [[-math.inf]], "clip": True}, "minus infinity"),
        ({"losses": [[0.1 + 1j]]}, "losses must hold real numbers, got complex ones"),
        ({"losses": np.ma.masked_array([[0.1]], True)}, "losses is a masked array"),
        ({"losses": [[0.1], [0.1, 0.2]]}, "losses must hold real numbers"),
        ({"losses": [[0.1]], "savings": [[1j]]}, "savings must hold real numbers, got complex"),
    ],
)
def test_impossible_tables_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RiskTable.of(**arguments)


@pytest.mark.parametrize("level", [0.0, 1.0, 2.0, math.nan, "0.1"])
def test_impossible_levels_are_refused(level: Any) -> None:
    with pytest.raises(InputError, match="level must be"):
        certify_table(RiskTable.of([[0.0]]), level=level, confidence=0.9)


@pytest.mark.parametrize("confidence", [0.0, 1.0, math.nan, None])
def test_impossible_confidences_are_refused(confidence: Any) -> None:
    with pytest.raises(InputError, match="confidence"):
        certify_table(RiskTable.of([[0.0]]), level=0.1, confidence=confidence)
