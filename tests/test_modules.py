"""Networks as problems: plain autograd on one module at a time is the oracle."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.testing import assert_close

from haltwise import solve
from haltwise._core.errors import InputError
from haltwise.rollout import record, run_rule
from haltwise.tasks.module import Examples, ModuleBatch, ModuleTask, minibatch_indices
from haltwise.update_rules import SGD

DOUBLE = torch.float64
B = 3


class Tied(nn.Module):
    """One weight used twice, one frozen, one not used at all, and a random constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.unused = nn.Parameter(torch.randn(2, 2))
        self.scale = nn.Parameter(torch.randn(()))
        self.features: Tensor
        self.register_buffer("features", torch.randn(6))
        self.out = nn.Linear(6, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.second(torch.tanh(self.first(inputs.flatten(1) + self.features)))
        outputs: Tensor = self.out(torch.tanh(self.frozen(hidden)) * self.scale)
        return outputs


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 4))


def normalised() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 2, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(6, 4),
        nn.BatchNorm1d(4, affine=False, momentum=None),
    )


class Recurrent(nn.Module):
    """Layers that `vmap` does not map."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.GRU(3, 4, batch_first=True)
        self.out = nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.out(self.cells(inputs.flatten(0, 1))[0][:, -1])
        return outputs


MODULES: dict[str, Callable[[], nn.Module]] = {
    "perceptron": perceptron,
    "recurrent": Recurrent,
    "tied, frozen and unused": Tied,
    "convolution and normalisation": normalised,
}


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def examples(num: int, seed: int) -> Examples:
    generator = seeded(seed)
    inputs = torch.randn(num, 1, 2, 3, generator=generator, dtype=DOUBLE)
    return Examples(inputs, torch.randint(4, (num,), generator=generator))


def make_task(module: str | Callable[[], nn.Module], **settings: Any) -> ModuleTask:
    make = MODULES[module] if isinstance(module, str) else module
    data = {"train": examples(50, 1), "test": examples(30, 2)}
    return ModuleTask(
        make,
        nn.functional.cross_entropy,
        **{"batch_size": 8, "num_score": 24, **data, **settings},
    )


def sample(task: ModuleTask, seed: int = 1, dtype: torch.dtype = DOUBLE) -> ModuleBatch:
    batch = task.sample(B, seeded(seed), dtype=dtype)
    assert isinstance(batch, ModuleBatch)
    return batch


def load(batch: ModuleBatch, problem: int, params: Tensor) -> nn.Module:
    """One problem as a plain module."""
    module = batch.task.make_module().double()
    values = {name: view[problem] for name, view in batch.task.views(params).items()}
    fixed = {name: value[problem] for name, value in batch.fixed.items()}
    module.load_state_dict(values | fixed, strict=False)
    return module.train()


def flat_grad(batch: ModuleBatch, module: nn.Module) -> Tensor:
    grads = dict(module.named_parameters())
    return torch.cat(
        [
            (
                torch.zeros_like(grads[name]) if grads[name].grad is None else grads[name].grad
            ).flatten()  # type: ignore[union-attr]
            for name in batch.task.shapes
        ]
    )


@pytest.mark.parametrize("name", MODULES)
class TestOracle:
    def test_losses_and_gradients_equal_autograd_on_one_module_at_a_time(self, name: str) -> None:
        batch = sample(make_task(name))
        params = batch.start + 0.1 * torch.randn(batch.start.shape, generator=seeded(3))
        for step in (0, 7):
            seen = batch.evaluate(params, step)
            assert torch.equal(seen.excess, seen.loss)
            assert torch.equal(seen.excess_grad, seen.grad)
            inputs, targets = batch.minibatch(step)
            for problem in range(B):
                module = load(batch, problem, params)
                loss = nn.functional.cross_entropy(module(inputs[problem]), targets[problem])
                loss.backward()
                assert_close(seen.loss[problem], loss.detach(), rtol=1e-12, atol=1e-12)
                expected = flat_grad(batch, module)
                assert_close(seen.grad[problem], expected, rtol=1e-10, atol=1e-12)

    def test_the_score_is_the_mean_loss_of_fixed_training_examples(self, name: str) -> None:
        batch = sample(make_task(name, num_score=1000))  # all of them
        scored, other = batch.score(batch.start, 0), batch.score(batch.start, 5)
        assert torch.equal(scored.excess, other.excess)
        assert not torch.equal(scored.loss, other.loss)
        assert all(map(torch.equal, scored[:2], batch.observe(batch.start, 0)))
        inputs, targets = batch.task.train.take(torch.arange(50), DOUBLE)
        for problem in range(B):
            outputs = load(batch, problem, batch.start)(inputs)
            expected = nn.functional.cross_entropy(outputs, targets)
            assert_close(scored.excess[problem], expected, rtol=1e-12, atol=1e-12)

    def test_held_out_loss_and_accuracy_equal_those_of_a_plain_module(self, name: str) -> None:
        batch = sample(make_task(name, num_score=16))
        batches = batch.task.score_examples(torch.device("cpu"), DOUBLE)[0].split(8)
        data = batch.task.test
        assert data is not None
        inputs, targets = data.take(torch.arange(len(data)), DOUBLE)
        found = batch.held_out(batch.start)
        for problem in range(B):
            module = load(batch, problem, batch.start)
            for layer in module.modules():
                if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                    layer.reset_running_stats()
                    layer.momentum = None  # torch's cumulative average over what follows
            for part in batches:
                module(part)
            outputs = module.eval()(inputs)
            accuracy = (outputs.argmax(1) == targets).double().mean()
            loss = nn.functional.cross_entropy(outputs, targets)
            assert_close(found.loss[problem], loss, rtol=1e-12, atol=1e-12)
            assert_close(found.accuracy[problem], accuracy, rtol=1e-12, atol=1e-12)

    def test_nothing_is_changed_by_an_evaluation(self, name: str) -> None:
        batch = sample(make_task(name))
        copies = {key: value.clone() for key, value in batch.fixed.items()}
        first = batch.score(batch.start, 2)
        batch.held_out(batch.start)
        batch.observe(batch.start + 1, 3)
        assert all(map(torch.equal, batch.score(batch.start, 2), first))
        assert all(torch.equal(batch.fixed[key], value) for key, value in copies.items())

    def test_selection_takes_state_and_minibatches_along(self, name: str) -> None:
        batch, index = sample(make_task(name)), torch.tensor([2, 0, 2])
        chosen = batch.select(index)
        assert chosen.task is batch.task
        for method in ("observe", "evaluate", "score"):
            whole = getattr(batch, method)(batch.start, 4)
            for value, expected in zip(
                getattr(chosen, method)(chosen.start, 4), whole, strict=True
            ):
                assert_close(value, expected[index], rtol=1e-12, atol=1e-12)
        for value, expected in zip(
            chosen.held_out(chosen.start), batch.held_out(batch.start), strict=True
        ):
            assert_close(value, expected[index], rtol=1e-12, atol=1e-12)

    def test_problems_do_not_mix(self, name: str) -> None:
        batch, others = sample(make_task(name)), [0, 2]
        params = batch.start.clone()
        params[1] = torch.nan
        for method in ("observe", "score"):
            clean, found = (getattr(batch, method)(at, 1) for at in (batch.start, params))
            for value, expected in zip(found, clean, strict=True):
                assert torch.equal(value[others], expected[others])

    def test_a_generator_gives_the_same_problems_in_every_dtype(self, name: str) -> None:
        state = torch.get_rng_state()
        double, single = (sample(make_task(name), 7, dtype) for dtype in (DOUBLE, torch.float32))
        assert torch.equal(torch.get_rng_state(), state)  # the global generator is left alone
        assert torch.equal(double.start.float(), single.start)
        assert torch.equal(double.stream, single.stream)
        for key, value in double.fixed.items():
            assert torch.equal(value.to(single.fixed[key].dtype), single.fixed[key])
        exact, found = double.score(double.start, 1), single.score(single.start, 1)
        for value, expected in zip(found, exact, strict=True):
            assert_close(value.double(), expected, rtol=1e-3, atol=1e-5)

    def test_bfloat16_works(self, name: str) -> None:
        exact = sample(make_task(name))
        half = sample(make_task(name), dtype=torch.bfloat16)
        seen = half.score(half.start, 1)
        assert {value.dtype for value in seen} == {torch.bfloat16}
        assert_close(seen.loss.double(), exact.observe(exact.start, 1).loss, rtol=0.1, atol=0.1)
        assert half.held_out(half.start).loss.isfinite().all()


def test_parameters_are_concatenated_by_group_then_by_name() -> None:
    task = make_task(perceptron, group=lambda name: int(name.endswith("bias")))
    assert list(task.shapes) == ["1.weight", "3.weight", "1.bias", "3.bias"]
    assert task.dim == 59
    flat = torch.arange(59.0)
    views = task.views(flat)
    assert torch.equal(torch.cat([view.flatten() for view in views.values()]), flat)
    assert torch.equal(views["3.weight"], flat[30:50].view(4, 5))


def test_frozen_unused_and_tied_parameters() -> None:
    batch = sample(make_task(Tied))
    assert not any(name.startswith("frozen") for name in batch.task.shapes)
    assert {"frozen.weight", "frozen.bias", "features"} == set(batch.fixed)
    assert "second.weight" not in batch.task.shapes  # tied: one coordinate, not two
    for value in batch.fixed.values():  # fresh for every problem
        assert len(value.unique(dim=0)) == B
    grad = batch.task.views(batch.observe(batch.start, 0).grad)
    assert (grad["unused"] == 0).all()
    assert (grad["first.weight"] != 0).any()


def test_theta_0_follows_the_strategy() -> None:
    big = make_task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 300)), init="normal")
    assert scipy.stats.kstest(sample(big).start.flatten(), scipy.stats.norm(0, 0.01).cdf)[1] > 1e-3
    own = make_task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 300)))
    bound = 6**-0.5
    law = scipy.stats.uniform(-bound, 2 * bound)
    assert scipy.stats.kstest(sample(own).start.flatten(), law.cdf)[1] > 1e-3
    views = make_task(normalised, init="normal").views(
        sample(make_task(normalised, init="normal")).start
    )
    assert (views["1.weight"] == 1).all()  # normalisation layers keep their own
    assert (views["1.bias"] == 0).all()
    assert 0 < views["0.weight"].abs().max() < 0.1


def test_the_same_networks_in_other_units() -> None:
    task = make_task(normalised)
    plain, other = sample(task), sample(dataclasses.replace(task, unit_range=3.0))
    units = other.fixed["units of the parameters"]
    assert_close(units * other.start, plain.start)
    for view in task.views(units).values():
        assert (view == view.flatten(1)[:, :1].view(B, *[1] * (view.ndim - 1))).all()
    assert len(units.unique()) == B * len(task.shapes)
    assert 1 / 3 <= units.min() < 1 < units.max() <= 3
    params = other.start + 0.1
    expected, found = plain.score(units * params, 3), other.score(params, 3)
    assert_close(found.loss, expected.loss)
    assert_close(found.excess, expected.excess)
    assert_close(found.grad, units * expected.grad)
    assert_close(other.held_out(params), plain.held_out(units * params))


def test_unrolls_are_trained_on_minibatches_and_judged_by_the_score() -> None:
    batch = sample(make_task(perceptron))
    trained = run_rule(SGD(0.1), batch, 3, segment=2)[0]
    judged = record(SGD(0.1), batch, 3)
    assert torch.equal(trained.excess, trained.loss)
    assert torch.equal(judged.loss, trained.loss)
    params = batch.start
    for step in range(4):
        assert torch.equal(judged.excess[:, step], batch.score(params, step).excess)
        params = params - 0.1 * batch.observe(params, step).grad


# --- Minibatches ---------------------------------------------------------------------------------


def splitmix64(state: int) -> int:
    """Steele, Lea & Flood 2014 in integers of Python, as in Java's `SplittableRandom`."""
    word = 2**64 - 1
    mixed = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & word
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & word
    return mixed ^ (mixed >> 31)


