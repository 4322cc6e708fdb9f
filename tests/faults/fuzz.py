"""Files that hypothesis makes up, read by what reads them."""

import traceback
from typing import Protocol

import hypothesis
from hypothesis import strategies as st

from faults.fuzzed_curves import RecordedCurves
from faults.fuzzed_data import Archives, Cifar, Idx, Traces
from faults.fuzzed_runs import (
    Checkpoints,
    Configurations,
    Evaluations,
    Recipes,
    Recordings,
    Resealed,
    Weights,
)
from faults.processes import EXPECTED
from faults.runs import scratch
from faults.tally import Tally


class Judge(Protocol):
    """A maker and reader of files of one kind."""

    name: str

    def read(self, data: st.DataObject) -> bool:
        """Make a file and read it; return whether it was accepted rightly."""


def fuzz(number: int, seed: int) -> Tally:
    """Read weights, configurations, IDX, CIFAR-10, NPZ files and curves that hypothesis makes."""
    tally = Tally("fuzzed files")
    with scratch() as root:
        judges: list[Judge] = [
            Weights(root),
            Resealed(root),
            Recordings(root),
            Evaluations(root),
            Checkpoints(root),
            Configurations(root),
            Recipes(root),
            Idx(root),
            Cifar(root),
            Archives(root),
            Traces(root),
            RecordedCurves(root),
        ]

        def check(data: st.DataObject) -> None:
            try:
                accepted = judge.read(data)
            except EXPECTED as error:
                tally.count("refused in a sentence")
                if not str(error) or "Traceback" in str(error):
                    tally.lost.append(f"{judge.name}: {error!r}")
            except Exception:
                tally.lost.append(f"{judge.name}: {traceback.format_exc()[-1500:]}")
            else:
                tally.count("accepted")
                if not accepted:
                    tally.differing.append(f"{judge.name}: accepted wrongly")
            tally.cases += 1

        for place, judge in enumerate(judges):
            share = number // len(judges) + (place < number % len(judges))

            settings = hypothesis.settings(
                max_examples=share,
                database=None,
                deadline=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            begun = tally.cases
            hypothesis.seed(seed + place)(settings(hypothesis.given(st.data())(check)))()
            tally.count(judge.name, tally.cases - begun)
    return tally
