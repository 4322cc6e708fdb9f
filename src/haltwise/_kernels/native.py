"""The compiled LSTM kernel: loading it, checking what it is given, running it on threads.

The kernel reads and writes raw memory. No pointer reaches it but that of a tensor which `_operand`
has checked or `_empty` has made.

B problems of D coordinates make N = B D rows; I inputs, L layers of H units, T steps. A layer's
weight is [4H, fan_in + H], the columns of its input first; gates lie in the order of
`nn.LSTMCell`: input, forget, candidate, output. All tensors are row-major.
"""

import ctypes
import functools
import importlib.util
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, final

import torch
from torch import Tensor, UntypedStorage

from haltwise._core.errors import InputError, require
from haltwise._kernels.operands import CPU, require_dims, require_operand

__all__ = [
    "Layers",
    "Readout",
    "available",
    "backward",
    "backward_from_gradients",
    "forward",
    "implementation",
    "one_thread",
    "serves",
    "step",
]

INSTRUCTION_SETS = ("baseline", "AVX2", "AVX-512")
_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_MIN_CHUNK, _MAX_CHUNKS = 576, 64  # rows of a thread's piece of work, and number of pieces
_SMALL = 2**13  # row-steps, some 2 ms, that one thread does alone
_WHOLE_BLOCKS = 192  # rows: a multiple of the blocks of every instance of the kernel


# ------------------------------------------------------------------------------ the library


_INTEGERS = ("steps", "rows", "inputs", "hidden", "layers", "begin", "end", "outputs", "group")


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _INTEGERS),
        *((name, ctypes.c_double) for name in ("scale", "log_range", "threshold")),
    )


_POINTERS = {"forward": 12, "backward": 16, "pool": 3, "mean": 3}
"""The library's functions and how many pointers they take, the one to the shape first."""


class _Library(NamedTuple):
    functions: dict[tuple[str, torch.dtype], Callable[..., int]]
    isa: int
    """The best instruction set of this machine, an index of `INSTRUCTION_SETS`."""


@functools.cache
def _load() -> _Library | str:
    """The library, or why there is none."""
    spec = importlib.util.find_spec("haltwise._kernels._lstm")
    if spec is None or spec.origin is None:
        return "the compiled kernel is not installed"
    functions: dict[tuple[str, torch.dtype], Callable[..., int]] = {}
    try:
        library = ctypes.CDLL(spec.origin)
        for (dtype, suffix), (name, count) in itertools.product(_SUFFIX.items(), _POINTERS.items()):
            function = getattr(library, f"haltwise_lstm_{name}_{suffix}")
            with_isa = [ctypes.c_int] * (name in ("forward", "backward"))
            function.argtypes = [*with_isa, *[ctypes.c_void_p] * count]
            function.restype = ctypes.c_int if with_isa else None
            functions[name, dtype] = function
        return _Library(functions, library.haltwise_lstm_isa())
    except (OSError, AttributeError) as error:
        return f"the compiled kernel does not load: {error}"


def library() -> _Library:
    """The compiled kernel.

    Raises:
        RuntimeError: There is none; ask `available` first.
    """
    loaded = _load()
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded


def _disabled() -> bool:
    return os.environ.get("HALTWISE_KERNEL", "").strip().lower() == "plain"


def available() -> bool:
    """Whether CPU tensors go through the compiled kernel."""
    return not _disabled() and not isinstance(_load(), str)


def implementation() -> str:
    """Name which implementation runs on the CPU and why, for people to read."""
    if _disabled():
        return "plain PyTorch (HALTWISE_KERNEL=plain)"
    loaded = _load()
    if isinstance(loaded, str):
        return f"plain PyTorch ({loaded})"
    return f"compiled kernel ({INSTRUCTION_SETS[loaded.isa]})"


def serves(tensor: Tensor) -> bool:
    """Whether the compiled kernel computes with tensors of this device and dtype."""
    return (
        tensor.is_cpu
        and tensor.dtype in _SUFFIX
        and not torch.compiler.is_compiling()
        and available()
    )


# ------------------------------------------------------------------------------ operands


