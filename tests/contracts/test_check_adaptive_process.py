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


class NeverEndsPaying(Sound):
    def __init__(self) -> None:
        super().__init__()
        self.exit_costs = torch.tensor([1.0, 2.0, 3.0, torch.inf], dtype=DOUBLE)


class CountsItsCalls(Sound):
    calls = 0

    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        self.calls += 1
        found = super().step(step, state)
        return found._replace(output=found.output + 1e-9 * self.calls)


class ShowsNoise(Sound):
    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        found = super().step(step, state)
        return found._replace(features=found.features + torch.randn_like(found.features))


class HalvesItsInputs(Sound):
    def init(self, inputs: Tensor) -> State:
        return {"values": inputs.div_(2)}


class WritesIntoItsState(Sound):
    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        found = super().step(step, state)
        if not torch.is_grad_enabled():
            state["values"].copy_(found.output)
        return found


class KeepsTheInputsOfOthers(Sound):
    def init(self, inputs: Tensor) -> State:
        self.inputs = inputs
        return {"values": inputs}

    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        found = super().step(step, state)
        return found._replace(output=found.output + self.inputs[: len(found.output)])


class Remembers(Sound):
    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        found = super().step(step, state)
        return found._replace(state={**found.state, "before": found.output})


class IsATuple(Sound):
    def init(self, inputs: Tensor) -> State:
        return (inputs,)  # type: ignore[return-value]


class ReturnsATuple(Sound):
    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        return tuple(super().step(step, state))  # type: ignore[return-value]


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
        (NeverEndsPaying, "exit_costs must rise over the 4 exits and be finite"),
        (CountsItsCalls, "output of step 0 is another when the step is repeated"),
        (ShowsNoise, "features of step 0 is another when the step is repeated"),
        (HalvesItsInputs, "init must not change its inputs"),
        (WritesIntoItsState, "step 0 must not change values, which it is given"),
        (KeepsTheInputsOfOthers, r"a row of .* in batches of .* is not what it is"),
        (Remembers, "the state of steps that are alike must keep its names"),
        (IsATuple, "the state must be a dictionary of tensors"),
        (ReturnsATuple, r"step 0 must return an ItemStep\(output, features, state\)"),
    ],
)
def test_a_broken_process_is_found_out(kind: type[Sound], message: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(AssertionError, match=message):
        check_adaptive_process(kind().double(), INPUTS.clone())


def test_two_rows_show_too_little() -> None:
    with pytest.raises(AssertionError, match="at least 3 rows, got 2"):
        check_adaptive_process(Sound().double(), INPUTS[:2])


def test_a_sound_process_passes() -> None:
    torch.manual_seed(0)
    check_adaptive_process(Sound().double(), INPUTS)


def test_the_check_leaves_global_randomness_as_it_was() -> None:
    torch.manual_seed(0)
    process = Sound().double()
    before = torch.get_rng_state()
    check_adaptive_process(process, INPUTS)
    assert torch.equal(torch.get_rng_state(), before)
