"""Stacked LSTM in plain PyTorch: a differentiable twin, and a fast one with a gradient by hand.

R rows, I inputs, L layers of H units, K steps; weights and states as in `haltwise._kernels.lstm`.
The fast one moves pieces of the rows, small enough for a cache, and keeps them last: gates are
then blocks of memory and weights stand on the left of a product.
"""

import functools
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = [
    "PlainSequence",
    "Stack",
    "empty_states",
    "pieces",
    "plain_lstm_sequence",
    "plain_lstm_step",
]

_MAX_ROWS, _MIN_ROWS = 2000, 500  # of a piece: fewer cost calls, more cost memory
_SCRATCH = 2**23  # numbers of a tape, 32 MiB in single precision, not to be exceeded by much


# ------------------------------------------------------------------------------ differentiable


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


# ------------------------------------------------------------------------------ fast


class _Step(NamedTuple):
    """What a layer's tape holds of a step, made once for all pieces of the rows: views cost time.

    Attributes:
        operand: (input, 1, hidden) before it, shape [I + 1 + H, R].
        cell: Before it, shape [H, R].
        new_cell: After it, likewise.
        new_hidden: After it, likewise.
        squashed: sigmoid(-2 new_cell), likewise.
        sums: `gates` as a matrix, shape [4H, R].
        gates: After their sigmoids, shape [4, H, R], then one by one.
    """

    operand: Tensor
    cell: Tensor
    new_cell: Tensor
    new_hidden: Tensor
    squashed: Tensor
    sums: Tensor
    gates: Tensor
    enter: Tensor
    forget: Tensor
    candidate: Tensor
    leave: Tensor


@final
class _Tape:
    """What a layer went through in K steps on R rows.

    Attributes:
        operands: (input, 1, hidden) before every step, and (-, 1, hidden) after the last, shape
            [K+1, I + 1 + H, R].
        hidden: That part of them, shape [K+1, H, R].
        cells: Likewise, shape [K+1, H, R].
        steps: The same and more, step by step.
    """

    def __init__(self, num_steps: int, fan_in: int, size: int, num_rows: int, like: Tensor) -> None:
        self.shape = num_steps, fan_in, size, num_rows
        self.operands = like.new_empty(num_steps + 1, fan_in + 1 + size, num_rows)
        self.hidden = self.operands[:, -size:]
        self.cells = like.new_empty(num_steps + 1, size, num_rows)
        gates = like.new_empty(num_steps, 4, size, num_rows)
        squashed = like.new_empty(num_steps, size, num_rows)
        before, after = slice(None, -1), slice(1, None)
        fields = (
            *(self.operands[before], self.cells[before], self.cells[after], self.hidden[after]),
            *(squashed, gates.flatten(1, 2), gates, *gates.unbind(1)),
        )
        self.steps = [_Step(*views) for views in zip(*(f.unbind(0) for f in fields), strict=True)]


@functools.lru_cache(maxsize=8)
def _kept_tape(
    owner: tuple[int, int], fan_in: int, size: int, num_rows: int, dtype: torch.dtype, device: str
) -> _Tape:
    """The tape of one step, which a thread's layer may reuse: a new one costs as much as a step."""
    del owner
    with torch.inference_mode(False):  # or it would serve there alone
        like = torch.empty((), dtype=dtype, device=device)
        return _Tape(1, fan_in, size, num_rows, like)