def _operand(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor, checked, with its elements in order in memory of its own.

    Raises:
        InputError: It is not a plain CPU tensor of this shape and dtype.
    """
    require_operand(name, tensor, shape, dtype, CPU)
    try:
        in_order = tensor.is_contiguous() and not tensor.is_neg()
        span = tensor.numel() if in_order else _span(tensor)
        end = (tensor.storage_offset() + span) * tensor.itemsize
        if span == 0 or (tensor.data_ptr() and tensor.untyped_storage().nbytes() >= end):
            return tensor if in_order else tensor.detach().resolve_neg().contiguous()
    except RuntimeError:  # a wrapper of torch.func has no storage
        pass
    raise InputError(
        f"{name} has no memory for its shape {list(shape)}; its storage was freed, or it is "
        "inside a transformation such as torch.func.vmap, which only HALTWISE_KERNEL=plain supports"
    )


def _span(tensor: Tensor) -> int:
    """Elements from the first to the last in memory, in any order."""
    if tensor.numel() == 0:
        return 0
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in pairs)


def _empty(like: Tensor, *shape: int) -> Tensor:
    """Memory for a result, in the shape of `like` unless another is given.

    Raises:
        InputError: A mode such as `FakeTensorMode` is on, under which there is none.
    """
    new = like.new_empty(shape) if shape else torch.empty_like(like)
    if type(new) is not Tensor:
        raise InputError(
            f"the compiled kernel cannot write to a {type(new).__name__}; leave the mode that "
            "makes them, or set HALTWISE_KERNEL=plain"
        )
    return new


class Readout(NamedTuple):
    """How updates are read out of the top layer, and gradients into the bottom one.

    Attributes:
        weight: Shape [O, H], O is 2 or 4.
        bias: Shape [O].
        scale: Factor of the updates.
        log_range: Width of the features' logarithmic range in nats.
    """

    weight: Tensor
    bias: Tensor
    scale: float
    log_range: float


@final
class Layers:
    """Parameters of a stacked LSTM, checked once, as the kernel takes them.

    For use at once, or later if pinned. Values are read at every call.

    Args:
        weights: L tensors [4H, fan_in + H].
        biases: L tensors [4H].
        readout: Of a coordinatewise optimizer, otherwise None.

    Raises:
        InputError: Shapes, dtypes or devices do not fit each other.
    """

    def __init__(
        self, weights: Sequence[Tensor], biases: Sequence[Tensor], readout: Readout | None = None
    ) -> None:
        if not len(weights) == len(biases) > 0:
            raise InputError(
                f"every layer needs a weight and a bias, got {len(weights)} and {len(biases)}"
            )
        self.num_layers = len(weights)
        self.dtype = dtype = biases[0].dtype
        self.size = size = biases[0].numel() // 4
        self.num_inputs = fan_in = require_dims("a layer's weight", weights[0], "OI")[1] - size
        if size < 1 or fan_in < 1:
            raise InputError(f"a layer of {size} units cannot have {fan_in} inputs")
        self._weights, self._biases = [], []
        for weight, bias in zip(weights, biases, strict=True):
            shape = 4 * size, fan_in + size
            self._weights.append(_operand("a layer's weight", weight, shape, dtype))
            self._biases.append(_operand("a layer's bias", bias, shape[:1], dtype))
            fan_in = size
        self.num_outputs = 0
        self._numbers: tuple[float, ...] = ()
        if readout is not None:
            weight, bias, scale, log_range = readout
            self.num_outputs = num_outputs = bias.numel()
            if self.num_inputs not in (2, 4) or num_outputs not in (2, 4):
                raise InputError(
                    "a coordinatewise LSTM has 2 or 4 inputs and outputs, got "
                    f"{self.num_inputs} and {num_outputs}"
                )
            shape = num_outputs, size
            self._weights.append(_operand("the read-out's weight", weight, shape, dtype))
            self._biases.append(_operand("the read-out's bias", bias, shape[:1], dtype))
            self._numbers = scale, log_range, math.exp(-log_range)
        pointers = [tensor.data_ptr() for tensor in (*self._weights, *self._biases)]
        self.weights = (ctypes.c_void_p * len(pointers))(*pointers)
        self.biases = ctypes.byref(self.weights, ctypes.sizeof(self.weights) // 2)
        self._pinned: list[tuple[UntypedStorage, int]] = []

    @property
    def parameters(self) -> list[Tensor]:
        """Weight and bias of every layer in turn, those of the read-out last."""
        return [t for pair in zip(self._weights, self._biases, strict=True) for t in pair]

    def pin(self) -> None:
        """Prepare for use at a later time, when a parameter may have been given other memory."""
        storages = [tensor.untyped_storage() for tensor in (*self._weights, *self._biases)]
        self._pinned = [(storage, storage.data_ptr()) for storage in storages]

    def require_unmoved(self) -> None:
        """Refuse to run if the memory of pinned parameters was freed or moved.

        Raises:
            InputError: It was.
        """
        for storage, address in self._pinned:
            if storage.data_ptr() != address:
                raise InputError("weights were resized after `prepare`; prepare the rule again")

    def shape(self, steps: int, rows: int, group: int, begin: int, end: int) -> _Shape:
        """The sizes of one call of the kernel, on rows `begin` to `end`."""
        return _Shape(
            *(steps, rows, self.num_inputs, self.size, self.num_layers),
            *(begin, end, self.num_outputs, group, *self._numbers),
        )


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


# ------------------------------------------------------------------------------ threads


def _chunks(rows: int) -> list[tuple[int, int]]:
    """Pieces of the rows; they depend on nothing else, so results do not either."""
    size = max(_MIN_CHUNK, -(-rows // _MAX_CHUNKS))
    size = -(-size // _WHOLE_BLOCKS) * _WHOLE_BLOCKS
    return [(begin, min(begin + size, rows)) for begin in range(0, rows, size)]


def _run(
    task: Callable[[int, int, int], int], rows: int, steps: int, *, adds_up: bool = False
) -> None:
    """Run `task(index, begin, end)` on every piece, on as many threads as PyTorch uses.

    If nothing is summed over the rows, a single thread takes all of them at once: every call packs
    the weights anew.

    The caller works, too, and waits for no thread that has not begun: on a busy machine helpers
    may start late or never, and then it has done the work by itself.
    """
    small = rows * steps < _SMALL
    threads = 1 if small else _granted.get() or torch.get_num_threads()
    chunks = _chunks(rows) if adds_up or threads > 1 else [(0, rows)]
    todo, codes = list(enumerate(chunks)), []

    def work() -> None:
        while todo:
            try:
                index, (begin, end) = todo.pop()
            except IndexError:  # another thread was faster
                return
            codes.append(task(index, begin, end))  # without the interpreter's lock

    num_helpers = min(threads, len(chunks)) - 1
    helpers = [_pool(num_helpers).submit(work) for _ in range(num_helpers)]
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()
    if any(codes):
        raise MemoryError("no memory for the LSTM kernel's scratch")


@contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch's own operations on one thread; the kernel still uses as many as it may.

    A parallel operation waits for all of its threads. On a busy machine one of them is often not
    running, and a pass of half a millisecond over a few thousand numbers then takes thirty.
    Without the kernel, parallel operations are all there is, and nothing is changed.
    """
    threads = torch.get_num_threads()
    if threads == 1 or not available():
        yield
        return
    token = _granted.set(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _granted.reset(token)


_granted: ContextVar[int | None] = ContextVar("haltwise_threads", default=None)


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="haltwise")


# ------------------------------------------------------------------------------ calls


def forward(
    layers: Layers, inputs: Tensor, hidden: Tensor, cell: Tensor, *, isa: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Run T steps.

    Args:
        layers: The parameters.
        inputs: Shape [T, N, I].
        hidden: Shape [N, L, H].
        cell: Shape [N, L, H].
        isa: Instruction set, an index of `INSTRUCTION_SETS`; the best of the machine by default.

    Returns:
        The top layer's outputs [T, N, H]; the states after the last step, [N, L, H].

    Raises:
        InputError: An argument is not a plain CPU tensor of its shape and of the weights' dtype.
    """
    inputs, hidden, cell = _sequence_operands(layers, inputs, hidden, cell)
    steps, rows, _ = inputs.shape
    outputs = _empty(inputs, steps, rows, layers.size)
    new = _empty(hidden), _empty(cell)
    function, isa = _function("forward", layers, isa)
    operands = (
        *(inputs.data_ptr(), hidden.data_ptr(), cell.data_ptr(), layers.weights, layers.biases),
        *(None, None, outputs.data_ptr(), None, new[0].data_ptr(), new[1].data_ptr()),
    )

    def task(_: int, begin: int, end: int) -> int:
        shape = layers.shape(steps, rows, 1, begin, end)
        return function(isa, ctypes.byref(shape), *operands)

    _run(task, rows, steps)
    return outputs, *new


def step(
    layers: Layers,
    grad: Tensor,
    hidden: Tensor,
    cell: Tensor,
    pooled: Tensor | None = None,
    *,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Take one step of a coordinatewise optimizer.

    Args:
        layers: The parameters, with a read-out.
        grad: Shape [B, D].
        hidden: Shape [B, D, L, H].
        cell: Shape [B, D, L, H].
        pooled: Mean and inverse root mean square of the whole gradient, shape [B, 2], if `grad`
            is not all of it.
        in_place: Whether the new state may take the place of the old.

    Returns:
        Updates [B, D]; the top layer's means over coordinates [B, H]; the state after the step.

    Raises:
        InputError: See `forward`.
    """
    dtype, (num_problems, dim) = layers.dtype, require_dims("the gradient", grad, "BD")
    state_shape = num_problems, dim, layers.num_layers, layers.size
    grad = _operand("the gradient", grad, (num_problems, dim), dtype)
    hidden = _operand("the hidden state", hidden, state_shape, dtype)
    cell = _operand("the cell state", cell, state_shape, dtype)
    layers.require_unmoved()
    updates, means = _empty(grad), _empty(grad, num_problems, layers.size)
    new = (hidden, cell) if in_place else (_empty(hidden), _empty(cell))
    rows, group = num_problems * dim, max(dim, 1)
    functions, isa = library()
    whole = layers.shape(1, rows, group, 0, rows)
    if pooled is None:
        pooled = _empty(grad, num_problems, 2)
        functions["pool", dtype](ctypes.byref(whole), grad.data_ptr(), pooled.data_ptr())
    else:
        pooled = _operand("the pooled gradient", pooled, (num_problems, 2), dtype)
    function = functions["forward", dtype]
    operands = (
        *(None, hidden.data_ptr(), cell.data_ptr(), layers.weights, layers.biases),
        *(grad.data_ptr(), pooled.data_ptr(), None, updates.data_ptr()),
        *(new[0].data_ptr(), new[1].data_ptr()),
    )

    def task(_: int, begin: int, end: int) -> int:
        some = whole if end - begin == rows else layers.shape(1, rows, group, begin, end)
        return function(isa, ctypes.byref(some), *operands)

    _run(task, rows, 1)
    functions["mean", dtype](ctypes.byref(whole), new[0].data_ptr(), means.data_ptr())
    return updates, means, *new


class Cotangents(NamedTuple):
    """Derivatives with respect to what T steps return; None for zero.

    Attributes:
        outputs: Of the top layer's outputs, shape [T, N, H].
        updates: Of the updates, shape [T, N].
        sums: Of the sums of the outputs over each problem's coordinates, shape [T, B, H].
        hidden: Of the hidden state after the last step, shape [N, L, H].
        cell: Of the cell state after the last step, shape [N, L, H].
    """

    outputs: Tensor | None = None
    updates: Tensor | None = None
    sums: Tensor | None = None
    hidden: Tensor | None = None
    cell: Tensor | None = None


def backward(
    layers: Layers,
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    cotangents: Cotangents,
    *,
    wants_state: bool = True,
    isa: int | None = None,
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """Backpropagate through `forward`, which is recomputed.

    Args:
        layers: As `forward` takes them.
        inputs: As `forward` takes them; constants.
        hidden: As `forward` takes it.
        cell: As `forward` takes it.
        cotangents: Of outputs and states.
        wants_state: Whether the derivatives of the states are wanted.
        isa: See `forward`.

    Returns:
        Derivatives of the states [N, L, H], None unless wanted; of `layers.parameters`.

    Raises:
        InputError: See `forward`.
    """
    inputs, hidden, cell = _sequence_operands(layers, inputs, hidden, cell)
    given, rows = (inputs, None, None), len(hidden)
    return _backward(
        layers, given, hidden, cell, cotangents, rows, wants_state=wants_state, isa=isa
    )


def backward_from_gradients(
    layers: Layers,
    grads: Tensor,
    pooled: Tensor,
    hidden: Tensor,
    cell: Tensor,
    cotangents: Cotangents,
    *,
    wants_state: bool = True,
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """Backpropagate through T calls of `step`, which are recomputed.

    Args:
        layers: As `step` takes them.
        grads: Shape [T, N]; constants.
        pooled: Mean and inverse root mean square of each gradient, shape [T, B, 2].
        hidden: Before the first step, shape [N, L, H].
        cell: Before the first step, shape [N, L, H].
        cotangents: Of updates, sums and states.
        wants_state: Whether the derivatives of the states are wanted.

    Returns:
        As `backward`.

    Raises:
        InputError: See `forward`.
    """
    steps, rows = require_dims("the gradients", grads, "TN")
    require(steps >= 1, "a sequence needs at least 1 step, got 0")
    num_problems = require_dims("the pooled gradients", pooled, "TB2")[1]
    require(
        rows % num_problems == 0 if num_problems else rows == 0,
        f"{rows} coordinates cannot belong to {num_problems} problems of one size",
    )
    state_shape = rows, layers.num_layers, layers.size
    given = (
        None,
        _operand("the gradients", grads, (steps, rows), layers.dtype),
        _operand("the pooled gradients", pooled, (steps, num_problems, 2), layers.dtype),
    )
    hidden = _operand("the hidden state", hidden, state_shape, layers.dtype)
    cell = _operand("the cell state", cell, state_shape, layers.dtype)
    return _backward(layers, given, hidden, cell, cotangents, num_problems, wants_state=wants_state)


def _backward(
    layers: Layers,
    given: tuple[Tensor | None, Tensor | None, Tensor | None],
    hidden: Tensor,
    cell: Tensor,
    cotangents: Cotangents,
    num_problems: int,
    *,
    wants_state: bool,
    isa: int | None = None,
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """Run the backward kernel; `given` are inputs, or gradients and what is pooled of them."""
    steps, rows = next(len(value) for value in given if value is not None), len(hidden)
    group = max(rows // max(num_problems, 1), 1)
    shapes = (
        (steps, rows, layers.size),
        (steps, rows),
        (steps, num_problems, layers.size),
        *[tuple(hidden.shape)] * 2,
    )
    of_results = [
        None if value is None else _operand(f"a derivative of {name}", value, shape, layers.dtype)
        for name, value, shape in zip(Cotangents._fields, cotangents, shapes, strict=True)
    ]
    of_hidden, of_cell = (_empty(value) if wants_state else None for value in (hidden, cell))
    parameters = layers.parameters
    sizes = [tensor.numel() for tensor in parameters]
    # In double precision, and every chunk in a row of its own: there may be millions of addends.
    sums = _empty(hidden, len(_chunks(rows)), sum(sizes)).double().zero_()
    function, isa = _function("backward", layers, isa)
    inputs, grads, pooled = given
    operands = (
        *(_pointer(inputs), hidden.data_ptr(), cell.data_ptr(), layers.weights, layers.biases),
        *(_pointer(value) for value in (grads, pooled, *of_results, of_hidden, of_cell)),
    )

    def task(index: int, begin: int, end: int) -> int:
        shape = layers.shape(steps, rows, group, begin, end)
        return function(isa, ctypes.byref(shape), *operands, sums[index].data_ptr())

    _run(task, rows, steps, adds_up=True)
    flat = sums.sum(0).to(layers.dtype)  # in order, whichever finished first
    pieces = zip(torch.split(flat, sizes), parameters, strict=True)
    return of_hidden, of_cell, [piece.view(tensor.shape) for piece, tensor in pieces]


def _sequence_operands(
    layers: Layers, inputs: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    steps, rows, _ = require_dims("the inputs", inputs, "TNI")
    require(steps >= 1, "a sequence needs at least 1 step, got 0")
    state_shape = rows, layers.num_layers, layers.size
    return (
        _operand("the inputs", inputs, (steps, rows, layers.num_inputs), layers.dtype),
        _operand("the hidden state", hidden, state_shape, layers.dtype),
        _operand("the cell state", cell, state_shape, layers.dtype),
    )


def _function(name: str, layers: Layers, isa: int | None) -> tuple[Callable[..., int], int]:
    functions, best = library()
    return functions[name, layers.dtype], best if isa is None else isa
