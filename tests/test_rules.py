"""Rules equal `torch.optim`, `nn.LSTMCell` and L2L's formulas; all of them keep one contract."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from haltwise import update_rules as rules
from haltwise._core.errors import InputError
from haltwise._kernels import preprocess_gradient
from haltwise.rollout.record import run_rule
from haltwise.tasks import family
from haltwise.testing import check_update_rule
from haltwise.update_rules import (
    LSTMRule,
    MLPRule,
    PartitionedRule,
    PooledGradient,
    State,
    UpdateRule,
    UpdateStep,
    backpropagate,
    mlp,
    prepare,
    update_,
    update_chunk,
)

DOUBLE = torch.float64
B, D = 4, 3
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"learning_rate": 0.1}),
    "momentum": ("sgd", {"learning_rate": 0.1, "momentum": 0.9}),
    "nesterov": ("sgd", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
    "rmsprop": ("rmsprop", {"learning_rate": 0.1, "decay": 0.9}),
    "adam": ("adam", {"learning_rate": 0.1, "beta1": 0.8, "beta2": 0.95}),
    "lstm": ("lstm", {"hidden_size": 5, "shared_gradient": False}),
    "lstm shared": ("lstm", {"hidden_size": 5, "num_layers": 1, "shared_gradient": True}),
    "lstm linear": (
        "lstm",
        {"hidden_size": 5, "direct_gradient": False, "linear_readout": True},
    ),
    "mlp": ("mlp", {"hidden_size": 5}),
    "partitioned": (
        "partitioned",
        {
            "sizes": [2, 1],
            "rules": [["lstm", {"hidden_size": 4}], ["adam", {"learning_rate": 0.1}]],
        },
    ),
}


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


def make(case: str, **changes: Any) -> UpdateRule:
    name, settings = CASES[case]
    rule = rules.make(name, settings | changes, seeded())
    return rule.double().requires_grad_(False) if isinstance(rule, nn.Module) else rule


def run(rule: UpdateRule, grads: Tensor, state: State | None = None) -> UpdateStep:
    """Every update [B, K, D] and read-out [B, K, R], by calling `update` once a gradient."""
    state = rule.init(grads[:, 0]) if state is None else state
    updates, readouts = [], []
    for grad in grads.unbind(1):
        update, readout, state = rule.update(grad, state)
        updates.append(update)
        readouts.append(readout)
    return UpdateStep(torch.stack(updates, 1), torch.stack(readouts, 1), state)


def assert_steps_close(found: UpdateStep, expected: UpdateStep, rtol: float = 1e-12) -> None:
    assert_close(found.update, expected.update, rtol=rtol, atol=1e-14)
    assert_close(found.readout, expected.readout, rtol=rtol, atol=1e-14)
    assert_close(found.state, expected.state, rtol=rtol, atol=1e-14)


def test_every_named_rule_is_tested_here() -> None:
    runs = set(rules.rules()) - {"foreign"}  # that one only refuses, see test_monitor.py
    assert {name for name, _ in CASES.values()} == runs


@pytest.mark.parametrize("case", CASES)
class TestContract:
    """What every rule promises."""

    def test_the_public_check_passes(self, case: str) -> None:
        for dim in (D, 1) if case != "partitioned" else (D,):
            check_update_rule(make(case), dim=dim)

    def test_problems_do_not_mix(self, case: str) -> None:
        rule, grads, others = make(case), randn(B, 3, D), [0, 2, 3]
        clean = run(rule, grads)
        grads[1, 1] = torch.nan
        poisoned = run(rule, grads)
        assert torch.equal(clean.update[others], poisoned.update[others])
        assert torch.equal(clean.readout[others], poisoned.readout[others])

    def test_permuting_coordinates_permutes_updates_and_keeps_the_readout(self, case: str) -> None:
        rule, grads = make(case), randn(B, 4, D)
        order = [1, 0, 2] if case == "partitioned" else [2, 0, 1]  # within its groups alone
        plain, permuted = run(rule, grads), run(rule, grads[..., order])
        assert_close(permuted.update, plain.update[..., order], rtol=1e-12, atol=1e-14)
        assert_close(permuted.readout, plain.readout, rtol=1e-12, atol=1e-14)

    def test_float32_agrees_with_float64(self, case: str) -> None:
        rule, grads = make(case), randn(B, 10, D)
        expected = run(rule, grads).update
        single = rule.float() if isinstance(rule, nn.Module) else rule
        found = run(single, grads.float()).update
        assert found.dtype == torch.float32
        assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_rule_of_two_functions_serves_every_host_but_chunks() -> None:
    rule = ScaledDescent()
    assert rule.readout_size == 0
    check_update_rule(rule)
    grads = randn(B, 5, D)
    state = rule.init(grads[:, 0])
    assert prepare(rule) is rule
    assert torch.equal(update_(rule, grads[:, 0], state).update, -0.01 * grads[:, 0])
    cotangents = UpdateStep(randn(B, 5, D, seed=2), grads.new_empty(B, 5, 0), {})
    assert backpropagate(rule, grads, state, cotangents, wants_state=True) == {}
    expected = -(grads * cotangents.update).sum()
    assert_close(rule.scale.grad, expected, rtol=1e-12, atol=0)
    with pytest.raises(InputError, match=r"ScaledDescent moves all coordinates .* `update_chunk`"):
        update_chunk(rule, grads[:, 0], state, PooledGradient.of(grads[:, 0]))
    batch = family("regression-2d").sample(B, seeded())
    recording = run_rule(rule, batch, num_steps=4, segment=2)[0]
    assert (recording.excess[:, -1] < recording.excess[:, 0]).all()


class ScaledDescent(nn.Module, UpdateRule):
    """Gradient descent with a learned rate."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.01, dtype=DOUBLE))

    def init(self, params: Tensor) -> State:
        return {}

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return UpdateStep.without_readout(-self.scale.to(grad.dtype) * grad, state)


