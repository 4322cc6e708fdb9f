"""Certificates of rules and models: by brute force, on cards, by the command, and in use."""

import copy
import html
import json
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from draws import DOUBLE, seeded
from in_process import haltwise
from loops import Decay, record_runs
from random_models import random_model
from reported_runs import write_run
from torch import Tensor

from haltwise import Curves, FunctionBatch, HaltingMonitor, InputError, certify, load
from haltwise._core.errors import CalibrationWarning
from haltwise._core.random import stream
from haltwise.certificates import (
    Certificate,
    Cost,
    ExcessLoss,
    FunctionOfStop,
    GainForgone,
    LossAbove,
    Promise,
    Refusal,
    Risk,
    RiskMonitor,
    SuccessGivenUp,
    certify_table,
    from_the_safest,
    set_aside,
    tabulate,
)
from haltwise.curves.rules.patience import PatienceRule
from haltwise.models import HaltingModel, certified, fingerprint, save_model
from haltwise.models.loading import load_halting
from haltwise.processes import Trajectory
from haltwise.report import write_report
from haltwise.report.certificates import certificate_sentences
from haltwise.rollout import record
from haltwise.stop_rules import (
    CostUnit,
    FixedBudget,
    HazardThreshold,
    Patience,
    Plateau,
    ReturnedIterate,
    StopRule,
    decisions,
)
from haltwise.tasks import TaskBatch, TaskFamily, family

UPDATES, CURRENT = CostUnit.UPDATES, ReturnedIterate.CURRENT
RATE = 0.2 + torch.rand(600, 1, generator=seeded(5), dtype=DOUBLE)
LOSSES = torch.exp(-RATE * torch.arange(21))
DECAYS = Trajectory(LOSSES, LOSSES)
BUDGETS = [FixedBudget(num) for num in range(20, -1, -1)]


@pytest.mark.parametrize("kind", ["losses", "runs"])
def test_copies_are_certified_with_a_warning(kind: str) -> None:
    number = torch.arange(660) % 600  # the first 60 come twice

    def certify_them(group: list[int] | None) -> Any:
        if kind == "losses":
            recorded = DECAYS.select(number)
            return certify(BUDGETS, recorded, risk=ExcessLoss(), bound=1.0, group=group, **asked)
        curves = Curves.from_matrix(LOSSES[number], target=0.5)
        return certify(PatienceRule(), curves, risk="given-up", group=group, **asked)

    asked: dict[str, Any] = {"level": 0.5 if kind == "runs" else 0.1, "confidence": 0.9}
    sentence = f"60 of 660 {'runs' if kind == 'runs' else 'problems'} equal one before them"
    for group in (None, [*range(660)]):
        with pytest.warns(CalibrationWarning, match=sentence):
            certify_them(group)
    certify_them(number.tolist())  # a warning would be an error


@pytest.mark.parametrize("bound", [1.0, 5.0])
def test_losses_with_a_floor_are_refused_with_the_way_out(bound: float) -> None:
    above = LOSSES + 2.0
    asked: dict[str, Any] = {"level": 0.1, "confidence": 0.9, "bound": bound}
    with pytest.raises(InputError, match=r"it is 2\.\d+ on average.* floor .*risk=GainForgone\(\)"):
        certify(BUDGETS, Trajectory(above, above), risk=ExcessLoss(), **asked)
    found = certify(BUDGETS, Trajectory(above, above), risk=GainForgone(), **asked)
    lost = (above - above[:, -1:]).clip(0)
    same = certify(BUDGETS, Trajectory(above, lost), risk=ExcessLoss(), **asked)
    assert isinstance(found, Certificate)
    assert replace(found, risk=same.risk) == same


