"""Where a fused step finds the tensors of all groups, and where it leaves what it sums."""

from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
import triton.language as tl
from torch import Tensor

from haltwise._kernels.fused.packing import Tiles, pack, pack_readout
from haltwise._kernels.fused.rows import num_processors
from haltwise.interfaces.torch_optim.fused.control import (
    CHUNK,
    COLUMNS,
    CONTROL,
    GRAD,
    PARAM,
    SETTINGS,
)
from haltwise.update_rules.lstm import LSTMRule

__all__ = ["DTYPES", "NUM_LOG_ROWS", "Member", "Part", "Plan", "PlannedGroup"]

NUM_LOG_ROWS = 1024
"""Steps that may wait to be judged."""
DTYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
_PROGRAMS = 3  # at once on a multiprocessor, that advance states
_APPLIERS = 8  # likewise, that move parameters
_STATES = (
    "rule.hidden",
    "rule.cell",
    "signals.grad",
    "signals.update",
    "touched",
    "guard.params",
    "guard.mean",
    "guard.square",
)  # in the order of the table

State = dict[str, Any]


class Member(NamedTuple):
    """A tensor that is moved, or, without a gradient at this step, kept and gone back to."""

    param: Tensor
    state: State
    has_grad: bool


class Part(NamedTuple):
    """Tensors of a group that have their dtypes in common: a launch each."""

    grad_dtype: torch.dtype
    param_dtype: torch.dtype
    first_chunk: int
    num_moved: int
    """Chunks of tensors with a gradient, which come first."""
    num_chunks: int
    first_program: int
    num_programs: int


@final
class PlannedGroup:
    """A group, its weights in the kernels' order, and its part of the plan's memory."""

    def __init__(self, rule: LSTMRule, device: torch.device) -> None:
        weight, given = rule.readout_weight, rule.readout_bias
        bias: Tensor = weight.new_zeros(1) if given is None else given
        self.rule, self.tiles = rule, Tiles.of(rule.hidden_size)
        self.packed = pack(list(rule.weights), list(rule.biases))
        self.readout = pack_readout(weight, bias)
        self.num_outputs = bias.numel()
        self.num_units = sum(self.tiles)
        self.parts: list[Part] = []
        self.first_tensor = self.num_tensors = self.num_coordinates = 0
        self.first_program = self.num_programs = 0
        self.log = torch.zeros(
            NUM_LOG_ROWS, 16 + self.num_units, dtype=torch.float64, device=device
        )
        self.partials = torch.empty(0)


