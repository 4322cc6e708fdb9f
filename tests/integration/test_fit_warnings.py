"""Warnings where weights do not fit: never on the family trained on, always on one far from it."""

import json
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loops import Decay, steps_of_adam
from networks import given_grads
from test_guard import InOtherUnits, rosenbrock

import haltwise
from haltwise import FitWarning, FunctionBatch, HaltingMonitor
from haltwise.models import Choice
from haltwise.models.card import Card
from haltwise.models.first_rounds import FirstRounds
from haltwise.processes.optimization import OptimizationProcess
from haltwise.rollout import record
from haltwise.tasks import family
from haltwise.training import train_monitor
from haltwise.update_rules import Adam

SOLVERS = ("regression-2d", "regression-10d", "quadratic-10d", "student-t-10d")
STOPS_ADAM = "regression-10d-plain-adam"


@pytest.mark.parametrize("name", SOLVERS)
def test_the_training_family_never_warns(name: str) -> None:
    """Warnings are errors here; no problem alone would warn either."""
    problem, model = (
        family(name).sample(2000, torch.Generator().manual_seed(8)),
        haltwise.load(name),
    )
    haltwise.solve(problem, model)
    haltwise.run(OptimizationProcess(model.rule, problem), model)
    signals = record(model.rule, problem, 2).known("signals")
    assert model.card.scales is not None
    assert not model.card.scales.is_foreign(signals[:, 0], signals[:, 1]).any()


@pytest.mark.parametrize("name", SOLVERS)
def test_a_foreign_family_warns(name: str) -> None:
    problem, model = family("logistic-10d").sample(50, stream()), haltwise.load(name)
    with pytest.warns(FitWarning, match="of 50 items lie far outside what the weights were"):
        haltwise.run(OptimizationProcess(model.rule, problem), model)
    one = InOtherUnits.of(family(name).sample(1, stream()), 1.0, 1e4)
    with pytest.warns(FitWarning, match="1 of 1 items"):
        haltwise.run(OptimizationProcess(model.rule, one), model)


def stream() -> torch.Generator:
    return torch.Generator().manual_seed(8)


