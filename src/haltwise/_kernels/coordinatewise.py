"""The coordinatewise LSTM optimizer on flat coordinates, fused on the CPU.

B problems of D coordinates each make N = B D rows; L layers of H units, T steps. A row reads
features of its gradient; its update is read out of the top layer:

    g = scale exp(b) (a + k (n - mean n) + l mean n),   n = gamma / rms gamma

with (a, b, k, l) = weight h + bias, and means over the problem's coordinates.
"""

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, final

import torch
from torch import Tensor, nn

from haltwise._core.tensors import log_rms
from haltwise._kernels import fused, native
from haltwise._kernels.lstm import lstm_sequence
from haltwise._kernels.operands import (
    LOG_RANGE,
    Operand,
    require_dims,
    require_operand,
    state_operands,
)

if TYPE_CHECKING:
    from haltwise._kernels.fused.layers import FusedLayers

__all__ = ["Coordinatewise", "preprocess_gradient"]

_MAX_ROW_STEPS = 2**15  # of a graph on the CPU: some 70 MiB

Pooled = tuple[Tensor, Tensor]
"""Mean and log root mean square of a gradient over all of a problem's coordinates."""


def preprocess_gradient(grad: Tensor) -> Tensor:
    """Scale-free features of a gradient: magnitude on a log scale, and sign (L2L, appendix A).

        (log |g| / p, sign g)   where |g| >= exp(-p), p = 10
        (-1, exp(p) g)          elsewhere

    Args:
        grad: Any shape [...].

    Returns:
        Shape [..., 2].
    """
    threshold = math.exp(-LOG_RANGE)
    magnitude = grad.abs().clamp_min(threshold).log() / LOG_RANGE
    sign = (grad / threshold).clamp(-1, 1)  # both branches at once: sign g, or exp(p) g
    sign = nn.functional.hardshrink(sign, 1e-20)  # subnormals would slow down what reads it
    return torch.stack((magnitude, sign), dim=-1)


