"""Recurrent cells that read each input several times (Graves 2016; Elman 1990 is the tanh cell)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, TypeVar, final

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from haltwise._core.errors import require
from haltwise._core.settings import got, shown, whole_number
from haltwise.halting.methods import HaltingMethod
from haltwise.nn.base import AdaptiveProcess, ItemStep, State, require_shape
from haltwise.nn.coupling import Coupling
from haltwise.nn.inputs import Inputs, require_tensor
from haltwise.nn.layer import AdaptiveComputation
from haltwise.nn.pondered import Pondered
from haltwise.nn.prices import price_of_rows
from haltwise.nn.runner import Executed
from haltwise.stop_rules import StopRule

__all__ = ["AdaptiveRNN", "RecurrentCell"]

_SIZES = "input_size", "hidden_size"

Hidden = Tensor | tuple[Tensor, Tensor]
"""The state of a cell [B, H]; of an LSTM cell its hidden and its cell state."""
Sequences = TypeVar("Sequences", Tensor, PackedSequence)
"""Sequences of one length, or packed."""
_Part = TypeVar("_Part", Pondered, Executed)


@final
class RecurrentCell(AdaptiveProcess):
    """A recurrent cell that reads the same input [B, D] at every step.

    Its last input is 1 at the first step of an input and 0 at all others (Graves 2016, section 2),
    so give a cell of D + 1 inputs. An item returns its hidden state [B, H], and for an LSTM cell
    hidden and cell state side by side [B, 2 H]. Inputs may bring a state of that form with them,
    [B, D + H] or [B, D + 2 H]; it is 0 otherwise.

    Args:
        cell: Of D + 1 inputs and H units.
        max_steps: Steps an item may take at most; that is how many exits there are.
    """

    steps_alike: ClassVar[bool] = True

    def __init__(self, cell: nn.RNNCellBase, max_steps: int = 10) -> None:
        super().__init__(whole_number("max_steps", max_steps, least=2))
        kind = getattr(cell, "_orig_mod", cell)  # what torch.compile has made a module of
        require(
            isinstance(cell, nn.Module)
            and not isinstance(kind, nn.RNNBase)
            and all(isinstance(getattr(cell, name, None), int) for name in _SIZES),
            "cell must be an nn.RNNCell, nn.GRUCell or nn.LSTMCell, or one of yours with the "
            f"attributes input_size and hidden_size and a state [B, H], {got(cell)}; for another "
            "state write a haltwise.nn.AdaptiveProcess",
        )
        self.cell = cell
        self.num_features = cell.hidden_size
        self._parts = ("hidden", "cell") if isinstance(kind, nn.LSTMCell) else ("hidden",)

    @property
    def state_size(self) -> int:
        """Numbers of the state that an item returns: H, or 2 H of an LSTM cell."""
        return len(self._parts) * self.num_features

    def init(self, inputs: Inputs) -> State:
        inputs = require_tensor(inputs, "RecurrentCell")
        num_inputs = self.cell.input_size - 1
        known = [num_inputs, num_inputs + self.state_size]
        require(
            inputs.ndim == 2 and inputs.shape[1] in known,
            f"inputs must have shape [B, {known[0]}], one less than the cell reads, or [B, "
            f"{known[1]}] with a state beside them; got {list(inputs.shape)}",
        )
        given, state = inputs[:, :num_inputs], inputs[:, num_inputs:]
        if not state.shape[1]:
            state = inputs.new_zeros(inputs.shape[0], self.state_size)
        return {"inputs": given, **self._named(state)}

    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        inputs, parts = state["inputs"], tuple(state[name] for name in self._parts)
        first = (torch.zeros_like(inputs[:, :1], dtype=torch.int64) + _column(step)) == 0
        new = self.cell(torch.cat((inputs, first.to(inputs)), 1), parts if parts[1:] else parts[0])
        if not parts[1:]:
            require_shape(new, parts[0], "the cell")
        output = torch.cat(new, 1) if parts[1:] else new
        after = self._named(output)
        return ItemStep(output, after["hidden"], {"inputs": inputs, **after})

    def _named(self, state: Tensor) -> State:
        return dict(zip(self._parts, state.split(self.num_features, 1), strict=True))


@final
class AdaptiveRNN(nn.Module):
    """A recurrent network that ponders each token: adaptive computation time (Graves 2016).

    It is called as `torch.nn.RNN` of one layer is, with a batch, one sequence or packed sequences,
    and returns a third value, the `Pondered` of all tokens. Where a token ends changes what comes
    after it, so the state that goes on is the mean over exits, Graves' own coupling.

    Args:
        cell: Reads D inputs and the flag of `RecurrentCell`; has H units.
        max_steps: Steps a token may take at most.
        method: As for `haltwise.nn.AdaptiveComputation`.
        batch_first: Whether inputs and outputs are [B, L, ...] instead of [L, B, ...].
        width: Units of the halting head's hidden layer; Graves' own is a linear read-out.
        price_input: Whether the head reads the price.
        generator: Draws the head's initial weights; PyTorch's own if None.

    Examples:
        >>> rnn = AdaptiveRNN(torch.nn.GRUCell(3 + 1, 16), max_steps=4)
        >>> outputs, last, pondered = rnn(torch.randn(7, 5, 3), price=0.01)
        >>> outputs.shape, last.shape, pondered.ponder_cost.shape
        (torch.Size([7, 5, 16]), torch.Size([1, 5, 16]), torch.Size([7, 5]))
        >>> loss = outputs.square().mean() + 0.01 * pondered.ponder_cost.mean()
        >>> outputs, last, executed = rnn.run(torch.randn(7, 5, 3), price=0.01)
        >>> executed.exits.shape
        torch.Size([7, 5])
    """

    def __init__(
        self,
        cell: nn.RNNCellBase,
        max_steps: int = 10,
        method: str | HaltingMethod = "graves",
        *,
        batch_first: bool = False,
        width: int = 0,
        price_input: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self._process, self.batch_first = RecurrentCell(cell, max_steps), batch_first
        self.layer = AdaptiveComputation(
            self._process,
            method,
            Coupling.EXPECTED_STATE,
            width=width,
            price_input=price_input,
            generator=generator,
        )

    def forward(
        self, inputs: Sequences, hidden: Hidden | None = None, *, price: float | Tensor
    ) -> tuple[Sequences, Hidden, Pondered]:
        """Take every step of every token, differentiably.

        Args:
            inputs: Shape [L, B, D], or [B, L, D] if `batch_first`; one sequence [L, D]; or N tokens
                of sequences that `torch.nn.utils.rnn` has packed.
            hidden: State before the first token, [1, B, H], of an LSTM cell a pair; 0 if None. Of
                one sequence [1, H].
            price: c, of a step, in units of the loss; one for all or of each sequence, [B].

        Returns:
            Hidden states of the tokens as `inputs` are, with H in the place of D; the state after
            the last token of each sequence as `hidden` is; and what all tokens went through, items
            of shape [L, B], of one sequence [L], of packed ones [N] in their order.

        Raises:
            InputError: A shape or a price is impossible, or there is no token.
        """
        outputs, last, parts = self._ponder(self.layer, inputs, hidden, price)
        return outputs, last, _join(Pondered, inputs)(parts)

    @torch.no_grad()
    def run(
        self,
        inputs: Sequences,
        hidden: Hidden | None = None,
        *,
        price: float | Tensor,
        rule: StopRule | None = None,
        sizes: Sequence[int] | None = None,
    ) -> tuple[Sequences, Hidden, Executed]:
        """Take the steps that are needed; `rule` and `sizes` as in `AdaptiveComputation.run`.

        With Graves' method and its own rule the outputs are those of `forward`.

        Returns:
            As `forward`, but what was executed of all tokens, items of the same shape.
        """
        run = partial(self.layer.run, rule=rule, sizes=sizes)
        outputs, last, parts = self._ponder(run, inputs, hidden, price)
        return outputs, last, _join(Executed, inputs)(parts)

    def _ponder(
        self,
        ponder: Callable[[Tensor, Tensor], _Part],
        inputs: Sequences,
        hidden: Hidden | None,
        price: float | Tensor,
    ) -> tuple[Sequences, Hidden, list[_Part]]:
        """Ponder token after token, of the sequences that have so many."""
        steps, num_rows = self._steps(inputs)
        state, prices = self._begin(inputs, hidden, num_rows), price_of_rows(price, num_rows)
        order = inputs.sorted_indices if isinstance(inputs, PackedSequence) else None
        if order is not None:
            state, prices = state[order], prices[order.to(prices.device)]
        parts = []
        for tokens in steps:  # of the longest sequences, which are the first rows
            num = tokens.shape[0]
            part = ponder(torch.cat((tokens, state[:num]), 1), prices[:num])
            state = part.output if num == num_rows else torch.cat((part.output, state[num:]))
            parts.append(part)
        if isinstance(inputs, PackedSequence) and inputs.unsorted_indices is not None:
            state = state[inputs.unsorted_indices]
        return (
            self._outputs(inputs, [part.output for part in parts]),
            self._last(inputs, state),
            parts,
        )

    def _steps(self, inputs: Sequences) -> tuple[Sequence[Tensor], int]:
        """The tokens [n, D] of each step in order, n falling, and the number B of sequences."""
        dims = "[B, L, D]" if self.batch_first else "[L, B, D]"
        packed = isinstance(inputs, PackedSequence)
        data = inputs.data if isinstance(inputs, PackedSequence) else inputs
        require(
            isinstance(data, Tensor) and data.ndim in ((2,) if packed else (2, 3)),
            f"inputs must be a tensor of shape {dims}, [L, D] of one sequence, or packed "
            f"sequences, {got(data)}",
        )
        due = self._process.cell.input_size - 1
        require(
            data.shape[-1] == due,
            f"inputs must have {due} numbers a token, one less than the cell reads, got "
            f"{data.shape[-1]}",
        )
        if isinstance(inputs, PackedSequence):
            steps: Sequence[Tensor] = data.split(inputs.batch_sizes.tolist())
        elif data.ndim == 2:
            steps = data.split(1)
        else:
            steps = data.unbind(1 if self.batch_first else 0)
        require(len(steps) > 0 and (data.ndim == 3 or len(data) > 0), "inputs have no tokens")
        return steps, steps[0].shape[0]

    def _begin(self, inputs: Sequences, hidden: Hidden | None, num_rows: int) -> Tensor:
        """The state before the first tokens, [B, H] or, of an LSTM cell, [B, 2 H]."""
        if hidden is None:
            like = inputs.data if isinstance(inputs, PackedSequence) else inputs
            return like.new_zeros(num_rows, self._process.state_size)
        parts = hidden if isinstance(hidden, tuple) else (hidden,)
        size = self._process.num_features
        number = self._process.state_size // size
        due = [1, size] if _is_single(inputs) else [1, num_rows, size]
        require(
            len(parts) == number
            and all(isinstance(part, Tensor) and list(part.shape) == due for part in parts),
            f"hidden must be {'a pair of tensors' if number > 1 else 'a tensor'} of shape {due}, "
            f"got {', '.join(shown(part) for part in parts)}",
        )
        return torch.cat([part.reshape(num_rows, size) for part in parts], 1)

    def _outputs(self, inputs: Sequences, states: Sequence[Tensor]) -> Sequences:
        """The hidden states after the tokens, as these are."""
        states = [state[:, : self._process.num_features] for state in states]
        if isinstance(inputs, PackedSequence):
            return PackedSequence(torch.cat(states), *inputs[1:])
        if _is_single(inputs):
            return torch.cat(states)
        return torch.stack(states, 1 if self.batch_first else 0)

    def _last(self, inputs: Sequences, state: Tensor) -> Hidden:
        """The state of sequences [B, H] or [B, 2 H] as `hidden` is."""
        parts = state.split(self._process.num_features, 1)
        last = tuple(part if _is_single(inputs) else part.unsqueeze(0) for part in parts)
        return (last[0], last[1]) if len(last) > 1 else last[0]


def _is_single(inputs: Sequences) -> bool:
    return not isinstance(inputs, PackedSequence) and inputs.ndim == 2


def _join(kind: type[_Part], inputs: Sequences) -> Callable[[list[_Part]], _Part]:
    """How what became of tokens, each step's [n], is put together."""
    is_batch = not isinstance(inputs, PackedSequence) and inputs.ndim == 3
    return kind.stack if is_batch else kind.cat


def _column(step: int | Tensor) -> int | Tensor:
    return step.unsqueeze(1) if isinstance(step, Tensor) else step
