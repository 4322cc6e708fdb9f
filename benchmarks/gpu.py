"""How fast Haltwise is on a GPU: steps, meta-gradients and solving, with peers beside, as a table.

Meta-gradients are those of `workloads.py`; what moves parameters is the shipped LSTM of two layers
of 20 units, and in steps the rule `mlp` of `small-networks`, too. Times are medians of rounds after
a warm-up, with the GPU waited for. Each section first checks what it times against float64.
"""

import os
import platform
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any, NamedTuple

os.environ.setdefault("JAX_PLATFORMS", "cuda,cpu")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import click
import torch
import workloads
from naive import NaiveOptimizer
from torch import Tensor, nn
from workloads import Workload

import haltwise
from haltwise._core.random import stream
from haltwise._kernels import Coordinatewise, fused
from haltwise.interfaces.torch_optim import LearnedOptimizer
from haltwise.rollout import CapturedUnroll
from haltwise.tasks import family

Way = Callable[[], object]
DEVICE = torch.device("cuda", 0)
ROUNDS = 5
AGREEMENT = 2e-6  # relative, of float32 on the GPU with float64


class Row(NamedTuple):
    """A measurement."""

    what: str
    way: str
    milliseconds: float
    note: str = ""


@contextmanager
def _plain() -> Iterator[None]:
    """Without the fused kernels."""
    before = os.environ.get("HALTWISE_KERNEL", "")
    os.environ["HALTWISE_KERNEL"] = "plain"
    try:
        yield
    finally:
        os.environ["HALTWISE_KERNEL"] = before


def timed(run: Way, rounds: int = ROUNDS) -> float:
    """Milliseconds of a call, the median of `rounds` after two that warm up."""
    times = []
    for number in range(rounds + 2):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        torch.cuda.synchronize()
        if number >= 2:
            times.append(time.perf_counter() - started)
    return 1e3 * median(times)


