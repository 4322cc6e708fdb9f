"""Engines as processes, and stops of theirs that are learned, certified or rules of any kind."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from descents import PRICE, Descent, measured
from draws import DOUBLE, seeded
from growths import growths
from torch import Tensor

import haltwise
from haltwise import FunctionBatch, InputError
from haltwise._core.errors import CalibrationWarning
from haltwise.certificates import ExcessLoss
from haltwise.engines import Engine, Point, engines
from haltwise.engines.base import within
from haltwise.engines.hand_rule import RuleEngine
from haltwise.engines.named import choice_of, engine_of
from haltwise.engines.process import Descents, EngineProcess, try_step
from haltwise.evaluation import judge_processes
from haltwise.halting import HalterSettings
from haltwise.halting.features.descent import DescentFeatures
from haltwise.models import (
    Card,
    Choice,
    HaltingModel,
    card_of,
    load_halting,
    stop_names,
    with_certificate,
)
from haltwise.processes import Trajectory
from haltwise.recordings.runs import RecordedRuns
from haltwise.rollout import record_process
from haltwise.stop_rules import (
    CostUnit,
    FixedBudget,
    HazardThreshold,
    Patience,
    ReturnedIterate,
    StopPolicy,
    decisions,
)
from haltwise.tasks import TaskBatch, family
from haltwise.testing import check_process
from haltwise.training import train, train_stop
from haltwise.update_rules import Adam

STEPS = 8
QUICK: dict[str, Any] = {"halting": {"num_steps": 60, "batch_size": 64}}


def saturating(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Residuals of Michaelis-Menten rates, of the logarithms of both constants."""
    top, half = params.exp().unsqueeze(-1).unbind(1)
    return top * x / (half + x) - y


def fits(number: int = 40, seed: int = 0) -> FunctionBatch:
    x = torch.rand(number, 12, generator=seeded(seed), dtype=DOUBLE) * 10
    top, half, noise = torch.randn(3, number, 12, generator=seeded(seed + 1), dtype=DOUBLE)
    y = top[:, :1].exp() * x / (half[:, :1].exp() + x) + 0.1 * noise
    start = torch.zeros(number, 2, dtype=DOUBLE)
    return FunctionBatch(start, residuals=saturating, data={"x": x, "y": y})


def untrained(engine: Engine, *, memory: int = 0, seed: int = 5) -> HaltingModel:
    """A model whose weights are random, so that it stops anywhere."""
    card = Card(
        method=Choice("stick-breaking"),
        price=0.1,
        horizon=STEPS,
        engine=choice_of(engine),
        halter=HalterSettings(8, memory, "descent"),
        unit=CostUnit.UPDATES,
    )
    model = HaltingModel(card, 0, seeded(seed)).double()
    for weight in model.parameters():
        weight.data.normal_(generator=seeded(seed))
    policies = {CostUnit.UPDATES: model.method.policy(CostUnit.UPDATES)}
    model.card = replace(card, policies=policies)
    return model.requires_grad_(False)


every_engine = pytest.mark.parametrize("name", sorted(engines()))


@every_engine
def test_an_engine_is_a_process(name: str) -> None:
    check_process(EngineProcess(engines()[name], fits(5)))


@every_engine
@pytest.mark.parametrize("step", [0, 1, 7])
def test_a_stop_after_so_many_evaluations_returns_what_was_recorded(name: str, step: int) -> None:
    problem = fits()
    recorded = record_process(EngineProcess(engines()[name], problem), STEPS)
    solution = haltwise.solve(problem, method=name, stop=FixedBudget(step), chunk_size=7)
    assert (solution.num_gradients == step + 1).all()
    torch.testing.assert_close(solution.loss, recorded.excess[:, step])
    assert solution.why(0) == f"{step} steps are done"


@pytest.mark.parametrize("step", [2, 4])
def test_a_lower_plateau_that_was_passed_over_is_recorded_as_it_is_returned(step: int) -> None:
    problem = growths(1.0)
    recorded = record_process(EngineProcess(engines()["gauss-newton"], problem), step)
    solution = haltwise.solve(problem, method="gauss-newton", stop=FixedBudget(step))
    assert any("plateau" in solution.why(index) for index in range(problem.num_problems))
    torch.testing.assert_close(solution.loss, recorded.excess[:, step])


def short_steps(engine: Engine, problem: FunctionBatch) -> Tensor:
    """Where the step at hand is too short to tell what is left to gain, bool [B, STEPS]."""
    seen = engine.observe_first(problem)
    point = Point(problem.start, seen.loss, seen.grad)
    memory, short = engine.init(point, seen), []
    for _ in range(STEPS):
        proposal = within(None, point, engine.propose(point, memory))
        assert proposal.is_short is not None
        short.append(proposal.is_short)
        tried = try_step(engine, problem, point, proposal, memory)
        point, memory = tried.after, tried.memory
    return torch.stack(short, 1)


