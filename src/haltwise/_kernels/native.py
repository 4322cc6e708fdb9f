"""The compiled kernels: how they are loaded, what they are given, their threads; the LSTM.

Kernels read and write raw memory. No pointer reaches one but that of a tensor which `operand`
has checked or `empty` has made.

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
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ContextDecorator
from contextvars import ContextVar, Token
from typing import Any, NamedTuple, cast, final

import torch
from torch import Tensor, UntypedStorage
from torch.autograd.graph import increment_version

from haltwise._core.errors import InputError, require
from haltwise._core.kernel_setting import KERNEL_VARIABLE, kernel_setting
from haltwise._kernels.operands import (
    CPU,
    LOG_RANGE,
    Operand,
    is_dense,
    is_watched,
    layer_operands,
    readout_operands,
    replay_operands,
    require_dims,
    require_operand,
    state_operands,
)

__all__ = [
    "Layers",
    "available",
    "backward",
    "forward",
    "implementation",
    "one_thread",
    "serves",
    "serves_all",
    "step",
]

INSTRUCTION_SETS = ("baseline", "AVX2", "AVX-512")

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_MIN_CHUNK, _MAX_CHUNKS = 576, 64  # rows of a thread's piece of work, and number of pieces
_SMALL = 2**13  # row-steps, some 2 ms, that one thread does alone
_WHOLE_BLOCKS = 192  # rows: a multiple of the blocks of every instance of the kernel


# ------------------------------------------------------------------------------ the library


_INTEGERS = ("steps", "rows", "inputs", "hidden", "layers", "begin", "end", "outputs", "group")


class Shape(ctypes.Structure):
    """The sizes of one call, a piece of whose rows is to be done."""

    steps: int
    rows: int
    begin: int
    end: int


class _LSTMShape(Shape):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _INTEGERS),
        *((name, ctypes.c_double) for name in ("scale", "log_range", "threshold")),
    )


_POINTERS = {
    "lstm_forward": 12,
    "lstm_backward": 16,
    "lstm_pool": 3,
    "lstm_mean": 3,
    "head_forward": 9,
    "head_backward": 7,
    "features": 10,
    "signals": 7,
    "mlp": 13,
}
"""The library's functions and how many pointers they take, the one to the shape first."""
_WITHOUT_CODE = ("lstm_pool", "lstm_mean")
"""They cannot fail, and one instance does for all machines."""


class _Library(NamedTuple):
    functions: dict[tuple[str, torch.dtype], Callable[..., int]]
    isa: int
    """The instruction set that is used, an index of `INSTRUCTION_SETS`: this machine's best."""


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
            function = getattr(library, f"haltwise_{name}_{suffix}")
            with_isa = [] if name in _WITHOUT_CODE else [ctypes.c_int]
            function.argtypes = [*with_isa, *[ctypes.c_void_p] * count]
            function.restype = ctypes.c_int if with_isa else None
            functions[name, dtype] = function
        return _Library(functions, library.haltwise_lstm_isa())
    except (OSError, AttributeError) as error:
        return f"the compiled kernel does not load: {error}"


def library() -> _Library:
    """The compiled kernel, which must be `available`."""
    loaded = _load()
    if isinstance(loaded, str):
        raise RuntimeError(loaded)
    return loaded


def _enabled() -> _Library | str:
    """The library, or why it is not used."""
    # Asked first whether it is there, which takes a third of the time.
    if KERNEL_VARIABLE in os.environ and kernel_setting() == "plain":
        return "HALTWISE_KERNEL=plain"
    return _load()


def available() -> bool:
    """Whether CPU tensors go through the compiled kernel."""
    return not isinstance(_enabled(), str)


def implementation() -> str:
    """Name which implementation runs on the CPU and why, for people to read."""
    found = _enabled()
    if isinstance(found, str):
        return f"plain PyTorch ({found})"
    return f"compiled kernel ({INSTRUCTION_SETS[found.isa]})"


def serves(tensor: Tensor) -> bool:
    """Whether the compiled kernel computes with tensors of this device and dtype, now."""
    return tensor.is_cpu and tensor.dtype in _SUFFIX and not is_watched() and available()


def serves_all(*tensors: Tensor) -> bool:
    """Whether the compiled kernel computes with these together, now."""
    dtype = tensors[0].dtype
    return serves(tensors[0]) and all(
        is_dense(tensor) and tensor.is_cpu and tensor.dtype is dtype for tensor in tensors
    )


# ------------------------------------------------------------------------------ operands


