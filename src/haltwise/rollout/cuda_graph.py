"""Unrolls on an accelerator as one CUDA graph."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, final

import torch
from torch import Tensor

from haltwise._core.tensors import map_tensors
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.rollout.unroll import Unroll, unroll
from haltwise.tasks.base import TaskBatch

__all__ = ["CapturedUnroll", "are_alike"]

_PLAIN = (bool, int, float, str, tuple)
_WARMUPS = 2  # PyTorch's advice: libraries choose their kernels before the capture


@final
class CapturedUnroll:
    """`unroll` for batches like the first, launched at once.

    T steps of a network are thousands of small kernels, which take longer to launch one by one
    than to run. The first batch is run and captured, later ones are copied into its place. The
    model's weights are read where they lie, so they may be trained in between. A batch that is not
    like the first is run step by step.

    On a CPU it is `unroll`.

    Args:
        model: What moves the parameters and judges halting.
        num_steps: T >= 1.
        segment: See `unroll`.
    """

    def __init__(self, model: OptimizerModel, num_steps: int, segment: int) -> None:
        self._num_steps, self._segment = num_steps, segment
        self._model = model
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: TaskBatch, price: Tensor) -> Unroll:
        """The unroll, valid until the next call."""
        if not batch.start.is_cuda:
            return self._run(batch, price, graph=True)
        if self._graph is None:
            self._capture(batch, price)
        elif not are_alike(self._batch, batch):  # of another family of a mixture
            return self._run(batch, price, graph=True)
        else:
            for kept, new in zip(_tensors(self._batch), _tensors(batch), strict=True):
                kept.copy_(new)
            self._price.copy_(price)
        assert self._graph is not None
        self._graph.replay()
        return self._unrolled

    def _capture(self, batch: TaskBatch, price: Tensor) -> None:
        self._batch, self._price = map_tensors(batch, torch.clone), price.clone()
        aside = torch.cuda.Stream(batch.start.device)
        aside.wait_stream(torch.cuda.current_stream(batch.start.device))
        with torch.cuda.stream(aside):
            for _ in range(_WARMUPS):
                self._run(self._batch, self._price)
        torch.cuda.current_stream(batch.start.device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._unrolled = self._run(self._batch, self._price)

    def _run(self, batch: TaskBatch, price: Tensor, *, graph: bool = False) -> Unroll:
        return unroll(
            self._model, batch, self._num_steps, price, segment=self._segment, graph=graph
        )


def are_alike(first: TaskBatch, second: TaskBatch) -> bool:
    """Whether two batches differ in nothing but the values of their tensors."""
    mine, yours = ([tensor.shape for tensor in _tensors(batch)] for batch in (first, second))
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


def _tensors(batch: TaskBatch) -> Iterator[Tensor]:
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from value.values()
