"""First-order meta-gradients against plain autograd; trajectories against a plain loop."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, silu
from torch.testing import assert_close

from haltwise._core.errors import InputError
from haltwise._kernels import reference_lstm_step
from haltwise._core.tensors import sub_state
from haltwise.halting.halter import Halter, HaltingOutput
from haltwise.processes.signals import (
    extract_features,
    init_features,
    init_signals,
    measure_signals,
)
from haltwise.models.optimizer_model import OptimizerModel, ModelConfig
from haltwise.update_rules import Adam, State
from haltwise.tasks import Evaluation, Observation, TaskBatch, family
from haltwise.rollout.record import Trajectory, backpropagate, record, unroll

DOUBLE = torch.float64
B, D, T = 3, 4, 7
LSTM = {"hidden_size": 3, "num_layers": 2, "output_scale": 0.3, "shared_gradient": False}


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


@dataclass(frozen=True)
class NoisyBatch(TaskBatch):
    """What is seen (another curvature at every step) is not what is scored."""

    center: Tensor

    @property
    def reference_loss(self) -> Tensor:
        return 0 * self.center[:, 0]

    def observe(self, params: Tensor, step: int) -> Observation:
        error, curvature = params - self.center, 1 + randn(D, seed=step).square()
        return Observation((curvature * error.square()).sum(1) / 2, curvature * error)

    def evaluate(self, params: Tensor, step: int) -> Evaluation:
        error = params - self.center
        return Evaluation(*self.observe(params, step), (error**4).sum(1), 4 * error**3)


BATCHES = {
    "noisy": NoisyBatch(randn(B, D), randn(B, D, seed=2)),
    "student-t": family("student-t-10d").sample(B, seeded(), dtype=DOUBLE),
}
PRICE = torch.tensor([0.05, 0.3, 2.0], dtype=DOUBLE)


def make(
    rule: str = "lstm", settings: dict[str, Any] | None = None, **head: Any
) -> OptimizerModel:
    """An optimizer in float64 none of whose weights is zero, so that every path counts."""
    config = ModelConfig(
        rule,
        LSTM if settings is None else settings,
        **{"head_width": 5, "head_memory": 4, **head},
    )
    optimizer = OptimizerModel(config, seeded()).double()
    with torch.no_grad():
        for index, weight in enumerate(optimizer.parameters()):
            weight.add_(randn(*weight.shape, seed=index), alpha=0.2)
    return optimizer


def cotangents() -> tuple[Tensor, HaltingOutput]:
    """Random derivatives with respect to the excess losses and to all that the head says."""
    return randn(B, T + 1, seed=5), HaltingOutput(
        randn(B, T, 2, seed=6), randn(B, T, 2, seed=7), randn(B, T, seed=8)
    )


def gradients(optimizer: OptimizerModel) -> dict[str, Tensor]:
    found = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in optimizer.named_parameters()
    }
    optimizer.zero_grad()
    return found


def spoken(
    head: Halter, features: Tensor, readout: Tensor, memory: dict[str, Tensor]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """What the head says at one step, written out; its memory takes the read-out as data."""
    inputs = torch.cat(
        [features] * head.use_features + [readout] * head.use_readout,
        dim=1,
    )
    value = inputs
    if head.memory:
        hidden, cell = reference_lstm_step(
            inputs.detach(),
            memory["hidden"],
            memory["cell"],
            list(head.memory_weights),
            list(head.memory_biases),
        )
        memory, value = {"hidden": hidden, "cell": cell}, torch.cat((inputs, hidden[:, 0]), dim=1)
    *layers, last = zip(head.weights, head.biases, strict=True)
    for weight, bias in layers:
        value = silu(linear(value, weight, bias))
    value = linear(value, *last)
    return [value[:, :2], value[:, 2:4] - 2, value[:, 4] - 2], memory


def autograd_oracle(
    optimizer: OptimizerModel,
    batch: TaskBatch,
    excess_weights: Tensor,
    halting_weights: HaltingOutput,
    cut_every: int | None = None,
) -> dict[str, Tensor]:
    """Differentiate through the optimizee; only what is fed to rule and head is detached."""
    params, state, total = batch.start, optimizer.rule.init(batch.start), torch.zeros(()).double()
    last, recent = init_signals(params), init_features(B, params)
    memory = optimizer.head.init(B, params)
    for step in range(T + 1):
        seen = batch.evaluate(params, step)
        total = total + (excess_weights[:, step] * seen.excess).sum()
        if step == T:
            break
        if cut_every and step % cut_every == 0:
            state = {name: value.detach() for name, value in state.items()}
        loss, grad = seen.loss.detach(), seen.grad.detach()
        update, readout, state = optimizer.rule.update(grad, state)
        signals, last = measure_signals(step, loss, grad, update.detach(), last)
        features, recent = extract_features(signals.unsqueeze(1), PRICE, recent)
        said, memory = spoken(optimizer.head, features.squeeze(1), readout, memory)
        for weights, value in zip(halting_weights, said, strict=True):
            total = total + (weights[:, step] * value).sum()
        params = params + update
    total.backward()
    return gradients(optimizer)


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every step by itself": {"head_memory": 0},
    "shared gradient": {"settings": {**LSTM, "shared_gradient": True}},
    "indirect gradient": {"settings": {**LSTM, "direct_gradient": False}},
    "one layer": {"settings": {**LSTM, "num_layers": 1}},
    "features alone": {"head_readout": False},
    "read-out alone": {"head_features": False},
    "a linear head that remembers": {"head_width": 0},
    "the thesis' linear head": {"head_features": False, "head_width": 0, "head_memory": 0},
    "adam": {"rule": "adam", "settings": {"learning_rate": 0.1}},
    "gradient descent": {"rule": "sgd", "settings": {"learning_rate": 0.1}},
}


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize("segment", [1, 3, T, T + 5])
@pytest.mark.parametrize("variant", VARIANTS)
def test_meta_gradients_equal_autograd(variant: str, segment: int, truncate: bool) -> None:
    optimizer, batch = make(**VARIANTS[variant]), BATCHES["noisy"]
    expected = autograd_oracle(optimizer, batch, *cotangents(), segment if truncate else None)
    assert all(value.any() for value in expected.values())
    trajectory = unroll(optimizer, batch, T, PRICE, segment=segment)
    backpropagate(optimizer, trajectory, *cotangents(), truncate=truncate)
    assert_close(gradients(optimizer), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("part", range(4))
def test_each_cotangent_alone_equals_autograd_on_a_deterministic_task(part: int) -> None:
    optimizer, batch = make(), BATCHES["student-t"]
    excess, halting = cotangents()
    parts = [value * (index == part) for index, value in enumerate((excess, *halting))]
    weights = parts[0], HaltingOutput(*parts[1:])
    expected = autograd_oracle(optimizer, batch, *weights)
    backpropagate(optimizer, unroll(optimizer, batch, T, PRICE, segment=3), *weights)
    assert_close(gradients(optimizer), expected, rtol=1e-10, atol=1e-11)


def test_truncation_matters_to_the_rule() -> None:
    optimizer = make()
    trajectory = unroll(optimizer, BATCHES["noisy"], T, PRICE, segment=2)
    found = []
    for truncate in (False, True):
        backpropagate(optimizer, trajectory, *cotangents(), truncate=truncate)
        found.append(gradients(optimizer)["rule.weights.0"])
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_meta_gradients_are_added_to_what_is_there() -> None:
    optimizer = make()
    trajectory = unroll(optimizer, BATCHES["noisy"], T, PRICE, segment=3)
    found = []
    for times in (1, 2):
        for _ in range(times):
            backpropagate(optimizer, trajectory, *cotangents())
        found.append(gradients(optimizer))
    assert_close(found[1], {name: 2 * value for name, value in found[0].items()})


def test_the_gradient_of_a_selection_is_that_of_its_problems() -> None:
    optimizer, kept = make(), torch.tensor([2, 0])
    trajectory = unroll(optimizer, BATCHES["noisy"], T, PRICE, segment=3)
    excess, halting = cotangents()
    selected = HaltingOutput(*(value[kept] for value in halting))
    backpropagate(optimizer, trajectory.select(kept), excess[kept], selected)
    found = gradients(optimizer)
    for value in (excess, *halting):
        value[1] = 0
    backpropagate(optimizer, trajectory, excess, halting)
    assert_close(found, gradients(optimizer), rtol=1e-10, atol=1e-12)


# --- Trajectories --------------------------------------------------------------------------------


def tensors(trajectory: Trajectory) -> dict[str, Tensor]:
    """Every tensor of the trajectory by name; all but the last parameters run over steps."""
    found = {"price": trajectory.price, **trajectory.halting._asdict()}
    found |= vars(trajectory.recording)
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


@pytest.mark.parametrize("memory", [0, 4])
def test_a_trajectory_is_what_a_plain_loop_records(memory: int) -> None:
    optimizer, batch = make(head_memory=memory), BATCHES["noisy"]
    trajectory = unroll(optimizer, batch, T, PRICE, segment=3)
    recording = trajectory.recording
    assert recording.grad is not None
    assert recording.excess_grad is not None
    params, state = batch.start, optimizer.init(batch.start)
    last = init_signals(params)
    kept: list[State] = []
    for step in range(T + 1):
        seen = batch.evaluate(params, step)
        assert torch.equal(recording.loss[:, step], seen.loss)
        assert torch.equal(recording.excess[:, step], seen.excess)
        assert torch.equal(recording.excess_grad[:, step], seen.excess_grad)
        rms = seen.grad.square().mean(1).sqrt()
        assert_close(recording.log_grad_norm[:, step], rms.log(), rtol=1e-13, atol=1e-13)
        if step == T:
            break
        kept += [sub_state(state, "rule.")] * (step % 3 == 0)
        with torch.no_grad():
            update, readout, _ = optimizer.rule.update(seen.grad, sub_state(state, "rule."))
        taken = optimizer.step(step, seen.loss, seen.grad, PRICE, state)
        assert not taken.update.requires_grad
        assert torch.equal(taken.update, update)
        assert torch.equal(recording.grad[:, step], seen.grad)
        assert torch.equal(recording.readouts[:, step], readout)
        signals, last = measure_signals(step, seen.loss, seen.grad, update, last)
        assert torch.equal(recording.signals[:, step], signals)
        for name, said in taken.halting._asdict().items():
            found = getattr(trajectory.halting, name)[:, step]
            assert_close(found, said, rtol=1e-12, atol=1e-12)  # the memory is one kernel call
        params, state = params + taken.update, taken.state
    assert torch.equal(recording.params, params)
    assert len(recording.states) == len(kept) == 3
    for state, expected in zip(recording.states, kept, strict=True):
        assert all(torch.equal(value, expected[name]) for name, value in state.items())
    assert (trajectory.num_problems, trajectory.num_steps, recording.segment) == (B, T, 3)
    assert not any(value.requires_grad for value in tensors(trajectory).values())


def test_any_rule_is_recorded_and_a_head_may_read_it_at_every_price() -> None:
    """What a hand-designed rule goes through, against its plain loop; prices alter what is said."""
    rule, batch = Adam(0.1), BATCHES["student-t"]
    recording = record(rule, batch, T)
    params, state = batch.start, rule.init(batch.start)
    for step in range(T):
        seen = batch.score(params, step)
        assert torch.equal(recording.loss[:, step], seen.loss)
        assert torch.equal(recording.excess[:, step], seen.excess)
        update, _, state = rule.update(seen.grad, state)
        params = params + update
    assert torch.equal(recording.params, params)
    assert recording.readouts.shape == (B, T, 0)
    assert recording.grad is recording.excess_grad is None
    optimizer = make("adam", {"learning_rate": 0.1})
    for price in (PRICE, 3 * PRICE):
        with torch.no_grad():
            said = optimizer.speak(recording.signals, recording.readouts, price)
        expected = unroll(optimizer, batch, T, price).halting
        assert all(map(torch.equal, said, expected))
    assert not torch.equal(said.hazard_logits, unroll(optimizer, batch, T, PRICE).halting[1])


def test_what_is_recorded_is_trained_on_with_segments_and_judged_without() -> None:
    """Excess is the loss that is differentiated in one case, the score in the other."""
    batch = family("regression-10d-noisy").sample(B, seeded(), dtype=DOUBLE)
    rule = Adam(0.1)
    training, judged = record(rule, batch, T, segment=3), record(rule, batch, T)
    assert torch.equal(training.params, judged.params)
    assert torch.equal(training.loss, judged.loss)
    params = batch.start
    for step in range(T):
        assert torch.equal(judged.excess[:, step], batch.score(params, step).excess)
        assert torch.equal(training.excess[:, step], batch.evaluate(params, step).excess)
        params = record(rule, batch, step + 1).params


def test_unrolling_repeats_bit_for_bit_whatever_is_kept() -> None:
    optimizer, batch = make(), BATCHES["student-t"]
    bare = unroll(optimizer, batch, T, PRICE)
    assert bare.recording.grad is bare.recording.excess_grad is None
    assert bare.recording.states == ()
    for segment in (None, 1, 3):
        again = tensors(unroll(optimizer, batch, T, PRICE, segment=segment))
        assert all(torch.equal(value, again[name]) for name, value in tensors(bare).items())


def test_a_shorter_unroll_is_the_beginning_of_a_longer_one() -> None:
    optimizer, batch = make(), BATCHES["noisy"]
    short, long = (unroll(optimizer, batch, steps, PRICE, segment=2) for steps in (1, T))
    for name, value in tensors(short).items():
        if name not in ("params", "price"):
            assert_close(value, tensors(long)[name][:, : value.shape[1]], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", ["plain", "shared gradient", "adam"])
def test_selecting_commutes_with_unrolling(variant: str) -> None:
    optimizer, batch, index = make(**VARIANTS[variant]), BATCHES["noisy"], torch.tensor([2, 0, 2])
    found = unroll(optimizer, batch, T, PRICE, segment=3).select(index)
    expected = unroll(optimizer, batch.select(index), T, PRICE[index], segment=3)
    assert_close(tensors(found), tensors(expected), rtol=1e-10, atol=1e-12)
    states = found.recording.states, expected.recording.states
    assert_close(*states, rtol=1e-10, atol=1e-12)
    assert found.recording.segment == expected.recording.segment


def test_a_problem_that_diverges_is_marked_and_leaves_the_others_bit_identical() -> None:
    optimizer, batch, others = make(), BATCHES["noisy"], [0, 2]
    start = batch.start.clone()
    start[1, 2] = torch.inf
    clean = unroll(optimizer, batch, T, PRICE, segment=3)
    poisoned = unroll(optimizer, replace(batch, start=start), T, PRICE, segment=3)
    assert clean.finite.all()
    assert poisoned.finite.tolist() == [True, False, True]
    for name, value in tensors(clean).items():
        assert torch.equal(value[others], tensors(poisoned)[name][others])


def test_traces_are_the_trajectory() -> None:
    trajectory = unroll(make(), BATCHES["noisy"], T, PRICE)
    known = {**vars(trajectory.recording), **trajectory.halting._asdict()}
    for name, value in vars(trajectory.traces()).items():
        assert value is known[name]


@pytest.mark.parametrize(
    ("num_steps", "price", "segment", "message"),
    [
        (0, PRICE, None, "num_steps"),
        (T, PRICE, 0, "segment"),
        (T, PRICE[:2], None, "price"),
        (T, PRICE[:1], None, "price"),
        (T, PRICE[0], None, "price"),
    ],
)
def test_bad_arguments_are_refused(
    num_steps: int, price: Tensor, segment: int | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        unroll(make(), BATCHES["noisy"], num_steps, price, segment=segment)


# --- The optimizer that is unrolled --------------------------------------------------------------


def test_an_untrained_head_reproduces_the_prior() -> None:
    optimizer = OptimizerModel(
        ModelConfig(rule_settings=LSTM, temperature_per_price=0.5), seeded()
    ).double()
    trajectory = unroll(optimizer, BATCHES["noisy"], T, PRICE)
    increments = trajectory.halting.increments
    assert torch.equal(increments, torch.full((B, T, 2), -2.0, dtype=DOUBLE))
    assert optimizer.first_increment(PRICE).tolist() == [-2.0] * B


@pytest.mark.parametrize(
    ("settings", "temperature"),
    [
        ({}, PRICE),
        ({"temperature_per_price": 3.0}, 3 * PRICE),
        ({"temperature": 0.7, "temperature_per_price": 3.0}, torch.full_like(PRICE, 0.7)),
    ],
)
def test_the_temperature_follows_the_price_unless_it_is_fixed(
    settings: dict[str, Any], temperature: Tensor
) -> None:
    optimizer = OptimizerModel(ModelConfig(rule_settings=LSTM, **settings))
    assert_close(optimizer.temperature(PRICE), temperature)
    assert_close(optimizer.log_ratio(PRICE), -PRICE / temperature)


def test_given_weights_make_the_same_optimizer_frozen() -> None:
    optimizer = make()
    twin = OptimizerModel.from_weights(optimizer.config, optimizer.float().state_dict())
    assert not any(weight.requires_grad for weight in twin.parameters())
    batch = family("quadratic-10d").sample(2, seeded())
    price = torch.tensor([0.1, 0.2])
    one, other = (tensors(unroll(who, batch, T, price)) for who in (optimizer, twin))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
