"""The directory of a run: its settings, the last checkpoints, the best weights.

    config.json                             written once, first of all
    checkpoints/step-00000100.safetensors   whole states, the last few of them
    best.safetensors                        the weights to use, with their card
    log.jsonl
    .lock                                   held while a process trains here

A checkpoint holds all that the others are made of, the best weights too, so one good checkpoint
is enough to go on exactly; `best.safetensors` is only a copy for use.
"""

import contextlib
import json
import os
import re
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from haltwise._core.errors import CheckpointWarning, InputError, require, warn
from haltwise._core.files import (
    load_tensors,
    make_directory,
    read_json,
    save_tensors,
    write_atomically,
)
from haltwise._core.locks import lock
from haltwise.models.card import Card
from haltwise.models.files import save_model
from haltwise.training.run.log import LOG

__all__ = ["Checkpoint", "RunDirectory", "differences", "refuse_drift"]

_CONFIG, _CHECKPOINTS, _BEST = "config.json", "checkpoints", "best.safetensors"
_LOCK = ".lock"
_CHECKPOINT = re.compile(r"step-(\d{8,18})\.safetensors", re.ASCII)
_LEFTOVER = ".*.tmp"  # of a process that was killed while it wrote

Checkpoint = tuple[dict[str, Tensor], dict[str, Any]]
"""Tensors and a JSON document."""


