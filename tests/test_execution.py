"""Solving for real agrees with traces, and saves what it says it saves."""

from dataclasses import dataclass, replace
from typing import final

import pytest
import torch
from haltwise.stop_rules.accounts import ReturnedIterate, StopPolicy, returned_steps
from torch import Tensor

from haltwise._core.random import stream
from haltwise.halting.halter import AFTER, BEFORE
from haltwise.models.optimizer_model import ModelConfig, OptimizerModel
from haltwise.rollout.early_exit import Outcome, execute
from haltwise.rollout.record import unroll
from haltwise.stop_rules import (
    FixedBudget,
    GradientNorm,
    HazardThreshold,
    Patience,
    PosteriorMode,
    Sampling,
    StopRule,
    decisions_and_reasons,
)
from haltwise.tasks import Observation, TaskBatch, family

STEPS, PROBLEMS = 12, 40


@pytest.fixture
def optimizer() -> OptimizerModel:
    built = OptimizerModel(ModelConfig(), stream(0, "weights")).double()
    for weight in built.head.parameters():  # a new head says the same of every problem
        weight.data += 0.5 * torch.randn(weight.shape, generator=stream(1)).double()
    return built.requires_grad_(False)


@pytest.fixture
def batch() -> TaskBatch:
    return family("regression-2d").sample(PROBLEMS, stream(2), dtype=torch.float64)


def median_hazard(optimizer: OptimizerModel, batch: TaskBatch) -> float:
    price = torch.full((PROBLEMS,), 0.05, dtype=torch.float64)
    return float(unroll(optimizer, batch, STEPS, price).halting.hazard_logits.median())


@pytest.mark.parametrize("recall", ReturnedIterate)
@pytest.mark.parametrize(
    "kind", ["mode", "before", "norm", "patience", "hazard", "fixed", "drawn", "any", "all"]
)
def test_execution_ends_where_the_traces_say(
    kind: str, recall: ReturnedIterate, optimizer: OptimizerModel, batch: TaskBatch
) -> None:
    rules: dict[str, StopRule] = {
        "mode": PosteriorMode(AFTER),
        "before": PosteriorMode(BEFORE),
        "norm": GradientNorm(2.0),
        "patience": Patience(2),
        "hazard": HazardThreshold(median_hazard(optimizer, batch)),
        "fixed": FixedBudget(5),
        "drawn": Sampling(3),
    }
    rules["any"] = rules["norm"] | rules["patience"] | FixedBudget(9)
    rules["all"] = rules["norm"] & (Sampling(3) | rules["patience"])
    rule = rules[kind]
    price = torch.full((PROBLEMS,), 0.05, dtype=torch.float64)
    trajectory = unroll(optimizer, batch, STEPS, price)
    decided, reason = decisions_and_reasons(rule, trajectory.traces())
    result = execute(optimizer, batch, StopPolicy(rule, recall), price, STEPS)
    halted = decided < STEPS
    assert torch.equal(result.num_gradients, (decided + 1).clamp_max(STEPS))
    updates = returned_steps(decided, trajectory.traces(), recall)
    assert torch.equal(result.num_updates, updates)
    assert torch.equal(result.reason, reason)
    assert torch.equal(result.reason >= 0, halted)
    assert result.reasons == rule.reasons
    assert torch.equal(result.outcome == Outcome.HALTED, halted)
    expected = trajectory.excess.gather(1, updates.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(batch.evaluate(result.params, 0).excess, expected)


@final
@dataclass(frozen=True)
class Counting(TaskBatch):
    """A task that counts how many gradients it was really asked for."""

    inner: TaskBatch
    calls: list[int]

    @property
    def reference_loss(self) -> Tensor:
        return self.inner.reference_loss

    def observe(self, params: Tensor, step: int) -> Observation:
        self.calls.append(len(params))
        return self.inner.observe(params, step)

    def select(self, index: Tensor) -> "Counting":
        inner = self.inner.select(index)
        return Counting(inner.start, inner, self.calls)


def test_gradients_evaluated_are_gradients_counted(
    optimizer: OptimizerModel, batch: TaskBatch
) -> None:
    counting = Counting(batch.start, batch, [])
    price = torch.full((PROBLEMS,), 0.05, dtype=torch.float64)
    rule = HazardThreshold(median_hazard(optimizer, batch))
    result = execute(optimizer, counting, StopPolicy(rule, ReturnedIterate.NEXT), price, STEPS)
    assert sum(counting.calls) == int(result.num_gradients.sum()) < PROBLEMS * STEPS


def test_a_problem_that_goes_wrong_harms_no_other(
    optimizer: OptimizerModel, batch: TaskBatch
) -> None:
    price = torch.full((PROBLEMS,), 0.05, dtype=torch.float64)
    policy = StopPolicy(FixedBudget(6), ReturnedIterate.NEXT)
    clean = execute(optimizer, batch, policy, price, STEPS)
    target = batch.target.clone()  # type: ignore[attr-defined]
    target[3] = torch.nan
    result = execute(optimizer, replace(batch, target=target), policy, price, STEPS)  # type: ignore[call-arg]
    assert result.outcome[3] == Outcome.NONFINITE
    assert torch.equal(result.params[3], batch.start[3])
    assert result.reason[3] == -1
    others = torch.arange(PROBLEMS) != 3
    assert torch.equal(result.params[others], clean.params[others])
    assert torch.equal(result.outcome[others], clean.outcome[others])
