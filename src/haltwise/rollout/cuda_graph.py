"""Unrolls on an accelerator as one CUDA graph."""

from collections.abc import Iterator
from dataclasses import fields
from typing import Any, final

import torch
from torch import Tensor

from haltwise._core.tensors import map_tensors
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.tasks import TaskBatch
from haltwise.rollout.record import Trajectory, unroll

__all__ = ["CapturedUnroll"]

_WARMUPS = 2  # PyTorch's advice: libraries choose their kernels before the capture


@final
class CapturedUnroll:
    """`unroll` for batches of one shape, launched at once.

    T steps of a network are thousands of small kernels, which take longer to launch one by one
    than to run. The first batch is run and captured, later ones are copied into its place. The
    optimizer's weights are read where they lie, so they may be trained in between.

    On a CPU it is `unroll`.

    Args:
        optimizer: What moves the parameters and speaks of halting.
        num_steps: T >= 1.
        segment: See `record`.
    """

    def __init__(self, optimizer: OptimizerModel, num_steps: int, segment: int) -> None:
        self._arguments: dict[str, Any] = {"num_steps": num_steps, "segment": segment}
        self._optimizer = optimizer
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, batch: TaskBatch, price: Tensor) -> Trajectory:
        """The trajectory, valid until the next call."""
        if not batch.start.is_cuda:
            return unroll(self._optimizer, batch, price=price, graph=True, **self._arguments)
        if self._graph is None:
            self._capture(batch, price)
        else:
            for kept, new in zip(_tensors(self._batch), _tensors(batch), strict=True):
                kept.copy_(new)
            self._price.copy_(price)
        assert self._graph is not None
        self._graph.replay()
        return self._trajectory

    def _capture(self, batch: TaskBatch, price: Tensor) -> None:
        self._batch, self._price = map_tensors(batch, torch.clone), price.clone()
        aside = torch.cuda.Stream(batch.start.device)
        aside.wait_stream(torch.cuda.current_stream(batch.start.device))
        with torch.cuda.stream(aside):
            for _ in range(_WARMUPS):
                self._run()
        torch.cuda.current_stream(batch.start.device).wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._trajectory = self._run()

    def _run(self) -> Trajectory:
        return unroll(self._optimizer, self._batch, price=self._price, **self._arguments)


def _tensors(batch: TaskBatch) -> Iterator[Tensor]:
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, dict):
            yield from value.values()
