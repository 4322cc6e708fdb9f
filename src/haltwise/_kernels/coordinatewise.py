"""The coordinatewise LSTM optimizer on flat coordinates, fused on the CPU.

B problems of D coordinates each make N = B D rows; L layers of H units, T steps. A row reads
features of its gradient; its update is read out of the top layer:

    g = scale exp(b) (a + k (n - mean n) + l mean n),   n = gamma / rms gamma

with (a, b, k, l) = weight h + bias, and means over the problem's coordinates.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self, final

import torch
from torch import Tensor, nn

from haltwise._core.tensors import log_rms
from haltwise._kernels import native
from haltwise._kernels.lstm import lstm_sequence, lstm_step
from haltwise._kernels.operands import require_dims, require_operand

__all__ = ["Coordinatewise", "FusedStep", "preprocess_gradient"]

_LOG_RANGE = 10.0  # of the features
_MAX_ROW_STEPS = 2**15  # of a graph on the CPU: some 70 MiB

Pooled = tuple[Tensor, Tensor]
"""Mean and log root mean square of a gradient over all of a problem's coordinates."""


def preprocess_gradient(grad: Tensor, log_range: float = _LOG_RANGE) -> Tensor:
    """Scale-free features of a gradient: magnitude on a log scale, and sign (L2L, appendix A).

        (log |g| / p, sign g)   where |g| >= exp(-p)
        (-1, exp(p) g)          elsewhere

    Args:
        grad: Any shape [...].
        log_range: p, the width of the logarithmic range in nats.

    Returns:
        Shape [..., 2].
    """
    threshold = math.exp(-log_range)
    magnitude = grad.abs().clamp_min(threshold).log() / log_range
    sign = (grad / threshold).clamp(-1, 1)  # both branches at once: sign g, or exp(p) g
    sign = nn.functional.hardshrink(sign, 1e-20)  # subnormals would slow down what reads it
    return torch.stack((magnitude, sign), dim=-1)