def test_minibatches_are_splitmix64() -> None:
    streams = torch.tensor([0, 1234567, 2**62 - 1])
    for step in (0, 1, 499, 10**6):
        found = minibatch_indices(streams, step, 5, 60000)
        for stream, row in zip(streams.tolist(), found.tolist(), strict=True):
            for slot, index in enumerate(row):
                state = (stream + (step * 5 + slot + 1) * 0x9E3779B97F4A7C15) % 2**64
                assert index == (splitmix64(state) >> 33) * 60000 >> 31
    # The first number of the published sequence from the seed 1234567.
    assert splitmix64((1234567 + 0x9E3779B97F4A7C15) % 2**64) == 6457827717110365317


@pytest.mark.parametrize("num_examples", [1, 7, 1000])
def test_minibatches_are_uniform_over_examples_steps_and_streams(num_examples: int) -> None:
    streams = torch.randint(2**62, (20,), generator=seeded())
    index = torch.stack([minibatch_indices(streams, t, 50, num_examples) for t in range(100)])
    counts = torch.bincount(index.flatten(), minlength=num_examples)
    assert len(counts) == num_examples
    if num_examples > 1:
        assert scipy.stats.chisquare(counts).pvalue > 1e-3
        # Neighbours in slot, step and stream are independent.
        for axis in range(3):
            pairs = (
                index.narrow(axis, 0, index.shape[axis] - 1),
                index.narrow(axis, 1, index.shape[axis] - 1),
            )
            correlation = scipy.stats.pearsonr(*(part.flatten().double() for part in pairs))
            assert correlation.pvalue > 1e-3


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_minibatches_are_the_same_on_a_gpu() -> None:
    streams = torch.randint(2**62, (20,), generator=seeded())
    for step in (0, 1, 499):
        expected = minibatch_indices(streams, step, 128, 60000)
        assert torch.equal(minibatch_indices(streams.cuda(), step, 128, 60000).cpu(), expected)


