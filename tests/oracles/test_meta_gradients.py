"""First-order meta-gradients against plain autograd through the optimizee."""

import sys

import pytest
import torch
from draws import DOUBLE
from meta_gradient_cases import BATCHES, PRICE, VARIANTS, B, T, cotangents, make, step_rule
from torch import Tensor
from torch.nn.functional import linear, silu
from torch.testing import assert_close

from haltwise.halting import Halter
from haltwise.models import OptimizerModel
from haltwise.processes.signals import init_signals, measure_signals
from haltwise.rollout import backpropagate, unroll
from haltwise.tasks import TaskBatch

State = dict[str, Tensor]


def gradients(model: OptimizerModel) -> dict[str, Tensor]:
    found = {
        name: torch.zeros_like(weight) if weight.grad is None else weight.grad.clone()
        for name, weight in model.named_parameters()
    }
    model.zero_grad()
    return found


def raw_outputs(
    halter: Halter, features: Tensor, readout: Tensor, memory: State
) -> tuple[Tensor, State]:
    """One step of the halter, written out; its memory takes the read-out as data."""
    used = [features] * (halter.features is not None) + [readout] * halter.settings.readout
    inputs = value = torch.cat(used, dim=1)
    if halter.settings.memory:
        (weight,), (bias,) = halter.memory_weights, halter.memory_biases
        gates = linear(torch.cat((inputs.detach(), memory["hidden"]), 1), weight, bias)
        enter, forget, candidate, leave = gates.chunk(4, dim=1)
        cell = forget.sigmoid() * memory["cell"] + enter.sigmoid() * candidate.tanh()
        hidden = leave.sigmoid() * cell.tanh()
        memory, value = {"hidden": hidden, "cell": cell}, torch.cat((inputs, hidden), dim=1)
    *layers, last = zip(halter.weights, halter.biases, strict=True)
    for weight, bias in layers:
        value = silu(linear(value, weight, bias))
    return linear(value, *last), memory


def autograd_oracle(
    model: OptimizerModel,
    batch: TaskBatch,
    excess_weights: Tensor,
    output_weights: dict[str, Tensor],
    cut_every: int | None = None,
) -> dict[str, Tensor]:
    """Differentiate through the optimizee; only what rule and halter read is detached."""
    halter = model.halting.halter
    assert halter is not None
    params, state = batch.start, model.rule.init(batch.start)
    total = torch.zeros((), dtype=DOUBLE)
    last, recent = init_signals(params), {}
    if halter.features is not None:
        recent = halter.features.init(B, params)
    zeros = params.new_zeros(B, halter.settings.memory)
    memory = {"hidden": zeros, "cell": zeros}
    for step in range(T + 1):
        seen = batch.evaluate(params, step)
        total = total + (excess_weights[:, step] * seen.excess).sum()
        if step == T:
            break
        if cut_every and step % cut_every == 0:
            state = {name: value.detach() for name, value in state.items()}
        loss, grad = seen.loss.detach(), seen.grad.detach()
        update, readout, state = step_rule(model.rule, grad, state)
        signals, last = measure_signals(step, loss, grad, update.detach(), last)
        features = signals[:, :0]
        if halter.features is not None:
            extracted, recent = halter.features.extract(signals.unsqueeze(1), PRICE, recent)
            features = extracted.squeeze(1)
        raw, memory = raw_outputs(halter, features, readout, memory)
        for name, value in model.halting.method.outputs(raw, PRICE).items():
            total = total + (output_weights[name][:, step] * value).sum()
        params = params + update
    total.backward()
    return gradients(model)


@pytest.mark.parametrize(
    ("segment", "truncate"), [(1, False), (T + 5, False), (1, True), (3, True), (T, True)]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_meta_gradients_equal_autograd(variant: str, segment: int, truncate: bool) -> None:
    model, batch = make(**VARIANTS[variant]), BATCHES["noisy"]
    weights = cotangents(model)
    expected = autograd_oracle(model, batch, *weights, segment if truncate else None)
    assert all(value.any() for value in expected.values())
    unrolled = unroll(model, batch, T, PRICE, segment=segment)
    backpropagate(model, unrolled, *weights, truncate=truncate)
    assert_close(gradients(model), expected, rtol=1e-10, atol=1e-11)


def test_truncated_segments_may_go_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they do on a GPU."""
    module = sys.modules["haltwise.rollout.unroll"]
    monkeypatch.setattr(module, "_may_go_together", lambda model, unrolled: True)
    model, batch = make(), BATCHES["noisy"]
    weights = cotangents(model)
    expected = autograd_oracle(model, batch, *weights, 1)
    backpropagate(model, unroll(model, batch, T, PRICE, segment=1), *weights, truncate=True)
    assert_close(gradients(model), expected)


@pytest.mark.parametrize("part", ["excess", "hazard_logits", "hold_logits"])
def test_each_cotangent_alone_equals_autograd_on_a_deterministic_task(part: str) -> None:
    model, batch = make(), BATCHES["student-t"]
    excess, outputs = cotangents(model)
    weights = (
        excess * (part == "excess"),
        {name: value * (part == name) for name, value in outputs.items()},
    )
    expected = autograd_oracle(model, batch, *weights)
    backpropagate(model, unroll(model, batch, T, PRICE, segment=3), *weights)
    assert_close(gradients(model), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("variant", ["plain", "softmax", "adam"])
def test_a_graph_that_was_kept_gives_the_same_gradients(variant: str) -> None:
    model, batch = make(**VARIANTS[variant]), BATCHES["noisy"]
    found = []
    for graph in (False, True):
        unrolled = unroll(model, batch, T, PRICE, segment=3, graph=graph)
        assert (unrolled.outputs is not None) == graph
        assert not any(value.requires_grad for value in unrolled.trajectory.outputs.values())
        backpropagate(model, unrolled, *cotangents(model))
        found.append(gradients(model))
    assert_close(found[1], found[0], rtol=1e-12, atol=1e-13)


def test_truncation_matters_to_the_rule() -> None:
    model = make()
    unrolled = unroll(model, BATCHES["noisy"], T, PRICE, segment=2)
    found = []
    for truncate in (False, True):
        backpropagate(model, unrolled, *cotangents(model), truncate=truncate)
        found.append(gradients(model)["rule.weights.0"])
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_meta_gradients_are_added_to_what_is_there() -> None:
    model = make()
    unrolled = unroll(model, BATCHES["noisy"], T, PRICE, segment=3)
    found = []
    for times in (1, 2):
        for _ in range(times):
            backpropagate(model, unrolled, *cotangents(model))
        found.append(gradients(model))
    assert_close(found[1], {name: 2 * value for name, value in found[0].items()})


@pytest.mark.parametrize("graph", [False, True])
def test_the_gradient_of_a_selection_is_that_of_its_problems(graph: bool) -> None:
    model, kept = make(), torch.tensor([2, 0])
    unrolled = unroll(model, BATCHES["noisy"], T, PRICE, segment=3, graph=graph)
    excess, outputs = cotangents(model)
    of_kept = {name: value[kept] for name, value in outputs.items()}
    backpropagate(model, unrolled.select(kept), excess[kept], of_kept)
    found = gradients(model)
    for value in (excess, *outputs.values()):
        value[1] = 0
    backpropagate(model, unrolled, excess, outputs)
    assert_close(found, gradients(model), rtol=1e-10, atol=1e-12)