@every_engine
@pytest.mark.parametrize("memory", [0, 3])
@pytest.mark.parametrize("chunk_size", [None, 9])
def test_a_model_stops_engines_where_it_stops_their_recordings(
    name: str, memory: int, chunk_size: int | None
) -> None:
    """But where the step at hand is too short to tell."""
    problem, engine = fits(), engines()[name]
    short = short_steps(engine, problem).unsqueeze(-1)
    prices = torch.linspace(0.01, 2.0, problem.num_problems, dtype=DOUBLE)
    ran = record_process(EngineProcess(engine, problem), STEPS)
    for seed in range(50):  # until it stops here and there
        model = untrained(engine, memory=memory, seed=seed)
        recorded = model.attach(ran, prices)
        logits = recorded.outputs["hazard_logits"]
        rule = HazardThreshold(logits[..., 0].quantile(0.8).item())
        told = {**recorded.outputs, "hazard_logits": logits.masked_fill(short, -torch.inf)}
        recorded = replace(recorded, outputs=told)
        expected = decisions(rule, recorded)
        if len(expected.unique()) > 4:
            break
    policies = {CostUnit.UPDATES: StopPolicy(rule, ReturnedIterate.CURRENT)}
    model.card = replace(model.card, policies=policies)
    solution = haltwise.solve(
        problem, method=name, stop=model, price=prices, chunk_size=chunk_size, max_steps=STEPS + 1
    )
    assert len(expected.unique()) > 4
    assert (solution.num_gradients == expected + 1).all()
    halted = expected < STEPS  # else the step at hand is not taken
    excess = recorded.excess.gather(1, expected.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(solution.loss[halted], excess[halted])


def test_a_stop_far_above_its_price_is_no_success() -> None:
    problem = fits()
    model = untrained(engines()["lbfgs"])
    everywhere = StopPolicy(FixedBudget(0), ReturnedIterate.CURRENT)
    model.card = replace(model.card, policies={CostUnit.UPDATES: everywhere})
    solution = haltwise.solve(problem, method="lbfgs", stop=model)
    assert (solution.outcome == haltwise.Outcome.HALTED).all()
    early = solution.left > 3 * model.card.price
    assert early.any()
    assert (solution.success == ~early).all()
    first = int(early.nonzero()[0])
    assert "but the step at hand is forecast to gain far more" in solution.why(first)


def test_rules_and_tolerances_stop_together() -> None:
    problem = fits()
    alone = haltwise.solve(problem, method="lbfgs", gtol=1e-3)
    both = haltwise.solve(problem, method="lbfgs", gtol=1e-3, stop=FixedBudget(9))
    assert (both.num_gradients == alone.num_gradients.clamp_max(10)).all()
    assert 0 < int((alone.num_gradients > 10).sum()) < problem.num_problems
    patient = haltwise.solve(problem, method="adam", stop=Patience(3), max_steps=300)
    assert (patient.outcome == haltwise.Outcome.HALTED).double().mean() > 0.9


def test_stops_of_other_things_are_refused() -> None:
    problem, model = fits(), untrained(engines()["lbfgs"])
    taken = StopPolicy(FixedBudget(3), ReturnedIterate.NEXT)
    mute = untrained(engines()["lbfgs"])
    mute.card = replace(mute.card, policies={})
    for method, stop, message in (
        ("newton", model, "this model stops lbfgs, not newton"),
        (Adam(0.3), model, "this model stops lbfgs, not adam.learning_rate=0.3"),
        ("adam", "regression-10d-plain-adam", "stops adam.learning_rate=0.15"),
        ("lbfgs", "regression-2d", "stops lstm"),
        ("lbfgs", "stop-lbgfs", "did you mean"),
        ("lbfgs", taken, "an engine returns the best point that it has evaluated, not 'next'"),
        ("lbfgs", mute, "do not know when to stop yet"),
        ("lbfgs", 7, "stop must be a halting model"),
    ):
        with pytest.raises(InputError, match=message):
            haltwise.solve(problem, method=method, stop=stop)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="stop must be a StopRule"):
        haltwise.solve(problem, "regression-10d", model)


def test_engines_have_the_names_that_cards_know_them_by() -> None:
    for engine in engines().values():
        assert engine_of(choice_of(engine)) == engine
    assert choice_of(RuleEngine(Adam(0.3))).settings["learning_rate"] == 0.3