def test_examples_are_shared_scaled_and_kept_as_bytes() -> None:
    pixels = torch.arange(24, dtype=torch.uint8).view(4, 6)
    data = Examples(pixels, torch.arange(4), scale=1 / 255)
    inputs, targets = data.take(torch.tensor([[3, 0], [1, 1]]), DOUBLE)
    assert_close(inputs, pixels[[3, 0, 1, 1]].view(2, 2, 6).double() / 255)
    assert targets.tolist() == [[3, 0], [1, 1]]
    tokens = Examples(pixels.long(), torch.arange(4))
    assert tokens.take(torch.tensor([1]), DOUBLE)[0].dtype == torch.int64
    assert pixels.max() == 23


def test_regression_has_a_loss_and_no_accuracy() -> None:
    inputs = torch.randn(20, 6, generator=seeded())
    data = Examples(inputs, inputs[:, :2])
    task = ModuleTask(lambda: nn.Linear(6, 2), nn.functional.mse_loss, data, data, batch_size=4)
    batch = task.sample(B, seeded())
    assert isinstance(batch, ModuleBatch)
    found = batch.held_out(batch.start)
    assert found.loss.isfinite().all()
    assert found.accuracy.isnan().all()
    outputs = functional_call(
        nn.Linear(6, 2), {k: v[0] for k, v in task.views(batch.start).items()}, (inputs,)
    )
    assert_close(found.loss[0], nn.functional.mse_loss(outputs, inputs[:, :2]))


