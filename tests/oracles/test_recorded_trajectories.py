"""Recordings of rules and of processes, and unrolls, against plain loops."""

from dataclasses import fields, replace

import pytest
import torch
from draws import DOUBLE, seeded
from meta_gradient_cases import BATCHES, LSTM, PRICE, VARIANTS, B, T, make, step_rule
from torch import Tensor
from torch.testing import assert_close

from haltwise import InputError
from haltwise.models import OptimizerModel, fingerprint, read_model, save_model
from haltwise.processes import OptimizationProcess, Process, ProcessStep, Trajectory
from haltwise.processes.signals import init_signals, measure_signals
from haltwise.rollout import Unroll, record, record_process, run_rule, unroll
from haltwise.tasks import family
from haltwise.update_rules import Adam


def tensors(unrolled: Unroll) -> dict[str, Tensor]:
    """Every tensor of the unroll by name; all but the price and the last run over steps."""
    found = {"price": unrolled.price, "grad": unrolled.grad}
    found |= {"excess_grad": unrolled.excess_grad, **unrolled.trajectory.outputs}
    found |= vars(unrolled.trajectory)
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("memory", [0, 4])
def test_an_unroll_is_what_a_plain_loop_goes_through(memory: int) -> None:
    model, batch = make(memory=memory), BATCHES["noisy"]
    unrolled = unroll(model, batch, T, PRICE, segment=3)
    trajectory = unrolled.trajectory
    assert trajectory.log_grad_norm is not None
    assert trajectory.signals is not None
    assert trajectory.readouts is not None
    assert trajectory.final is not None
    params, state = batch.start, model.rule.init(batch.start)
    last, of_halter = init_signals(params), model.halting.init(B, params)
    kept = []
    for step in range(T + 1):
        seen = batch.evaluate(params, step)
        assert torch.equal(trajectory.loss[:, step], seen.loss)
        assert torch.equal(trajectory.excess[:, step], seen.excess)
        assert torch.equal(unrolled.excess_grad[:, step], seen.excess_grad)
        rms = seen.grad.square().mean(1).sqrt()
        assert_close(trajectory.log_grad_norm[:, step], rms.log(), rtol=1e-13, atol=1e-13)
        if step == T:
            break
        kept += [state] * (step % 3 == 0)
        with torch.no_grad():
            update, readout, state = step_rule(model.rule, seen.grad, state)
        assert torch.equal(unrolled.grad[:, step], seen.grad)
        assert torch.equal(trajectory.readouts[:, step], readout)
        signals, last = measure_signals(step, seen.loss, seen.grad, update, last)
        assert torch.equal(trajectory.signals[:, step], signals)
        outputs, of_halter = model.halting.step(signals, readout, PRICE, of_halter)
        assert outputs.keys() == trajectory.outputs.keys()
        for name, value in outputs.items():  # the memory is one kernel call
            assert_close(trajectory.outputs[name][:, step], value, rtol=1e-12, atol=1e-12)
        params = params + update
    assert torch.equal(trajectory.final, params)
    assert len(unrolled.states) == len(kept) == 3
    for found, expected in zip(unrolled.states, kept, strict=True):
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
    assert (trajectory.num_items, trajectory.num_steps, unrolled.segment) == (B, T, 3)
    assert not any(value.requires_grad for value in tensors(unrolled).values())


def test_a_recording_of_any_rule_serves_every_price() -> None:
    """What a hand-designed rule goes through, against its plain loop; prices alter the outputs."""
    rule, batch = Adam(0.1), BATCHES["student-t"]
    recorded = record(rule, batch, T)
    params, state = batch.start, rule.init(batch.start)
    for step in range(T):
        seen = batch.score(params, step)
        assert torch.equal(recorded.loss[:, step], seen.loss)
        assert torch.equal(recorded.excess[:, step], seen.excess)
        update, _, state = step_rule(rule, seen.grad, state)
        params = params + update
    assert recorded.final is not None
    assert torch.equal(recorded.final, params)
    assert recorded.readouts is not None
    assert recorded.readouts.shape == (B, T, 0)
    model = make("adam", {"learning_rate": 0.1})
    outputs = []
    for price in (PRICE, 3 * PRICE):
        found = model.halting.attach(recorded, price).outputs
        expected = unroll(model, batch, T, price, segment=T).trajectory.outputs
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, expected[name]) for name, value in found.items())
        outputs.append(found["hazard_logits"])
    assert not torch.equal(*outputs)
    assert recorded.outputs == {}


def test_a_number_for_a_price_is_that_price_for_all() -> None:
    model, recorded = make(), record(make().rule, BATCHES["noisy"], T)
    one, same = (
        model.halting.attach(recorded, price).outputs
        for price in (0.25, torch.full((B,), 0.25, dtype=DOUBLE))
    )
    assert all(torch.equal(value, same[name]) for name, value in one.items())


