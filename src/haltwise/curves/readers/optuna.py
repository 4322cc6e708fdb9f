"""Studies of Optuna: a database of its `RDBStorage`, or the file of its `JournalStorage`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, final

import numpy as np

from haltwise._core.errors import DataWarning, refusing_others, require, warn
from haltwise.curves.columns import Direction
from haltwise.curves.raw import Keys, NothingRecordedError, RawRuns
from haltwise.curves.readers.base import Reader
from haltwise.curves.readers.databases import has_tables, opened_database
from haltwise.curves.readers.files import open_text, parse_json, read_head
from haltwise.curves.readers.jsonl import json_objects
from haltwise.curves.readers.run_folder import MetricPoints, joined

__all__ = ["READERS", "Optuna"]

_TABLES = {
    "studies": "study_id study_name",
    "study_directions": "study_id direction",
    "trials": "trial_id number study_id state",
    "trial_params": "trial_id param_name param_value distribution_json",
    "trial_intermediate_values": "trial_id step intermediate_value intermediate_value_type",
}
_FINISHED = ("COMPLETE", "PRUNED")
_DIRECTIONS: dict[str, Direction] = {"MINIMIZE": "min", "MAXIMIZE": "max"}


class _Study(NamedTuple):
    name: str
    directions: list[str]


class _Trial(NamedTuple):
    study: int
    number: int
    state: str
    params: dict[str, str]
    values: dict[int, float]


@final
class Optuna(Reader):
    """The values that trials reported, by step; the study is what they worked on.

    Trials that were completed or pruned are runs. Parameters are labels, `params_lr`, as in
    `Study.trials_dataframe`.
    """

    def claims(self, path: Path, head: str) -> bool:
        return head.startswith('{"op_code":') or has_tables(path, head, **_TABLES)

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        path = paths[0]
        is_journal = read_head(path).startswith("{")
        with refusing_others(f"{path} contradicts itself; restore it from a copy"):
            return _runs(path, *(_read_journal if is_journal else _read_database)(path))


def _runs(path: Path, studies: Mapping[int, _Study], trials: Sequence[_Trial]) -> RawRuns:
    reported = [trial for trial in trials if trial.values]
    kept = [trial for trial in reported if trial.state in _FINISHED]
    if not kept:
        raise NothingRecordedError(
            f"no trial in {path} that was completed or pruned has reported a value (trial.report)"
        )
    if len(kept) < len(reported):
        warn(
            f"left out: {len(reported) - len(kept)} of {len(reported)} trials in {path} that "
            "were neither completed nor pruned",
            DataWarning,
        )
    found = {way for trial in kept for way in studies[trial.study].directions}
    require(
        len(found) == 1,
        f"the studies in {path} are of both directions; put those that are minimized and those "
        "that are maximized into files of their own (optuna.copy_study)",
    )
    alone = len({trial.study for trial in kept}) == 1
    labels = [
        {
            "run": f"trial {trial.number}" if alone else f"{study}/trial {trial.number}",
            "study": study,
            **{f"params_{name}": value for name, value in trial.params.items()},
        }
        for trial in kept
        for study in [studies[trial.study].name]
    ]
    runs = [
        joined({"value": MetricPoints(sorted(values), [values[step] for step in sorted(values)])})
        for *_, values in kept
    ]
    return RawRuns(
        runs,
        labels,
        cost="step",
        metric="value",
        direction=_DIRECTIONS[found.pop()],
        task="study",
        cost_unit="steps",
    )


def _read_database(path: Path) -> tuple[dict[int, _Study], list[_Trial]]:
    with opened_database(path) as database:
        studies = {
            study: _Study(name, [])
            for study, name in database.execute("SELECT study_id, study_name FROM studies")
        }
        for study, direction in database.execute(
            "SELECT study_id, direction FROM study_directions"
        ):
            studies[study].directions.append(direction)
        trials = {
            trial: _Trial(study, number, state, {}, {})
            for trial, study, number, state in database.execute(
                "SELECT trial_id, study_id, number, state FROM trials ORDER BY study_id, number"
            )
        }
        for trial, name, value, distribution in database.execute(
            "SELECT trial_id, param_name, param_value, distribution_json FROM trial_params"
        ):
            trials[trial].params[name] = _written(value, parse_json(distribution, str(path)))
        for trial, step, value, kind in database.execute(
            "SELECT trial_id, step, intermediate_value, intermediate_value_type "
            "FROM trial_intermediate_values"
        ):
            trials[trial].values[step] = _SPECIAL.get(kind, value)
    return studies, [*trials.values()]


_SPECIAL = {"NAN": np.nan, "INF_POS": np.inf, "INF_NEG": -np.inf}


def _written(value: float, distribution: Any) -> str:
    """A parameter in words, of a category its own."""
    choices = distribution.get("attributes", {}).get("choices")
    if choices is not None:
        return str(choices[int(value)])
    is_whole = "Int" in str(distribution.get("name"))
    return str(int(value)) if is_whole else repr(float(value))


# What a line of a journal says was done.
_CREATE_STUDY, _DELETE_STUDY, _CREATE_TRIAL, _SET_PARAM, _SET_STATE, _REPORT = 0, 1, 4, 5, 6, 7
_STATES = ("RUNNING", "COMPLETE", "PRUNED", "FAIL", "WAITING")
_WAYS = ("NOT_SET", "MINIMIZE", "MAXIMIZE")


def _read_journal(path: Path) -> tuple[dict[int, _Study], list[_Trial]]:
    journal = _Journal()
    with open_text(path) as file:
        for number, entry in json_objects(path, file):
            with refusing_others(f"line {number} of {path} is none of a journal of Optuna's"):
                journal.apply(entry)
    trials = [trial for trial in journal.trials if trial.study in journal.studies]
    return journal.studies, sorted(trials, key=lambda trial: (trial.study, trial.number))


@final
class _Journal:
    """Studies and trials after what the lines of a journal say was done."""

    def __init__(self) -> None:
        self.studies: dict[int, _Study] = {}
        self.trials: list[_Trial] = []  # by identity
        self._num_studies = 0
        self._num_trials: dict[int, int] = {}  # of a study

    def apply(self, entry: Mapping[str, Any]) -> None:
        """Do what one line says."""
        code = entry["op_code"]
        if code == _CREATE_STUDY:
            if all(study.name != entry["study_name"] for study in self.studies.values()):
                ways = [_WAYS[way] for way in entry["directions"]]
                self.studies[self._num_studies] = _Study(entry["study_name"], ways)
                self._num_studies += 1
        elif code == _DELETE_STUDY:
            self.studies.pop(entry["study_id"], None)
        elif code == _CREATE_TRIAL and entry["study_id"] in self.studies:
            self._create(entry)
        elif code in (_SET_PARAM, _SET_STATE, _REPORT) and entry["trial_id"] < len(self.trials):
            self._change(entry)

    def _create(self, entry: Mapping[str, Any]) -> None:
        study = entry["study_id"]
        number = self._num_trials.setdefault(study, 0)
        self._num_trials[study] += 1
        params = {
            name: _written(value, json.loads(entry["distributions"][name]))
            for name, value in entry.get("params", {}).items()
        }
        values = entry.get("intermediate_values", {})
        self.trials.append(
            _Trial(
                study,
                number,
                _STATES[entry.get("state", 0)],
                params,
                {int(step): float(value) for step, value in values.items()},
            )
        )

    def _change(self, entry: Mapping[str, Any]) -> None:
        trial = self.trials[entry["trial_id"]]
        if trial.state in (*_FINISHED, "FAIL"):
            return  # too late, as Optuna has it
        if entry["op_code"] == _SET_PARAM:
            distribution = json.loads(entry["distribution"])
            trial.params[entry["param_name"]] = _written(
                entry["param_value_internal"], distribution
            )
        elif entry["op_code"] == _SET_STATE:
            self.trials[entry["trial_id"]] = trial._replace(state=_STATES[entry["state"]])
        else:
            trial.values[int(entry["step"])] = float(entry["intermediate_value"])


READERS = {"optuna": Optuna()}
