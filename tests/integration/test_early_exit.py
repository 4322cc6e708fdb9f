"""Running with early exit agrees with recorded trajectories, and saves what it says it saves."""

from dataclasses import dataclass, replace
from typing import Any, final

import pytest
import torch
from draws import DOUBLE
from random_models import random_model
from stop_rule_cases import AFTER, BEFORE, Drawn
from torch import Tensor

from haltwise import FunctionBatch, InputError
from haltwise._core.random import stream
from haltwise.halting import HalterSettings, HaltingSession
from haltwise.models import OptimizerModel
from haltwise.processes import (
    OptimizationProcess,
    Process,
    ProcessStep,
    StepObservation,
    Trajectory,
)
from haltwise.rollout import Execution, Outcome, record, record_process, run_until_halted
from haltwise.stop_rules import (
    FixedBudget,
    GradientNorm,
    HazardThreshold,
    Patience,
    PosteriorMode,
    ReturnedIterate,
    StopPolicy,
    StopRule,
    decisions_and_reasons,
    returned_steps,
)
from haltwise.tasks import TaskBatch, family
from haltwise.testing import check_process
from haltwise.update_rules import SGD

STEPS, PROBLEMS, PRICE = 12, 40, 0.05
FOUR = torch.arange(1.0, 5.0)


class Halves(Process):
    """Each item halves at every step."""

    def __init__(self, start: Tensor) -> None:
        self.start = start

    @property
    def num_items(self) -> int:
        return len(self.start)

    def init(self) -> dict[str, Tensor]:
        return {"value": self.start}

    def step(self, step: int, state: dict[str, Tensor]) -> Any:
        return ProcessStep(self.observe(step, state["value"]), {"value": state["value"] / 2})

    def result(self, state: dict[str, Tensor]) -> Tensor:
        return state["value"]

    def select(self, index: Tensor) -> "Halves":
        return type(self)(self.start[index])


class Forgets(Halves):
    def step(self, step: int, state: dict[str, Tensor]) -> Any:
        return None


class ObservesOne(Halves):
    def step(self, step: int, state: dict[str, Tensor]) -> Any:
        return ProcessStep(self.observe(step, state["value"][:1]), state)


class InNumbers(StopRule):
    reasons = ("the loss is small",)

    def step(self, observation: StepObservation, memory: dict[str, Tensor]) -> Any:
        return (observation.loss < 1).float(), memory


class OneForAll(InNumbers):
    def step(self, observation: StepObservation, memory: dict[str, Tensor]) -> Any:
        return (observation.loss < 1)[:1], memory


class WithoutMemory(InNumbers):
    def step(self, observation: StepObservation, memory: dict[str, Tensor]) -> Any:
        return observation.loss < 1


class Small(InNumbers):
    def step(self, observation: StepObservation, memory: dict[str, Tensor]) -> Any:
        return observation.loss < 1, memory


def test_results_may_be_one_number_of_each_item() -> None:
    check_process(Halves(FOUR))
    session = HaltingSession(StopPolicy(Small(), ReturnedIterate.CURRENT), torch.ones(4))
    found = run_until_halted(Halves(FOUR), session, 9)
    assert found.result.tolist() == [0.5, 0.5, 0.75, 0.5]
    recorded = record_process(Halves(FOUR), 3)
    assert recorded.finite.all()
    assert recorded.final is not None
    assert recorded.final.shape == (4,)


def test_steps_that_are_none_are_refused() -> None:
    session = HaltingSession(StopPolicy(Patience(2), ReturnedIterate.CURRENT), torch.ones(4))
    for process, got in (
        (Forgets(FOUR), "got NoneType"),
        (ObservesOne(FOUR), r"got torch.float32 in shape \[1\]"),
    ):
        refusal = rf"with a floating-point loss for each of 4 items, {got}"
        with pytest.raises(InputError, match=refusal):
            record_process(process, 3)
        with pytest.raises(InputError, match=refusal):
            run_until_halted(process, session, 3)
    kind: Any = Halves
    with pytest.raises(InputError, match="must be a Process, got the class Halves; make one of it"):
        record_process(kind, 3)


@pytest.mark.parametrize(
    ("rule", "got"),
    [
        (InNumbers(), r"got torch.float32 in shape \[4\]"),
        (OneForAll(), r"got torch.bool in shape \[1\]"),
        (WithoutMemory(), r"got torch.bool in shape \[4\]"),
    ],
)
def test_stops_that_are_none_of_each_item_are_refused(rule: StopRule, got: str) -> None:
    session = HaltingSession(StopPolicy(rule, ReturnedIterate.CURRENT), torch.ones(4))
    with pytest.raises(InputError, match=rf"a bool tensor of shape \[4\], .* the memory, {got}"):
        run_until_halted(Halves(FOUR), session, 3)


def model_of(method: str) -> OptimizerModel:
    model = random_model(method=method, halter=HalterSettings(), hidden_size=20)
    return model.double().requires_grad_(False)


@pytest.fixture
def batch() -> TaskBatch:
    return family("regression-2d").sample(PROBLEMS, stream(2), dtype=DOUBLE)


def judged(model: OptimizerModel, batch: TaskBatch) -> Trajectory:
    return model.halting.attach(record(model.rule, batch, STEPS), PRICE)


