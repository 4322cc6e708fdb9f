"""Dataclasses of tensors."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, TypeVar

from torch import Tensor

__all__ = ["map_tensors"]

Record = TypeVar("Record")


def map_tensors(record: Record, function: Callable[[Tensor], Tensor]) -> Record:
    """A copy of the dataclass `record` with `function` applied to every field that is a tensor."""
    anything: Any = record
    changed = {
        field.name: function(value)
        for field in fields(anything)
        if isinstance(value := getattr(record, field.name), Tensor)
    }
    copy: Record = replace(anything, **changed)
    return copy