@final
class Plan:
    """The tensors of all groups that are moved together.

    Args:
        members: Of each group.
        rules: Of each group, on the device.
        device: Where all of them are.
    """

    def __init__(
        self, members: Sequence[Sequence[Member]], rules: Sequence[LSTMRule], device: torch.device
    ) -> None:
        self.device = device
        self.groups = [PlannedGroup(rule, device) for rule in rules]
        self.members: list[Member] = []
        self.temporaries: dict[int, Tensor] = {}
        owners: list[Tensor] = []
        firsts: list[int] = []
        chunk = program = 0
        limit = _PROGRAMS * num_processors(device)
        for group, own in zip(self.groups, members, strict=True):
            group.first_tensor, group.first_program = len(self.members), program
            for (grad_dtype, param_dtype), part in _by_dtype(own).items():
                begin, moved = chunk, 0
                for member in part:
                    num_chunks = -(-member.param.numel() // CHUNK.value)
                    owners.append(torch.full((num_chunks,), len(self.members), dtype=torch.int32))
                    firsts.append(chunk)
                    self.members.append(member)
                    chunk += num_chunks
                    moved += num_chunks * member.has_grad
                    group.num_coordinates += member.param.numel() * member.has_grad
                num_programs = min(moved, limit)
                group.parts.append(
                    Part(
                        grad_dtype, param_dtype, begin, moved, chunk - begin, program, num_programs
                    )
                )
                program += num_programs
            group.num_tensors = len(self.members) - group.first_tensor
            group.num_programs = program - group.first_program
            group.partials = torch.empty(
                group.num_programs, 2 + group.num_units, dtype=torch.float64, device=device
            )
        self.owner = torch.cat(owners).to(device)
        self.num_appliers = _APPLIERS * num_processors(device)
        self.anchor: Tensor = self.members[0].state["rule.hidden"].new_empty(16)
        self.num_programs = program
        table = torch.zeros(len(self.members), COLUMNS.value, dtype=torch.int64)
        for row, first, member in zip(table.unbind(), firsts, self.members, strict=True):
            _put_in_order(member.state)
            pointers = [_address(member.state.get(name)) for name in _STATES]
            pointers[:2] = [(at - self.anchor.data_ptr()) // 16 for at in pointers[:2]]
            row[2:] = torch.tensor([member.param.numel(), first, *pointers])
        self.table = table.to(device)
        self._pointers: list[int] = []
        self._kept = [[member.state.get(name) for name in _STATES] for member in self.members]
        self._settings: list[tuple[float, ...]] = []

        def wide(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.settings = wide(len(self.groups), SETTINGS)
        self.control = wide(len(self.groups), CONTROL)
        self.pooled, self.update_squares = wide(program, 8), wide(program)
        self.adam_sums, self.adam_roots = wide(chunk), wide(len(self.members))

    def fits(self, members: Sequence[Sequence[Member]], rules: Sequence[LSTMRule]) -> bool:
        """Whether these are the tensors that were planned for, with the same states."""
        flat = [member for own in members for part in _by_dtype(own).values() for member in part]
        return (
            len(flat) == len(self.members)
            and all(
                one.param is other.param and one.has_grad == other.has_grad
                for one, other in zip(flat, self.members, strict=True)
            )
            and all(
                all(
                    member.state.get(name) is value
                    for name, value in zip(_STATES, kept, strict=True)
                )
                for member, kept in zip(flat, self._kept, strict=True)
            )
            and all(
                rule is group.rule and len(own) == group.num_tensors
                for rule, own, group in zip(rules, members, self.groups, strict=True)
            )
        )

    def place(self, settings: Sequence[tuple[float, ...]]) -> list[Tensor]:
        """Tell the device where gradients and parameters are, and the groups' settings.

        Returns:
            Copies in order of gradients that are not, to be kept until the step has run.
        """
        pointers, kept = [], []
        self.temporaries = {}
        for number, (param, _, has_grad) in enumerate(self.members):
            grad = 0
            if has_grad:
                assert param.grad is not None
                given = param.grad.detach()
                if not given.is_contiguous():
                    given = given.contiguous()
                    kept.append(given)
                grad = given.data_ptr()
            value = param
            if not param.is_contiguous():
                value = self.temporaries[number] = param.detach().contiguous()
            pointers += [grad, value.data_ptr()]
        if pointers != self._pointers:
            self._pointers = pointers
            placed = torch.tensor(pointers).view(-1, 2)
            self.table[:, GRAD.value : PARAM.value + 1].copy_(_pinned(placed, self.device))
        if settings != self._settings:
            self._settings = list(settings)
            rows = torch.tensor(settings, dtype=torch.float64)
            self.settings[:, : rows.shape[1]].copy_(_pinned(rows, self.device))
        return kept

    def return_temporaries(self) -> None:
        """Give parameters that are not in order their new values."""
        for number, value in self.temporaries.items():
            self.members[number].param.copy_(value)


def _by_dtype(members: Sequence[Member]) -> dict[tuple[torch.dtype, torch.dtype], list[Member]]:
    """Those with a gradient first; a gradient has its parameter's dtype or its own."""
    found: dict[tuple[torch.dtype, torch.dtype], list[Member]] = {}
    for member in sorted(members, key=lambda member: not member.has_grad):
        param = member.param
        grad = param.grad if member.has_grad else None
        key = (param.dtype if grad is None else grad.dtype, param.dtype)
        found.setdefault(key, []).append(member)
    return found


def _put_in_order(state: State) -> None:
    """Kernels take states row by row, at addresses that are multiples of 16."""
    for name in _STATES:
        value = state.get(name)
        if isinstance(value, Tensor) and (not value.is_contiguous() or value.data_ptr() % 16):
            state[name] = value.clone(memory_format=torch.contiguous_format)


def _address(tensor: object) -> int:
    return tensor.data_ptr() if isinstance(tensor, Tensor) else 0


def _pinned(value: Tensor, device: torch.device) -> Tensor:
    """On its way to the device without waiting for it."""
    if device.type == "cpu":
        return value
    return value.pin_memory().to(device, non_blocking=True)
