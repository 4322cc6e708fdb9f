"""One session behind every face: all of them stop at the same step, for the same reason."""

import re
from typing import Any

import pytest
import torch
from draws import DOUBLE, seeded
from loops import steps_of_adam
from torch import Tensor, nn

import haltwise
from haltwise import HaltingMonitor, InputError, LearnedOptimizer, OptimizerModel, Outcome
from haltwise.halting import Decision, HaltingSession
from haltwise.processes import OptimizationProcess
from haltwise.rollout import record, run_until_halted
from haltwise.stop_rules import (
    CostUnit,
    FixedBudget,
    HazardThreshold,
    Patience,
    ReturnedIterate,
    StopPolicy,
    decisions_and_reasons,
)
from haltwise.tasks import TaskBatch, family

NUM_PROBLEMS = 10
NAMES = ("regression-2d", "regression-2d-mode", "regression-10d-plain-adam")
FACTORS = (0.2, 1.0, 5.0)  # of the price that the weights were trained for
every_model = pytest.mark.parametrize("name", NAMES)
every_price = pytest.mark.parametrize("factor", FACTORS)
every_unit = pytest.mark.parametrize("unit", CostUnit)


def model_and_problems(name: str) -> tuple[OptimizerModel, TaskBatch]:
    model = haltwise.load(name).double()
    assert model.card.family is not None
    source = family(model.card.family.name)
    return model, source.sample(NUM_PROBLEMS, seeded(), dtype=DOUBLE)


def prices(model: OptimizerModel, factor: float) -> Tensor:
    return torch.full((NUM_PROBLEMS,), model.card.price * factor, dtype=DOUBLE)


def watch(
    session: HaltingSession, model: OptimizerModel, problems: TaskBatch
) -> list[tuple[Decision, dict[str, Tensor]]]:
    """The decisions about all problems at every step, stopped or not, and states behind them."""
    process = OptimizationProcess(model.rule, problems)
    state, found = process.init(), []
    for step in range(model.card.horizon):
        observation, state = process.step(step, state)
        found.append((session.observe(observation), session.state()))
    return found


def first_stops(decided: list[Decision]) -> Tensor:
    """The step of the first stop of each problem, T where there is none."""
    stops = torch.stack([decision.stop for decision in decided])
    return torch.where(stops.any(0), stops.int().argmax(0), len(decided))


@every_unit
@every_price
@every_model
def test_online_decisions_are_those_on_the_recorded_trajectory(
    name: str, factor: float, unit: CostUnit
) -> None:
    model, problems = model_and_problems(name)
    policy, price = model.policy(unit), prices(model, factor)
    online = [d for d, _ in watch(HaltingSession(policy, price, model.halting), model, problems)]
    trajectory = model.halting.attach(record(model.rule, problems, model.card.horizon), price)
    decided, reason = decisions_and_reasons(policy.rule, trajectory)
    assert torch.equal(first_stops(online), decided)
    for item, step in enumerate(decided.tolist()):
        assert all(online[t].reason[item] == -1 for t in range(step))
        if step < model.card.horizon:
            assert online[step].reason[item] == reason[item]
    assert len(decided.unique()) > 1
    executed = run_until_halted(
        OptimizationProcess(model.rule, problems),
        HaltingSession(policy, price, model.halting),
        model.card.horizon,
    )
    halted = decided < model.card.horizon
    assert torch.equal(executed.num_gradients, (decided + 1).clamp_max(model.card.horizon))
    assert torch.equal(executed.outcome == Outcome.HALTED, halted)
    assert torch.equal(executed.reason, reason)


