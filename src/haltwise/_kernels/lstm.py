"""Stacked LSTM over many independent rows, fused on the CPU, with a plain twin.

R rows, I inputs, L layers of H units, K steps. A layer's weight is [4H, fan_in + H], the columns
of its input first; gates lie in the order of `nn.LSTMCell`: input, forget, candidate, output.
Hidden and cell states are [R, L, H].
"""

import ctypes
import functools
import importlib.util
import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "available",
    "ReadOut",
    "implementation",
    "lstm_gradient",
    "lstm_sequence",
    "lstm_step",
    "lstm_update",
    "plain_lstm_sequence",
    "plain_lstm_step",
    "read_out",
]

_INSTRUCTION_SETS = ("baseline", "AVX2", "AVX-512")
_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_MIN_CHUNK, _MAX_CHUNKS = 576, 64  # rows of a thread's piece of work, and their number
_WHOLE_BLOCKS = 192  # rows: a multiple of the blocks of every instance of the kernel
_PLAIN_CHUNK = 2048  # rows whose graph fits a cache


@final
class ReadOut(NamedTuple):
    """Updates from the top layer: scale exp(b) (a + k n + l m), (a, b, k, l) = weight h + bias.

    Attributes:
        weight: Shape [O, H]; O is 2 where k and l are zero, else 4.
        bias: Shape [O].
        scale: As said.
    """

    weight: Tensor
    bias: Tensor
    scale: float


# ------------------------------------------------------------------------------ plain PyTorch


def read_out(top: Tensor, basis: Tensor | None, readout: ReadOut) -> Tensor:
    """Updates [...] of the top layer's outputs [..., H] and the basis (n, m), [..., 2]."""
    values = torch.nn.functional.linear(top, readout.weight, readout.bias)
    direction = values[..., 0]
    if basis is not None:
        direction = direction + (values[..., 2:] * basis).sum(-1)
    return readout.scale * direction * values[..., 1].exp()


