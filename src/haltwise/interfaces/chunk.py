"""The run of some problems under an optimizer model, guarded: see `haltwise.interfaces.guard`."""

import math
from typing import final

import torch
from torch import Tensor

from haltwise._core.tensors import select_state
from haltwise.engines.base import Point
from haltwise.engines.lbfgs import LBFGS, forecast_gain
from haltwise.engines.run import Begun, descend, reasons_of
from haltwise.engines.stops import CLEARLY, FLAT, PriceStop
from haltwise.halting.session import HaltingSession
from haltwise.interfaces.fit import is_below_those_seen
from haltwise.interfaces.guard import GuardWatch, UnitCheck
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.models.scales import Course
from haltwise.processes.optimization import OptimizationProcess
from haltwise.processes.signals import SIGNALS, is_flat
from haltwise.processes.units import Units
from haltwise.rollout.early_exit import Outcome, run_until_halted
from haltwise.rollout.ledger import Ledger
from haltwise.rollout.step_graphs import StepGraphs
from haltwise.stop_rules import ReturnedIterate, StopPolicy
from haltwise.tasks.base import Observation, TaskBatch

__all__ = ["Chunk"]

_ATTEMPTS = 5  # at finding the units
_WAIT = 8  # steps without a new lowest loss that are always granted


