"""The rules that fused steps know: what each keeps of a tensor, its weights, and its launches.

Another rule needs a class here, kernels in a file of its own, and a line in
`haltwise.interfaces.torch_optim.on_device` that says when they serve. What is common to all rules
(pooling, the guard, decay, what halting reads, moving parameters) is in `tensors.py` and
`control.py`.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple, final

import torch
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from haltwise._kernels.fused.packing import Tiles, is_resident, pack, pack_readout
from haltwise.interfaces.torch_optim.fused.lstm import advance_lstm
from haltwise.interfaces.torch_optim.fused.mlp import FACTS, advance_mlp, align, take_in
from haltwise.update_rules import LSTMRule, MLPRule, UpdateRule

__all__ = ["DTYPES", "Advance", "FusedRule", "fused_rule"]

DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_BLOCK, _WARPS = 64, 4  # rows of a program, and warps that share them
_REGISTERS = 128  # of a thread in the last layer, so that four programs share a multiprocessor
_MLP_ROWS = 128  # of a program, at most
_MLP_ENTRIES = 4096  # of a layer in a program, so that its registers hold them
_MLP_REGISTERS = 168  # of a thread, so that three programs share a multiprocessor

State = dict[str, Any]


class Advance(NamedTuple):
    """A launch over tensors of a group, as far as it is the same for all rules.

    Attributes:
        operands: Its first: the table, whose chunk is whose, the first chunk and their number,
            settings, control record, and where sums are left.
        constants: Dtypes, and what is asked of it.
        num_programs: So many leave sums.
        first_program: The first of them among those of the group.
        num_many: So many may run where none are left.
        first_tensor: In the table.
        num_tensors: With a gradient.
    """

    operands: tuple[Any, ...]
    constants: dict[str, Any]
    num_programs: int
    first_program: int
    num_many: int
    first_tensor: int
    num_tensors: int


class FusedRule(ABC):
    """The kernels of a rule, with the weights of one group."""

    entries: ClassVar[tuple[str, ...]]
    """Names of what is kept of a tensor for the rule."""
    num_units: int
    """Columns of the read-out's sums."""

    @classmethod
    def in_order(cls, value: Tensor) -> Tensor:
        """What is kept of a tensor for the rule, in the order in which kernels read memory."""
        return value.contiguous()

    @abstractmethod
    def places(self, state: State) -> list[int]:
        """What the table says from `RULE` on of a tensor with this state."""

    def reserve(self, num_programs: int) -> None:
        """Make room for what so many programs of the group sum."""
        del num_programs

    def pool(self, launch: Advance) -> None:
        """Sum over coordinates what the rule has to know of all before any is advanced."""
        del launch

    @abstractmethod
    def advance(self, launch: Advance) -> None:
        """Advance the rule's states, and leave displacements and sums."""


