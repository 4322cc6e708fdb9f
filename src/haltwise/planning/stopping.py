"""Optimal stopping of a Markov chain whose law is known."""

import math
from typing import NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import got, price_per_unit, real_number, whole_number
from haltwise.planning.mdp import (
    FiniteMDP,
    require_distribution,
    require_numbers,
    require_stochastic,
)

__all__ = [
    "OptimalStopping",
    "StoppingCosts",
    "as_decision_process",
    "optimal_stopping",
    "stopping_costs",
]


@final
class OptimalStopping(NamedTuple):
    """The best causal stop rule of a chain.

    Attributes:
        advantage: What going on gains over stopping in each state, in units of the loss: the rule
            stops where it is not above 0. Shape [T, S], a row for each step 0..T-1, or [1, S],
            where without a horizon every step is alike.
        value: Least expected cost from each state at step 0, shape [S].
        max_steps: T; None without a horizon.
    """

    advantage: Tensor
    value: Tensor
    max_steps: int | None = None

    @property
    def stop(self) -> Tensor:
        """Where the rule stops, bool in the shape of `advantage`."""
        return self.advantage <= 0

    def stops(self, states: Tensor) -> Tensor:
        """The step at which the rule stops runs in states [n, T+1] at steps 0..T, int64 [n].

        T, where it would go on.

        Raises:
            InputError: They are no states of the chain, or of more steps than the horizon has.
        """
        num_states = self.advantage.shape[1]
        require(
            isinstance(states, Tensor)
            and states.ndim == 2
            and states.shape[1] > 0
            and states.dtype == torch.int64,
            "states must be an int64 tensor of shape [n, T+1], "
            + (
                f"got {states.dtype} in shape {list(states.shape)}"
                if isinstance(states, Tensor)
                else got(states)
            ),
        )
        require(
            bool(((states >= 0) & (states < num_states)).all()),
            f"states must be numbers of the {num_states} states, from 0 on, got "
            f"{states.min().item() if states.numel() else 0} to "
            f"{states.max().item() if states.numel() else 0}",
        )
        require(
            self.max_steps is None or states.shape[1] <= self.max_steps + 1,
            f"states at 0..{states.shape[1] - 1} go beyond the horizon of {self.max_steps} steps",
        )
        steps = torch.arange(states.shape[1] - 1, device=states.device)
        rows = torch.zeros_like(steps) if self.max_steps is None else steps
        stop = self.stop[rows, states[:, :-1]]
        last = torch.ones_like(states[:, :1], dtype=torch.bool)
        return torch.cat((stop, last), 1).byte().argmax(1)


@final
class StoppingCosts(NamedTuple):
    """Expected cost, loss at the stop + price * steps, of three ways to stop a chain.

    Attributes:
        causal: The best that can be done without seeing the future.
        fixed: The best number of steps for all runs.
        fixed_budget: That number.
        clairvoyant: Each run stopped at its least cost, seen in hindsight.
    """

    causal: float
    fixed: float
    fixed_budget: int
    clairvoyant: float

    @property
    def captured_gain(self) -> float:
        """That of the best causal rule, docs/theory.md, Eq. (captured-gain).

        NaN where the clairvoyant is no better than the best fixed number of steps.
        """
        room = self.fixed - self.clairvoyant
        exists = room > 1e-12 * max(abs(self.fixed), abs(self.clairvoyant))
        return (self.fixed - self.causal) / room if exists else math.nan


def optimal_stopping(
    transition: Tensor, losses: Tensor, price: float, max_steps: int | None = None
) -> OptimalStopping:
    """Find when to stop a chain of which all is known but its future.

    With steps left, J(s) = min(f(s), c + sum_s' P(s' | s) J(s')): backwards from the horizon, or
    its fixed point by policy iteration (Howard 1960).

    Args:
        transition: P, shape [S, S], in float64.
        losses: f, the loss of a stop in each state, shape [S].
        price: c of a step, above 0, in units of the loss.
        max_steps: T, after which every run ends; without a horizon if None.

    Raises:
        InputError: The chain, the price or the horizon is impossible.

    Examples:
        A coin is tossed until heads at most; a toss costs .2, and heads save 1:

        >>> transition = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
        >>> losses = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> found = optimal_stopping(transition, losses, 0.2)
        >>> found.stop.tolist(), round(found.value[0].item(), 6)
        ([[False, True]], 0.4)
    """
    price, max_steps = _possible(transition, losses, price, max_steps)
    if max_steps is None:
        value = _fixed_point(transition, losses, price)
        later = price + transition @ value
        return OptimalStopping((losses - later).unsqueeze(0), value)
    value, rows = losses, []
    for _ in range(max_steps):
        later = price + transition @ value
        rows.append(losses - later)
        value = torch.minimum(losses, later)
    return OptimalStopping(torch.stack(rows[::-1]), value, max_steps)


