"""From which cost of a gradient on a learned optimizer that stops itself beats batched Adam.

Both solve the same problems, and problems that have stopped leave the batch. Adam's learning rate
and stop rule (gradient norm, plateau or patience) are tuned together on separate problems for the
fewest gradients at a mean excess no higher than the learned optimizer's there. What an optimizer
spends beside gradients, and how many it asks for, give the cost at which the two are equally fast;
then it is tried, with gradients that burn that much time and more.
"""

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import NamedTuple, final

import click
import torch
from torch import Tensor

import haltwise
from haltwise._core.random import stream
from haltwise._core.tensors import log_rms, select_state
from haltwise.evaluation.optimizers import LEARNING_RATES
from haltwise.processes import StepObservation
from haltwise.rollout import record
from haltwise.stop_rules import GradientNorm, Patience, Plateau, StopRule, decide_all
from haltwise.tasks import Observation, TaskBatch, family
from haltwise.update_rules import Adam, UpdateRule


@final
@dataclass(frozen=True)
class Costly(TaskBatch):
    """A task whose gradients take time: it counts them and the seconds it spent."""

    inner: TaskBatch
    cost: float
    """Seconds of CPU a gradient, beside what it really takes."""
    spent: dict[str, float] = field(default_factory=lambda: {"gradients": 0, "seconds": 0.0})

    @property
    def reference_loss(self) -> Tensor:
        return self.inner.reference_loss

    def observe(self, params: Tensor, step: int) -> Observation:
        started = time.process_time()
        found = self.inner.observe(params, step)
        until = time.process_time() + self.cost * len(params)
        while time.process_time() < until:
            pass
        self.spent["gradients"] += len(params)
        self.spent["seconds"] += time.process_time() - started
        return found

    def select(self, index: Tensor) -> "Costly":
        inner = self.inner.select(index)
        return Costly(inner.start, inner, self.cost, self.spent)


class TunedAdam(NamedTuple):
    """Adam at a rate and with a stop rule, both tuned."""

    learning_rate: float
    stop: StopRule | None

    @torch.no_grad()
    def solve(self, batch: TaskBatch, max_steps: int) -> Tensor:
        """Parameters [B, D]; the update of the last gradient is applied."""
        rule: UpdateRule = Adam(self.learning_rate)
        assert self.stop is not None
        active = torch.arange(batch.num_problems)
        params, state, final_params = batch.start, rule.init(batch.start), batch.start.clone()
        memory = self.stop.init(batch.num_problems, batch.start)
        for step in range(max_steps):
            loss, grad = batch.observe(params, step)
            update, _, state = rule.update(grad, state)
            params = params + update
            norm = log_rms(grad) if isinstance(self.stop, GradientNorm) else None
            halts, memory = self.stop.step(StepObservation(step, loss, norm), memory)
            if halts.any():
                final_params[active[halts]] = params[halts]
                kept = (~halts).nonzero().squeeze(1)
                if len(kept) == 0:
                    return final_params
                active, params, batch = active[kept], params[kept], batch.select(kept)
                state, memory = select_state(state, kept), select_state(memory, kept)
        final_params[active] = params
        return final_params


def tune(batch: TaskBatch, max_steps: int, target: float) -> TunedAdam:
    """The fewest gradients at a mean excess of at most `target`."""
    best, least = TunedAdam(math.nan, None), math.inf
    for rate in LEARNING_RATES:
        if not 1e-2 < rate < 4:
            continue
        trajectory = record(Adam(rate), batch, max_steps)
        if not trajectory.finite.all():
            continue
        excess = trajectory.excess
        rules = [
            rule
            for kind in (GradientNorm, Plateau, Patience)
            for rule in kind.candidates(trajectory, excess)
        ]
        for rule, decided in decide_all(rules, trajectory):
            end = (decided + 1).clamp_max(max_steps)
            gradients = end.double().mean().item()
            if gradients < least and excess.gather(1, end[:, None]).mean() <= target:
                best, least = TunedAdam(rate, rule), gradients
    return best


@click.command()
@click.argument("name", default="regression-10d")
@click.option("--num-problems", default=4096, show_default=True)
@click.option("--num-tuning", default=256, show_default=True)
@click.option("--max-adam-steps", default=100, show_default=True, help="Gradients Adam may use.")
@click.option("--rounds", default=7, show_default=True)
@click.option("--out", default="runs/bench", type=click.Path(path_type=Path), show_default=True)
def main(
    name: str, num_problems: int, num_tuning: int, max_adam_steps: int, rounds: int, out: Path
) -> None:
    """The break-even cost of a gradient for the shipped optimizer NAME."""
    torch.set_num_threads(1)
    optimizer = haltwise.load(name)
    source = family(optimizer.card.family.name)
    tuning = source.sample(num_tuning, stream(2026, "tune"))
    test = source.sample(num_problems, stream(2026, "test"))

    def excess(batch: TaskBatch, params: Tensor) -> float:
        return batch.score(params, 0).excess.mean().item()

    target = excess(tuning, haltwise.solve(tuning, optimizer).params)
    tuned = tune(tuning, max_adam_steps, target)
    if tuned.stop is None:
        raise click.ClickException(f"Adam never comes to {target:.4g} in {max_adam_steps} steps")
    solvers = {
        name: lambda batch: haltwise.solve(batch, optimizer).params,
        "adam": lambda batch: tuned.solve(batch, max_adam_steps),
    }
    found = {}
    overheads: dict[str, list[float]] = {way: [] for way in solvers}
    for number in range(rounds + 1):
        for way, solve in solvers.items():
            task = Costly(test.start, test, 0.0)
            started = time.process_time()
            params = solve(task)
            seconds = time.process_time() - started - task.spent["seconds"]
            if number:
                overheads[way].append(seconds / num_problems)
            found[way] = {"gradients": task.spent["gradients"] / num_problems}
            found[way]["excess"] = excess(test, params)
    for way, own in overheads.items():
        found[way]["overhead"] = median(own)
    learned, adam = found[name], found["adam"]
    saved = adam["gradients"] - learned["gradients"]
    even = (learned["overhead"] - adam["overhead"]) / saved if saved > 0 else math.inf
    tried = []
    for factor in (0.5, 1.0, 2.0) if math.isfinite(even) else ():
        seconds = {}
        for way, solve in solvers.items():
            started = time.process_time()
            solve(Costly(test.start, test, even * factor))
            seconds[way] = time.process_time() - started
        tried.append({"cost": even * factor, "seconds": seconds})
    results = {
        "problems": num_problems,
        "adam": f"rate {tuned.learning_rate:.3g}, {tuned.stop}",
        "ways": found,
        "break_even_microseconds": 1e6 * even,
        "tried": tried,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "break_even.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    for way, row in found.items():
        click.echo(
            f"{way:16} excess {row['excess']:.4f}  gradients {row['gradients']:.1f}  "
            f"overhead {1e6 * row['overhead']:.1f} us a problem"
        )
    click.echo(results["adam"])
    click.echo(f"break-even: {1e6 * even:.2f} us a gradient")
    for row in tried:
        own, other = row["seconds"].values()
        click.echo(f"at {1e6 * row['cost']:.2f} us: {own:.3f} s against {other:.3f} s of Adam")


if __name__ == "__main__":
    main()
