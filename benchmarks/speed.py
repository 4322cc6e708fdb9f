"""How fast Haltwise meta-trains and moves parameters: a Markdown table, a JSON file and a plot.

Ways of the same meta-gradient run in turn in one process, A B C A B C ..., and are compared round
by round: on a machine that is shared, a ratio's median holds where seconds do not. Peak memory is
that of a process of its own, above what it held before.
"""

import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median, quantiles
from typing import Any, NamedTuple

import click
import torch
import workloads
from naive import NaiveOptimizer
from torch import nn
from workloads import Workload

from haltwise._kernels import implementation
from haltwise.interfaces.torch_optim import LearnedOptimizer

Way = Callable[[], object]
STEPS = ("W4", "W5")  # workloads of single steps
AGREEMENT = 1e-6  # relative, of ten steps in double precision: later ones amplify rounding


@contextmanager
def _plain() -> Iterator[None]:
    """Without the compiled kernel."""
    before = os.environ.get("HALTWISE_KERNEL", "")
    os.environ["HALTWISE_KERNEL"] = "plain"
    try:
        yield
    finally:
        os.environ["HALTWISE_KERNEL"] = before


def _haltwise(workload: Workload, *, plain: bool = False) -> Way:
    def run() -> None:
        workloads.zero_grad(workload)
        if plain:
            with _plain():
                workloads.meta_gradient(workload)
        else:
            workloads.meta_gradient(workload)

    return run


def _naive(workload: Workload) -> Way:
    optimizer = NaiveOptimizer(workload)

    def run() -> None:
        optimizer.zero_grad()
        optimizer.meta_gradient()

    return run


def ways(workload: Workload) -> dict[str, Way]:
    """All ways to a workload's meta-gradient, the naive one first."""
    found = {
        "naive": _naive(workload),
        "plain PyTorch": _haltwise(workload, plain=True),
        "haltwise": _haltwise(workload),
    }
    try:
        import jax_scan
    except ImportError:
        return found
    found["JAX scan"] = jax_scan.meta_gradient(workload, checkpoint=False)
    found["JAX scan, checkpointed"] = jax_scan.meta_gradient(workload, checkpoint=True)
    return found


def check(name: str) -> float:
    """The largest relative difference of any weight's gradient from the naive one's.

    Raises:
        AssertionError: It is too large.
    """
    workload = workloads.make(name, num_steps=10, segment=4, dtype=torch.float64)
    naive = NaiveOptimizer(workload)
    naive.meta_gradient()
    worst = 0.0
    for plain in (True, False):
        _haltwise(workload, plain=plain)()
        own = [weight.grad for weight in workload.optimizer.parameters()]
        for one, other in zip(own, naive.gradients(), strict=True):
            assert one is not None
            worst = max(worst, ((one - other).norm() / other.norm().clamp_min(1e-12)).item())
    assert worst <= AGREEMENT, f"{name}: the naive gradient differs by {worst:.1e}"
    return worst


class Timing(NamedTuple):
    """Seconds of one way, and how many times faster than the first it is."""

    seconds: float
    ratio: float
    quartiles: tuple[float, float]


def compare(ways: dict[str, Way], rounds: int) -> dict[str, Timing]:
    """Medians of `rounds` rounds after one that warms up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            started = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - started)
    first = next(iter(seconds.values()))
    found = {}
    for name, own in seconds.items():
        ratios = [one / other for one, other in zip(first, own, strict=True)]
        low, _, high = quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        found[name] = Timing(median(own), median(ratios), (low, high))
    return found


def _peak() -> float:
    """Of this process, in MiB; `ru_maxrss` would count what its parent held, too."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return int(re.search(r"VmHWM:\s*(\d+)", status.read_text())[1]) / 1024


def _own_memory(name: str, segment: int, way: str) -> float:
    """In a process of its own: peak of one meta-gradient above what came before it, in MiB."""
    torch.set_num_threads(1)
    small = workloads.make(name, num_steps=2, segment=1, num_hidden=1)  # loads all libraries
    (_naive(small) if way == "naive" else _haltwise(small, plain=way != "haltwise"))()
    workload = workloads.make(name, segment=segment)
    run = _naive(workload) if way == "naive" else _haltwise(workload, plain=way != "haltwise")
    before = _peak()
    run()
    return _peak() - before


