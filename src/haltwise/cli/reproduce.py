"""`haltwise reproduce`: a whole experiment of the thesis from one command."""

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import final

import click
import torch

from haltwise.cli.options import data_directory, device_option

__all__ = ["reproduce"]


@final
@dataclass(frozen=True)
class _Step:
    """A command of `haltwise`, run in the experiment's directory.

    Attributes:
        arguments: As they are typed.
        product: What the command leaves when it is done, or the run it trains.
        quick: Arguments appended under `--quick`.
    """

    arguments: tuple[str, ...]
    product: str
    quick: tuple[str, ...] = ()


@final
@dataclass(frozen=True)
class _Experiment:
    """Steps, and how long they take all together, full and quick, in words: measured."""

    steps: tuple[_Step, ...]
    full: str
    quick: str


def _settings(**settings: object) -> tuple[str, ...]:
    return tuple(part for name, value in settings.items() for part in ("--set", f"{name}={value}"))


def _train(family: str, name: str, *arguments: str, quick: tuple[str, ...]) -> _Step:
    return _Step(("train", family, *arguments, "--out", name), name, quick)


def _evaluate(product: str, *arguments: str, quick: tuple[str, ...]) -> _Step:
    options = ("--baseline", "lstm", "--seed", "2026", *arguments, "--json", f"{product}.json")
    return _Step(("evaluate", "act", *options), f"{product}.json", quick)


_REPORT = _Step(("report", "act", "--out", "report.html"), "report.html")
_FEW_STEPS = ("--meta-steps", "300")
_SMALL_HEAD = _settings(head_steps=400, num_recorded=4096)
_FEW_PROBLEMS = ("--num-problems", "512")

_TINY_NETWORKS = ("--horizon", "20")
_TINY_RUN = (
    *("--meta-steps", "10", "--batch-size", "2", *_TINY_NETWORKS),
    *_settings(num_validation=4, validate_every=5),
)
_TINY_HEAD = (
    *_TINY_NETWORKS,
    *_settings(num_recorded=32, num_calibration=32, num_validation=8, head_steps=100),
)
_FEW_NETWORKS = ("--num-problems", "32", *_TINY_NETWORKS)


def _networks(
    family: str,
    variants: tuple[str, ...],
    lstm: tuple[str, ...],
    head: tuple[str, ...],
    full: str,
    quick: str,
) -> _Experiment:
    forty = ("--num-problems", "40")
    return _Experiment(
        (
            _train(family, "lstm", "--preset", "lstm", *lstm, quick=_TINY_RUN),
            _train(family, "act", "--rule-from", "lstm", "--meta-steps", "0", *head,
                   quick=_TINY_HEAD),
            _evaluate("evaluation", *forty, quick=_FEW_NETWORKS),
            _evaluate("beyond-the-horizon", *forty, "--horizon", "200",
                      quick=("--num-problems", "32", "--horizon", "40")),
            *(
                _evaluate(variant, *forty, "--family", variant, quick=_FEW_NETWORKS)
                for variant in variants
            ),
            _REPORT,
        ),
        full,
        quick,
    )  # fmt: skip


_EXPERIMENTS: Mapping[str, _Experiment] = MappingProxyType(
    {
        "regression": _Experiment(
            (
                _train("regression-2d", "lstm", "--preset", "lstm", "--meta-steps", "2000",
                       quick=_FEW_STEPS),
                _train("regression-2d", "act", "--meta-steps", "2000",
                       quick=(*_FEW_STEPS, *_SMALL_HEAD)),
                _train("regression-2d", "thesis", "--preset", "thesis", "--meta-steps", "2000",
                       quick=_FEW_STEPS),
                *(
                    _evaluate(f"price-{price}", "--price", price, "--compare", "thesis",
                              quick=_FEW_PROBLEMS)
                    for price in ("0.0101", "0.0527", "0.3466")
                ),
                _REPORT,
            ),
            "about 25 minutes on a CPU",
            "about 5 minutes on a CPU",
        ),
        "mnist": _networks(
            "mnist-mlp",
            ("mnist-mlp-relu", "mnist-mlp-40", "mnist-mlp-2layer"),
            (),
            _settings(head_steps=2500, validate_every=250, num_validation=64),
            "an hour with a GPU, most of it to tune the opponents; days on a CPU",
            "about 15 minutes on a CPU",
        ),
        "cifar10": _networks(
            "cifar10-cnn",
            ("cifar-2", "cifar-5"),
            ("--meta-steps", "1250", *_settings(num_validation=8)),
            _settings(
                head_steps=1500,
                validate_every=250,
                num_validation=16,
                num_recorded=160,
                num_calibration=64,
            ),
            "hours with a GPU, most of it to tune the opponents",
            "about an hour on a CPU",
        ),
    }
)  # fmt: skip


@click.command()
@click.argument("experiment", type=click.Choice(list(_EXPERIMENTS)))
@click.option("--quick", is_flag=True, help="Everything on a small scale, to see that it works.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory of runs, records and report.  [default: runs/reproduce-EXPERIMENT]",
)
@click.option("--dry-run", is_flag=True, help="Print the commands and run none.")
@data_directory
@device_option
@click.option("--threads", type=int, help="CPU threads.  [default: PyTorch's]")
def reproduce(
    experiment: str,
    quick: bool,
    out: Path | None,
    dry_run: bool,
    data_dir: Path | None,
    device: torch.device,
    threads: int | None,
) -> None:
    """Train, evaluate and report a whole EXPERIMENT of the thesis.

    Every step is a command of its own and is printed before it runs. What is done already is
    skipped and a training that was interrupted goes on, so the same command resumes it all.
    """
    plan = _EXPERIMENTS[experiment]
    directory = out or Path("runs") / f"reproduce-{experiment}"
    click.echo(f"{experiment} takes {plan.quick if quick else plan.full}.", err=True)
    computing = ["--device", str(device), *(["--threads", str(threads)] if threads else [])]
    if data_dir is not None:
        computing += ["--data-dir", str(data_dir.absolute())]
    for number, step in enumerate(plan.steps, start=1):
        command = _command(step, directory, computing, quick=quick)
        typed = shlex.join(["haltwise", *command]) if command else f"{step.product} is there"
        click.echo(f"[{number}/{len(plan.steps)}] {typed}", err=True)
        if command and not dry_run:
            directory.mkdir(parents=True, exist_ok=True)
            call = [sys.executable, "-m", "haltwise", *command]
            done = subprocess.run(call, cwd=directory, check=False)  # noqa: S603
            if done.returncode:
                sys.exit(done.returncode)
    click.echo(str(directory / "report.html"))


def _command(
    step: _Step, directory: Path, computing: Sequence[str], *, quick: bool
) -> list[str] | None:
    """What is to be run in the directory, None if it was."""
    product = directory / step.product
    kind, *_ = step.arguments
    if kind == "train" and (product / "config.json").exists():
        return ["train", "--resume", step.product, *computing]
    if kind != "train" and product.exists():
        return None
    arguments = [*step.arguments, *(step.quick if quick else ())]
    return arguments if kind == "report" else [*arguments, *computing]
