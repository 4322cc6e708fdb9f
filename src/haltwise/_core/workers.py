"""The processes that share a training or an evaluation, and what they tell each other."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Self, final

import torch
from torch import Tensor, distributed

from haltwise._core.errors import InputError, require

__all__ = ["Workers"]

_PATIENCE = timedelta(minutes=30)  # the first may record or calibrate while others wait


@final
class Workers:
    """One process of `size`, by default the only one.

    Every worker holds all weights and takes the same steps; only the gradients of the virtual
    shards are divided among them. Adding zeros is exact, so a buffer in which every row is filled
    by one worker and zero at all others is summed to the same bits in whatever order.

    Args:
        rank: This worker's number, from 0; the first one writes the files.
        size: Workers, joined already in PyTorch's default process group if more than one.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @classmethod
    def join(cls, device: torch.device) -> Self:
        """Join the workers that `torchrun` started, by gloo on CPUs and nccl on CUDA devices.

        Raises:
            InputError: They cannot reach each other.
        """
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            store, rank, size = next(distributed.rendezvous("env://"))  # type: ignore[attr-defined]
            # The store outlives a restart: names of its own, or gloo would call the dead.
            names = distributed.PrefixStore(  # type: ignore[attr-defined]
                os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store
            )
            distributed.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=names,
                rank=rank,
                world_size=size,
                timeout=_PATIENCE,
            )
        except (RuntimeError, ValueError) as error:
            raise InputError(
                f"the {size} workers cannot join: {_line(error)}; start them with torchrun"
            ) from None
        return cls(rank, size)

    @property
    def is_first(self) -> bool:
        """Whether this worker writes the files."""
        return self.rank == 0

    def shards(self, num_shards: int) -> range:
        """The virtual shards that are this worker's.

        Raises:
            InputError: There are more workers than shards.
        """
        require(
            self.size <= num_shards,
            f"{self.size} workers share {num_shards} virtual shards, so some had nothing to do; "
            f"train with --run.num-shards {self.size} or a multiple of it",
        )
        return self.share(num_shards)

    def share(self, num_jobs: int) -> range:
        """The jobs of `num_jobs` that are this worker's."""
        return range(self.rank, num_jobs, self.size)

    def sum(self, values: Tensor) -> None:
        """Replace `values` by its sum over the workers."""
        self._tell(lambda: distributed.all_reduce(values))

    def follow_first(self, *values: Tensor) -> None:
        """Replace `values` by those of the first worker."""
        for value in values:
            self._tell(lambda value=value: distributed.broadcast(value, 0))  # type: ignore[misc]

    def wait(self) -> None:
        """Wait until all workers are here."""
        self._tell(distributed.barrier)

    def leave(self) -> None:
        """End the process group."""
        if self.size > 1 and distributed.is_initialized():
            distributed.destroy_process_group()

    def _tell(self, exchange: Callable[[], object]) -> None:
        """Exchange with the others, or raise an `InputError` where one is gone."""
        if self.size == 1:
            return
        try:
            exchange()
        except RuntimeError as error:
            raise InputError(
                f"worker {self.rank} of {self.size} has lost the others ({_line(error)}); go on "
                "from the last checkpoint with --resume, or let torchrun do so with --max-restarts"
            ) from None


def _line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