def attempt(what: str, way: str, make: Callable[[], Way], rounds: int = ROUNDS) -> Row:
    """The time of what `make` makes, or why there is none: one failure must not hide the rest."""
    try:
        return Row(what, way, timed(make(), rounds))
    except (RuntimeError, ValueError, ImportError, AssertionError) as error:
        return Row(what, way, float("nan"), f"{type(error).__name__}: {str(error)[:300]}")


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Of the whole tensor."""
    return float((found.double() - exact).norm() / exact.norm().clamp_min(1e-30))


# --- Meta-gradients ------------------------------------------------------------------------------

SHAPES = (  # problems, coordinates, steps; layers, units, inputs, outputs
    ((3, 7, 4), (2, 20, 4, 4)),
    ((128, 2, 100), (2, 20, 4, 4)),
    ((1, 4000, 20), (2, 20, 4, 4)),
)


def check_backward(sizes: tuple[int, int, int], kind: tuple[int, int, int, int]) -> float:
    """Largest relative error of a derivative of T steps, against autograd in float64."""
    problems, dim, steps = sizes
    layers, size, inputs, outputs = kind
    generator = torch.Generator().manual_seed(dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(DEVICE)

    fan_in = [inputs, *[size] * (layers - 1)]
    weights = [normal(4 * size, n + size) * (size + n) ** -0.5 for n in fan_in]
    biases = [0.3 * normal(4 * size) for _ in fan_in]
    readout = 0.3 * normal(outputs, size), 0.3 * normal(outputs)
    grads = normal(problems, steps, dim) * 10 ** (2 * normal(problems, steps, 1))
    shape = problems, dim, layers, size
    given = grads, normal(*shape).tanh(), normal(*shape), normal(problems, steps, dim)
    d_state = normal(problems, steps, size), normal(*shape), normal(*shape)
    results = []
    for dtype in (torch.float32, torch.float64):
        of, to = ([v.to(dtype) for v in values] for values in ((*given, *d_state), readout))
        own = ([value.to(dtype) for value in values] for values in (weights, biases))
        optimizer = Coordinatewise(*own, *to, 0.7)
        d_first, d_params = optimizer.backpropagate(*of, wants_state=True)
        results.append(d_first + d_params)
    return max(relative_error(one, other) for one, other in zip(*results, strict=True))


def check_meta_gradient(name: str) -> float:
    """Largest relative difference of a captured meta-gradient from that taken step by step."""
    settings: dict[str, Any] = {"num_steps": 10, "segment": 4, "device": DEVICE}
    plain, own = (workloads.make(name, **settings) for _ in range(2))
    workloads.meta_gradient(plain)
    run = workloads.estimator(own)
    for _ in range(3):  # captured, and twice replayed
        run()
    pairs = zip(own.optimizer.parameters(), plain.optimizer.parameters(), strict=True)
    return max(relative_error(one.grad, other.grad.double()) for one, other in pairs)


def _step_by_step(workload: Workload) -> Way:
    def run() -> None:
        workloads.zero_grad(workload)
        workloads.meta_gradient(workload)

    return run


def _naive(workload: Workload) -> Way:
    optimizer = NaiveOptimizer(workload).to(DEVICE)

    def run() -> None:
        optimizer.zero_grad()
        optimizer.meta_gradient()

    return run


def _parts(workload: Workload) -> Iterator[Row]:
    """The two graphs of a captured meta-gradient by themselves."""
    captured = CapturedUnroll(
        workload.optimizer, workload.num_steps, workload.segment, truncate=workload.truncates
    )
    batch, price = workload.batch, workload.price
    yield attempt(workload.name, "  of it the unroll", lambda: lambda: captured(batch, price))
    unrolled = captured(batch, price)
    trajectory = unrolled.trajectory
    excess = torch.randn_like(trajectory.excess)
    outputs = {name: torch.randn_like(value) for name, value in trajectory.outputs.items()}
    yield attempt(
        workload.name,
        "  of it the backward pass",
        lambda: lambda: captured.backpropagate(unrolled, excess, outputs),
    )


def meta_gradient_rows(*, jax: bool) -> Iterator[Row]:
    """W1 to W3: captured, step by step, without fused kernels, naive, and a JAX scan."""
    for sizes, kind in SHAPES:
        error = check_backward(sizes, kind)
        note = f"relative error {error:.1e}" + " TOO LARGE" * (error > AGREEMENT)
        yield Row(f"backward of {sizes}", f"layers, units, inputs, outputs {kind}", 0.0, note)
    for name in workloads.NAMES:
        error = check_meta_gradient(name)
        yield Row(name, "captured and step by step", 0.0, f"relative difference {error:.1e}")
    for name in workloads.NAMES:
        workload = workloads.make(name, device=DEVICE)
        yield attempt(name, "haltwise, captured", lambda w=workload: workloads.estimator(w))
        yield from _parts(workload)
        yield attempt(name, "haltwise, step by step", lambda w=workload: _step_by_step(w))
        with _plain():
            yield attempt(name, "plain, captured", lambda w=workload: workloads.estimator(w))
        yield attempt(name, "naive", lambda w=workload: _naive(w), 2)
    if jax:
        for name in workloads.NAMES:
            yield attempt(name, "JAX scan", lambda n=name: _jax(n))


def _jax(name: str) -> Way:
    import jax_scan

    return jax_scan.meta_gradient(workloads.make(name), checkpoint=False)


# --- One step ------------------------------------------------------------------------------------

CALLS = 8  # steps of a round, one behind the other; few, for the trained horizon ends


def _repeated(step: Way) -> Way:
    def run() -> None:
        for _ in range(CALLS):
            step()

    return run


def _per_call(row: Row) -> Row:
    return row._replace(milliseconds=row.milliseconds / CALLS)


def _transformer() -> list[nn.Parameter]:
    """18.9 million parameters in 72 tensors."""
    layer = nn.TransformerEncoderLayer(512, 8, 2048)
    return list(nn.TransformerEncoder(layer, 6, enable_nested_tensor=False).to(DEVICE).parameters())


def _vector(num_params: int) -> list[nn.Parameter]:
    return [nn.Parameter(torch.randn(num_params, device=DEVICE))]


def check_step(weights: str) -> float:
    """Largest relative error of three steps' updates and states, against float64 on the CPU."""
    generator = torch.Generator().manual_seed(3)
    grads = [0.1 * torch.randn(5000, generator=generator) for _ in range(3)]
    states = []
    for device, dtype in ((DEVICE, torch.float32), (torch.device("cpu"), torch.float64)):
        param = nn.Parameter(torch.zeros(5000, device=device, dtype=dtype))
        optimizer = LearnedOptimizer([param], weights)
        for number, grad in enumerate(grads):
            param.grad = grad.to(device, dtype)
            optimizer.step(loss=1.0 - 0.1 * number)
        states.append({"param": param.detach().cpu(), **optimizer.state[param]})
    names = ["param", "signals.update", *(name for name in states[0] if name.startswith("rule."))]
    return max(relative_error(states[0][name].cpu(), states[1][name]) for name in names)


def _falling(optimizer: LearnedOptimizer) -> Way:
    """Steps whose loss falls: as long as it does, Adam does not take over."""
    loss = torch.ones((), device=DEVICE)
    return lambda: optimizer.step(loss=loss.mul_(0.98))


def _peak(step: Way, num_params: int) -> str:
    """Memory that a step takes above what is held, in bytes a parameter."""
    step()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    above = torch.cuda.max_memory_allocated() - before
    return f"{above / num_params:.2f} bytes a parameter above the state"


