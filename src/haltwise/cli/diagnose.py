"""`haltwise diagnose`: why does it not learn?"""

import json
from pathlib import Path
from typing import Any

import click
import torch
from rich.console import Console

from haltwise._core.errors import require
from haltwise._core.files import write_atomically
from haltwise._core.json import plain
from haltwise.cli.options import data_directory, family_of
from haltwise.cli.options import family_settings as family_settings_option
from haltwise.evaluation.diagnosis import diagnose as look_at
from haltwise.models import loading

__all__ = ["diagnose"]

_COORDINATES = 2**16  # of all problems together


@click.command()
@click.argument("run_or_name")
@click.option("--family", help="Family to draw problems from.  [default: the one trained on]")
@click.option("--price", type=float, help="Of a step, in units of the loss.  [default: the card's]")
@click.option("--horizon", type=int, help="Steps.  [default: the card's]")
@click.option("--num-problems", type=int, help="[default: 128, for networks down to 8]")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the problems.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here."
)
@family_settings_option
@data_directory
@click.option("--threads", type=int, help="CPU threads.  [default: PyTorch's]")
def diagnose(
    run_or_name: str,
    family: str | None,
    price: float | None,
    horizon: int | None,
    num_problems: int | None,
    seed: int,
    json_path: Path | None,
    threads: int | None,
    family_settings: dict[str, Any],
) -> None:
    """Say why RUN_OR_NAME does not learn, and what to do about it.

    Looks at scales of gradients and updates, gates, losses against the price, the halting posterior
    and what happens beyond the horizon, on problems that nothing was trained on.
    """
    if threads is not None:
        require(threads >= 1, f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    optimizer = loading.load(run_or_name)
    drawn = family_of(optimizer.card["config"], family, family_settings)
    num = min(128, max(8, _COORDINATES // drawn.dim)) if num_problems is None else num_problems
    with Console(stderr=True).status("looking"):
        report = plain(
            look_at(optimizer, drawn, price=price, horizon=horizon, num_problems=num, seed=seed)
        )
    if json_path is not None:
        write_atomically(json_path, (json.dumps(report, indent=1) + "\n").encode())
    for line in _lines(report):
        click.echo(line)


def _lines(report: dict[str, Any]) -> list[str]:
    """The figures in short, then the findings."""
    lines = [
        f"{report['num_problems']} problems, {report['horizon']} steps, price {report['price']:g}"
    ]
    for group in report["groups"]:
        first, last = (
            f"gradient {_number(group['gradient_rms'][when])}, "
            f"update {_number(group['update_rms'][when])}"
            for when in ("first", "last")
        )
        lines.append(f"  {group['name']}: at first {first}; at last {last} (rms)")
    if report["gates"]:
        worst = max(report["gates"], key=lambda gate: gate["saturated"])
        lines.append(f"  gates: at most {worst['saturated']:.0%} saturated ({worst['name']})")
    lines += [
        f"  {layer['name']}: weights {_number(layer['weight_rms'])}, meta-gradient "
        f"{_number(layer['gradient_rms'])}"
        for layer in report.get("layers", [])
    ]
    if "scale" in report:
        scale = report["scale"]
        lines.append(
            f"  losses: {_number(scale['gain_in_prices'])} prices to gain; the oracle stops after "
            f"{_number(scale['oracle_steps'])} ± {_number(scale['oracle_sd'])} steps"
        )
    if "posterior" in report:
        posterior = report["posterior"]
        lines.append(
            f"  posterior: {posterior['at_step_0']:.0%} at step 0, {posterior['at_horizon']:.0%} "
            f"at the horizon; stops after {_number(posterior['mean_stop'])} ± "
            f"{_number(posterior['sd_stop'])} steps"
        )
    if "drift" in report:
        lines.append(f"  drift: {report['drift']['share_rising']:.0%} rise beyond the horizon")
    if not report["findings"]:
        return [*lines, "Nothing is wrong."]
    for finding in report["findings"]:
        where = f" ({finding['where']})" if finding["where"] else ""
        lines.append(f"{finding['name']}{where}: {finding['measured']} {finding['advice']}")
    return lines


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
