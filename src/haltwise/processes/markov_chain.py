"""A Markov chain of known law: when to stop it best is known as well."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.random import split_mix
from haltwise._core.settings import whole_number
from haltwise._core.tensors import widened, widest
from haltwise.planning import optimal_stopping
from haltwise.processes.base import Process, ProcessFamily, ProcessStep, State
from haltwise.processes.trajectory import Trajectory

__all__ = ["MarkovChain", "MarkovChainFamily"]


@final
class MarkovChain(Process):
    """Runs of a chain from its first state, each with randomness of its own.

    Args:
        transition: Probability of the next state, shape [S, S], in float64.
        losses: Loss of a stop in each state, shape [S].
        seed: The stream of each run, int64 [B].
    """

    def __init__(self, transition: Tensor, losses: Tensor, seed: Tensor) -> None:
        self.transition, self.losses, self.seed = transition, losses, seed

    @property
    def num_items(self) -> int:
        return len(self.seed)

    def init(self) -> State:
        return {"state": torch.zeros_like(self.seed)}

    def step(self, step: int, state: State) -> ProcessStep:
        now = state["state"]
        bits = split_mix(self.seed, torch.full_like(self.seed, step))
        uniform = widened((bits >> 11) & (2**53 - 1)) * 2.0**-53
        passed = uniform.unsqueeze(1) >= self.transition.cumsum(1)[now, :-1]
        return ProcessStep(self.observe(step, self.losses[now]), {"state": passed.sum(1)})

    def result(self, state: State) -> Tensor:
        return state["state"].unsqueeze(1)

    def select(self, index: Tensor) -> "MarkovChain":
        return MarkovChain(self.transition, self.losses, self.seed[index])


@final
@dataclass(frozen=True)
class MarkovChainFamily(ProcessFamily):
    """Runs of one Markov chain, whose best causal stop is known.

    The states s = 0, 1, ... lie in a row and have the losses exp(-s / loss_decay). A step leads to
    the next with probability p = progress * exp(-s / progress_decay), to the one before with
    relapse * (1 - p), and nowhere otherwise, so that gains become rare as they become small.

    Examples:
        >>> chain = MarkovChainFamily()
        >>> chain.losses()[:3]
        tensor([1.0000, 0.8465, 0.7165], dtype=torch.float64)
    """

    num_states: int = 40
    """States of the chain."""
    loss_decay: float = 6.0
    """States over which the loss falls by a factor e."""
    progress: float = 0.9
    """Probability of a step forwards in the first state."""
    progress_decay: float = 15.0
    """States over which that probability falls by a factor e."""
    relapse: float = 0.1
    """Probability of a step backwards where there is none forwards."""

    def __post_init__(self) -> None:
        count = whole_number("num_states", self.num_states, least=2)
        object.__setattr__(self, "num_states", count)  # the class is frozen
        for name in ("loss_decay", "progress_decay"):
            value = getattr(self, name)
            require(value > 0 and math.isfinite(value), f"{name} must be above 0, got {value}")
        for name in ("progress", "relapse"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} is a probability, in [0, 1], got {value}")

    def losses(self) -> Tensor:
        """The loss of a stop in each state, float64 [S]."""
        states = torch.arange(self.num_states, dtype=torch.float64, device="cpu")
        return (-states / self.loss_decay).exp()

    def transition(self) -> Tensor:
        """Probability of the next state, float64 [S, S]."""
        states = torch.arange(self.num_states, device="cpu")
        forwards = self.progress * (-states.double() / self.progress_decay).exp()
        backwards = self.relapse * (1 - forwards)
        matrix = torch.diag(1 - forwards - backwards)
        matrix[states, (states + 1).clamp_max(self.num_states - 1)] += forwards
        matrix[states, (states - 1).clamp_min(0)] += backwards
        return matrix

    def sample(
        self,
        num_items: int,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> MarkovChain:
        losses = self.losses().to(dtype)
        require(
            len(losses.unique()) == self.num_states,
            f"some of the {self.num_states} states have the same loss in {dtype}, so that no loss "
            f"tells where a run is; take fewer num_states, or a loss_decay other than "
            f"{self.loss_decay:g}",
        )
        seed = torch.randint(2**63 - 1, (num_items,), generator=generator, device="cpu").to(device)
        return MarkovChain(self.transition().to(device, widest(device)), losses.to(device), seed)

    def best_stops(self, trajectory: Trajectory, price: float) -> Tensor:
        losses = self.losses()
        best = optimal_stopping(self.transition(), losses, price, trajectory.num_steps)
        # No two states have the same loss: it says which one a run is in.
        loss = trajectory.loss.cpu().double()
        states = (loss.unsqueeze(-1) - losses).abs().argmin(-1)
        return best.stops(states).to(trajectory.loss.device)


PROCESS_FAMILIES = {"markov-chain": MarkovChainFamily()}
