"""Anybody's own family, from a Python file: `path/to/family.py:MyFamily`."""

import importlib.util
import inspect
import json
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from haltwise._core import discovery as _discovery
from haltwise._core.errors import InputError, require
from haltwise._core.random import stream
from haltwise.tasks.base import TaskBatch, TaskFamily

__all__ = ["family_from_file", "is_file", "label", "resolve", "whereabouts"]

_WRITE = {
    "dim": "`@property` `def dim(self) -> int:`, the number of parameters of one problem",
    "_sample": "`def _sample(self, num_problems, generator):`, which returns a TaskBatch such as "
    "haltwise.FunctionBatch",
    "observe": "`def observe(self, params, step):`, which returns a haltwise.tasks.Observation of "
    "losses [B] and gradients [B, D]",
    "reference_loss": "`@property` `def reference_loss(self):`, losses [B] to measure excess from",
}


def is_file(name: str) -> bool:
    """Whether `name` has the form PATH.py:NAME."""
    path, colon, attribute = name.rpartition(":")
    return bool(colon) and path.endswith(".py") and attribute.isidentifier()


def resolve(name: str) -> str:
    """The name of a family as it is found from any directory."""
    if not is_file(name):
        return name
    path, _, attribute = name.rpartition(":")
    return f"{Path(path).resolve()}:{attribute}"


def label(name: str) -> str:
    """What to call it in a table or a file name."""
    return name.rpartition(":")[2] if is_file(name) else name


def whereabouts(family: TaskFamily) -> str:
    """PATH.py:NAME of a family's class.

    Raises:
        InputError: It is not defined at the top of a file.
    """
    kind = type(family)
    try:
        path = inspect.getfile(kind)
    except (TypeError, OSError):
        path = ""
    name = f"{path}:{kind.__qualname__}"
    require(
        is_file(name),
        f"{kind.__qualname__} must be defined at the top of a .py file, so that the run finds it "
        "again; move it there",
    )
    return resolve(name)


def family_from_file(name: str, settings: Mapping[str, Any] | None = None) -> TaskFamily:
    """Execute the file and take the family from it, tried on two problems.

    Args:
        name: PATH.py:NAME, where NAME is a subclass of TaskFamily or an instance of one.
        settings: Of its dataclass fields, those that are to differ.

    Raises:
        InputError: The file does not run, or what it defines is no family; the message names file,
            line and what to write.
    """
    place, _, attribute = name.rpartition(":")
    path = Path(place)
    require(
        path.is_file(),
        f"there is no file {path} to take the family {attribute} from; if it has moved, say where "
        "it is, as in --family NEW/PLACE.py:NAME",
    )
    module = _execute(path)
    defined = [
        key
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, TaskFamily) and value is not TaskFamily
    ]
    require(
        hasattr(module, attribute),
        f"{path} defines no {attribute}; "
        + (f"it has {', '.join(defined)}" if defined else f"write {_a_class(attribute)}"),
    )
    found = getattr(module, attribute)
    kind = found if isinstance(found, type) else type(found)
    require(
        issubclass(kind, TaskFamily),
        f"{path}, line {_line(kind, module)}: {attribute} is no family of problems; write "
        f"{_a_class(attribute)}",
    )
    _require_methods(kind, module, path)
    known = [field.name for field in fields(kind)]
    for setting in settings or {}:
        require(setting in known, _discovery.unknown(setting, known, f"setting of {attribute}"))
    with _Blame(path, _line(kind, module)):
        family: TaskFamily = (
            found(**settings or {}) if found is kind else replace(found, **settings or {})
        )
        json.dumps(asdict(family))  # for the card
    _try(family, path, _line(kind, module), module)
    return family


def _a_class(name: str) -> str:
    return f"`class {name}(haltwise.tasks.TaskFamily):` with the methods dim and _sample"


def _execute(path: Path) -> ModuleType:
    identity = f"haltwise_family_{path.resolve().stem}"
    spec = importlib.util.spec_from_file_location(identity, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[identity] = module  # dataclasses look their module up
    sys.path.insert(0, str(path.resolve().parent))  # as `python path` would
    try:
        with _Blame(path):
            spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.resolve().parent))
    return module


def _line(kind: type, module: ModuleType) -> int:
    """Where a class of the module is defined; 1 where nobody knows."""
    try:
        return inspect.getsourcelines(kind)[1] if kind.__module__ == module.__name__ else 1
    except (OSError, TypeError):
        return 1


def _require_methods(kind: type, module: ModuleType, path: Path) -> None:
    lacking = sorted(getattr(kind, "__abstractmethods__", ()))
    require(
        not lacking,
        f"{path}, line {_line(kind, module)}: {kind.__name__} lacks {' and '.join(lacking)}; write "
        + " and ".join(_WRITE.get(method, f"`def {method}(self, ...):`") for method in lacking),
    )


class _Blame:
    """Turns whatever a user's file raises into a sentence with its line."""

    def __init__(self, path: Path, line: int = 1) -> None:
        self._path, self._line = path, line

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None or not isinstance(error, (Exception, SystemExit)):
            return
        line = self._line
        if isinstance(error, SyntaxError) and error.lineno is not None:
            line = error.lineno
        for frame in traceback.extract_tb(error.__traceback__):
            if Path(frame.filename).resolve() == self._path.resolve() and frame.lineno:
                line = frame.lineno  # the deepest of its own
        said = str(error).partition("\n")[0].rstrip(". ")
        raise InputError(
            f"{self._path}, line {line}: {type(error).__name__}: {said}; mend that line"
        ) from error


def _try(family: TaskFamily, path: Path, line: int, module: ModuleType) -> None:
    """Draw two problems and look at them, before hours go by."""
    here = f"{path}, line {line}: "
    name = type(family).__name__
    with _Blame(path, line):
        dim = family.dim
    require(
        isinstance(dim, int) and dim >= 1,
        f"{here}{name}.dim must be a number of parameters, at least 1, got {dim!r}",
    )
    for value in vars(module).values():  # before one is made, to say what it lacks
        batch_class = isinstance(value, type) and issubclass(value, TaskBatch)
        if batch_class and value.__module__ == module.__name__:
            _require_methods(value, module, path)
    with _Blame(path, line):
        drawn: object = family._sample(2, stream(0, "try"))
    if not isinstance(drawn, TaskBatch):
        raise InputError(
            f"{here}{name}._sample must return a TaskBatch such as haltwise.FunctionBatch, got "
            f"{type(drawn).__name__}"
        )
    with _Blame(path, line):
        batch = family.sample(2, stream(0, "try"))
        seen = batch.evaluate(batch.start, 0)
    shapes = {
        "start": (batch.start, [2, dim]),
        "the loss": (seen.loss, [2]),
        "the gradient": (seen.grad, [2, dim]),
        "the excess loss": (seen.excess, [2]),
    }
    for what, (tensor, shape) in shapes.items():
        require(
            isinstance(tensor, Tensor) and list(tensor.shape) == shape,
            f"{here}{what} of 2 problems of {name} must have shape {shape}, got "
            + (f"{list(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__),
        )
    require(
        bool(torch.isfinite(seen.loss).any()),
        f"{here}the loss at the start of both problems tried is not finite; start elsewhere",
    )
    again = family.sample(2, stream(0, "try"))
    require(
        torch.equal(again.evaluate(again.start, 0).loss, seen.loss),
        f"{here}{name}._sample draws other problems from the same generator; pass it on, as in "
        "`torch.randn(..., generator=generator)`",
    )
