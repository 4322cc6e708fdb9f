"""`check_stop_rule` finds what is wrong with rules that are broken on purpose."""

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from haltwise.processes import StepObservation
from haltwise.stop_rules import LevelRule, Patience, StopRule
from haltwise.testing import check_stop_rule

Memory = dict[str, Tensor]


@dataclass(frozen=True)
class Sound(StopRule):
    """Stops where the loss has been below 1 twice; what the broken ones are made from."""

    def init(self, num_items: int, like: Tensor) -> Memory:
        return {"times": like.new_zeros(num_items)}

    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        times = memory["times"] + (observation.loss < 1)
        return times >= 2, {"times": times}


class WritesToItsMemory(Sound):
    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        memory["times"].add_(observation.loss < 1)
        return memory["times"] >= 2, memory


class WritesToTheObservation(Sound):
    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        found = super().step(observation, memory)
        observation.known("hazard_logits").zero_()
        return found


class ComparesItemsWithEachOther(Sound):
    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        return observation.loss <= observation.loss.median(), memory


class CountsPlacesInTheBatch(Sound):
    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        return torch.arange(len(observation.loss)) < observation.step, memory


@dataclass(frozen=True)
class RemembersOnItself(StopRule):
    """Stops where the loss is the lowest of all runs that it has ever seen."""

    seen: list[float] = field(default_factory=lambda: [torch.inf])

    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        lowest = observation.loss < min(self.seen)
        self.seen.append(observation.loss.min().item())
        return lowest, memory


@dataclass(frozen=True)
class RemembersRuns(StopRule):
    """Stops later in every run."""

    runs: list[int] = field(default_factory=list)

    def init(self, num_items: int, like: Tensor) -> Memory:
        self.runs.append(1)
        return {}

    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        stop = observation.step >= len(self.runs)
        return torch.full_like(observation.loss, stop, dtype=torch.bool), memory


class StopsInNumbers(Sound):
    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        stop, memory = super().step(observation, memory)
        return stop.float(), memory


class StopsAllAtOnce(Sound):
    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        return (observation.loss < 0.1).any(), memory


class RemembersANumber(Sound):
    def init(self, num_items: int, like: Tensor) -> Memory:
        return {"times": like.new_zeros(())}


class RemembersInDouble(Sound):
    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        stop, memory = super().step(observation, memory)
        return stop, {"times": memory["times"].double()}


class GivesNoReason(Sound):
    @property
    def reasons(self) -> tuple[str, ...]:
        return ()


class GivesAReasonThatIsNotThere(Sound):
    def why(self, stop: Tensor, memory: Memory) -> Tensor:
        return stop.long()


class GivesReasonsAsText(Sound):
    def why(self, stop: Tensor, memory: Memory) -> Any:
        return "because"


class CannotBearNaN(Sound):
    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        if observation.loss.isnan().any():
            raise ZeroDivisionError
        return super().step(observation, memory)


class GivesUpOnAllForOneNaN(Sound):
    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        stop, memory = super().step(observation, memory)
        return stop | bool(observation.loss.isnan().any()), memory


@dataclass(frozen=True)
class LevelInTheStatistic(LevelRule):
    """Its statistic depends on the level, so that levels cannot be tried together."""

    threshold: float = 2.0

    level_setting = "threshold"

    def statistic(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        return torch.full_like(observation.loss, observation.step - self.threshold), memory


class KeepsItsMemoryOnItself(Sound):
    def init(self, num_items: int, like: Tensor) -> Memory:
        self.__dict__["lowest"] = torch.full((num_items,), torch.inf).to(like)
        return super().init(num_items, like)

    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        stop, memory = super().step(observation, memory)
        return stop | (self.__dict__["lowest"] < observation.loss), memory


class ForgetsItsMemory(Sound):
    def step(self, observation: StepObservation, memory: Memory) -> Any:
        return super().step(observation, memory)[0]


class DrawsAtRandom(Sound):
    def step(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        torch.rand(1)
        return super().step(observation, memory)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (KeepsItsMemoryOnItself(), "the rule fails when others leave at step 0"),
        (ForgetsItsMemory(), "step must return where items stop and the memory"),
        (DrawsAtRandom(), "the global generator of PyTorch"),
        (Sound, "must be a StopRule, got the class Sound; make one of it"),
        (WritesToItsMemory(), "step wrote to the memory it was given at step"),
        (WritesToTheObservation(), "step wrote to the observation it was given at step 0"),
        (ComparesItemsWithEachOther(), "items are decided otherwise when others leave"),
        (CountsPlacesInTheBatch(), "items are decided otherwise in another order"),
        (RemembersOnItself(), "step decides otherwise when it is called again"),
        (RemembersRuns(), "changes with what is observed after it|decided otherwise the second"),
        (StopsInNumbers(), "must return a bool tensor"),
        (StopsAllAtOnce(), "must return a bool tensor"),
        (RemembersANumber(), r"times of the memory must be a tensor with the 24 items"),
        (RemembersInDouble(), "the memory .* must keep its names, dtypes and shapes: .*float32"),
        (GivesNoReason(), "at least one sentence"),
        (GivesAReasonThatIsNotThere(), "why must index the 1 reasons"),
        (GivesReasonsAsText(), "why must return an int64 tensor"),
        (GivesUpOnAllForOneNaN(), "a loss of nan changes what is decided of other items"),
        (LevelInTheStatistic(), "decides otherwise when it is tried together"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, StopRule) else "",
)
def test_a_broken_rule_is_found_out(rule: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_stop_rule(rule)


def test_a_rule_that_fails_on_a_loss_of_nan_fails_the_check() -> None:
    with pytest.raises(ZeroDivisionError):
        check_stop_rule(CannotBearNaN())


def test_a_sound_rule_passes() -> None:
    check_stop_rule(Sound())
    check_stop_rule(Sound() | Patience(3))
