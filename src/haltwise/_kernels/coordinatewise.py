"""The coordinatewise LSTM optimizer on flat coordinates, fused on the CPU, with a plain twin.

P problems of D coordinates each make R = P D rows; K steps. What a row reads are features of its
gradient; its update is read out of the top layer:

    g = scale exp(b) (a + k (n - mean n) + l mean n),   n = gamma / rms gamma

with (a, b, k, l) = weight h + bias, and means over the problem's coordinates.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from haltwise._core.tensors import log_rms
from haltwise._kernels import lstm
from haltwise._kernels.plain import Stack, empty_states, pieces

__all__ = ["Coordinatewise", "Pooled", "preprocess_gradient"]

_LOG_RANGE = 10.0  # of the features


class Pooled(NamedTuple):
    """What of a gradient is pooled over all of a problem's coordinates.

    Attributes:
        mean: Shape [B].
        log_rms: log of the root mean square, shape [B].
    """

    mean: Tensor
    log_rms: Tensor


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
    """The weights.

    Attributes:
        weights: L tensors [4H, fan_in + H].
        biases: L tensors [4H].
        weight: Of the read-out, shape [4, H], or [2, H] where k and l are zero.
        bias: Of the read-out, shape [4] or [2].
        scale: As said above.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor]
    weight: Tensor
    bias: Tensor
    scale: float

    @property
    def shared(self) -> bool:
        """Whether a coordinate also reads the mean gradient."""
        return self.weights[0].shape[1] - self.weights[0].shape[0] // 4 == 4

    @property
    def direct(self) -> bool:
        """Whether the gradient reaches the update undistorted."""
        return len(self.bias) == 4

    def inputs(self, grad: Tensor, pooled: Pooled | None = None) -> Tensor:
        """What a coordinate reads, [..., D] to [..., D, I]; `pooled` if `grad` is not all of it."""
        features = preprocess_gradient(grad)
        if not self.shared:
            return features
        mean = grad.mean(-1, keepdim=True) if pooled is None else pooled.mean.unsqueeze(-1)
        shared = preprocess_gradient(mean)
        return torch.cat((features, shared.expand_as(features)), dim=-1)

    def read_out(self, top: Tensor, grad: Tensor, pooled: Pooled | None = None) -> Tensor:
        """The update from the top layer's output [..., D, H] and the gradient [..., D]."""
        readout = nn.functional.linear(top, self.weight, self.bias)
        return self._update(readout.unbind(-1), grad, pooled)

    def _update(
        self, readout: Sequence[Tensor], grad: Tensor, pooled: Pooled | None = None
    ) -> Tensor:
        """The update from what was read out, (a, b) or (a, b, k, l), each [..., D]."""
        direction, log_scale = readout[:2]
        if self.direct:
            # The floor keeps a gradient of all zeros at zero: exp(80) is finite in float32.
            log_length = log_rms(grad) if pooled is None else pooled.log_rms
            inverse = torch.exp(-log_length.clamp_min(-80)).unsqueeze(-1)
            normalized = grad * inverse
            if pooled is None:
                mean = normalized.mean(-1, keepdim=True)
            else:
                mean = pooled.mean.unsqueeze(-1) * inverse
            own, shared = readout[2:]
            direction = direction + own * (normalized - mean) + shared * mean
        return self.scale * direction * log_scale.exp()

    def mover(self) -> "Mover":
        """For one step or many; valid while the weights are neither changed nor moved."""
        params = (*self.weights, *self.biases, self.weight, self.bias)
        fits = lstm.fusable(self.weight, *params) and all(p.is_contiguous() for p in params)
        if fits:
            return Mover(self, lstm.Move(*self, _LOG_RANGE))
        return Mover(self, None if self.weight.is_cuda else Stack(self.weights, self.biases))

    @torch.no_grad()
    def gradient(
        self,
        grads: Tensor,
        hidden: Tensor,
        cell: Tensor,
        pooled: Pooled,
        of_updates: Tensor,
        of_sums: Tensor,
        of_hidden: Tensor | None,
        of_cell: Tensor | None,
        *,
        wants_state: bool,
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """Backward of K steps that are forgotten but for the state before them: recomputed.

        Args:
            grads: Constants, shape [P, K, D].
            hidden: Before the first step, shape [P, D, L, H].
            cell: Likewise.
            pooled: Of the whole gradients, each [P, K].
            of_updates: Derivatives with respect to the updates, shape [P, K, D].
            of_sums: Of the sums of the top layer's outputs over coordinates, shape [P, K, H].
            of_hidden: Of the state after the last step, shape [P, D, L, H], None for zero.
            of_cell: Likewise.
            wants_state: Whether the derivatives of the state before the steps are wanted.

        Returns:
            Those, if wanted; and of every layer's weight and bias in turn, the read-out's last.
        """
        if not self._fusable(grads, hidden, cell):
            own = self._library_gradient if grads.is_cuda else self._plain_gradient
            return own(
                grads, hidden, cell, pooled, of_updates, of_sums, of_hidden, of_cell, wants_state
            )
        num_steps = grads.shape[1]
        flat = (
            None if value is None else value.flatten(0, 1).contiguous()
            for value in (hidden, cell, of_hidden, of_cell)
        )
        first_hidden, first_cell, last_hidden, last_cell = flat
        assert first_hidden is not None
        assert first_cell is not None
        by_step = Pooled(*(value.T for value in pooled))
        of_first_hidden, of_first_cell, found = lstm.backward(
            self._gradients(grads.transpose(0, 1).reshape(num_steps, -1), by_step),
            first_hidden,
            first_cell,
            self.weights,
            self.biases,
            None,
            of_updates.transpose(0, 1).contiguous(),
            of_sums.transpose(0, 1).contiguous(),
            last_hidden,
            last_cell,
            wants_state=wants_state,
        )
        if of_first_hidden is not None and of_first_cell is not None:
            of_first_hidden = of_first_hidden.view(hidden.shape)
            of_first_cell = of_first_cell.view(hidden.shape)
        return of_first_hidden, of_first_cell, found

    def _plain_gradient(
        self,
        grads: Tensor,
        hidden: Tensor,
        cell: Tensor,
        pooled: Pooled,
        of_updates: Tensor,
        of_sums: Tensor,
        of_hidden: Tensor | None,
        of_cell: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """`gradient` by hand but for the few numbers that are read out."""
        stack = Stack(self.weights, self.biases)
        weight = torch.cat((self.bias.unsqueeze(1), self.weight), 1)  # on (1, h)
        of_weight = torch.zeros_like(weight)
        found = empty_states(hidden) if wants_state else (None, None)
        for piece in pieces(self.weights, grads.shape[1], len(grads), grads.shape[2]):
            some, part = _of(grads, piece), Pooled(*(value[piece[0]] for value in pooled))
            inputs = self.inputs(some, part).permute(1, 3, 0, 2).flatten(2)
            top = stack.forward(inputs, hidden[piece].flatten(0, 1), cell[piece].flatten(0, 1))
            readout = weight @ top
            with torch.enable_grad():
                by_problem = readout.requires_grad_().unflatten(2, (len(some), -1))
                updates = self._update(by_problem.permute(1, 2, 0, 3).unbind(0), some, part)
            (of_readout,) = torch.autograd.grad(updates, readout, _of(of_updates, piece))
            of_weight += (of_readout @ top.mT).sum(0)
            of_top = self.weight.T @ of_readout
            of_every = of_sums[piece[0]].permute(1, 2, 0).unsqueeze(-1)
            of_top.unflatten(2, (len(some), -1)).add_(of_every)
            of_first = stack.backward(
                of_top,
                *(None if v is None else v[piece].flatten(0, 1) for v in (of_hidden, of_cell)),
            )
            for value, own in zip(found, of_first, strict=True):
                if value is not None:
                    value[piece] = own.unflatten(0, (len(some), -1))
        return *found, [*stack.gradients(), of_weight[:, 1:], of_weight[:, 0]]

    def _library_gradient(
        self,
        grads: Tensor,
        hidden: Tensor,
        cell: Tensor,
        pooled: Pooled,
        of_updates: Tensor,
        of_sums: Tensor,
        of_hidden: Tensor | None,
        of_cell: Tensor | None,
        wants_state: bool,
    ) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
        """`gradient` by autograd through the LSTM that PyTorch brings for the device."""
        num_problems = len(grads)
        params = [
            tensor.detach().requires_grad_()
            for pair in (*zip(self.weights, self.biases, strict=True), (self.weight, self.bias))
            for tensor in pair
        ]
        twin = self._replace(
            weights=params[:-2:2], biases=params[1:-2:2], weight=params[-2], bias=params[-1]
        )
        state = [
            value.detach().flatten(0, 1).requires_grad_(wants_state) for value in (hidden, cell)
        ]
        inputs = twin.inputs(grads, pooled).transpose(0, 1).flatten(1, 2)
        with torch.enable_grad():
            outputs, *last = lstm.lstm_sequence(
                inputs, state[0], state[1], twin.weights, twin.biases
            )
            top = outputs.unflatten(1, (num_problems, -1)).transpose(0, 1)
            updates = twin.read_out(top, grads, pooled)
        roots = [updates, top]
        values = [of_updates, of_sums.unsqueeze(2).expand_as(top)]
        for root, value in zip(last, (of_hidden, of_cell), strict=True):
            if value is not None:
                roots.append(root)
                values.append(value.flatten(0, 1))
        own = torch.autograd.grad(roots, [*params, *state] if wants_state else params, values)
        found = list(own[: len(params)])
        if not wants_state:
            return None, None, found
        of_first_hidden, of_first_cell = (value.view(hidden.shape) for value in own[len(params) :])
        return of_first_hidden, of_first_cell, found

    def _fusable(self, grad: Tensor, hidden: Tensor, cell: Tensor) -> bool:
        tensors = (hidden, cell, *self.weights, *self.biases, self.weight, self.bias)
        return lstm.fusable(grad, *tensors) and all(
            tensor.is_contiguous() for tensor in tensors[2:]
        )

    def _gradients(self, grads: Tensor, pooled: Pooled) -> lstm.Gradients:
        """For the kernel: `grads` [K, R], `pooled` [K, P]."""
        num_inputs = 4 if self.shared else 2
        return lstm.Gradients(
            grads, _levels(pooled), num_inputs, self.weight, self.bias, self.scale, _LOG_RANGE
        )


def _levels(pooled: Pooled) -> Tensor:
    """Mean and inverse root mean square, as the kernel reads them, [...] to [..., 2]."""
    return torch.stack((pooled.mean, torch.exp(-pooled.log_rms.clamp_min(-80))), -1)


@final
class Mover(NamedTuple):
    """Steps of a `Coordinatewise` without a graph."""

    own: Coordinatewise
    prepared: lstm.Move | Stack | None
    """The kernel where the weights fit it, else its plain twin; None for a device's own LSTM."""

    @torch.no_grad()
    def step(
        self,
        grad: Tensor,
        hidden: Tensor,
        cell: Tensor,
        pooled: Pooled | None = None,
        *,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One step, without a graph.

        Args:
            grad: Shape [P, D].
            hidden: Shape [P, D, L, H].
            cell: Shape [P, D, L, H].
            pooled: Of the whole gradient, if `grad` is not all of it.
            in_place: Whether the new state may take the place of the old.

        Returns:
            Updates [P, D]; the top layer's means over coordinates [P, H]; the state after the step.
        """
        if isinstance(self.prepared, lstm.Move) and lstm.fusable(
            self.own.weight, grad, hidden, cell
        ):
            return self.prepared(
                grad.contiguous(),
                hidden.contiguous(),
                cell.contiguous(),
                None if pooled is None else _levels(pooled),
                in_place=in_place,
            )
        inputs = self.own.inputs(grad, pooled).flatten(0, 1)
        flat = hidden.flatten(0, 1), cell.flatten(0, 1)
        if isinstance(self.prepared, Stack):
            flat = self.prepared.step(inputs, *flat, in_place=in_place)
        else:
            flat = lstm.lstm_step(inputs, *flat, self.own.weights, self.own.biases)
        hidden, cell = (value.view(hidden.shape) for value in flat)
        top = hidden[..., -1, :]
        return self.own.read_out(top, grad, pooled), top.mean(-2), hidden, cell


def _of(values: Tensor, piece: tuple[slice, slice]) -> Tensor:
    """A piece of [P, K, D]."""
    return values[piece[0], :, piece[1]]
