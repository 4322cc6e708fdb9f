"""One regression per group of a table: thousands of small problems from CSV, and back to CSV.

All ways are compared at equal mean loss. L-BFGS is batched here (PyTorch's is not); a test holds it
against SciPy's. Defaults, least squares on 1,850 groups, about a minute of one core:

                 mean excess   median evaluations  seconds  us a step
    haltwise          0.8290   0.5296        19.2     0.91       14.6
    Adam              0.8126   0.5232        48.3     1.10        2.6
    L-BFGS            0.7359   0.4405         9.7     0.31        6.9
    closed form      -0.0000   0.0000         0.0     0.08       42.2

The last column is the overhead over evaluating the loss and its gradient. So a learned optimizer
pays against Adam once an evaluation costs more than 5.3 us (107 us with Student-t noise), and never
where L-BFGS or a closed form will do.
"""

import csv
import math
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self, cast, final

import click
import torch
from torch import Tensor

import haltwise
from haltwise.rollout.early_exit import execute
from haltwise.stop_rules.accounts import (
    CostUnit,
    StopPolicy,
    ReturnedIterate,
    returned_steps,
    steps_charged,
)
from haltwise.halting.halter import HaltingOutput
from haltwise.stop_rules import GradientNorm, Plateau, StepObservation, Traces, decide_all
from haltwise.stop_rules.base import LevelRule, quantile_grid
from haltwise.models.optimizer_model import ModelStep
from haltwise.update_rules import Adam
from haltwise.tasks import Observation, TaskBatch

NUM_COLUMNS = 9  # and an intercept: the shipped optimizers were trained on 10 parameters
DEGREES = 3.0  # of Student's t
NOISE = 2.5  # of y in a table drawn here
MAX_STEPS = 150  # evaluations that an opponent may use
NUM_TUNING = 150  # groups, at most a quarter
LEARNING_RATES = tuple(10 ** (power / 6) for power in range(-9, 1))

# ---------------------------------------------------------------------------------- the table


def draw_table(path: Path, num_groups: int, generator: torch.Generator) -> None:
    """Write rows (group, x1..x9, y): correlated inputs, effects and sizes that differ by group.

    In a tenth of the groups one row in ten is a mistake, six times as noisy.
    """
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["group", *(f"x{n}" for n in range(1, NUM_COLUMNS + 1)), "y"])
        common = torch.randn(NUM_COLUMNS, generator=generator)
        for group in range(num_groups):
            size = int(20 * 10 ** torch.rand((), generator=generator))
            mixing = torch.randn(NUM_COLUMNS, NUM_COLUMNS, generator=generator)
            mixing = torch.eye(NUM_COLUMNS) + 0.5 * mixing
            inputs = 3 + torch.randn(size, NUM_COLUMNS, generator=generator) @ mixing
            effects = common + 0.5 * torch.randn(NUM_COLUMNS, generator=generator)
            noise = NOISE * torch.randn(size, generator=generator)
            if group % 10 == 0:
                noise[::10] *= 6
            y = 100 + inputs @ effects + noise
            for row, value in zip(inputs.tolist(), y.tolist(), strict=True):
                writer.writerow([f"g{group:05}", *(f"{x:.5g}" for x in row), f"{value:.6g}"])


class Table(NamedTuple):
    """What one regression per group needs, G groups of up to N rows, padded by rows of zeros."""

    groups: list[str]
    names: list[str]
    design: Tensor
    """Standardized over the whole table, the intercept last, float64 [G, N, D]."""
    observed: Tensor
    """Centred and in units of the noise, float64 [G, N]."""
    mean: Tensor
    """Of the columns and y, [D]."""
    scale: Tensor
    """Likewise; that of y is the noise."""


