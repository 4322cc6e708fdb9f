"""`check_process` finds what is wrong with processes that are broken on purpose."""

from typing import Any, Self

import numpy as np
import pytest
import torch
from draws import DOUBLE
from torch import Tensor

from haltwise import InputError
from haltwise.processes import Process, ProcessStep, StepObservation
from haltwise.testing import check_process

State = dict[str, Tensor]


class Sound(Process):
    """theta halves at every step; what the broken ones are made from."""

    def __init__(self, start: Tensor) -> None:
        self.start = start

    @property
    def num_items(self) -> int:
        return len(self.start)

    def init(self) -> State:
        return {"theta": self.start}

    def step(self, step: int, state: State) -> ProcessStep:
        theta = state["theta"]
        return ProcessStep(self.observe(step, theta.square().sum(1)), {"theta": theta / 2})

    def result(self, state: State) -> Tensor:
        return state["theta"]

    def select(self, index: Tensor) -> Self:
        return type(self)(self.start[index])


class TakesTheMemoryOfAScratchpad(Sound):
    """Allowed: what it writes over is no part of the result."""

    def init(self) -> State:
        return {"theta": self.start, "scratch": torch.zeros_like(self.start)}

    def step(self, step: int, state: State) -> ProcessStep:
        observation, after = super().step(step, state)
        scratch = state["scratch"].add_(1)
        return ProcessStep(observation, {**after, "scratch": scratch})


class MovesInPlace(Sound):
    def init(self) -> State:
        return {"theta": self.start.clone()}

    def step(self, step: int, state: State) -> ProcessStep:
        theta = state["theta"]
        observation = self.observe(step, theta.square().sum(1))
        return ProcessStep(observation, {"theta": theta.mul_(0.5)})


class WritesOverItsStart(Sound):
    def init(self) -> State:
        return {"theta": self.start.clone(), "momentum": self.start}

    def step(self, step: int, state: State) -> ProcessStep:
        observation, after = super().step(step, state)
        return ProcessStep(observation, {**after, "momentum": state["momentum"].mul_(0.5)})


class ScoresByWhatWasTaken(TakesTheMemoryOfAScratchpad):
    def score(self, state: State, step: int, observation: StepObservation) -> Tensor:
        return observation.loss + state["scratch"][:, 0]


class DriftsFromRunToRun(Sound):
    runs = 0

    def step(self, step: int, state: State) -> ProcessStep:
        type(self).runs += 1
        observation, after = super().step(step, state)
        return ProcessStep(observation, {"theta": after["theta"] + self.runs})


class MixesItems(Sound):
    def step(self, step: int, state: State) -> ProcessStep:
        observation, after = super().step(step, state)
        return ProcessStep(observation, {"theta": after["theta"] - after["theta"].mean(0)})


class SelectsOthers(Sound):
    def select(self, index: Tensor) -> Self:
        return type(self)(self.start[: len(index)])


class SelectsAll(Sound):
    def select(self, index: Tensor) -> Self:
        return self


class CountsItsStepsItself(Sound):
    """A selection in the middle of a run begins to count again."""

    count = 0

    def init(self) -> State:
        self.count = 0
        return super().init()

    def step(self, step: int, state: State) -> ProcessStep:
        self.count += 1
        observation, after = super().step(step, state)
        return ProcessStep(observation, {"theta": after["theta"] / self.count})


class HasNoItemsInItsState(Sound):
    def init(self) -> State:
        return {"theta": self.start, "steps": torch.zeros(())}


class StartsNowhere(Sound):
    def step(self, step: int, state: State) -> ProcessStep:
        observation, after = super().step(step, state)
        return ProcessStep(observation._replace(loss=observation.loss / step), after)


class MiscountsSteps(Sound):
    def step(self, step: int, state: State) -> ProcessStep:
        return super().step(step + 1, state)


class ObservesOneLoss(Sound):
    def step(self, step: int, state: State) -> ProcessStep:
        observation, after = super().step(step, state)
        return ProcessStep(observation._replace(loss=observation.loss.mean()), after)


