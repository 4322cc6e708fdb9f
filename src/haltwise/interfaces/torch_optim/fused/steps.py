"""The host's side of fused steps: launches, and reading what the device has decided."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._kernels import fused
from haltwise.interfaces.torch_optim.fused import control
from haltwise.interfaces.torch_optim.fused.plan import NUM_LOG_ROWS, Member, Plan
from haltwise.interfaces.torch_optim.fused.rules import DTYPES, Advance
from haltwise.interfaces.torch_optim.fused.tensors import apply_tensors, pool_tensors
from haltwise.interfaces.torch_optim.groups import Group, Record
from haltwise.interfaces.torch_optim.guard import FRESH, why_adam
from haltwise.interfaces.torch_optim.judging import ShownStep
from haltwise.interfaces.torch_optim.problem import Problem
from haltwise.update_rules import UpdateRule

__all__ = ["FusedGroup", "FusedSteps", "Reading"]

_WHY = ("", "rises", "waits", "ended", "fails")  # in the numbers of `control`
"""Kinds of reasons, at the numbers by which a control record names them."""


class FusedGroup(NamedTuple):
    """A group at a step.

    Attributes:
        problem: The group itself.
        members: Its tensors, in order.
        rule: What moves them, where they are.
        horizon: T, steps that its weights were trained for.
        price: c, what a step must gain where the group does not say.
        is_judged: Whether its weights have learned when to stop.
    """

    problem: Problem
    members: list[Member]
    rule: UpdateRule
    horizon: int
    price: float
    is_judged: bool


class Reading(NamedTuple):
    """What the device has done to a group since it was last read.

    Attributes:
        shown: Steps to be judged, in order.
        num_judged: Steps that came with a loss since the group's first.
        stops: Whether steps of Adam have not earned their price.
        moved: Whether the last step applied a learned update.
        takes_over: Why Adam has taken over in the meantime, in words; empty if it has not.
        is_whole: Whether no step to be judged was left out for want of room.
    """

    shown: list[ShownStep]
    num_judged: int
    stops: bool
    moved: bool
    takes_over: str
    is_whole: bool


@final
class FusedSteps:
    """Takes the steps of groups that all lie on one GPU."""

    def __init__(self) -> None:
        self._plan: Plan | None = None
        self._groups: list[FusedGroup] = []
        self._params: list[Tensor] = []
        self._num_grads, self._guarded = 0, False
        self._graphs: dict[object, torch.cuda.CUDAGraph | None] = {}
        self._unread = 0
        self._was_captured = False
        self._mirror: tuple[Tensor, torch.cuda.Event] | None = None

    def goes_on(
        self, groups: Sequence[Group], states: Mapping[Tensor, Any], *, guarded: bool
    ) -> bool:
        """Whether the next step is of the same tensors as the last; if not, read and `begin`."""
        plan = self._plan
        if plan is None or guarded is not self._guarded or self._unread >= NUM_LOG_ROWS:
            return False
        params = [param for group in groups for param in group["params"]]
        return (
            len(params) == len(self._params)
            and all(one is other for one, other in zip(params, self._params, strict=True))
            and sum(param.grad is not None for param in params) == self._num_grads
            and plan.holds(states)
        )

    def begin(self, groups: Sequence[FusedGroup], every: Sequence[Group], *, guarded: bool) -> None:
        """Take the groups over, of `every` one, with all that is remembered of them on the host."""
        device = groups[0].members[0].param.device
        plan = Plan([each.members for each in groups], [each.rule for each in groups], device)
        rows = [_row_of(each.problem.record) for each in groups]
        plan.control.copy_(torch.tensor(rows, dtype=torch.float64))
        self._plan, self._groups, self._guarded = plan, list(groups), guarded
        self._params = [param for group in every for param in group["params"]]
        self._num_grads = sum(param.grad is not None for param in self._params)
        self._unread, self._mirror, self._was_captured = 0, None, False
        self._graphs = {}

    def step(self, loss: Tensor | None) -> None:
        """Take a step of all groups, without asking the device anything."""
        assert self._plan is not None
        with fused.launching(self._plan.device):
            self._step(self._plan, loss)

    def _step(self, plan: Plan, loss: Tensor | None) -> None:
        is_cuda = plan.device.type == "cuda"
        capturing = is_cuda and torch.cuda.is_current_stream_capturing()
        settings, rates = [], []
        for number, (each, planned) in enumerate(zip(self._groups, plan.groups, strict=True)):
            group = each.problem.group
            lr, price = group["lr"], group["price"]
            if isinstance(lr, Tensor) and lr.device.type != "cpu":
                rates.append((number, lr))
                lr = 0.0
            settings.append(
                (
                    float(planned.num_coordinates),
                    float(each.horizon),
                    each.price if price is None else float(price),
                    -1.0 if group["maximize"] else 1.0,
                    float(group["weight_decay"]),
                    float(lr),
                )
            )
        require(
            not capturing or self._key(has_loss=loss is not None) in self._graphs,
            "a step is captured in a CUDA graph, but none with a loss, or none without, was taken "
            "before; take a step as it will be captured first",
        )
        kept = plan.place(settings, capturing=capturing)
        for number, rate in rates:
            plan.settings[number, control.LR.value].copy_(rate.detach().reshape(()))
        if loss is not None:
            plan.loss.copy_(loss.detach(), non_blocking=True)
        if is_cuda and not capturing:
            self._replay(plan, has_loss=loss is not None)
        else:
            self._launch(plan, has_loss=loss is not None)
        plan.return_temporaries()
        del kept
        self._unread += 1
        self._was_captured |= capturing
        if is_cuda and self._guarded and not capturing:
            self._send_mirror(plan)

    def _key(self, *, has_loss: bool) -> object:
        """On which it depends what is launched."""
        return has_loss, *(each.problem.group["weight_decay"] != 0 for each in self._groups)

    def _replay(self, plan: Plan, *, has_loss: bool) -> None:
        """Launch all kernels at once, as a CUDA graph; the first time they are compiled instead."""
        key = self._key(has_loss=has_loss)
        graph = self._graphs.get(key)
        if graph is not None:
            graph.replay()
        elif key not in self._graphs:
            self._graphs[key] = None
            self._launch(plan, has_loss=has_loss)
        else:
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.stream(aside):
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._launch(plan, has_loss=has_loss)
                finally:
                    graph.capture_end()
            torch.cuda.current_stream().wait_stream(aside)
            self._graphs[key] = graph
            graph.replay()

    def _launch(self, plan: Plan, *, has_loss: bool) -> None:
        groups, guarded = self._groups, self._guarded
        pairs = list(zip(range(len(groups)), groups, plan.groups, strict=True))
        for number, each, planned in pairs:
            for part in planned.parts:
                if part.num_moved:
                    pool_tensors[(part.num_programs,)](
                        *(plan.table, plan.owner, part.first_chunk, part.num_moved),
                        *(plan.settings[number], plan.control[number]),
                        *(plan.pooled[part.first_program :], plan.adam_sums),
                        GRAD_DTYPE=DTYPES[part.grad_dtype],
                        GUARDED=guarded,
                        JUDGED=has_loss and each.is_judged,
                    )
        for number, _, planned in pairs:
            control.begin_step[(1,)](
                *(plan.table[planned.first_tensor :], planned.num_tensors),
                *(plan.settings[number], plan.control[number], plan.pooled),
                *(planned.first_program, planned.num_programs, plan.num_programs),
                *(plan.adam_sums, plan.adam_roots[planned.first_tensor :], plan.loss),
                HAS_LOSS=has_loss,
                GUARDED=guarded,
            )
        for number, each, planned in pairs:
            launches = []
            for part in planned.parts:
                if not part.num_moved:
                    continue
                first = part.first_program - planned.first_program
                launch = Advance(
                    operands=(
                        *(plan.table, plan.owner, part.first_chunk, part.num_moved),
                        *(plan.settings[number], plan.control[number]),
                        *(planned.partials[first:], plan.update_squares[part.first_program :]),
                    ),
                    constants={
                        "GRAD_DTYPE": DTYPES[part.grad_dtype],
                        "PARAM_DTYPE": DTYPES[part.param_dtype],
                        "DECAYS": each.problem.group["weight_decay"] != 0,
                        "JUDGED": has_loss and each.is_judged,
                    },
                    num_programs=part.num_programs,
                    first_program=first,
                    num_many=min(part.num_moved, plan.num_many),
                    first_tensor=part.first_tensor,
                    num_tensors=part.num_tensors,
                )
                planned.rule.pool(launch)
                launches.append(launch)
            for launch in launches:
                planned.rule.advance(launch)
        for number, each, planned in pairs:
            control.end_step[(1,)](
                *(plan.settings[number], plan.control[number], plan.pooled, planned.partials),
                *(plan.update_squares, planned.first_program, planned.num_programs),
                *(plan.num_programs, planned.log, NUM_LOG_ROWS),
                HAS_LOSS=has_loss,
                GUARDED=guarded,
                JUDGED=has_loss and each.is_judged,
                UNITS=planned.rule.num_units,
                WIDTH=1 << (planned.rule.num_units + 1).bit_length(),
                num_warps=8,  # its one program loads all sums
            )
        for number, _, planned in pairs:
            for part in planned.parts:
                programs = min(part.num_chunks, plan.num_many)
                apply_tensors[(programs,)](
                    *(plan.table, plan.owner, part.first_chunk, part.num_chunks),
                    *(plan.settings[number], plan.control[number], plan.adam_roots),
                    GRAD_DTYPE=DTYPES[part.grad_dtype],
                    PARAM_DTYPE=DTYPES[part.param_dtype],
                    GUARDED=guarded,
                )

    # -------------------------------------------------------------------------------- reading

    @property
    def is_ahead(self) -> bool:
        """Whether the device may know more than the host."""
        return self._plan is not None and (self._unread > 0 or self._was_captured)

    def read(self) -> list[tuple[FusedGroup, Reading]]:
        """Wait for the device; bring the groups' records up to date, without judging steps.

        Returns:
            Nothing if there was no step since the last reading.
        """
        plan = self._plan
        if plan is None or not self.is_ahead:
            return []
        rows = plan.control.cpu().tolist()
        self._unread = 0
        if not any(map(_has_moved_on, self._groups, rows)):
            return []
        found = []
        for each, planned, row in zip(self._groups, plan.groups, rows, strict=True):
            takes_over = _note(each, row)
            log = planned.log[: int(row[control.LOGGED.value])].cpu()
            size, dim = each.rule.readout_size, planned.num_coordinates
            shown = [_shown(line, size, dim) for line in log]
            found.append(
                (
                    each,
                    Reading(
                        shown,
                        int(row[control.NUM_JUDGED.value]),
                        row[control.STOPS.value] != 0,
                        row[control.MOVED.value] != 0,
                        takes_over,
                        len(shown) < NUM_LOG_ROWS or not self._was_captured,
                    ),
                )
            )
        plan.control[:, control.LOGGED.value] = 0
        plan.control[:, control.STOPS.value] = 0
        return found

    def news(self) -> bool:
        """Whether Adam is known to have taken over since the last reading, without waiting."""
        # While a graph is captured no event may be asked for.
        if self._mirror is None or torch.cuda.is_current_stream_capturing():
            return False
        sent, event = self._mirror
        if not event.query():
            return False
        self._mirror = None
        return any(
            why != 0 and each.problem.record["guard"]["adam"] < 0
            for why, each in zip(sent.tolist(), self._groups, strict=True)
        )

    def _send_mirror(self, plan: Plan) -> None:
        if self._mirror is not None and not self._mirror[1].query():
            return
        sent = torch.empty(len(plan.groups), dtype=torch.float64, pin_memory=True)
        sent.copy_(plan.control[:, control.WHY.value], non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._mirror = sent, event


def _row_of(record: Record) -> list[float]:
    """The control record of what the host remembers."""
    row = [0.0] * control.CONTROL
    row[control.STEP.value] = record["step"]
    row[control.SKIPPED.value] = record["skipped"]
    row[control.NUM_JUDGED.value] = record["judged"]
    kept = record.get("guard", FRESH)
    for place, name in enumerate(FRESH, start=control.GUARD):
        row[place] = float(kept[name])
    return row


def _has_moved_on(each: FusedGroup, row: list[float]) -> bool:
    """Whether the device has taken or skipped a step that the host does not know of."""
    places = {"step": control.STEP, "skipped": control.SKIPPED}
    return any(row[place.value] != each.problem.record[name] for name, place in places.items())


def _note(each: FusedGroup, row: list[float]) -> str:
    """Bring the host's record up to date; why Adam has taken over in the meantime."""
    record = each.problem.record
    step = int(row[control.STEP.value])
    record["step"], record["skipped"] = step, int(row[control.SKIPPED.value])
    if "guard" not in record:
        return ""
    before = record["guard"]["adam"]
    for place, (name, fresh) in enumerate(FRESH.items(), start=control.GUARD):
        record["guard"][name] = type(fresh)(row[place])
    if before >= 0 or record["guard"]["adam"] < 0:
        return ""
    return why_adam(
        _WHY[int(row[control.WHY.value])],
        step=int(row[control.WHY_STEP.value]),
        waited=int(row[control.WHY_WAITED.value]),
        horizon=each.horizon,
    )


def _shown(line: Tensor, size: int, num_coordinates: int) -> ShownStep:
    products = line.new_zeros(5, 5)
    for value, (one, other) in zip(line[2:12], control.PRODUCTS, strict=True):
        products[one, other] = products[other, one] = value
    loss, readout = line[1:2].float(), line[16 : 16 + size].float().unsqueeze(0)
    return ShownStep(int(line[0]), loss, products.unsqueeze(0), readout, num_coordinates)