@pytest.mark.parametrize("rule", ["lstm", "adam"])
@pytest.mark.parametrize("name", ["regression-10d-noisy", "student-t-10d"])
def test_a_rule_is_recorded_as_its_process_is(rule: str, name: str) -> None:
    model = make(rule, {"learning_rate": 0.1} if rule == "adam" else LSTM)
    batch = family(name).sample(B, seeded(), dtype=DOUBLE)
    found = record_process(OptimizationProcess(model.rule, batch), T)
    expected = record(model.rule, batch, T)
    for item in fields(Trajectory):
        one, other = getattr(found, item.name), getattr(expected, item.name)
        assert_close(one, other, rtol=1e-11, atol=1e-11, msg=item.name)


def test_a_process_without_signals_cannot_be_learned_from() -> None:
    class Silent(Process):
        num_items = 2

        def init(self) -> dict[str, Tensor]:
            return {"x": torch.ones(2, 1)}

        def step(self, step: int, state: dict[str, Tensor]) -> ProcessStep:
            observation = self.observe(step, state["x"][:, 0])
            return ProcessStep(observation._replace(signals=None), state)

        def result(self, state: dict[str, Tensor]) -> Tensor:
            return state["x"]

        def select(self, index: Tensor) -> "Silent":
            return self

    with pytest.raises(InputError, match=r"Silent shows no signals to learn from; .*self\.observe"):
        record_process(Silent(), 3)
    with pytest.raises(InputError, match="num_steps must be at least 1, got 0"):
        record_process(Silent(), 0)


def test_training_and_judging_share_a_path_but_not_the_excess() -> None:
    """Excess is the loss that is differentiated in one case, the score in the other."""
    batch = family("regression-10d-noisy").sample(B, seeded(), dtype=DOUBLE)
    rule = Adam(0.1)
    training, judged = run_rule(rule, batch, T, segment=3)[0], record(rule, batch, T)
    assert training.final is not None
    assert judged.final is not None
    assert torch.equal(training.final, judged.final)
    assert torch.equal(training.loss, judged.loss)
    params = batch.start
    for step in range(T):
        assert torch.equal(judged.excess[:, step], batch.score(params, step).excess)
        assert torch.equal(training.excess[:, step], batch.evaluate(params, step).excess)
        final = record(rule, batch, step + 1).final
        assert final is not None
        params = final


def test_unrolling_repeats_bit_for_bit_whatever_the_segments() -> None:
    model, batch = make(), BATCHES["student-t"]
    first = tensors(unroll(model, batch, T, PRICE, segment=T))
    for segment in (T, 1, 3):
        again = tensors(unroll(model, batch, T, PRICE, segment=segment))
        assert all(torch.equal(value, again[name]) for name, value in first.items())


def test_a_shorter_unroll_is_the_beginning_of_a_longer_one() -> None:
    model, batch = make(), BATCHES["noisy"]
    short, long = (unroll(model, batch, steps, PRICE, segment=2) for steps in (1, T))
    for name, value in tensors(short).items():
        if name not in ("final", "price"):
            beginning = tensors(long)[name][:, : value.shape[1]]
            assert_close(value, beginning, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", ["plain", "shared gradient", "adam"])
def test_selecting_commutes_with_unrolling(variant: str) -> None:
    model, batch, index = make(**VARIANTS[variant]), BATCHES["noisy"], torch.tensor([2, 0, 2])
    found = unroll(model, batch, T, PRICE, segment=3).select(index)
    expected = unroll(model, batch.select(index), T, PRICE[index], segment=3)
    assert_close(tensors(found), tensors(expected), rtol=1e-10, atol=1e-12)
    assert_close(found.states, expected.states, rtol=1e-10, atol=1e-12)
    assert found.segment == expected.segment


def test_a_problem_that_diverges_is_marked_and_leaves_the_others_bit_identical() -> None:
    model, batch, others = make(), BATCHES["noisy"], [0, 2]
    start = batch.start.clone()
    start[1, 2] = torch.inf
    clean = unroll(model, batch, T, PRICE, segment=3)
    poisoned = unroll(model, replace(batch, start=start), T, PRICE, segment=3)
    assert clean.finite.all()
    assert poisoned.finite.tolist() == [True, False, True]
    for name, value in tensors(clean).items():
        assert torch.equal(value[others], tensors(poisoned)[name][others])


@pytest.mark.parametrize(
    ("num_steps", "price", "segment", "message"),
    [
        (0, PRICE, T, "num_steps"),
        (T, PRICE, 0, "segment"),
        (T, PRICE[:2], T, "price"),
        (T, PRICE[:1], T, "price"),
        (T, PRICE[0], T, "price"),
    ],
)
def test_bad_arguments_are_refused(
    num_steps: int, price: Tensor, segment: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        unroll(make(), BATCHES["noisy"], num_steps, price, segment=segment)


def test_saved_weights_make_the_same_model_frozen(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("weights") / "x.safetensors"
    model = make().float()
    save_model(path, model.state_dict(), model.card)
    twin = read_model(path)
    assert isinstance(twin, OptimizerModel)
    assert fingerprint(twin) == fingerprint(model)
    assert not any(weight.requires_grad for weight in twin.parameters())
    batch = family("quadratic-10d").sample(2, seeded())
    price = torch.tensor([0.1, 0.2])
    one, other = (tensors(unroll(who, batch, T, price, segment=T)) for who in (model, twin))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
