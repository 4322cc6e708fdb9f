"""A character model that decides at each character how many of its units to compute.

A gated cell of variable width (Jernite et al. 2017) reads a text character by character; units that
are not computed keep their values. Prices of a unit are drawn anew in training, so one set of
weights is a curve of bits per character against multiply-adds. Baselines are gated cells of fixed
widths with as many updates on the same characters, two of them mixed at random for equal
multiply-adds. All that is computed counts: rows of the cell, the share, and the read-out, to whose
sums only the units that are computed add what they have changed by.

    python examples/variable_width.py tinyshakespeare.txt

A width that varies does not pay here: it is .04 bits worse than fixed widths at equal
multiply-adds after 1,000 updates, and .05 after 6,000 (docs/adaptive-examples.md).
"""

import math
from pathlib import Path
from typing import NamedTuple

import click
import torch
from exits import Point, accuracy_at
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from haltwise.nn import VariableComputationCell

EMBEDDED, UNITS, WIDTHS = 24, 96, (32, 48, 64, 96)
STREAMS, LENGTH, LEARNING_RATE = 32, 40, 4e-3
JUDGED = 500  # characters of a stream held out
LOW, HIGH = 3e-4, 1e-2  # prices of a unit, in nats
SOFT, SHARP = 0.3, 5.0  # sharpness of the law, before and after training


class Text(NamedTuple):
    """Characters as numbers, int64 [N]: to learn from, and the last tenth, held out."""

    taught: Tensor
    held_out: Tensor
    characters: str


def read(text: str) -> Text:
    """Number the characters of a text."""
    characters = "".join(sorted(set(text)))
    known = {character: number for number, character in enumerate(characters)}
    numbers = torch.tensor([known[character] for character in text])
    end = len(numbers) * 9 // 10
    return Text(numbers[:end], numbers[end:], characters)