class ScoresAllAtOnce(Sound):
    def score(self, state: State, step: int, observation: StepObservation) -> Tensor:
        return observation.loss.mean()


class Grows(Sound):
    def result(self, state: State) -> Tensor:
        theta = state["theta"]
        return torch.cat((theta, theta), 1) if theta[0, 0] < self.start[0, 0] else theta


class Diverges(Sound):
    def step(self, step: int, state: State) -> ProcessStep:
        observation, after = super().step(step, state)
        return ProcessStep(observation, {"theta": after["theta"] / (3 - step)})


class ReturnsAPair(Sound):
    def step(self, step: int, state: State) -> Any:
        return tuple(super().step(step, state))


class ObservesATensor(Sound):
    def step(self, step: int, state: State) -> ProcessStep:
        observation: Any = state["theta"].square().sum(1)
        return ProcessStep(observation, super().step(step, state).state)


class CountsInWholeNumbers(Sound):
    def step(self, step: int, state: State) -> ProcessStep:
        loss = state["theta"].square().sum(1)
        return ProcessStep(StepObservation(step, loss.long()), super().step(step, state).state)


class ScoresANumber(Sound):
    def score(self, state: State, step: int, observation: StepObservation) -> Any:
        return 1.0


class DrawsFromNumPy(Sound):
    def init(self) -> State:
        np.random.rand()  # noqa: NPY002
        return super().init()


START = torch.arange(1.0, 13, dtype=DOUBLE).view(4, 3)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (MovesInPlace, "the result at step 0 changes when the next step is taken"),
        (WritesOverItsStart, "the state at step 0 is another after a step"),
        (ScoresByWhatWasTaken, "the score at step 0 changes when the next step is taken"),
        (DriftsFromRunToRun, "the result at step 1 differs when the process is run a second time"),
        (MixesItems, "the result at step 1 of an item among others is not what it is"),
        (SelectsOthers, "the result at step 0 of an item among others is not what it is"),
        (SelectsAll, "a selection of 2 items is a process of 4"),
        (CountsItsStepsItself, "the result at step 2 of an item among others .* made at step 1"),
        (HasNoItemsInItsState, r"steps of the state must be a tensor with the 4 items"),
        (StartsNowhere, "the loss at the start must be finite"),
        (MiscountsSteps, "the observation at step 0 says that it is of step 1"),
        (ObservesOneLoss, r"the loss must have shape \[4\]"),
        (ScoresAllAtOnce, r"the score must have shape \[4\]"),
        (Grows, "the result at step 1 must have shape"),
        (Diverges, "the result at step 4 is not finite; check fewer steps"),
        (ReturnsAPair, "what step returns must be a ProcessStep, got tuple"),
        (ObservesATensor, "the observation of a step must be a StepObservation, got Tensor"),
        (CountsInWholeNumbers, "the loss must be of a floating-point dtype, got torch.int64"),
        (ScoresANumber, "the score must be a Tensor, got 1.0"),
        (DrawsFromNumPy, "the global generator of NumPy"),
    ],
)
def test_a_broken_process_is_found_out(kind: type[Sound], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_process(kind(START))


def test_what_is_no_process_is_named() -> None:
    kind: Any = Sound
    with pytest.raises(AssertionError, match="must be a Process, got the class Sound; make one"):
        check_process(kind)
    with pytest.raises(AssertionError, match="num_steps must be at least 1, got 0"):
        check_process(Sound(START), num_steps=0)


def test_losses_that_are_not_one_for_each_item_are_named() -> None:
    with pytest.raises(InputError, match=r"of shape \[B\], one for each item, got shape \[4, 1\]"):
        Sound(START).observe(0, START[:, :1])


def test_a_process_of_one_item_shows_too_little() -> None:
    with pytest.raises(AssertionError, match="at least 2 items, got 1"):
        check_process(Sound(START[:1]))


@pytest.mark.parametrize("kind", [Sound, TakesTheMemoryOfAScratchpad])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_sound_process_passes(kind: type[Sound], dtype: Any) -> None:
    check_process(kind(START.to(dtype)), tolerance=0)
