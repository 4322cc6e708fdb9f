"""Trainings small enough for tests, and what to compare of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from haltwise._core.files import load_tensors
from haltwise._core.nested_settings import merge
from haltwise.models import OptimizerModel
from haltwise.training import Trainer, TrainingSettings
from haltwise.training.run.directory import RunDirectory
from haltwise.training.run.log import read_log

__all__ = [
    "ALL",
    "JOINT",
    "TINY",
    "TINY_OPTIONS",
    "assert_same_run",
    "by_adam",
    "diverging",
    "finish",
    "leave",
    "optimizer",
    "sabotage",
    "timeless",
    "tiny",
]

TINY: Mapping[str, Any] = {
    "horizon": 6,
    "joint": {
        "num_steps": 8,
        "batch_size": 8,
        "warmup": 0.25,
        "estimator": {"name": "pathwise", "settings": {"segment": 4}},
    },
    "halting": {"num_recorded": 24, "batch_size": 8},
    "validation": {"every": 2, "num_problems": 16, "num_calibration": 32},
}

JOINT, ALL = 8, 14  # steps of rule and halter together, and with those of the halter alone


def tiny(preset: str = "act", *changes: Mapping[str, Any], **more: Any) -> TrainingSettings:
    """Settings of a training of seconds; changes are nested."""
    own = {"halting": {"num_steps": ALL - JOINT}} if preset == "act" else {}
    return TrainingSettings.from_preset(preset, "regression-2d", merge(TINY, own, *changes, more))


def by_adam(**changes: Any) -> TrainingSettings:
    """Settings of a training whose rule has nothing to learn."""
    rule = {"name": "adam", "settings": {"learning_rate": 0.3}}
    return tiny("act", {"rule": rule}, **changes)


def finish(trainer: Trainer) -> Trainer:
    """Train to the end."""
    for _ in trainer.run():
        pass
    return trainer


def optimizer(trainer: Trainer) -> OptimizerModel:
    """The model of a trainer that trains an update rule."""
    assert isinstance(trainer.model, OptimizerModel)
    return trainer.model


def leave(directory: Path, after: int, settings: TrainingSettings | None = None) -> RunDirectory:
    """Make a run whose process vanished after so many steps."""
    for progress in Trainer(settings or tiny(), directory).run():
        if progress.step == after:
            break
    return RunDirectory(directory, 3)


def diverging(directory: Path, after: int, times: int) -> Trainer:
    """Make a run whose weights explode at a step, before it was rolled back so often."""
    return sabotage(
        Trainer(tiny("lstm", joint={"num_steps": 12}, adam={"learning_rate": 1e-3}), directory),
        after,
        times,
    )


def sabotage(trainer: Trainer, after: int, times: int) -> Trainer:
    """Have the weights of a run explode at a step, before it was rolled back so often."""
    learner, model = trainer._learner, optimizer(trainer)
    step = learner.meta_step

    def explode(*, interrupt: bool) -> tuple[float, bool]:
        found = step(interrupt=interrupt)
        if learner.step == after and learner.counters.num_rollbacks < times:
            model.rule_parameters()[0].data.fill_(1e30)
        return found

    learner.meta_step = explode  # type: ignore[method-assign]
    return trainer


def assert_same_run(one: Path, other: Path) -> None:
    """Compare last checkpoints with Adam's moments, best weights, their cards, and logs."""
    files = [
        (RunDirectory(directory, 1).checkpoints()[0][1], directory / "best.safetensors")
        for directory in (one, other)
    ]
    for paths in zip(*files, strict=True):
        (tensors, document), (others, other_document) = map(load_tensors, paths)
        assert tensors.keys() == others.keys()
        for key, value in tensors.items():
            assert torch.equal(value, others[key]), (paths, key)
        assert timeless(document) == timeless(other_document)
    assert read_log(one) == read_log(other)


def timeless(document: Any) -> Any:
    """A JSON document without what the clock says."""
    if isinstance(document, dict):
        return {
            key: timeless(value) for key, value in document.items() if not key.startswith("seconds")
        }
    return document


TINY_OPTIONS = (
    *("--joint.num-steps", "6", "--joint.batch-size", "8", "--horizon", "6", "--threads", "1"),
    *("--halting.num-steps", "4", "--halting.num-recorded", "16", "--halting.batch-size", "8"),
    *("--validation.every", "2", "--validation.num-problems", "16"),
    *("--validation.num-calibration", "32"),
)
