"""Graves' logic task: as many steps of a cell as gates follow each other.

An input holds two bits and 1 to 5 of ten binary gates. Each gate is applied to the last two bits
and puts out the next, b_{i+1} = gate_i(b_i, b_{i-1}); the last one is the answer. A cell reads the
same vector at every step. Opponents: exits of the same network by its answers
(`examples/exits.py`), and networks trained for 1 to 8 repetitions whose last answer alone counts
(Repeat-RNN, Fojo et al. 2018), with as many updates, two of them mixed at random for an equal mean
number of steps. Inputs in the test are in no training batch.

    python examples/logic.py --num-seeds 3

Accuracy at mean steps on 4,000 held-out inputs, and that of the fixed numbers at equal mean steps:
.9985 at 2.32 (.9948), .9925 at 2.43 (.9968), .9955 at 2.28 (.9938) for seeds 0, 1 and 2. So the
learned exits win in two of three, and repetition nearly ties (docs/adaptive-examples.md).
"""

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
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, one_hot

from haltwise.nn import AdaptiveComputation, RecurrentCell

MOST, NUM_GATES, STEPS, HIDDEN, BATCH, LEARNING_RATE = 5, 10, 8, 128, 128, 3e-3
WARM_UP, GROWTH = 0.5, 0.3  # shares of the updates: every step must answer; gates become more
LOW, HIGH = 1e-3, 0.1  # prices of a step, in nats
REPETITIONS = (1, 2, 3, 4, 5, 6, 8)

# Truth tables: the value at (last bit, the one before), of the gates that depend on a bit.
GATES = torch.tensor(
    [[[(number >> (2 * a + b)) & 1 for b in (0, 1)] for a in (0, 1)] for number in range(1, 15)]
)[[0, 1, 3, 5, 6, 7, 8, 10, 12, 13]]


class Problems(NamedTuple):
    """Inputs [n, D], their answers [n], 0 or 1, and how many gates each has, int64 [n]."""

    inputs: Tensor
    answers: Tensor
    num_gates: Tensor


def sample(num: int, most: int, generator: torch.Generator, *, held_out: bool = False) -> Problems:
    """Draw problems of 1 to `most` gates; an eighth of all inputs, by a hash, is held out."""
    drawn = (16 if held_out else 2) * num + 100  # enough of which are of the right part
    count = torch.randint(1, most + 1, (drawn,), generator=generator)
    bits = torch.randint(0, 2, (drawn, 2), generator=generator)
    gates = torch.randint(0, NUM_GATES, (drawn, MOST), generator=generator)
    used = torch.arange(MOST) < count.unsqueeze(1)
    code = ((gates + 1) * used * (NUM_GATES + 1) ** torch.arange(MOST)).sum(1) * 4
    code = (code + bits @ torch.tensor([1, 2])) * 2654435761 % 2**32
    rows = ((code // 2**16 % 8 == 0) == held_out).nonzero().squeeze(1)[:num]
    count, bits, gates, used = count[rows], bits[rows], gates[rows], used[rows]
    before, last = bits.unbind(1)
    for place in range(MOST):
        new = GATES[gates[:, place], last, before]
        on = used[:, place]
        before, last = torch.where(on, last, before), torch.where(on, new, last)
    chosen = one_hot(gates, NUM_GATES) * used.unsqueeze(-1)
    inputs = torch.cat((2 * bits - 1, chosen.flatten(1)), 1).float()
    return Problems(inputs, last.float(), count)


class Network(nn.Module):
    """A cell that ponders, and what reads its answer, a log-odds, from every step."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        cell = nn.LSTMCell(2 + MOST * NUM_GATES + 1, HIDDEN)
        self.layer = AdaptiveComputation(RecurrentCell(cell, STEPS), width=32, generator=generator)
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


def train(total: int, seed: int, repetitions: int | None = None) -> Network:
    """Train a network for some repetitions; if None one that halts, whose every step answers first.

    From the share `WARM_UP` on the halting head learns beside the cell, at prices drawn anew.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = Network(generator)
    adam = torch.optim.Adam(network.parameters())
    for update in range(total):
        done = update / total
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1, 2 * (1 - done) + 0.01)
        problems = sample(BATCH, min(MOST, 1 + int(done / GROWTH * MOST)), generator)
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
def measure(network: Network, problems: Problems) -> Exits:
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
        problems.num_gates > MOST // 2,
        statistics_of_answers(torch.stack((logsigmoid(-logits), logsigmoid(logits)), -1)),
    )


@torch.no_grad()
def repetition(network: Network, repetitions: int, problems: Problems) -> Point:
    """Accuracy of a network trained for so many repetitions, on the half to judge by."""
    right = (network.repeated(problems.inputs, repetitions) > 0) == (problems.answers > 0.5)
    cost = torch.tensor([float(repetitions)])
    hard = problems.num_gates > MOST // 2
    stop = torch.zeros_like(problems.num_gates)
    exits = Exits(right.unsqueeze(1), cost, stop, hard, {})
    return point(f"trained for {repetitions}", exits, stop, halves(len(right))[1])


@click.command()
@click.option("--num-seeds", default=1, show_default=True)
@click.option("--updates", default=6000, show_default=True)
@click.option("--num-test", default=8000, show_default=True)
@click.option("--figure", type=click.Path(path_type=Path), help="Draw the last seed's exits here.")
def main(num_seeds: int, updates: int, num_test: int, figure: Path | None) -> None:
    """Compare exits that are learned with repetition."""
    for seed in range(num_seeds):
        generator = torch.Generator().manual_seed(seed + 1000)
        problems = sample(num_test, MOST, generator, held_out=True)
        exits = measure(train(updates, seed), problems)
        click.echo(f"seed {seed}\n{table(exits)}")
        trained = []
        for repetitions in REPETITIONS:
            network = train(updates, seed, repetitions)
            trained.append(repetition(network, repetitions, problems))
            click.echo(row(trained[-1]))
        own = point("learned", exits, exits.learned, halves(num_test)[1])
        hull = accuracy_at(trained, own.cost[0])
        click.echo(
            f"at {own.cost[0]:.2f} steps: learned {own.accuracy[0]:.4f}, trained for a number of "
            f"repetitions {hull:.4f}"
        )
    if figure is not None:
        draw(exits, figure, "Steps a problem, and answers that are right")


if __name__ == "__main__":
    main()
