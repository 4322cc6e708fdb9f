"""Unrolls and their meta-gradients on an accelerator as CUDA graphs."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, final

import torch
from torch import Tensor, nn

from haltwise._core.tensors import map_tensors, tensors_of
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.rollout.unroll import Unroll, backpropagate, unroll
from haltwise.tasks.base import TaskBatch

__all__ = ["CapturedUnroll", "are_alike"]

_PLAIN = (bool, int, float, str, tuple)
_WARMUPS = 2  # PyTorch's advice: libraries choose their kernels before the capture


@final
class CapturedUnroll:
    """`unroll` and `backpropagate` for batches like the first, each launched at once.

    T steps of a network are thousands of small kernels, which take longer to launch one by one
    than to run. The first batch is run and captured, later ones are copied into its place. The
    model's weights are read where they lie, so they may be trained in between. A batch that is not
    like the first is run step by step.

    On a CPU they are `unroll` and `backpropagate`.

    Args:
        model: What moves the parameters and judges halting.
        num_steps: T >= 1.
        segment: See `unroll`.
        truncate: See `backpropagate`.
    """

    def __init__(
        self, model: OptimizerModel, num_steps: int, segment: int, *, truncate: bool = False
    ) -> None:
        self._num_steps, self._segment, self._truncate = num_steps, segment, truncate
        self._model = model
        self._forward: torch.cuda.CUDAGraph | None = None
        self._backward: torch.cuda.CUDAGraph | None = None
        self._learned: list[nn.Parameter] = []

    def __call__(self, batch: TaskBatch, price: Tensor) -> Unroll:
        """The unroll, valid until the next call."""
        if not batch.start.is_cuda:
            return self._run(batch, price, graph=True)
        if self._forward is None:
            self._batch, self._price = map_tensors(batch, torch.clone), price.clone()
            self._forward = self._capture(self._run_captured)
        elif not are_alike(self._batch, batch):  # of another family of a mixture
            return self._run(batch, price, graph=True)
        else:
            kept, new = ([*tensors_of(one).values()] for one in (self._batch, batch))
            torch._foreach_copy_([*kept, self._price], [*new, price])
        self._forward.replay()
        return self._unrolled

    def backpropagate(
        self,
        unrolled: Unroll,
        excess_cotangent: Tensor,
        output_cotangents: Mapping[str, Tensor],
    ) -> None:
        """`backpropagate` of what the last call returned, or of some of its problems."""
        if self._forward is None or unrolled is not self._unrolled:
            backpropagate(
                *(self._model, unrolled, excess_cotangent, output_cotangents),
                truncate=self._truncate,
            )
            return
        learned = [weight for weight in self._model.parameters() if weight.requires_grad]
        if self._backward is None or [*map(id, learned)] != [*map(id, self._learned)]:
            self._learned = learned
            self._cotangents = (
                excess_cotangent.clone(),
                {name: value.clone() for name, value in output_cotangents.items()},
            )
            kept = [weight.grad for weight in learned]
            self._backward = self._capture(self._backpropagate_captured)
            for weight, grad in zip(learned, kept, strict=True):
                weight.grad = grad
        else:
            excess, outputs = self._cotangents
            new = [output_cotangents[name] for name in outputs]
            torch._foreach_copy_([excess, *outputs.values()], [excess_cotangent, *new])
        self._backward.replay()
        pieces = self._grads.clone().split([weight.numel() for weight in learned])
        for weight, piece in zip(learned, pieces, strict=True):
            grad = piece.view(weight.shape)
            weight.grad = grad if weight.grad is None else weight.grad + grad

    def _capture(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        device = self._batch.start.device
        aside, now = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        aside.wait_stream(now)
        with torch.cuda.stream(aside):
            for _ in range(_WARMUPS):
                function()
        now.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        return graph

    def _run_captured(self) -> None:
        self._unrolled = self._run(self._batch, self._price)
        _ = self._unrolled.finite  # kept, once asked for

    def _backpropagate_captured(self) -> None:
        for weight in self._learned:
            weight.grad = None
        backpropagate(self._model, self._unrolled, *self._cotangents, truncate=self._truncate)
        grads = [
            torch.zeros_like(weight) if weight.grad is None else weight.grad
            for weight in self._learned
        ]
        self._grads: Tensor = torch.cat([grad.flatten() for grad in grads])

    def _run(self, batch: TaskBatch, price: Tensor, *, graph: bool = False) -> Unroll:
        return unroll(
            self._model, batch, self._num_steps, price, segment=self._segment, graph=graph
        )


def are_alike(first: TaskBatch, second: TaskBatch) -> bool:
    """Whether two batches differ in nothing but the values of their tensors."""
    mine, yours = (
        [tensor.shape for tensor in tensors_of(batch).values()] for batch in (first, second)
    )
    if type(first) is not type(second) or mine != yours:
        return False
    pairs = zip(_shared(first), _shared(second), strict=True)
    # Data and architectures are the same object or none; they need not say when they are equal.
    return all(one is other or (isinstance(one, _PLAIN) and one == other) for one, other in pairs)


def _shared(batch: TaskBatch) -> list[Any]:
    """What a batch holds beside tensors: data, an architecture, settings, names of tensors."""
    values = [getattr(batch, field.name) for field in fields(batch)]
    return [
        tuple(value) if isinstance(value, dict) else value
        for value in values
        if not isinstance(value, Tensor)
    ]
