"""The coordinatewise LSTM optimizer (Andrychowicz et al. 2016, "L2L"; thesis Eq. 2)."""

import copy
from typing import cast, final

import torch
from torch import Tensor, nn

from haltwise._core.errors import require
from haltwise._kernels import Coordinatewise, one_thread
from haltwise.update_rules.base import PooledGradient, State, UpdateRule, UpdateStep
from haltwise.update_rules.capabilities import (
    SupportsBackpropagation,
    SupportsChunks,
    SupportsInPlace,
    SupportsPreparation,
)

__all__ = ["LSTMRule"]


@final
class LSTMRule(
    nn.Module,
    UpdateRule,
    SupportsPreparation,
    SupportsInPlace,
    SupportsChunks,
    SupportsBackpropagation,
):
    """A stack of LSTM cells shared by all coordinates, each coordinate with a state of its own.

    Its input is the gradient, a constant in meta-training; its output the update

        g_t = output_scale * exp(b) * (a + k (n - mean n) + l mean n),   n = gamma_t / rms gamma_t

    (docs/theory.md, Eq. (rule)), where (a, b, k, l) are linear in the top layer's output, and root
    mean square and mean are over the problem's coordinates. L2L and the thesis have only a; with
    `linear_readout` it is all there is, and without a bias. The factor exp(b) suits first steps
    and last corrections that differ by orders of magnitude. With k and l
    (`direct_gradient`) the gradient enters undistorted: features on a log scale cannot carry the
    linear arithmetic that separates directions of different curvature. With `shared_gradient` a
    coordinate also reads the problem's mean gradient, preprocessed in the same way: the simplest
    of L2L's means ("global averaging") to couple coordinates. The rule does not depend on the
    number or the order of coordinates.

    Args:
        hidden_size: H, units of a layer.
        num_layers: L, number of layers.
        shared_gradient: Whether coordinates read the mean gradient.
        direct_gradient: Whether the update contains the gradient itself, by k and l.
        linear_readout: Whether the update is output_scale * w^T h and nothing else, as in the
            thesis. Excludes `direct_gradient`.
        initial_descent: Whether a new rule is normalized gradient descent, slightly perturbed,
            instead of random: a start that makes progress on networks, where random updates
            only teach to keep still. Needs `direct_gradient`.
        output_scale: Size of the first updates.
        generator: Draws the initial weights.
    """

    readout_bias: nn.Parameter | None
    _prepared: Coordinatewise | None = None

    def __init__(
        self,
        hidden_size: int = 20,
        num_layers: int = 2,
        *,
        shared_gradient: bool = True,
        direct_gradient: bool = True,
        linear_readout: bool = False,
        initial_descent: bool = False,
        output_scale: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(hidden_size >= 1, f"hidden_size must be at least 1, got {hidden_size}")
        require(1 <= num_layers <= 64, f"num_layers must lie between 1 and 64, got {num_layers}")
        require(
            direct_gradient or not initial_descent,
            "initial_descent needs direct_gradient to be true",
        )
        require(
            not (linear_readout and direct_gradient),
            "linear_readout leaves the gradient out of the update; set direct_gradient to false",
        )
        self.hidden_size, self.num_layers = hidden_size, num_layers
        self.shared_gradient, self.direct_gradient = shared_gradient, direct_gradient
        self.output_scale = output_scale
        num_inputs = 4 if shared_gradient else 2
        num_outputs = 4 if direct_gradient else 1 if linear_readout else 2
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        bound = hidden_size**-0.5
        for layer in range(num_layers):
            fan_in = (num_inputs if layer == 0 else hidden_size) + hidden_size
            weight = torch.empty(4 * hidden_size, fan_in, dtype=torch.float32)
            weight.uniform_(-bound, bound, generator=generator)
            bias = torch.zeros(4 * hidden_size)
            bias[hidden_size : 2 * hidden_size] = 1.0  # forget gate: remember at first
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))
        small = 0.1 * bound if initial_descent else bound
        weight = torch.empty(num_outputs, hidden_size, dtype=torch.float32)
        self.readout_weight = nn.Parameter(weight.uniform_(-small, small, generator=generator))
        self.readout_bias = None if linear_readout else nn.Parameter(torch.zeros(num_outputs))
        if self.readout_bias is not None and initial_descent:
            nn.init.constant_(self.readout_bias[2:], -1.0)  # k = l = -1

    @property
    def readout_size(self) -> int:
        return self.hidden_size

    def init(self, params: Tensor) -> State:
        shape = (*params.shape, self.num_layers, self.hidden_size)
        return {"hidden": params.new_zeros(shape), "cell": params.new_zeros(shape)}

    def prepare(self) -> "LSTMRule":
        twin = copy.copy(self)
        twin._prepared = self._coordinatewise.prepare()
        return twin

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        if torch.is_grad_enabled():
            own, hidden, cell = self._coordinatewise, state["hidden"], state["cell"]
            update, readout, hidden, cell = own.differentiable_step(grad, hidden, cell)
            return UpdateStep(update, readout, {"hidden": hidden, "cell": cell})
        return self._update(grad, state)

    def update_(self, grad: Tensor, state: State) -> UpdateStep:
        return self._update(grad, state, in_place=True)

    def update_chunk(self, grad: Tensor, state: State, pooled: PooledGradient) -> UpdateStep:
        return self._update(grad, state, pooled, in_place=True)

    @one_thread()
    def _update(
        self,
        grad: Tensor,
        state: State,
        pooled: PooledGradient | None = None,
        *,
        in_place: bool = False,
    ) -> UpdateStep:
        """A step without a graph; `pooled` of the whole gradient if `grad` is not all of it."""
        update, readout, hidden, cell = self._coordinatewise.step(
            *(grad, state["hidden"], state["cell"]),
            None if pooled is None else (pooled.mean, pooled.log_rms),
            in_place=in_place,
        )
        return UpdateStep(update, readout, {"hidden": hidden, "cell": cell})

    @torch.no_grad()
    def gate_logits(self, grad: Tensor, state: State) -> Tensor:
        """Arguments of the gates' nonlinearities at a step, for diagnosis.

        Args:
            grad: Shape [B, D].
            state: Before the step.

        Returns:
            Those of the input, forget, candidate and output gates, shape [B, D, L, 4, H].
        """
        value = self._coordinatewise.inputs(grad)
        after = self._update(grad, state).state["hidden"]
        logits = []
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            inputs = torch.cat((value, state["hidden"][..., layer, :]), dim=-1)
            logits.append(nn.functional.linear(inputs, weight, bias))
            value = after[..., layer, :]
        stacked: Tensor = torch.stack(logits, -2).unflatten(-1, (4, self.hidden_size))
        return stacked

    def backpropagate(
        self, grads: Tensor, state: State, cotangents: UpdateStep, *, wants_state: bool
    ) -> State:
        of_state, found = self._coordinatewise.backpropagate(
            grads,
            *(state["hidden"], state["cell"]),
            *(cotangents.update, cotangents.readout),
            *(cotangents.state.get("hidden"), cotangents.state.get("cell")),
            wants_state=wants_state,
        )
        layers = (*zip(self.weights, self.biases, strict=True), self._readout)
        learned = [weight for pair in layers for weight in pair]
        for weight, grad in zip(learned, found, strict=True):
            if weight.requires_grad:
                weight.grad = grad if weight.grad is None else weight.grad + grad
        return dict(zip(("hidden", "cell"), of_state, strict=False))

    @property
    def _coordinatewise(self) -> Coordinatewise:
        return self._prepared or Coordinatewise(
            _tensors(self.weights),
            _tensors(self.biases),
            *self._readout,
            self.output_scale,
        )

    @property
    def _readout(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of the read-out; a bias that there is not is zero."""
        bias = self.readout_bias
        if bias is None:
            return self.readout_weight, self.readout_weight.new_zeros(1)
        return self.readout_weight, bias


def _tensors(parameters: nn.ParameterList) -> list[Tensor]:
    """`list(parameters)` in a tenth of the time."""
    return list(cast("dict[str, Tensor]", parameters._parameters).values())


RULES = {"lstm": LSTMRule}