@final
class Chunk:
    """B problems that are solved side by side, and what has become of them.

    Args:
        model: The optimizer.
        policy: When to stop and what to return.
        batch: The problems.
        price: What a gradient must earn, shape [B].
        memory: Of the stop rule, for these problems.
        sizes: Of a unit of each parameter, shape [D]; 1 if None.
        guarded: Whether `solve_guarded` is to be called, or else `solve`.
        history: Whether the ledger keeps the losses.
        graphs: Where steps of this model are recorded, if they are to be.

    Attributes:
        params: The result, shape [B, D].
        loss: The loss there, shape [B].
        at: Updates that led there, int64 [B].
        outcome, reason: As in `haltwise.Solution`, each int64 [B].
        left, success: As there, each [B].
        scale, loss_scale: Logarithms of the units in which the model saw the problems, each [B].
        misfits: Where the optimizer failed, did not halt within the horizon that it was trained for
            at such a price, or stopped where L-BFGS has earned more than it cost; bool [B].
        foreign: Where the way to the stop was far from all in training, bool [B].
        fallback: Where L-BFGS took over, bool [B].
        ledger: All that was evaluated.
    """

    def __init__(
        self,
        model: OptimizerModel,
        policy: StopPolicy,
        batch: TaskBatch,
        price: Tensor,
        memory: dict[str, Tensor],
        sizes: Tensor | None = None,
        *,
        guarded: bool = True,
        history: bool = False,
        graphs: StepGraphs | None = None,
    ) -> None:
        self._model, self._policy, self._batch = model, policy, batch
        self._price, self._memory, self._sizes = price, memory, sizes
        self._graphs = None if history else graphs  # losses are kept step by step
        recent = not batch.stochastic
        best = recent and (guarded or policy.returns is ReturnedIterate.BEST)
        self.ledger = Ledger(batch.start, best=best, recent=recent, history=history)
        self.params, self.loss = batch.start.clone(), torch.full_like(price, torch.nan)
        self.at = torch.zeros_like(self.ledger.count)
        self.outcome, self.reason = torch.zeros_like(self.at), torch.full_like(self.at, -1)
        self.scale, self.loss_scale = torch.zeros_like(price), torch.zeros_like(price)
        self.fallback = torch.zeros_like(price, dtype=torch.bool)
        self._length, self._first_gain = torch.ones_like(price), torch.zeros_like(price)
        self.misfits = self.foreign = self._strange = torch.zeros_like(self.fallback)
        self._began_small = self._strange  # at the first attempt, which alone judges gradients
        self.left, self.success = torch.full_like(price, torch.nan), self.fallback.clone()

    @property
    def reasons(self) -> tuple[str, ...]:
        """Possible reasons of a stop, in words."""
        *own, flat = reasons_of([PriceStop(self._price)])
        taken = (f"L-BFGS took over, and {reason}" for reason in own)
        return (*self._policy.rule.reasons, *taken, flat)

    def solve(self, max_steps: int, *, by_own_rule: bool) -> None:
        """Follow the rule, whatever it does, until the policy stops it; see `solve_guarded`."""
        everything = torch.arange(self._batch.num_problems, device=self.at.device)
        self._follow(everything, max_steps, GuardWatch(self.ledger, everything))
        self._observe_results()
        self._judge(by_own_rule=by_own_rule)

    def solve_guarded(self, max_steps: int, *, by_own_rule: bool) -> None:
        """Follow the rule where it fits, and L-BFGS where it does not.

        Args:
            max_steps: Gradients a problem may cost at most.
            by_own_rule: Whether the stop rule is the caller's. It alone then decides how long to
                go on and to wait; L-BFGS takes over where the optimizer fails.
        """
        card = self._model.card
        if by_own_rule:
            horizon = patience = max_steps
        else:
            horizon = min(max_steps, card.horizon)
            longest = card.horizon // 4 if card.scales is None else card.scales.longest_wait
            patience = max(_WAIT, 2 * longest)
        left = torch.arange(self._batch.num_problems, device=self.at.device)
        for attempt in range(_ATTEMPTS):
            spent = max(0, int(self.ledger.count[left].max()) - 1)  # the first is remembered
            if spent >= max_steps:
                break
            check = self._unit_check(left, is_first=attempt == 0)
            watch = GuardWatch(self.ledger, left, patience, check)
            self._follow(left, min(horizon, max_steps - spent), watch)
            if check is None:
                left = left[:0]
                break
            self._note_units(left, check, watch.last)
            left = left[check.wrong]
            if len(left) == 0:
                break
        self.outcome[left] = int(Outcome.TAKEN)  # whose units were not found
        self._take_over(max_steps, by_own_rule=by_own_rule)
        self._observe_results()
        self._return_best()
        self._judge(by_own_rule=by_own_rule)

    def _unit_check(self, left: Tensor, *, is_first: bool) -> UnitCheck | None:
        card = self._model.card
        if card.scales is None:
            return None
        shift = (card.price / self._price[left]).log()
        return UnitCheck(
            card.scales,
            self.scale[left],
            self.loss_scale[left],
            shift,
            math.log(card.price_range),
            judges_gradients=is_first,
        )

    def _follow(self, items: Tensor, max_steps: int, watch: GuardWatch) -> None:
        """Run the rule on the problems at `items`, from their start."""
        units = None
        if self._sizes is not None or self.scale.any() or self.loss_scale.any():
            sizes = 1.0 if self._sizes is None else self._sizes
            scale = self.scale[items].exp().unsqueeze(1)
            units = Units(scale * sizes, self.loss_scale[items].exp())
        everything = len(items) == self._batch.num_problems
        batch = self._batch if everything else self._batch.select(items)
        first = self.ledger.first
        if first is not None:
            first = Observation(first.loss[items], first.grad[items])
        session = HaltingSession(
            self._policy,
            self._price[items],
            self._model.halting.prepare(),
            select_state(self._memory, items),
            in_model_units=self._policy in self._model.card.policies.values(),
        )
        process = OptimizationProcess(self._model.rule, batch, units, first)
        run = run_until_halted(process, session, max_steps, watch=watch, graphs=self._graphs)
        self.params[items], self.loss[items] = run.result, run.loss
        self.outcome[items], self.reason[items] = run.outcome, run.reason
        # Where it began anew the first evaluation was remembered, not made again.
        at = self.ledger.count[items] - run.num_gradients + run.num_updates
        self.at[items] = torch.where(run.num_updates == 0, 0, at)

    def _note_units(self, items: Tensor, check: UnitCheck, last_signals: Tensor) -> None:
        self.scale[items], self.loss_scale[items] = check.scale, check.loss_scale
        first, last = (
            dict(zip(SIGNALS, signals.unbind(-1), strict=True))
            for signals in (check.first, last_signals)
        )
        # 1 / kappa along the last step, or else the length of the first, in gradients.
        self._first_gain[items] = first["gain"] / check.loss_scale.exp()
        knows = (last["step"] > 0) & ~is_flat(last["log_curvature"])
        length = torch.where(knows, -last["log_curvature"], first["log_update"] - first["log_grad"])
        length = (2 * check.scale + check.loss_scale + length).exp()
        self._length[items] = torch.where(length.isfinite() & (length > 0), length, 1)
        scales = self._model.card.scales
        assert scales is not None
        scale = check.loss_scale.exp()
        lowest = self.ledger.loss[items] * scale
        course = Course(check.first, check.second, last_signals, lowest)
        price = self._model.halting.trained_price(self._price[items] * scale)
        features = course.features(price, self._batch.dim)
        # Where it stops at the first step there is no course, but units may have been corrected, or
        # be such that no step seems worth its price.
        moved = last_signals[:, 0] > 0
        began_small = self._began_small[items] | check.is_small
        self._began_small = self._began_small.index_put((items,), began_small)
        unsure = (check.scale != 0) | began_small
        strange = torch.where(moved, scales.courses.is_strange(features), unsure)
        self._strange = self._strange.index_put((items,), strange)
        foreign = moved & scales.courses.is_foreign(features)
        self.foreign = self.foreign.index_put((items,), foreign)

    def _take_over(self, max_steps: int, *, by_own_rule: bool) -> None:
        """Go on by L-BFGS, from the best point, where the rule failed or ended early."""
        ledger, card = self.ledger, self._model.card
        budget = max_steps - ledger.count
        failed = (self.outcome == Outcome.TAKEN) | (self.outcome == Outcome.NONFINITE)
        low = is_below_those_seen(card, ledger.loss, self._price)
        strange = (self.outcome == Outcome.HALTED) & (self._strange | low)
        early = self.outcome == Outcome.OUT_OF_STEPS
        late = torch.zeros_like(failed)
        if not by_own_rule:
            lowest = card.price / card.price_range
            below = self._price * self.loss_scale.exp() < lowest * (1 - 1e-4)
            if self._model.halting.halts:
                late = early & ~below & (ledger.count >= card.horizon)
            early |= (self.outcome == Outcome.HALTED) & below
            failed |= strange
        usable = ledger.loss.isfinite()
        self.outcome[(self.outcome == Outcome.TAKEN) & usable] = int(Outcome.OUT_OF_STEPS)
        self.outcome[~usable] = int(Outcome.NONFINITE)
        self.misfits = failed | late
        self.fallback = (failed | early) & usable & (budget > 0)
        items = self.fallback.nonzero().squeeze(1)
        if len(items) == 0:
            return
        engine = LBFGS()
        point = Point(ledger.params[items], ledger.loss[items], ledger.grad[items])
        memory = engine.init_scaled(point, self._length[items])
        before, spent = ledger.loss[items], ledger.count[items]
        descended = descend(
            engine,
            self._batch.select(items),
            Begun(point, memory, budget[items]),
            [PriceStop(self._price[items], self._first_norm()[items])],
            ledger=ledger,
            items=items,
            graphs=self._graphs,
        )
        reason = descended.reason
        earned = before - ledger.loss[items] > self._price[items] * (ledger.count[items] - spent)
        self.misfits[items] &= earned | ~strange[items]
        self.outcome[items] = descended.outcome
        self.reason[items] = torch.where(
            reason >= 0, reason + len(self._policy.rule.reasons), reason
        )
        self.params[items], self.loss[items] = ledger.params[items], ledger.loss[items]
        self.at[items] = ledger.at[items]

    def _observe_results(self) -> None:
        """Evaluate the losses of results that were never observed."""
        unseen = self.at == self.ledger.count
        steps = self.at[unseen].unique().tolist() if self._batch.stochastic else [0]
        for step in steps:
            chosen = unseen & (self.at == step) if self._batch.stochastic else unseen
            index = chosen.nonzero().squeeze(1)
            if len(index):
                part = self._batch.select(index)
                with torch.enable_grad():  # as `ask`
                    self.loss[index] = part.observe_loss(self.params[index], step).detach()

    def _return_best(self) -> None:
        """Return the best point observed where the result is not as good."""
        best = self.ledger.loss.isfinite() & ~(self.loss <= self.ledger.loss)
        self.params = torch.where(best.unsqueeze(1), self.ledger.params, self.params)
        self.loss = torch.where(best, self.ledger.loss, self.loss)
        self.at = torch.where(best, self.ledger.at, self.at)

    def _first_norm(self) -> Tensor:
        first = self.ledger.first
        assert first is not None
        return first.grad.square().sum(1).sqrt()

    def _judge(self, *, by_own_rule: bool) -> None:
        """Tell stops at which the price would pay for more, by the gradients that were observed.

        The gradient at an iterate that was never observed is unknown, but not its loss: what the
        last update has gained is no longer left.
        """
        self.success = self.outcome == Outcome.HALTED
        if self._batch.stochastic:
            return
        ledger = self.ledger
        grad, steps, changes = ledger.latest()
        latest = self.at >= ledger.count - 1
        if "grad" in ledger.rows:  # else only the latest is returned
            grad = torch.where(latest.unsqueeze(1), grad, ledger.grad)
        gained = torch.where(self.at == ledger.count, ledger.last - self.loss, 0)
        left = (forecast_gain(grad, steps, changes) - gained).clamp_min(0)
        norm, limit = grad.square().sum(1).sqrt(), FLAT * self._first_norm()
        flat = (norm <= limit) & limit.isfinite()  # squares may overflow
        # One gradient tells no curvature. A model's own rule needs none, but where it will not take
        # a step that promises to first order what it costs, it does not know the problem.
        seen, known = ledger.count > 1, self._first_gain <= CLEARLY * self._price
        self.left = torch.where(seen, left, torch.nan)
        paid = (left <= CLEARLY * self._price) | (flat & left.isinf())
        self.success &= torch.where(seen, paid, flat | (known & (not by_own_rule)))
