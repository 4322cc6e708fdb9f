"""The halter: step by step as at once, causal, and zero when it is new."""

from typing import Any

import pytest
import torch
from descents import PRICE, B, D, T, measured
from draws import DOUBLE, randn, seeded
from torch import Tensor
from torch.testing import assert_close

from haltwise import InputError, load_halting
from haltwise.halting import Halter, HalterSettings, HaltingSession
from haltwise.models import HaltingModel
from haltwise.processes.observation import StepObservation
from haltwise.stop_rules import Patience, ReturnedIterate, StopPolicy

R, K = 3, 5  # read-out, raw outputs
SHAPES: dict[str, dict[str, Any]] = {
    "remembers": {"memory": 6},
    "judges every step by itself": {"memory": 0},
    "linear": {"memory": 6, "width": 0},
    "the thesis'": {"memory": 0, "width": 0, "features": "none"},
    "features alone": {"memory": 6, "readout": False},
    "read-out alone": {"memory": 6, "features": "none"},
}
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def halter_of(shape: dict[str, Any]) -> Halter:
    halter = Halter(HalterSettings(**{"width": 5, **shape}), R, K, seeded()).double()
    for index, weight in enumerate(halter.parameters()):  # the outputs of a new one are zero
        weight.data += 0.3 * randn(*weight.shape, seed=index)
    return halter.requires_grad_(False)


def run() -> tuple[Tensor, Tensor]:
    """Signals [B, T, S] and read-outs [B, T, R]."""
    signals = measured(randn(B, T, seed=3), randn(B, T, D, seed=4), randn(B, T, D, seed=5))
    return signals, randn(B, T, R, seed=2)


@every_shape
@pytest.mark.parametrize("prepared", [False, True])
def test_step_by_step_it_puts_out_the_same_as_at_once(
    shape: dict[str, Any], prepared: bool
) -> None:
    halter, (signals, readouts) = halter_of(shape), run()
    whole, state = halter(signals, readouts, PRICE), halter.init(B, signals)
    assert whole.shape == (B, T, K)
    if prepared:
        halter = halter.prepare()
    for step in range(T):
        raw, state = halter.step(signals[:, step], readouts[:, step], PRICE, state)
        assert_close(raw, whole[:, step], rtol=1e-12, atol=1e-12)
        assert all(len(value) == B for value in state.values())


@every_shape
@pytest.mark.parametrize("step", range(1, T))
def test_what_comes_later_is_not_known(shape: dict[str, Any], step: int) -> None:
    halter, (signals, readouts) = halter_of(shape), run()
    before = halter(signals, readouts, PRICE)
    changed, other = signals.clone(), readouts.clone()
    changed[:, step, 1], other[:, step] = -30.0, -1.0  # the lowest loss of all
    after = halter(changed, other, PRICE)
    assert torch.equal(before[:, :step], after[:, :step])
    assert not torch.equal(before[:, step], after[:, step])
    remembered = not torch.equal(before[:, step + 1 :], after[:, step + 1 :])
    remembers = halter.settings.memory > 0 or halter.settings.features != "none"
    assert remembered == (remembers and step < T - 1)


@every_shape
def test_before_the_first_step_the_price_alone_is_known(shape: dict[str, Any]) -> None:
    halter = halter_of(shape)
    used = []
    if halter.features is not None:
        used.append(halter.features.blank(PRICE))
    if halter.settings.readout:
        used.append(torch.zeros(B, R, dtype=DOUBLE))
    remembered = torch.zeros(B, halter.settings.memory, dtype=DOUBLE)
    value = torch.cat((*used, remembered), 1)
    *layers, last = zip(halter.weights, halter.biases, strict=True)
    for weight, bias in layers:
        value = torch.nn.functional.silu(value @ weight.T + bias)
    expected = value @ last[0].T + last[1]
    found = halter.initial(PRICE)
    assert_close(found, expected, rtol=1e-13, atol=1e-13)
    assert (len(set(found[:, 0].tolist())) == B) == (halter.settings.features != "none")


def test_a_new_halter_puts_out_zero_whatever_it_reads() -> None:
    halter = Halter(HalterSettings(), R, K, seeded()).double()
    assert not halter(*run(), PRICE).any()
    assert not halter.initial(PRICE).any()


def test_readouts_get_gradients_from_the_perceptron_alone() -> None:
    """Through the memory nothing flows back to what it read, as `Halter.forward` says."""
    halter = halter_of({"memory": 6, "width": 0}).requires_grad_()
    signals, readouts = run()
    readouts.requires_grad_()
    halter(signals, readouts, PRICE)[:, -1].sum().backward()
    assert readouts.grad is not None
    assert not readouts.grad[:, :-1].any()
    assert readouts.grad[:, -1].all()
    assert all(weight.grad is not None and weight.grad.any() for weight in halter.parameters())


def test_weights_depend_on_the_generator_alone() -> None:
    def weights(seed: int) -> list[Tensor]:
        return list(Halter(HalterSettings(), R, K, seeded(seed)).parameters())

    torch.manual_seed(5)
    first = weights(1)
    torch.manual_seed(6)
    assert all(map(torch.equal, first, weights(1)))
    assert not torch.equal(first[0], weights(2)[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": -1}, "width must be at least 0, got -1"),
        ({"memory": -1}, "memory must be at least 0, got -1"),
        ({"memory": 2.5}, "memory must be int, got 2.5"),
        ({"features": "optimisation"}, "did you mean 'optimization'"),
        ({"features": "none", "readout": False}, "the halter reads nothing"),
    ],
)
def test_impossible_shapes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HalterSettings(**settings)


def test_a_process_without_a_readout_must_show_something_else() -> None:
    with pytest.raises(InputError, match="this process has no read-out"):
        Halter(HalterSettings(features="none"), 0, K)


def test_a_model_is_prepared_without_being_changed() -> None:
    model = load_halting("regression-2d").double()
    prepared, (signals, _) = model.prepare(), run()
    readout = randn(B, model.readout_size, seed=2)

    def outputs(each: HaltingModel) -> Tensor:
        state = each.init(B, signals)
        return each.step(signals[:, 0], readout, PRICE, state)[0]["hazard_logits"]

    assert model.halter is not None
    assert prepared.halter is not model.halter
    before = outputs(model)
    assert torch.equal(outputs(prepared), before)
    with torch.no_grad():
        next(model.parameters()).add_(1.0)  # values are read at every step
    assert torch.equal(outputs(prepared), outputs(model))
    assert not torch.equal(outputs(prepared), before)


def test_a_session_goes_on_where_its_state_was_taken() -> None:
    """Also one whose stop rule alone remembers."""
    losses = torch.tensor([[4.0, 3.0, 3.0, 3.0, 2.0], [4.0, 4.0, 4.0, 1.0, 0.0]])

    def session() -> HaltingSession:
        return HaltingSession(StopPolicy(Patience(3), ReturnedIterate.BEST), PRICE)

    whole = session()
    state: dict[str, Tensor] = {}
    for step, loss in enumerate(losses.unbind(1)):
        seen = StepObservation(step, loss, torch.zeros(2))
        expected = whole.observe(seen).stop
        if step:
            again = session()
            again.restore(state)
            assert torch.equal(again.observe(seen).stop, expected)
        state = {name: value.clone() for name, value in whole.state().items()}
    assert state["rule.waited"].tolist() == [0, 0]
