"""`haltwise evaluate`: held-out problems, tuned baselines, a table and the record."""

from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from haltwise._core.errors import require
from haltwise._core.progress import working
from haltwise.cli import options
from haltwise.cli.places import DIRECTORY
from haltwise.cli.printing import print_stopping, print_table, say, write_json
from haltwise.cli.settings import SettingsCommand
from haltwise.evaluation import evaluate, judge_processes
from haltwise.evaluation.records import save_evaluation
from haltwise.models import loading
from haltwise.report.run import optimizers_table

__all__ = ["command"]

_COORDINATES = 2**18  # of all test problems together, unless told otherwise


@click.command("evaluate", cls=SettingsCommand, leaves=options.family_leaves)
@click.argument("run_or_name")
@options.family_option
@options.price_option
@options.horizon_option
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
@options.learners_option(default=True)
@click.option(
    "--out",
    type=DIRECTORY,
    help="Directory of the record.  [default: the run, or else runs/NAME]",
)
@options.device_option
@options.measuring_options
def command(
    run_or_name: str,
    family: str | None,
    price: float | None,
    horizon: int | None,
    seed: int,
    num_problems: int | None,
    baseline: str | None,
    compare: tuple[str, ...],
    learners: bool,
    out: Path | None,
    json_path: Path | None,
    own: list[type],
    data_dir: Path | None,
    device: torch.device,
    settings: dict[str, Any],
) -> None:
    """Evaluate RUN_OR_NAME on held-out problems beside tuned baselines.

    J is the excess loss at the stop plus price times cost. Cost is counted in updates applied and
    in gradients evaluated. Workers started by torchrun share the tuning of learning rates. Of a
    model that stops processes, the stops alone are judged; where the best causal rule is known,
    beside it.
    """
    card = loading.card_of(run_or_name, own)
    if card.rule is None and (card.family is not None or family is not None):
        require(
            not compare and baseline is None and out is None,
            f"{run_or_name} stops processes: there is no optimizer to compare, and no record is "
            "kept; drop --compare, --baseline and --out, and write the figures by --json",
        )
        model = loading.load_halting(run_or_name, own)
        source = options.process_family_of(card, family, settings, data_dir)
        with working("starting", Console(stderr=True)) as announce:
            stopping = judge_processes(
                model,
                source,
                price=card.price if price is None else price,
                horizon=card.horizon if horizon is None else horizon,
                seed=seed,
                num_items=4096 if num_problems is None else num_problems,
                device=device,
                learners=learners,
                announce=announce,
            )
        write_json(json_path, stopping)
        print_stopping(stopping)
        return
    device, workers = options.joined(device)
    if baseline is None:
        baseline = f"{run_or_name}-lstm" if f"{run_or_name}-lstm" in loading.names() else "none"
    others = [name for name in (baseline, *compare) if name != "none"]
    models = {}
    for name in (run_or_name, *others):
        key = options.model_name(name)
        require(key not in models, f"every optimizer needs a name of its own, got {key} twice")
        models[key] = loading.load(name, own)
    drawn = options.family_of(card, family, settings, data_dir)
    if num_problems is None:
        num_problems = min(4096, max(64, _COORDINATES // drawn.dim))
    with working("loading", Console(stderr=True, quiet=not workers.is_first)) as announce:
        evaluation = evaluate(
            models,
            drawn,
            family_name=options.family_name(card, family),
            price=card.price if price is None else price,
            horizon=card.horizon if horizon is None else horizon,
            seed=seed,
            num_problems=num_problems,
            device=device,
            workers=workers,
            announce=announce,
            learners=learners,
        )
    workers.leave()
    if not workers.is_first:
        return
    if out is None:
        found = loading.find(run_or_name)
        is_run = (found.parent / "config.json").exists() and not loading.is_shipped(run_or_name)
        # Beside a file that is in no run may be anything, as other people's weights.
        out = found.parent if is_run else Path("runs") / options.model_name(run_or_name)
    for stopping in evaluation.record.stopping.values():
        print_stopping(stopping)
        say()
    print_table(optimizers_table(evaluation.record, wide=False))
    write_json(json_path, evaluation.record)
    say(save_evaluation(evaluation.record, evaluation.arrays, out))
