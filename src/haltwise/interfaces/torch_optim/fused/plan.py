"""Where a fused step finds the tensors of all groups, and where it leaves what it sums."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._kernels.fused.rows import num_processors
from haltwise.interfaces.torch_optim.fused.control import (
    CHUNK,
    COLUMNS,
    CONTROL,
    GRAD,
    PARAM,
    SETTINGS,
)
from haltwise.interfaces.torch_optim.fused.rules import FusedRule, fused_rule
from haltwise.update_rules import UpdateRule

__all__ = ["NUM_LOG_ROWS", "Member", "Part", "Plan", "PlannedGroup"]

NUM_LOG_ROWS = 1024
"""Steps that may wait to be judged."""
_PROGRAMS = 4  # on a multiprocessor, that advance the last layer
_GIVEN = 6  # settings that the host gives
_MANY = 5  # likewise, that advance others or move parameters
_STATES = (
    "signals.grad",
    "signals.update",
    "touched",
    "guard.params",
    "guard.mean",
    "guard.square",
)  # in the order of the table, before the rule's

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
    first_tensor: int
    num_tensors: int
    """Tensors with a gradient, which come first."""


@final
class PlannedGroup:
    """A group, the kernels of its rule, and its part of the plan's memory."""

    def __init__(self, rule: FusedRule, device: torch.device) -> None:
        self.rule = rule
        self.parts: list[Part] = []
        self.first_tensor = self.num_tensors = self.num_coordinates = 0
        self.first_program = self.num_programs = 0
        self.log = torch.zeros(
            NUM_LOG_ROWS, 16 + rule.num_units, dtype=torch.float64, device=device
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
        self, members: Sequence[Sequence[Member]], rules: Sequence[UpdateRule], device: torch.device
    ) -> None:
        self.device = device
        num_tensors = sum(map(len, members))
        self.groups = [
            PlannedGroup(fused_rule(rule, own[0].state, num_tensors), device)
            for rule, own in zip(rules, members, strict=True)
        ]
        self.members: list[Member] = []
        self.temporaries: dict[int, Tensor] = {}
        self._kept: list[list[tuple[str, object]]] = []
        owners: list[Tensor] = []
        rows: list[list[int]] = []
        chunk = program = 0
        limit = _PROGRAMS * num_processors(device)
        for group, own in zip(self.groups, members, strict=True):
            group.first_tensor, group.first_program = len(self.members), program
            for (grad_dtype, param_dtype), part in _by_dtype(own).items():
                begin, moved, first_tensor = chunk, 0, len(self.members)
                for member in part:
                    num_chunks = -(-member.param.numel() // CHUNK.value)
                    owners.append(torch.full((num_chunks,), len(self.members), dtype=torch.int32))
                    names = (*_STATES, *group.rule.entries)
                    _put_in_order(member.state, group.rule)
                    rows.append(_row(member, chunk, group.rule))
                    self._kept.append([(name, member.state.get(name)) for name in names])
                    self.members.append(member)
                    chunk += num_chunks
                    moved += num_chunks * member.has_grad
                    group.num_coordinates += member.param.numel() * member.has_grad
                num_programs = min(moved, limit)
                group.parts.append(
                    Part(
                        *(grad_dtype, param_dtype, begin, moved, chunk - begin),
                        *(program, num_programs),
                        *(first_tensor, sum(member.has_grad for member in part)),
                    )
                )
                program += num_programs
            group.num_tensors = len(self.members) - group.first_tensor
            group.num_programs = program - group.first_program
            group.rule.reserve(group.num_programs)
            group.partials = torch.empty(
                group.num_programs, 2 + group.rule.num_units, dtype=torch.float64, device=device
            )
        self.owner = torch.cat(owners).to(device)
        self.num_many = _MANY * num_processors(device)
        self.num_programs = program
        table = torch.zeros(len(rows), COLUMNS.value, dtype=torch.int64)
        for row, known in zip(table.unbind(), rows, strict=True):
            row[: len(known)] = torch.tensor(known)
        self.table = table.to(device)
        self._pointers: list[int] = []
        self._settings: list[tuple[float, ...]] = []
        self._shapes = [param.shape for param, _, _ in self.members]
        self._spare: list[Tensor] = []
        self._captured: list[list[Tensor]] = []
        self._dtypes = [_dtypes(param) for param, _, _ in self.members]

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
            if param.device != self.device:
                return False
            if grad is not None and not (
                grad.layout is torch.strided
                and grad.shape == param.shape
                and grad.device == self.device
            ):
                return False
            if any(state.get(name) is not value for name, value in kept):
                return False
        return [_dtypes(param) for param, _, _ in self.members] == self._dtypes

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


def _dtypes(param: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Those of its gradient, or its own without one, and of the tensor itself."""
    return param.dtype if param.grad is None else param.grad.dtype, param.dtype


def _by_dtype(members: Sequence[Member]) -> dict[tuple[torch.dtype, torch.dtype], list[Member]]:
    """Those with a gradient first; a gradient has its parameter's dtype or its own."""
    found: dict[tuple[torch.dtype, torch.dtype], list[Member]] = {}
    for member in sorted(members, key=lambda member: not member.has_grad):
        param = member.param
        grad = param.grad if member.has_grad else None
        key = (param.dtype if grad is None else grad.dtype, param.dtype)
        found.setdefault(key, []).append(member)
    return found


def _put_in_order(state: State, rule: FusedRule) -> None:
    """As kernels take states: their entries in order, at addresses that are multiples of 16."""
    for name in (*_STATES, *rule.entries):
        value = state.get(name)
        if isinstance(value, Tensor):
            order = rule.in_order if name in rule.entries else Tensor.contiguous
            found = order(value)
            state[name] = order(value.clone()) if found.data_ptr() % 16 else found


def _row(member: Member, first_chunk: int, rule: FusedRule) -> list[int]:
    """Its row of the table; where gradient and parameter are is told at every step."""
    own = [_address(member.state.get(name)) for name in _STATES]
    return [0, 0, member.param.numel(), first_chunk, *own, *rule.places(member.state)]


def _address(tensor: object) -> int:
    return tensor.data_ptr() if isinstance(tensor, Tensor) else 0


def _pinned(value: Tensor, device: torch.device) -> Tensor:
    """On its way to the device without waiting for it."""
    if device.type == "cpu":
        return value
    return value.pin_memory().to(device, non_blocking=True)
