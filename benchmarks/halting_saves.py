"""What halting saves for real: the gradients that were executed, and the seconds.

A shipped optimizer solves the same problems to its full horizon, until its own policy stops it, and
for the fixed budget of equal loss: the least number of steps whose mean excess is no higher. Full
and fixed run without the halting model; so does the policy's schedule, repeated as if an oracle had
said when each problem stops, and what it saves of the policy's time is the price of the model.

Gradients are cheap at first, those of a sum of squares reduced to D residuals; then dear: the very
same losses, of many residuals.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, final

import click
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

import haltwise
from haltwise._core.random import stream
from haltwise._core.tensors import select_state
from haltwise.halting import HaltingSession
from haltwise.models import OptimizerModel
from haltwise.processes import OptimizationProcess
from haltwise.rollout import Execution, record, run_until_halted
from haltwise.tasks import Observation, TaskBatch, family
from haltwise.tasks.least_squares import LeastSquaresBatch
from haltwise.update_rules import UpdateRule


@final
@dataclass(frozen=True)
class Counted(TaskBatch):
    """A task that counts the gradients it is asked for."""

    inner: TaskBatch
    calls: list[int]
    """Problems in each call."""

    @property
    def reference_loss(self) -> Tensor:
        return self.inner.reference_loss

    def observe(self, params: Tensor, step: int) -> Observation:
        self.calls.append(len(params))
        return self.inner.observe(params, step)

    def select(self, index: Tensor) -> "Counted":
        inner = self.inner.select(index)
        return Counted(inner.start, inner, self.calls)


class Row(NamedTuple):
    """What one way of solving came to; all but the seconds are totals or means over problems."""

    way: str
    executed: int
    """Gradients, as the task counted them."""
    steps: int
    """Sum of the steps at which the problems ended."""
    excess: float
    """Mean, of what is returned."""
    seconds: float
    """Median of the repetitions."""


@torch.no_grad()
def run(rule: UpdateRule, batch: TaskBatch, num_steps: Tensor) -> Tensor:
    """Parameters [B, D] after `num_steps` [B] steps of a rule; who is done leaves the batch."""
    active = torch.arange(batch.num_problems)
    params, state, final_params = batch.start, rule.init(batch.start), batch.start.clone()
    for step in range(int(num_steps.max())):
        goes_on = num_steps > step
        if not goes_on.all():
            final_params[active[~goes_on]] = params[~goes_on]
            kept = goes_on.nonzero().squeeze(1)
            active, num_steps, params = active[kept], num_steps[kept], params[kept]
            batch, state = batch.select(kept), select_state(state, kept)
        update, _, state = rule.update(batch.observe(params, step).grad, state)
        params = params + update
    final_params[active] = params
    return final_params


def widen(batch: LeastSquaresBatch, num_rows: int) -> LeastSquaresBatch:
    """The same losses as sums over `num_rows` residuals, which a rotation of D ones makes."""
    square = torch.randn(num_rows, batch.factor.shape[1], generator=stream(0), dtype=torch.float64)
    basis = torch.linalg.qr(square).Q.to(batch.factor)
    return replace(batch, factor=basis @ batch.factor, target=batch.target @ basis.mT)


def compare(
    optimizer: OptimizerModel, batch: TaskBatch, price: float, repetitions: int
) -> list[Row]:
    """The full horizon, the policy, its schedule without the model, the budget of equal loss."""
    horizon, num_problems = optimizer.card.horizon, batch.num_problems
    prices = batch.start.new_full((num_problems,), price)

    def solve_by_policy(task: TaskBatch) -> Execution:
        session = HaltingSession(optimizer.policy(), prices, optimizer.halting)
        return run_until_halted(OptimizationProcess(optimizer.rule, task), session, horizon)

    solved = solve_by_policy(batch)
    excess = batch.score(solved.result, 0).excess.mean()
    equal = record(optimizer.rule, batch, horizon).excess.mean(0) <= excess
    budget = int(equal.int().argmax()) if equal.any() else horizon
    full = torch.full_like(solved.num_gradients, horizon)
    ends = {
        "full horizon": full,
        "own policy": solved.num_gradients,
        "  without the model": solved.num_gradients,
        f"{budget} fixed steps": torch.full_like(full, budget),
    }

    def solver(way: str, end: Tensor) -> Callable[[TaskBatch], Tensor]:
        if way == "own policy":
            return lambda task: solve_by_policy(task).result
        return lambda task: run(optimizer.rule, task, end)

    solvers = {way: solver(way, end) for way, end in ends.items()}
    seconds: dict[str, list[float]] = {way: [] for way in ends}
    for _ in range(repetitions):  # in turn, so that all see the machine in the same moods
        for way, solve in solvers.items():
            started = time.perf_counter()
            solve(batch)
            seconds[way].append(time.perf_counter() - started)
    rows = []
    for way, solve in solvers.items():
        counted = Counted(batch.start, batch, [])
        mean = batch.score(solve(counted), 0).excess.mean().item()
        median = statistics.median(seconds[way])
        rows.append(Row(way, sum(counted.calls), int(ends[way].sum()), mean, median))
    return rows


def drawn(title: str, rows: list[Row]) -> Table:
    """A table of the rows, their seconds also as shares of the full horizon's."""
    full, own, alone, _ = rows
    share = 1 - alone.seconds / own.seconds
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.caption = f"The halting model took {share:.0%} of the policy's time."
    for name in ("", "gradients", "sum of steps", "excess", "seconds", "of full"):
        table.add_column(name, justify="right" if name else "left")
    for row in rows:
        table.add_row(
            row.way,
            f"{row.executed:,}",
            f"{row.steps:,}",
            f"{row.excess:.4f}",
            f"{row.seconds:.3f}",
            f"{row.seconds / full.seconds:.1%}",
        )
    return table


@click.command()
@click.argument("name", default="regression-10d")
@click.option("--num-problems", default=4096, show_default=True)
@click.option("--price", type=float, help="Of a gradient.  [default: the card's]")
@click.option("--num-rows", default=1000, show_default=True, help="Residuals of a dear gradient.")
@click.option("--repetitions", default=5, show_default=True)
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
def main(
    name: str,
    num_problems: int,
    price: float | None,
    num_rows: int,
    repetitions: int,
    threads: int,
) -> None:
    """Gradients and seconds that halting saves the shipped optimizer NAME, of a regression."""
    torch.set_num_threads(threads)
    optimizer = haltwise.load(name)
    batch = family(optimizer.card.family.name).sample(num_problems, stream(2026, "test"))
    if not isinstance(batch, LeastSquaresBatch):
        raise click.BadParameter(f"{name} solves no sums of squares; choose regression-10d")
    price = optimizer.card.price if price is None else price
    console = Console()
    for title, task in {
        f"{name}, {batch.factor.shape[1]} residuals a gradient": batch,
        f"{name}, {num_rows} residuals a gradient": widen(batch, num_rows),
    }.items():
        console.print(drawn(title, compare(optimizer, task, price, repetitions)))


if __name__ == "__main__":
    main()
