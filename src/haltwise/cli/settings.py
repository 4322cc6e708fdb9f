"""Options made of typed settings: a field's docstring is its help, its annotation its type."""

import inspect
import re
import tomllib
import types
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, final, get_args, get_origin, get_type_hints

import click

from haltwise._core import plugins
from haltwise._core.errors import InputError
from haltwise._core.nested_settings import Choice, Leaf, field_help, leaves, merge

__all__ = ["SettingsCommand", "Table", "collect"]

Table = Callable[[], Mapping[str, Any]]
"""From the name of a choice to its class, or to an instance."""

_PREFIX, _DOT = "setting__", "__"  # a parameter's name must be an identifier


@final
class _Value(click.ParamType[Any]):
    """A value of an annotated type, as it is typed in a shell."""

    def __init__(self, hint: Any) -> None:
        self._hint = hint
        self.name = _words(hint)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            found = _parse(value, self._hint)
            return _NONE if found is None else found
        except ValueError:
            self.fail(f"{value!r} is no {self.name}", param, ctx)


def _words(hint: Any) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return "|".join(_words(part) for part in parts)
    if origin is Literal:
        return "|".join(map(str, parts))
    names = {int: "integer", float: "number", str: "text", bool: "true|false", type(None): "none"}
    return names.get(hint, "list" if origin is list else "value")


def _parse(text: str, hint: Any) -> Any:
    """A typed value; lists have commas between, and "none" is None.

    Raises:
        ValueError: The text is no such value.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for part in parts:
            try:
                return _parse(text, part)
            except ValueError:
                continue
        raise ValueError(text)
    if origin is Literal:
        for part in parts:
            if str(part) == text:
                return part
        raise ValueError(text)
    if hint is type(None):
        if text.lower() == "none":
            return None
        raise ValueError(text)
    if hint is bool:
        found = {"true": True, "false": False}.get(text.lower())
        if found is None:
            raise ValueError(text)
        return found
    if hint in (int, float, str):
        return hint(text)
    if origin is list:
        return [_parse(part, parts[0]) for part in text.split(",") if part]
    raise ValueError(text)  # nested values come in a --config file


class SettingsCommand(click.Command):
    """A command whose options are the leaves of a settings class.

    The settings of a choice (a rule, a method, ...) are options as well: those of what the command
    line and its `--config` file name, or else of the defaults.

    Args:
        settings: The class of the settings.
        defaults: From the positional argument to nested settings under the command line's.
        tables: From the path of a choice to its table.
        excluded: Paths that are no options.
    """

    def __init__(
        self,
        *args: Any,
        settings: type[Any],
        defaults: Callable[[str | None, str], Mapping[str, Any]],
        tables: Mapping[str, Table],
        excluded: tuple[str, ...] = (),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._settings, self._defaults = settings, defaults
        self._tables, self._excluded = tables, excluded
        self._typed: list[str] = []

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        self._typed = list(args)
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *self._options()]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each section under a heading of its own."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                path = (param.name or "").removeprefix(_PREFIX).replace(_DOT, ".")
                is_setting = (param.name or "").startswith(_PREFIX)
                section = path.rpartition(".")[0] if is_setting else ""
                name = "Options" if not is_setting else f"Settings {section}".strip()
                sections.setdefault(name, []).append(record)
        for name, rows in sections.items():
            with formatter.section(name):
                formatter.write_dl(rows)

    def _options(self) -> Iterator[click.Option]:
        known = self._below()
        for leaf in leaves(self._settings):
            if leaf.path in self._excluded:
                continue
            below = known
            for part in leaf.path.split("."):
                below = below.get(part, {}) if isinstance(below, Mapping) else {}
            if leaf.hint is not Choice:
                default = leaf.default if below == {} else below
                yield _option(leaf, default)
                continue
            choice = below if isinstance(below, Mapping) else {"name": below}
            name = choice.get("name", leaf.default.name)
            if leaf.path != "family":
                text = Leaf(leaf.path, str, None, leaf.help)
                yield _option(text, name)
            given = choice.get("settings", {})
            for own in _own_leaves(self._tables[leaf.path](), name, leaf.path):
                field = own.path.rpartition(".")[2]
                yield _option(own, given.get(field, own.default))

    def _below(self) -> dict[str, Any]:
        """What lies under the options: defaults, the configuration file, and choices named."""
        named: dict[str, Any] = {}
        for path in self._tables:
            value = _typed_value(self._typed, f"--{path.replace('_', '-')}")
            if value is not None:
                named = merge(named, _nest(path, {"name": value, "settings": {}}))
        config = read_config(_typed_value(self._typed, "--config"))
        preset = _typed_value(self._typed, "--preset") or str(config.get("preset", "act"))
        family = next((arg for arg in self._typed if not arg.startswith("-")), None)
        family = family if family is not None and self._is_family(family) else None
        if family is None and "family" in config:
            own = config["family"]
            family = own if isinstance(own, str) else own.get("name")
        try:
            below = merge(self._defaults(family, preset), config, named)
        except InputError:
            return merge(config, named)
        if family is not None:
            settings = below.get("family", {})
            settings = settings.get("settings", {}) if isinstance(settings, Mapping) else {}
            below["family"] = {"name": family, "settings": settings}
        return below

    def _is_family(self, text: str) -> bool:
        return text in self._tables["family"]() or plugins.is_file(text)


def read_config(path: str | Path | None) -> dict[str, Any]:
    """The nested settings of a TOML file.

    Raises:
        InputError: There is no such file, or it is no TOML.
    """
    if path is None:
        return {}
    try:
        with Path(path).open("rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not TOML: {error}; fix that line") from None


def collect(
    values: Mapping[str, Any], choices: Collection[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A command's arguments, divided into settings as nested objects and all else.

    Args:
        values: By parameter name.
        choices: Paths of the choices, such as `rule`.
    """
    nested: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for key, value in values.items():
        if not key.startswith(_PREFIX):
            others[key] = value
            continue
        if value is None:
            continue
        path = key.removeprefix(_PREFIX).replace(_DOT, ".")
        section, _, name = path.rpartition(".")
        plain = None if value is _NONE else value
        if path in choices:
            nested = merge(_nest(path, {"name": plain, "settings": {}}), nested)
        elif section in choices:
            nested = merge(nested, _nest(f"{section}.settings.{name}", plain))
        else:
            nested = merge(nested, _nest(path, plain))
    return nested, others


