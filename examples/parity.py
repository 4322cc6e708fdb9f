"""Graves' parity task: halting of a plain recurrent cell, with three posteriors.

Every posterior goes on from the same warm-up, in which each step learns to answer. Two baselines at
the same mean number of steps: networks trained for a fixed number of steps, whose last answer alone
counts, with as many updates; and the network itself, cut off there. Interpolation on the held-out
seeds 5 and 6 (`--seed 5 --num-seeds 2`, some 3 minutes of one core each), accuracy at mean steps,
and in brackets that of the two baselines:

    softmax         .954 at 2.13 (.881, .860)  .978 at 2.28 (.946, .854)
    stick-breaking  .968 at 2.11 (.879, .852)  .992 at 2.45 (.953, .872)
    graves          .856 at 2.15 (.883, .758)  .938 at 2.60 (.959, .800)

So all are better than the same network at a fixed number of steps of equal mean, and all but
Graves' than networks trained for it. Extrapolation, to more entries than were seen in training,
fails for all: .46 to .49 where chance is .5.
"""

import copy
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from itertools import product
from typing import NamedTuple

import click
import torch
from scipy.stats import t
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from haltwise.halting import GravesPosterior, StickBreakingPosterior
from haltwise.halting.objectives import (
    cumulative_logits,
    free_energy,
    halting_bound,
    ponder_objective,
)
from haltwise.processes import Trajectory
from haltwise.stop_rules import (
    HazardThreshold,
    PonderThreshold,
    PosteriorMode,
    StopRule,
    decisions,
)

TEMPERATURE = 1.0  # in prices
GROWTH = 0.4  # share of the updates in which inputs grow to their full number of entries
WARM_UP = 0.5  # share of the updates in which every step must answer
BATCH, LEARNING_RATE, NUM_TEST = 128, 0.01, 20_000


