"""The way of every public PyTorch version: `nn.LSTMCell`, step by step, through autograd.

The same maths as Haltwise: the rule's features and read-out, the halter, first-order
meta-gradients, a state cut every `segment` steps. One graph holds it all.
"""

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor, nn
from workloads import Workload, objective

from haltwise._kernels import preprocess_gradient
from haltwise.halting.features.optimization import OptimizationFeatures
from haltwise.processes.signals import init_signals, measure_signals
from haltwise.tasks.least_squares import LeastSquaresBatch
from haltwise.tasks.module import ModuleBatch

__all__ = ["NaiveOptimizer"]


def _loss(workload: Workload) -> Callable[[Tensor, int], Tensor]:
    """Excess losses [B] of parameters [B, D] at a step, differentiable."""
    batch = workload.batch
    if isinstance(batch, LeastSquaresBatch):

        def squares(params: Tensor, step: int) -> Tensor:
            del step  # deterministic
            residual = (batch.factor @ params.unsqueeze(-1)).squeeze(-1) - batch.target
            return batch.scale * residual.square().sum(-1)

        return squares
    assert isinstance(batch, ModuleBatch)
    assert batch.num_problems == 1

    def network(params: Tensor, step: int) -> Tensor:
        inputs, targets = batch.minibatch(step)
        return batch.task.mean_loss(params[0], {}, inputs[0], targets[0]).unsqueeze(0)

    return network


def _cell(weight: Tensor, bias: Tensor) -> nn.LSTMCell:
    size = weight.shape[0] // 4
    cell = nn.LSTMCell(weight.shape[1] - size, size, dtype=weight.dtype)
    with torch.no_grad():
        cell.weight_ih.copy_(weight[:, :-size])
        cell.weight_hh.copy_(weight[:, -size:])
        cell.bias_ih.copy_(bias)
        cell.bias_hh.zero_()
    cell.bias_hh.requires_grad_(False)
    return cell


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
    layer.load_state_dict({"weight": weight.detach(), "bias": bias.detach()})
    return layer


def _stacked(cells: list[nn.LSTMCell]) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the cells' weights, input and hidden side by side, and of their biases."""
    weights = [torch.cat((cell.weight_ih.grad, cell.weight_hh.grad), 1) for cell in cells]
    return weights, [cell.bias_ih.grad for cell in cells]


@final
class NaiveOptimizer(nn.Module):
    """A copy of the workload's learned optimizer, made of PyTorch's own modules."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        self.workload, self.loss = workload, _loss(workload)
        rule, halter = workload.optimizer.rule, workload.optimizer.halting.halter
        self.output_scale = rule.output_scale
        self.cells = nn.ModuleList(map(_cell, rule.weights, rule.biases))
        self.readout = _linear(rule.readout_weight, rule.readout_bias)
        self.features = OptimizationFeatures()
        self.memory_cell = _cell(halter.memory_weights[0], halter.memory_biases[0])
        layers = list(map(_linear, halter.weights, halter.biases))
        self.perceptron = nn.Sequential(layers[0], nn.SiLU(), layers[1], nn.SiLU(), layers[2])

    def gradients(self) -> list[Tensor]:
        """Gradients in the order and the shapes of the learned optimizer's parameters."""
        weights, biases = _stacked([*self.cells])
        memory_weights, memory_biases = _stacked([self.memory_cell])
        layers = [layer for layer in self.perceptron if isinstance(layer, nn.Linear)]
        found = [
            *weights,
            *biases,
            self.readout.weight.grad,
            self.readout.bias.grad,
            *memory_weights,
            *memory_biases,
            *(layer.weight.grad for layer in layers),
            *(layer.bias.grad for layer in layers),
        ]
        own = [name for name, _ in self.workload.optimizer.named_parameters()]
        order = ["rule.weights", "rule.biases", "rule.readout_weight", "rule.readout_bias"]
        order += [f"halter.{name}" for name in ("memory_weights", "memory_biases")]
        order += ["halter.weights", "halter.biases"]
        ranked = sorted(own, key=lambda name: next(i for i, o in enumerate(order) if o in name))
        by_name = dict(zip(ranked, found, strict=True))
        return [by_name[name] for name in own]

    def update(
        self, grad: Tensor, states: list[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, list[tuple[Tensor, Tensor]]]:
        """Updates [B, D], pooled hidden states [B, H] and new states [B D, H] of the layers."""
        mean = grad.mean(-1, keepdim=True).expand_as(grad)
        value = torch.cat((preprocess_gradient(grad), preprocess_gradient(mean)), -1).flatten(0, 1)
        new = []
        for cell, state in zip(self.cells, states, strict=True):
            new.append(cell(value, state))
            value = new[-1][0]
        direction, log_scale, own, shared = self.readout(value).unflatten(0, grad.shape).unbind(-1)
        normalized = grad / grad.square().mean(-1, keepdim=True).sqrt()
        mean = normalized.mean(-1, keepdim=True)
        step = direction + own * (normalized - mean) + shared * mean
        update = self.output_scale * step * log_scale.exp()
        return update, value.unflatten(0, grad.shape).mean(1), new

    def halter_step(self, inputs: Tensor, memory: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Raw outputs [B, 3] of the halter and its new memory."""
        memory = self.memory_cell(inputs.detach(), memory)
        return self.perceptron(torch.cat((inputs, memory[0]), -1)), memory

    def meta_gradient(self) -> Tensor:
        """Forward and backward of a whole unroll into `.grad`; the objective."""
        work = self.workload
        batch, price, params = work.batch, work.price, work.batch.start.clone()
        num_problems, dim = params.shape
        zeros = params.new_zeros(num_problems * dim, self.cells[0].hidden_size)
        states = [(zeros, zeros) for _ in self.cells]
        zeros = params.new_zeros(num_problems, self.memory_cell.hidden_size)
        memory = (zeros, zeros)
        signal_memory = init_signals(params)
        feature_memory = self.features.init(num_problems, params)
        params.requires_grad_()
        losses, outputs = [], []
        for step in range(work.num_steps):
            if step % work.segment == 0:
                states = [(h.detach(), c.detach()) for h, c in states]
            loss = self.loss(params, step)
            losses.append(loss)
            (grad,) = torch.autograd.grad(loss.sum(), params, retain_graph=True)
            update, readout, states = self.update(grad, states)
            with torch.no_grad():
                observed = loss + batch.reference_loss
                signals, signal_memory = measure_signals(
                    step, observed, grad, update.detach(), signal_memory
                )
                features, feature_memory = self.features.extract(
                    signals.unsqueeze(1), price, feature_memory
                )
            raw, memory = self.halter_step(torch.cat((features[:, 0], readout), -1), memory)
            outputs.append(raw)
            params = params + update
        losses.append(self.loss(params, work.num_steps))
        hazard_logits = torch.stack(outputs, 1)[..., :2] - 2
        objective_ = objective(torch.stack(losses, 1), hazard_logits, price).mean()
        objective_.backward()
        return objective_.detach()
