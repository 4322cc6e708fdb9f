"""What an adaptive layer returns: every exit, the posterior over them, and the objective."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.errors import DataWarning, InputError, require, warn
from haltwise._core.plugins import comes_with_the_package
from haltwise._core.settings import got, real_number
from haltwise._core.tensors import along, kind_of, select_state
from haltwise.halting.methods import HaltingExamples, HaltingMethod
from haltwise.halting.posteriors import Posterior
from haltwise.nn.base import mean_step_cost
from haltwise.nn.coupling import Coupling
from haltwise.nn.online import parts_beside_head
from haltwise.processes.signals import SIGNALS, loss_signals_of_steps
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules import DecisionTime, StopRule, decisions

__all__ = ["Pondered"]


@final
class Pondered(NamedTuple):  # whose tensors those see that share a network among processes
    """Items of shape `items...`, such as [n] problems or [n, L] tokens, at exits 0..T.

    What is padding is no item: its output, cost and objective are 0, its exit is -1, and records
    leave it out. So sum over items, and divide by `present.sum()` for a mean.

    Attributes:
        outputs: What an item returns at each exit, shape [items..., T+1, ...].
        halting: What the halting head puts out at exits 0..T-1, by name, shapes [items..., T, ...].
        price: c, of a unit of cost, in units of the loss, shape [items...].
        exit_costs: What ending at each exit costs, shape [T+1].
        method: The halting method.
        coupling: How loss and halting step are coupled.
        drawn: The exit drawn of each item where these are sampled, int64 [items...].
        generator: Draws what is random in the objective; PyTorch's own if None.
        present: Which items there are, bool [items...]; all if None.
    """

    outputs: Tensor
    halting: Mapping[str, Tensor]
    price: Tensor
    exit_costs: Tensor
    method: HaltingMethod
    coupling: Coupling
    drawn: Tensor | None = None
    generator: torch.Generator | None = None
    present: Tensor | None = None

    @property
    def log_prob(self) -> Tensor:
        """Log q(t) of exits t = 0..T, shape [items..., T+1]."""
        return self.posterior.log_prob().view(*self.price.shape, len(self.exit_costs))

    @property
    def posterior(self) -> Posterior:
        """q(t) of all items in one row each."""
        return self.method.posterior(self._flat_halting(), DecisionTime.AFTER_GRADIENT)

    @property
    def exits(self) -> Tensor:
        """The exit at which each item ends, int64 [items...].

        That which was drawn, or at which the method's stop rule, not calibrated yet, ends it.
        """
        if self.drawn is not None:
            return self.drawn
        return self.exits_by(self.method.rule(DecisionTime.AFTER_GRADIENT))

    def exits_by(self, rule: StopRule) -> Tensor:
        """The exit at which a stop rule that reads the halting head ends each item, [items...].

        Raises:
            InputError: The rule is one of the package's that reads a loss, which is not known here.
        """
        others = parts_beside_head(rule, self.method)
        require(
            not any(map(comes_with_the_package, others)),
            f"{type(rule).__name__} reads a loss, but none is known here; take "
            "haltwise.stop_rules.decisions(rule, pondered.trajectory(losses, observed))",
        )
        blank = self.price.new_full((self.price.numel(), len(self.exit_costs)), torch.nan)
        outputs = {name: value.detach() for name, value in self._flat_halting().items()}
        exits = decisions(rule, Trajectory(blank, blank, outputs=outputs))
        return self._of_items(exits.view(self.price.shape), -1)

    @property
    def output(self) -> Tensor:
        """What each item returns, shape [items..., ...]: at its exit, or the mean over exits.

        The mean is that of the expected state. It counts nothing at exits that have no probability.
        """
        if self.coupling is not Coupling.EXPECTED_STATE:
            return self.at(self.exits)
        weight = self._of_items(self.log_prob.exp().to(self.outputs.dtype), 0)
        weight = self._along_outputs(weight)
        outputs = torch.where(weight == 0, 0, self.outputs)
        return (weight * outputs).sum(self.price.ndim)

    def at(self, exits: Tensor) -> Tensor:
        """The outputs at exits int64 [items...], shape [items..., ...]."""
        require(
            isinstance(exits, Tensor)
            and exits.dtype == torch.int64
            and exits.shape == self.price.shape,
            f"exits must be int64 of shape {list(self.price.shape)}, {got(exits)}",
        )
        index = self._along_outputs(self._of_items(exits, 0).unsqueeze(-1))
        shape = (*exits.shape, 1, *self.outputs.shape[exits.ndim + 1 :])
        found = self.outputs.gather(exits.ndim, index.expand(shape)).squeeze(exits.ndim)
        return self._of_items(found, 0)

    @property
    def expected_cost(self) -> Tensor:
        """sum_t q(t) cost(t), in units of cost, shape [items...]."""
        return self._of_items((self.log_prob.exp() * self.exit_costs).sum(-1), 0)

    @property
    def ponder_cost(self) -> Tensor:
        """The differentiable cost of which objectives take the price, shape [items...].

        It is the expected cost, but for Graves' method, whose N + R it is (in units of a mean step,
        with what the exits' costs differ from equal steps).
        """
        unit, difference = self._steps()
        pondered = self.posterior.ponder_steps().view(self.price.shape)
        cost = unit * pondered + (self.log_prob.exp() * difference).sum(-1)
        return self._of_items(cost, 0)

    def objective(self, losses: Tensor, *, progress: float | None = 1.0) -> Tensor:
        """What is to be minimised, in units of the loss, shape [items...].

        Coupled by the expected loss it is the method's own objective, such as the free energy of
        docs/theory.md, Eq. (free-energy), with the exits' costs. Coupled by the expected state it
        is loss + price * `ponder_cost`, docs/theory.md, Eq. (expected-state). Sampled it is loss +
        price * cost of the exit drawn, whose gradient is in the mean that of
        sum_t q(t) (loss_t + price * cost_t), docs/theory.md, Eq. (score-function), with the mean of
        the other items for b (so give a batch).

        Args:
            losses: At every exit, shape [items..., T+1], for the expected loss; otherwise of
                `output`, shape [items...].
            progress: Share of the training that is done, in [0, 1], as a method's objective knows
                it; None while the head is to learn by what it would learn from recordings, beside a
                network that is new. A head that learns by distillation at first (below
                `StickBreaking.distilled`, and at None) is told the losses of all exits, and a
                network beside it is trained at the exit that is right by chance. Where that
                misleads, as on labels of 0 and 1, leave it at 1, or set `distilled` to 0.

        Raises:
            InputError: The shape of the losses is another.
        """
        every = self.coupling is Coupling.EXPECTED_LOSS
        due = [*self.price.shape, len(self.exit_costs)] if every else [*self.price.shape]
        require(
            isinstance(losses, Tensor) and list(losses.shape) == due,
            f"losses must be a tensor of shape {due} where they are coupled by "
            f"{self.coupling.value!r}, {got(losses)}",
        )
        if progress is not None:
            progress = real_number("progress", progress)
            require(
                0 <= progress <= 1,
                "progress must be None or the share of the training that is done, in [0, 1], got "
                f"{progress:g}; divide the number of steps taken by that of all",
            )
        losses = self._of_items(losses, 0)
        if every:
            return self._expected_loss(losses, progress)
        if self.coupling is Coupling.EXPECTED_STATE:
            return losses + self.price * self.ponder_cost
        return self._sampled_loss(losses)

    @property
    def step_cost(self) -> Tensor:
        """The mean cost of a step, []: what one costs in a record, the `trajectory`."""
        return mean_step_cost(self.exit_costs)

    def trajectory(
        self,
        losses: Tensor,
        observed: Tensor | None = None,
        *,
        charged: bool | None = None,
    ) -> Trajectory:
        """The items as a record that stop rules, calibration, certificates and reports take.

        Step t of it is exit t, and all steps cost as much, so give those that count in steps the
        price of one, price * `step_cost`.

        Args:
            losses: By which ending at each exit is judged, shape [items..., T+1].
            observed: What is known of them when an item runs, such as the entropy of an answer, in
                the same shape; the losses themselves if None. Only with it there are signals, from
                which a halting model can learn (`haltwise.recordings.runs.save_trajectory`).
            charged: Whether the excess counts, in units of the loss, what exits cost beside equal
                steps, so that stops are judged by loss and cost. Say it where exits are not equally
                far apart; a certificate of the loss alone is to be of what is not charged.

        Warns:
            DataWarning: Exits are not equally far apart, and it was not said whether that counts.
        """
        _, difference = self._steps()
        difference = difference - difference[0]
        if charged is None and bool((difference.abs() > 1e-4 * self.step_cost).any()):
            warn(
                f"exits that cost {self.exit_costs.tolist()} are not equally far apart, but steps "
                "of a trajectory are; give charged=True where stops are to be judged by what they "
                "cost, or charged=False where the loss alone counts",
                DataWarning,
            )
        due = [*self.price.shape, len(self.exit_costs)]
        for name, value in {"losses": losses, "observed": observed}.items():
            require(
                value is None or (isinstance(value, Tensor) and list(value.shape) == due),
                f"{name} must be a tensor of shape {due}, {got(value)}",
            )
        shown = losses if observed is None else observed
        if charged:
            losses = losses + self.price.unsqueeze(-1) * difference
        flat, seen = losses.detach().flatten(0, -2), shown.detach().flatten(0, -2)
        outputs = {name: value.detach() for name, value in self._flat_halting().items()}
        place = self._places()
        if place is not None:
            seen, flat, outputs = seen[place], flat[place], select_state(outputs, place)
        if observed is None:
            return Trajectory(seen, flat, outputs=outputs)
        signals = loss_signals_of_steps(seen)
        norms = signals[..., SIGNALS.index("log_grad")]  # what a monitor of losses alone is shown
        return Trajectory(seen, flat, norms, signals[:, :-1], outputs=outputs)

    def draw(self) -> "Pondered":
        """The same with an exit of each item drawn from its posterior."""
        generator = torch.default_generator if self.generator is None else self.generator
        uniform = torch.rand(
            self.price.numel(),
            generator=generator,
            dtype=self.price.dtype,
            device=generator.device,
        )
        below = self.log_prob.detach().exp().cumsum(-1)[..., :-1]
        drawn = (below < uniform.to(below.device).view(self.price.shape).unsqueeze(-1)).sum(-1)
        return self._replace(drawn=self._of_items(drawn, -1))

    @staticmethod
    def stack(parts: Sequence["Pondered"]) -> "Pondered":
        """Items of equal shapes with a new dimension in front, such as the tokens of a sequence."""
        return _joined(parts, torch.stack)

    @staticmethod
    def cat(parts: Sequence["Pondered"]) -> "Pondered":
        """Items one after the other along the first dimension."""
        return _joined(parts, torch.cat)

    def _expected_loss(self, losses: Tensor, progress: float | None) -> Tensor:
        """Let the method count equal steps; what the exits' costs differ from them is a loss."""
        unit, difference = self._steps()
        price = self.price.flatten()
        excess = losses.flatten(0, -2) + price.unsqueeze(1) * difference
        generator = torch.default_generator if self.generator is None else self.generator
        halting, place = self._flat_halting(), self._places()
        if place is not None:
            excess, price, halting = excess[place], price[place], select_state(halting, place)
        step = price * unit
        examples = HaltingExamples(excess, halting, {}, step, progress, generator)
        found: object = self.method.exit_objective(examples)
        if not (isinstance(found, Tensor) and found.shape == step.shape):
            raise InputError(
                f"{type(self.method).__name__}.exit_objective must return a tensor of shape "
                f"{list(step.shape)}, one number for each item, got {kind_of(found)}"
            )
        objective = self.method.objective_unit(step) * found
        if place is not None:
            zeros = objective.new_zeros(self.price.numel())
            objective = zeros.index_copy(0, place, objective)
        return objective.view(self.price.shape)

    def _sampled_loss(self, losses: Tensor) -> Tensor:
        assert self.drawn is not None
        drawn = self._of_items(self.drawn, 0)
        total = self._of_items(losses + self.price * self.exit_costs[drawn], 0)
        log_prob = self.log_prob.gather(-1, drawn.unsqueeze(-1)).squeeze(-1)
        reward, counted = total.detach(), total.isfinite()
        if self.present is not None:
            counted = counted & self.present
        own = reward.where(counted, 0)
        others = (own.sum() - own) / (counted.sum() - counted.to(own.dtype)).clamp_min(1)
        return total + self._of_items((reward - others) * (log_prob - log_prob.detach()), 0)

    def _steps(self) -> tuple[Tensor, Tensor]:
        """The mean cost of a step, [], and what exits cost beside so many such steps, [T+1]."""
        costs, unit = self.exit_costs, self.step_cost
        return unit, costs - unit * torch.arange(len(costs), dtype=costs.dtype, device=costs.device)

    def _flat_halting(self) -> dict[str, Tensor]:
        ndim = self.price.ndim
        return {name: value.flatten(0, ndim - 1) for name, value in self.halting.items()}

    def _places(self) -> Tensor | None:
        """The items that there are among all, int64 [M]; None for all."""
        return None if self.present is None else self.present.flatten().nonzero().squeeze(1)

    def _of_items(self, value: Tensor, other: float) -> Tensor:
        """Values [items..., ...], and something else where there is no item."""
        if self.present is None:
            return value
        return torch.where(along(self.present, value), value, other)

    def _along_outputs(self, value: Tensor) -> Tensor:
        """A value [items..., M] beside outputs [items..., T+1, ...]."""
        return along(value, self.outputs)


def _joined(parts: Sequence[Pondered], join: Callable[[list[Tensor]], Tensor]) -> Pondered:
    """Items of several."""
    first, halting = parts[0], {}
    for name in first.halting:
        halting[name] = join([part.halting[name] for part in parts])
    drawn = [part.drawn for part in parts if part.drawn is not None]
    require(
        len(drawn) in (0, len(parts)),
        f"exits must have been drawn in all of them or in none, got {len(drawn)} of {len(parts)}",
    )
    present = None
    if any(part.present is not None for part in parts):
        present = join(
            [
                torch.ones_like(part.price, dtype=torch.bool)
                if part.present is None
                else part.present
                for part in parts
            ]
        )
    return first._replace(
        outputs=join([part.outputs for part in parts]),
        halting=halting,
        price=join([part.price for part in parts]),
        drawn=join(drawn) if drawn else None,
        present=present,
    )