@final
class _Layer:
    """The weights of a layer, their gradient, and a tape.

    As tanh x = 1 - 2 sigmoid(-2 x), a candidate whose weights are scaled by -2 takes the sigmoid
    that all gates take, in one pass and at a quarter of the time of PyTorch's tanh.
    """

    def __init__(self, weight: Tensor, bias: Tensor, index: int) -> None:
        self.size = size = len(bias) // 4
        self.index = index
        self.weight = torch.cat((weight[:, :-size], bias.unsqueeze(1), weight[:, -size:]), 1)
        self.candidate = slice(2 * size, 3 * size)
        self.weight[self.candidate].mul_(-2)
        self.of_weight = torch.zeros_like(self.weight.T)  # in the layout that adds up fastest
        self._tape: _Tape | None = None

    @property
    def tape(self) -> _Tape:
        """Of the last run."""
        assert self._tape is not None
        return self._tape

    def _reserve(self, num_steps: int, num_rows: int) -> None:
        """Make room, unless there is."""
        fan_in, like = self.weight.shape[1] - 1 - self.size, self.weight
        if num_steps == 1:
            owner, device = (threading.get_ident(), self.index), str(like.device)
            self._tape = _kept_tape(owner, fan_in, self.size, num_rows, like.dtype, device)
        elif self._tape is None or self._tape.shape != (num_steps, fan_in, self.size, num_rows):
            self._tape = _Tape(num_steps, fan_in, self.size, num_rows, like)

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        """Fill the tape from inputs [K, I, R] and states [H, R]; (1, h) of all, [K, 1 + H, R]."""
        self._reserve(len(inputs), inputs.shape[2])
        tape = self.tape
        tape.operands[:-1, : -self.size - 1] = inputs
        tape.operands[:, -self.size - 1] = 1
        tape.hidden[0] = hidden
        tape.cells[0] = cell
        for step in tape.steps:
            torch.mm(self.weight, step.operand, out=step.sums).sigmoid_()
            torch.addcmul(step.enter, step.enter, step.candidate, value=-2, out=step.new_cell)
            step.new_cell.addcmul_(step.forget, step.cell)  # c' = f c + i (1 - 2 candidate)
            torch.mul(step.new_cell, -2, out=step.squashed).sigmoid_()
            torch.addcmul(step.leave, step.leave, step.squashed, value=-2, out=step.new_hidden)
        return tape.operands[1:, -self.size - 1 :]

    def backward(
        self, of_outputs: Tensor, of_hidden: Tensor | None, of_cell: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Add to `of_weight`; operands give way to their gradients.

        Args:
            of_outputs: Shape [K, H, R].
            of_hidden: Of the last hidden state, shape [H, R], None for zero.
            of_cell: Of the last cell state, likewise.

        Returns:
            Of the inputs [K, I, R] and the first states [H, R].
        """
        tape = self.tape
        tape.hidden[-1] = 0 if of_hidden is None else of_hidden
        of_cell = torch.zeros_like(tape.cells[0]) if of_cell is None else of_cell.clone()
        weight = self.weight.clone().T
        weight[:, self.candidate].mul_(-2)  # d(1 - 2 s)/ds, where `of_candidate` needs it
        of_gates = torch.empty_like(tape.steps[0].gates)
        of_enter, of_forget, of_candidate, of_leave = of_gates.unbind(0)
        of_sums = of_gates.flatten(0, 1)
        chain = torch.ops.aten.sigmoid_backward.grad_input
        for step, of_output in zip(tape.steps[::-1], of_outputs.unbind(0)[::-1], strict=True):
            of_new = step.new_hidden.add_(of_output)
            # h = o (1 - 2 s) with s = sigmoid(-2 c'), so dh/dc' = 4 o s (1 - s)
            chain(torch.mul(of_new, step.leave, out=of_enter), step.squashed, grad_input=of_enter)
            of_cell.add_(of_enter, alpha=4)
            torch.addcmul(of_new, of_new, step.squashed, value=-2, out=of_leave)
            torch.addcmul(of_cell, of_cell, step.candidate, value=-2, out=of_enter)
            torch.mul(of_cell, step.cell, out=of_forget)
            torch.mul(of_cell, step.enter, out=of_candidate)  # -2 times: in `weight`
            of_cell.mul_(step.forget)
            chain(of_gates, step.gates, grad_input=of_gates)
            self.of_weight.addmm_(step.operand, of_sums.T)
            torch.mm(weight, of_sums, out=step.operand)
        return tape.operands[:-1, : -self.size - 1], tape.hidden[0], of_cell

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Of weight and bias, summed over all calls of `backward`."""
        found = self.of_weight.T.clone()
        found[self.candidate].mul_(4)  # -2 of the weights, and -2 left out above
        of_input, of_bias, of_hidden = found.tensor_split((-self.size - 1, -self.size), dim=1)
        return torch.cat((of_input, of_hidden), 1), of_bias.squeeze(1)


@final
class Stack:
    """The tapes of all layers; one stack serves piece after piece of the rows."""

    @torch.no_grad()
    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> None:
        self._weights = weights
        pairs = zip(weights, biases, strict=True)
        self.layers = [_Layer(*pair, index) for index, pair in enumerate(pairs)]

    def forward(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> Tensor:
        """Run K steps on inputs [K, I, R] from states [R, L, H].

        Returns:
            (1, h) of the top layer, shape [K, 1 + H, R], until the stack runs again.
        """
        for layer, h, c in zip(self.layers, hidden.unbind(1), cell.unbind(1), strict=True):
            top = layer.forward(inputs, h.T, c.T)
            inputs = top[:, 1:]
        return top

    def backward(
        self, of_outputs: Tensor, of_hidden: Tensor | None, of_cell: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """From the gradients of outputs [K, H, R] and last states [R, L, H], None for zero.

        Returns:
            Those of the first states, each [R, L, H].
        """
        states = []
        for index, layer in reversed([*enumerate(self.layers)]):
            own = (None if value is None else value[:, index].T for value in (of_hidden, of_cell))
            of_outputs, *first = layer.backward(of_outputs, *own)
            states.append(first)
        hidden, cell = (_rows_first(layers[::-1]) for layers in zip(*states, strict=True))
        return hidden, cell

    def step(
        self, inputs: Tensor, hidden: Tensor, cell: Tensor, *, in_place: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`plain_lstm_step` without a graph; `in_place` if the new state may replace the old."""
        # Always with the rows last: what is summed over them then has the same bits.
        in_place = in_place and all(v.permute(1, 2, 0).is_contiguous() for v in (hidden, cell))
        new_hidden, new_cell = (hidden, cell) if in_place else empty_states(hidden)
        for _, rows in pieces(self._weights, 1, 1, len(hidden)):
            self.forward(inputs[rows].T.unsqueeze(0), hidden[rows], cell[rows])
            self.read_state(new_hidden[rows], new_cell[rows])
        return new_hidden, new_cell

    def read_state(self, hidden: Tensor, cell: Tensor) -> None:
        """Write the states after the last step to `hidden` and `cell`, each [R, L, H]."""
        for index, layer in enumerate(self.layers):
            hidden[:, index] = layer.tape.hidden[-1].T
            cell[:, index] = layer.tape.cells[-1].T

    def gradients(self) -> list[Tensor]:
        """Of every layer's weight and bias in turn, summed over all calls of `backward`."""
        return [value for layer in self.layers for value in layer.gradients()]


def _rows_first(layers: Sequence[Tensor]) -> Tensor:
    """L tensors [H, R] as one [R, L, H]."""
    return torch.stack(tuple(layers)).permute(2, 0, 1)


def empty_states(state: Tensor) -> tuple[Tensor, Tensor]:
    """Empty hidden and cell states [..., L, H] with the rows last in memory."""
    *rows, num_layers, size = state.shape
    hidden, cell = state.new_empty(2, num_layers, size, *rows).movedim((1, 2), (-2, -1))
    return hidden, cell


def pieces(
    weights: Sequence[Tensor], num_steps: int, num_problems: int, dim: int
) -> Iterator[tuple[slice, slice]]:
    """Ranges of problems and coordinates whose tapes fit a cache: adjacent rows of P D."""
    numbers = num_steps * sum(weight.shape[1] + 1.5 * weight.shape[0] for weight in weights)
    num_rows = int(min(max(_SCRATCH / numbers, _MIN_ROWS), _MAX_ROWS))
    for problems in _split(num_problems, max(1, num_rows // max(dim, 1))):
        for coordinates in _split(dim, num_rows):
            yield problems, coordinates


def _split(total: int, size: int) -> list[slice]:
    """Pieces of nearly `size`, as even as can be."""
    if total == 0:
        return []
    size = -(-total // -(-total // size))
    return [slice(begin, min(begin + size, total)) for begin in range(0, total, size)]


@final
class PlainSequence(torch.autograd.Function):
    """`lstm_sequence`; parameters come as weight, bias, weight, bias, ..."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, hidden: Tensor, cell: Tensor, *params: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(inputs, hidden, cell, *params)
        ctx.set_materialize_grads(False)
        outputs = hidden.new_empty(len(inputs), hidden.shape[2], len(hidden)).transpose(1, 2)
        new_hidden, new_cell = empty_states(hidden)
        stack = Stack(params[::2], params[1::2])
        for _, rows in pieces(params[::2], len(inputs), 1, len(hidden)):
            top = stack.forward(inputs[:, rows].transpose(1, 2), hidden[rows], cell[rows])
            outputs[:, rows] = top[:, 1:].transpose(1, 2)
            stack.read_state(new_hidden[rows], new_cell[rows])
        return outputs, new_hidden, new_cell

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, of_outputs: Tensor | None, of_hidden: Tensor | None, of_cell: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        inputs, hidden, cell, *params = ctx.saved_tensors
        if of_outputs is None:
            of_outputs = hidden.new_zeros(()).expand(*inputs.shape[:2], hidden.shape[2])
        of_first_hidden, of_first_cell = empty_states(hidden)
        stack = Stack(params[::2], params[1::2])
        for _, rows in pieces(params[::2], len(inputs), 1, len(hidden)):
            stack.forward(inputs[:, rows].transpose(1, 2), hidden[rows], cell[rows])
            of_first_hidden[rows], of_first_cell[rows] = stack.backward(
                of_outputs[:, rows].transpose(1, 2),
                None if of_hidden is None else of_hidden[rows],
                None if of_cell is None else of_cell[rows],
            )
        return None, of_first_hidden, of_first_cell, *stack.gradients()
