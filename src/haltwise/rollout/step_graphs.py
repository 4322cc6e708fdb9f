"""Steps of many items that are recorded once, as CUDA graphs of a few sizes, and launched at once.

On an accelerator a step of a few thousand small problems is some hundred kernels that take longer
to launch than to run. A `Loop` takes several such steps on tensors whose shapes stay as they are;
a recording of it has tensors of its own, into which later loops of the same kind are copied.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, NamedTuple, Protocol, TypeVar, final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from haltwise._core.kernel_setting import kernel_setting
from haltwise._core.tensors import tensors_of
from haltwise.tasks.base import TaskBatch

__all__ = ["Loop", "StepGraphs", "Unsynchronized", "advance_all", "batch_kind"]

_SIZES = tuple(2**power for power in range(13, 22))  # coordinates
_SHRINKING = 4  # times fewer places, for which items that are left are moved
_NUM_STEPS = 8  # of a recording
_MOST = 16  # recordings kept
_BYTES, _SHARE = 2**28, 64  # of their tensors, and of the device's memory, whichever is more
_PLAIN = (bool, int, float, str, tuple, type(None))


class Loop(ABC):
    """Items in places of their own, some of them empty, that advance by steps of fixed shapes.

    Steps copy no value to the host. An item that has ended leaves its place empty, and once all
    have to end, all do.
    """

    @property
    @abstractmethod
    def kind(self) -> tuple[object, ...]:
        """All that steps depend on beside the values of `tensors`."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """All that steps read or write, by name; no two share memory."""

    @abstractmethod
    def advance(self, num_steps: int) -> dict[str, Tensor]:
        """Take steps; the new values of `tensors`, but of those that were changed in place."""

    @abstractmethod
    def num_left(self) -> int:
        """How many items have not ended."""


AnyLoop = TypeVar("AnyLoop", bound=Loop)


class Run(Protocol[AnyLoop]):
    """Items that advance step by step, of which a copy can be recorded.

    Attributes:
        items: Those that have not ended, int64 [M].
        kind: See `Loop.kind`; None where steps cannot be recorded now.
    """

    items: Tensor

    @property
    def kind(self) -> tuple[object, ...] | None: ...

    def step(self) -> None:
        """Take a step, after which those that end leave."""

    def spread(self, places: int) -> AnyLoop:
        """A copy, with so many places."""

    def gather(self, loop: AnyLoop) -> None:
        """Go on where a copy has ended, with the items that are left."""


def advance_all(run: Run[AnyLoop], dim: int, graphs: "StepGraphs | None") -> None:
    """Advance until all have ended, by recorded steps where `graphs` has places for the items.

    Args:
        run: The items.
        dim: Coordinates of each.
        graphs: Where steps are recorded, if they are to be.
    """
    most: int | None = None  # places, of a recording that is not refused
    while len(run.items):
        places = None
        if graphs is not None and run.kind is not None:
            places = graphs.places(len(run.items), dim, most)
        if graphs is None or places is None:
            run.step()
            continue
        with graphs.advanced(run.spread(places.number), places.fewer) as loop:
            if loop is None:
                most = places.fewer
            else:
                run.gather(loop)


class Places(NamedTuple):
    """Places of a recording, and of that for the items that are left, 0 if there is none."""

    number: int
    fewer: int


@final
class StepGraphs:
    """Recordings of loops of one model, kept for later loops like them.

    On CUDA a recording is a graph, and at most 16 of them are kept, and 256 MiB or a 64th of the
    device's memory, not counting what their steps need for a while, which they share; elsewhere its
    steps are simply taken. Weights are read where they lie when it was made: drop all when they are
    replaced.

    Before anything is captured the steps are tried, and a loop with an operation that waits for the
    device is refused: a capture that fails can spoil PyTorch's memory for good before version 2.12
    (https://github.com/pytorch/pytorch/pull/180395).

    Args:
        num_steps: Steps of a recording, after which the host looks how many items are left.
        sizes: Numbers of coordinates, ascending, for which there are recordings.
    """

    def __init__(self, num_steps: int = _NUM_STEPS, sizes: tuple[int, ...] = _SIZES) -> None:
        self._num_steps, self._sizes = num_steps, sizes
        self._recordings: list[_Recording] = []
        self._refused: list[tuple[object, ...]] = []
        self._memory: _Memory | None = None
        self._lock = threading.Lock()
        self._done: torch.cuda.Event | None = None

    def places(self, num_items: int, dim: int, most: int | None = None) -> Places | None:
        """The smallest recording with places for so many items of so many coordinates, if any.

        None has more than `most` places.
        """
        sizes = [size // dim for size in self._sizes if most is None or size // dim <= most]
        chosen = next((size for size in sizes if size >= num_items), None)
        if chosen is None:
            return None
        fewer = [size for size in sizes if _SHRINKING * size <= chosen]
        return Places(chosen, max(fewer, default=0))

    @contextmanager
    def advanced(self, loop: AnyLoop, fewest: int) -> Iterator[AnyLoop | None]:
        """Advance items until at most so many are left.

        Yields:
            The loop after that, which is gone behind the `with` block; None where it is not
            recorded: its operations cannot be, its state is too large, or another thread uses the
            graphs.
        """
        if not self._lock.acquire(blocking=False):
            yield None
            return
        device = next(iter(loop.tensors().values())).device
        try:
            if self._done is not None:  # another stream may have been current
                torch.cuda.current_stream(device).wait_event(self._done)
            recording = self._recording(loop, device)
            if recording is None:
                yield None
                return
            recording.replay()
            while recording.loop.num_left() > fewest:
                recording.replay()
            yield recording.loop
        finally:
            if device.type == "cuda":
                self._done = torch.cuda.current_stream(device).record_event()
            self._lock.release()

    def _recording(self, loop: Loop, device: torch.device) -> "_Recording | None":
        steps = *loop.kind, *_modes()
        if steps in self._refused:
            return None
        shapes = ((name, value.shape, value.dtype) for name, value in loop.tensors().items())
        kind = *steps, *shapes
        for recording in self._recordings:
            if recording.kind == kind:
                recording.load(loop)
                self._recordings.remove(recording)
                self._recordings.append(recording)
                return recording
        recording = _Recording(kind, loop, self._num_steps)
        most = _memory_for_recordings(device)
        if recording.num_bytes > most:
            return None
        try:
            self._record(recording, device)
        except SynchronizationError:
            self._refused = [*self._refused[1 - _MOST :], steps]
            return None
        except torch.cuda.OutOfMemoryError:
            return None
        self._recordings.append(recording)
        while len(self._recordings) > _MOST or sum(r.num_bytes for r in self._recordings) > most:
            del self._recordings[0]
        return recording

    def _record(self, recording: "_Recording", device: torch.device) -> None:
        """Capture a recording, where there are graphs."""
        if device.type != "cuda":
            return
        if self._memory is None:
            stream = torch.cuda.Stream(device)
            self._memory = _Memory(torch.cuda.graph_pool_handle(), stream)
        recording.capture(device, self._memory)


def _memory_for_recordings(device: torch.device) -> int:
    """Bytes that their tensors may take together."""
    if device.type != "cuda":
        return _BYTES
    return max(_BYTES, torch.cuda.get_device_properties(device).total_memory // _SHARE)


def _modes() -> tuple[object, ...]:
    """Settings of the process by which kernels are chosen."""
    return kernel_setting(), torch.are_deterministic_algorithms_enabled()


class _Memory(NamedTuple):
    """Where graphs take memory for a while; one does so after the other.

    Libraries have workspaces for each stream, so that those of a stream of their own are in the
    pool, too.
    """

    pool: Any
    stream: torch.cuda.Stream


@final
class _Recording:
    """Some steps of a loop, whose tensors it takes for its own.

    Args:
        kind: Of the loop, with the shapes of its tensors.
        loop: The first of the kind.
        num_steps: Steps at once.
    """

    def __init__(self, kind: tuple[object, ...], loop: Any, num_steps: int) -> None:
        self.kind, self.loop, self._num_steps = kind, loop, num_steps
        self._tensors = loop.tensors()
        self.num_bytes = sum(tensor.nbytes for tensor in self._tensors.values())
        self._graph: torch.cuda.CUDAGraph | None = None

    def load(self, loop: Loop) -> None:
        """Copy another loop of the kind into the place of the first."""
        _copy(list(self._tensors.values()), list(loop.tensors().values()))

    def replay(self) -> None:
        """Take the steps."""
        if self._graph is None:
            self._advance()
        else:
            self._graph.replay()

    def capture(self, device: torch.device, memory: "_Memory") -> None:
        """Record the steps and leave the tensors as they were.

        Raises:
            SynchronizationError: They wait for the device.
            OutOfMemoryError: There is no room for what they need for a while.
        """
        before = [tensor.clone() for tensor in self._tensors.values()]
        with torch.cuda.device(device):
            with Unsynchronized():  # type: ignore[no-untyped-call]
                self._advance()  # so that libraries choose and compile their kernels
            graph = torch.cuda.CUDAGraph()
            # What other threads do does not spoil the capture.
            with torch.cuda.graph(graph, **memory._asdict(), capture_error_mode="thread_local"):
                self._advance()
        self._graph = graph
        _copy(list(self._tensors.values()), before)

    def _advance(self) -> None:
        olds, news = [], []
        places = {t.untyped_storage().data_ptr(): name for name, t in self._tensors.items()}
        for name, new in self.loop.advance(self._num_steps).items():
            old = self._tensors[name]
            place = places.get(new.untyped_storage().data_ptr())
            if place == name and new.data_ptr() == old.data_ptr():  # changed in place
                continue
            olds.append(old)
            news.append(new if place is None else new.clone())  # the place is about to change
        _copy(olds, news)


def _copy(olds: list[Tensor], news: list[Tensor]) -> None:
    """Copy values with one launch for each dtype."""
    for dtype in dict.fromkeys(old.dtype for old in olds):
        pairs = [pair for pair in zip(olds, news, strict=True) if pair[0].dtype == dtype]
        torch._foreach_copy_([old for old, _ in pairs], [new for _, new in pairs])


# ------------------------------------------------------------------------ what can be recorded


def batch_kind(batch: TaskBatch) -> tuple[object, ...] | None:
    """What a batch is beside the values of its tensors; None where a field is no plain value."""
    names = {name.partition(".")[0] for name in tensors_of(batch)}
    plain = {
        field.name: getattr(batch, field.name) for field in fields(batch) if field.name not in names
    }
    if not all(isinstance(value, _PLAIN) for value in plain.values()):
        return None
    return type(batch), *plain.items()


class SynchronizationError(RuntimeError):
    """An operation that cannot be recorded, by its name."""


@final
class Unsynchronized(TorchDispatchMode):
    """Refuse operations that wait for the device, or whose result's shape depends on data.

    Raises:
        SynchronizationError: Such an operation is about to run.
    """

    _refused = frozenset(
        (
            *("_local_scalar_dense", "is_nonzero", "equal"),
            *("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"),
            "lift_fresh",  # what `torch.tensor` and `new_tensor` have copied from the host
        )
    )

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, kwargs = function.overloadpacket.__name__, kwargs or {}
        if name in self._refused or _masks(name, args) or _crosses(name, args, kwargs):
            raise SynchronizationError(name)
        return function(*args, **kwargs)


def _masks(name: str, args: Any) -> bool:
    """Whether an index is a mask."""
    return name.startswith("index") and any(
        isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
        for index in (args[1] if isinstance(args[1], (list, tuple)) else ())
    )


def _crosses(name: str, args: Any, kwargs: Any) -> bool:
    """Whether values are copied from one kind of device to another."""
    if name == "_to_copy":
        other = kwargs.get("device")
        return other is not None and torch.device(other).type != args[0].device.type
    return name == "copy_" and args[0].device.type != args[1].device.type
