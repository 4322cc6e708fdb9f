"""A learned optimizer behind the interface of `torch.optim`."""

import copy
from collections.abc import Callable, Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim.optimizer import ParamsT

from haltwise._core.errors import FitWarning, InputError, require, warn
from haltwise._core.settings import real_number, whole_number
from haltwise._core.tensors import undisturbed
from haltwise._kernels import fused
from haltwise.halting.posteriors import Posterior
from haltwise.interfaces.torch_optim import states
from haltwise.interfaces.torch_optim.chunks import (
    UpdateStatistics,
    init_state,
    leaves,
    move,
    pool,
    working_dtype,
)
from haltwise.interfaces.torch_optim.groups import (
    Group,
    GroupModels,
    Record,
    Weights,
    head_of,
    name_of,
    num_coordinates,
)
from haltwise.interfaces.torch_optim.guard import Action, Guard, adam_, init_tensors
from haltwise.processes.observation import StepObservation
from haltwise.processes.signals import SIGNALS, combine_products
from haltwise.stop_rules import CostUnit, DecisionTime, takes_update
from haltwise.update_rules import PooledGradient
from haltwise.update_rules.lstm import LSTMRule

if TYPE_CHECKING:
    from haltwise.interfaces.torch_optim.fused.steps import FusedGroup, FusedSteps

__all__ = ["LearnedOptimizer"]

_NONFINITE = ("skip", "raise")
_STATE_DTYPES = (None, torch.float32, torch.bfloat16)
_ACCELERATOR_CHUNK = 2**20


class _Problem(NamedTuple):
    """A group at this step."""

    group: Group
    record: Record
    by_leaf: dict[int, list[Tensor]]
    """Tensors with a gradient, by the leaf of the group's rule that moves them."""

    @property
    def params(self) -> list[Tensor]:
        """Its tensors with a gradient."""
        return [param for params in self.by_leaf.values() for param in params]