def read_table(path: Path, noise: float) -> Table:
    """Read a CSV file with a header: first the group, last y, columns of numbers between.

    Raises:
        haltwise.InputError: It is no such table; the message names the line.
    """
    rows: dict[str, list[list[float]]] = {}
    names: list[str] = []
    line = 0
    try:
        with path.open(newline="", encoding="utf-8") as file:
            for group, *numbers in csv.reader(file):
                line += 1
                if not names:
                    names = [group, *numbers]
                    continue
                if len(numbers) != len(names) - 1:
                    raise ValueError(f"{len(numbers)} numbers for {len(names) - 1} columns")
                values = [float(number) for number in numbers]
                if not all(abs(value) < 1e30 for value in values):  # also false for NaN
                    raise ValueError("NaN, infinity or a number beyond 1e30")
                rows.setdefault(group, []).append(values)
        if len(names) < 3 or sum(map(len, rows.values())) < 2:
            raise ValueError("a group, columns of numbers and y are needed, and two rows of them")
    except (OSError, ValueError, csv.Error) as error:
        raise haltwise.InputError(f"{path} cannot be read, line {line}: {error}") from None
    tables = [torch.tensor(table, dtype=torch.float64) for table in rows.values()]
    every = torch.cat(tables)
    mean, scale = every.mean(0), every.std(0)
    scale[-1] = noise
    padded = torch.nn.utils.rnn.pad_sequence(
        [torch.cat(((t - mean) / scale, torch.ones(len(t), 1)), 1) for t in tables],
        batch_first=True,
    )
    columns = [*range(padded.shape[2] - 2), padded.shape[2] - 1]
    return Table(list(rows), names, padded[..., columns], padded[..., -2], mean, scale)


def write_coefficients(path: Path, table: Table, solution: haltwise.Solution) -> None:
    """Write the coefficients in the units of the table, and what became of each group."""
    theta = solution.params.double() * table.scale[-1]
    slopes = theta[:, :-1] / table.scale[:-1]
    intercept = theta[:, -1] + table.mean[-1] - slopes @ table.mean[:-1]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [table.names[0], "intercept", *table.names[1:-1], "loss", "gradients", "outcome"]
        )
        columns = intercept, slopes, solution.loss, solution.num_gradients, solution.outcome
        for group, *row in zip(table.groups, *(c.tolist() for c in columns), strict=True):
            first, others, loss, gradients, outcome = row
            numbers = (f"{number:.6g}" for number in (first, *others, loss))
            writer.writerow([group, *numbers, gradients, haltwise.Outcome(outcome).name])


# ------------------------------------------------------------------------------- the problems