def step_rows() -> Iterator[Row]:
    """One step with its loss: the learned optimizer, and Adam and a copy of the state beside."""
    for weights in ("mnist-mlp", "small-networks"):
        error = check_step(weights)
        note = f"relative error {error:.1e}" + " TOO LARGE" * (error > AGREEMENT)
        yield Row(f"three steps of {weights}", "beside float64", 0.0, note)
    for what, make in (
        ("1 M parameters", lambda: _vector(1_000_000)),
        ("18.9 M in 72 tensors", _transformer),
        ("50 M parameters", lambda: _vector(50_000_000)),
    ):
        params = make()
        num_params = sum(param.numel() for param in params)
        for param in params:
            param.grad = 0.1 * torch.randn_like(param)
        for way, options in (
            ("haltwise", {}),
            ("haltwise, unguarded", {"guard": False}),
            ("haltwise, bfloat16 state", {"state_dtype": torch.bfloat16}),
            ("haltwise, small-networks", {"weights": "small-networks"}),
        ):
            settings: dict[str, Any] = {"weights": "mnist-mlp", "lr": 1e-6} | options
            step = _falling(LearnedOptimizer(params, **settings))
            row = _per_call(attempt(what, way, lambda run=step: _repeated(run), 3))
            yield row._replace(note=row.note or _peak(step, num_params))
            del step
        for way, adam in (("fused", {"fused": True}), ("foreach", {"foreach": True})):
            own = torch.optim.Adam(params, lr=1e-9, **adam)
            yield _per_call(attempt(what, f"Adam, {way}", lambda o=own: _repeated(o.step), 3))
            del own
        state = torch.zeros(num_params, 80, device=DEVICE)
        other = torch.empty_like(state)
        yield _per_call(
            attempt(
                what,
                "copying its state once",
                lambda o=other, s=state: _repeated(lambda: o.copy_(s)),
                3,
            )
        )
        del state, other, params, param
    naive = NaiveOptimizer(workloads.make("W3", num_hidden=1, device=DEVICE)).to(DEVICE)
    size = naive.cells[0].hidden_size
    zeros = torch.zeros(1_000_000, size, device=DEVICE)
    grad = torch.randn(1, 1_000_000, device=DEVICE)

    def cells() -> None:
        with torch.no_grad():
            naive.update(grad, [(zeros, zeros) for _ in naive.cells])

    yield _per_call(attempt("1 M parameters", "naive LSTM", lambda: _repeated(cells), 3))


# --- Solving -------------------------------------------------------------------------------------


def solve_rows() -> Iterator[Row]:
    """`haltwise.solve` of many regressions."""
    for num in (4096, 200_000):
        yield attempt(f"solve of {num:,}", "haltwise", partial(_solving, num), 3)


def _solving(num_problems: int) -> Way:
    model = haltwise.load("regression-10d").to(DEVICE)
    batch = family("regression-10d").sample(num_problems, stream(7), device=DEVICE)
    return lambda: haltwise.solve(batch, model)


# --- Where the time goes -------------------------------------------------------------------------

MOST_KERNELS = 25  # that a table shows of a run


def kernel_rows() -> Iterator[Row]:
    """Kernels of meta-gradients and of a `solve`, by the time that each takes."""
    ways = [(name, partial(_captured, name)) for name in workloads.NAMES]
    for what, make in (*ways, ("solve of 4,096", partial(_solving, 4096))):
        yield attempt(what, "whole", make)
        try:
            yield from _kernels(what, make())
        except RuntimeError as error:
            yield Row(what, "kernels", float("nan"), str(error)[:300])


def _captured(name: str) -> Way:
    return workloads.estimator(workloads.make(name, device=DEVICE))


def _kernels(what: str, run: Way) -> list[Row]:
    """Kernels of a call after three that warm up, those that take longest first."""
    for _ in range(3):
        run()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    events = sorted(profile.key_averages(), key=lambda event: -event.self_device_time_total)
    rows = [
        Row(what, f"  {event.key[:70]}", event.self_device_time_total / 1e3, f"{event.count} times")
        for event in events
    ]
    number = sum(event.count for event in events)
    return [
        Row(what, "kernels", sum(row.milliseconds for row in rows), f"{number} times"),
        *rows[:MOST_KERNELS],
    ]


# --- All of it -----------------------------------------------------------------------------------


def machine() -> str:
    """Device, driver and versions, in one line."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, check=True)  # noqa: S603
        driver = found.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return (
        f"{torch.cuda.get_device_name(DEVICE)}, driver {driver}, CUDA {torch.version.cuda}, "
        f"torch {torch.__version__}, Python {platform.python_version()}; "
        f"{fused.implementation(DEVICE)}"
    )


@click.command()
@click.option(
    "--section",
    "sections",
    type=click.Choice(("step", "meta-gradient", "solve", "kernels")),
    multiple=True,
    default=("step", "meta-gradient", "solve"),
    show_default=True,
    help="What is measured, as often as wanted; `kernels` tells where the time goes.",
)
@click.option("--jax/--no-jax", default=True, help="Whether a JAX scan runs beside, if installed.")
def main(sections: tuple[str, ...], jax: bool) -> None:
    """Measure everything on the first GPU, in a few minutes, and print a table."""
    click.echo(machine())
    click.echo("\n| | way | ms | |\n|---|---|---|---|")
    rows = {
        "step": step_rows,
        "solve": solve_rows,
        "meta-gradient": lambda: meta_gradient_rows(jax=jax),
        "kernels": kernel_rows,
    }
    for section in sections:
        for what, way, milliseconds, note in rows[section]():
            click.echo(f"| {what} | {way} | {milliseconds:.3g} | {note} |")


if __name__ == "__main__":
    main()