@final
class LearnedOptimizer(torch.optim.Optimizer):
    """A meta-trained optimizer that moves `nn.Parameter`s and says when to stop.

    Each parameter group is one problem: what the rule pools over coordinates (scale and mean of
    the gradient) and what the halter judges is taken over the group's tensors together, so
    two groups of half the parameters do not move as one group of all. Tensors without a gradient
    are left out of a step: they neither move nor count. Coordinates whose gradient has been zero
    ever since, as of a token that never came, stay where they are.

    Halting reads the loss. Pass it to every step, as `step(loss=loss)` or through a closure; the
    same, averaged loss on every process if there are several, or they will stop apart. Without it
    the parameters move all the same, but `should_stop` and `halting_posterior` are refused.

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
        lr: Multiplies the update; 1 is what was meta-trained. For schedulers.
        weight_decay: Decoupled, as in AdamW: a step takes `lr * weight_decay * param` off a
            parameter, beside the learned update, which does not see it; under Adam, times Adam's
            own rate.
        maximize: Whether the loss is to be increased.
        price: c, what a step must gain, in units of the loss; None is what the weights were
            meta-trained for.
        nonfinite: What becomes of a step whose loss or gradients are not finite: it changes
            nothing, and "skip" counts it in `num_skipped`, "raise" raises. So with an update that
            overflows, except that the optimizer has seen its gradient.
        chunk_size: Coordinates moved at once, where no fused kernel moves all; more takes more
            memory. If None, 16,384 on a CPU, whose caches they fit, and 2^20 elsewhere.
        state_dtype: In which the rule's state is kept: `torch.bfloat16` halves the memory. Steps
            are computed as precisely as ever.
        guard: Whether Adam takes over, with a word of warning, where the weights fail: where the
            loss rises far above its lowest or falls no more, from the parameters at its lowest;
            where steps are not finite and skipped; and after the horizon that they were trained
            for. Needs a copy of the parameters, and the loss for all but the last.

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
        weights: Weights = "mnist-mlp",
        *,
        lr: float | Tensor = 1.0,
        weight_decay: float = 0.0,
        maximize: bool = False,
        price: float | None = None,
        nonfinite: str = "skip",
        chunk_size: int | None = None,
        state_dtype: torch.dtype | None = None,
        guard: bool = True,
    ) -> None:
        require(nonfinite in _NONFINITE, f"nonfinite must be 'skip' or 'raise', got {nonfinite!r}")
        require(
            state_dtype in _STATE_DTYPES,
            f"state_dtype must be torch.bfloat16, torch.float32 or None, got {state_dtype!r}",
        )
        self.nonfinite, self.state_dtype, self.guard = nonfinite, state_dtype, guard
        self.chunk_size = None if chunk_size is None else whole_number("chunk_size", chunk_size)
        self._models = GroupModels()
        self._fused: FusedSteps | None = None
        self._was_overrun = False
        self._moved: list[_Problem] = []  # by the learned rule, at the last step
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
            loss: The loss that the gradients are of, where there is no closure.

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
            require(loss is None, "give step() a closure or a loss, not both")
            with torch.enable_grad():
                returned = loss = closure()
        with undisturbed():
            self._step(None if loss is None else _as_scalar(loss))
        return returned

    def _step(self, loss: Tensor | None) -> None:
        if self._goes_on_fused():
            assert self._fused is not None
            self._fused.step(loss)
            return
        require(
            not (torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()),
            "this step cannot be captured in a CUDA graph, as it asks the device; take a step "
            "outside of it first, by fused kernels (`haltwise info` says whether they run)",
        )
        problems = [found for group in self.param_groups if (found := self._survey(group))]
        if self._take_fused_step(problems, loss):
            return
        if loss is None and all(map(_is_dummy, problems)):
            return
        seen = [] if loss is None else [loss]
        gradients = [self._pool(problem) for problem in problems]
        pooled = [[value for part in own.values() for value in part] for own in gradients]
        if not _are_finite([*seen, *chain(*pooled)]):
            self._fail(problems, [[*seen, *own] for own in pooled], "the loss or a gradient is")
            return
        followed = [
            (problem, own)
            for problem, own in zip(problems, gradients, strict=True)
            if self._is_followed(problem, loss)
        ]
        moved = [self._move(problem, own) for problem, own in followed]
        self._finish([problem for problem, _ in followed], moved, loss)

    def _finish(
        self, followed: list[_Problem], moved: list[UpdateStatistics], loss: Tensor | None
    ) -> None:
        """Apply the updates of the groups that the learned rule moves, and judge them."""
        squares = [[products[:, 1, 1]] for _, products in moved]
        finite = _are_finite([*chain(*squares)])
        self._apply(followed, finite=finite)
        self._moved = followed if finite else []
        if not finite:
            self._fail(followed, squares, "an update is")
            return
        for problem, (readout, products) in zip(followed, moved, strict=True):
            if self.guard:
                lr = float(problem.group["lr"])
                dim = num_coordinates(problem.params)
                size = float(products[0, 1, 1]) / dim / lr**2 if lr else None
                self._guard_of(problem).note_learned_step(size)
            problem.record["step"] += 1
            if loss is not None:
                self._judge(problem, loss, readout, products)
        self._end_with_the_horizon()

    def _end_with_the_horizon(self) -> None:
        for group, record in self._records() if self.guard else ():
            if "stop" in record and record["step"] >= self._models.of(group).card.horizon:
                record["stop"] = torch.ones_like(record["stop"])

    # ------------------------------------------------------------------------------------- guard

    def _guard_of(self, problem: _Problem) -> Guard:
        card = self._models.of(problem.group).card
        price = problem.group["price"]
        state, step = problem.record.setdefault("guard", {}), problem.record["step"]
        return Guard(state, step, card.horizon, card.price if price is None else price)

    def _fail(self, problems: list[_Problem], values: list[list[Tensor]], what: str) -> None:
        """Give a step up; those problems failed of whose `values` one is not finite."""
        if self.guard and self.nonfinite == "skip":
            for problem, own in zip(problems, values, strict=True):
                if not _are_finite(own):
                    self._obey(problem, self._guard_of(problem).fail())
        self._reject(problems, what)

    def _is_followed(self, problem: _Problem, loss: Tensor | None) -> bool:
        """Whether the learned rule is to move the group; if not, Adam has."""
        if not self.guard:
            return True
        guard, group, record = self._guard_of(problem), problem.group, problem.record
        sign = -1 if group["maximize"] else 1
        action = guard.observe(None if loss is None else sign * float(loss))
        self._obey(problem, action)
        if not guard.has_taken_over:
            return True
        if not action.go_back:  # the gradient is that of other parameters
            for param in problem.params:
                self._move_by_adam(param, group, guard)
            stops = guard.note_adam_step(has_loss=loss is not None)
            if "stop" in record:
                record["stop"] = record["stop"] | stops
        record["step"] += 1
        record["judged"] += loss is not None
        return False

    def _obey(self, problem: _Problem, action: Action) -> None:
        # All of the group's, for some may have no gradient at this step but had one before.
        for param in problem.group["params"]:
            kept = self.state[param].get("guard.params") if param in self.state else None
            if kept is not None and action.remember:
                kept.copy_(param)
            elif kept is not None and action.go_back:
                param.copy_(kept)
        if action.takes_over:
            self._warn_of_adam(problem.group, action.takes_over)

    @staticmethod
    def _warn_of_adam(group: Group, why: str) -> None:
        warn(
            f"Adam takes over from the weights {group['weights']!r} {why}, with a learning rate "
            "that falls from now on; to follow the weights all the same give guard=False",
            FitWarning,
        )

    def _move_by_adam(self, param: Tensor, group: Group, guard: Guard) -> None:
        assert param.grad is not None
        dtype, lr = working_dtype(param), float(group["lr"])
        grad = param.grad.detach().reshape(-1).to(dtype)
        grad = -grad if group["maximize"] else grad
        update = adam_(self.state[param], grad, guard.num_adam_steps, lr * guard.rate)
        if group["weight_decay"]:
            decay = lr * guard.rate * group["weight_decay"]
            update -= decay * param.detach().reshape(-1).to(dtype)
        param.add_(update.view(param.shape))

    def _survey(self, group: Group) -> _Problem | None:
        """The group's tensors that have a gradient, and what is pooled of it."""
        params: list[Tensor] = group["params"]
        by_leaf: dict[int, list[Tensor]] = {}
        for number, (param, leaf) in enumerate(
            zip(params, self._models.leaf_of_each(group), strict=True)
        ):
            self._check_unchanged(group, number)
            if param.grad is None or param.numel() == 0:
                continue
            require(
                param.grad.layout == torch.strided,
                f"the gradient of {name_of(group, number)} is sparse ({param.grad.layout}), which "
                "learned optimizers do not support; make it dense, as by sparse=False of an "
                "embedding",
            )
            require(
                param.grad.shape == param.shape and param.grad.device == param.device,
                f"the gradient of {name_of(group, number)} is of shape {list(param.grad.shape)} on "
                f"{param.grad.device}; compute it anew after a change of the parameter",
            )
            by_leaf.setdefault(leaf, []).append(param)
        if not by_leaf:
            return None
        for leaf, own in by_leaf.items():
            for param in own:
                if "signals.grad" not in self.state[param]:
                    rule, _ = leaves(self._models.cast(group, param).rule, num_coordinates(params))[
                        leaf
                    ]
                    self.state[param] |= init_state(rule, param, self.state_dtype)
        for param in params if self.guard else ():
            state = self.state.get(param, {})
            if "signals.grad" in state and "guard.params" not in state:
                state |= init_tensors(param, state["signals.grad"][0])
        # A tuple, which the tools of torch.distributed.checkpoint leave as it is.
        record = self.state[params[0]].setdefault("group", ({**states.FRESH},))[0]
        problem = _Problem(group, record, by_leaf)
        if self.guard:
            self._guard_of(problem)  # makes its state
        return problem

    def _pool(self, problem: _Problem) -> dict[int, PooledGradient]:
        """What is pooled of the gradient, by leaf."""
        maximize = problem.group["maximize"]
        return {
            leaf: pool(own, self._chunk_of(own[0]), maximize=maximize)
            for leaf, own in problem.by_leaf.items()
        }

    def _chunk_of(self, param: Tensor) -> int:
        """Coordinates of a tensor that are moved at once."""
        return self.chunk_size or (16384 if param.is_cpu else _ACCELERATOR_CHUNK)

    def _check_unchanged(self, group: Group, number: int) -> None:
        """Refuse a parameter that no longer is what its state is of."""
        param: Tensor = group["params"][number]
        state = self.state.get(param, {})
        kept = state.get("signals.grad")
        if kept is None:
            return
        now = param.numel(), param.device, working_dtype(param)
        require(
            now == (kept.numel(), kept.device, kept.dtype)
            and param.shape == state.get("guard.params", param).shape,
            f"{name_of(group, number)} has {now[0]} entries on {now[1]} to be moved in {now[2]}, "
            f"but its state is of {kept.numel()} on {kept.device} in {kept.dtype}; resize, reshape "
            "and move parameters before the optimizer is built",
        )

    def _reject(self, problems: list[_Problem], what: str) -> None:
        """Count a step in which something was not finite, or raise."""
        if self.nonfinite == "skip":
            for problem in problems:
                problem.record["skipped"] += 1
            return
        culprits = (
            name_of(group, number)
            for group, *_ in problems
            for number, param in enumerate(group["params"])
            if param.grad is not None and not param.grad.isfinite().all()
        )
        first = next(culprits, None)
        where = f" (first in the gradient of {first})" if first else ""
        raise InputError(
            f"{what} not finite at step {self.steps_taken}{where}; lower lr, or skip such steps "
            "by nonfinite='skip'"
        )

    def _move(self, problem: _Problem, pooled: dict[int, PooledGradient]) -> UpdateStatistics:
        """Advance the group's states; every displacement is left in its `signals.update`."""
        group = problem.group
        dim = num_coordinates(group["params"])
        device = problem.params[0].device
        # Leaves without a gradient show zeros.
        readouts = [
            torch.zeros(1, rule.readout_size, device=device)
            for rule, _ in leaves(self._models.of(group).rule, dim)
        ]
        products = torch.zeros((), device=device)
        for leaf, params in problem.by_leaf.items():
            total = torch.zeros((), device=device)
            for param in params:
                rule, _ = leaves(self._models.cast(group, param).rule, dim)[leaf]
                moved = move(
                    rule,
                    param,
                    self.state[param],
                    pooled[leaf],
                    lr=float(group["lr"]),
                    weight_decay=group["weight_decay"],
                    maximize=group["maximize"],
                    chunk_size=self._chunk_of(param),
                )
                total = total + moved.readout.to(device)
                products = products + moved.products.to(device)
            readouts[leaf] = total / num_coordinates(params)
        return UpdateStatistics(torch.cat(readouts, 1), products)

    def _apply(self, problems: list[_Problem], *, finite: bool) -> None:
        """Add the displacements to the parameters, or forget them where one is not finite."""
        for group, param in ((each.group, param) for each in problems for param in each.params):
            state = self.state[param]
            update, touched = (
                state[name].view(param.shape) for name in ("signals.update", "touched")
            )
            if finite:
                decay = float(group["lr"]) * group["weight_decay"]
                # The halter was trained on updates of all coordinates and is shown them.
                param.add_(torch.where(touched, update, -decay * param if decay else 0.0))
            else:
                update.zero_()

    # ---------------------------------------------------------------------------------- halting

    def _judge(self, problem: _Problem, loss: Tensor, readout: Tensor, products: Tensor) -> None:
        """Decide whether another step is worth its price, if that can be known."""
        group, record, _ = problem
        like = head_of(group)
        value = loss.to(like.device, working_dtype(like)).reshape(1)
        if group["maximize"]:
            value = -value
        record["judged"] += 1
        if record["judged"] == record["step"] and self._models.can_judge(group):
            dim = num_coordinates(problem.params)
            self._judge_step(
                *(group, record, record["step"] - 1, value),
                *(readout.to(value), products.to(like.device), dim),
            )

    def _judge_step(
        self,
        group: Group,
        record: Record,
        step: int,
        loss: Tensor,
        readout: Tensor,
        products: Tensor,
        dim: int,
    ) -> None:
        """Decide on the device of the loss, of shape [1], which need not be the group's."""
        signals = combine_products(step, loss.to(products), products, dim).to(loss)
        session = self._models.new_session(group, loss)
        if step:
            state: dict[str, Tensor] = record["session"]
            session.restore({name: value.to(loss.device) for name, value in state.items()})
        log_grad_norm = signals[:, SIGNALS.index("log_grad")]
        decision = session.observe(StepObservation(step, loss, log_grad_norm, signals, readout))
        record["session"] = session.state()
        record["stop"] = decision.stop | record.get("stop", torch.zeros_like(decision.stop)).to(
            loss.device
        )
        outputs = decision.observation.outputs
        record["outputs"] = {
            name: torch.cat(
                [*([record["outputs"][name].to(new)] if step else []), new.unsqueeze(1)], 1
            )
            for name, new in outputs.items()
        }

    # ------------------------------------------------------------------------------ on a GPU

    def _take_fused_step(self, problems: list[_Problem], loss: Tensor | None) -> bool:
        """Take the step by fused kernels, if they serve all groups."""
        served = self._can_fuse(problems)
        if not served:
            self._leave_fused()
            return False
        is_cuda = problems[0].params[0].is_cuda
        require(
            not (is_cuda and torch.cuda.is_current_stream_capturing()),
            "a step is captured in a CUDA graph, but the last one was not of the same tensors and "
            "settings; take a step as it will be captured first",
        )
        fresh = not self._is_ahead() and all(each.record["step"] == 0 for each in problems)
        if loss is None and fresh and all(map(_is_dummy, problems)):
            return True
        from haltwise.interfaces.torch_optim.fused.steps import FusedSteps

        if self._fused is None:
            self._fused = FusedSteps()
        self._read_device()
        groups = [self._fused_group(problem) for problem in problems]
        self._fused.begin(groups, self.param_groups, guarded=self.guard)
        self._fused.step(loss)
        return True

    def _goes_on_fused(self) -> bool:
        """Whether fused kernels take this step as they took the last."""
        if self._fused is None or self.nonfinite != "skip":
            return False
        if self._fused.news():
            self._read_device()
        return self._fused.goes_on(self.param_groups, self.state, guarded=self.guard)

    def _can_fuse(self, problems: list[_Problem]) -> bool:
        if not problems or self.nonfinite != "skip":
            return False
        params = [param for each in problems for param in each.group["params"]]
        device = params[0].device
        dtypes = {param.dtype for param in params}
        dtypes |= {each.grad.dtype for p in problems for each in p.params if each.grad is not None}
        rules = [self._models.of(each.group).rule for each in problems]
        return (
            all(param.device == device for param in params)
            and dtypes <= {torch.float32, torch.bfloat16, torch.float16}
            and all(
                isinstance(rule, LSTMRule)
                and fused.serves(device, torch.float32, rule.hidden_size, rule.num_layers)
                for rule in rules
            )
        )

    def _fused_group(self, problem: _Problem) -> "FusedGroup":
        from haltwise.interfaces.torch_optim.fused.plan import Member
        from haltwise.interfaces.torch_optim.fused.steps import FusedGroup

        group, record, _ = problem
        members = []
        for param in group["params"]:
            state = self.state.get(param, {})
            has_grad = param.grad is not None and param.numel() > 0
            if has_grad or "guard.params" in state:
                members.append(Member(param, state, has_grad))
        model = self._models.cast(group, group["params"][0])
        assert isinstance(model.rule, LSTMRule)
        return FusedGroup(
            *(group, record, members, model.rule, model.card.horizon, model.card.price),
            self._models.can_judge(group),
        )

    def _is_ahead(self) -> bool:
        return self._fused is not None and self._fused.is_ahead

    def _leave_fused(self) -> None:
        """Go on without the kernels, with all that the device knows."""
        if self._fused is not None:
            self._read_device()
            self._fused = None

    def _read_device(self) -> None:
        """Judge the steps that fused kernels have taken, which waits for them."""
        if self._fused is None or not self._fused.is_ahead:
            return
        found = self._fused.read()
        if not found:
            return
        self._moved = []
        for each, reading in found:
            group, record = each.group, each.record
            for logged in reading.logged:
                self._judge_step(
                    *(group, record, logged.step, logged.loss.float()),
                    *(logged.readout.float(), logged.products, reading.num_coordinates),
                )
            record["judged"] = reading.num_judged
            self._was_overrun |= not reading.is_whole
            if reading.stops and "stop" in record:
                record["stop"] = torch.ones_like(record["stop"])
            if reading.moved:
                moved = [member.param for member in each.members if member.has_grad]
                self._moved.append(_Problem(group, record, {0: moved}))
        self._end_with_the_horizon()
        for each, reading in found:  # last, for a warning may be made an error
            if reading.takes_over:
                self._warn_of_adam(each.group, reading.takes_over)

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

        Its update is applied; see `take_back`.

        The decision is about the next gradient: it is forecast not to be worth its price. Where
        Adam has taken over, ten of its steps together have not earned theirs; and where there is a
        guard, the trained horizon has ended.

        Raises:
            InputError: It is not known: a step came without the loss, or the weights were
                meta-trained without halting.
        """
        stops = [record["stop"] for _, record in self._judged()]
        return bool(stops) and all(map(bool, stops))

    @undisturbed()
    def take_back(self) -> bool:
        """Undo the last update of each group that is forecast to be better without it.

        Call it once `should_stop` is true and the loop ends. The decision is made with the update
        in hand, and most weights have learned when it had better be left out, as where losses
        swing: `haltwise.solve` and evaluations return the parameters without it then. A second
        call does nothing, nor does one after `load_state_dict`; running statistics of a module,
        such as those of batch normalisation, are not touched.

        Returns:
            Whether any group was changed.
        """
        self._read_device()
        changed = False
        for group, record, by_leaf in self._moved:
            halting = self._models.of(group).halting
            hold = record.get("outputs", {}).get("hold_logits")
            if not record.get("stop") or record["judged"] != record["step"]:
                continue
            returns = halting.policy(CostUnit.GRADIENTS).returns
            hold = None if hold is None else hold[:, -1]
            if takes_update(returns, hold, record["stop"]):
                continue
            for param in (param for params in by_leaf.values() for param in params):
                param.sub_(self.state[param]["signals.update"].view(param.shape))
            changed = True
        self._moved = []
        return changed

    @property
    def halting_posterior(self) -> tuple[Posterior, ...]:
        """q(t | x, T) over 0..T, T the learned steps taken, of each group that has taken one.

        Each is a batch of one problem, of the kind that the weights were meta-trained with, as
        theta_0..theta_{T-1} were judged with their gradients in hand. It is a stream: every step
        makes a longer one.

        Raises:
            InputError: As `should_stop`.
        """
        return tuple(
            self._models.of(group).halting.method.posterior(
                record["outputs"], DecisionTime.AFTER_GRADIENT
            )
            for group, record in self._judged()
        )

    def _records(self) -> Iterator[tuple[Group, Record]]:
        """The groups that have seen a gradient, and what the host remembers of each.

        It is kept with a group's first parameter, as L-BFGS keeps its memory.
        """
        for group in self.param_groups:
            for param in group["params"][:1]:
                if "group" in self.state.get(param, {}):
                    yield group, self.state[param]["group"][0]

    def _judged(self) -> list[tuple[Group, Record]]:
        """The groups that have taken a step, if halting is known of all of them."""
        self._read_device()
        require(
            not self._was_overrun,
            "more steps were replayed in a CUDA graph than can wait to be judged; ask should_stop "
            "at least every 1,000 replays",
        )
        moved = [(group, record) for group, record in self._records() if record["step"]]
        for group, record in moved:
            halting = self._models.of(group).halting
            require(
                halting.halts,
                f"the weights {group['weights']!r} were meta-trained without halting and never "
                "ask to stop; choose others or end the loop yourself",
            )
            halting.policy(CostUnit.GRADIENTS)  # says so if none was calibrated
            require(
                record["judged"] == record["step"],
                f"when to stop is judged from the loss, which {record['step'] - record['judged']} "
                f"of {record['step']} steps came without; pass it to every step, as "
                "step(loss=loss) or through a closure",
            )
        return moved

    # ------------------------------------------------------------------------------ persistence

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state, so later steps leave it as it is; the weights' digest is in it."""
        self._read_device()
        return copy.deepcopy(super().state_dict())

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
        self._leave_fused()
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
        self._was_overrun = False

    def __getstate__(self) -> dict[str, Any]:
        self._read_device()
        own = ("nonfinite", "chunk_size", "state_dtype", "guard", "_models")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._moved, self._fused, self._was_overrun = [], None, False


def _is_dummy(problem: _Problem) -> bool:
    """Whether this is a group's first step and nothing is to be seen or moved in it.

    Tools take such a step to have the states made, as torch.distributed.checkpoint does.
    """
    group, record, _ = problem
    decays = float(group["lr"]) * group["weight_decay"] != 0
    shows = any(each.grad is not None and bool(each.grad.any()) for each in problem.params)
    return record["step"] == 0 and not decays and not shows


def _are_finite(values: list[Tensor]) -> bool:
    """Of any device, in one transfer."""
    flat = [value.to(values[0].device).reshape(-1) for value in values]
    return not flat or bool(torch.cat(flat).isfinite().all())


def _as_scalar(loss: Tensor | float) -> Tensor:
    if isinstance(loss, Tensor):
        value = loss.detach()
    else:  # as exact as Python's
        value = torch.tensor(real_number("the loss", loss), dtype=torch.float64, device="cpu")
    require(
        value.numel() == 1 and not value.is_complex(),
        f"the loss must be a single real number, got {value.dtype} of shape {list(value.shape)}; "
        "take its mean",
    )
    return value.reshape(())