def _plain_step(
    inputs: Tensor,
    hidden: Sequence[Tensor],
    cell: Sequence[Tensor],
    transposed: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[list[Tensor], list[Tensor]]:
    """One step on per-layer states; weights are [fan_in + H, 4H]."""
    value = inputs
    new_hidden, new_cell = [], []
    for weight, bias, h, c in zip(transposed, biases, hidden, cell, strict=True):
        gates = torch.addmm(bias, torch.cat((value, h), dim=1), weight)
        enter, forget, candidate, leave = gates.chunk(4, dim=1)
        new = forget.sigmoid() * c + enter.sigmoid() * candidate.tanh()
        value = leave.sigmoid() * new.tanh()
        new_hidden.append(value)
        new_cell.append(new)
    return new_hidden, new_cell


def plain_lstm_step(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor]:
    """`lstm_step` in plain PyTorch, differentiable in everything."""
    transposed = [weight.T for weight in weights]
    new_hidden, new_cell = _plain_step(inputs, hidden.unbind(1), cell.unbind(1), transposed, biases)
    return torch.stack(new_hidden, 1), torch.stack(new_cell, 1)


def plain_lstm_sequence(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm_sequence` in plain PyTorch, differentiable in everything."""
    transposed = [weight.T for weight in weights]
    hiddens: Sequence[Tensor] = hidden.unbind(1)
    cells: Sequence[Tensor] = cell.unbind(1)
    outputs = []
    for value in inputs.unbind(0):
        hiddens, cells = _plain_step(value, hiddens, cells, transposed, biases)
        outputs.append(hiddens[-1])
    return torch.stack(outputs), torch.stack(tuple(hiddens), 1), torch.stack(tuple(cells), 1)


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


class _Shape(ctypes.Structure):
    _fields_ = (
        *(
            (name, ctypes.c_int64)
            for name in "steps rows inputs hidden layers begin end outputs group".split()
        ),
        ("scale", ctypes.c_double),
    )


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    spec = importlib.util.find_spec("haltwise._kernels._lstm")
    if spec is None or spec.origin is None:
        return None, "the compiled kernel is not installed"
    try:
        library = ctypes.CDLL(spec.origin)
        for suffix in _SUFFIX.values():
            getattr(library, f"haltwise_lstm_forward_{suffix}").restype = ctypes.c_int
            getattr(library, f"haltwise_lstm_backward_{suffix}").restype = ctypes.c_int
        isa = library.haltwise_lstm_isa()
    except (OSError, AttributeError) as error:
        return None, f"the compiled kernel does not load: {error}"
    return library, _INSTRUCTION_SETS[isa]


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


def _fusable(inputs: Tensor, *others: Tensor) -> bool:
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


def _pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _chunks(rows: int) -> list[tuple[int, int]]:
    """Pieces of the rows; they depend on nothing else, so that results do not either."""
    size = max(_MIN_CHUNK, -(-rows // _MAX_CHUNKS))
    size = -(-size // _WHOLE_BLOCKS) * _WHOLE_BLOCKS
    return [(begin, min(begin + size, rows)) for begin in range(0, rows, size)]


def _run(task: Callable[[int, int, int], int], chunks: Sequence[tuple[int, int]]) -> None:
    """Run `task(index, begin, end)` on every chunk, on as many threads as PyTorch uses."""
    arguments = [(index, begin, end) for index, (begin, end) in enumerate(chunks)]
    workers = min(torch.get_num_threads(), len(chunks))
    if workers > 1:  # ctypes releases the interpreter lock
        with ThreadPoolExecutor(workers) as pool:
            codes = list(pool.map(lambda chunk: task(*chunk), arguments))
    else:
        codes = [task(*chunk) for chunk in arguments]
    if any(codes):
        raise MemoryError("no memory for the LSTM kernel's scratch")


def _call(
    function: str,
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    *others: Tensor | None,
    readout: ReadOut | None,
    group: int = 1,
    sums: Tensor | None = None,
    isa: int | None,
) -> None:
    """Run `haltwise_lstm_{function}` on contiguous tensors; every chunk has its row of `sums`."""
    library, _ = _load()
    assert library is not None
    if isa is None:
        isa = library.haltwise_lstm_isa()
    run = getattr(library, f"haltwise_lstm_{function}_{_SUFFIX[inputs.dtype]}")
    steps, rows, num_inputs = inputs.shape
    _, num_layers, size = hidden.shape
    num_outputs, scale = 0, 1.0
    if readout is not None:
        weights, biases = [*weights, readout.weight], [*biases, readout.bias]
        num_outputs, scale = len(readout.bias), readout.scale
    operands = (
        *(_pointer(tensor) for tensor in (inputs, hidden, cell)),
        _pointers(weights),
        _pointers(biases),
        *(_pointer(tensor) for tensor in others),
    )

    def task(index: int, begin: int, end: int) -> int:
        shape = _Shape(
            steps, rows, num_inputs, size, num_layers, begin, end, num_outputs, group, scale
        )
        own = () if sums is None else (_pointer(sums[index]),)
        code: int = run(isa, ctypes.byref(shape), *operands, *own)
        return code

    _run(task, _chunks(rows))


def _forward(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    outputs: Tensor | None,
    isa: int | None = None,
    *,
    readout: ReadOut | None = None,
    basis: Tensor | None = None,
    updates: Tensor | None = None,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """Final states; writes the top layer's outputs and the updates. All tensors are contiguous."""
    new_hidden, new_cell = (
        (hidden, cell) if in_place else (torch.empty_like(hidden), torch.empty_like(cell))
    )
    _call(
        "forward",
        inputs,
        hidden,
        cell,
        weights,
        biases,
        basis,
        outputs,
        updates,
        new_hidden,
        new_cell,
        readout=readout,
        isa=isa,
    )
    return new_hidden, new_cell


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
    wants_hidden: bool = True,
    wants_cell: bool = True,
    readout: ReadOut | None = None,
    basis: Tensor | None = None,
    grad_updates: Tensor | None = None,
    grad_pooled: Tensor | None = None,
    isa: int | None = None,
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """Gradients of the states, if wanted, and of every layer's weight and bias in turn.

    The read-out counts as the last layer. `grad_pooled` [K, P, H] is that of sums over the rows
    of P groups.
    """
    grad_hidden = torch.empty_like(hidden) if wants_hidden else None
    grad_cell = torch.empty_like(cell) if wants_cell else None
    shapes = [tensor.shape for pair in zip(weights, biases, strict=True) for tensor in pair]
    if readout is not None:
        shapes += [readout.weight.shape, readout.bias.shape]
    rows = inputs.shape[1]
    sums = torch.zeros(
        len(_chunks(rows)), sum(shape.numel() for shape in shapes), dtype=torch.float64
    )
    _call(
        "backward",
        inputs,
        hidden,
        cell,
        weights,
        biases,
        basis,
        grad_outputs,
        grad_updates,
        grad_pooled,
        grad_new_hidden,
        grad_new_cell,
        grad_hidden,
        grad_cell,
        readout=readout,
        group=1 if grad_pooled is None else rows // grad_pooled.shape[1],
        sums=sums,
        isa=isa,
    )
    flat = sums.sum(0).to(inputs.dtype)  # in order, whoever finished first
    pieces = torch.split(flat, [shape.numel() for shape in shapes])
    return (
        grad_hidden,
        grad_cell,
        [piece.view(shape) for piece, shape in zip(pieces, shapes, strict=True)],
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
            wants_hidden=ctx.needs_input_grad[1],
            wants_cell=ctx.needs_input_grad[2],
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
        if not _fusable(inputs, hidden, cell, *weights, *biases):
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
    if not _fusable(inputs, hidden, cell, *weights, *biases):
        return plain_lstm_sequence(inputs, hidden, cell, weights, biases)
    _check(inputs, hidden, cell, weights, biases)
    params = [tensor for pair in zip(weights, biases, strict=True) for tensor in pair]
    result: tuple[Tensor, Tensor, Tensor] = _Sequence.apply(  # type: ignore[no-untyped-call]
        inputs, hidden, cell, *params
    )
    return result


def lstm_update(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    readout: ReadOut,
    basis: Tensor | None,
    *,
    in_place: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """`lstm_step` and the updates read out of it, without a graph.

    Args:
        inputs: Shape [R, I].
        hidden: Shape [R, L, H].
        cell: Shape [R, L, H].
        weights: L tensors [4H, fan_in + H].
        biases: L tensors [4H].
        readout: How updates are read out.
        basis: (n, m), shape [R, 2]; None where the read-out has two outputs.
        in_place: Whether the new state may take the place of the old.

    Returns:
        Updates [R]; hidden and cell state after the step, each [R, L, H].
    """
    with torch.no_grad():
        if not _fusable(inputs, hidden, cell, *weights, *biases):
            hidden, cell = lstm_step(inputs, hidden, cell, weights, biases)
            return read_out(hidden[:, -1], basis, readout), hidden, cell
        sequence = inputs.contiguous().unsqueeze(0)
        _check(sequence, hidden, cell, weights, biases)
        updates = torch.empty_like(inputs[:, 0])
        hidden, cell = _forward(
            sequence,
            hidden.contiguous(),
            cell.contiguous(),
            [weight.contiguous() for weight in weights],
            [bias.contiguous() for bias in biases],
            None,
            readout=_contiguous(readout),
            basis=None if basis is None else basis.contiguous(),
            updates=updates,
            in_place=in_place,
        )
        return updates, hidden, cell


def lstm_gradient(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    readout: ReadOut,
    basis: Tensor | None,
    grad_updates: Tensor,
    grad_pooled: Tensor,
    grad_hidden: Tensor | None,
    grad_cell: Tensor | None,
    *,
    wants_state: bool,
) -> tuple[Tensor | None, Tensor | None, list[Tensor]]:
    """Backward of K steps of `lstm_update` that are forgotten but for the state before them.

    The steps are recomputed. P groups of R / P consecutive rows each are pooled by their sum.

    Args:
        inputs: Constants, shape [K, R, I].
        hidden: Shape [R, L, H].
        cell: Shape [R, L, H].
        weights: L tensors [4H, fan_in + H].
        biases: L tensors [4H].
        readout: How updates are read out.
        basis: (n, m), constants, shape [K, R, 2]; None where the read-out has two outputs.
        grad_updates: Of the updates, shape [K, R].
        grad_pooled: Of the sums of the top layer's outputs over a group, shape [K, P, H].
        grad_hidden: Of the state after the last step, shape [R, L, H], None for zero.
        grad_cell: Likewise.
        wants_state: Whether the gradient of the state before the steps is wanted.

    Returns:
        Gradients of that state, if wanted; and of every layer's weight and bias in turn, the
        read-out's last.
    """
    rows, group = inputs.shape[1], inputs.shape[1] // grad_pooled.shape[1]
    operands = (inputs, hidden, cell, *weights, *biases, *readout[:2])
    with torch.no_grad():
        if _fusable(*operands):
            _check(inputs, hidden, cell, weights, biases)
            hidden, cell = hidden.contiguous(), cell.contiguous()
            return _backward(
                inputs.contiguous(),
                hidden,
                cell,
                [weight.contiguous() for weight in weights],
                [bias.contiguous() for bias in biases],
                None,
                None if grad_hidden is None else grad_hidden.contiguous(),
                None if grad_cell is None else grad_cell.contiguous(),
                wants_hidden=wants_state,
                wants_cell=wants_state,
                readout=_contiguous(readout),
                basis=None if basis is None else basis.contiguous(),
                grad_updates=grad_updates.contiguous(),
                grad_pooled=grad_pooled.contiguous(),
            )
    params = [
        tensor.detach().requires_grad_()
        for pair in (*zip(weights, biases, strict=True), readout[:2])
        for tensor in pair
    ]
    sums = [torch.zeros_like(param) for param in params]
    grad_states = [torch.empty_like(hidden) for _ in range(2)] if wants_state else []
    chunk = rows if inputs.is_cuda else _PLAIN_CHUNK
    for begin in range(0, rows, chunk):
        span = slice(begin, min(begin + chunk, rows))
        state = [value[span].detach().requires_grad_(wants_state) for value in (hidden, cell)]
        with torch.enable_grad():
            top, *last = lstm_sequence(inputs[:, span], *state, params[:-2:2], params[1:-2:2])
            updates = read_out(
                top,
                None if basis is None else basis[:, span],
                ReadOut(params[-2], params[-1], readout.scale),
            )
        groups = torch.arange(span.start, span.stop, device=inputs.device) // group
        roots = [(updates, grad_updates[:, span]), (top, grad_pooled[:, groups])]
        for root, grad in zip(last, (grad_hidden, grad_cell), strict=True):
            if grad is not None:
                roots.append((root, grad[span]))
        own = torch.autograd.grad(
            [root for root, _ in roots],
            [*params, *state] if wants_state else params,
            [grad for _, grad in roots],
        )
        for total, grad in zip(sums, own, strict=False):
            total += grad
        for total, grad in zip(grad_states, own[len(params) :], strict=True):
            total[span] = grad
    grad_hidden, grad_cell = grad_states if wants_state else (None, None)
    return grad_hidden, grad_cell, sums


def _contiguous(readout: ReadOut) -> ReadOut:
    return readout._replace(weight=readout.weight.contiguous(), bias=readout.bias.contiguous())