def stopping_costs(
    transition: Tensor,
    losses: Tensor,
    price: float,
    start: Tensor,
    max_steps: int | None = None,
) -> StoppingCosts:
    """The expected cost of the best causal rule, the best fixed budget and the clairvoyant.

    All are exact. With g(t) = f(s_t) + c t, the clairvoyant's is E min_t g(t), the integral of the
    probability that no g(t) is y or less, which is that of avoiding the states that are.

    Args:
        transition: As in `optimal_stopping`, and so are `losses`, `price` and `max_steps`.
        losses: Shape [S].
        price: c.
        start: Probability of beginning in each state, shape [S].
        max_steps: T.

    Raises:
        InputError: As in `optimal_stopping`, or `start` is no distribution.

    Examples:
        >>> transition = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
        >>> losses = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> costs = stopping_costs(transition, losses, 0.2, torch.tensor([1.0, 0.0]).double(), 2)
        >>> [round(cost, 6) for cost in (costs.causal, costs.fixed, costs.clairvoyant)]
        [0.55, 0.65, 0.45]
    """
    price, max_steps = _possible(transition, losses, price, max_steps)
    require_distribution("start", start, losses)
    found = optimal_stopping(transition, losses, price, max_steps)
    # Beyond that many steps the price alone is more than all losses differ by.
    reach = math.ceil((losses.max() - losses.min()).item() / price)
    horizon = reach if max_steps is None else min(reach, max_steps)
    at, fixed = start, []
    for step in range(horizon + 1):
        fixed.append((at @ losses).item() + price * step)
        at = at @ transition
    budget = min(range(len(fixed)), key=fixed.__getitem__)
    table = losses + price * torch.arange(horizon + 1).to(losses).unsqueeze(1)  # g, [T, S]
    levels = table.unique()  # sorted
    alive = start.expand(len(levels), -1) * (table[0] > levels.unsqueeze(1))
    for costs in table[1:]:
        alive = (alive @ transition) * (costs > levels.unsqueeze(1))
    clairvoyant = levels[0] + (alive.sum(1)[:-1] * levels.diff()).sum()
    return StoppingCosts((start @ found.value).item(), fixed[budget], budget, clairvoyant.item())


def as_decision_process(
    transition: Tensor, losses: Tensor, price: float, temperature: float
) -> tuple[FiniteMDP, float]:
    """Stopping a chain as a decision process and its continuation, to be planned for by EM.

    The price is a discount: with tau the temperature, going on survives with r = exp(-c / tau), the
    ratio of the prior of docs/theory.md, Eq. (price), and a stop in s earns exp(-f(s) / tau), its
    likelihood. What EM maximises is log E exp(-(f + c t) / tau) >= -E (f + c t) / tau: it
    seeks risks, the less so the higher the temperature.

    Args:
        transition: As in `optimal_stopping`, and so are `losses` and `price`.
        losses: Shape [S], not below 0, so that rewards are at most 1.
        price: c.
        temperature: tau, above 0, in units of the loss.

    Returns:
        A process of the actions 0, go on, and 1, stop, in the S states and a last one, where runs
        that were stopped remain, and r.

    Raises:
        InputError: As in `optimal_stopping`, a loss is below 0, or the temperature is not above 0
            or so low that rewards vanish.
    """
    price, _ = _possible(transition, losses, price, None)
    temperature = real_number("temperature", temperature)
    require(
        0 < temperature < math.inf,
        f"the temperature must be above 0 and finite, got {temperature:g}",
    )
    least, most = (bound.item() for bound in losses.aminmax())
    require(
        least >= 0,
        f"losses must not be below 0, got {least:g}; add a constant, which changes no plan",
    )
    require(
        math.exp(-price / temperature) > 0 and bool(((-losses / temperature).exp() > 0).all()),
        f"at a temperature of {temperature:g} the reward of a loss of {most:g}, or of a step at "
        f"{price:g}, is 0 to rounding; choose a higher one",
    )
    num_states = len(losses)
    moves = losses.new_zeros(2, num_states + 1, num_states + 1)
    moves[0, :num_states, :num_states] = transition
    moves[0, num_states, num_states] = 1
    moves[1, :, num_states] = 1
    reward = losses.new_zeros(2, num_states + 1)
    reward[1, :num_states] = (-losses / temperature).exp()
    return FiniteMDP(moves, reward), math.exp(-price / temperature)


def _fixed_point(transition: Tensor, losses: Tensor, price: float) -> Tensor:
    """Least expected cost without a horizon, shape [S]."""
    identity = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)
    stops, value = torch.ones_like(losses, dtype=torch.bool), losses
    while True:
        better = (price + transition @ value < losses) & stops
        # No state that goes on ever has to stop: values only fall, so the loop ends.
        if not better.any():
            return value
        stops = stops & ~better
        matrix = torch.where(stops.unsqueeze(1), identity, identity - transition)
        value = torch.linalg.solve(matrix, torch.where(stops, losses, price))


def _possible(
    transition: Tensor, losses: Tensor, price: float, max_steps: int | None
) -> tuple[float, int | None]:
    """Price and horizon, after the chain has been checked."""
    require_numbers(transition=transition, losses=losses)
    num_states = losses.numel()
    require(
        losses.ndim == 1 and tuple(transition.shape) == (num_states, num_states),
        "a chain needs losses [S] and transitions [S, S], got "
        f"{list(losses.shape)} and {list(transition.shape)}",
    )
    require_stochastic(transition)
    require(bool(losses.isfinite().all()), "losses must be finite")
    steps = None if max_steps is None else whole_number("max_steps", max_steps)
    return price_per_unit(price), steps