_NONE = object()  # typed, unlike an option that was left out


def _nest(path: str, value: Any) -> dict[str, Any]:
    for part in reversed(path.split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _typed_value(args: list[str], option: str) -> str | None:
    for position, arg in enumerate(args):
        if arg == option and position + 1 < len(args):
            return args[position + 1]
        if arg.startswith(f"{option}="):
            return arg.partition("=")[2]
    return None


def _option(leaf: Leaf, default: Any) -> click.Option:
    shown = "none" if default is None else str(default).lower()
    if isinstance(default, str):
        shown = default
    return click.Option(
        [f"--{leaf.path.replace('_', '-')}", _PREFIX + leaf.path.replace(".", _DOT)],
        type=_Value(leaf.hint),
        help=f"{leaf.help.replace('`', '')}  [default: {shown}]",
    )


def _own_leaves(table: Mapping[str, Any], name: str, path: str) -> Iterator[Leaf]:
    """The settings of what a choice names, below PATH or PATH.settings."""
    found = table.get(name)
    if found is None and plugins.is_file(name):
        found = plugins.load_object(name, object, "setting")
    if found is None:
        return
    kind = found if isinstance(found, type) else type(found)
    hints = get_type_hints(kind.__init__)
    helps = field_help(kind) if is_dataclass(kind) else _argument_help(kind)
    if is_dataclass(kind):
        for base in kind.__mro__[1:]:
            if is_dataclass(base):
                helps = {**field_help(base), **helps}
        for field in fields(kind):
            default = field.default if isinstance(found, type) else getattr(found, field.name)
            default = None if default is MISSING else default
            yield Leaf(
                f"{path}.{field.name}", hints[field.name], default, helps.get(field.name, "")
            )
        return
    for name_, parameter in inspect.signature(kind.__init__).parameters.items():
        if name_ in ("self", "generator"):
            continue
        default = None if parameter.default is inspect.Parameter.empty else parameter.default
        yield Leaf(f"{path}.{name_}", hints.get(name_, str), default, helps.get(name_, ""))


def _argument_help(kind: type[Any]) -> dict[str, str]:
    """The help of a constructor's arguments, from the Args section of the class' docstring."""
    text = inspect.getdoc(kind) or ""
    _, _, section = text.partition("Args:\n")
    section = section.partition("\n\n")[0]
    entries = re.split(r"\n(?=    \w+: )", f"\n{section}")
    found = {}
    for entry in entries:
        name, colon, rest = entry.strip().partition(": ")
        if colon:
            found[name] = " ".join(rest.split())
    return found
