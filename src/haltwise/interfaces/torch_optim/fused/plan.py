"""Where a fused step finds the tensors of all groups, and where it leaves what it sums."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import torch
import triton.language as tl
from torch import Tensor

from haltwise._core.errors import require
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
_PROGRAMS = 3  # on a multiprocessor, that advance the last layer
_GIVEN = 6  # settings that the host gives
_MANY = 4  # likewise, that advance others or move parameters
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
        self.num_many = _MANY * num_processors(device)
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
        self._shapes = [param.shape for param, _, _ in self.members]
        self._spare: list[Tensor] = []
        self._captured: list[list[Tensor]] = []
        self._dtypes = [
            (param.dtype if param.grad is None else param.grad.dtype, param.dtype)
            for param, _, _ in self.members
        ]

        def wide(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self.loss = wide(1)
        self.settings = wide(len(self.groups), SETTINGS)
        self.control = wide(len(self.groups), CONTROL)
        self.pooled, self.update_squares = wide(program, 8), wide(program)
        self.adam_sums, self.adam_roots = wide(chunk), wide(len(self.members))

    def holds(self, states: Mapping[Tensor, State]) -> bool:
        """Whether the tensors still are those that were planned for, with the same states."""
        for member, kept, shape in zip(self.members, self._kept, self._shapes, strict=True):
            param, state, has_grad = member
            grad = param.grad
            is_seen = grad is not None and param.numel() > 0
            if states.get(param) is not state or is_seen is not has_grad or param.shape != shape:
                return False
            if grad is not None and not (
                grad.layout is torch.strided
                and grad.shape == param.shape
                and grad.device == self.device
                and param.device == self.device
            ):
                return False
            if any(state.get(name) is not value for name, value in zip(_STATES, kept, strict=True)):
                return False
        return all(
            (grad.dtype, param.dtype) == dtypes
            for (param, _, _), dtypes in zip(self.members, self._dtypes, strict=True)
            if (grad := param.grad) is not None
        )

    def place(self, settings: Sequence[tuple[float, ...]], *, capturing: bool) -> list[Tensor]:
        """Tell the device where gradients and parameters are, and the groups' settings.

        Returns:
            Copies in order of gradients that are not, to be kept until the step has run.

        Raises:
            InputError: A CUDA graph is captured, and no step was taken since the last one was.
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
        placed = self.table[:, GRAD.value : PARAM.value + 1]
        if self.device.type == "cuda" and not capturing and not self._spare:
            shapes = ((placed.shape, torch.int64), (self.settings[:, :_GIVEN].shape, torch.float64))
            self._spare = [
                torch.empty(shape, dtype=dtype, pin_memory=True) for shape, dtype in shapes
            ]
        if capturing:
            require(
                bool(self._spare),
                "a step is captured in a CUDA graph for the first time or the second; take a step "
                "outside of it first",
            )
            sources, self._spare = self._spare, []
            self._captured.append(sources)  # a graph reads them whenever it is replayed
            self._pointers, self._settings = [], []
            sources[0].copy_(torch.tensor(pointers).view(-1, 2))
            sources[1].copy_(torch.tensor(settings, dtype=torch.float64))
            placed.copy_(sources[0], non_blocking=True)
            self.settings[:, :_GIVEN].copy_(sources[1], non_blocking=True)
            return kept
        # A graph that is replayed leaves what was there when it was captured.
        if pointers != self._pointers or self._captured:
            self._pointers = pointers
            placed.copy_(_pinned(torch.tensor(pointers).view(-1, 2), self.device))
        if settings != self._settings or self._captured:
            self._settings = list(settings)
            rows = torch.tensor(settings, dtype=torch.float64)
            self.settings[:, :_GIVEN].copy_(_pinned(rows, self.device))
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
