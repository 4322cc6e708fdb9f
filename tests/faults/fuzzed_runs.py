"""Fuzzed weights and configurations."""

import contextlib
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from hypothesis import strategies as st

import haltwise
from faults.mutations import mutated, warped
from faults.runs import SETTINGS
from haltwise import InputError
from haltwise._core.files import digest, load_tensors
from haltwise.models import Card
from haltwise.processes import OptimizationProcess
from haltwise.rollout import record_process
from haltwise.tasks import family
from haltwise.training import TrainingSettings
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
        content, tensors = self.document, dict(self.tensors)
        if data.draw(st.booleans()):
            content = warped(data, content)
        else:
            name = data.draw(st.sampled_from(sorted(tensors)))
            change = data.draw(st.integers(0, 6))
            value = tensors[name]
            if change == 0:
                del tensors[name]
            elif change == 1:
                tensors[data.draw(st.text(min_size=1, max_size=9))] = value.clone()
            else:
                tensors[name] = (
                    value.double(),
                    value.half(),
                    value.unsqueeze(0).contiguous(),
                    value.flatten()[:1].clone(),
                    torch.full_like(value, float("nan")),
                )[change - 2]
        document = json.dumps(content)
        header = {"haltwise": document, "blake2b": digest(tensors, document)}
        self.path.write_bytes(safetensors.torch.save(tensors, header))
        optimizer = haltwise.load(self.path)
        batch = family("regression-2d").sample(3, torch.Generator().manual_seed(0))
        trajectory = record_process(OptimizationProcess(optimizer.rule, batch), 2)
        optimizer.halting.attach(trajectory, 0.05)
        with contextlib.suppress(InputError):  # a card may say nothing of halting
            optimizer.policy()
        assert trajectory.final is not None
        return bool(trajectory.final.isfinite().all())


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
