"""The help of settings, read from the source of the class that takes them."""

import ast
import inspect
import re
import textwrap
from dataclasses import is_dataclass
from typing import Any

__all__ = ["setting_help"]


def setting_help(kind: type[Any]) -> dict[str, str]:
    """Find what each setting of a class is described by, each text on one line.

    That is the docstring of a dataclass' field, its base classes' included, or else the entry of
    the setting in the section `Args:` of the class' docstring. Settings without either are left
    out, as is everything where there is no source.
    """
    found = _arguments_help(kind)
    for base in reversed(kind.__mro__):
        if is_dataclass(base):
            found |= _fields_help(base)
    return found


def _fields_help(kind: type[Any]) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(kind))
    except (OSError, TypeError):
        return {}
    body = ast.parse(source).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            found[field.target.id] = " ".join(text.value.value.split())
    return found


def _arguments_help(kind: type[Any]) -> dict[str, str]:
    _, _, section = (inspect.getdoc(kind) or "").partition("Args:\n")
    section = section.partition("\n\n")[0]
    found = {}
    for entry in re.split(r"\n(?=    \w+: )", f"\n{section}"):
        name, colon, text = entry.strip().partition(": ")
        if colon:
            found[name] = " ".join(text.split())
    return found
