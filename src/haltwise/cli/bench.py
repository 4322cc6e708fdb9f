"""`haltwise bench`: every stop rule on every domain under one protocol."""

from dataclasses import replace
from pathlib import Path

import click
from rich.console import Console

from haltwise._core.errors import DataWarning, require, warn
from haltwise._core.plugins import label
from haltwise._core.progress import display
from haltwise.bench.domains import domains
from haltwise.bench.given import ARRAYS, GivenDomain
from haltwise.bench.run import (
    GIVEN,
    QUICK,
    RECORD,
    REFERENCE,
    BenchSettings,
    find_domain,
    run_bench,
)
from haltwise.cli.options import direction_option, json_option
from haltwise.cli.places import PATH, PathType
from haltwise.cli.printing import plain, print_table, say, write_json
from haltwise.curves.curves import Direction
from haltwise.curves.rules import curve_rules
from haltwise.datasets.store import default_directory
from haltwise.report.bench import bench_tables, headline, judged_rule, write_bench

__all__ = ["command"]

PAGE = "bench.html"
"""The page, in the output directory."""


@click.command("bench")
@click.option(
    "--domain",
    "names",
    multiple=True,
    metavar="NAME",
    help="A domain, PATH.py:NAME for one of your own; may be repeated.  [default: all]",
)
@click.option(
    "--stops",
    "given",
    multiple=True,
    type=PATH,
    metavar="FILE.npz",
    help="Your own stops of your own runs: arrays losses [n, T+1] and stops [n], optional price, "
    "costs and groups. All rules are judged on the same runs. May be repeated; no other domain is "
    "run then unless named.",
)
@click.option(
    "--price",
    type=float,
    help="Of --stops: price of a unit of cost, such as a step, in units of the loss.  [default: "
    "that of the file]",
)
@direction_option
@click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar="NAME",
    help="A rule, PATH.py:NAME for one of your own; may be repeated.  [default: all]",
)
@click.option("--judged", metavar="NAME", help="The rule whose wins and losses are listed.")
@click.option(
    "--quick",
    is_flag=True,
    help="Fewer runs and folds, one price: a first look in some minutes.",
)
@click.option(
    "--seed", default=0, show_default=True, help="Of the runs that are made and the folds."
)
@click.option(
    "--data-dir",
    type=PATH,
    help="Folder of recorded curves; without one its domains are left out.  [default: "
    "$HALTWISE_DATA_DIR]",
)
@click.option(
    "--out",
    type=PathType(is_directory=True, files=(RECORD, PAGE, "curves")),
    default=Path("bench"),
    show_default=True,
    help="Directory for the page and the record; a bench that was interrupted goes on there.",
)
@click.option("--jobs", default=2, show_default=True, help="Processes.")
@json_option
def command(
    names: tuple[str, ...],
    given: tuple[Path, ...],
    price: float | None,
    direction: Direction,
    rules: tuple[str, ...],
    judged: str | None,
    *,
    quick: bool,
    seed: int,
    data_dir: Path | None,
    out: Path,
    jobs: int,
    json_path: Path | None,
) -> None:
    """Compare all stop rules on recorded runs of many kinds, under one protocol.

    Groups of runs are held out, and every rule's settings are chosen on the others. What is done is
    kept in OUT/bench.json, and OUT/bench.html shows it.
    """
    require(jobs >= 1, f"--jobs must be at least 1, got {jobs}")
    ran = {*map(label, rules or curve_rules()), GIVEN, REFERENCE}
    require(
        judged is None or judged in ran or (out / RECORD).exists(),
        f"no rule {judged!r} is run, which --judged names; those are {', '.join(sorted(ran))}",
    )
    require(
        (out / RECORD).exists() or not (out / PAGE).exists(),
        f"{out} holds no bench, for there is no {RECORD}, but {out / PAGE} would be overwritten; "
        "move it or name another directory by --out",
    )
    settings = replace(QUICK if quick else BenchSettings(), seed=seed)
    chosen = [*(names or (() if given else domains())), *map(str, given)]
    require(
        bool(given) or (price is None and direction == "min"),
        "--price and --direction are for stops of yours; name their file by --stops",
    )
    for name in chosen:
        domain = find_domain(name, price, direction)
        if isinstance(domain, GivenDomain) and (unused := domain.unused()):
            warn(
                f"{name} has arrays that are not used, {', '.join(unused)}; those that can be are "
                f"{', '.join(ARRAYS)}",
                DataWarning,
            )
        if isinstance(domain, GivenDomain) and domain.worsens():
            warn(
                f"losses in {name} end higher than they start in most runs; if higher is better, "
                "say so (--direction max)"
                if direction == "min"
                else f"scores in {name} end lower than they start in most runs; if lower is "
                "better, leave out --direction max",
                DataWarning,
            )
    console = Console(stderr=True)
    with display(console) as show:

        def report(unit: str, done: int, total: int, what: str) -> None:
            if total:
                show(unit, done, total, what)
            else:
                console.print(plain(what), soft_wrap=True)

        record = run_bench(
            out,
            chosen,
            rules or tuple(curve_rules()),
            settings,
            data_dir=data_dir or default_directory(),
            num_jobs=jobs,
            report=report,
            price=price,
            direction=direction,
        )
    write_json(json_path, record)
    require(bool(record.cases), "no domain could be run; name a folder of data by --data-dir")
    own = judged_rule(record, judged)
    for table in bench_tables(record, own):
        print_table(table)
    say(f"{headline(record, own)}.")
    say(write_bench(record, own, out / PAGE))
