"""Fuzzed weights and configurations."""

import contextlib
import json
import shutil
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from evaluation_cases import make_evaluation
from hypothesis import strategies as st
from loops import record_runs
from reported_runs import small_study, write_run
from tiny_runs import leave

import haltwise
from faults.mutations import mutated, resealed, warped
from faults.runs import SETTINGS
from haltwise import InputError
from haltwise._core.files import load_tensors
from haltwise._core.json import to_json
from haltwise.cli.train import read_recipe
from haltwise.models import Card
from haltwise.processes import OptimizationProcess
from haltwise.recordings.runs import RecordedRuns
from haltwise.report import write_report
from haltwise.rollout import record_process
from haltwise.tasks import family
from haltwise.training import Trainer, TrainingSettings
from haltwise.training.run.directory import RunDirectory

_WEIGHTS = Path(haltwise.__file__).parent / "models" / "weights"


class Weights:
    """A weights file with a few bytes changed: accepted only if the content is the same."""

    name = "weights"

    def __init__(self, root: Path) -> None:
        self.path = root / "weights.safetensors"
        self.content = (_WEIGHTS / "regression-2d-thesis.safetensors").read_bytes()
        self.path.write_bytes(self.content)
        self.tensors, self.document = load_tensors(self.path)

    def read(self, data: st.DataObject) -> bool:
        self.path.write_bytes(mutated(data, self.content))
        optimizer = haltwise.load(self.path)
        weights = optimizer.state_dict()
        return optimizer.card == Card.from_json(self.document["card"]) and all(
            torch.equal(value, weights[name]) for name, value in self.tensors.items()
        )


class Resealed(Weights):
    """Hostile content under a right checksum: what is accepted must do its work."""

    name = "weights with a right checksum"

    def read(self, data: st.DataObject) -> bool:
        self.path.write_bytes(self.content)
        resealed(data, self.path)
        optimizer = haltwise.load(self.path)
        batch = family("regression-2d").sample(3, torch.Generator().manual_seed(0))
        trajectory = record_process(OptimizationProcess(optimizer.rule, batch), 2)
        optimizer.halting.attach(trajectory, 0.05)
        with contextlib.suppress(InputError):  # a card may say nothing of halting
            optimizer.policy()
        assert trajectory.final is not None
        return bool(trajectory.final.isfinite().all())


class Recordings:
    """Recorded runs of a loop: whatever is read is of the length and the types of the others."""

    name = "recordings"

    def __init__(self, root: Path) -> None:
        self.root = record_runs(root / "recordings", range(2), scored=True)
        self.path = min(self.root.iterdir())
        self.content = self.path.read_bytes()

    def read(self, data: st.DataObject) -> bool:
        self.path.write_bytes(self.content)
        resealed(data, self.path)
        found = RecordedRuns.load(self.root, data.draw(st.sampled_from((None, 5)))).trajectory
        tensors = [value for value in vars(found).values() if isinstance(value, torch.Tensor)]
        return len(tensors) == 4 and all(
            value.dtype == torch.float32 and len(value) <= 2 and bool(value.isfinite().all())
            for value in tensors
        )


class Evaluations:
    """What a report is made of: an evaluation, a study, the log and the card of a run."""

    name = "reported runs"

    def __init__(self, root: Path) -> None:
        self.root = root / "reported"
        write_run(self.root, make_evaluation())
        (self.root / "study.json").write_text(json.dumps(to_json(small_study())))
        self.contents = {path: path.read_bytes() for path in sorted(self.root.iterdir())}

    def read(self, data: st.DataObject) -> bool:
        for path, content in self.contents.items():
            path.write_bytes(content)
        path = data.draw(st.sampled_from(list(self.contents)))
        if path.suffix == ".safetensors":
            resealed(data, path)
        else:
            lines = self.contents[path].decode().splitlines()[:3]  # the fourth of the log is torn
            path.write_text("\n".join(json.dumps(warped(data, json.loads(each))) for each in lines))
        page = write_report(self.root, self.root.parent / "page.html").read_text()
        return "\x1b" not in page


class Checkpoints:
    """The newest checkpoint of a run: one that is taken trains on, a corrupt one is passed over."""

    name = "checkpoints"

    def __init__(self, root: Path) -> None:
        self.root, self.template = root / "resumed", root / "left"
        leave(self.template, 11)

    def read(self, data: st.DataObject) -> bool:
        shutil.rmtree(self.root, ignore_errors=True)
        shutil.copytree(self.template, self.root)
        (step, path), *_ = RunDirectory(self.root, 3).checkpoints()
        resealed(data, path)
        trainer = Trainer.resume(self.root)
        passed_over = trainer.step == step - 2
        for progress in trainer.run():
            assert progress.step <= trainer.num_steps
        return passed_over or trainer.step == trainer.num_steps


class Recipes:
    """TOML files of settings: what is accepted makes settings."""

    name = "TOML files"

    def __init__(self, root: Path) -> None:
        self.path = root / "recipe.toml"

    def read(self, data: st.DataObject) -> bool:
        text = data.draw(
            st.sampled_from(
                (
                    'seed = 1\n[family]\nname = "regression-2d"\n[joint]\nnum_steps = 3\n',
                    f"seed = {'9' * 5000}",
                    f"mixed_with = {'[' * 10000}",
                    "price = nan\nhorizon = 1e400",
                    'preset = ["act"]',
                    "family = 1979-05-27",
                    '[family]\nname = ["x"]',
                )
            )
        ).encode()
        self.path.write_bytes(mutated(data, text) if data.draw(st.booleans()) else text)
        settings = read_recipe(self.path)
        preset = settings.pop("preset", "act")
        found = TrainingSettings.from_preset(preset, "regression-2d", settings)
        return TrainingSettings.from_json(found.to_json()) == found


class Configurations:
    """A run's configuration with entries replaced: what is accepted is of the right types."""

    name = "configurations"

    def __init__(self, root: Path) -> None:
        self.path = root / "run" / "config.json"
        self.path.parent.mkdir()
        self.document = {"settings": SETTINGS.to_json(), "command": ""}

    def read(self, data: st.DataObject) -> bool:
        if data.draw(st.booleans()):
            content = mutated(data, json.dumps(self.document).encode())
        else:
            content = json.dumps(warped(data, self.document)).encode()
        self.path.write_bytes(content)
        document = RunDirectory.read(self.path.parent)
        settings = TrainingSettings.from_json(document.get("settings", {}))
        again = TrainingSettings.from_json(json.loads(json.dumps(settings.to_json())))
        return again == settings and _same_types(settings, SETTINGS)


def _same_types(found: Any, right: Any) -> bool:
    """Whether all values of nested settings are of the types of those that are right."""
    if is_dataclass(right):
        return type(found) is type(right) and all(
            item.name in _OPTIONAL
            or _same_types(getattr(found, item.name), getattr(right, item.name))
            for item in fields(right)
        )
    return type(found) is type(right) or (isinstance(found, int) and isinstance(right, float))


_OPTIONAL = ("runs", "rule_from", "halter_from", "rule", "method")
