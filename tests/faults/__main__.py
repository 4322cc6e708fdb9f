"""The command of the harness: `PYTHONPATH=tests python -m faults`."""

import sys
import time
import warnings

import click

from faults.commands import interruptions
from faults.damage import damage
from faults.disks import full_disks
from faults.fuzz import fuzz
from faults.kills import kills
from faults.permissions import locks
from haltwise._core.errors import CheckpointWarning


@click.command()
@click.option("--kills", "num_kills", default=240, show_default=True)
@click.option("--interruptions", "num_interruptions", default=250, show_default=True)
@click.option("--full-disks", "num_disks", default=60, show_default=True)
@click.option("--damaged", default=200, show_default=True)
@click.option("--locked", default=30, show_default=True)
@click.option("--fuzzed", default=2400, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(
    num_kills: int,
    num_interruptions: int,
    num_disks: int,
    damaged: int,
    locked: int,
    fuzzed: int,
    seed: int,
) -> None:
    """Run every fault and count; exit with 1 if anything was lost, differs or was let in."""
    warnings.simplefilter("ignore", CheckpointWarning)
    failures = []
    for part, number in (
        (kills, num_kills),
        (interruptions, num_interruptions),
        (full_disks, num_disks),
        (damage, damaged),
        (locks, locked),
        (fuzz, fuzzed),
    ):
        if number > 0:
            begin = time.perf_counter()
            tally = part(number, seed)
            click.echo(f"{tally} ({time.perf_counter() - begin:.0f} s)")
            failures += tally.failures
    for failure in {text.strip().splitlines()[-1]: text for text in failures}.values():
        click.echo(failure)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
