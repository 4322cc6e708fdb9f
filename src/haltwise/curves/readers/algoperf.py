"""AlgoPerf: submissions to a benchmark of training algorithms (MLCommons, Apache-2.0).

Source: github.com/mlcommons/submissions_algorithms; Kasimbeg et al. 2025, arXiv 2502.15015.
"""

from typing import ClassVar, final

import numpy as np

from haltwise._core.arrays import real_numbers
from haltwise.curves.raw import RawRuns
from haltwise.curves.readers.archives import Archive, Arrays, evaluated, ragged, texts

__all__ = ["READERS", "AlgoPerf"]

_LABELS = ("version", "ruleset", "submission", "study", "workload", "trial", "metric")
_SELF_TUNING = 3  # times the budget of a run, by the rules of the benchmark
_METRICS = ("train_metric", "valid_metric", "test_metric")
_LOSSES = ("train_loss", "valid_loss", "test_loss")  # of the workloads that have one


@final
class AlgoPerf(Archive):
    """Runs of workloads until their targets were met or their time was over.

    The metrics of workloads where higher is better are negated, and their targets, so that lower is
    better in all. `family` is the workload without its framework.
    """

    needed: ClassVar[frozenset[str]] = frozenset(
        ("column", "value", "offset", "target_column", "target", "metric_sign", *_LABELS)
    )

    def runs(self, arrays: Arrays) -> RawRuns:
        names = [str(name) for name in arrays["column"]]
        found = ragged(arrays["value"], arrays["offset"], names)
        num = len(found)
        sign = -real_numbers(arrays["metric_sign"], "metric_sign")
        if not np.isin(sign, (-1.0, 1.0)).all():
            raise ValueError("metric_sign must be 1 or -1")
        for run, factor in zip(found, sign, strict=True):
            run |= {name: evaluated(factor * run[name]) for name in _METRICS}
            run |= {name: evaluated(run[name]) for name in _LOSSES}
            run["hours"] = run["submission_seconds"] / 3600
        columns = dict(zip(map(str, arrays["target_column"]), arrays["target"].T, strict=True))
        each = {name: texts(arrays[name], num) for name in _LABELS}
        labels = [dict(zip(_LABELS, row, strict=True)) for row in zip(*each.values(), strict=True)]
        for label in labels:
            label["family"] = label["workload"].removesuffix("_jax").removesuffix("_pytorch")
            label["run"] = "/".join(
                label[name] for name in ("version", "submission", "study", "workload", "trial")
            )
        times = np.array([_SELF_TUNING if r == "self_tuning" else 1 for r in each["ruleset"]])
        seconds = times * real_numbers(columns["max_seconds"], "max_seconds")
        return RawRuns(
            found,
            labels,
            cost="hours",
            metric="valid_metric",
            direction="min",
            group="submission",
            task="workload",
            target=sign * real_numbers(columns["valid_target"], "valid_target"),
            budgets={"hours": seconds / 3600, "submission_seconds": seconds},
        )


READERS = {"algoperf": AlgoPerf()}
