"""Runs killed at random times and while they write."""

import random
import shutil

from faults.processes import fork, is_killed, kill_at
from faults.runs import advance, compare, make_reference, scratch
from faults.tally import Tally
from haltwise.training.run.directory import RunDirectory


def kills(number: int, seed: int) -> Tally:
    """Kill runs, some of them repeatedly, and finish them."""
    tally, rng = Tally("killed runs"), random.Random(seed)
    with scratch() as root:
        reference, seconds, num_events = make_reference(root)
        done, directory = 0, root / "run"
        while done < number:
            case = f"case {tally.cases}"
            tally.cases += 1
            for _ in range(rng.choice((1, 1, 2, 3))):
                before = [step for step, _ in RunDirectory(directory, 3).checkpoints()]
                if rng.random() < 0.5:
                    at = rng.uniform(0, seconds)
                    status, text, _ = fork(lambda: advance(directory), at)
                    kind = "at a random time"
                else:
                    event = rng.randrange(num_events)
                    status, text, _ = fork(kill_at(event, lambda: advance(directory)))
                    kind = "while writing"
                    case += f", event {event}"
                if is_killed(status):
                    done += 1
                    tally.count(f"kills {kind}")
                elif status != 0:
                    tally.lost.append(f"{case}: {text}")
                after = [step for step, _ in RunDirectory(directory, 3).checkpoints()]
                if max(after, default=-1) < max(before, default=-1):
                    tally.lost.append(f"{case}: the last checkpoint is gone")
            compare(tally, directory, reference, case)
            shutil.rmtree(directory, ignore_errors=True)
    return tally