def test_one_problem_far_from_all_in_training_warns() -> None:
    problem = FunctionBatch(torch.tensor([[-1.2, 1.0] * 10]), rosenbrock)
    with pytest.warns(FitWarning, match="1 of 1 items lie far outside"):
        haltwise.solve(problem, "student-t-10d")
    with pytest.warns(FitWarning, match="1 of 1 items lie far outside"):
        haltwise.minimize(
            lambda x: float(rosenbrock(torch.from_numpy(x[None]))),
            [-1.2, 1.0] * 10,
            optimizer="student-t-10d",
            maxiter=60,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        haltwise.solve(problem, "student-t-10d", guard=False)


def test_a_stop_rule_of_the_caller_s_is_not_warned_of() -> None:
    model = haltwise.load("regression-2d")
    process = OptimizationProcess(model.rule, family("logistic-10d").sample(20, stream()))
    haltwise.run(process, model, haltwise.load("regression-2d").policy())


def test_a_monitor_that_stops_at_the_first_round_warns_there() -> None:
    """A loop whose gradients are tiny beside those in training looks finished."""
    params, monitor = [torch.zeros(10, requires_grad=True)], HaltingMonitor(STOPS_ADAM)
    monitor.start(params)
    loss = 1e-6 * (params[0] - 1).square().sum()
    loss.backward()
    with pytest.warns(FitWarning, match="1 of 1 items lie far outside"):
        monitor.update(loss, params)
    assert monitor.should_stop


def test_the_monitor_warns_at_its_second_round_and_goes_on_exactly() -> None:
    model = haltwise.load(STOPS_ADAM)
    assert isinstance(model.rule, Adam)
    assert model.card.family is not None
    problem = family(model.card.family.name).sample(20, stream())
    for number in range(20):
        watch(HaltingMonitor(STOPS_ADAM), InOtherUnits.of(problem, 1.0, 1.0), number, 5)
    foreign = InOtherUnits.of(problem, 1.0, 1e4)
    begun = HaltingMonitor(STOPS_ADAM)
    watch(begun, foreign, 0, 1)
    state = begun.state_dict()
    with pytest.warns(FitWarning, match="1 of 1 items"):
        watch(begun, foreign, 0, 2)
    again = HaltingMonitor(STOPS_ADAM)
    again.load_state_dict(state)
    loop = steps_of_adam(foreign, 0, model.rule.learning_rate)
    (_, params), (loss, _) = next(loop), next(loop)
    with pytest.warns(FitWarning, match="1 of 1 items"):
        again.update(loss, params)


def watch(monitor: HaltingMonitor, problem: InOtherUnits, number: int, rounds: int) -> None:
    rule = haltwise.load(STOPS_ADAM).rule
    assert isinstance(rule, Adam)
    loop = steps_of_adam(problem, number, rule.learning_rate)
    monitor.start(next(loop)[1])
    for _ in range(rounds):
        monitor.update(*next(loop))


def test_cards_without_scales_say_nothing() -> None:
    model = haltwise.load("regression-2d")
    model.halting.card = replace(model.card, scales=None)
    process = OptimizationProcess(model.rule, family("logistic-10d").sample(20, stream()))
    haltwise.run(process, model)


def trained_on(observed: str, tmp_path: Path) -> Path:
    monitor = HaltingMonitor.recording(tmp_path / "runs")
    for seed in range(100):
        decay(monitor, seed, observed)
    return train_monitor(tmp_path / "runs", tmp_path / "run", price=0.02, halting={"num_steps": 2})


def decay(monitor: HaltingMonitor, seed: int, observed: str, unit: float = 1.0) -> None:
    """A run whose losses and parameters are so many times as large."""
    run = Decay(seed)
    run.param.data *= unit
    model = None if observed == "loss" else [run.param]
    monitor.start(model)
    for step in range(20):
        loss = unit * run.step(step)
        if observed == "updates":
            run.param.grad, loss = None, loss / unit
        monitor.update(loss, model)
    monitor.close()


@pytest.mark.parametrize("observed", ["loss", "updates", "gradients"])
def test_a_loop_is_compared_with_those_recorded(observed: str, tmp_path: Path) -> None:
    path = trained_on(observed, tmp_path)
    for seed in range(1000, 1030):
        decay(HaltingMonitor(path), seed, observed)  # a warning would be an error
    size = {"loss": "gain", "updates": "update", "gradients": "gradient"}[observed]
    for unit in (1e-3, 1e3):
        with pytest.warns(FitWarning, match=f"this run lies far outside .* by the {size}") as told:
            decay(HaltingMonitor(path), 1000, observed, unit)
        assert len(told) == 1


def test_processes_are_compared_with_those_trained_on() -> None:
    model, problems = haltwise.load("regression-2d"), family("regression-2d")
    recorded = record(model.rule, problems.sample(200, stream()), 20)
    seen = FirstRounds.of(recorded)
    assert seen is not None
    assert FirstRounds.of(recorded.select(torch.arange(10))) is None
    model.halting.card = replace(model.card, scales=None, first_rounds=seen)
    assert Card.from_json(json.loads(json.dumps(model.card.to_json()))).first_rounds == seen
    others = problems.sample(20, torch.Generator().manual_seed(9))
    haltwise.run(OptimizationProcess(model.rule, others), model)
    foreign = InOtherUnits.of(others, 1.0, 1e4)
    with pytest.warns(FitWarning, match="most of 20 items lie far outside .* by the gradient"):
        haltwise.run(OptimizationProcess(model.rule, foreign), model)


@pytest.mark.parametrize("maximize", [False, True])
def test_a_loss_below_zero_is_not_taken_for_nothing_to_gain(maximize: bool) -> None:
    (param,) = given_grads((30,))
    optimizer = haltwise.LearnedOptimizer([param], maximize=maximize)
    sign = -1 if maximize else 1
    with pytest.warns(haltwise.FitWarning, match="below 0, where the weights .* have seen none"):
        optimizer.step(loss=-1000.0 * sign)
    for step in range(8):
        assert not optimizer.should_stop
        optimizer.step(loss=(-1001.0 - step) * sign)  # a second warning would be an error


def test_losses_below_zero_of_ones_own_family_may_stop(tmp_path: Path) -> None:
    model = haltwise.load("small-networks")
    own = replace(model.card, family=Choice(f"{tmp_path / 'mine.py'}:Mine", {}))
    model.halting.card = own
    (param,) = given_grads((30,))
    optimizer = haltwise.LearnedOptimizer([param], model)
    optimizer.step(loss=-1000.0)
    assert optimizer.should_stop


def test_solve_goes_on_from_losses_lower_than_the_weights_know(generator: torch.Generator) -> None:
    inputs = torch.randn(20, 15, 6, generator=generator)
    targets = 2 * torch.randn(20, 15, generator=generator)

    def loss(params: torch.Tensor, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        residuals = (inputs @ params.unsqueeze(2)).squeeze(2) - targets
        return 10 * residuals.square().mean(1) - 1000

    problem = FunctionBatch(torch.zeros(20, 6), loss, data={"inputs": inputs, "targets": targets})
    lowest = loss(torch.linalg.lstsq(inputs, targets).solution, inputs, targets)
    with pytest.warns(FitWarning, match="weights do not fit"):
        found = haltwise.solve(problem, "digits-mlp")
    assert (found.loss - lowest).max() < 0.1
