"""OPDA: hyperparameters of vision and language models, trained at random (CC BY-SA 4.0).

Source: github.com/nicholaslourie/opda, (c) 2023-2025 Nicholas Lourie.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from haltwise._core.arrays import array_names, real_numbers
from haltwise.curves.columns import direction_of
from haltwise.curves.raw import RawRuns
from haltwise.curves.readers.archives import Archive, Arrays, ragged

__all__ = ["READERS", "Opda"]

_PARTS = ("_offset", "_value", "_config", "_config_name")
_COLUMN = "_column"
_LENGTHS = ("epochs", "total_model_steps")  # settings: how long a run was meant to be


@final
class Opda(Archive):
    """Runs of several models, each with the arrays MODEL_offset, _value, _config and _config_name.

    What is spent is `progress`, the first column of a model: epochs that are over, or steps. The
    metric is `accuracy`, the first column of which higher is better. Names of columns are shared by
    the models of a data set, DATA_column; a model has those of which there are as many as its own.
    """

    def claims(self, path: Path, head: str) -> bool:
        names = array_names(path) if head.startswith("PK") else []
        return bool(_models(names)) and any(name.endswith(_COLUMN) for name in names)

    def runs(self, arrays: Arrays) -> RawRuns:
        runs: list[dict[str, npt.NDArray[Any]]] = []
        labels, budgets, units = [], [], set()
        for model in _models(arrays):
            names, values = _columns_of(model, arrays), arrays[f"{model}_value"]
            first = names[0]
            accuracy = next(name for name in names if direction_of(name) == "max")
            found = ragged(values, arrays[f"{model}_offset"], names)
            for place, run in enumerate(found):
                begun = 1 if first == "epoch" else 0  # they are numbered from 0
                run["progress"] = run[first] + begun
                run["accuracy"] = run[accuracy]
                labels.append({"run": f"{model}/{place}", "model": model})
            runs += found
            settings = [str(name) for name in arrays[f"{model}_config_name"]]
            length = next((settings.index(name) for name in _LENGTHS if name in settings), None)
            config = real_numbers(arrays[f"{model}_config"], f"{model}_config")
            if len(config) != len(found):
                raise ValueError(f"{model} has {len(config)} settings for {len(found)} runs")
            budgets += [np.nan] * len(found) if length is None else list(config[:, length])
            units.add(f"{first}s")
        return RawRuns(
            runs,
            labels,
            cost="progress",
            metric="accuracy",
            direction="max",
            group="model",
            task="model",
            cost_unit=" or ".join(sorted(units)),
            budgets={"progress": np.array(budgets)},
        )


def _models(names: Iterable[str]) -> list[str]:
    """Those of which all parts are there."""
    names = list(names)
    models = [name.removesuffix(_PARTS[0]) for name in names if name.endswith(_PARTS[0])]
    return [model for model in models if all(f"{model}{part}" in names for part in _PARTS)]


def _columns_of(model: str, arrays: Arrays) -> list[str]:
    """The names of the columns of a model."""
    width = arrays[f"{model}_value"].shape[1]
    own = f"{model}{_COLUMN}"
    fitting = [name for name in arrays if name.endswith(_COLUMN) and arrays[name].shape == (width,)]
    if own in arrays:
        fitting = [own]
    if len(fitting) != 1:
        raise ValueError(
            f"of {model} it is not clear which array names its {width} columns "
            f"({' or '.join(fitting) or 'none fits'}); name it {own}"
        )
    return [str(name) for name in arrays[fitting[0]]]


READERS = {"opda": Opda()}
