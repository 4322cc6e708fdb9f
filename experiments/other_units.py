"""The same problems in other units: how much worse does `haltwise.solve` do, and what does it cost?

    python experiments/other_units.py                        # 2,000 problems of four families
    python experiments/other_units.py regression-10d --num-problems 500

Parameters count S times as much, and losses with the price K times. Printed is the mean excess loss
in natural units, beside that of problems in natural units, and the gradients spent. Last, every
coordinate is in units of its own, up to S times larger or smaller, that nobody tells, and then told
by `param_scale`.
"""

import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

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
SPREADS = (3.0, 10.0, 100.0)


@dataclass(frozen=True, eq=False)
class InOtherUnits(TaskBatch):
    """Another batch, parameters counting `size` times ([B, D]) and losses `scale` times."""

    inner: TaskBatch
    size: Tensor
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
        inner, size = self.inner.select(index), self.size[index]
        return InOtherUnits(self.start[index], inner, size, self.scale)

    @classmethod
    def of(cls, inner: TaskBatch, size: float | Tensor, scale: float) -> "InOtherUnits":
        """With one size for all parameters, or one for each [D]."""
        sizes = torch.ones_like(inner.start) * size
        return cls(inner.start / sizes, inner, sizes, scale)


class Found(NamedTuple):
    """Mean excess losses without and with the guard, and the gradients that this one spends."""

    free: float
    excess: float
    num_gradients: float

    def show(self, label: str, natural: float | None) -> None:
        """Print a row."""
        ratio = self.excess / (natural or self.excess)
        click.echo(
            f"{label} {self.free:10.4g} {self.excess:9.4g} {ratio:6.2f} {self.num_gradients:8.2f}"
        )


def _both(other: InOtherUnits, name: str, price: float, **told: Any) -> Found:
    free, guarded = (
        haltwise.solve(other, name, price=price, guard=guard, **told) for guard in (False, True)
    )
    excess = [
        ((each.loss - other.reference_loss) / other.scale).mean().item() for each in (free, guarded)
    ]
    return Found(excess[0], excess[1], guarded.num_gradients.double().mean().item())


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
            other = InOtherUnits.of(problem, size, scale)
            found = _both(other, name, price * scale)
            natural = natural or found.excess
            found.show(f"{size:6g} {scale:7g}", natural)
        for size in SPREADS:
            draw = torch.rand(problem.dim, generator=torch.Generator().manual_seed(seed))
            sizes = size ** (2 * draw - 1)
            other = InOtherUnits.of(problem, sizes, 1.0)
            _both(other, name, price).show(f"{size:6g} {'each':>7}", natural)
            _both(other, name, price, param_scale=1 / sizes).show(f"{size:6g} {'told':>7}", natural)


if __name__ == "__main__":
    main()
