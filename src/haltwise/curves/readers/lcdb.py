"""LCDB 1.1: errors of learners by the number of samples they are trained on (CC BY 4.0).

Source: github.com/learning-curve-research/LCDB-1.1; Yan, Mohr and Viering 2025, arXiv 2505.15657.
"""

from typing import ClassVar, final

import numpy as np

from haltwise._core.arrays import real_numbers
from haltwise.curves.raw import RawRuns
from haltwise.curves.readers.archives import Archive, Arrays, texts

__all__ = ["READERS", "Lcdb"]

_MISSING, _UNIT = 65535, 1e-4


@final
class Lcdb(Archive):
    """One run for each learner and data set: what is spent are training samples."""

    needed: ClassVar[frozenset[str]] = frozenset(
        ("value", "anchor", "learner", "dataset_id", "dataset", "stat", "split")
    )

    def runs(self, arrays: Arrays) -> RawRuns:
        value, anchor = arrays["value"], real_numbers(arrays["anchor"], "anchor")
        num_data, num_learners, *kinds, _ = value.shape  # [data, learners, stat, split, anchors]
        stats, splits = texts(arrays["stat"], kinds[0]), texts(arrays["split"], kinds[1])
        columns = [
            f"{split}_error" if stat == "mean" else f"{split}_error_{stat}"
            for stat in stats
            for split in splits
        ]
        data = [
            f"{name} ({number})"
            for name, number in zip(
                texts(arrays["dataset"], num_data), texts(arrays["dataset_id"], num_data),
                strict=True,
            )
        ]  # fmt: skip
        learners = texts(arrays["learner"], num_learners)
        found, labels = [], []
        for dataset, by_learner in zip(data, value, strict=True):
            for learner, errors in zip(learners, by_learner, strict=True):
                rows = errors.reshape(len(columns), len(anchor))
                known = (rows != _MISSING).any(0)
                if not known.any():  # a learner that failed
                    continue
                numbers = np.where(rows == _MISSING, np.nan, rows * _UNIT)[:, known]
                found.append({"sample": anchor[known], **dict(zip(columns, numbers, strict=True))})
                labels.append(
                    {"run": f"{dataset}/{learner}", "dataset": dataset, "learner": learner}
                )
        return RawRuns(
            found,
            labels,
            cost="sample",
            metric="val_error",
            direction="min",
            group="dataset",
            task="dataset",
            cost_unit="samples",
        )


READERS = {"lcdb": Lcdb()}