@final
@dataclass(eq=False)
class Coordinatewise:
    """The optimizer's parameters, and its steps."""

    weights: list[Tensor]
    """L tensors [4H, fan_in + H]."""
    biases: list[Tensor]
    """L tensors [4H]."""
    readout_weight: Tensor
    """Shape [4, H], or [2, H] where k and l are zero, or [1, H] where b is, too."""
    readout_bias: Tensor
    """Shape [4], [2] or [1]."""
    scale: float
    """Factor of the updates."""

    prepared: "native.Layers | FusedLayers | None" = None
    """The parameters for a kernel, if they were checked beforehand."""

    def prepare(self) -> Self:
        """The same for many steps, for which the parameters are checked once and for all.

        Their values may change between these.

        Raises:
            InputError: They do not fit each other.
        """
        layers = self._layers()
        if isinstance(layers, native.Layers):
            layers.watch()
        elif layers is not None:
            layers.packed()  # at once, for a graph may be captured around the steps
        return replace(self, prepared=layers)

    def _layers(self) -> "native.Layers | FusedLayers | None":
        """For a kernel; None where none runs."""
        if self.prepared is not None:
            return self.prepared
        bias = self.readout_bias
        readout = self.readout_weight, bias, self.scale
        size, num_layers = self.readout_weight.shape[-1], len(self.biases)
        if fused.serves(bias.device, bias.dtype, size, num_layers):
            from haltwise._kernels.fused.layers import FusedLayers

            return FusedLayers(self.weights, self.biases, readout)
        if native.serves(bias):
            return native.Layers(self.weights, self.biases, readout)
        return None

    def step(
        self,
        grad: Tensor,
        hidden: Tensor,
        cell: Tensor,
        pooled: Pooled | None = None,
        *,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take one step, without a graph.

        Args:
            grad: Shape [B, D].
            hidden: Shape [B, D, L, H].
            cell: Shape [B, D, L, H].
            pooled: Of the whole gradient, each [B], if `grad` is not all of it.
            in_place: Whether the new state may take the memory of the old.

        Returns:
            Updates [B, D]; the top layer's means over coordinates [B, H]; the state after the step.

        Raises:
            InputError: Shapes, dtypes or devices do not fit each other, or a tensor is not a
                plain one.
        """
        if pooled is not None:
            shape = require_dims("the gradient", grad, "BD")[:1]
            self._require([("the mean", pooled[0], shape), ("the log_rms", pooled[1], shape)])
        layers = self._layers()
        if layers is None:
            with torch.no_grad():
                return self.differentiable_step(grad, hidden, cell, pooled)
        if isinstance(layers, native.Layers):
            levels = None if pooled is None else _levels(*pooled)
            return native.step(layers, grad, hidden, cell, levels, in_place=in_place)
        from haltwise._kernels.fused import rows
        from haltwise._kernels.fused.signals import pool

        if pooled is None:
            grad = layers.operand("the gradient", grad, require_dims("the gradient", grad, "BD"))
        levels = pool(grad) if pooled is None else _levels(*pooled)
        return rows.step(layers, grad, hidden, cell, levels, in_place=in_place)

    def differentiable_step(
        self, grad: Tensor, hidden: Tensor, cell: Tensor, pooled: Pooled | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`step`, differentiable in the parameters and the state."""
        problems = require_dims("the gradient", grad, "BD")
        state_shape = *problems, len(self.biases), self.readout_weight.shape[-1]
        self._require(
            [("the gradient", grad, problems), *state_operands(hidden, cell, state_shape)]
        )
        if pooled is not None:
            pooled = pooled[0].unsqueeze(1), pooled[1].unsqueeze(1)
        updates, tops, hidden, cell = self._replay(grad.unsqueeze(1), hidden, cell, pooled)
        return updates.squeeze(1), tops.squeeze(1).mean(-2), hidden, cell

    def _replay(
        self, grads: Tensor, hidden: Tensor, cell: Tensor, pooled: Pooled | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """T steps by PyTorch's operations: updates, the top layer's outputs, the state after."""
        inputs = self.inputs(grads, pooled).transpose(0, 1).flatten(1, 2)
        state = hidden.flatten(0, 1), cell.flatten(0, 1)
        outputs, *last = lstm_sequence(inputs, *state, self.weights, self.biases)
        tops = outputs.unflatten(1, hidden.shape[:2]).transpose(0, 1)
        updates = self.read_out(tops, grads, pooled)
        return updates, tops, *(value.view(hidden.shape) for value in last)

    def inputs(self, grad: Tensor, pooled: Pooled | None = None) -> Tensor:
        """What each coordinate of gradients [..., D] reads, shape [..., D, I]."""
        features = preprocess_gradient(grad)
        if self.weights[0].shape[1] - self.weights[0].shape[0] // 4 == 2:
            return features
        mean = grad.mean(-1, keepdim=True) if pooled is None else pooled[0].unsqueeze(-1)
        shared = preprocess_gradient(mean)
        return torch.cat((features, shared.expand_as(features)), dim=-1)

    def read_out(self, top: Tensor, grad: Tensor, pooled: Pooled | None = None) -> Tensor:
        """The updates [..., D] for the top layer's output [..., D, H] and gradients [..., D]."""
        readout = nn.functional.linear(top, self.readout_weight, self.readout_bias)
        direction, *others = readout.unbind(-1)
        if not others:
            return self.scale * direction
        log_scale, *direct = others
        if direct:
            # The floor keeps a gradient of all zeros at zero: exp(80) is finite in float32.
            log_length = log_rms(grad) if pooled is None else pooled[1]
            inverse = torch.exp(-log_length.clamp_min(-80)).unsqueeze(-1)
            normalized = grad * inverse
            if pooled is None:
                mean = normalized.mean(-1, keepdim=True)
            else:
                mean = pooled[0].unsqueeze(-1) * inverse
            own, shared = direct
            direction = direction + own * (normalized - mean) + shared * mean
        return self.scale * direction * log_scale.exp()

    @torch.no_grad()
    def backpropagate(
        self,
        grads: Tensor,
        hidden: Tensor,
        cell: Tensor,
        d_updates: Tensor,
        d_means: Tensor,
        d_hidden: Tensor | None = None,
        d_cell: Tensor | None = None,
        *,
        wants_state: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Backpropagate through T steps, which are recomputed; a derivative that is None is zero.

        Args:
            grads: Constants, shape [B, T, D].
            hidden: Before the first step, shape [B, D, L, H].
            cell: Before the first step, shape [B, D, L, H].
            d_updates: Derivative with respect to the updates, shape [B, T, D].
            d_means: With respect to the top layer's means over coordinates, shape [B, T, H].
            d_hidden: With respect to the hidden state after the last step, shape [B, D, L, H].
            d_cell: With respect to the cell state after the last step, shape [B, D, L, H].
            wants_state: Whether derivatives with respect to the first state are wanted.

        Returns:
            Derivatives with respect to the first hidden and cell state, empty unless wanted; and
            with respect to every layer's weight and bias in turn, those of the read-out last.

        Raises:
            InputError: See `step`.
        """
        num_problems, num_steps, dim = shape = require_dims("the gradients", grads, "BTD")
        size = self.readout_weight.shape[-1]
        state_shape = num_problems, dim, len(self.biases), size
        table = [
            ("the gradients", grads, shape),
            *state_operands(hidden, cell, state_shape),
            ("the updates' derivative", d_updates, shape),
            ("the read-outs' derivative", d_means, (num_problems, num_steps, size)),
        ]
        if d_hidden is not None:
            table.append(("the hidden state's derivative", d_hidden, state_shape))
        if d_cell is not None:
            table.append(("the cell state's derivative", d_cell, state_shape))
        self._require(table)
        d_sums, by_step = d_means / dim, grads.transpose(0, 1)
        kernel: Any = native
        layers = self._layers()
        if layers is None or isinstance(layers, native.Layers):
            pooled = grads.mean(-1), log_rms(grads)
            if layers is None:
                return self._backpropagate_by_autograd(
                    *(grads, (hidden, cell), pooled, d_updates, d_sums, (d_hidden, d_cell)),
                    wants_state=wants_state,
                )
            levels = _levels(*(value.T for value in pooled))
        else:
            from haltwise._kernels.fused import sequences as kernel
            from haltwise._kernels.fused.signals import pool

            by_step = layers.operand("the gradients", by_step, by_step.shape)
            levels = pool(by_step)
        d_first, d_params = kernel.backward(
            layers,
            by_step.reshape(num_steps, -1),
            hidden.flatten(0, 1),
            cell.flatten(0, 1),
            pooled=levels,
            d_updates=d_updates.transpose(0, 1).reshape(num_steps, -1),
            d_sums=d_sums.transpose(0, 1),
            d_hidden=None if d_hidden is None else d_hidden.flatten(0, 1),
            d_cell=None if d_cell is None else d_cell.flatten(0, 1),
            wants_state=wants_state,
        )
        return [value.view(state_shape) for value in d_first], d_params

    def _backpropagate_by_autograd(
        self,
        grads: Tensor,
        first: tuple[Tensor, Tensor],
        pooled: Pooled,
        d_updates: Tensor,
        d_sums: Tensor,
        d_last: tuple[Tensor | None, Tensor | None],
        *,
        wants_state: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """`backpropagate` where the compiled kernel does not run.

        Coordinates are independent but for what is pooled, so on a CPU they take turns, and the
        graph stays small.
        """
        pairs = zip(
            (*self.weights, self.readout_weight), (*self.biases, self.readout_bias), strict=True
        )
        params = [tensor.detach().requires_grad_() for pair in pairs for tensor in pair]
        twin = Coordinatewise(params[:-2:2], params[1:-2:2], params[-2], params[-1], self.scale)
        d_params = [torch.zeros_like(param) for param in params]
        d_first: list[tuple[Tensor, ...]] = []
        num_problems, num_steps, dim = grads.shape
        width = dim if grads.is_cuda else 1 + _MAX_ROW_STEPS // max(num_problems * num_steps, 1)
        for begin in range(0, dim, width):
            some = slice(begin, begin + width)
            hidden, cell = (v[:, some].detach().requires_grad_(wants_state) for v in first)
            with torch.enable_grad():
                updates, tops, *last = twin._replay(grads[..., some], hidden, cell, pooled)
            roots = [updates, tops]
            values = [d_updates[..., some], d_sums.unsqueeze(2).expand_as(tops)]
            for root, value in zip(last, d_last, strict=True):
                if value is not None:
                    roots.append(root)
                    values.append(value[:, some])
            leaves = [*params, hidden, cell] if wants_state else params
            found = torch.autograd.grad(roots, leaves, values, materialize_grads=True)
            for total, part in zip(d_params, found[: len(params)], strict=True):
                total.add_(part)
            d_first.append(found[len(params) :])
        return [torch.cat(parts, 1) for parts in zip(*d_first, strict=True)], d_params

    def _require(self, table: list[Operand]) -> None:
        """Refuse tensors that do not fit the parameters."""
        like = self.readout_bias
        for name, tensor, shape in table:
            require_operand(name, tensor, shape, like.dtype, like.device)


def _levels(mean: Tensor, log_size: Tensor) -> Tensor:
    """Mean and inverse root mean square, as the kernel reads them, [...] to [..., 2]."""
    return torch.stack((mean, torch.exp(-log_size.clamp_min(-80))), -1)
