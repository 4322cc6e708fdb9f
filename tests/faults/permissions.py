"""Files and directories without permission."""

import contextlib
import os
import random
import shutil
from pathlib import Path

import sklearn.linear_model  # noqa: F401  # while its files can be read

import haltwise
from faults.processes import fork, kill_at
from faults.runs import advance, compare, make_reference, scratch
from faults.tally import Tally


def _nobody_reads() -> bool:
    """Whether other users may read this checkout, as they may not in one that is all root's."""
    package = Path(haltwise.__file__).parent
    return all(place.stat().st_mode & 0o005 == 0o005 for place in (package, *package.parents))


def locks(number: int, seed: int) -> Tally:
    """Take a permission away, go on with the run, give it back and finish."""
    tally, rng = Tally("missing permissions"), random.Random(seed)
    if os.geteuid() == 0 and not _nobody_reads():  # and root may read everything
        tally.count("left out, as nobody but root may read this checkout")
        return tally
    with scratch() as root:
        reference, _, num_events = make_reference(root)
        template, directory = root / "template", root / "run"
        fork(kill_at(num_events // 2, lambda: advance(template)))

        def as_nobody() -> None:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            advance(directory)

        for _ in range(number):
            tally.cases += 1
            shutil.copytree(template, directory)
            places = [directory, *directory.rglob("*")]
            for place in places:
                if os.geteuid() == 0:
                    os.chown(place, 65534, 65534)
            place = rng.choice(places)
            mode = place.stat().st_mode
            place.chmod(rng.choice((0, 0o200, 0o400)) | (0o100 if place.is_dir() else 0))
            status, text, _ = fork(as_nobody)
            with contextlib.suppress(FileNotFoundError):  # an old checkpoint, removed meanwhile
                place.chmod(mode)
            code = os.waitstatus_to_exitcode(status)
            tally.count({0: "gone on with", 2: "refused in a sentence"}.get(code, "tracebacks"))
            if code not in (0, 2):
                tally.lost.append(f"{place.name}: {text}")
            compare(tally, directory, reference, f"{place.name} locked")
            shutil.rmtree(directory)
    return tally
