"""`haltwise evaluate`: held-out problems, tuned opponents, a table and the records."""

import json
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console
from rich.table import Table

from haltwise import pretrained, tasks
from haltwise._errors import require
from haltwise.checkpoint import write_atomically
from haltwise.evaluation import Contender
from haltwise.evaluation import evaluate as run_evaluation
from haltwise.evaluation.records import save_record

__all__ = ["evaluate"]


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
    default=4096,
    show_default=True,
    help="Test problems; as many again for tuning.",
)
@click.option(
    "--baseline",
    help="LSTM optimizer without halting: a name, a run, or 'none'.  [default: NAME-lstm if shipped]",
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
@click.option("--threads", type=int, help="CPU threads.  [default: PyTorch's]")
def evaluate(
    run_or_name: str,
    family: str | None,
    price: float | None,
    horizon: int | None,
    seed: int,
    num_problems: int,
    baseline: str | None,
    compare: tuple[str, ...],
    out: Path | None,
    json_path: Path | None,
    threads: int | None,
) -> None:
    """Evaluate RUN_OR_NAME on held-out problems beside tuned opponents.

    J is the excess loss at the stop plus price times cost. Cost is counted in updates applied and
    in gradients evaluated.
    """
    if threads is not None:
        require(threads >= 1, f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    console = Console(stderr=True)
    optimizer = pretrained.load(run_or_name)
    config = optimizer.card["config"]
    require(
        config["posterior"] != "none",
        f"{run_or_name} has no trained halting head (preset {config['preset']}); evaluate a "
        "self-stopping optimizer and name this one with --baseline",
    )
    family_name = family or config["family"]
    label = Path(run_or_name).name if run_or_name not in pretrained.names() else run_or_name
    with console.status("loading") as status:
        evaluation = run_evaluation(
            Contender(label, optimizer),
            tasks.family(family_name),
            family_name=family_name,
            price=config["price"] if price is None else price,
            horizon=config["horizon"] if horizon is None else horizon,
            seed=seed,
            num_problems=num_problems,
            baseline=_baseline(run_or_name, baseline),
            others=tuple(Contender(name, pretrained.load(name)) for name in compare),
            announce=status.update,
        )
    directory = out or (
        Path("runs") / run_or_name if run_or_name in pretrained.names() else _directory(run_or_name)
    )
    path = save_record(evaluation, directory)
    if json_path is not None:
        write_atomically(json_path, (json.dumps(evaluation.summary, indent=1) + "\n").encode())
    Console().print(_table(evaluation.summary))
    click.echo(str(path))


def _directory(run: str) -> Path:
    path = Path(run)
    return path if path.is_dir() else path.parent


def _baseline(run_or_name: str, baseline: str | None) -> Contender | None:
    if baseline == "none":
        return None
    name = f"{run_or_name}-lstm" if baseline is None else baseline
    if baseline is None and name not in pretrained.names():
        return None
    return Contender(name, pretrained.load(name))


def _table(summary: dict[str, Any]) -> Table:
    table = Table(
        title=f"{summary['optimizer']} on {summary['family']}: "
        f"price {summary['price']:g} per step, {summary['num_problems']} held-out problems",
        caption="J = excess loss + price x cost; gain: 1 oracle, 0 best fixed budget",
    )
    table.add_column("stop rule")
    for account in ("updates", "gradients"):
        table.add_column(f"J ({account})", justify="right")
        table.add_column("gain [95 %]", justify="right")
        table.add_column("mean stop", justify="right")
    names = ["rule", "gradient_norm", "plateau", "patience", "logistic", "fixed", "oracle"]
    for name in names:
        row = [name.replace("_", " ")]
        for account in ("updates", "gradients"):
            gain = summary["captured_gain_by_rule"][account].get(name)
            steps = summary["steps"][account].get(name)
            row += [
                f"{summary['j'][account][name]:.4g}",
                f"{gain['value']:.3f} [{gain['low']:.2f}, {gain['high']:.2f}]" if gain else "",
                f"{steps['mean']:.1f}" if steps else f"{summary['fixed_budget']}",
            ]
        table.add_row(*row, style="bold" if name == "rule" else None)
    return table
