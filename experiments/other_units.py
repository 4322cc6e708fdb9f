"""The same problems in other units: how much worse does `haltwise.solve` do, and what does it cost?

    python experiments/other_units.py                        # 2,000 problems of four families
    python experiments/other_units.py regression-10d --num-problems 500

Parameters count S times as much, and losses with the price K times. Printed is the mean excess loss
in natural units, beside that of problems in natural units, and the gradients spent.
"""

import warnings
from dataclasses import dataclass

import click
import torch
from torch import Tensor

import haltwise
from haltwise.tasks import Observation, TaskBatch, family

NAMES = ("regression-2d", "regression-10d", "quadratic-10d", "student-t-10d")
UNITS = (
    *((size, 1.0) for size in (1.0, 0.01, 0.1, 0.3, 3.0, 10.0, 100.0)),
    *((1.0, scale) for scale in (1e-4, 1e-2, 0.1, 10.0, 1e2, 1e4)),
)


@dataclass(frozen=True, eq=False)
class InOtherUnits(TaskBatch):
    """Another batch, its parameters counting `size` times and its losses `scale` times."""

    inner: TaskBatch
    size: float
    scale: float

    @property
    def reference_loss(self) -> Tensor:
        """That of the batch, in the new units."""
        return self.inner.reference_loss * self.scale

    def observe(self, params: Tensor, step: int) -> Observation:
        """See `TaskBatch.observe`."""
        loss, grad = self.inner.observe(params * self.size, step)
        return Observation(loss * self.scale, grad * (self.size * self.scale))

    def select(self, index: Tensor) -> "InOtherUnits":
        """See `TaskBatch.select`."""
        return InOtherUnits(self.start[index], self.inner.select(index), self.size, self.scale)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--num-problems", default=2000, show_default=True)
@click.option("--seed", default=2026, show_default=True)
def main(names: tuple[str, ...], num_problems: int, seed: int) -> None:
    """Print a table a family."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", haltwise.FitWarning)
    for name in names or NAMES:
        price = haltwise.load(name).card.price
        problem = family(name).sample(num_problems, torch.Generator().manual_seed(seed))
        click.echo(
            f"{name}\n{'S':>6} {'K':>7} {'unguarded':>10} {'guarded':>9} {'ratio':>6} gradients"
        )
        natural = None
        for size, scale in UNITS:
            other = InOtherUnits(problem.start / size, problem, size, scale)
            free, guarded = (
                haltwise.solve(other, name, price=price * scale, guard=guard)
                for guard in (False, True)
            )
            excess = [
                ((found.loss - other.reference_loss) / scale).mean().item()
                for found in (free, guarded)
            ]
            natural = natural or excess[1]
            click.echo(
                f"{size:6g} {scale:7g} {excess[0]:10.4g} {excess[1]:9.4g} "
                f"{excess[1] / natural:6.2f} {guarded.num_gradients.double().mean():8.2f}"
            )


if __name__ == "__main__":
    main()
