"""`check_adaptive_process` finds what is wrong with processes that are broken on purpose."""

import pytest
import torch
from draws import DOUBLE, seeded
from torch import Tensor, nn

from haltwise.nn import AdaptiveProcess, ItemStep
from haltwise.testing import check_adaptive_process

State = dict[str, Tensor]


class Sound(AdaptiveProcess):
    """A linear map again and again; what the broken ones are made from."""

    steps_alike = True
    num_features = 3

    def __init__(self) -> None:
        super().__init__(num_exits=4)
        self.map = nn.Linear(3, 3)

    def init(self, inputs: Tensor) -> State:
        return {"values": inputs}

    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        values = self.map(state["values"]).tanh()
        return ItemStep(values, values, {"values": values})


class MixesRows(Sound):
    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        mixed = state["values"] - state["values"].mean(0)
        return super().step(step, {"values": mixed})


class ThinksAllRowsAreAtOneStep(Sound):
    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        assert isinstance(step, Tensor)
        return super().step(step, {"values": state["values"] + step[0]})


class HidesFromGradients(Sound):
    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        return super().step(step, {"values": state["values"].detach()})


class RunsOtherwiseThanItTrains(Sound):
    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        return super().step(step, {"values": state["values"] + torch.is_grad_enabled()})


class HasNoRowsInItsState(Sound):
    def init(self, inputs: Tensor) -> State:
        return {"values": inputs, "count": torch.zeros(())}


class ShowsTooFewFeatures(Sound):
    num_features = 4


class ReturnsOneOutput(Sound):
    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        found = super().step(step, state)
        return found._replace(output=found.output.mean())


class PaysBack(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.exit_costs = torch.tensor([1.0, 2.0, 1.5, 3.0], dtype=DOUBLE)


INPUTS = torch.randn(5, 3, generator=seeded(), dtype=DOUBLE)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (MixesRows, r"a row of \[0\] in batches of any size is not what it is among all others"),
        (ThinksAllRowsAreAtOneStep, r"a row of .* in batches of \[8\] is not what it is"),
        (HidesFromGradients, "the gradient along a direction is"),
        (RunsOtherwiseThanItTrains, "run ends elsewhere than forward says"),
        (HasNoRowsInItsState, "count of the state must be a tensor with the 5 items"),
        (
            ShowsTooFewFeatures,
            r"the features at step 0 must have shape \[5, ..., 4\], got \[5, 3\]",
        ),
        (
            ReturnsOneOutput,
            r"the output at step 0 must begin with the items' shape \[5\], got \[\]",
        ),
        (PaysBack, "exit_costs must rise over the 4 exits"),
    ],
)
def test_a_broken_process_is_found_out(kind: type[Sound], message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=message):
        check_adaptive_process(kind().double(), INPUTS)


def test_two_rows_show_too_little() -> None:
    with pytest.raises(AssertionError, match="at least 3 rows, got 2"):
        check_adaptive_process(Sound().double(), INPUTS[:2])


def test_a_sound_process_passes() -> None:
    torch.manual_seed(0)
    check_adaptive_process(Sound().double(), INPUTS)
