"""Cells that ponder a vector: exits that are learned, beside repetition.

What `logic.py` and `parity.py` share. A cell reads the same vector at every step. Baselines are
exits of the same network by its answers (`exits.py`), and networks trained for a number of
repetitions whose last answer alone counts (Repeat-RNN, Fojo et al. 2018), with as many updates on
as many inputs, two of them mixed at random for an equal mean number of steps.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import click
import torch
from exits import (
    Exits,
    Point,
    accuracy_at,
    draw,
    halves,
    highest_price,
    point,
    row,
    statistics_of_answers,
    table,
)
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from haltwise.halting import HaltingMethod
from haltwise.nn import AdaptiveComputation, RecurrentCell

__all__ = ["Network", "Problems", "Task", "compare", "train"]

HIDDEN, BATCH, LEARNING_RATE = 128, 128, 3e-3
WARM_UP = 0.5  # share of the updates in which every step must answer
LOW, HIGH = 1e-3, 0.1  # prices of a step, in nats


class Problems(NamedTuple):
    """Inputs [n, D], their answers [n], 0 or 1, and the size of each, int64 [n]."""

    inputs: Tensor
    answers: Tensor
    sizes: Tensor


@dataclass(frozen=True)
class Task:
    """A question with two answers, about inputs of sizes 1 to `most`."""

    sample: Callable[[int, int, torch.Generator], Problems]
    """Draw so many problems of sizes up to a number, to learn from."""
    num_inputs: int
    """D."""
    most: int
    growth: float
    """Share of the updates in which sizes grow from 1 to the greatest."""
    max_steps: int = 8
    method: str | HaltingMethod = "stick-breaking"
    """The halting method, a name or one with settings."""


class Network(nn.Module):
    """A cell that ponders, and what reads its answer, a log-odds, from every step."""

    def __init__(self, task: Task, generator: torch.Generator) -> None:
        super().__init__()
        process = RecurrentCell(nn.LSTMCell(task.num_inputs + 1, HIDDEN), task.max_steps)
        self.layer = AdaptiveComputation(process, task.method, width=32, generator=generator)
        self.read = nn.Linear(HIDDEN, 1)

    def answers(self, outputs: Tensor) -> Tensor:
        """Log-odds of an answer of 1 by the cell's outputs, shape [n] or [n, T+1]."""
        found: Tensor = self.read(outputs[..., :HIDDEN]).squeeze(-1)
        return found

    def repeated(self, inputs: Tensor, num_steps: int) -> Tensor:
        """Log-odds after so many steps, shape [n]; the head is not asked."""
        process = self.layer.process
        state = process.init(inputs)
        for step in range(num_steps):
            found = process.step(step, state)
            state = found.state
        return self.answers(found.output)


def train(task: Task, total: int, seed: int, repetitions: int | None = None) -> Network:
    """Train a network for some repetitions; if None one that halts, whose every step answers first.

    From the share `WARM_UP` on the halting head learns beside the cell, at prices drawn anew.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = Network(task, generator)
    adam = torch.optim.Adam(network.parameters())
    for update in range(total):
        done = update / total
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1, 2 * (1 - done) + 0.01)
        most = min(task.most, 1 + int(done / task.growth * task.most))
        problems = task.sample(BATCH, most, generator)
        if repetitions is not None:
            logits = network.repeated(problems.inputs, repetitions)
            loss = binary_cross_entropy_with_logits(logits, problems.answers)
        else:
            prices = LOW * (HIGH / LOW) ** torch.rand(BATCH, generator=generator)
            pondered = network.layer(problems.inputs, prices)
            logits = network.answers(pondered.outputs)
            targets = problems.answers.unsqueeze(1).expand_as(logits)
            losses = binary_cross_entropy_with_logits(logits, targets, reduction="none")
            loss = losses.mean()
            if done >= WARM_UP:
                progress = (done - WARM_UP) / (1 - WARM_UP)
                loss = pondered.objective(losses, progress=progress).mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
    return network


@torch.no_grad()
def measure(task: Task, network: Network, problems: Problems) -> Exits:
    """The exits at the price that keeps the accuracy of all steps on half of the problems."""
    by_price = {}
    for exponent in range(11):
        price = LOW * (HIGH / LOW) ** (exponent / 10)
        pondered = network.layer(problems.inputs, price)
        by_price[price] = pondered.exits
    logits = network.answers(pondered.outputs)
    right = (logits > 0) == (problems.answers.unsqueeze(1) > 0.5)
    return Exits(
        right,
        network.layer.process.exit_costs,
        by_price[highest_price(right, by_price)],
        problems.sizes > task.most // 2,
        statistics_of_answers(torch.stack((logsigmoid(-logits), logsigmoid(logits)), -1)),
    )


@torch.no_grad()
def repetition(task: Task, network: Network, repetitions: int, problems: Problems) -> Point:
    """Accuracy of a network trained for so many repetitions, on the half to judge by."""
    right = (network.repeated(problems.inputs, repetitions) > 0) == (problems.answers > 0.5)
    cost = torch.tensor([float(repetitions)])
    stop = torch.zeros_like(problems.sizes)
    exits = Exits(right.unsqueeze(1), cost, stop, problems.sizes > task.most // 2, {})
    return point(f"trained for {repetitions}", exits, stop, halves(len(right))[1])


def compare(
    task: Task,
    test: Callable[[torch.Generator], Problems],
    seeds: Sequence[int],
    updates: int,
    repetitions: Sequence[int],
    figure: Path | None = None,
) -> None:
    """Print what a network that halts and networks for each of the repetitions come to.

    Every seed has problems of its own that `test` draws; the last one's exits are drawn.
    """
    for seed in seeds:
        problems = test(torch.Generator().manual_seed(seed + 1000))
        exits = measure(task, train(task, updates, seed), problems)
        click.echo(f"seed {seed}\n{table(exits)}")
        trained = []
        for number in repetitions:
            network = train(task, updates, seed, number)
            trained.append(repetition(task, network, number, problems))
            click.echo(row(trained[-1]))
        own = point("learned", exits, exits.learned, halves(len(problems.inputs))[1])
        hull = accuracy_at(trained, own.cost[0])
        click.echo(
            f"at {own.cost[0]:.2f} steps: learned {own.accuracy[0]:.4f}, trained for a number of "
            f"repetitions {hull:.4f}"
        )
    if figure is not None:
        draw(exits, figure, "Steps a problem, and answers that are right")
