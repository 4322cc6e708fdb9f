"""`haltwise evaluate`: held-out problems, tuned baselines, a table and the record."""

from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from haltwise._core.errors import require
from haltwise.cli.options import (
    data_directory,
    device_option,
    family_name,
    family_of,
    family_settings,
    joined,
    model_name,
    own_classes,
    threads_option,
)
from haltwise.cli.printing import print_table, write_json
from haltwise.evaluation import evaluate as run_evaluation
from haltwise.evaluation.records import save_evaluation
from haltwise.models import loading
from haltwise.report.stopping import rules_table, sentences

__all__ = ["evaluate"]

_COORDINATES = 2**18  # of all test problems together, unless told otherwise


@click.command()
@click.argument("run_or_name")
@click.option("--family", help="Family to draw problems from.  [default: the one trained on]")
@click.option(
    "--price", type=float, help="Price of a step, in units of the loss.  [default: the card's]"
)
@click.option("--horizon", type=int, help="Steps allowed.  [default: the card's]")
@click.option("--seed", type=int, default=1000, show_default=True, help="Seed of the problems.")
@click.option(
    "--num-problems",
    type=int,
    help="Test problems; as many again for tuning.  [default: 4096, for networks down to 64]",
)
@click.option(
    "--baseline",
    help="Optimizer without halting to show beside: a name, a run, or 'none'.  [default: "
    "NAME-lstm]",
)
@click.option(
    "--compare",
    multiple=True,
    help="Another self-stopping optimizer to judge beside it; may be repeated.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Directory of the record.  [default: the run, or runs/NAME]",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write all figures here, too."
)
@own_classes
@family_settings
@data_directory
@device_option
@threads_option
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
    own: list[type],
    data_dir: Path | None,
    device: torch.device,
    family_settings: dict[str, Any],
) -> None:
    """Evaluate RUN_OR_NAME on held-out problems beside tuned baselines.

    J is the excess loss at the stop plus price times cost. Cost is counted in updates applied and
    in gradients evaluated. Workers started by torchrun share the tuning of learning rates.
    """
    device, workers = joined(device)
    if baseline is None:
        baseline = f"{run_or_name}-lstm" if f"{run_or_name}-lstm" in loading.names() else "none"
    others = [name for name in (baseline, *compare) if name != "none"]
    models = {}
    for name in (run_or_name, *others):
        key = model_name(name)
        require(key not in models, f"every optimizer needs a name of its own, got {key} twice")
        models[key] = loading.load(name, own)
    card = models[model_name(run_or_name)].card
    drawn = family_of(card, family, family_settings, data_dir)
    if num_problems is None:
        num_problems = min(4096, max(64, _COORDINATES // drawn.dim))
    with Console(stderr=True, quiet=not workers.is_first).status("loading") as status:
        evaluation = run_evaluation(
            models,
            drawn,
            family_name=family_name(card, family),
            price=card.price if price is None else price,
            horizon=card.horizon if horizon is None else horizon,
            seed=seed,
            num_problems=num_problems,
            device=device,
            workers=workers,
            announce=status.update,
        )
    workers.leave()
    if not workers.is_first:
        return
    record = evaluation.record
    if out is None:
        shipped = run_or_name in loading.names()
        out = Path("runs") / run_or_name if shipped else loading.run_directory(run_or_name)
    path = save_evaluation(record, evaluation.arrays, out)
    if json_path is not None:
        write_json(json_path, record)
    for stopping in record.stopping.values():
        print_table(rules_table(stopping, wide=False))
        click.echo(" ".join(sentences(stopping)[:3]) + "\n")
    click.echo(str(path))