@final
class RunDirectory:
    """Reads and writes one run, of which it keeps the last `keep` checkpoints."""

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep
        self._unlock: weakref.finalize[[int], RunDirectory] | None = None
        self._locked: os.stat_result | None = None

    @staticmethod
    def require_free(path: Path) -> None:
        """Refuse a directory that holds a run, or weights of one that it would overwrite."""
        require(
            not (path / _CONFIG).exists(),
            f"{path} holds a run already; resume it or choose another directory",
        )
        for left in (path / _BEST, path / LOG, path / _CHECKPOINTS):
            require(
                not (any(left.iterdir()) if left.is_dir() else left.exists()),
                f"{path} holds no run, for there is no {path / _CONFIG}, but {left} would be "
                "overwritten; move it or choose another directory",
            )

    @staticmethod
    def read(path: Path) -> dict[str, Any]:
        """Read what `create` wrote.

        Raises:
            InputError: There is no run, or its file is corrupt.
        """
        config = path / _CONFIG
        require(config.exists(), f"{path} holds no run: there is no {config}")
        return read_json(config)

    def create(self, document: Mapping[str, Any]) -> None:
        """Begin a run and lock it, unless another process has begun one there meanwhile."""
        make_directory(self.path)
        self.lock()
        self.require_free(self.path)
        write_atomically(self.path / _CONFIG, (json.dumps(document, indent=2) + "\n").encode())
        make_directory(self.path / _CHECKPOINTS)

    def lock(self) -> None:
        """Keep other processes from training here, until `unlock` or the end of this one.

        Where there are no locks it does nothing.

        Raises:
            InputError: Another process trains here, or the lock cannot be written.
        """
        if self._unlock is not None and self._unlock.alive:
            return
        descriptor = lock(self.path / _LOCK, self._is_taken())
        if descriptor is not None:
            self._unlock = weakref.finalize(self, os.close, descriptor)
            self._locked = os.fstat(descriptor)

    def _is_taken(self) -> str:
        return f"{self.path} is being trained by another process; wait for it or end it"

    def require_locked(self) -> None:
        """Refuse to write where another run has taken the place of a directory removed meanwhile.

        Raises:
            InputError: The lock is not the file that was locked.
        """
        with contextlib.suppress(FileNotFoundError):
            found = (self.path / _LOCK).stat()
            require(self._locked is None or os.path.samestat(found, self._locked), self._is_taken())

    def unlock(self) -> None:
        """Let others train here."""
        if self._unlock is not None:
            self._unlock()

    def checkpoints(self) -> list[tuple[int, Path]]:
        """Steps and files of the checkpoints, the newest first.

        Raises:
            InputError: They cannot be listed; to begin anew would be to lose them.
        """
        try:
            paths = list((self.path / _CHECKPOINTS).iterdir())  # a glob would hide the error
        except FileNotFoundError:
            return []
        except OSError as error:
            raise InputError(
                f"cannot read {self.path / _CHECKPOINTS}: {error.strerror}; correct its permissions"
            ) from None
        found = [
            (int(match[1]), path) for path in paths if (match := _CHECKPOINT.fullmatch(path.name))
        ]
        return sorted(found, reverse=True)

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Write the checkpoint of `step`; those of later steps, and old ones, are removed.

        Later ones are there after a rollback. They go first: whichever is the newest at any
        instant lies on the one path that the run takes.

        Raises:
            InputError: The directory cannot be written; the checkpoints before are still there.
        """
        self.require_locked()
        for other, path in self.checkpoints():
            if other > step:
                self._remove(path)
        with contextlib.suppress(OSError):  # if it cannot be made, writing says so
            (self.path / _CHECKPOINTS).mkdir(exist_ok=True)
        save_tensors(self._at(step), *checkpoint)
        for _, path in self.checkpoints()[self.keep :]:
            self._remove(path)

    def newest(self) -> tuple[int, Checkpoint] | None:
        """The step and the content of the newest checkpoint that is whole; None if there is none.

        Warns:
            CheckpointWarning: A corrupt one was skipped.

        Raises:
            InputError: All of them are corrupt.
        """
        faults = []
        for step, path in self.checkpoints():
            try:
                return step, load_tensors(path)
            except InputError as error:
                faults.append(str(error))
                warn(
                    f"passed over a checkpoint and took the one before: {error}",
                    CheckpointWarning,
                )
        require(
            not faults,
            f"no checkpoint of {self.path} can be read ({'; '.join(faults)}); remove "
            f"{self.path / _CHECKPOINTS} to begin anew",
        )
        return None

    def load(self, step: int) -> Checkpoint:
        """The checkpoint of `step`, which another worker has found good; see `newest`."""
        return load_tensors(self._at(step))

    def _at(self, step: int) -> Path:
        return self.path / _CHECKPOINTS / f"step-{step:08d}.safetensors"

    def export(self, weights: Mapping[str, Tensor], card: Card) -> None:
        """Write the weights for use."""
        self.require_locked()
        save_model(self.path / _BEST, weights, card)

    def holds(self, weights: Mapping[str, Tensor], card: Card) -> bool:
        """Whether the weights for use are these; false where they are missing or corrupt.

        They are, too, if `haltwise calibrate` has since chosen anew when they stop.
        """
        try:
            found, document = load_tensors(self.path / _BEST)
        except InputError:
            return False
        is_own = document == json.loads(json.dumps({"card": card.to_json()}))
        with contextlib.suppress(KeyError, TypeError):  # a card of other weights
            is_own |= "command" in document["card"]["provenance"]["calibration"]
        return (
            is_own
            and found.keys() == weights.keys()
            and all(torch.equal(value.cpu(), found[name]) for name, value in weights.items())
        )

    def clean(self) -> None:
        """Remove what killed processes left half written."""
        for directory in (self.path, self.path / _CHECKPOINTS):
            for path in directory.glob(_LEFTOVER):
                self._remove(path)

    @staticmethod
    def _remove(path: Path) -> None:
        with contextlib.suppress(OSError):  # a file too many does no harm
            path.unlink()


def refuse_drift(directory: Path, written: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a run under other settings than it began with.

    Raises:
        InputError: The two documents differ.
    """
    found = differences(*(json.loads(json.dumps(document)) for document in (written, now)))
    require(
        not found,
        f"{directory} holds a run of other settings ({'; '.join(found)}); go on with its own by "
        "--resume, or choose another directory",
    )


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """List where two JSON documents differ, `name: old -> new` each; names are dotted.

    Examples:
        >>> differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": None})
        ['a.c: 2 -> 3', 'd: nothing -> None']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for name in sorted({*old, *new}):
            inner = f"{path}.{name}" if path else name
            found += differences(old.get(name, _NOTHING), new.get(name, _NOTHING), inner)
        return found
    same = type(old) is type(new) or {type(old), type(new)} <= {int, float}
    return [] if same and old == new else [f"{path}: {old!r} -> {new!r}"]


class _Nothing:
    def __repr__(self) -> str:
        return "nothing"


_NOTHING = _Nothing()
