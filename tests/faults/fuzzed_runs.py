"""Fuzzed weights and configurations."""

import contextlib
import json
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from hypothesis import strategies as st

import haltwise
from faults.mutations import mutated, warped
from faults.runs import CONFIG
from haltwise._core.files import digest, load_tensors
from haltwise.training import TrainingConfig
from haltwise.training.run.directory import RunDirectory

_WEIGHTS = Path(haltwise.__file__).parent / "models" / "weights"


class Weights:
    """A weights file with a few bytes changed: accepted only if the content is the same."""

    name = "weights"

    def __init__(self, root: Path) -> None:
        self.path = root / "weights.safetensors"
        self.content = (_WEIGHTS / "regression-2d-thesis.safetensors").read_bytes()
        self.path.write_bytes(self.content)
        self.tensors, self.card = load_tensors(self.path)

    def read(self, data: st.DataObject) -> bool:
        self.path.write_bytes(mutated(data, self.content))
        optimizer = haltwise.load(self.path)
        weights = optimizer.state_dict()
        return optimizer.card == self.card and all(
            torch.equal(value, weights[name]) for name, value in self.tensors.items()
        )


class Resealed(Weights):
    """Hostile content under a right checksum: what is accepted must do its work."""

    name = "weights with a right checksum"

    def read(self, data: st.DataObject) -> bool:
        card, tensors = self.card, dict(self.tensors)
        if data.draw(st.booleans()):
            card = warped(data, card)
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
        document = json.dumps(card)
        header = {"haltwise": document, "blake2b": digest(tensors, document)}
        self.path.write_bytes(safetensors.torch.save(tensors, header))
        optimizer = haltwise.load(self.path)
        params = torch.ones(3, 2)
        step = optimizer.step(
            0, torch.ones(3), params, torch.full((3,), 0.05), optimizer.init(params)
        )
        with contextlib.suppress(KeyError):  # a card may say nothing of halting
            optimizer.policy()
        return bool(step.update.isfinite().all())


class Configurations:
    """A run's configuration with entries replaced: what is accepted is of the right types."""

    name = "configurations"

    def __init__(self, root: Path) -> None:
        self.path = root / "run" / "config.json"
        self.path.parent.mkdir()
        self.document = {"config": CONFIG.to_json(), "command": ""}

    def read(self, data: st.DataObject) -> bool:
        if data.draw(st.booleans()):
            content = mutated(data, json.dumps(self.document).encode())
        else:
            content = json.dumps(warped(data, self.document)).encode()
        self.path.write_bytes(content)
        document = RunDirectory.read(self.path.parent)
        config = TrainingConfig.from_json(document.get("config", {}))
        return (
            all(
                type(value) is type(getattr(CONFIG, name))
                or (isinstance(value, int) and isinstance(getattr(CONFIG, name), float))
                or name in ("rule_from", "head_from", "continuation")
                for name, value in vars(config).items()
            )
            and TrainingConfig.from_json(json.loads(json.dumps(asdict(config)))) == config
        )