def test_the_end_that_is_forgone_is_what_going_on_returns() -> None:
    losses = torch.tensor([[3.0, 1.0, 2.0], [3.0, 2.0, 1.0]], dtype=DOUBLE)
    recorded = Trajectory(losses, losses)
    for returns, lost in (
        (ReturnedIterate.CURRENT, [[0.0, 0.0, 1.0], [0.0, 1.0, 2.0]]),
        (ReturnedIterate.BEST, [[0.0, 0.0, 2.0], [0.0, 0.0, 1.0]]),  # the last loss is not seen
    ):
        rules = [FixedBudget(num) for num in (2, 1, 0)]
        table = tabulate(rules, recorded, GainForgone(), unit=UPDATES, returns=returns, bound=5)
        assert table.losses.tolist() == lost


# --- Tables by brute force -----------------------------------------------------------------------


def by_hand(risk: Risk, excess: list[float], budget: int) -> float | None:
    """The loss of one problem of `DECAYS` that stops at its budget; None if it is no subject."""
    if isinstance(risk, SuccessGivenUp):
        return float(excess[budget] > risk.target) if min(excess) <= risk.target else None
    if isinstance(risk, LossAbove):
        return float(excess[budget] > risk.target)
    return float(budget) if isinstance(risk, Cost) else excess[budget]


@pytest.mark.parametrize("risk", [ExcessLoss(), SuccessGivenUp(0.005), LossAbove(0.02), Cost()])
def test_a_risk_is_what_every_problem_loses_where_it_stops(risk: Risk) -> None:
    table = tabulate(BUDGETS, DECAYS, risk, unit=UPDATES, returns=CURRENT, bound=risk_bound(risk))
    for i, excess in enumerate(LOSSES.tolist()):
        wanted = [by_hand(risk, excess, rule.budget) for rule in BUDGETS]
        assert bool(table.subjects[i]) == (wanted[0] is not None)
        if table.subjects[i]:
            assert table.losses[i].tolist() == wanted
    gain = LOSSES[:, 20:] - LOSSES.flip(1)
    saved = gain if isinstance(risk, Cost) else torch.arange(21.0, dtype=DOUBLE).expand(600, -1)
    assert torch.equal(table.savings, saved)
    assert table.is_indicator == (not isinstance(risk, ExcessLoss | Cost))


def risk_bound(risk: Risk) -> float | None:
    return 1.0 if isinstance(risk, ExcessLoss) else risk.natural_bound(20)


def test_a_function_of_loss_and_cost_is_a_risk() -> None:
    def regret(excess: Tensor, cost: Tensor) -> Tensor:
        return (excess + 0.01 * cost).clamp_max(1)

    found = certify(BUDGETS, DECAYS, risk=regret, level=0.25, confidence=0.9)
    assert isinstance(found, Certificate)
    assert found.risk == "mean of regret"
    budget = 20 - found.threshold
    assert found.mean_risk == pytest.approx((LOSSES[:, budget] + 0.01 * budget).mean().item())


# --- The entry -----------------------------------------------------------------------------------


def test_the_certified_stop_is_the_boldest_that_passes() -> None:
    found = certify(BUDGETS, DECAYS, risk=ExcessLoss(), level=0.05, confidence=0.9, bound=1.0)
    assert isinstance(found, Certificate)
    table = tabulate(BUDGETS, DECAYS, ExcessLoss(), unit=UPDATES, returns=CURRENT, bound=1.0)
    assert found.threshold == certify_table(table, level=0.05, confidence=0.9).require().threshold
    assert found.policy == (BUDGETS[found.threshold], CURRENT)
    means = LOSSES.mean(0)
    assert means[20 - found.threshold] < 0.05 < means[20 - found.threshold - 2]
    assert (found.num_problems, found.num_set_aside, found.promise) == (600, 0, Promise.MEAN)
    assert (found.unit, found.price, found.model) == (UPDATES, None, None)


def test_where_the_cost_is_at_risk_the_longest_affordable_run_is_certified() -> None:
    found = certify(FixedBudget, DECAYS, risk=Cost(), level=8.5, confidence=0.9)
    assert isinstance(found, Certificate)
    assert found.policy is not None
    assert found.policy.rule == FixedBudget(8)
    assert found.bound == 20