@every_price
@every_model
def test_all_faces_stop_after_as_many_gradients(name: str, factor: float) -> None:
    model, problems = model_and_problems(name)
    horizon, price = model.card.horizon, model.card.price * factor
    solution = haltwise.solve(problems, name, price=price, guard=False)
    process = OptimizationProcess(model.rule, problems)
    ran = haltwise.run(process, model, price=price)
    assert torch.equal(ran.num_gradients, solution.num_gradients)
    assert torch.equal(ran.num_updates, solution.steps)
    session = HaltingSession(model.policy(CostUnit.GRADIENTS), prices(model, factor), model.halting)
    online = first_stops([decision for decision, _ in watch(session, model, problems)])
    assert torch.equal((online + 1).clamp_max(horizon), solution.num_gradients)
    for number in range(NUM_PROBLEMS):
        expected = int(solution.num_gradients[number])
        assert optimizer_stops(name, problems, number, price, horizon) == expected
        if model.halting.readout_size == 0:  # a monitor cannot see a hidden state
            assert monitor_stops(name, problems, number, price) == expected


def optimizer_stops(name: str, problems: TaskBatch, number: int, price: float, horizon: int) -> int:
    """Steps of the torch optimizer on one problem, a group of two tensors."""
    problem = problems.select(torch.tensor([number]))
    params = [nn.Parameter(value[0].clone()) for value in problem.start.tensor_split(2, 1)]
    optimizer = LearnedOptimizer(params, name, price=price)
    while not optimizer.should_stop and optimizer.steps_taken < horizon:
        point = torch.cat([param.detach() for param in params]).unsqueeze(0)
        loss, grad = problem.observe(point, optimizer.steps_taken)
        for param, part in zip(params, grad.tensor_split(2, 1), strict=True):
            param.grad = part[0].clone()
        optimizer.step(loss=loss)
    return optimizer.steps_taken


def monitor_stops(name: str, problems: TaskBatch, number: int, price: float) -> int:
    """Rounds of torch's own Adam under a monitor."""
    monitor = HaltingMonitor(name, price=price)
    loop = steps_of_adam(problems, number, rate=0.15, beta2=0.95)
    monitor.start(next(loop)[1])
    for loss, params in loop:
        monitor.update(loss, params)
        if monitor.should_stop:
            break
    return monitor.steps


# --- A session can be divided and resumed --------------------------------------------------------


@every_model
@pytest.mark.parametrize("when", [1, 5])
def test_a_session_goes_on_from_its_state_and_with_part_of_its_items(name: str, when: int) -> None:
    model, problems = model_and_problems(name)
    policy, price = model.policy(CostUnit.GRADIENTS), prices(model, 1.0)
    whole = watch(HaltingSession(policy, price, model.halting), model, problems)
    kept = torch.tensor([7, 2, 4])
    resumed = HaltingSession(policy, price, model.halting)
    resumed.restore(whole[when - 1][1])
    selected = HaltingSession(policy, price, model.halting)
    selected.restore(whole[when - 1][1])
    selected.select(kept)
    for expected, state in whole[when : when + 5]:
        seen = expected.observation._replace(outputs={})
        again = resumed.observe(seen)
        assert torch.equal(again.stop, expected.stop)
        assert torch.equal(again.takes_update, expected.takes_update)
        assert all(torch.equal(value, state[key]) for key, value in resumed.state().items())
        part = selected.observe(
            seen._replace(
                loss=seen.loss[kept],
                log_grad_norm=seen.known("log_grad_norm")[kept],
                signals=seen.known("signals")[kept],
                readout=seen.known("readout")[kept],
            )
        )
        assert torch.equal(part.stop, expected.stop[kept])
        for output, value in part.observation.outputs.items():
            torch.testing.assert_close(value, expected.observation.outputs[output][kept])


# --- The explanation -----------------------------------------------------------------------------

SENTENCE = re.compile(
    r"another step is forecast to (?:gain (\S+), less than its price of (\S+)"
    r"|lose (\S+), at a price of (\S+))"
)