@final
class _FusedLSTM(FusedRule):
    """States are found by their distances from `anchor`, in 16 bytes.

    The coordinates of a layer lie behind each other, also in what is shown as [B, D, L, H]: of rows
    with all layers, a layer's launch would read and write parts of what the memory moves at once,
    which takes twice the time.
    """

    entries = ("rule.hidden", "rule.cell")

    def __init__(self, rule: LSTMRule, state: State) -> None:
        weight, given = rule.readout_weight, rule.readout_bias
        bias: Tensor = weight.new_zeros(1) if given is None else given
        self.rule, self.tiles = rule, Tiles.of(rule.hidden_size)
        self.packed = pack(list(rule.weights), list(rule.biases))
        self.readout = pack_readout(weight, bias)
        self.num_outputs = bias.numel()
        self.num_units = sum(self.tiles)
        self.anchor: Tensor = state["rule.hidden"].new_empty(16)

    @classmethod
    def in_order(cls, value: Tensor) -> Tensor:
        return value.movedim(-2, 0).contiguous().movedim(0, -2)

    def places(self, state: State) -> list[int]:
        first = self.anchor.data_ptr()
        return [(state[name].data_ptr() - first) // 16 for name in self.entries]

    def advance(self, launch: Advance) -> None:
        num_layers, small = self.rule.num_layers, self.tiles.first == 16
        for layer in range(num_layers):
            is_last = layer == num_layers - 1
            advance_lstm[(launch.num_programs if is_last else launch.num_many,)](
                *launch.operands,
                *(self.packed, self.readout, float(self.rule.output_scale), self.anchor),
                **launch.constants,
                WORD=16 // self.anchor.itemsize,
                FIRST=layer,
                LAST=layer + 1,
                LAYERS=num_layers,
                H=self.rule.hidden_size,
                UA=self.tiles.first,
                UB=self.tiles.second,
                INPUTS=4 if self.rule.shared_gradient else 2,
                OUTPUTS=self.num_outputs,
                RESIDENT=is_resident(self.tiles, 1),
                BLOCK=_BLOCK,
                num_warps=_WARPS,
                num_stages=1,
                maxnreg=_REGISTERS if is_last and small else None,
            )


@final
class _FusedMLP(FusedRule):
    """`facts` holds what coordinates read of their tensor, a row for each of the table."""

    entries = (
        "rule.momenta",
        "rule.squares",
        "rule.agreement",
        "rule.count",
        "rule.log_unit",
        "rule.sizes",
        "rule.log_scale",
    )

    def __init__(self, rule: MLPRule, state: State, num_tensors: int) -> None:
        self.num_units = max(16, 1 << (rule.hidden_size - 1).bit_length())
        self.packed = _packed(rule, self.num_units)
        self.scale, self.gain = float(rule.output_scale), float(rule.gain)
        self.facts = self.packed.new_zeros(num_tensors, FACTS.value)
        self.dtype = DTYPES[state["rule.momenta"].dtype]
        self.sums = self.packed.new_zeros(0, 3, dtype=torch.float64)

    def places(self, state: State) -> list[int]:
        return [state[name].data_ptr() for name in self.entries]

    def reserve(self, num_programs: int) -> None:
        self.sums = self.sums.new_zeros(num_programs, 3)

    def pool(self, launch: Advance) -> None:
        align[(launch.num_programs,)](
            *launch.operands[:6],
            self.sums[launch.first_program :],
            GRAD_DTYPE=launch.constants["GRAD_DTYPE"],
            DTYPE=self.dtype,
        )

    def advance(self, launch: Advance) -> None:
        table, control = launch.operands[0], launch.operands[5]
        take_in[(launch.num_tensors,)](
            *(table, launch.first_tensor, control),
            *(self.sums, len(self.sums), self.gain, self.facts),
            num_warps=1,
        )
        # A row for each thread: what rows need is computed in all threads that share one.
        rows = min(_MLP_ROWS, _MLP_ENTRIES // self.num_units)
        advance_mlp[(launch.num_programs,)](
            *launch.operands,
            *(self.packed, self.facts, self.scale),
            **launch.constants,
            DTYPE=self.dtype,
            UNITS=self.num_units,
            BLOCK=rows,
            num_warps=rows // 32,
            num_stages=1,
            maxnreg=_MLP_REGISTERS if rows == _MLP_ROWS else None,
        )


def _packed(rule: MLPRule, units: int) -> Tensor:
    """Weights [fan-in, units] and biases of both layers, then weights [5, units] and biases."""
    more = units - rule.hidden_size
    first, one, second, two, last, three = rule.maps
    parts = [
        *(pad(first.T, (0, more)), pad(one, (0, more))),
        *(pad(second.T, (0, more, 0, more)), pad(two, (0, more))),
        *(pad(last, (0, more)), three),
    ]
    return torch.cat([part.detach().flatten() for part in parts])


def fused_rule(rule: UpdateRule, state: State, num_tensors: int) -> FusedRule:
    """The kernels of a rule that they serve.

    Args:
        rule: On the device.
        state: What is kept of a tensor, for its dtype.
        num_tensors: In the table.
    """
    if isinstance(rule, LSTMRule):
        return _FusedLSTM(rule, state)
    assert isinstance(rule, MLPRule)
    return _FusedMLP(rule, state, num_tensors)
