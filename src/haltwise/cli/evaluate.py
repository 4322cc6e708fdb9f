"""`haltwise evaluate`: held-out problems, tuned opponents, a table and the records."""

import json
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from haltwise._core.errors import require
from haltwise._core.files import write_atomically
from haltwise.cli.options import data_directory, device_option, family_of, joined
from haltwise.cli.options import family_settings as family_settings_option
from haltwise.evaluation import Contender, CostUnit
from haltwise.evaluation import evaluate as run_evaluation
from haltwise.evaluation.records import save_record
from haltwise.models import loading
from haltwise.tasks import label

__all__ = ["evaluate"]

_COORDINATES = 2**18  # of all test problems together, unless told otherwise


@click.command()
@click.argument("run_or_name")
@click.option("--family", help="Family to draw problems from.  [default: the one trained on]")
@click.option(
    "--price", type=float, help="Price of a step, in units of the loss.  [default: the card's]"
)
@click.option("--horizon", type=int, help="Steps allowed.  [default: the card's]")
@click.option("--seed", type=int, default=1000, show_default=True, help="Of the test problems.")
@click.option(
    "--num-problems",
    type=int,
    help="Test problems; as many again for tuning.  [default: 4096, for networks down to 64]",
)
@click.option(
    "--baseline",
    help="LSTM optimizer without halting: a name, a run, or 'none'.  [default: NAME-lstm]",
)
@click.option(
    "--compare",
    multiple=True,
    help="Another self-stopping optimizer to report beside it; may be repeated.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory of the records.  [default: the run, or runs/NAME]",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write the summary here, too."
)
@family_settings_option
@data_directory
@device_option
@click.option("--threads", type=int, help="CPU threads.  [default: PyTorch's]")
def evaluate(
    run_or_name: str,
    family: str | None,
    price: float | None,
    horizon: int | None,
    seed: int,
    num_problems: int | None,
    baseline: str | None,
    compare: tuple[str, ...],
    out: Path | None,
    json_path: Path | None,
    device: torch.device,
    threads: int | None,
    family_settings: dict[str, Any],
) -> None:
    """Evaluate RUN_OR_NAME on held-out problems beside tuned opponents.

    J is the excess loss at the stop plus price times cost. Cost is counted in updates applied and
    in gradients evaluated. Workers started by torchrun share the tuning of learning rates.
    """
    if threads is not None:
        require(threads >= 1, f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    device, workers = joined(device)
    console = Console(stderr=True, quiet=not workers.is_first)
    contender = _contender(run_or_name)
    config = contender.optimizer.card["config"]
    require(
        config["posterior"] != "none",
        f"{run_or_name} has no trained halting head (preset {config['preset']}); evaluate a "
        "self-stopping optimizer and name this one with --baseline",
    )
    family_name = label(family or config["family"])
    drawn = family_of(config, family, family_settings)
    if num_problems is None:
        num_problems = min(4096, max(64, _COORDINATES // drawn.dim))
    with console.status("loading") as status:
        evaluation = run_evaluation(
            contender,
            drawn,
            family_name=family_name,
            price=config["price"] if price is None else price,
            horizon=config["horizon"] if horizon is None else horizon,
            seed=seed,
            num_problems=num_problems,
            baseline=_baseline(run_or_name, baseline),
            others=tuple(map(_contender, compare)),
            device=device,
            workers=workers,
            announce=status.update,
        )
    workers.leave()
    if not workers.is_first:
        return
    path = save_record(evaluation, out or _directory(run_or_name))
    if json_path is not None:
        write_atomically(json_path, (json.dumps(evaluation.summary, indent=1) + "\n").encode())
    for account in CostUnit:
        Console().print(_table(evaluation.summary, account.value))
    click.echo(str(path))


def _contender(name_or_path: str) -> Contender:
    """The optimizer, called by its shipped name or the last part of its path."""
    return Contender(Path(name_or_path).name, loading.load(name_or_path))


def _directory(run_or_name: str) -> Path:
    """Where the records go unless told otherwise."""
    if run_or_name in loading.names():
        return Path("runs") / run_or_name
    return loading.run_directory(run_or_name)


def _baseline(run_or_name: str, baseline: str | None) -> Contender | None:
    if baseline == "none":
        return None
    if baseline is None:
        baseline = f"{run_or_name}-lstm"
        if baseline not in loading.names():
            return None
    contender = _contender(baseline)
    posterior = contender.optimizer.card["config"]["posterior"]
    require(
        posterior == "none",
        f"{baseline} halts by itself (posterior {posterior}), so it is no baseline without "
        "halting; report it beside with --compare, or train one with --preset lstm",
    )
    return contender


def _table(summary: dict[str, Any], account: str) -> Table:
    """J and captured gain of every rule in one account."""
    table = Table(
        title=f"{summary['optimizer']} on {summary['family']}: price {summary['price']:g} per "
        f"step, cost counted in {account}",
        title_justify="left",
        caption="J: excess loss + price x cost. gain: 1 is the oracle, 0 the best fixed budget",
        caption_justify="left",
    )
    table.add_column("stop rule")
    for name in ("J", "gain", "95 % interval", "mean cost", "sd"):
        table.add_column(name, justify="right")
    for name, j in sorted(summary["j"][account].items(), key=lambda item: item[1]):
        gain = summary["captured_gain_by_rule"][account].get(name, {})
        steps = summary["steps"][account].get(name, {"mean": summary["fixed_budget"], "sd": 0})
        table.add_row(
            "learned (this optimizer's)" if name == "rule" else name.replace("_", " "),
            f"{j:.4g}",
            _number(gain.get("value")),
            f"[{_number(gain.get('low'))}, {_number(gain.get('high'))}]" if gain else "",
            f"{steps['mean']:.1f}",
            f"{steps['sd']:.1f}",
            style="bold" if name == "rule" else None,
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