@every_unit
@every_price
@every_model
def test_the_explanation_names_the_forecast_gain_and_the_price(
    name: str, factor: float, unit: CostUnit
) -> None:
    """The forecast is below the price where an item stops, and above it where it goes on."""
    model, problems = model_and_problems(name)
    policy, price = model.policy(unit), prices(model, factor)
    session = HaltingSession(policy, price, model.halting)
    online = [decision for decision, _ in watch(session, model, problems)]
    stops, explained = first_stops(online).tolist(), 0
    least = getattr(policy.rule, "min_steps", 0)
    for step, decision in enumerate(online):
        gains = model.halting.method.forecast_gain(decision.observation.outputs, policy.rule, price)
        assert gains is not None
        if step >= least:
            assert torch.equal(decision.stop, gains <= price)
        for item in range(NUM_PROBLEMS):
            if stops[item] != step:
                continue
            explained += 1
            gain = gains[item].item()
            found = SENTENCE.fullmatch(session.explain(decision, item))
            assert found is not None
            gained, of_gain, lost, of_loss = found.groups()
            assert (gained or f"-{lost}") == f"{gain:.2g}"
            assert (of_gain or of_loss) == f"{price[item].item():.2g}"
            assert gain < price[item]
            assert float(gained or 0) <= float(of_gain or 0)
    assert explained >= NUM_PROBLEMS // 2


def test_a_host_says_what_it_calls_a_step() -> None:
    model, problems = model_and_problems("regression-2d")
    policy = model.policy(CostUnit.GRADIENTS)
    session = HaltingSession(policy, prices(model, 1.0), model.halting)
    online = [decision for decision, _ in watch(session, model, problems)]
    step = int(first_stops(online)[0])
    words = session.explain(online[step], 0, step_name="round")
    assert words.startswith("another round is forecast to")


def test_a_monitor_explains_its_stop_as_its_session_does() -> None:
    model, problems = model_and_problems("regression-10d-plain-adam")
    policy = model.policy(CostUnit.GRADIENTS)
    session = HaltingSession(policy, prices(model, 1.0), model.halting)
    online = [decision for decision, _ in watch(session, model, problems)]
    for item, step in enumerate(first_stops(online).tolist()[:4]):
        monitor = HaltingMonitor("regression-10d-plain-adam")
        loop = steps_of_adam(problems, item, rate=0.15, beta2=0.95)
        monitor.start(next(loop)[1])
        for loss, params in loop:
            monitor.update(loss, params)
            if monitor.should_stop:
                break
        assert monitor.reason == session.explain(online[step], item, step_name="round")


def test_what_goes_on_needs_no_explanation() -> None:
    model, problems = model_and_problems("regression-2d")
    policy = StopPolicy(FixedBudget(3), ReturnedIterate.NEXT)
    session = HaltingSession(policy, prices(model, 1.0))
    (first, _), *_ = watch(session, model, problems)
    with pytest.raises(InputError, match="item 2 goes on at step 0"):
        session.explain(first, 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"price": 0.0}, "price must be above 0 and finite"),
        ({"price": float("inf")}, "price must be above 0 and finite"),
        ({"price": torch.ones(3)}, r"shape \[10\]"),
        ({"max_steps": 0}, "max_steps must be at least 1, got 0"),
        ({"model": "regresion-2d"}, "did you mean 'regression-2d'"),
    ],
)
def test_impossible_settings_of_a_run_are_refused(settings: dict[str, Any], message: str) -> None:
    model, problems = model_and_problems("regression-2d")
    with pytest.raises(InputError, match=message):
        haltwise.run(OptimizationProcess(model.rule, problems), **{"model": model, **settings})


def test_rules_without_a_forecast_give_their_own_reason() -> None:
    """Composed rules among them, and rules of which the method knows nothing."""
    model, problems = model_and_problems("regression-2d")
    hazard = model.policy(CostUnit.UPDATES).rule
    assert isinstance(hazard, HazardThreshold)
    for rule, reasons in (
        (Patience(2), {"the loss has not fallen by more than 0 for 2 steps"}),
        (hazard | FixedBudget(3), {hazard.reasons[0], "3 steps are done"}),
    ):
        policy = StopPolicy(rule, ReturnedIterate.CURRENT)
        session = HaltingSession(policy, prices(model, 1.0), model.halting)
        online = [decision for decision, _ in watch(session, model, problems)]
        words = {
            session.explain(online[step], item)
            for item, step in enumerate(first_stops(online).tolist())
            if step < len(online)
        }
        assert words
        assert words <= reasons