def squares(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Minus the log-likelihood under unit normal noise, up to a constant."""
    return (y - (x @ params.unsqueeze(-1)).squeeze(-1)).square().sum(1) / 2


def student_t(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Minus the log-likelihood under Student-t noise of unit scale: outliers hardly count."""
    residual = y - (x @ params.unsqueeze(-1)).squeeze(-1)
    return (DEGREES + 1) / 2 * torch.log1p(residual.square() / DEGREES).sum(1)


class Family(NamedTuple):
    """A loss and the shipped optimizer for it."""

    loss: Callable[..., Tensor]
    optimizer: str


FAMILIES = {
    "least squares": Family(squares, "regression-10d"),
    "Student-t": Family(student_t, "student-t-10d"),
}


def make_problem(
    family: Family, table: Table, groups: slice, dtype: torch.dtype = torch.float32
) -> haltwise.FunctionBatch:
    """One regression per group, all parameters starting at 0."""
    x, y = table.design[groups].to(dtype), table.observed[groups].to(dtype)
    return haltwise.FunctionBatch(x.new_zeros(len(x), x.shape[2]), family.loss, {"x": x, "y": y})


def closed_form(problem: haltwise.FunctionBatch) -> Tensor:
    """The minimizers of least squares, [G, D]."""
    x, y = problem.data["x"], problem.data["y"].unsqueeze(-1)
    found: Tensor = torch.linalg.lstsq(x, y, driver="gelsd").solution.squeeze(-1)
    return found


@final
@dataclass(frozen=True, eq=False)
class Timed(TaskBatch):
    """A problem that counts its evaluations and the seconds they take, of a core."""

    inner: TaskBatch
    spent: dict[str, float] = field(default_factory=lambda: {"evaluations": 0.0, "seconds": 0.0})

    @property
    def reference_loss(self) -> Tensor:
        return self.inner.reference_loss

    def observe(self, params: Tensor, step: int) -> Observation:
        begin = time.process_time()
        seen = self.inner.observe(params, step)
        self.spent["seconds"] += time.process_time() - begin
        self.spent["evaluations"] += len(params)
        return seen

    def observe_loss(self, params: Tensor, step: int) -> Tensor:
        return self.observe(params, step).loss  # counted in full

    def select(self, index: Tensor) -> "Timed":
        inner = self.inner.select(index)
        return Timed(inner.start, inner, self.spent)


# ------------------------------------------------------------------------------ the opponents


SILENT: Any = HaltingOutput(*[None] * 3)  # type: ignore[arg-type]


class AdamMethod:
    """Adam for `execute`, without a head."""

    def __init__(self, learning_rate: float) -> None:
        self.rule = Adam(learning_rate)

    def init(self, params: Tensor) -> dict[str, Tensor]:
        return self.rule.init(params)

    def step(
        self,
        step: int,
        loss: Tensor,
        grad: Tensor,
        price: Tensor,
        state: Any,
        *,
        in_place: bool = False,
    ) -> Any:
        update, _, state = self.rule.step(grad, state)
        return ModelStep(update, SILENT, state)


class LBFGS:
    """L-BFGS for `execute`: every problem has its own memory and its own line search.

    An evaluation is a step. Where it finds the decrease of Armijo's condition, the point is
    accepted and the next direction tried at full length; elsewhere the length is cut to the
    minimum of the parabola through what is known, within [.1, .5] of it. Source: Nocedal & Wright
    2006, "Numerical Optimization", algorithms 3.1, 7.4 and 7.5.
    """

    def __init__(self, memory: int = 10) -> None:
        self.memory = memory

    def init(self, params: Tensor) -> dict[str, Tensor]:
        history = params.new_zeros(len(params), self.memory, params.shape[1])
        return {
            "s": history,  # newest first; zeros where there is none yet
            "y": history,
            "moved": torch.zeros_like(params),  # from the last accepted point to this one
            "loss": params.new_full((len(params),), torch.inf),
            "grad": torch.zeros_like(params),
        }

    def step(
        self,
        step: int,
        loss: Tensor,
        grad: Tensor,
        price: Tensor,
        state: Any,
        *,
        in_place: bool = False,
    ) -> Any:
        s, y, moved = state["s"], state["y"], state["moved"]
        slope = (state["grad"] * moved).sum(1)
        fine = loss <= state["loss"] + 1e-4 * slope
        change = grad - state["grad"]
        curved = fine & ((moved * change).sum(1) > 1e-10 * moved.square().sum(1)) & (step > 0)
        s = torch.where(curved[:, None, None], torch.cat((moved[:, None], s[:, :-1]), 1), s)
        y = torch.where(curved[:, None, None], torch.cat((change[:, None], y[:, :-1]), 1), y)
        parabola = -slope / (2 * (loss - state["loss"] - slope))
        cut = torch.where(parabola.isfinite(), parabola, 0.1).clamp(0.1, 0.5).unsqueeze(1)
        trial = torch.where(fine[:, None], self._direction(grad, s, y), cut * moved)
        state = {
            "s": s,
            "y": y,
            "moved": trial,
            "loss": torch.where(fine, loss, state["loss"]),
            "grad": torch.where(fine[:, None], grad, state["grad"]),
        }
        return ModelStep(torch.where(fine[:, None], trial, trial - moved), SILENT, state)

    def _direction(self, grad: Tensor, s: Tensor, y: Tensor) -> Tensor:
        """Minus the inverse Hessian times the gradient, by the two loops."""
        rho = 1 / (s * y).sum(2).clamp_min(1e-30)
        weights, q = [], grad
        for past in range(self.memory):
            weights.append(rho[:, past] * (s[:, past] * q).sum(1))
            q = q - weights[-1].unsqueeze(1) * y[:, past]
        newest = (s[:, 0] * y[:, 0]).sum(1) / y[:, 0].square().sum(1).clamp_min(1e-30)
        first = 1 / grad.norm(dim=1).clamp_min(1e-30)  # a step of length 1
        q = torch.where(newest > 0, newest, first).unsqueeze(1) * q
        for past in reversed(range(self.memory)):
            weight = weights[past] - rho[:, past] * (y[:, past] * q).sum(1)
            q = q + weight.unsqueeze(1) * s[:, past]
        return -q


def record(method: Any, problem: TaskBatch, reference: Tensor) -> Traces:
    """Losses and gradient norms of `MAX_STEPS` evaluations, nothing stopping them."""
    params, state = problem.start, method.init(problem.start)
    losses, sizes = [], []
    for step in range(MAX_STEPS + 1):
        loss, grad = problem.observe(params, step)
        losses.append(loss)
        sizes.append(grad.square().mean(1).sqrt().clamp_min(1e-30).log())
        update, _, state = method.step(step, loss, grad, loss, state)
        params = params + update
    table = torch.stack(losses, 1)
    excess = table.double() - reference.unsqueeze(1)
    return Traces(table, excess, torch.stack(sizes, 1))


@final
@dataclass(frozen=True)
class SmallGradient(LevelRule):
    """Stop where the gradient is small and the loss the lowest seen: no failed trial of a search.

    Args:
        smallness: -log of the root mean square of the gradient's entries.
    """

    smallness: float

    level_setting = "smallness"

    def init(self, num_problems: int, like: Tensor) -> dict[str, Tensor]:
        return {"lowest": like.new_full((num_problems,), torch.inf)}

    def statistic(
        self, seen: StepObservation, memory: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        smallness = -seen.signal("log_grad_norm")
        lowest = torch.minimum(seen.loss, memory["lowest"])
        return torch.where(seen.loss <= lowest, smallness, -torch.inf), {"lowest": lowest}

    @classmethod
    def candidates(cls, traces: Traces, costs: Tensor) -> list[Self]:
        sizes = traces.signal("log_grad_norm")
        return [cls(-level) for level in quantile_grid(sizes, 200)]


class Tuned(NamedTuple):
    """A method, the stop rule it needs least evaluations with, and their mean."""

    method: Any
    policy: StopPolicy | None
    evaluations: float


def tune(methods: Iterable[Any], problem: TaskBatch, reference: Tensor, target: float) -> Tuned:
    """Least mean evaluations at a mean excess of at most `target`."""
    best = Tuned(None, None, math.inf)
    for method in methods:
        traces = record(method, problem, reference)
        if not traces.excess.isfinite().all():
            continue
        candidates = [
            rule
            for kind in (SmallGradient, Plateau)
            for rule in kind.candidates(traces, traces.excess)
        ]
        for rule, decided in decide_all(candidates, traces):
            cost = steps_charged(decided, CostUnit.GRADIENTS, MAX_STEPS).double().mean().item()
            if cost >= best.evaluations:
                continue
            for recall in (ReturnedIterate.NEXT, ReturnedIterate.CURRENT, ReturnedIterate.BEST):
                end = returned_steps(decided, traces, recall).unsqueeze(1)
                if traces.excess.gather(1, end).mean().item() <= target:
                    best = Tuned(method, StopPolicy(rule, recall), cost)
                    break
    return best


# --------------------------------------------------------------------------------- the contest


class Result(NamedTuple):
    """Of one way to solve G problems."""

    name: str
    excess: float
    """Mean loss above the minimum."""
    median: float
    """Median of the same."""
    evaluations: float
    """Mean number, each a loss and its gradient."""
    seconds: float
    """Of a core, for all groups, evaluations included."""
    overhead: float
    """Of one group, evaluations left out."""


def measure(
    name: str, solve: Callable[[TaskBatch], Tensor], problem: TaskBatch, reference: Tensor
) -> Result:
    """Run it, once to warm up and once on the clock."""
    solve(problem.select(torch.arange(min(50, problem.num_problems))))
    timed = Timed(problem.start, problem)
    begin = time.process_time()
    params = solve(timed)
    seconds = time.process_time() - begin
    num = problem.num_problems
    excess = problem.observe_loss(params, 0).double() - reference
    return Result(
        name,
        excess.mean().item(),
        excess.median().item(),
        timed.spent["evaluations"] / num,
        seconds,
        (seconds - timed.spent["seconds"]) / num,
    )


def verdict(learned: Result, other: Result) -> str:
    """From which cost of one evaluation, in seconds, the learned optimizer is the quicker one."""
    saved = other.evaluations - learned.evaluations
    extra = learned.overhead - other.overhead
    if saved <= 0 and extra >= 0:
        return f"Against {other.name} it never pays."
    even = 1e6 * extra / saved
    if saved <= 0:
        return (
            f"Against {other.name} it pays only while an evaluation costs less than {even:.3g} us."
        )
    if extra <= 0:
        return f"Against {other.name} it pays whatever an evaluation costs."
    return f"Against {other.name} it pays once an evaluation costs more than {even:.3g} us."


def best_known(family: Family, table: Table, groups: slice) -> Tensor:
    """The least loss of each group, float64 [G]; of Student-t the lower of two local minima."""
    problem = make_problem(family, table, groups, torch.float64)
    params = closed_form(problem)
    if family.loss is squares:
        return problem.observe_loss(params, 0)
    policy, method = StopPolicy(GradientNorm(1e-8), ReturnedIterate.BEST), cast("Any", LBFGS())
    minima = []
    for start in (params, torch.zeros_like(params)):
        near = haltwise.FunctionBatch(start, family.loss, problem.data)
        found = execute(method, near, policy, start[:, 0], 200)
        minima.append(problem.observe_loss(found.params, 0))
    return torch.minimum(*minima)


def contest(name: str, family: Family, table: Table) -> list[Result]:
    """Judge all ways at equal mean loss, the learned optimizer's.

    Adam's rate is tuned on groups set aside; the opponents' stop rules in hindsight, on the very
    groups they are judged on, which favours them.
    """
    num_tuning = min(NUM_TUNING, len(table.groups) // 4)
    optimizer = haltwise.load(family.optimizer)

    def aim(groups: slice) -> tuple[TaskBatch, Tensor, float]:
        problem, reference = make_problem(family, table, groups), best_known(family, table, groups)
        excess = haltwise.solve(problem, optimizer).loss.double() - reference
        return problem, reference, excess.mean().item()

    rate = tune(map(AdamMethod, LEARNING_RATES), *aim(slice(0, num_tuning)))
    problem, reference, target = aim(slice(num_tuning, None))
    first = rate.method or AdamMethod(LEARNING_RATES[-1])
    adam, lbfgs = (tune([method], problem, reference, target) for method in (first, LBFGS()))

    ways: list[tuple[str, Callable[[TaskBatch], Tensor]]] = [
        ("haltwise", lambda p: haltwise.solve(p, optimizer).params)
    ]
    for title, tuned in (("Adam", adam), ("L-BFGS", lbfgs)):
        if tuned.policy is None:
            click.echo(f"{title} does not come to that loss in {MAX_STEPS} evaluations")
        else:
            method, policy = tuned.method, tuned.policy

            def run(p: TaskBatch, method: Any = method, policy: StopPolicy = policy) -> Tensor:
                return execute(method, p, policy, p.start[:, 0], MAX_STEPS).params

            ways.append((title, run))
    if family.loss is squares:

        def solve_at_once(p: Any) -> Tensor:
            return closed_form(getattr(p, "inner", p))

        ways.append(("closed form", solve_at_once))
    results = [measure(title, way, problem, reference) for title, way in ways]
    start = (problem.observe_loss(problem.start, 0).double() - reference).mean().item()
    click.echo(f"\n{name}: {problem.num_problems} groups, {problem.dim} parameters each;")
    own = results[0]
    each = own.seconds / problem.num_problems - own.overhead
    click.echo(f"mean loss above the minimum {start:.4g} at the start;")
    click.echo(f"an evaluation costs {1e6 * each / own.evaluations:.3g} us\n")
    click.echo(
        f"{'':12}{'mean excess':>12}{'median':>9}{'evaluations':>12}{'seconds':>9}{'us a step':>11}"
    )
    for result in results:
        per_step = 1e6 * result.overhead / max(result.evaluations, 1)
        click.echo(
            f"{result.name:12}{result.excess:12.4f}{result.median:9.4f}{result.evaluations:12.1f}"
            f"{result.seconds:9.2f}{per_step:11.1f}"
        )
    click.echo()
    for result in results[1:]:
        click.echo(verdict(results[0], result))
    if adam.policy is not None:
        click.echo(f"Adam: learning rate {adam.method.rule.learning_rate:.3g}, {adam.policy.rule}")
    if lbfgs.policy is not None:
        click.echo(f"L-BFGS: {lbfgs.policy.rule}, {lbfgs.policy.recall}")
    return results


@click.command()
@click.option("--table", "source", type=click.Path(path_type=Path), help="CSV.  [default: drawn]")
@click.option("--noise", type=float, default=NOISE, show_default=True, help="Of y, its unit.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("coefficients.csv"))
@click.option("--groups", type=int, default=2000, show_default=True, help="Of a drawn table.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of a drawn table.")
@click.option("--threads", type=int, default=1, show_default=True, help="CPU threads.")
def main(
    source: Path | None, noise: float, out: Path, groups: int, seed: int, threads: int
) -> None:
    """Fit one regression per group of a CSV table and say when a learned optimizer pays."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if source is None:
            source = Path(folder) / "table.csv"
            draw_table(source, groups, torch.Generator().manual_seed(seed))
        table = read_table(source, noise)
    for name, family in FAMILIES.items():
        contest(name, family, table)
    family = FAMILIES["least squares"]
    problem = make_problem(family, table, slice(None))
    solution = haltwise.solve(problem, optimizer=family.optimizer)
    write_coefficients(out, table, solution)
    click.echo(f"\nThe coefficients by least squares are in {out}.")


if __name__ == "__main__":
    main()
