"""Stacked LSTM over many independent rows, fused on the CPU, with a plain twin.

R rows, I inputs, L layers of H units, K steps. A layer's weight is [4H, fan_in + H], the columns
of its input first; gates lie in the order of `nn.LSTMCell`: input, forget, candidate, output.
Hidden and cell states are [R, L, H].
"""

import ctypes
import functools
import importlib.util
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from haltwise._kernels.plain import PlainSequence, plain_lstm_sequence, plain_lstm_step

__all__ = [
    "available",
    "implementation",
    "lstm_sequence",
    "lstm_step",
    "one_thread",
    "plain_lstm_sequence",
    "plain_lstm_step",
]

_INSTRUCTION_SETS = ("baseline", "AVX2", "AVX-512")
_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_MIN_CHUNK, _MAX_CHUNKS = 576, 64  # rows of a thread's piece of work, and their number
_SMALL = 2**13  # row-steps, some 2 ms, that one thread does alone
_WHOLE_BLOCKS = 192  # rows: a multiple of the blocks of every instance of the kernel


# ------------------------------------------------------------------------------ accelerators


def _library_lstm_step(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """`lstm_step` by the cell that PyTorch brings: two products and one pass a layer."""
    new_hidden, new_cell = torch.empty_like(hidden), torch.empty_like(cell)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        of_input, of_hidden = weight.split((weight.shape[1] - hidden.shape[2], hidden.shape[2]), 1)
        state = (hidden[:, layer], cell[:, layer])
        inputs, new_cell[:, layer] = torch.lstm_cell(
            inputs, state, of_input, of_hidden, bias, torch.zeros_like(bias)
        )
        new_hidden[:, layer] = inputs
    return new_hidden, new_cell


def _library_lstm_sequence(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm_sequence` by the LSTM that PyTorch brings for the device (cuDNN on CUDA)."""
    size = hidden.shape[2]
    flat: list[Tensor] = []
    for weight, bias in zip(weights, biases, strict=True):
        of_input, of_hidden = weight.split((weight.shape[1] - size, size), dim=1)
        flat += [of_input.contiguous(), of_hidden.contiguous(), bias, torch.zeros_like(bias)]
    state = (hidden.transpose(0, 1).contiguous(), cell.transpose(0, 1).contiguous())
    with warnings.catch_warnings():  # that the weights are no single block, which costs a copy
        warnings.filterwarnings("ignore", message="RNN module weights", category=UserWarning)
        outputs, hidden, cell = torch.lstm(
            inputs, state, flat, True, len(weights), 0.0, torch.is_grad_enabled(), False, False
        )
    return outputs, hidden.transpose(0, 1), cell.transpose(0, 1)


# ------------------------------------------------------------------------------ compiled library


_INTEGERS = ("steps", "rows", "inputs", "hidden", "layers", "begin", "end", "outputs", "group")


class _Shape(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _INTEGERS),
        *((name, ctypes.c_double) for name in ("scale", "log_range", "threshold")),
    )


_POINTERS = {"forward": 12, "backward": 16, "pool": 3, "mean": 3}
"""The library's functions and how many pointers they take, that to the shape first."""


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    spec = importlib.util.find_spec("haltwise._kernels._lstm")
    if spec is None or spec.origin is None:
        return None, "the compiled kernel is not installed"
    try:
        library = ctypes.CDLL(spec.origin)
        for suffix, (name, num_pointers) in itertools.product(_SUFFIX.values(), _POINTERS.items()):
            function = getattr(library, f"haltwise_lstm_{name}_{suffix}")
            with_isa = [ctypes.c_int] * (name in ("forward", "backward"))
            function.argtypes = [*with_isa, *[ctypes.c_void_p] * num_pointers]
            function.restype = ctypes.c_int if with_isa else None
        isa = library.haltwise_lstm_isa()
    except (OSError, AttributeError) as error:
        return None, f"the compiled kernel does not load: {error}"
    return library, _INSTRUCTION_SETS[isa]


@functools.cache
def _isa() -> int:
    library, _ = _load()
    assert library is not None
    isa: int = library.haltwise_lstm_isa()
    return isa


def _forced_plain() -> bool:
    return os.environ.get("HALTWISE_KERNEL", "").strip().lower() == "plain"


def available() -> bool:
    """Whether CPU tensors go through the compiled kernel."""
    return not _forced_plain() and _load()[0] is not None


def implementation() -> str:
    """Which implementation runs on the CPU and why, for people to read."""
    if _forced_plain():
        return "plain PyTorch (HALTWISE_KERNEL=plain)"
    library, detail = _load()
    return f"plain PyTorch ({detail})" if library is None else f"compiled kernel ({detail})"


def fusable(inputs: Tensor, *others: Tensor) -> bool:
    """Whether the compiled kernel serves these tensors."""
    if not available() or inputs.dtype not in _SUFFIX or torch.compiler.is_compiling():
        return False
    if torch.is_grad_enabled() and inputs.requires_grad:
        return False  # the kernel takes inputs as constants
    return all(
        tensor.dtype == inputs.dtype
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        for tensor in (inputs, *others)
    )


def _check(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> None:
    """Shapes of a sequence call: the kernel reads raw memory."""
    steps, rows, fan_in = inputs.shape
    _, num_layers, size = hidden.shape
    assert steps >= 1
    assert len(weights) == len(biases) == num_layers
    assert hidden.shape == cell.shape == (rows, num_layers, size)
    for weight, bias in zip(weights, biases, strict=True):
        assert weight.shape == (4 * size, fan_in + size)
        assert bias.shape == (4 * size,)
        fan_in = size


def _pointers(tensors: Sequence[Tensor]) -> "ctypes.Array[ctypes.c_void_p]":
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))


def _pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _chunks(rows: int) -> list[tuple[int, int]]:
    """Pieces of the rows; they depend on nothing else, so that results do not either."""
    size = max(_MIN_CHUNK, -(-rows // _MAX_CHUNKS))
    size = -(-size // _WHOLE_BLOCKS) * _WHOLE_BLOCKS
    return [(begin, min(begin + size, rows)) for begin in range(0, rows, size)]


def _run(
    task: Callable[[int, int, int], int], rows: int, steps: int, *, adds_up: bool = False
) -> None:
    """Run `task(index, begin, end)` on every piece, on as many threads as PyTorch uses.

    If nothing adds up over the rows, a single thread takes all of them at once: every call packs
    the weights anew.

    The caller works, too, and waits for no thread that has not begun: on a busy machine helpers
    may come late or never, and then it has done the work by itself.
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
    """PyTorch's own operations on one thread within; the kernel still uses as many as it may.

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


@final
class Gradients(NamedTuple):
    """What stands in the place of inputs where the kernel moves a problem's coordinates.

    Attributes:
        grads: Shape [K, R].
        pooled: Mean and inverse root mean square of each problem's, shape [K, P, 2].
        num_inputs: Features of a gradient, 2 or 4.
        weight: Of the read-out, shape [O, H].
        bias: Of the read-out, shape [O].
        scale: Of the updates.
        log_range: Of the features.
    """

    grads: Tensor
    pooled: Tensor
    num_inputs: int
    weight: Tensor
    bias: Tensor
    scale: float
    log_range: float


def call(
    function: str,
    inputs: Tensor | Gradients,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *others: Tensor | None,
    sums: Tensor | None = None,
    isa: int | None = None,
) -> None:
    """Run `haltwise_lstm_{function}` on contiguous tensors; every chunk has its row of `sums`."""
    library, _ = _load()
    assert library is not None
    if isa is None:
        isa = _isa()
    run = getattr(library, f"haltwise_lstm_{function}_{_SUFFIX[hidden.dtype]}")
    rows, num_layers, size = hidden.shape
    grads = pooled = None
    plain: Tensor | None = None
    numbers: list[float] = []
    if isinstance(inputs, Gradients):
        grads, pooled, num_inputs, weight, bias = inputs[:5]
        weights, biases = [*weights, weight], [*biases, bias]
        steps, num_outputs, group = len(grads), len(bias), rows // pooled.shape[1] if rows else 1
        numbers = [inputs.scale, inputs.log_range, math.exp(-inputs.log_range)]
    else:
        plain = inputs
        steps, _, num_inputs = inputs.shape
        num_outputs, group = 0, 1
    operands = (
        *(_pointer(tensor) for tensor in (plain, hidden, cell)),
        _pointers(weights),
        _pointers(biases),
        *(_pointer(tensor) for tensor in (grads, pooled, *others)),
    )

    def task(index: int, begin: int, end: int) -> int:
        shape = _Shape(
            steps, rows, num_inputs, size, num_layers, begin, end, num_outputs, group, *numbers
        )
        own = () if sums is None else (_pointer(sums[index]),)
        code: int = run(isa, ctypes.byref(shape), *operands, *own)
        return code

    _run(task, rows, steps, adds_up=sums is not None)


@final
class Move:
    """One step of gradients at a time, without a graph: what all steps share is prepared once.

    Valid for as long as the weights stay where they are; nothing in it changes.

    Args:
        weights: L tensors [4H, fan_in + H], contiguous like all others.
        biases: L tensors [4H].
        weight: As `Gradients` has it.
        bias: Likewise.
        scale: Likewise.
        log_range: Likewise.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        weight: Tensor,
        bias: Tensor,
        scale: float,
        log_range: float,
    ) -> None:
        library, _ = _load()
        assert library is not None
        self._kept = [*weights, weight], [*biases, bias]
        self._weights, self._biases = (_pointers(tensors) for tensors in self._kept)
        self._pool, self._forward, self._mean = (
            getattr(library, f"haltwise_lstm_{name}_{_SUFFIX[weight.dtype]}")
            for name in ("pool", "forward", "mean")
        )
        self._isa, self._size = _isa(), weight.shape[1]
        num_inputs = weights[0].shape[1] - self._size
        self._layers = num_inputs, self._size, len(weights)
        self._numbers = scale, log_range, math.exp(-log_range)

    def __call__(
        self,
        grad: Tensor,
        hidden: Tensor,
        cell: Tensor,
        pooled: Tensor | None = None,
        *,
        in_place: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Contiguous [P, D], [P, D, L, H] twice and, unless it is of `grad` alone, [P, 2].

        Returns:
            Updates [P, D], the top layer's means [P, H] and the new states [P, D, L, H], which
            take the place of the old ones if asked to.
        """
        num_groups, group = grad.shape
        rows = num_groups * group
        updates, means = torch.empty_like(grad), grad.new_empty(num_groups, self._size)
        new = (hidden, cell) if in_place else (torch.empty_like(hidden), torch.empty_like(cell))

        def shape(begin: int, end: int) -> _Shape:
            num_outputs = len(self._kept[1][-1])
            return _Shape(
                1, rows, *self._layers, begin, end, num_outputs, max(group, 1), *self._numbers
            )

        whole = ctypes.byref(shape(0, rows))
        if pooled is None:
            pooled = grad.new_empty(num_groups, 2)
            self._pool(whole, grad.data_ptr(), pooled.data_ptr())
        operands = (
            None,
            *(hidden.data_ptr(), cell.data_ptr(), self._weights, self._biases),
            *(grad.data_ptr(), pooled.data_ptr(), None, updates.data_ptr()),
            *(new[0].data_ptr(), new[1].data_ptr()),
        )

        def task(_: int, begin: int, end: int) -> int:
            code: int = self._forward(self._isa, ctypes.byref(shape(begin, end)), *operands)
            return code

        _run(task, rows, 1)
        self._mean(whole, new[0].data_ptr(), means.data_ptr())
        return updates, means, *new


def _forward(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    outputs: Tensor | None,
    isa: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Final states; writes the top layer's outputs. All tensors are contiguous."""
    new = torch.empty_like(hidden), torch.empty_like(cell)
    call("forward", inputs, hidden, cell, weights, biases, outputs, None, *new, isa=isa)
    return new


def backward(
    inputs: Tensor | Gradients,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *grads: Tensor | None,
    wants_state: bool = True,
    isa: int | None = None,
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """Gradients of the states, if wanted, and of every layer's weight and bias in turn.

    The read-out counts as the last layer. `grads` are those of the top layer's outputs, the
    updates, the sums of the outputs over each problem, and the last states; None for zero.
    """
    layers = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    if isinstance(inputs, Gradients):
        layers += [inputs.weight, inputs.bias]
    sizes = [tensor.numel() for tensor in layers]
    of_hidden, of_cell = (
        torch.empty_like(value) if wants_state else None for value in (hidden, cell)
    )
    sums = torch.zeros(len(_chunks(len(hidden))), sum(sizes), dtype=torch.float64)
    call(
        "backward",
        inputs,
        hidden,
        cell,
        weights,
        biases,
        *grads,
        of_hidden,
        of_cell,
        sums=sums,
        isa=isa,
    )
    flat = sums.sum(0).to(hidden.dtype)  # in order, whoever finished first
    pieces = zip(torch.split(flat, sizes), layers, strict=True)
    return of_hidden, of_cell, [piece.view(layer.shape) for piece, layer in pieces]


def _backward(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    grad_outputs: Tensor | None,
    grad_new_hidden: Tensor | None,
    grad_new_cell: Tensor | None,
    *,
    wants_state: bool = True,
    isa: int | None = None,
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """`backward` of a sequence."""
    return backward(
        inputs,
        hidden,
        cell,
        weights,
        biases,
        grad_outputs,
        None,
        None,
        grad_new_hidden,
        grad_new_cell,
        wants_state=wants_state,
        isa=isa,
    )


@final
class _Sequence(torch.autograd.Function):
    """`lstm_sequence`; parameters come as weight, bias, weight, bias, ..."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, hidden: Tensor, cell: Tensor, *params: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        inputs, hidden, cell, *params_ = (
            tensor.contiguous() for tensor in (inputs, hidden, cell, *params)
        )
        outputs = inputs.new_empty(*inputs.shape[:2], hidden.shape[2])
        new_hidden, new_cell = _forward(inputs, hidden, cell, params_[::2], params_[1::2], outputs)
        ctx.save_for_backward(inputs, hidden, cell, *params_)
        ctx.set_materialize_grads(False)
        return outputs, new_hidden, new_cell

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, hidden, cell, *params = ctx.saved_tensors
        grad_hidden, grad_cell, grad_params = _backward(
            inputs,
            hidden,
            cell,
            params[::2],
            params[1::2],
            *(None if grad is None else grad.contiguous() for grad in grads),
            wants_state=any(ctx.needs_input_grad[1:3]),
        )
        return None, grad_hidden, grad_cell, *grad_params


# ------------------------------------------------------------------------------ public operations


def lstm_step(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """One step of a stacked LSTM, without a graph; the old state is left as it was.

    Args:
        inputs: Shape [R, I].
        hidden: Shape [R, L, H].
        cell: Shape [R, L, H].
        weights: L tensors [4H, fan_in + H].
        biases: L tensors [4H].

    Returns:
        Hidden and cell state after the step, each [R, L, H].
    """
    with torch.no_grad():
        if inputs.is_cuda:
            return _library_lstm_step(inputs, hidden, cell, weights, biases)
        if not fusable(inputs, hidden, cell, *weights, *biases):
            return plain_lstm_step(inputs, hidden, cell, weights, biases)
        sequence = inputs.contiguous().unsqueeze(0)
        _check(sequence, hidden, cell, weights, biases)
        return _forward(
            sequence,
            hidden.contiguous(),
            cell.contiguous(),
            [weight.contiguous() for weight in weights],
            [bias.contiguous() for bias in biases],
            None,
        )


def lstm_sequence(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """K steps of a stacked LSTM, differentiable once in the state and the parameters.

    The backward recomputes the forward, so a graph holds no more than the arguments, whatever K.
    Inputs are constants; should they require a gradient, the plain twin runs.

    Args:
        inputs: Shape [K, R, I].
        hidden: Shape [R, L, H].
        cell: Shape [R, L, H].
        weights: L tensors [4H, fan_in + H].
        biases: L tensors [4H].

    Returns:
        The top layer's outputs [K, R, H]; hidden and cell state after the last step, [R, L, H].
    """
    if inputs.is_cuda:
        return _library_lstm_sequence(inputs, hidden, cell, weights, biases)
    if torch.compiler.is_compiling() or (torch.is_grad_enabled() and inputs.requires_grad):
        return plain_lstm_sequence(inputs, hidden, cell, weights, biases)
    _check(inputs, hidden, cell, weights, biases)
    own = _Sequence if fusable(inputs, hidden, cell, *weights, *biases) else PlainSequence
    params = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    result: tuple[Tensor, Tensor, Tensor] = own.apply(  # type: ignore[no-untyped-call]
        inputs, hidden, cell, *params
    )
    return result
