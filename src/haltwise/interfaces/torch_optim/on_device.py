"""Steps that fused kernels take on a GPU: when these serve, and how what they did is taken over.

The kernels themselves are imported where they are known to run, for they need Triton.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._kernels import fused
from haltwise.interfaces.torch_optim.groups import Group, GroupModels
from haltwise.interfaces.torch_optim.judging import end_with_horizon, judge
from haltwise.interfaces.torch_optim.problem import Problem, States, decay_of
from haltwise.interfaces.torch_optim.takeover import warn_of_adam
from haltwise.update_rules import LSTMRule, MLPRule, UpdateRule

if TYPE_CHECKING:
    from haltwise.interfaces.torch_optim.fused.steps import FusedGroup, FusedSteps

__all__ = ["DeviceSteps"]

_DTYPES = {torch.float32, torch.bfloat16, torch.float16}


@final
class DeviceSteps:
    """Takes steps without asking the device, and reads later what became of them.

    Args:
        models: The weights of all groups.
    """

    def __init__(self, models: GroupModels) -> None:
        self._models = models
        self._steps: FusedSteps | None = None
        self._guarded = False
        self._groups: list[Group] = []
        self._decays: dict[int, float] = {}  # of the groups at the last step
        self.was_overrun = False
        """Whether more steps waited to be judged than there was room for."""

    def goes_on(
        self, groups: Sequence[Group], states: States, moved: list[Problem], *, guarded: bool
    ) -> bool:
        """Whether this step can be taken as the last one was; see `read` for `moved`."""
        if self._steps is None:
            return False
        if self._steps.news():
            self.read(moved)
        return self._steps.goes_on(groups, states, guarded=guarded)

    def step(self, loss: Tensor | None) -> None:
        """Take a step as the last one was taken."""
        assert self._steps is not None
        # A rate on the device is read with all else: to look at it would wait.
        known = (group for group in self._groups if not isinstance(group["lr"], Tensor))
        self._decays = {id(group): decay_of(group) for group in known}
        self._steps.step(loss)

    def begin(
        self,
        problems: Sequence[Problem],
        groups: Sequence[Group],
        loss: Tensor | None,
        moved: list[Problem],
        *,
        guarded: bool,
    ) -> bool:
        """Take a first step of these problems, if the kernels serve all.

        Args:
            problems: Groups with gradients.
            groups: All of the optimizer's.
            loss: A scalar, if known.
            moved: See `read`.
            guarded: Whether Adam may take over.

        Returns:
            Whether the step is taken.

        Raises:
            InputError: It would be captured in a CUDA graph, but was not taken before.
        """
        if not _serves(problems):
            return False
        is_cuda = problems[0].params[0].is_cuda
        require(
            not (is_cuda and torch.cuda.is_current_stream_capturing()),
            "a step is captured in a CUDA graph, but the last one was not of the same tensors and "
            "settings; take a step as it will be captured first",
        )
        is_ahead = self._steps is not None and self._steps.is_ahead
        if loss is None and not is_ahead and all(each.is_dummy for each in problems):
            return True
        from haltwise.interfaces.torch_optim.fused.steps import FusedSteps

        if self._steps is None:
            self._steps = FusedSteps()
        self.read(moved)
        self._guarded = guarded
        self._groups = [each.group for each in problems]
        self._steps.begin([_fused(each) for each in problems], groups, guarded=guarded)
        self.step(loss)
        return True

    def leave(self, moved: list[Problem]) -> None:
        """Let the host go on with all that the device knows; see `read`."""
        self.read(moved)
        self._steps = None

    def read(self, moved: list[Problem]) -> None:
        """Judge the steps that the kernels have taken, which waits for them.

        Args:
            moved: Becomes the groups that the last step moved by their learned rules.
        """
        found = [] if self._steps is None or not self._steps.is_ahead else self._steps.read()
        if not found:
            return
        moved.clear()
        for each, reading in found:
            problem, record = each.problem, each.problem.record
            for shown in reading.shown:
                judge(problem.models, problem.group, record, shown)
            record["judged"] = reading.num_judged
            self.was_overrun |= not reading.is_whole
            if reading.stops and "stop" in record:
                record["stop"] = torch.ones_like(record["stop"])
            if self._guarded:
                end_with_horizon(problem.models, problem.group, record)
            if reading.moved:
                decay = self._decays.get(id(problem.group))
                decay = decay_of(problem.group) if decay is None else decay
                moved.append(problem._replace(decay=decay))
        for each, reading in found:  # last, for a warning may be made an error
            if reading.takes_over:
                warn_of_adam(each.problem.group, reading.takes_over)
            self._models.warn_of_no_step(each.problem.group, each.problem.record)


def _serves(problems: Sequence[Problem]) -> bool:
    if not problems:
        return False
    params = [param for each in problems for param in each.group["params"]]
    device = params[0].device
    dtypes = {param.dtype for param in params}
    dtypes |= {each.grad.dtype for p in problems for each in p.params if each.grad is not None}
    rules = [each.models.of(each.group).rule for each in problems]
    return (
        all(param.device == device for param in params)
        and dtypes <= _DTYPES
        and all(_has_kernels(rule, device) for rule in rules)
    )


def _has_kernels(rule: UpdateRule, device: torch.device) -> bool:
    """Whether `haltwise.interfaces.torch_optim.fused.rules` moves such a rule there."""
    if not isinstance(rule, LSTMRule | MLPRule):
        return False
    num_layers = rule.num_layers if isinstance(rule, LSTMRule) else 0
    return fused.serves(device, torch.float32, rule.hidden_size, num_layers)


def _fused(problem: Problem) -> "FusedGroup":
    from haltwise.interfaces.torch_optim.fused.plan import Member
    from haltwise.interfaces.torch_optim.fused.steps import FusedGroup

    group, models = problem.group, problem.models
    members = []
    for param in group["params"]:
        state = problem.states.get(param, {})
        has_grad = param.grad is not None and param.numel() > 0
        if has_grad or "guard.params" in state:
            members.append(Member(param, state, has_grad))
    model = models.cast(group, group["params"][0])
    card = model.card
    return FusedGroup(
        problem, members, model.rule, card.horizon, card.price, models.can_judge(group)
    )