@pytest.mark.parametrize(
    ("case", "reference", "settings"),
    [
        ("sgd", torch.optim.SGD, {}),
        ("momentum", torch.optim.SGD, {"momentum": 0.9}),
        ("nesterov", torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
        ("rmsprop", torch.optim.RMSprop, {"alpha": 0.9}),
        ("adam", torch.optim.Adam, {"betas": (0.8, 0.95)}),
    ],
)
def test_fifty_steps_on_a_quadratic_equal_torch_optim(
    case: str, reference: Callable[..., torch.optim.Optimizer], settings: dict[str, Any]
) -> None:
    factor, start = randn(D, D), randn(1, D, seed=2)
    hessian = factor.T @ factor / 4 + torch.eye(D, dtype=DOUBLE)
    rule, params = make(case), start.clone()
    state = rule.init(params)
    twin = nn.Parameter(start.clone())
    optimizer = reference([twin], lr=0.1, **settings)
    for _ in range(50):
        update, _, state = rule.update(params @ hessian, state)
        params = params + update
        twin.grad = twin.detach() @ hessian
        optimizer.step()
        assert_close(params, twin.detach(), rtol=0, atol=1e-12)
    assert not torch.equal(params, start)


def test_adam_counts_the_steps_of_each_problem() -> None:
    rule, late = make("adam"), torch.tensor([0, 1])
    old = run(rule, randn(2, 3, D)).state
    fresh, grad = rule.init(randn(2, D)), randn(2, D, seed=3)
    mixed = {name: torch.cat((old[name], fresh[name])) for name in old}
    step = rule.update(torch.cat((grad, grad)), mixed)
    assert torch.equal(step.update[late], rule.update(grad, old).update)
    assert torch.equal(step.update[late + 2], rule.update(grad, fresh).update)


# --- The rule of normalised momenta --------------------------------------------------------------


def trained_mlp(**settings: Any) -> MLPRule:
    """One far from its start."""
    rule = make("mlp", **settings)
    assert isinstance(rule, MLPRule)
    for weight in rule.parameters():
        weight.add_(randn(*weight.shape, seed=weight.numel()))
    return rule


def test_a_new_mlp_rule_is_nearly_adam() -> None:
    rule, grads = make("mlp", gain=0.0), randn(B, 30, D)
    assert isinstance(rule, MLPRule)
    with torch.no_grad():
        for weight in rule.layers[-1].parameters():
            weight.zero_()
    adam = rules.make("adam", {"learning_rate": 0.01, "beta1": 0.9, "beta2": 0.99})
    # The network's bounds turn a weight of 1 into 2 tanh(1 / 2).
    expected = 2 * math.tanh(0.5) * run(adam, grads).update
    assert_close(run(rule, grads).update, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("factor", [1e-12, -1.0, 1e9])
def test_an_mlp_rule_moves_alike_in_any_unit_of_the_loss_and_against_it(factor: float) -> None:
    rule, grads = trained_mlp(), randn(B, 20, D)
    plain, scaled = run(rule, grads), run(rule, factor * grads)
    sign = math.copysign(1, factor)
    assert_close(scaled.update, sign * plain.update, rtol=1e-6, atol=0)
    assert_close(scaled.readout, plain.readout, rtol=1e-6, atol=0)


def test_updates_of_an_mlp_rule_are_bounded() -> None:
    rule = trained_mlp(gain=3.0)
    grads = randn(B, 40, D) * 10 ** (8 * randn(B, 40, 1, seed=2))
    bound = rule.output_scale * mlp.LARGEST * math.exp(4) * 2 * 4 * 4
    assert (run(rule, grads).update.abs() <= bound).all()


def scales(grads: Tensor, gain: float) -> Tensor:
    """By which the updates of an MLP rule are multiplied, shape [B, K], in NumPy."""
    found = np.zeros(grads.shape[:2])
    for problem, steps in enumerate(grads.numpy()):
        momentum, log_scale = np.zeros(grads.shape[2]), 0.0
        for number, grad in enumerate(steps):
            size = np.linalg.norm(grad) * np.linalg.norm(momentum)
            cosine = grad @ momentum / size if size else 0.0
            low, high = mlp.USUAL
            rises, falls = max(cosine - high, 0), max(low - cosine, 0)
            log_scale += gain * (mlp.RISE * rises - falls)
            log_scale = min(max(log_scale, math.log(mlp.SMALLEST)), math.log(mlp.LARGEST))
            found[problem, number] = math.exp(log_scale)
            momentum = 0.9 * momentum + 0.1 * grad
    return torch.from_numpy(found)


@pytest.mark.parametrize("gain", [0.2, 5.0])
def test_the_scale_of_an_mlp_rule_follows_the_angle_of_gradients(gain: float) -> None:
    grads = 1e3 * (randn(B, 30, D) + randn(B, 1, D, seed=2))
    grads[0] *= (-1.0) ** torch.arange(30).view(-1, 1)
    plain, found = (run(trained_mlp(gain=own), grads).update for own in (0.0, gain))
    expected = scales(grads, gain)
    assert_close(found, expected.unsqueeze(-1) * plain, rtol=1e-9, atol=0)
    assert (expected.amax(1) > 1.2).any()
    assert (expected.amin(1) < 0.9).any()


@pytest.mark.parametrize(("sign", "end"), [(1, mlp.LARGEST), (-1, mlp.SMALLEST)])
def test_the_scale_ends_at_its_bounds(sign: int, end: float) -> None:
    signs = torch.tensor([float(sign)] * 200, dtype=DOUBLE).cumprod(0).view(1, -1, 1)
    plain, found = (run(trained_mlp(gain=own), signs * randn(1, 1, D)) for own in (0.0, 0.2))
    assert_close(found.update[:, -1], end * plain.update[:, -1], rtol=1e-9, atol=0)
    assert (plain.state["log_scale"] == 0).all()


def test_an_mlp_rule_without_its_sums_is_refused() -> None:
    rule, grad = make("mlp"), randn(B, D)
    with pytest.raises(InputError, match="needs its sums over all coordinates"):
        update_chunk(rule, grad, rule.init(grad), PooledGradient.of(grad))


def test_an_mlp_rule_begins_at_the_first_gradient_that_is_not_zero() -> None:
    rule, grads = trained_mlp(), randn(B, 6, D)
    late = torch.cat((torch.zeros(B, 3, D, dtype=DOUBLE), grads), 1)
    found = run(rule, late).update
    assert (found[:, :3] == 0).all()
    assert_close(found[:, 3:], run(rule, grads).update, rtol=1e-9, atol=1e-12)


# --- Rules of groups -----------------------------------------------------------------------------


def test_each_group_is_moved_by_its_own_rule_alone() -> None:
    rule, grads = make("partitioned"), randn(B, 5, D)
    assert isinstance(rule, PartitionedRule)
    found = run(rule, grads)
    first, second = run(rule.rules[0], grads[..., :2]), run(rule.rules[1], grads[..., 2:])
    assert torch.equal(found.update, torch.cat((first.update, second.update), -1))
    assert torch.equal(found.readout, first.readout)  # Adam has none


def test_the_weights_of_all_groups_are_trained_and_saved() -> None:
    settings = {"sizes": [2, 1], "rules": [["lstm", {"hidden_size": 4}]] * 2}
    rule = rules.make("partitioned", settings, seeded())
    assert isinstance(rule, PartitionedRule)
    single = LSTMRule(4, generator=seeded())
    assert len(list(rule.parameters())) == 2 * len(list(single.parameters()))
    updates, _, _ = run(rule, randn(B, 3, D).float(), rule.init(randn(B, D).float()))
    updates.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in rule.parameters())
    again = rules.make("partitioned", settings, seeded(2))
    assert isinstance(again, PartitionedRule)
    again.load_state_dict(rule.state_dict())
    grads = randn(B, 3, D).float()
    assert torch.equal(run(again, grads).update, run(rule, grads).update)


def test_groups_that_do_not_fill_the_problem_are_refused() -> None:
    with pytest.raises(InputError, match=r"\[2, 1\] coordinates do not make up 4"):
        make("partitioned").init(randn(B, 4))


# --- The LSTM rule -------------------------------------------------------------------------------


def l2l_formula(gradient: float, log_range: float) -> tuple[float, float]:
    """Andrychowicz et al. 2016, appendix A, as printed."""
    if abs(gradient) >= math.exp(-log_range):
        return math.log(abs(gradient)) / log_range, math.copysign(1, gradient)
    return -1.0, math.exp(log_range) * gradient


def test_preprocessing_equals_the_two_branches_of_l2l() -> None:
    magnitudes = torch.logspace(-30, 30, 301, dtype=DOUBLE)
    grads = torch.cat((magnitudes, -magnitudes, torch.zeros(1, dtype=DOUBLE)))
    expected = torch.tensor([l2l_formula(grad, 10.0) for grad in grads.tolist()], dtype=DOUBLE)
    assert_close(preprocess_gradient(grads), expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(
        preprocess_gradient(grads.view(3, -1)),
        preprocess_gradient(grads).view(3, -1, 2),
    )


@pytest.mark.parametrize("sign", [1, -1])
def test_preprocessing_is_continuous_at_the_threshold(sign: int) -> None:
    threshold = sign * math.exp(-10) * (1 + torch.tensor([-1e-9, 0, 1e-9], dtype=DOUBLE))
    expected = torch.tensor([-1.0, sign], dtype=DOUBLE).expand(3, 2)
    assert_close(preprocess_gradient(threshold), expected, rtol=0, atol=2e-9)


@pytest.mark.parametrize("reads_out", ["scaled", "direct", "linear"])
@pytest.mark.parametrize("shared_gradient", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("hidden_size", [1, 5, 20])
def test_lstm_rule_equals_a_stack_of_torch_cells(
    hidden_size: int, num_layers: int, shared_gradient: bool, reads_out: str
) -> None:
    direct_gradient, linear_readout = reads_out == "direct", reads_out == "linear"
    rule = LSTMRule(
        hidden_size,
        num_layers,
        shared_gradient=shared_gradient,
        direct_gradient=direct_gradient,
        linear_readout=linear_readout,
        output_scale=0.3,
        generator=seeded(),
    ).double()
    rule.requires_grad_(False)
    assert (rule.readout_bias is None) == linear_readout
    if rule.readout_bias is not None:
        rule.readout_bias.add_(randn(len(rule.readout_bias), seed=5))
    cells = []
    for weight, bias in zip(rule.weights, rule.biases, strict=True):
        cell = nn.LSTMCell(weight.shape[1] - hidden_size, hidden_size, dtype=DOUBLE)
        cell.requires_grad_(False)
        bias.add_(randn(len(bias), seed=6))
        for target, value in zip(
            cell.parameters(),
            (weight[:, :-hidden_size], weight[:, -hidden_size:], bias, 0 * bias),
            strict=True,
        ):
            target.copy_(value)
        cells.append(cell)

    grads = randn(B, 5, D) * 10 ** randn(B, 5, D, seed=2)
    found = run(rule, grads)
    for problem in range(B):
        zeros = (torch.zeros(1, hidden_size, dtype=DOUBLE),) * 2
        memory = dict.fromkeys(itertools.product(range(D), range(num_layers)), zeros)
        for step in range(5):
            tops = []
            for coordinate in range(D):
                value = preprocess_gradient(grads[problem, step, coordinate]).view(1, 2)
                if shared_gradient:
                    mean = preprocess_gradient(grads[problem, step].mean()).view(1, 2)
                    value = torch.cat((value, mean), 1)
                for layer, cell in enumerate(cells):
                    state = cell(value, memory[coordinate, layer])
                    memory[coordinate, layer], value = state, state[0]
                read_out = rule.readout_weight @ value[0]
                if rule.readout_bias is not None:
                    read_out += rule.readout_bias
                direction, *others = read_out.tolist()
                log_scale, *direct = others or [0.0]
                if direct_gradient:
                    grad = grads[problem, step]
                    normalized = (grad / grad.square().mean().sqrt()).tolist()
                    mean = sum(normalized) / D
                    direction += direct[0] * (normalized[coordinate] - mean) + direct[1] * mean
                expected = 0.3 * direction * math.exp(log_scale)
                assert abs(found.update[problem, step, coordinate] - expected) < 1e-12
                tops.append(value[0])
            assert_close(found.readout[problem, step], sum(tops) / D, rtol=1e-12, atol=1e-14)


def test_a_gradient_of_zeros_moves_by_the_bias_path_alone() -> None:
    rule = LSTMRule(4, generator=seeded())  # float32, where 1 / 0 would be infinite
    update = rule.update(torch.zeros(2, 3), rule.init(torch.zeros(2, 3))).update
    assert update.isfinite().all()
    rule.readout_weight.data[0] = 0
    update = rule.update(torch.zeros(2, 3), rule.init(torch.zeros(2, 3))).update
    assert (update == 0).all()


def test_lstm_weights_are_drawn_from_the_generator() -> None:
    one, same, other = (LSTMRule(3, generator=seeded(seed)) for seed in (1, 1, 2))
    for name, value in one.state_dict().items():
        assert torch.equal(value, same.state_dict()[name])
        if "weight" in name:
            assert not torch.equal(value, other.state_dict()[name])


# --- Settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sgd", {"learning_rate": 0.0}, "learning_rate"),
        ("sgd", {"learning_rate": -0.1}, "learning_rate"),
        ("adam", {"learning_rate": math.nan}, "learning_rate"),
        ("sgd", {}, "learning_rate"),
        ("sgd", {"learning_rate": 0.1, "momentum": -0.5}, "momentum"),
        ("sgd", {"learning_rate": 0.1, "nesterov": True}, "momentum"),
        ("rmsprop", {"learning_rate": 0.1, "decay": 1.0}, "decay"),
        ("rmsprop", {"learning_rate": 0.1, "epsilon": -1e-8}, "epsilon"),
        ("adam", {"learning_rate": 0.1, "beta1": 1.0}, "beta1"),
        ("adam", {"learning_rate": 0.1, "beta2": -0.1}, "beta2"),
        ("adam", {"learning_rate": 0.1, "epsilon": -1e-8}, "epsilon"),
        ("adam", {"learning_rate": 0.1, "momentum": 0.9}, "momentum"),
        ("lstm", {"hidden_size": 0}, "hidden_size"),
        ("lstm", {"num_layers": 0}, "num_layers"),
        ("lstm", {"learning_rate": 0.1}, "learning_rate"),
        ("partitioned", {"sizes": [1], "rules": []}, "1 sizes and 0 rules"),
        ("partitioned", {"sizes": [0], "rules": [["sgd", {"learning_rate": 1}]]}, "sizes"),
        ("partitioned", {"sizes": [3], "rules": [["sgd", {}]]}, "learning_rate"),
    ],
)
def test_bad_settings_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        rules.make(name, settings)


def test_an_unknown_rule_suggests_the_near_names() -> None:
    with pytest.raises(InputError, match=r"unknown update rule 'adan'; did you mean 'adam'\?"):
        rules.make("adan", {})
