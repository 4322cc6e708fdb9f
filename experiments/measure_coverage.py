"""Measure how often the 95 % interval of the captured gain covers the truth.

    python experiments/measure_coverage.py                 # some ten minutes on one core
    python experiments/measure_coverage.py --quick

The truth is the captured gain of a pool of recorded problems, as if it were the whole family;
samples are drawn from the pool with replacement. Beside the jackknife interval of the package
stands the percentile bootstrap that it replaced.
"""

import sys

import torch
from torch import Tensor

from haltwise._core.random import stream
from haltwise.evaluation.statistics import captured_gain, jackknife
from haltwise.models import load
from haltwise.processes import Trajectory
from haltwise.rollout import record
from haltwise.stop_rules import CostUnit, costs, decisions, total_cost
from haltwise.tasks import family

PROBLEMS = {
    "regression-2d": "regression-2d",
    "regression-10d-plain-adam": "regression-10d-plain",
    "regression-10d-noisy-adam": "regression-10d-noisy",
    "quadratic-10d": "quadratic-10d",
}
SIZES = (40, 256, 1024)
NUM_RESAMPLES = 500


def pool_of(name: str, num: int, unit: CostUnit) -> Tensor:
    """J of the shipped rule, of the oracle and of every fixed budget, shape [n, T+3]."""
    model, price = load(name), load(name).card.price
    parts = [
        record(model.rule, family(PROBLEMS[name]).sample(2048, stream(7, "coverage", part)), 60)
        for part in range(num // 2048)
    ]
    whole = Trajectory.join(parts)
    whole = model.halting.attach(whole.select(whole.finite.nonzero().squeeze(1)), price)
    policy = model.policy(unit)
    decided = decisions(policy.rule, whole)
    j = total_cost(whole, decided, unit, policy.returns, price=price).double()
    table = costs(whole.excess.double(), price)
    return torch.column_stack((j, table.amin(1), table))


def gain(means: Tensor) -> Tensor:
    """The captured gain from mean J, [R, T+3] to [R, 1]."""
    return captured_gain(means[:, 2:].amin(1), means[:, 0], means[:, 1]).unsqueeze(1)


def bootstrap(sample: Tensor, generator: torch.Generator) -> tuple[float, float]:
    """The percentile interval."""
    num = len(sample)
    drawn = torch.randint(num, (NUM_RESAMPLES, num), generator=generator)
    weights = torch.zeros(NUM_RESAMPLES, num, dtype=torch.float64)
    weights.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))
    spread = gain(weights @ sample / num).squeeze(1)
    low, high = spread.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def main(*, quick: bool) -> None:
    """Print a row a family, unit and size."""
    num_pool, repeats = (4096, 50) if quick else (32768, 1000)
    print(f"pool of {num_pool}, {repeats} samples; share of 95 % intervals that cover the truth")
    print(f"{'weights':<28}{'unit':<11}{'n':>6}{'jackknife':>11}{'bootstrap':>11}")
    for name in PROBLEMS:
        for unit in CostUnit:
            pool = pool_of(name, num_pool, unit)
            truth = gain(pool.mean(0, keepdim=True)).item()
            for size in SIZES:
                covered = torch.zeros(2)
                generator = stream(0, name, unit.value, size)
                for _ in range(repeats):
                    sample = pool[torch.randint(len(pool), (size,), generator=generator)]
                    (own,) = jackknife(gain, sample)
                    low, high = bootstrap(sample, generator)
                    covered += torch.tensor([own.low <= truth <= own.high, low <= truth <= high])
                share = covered / repeats
                print(f"{name:<28}{unit.value:<11}{size:>6}{share[0]:>11.3f}{share[1]:>11.3f}",
                      flush=True)  # fmt: skip


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(quick="--quick" in sys.argv[1:])
