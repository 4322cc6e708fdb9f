"""One session behind every face: all of them stop at the same step, for the same reason."""

import copy
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draws import DOUBLE, seeded
from loops import steps_of_adam
from tiny_runs import by_adam, leave
from torch import Tensor, nn

import haltwise
from haltwise import (
    FitWarning,
    FunctionBatch,
    HaltingMonitor,
    InputError,
    LearnedOptimizer,
    OptimizerModel,
    Outcome,
)
from haltwise.halting import Decision, HaltingSession
from haltwise.processes import OptimizationProcess
from haltwise.processes.units import Units
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


def test_the_explanation_is_in_the_units_of_the_problem() -> None:
    """The model sees losses a tenth as large: the forecast gain is ten times what it says."""
    model, problems = model_and_problems("regression-10d-plain-adam")
    policy, price, unit = model.policy(CostUnit.GRADIENTS), prices(model, 1.0), 0.1
    ones = torch.ones(NUM_PROBLEMS, dtype=DOUBLE)
    process = OptimizationProcess(model.rule, problems, Units(ones.unsqueeze(1), unit * ones))
    session = HaltingSession(policy, price / unit, model.halting)
    own = HaltingSession(policy, price, model.halting)
    explained, state, before = 0, process.init(), torch.zeros(NUM_PROBLEMS, dtype=torch.bool)
    for step in range(model.card.horizon):
        observation, state = process.step(step, state)
        # What the session of the model's own units is shown: the signals are the same.
        assert observation.signals is not None
        seen = observation._replace(loss_scale=None, loss=unit * observation.loss)
        scaled, plain = session.observe(observation), own.observe(seen)
        assert torch.equal(scaled.stop, plain.stop)
        for item in (scaled.stop & ~before).nonzero().flatten().tolist():
            words = [
                SENTENCE.fullmatch(part.explain(decision, item))
                for part, decision in ((session, scaled), (own, plain))
            ]
            numbers = [
                [float(number) for number in found.groups() if number] for found in words if found
            ]
            assert numbers[0] == pytest.approx([number / unit for number in numbers[1]])
            explained += 1
        before |= scaled.stop
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


@pytest.mark.parametrize("returns", [ReturnedIterate.CURRENT, ReturnedIterate.NEXT])
def test_a_monitor_takes_the_last_update_back_where_a_stop_holds(returns: ReturnedIterate) -> None:
    model, problems = model_and_problems("regression-10d-plain-adam")
    card = model.halting.card
    policy = StopPolicy(card.policies[CostUnit.GRADIENTS].rule, returns)
    model.halting.card = replace(card, policies={**card.policies, CostUnit.GRADIENTS: policy})
    for item in range(NUM_PROBLEMS):
        monitor, holds = HaltingMonitor(model), returns is ReturnedIterate.CURRENT
        loop = steps_of_adam(problems, item, rate=0.15, beta2=0.95)
        params = next(loop)[1]
        monitor.start(params)
        while not monitor.should_stop:
            before = [param.detach().clone() for param in params]
            monitor.update(next(loop)[0], params)
        expected = before if holds else [param.detach().clone() for param in params]
        assert monitor.take_back(params) is holds
        torch.testing.assert_close([param.detach() for param in params], expected)
        assert not monitor.take_back(params)  # once is all


@pytest.mark.parametrize(("unit", "rounds"), [(CostUnit.UPDATES, 8), (CostUnit.GRADIENTS, 7)])
def test_a_monitor_ends_with_the_runs_it_was_trained_on(unit: CostUnit, rounds: int) -> None:
    """A stop at call t leaves a recorded loop where it is then: after T updates there are T + 1."""
    model, _ = model_and_problems("regression-10d-plain-adam")
    never = StopPolicy(HazardThreshold(1e9), ReturnedIterate.CURRENT)
    seen: dict[str, Any] = {"unit": unit, "policies": {unit: never}, "observed": "loss"}
    model.halting.card = replace(model.halting.card, horizon=7, **seen)
    monitor = HaltingMonitor(model)
    while not monitor.should_stop:
        monitor.update(1.0 / (1 + monitor.steps))
    assert (monitor.steps, monitor.reason) == (rounds, f"it was trained on runs of {rounds} rounds")


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


def test_what_ran_prints_as_one_line() -> None:
    model, problems = model_and_problems("regression-2d")
    process = OptimizationProcess(model.rule, problems)
    budget = haltwise.run(process, stop=FixedBudget(3), max_steps=10)
    assert repr(budget) == "Execution(10 items: 10 halted; 3.0 steps each)"
    cut = haltwise.run(process, stop=FixedBudget(30), max_steps=2)
    assert repr(cut) == "Execution(10 items: 10 out of steps; 2.0 steps each)"


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


# --- Whatever the caller has set, and whatever goes wrong, is the same at every face --------------

HALVES = torch.full((3, 10), 0.5)


def squares(params: Tensor, target: Tensor) -> Tensor:
    return (
        (params @ torch.eye(10, dtype=params.dtype, device=params.device) - target).square().sum(1)
    )