class Changing(nn.Module):
    """It changes in place whatever it is given, but for its parameters."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, inputs: Tensor) -> Tensor:
        inputs /= 2
        self.calls += 1
        self.frozen.weight.data.mul_(0.5)
        outputs: Tensor = self.frozen(self.body(inputs)) * self.calls
        return outputs


@pytest.mark.parametrize("name", MODULES)
def test_what_a_module_changes_is_a_copy(name: str) -> None:
    batch = sample(make_task(lambda: Changing(MODULES[name]()), num_score=1000))
    kept = {key: value.clone() for key, value in (batch.fixed | {"": batch.start}).items()}
    seen = [(*batch.score(batch.start, 0), *batch.held_out(batch.start)) for _ in range(3)]
    assert all(map(torch.equal, seen[0] * 2, seen[1] + seen[2]))
    assert all(map(torch.equal, (batch.fixed | {"": batch.start}).values(), kept.values()))
    inputs, targets = batch.task.train.take(torch.arange(50), DOUBLE)
    for problem in range(B):
        outputs = load(batch, problem, batch.start)(inputs.clone())
        expected = nn.functional.cross_entropy(outputs, targets)
        assert_close(seen[0][2][problem], expected, rtol=1e-12, atol=1e-12)


def test_a_module_that_others_use_is_left_as_it_is() -> None:
    shared = normalised().eval()
    before = {key: value.clone() for key, value in shared.state_dict().items()}
    batch = sample(make_task(lambda: shared))
    batch.score(batch.start, 0)
    batch.held_out(batch.start)
    assert not shared.training
    assert [getattr(layer, "momentum", "") for layer in shared.children()][1::5] == [0.1, None]
    assert all(torch.equal(shared.state_dict()[key], value) for key, value in before.items())


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_draws_is_refused(name: str) -> None:
    batch = sample(make_task(lambda: nn.Sequential(MODULES[name](), nn.Dropout())))
    for method in ("observe", "score"):
        with pytest.raises(InputError, match=r"draws random numbers .* as dropout does"):
            getattr(batch, method)(batch.start, 0)


def doubling(outputs: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(outputs.double(), targets.double())


@pytest.mark.parametrize("loss", [nn.functional.cross_entropy, nn.functional.mse_loss, doubling])
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_loss_has_the_precision_of_the_parameters(
    loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype
) -> None:
    """Whatever that of the targets, which NumPy makes double."""
    targets = torch.randn(50, 4, generator=seeded(2), dtype=DOUBLE).softmax(1)
    train = Examples(torch.randn(50, 6, generator=seeded(), dtype=DOUBLE), targets)
    batch = sample(make_task(lambda: nn.Linear(6, 4), train=train, test=train), dtype=dtype)
    batch = dataclasses.replace(batch, task=dataclasses.replace(batch.task, loss=loss))
    scored = batch.score(batch.start, 0)
    assert {value.dtype for value in scored} == {dtype}
    exact = dataclasses.replace(batch, start=batch.start.double())
    assert_close(scored.excess.double(), exact.score(exact.start, 0).excess, rtol=1e-5, atol=1e-6)
    found = solve(batch, "small-networks", max_steps=2, guard=False)
    assert found.loss.dtype == dtype


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"torch.float64 in shape \[8\]; take its mean"),
        (lambda outputs, targets: 0.5, "got float"),
    ],
)
def test_a_loss_is_one_number(loss: Callable[..., Any], message: str) -> None:
    batch = sample(dataclasses.replace(make_task(perceptron), loss=loss))
    with pytest.raises(InputError, match=message):
        batch.observe(batch.start, 0)


class OneLogit(nn.Linear):
    def __init__(self) -> None:
        super().__init__(6, 1)


class OfTokens(nn.Sequential):
    """Outputs [N, T, V] for targets [N, T]."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(6, 20), nn.Unflatten(1, (4, 5)))