def test_thresholds_depend_on_problems_that_are_set_aside_alone() -> None:
    tenth = set_aside(600, None)
    excess = LOSSES.clone()
    excess[~tenth] = 0.0  # then everything passes
    found = certify(
        Patience,
        Trajectory(LOSSES, excess),
        risk=ExcessLoss(),
        level=0.05,
        confidence=0.9,
        bound=1.0,
    )
    assert isinstance(found, Certificate)
    assert (found.num_problems, found.num_set_aside) == (540, 60)
    labels = [f"group {i // 25}" for i in range(600)]  # 24 groups, of which three are set aside
    found = certify(
        FixedBudget, DECAYS, risk=ExcessLoss(), level=0.05, confidence=0.9, bound=1.0,
        group=labels,
    )  # fmt: skip
    assert isinstance(found, Certificate)
    assert (found.num_groups, found.num_problems, found.num_set_aside) == (21, 525, 75)


def test_kinds_that_come_one_after_the_other_are_all_certified() -> None:
    """Of ten kinds in turn, every tenth problem would be all there is of the hard one."""
    hard = (torch.arange(2000) % 10 == 0).unsqueeze(1)
    rates = torch.where(hard, 0.02, 0.3) * (0.7 + 0.6 * torch.rand(2000, 1, generator=seeded(0)))
    losses = (-rates * torch.arange(80)).exp()
    recorded = Trajectory(losses, losses)
    found = certify(Plateau, recorded, risk=ExcessLoss(), level=0.05, confidence=0.9, bound=1.0)
    assert isinstance(found, Certificate)
    assert found.policy is not None
    at = decisions(found.policy.rule, recorded)
    assert losses.gather(1, at.unsqueeze(1)).mean() < 0.05
    above = certify(Plateau, recorded, risk=LossAbove(0.2), level=0.05, confidence=0.9)
    assert isinstance(above, Refusal)  # one in ten is, wherever it is stopped


def test_candidates_of_equal_risk_stand_in_no_other_s_way() -> None:
    ordered = from_the_safest(
        BUDGETS[::-1],
        Trajectory(LOSSES, torch.zeros_like(LOSSES)),
        ExcessLoss(),
        unit=UPDATES,
        returns=CURRENT,
    )
    assert ordered == BUDGETS


def test_a_loss_without_a_bound_needs_one() -> None:
    with pytest.raises(InputError, match="has no bound of its own; give bound"):
        certify(BUDGETS, DECAYS, risk=ExcessLoss(), level=0.05, confidence=0.9)
    with pytest.raises(InputError, match=r"loss of 600 of 600 problems is above the bound of 0.5"):
        certify(BUDGETS, DECAYS, risk=ExcessLoss(), level=0.05, confidence=0.9, bound=0.5)
    found = certify(
        BUDGETS, DECAYS, risk=ExcessLoss(), level=0.05, confidence=0.9, bound=0.5, clip=True
    )
    assert "counts as 0.5" in found.require().statement


def test_a_problem_that_diverged_counts_as_the_bound_if_clipped() -> None:
    excess = LOSSES.clone()
    excess[:40] = math.nan
    spoilt = Trajectory(LOSSES, excess)
    found = certify(
        BUDGETS, spoilt, risk=ExcessLoss(), level=0.05, confidence=0.9, bound=1.0, clip=True
    )
    assert isinstance(found, Refusal)  # 40 of 600 are more than the level
    found = certify(BUDGETS, spoilt, risk=LossAbove(0.5), level=0.05, confidence=0.9)
    assert isinstance(found, Refusal)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_or_rule": []}, "at least one stop rule"),
        ({"model_or_rule": "patience"}, "at least one stop rule"),
        ({"model_or_rule": 3}, "give a model, a class of stop rules or stop rules .* got int"),
        ({"price": 0.1}, "a stop rule knows none"),
        ({"confidence": None}, "give a confidence"),
        ({"group": ["a"]}, r"one label a problem, \[600\], got \[1\]"),
        ({"group": [None] * 600}, "texts or numbers, all of one kind"),
        ({"group": [math.nan] * 600}, "a label for each problem, but some are NaN"),
        ({"model_or_rule": Plateau, "group": [1] * 600}, "every group was set aside to .* groups"),
        ({"recorded": torch.zeros(3, 4)}, r"recorded must be a Trajectory .* got shape \[3, 4\]"),
        ({"risk": 3}, "risk must be .* got 3"),
        ({"risk": lambda excess, cost: 1}, "must be a tensor of shape .* got 1"),
        ({"unit": "updates"}, "unit must be CostUnit.* got 'updates'"),
        ({"returns": "best"}, "returns must be ReturnedIterate.* got 'best'"),
        ({"bound": "a"}, "bound must be a single real number, got 'a'"),
        ({"clip": "no"}, "clip must be True or False, got 'no'"),
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "model_or_rule": BUDGETS, "recorded": DECAYS, "risk": LossAbove(0.1), "level": 0.1,
        "confidence": 0.9,
    }  # fmt: skip
    with pytest.raises(InputError, match=message):
        certify(**(given | arguments))