def solved(model: str, **settings: Any) -> list[float]:
    problem = FunctionBatch(torch.zeros_like(HALVES), squares, {"target": HALVES})
    solution = haltwise.solve(problem, model, **settings)
    return [*solution.params.flatten().tolist(), *solution.loss.tolist()]


def ran(model: str, **settings: Any) -> list[float]:
    loaded = haltwise.load(model)
    batch = family("quadratic-10d").sample(3, seeded())
    return haltwise.run(OptimizationProcess(loaded.rule, batch), model, **settings).result.tolist()


def minimized(model: str, **settings: Any) -> list[float]:
    found = haltwise.minimize(
        lambda x: float(x @ x), np.ones(10), jac=lambda x: 2 * x, optimizer=model, **settings
    )
    return [*found.x.tolist(), found.fun]


def stepped(model: str, *, grad: float = 1.0, **settings: Any) -> list[float]:
    with torch.inference_mode(False):  # no parameter could be trained else
        param = nn.Parameter(torch.ones(10, dtype=torch.float32, device="cpu"))
        param.grad = torch.full_like(param, grad)
    optimizer = LearnedOptimizer([param], model, guard=False, **settings)
    for _ in range(3):
        optimizer.step(loss=10.0)
    return [*param.tolist(), float(optimizer.should_stop)]


def monitored(model: str, **settings: Any) -> list[float]:
    monitor = HaltingMonitor(model, **settings)
    with torch.inference_mode(False):
        param = nn.Parameter(torch.ones(10, dtype=torch.float32, device="cpu"))
        param.grad = torch.ones_like(param)
    for step in range(3):
        monitor.update(10.0 - step, [param])
    return [float(monitor.should_stop), *monitor._watched.memory[0]["grad"].tolist()]  # type: ignore[index]


FACES: dict[str, Callable[..., list[float]]] = {
    "solve": solved,
    "run": ran,
    "minimize": minimized,
    "optimizer": stepped,
    "monitor": monitored,
}
every_face = pytest.mark.parametrize("face", FACES)
MODEL = "regression-10d-plain-adam"  # its trained prices are 0.00527 to 0.527


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(DOUBLE)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "default dtype": default_dtype,
    "default device": lambda: torch.device("meta"),  # whatever lands there has no values
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}


@pytest.mark.parametrize("mode", MODES)
@every_face
@pytest.mark.filterwarnings("ignore:.*L-BFGS took over")
def test_the_caller_s_modes_change_nothing(face: str, mode: str) -> None:
    model = "regression-10d" if face in ("solve", "optimizer") else MODEL
    expected = FACES[face](model)
    with MODES[mode]():
        assert FACES[face](model) == expected


@every_face
@pytest.mark.filterwarnings("ignore:.*L-BFGS took over")
def test_prices_that_no_weights_know_are_said(face: str) -> None:
    FACES[face](MODEL, price=0.5)
    with pytest.warns(FitWarning, match=r"know prices from 0.00527 to 0.527, but .* such as 50"):
        FACES[face](MODEL, price=50)


@pytest.mark.parametrize(
    "price",
    [
        "0.1",
        True,
        10**400,
        1e39,
        1e-60,
        float("nan"),
        [0.1, "x"],
        1j,
        -1,
        [10**400],
        -torch.ones(2),
    ],
    ids=repr,
)
@every_face
def test_prices_that_are_none_are_refused_in_a_sentence(face: str, price: Any) -> None:
    if face == "minimize" and isinstance(price, float):  # in double precision they are
        price = 10**5000  # which Python does not print
    with pytest.raises(InputError, match="price must") as caught:
        FACES[face](MODEL, price=price)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "steps", ["5", 1.5, True, 10**400, 0, float("nan"), float("inf")], ids=repr
)
def test_steps_that_are_no_whole_number_are_refused_in_a_sentence(steps: Any) -> None:
    batch = family("quadratic-10d").sample(3, seeded())
    model = haltwise.load("quadratic-10d")
    for call in (
        lambda: haltwise.solve(batch, model, max_steps=steps),
        lambda: haltwise.run(OptimizationProcess(model.rule, batch), model, max_steps=steps),
        lambda: haltwise.minimize(lambda x: x @ x, [1.0], maxiter=steps),
        lambda: record(model.rule, batch, steps),
        lambda: family("quadratic-10d").sample(steps, seeded()),
        lambda: LearnedOptimizer([nn.Parameter(torch.ones(2))], model, chunk_size=steps),
    ):
        with pytest.raises(InputError, match="must be"):
            call()


@pytest.mark.parametrize("steps", [2.0, np.int64(2), np.float32(2), torch.tensor(2)])
def test_steps_may_be_whole_numbers_of_any_kind(steps: Any) -> None:
    batch = family("quadratic-10d").sample(3, seeded())
    assert int(haltwise.solve(batch, "quadratic-10d", max_steps=steps).num_gradients.max()) == 2


@pytest.mark.parametrize("name", [5, None, b"regression-10d", "a" * 5000])
def test_weights_that_are_no_name_are_refused_in_a_sentence(name: Any) -> None:
    with pytest.raises(InputError, match=r"name or a path|cannot read|unknown optimizer"):
        haltwise.load(name)