class Ponderer(nn.Module):
    """A cell that reads the same vector at every step, with an answer and a halting logit."""

    def __init__(self, size: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(size, width)
        self.answer = nn.Linear(width, 1)
        self.halting = nn.Linear(width, 1)
        for weight in self.parameters():
            nn.init.uniform_(weight, -(width**-0.5), width**-0.5, generator=generator)
        nn.init.zeros_(self.halting.weight)
        nn.init.constant_(self.halting.bias, -1.0)

    def forward(self, inputs: Tensor, num_steps: int) -> tuple[Tensor, Tensor]:
        """Logits of the answer and of halting after 1..num_steps steps, each [B, num_steps]."""
        states = [self.cell(inputs)]
        while len(states) < num_steps:
            states.append(self.cell(inputs, states[-1]))
        hidden = torch.stack([output for output, _ in states], 1)
        return self.answer(hidden).squeeze(-1), self.halting(hidden).squeeze(-1)


# The objectives, of losses and halting logits [B, T+1] and prices [B]. Index t is step t + 1.


def softmax(losses: Tensor, halting: Tensor, price: Tensor) -> Tensor:
    """Minus the thesis' bound; where the halting logit is above 0 the posterior falls."""
    logits = cumulative_logits(-halting[:, :-1])
    return -halting_bound(losses, logits, price=price, temperature=TEMPERATURE * price)


def stick_breaking(losses: Tensor, halting: Tensor, price: Tensor) -> Tensor:
    """The free energy of the hazard (PonderNet)."""
    log_prob = StickBreakingPosterior(halting[:, :-1]).log_prob()
    return free_energy(losses, log_prob, price=price, temperature=TEMPERATURE * price)


def graves(losses: Tensor, halting: Tensor, price: Tensor) -> Tensor:
    """Expected loss and ponder cost."""
    return ponder_objective(losses, GravesPosterior(halting[:, :-1]), price=price)


class Halting(NamedTuple):
    """A way to halt: what is minimised, when to stop, and the price of a step in nats."""

    objective: Callable[[Tensor, Tensor, Tensor], Tensor]
    rule: StopRule
    output: str
    """Name under which the stop rule reads the halting logits."""
    price: float


POSTERIORS = {
    "softmax": Halting(softmax, PosteriorMode(), "increments", 0.1),
    "stick-breaking": Halting(stick_breaking, HazardThreshold(), "hazard_logits", 0.1),
    "graves": Halting(graves, PonderThreshold(), "halting_logits", 0.1),
}


class Settings(NamedTuple):
    """Settings of a study."""

    size: int
    width: int
    max_steps: int
    updates: int
    seed: int


def sample(
    num: int, size: int, low: int, high: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw vectors [num, size] with low..high entries +-1, the parity of their ones, the counts."""
    count = torch.randint(low, high + 1, (num, 1), generator=generator)
    order = torch.rand(num, size, generator=generator).argsort(1).argsort(1)
    sign = 2 * torch.randint(0, 2, (num, size), generator=generator) - 1
    inputs = torch.where(order < count, sign, 0)
    return inputs.float(), ((inputs == 1).sum(1) % 2).float(), count.squeeze(1)


def learn(
    model: Ponderer,
    objective: Callable[[Tensor, Tensor], Tensor],
    updates: range,
    num_steps: int,
    most: int,
    settings: Settings,
) -> None:
    """Take some of the updates, on an objective of losses and halting logits; 1..most entries."""
    generator = torch.Generator().manual_seed(settings.seed + updates.start)
    adam = torch.optim.Adam(model.parameters())
    for update in updates:
        done = update / settings.updates
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1, 2 * (1 - done))
        hardest = min(most, 1 + int(done / GROWTH * most))  # few entries first
        inputs, target, _ = sample(BATCH, settings.size, 1, hardest, generator)
        answers, halting_logits = model(inputs, num_steps)
        losses = binary_cross_entropy_with_logits(
            answers, target.unsqueeze(1).expand_as(answers), reduction="none"
        )
        adam.zero_grad()
        objective(losses, halting_logits).mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()


def begin(settings: Settings) -> Ponderer:
    """Make a new network."""
    generator = torch.Generator().manual_seed(settings.seed)
    return Ponderer(settings.size, settings.width, generator)


@cache
def train_fixed(num_steps: int, most: int, settings: Settings) -> Ponderer:
    """Train a network that always takes `num_steps` steps: its last answer alone counts."""
    model = begin(settings)
    updates = range(settings.updates)
    learn(model, lambda losses, _: losses[:, -1], updates, num_steps, most, settings)
    return model


@cache
def warm_up(most: int, settings: Settings) -> Ponderer:
    """Train the network that all posteriors go on from: every step must answer.

    Hazards that learn together with the answers make a step useless by never stopping there.
    """
    model = begin(settings)
    updates = range(int(WARM_UP * settings.updates))
    learn(model, lambda losses, _: losses.mean(1), updates, settings.max_steps, most, settings)
    return model


def train(halting: Halting, most: int, settings: Settings) -> Ponderer:
    """Train a network that halts, with as many updates in all as one that never does."""
    model = copy.deepcopy(warm_up(most, settings))

    def objective(losses: Tensor, halting_logits: Tensor) -> Tensor:
        price = torch.full_like(losses[:, 0], halting.price)
        return halting.objective(losses, halting_logits, price)

    updates = range(int(WARM_UP * settings.updates), settings.updates)
    learn(model, objective, updates, settings.max_steps, most, settings)
    return model


@torch.no_grad()
def measure(
    model: Ponderer, halting: Halting | None, num_steps: int, low: int, settings: Settings
) -> tuple[Tensor, Tensor]:
    """Measure steps and accuracy on held-out inputs of low..size entries: all, easy, hard; [3]."""
    generator = torch.Generator().manual_seed(settings.seed + 1_000_000)
    inputs, target, count = sample(NUM_TEST, settings.size, low, settings.size, generator)
    answers, logits = model(inputs, num_steps)
    stop = torch.full_like(count, num_steps - 1)
    if halting is not None:
        outputs = -logits if halting.objective is softmax else logits
        outputs = outputs[:, :-1, None].expand(-1, -1, 2)  # the same for both times of decision
        blank = torch.zeros_like(answers)
        trajectory = Trajectory(blank, blank, outputs={halting.output: outputs})
        stop = decisions(halting.rule, trajectory)
    right = (answers.gather(1, stop.unsqueeze(1)).squeeze(1) > 0) == (target > 0.5)
    easy = count <= (low + settings.size) // 2
    both = torch.stack((stop + 1, right)).double()
    steps, accuracy = torch.stack([both.mean(1), both[:, easy].mean(1), both[:, ~easy].mean(1)], 1)
    return steps, accuracy


def study(settings: Settings) -> Iterator[tuple[str, str, Tensor]]:
    """Yield task, posterior and a row [4, 3]: steps, accuracy, and that of two baselines.

    These are networks trained for a fixed number of steps, and the same network cut off there.
    """
    tasks = {
        "interpolation": (settings.size, 1),
        "extrapolation": (settings.size // 2, settings.size // 2 + 1),
    }
    for (task, (most, low)), (name, halting) in product(tasks.items(), POSTERIORS.items()):
        model = train(halting, most, settings)
        row = [*measure(model, halting, settings.max_steps, low, settings)]
        mean = row[0][0]
        around = math.floor(mean), math.ceil(mean)
        # Equal mean compute: either of the whole numbers around the mean, at random.
        trained = [train_fixed(number, most, settings) for number in around]
        for networks in (trained, (model, model)):
            below, above = (
                measure(network, None, number, low, settings)[1]
                for network, number in zip(networks, around, strict=True)
            )
            row.append(below.lerp(above, mean - around[0]))
        yield task, name, torch.stack(row)


@click.command()
@click.option("--full", is_flag=True, help="64 entries instead of 16: many hours.")
@click.option("--seed", default=0, show_default=True, help="First seed of weights and inputs.")
@click.option("--num-seeds", default=1, show_default=True, help="Number of seeds.")
@click.option(
    "--updates", type=int, help="Updates of each network.  [default: 5000; 200000 with --full]"
)
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
def main(full: bool, seed: int, num_seeds: int, updates: int | None, threads: int) -> None:
    """Print accuracy and mean steps on the parity task, beside networks that never halt."""
    torch.set_num_threads(threads)
    settings = Settings(64, 128, 10, 200_000, seed) if full else Settings(16, 64, 3, 5000, seed)
    settings = settings if updates is None else settings._replace(updates=updates)
    headings = ("mean steps", "accuracy", "trained for it", "cut off there")
    click.echo(" " * 29 + "".join(f"{heading:>17} " for heading in headings))
    click.echo(f"{'task':15}{'posterior':14}" + "   all  easy  hard" * 4)
    margins: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for each in range(seed, seed + num_seeds):
        for task, name, row in study(settings._replace(seed=each)):
            cells = "".join(f"{value:6.3f}" for value in row.flatten().tolist())
            click.echo(f"{task:15}{name:14}" + cells)
            margins[task, name].append((row[1, 0] - row[2, 0]).item())
    for (task, name), margin in margins.items() if num_seeds > 1 else ():
        # 95 % by Student's law: few seeds, nearly normal means.
        mean, half = statistics.fmean(margin), t.ppf(0.975, num_seeds - 1)
        half *= statistics.stdev(margin) / num_seeds**0.5
        wins = sum(value > 0 for value in margin)
        click.echo(f"{task:15}{name:14} wins {wins} of {num_seeds}, {mean:+.3f} +- {half:.3f}")


if __name__ == "__main__":
    main()