class Fixed(nn.Module):
    """A gated cell that computes all of its units."""

    def __init__(self, num_characters: int, num_units: int) -> None:
        super().__init__()
        self.num_units, self.num_deciding = num_units, 0
        self.embed = nn.Embedding(num_characters, EMBEDDED)
        self.cell = nn.GRU(EMBEDDED, num_units, batch_first=True)
        self.read = nn.Linear(num_units, num_characters)

    def forward(
        self, tokens: Tensor, hidden: Tensor | None, price: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Read tokens [B, L] at prices [B], which change nothing here.

        Returns:
            Log-odds of the characters behind them [B, L, V], state [B, H], widths [B, L].
        """
        outputs, last = self.cell(self.embed(tokens), None if hidden is None else hidden[None])
        return self.read(outputs), last[0], torch.full(tokens.shape, float(self.num_units))


class Variable(nn.Module):
    """A cell of variable width."""

    def __init__(self, num_characters: int, num_units: int) -> None:
        super().__init__()
        self.num_units, self.num_deciding = num_units, EMBEDDED + num_units + 1
        self.embed = nn.Embedding(num_characters, EMBEDDED)
        self.cell = VariableComputationCell(nn.GRUCell(EMBEDDED, num_units), sharpness=SOFT)
        self.read = nn.Linear(num_units, num_characters)

    def forward(
        self, tokens: Tensor, hidden: Tensor | None, price: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As of `Fixed`; without gradients, no more units are computed than are asked for."""
        if not torch.is_grad_enabled():
            return self._run(tokens, hidden, price)
        states, widths = [], []
        for inputs in self.embed(tokens).unbind(1):
            hidden, width, _ = self.cell(inputs, hidden, price=price)
            states.append(hidden)
            widths.append(width)
        return self.read(torch.stack(states, 1)), states[-1], torch.stack(widths, 1)

    def _run(
        self, tokens: Tensor, hidden: Tensor | None, price: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `forward`; the read-out adds what units that are computed have changed by."""
        if hidden is None:
            hidden = torch.zeros(len(tokens), self.num_units)
        logits, widths = [self.read(hidden)], []
        for inputs in self.embed(tokens).unbind(1):
            before = hidden
            hidden, width, _ = self.cell.run(inputs, before, price=price)
            most = int(width.max())  # beyond it all units keep their values
            change = (hidden - before)[:, :most]
            logits.append(logits[-1] + change @ self.read.weight[:, :most].T)
            widths.append(width)
        return torch.stack(logits[1:], 1), hidden, torch.stack(widths, 1)


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats of each character, [B, L]."""
    return cross_entropy(logits.movedim(-1, 1), targets, reduction="none")


def train(text: Text, total: int, seed: int, model: Fixed | Variable) -> None:
    """Let a model learn from streams that go on where they were, each from a place of its own."""
    generator = torch.Generator().manual_seed(seed)
    begins = torch.randint(len(text.taught), (STREAMS, 1), generator=generator)
    adam = torch.optim.Adam(model.parameters())
    hidden = None
    for update in range(total):
        done = update / total
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1, 2 * (1 - done) + 0.01)
        if isinstance(model, Variable):
            model.cell.sharpness = SOFT * (SHARP / SOFT) ** min(1, 1.25 * done)
        places = begins + update * LENGTH + torch.arange(LENGTH + 1)
        tokens = text.taught[places % len(text.taught)]
        price = LOW * (HIGH / LOW) ** torch.rand(STREAMS, generator=generator)
        logits, hidden, widths = model(tokens[:, :-1], hidden, price)
        hidden = hidden.detach()
        losses = losses_of(logits, tokens[:, 1:]) + price.unsqueeze(1) * widths
        adam.zero_grad()
        losses.mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()


class Judged(NamedTuple):
    """What a model came to on text held out, means of characters."""

    bits: float
    operations: float
    width: float
    first: float
    """Width at the first two letters of words."""
    later: float


@torch.no_grad()
def judge(text: Text, model: Fixed | Variable, price: float) -> Judged:
    """Read streams of the text held out side by side, and count behind the 50th character."""
    streams = min(200, (len(text.held_out) - 1) // JUDGED)
    begins = torch.arange(streams).unsqueeze(1) * JUDGED
    tokens = text.held_out[begins + torch.arange(JUDGED + 1)]
    logits, _, widths = model(tokens[:, :-1], None, torch.full((streams,), price))
    bits = losses_of(logits, tokens[:, 1:])[:, 50:] / math.log(2)
    letters = torch.tensor([character.isalpha() for character in text.characters])[tokens[:, :-1]]
    ages = torch.zeros(streams, JUDGED + 1)  # of a word, in letters; before the first one 0
    for place in range(JUDGED):
        ages[:, place] = (ages[:, place - 1] + 1) * letters[:, place]
    widths, ages = widths[:, 50:], ages[:, 50:-1]
    operations = widths * (3 * (EMBEDDED + widths) + len(text.characters))
    first, later = widths[(ages > 0) & (ages <= 2)], widths[ages > 2]
    means = [value.mean().item() for value in (bits, operations, widths, first, later)]
    return Judged(means[0], means[1] + model.num_deciding, *means[2:])


@click.command()
@click.argument("path", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--num-seeds", default=1, show_default=True)
@click.option("--updates", default=1000, show_default=True)
@click.option("--units", default=UNITS, show_default=True, help="Of the cell of variable width.")
@click.option("--width", "widths", default=WIDTHS, show_default=True, multiple=True)
def main(path: Path, num_seeds: int, updates: int, units: int, widths: tuple[int, ...]) -> None:
    """Compare a cell of variable width with fixed ones on the text in the file PATH."""
    text = read(path.read_text())
    num_characters = len(text.characters)
    for seed in range(num_seeds):
        click.echo(f"seed {seed}\n{'':18}bits  operations  width  (first two letters, later)")
        fixed = []
        for width in widths:
            torch.manual_seed(seed)
            plain = Fixed(num_characters, width)
            train(text, updates, seed, plain)
            found = judge(text, plain, LOW)
            fixed.append(Point(f"fixed {width}", [found.operations], [-found.bits]))
            click.echo(f"  fixed        {found.bits:7.4f}  {found.operations:10.0f}  {width:5}")
        torch.manual_seed(seed)
        model = Variable(num_characters, units)
        train(text, updates, seed, model)
        for price in (LOW * (HIGH / LOW) ** (exponent / 6) for exponent in range(7)):
            found = judge(text, model, price)
            hull = -accuracy_at(fixed, found.operations)
            click.echo(
                f"  price {price:6.1g} {found.bits:7.4f}  {found.operations:10.0f}  "
                f"{found.width:5.1f}  ({found.first:.1f}, {found.later:.1f})  fixed at equal "
                f"operations {hull:.4f}"
            )


if __name__ == "__main__":
    main()