def execute(model: OptimizerModel, batch: TaskBatch, policy: StopPolicy) -> Execution:
    prices = torch.full((batch.num_problems,), PRICE, dtype=batch.start.dtype)
    session = HaltingSession(policy, prices, model.halting)
    return run_until_halted(OptimizationProcess(model.rule, batch), session, STEPS)


def rules_of(method: str, trajectory: Trajectory) -> dict[str, StopRule]:
    """Rules that stop some problems early and others late."""
    norm, patience = GradientNorm(2.0), Patience(2)
    if method == "softmax":
        return {"mode": PosteriorMode(AFTER), "before": PosteriorMode(BEFORE)}
    median = trajectory.known("hazard_logits").median().item()
    return {
        "hazard": HazardThreshold(median),
        "norm": norm,
        "patience": patience,
        "fixed": FixedBudget(5),
        "drawn": Drawn(3),
        "any": norm | patience | FixedBudget(9),
        "all": norm & (Drawn(3) | patience),
    }


CASES = [
    (method, kind, returns)
    for method, kinds in (
        ("softmax", ("mode", "before")),
        ("stick-breaking", ("hazard", "norm", "patience", "fixed", "drawn", "any", "all")),
    )
    for kind in kinds
    for returns in ReturnedIterate
    if method != "softmax" or returns is not ReturnedIterate.LEARNED
]


@pytest.mark.parametrize(("method", "kind", "returns"), CASES)
def test_it_ends_where_the_recorded_trajectory_says(
    method: str, kind: str, returns: ReturnedIterate, batch: TaskBatch
) -> None:
    model = model_of(method)
    trajectory = judged(model, batch)
    rule = rules_of(method, trajectory)[kind]
    decided, reason = decisions_and_reasons(rule, trajectory)
    result = execute(model, batch, StopPolicy(rule, returns))
    halted = decided < STEPS
    assert torch.equal(result.num_gradients, (decided + 1).clamp_max(STEPS))
    updates = returned_steps(decided, trajectory, returns)
    assert torch.equal(result.num_updates, updates)
    assert torch.equal(result.reason, reason)
    assert torch.equal(result.reason >= 0, halted)
    assert result.reasons == rule.reasons
    assert torch.equal(result.outcome == Outcome.HALTED, halted)
    expected = trajectory.excess.gather(1, updates.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(batch.evaluate(result.result, 0).excess, expected)


def test_the_learned_iterate_of_a_method_that_learns_none_is_refused(batch: TaskBatch) -> None:
    policy = StopPolicy(PosteriorMode(AFTER), ReturnedIterate.LEARNED)
    with pytest.raises(InputError, match="needs hold_logits"):
        execute(model_of("softmax"), batch, policy)


@final
@dataclass(frozen=True)
class Counting(TaskBatch):
    """A task that counts how many gradients it was really asked for."""

    inner: TaskBatch
    calls: list[int]

    @property
    def reference_loss(self) -> Tensor:
        return self.inner.reference_loss

    def observe(self, params: Tensor, step: int) -> Any:
        self.calls.append(len(params))
        return self.inner.observe(params, step)

    def select(self, index: Tensor) -> "Counting":
        inner = self.inner.select(index)
        return Counting(inner.start, inner, self.calls)


def test_gradients_evaluated_are_gradients_counted(batch: TaskBatch) -> None:
    model = model_of("stick-breaking")
    counting = Counting(batch.start, batch, [])
    rule = rules_of("stick-breaking", judged(model, batch))["hazard"]
    result = execute(model, counting, StopPolicy(rule, ReturnedIterate.NEXT))
    assert sum(counting.calls) == int(result.num_gradients.sum()) < PROBLEMS * STEPS


def test_a_problem_that_goes_wrong_harms_no_other(batch: TaskBatch) -> None:
    model, spoilt = model_of("stick-breaking"), 3
    policy = StopPolicy(FixedBudget(6), ReturnedIterate.NEXT)
    clean = execute(model, batch, policy)
    known: Any = batch
    target = known.target.clone()
    target[spoilt] = torch.nan
    result = execute(model, replace(known, target=target), policy)
    assert result.outcome[spoilt] == Outcome.NONFINITE
    assert torch.equal(result.result[spoilt], batch.start[spoilt])
    assert result.reason[spoilt] == -1
    others = torch.arange(PROBLEMS) != spoilt
    assert torch.equal(result.result[others], clean.result[others])
    assert torch.equal(result.outcome[others], clean.outcome[others])


def test_running_no_step_is_refused(batch: TaskBatch) -> None:
    model = model_of("stick-breaking")
    policy = StopPolicy(FixedBudget(6), ReturnedIterate.NEXT)
    session = HaltingSession(policy, torch.ones(PROBLEMS, dtype=DOUBLE))
    with pytest.raises(InputError, match="max_steps must be at least 1, got 0"):
        run_until_halted(OptimizationProcess(model.rule, batch), session, 0)


def test_of_equal_losses_the_best_is_the_first() -> None:
    batch = FunctionBatch(torch.ones(3, 2), lambda params: 0 * params.sum(1))
    policy = StopPolicy(FixedBudget(4), ReturnedIterate.BEST)
    session = HaltingSession(policy, torch.full((3,), PRICE))
    done = run_until_halted(OptimizationProcess(SGD(0.1), batch), session, STEPS)
    assert done.num_updates.tolist() == [0, 0, 0]
    assert done.num_gradients.tolist() == [5, 5, 5]