@every_face
def test_a_run_left_before_calibration_is_never_followed(face: str, tmp_path: Path) -> None:
    leave(tmp_path / "run", 3, by_adam(halter={"readout": False}))
    with pytest.raises(InputError, match="do not know when to stop yet"):
        FACES[face](str(tmp_path / "run"))


# --- Nothing moves where nothing is to be gained --------------------------------------------------


@pytest.mark.filterwarnings("ignore::haltwise.FitWarning")
@pytest.mark.parametrize("name", ["regression-10d", "quadratic-10d", "regression-2d", "digits-mlp"])
def test_a_gradient_of_zero_moves_nothing(name: str) -> None:
    def masked(params: Tensor, mask: Tensor) -> Tensor:
        return (mask * (params - 1).square()).sum(1)

    mask = torch.ones(3, 10)
    mask[1] = 0
    problem = FunctionBatch(torch.zeros(3, 10), masked, {"mask": mask})
    model = haltwise.load(name)
    found = haltwise.run(OptimizationProcess(model.rule, problem), model)
    assert (int(found.num_gradients[1]), int(found.outcome[1])) == (1, Outcome.HALTED)
    assert found.reasons[found.reason[1]] == "the gradient is zero"
    solution = haltwise.solve(problem, model)
    assert solution.num_gradients[1] == 1
    assert "gradient is zero" in solution.why(1)
    unguarded = haltwise.solve(problem, model, guard=False)
    for result in (found.result, solution.params, unguarded.params):
        assert (result[1] == 0).all()
        assert (result[::2] != 0).all()
    assert stepped(name, grad=0.0)[:10] == [1.0] * 10


def test_rows_of_an_embedding_that_are_not_read_do_not_move() -> None:
    table = nn.Parameter(torch.zeros(6, 3))
    optimizer = LearnedOptimizer([table], "mnist-mlp", weight_decay=0.0)
    for _ in range(5):
        loss = (table[:2] - 1).square().sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step(loss=loss)
    assert (table[2:] == 0).all()
    assert (table[:2] != 0).all()


# --- The last update can be taken back -----------------------------------------------------------


@pytest.mark.parametrize("name", ["quadratic-10d", "regression-10d-plain-adam"])
def test_taking_the_last_update_back_returns_what_solve_does(name: str) -> None:
    model = haltwise.load(name).double()
    assert model.card.family is not None
    problems = family(model.card.family.name).sample(600, seeded(), dtype=DOUBLE)
    solution = haltwise.solve(problems, model, guard=False)
    held = (solution.steps < solution.num_gradients).nonzero().flatten()[:3].tolist()
    went = (solution.steps == solution.num_gradients).nonzero().flatten()[:3].tolist()
    assert held
    for number in held + went:
        problem = problems.select(torch.tensor([number]))
        params = [nn.Parameter(value[0].clone()) for value in problem.start.tensor_split(2, 1)]
        optimizer = LearnedOptimizer(params, model, guard=False)
        while not optimizer.should_stop:
            point = torch.cat([param.detach() for param in params]).unsqueeze(0)
            loss, grad = problem.observe(point, optimizer.steps_taken)
            for param, part in zip(params, grad.tensor_split(2, 1), strict=True):
                param.grad = part[0].clone()
            optimizer.step(loss=loss)
        assert optimizer.take_back() == (number in held)
        assert not optimizer.take_back()
        found = torch.cat([param.detach() for param in params])
        torch.testing.assert_close(found, solution.params[number], rtol=1e-9, atol=1e-12)
        if model.halting.readout_size:
            continue
        monitor = HaltingMonitor(model)
        loop = steps_of_adam(problems, number, rate=0.15, beta2=0.95)
        _, moved = next(loop)
        monitor.start(moved)
        for value, _ in loop:
            monitor.update(value, moved)
            if monitor.should_stop:
                break
        twin, others = copy.deepcopy((monitor, moved))
        others[0].data += 1  # as by loading the best parameters of all
        assert not twin.take_back(others)
        assert torch.equal(others[0], moved[0] + 1)
        assert monitor.take_back(moved) == (number in held)
        found = torch.cat([param.detach().flatten() for param in moved])
        torch.testing.assert_close(found, solution.params[number], rtol=1e-3, atol=1e-4)


def test_a_loss_given_as_a_number_is_as_exact_as_a_tensor() -> None:
    for loss in (1e39, np.float64(1e39), torch.tensor(1e39, dtype=DOUBLE)):
        param = nn.Parameter(torch.ones(3, dtype=DOUBLE))
        optimizer = LearnedOptimizer([param], "regression-10d")
        param.grad = torch.ones_like(param)
        optimizer.step(loss=loss)
        assert (optimizer.steps_taken, optimizer.num_skipped) == (1, 0)
    for bad in ("1.0", 10**400, True, [1.0]):
        with pytest.raises(InputError, match="single real number"):
            optimizer.step(loss=bad)  # type: ignore[arg-type]