@pytest.mark.parametrize("unit", [1.0, 1e2, 1e4])
def test_parameters_that_count_in_thousands_are_not_halted_at_their_first_steps(
    unit: float,
) -> None:
    """Those of L-BFGS are short in such units, and so is what they gain."""
    x = torch.randn(80, 40, 6, generator=seeded(3), dtype=DOUBLE)
    w, noise = torch.randn(2, 80, 40, generator=seeded(4), dtype=DOUBLE)
    y = (x @ w[:, :6].unsqueeze(-1)).squeeze(-1) + noise

    def squares(w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return (y - (x @ (w / unit).unsqueeze(-1)).squeeze(-1)).square().sum(1) / 2

    problem = FunctionBatch(torch.zeros(80, 6, dtype=DOUBLE), squares, {"x": x, "y": y})
    found = haltwise.solve(problem, method="lbfgs", stop="stop-lbfgs", price=0.05)
    excess = found.loss - haltwise.solve(problem, method="newton").loss
    assert excess[found.success].max() < 1.0  # of some hundred
    assert excess.mean() < 0.3


@pytest.mark.parametrize("size", [1e-5, 3.0, 1e3])
def test_features_of_a_descent_have_no_units(size: float) -> None:
    kind, run = DescentFeatures(), Descent()

    def features(losses: Tensor, grads: Tensor, updates: Tensor, price: Tensor) -> Tensor:
        signals = measured(losses, grads, updates)
        return kind.extract(signals, price, kind.init(len(price), signals))[0]

    own = features(run.losses, run.grads, run.updates, PRICE)
    others = (
        (size * run.losses, size * run.grads, run.updates, size * PRICE),
        (run.losses + size, run.grads, run.updates, PRICE),
        (run.losses, run.grads / size, run.updates * size, PRICE),
    )
    for other in others:
        torch.testing.assert_close(features(*other), own, rtol=1e-6, atol=1e-5)
    dearer = features(run.losses, run.grads, run.updates, 2 * PRICE)
    assert not torch.allclose(dearer, own, atol=1e-2)


def test_a_stop_is_learned_on_problems_of_one_s_own(tmp_path: Path) -> None:
    problem = fits(120)
    spoiled = replace(problem, data={**problem.data, "y": problem.data["y"].clone()})
    spoiled.data["y"][3, 2] = torch.nan
    setting: dict[str, Any] = {"method": "gauss-newton", "price": 0.1, "horizon": 12, **QUICK}
    left_out = "1 of 120 runs are left out: they have a loss, a score or a signal"
    with pytest.warns(CalibrationWarning, match=left_out):
        run = train_stop(spoiled, tmp_path / "run", **setting)
    with pytest.warns(CalibrationWarning, match=left_out):
        runs = RecordedRuns.load(run / "recorded", 12)
    expected = record_process(EngineProcess(engines()["gauss-newton"], problem), 13).excess
    kept = torch.arange(120) != 3
    above = (expected - expected.amin(1, keepdim=True))[kept, :13].float()
    torch.testing.assert_close(runs.trajectory.excess, above, rtol=1e-5, atol=1e-5)
    card = load_halting(run).card
    assert card.engine == Choice("gauss-newton")
    assert (card.unit, card.halter.features) == (CostUnit.UPDATES, "descent")
    solution = haltwise.solve(fits(30, seed=9), method="gauss-newton", stop=run)
    assert (solution.outcome == haltwise.Outcome.HALTED).all()
    with pytest.raises(InputError, match="holds something already"):
        train_stop(problem, tmp_path / "run", method="lbfgs", price=0.1)


def test_a_stop_is_learned_on_a_family_judged_and_certified(tmp_path: Path) -> None:
    run = train(
        "quadratic-10d",
        tmp_path,
        rule="lbfgs",
        mixed_with=["logistic-10d"],
        horizon=20,
        halting={"num_steps": 40, "num_recorded": 128, "batch_size": 64},
        validation={"every": 40, "num_problems": 64, "num_calibration": 128},
    )
    model = load_halting(run)
    assert model.card.engine == Choice("lbfgs")
    assert model.card.rule is None
    assert model.card.halter == HalterSettings(32, 0, "descent")
    process = Descents(engines()["lbfgs"], family("logistic-10d"))
    record = judge_processes(
        model, process, price=0.01, horizon=20, seed=0, num_items=64, learners=False
    )
    assert record is not None

    recorded: Trajectory = record_process(process.sample(800, seeded(3)), 20)
    certificate = haltwise.certify(
        model, recorded, risk=ExcessLoss(), level=0.05, confidence=0.9, bound=1.0, price=0.01
    ).require()
    certified = with_certificate(model, certificate)
    assert model.card.certificates == ()
    assert certified.card.certificates == (certificate,)
    fresh = family("logistic-10d").sample(400, seeded(4))
    solution = haltwise.solve(fresh, method="lbfgs", stop=certified, price=0.01)
    assert (solution.loss - fresh.reference_loss).mean() <= 0.05
    with pytest.raises(InputError, match="weights"):
        with_certificate(untrained(engines()["lbfgs"]), certificate)


def test_cards_without_an_engine_are_written_as_they_were() -> None:
    card = card_of("regression-2d")
    assert "engine" not in card.to_json()
    own = untrained(engines()["lbfgs"]).card
    assert Card.from_json(own.to_json()) == own


def rates(number: int) -> FunctionBatch:
    """Michaelis and Menten's curves, with noise of .05."""
    draw: dict[str, Any] = {"generator": seeded(8), "dtype": DOUBLE}
    at = (4 * torch.rand(number, 12, **draw) - 1).exp()
    top, half = (0.5 * torch.randn(2, number, 1, **draw)).exp()
    seen = top * at / (half + at) + 0.05 * torch.randn(number, 12, **draw)

    def residuals(params: Tensor, at: Tensor, seen: Tensor) -> Tensor:
        top, half = params.exp().unsqueeze(-1).unbind(1)
        return 20 * (top * at / (half + at) - seen)

    start = torch.zeros(number, 2, dtype=DOUBLE)
    return FunctionBatch(start, residuals=residuals, data={"at": at, "seen": seen})


@pytest.mark.parametrize("name", stop_names())
def test_a_shipped_stop_spends_less_than_a_price_alone(name: str) -> None:
    model: Any = haltwise.models.read_model(haltwise.models.loading.find(name))
    method = name.removeprefix("stop-")
    problem: TaskBatch = rates(300)
    if method != "gauss-newton":
        problem = family("logistic-10d").sample(300, seeded(8), dtype=DOUBLE)
    least = haltwise.solve(problem, method="auto", gtol=1e-9).loss
    for price in (1e-4, 1e-3, 1e-2):
        costs = []
        for stop in (name, None):
            found = haltwise.solve(problem, method=method, stop=stop, price=price, max_steps=300)
            costs.append((found.loss - least + price * found.num_gradients).mean().item())
        assert costs[0] < costs[1]
    assert model.card.provenance["command"].startswith("haltwise train --config experiments/")


def test_what_cannot_be_learned_from_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    generator = seeded(0)

    def noisy(params: Tensor) -> Tensor:
        return params.square().sum(1) + torch.rand(len(params), generator=generator)

    problem: Any
    for problem, sentence in (
        (FunctionBatch(torch.ones(40, 3), noisy), "of parameters and data alone, and not random"),
        (torch.ones(40, 3), "a problem must be a TaskBatch, got Tensor"),
        (FunctionBatch(torch.ones(0, 3), noisy), r"got shape \[0, 3\]"),
    ):
        with pytest.raises(InputError, match=sentence):
            train_stop(problem, tmp_path / "run", method="lbfgs", price=0.1)
    batch = FunctionBatch(torch.ones(40, 3), lambda params: params.square().sum(1))
    family: Any
    for family, sentence in (
        (batch, "for problems at hand there are train_stop and haltwise.solve"),
        (Descents, "got the class Descents; make one of it, as in"),
        (3, "a family must be a name, PATH.py:NAME, .* got 3"),
    ):
        with pytest.raises(InputError, match=sentence):
            train(family, tmp_path / "run", price=0.1)
    assert not (tmp_path / "run").exists()


def test_a_step_that_is_taken_at_the_stop_leaves_only_what_it_did_not_gain() -> None:
    """Gauss-Newton halts with a good step at hand and takes it: that is a success."""
    problem, price = rates(300), 1e-3
    least = haltwise.solve(problem, method="gauss-newton", gtol=1e-9).loss
    found = haltwise.solve(problem, method="gauss-newton", stop="stop-gauss-newton", price=price)
    solved = found.loss - least <= 5 * price
    assert solved.double().mean() > 0.9
    assert (found.success == solved).double().mean() > 0.95


def test_a_stop_before_a_step_that_fails_is_no_success() -> None:
    """From 3 the Gauss-Newton step of atan is to -9.5, where the loss is higher."""
    problem = FunctionBatch(torch.full((4, 1), 3.0, dtype=DOUBLE), residuals=torch.atan)
    model = untrained(engines()["gauss-newton"])
    everywhere = StopPolicy(FixedBudget(0), ReturnedIterate.CURRENT)
    model.card = replace(model.card, policies={CostUnit.UPDATES: everywhere})
    found = haltwise.solve(problem, method="gauss-newton", stop=model, price=1e-3)
    assert found.num_gradients.tolist() == [1] * 4
    assert not found.success.any()
    assert found.why(0).endswith("but the step at hand is forecast to gain far more")
