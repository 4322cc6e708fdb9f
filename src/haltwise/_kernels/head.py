"""The head of a halter: an LSTM layer over the steps, and a perceptron that reads it.

B items, T steps, F features, R read-outs, M units of memory, K outputs. The memory reads features
and read-outs, the perceptron (SiLU between its layers) both of them and the memory.

CPU tensors go through the compiled kernel (`haltwise._kernels.native_head`), all others through
plain PyTorch.
"""

from dataclasses import dataclass, replace
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from haltwise._core.tensors import flush_negligible
from haltwise._kernels import native, native_head
from haltwise._kernels.lstm import lstm_sequence

__all__ = ["Head"]

State = tuple[Tensor, Tensor]
"""Hidden and cell state, each [B, 1, M]."""


@final
@dataclass(eq=False)
class Head:
    """The head's parameters, and its steps."""

    memory: tuple[Tensor, Tensor] | None
    """Weight [4M, F + R + M] and bias [4M]; None where nothing is remembered."""
    weights: list[Tensor]
    """Of the perceptron's layers, [fan_out, fan_in], the first F + R + M wide."""
    biases: list[Tensor]
    """Of its layers, [fan_out]."""

    prepared: native_head.HeadLayers | None = None
    """The parameters for the compiled kernel, if they were checked beforehand."""

    def prepare(self) -> Self:
        """The same for many steps, for which the parameters are checked once and for all.

        Their values may change between these.

        Raises:
            InputError: They do not fit each other.
        """
        layers = self._layers()
        if layers is not None:
            layers.watch()
        return replace(self, prepared=layers)

    def _layers(self) -> native_head.HeadLayers | None:
        """For the compiled kernel; None where that does not run."""
        if self.prepared is not None or not native.serves(self.biases[0]):
            return self.prepared
        return native_head.HeadLayers(self.memory, self.weights, self.biases)

    @torch.no_grad()
    def step(
        self, features: Tensor, readout: Tensor, state: State | None
    ) -> tuple[Tensor, State | None]:
        """Take one step, without a graph.

        Args:
            features: Shape [B, F].
            readout: Shape [B, R].
            state: None where nothing is remembered.

        Returns:
            Outputs [B, K] and the state after the step.

        Raises:
            InputError: Shapes, dtypes or devices do not fit each other, or a tensor is not a
                plain one.
        """
        given = features.unsqueeze(1), readout.unsqueeze(1)
        layers = self._layers()
        if layers is None:
            outputs, after = self._plain(*given, state)
        else:
            outputs, after = native_head.forward(layers, *given, state)
        return outputs.squeeze(1), after

    def sequence(self, features: Tensor, readouts: Tensor) -> Tensor:
        """Run T steps from an empty memory, differentiable in read-outs and parameters.

        The memory takes its inputs as data: gradients reach read-outs from the perceptron alone.
        Through the compiled kernel features are constants, it is differentiable once, and the
        backward recomputes the forward, so a graph holds no more than the arguments.

        Args:
            features: Shape [B, T, F].
            readouts: Shape [B, T, R].

        Returns:
            Outputs, shape [B, T, K].

        Raises:
            InputError: See `step`.
        """
        graph = torch.is_grad_enabled()
        layers = None if graph and features.requires_grad else self._layers()
        state = None
        if self.memory is not None:
            zeros = features.new_zeros(len(features), 1, self.memory[1].numel() // 4)
            state = zeros, zeros
        if layers is None:
            return self._plain(features, readouts, state)[0]
        params = [*(self.memory or ()), *self._perceptron_parameters()]
        if graph and any(value.requires_grad for value in (readouts, *params)):
            outputs: Tensor = _NativeSequence.apply(  # type: ignore[no-untyped-call]
                state, features, readouts, *params
            )
            return outputs
        return native_head.forward(layers, features, readouts, state)[0]

    def perceptron(self, inputs: Tensor) -> Tensor:
        """What the perceptron makes of features, read-outs and memory [..., F + R + M]."""
        layers = list(zip(self.weights, self.biases, strict=True))
        for weight, bias in layers[:-1]:
            inputs = nn.functional.silu(nn.functional.linear(inputs, weight, bias))
        return nn.functional.linear(inputs, *layers[-1])

    def _plain(
        self, features: Tensor, readouts: Tensor, state: State | None
    ) -> tuple[Tensor, State | None]:
        """T steps in plain PyTorch, the oracle of the tests."""
        # Steps first, as the memory wants them.
        inputs = torch.cat((features, readouts), dim=-1).transpose(0, 1)
        read = [inputs]
        if self.memory is not None:
            assert state is not None
            weight, bias = self.memory
            remembered, *after = lstm_sequence(inputs.detach(), *state, [weight], [bias])
            read.append(remembered)
            state = after[0], after[1]
        outputs = self.perceptron(torch.cat(read, dim=-1))
        if outputs.requires_grad:
            outputs.register_hook(_flushed)
        return outputs.transpose(0, 1), state

    def _perceptron_parameters(self) -> list[Tensor]:
        pairs = zip(self.weights, self.biases, strict=True)
        return [tensor for pair in pairs for tensor in pair]


def _flushed(d_outputs: Tensor) -> Tensor:
    """Without derivatives of outputs long after the stop, which hardly count."""
    return flush_negligible(d_outputs, 0, 1)


@final
class _NativeSequence(torch.autograd.Function):
    """`Head.sequence` by the compiled kernel; parameters come as weight, bias, weight, bias, ..."""

    @staticmethod
    def forward(
        ctx: Any, state: State | None, features: Tensor, readouts: Tensor, *params: Tensor
    ) -> Tensor:
        ctx.remembers = state is not None
        ctx.save_for_backward(features, readouts, *params)
        layers = _layers_of(params, remembers=ctx.remembers)
        return native_head.forward(layers, features, readouts, state)[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_outputs: Tensor) -> tuple[Tensor | None, ...]:
        features, readouts, *params = ctx.saved_tensors
        d_readouts, d_params = native_head.backward(
            _layers_of(params, remembers=ctx.remembers),
            *(features, readouts),
            _flushed(d_outputs),
            wants_readouts=ctx.needs_input_grad[2],
        )
        return None, None, d_readouts, *d_params


def _layers_of(params: Any, *, remembers: bool) -> native_head.HeadLayers:
    memory = (params[0], params[1]) if remembers else None
    behind = params[2:] if remembers else params
    return native_head.HeadLayers(memory, behind[::2], behind[1::2])
