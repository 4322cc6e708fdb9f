"""Ways to solve the same problems, timed in turns and judged at equal accuracy.

A way that takes problems one by one is timed on the first of them, and its time scaled up to all.
With one thread seconds are those of the processor, so that other programs hardly matter, and with
more those of the clock.
Accuracy is the excess of a loss over the least that anything found: its mean and 99th percentile.
What is reported is the median over rounds, and of ratios within a round, so that a slow minute of
the machine is the same for all.
"""

import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import click
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Way(NamedTuple):
    """One way to solve the first `number` problems: returns parameters [number, D]."""

    name: str
    solve: Callable[[int], Array]
    number: int


class Result(NamedTuple):
    """What a way took and reached."""

    name: str
    seconds: float
    ratio: float
    """Median of its time over ours."""
    mean: float
    p99: float
    worst: float
    number: int


def _use_threads(number: int) -> None:
    """Restrict the process to so many cores, before a library counts them."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-number:])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(number)
    import torch

    torch.set_num_threads(number)


def _race(
    ways: Sequence[Way],
    total: int,
    rounds: int,
    losses: Callable[[Array], Array],
    clock: Callable[[], float],
) -> list[Result]:
    """Time all ways in turns, after a warm-up.

    Args:
        ways: The first of them is ours.
        total: Problems; times are scaled to as many.
        rounds: Of measurement.
        losses: From parameters [number, D] to the losses of the first `number` problems.
        clock: What seconds are read from.
    """
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    reached: dict[str, Array] = {}
    for turn in range(rounds + 1):
        for way in ways:
            started = clock()
            params = way.solve(way.number)
            if turn:
                seconds[way.name].append((clock() - started) * total / way.number)
            reached[way.name] = losses(params)
    least = np.full(total, np.inf)
    for loss in reached.values():
        least[: len(loss)] = np.fmin(least[: len(loss)], loss)
    results = []
    for way in ways:
        loss = reached[way.name]
        excess = np.where(np.isfinite(loss), loss - least[: len(loss)], np.inf)
        ratios = [
            theirs / ours
            for theirs, ours in zip(seconds[way.name], seconds[ways[0].name], strict=True)
        ]
        results.append(
            Result(
                way.name,
                median(seconds[way.name]),
                median(ratios),
                float(excess.mean()),
                float(np.quantile(excess, 0.99)),
                float(excess.max()),
                way.number,
            )
        )
    return results


def command(
    use: str, ways: Callable[[int, int], tuple[list[Way], Callable[[Array], Array]]], default: int
) -> None:
    """The command line of a use.

    Args:
        use: Its name.
        ways: From problems and threads to the ways, ours first, and the losses of parameters.
        default: Problems.
    """

    @click.command()
    @click.option("--problems", default=default, show_default=True)
    @click.option("--threads", default=1, show_default=True)
    @click.option("--rounds", default=5, show_default=True)
    @click.option("--out", default="runs/uses", type=click.Path(path_type=Path), show_default=True)
    def main(problems: int, threads: int, rounds: int, out: Path) -> None:
        _use_threads(threads)
        contestants, losses = ways(problems, threads)
        clock = time.process_time if threads == 1 else time.perf_counter
        results = _race(contestants, problems, rounds, losses, clock)
        _report(use, threads, problems, results, out)

    main()


def _report(use: str, threads: int, total: int, results: Sequence[Result], out: Path) -> None:
    """Print a table and write it as JSON."""
    print(f"{use}: {total:,} problems, {threads} thread{'s' * (threads > 1)}")  # noqa: T201
    print(f"{'':34}{'s':>9}{'x ours':>9}{'mean':>10}{'p99':>10}{'max':>10}{'timed':>9}")  # noqa: T201
    for row in results:
        print(  # noqa: T201
            f"{row.name:34}{row.seconds:9.2f}{row.ratio:9.2f}{row.mean:10.1e}{row.p99:10.1e}"
            f"{row.worst:10.1e}{row.number:9,}"
        )
    out.mkdir(parents=True, exist_ok=True)
    found = {
        "use": use,
        "threads": threads,
        "problems": total,
        "machine": platform.processor() or platform.machine(),
        "results": [row._asdict() for row in results],
    }
    path = out / f"{use}-{threads}.json"
    path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