@pytest.mark.parametrize(
    ("module", "shape", "loss"),
    [
        (
            OneLogit,
            (),
            lambda y, t: nn.functional.binary_cross_entropy_with_logits(y[:, 0], t + 0.0),
        ),
        (OfTokens, (4,), lambda y, t: nn.functional.cross_entropy(y.flatten(0, 1), t.flatten())),
        (lambda: nn.Linear(6, 4), (), nn.functional.cross_entropy),
    ],
)
def test_only_outputs_of_classes_have_an_accuracy(
    module: Callable[[], nn.Module],
    shape: tuple[int, ...],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> None:
    targets = torch.randint(2, (30, *shape), generator=seeded(2))
    data = Examples(torch.randn(30, 6, generator=seeded()), targets)
    batch = sample(ModuleTask(module, loss, data, data))
    found = batch.held_out(batch.start)
    assert found.loss.isfinite().all()
    assert found.accuracy.isnan().all() == (module in (OneLogit, OfTokens))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"make_module": nn.Linear(2, 2)}, "make_module must make a module"),
        ({"make_module": lambda: nn.LazyLinear(2)}, "'weight' .* initialize lazy layers"),
        ({"make_module": lambda: nn.Linear(2, 2, device="meta")}, "'weight' .* on meta"),
        ({"make_module": lambda: nn.Linear(2, 2, dtype=torch.complex64)}, "of torch.complex64"),
        ({"batch_size": 0}, "batch_size"),
        ({"num_score": 0}, "num_score"),
        ({"init": "zeros"}, "init must be"),
        ({"init_std": -1.0}, "init_std"),
        ({"unit_range": 0.5}, "unit_range"),
        ({"make_module": nn.Flatten}, "no trainable parameter"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    task = make_task(perceptron)
    with pytest.raises(InputError, match=message):
        dataclasses.replace(task, **settings)


def test_a_task_without_test_examples_says_so() -> None:
    batch = sample(make_task(perceptron, test=None))
    with pytest.raises(InputError, match="no test examples"):
        batch.held_out(batch.start)


def test_examples_and_targets_must_be_as_many() -> None:
    with pytest.raises(InputError, match="got 3 and 2"):
        Examples(torch.zeros(3, 1), torch.zeros(2))


def test_examples_are_tensors() -> None:
    anything: Any = np.zeros(3)
    with pytest.raises(InputError, match=r"targets must be a tensor .* got ndarray"):
        Examples(torch.zeros(3, 1), anything)
