"""A learned optimizer behind the interface of `torch.optim`."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, final

import torch
from torch import Tensor, distributed
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from haltwise._core.errors import InputError, require
from haltwise._core.settings import real_number, require_flags, whole_number
from haltwise._core.tensors import undisturbed, widened
from haltwise.halting.posteriors import Posterior
from haltwise.interfaces.torch_optim import states
from haltwise.interfaces.torch_optim.chunks import UpdateStatistics
from haltwise.interfaces.torch_optim.groups import (
    Group,
    GroupModels,
    Record,
    Weights,
    check_present_settings,
    nonfinite_gradient,
    warn_of_rate,
)
from haltwise.interfaces.torch_optim.interrupts import counted_if_whole
from haltwise.interfaces.torch_optim.judging import (
    ShownStep,
    end_with_horizon,
    judge,
    keeps_update,
    posterior,
    require_judged,
)
from haltwise.interfaces.torch_optim.on_device import DeviceSteps
from haltwise.interfaces.torch_optim.problem import Problem, are_finite, survey
from haltwise.interfaces.torch_optim.takeover import (
    follows,
    guard_of,
    note_failures,
    note_learned_step,
    warn_of_new_start,
)
from haltwise.interfaces.torch_optim.versions import NewStarts, Versions

__all__ = ["LearnedOptimizer"]

_NONFINITE = ("skip", "raise")
_STATE_DTYPES = (None, torch.float32, torch.bfloat16)


@final
class LearnedOptimizer(torch.optim.Optimizer):
    """A meta-trained optimizer that moves `nn.Parameter`s and says when to stop.

    Each parameter group is one problem: what the rule pools over coordinates (scale and mean of
    the gradient) and what the halter judges is taken over the group's tensors together, so
    two groups of half the parameters do not move as one group of all. Tensors without a gradient
    are left out of a step: they neither move nor count. Coordinates whose gradient has been zero
    ever since, as of a token that never came, stay where they are.

    Halting reads the loss, and so does the guard. Pass it to every step, as `step(loss=loss)` or
    through a closure. Without it the parameters move all the same, but `should_stop` and
    `halting_posterior` are refused. Of processes that train one model together, as by
    `DistributedDataParallel`, each has the loss of its own examples: give `average_loss=True`, or
    pass the same loss everywhere. Else they stop apart, and Adam takes over in one but not in
    another, after which their parameters are no longer the same.

    State is kept in float32, in float64 for float64 parameters: 8 L H + 9 bytes a parameter in
    float32 for an LSTM of L layers of H units, so 329 for the usual two of 20, and 12 for the
    guard; with a `state_dtype` of bfloat16 169 and 12. A step needs, besides, memory for
    `chunk_size` coordinates and for the largest tensor.

    On an NVIDIA GPU with Triton, fused kernels move all tensors of a group at once (`haltwise info`
    says whether). A step then asks the device nothing and can be captured in a CUDA graph, after a
    first one; `should_stop` and whatever else tells of steps taken wait for the device, and judge
    the steps since they were last asked. Gradients that are not finite are skipped there, too;
    `nonfinite="raise"` and float64 parameters take the slower way.
    Parameters that are sharded over processes are not supported: each would normalise by its own
    shard.

    Args:
        params: Tensors, named tensors or groups, as any `torch.optim.Optimizer` takes them.
        weights: A shipped name, a run directory, a weights file or an optimizer. A group may have
            its own.
        lr: Multiplies the update; 1 is what was meta-trained. For schedulers; one that begins
            below .05 is warned of, as it may be another optimizer's.
        weight_decay: Decoupled, as in AdamW: a step takes `lr * weight_decay * param` off a
            parameter, beside the learned update, which does not see it; under Adam, times Adam's
            own rate.
        maximize: Whether the loss is to be increased.
        price: c, what a step must gain, in units of the loss; None is what the weights were
            meta-trained for.
        nonfinite: What becomes of a step whose loss or gradients are not finite: it changes
            nothing, and "skip" counts it in `num_skipped`, "raise" raises. So with an update that
            overflows, except that the optimizer has seen its gradient. Where the first three steps
            are skipped a warning says so.
        chunk_size: Coordinates moved at once, where no fused kernel moves all; more takes more
            memory. If None, on a CPU, whose caches they fit, 65,536 where there is the compiled
            kernel and 16,384 where there is none; 2^20 elsewhere.
        state_dtype: In which the rule's state is kept: `torch.bfloat16` halves the memory. Steps
            are computed as precisely as ever.
        guard: Whether Adam takes over, with a word of warning, where the weights fail: where the
            loss rises far above its lowest or falls no more, from the parameters at its lowest;
            where steps are not finite and skipped; and after the horizon that they were trained
            for. Needs a copy of the parameters, and the loss for all but the last. False where a
            loss may rise without harm, as that of a generator whose adversary learns, too.
        average_loss: Whether a loss is averaged over all processes of `torch.distributed`, every
            one of which then takes every step, with its loss. Without processes it changes nothing.

    Raises:
        InputError: A setting or a parameter is impossible, or there are no such weights.

    Examples:
        >>> model = torch.nn.Linear(3, 1)
        >>> optimizer = LearnedOptimizer(model.parameters(), weights="regression-10d")
        >>> loss = model(torch.ones(5, 3)).square().sum()
        >>> loss.backward()
        >>> optimizer.step(loss=loss)
        >>> optimizer.steps_taken
        1
    """

    def __init__(
        self,
        params: ParamsT,
        weights: Weights = "small-networks",
        *,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        price: float | None = None,
        nonfinite: str = "skip",
        chunk_size: int | None = None,
        state_dtype: torch.dtype | None = None,
        guard: bool = True,
        average_loss: bool = False,
    ) -> None:
        require(nonfinite in _NONFINITE, f"nonfinite must be 'skip' or 'raise', got {nonfinite!r}")
        require(
            state_dtype in _STATE_DTYPES,
            f"state_dtype must be torch.bfloat16, torch.float32 or None, got {state_dtype!r}",
        )
        self.nonfinite, self.state_dtype, self.guard = nonfinite, state_dtype, guard
        self.average_loss = average_loss
        require_flags(guard=guard, average_loss=average_loss)
        self.chunk_size = None if chunk_size is None else whole_number("chunk_size", chunk_size)
        self._models = GroupModels()
        self._on_device = DeviceSteps(self._models)
        self._moved: list[Problem] = []  # by the learned rule, at the last step
        self._versions, self._new_starts = Versions(), NewStarts()
        shared = {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, "price": price}
        super().__init__(params, {"weights": weights, **shared})

    def add_param_group(self, param_group: Group) -> None:
        """Add a group, a problem of its own that begins at its step 0.

        Args:
            param_group: `params`, and any of `weights`, `lr`, `weight_decay`, `maximize` and
                `price` that are to differ; left untouched.

        Raises:
            InputError: A setting or a parameter is impossible, or the weights do not fit.
        """
        group = dict(param_group)
        group.setdefault("weights", self.defaults["weights"])
        self._models.add(group)
        super().add_param_group(group)
        try:
            self._models.check(group)
        except InputError:
            self.param_groups.pop()
            raise
        warn_of_rate(group)

    # --------------------------------------------------------------------------------- stepping

    @_disable_dynamo
    def step(  # type: ignore[override]
        self,
        closure: Callable[[], Tensor | float] | None = None,
        *,
        loss: Tensor | float | None = None,
    ) -> Tensor | float | None:
        """Apply one update.

        Args:
            closure: Clears the gradients, computes them anew and returns the loss.
            loss: The loss that the gradients are of, where no closure returns it.

        Returns:
            What the closure returned.

        Raises:
            InputError: A gradient is sparse, a parameter has another size, device or precision
                than at its last step, something is not finite and `nonfinite` is "raise", or the
                loss is no single number or given twice.
        """
        require(
            closure is None or callable(closure),
            "the loss is given to step() by its name: write step(loss=loss)",
        )
        returned = None
        if closure is not None:
            with torch.enable_grad():
                returned = closure()
            # Lightning hands its own closure, which returns nothing, to steps taken by hand.
            require(
                loss is None or returned is None,
                "the closure returned the loss that is given to step(), too; give it once",
            )
            loss = returned if loss is None else loss
        with undisturbed():
            value = None if loss is None else _as_scalar(loss)
            if value is not None and self.average_loss:
                value = _averaged(value, self.param_groups[0]["params"])
            self._begin_anew(value)
            try:
                self._step(value)
            finally:
                self._versions.end_step(self.param_groups)
        return returned

    def _begin_anew(self, loss: Tensor | None) -> None:
        """Forget what is known of all groups where others have set some to another start.

        For they have one loss.
        """
        changed, starts = self._versions.begin_step(self.param_groups), self._new_starts
        if not (self.guard and (any(changed) or starts)) or _is_capturing():
            return
        self._on_device.leave(self._moved)
        for number, group in enumerate(self.param_groups):
            sign = -1 if group["maximize"] else 1
            for _, record in list(self._records([group])):
                if any(changed) and "guard" in record:
                    known = guard_of(Problem(group, record, {}, self.state, self._models, 0.0))
                    starts.suspect(number, known.highest_expected)
                if loss is not None and starts.observe(number, sign * float(loss)):
                    for param in group["params"]:
                        self.state.pop(param, None)
                    warn_of_new_start(group, record["step"])

    def _step(self, loss: Tensor | None) -> None:
        fusible = self.nonfinite == "skip" and not self._new_starts
        device, groups = self._on_device, self.param_groups
        if fusible and device.goes_on(groups, self.state, self._moved, guarded=self.guard):
            for group in groups:
                check_present_settings(group, waits=False)
            device.step(loss)
            return
        require(
            not _is_capturing(),
            "this step cannot be captured in a CUDA graph, as it asks the device; take a step "
            "outside of it first, by fused kernels (`haltwise info` says whether they run)",
        )
        self._read_device()  # what is counted there is not to be forgotten with this step
        with counted_if_whole(self.state):
            self._step_unlike_last(loss, fusible=fusible)

    def _step_unlike_last(self, loss: Tensor | None, *, fusible: bool) -> None:
        device, groups = self._on_device, self.param_groups
        problems = [found for group in groups if (found := self._survey(group))]
        if fusible and device.begin(problems, groups, loss, self._moved, guarded=self.guard):
            return
        device.leave(self._moved)
        if loss is None and all(problem.is_dummy for problem in problems):
            return
        seen = [] if loss is None else [loss]
        rows = [
            problem.rows(self.chunk_size) if self._learns(problem) else {} for problem in problems
        ]
        gradients = [problem.pool(own) for problem, own in zip(problems, rows, strict=True)]
        pooled = [
            [value for part in own.values() for value in part if value is not None]
            or problem.sums()
            for problem, own in zip(problems, gradients, strict=True)
        ]
        if not are_finite([*seen, *chain(*pooled)]):
            self._fail(problems, [[*seen, *own] for own in pooled], "the loss or a gradient is")
            return
        followed = [
            (problem, own, gradient)
            for problem, own, gradient in zip(problems, rows, gradients, strict=True)
            if not self.guard or follows(problem, loss, is_in_doubt=self._is_in_doubt(problem))
        ]
        self._moved = []
        moved = [problem.move(own, gradient) for problem, own, gradient in followed]
        self._finish([problem for problem, *_ in followed], moved, loss)

    def _learns(self, problem: Problem) -> bool:
        """Whether the learned rule moves the group, unless Adam takes over at this step."""
        return not (self.guard and guard_of(problem).has_taken_over)

    def _is_in_doubt(self, problem: Problem) -> bool:
        numbers = [n for n, group in enumerate(self.param_groups) if group is problem.group]
        return any(map(self._new_starts.is_in_doubt, numbers))

    def _survey(self, group: Group) -> Problem | None:
        problem = survey(
            *(group, self.state, self._models),
            state_dtype=self.state_dtype,
            guarded=self.guard,
        )
        if problem is not None and self.guard:
            guard_of(problem)  # makes its state
        return problem

    def _finish(
        self, followed: list[Problem], moved: list[UpdateStatistics], loss: Tensor | None
    ) -> None:
        """Apply the updates of the groups that the learned rule moves, and judge them."""
        squares = [[products[:, 1, 1]] for _, products in moved]
        finite = are_finite([*chain(*squares)])
        for problem in followed:
            problem.apply(finite=finite)
        self._moved = followed if finite else []
        if not finite:
            self._fail(followed, squares, "an update is")
            return
        for problem, statistics in zip(followed, moved, strict=True):
            group, record = problem.group, problem.record
            if self.guard:
                note_learned_step(problem, statistics.products)
            record["step"] += 1
            if loss is None:
                continue
            record["judged"] += 1
            if record["judged"] == record["step"] and self._models.can_judge(group):
                judge(self._models, group, record, ShownStep.of(problem, loss, statistics))
        for group, record in self._records() if self.guard else ():
            end_with_horizon(self._models, group, record)

    def _fail(self, problems: list[Problem], values: list[list[Tensor]], what: str) -> None:
        """Give a step up, of whose `values` some are not finite: count it, or raise."""
        if self.guard and self.nonfinite == "skip":
            note_failures(problems, values)
        if self.nonfinite == "skip":
            for problem in problems:
                problem.record["skipped"] += 1
            for problem in problems:
                self._models.warn_of_no_step(problem.group, problem.record)
            return
        first = next(filter(None, (nonfinite_gradient(each.group) for each in problems)), None)
        where = f" (first in the gradient of {first})" if first else ""
        raise InputError(
            f"{what} not finite at step {self.steps_taken}{where}; lower lr, or skip such steps "
            "by nonfinite='skip'"
        )

    # ------------------------------------------------------------------------- what is known

    def _read_device(self) -> None:
        """Judge the steps that fused kernels have taken, which waits for them."""
        self._on_device.read(self._moved)

    @property
    def steps_taken(self) -> int:
        """Updates applied, t; of the group that has seen most."""
        self._read_device()
        return max((record["step"] for _, record in self._records()), default=0)

    @property
    def num_skipped(self) -> int:
        """Steps skipped because something was not finite."""
        self._read_device()
        return max((record["skipped"] for _, record in self._records()), default=0)

    @property
    def should_stop(self) -> bool:
        """Whether every group has asked to stop, at the last step or before.

        Its update is applied; see `take_back`. Groups that are frozen whole have nothing more to
        gain and are not asked.

        The decision is about the next gradient: it is forecast not to be worth its price. Where
        Adam has taken over, ten of its steps together have not earned theirs; and where there is a
        guard, the trained horizon has ended. It is false where others seem to have set parameters
        to another start.

        Raises:
            InputError: It is not known: a step came without the loss, or the weights were
                meta-trained without halting.
        """
        judged = self._judged()
        trained = [
            (group, record)
            for group, record in judged
            if any(param.requires_grad for param in group["params"])
        ]
        stops = [record["stop"] for _, record in trained or judged]
        return not self._new_starts and bool(stops) and all(map(bool, stops))

    @undisturbed()
    def take_back(self) -> bool:
        """Undo the last update of each group that is forecast to be better without it.

        Call it once `should_stop` is true and the loop ends. The decision is made with the update
        in hand, and most weights have learned when it had better be left out, as where losses
        swing: `haltwise.solve` and evaluations return the parameters without it then. A second
        call does nothing, nor does one after `load_state_dict`, nor where others have set the
        parameters since, as to the best ones of a validation; running statistics of a module, such
        as those of batch normalisation, are not touched.

        Returns:
            Whether any group was changed.
        """
        self._read_device()
        undone = [
            problem
            for problem in self._moved
            if not keeps_update(problem)
            and not self._versions.are_unusual(self.param_groups, problem.group)
        ]
        for problem in undone:
            problem.take_back()
        self._versions.end_step(self.param_groups)
        self._moved = []
        return bool(undone)

    @property
    def halting_posterior(self) -> tuple[Posterior, ...]:
        """q(t | x, T) over 0..T, T the learned steps taken, of each group that has taken one.

        Each is a batch of one problem, of the kind that the weights were meta-trained with, as
        theta_0..theta_{T-1} were judged with their gradients in hand. It is a stream: every step
        makes a longer one.

        Raises:
            InputError: As `should_stop`.
        """
        return tuple(posterior(self._models, group, record) for group, record in self._judged())

    def _records(self, groups: Iterable[Group] | None = None) -> Iterator[tuple[Group, Record]]:
        """Those of the groups that have seen a gradient, and what the host remembers of each.

        It is kept with a group's first parameter, as L-BFGS keeps its memory.
        """
        for group in self.param_groups if groups is None else groups:
            for param in group["params"][:1]:
                if "group" in self.state.get(param, {}):
                    yield group, self.state[param]["group"][0]

    def _judged(self) -> list[tuple[Group, Record]]:
        """The groups that have taken a step, if halting is known of all of them."""
        self._read_device()
        require(
            not self._on_device.was_overrun,
            "more steps were replayed in a CUDA graph than can wait to be judged; ask should_stop "
            "at least every 1,000 replays",
        )
        moved = [(group, record) for group, record in self._records() if record["step"]]
        for group, record in moved:
            require_judged(self._models, group, record)
        return moved

    # ------------------------------------------------------------------------------ persistence

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state, so later steps leave it as it is; the weights' digest is in it."""
        self._read_device()
        return copy.deepcopy(super().state_dict())

    @undisturbed()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on exactly where `state_dict` was taken, with the same weights.

        Args:
            state_dict: From `state_dict`; copied.

        Raises:
            InputError: It is another kind of optimizer's, its weights are others, or it is no
                state of these parameters: an entry is missing, has another shape or precision, or
                is impossible.
            ValueError: It has other parameter groups.
        """
        require(
            isinstance(state_dict, Mapping) and {"state", "param_groups"} <= state_dict.keys(),
            "this is no state of an optimizer; load what its state_dict() gave",
        )
        self._on_device.leave(self._moved)
        taken: list[dict[str, Any]] = []

        def check(_: torch.optim.Optimizer, given: dict[str, Any]) -> None:
            taken.append(given)
            states.check(given, self, self._models, self.state_dtype)

        # Last before, first after: whatever hooks of the user's do is respected.
        before = self.register_load_state_dict_pre_hook(check)
        after = self.register_load_state_dict_post_hook(
            lambda _: states.restore(taken[-1], self), prepend=True
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()
        self._on_device.was_overrun = False

    def __getstate__(self) -> dict[str, Any]:
        self._read_device()
        own = ("nonfinite", "chunk_size", "state_dtype", "guard", "average_loss", "_models")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._moved, self._on_device = [], DeviceSteps(self._models)
        self._versions, self._new_starts = Versions(), NewStarts()


def _is_capturing() -> bool:
    """Whether this is captured in a CUDA graph, so that nothing can be asked of the device."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _averaged(loss: Tensor, params: list[Tensor]) -> Tensor:
    """The mean of the losses of all processes, each on the device that its parameters are on."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return loss
    mean = widened(loss.to(params[0].device if params else loss.device)).clone()
    distributed.all_reduce(mean)
    return mean / distributed.get_world_size()


def _as_scalar(loss: Tensor | float) -> Tensor:
    if isinstance(loss, Tensor):
        value = loss.detach()
    else:  # as exact as Python's
        value = torch.tensor(real_number("the loss", loss), dtype=torch.float64, device="cpu")
    require(
        value.numel() == 1
        and not value.is_complex()
        and value.dtype != torch.bool
        and not value.is_meta,
        f"the loss must be a single real number, got {value.dtype} of shape {list(value.shape)} "
        f"on {value.device}; take its mean",
    )
    return value.reshape(())
