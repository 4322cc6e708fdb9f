"""Graves' logic task: as many steps of a cell as gates follow each other.

An input holds two bits and 1 to 5 of ten binary gates. Each gate is applied to the last two bits
and puts out the next, b_{i+1} = gate_i(b_i, b_{i-1}); the last one is the answer. A cell reads the
same vector at every step (`examples/pondering.py`, which says what the baselines are). Inputs in
the test are in no training batch.

    python examples/logic.py --num-seeds 3

Accuracy at mean steps on 4,000 held-out inputs, and that of the fixed numbers at equal mean steps:
.9985 at 2.32 (.9948), .9925 at 2.43 (.9968), .9955 at 2.28 (.9938) for seeds 0, 1 and 2. So the
learned exits win in two of three, and repetition nearly ties (docs/adaptive-examples.md).
"""

from functools import partial
from pathlib import Path

import click
import torch
from pondering import Problems, Task, compare
from torch.nn.functional import one_hot

MOST, NUM_GATES, GROWTH = 5, 10, 0.3
REPETITIONS = (1, 2, 3, 4, 5, 6, 8)

# Truth tables: the value at (last bit, the one before), of the gates that depend on a bit.
GATES = torch.tensor(
    [[[(number >> (2 * a + b)) & 1 for b in (0, 1)] for a in (0, 1)] for number in range(1, 15)]
)[[0, 1, 3, 5, 6, 7, 8, 10, 12, 13]]


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


@click.command()
@click.option("--num-seeds", default=1, show_default=True)
@click.option("--updates", default=6000, show_default=True)
@click.option("--num-test", default=8000, show_default=True)
@click.option("--figure", type=click.Path(path_type=Path), help="Draw the last seed's exits here.")
def main(num_seeds: int, updates: int, num_test: int, figure: Path | None) -> None:
    """Compare exits that are learned with repetition."""
    task = Task(sample, 2 + MOST * NUM_GATES, MOST, GROWTH)
    test = partial(sample, num_test, MOST, held_out=True)
    compare(task, test, range(num_seeds), updates, REPETITIONS, figure)


if __name__ == "__main__":
    main()
