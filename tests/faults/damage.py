"""Files of a run with flipped, missing and surplus bytes."""

import os
import random
import shutil
from pathlib import Path

from faults.mutations import mutate
from faults.processes import fork, kill_at
from faults.runs import advance, make_reference, scratch, state
from faults.tally import Tally
from haltwise.training.run.directory import RunDirectory


def damage(number: int, seed: int) -> Tally:
    """Damage checkpoints, weights and configurations, and go on with the run."""
    tally, rng = Tally("damaged files"), random.Random(seed)
    with scratch() as root:
        reference, _, num_events = make_reference(root)
        template, directory = root / "template", root / "run"
        fork(kill_at(2 * num_events // 3, lambda: advance(template)))
        names = [
            *(path.relative_to(template) for _, path in RunDirectory(template, 3).checkpoints()),
            Path("best.safetensors"),
            Path("config.json"),
        ]
        for _ in range(number):
            tally.cases += 1
            shutil.copytree(template, directory)
            chosen = rng.sample(names, rng.choice((1, 1, 2)))
            for name in chosen:
                content = (directory / name).read_bytes()
                (directory / name).write_bytes(mutate(rng, content))
            status, text, _ = fork(lambda: advance(directory))
            case = f"{', '.join(map(str, chosen))}"
            code = os.waitstatus_to_exitcode(status)
            if code == 0:
                tally.count("gone on with exactly")
                found = state(directory)
                if found != reference:
                    wrong = [key for key in reference if found[key] != reference[key]]
                    tally.differing.append(f"{case}: {wrong}")
            elif code == 2:
                tally.count("refused in a sentence")
                if chosen == [names[0]] or chosen == [Path("best.safetensors")]:
                    tally.lost.append(f"{case}: {text}")
            else:
                tally.lost.append(f"{case}: {text}")
            shutil.rmtree(directory)
    return tally