def memory(name: str, segment: int, way: str) -> float:
    """Peak memory in MiB, measured in a new process."""
    command = [sys.executable, __file__, "--memory-of", f"{name},{segment},{way}"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    return float(done.stdout)


# --- One step of a million parameters ------------------------------------------------------------


def step_ways(num_params: int) -> dict[str, Way]:
    """W4: ways to move `num_params` parameters once, the naive one first."""
    workload = workloads.make("W3", num_hidden=1)
    naive, rule = NaiveOptimizer(workload), workload.optimizer.rule
    weight = nn.Parameter(0.1 * torch.randn(num_params, generator=torch.Generator().manual_seed(0)))
    weight.grad = weight.detach().clone()
    size, fan_in = rule.hidden_size, [4, rule.hidden_size]
    states = [(torch.zeros(num_params, size), torch.zeros(num_params, size)) for _ in range(2)]

    def cells() -> None:
        nonlocal states
        with torch.no_grad():
            _, _, states = naive.update(weight.grad.unsqueeze(0), states)

    matrices = [torch.randn(width + size, 4 * size) for width in fan_in]
    chunk = 10_000
    operands = [torch.randn(chunk, width + size) for width in fan_in]

    def products() -> None:
        for _ in range(num_params // chunk):
            for operand, matrix in zip(operands, matrices, strict=True):
                torch.mm(operand, matrix)

    adam = torch.optim.Adam([weight], lr=1e-9, fused=True)

    return {
        "naive LSTM": cells,
        "plain PyTorch": _step([weight], workload.optimizer, plain=True),
        "haltwise": _step([weight], workload.optimizer),
        "default weights, plain PyTorch": _step([weight], "small-networks", plain=True),
        "default weights": _step([weight], "small-networks"),
        "GEMM floor": products,
        "fused Adam": adam.step,
    }


def module_ways() -> dict[str, Way]:
    """W5: ways to move a transformer of 200,000 parameters in 72 tensors once, Adam first."""
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
    params = [*nn.TransformerEncoder(layer, 6, enable_nested_tensor=False).parameters()]
    generator = torch.Generator().manual_seed(0)
    for param in params:
        param.grad = 0.1 * torch.randn(param.shape, generator=generator)
    return {
        "Adam": torch.optim.Adam(params, lr=1e-9).step,
        "fused Adam": torch.optim.Adam(params, lr=1e-9, fused=True).step,
        "default weights, plain PyTorch": _step(params, "small-networks", plain=True),
        "default weights": _step(params, "small-networks"),
        "default weights, after their horizon": _step(params, "small-networks", num_before=101),
        "mnist-mlp": _step(params, "mnist-mlp"),
    }


def _step(
    params: list[nn.Parameter], weights: Any, *, plain: bool = False, num_before: int = 0
) -> Way:
    """A step of a learned optimizer that has taken some."""
    optimizer = LearnedOptimizer(params, weights)

    def step() -> None:
        with _plain() if plain else nullcontext():
            optimizer.step()

    for _ in range(num_before):
        step()
    return step


# --- Scaling -------------------------------------------------------------------------------------

SCALING: dict[str, tuple[str, str, tuple[int, ...]]] = {
    "steps": ("W1", "num_steps", (25, 50, 100, 200)),
    "problems": ("W2", "num_problems", (32, 128, 512)),
    "parameters": ("W3", "num_hidden", (5, 20, 80)),
}


def scale(rounds: int) -> list[dict[str, Any]]:
    """Seconds of Haltwise and of the naive way as a workload grows, and with threads."""
    rows = []
    for what, (name, argument, values) in SCALING.items():
        for value in values:
            settings: dict[str, Any] = {argument: value}
            workload = workloads.make(name, **settings)
            found = compare({"naive": _naive(workload), "haltwise": _haltwise(workload)}, rounds)
            for way, timing in found.items():
                size = workload.batch.dim if what == "parameters" else value
                rows.append({"what": what, "workload": name, "size": size, "way": way})
                rows[-1] |= timing._asdict()
    workload = workloads.make("W3", num_steps=20)
    learned = _haltwise(workload)

    def on(threads: int) -> Way:
        def run() -> None:
            torch.set_num_threads(threads)
            learned()
            torch.set_num_threads(1)

        return run

    for way, timing in compare({f"{n}": on(n) for n in (1, 2)}, rounds).items():
        rows.append({"what": "threads", "workload": "W3", "size": int(way), "way": "haltwise"})
        rows[-1] |= timing._asdict()
    return rows


# --- Writing -------------------------------------------------------------------------------------


def _markdown(results: dict[str, Any]) -> str:
    lines = [f"Measured on {results['machine']}; {results['implementation']}.", ""]
    lines += ["| | way | seconds | times faster (quartiles) |", "|---|---|---|---|"]
    for name, found in results["times"].items():
        for way, (seconds, ratio, (low, high)) in found.items():
            lines.append(f"| {name} | {way} | {seconds:.4g} | {ratio:.2f} ({low:.2f}-{high:.2f}) |")
    if results["memory"]:
        lines += ["", "| peak memory | truncation | MiB above baseline |", "|---|---|---|"]
        for row in results["memory"]:
            lines.append(
                f"| {row['workload']} {row['way']} | {row['segment']} | {row['mib']:.0f} |"
            )
    if results["scaling"]:
        lines += ["", "| scaling | size | way | seconds | times faster |", "|---|---|---|---|---|"]
        for row in results["scaling"]:
            where = f"{row['workload']} {row['what']}"
            lines.append(
                f"| {where} | {row['size']} | {row['way']} | {row['seconds']:.4g} | "
                f"{row['ratio']:.2f} |"
            )
    return "\n".join(lines) + "\n"


def _plot(results: dict[str, Any], path: Path) -> None:
    from plotly.subplots import make_subplots

    figure = make_subplots(1, len(SCALING), subplot_titles=list(SCALING), y_title="seconds")
    for column, what in enumerate(SCALING, start=1):
        for way in ("naive", "haltwise"):
            rows = [r for r in results["scaling"] if (r["what"], r["way"]) == (what, way)]
            figure.add_scatter(
                x=[row["size"] for row in rows],
                y=[row["seconds"] for row in rows],
                name=way,
                showlegend=column == 1,
                line_color="#888" if way == "naive" else "#1f77b4",
                row=1,
                col=column,
            )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    figure.update_layout(title="One meta-gradient, forward and backward", template="simple_white")
    figure.write_html(path)


def _ways(name: str, num_params: int) -> dict[str, Way]:
    if name in STEPS:
        return step_ways(num_params) if name == "W4" else module_ways()
    return ways(workloads.make(name))


@click.command()
@click.option("--rounds", default=9, show_default=True)
@click.option("--workload", "names", multiple=True, default=(*workloads.NAMES, *STEPS))
@click.option("--num-params", default=1_000_000, show_default=True, help="Of W4.")
@click.option("--scaling/--no-scaling", default=True)
@click.option("--measure-memory/--no-memory", default=True)
@click.option("--out", default="runs/bench", type=click.Path(path_type=Path), show_default=True)
@click.option("--memory-of", hidden=True)
def main(
    rounds: int,
    names: tuple[str, ...],
    num_params: int,
    scaling: bool,
    measure_memory: bool,
    out: Path,
    memory_of: str | None,
) -> None:
    """Measure speed and memory; write table, JSON and plot."""
    if memory_of is not None:
        name, segment, way = memory_of.split(",")
        click.echo(_own_memory(name, int(segment), way))
        return
    torch.set_num_threads(1)
    # Vanishing gradients make the naive way up to four times slower on some processors: not ours to
    # count. Haltwise needs no such setting, JAX makes it by itself.
    torch.set_flush_denormal(True)
    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, one thread",
        "torch": torch.__version__,
        "implementation": implementation(),
        "agreement": {name: check(name) for name in names if name not in STEPS},
        "times": {},
        "memory": [],
        "scaling": [],
    }
    for name in names:
        results["times"][name] = compare(_ways(name, num_params), rounds)
        click.echo(
            f"{name}: " + str({k: round(v.ratio, 2) for k, v in results["times"][name].items()})
        )
    if measure_memory:
        for segment in (20, 100):
            for way in ("naive", "plain PyTorch", "haltwise"):
                mib = memory("W3", segment, way)
                results["memory"].append(
                    {"workload": "W3", "segment": segment, "way": way, "mib": mib}
                )
    if scaling:
        results["scaling"] = scale(max(1, rounds // 2))
    out.mkdir(parents=True, exist_ok=True)
    (out / "speed.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    (out / "speed.md").write_text(_markdown(results), encoding="utf-8")
    if scaling:
        _plot(results, out / "speed.html")
    click.echo(_markdown(results))


if __name__ == "__main__":
    main()