def test_labels_are_those_of_the_problems_in_their_order() -> None:
    """A column of a data frame has an index of its own, which is not to be asked."""
    pandas = pytest.importorskip("pandas")
    labels = [number // 20 for number in range(600)]
    found = [
        certify(Plateau, DECAYS, risk=LossAbove(0.3), level=0.2, confidence=0.8, group=group)
        for group in (
            labels,
            torch.tensor(labels),
            pandas.Series(labels, index=[*range(600)][::-1]),
        )
    ]
    assert found[0].require() == found[1] == found[2]


@pytest.mark.parametrize("kind", [LossAbove, SuccessGivenUp])
@pytest.mark.parametrize("target", [math.nan, math.inf, "a"])
def test_a_target_that_is_no_number_is_refused(kind: Any, target: Any) -> None:
    with pytest.raises(InputError, match="target must be"):
        kind(target)


# --- Models and their cards ----------------------------------------------------------------------


def of_regressions() -> tuple[Any, Certificate]:
    model = load("regression-2d")
    batch = family("regression-2d").sample(500, stream(3, "certificates"))
    recorded = record(model.rule, batch, 40)
    return model, certify(
        model, recorded, risk=LossAbove(0.5), level=0.05, confidence=0.9
    ).require()


def test_a_certificate_on_a_card_is_of_this_model_stop_and_price() -> None:
    model, found = of_regressions()
    assert found.policy is not None
    assert isinstance(found.policy.rule, HazardThreshold)
    assert (found.price, found.unit) == (model.card.price, CostUnit.GRADIENTS)
    assert found.model == fingerprint(model, with_policies=False) != fingerprint(model)
    assert certified(model) == ()
    policies = {**model.card.policies, CostUnit.GRADIENTS: found.policy}
    before = fingerprint(model)
    model.halting.card = replace(model.card, policies=policies, certificates=(found,))
    assert certified(model) == (found,)
    assert model.card.from_json(json.loads(json.dumps(model.card.to_json()))) == model.card
    with pytest.raises(InputError, match=r"for a price of .* not 0.07; ask for that price"):
        certified(model, 0.07)
    other = copy.deepcopy(model)
    other.halting.card = replace(
        model.card, policies={**policies, CostUnit.GRADIENTS: model.policy(UPDATES)}
    )
    with pytest.raises(InputError, match="stops by another policy than was certified"):
        certified(other)
    with torch.no_grad():
        next(model.rule.parameters()).add_(1e-3)  # the rule that moves, not the halter
    with pytest.raises(InputError, match="certificate is of other weights"):
        certified(model)
    assert fingerprint(model) != before


def test_a_certificate_is_no_part_of_what_a_model_does() -> None:
    model, found = of_regressions()
    before = fingerprint(model)
    model.halting.card = replace(model.card, certificates=(found,))
    assert fingerprint(model) == before
    with pytest.raises(InputError, match="must name the policy that it is of"):
        replace(model.card, certificates=(replace(found, policy=None),))


def test_the_report_says_what_is_certified(tmp_path: Path) -> None:
    model, found = of_regressions()
    run = write_run(tmp_path / "run")
    bare = write_report(run, tmp_path / "bare.html").read_text(encoding="utf-8")
    card = replace(model.card, certificates=(found,))
    save_model(run / "best.safetensors", model.state_dict(), card)
    page = write_report(run, tmp_path / "page.html").read_text(encoding="utf-8")
    for sentence in certificate_sentences(found):
        assert sentence in html.unescape(page)
        assert sentence not in html.unescape(bare)


def test_the_stop_is_the_one_that_is_certified() -> None:
    model, found = of_regressions()
    assert found.policy is not None
    batch = family("regression-2d").sample(2000, stream(4, "certificates"))
    fresh = model.halting.attach(record(model.rule, batch, 40), model.card.price)
    stops = decisions(found.policy.rule, fresh)
    table = tabulate(
        [found.policy.rule], fresh, LossAbove(0.5), unit=CostUnit.GRADIENTS,
        returns=found.policy.returns,
    )  # fmt: skip
    assert table.losses.mean() <= 0.05
    assert stops.double().mean() < 30


def test_cards_from_before_certificates_are_read() -> None:
    card = random_model().card
    document = card.to_json()
    assert document["format"] == 4
    del document["certificates"]
    assert card.from_json({**document, "format": 3}) == card
    with pytest.raises(InputError, match=r"not the card of a halting model.*certificates"):
        card.from_json(document)


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture
def weights(stopper: Path, tmp_path: Path) -> Path:
    path = tmp_path / "own.safetensors"
    path.write_bytes((stopper / "best.safetensors").read_bytes())
    return path


@pytest.fixture(scope="session")
def more_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_runs(tmp_path_factory.mktemp("more") / "runs", range(4000, 4120))


EXCESS = ("--risk", "above", "--target", 3.0, "--level", 0.3, "--confidence", 0.9)


def test_the_command_certifies_what_the_model_then_does(
    weights: Path, more_runs: Path, tmp_path: Path
) -> None:
    old = weights.read_bytes()
    command = ["certify", weights, *EXCESS, "--runs", more_runs, "--json", "x.json"]
    done = haltwise(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = load_halting(weights)
    (found,) = certified(model)
    assert model.policy(UPDATES) == found.policy
    assert (tmp_path / "own.before.safetensors").read_bytes() == old
    document = json.loads((tmp_path / "x.json").read_text())
    assert document.pop("certified")
    assert Certificate.from_json(document) == found
    for sentence in certificate_sentences(found):
        assert sentence in done.stdout
    assert (found.num_problems, found.num_set_aside) == (108, 12)
    done = haltwise("calibrate", weights, "--runs", more_runs, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert load_halting(weights).card.certificates == ()


def test_the_command_certifies_the_next_group(
    weights: Path, more_runs: Path, tmp_path: Path
) -> None:
    labels = "".join(f"h\xf6st {i // 8}{' ' * (i % 2)}\r\n" for i in range(120))
    command = ("certify", weights, *EXCESS, "--runs", more_runs, "--groups", "groups.txt")
    (tmp_path / "groups.txt").write_text(labels, encoding="latin-1")  # hosts would become one
    done = haltwise(*command, cwd=tmp_path)
    assert "groups.txt is no text in UTF-8" in done.stderr
    (tmp_path / "groups.txt").write_text(labels, encoding="utf-8-sig")  # as some editors do
    done = haltwise(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "with a probability of 0.9" in done.stdout
    (found,) = certified(load_halting(weights))
    assert (found.num_groups, found.num_set_aside) == (13, 16)  # two of fifteen are set aside


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--risk", "above", "--target", 3, "--level", 0.01, "--confidence", 0.9), "230 needed"),
        (("--risk", "excess", "--level", 0.1, "--confidence", 0.9), "give bound"),
        (("--risk", "excess", "--level", 0.1, "--bound", 9), "give a confidence"),
        (("--risk", "exces", "--level", 0.1, "--confidence", 0.9), "mean 'excess'"),
        (("--risk", "given-up", "--level", 0.1, "--confidence", 0.9), "target"),
        ((*EXCESS, "--unit", "seconds"), "--unit must be updates or gradients"),
        ((*EXCESS, "--price", -1), "price must be a finite number above 0"),
    ],
)
def test_what_cannot_be_certified_is_refused_and_changes_nothing(
    arguments: tuple[object, ...], sentence: str, weights: Path, more_runs: Path, tmp_path: Path
) -> None:
    before = weights.read_bytes()
    done = haltwise("certify", weights, *arguments, "--runs", more_runs, cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert without_option(done.stderr) == set()
    assert weights.read_bytes() == before
    assert not list(tmp_path.glob("*.before*"))


def without_option(message: str) -> set[str]:
    """The arguments of Python that a message advises and does not name as options, too."""
    advised = set(re.findall(r"(\w+)=|give (?:a )?(bound|confidence|level|price)\b", message))
    return {name for pair in advised for name in pair if name and f"--{name}" not in message}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--risk", "cost", "--level", 99, "--confidence", 0.9), "below 30, the largest loss"),
        (("--risk", "cost", "--level", 1, "--confidence", 2), "confidence must be above 0"),
        (("--risk", "cost", "--level", 1), "give a confidence"),
        ((*EXCESS, "--bound", 0), "bound must be above 0"),
        ((*EXCESS, "--price", "inf"), "price must be a finite number above 0"),
    ],
)
def test_what_cannot_be_asked_is_refused_before_anything_is_recorded(
    arguments: tuple[object, ...], sentence: str, weights: Path, tmp_path: Path
) -> None:
    done = haltwise("certify", weights, *arguments, "--runs", "none", cwd=tmp_path)
    assert sentence in done.stderr


@dataclass(frozen=True)
class Floors(TaskFamily):
    """Parabolas whose least is 7, which nobody is told."""

    dim = 2

    def _sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch:
        away = torch.randn(num_problems, 2, generator=generator, dtype=DOUBLE)
        return FunctionBatch(away, lambda params: 7 + params.square().sum(1))


def test_a_family_whose_least_loss_is_unknown_can_be_certified(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    model = load("regression-2d")
    save_model(tmp_path / "run/best.safetensors", model.state_dict(), model.card)
    asked = [
        "certify", "run/best.safetensors", "--family", f"{__file__}:Floors", "--num-problems", 400,
        "--level", 0.5, "--confidence", 0.9, "--bound", 40,
    ]  # fmt: skip
    done = haltwise(*asked, "--risk", "excess", cwd=tmp_path)
    assert done.returncode == 2
    assert without_option(done.stderr) == set()
    advised = re.findall(r"\((--risk [\w-]+)\)", done.stderr)
    assert advised == ["--risk forgone"]
    done = haltwise(*asked, *advised[0].split(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "the mean gain forgone by not going on to the end is at most 0.5" in done.stdout


def test_runs_are_not_left_out_silently(weights: Path, tmp_path: Path) -> None:
    runs = record_runs(tmp_path / "runs", range(4000, 4060))
    with HaltingMonitor.recording(runs, name="short") as monitor:
        decay = Decay(1)
        monitor.start([decay.param])
        for step in range(4):
            monitor.update(decay.step(step), [decay.param])
    done = haltwise("certify", weights, *EXCESS, "--runs", runs, cwd=tmp_path)
    assert done.returncode == 2
    assert "1 of 61 runs are left out" in done.stderr
    assert "would not hold for such" in done.stderr


# --- In use --------------------------------------------------------------------------------------


@pytest.fixture
def certified_monitor(stopper: Path, more_runs: Path, tmp_path: Path) -> HaltingModel:
    model = load_halting(stopper)
    path = tmp_path / "certified.safetensors"
    save_model(path, model.state_dict(), model.card)
    done = haltwise("certify", path, *EXCESS, "--runs", more_runs, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return load_halting(path)


def live(monitor: HaltingMonitor, seed: int, num: int = 31) -> int:
    """Run a decay; the rounds it took. What was let go loses 1 where it would have stopped."""
    run = Decay(seed)
    monitor.start([run.param])
    for step in range(num):
        if monitor.should_stop:
            break
        monitor.update(run.step(step), [run.param])
    if monitor.is_let_go:
        monitor.report(float(monitor.stop_forgone is not None))
    return monitor.steps


def test_runs_that_are_let_go_go_on_and_are_tested(certified_monitor: HaltingModel) -> None:
    obedient = HaltingMonitor(certified_monitor)
    monitor = HaltingMonitor(certified_monitor, let_go=0.5)
    twin = RiskMonitor.of(certified_monitor.card.certificates[0], share=0.5)
    alarms = []
    for seed in range(40):
        expected = live(obedient, seed)
        found, let_go = live(monitor, seed), twin.draw()
        if let_go:
            assert found >= expected
            assert monitor.stop_forgone in (expected, None)
            twin.report(float(monitor.stop_forgone is not None))
            alarms.append(twin.test.alarm)
        else:
            assert found == expected
            assert monitor.stop_forgone is None
        with pytest.raises(InputError, match="only a run that was let go"):
            monitor.report(0.0)
    assert monitor.risk is not None
    assert monitor.risk.state_dict() == twin.state_dict()
    assert alarms[-1] is not None  # all of them lost 1
    assert alarms[0] is None


def test_a_resumed_monitor_goes_on_past_its_stop_as_it_was(
    certified_monitor: HaltingModel, tmp_path: Path
) -> None:
    first, second = (
        HaltingMonitor(certified_monitor, let_go=RiskMonitor(0.3, share=1.0)) for _ in range(2)
    )
    runs = Decay(3), Decay(3)
    first.start([runs[0].param])
    for step in range(25):
        first.update(runs[0].step(step), [runs[0].param])
        runs[1].step(step)
    assert first.stop_forgone is not None
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert (second.is_let_go, second.stop_forgone) == (True, first.stop_forgone)
    assert not second.should_stop
    second.report(0.25)
    first.report(0.25)
    assert second.risk is not None
    assert first.risk is not None
    assert second.risk.state_dict() == first.risk.state_dict()
    with pytest.raises(InputError, match="taken with let_go, and this monitor has none"):
        HaltingMonitor(certified_monitor).load_state_dict(first.state_dict())


def test_without_a_certificate_a_fraction_says_nothing(stopper: Path) -> None:
    with pytest.raises(InputError, match=r"carry no certificate that let_go=0.05 might test"):
        HaltingMonitor(stopper, let_go=0.05)
    monitor = HaltingMonitor(stopper, let_go=RiskMonitor(0.3, share=1.0))
    assert live(monitor, 0) == 31
    assert monitor.risk is not None
    assert monitor.risk.test.mean == 1


def test_a_certificate_for_another_price_is_not_tested(certified_monitor: HaltingModel) -> None:
    with pytest.raises(InputError, match=r"the certificate is for a price of 0.02, not 0.025"):
        HaltingMonitor(certified_monitor, price=0.025, let_go=0.05)


def test_rules_are_taken_in_the_order_given() -> None:
    """Whoever gives rules says which is the safest."""
    rules: list[StopRule] = [FixedBudget(0), FixedBudget(20)]
    found = certify(rules, DECAYS, risk=LossAbove(0.5), level=0.05, confidence=0.9)
    assert isinstance(found, Refusal)
    assert "even the safest threshold has a risk of 1 on these" in found.reason


@pytest.mark.parametrize("kind", [ExcessLoss, SuccessGivenUp, LossAbove, Cost, FunctionOfStop])
def test_a_class_of_risks_is_told_to_be_made_one(kind: Any) -> None:
    advice = rf"risk is the class {kind.__name__}; make one, as in risk={kind.__name__}\("
    with pytest.raises(InputError, match=advice):
        certify(BUDGETS, DECAYS, risk=kind, level=0.05, confidence=0.9, bound=1.0)
    with pytest.raises(InputError, match=advice):
        certify(BUDGETS, DECAYS, risk=kind, level=0.05, confidence=None)