def operand(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor, checked, with its elements in order in memory of its own."""
    require_operand(name, tensor, shape, dtype, CPU)
    in_order = tensor.is_contiguous() and not tensor.is_neg()
    span = tensor.numel() if in_order else _span(tensor)
    end = (tensor.storage_offset() + span) * tensor.itemsize
    try:
        has_memory = span == 0 or (tensor.data_ptr() and tensor.untyped_storage().nbytes() >= end)
    except RuntimeError:  # a wrapper of torch.func has no storage
        has_memory = False
    if not has_memory:
        raise InputError(
            f"{name} has no memory for its shape {list(shape)}; its storage was freed, or it is "
            "inside a transformation such as torch.func.vmap, which only HALTWISE_KERNEL=plain "
            "supports"
        )
    return tensor if in_order else _plain(tensor.detach().resolve_neg().contiguous())


def _span(tensor: Tensor) -> int:
    """Elements from the first to the last in memory, in any order."""
    if tensor.numel() == 0:
        return 0
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((size - 1) * stride for size, stride in pairs)


def empty(like: Tensor, *shape: int) -> Tensor:
    """Memory for a result, in the shape of `like` unless another is given."""
    return _plain(like.new_empty(shape) if shape else torch.empty_like(like))


def addresses(tensors: Sequence[Tensor | None]) -> "ctypes.Array[ctypes.c_void_p]":
    """Pointers to tensors, or null pointers; who keeps them keeps the tensors, too."""
    pointers = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
    found: Any = (ctypes.c_void_p * len(tensors))(*pointers)
    found.tensors = tensors
    return cast("ctypes.Array[ctypes.c_void_p]", found)


def _plain(made: Tensor) -> Tensor:
    """A new tensor; refused under a mode, such as `FakeTensorMode`, that gives it no memory."""
    if type(made) is not Tensor:
        raise InputError(
            f"the compiled kernel cannot use a {type(made).__name__}; leave the mode that makes "
            "them, or set HALTWISE_KERNEL=plain"
        )
    return made


class Parameters:
    """Parameters of a network, checked once. For use at once, or later if watched.

    Values are read at every call.

    Args:
        table: The parameters and their shapes.
        dtype: Of all of them.

    Raises:
        InputError: Shapes, dtypes or devices do not fit each other.
    """

    def __init__(self, table: Iterable[Operand], dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.parameters = self.operands(table)
        self._watched: list[tuple[UntypedStorage, int]] = []

    def operands(self, table: Iterable[Operand]) -> list[Tensor]:
        """Tensors of the parameters' dtype, checked."""
        return [operand(name, tensor, shape, self.dtype) for name, tensor, shape in table]

    def watch(self) -> None:
        """Keep the memory: until later use, a parameter may be given another."""
        storages = [tensor.untyped_storage() for tensor in self.parameters]
        self._watched = [(storage, storage.data_ptr()) for storage in storages]

    def require_unmoved(self) -> None:
        """Refuse to run if watched memory was freed or moved."""
        for storage, address in self._watched:
            if storage.data_ptr() != address:
                raise InputError("weights were resized after `prepare`; prepare them again")

    def new_sums(self, whole: Shape) -> Tensor:
        """Zeros for derivatives of the parameters, a row for every piece of the rows, float64."""
        num_scalars = sum(tensor.numel() for tensor in self.parameters)
        like = self.parameters[0].detach()
        return empty(like, len(pieces(whole)), num_scalars).double().zero_()

    def summed(self, sums: Tensor) -> list[Tensor]:
        """Derivatives of the parameters; pieces are added in order, whichever finished first."""
        flat = sums.sum(0).to(self.dtype)
        parts = torch.split(flat, [tensor.numel() for tensor in self.parameters])
        return [
            part.view(tensor.shape) for part, tensor in zip(parts, self.parameters, strict=True)
        ]


@final
class Layers(Parameters):
    """Parameters of a stacked LSTM: weight and bias of every layer, those of the read-out last.

    Args:
        weights: L tensors [4H, fan_in + H].
        biases: L tensors [4H].
        readout: Of a coordinatewise optimizer, otherwise None: weight [O, H] and bias [O] of its
            read-out, where O is 1, 2 or 4, and the factor of its updates.

    Raises:
        InputError: Shapes, dtypes or devices do not fit each other.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        readout: tuple[Tensor, Tensor, float] | None = None,
    ) -> None:
        table = layer_operands(weights, biases)
        self.num_layers = len(weights)
        self.size = size = biases[0].numel() // 4
        self.num_inputs, self.num_outputs = weights[0].shape[1] - size, 0
        self._numbers: tuple[float, ...] = ()
        if readout is not None:
            weight, bias, scale = readout
            self.num_outputs = bias.numel()
            table += readout_operands(weight, bias, self.num_inputs, size)
            self._numbers = scale, LOG_RANGE, math.exp(-LOG_RANGE)
        super().__init__(table, biases[0].dtype)
        self.weights = addresses([*self.parameters[::2], *self.parameters[1::2]])
        self.biases = ctypes.byref(self.weights, ctypes.sizeof(self.weights) // 2)

    def shape(self, steps: int, rows: int, group: int = 1) -> _LSTMShape:
        """The sizes of one call of the kernel."""
        return _LSTMShape(
            *(steps, rows, self.num_inputs, self.size, self.num_layers),
            *(0, rows, self.num_outputs, group, *self._numbers),
        )


# ------------------------------------------------------------------------------ threads


def pieces(whole: Shape) -> list[Shape]:
    """Pieces of the rows; they depend on nothing else, so results do not either."""
    rows, found = whole.rows, []
    size = max(_MIN_CHUNK, -(-rows // _MAX_CHUNKS))
    size = -(-size // _WHOLE_BLOCKS) * _WHOLE_BLOCKS
    for begin in range(0, rows, size):
        piece = type(whole).from_buffer_copy(whole)
        piece.begin, piece.end = begin, min(begin + size, rows)
        found.append(piece)
    return found


def run(
    name: str,
    dtype: torch.dtype,
    whole: Shape,
    operands: Sequence[object],
    sums: Tensor | None = None,
) -> None:
    """Run a function on every piece of the rows, on as many threads as PyTorch uses.

    If nothing is summed over the rows, a single thread takes all of them at once: every call packs
    the weights anew. Otherwise a piece adds to its own row of `sums`.

    The caller works, too, and waits for no thread that has not begun: on a busy machine helpers
    may start late or never, and then it has done the work by itself. Should it be interrupted,
    what helpers still read and write stays alive until they are done.

    Args:
        name: Of a function that returns a code.
        dtype: Of the tensors.
        whole: The sizes.
        operands: Tensors, other things as `ctypes` takes them, or None for a null pointer.
        sums: From `new_sums`.
    """
    functions, isa = library()
    function = functions[name, dtype]
    rows, steps = whole.rows, whole.steps
    threads = 1 if rows * steps < _SMALL else _granted.get() or torch.get_num_threads()
    parts = [whole] if sums is None and threads == 1 else pieces(whole)
    todo, codes = list(enumerate(parts)), []

    def work() -> None:
        pointers = [op.data_ptr() if isinstance(op, Tensor) else op for op in operands]
        while todo:
            try:
                index, part = todo.pop()
            except IndexError:  # another thread was faster
                return
            own = () if sums is None else (sums[index].data_ptr(),)
            code = function(isa, ctypes.byref(part), *pointers, *own)  # without the lock
            codes.append(code)

    num_helpers = min(threads, len(parts)) - 1
    helpers = [_pool(num_helpers).submit(work) for _ in range(num_helpers)]
    try:
        work()
    finally:
        todo.clear()
    for helper in helpers:
        if not helper.cancel():
            helper.result()
    if any(codes):
        raise MemoryError("no memory for the kernel's scratch")


class one_thread(ContextDecorator):  # noqa: N801 - it reads as a function, as those of contextlib
    """Run PyTorch's own operations on one thread; kernels still use as many as they may.

    A parallel operation waits for all of its threads. On a busy machine one of them is often not
    running, and a pass of half a millisecond over a few thousand numbers then takes thirty.
    Without kernels, parallel operations are all there is, and nothing is changed.
    """

    _before: tuple[int, Token[int | None]] | None = None

    def _recreate_cm(self) -> "one_thread":  # of a decorated function's every call
        return one_thread()

    def __enter__(self) -> None:
        threads = torch.get_num_threads()
        if threads > 1 and available():
            self._before = threads, _granted.set(threads)
            torch.set_num_threads(1)

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            threads, token = self._before
            torch.set_num_threads(threads)
            _granted.reset(token)


_granted: ContextVar[int | None] = ContextVar("haltwise_threads", default=None)


@functools.cache
def _pool(num_threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads, thread_name_prefix="haltwise")


# ------------------------------------------------------------------------------ calls


def forward(
    layers: Layers, inputs: Tensor, hidden: Tensor, cell: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm_sequence` of plain CPU tensors in the weights' dtype; others are refused."""
    steps, rows, _ = require_dims("the inputs", inputs, "TNI")
    given = layers.operands(
        [
            ("the inputs", inputs, (steps, rows, layers.num_inputs)),
            *state_operands(hidden, cell, (rows, layers.num_layers, layers.size)),
        ]
    )
    layers.require_unmoved()
    outputs = empty(given[0], steps, rows, layers.size)
    new = empty(given[1]), empty(given[2])
    operands = [*given, layers.weights, layers.biases, None, None, outputs, None, *new]
    run("lstm_forward", layers.dtype, layers.shape(steps, rows), operands)
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
    """`Coordinatewise.step` of plain CPU tensors in the weights' dtype; others are refused.

    Here `pooled` is the mean and the inverse root mean square, shape [B, 2].
    """
    require(layers.num_outputs > 0, "a step needs a read-out")
    num_problems, dim = require_dims("the gradient", grad, "BD")
    state_shape = num_problems, dim, layers.num_layers, layers.size
    given = [
        ("the gradient", grad, (num_problems, dim)),
        *state_operands(hidden, cell, state_shape),
    ]
    layers.require_unmoved()
    grad, hidden, cell = layers.operands(given)
    updates, means = empty(grad), empty(grad, num_problems, layers.size)
    in_place = in_place and _may_be_written(hidden, cell, grad)
    new = (hidden, cell) if in_place else (empty(hidden), empty(cell))
    functions, _ = library()
    whole = layers.shape(1, num_problems * dim, dim)
    if pooled is None:
        pooled = empty(grad, num_problems, 2)
        functions["lstm_pool", layers.dtype](
            ctypes.byref(whole), grad.data_ptr(), pooled.data_ptr()
        )
    else:
        pooled = operand("the pooled gradient", pooled, (num_problems, 2), layers.dtype)
    before = None, hidden, cell, layers.weights, layers.biases
    run("lstm_forward", layers.dtype, whole, [*before, grad, pooled, None, updates, *new])
    functions["lstm_mean", layers.dtype](ctypes.byref(whole), new[0].data_ptr(), means.data_ptr())
    if in_place:
        for tensor in new:
            if not tensor.is_inference():
                increment_version(tensor)  # graphs that saved it notice
    return updates, means, *new


def _may_be_written(hidden: Tensor, cell: Tensor, grad: Tensor) -> bool:
    """Whether a step may replace a state in its place: no graph has it, nothing else lies there."""
    size, grad_size = hidden.nbytes, grad.nbytes
    at, cell_at, grad_at = hidden.data_ptr(), cell.data_ptr(), grad.data_ptr()
    return (
        not (hidden.requires_grad or cell.requires_grad)
        and abs(at - cell_at) >= size
        and not at - grad_size < grad_at < at + size
        and not cell_at - grad_size < grad_at < cell_at + size
    )


def backward(
    layers: Layers,
    given: Tensor,
    hidden: Tensor,
    cell: Tensor,
    *,
    pooled: Tensor | None = None,
    d_outputs: Tensor | None = None,
    d_updates: Tensor | None = None,
    d_sums: Tensor | None = None,
    d_hidden: Tensor | None = None,
    d_cell: Tensor | None = None,
    wants_state: bool = True,
) -> tuple[list[Tensor], list[Tensor]]:
    """Backpropagate through T steps, which are recomputed; a derivative that is None is zero.

    Args:
        layers: With a read-out for T calls of `step`, without for `forward`.
        given: Constants: inputs [T, N, I], or with a read-out gradients [T, N].
        hidden: Before the first step, shape [N, L, H].
        cell: Before the first step, shape [N, L, H].
        pooled: Mean and inverse root mean square of each gradient, shape [T, B, 2].
        d_outputs: Derivative with respect to the top layer's outputs, shape [T, N, H].
        d_updates: With respect to the updates, shape [T, N].
        d_sums: With respect to sums of outputs over a problem's coordinates, shape [T, B, H].
        d_hidden: With respect to the hidden state after the last step, shape [N, L, H].
        d_cell: With respect to the cell state after the last step, shape [N, L, H].
        wants_state: Whether the derivatives of the states are wanted.

    Returns:
        Derivatives of both states [N, L, H], empty unless wanted; of `layers.parameters`.
    """
    optional = pooled, d_outputs, d_updates, d_sums, d_hidden, d_cell
    (steps, rows, num_problems), table = replay_operands(layers, given, (hidden, cell), *optional)
    own, *others = (
        None if tensor is None else operand(name, tensor, shape, layers.dtype)
        for name, tensor, shape in table
    )
    inputs, gradients = (None, own) if layers.num_outputs else (own, None)
    layers.require_unmoved()
    d_first = [empty(hidden, *hidden.shape) for _ in range(2 if wants_state else 0)]
    whole = layers.shape(steps, rows, max(rows // max(num_problems, 1), 1))
    # In double precision, and every piece in a row of its own: there may be millions of addends.
    sums = layers.new_sums(whole)
    before = inputs, *others[:2], layers.weights, layers.biases, gradients
    operands = [*before, *others[2:], *(d_first or (None, None))]
    run("lstm_backward", layers.dtype, whole, operands, sums)
    return d_first, layers.summed(sums)
