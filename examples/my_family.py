"""A family from a file: exponential decays, whose two parameters are fitted.

On the command line:

    haltwise train examples/my_family.py:Decays --price 0.02 --horizon 40 --joint.num-steps 300
    haltwise evaluate Decays-act --family examples/my_family.py:Decays
    haltwise diagnose Decays-act --family examples/my_family.py:Decays

Or run this file, a few minutes on one core.
"""

from dataclasses import dataclass
from pathlib import Path

import click
import torch
from torch import Tensor

import haltwise
from haltwise.tasks import TaskFamily
from haltwise.training import train


def misfit(params: Tensor, time: Tensor, signal: Tensor) -> Tensor:
    """Negative log-likelihood of K decays: parameters [K, 2], times and signals [K, N]."""
    height, rate = params.exp().unsqueeze(-1).unbind(1)
    return (signal - height * torch.exp(-rate * time)).square().sum(1) / (2 * 0.1**2)


@dataclass(frozen=True)
class Decays(TaskFamily):
    """Signals a exp(-b t) + noise of .1 at random times; log a and log b are fitted."""

    num_observations: int = 20
    """Times at which a signal is measured."""

    @property
    def dim(self) -> int:
        return 2

    def _sample(self, num_problems: int, generator: torch.Generator) -> haltwise.FunctionBatch:
        shape = (num_problems, self.num_observations)
        time = 3 * torch.rand(shape, generator=generator, dtype=torch.float64)
        truth = 0.5 * torch.randn(num_problems, 2, 1, generator=generator, dtype=torch.float64)
        noise = 0.1 * torch.randn(shape, generator=generator, dtype=torch.float64)
        height, rate = truth.exp().unbind(1)
        signal = height * torch.exp(-rate * time) + noise
        start = torch.zeros(num_problems, 2, dtype=torch.float64)
        return haltwise.FunctionBatch(start, misfit, {"time": time, "signal": signal})


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/decays"))
@click.option("--joint-steps", default=300, show_default=True, help="Update rule and halter.")
@click.option("--halting-steps", default=800, show_default=True, help="The halter alone.")
@click.option(
    "--num-recorded", default=8192, show_default=True, help="Trajectories it learns from."
)
def main(out: Path, joint_steps: int, halting_steps: int, num_recorded: int) -> None:
    """Meta-train an optimizer for decays and fit a thousand others."""
    torch.set_num_threads(1)
    run = train(
        Decays(),
        out,
        price=0.02,
        horizon=40,
        joint={"num_steps": joint_steps},
        halting={"num_steps": halting_steps, "num_recorded": num_recorded},
    )
    problems = Decays().sample(1000, torch.Generator().manual_seed(1))
    solution = haltwise.solve(problems, optimizer=run)
    start = problems.observe_loss(problems.start, 0).mean()
    steps = solution.num_gradients.double()
    click.echo(f"mean loss {start:.2f} at the start, {solution.loss.mean():.2f} at the stop")
    click.echo(f"{steps.mean():.1f} ± {steps.std():.1f} gradients of at most 40")


if __name__ == "__main__":
    main()