@final
class Coordinatewise(NamedTuple):
    """The optimizer's parameters.

    Attributes:
        weights: L tensors [4H, fan_in + H].
        biases: L tensors [4H].
        readout_weight: Shape [4, H], or [2, H] where k and l are zero.
        readout_bias: Shape [4] or [2].
        scale: Factor of the updates.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    readout_weight: Tensor
    readout_bias: Tensor
    scale: float

    @property
    def reads_mean(self) -> bool:
        """Whether a coordinate also reads the mean gradient."""
        return self.weights[0].shape[1] - self.weights[0].shape[0] // 4 == 4

    @property
    def passes_gradient(self) -> bool:
        """Whether the gradient reaches the update undistorted, by k and l."""
        return len(self.readout_bias) == 4

    def require_operands(self, grads: Tensor, hidden: Tensor, cell: Tensor) -> tuple[int, ...]:
        """Refuse gradients [B, D] or [B, T, D] and states [B, D, L, H] that do not fit each other.

        Returns:
            The state's shape.

        Raises:
            InputError: Shapes, dtypes or devices differ, or a tensor is not a plain one.
        """
        like = self.readout_bias
        shape = grads.shape if grads.ndim == 3 else require_dims("the gradient", grads, "BD")
        state_shape = shape[0], shape[-1], len(self.biases), self.readout_weight.shape[-1]
        require_operand("the gradient", grads, shape, like.dtype, like.device)
        require_operand("the hidden state", hidden, state_shape, like.dtype, like.device)
        require_operand("the cell state", cell, state_shape, like.dtype, like.device)
        return state_shape

    def inputs(self, grad: Tensor, pooled: Pooled | None = None) -> Tensor:
        """What each coordinate reads.

        Args:
            grad: Shape [..., D].
            pooled: Of the whole gradient, each [...], if `grad` is not all of it.

        Returns:
            Shape [..., D, I].
        """
        features = preprocess_gradient(grad)
        if not self.reads_mean:
            return features
        mean = grad.mean(-1, keepdim=True) if pooled is None else pooled[0].unsqueeze(-1)
        shared = preprocess_gradient(mean)
        return torch.cat((features, shared.expand_as(features)), dim=-1)

    def read_out(self, top: Tensor, grad: Tensor, pooled: Pooled | None = None) -> Tensor:
        """The update.

        Args:
            top: The top layer's output, shape [..., D, H].
            grad: Shape [..., D].
            pooled: Of the whole gradient, each [...], if `grad` is not all of it.

        Returns:
            Shape [..., D].
        """
        readout = nn.functional.linear(top, self.readout_weight, self.readout_bias)
        direction, log_scale, *direct = readout.unbind(-1)
        if self.passes_gradient:
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
        pooled: Pooled,
        d_updates: Tensor,
        d_sums: Tensor,
        d_hidden: Tensor | None = None,
        d_cell: Tensor | None = None,
        *,
        wants_state: bool,
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """Backpropagate through T steps, which are recomputed from the state before them.

        Args:
            grads: Constants, shape [B, T, D].
            hidden: Before the first step, shape [B, D, L, H].
            cell: Before the first step, shape [B, D, L, H].
            pooled: Of the whole gradients, each [B, T].
            d_updates: Derivatives with respect to the updates, shape [B, T, D].
            d_sums: With respect to the sums of the top layer's outputs over coordinates, shape
                [B, T, H].
            d_hidden: With respect to the hidden state after the last step, shape [B, D, L, H];
                None for zero.
            d_cell: With respect to the cell state after the last step, likewise.
            wants_state: Whether derivatives with respect to the first state are wanted.

        Returns:
            Derivatives with respect to the first hidden and cell state, None unless wanted; and
            with respect to every layer's weight and bias in turn, those of the read-out last.

        Raises:
            InputError: Shapes, dtypes or devices do not fit each other, or a tensor is not a
                plain one.
        """
        num_problems, num_steps, dim = require_dims("the gradients", grads, "BTD")
        state_shape = self.require_operands(grads, hidden, cell)
        like, size = self.readout_bias, state_shape[-1]
        _require_pooled(pooled, (num_problems, num_steps), like)
        for name, tensor, shape in (
            ("the updates' derivative", d_updates, (num_problems, num_steps, dim)),
            ("the read-outs' derivative", d_sums, (num_problems, num_steps, size)),
            ("the hidden state's derivative", d_hidden, state_shape),
            ("the cell state's derivative", d_cell, state_shape),
        ):
            if tensor is not None:
                require_operand(name, tensor, shape, like.dtype, like.device)
        if not native.serves(self.readout_bias):
            return self._backpropagate_by_autograd(
                *(grads, hidden, cell, pooled, d_updates, d_sums, d_hidden, d_cell),
                wants_state=wants_state,
            )
        mean, log_size = pooled
        d_first_hidden, d_first_cell, d_params = native.backward_from_gradients(
            self._layers(),
            grads.transpose(0, 1).reshape(num_steps, -1),
            _levels((mean.T, log_size.T)),
            hidden.flatten(0, 1),
            cell.flatten(0, 1),
            native.Cotangents(
                updates=d_updates.transpose(0, 1).reshape(num_steps, -1),
                sums=d_sums.transpose(0, 1),
                hidden=None if d_hidden is None else d_hidden.flatten(0, 1),
                cell=None if d_cell is None else d_cell.flatten(0, 1),
            ),
            wants_state=wants_state,
        )
        if d_first_hidden is not None and d_first_cell is not None:
            d_first_hidden = d_first_hidden.view(state_shape)
            d_first_cell = d_first_cell.view(state_shape)
        return d_first_hidden, d_first_cell, d_params

    def _backpropagate_by_autograd(
        self,
        grads: Tensor,
        hidden: Tensor,
        cell: Tensor,
        pooled: Pooled,
        d_updates: Tensor,
        d_sums: Tensor,
        d_hidden: Tensor | None,
        d_cell: Tensor | None,
        *,
        wants_state: bool,
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """`backpropagate` through the LSTM that runs where the compiled kernel does not.

        Coordinates are independent but for what is pooled, so on a CPU they take turns, and the
        graph stays small.
        """
        layers = zip(self.weights, self.biases, strict=True)
        params = [
            tensor.detach().requires_grad_()
            for pair in (*layers, (self.readout_weight, self.readout_bias))
            for tensor in pair
        ]
        twin = Coordinatewise(
            params[:-2:2], params[1:-2:2], params[-2], params[-1], scale=self.scale
        )
        d_first = [torch.zeros_like(value) if wants_state else None for value in (hidden, cell)]
        num_problems, num_steps, dim = grads.shape
        width = dim if grads.is_cuda else 1 + _MAX_ROW_STEPS // max(num_problems * num_steps, 1)
        for begin in range(0, dim, width):
            some = slice(begin, begin + width)
            grad, shape = grads[..., some], hidden[:, some].shape
            state = [
                value[:, some].detach().flatten(0, 1).requires_grad_(wants_state)
                for value in (hidden, cell)
            ]
            inputs = twin.inputs(grad, pooled).transpose(0, 1).flatten(1, 2)
            with torch.enable_grad():
                outputs, *last = lstm_sequence(
                    inputs, state[0], state[1], twin.weights, twin.biases
                )
                top = outputs.unflatten(1, shape[:2]).transpose(0, 1)
                updates = twin.read_out(top, grad, pooled)
            roots = [updates, top]
            cotangents = [d_updates[..., some], d_sums.unsqueeze(2).expand_as(top)]
            for root, value in zip(last, (d_hidden, d_cell), strict=True):
                if value is not None:
                    roots.append(root)
                    cotangents.append(value[:, some].flatten(0, 1))
            leaves = [*params, *state] if wants_state else params
            torch.autograd.backward(roots, cotangents, inputs=leaves)
            for whole, part in zip(d_first, state, strict=True):
                if whole is not None and part.grad is not None:
                    whole[:, some] = part.grad.view(shape)
        d_params = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
        return d_first[0], d_first[1], d_params

    def _layers(self) -> native.Layers:
        """For the compiled kernel."""
        readout = native.Readout(self.readout_weight, self.readout_bias, self.scale, _LOG_RANGE)
        return native.Layers(self.weights, self.biases, readout)


@final
class FusedStep:
    """Steps of a `Coordinatewise` optimizer without a graph; what they share is prepared once.

    Args:
        optimizer: The parameters, whose values may change between steps.

    Raises:
        InputError: They do not fit each other.
    """

    def __init__(self, optimizer: Coordinatewise) -> None:
        self._optimizer = optimizer
        fused = native.serves(optimizer.readout_bias)
        self._layers = optimizer._layers() if fused else None

    def pin(self) -> Self:
        """The same, for steps at a later time; the parameters' memory is kept and watched."""
        if self._layers is not None:
            self._layers.pin()
        return self

    def __call__(
        self,
        grad: Tensor,
        hidden: Tensor,
        cell: Tensor,
        pooled: Pooled | None = None,
        *,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Take one step.

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
            _require_pooled(pooled, grad.shape[:1], self._optimizer.readout_bias)
        if self._layers is None:
            return self._by_operations(grad, hidden, cell, pooled)
        levels = None if pooled is None else _levels(pooled)
        return native.step(self._layers, grad, hidden, cell, levels, in_place=in_place)

    @torch.no_grad()
    def _by_operations(
        self, grad: Tensor, hidden: Tensor, cell: Tensor, pooled: Pooled | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A step by PyTorch's operations."""
        own = self._optimizer
        state_shape = own.require_operands(grad, hidden, cell)
        inputs = own.inputs(grad, pooled).flatten(0, 1)
        flat = lstm_step(inputs, hidden.flatten(0, 1), cell.flatten(0, 1), own.weights, own.biases)
        hidden, cell = (value.view(state_shape) for value in flat)
        top = hidden[..., -1, :]
        return own.read_out(top, grad, pooled), top.mean(-2), hidden, cell


def _require_pooled(pooled: Pooled, shape: tuple[int, ...], like: Tensor) -> None:
    for name, value in zip(("mean", "log_rms"), pooled, strict=True):
        require_operand(f"the gradient's {name}", value, shape, like.dtype, like.device)


def _levels(pooled: Pooled) -> Tensor:
    """Mean and inverse root mean square, as the kernel reads them, [...] to [..., 2]."""
    mean, log_size = pooled
    return torch.stack((mean, torch.exp(-log_size.clamp_min(-80))), -1)
