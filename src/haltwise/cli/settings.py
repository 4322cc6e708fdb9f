"""Options made of typed settings: a field's docstring is its help, its annotation its type."""

import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, final

import click

from haltwise._core.errors import InputError
from haltwise._core.nested_settings import Choice, Leaf, checked, leaves
from haltwise.cli.values import NONE, SettingType
from haltwise.training import TrainingSettings
from haltwise.training.choices import CHOICES, settings_of

__all__ = ["SettingsCommand", "Typed", "read_config"]

_OPTIONS = "haltwise.setting_options"


@final
class Typed(NamedTuple):
    """A command line before it is parsed: the options are not known yet, only that they are.

    Attributes:
        options: Values by option, the last of each, those of flags left out.
        arguments: Positional arguments.
    """

    options: Mapping[str, str]
    arguments: Sequence[str]

    @classmethod
    def scan(cls, args: Sequence[str], flags: frozenset[str]) -> "Typed":
        """Tell options from arguments, where every option but the `flags` takes one value."""
        options, arguments = {}, []
        words = iter(args)
        for word in words:
            if not word.startswith("-"):
                arguments.append(word)
            elif "=" in word:
                name, _, value = word.partition("=")
                options[name] = value
            elif word not in flags:
                options[word] = next(words, "")
        return cls(options, arguments)


@final
class SettingOption(click.Option):
    """An option for one setting.

    Args:
        leaf: The setting, with the default that is shown.
    """

    def __init__(self, leaf: Leaf) -> None:
        self.path = leaf.path
        note = "required" if leaf.required else f"default: {_shown(leaf.default)}"
        kind = SettingType(leaf.hint)
        super().__init__(
            [f"--{leaf.path.replace('_', '-')}", f"setting__{leaf.path.replace('.', '__')}"],
            type=kind,
            metavar=kind.name if "|" in kind.name else kind.name.upper(),
            help=f"{leaf.help.replace('`', '')}  [{note}]",
        )

    @property
    def section(self) -> str:
        """Path of the section that it belongs to, empty at the top."""
        return self.path.rpartition(".")[0]


@final
class SettingsCommand(click.Command):
    """A command whose options are settings, handed to its function as nested `settings`.

    The settings of a choice (a rule, a method, ...) are options as well: those of what the command
    line names, or else the settings below it.

    Args:
        sections: Paths of the settings and sections that are options.
        below: From the command line to nested settings that its options go over.
    """

    def __init__(
        self,
        *args: Any,
        sections: Sequence[str],
        below: Callable[[Typed], Mapping[str, Any]],
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._sections, self._below = sections, below

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = [param for param in super().get_params(ctx) if isinstance(param, click.Option)]
        flags = frozenset(name for option in options if option.is_flag for name in option.opts)
        typed = Typed.scan(args, flags)
        ctx.meta[_OPTIONS] = [SettingOption(leaf) for leaf in self._leaves(typed)]
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *ctx.meta.get(_OPTIONS, ())]

    def invoke(self, ctx: click.Context) -> Any:
        nested: dict[str, Any] = {}
        for option in ctx.meta[_OPTIONS]:
            value = ctx.params.pop(option.name)
            if value is None:
                continue
            path = option.path
            if path in CHOICES:
                path = f"{path}.name"
            elif option.section in CHOICES:
                path = f"{option.section}.settings.{path.rpartition('.')[2]}"
            _put(nested, path.split("."), None if value is NONE else value)
        ctx.params["settings"] = nested
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each section under a heading of its own."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                title = "Options"
                if isinstance(param, SettingOption):
                    title = f"Settings of {param.section}" if param.section else "Settings"
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)

    def _leaves(self, typed: Typed) -> Iterator[Leaf]:
        """The settings that are options; their defaults are those below the command line."""
        below = self._below(typed)
        for leaf in leaves(TrainingSettings):
            if not any(f"{leaf.path}.".startswith(f"{section}.") for section in self._sections):
                continue
            if leaf.hint is Choice:
                yield from _choice_leaves(leaf, below, typed)
            else:
                yield replace(leaf, default=_find(below, leaf.path.split("."), leaf.default))


def _choice_leaves(leaf: Leaf, below: Mapping[str, Any], typed: Typed) -> Iterator[Leaf]:
    """A choice, and the settings of what it names; a family is an argument instead."""
    choice = _find(below, leaf.path.split("."), {})
    settings = choice.get("settings", {})
    name = choice.get("name", leaf.default.name)
    if leaf.path == "family":
        if "name" not in choice:
            return
    else:
        table = CHOICES[leaf.path].table()
        text = f"{leaf.help} Names: {', '.join(table)}."
        yield replace(leaf, hint=str, default=name, help=text)
        other = typed.options.get(f"--{leaf.path}", name)
        name, settings = other, settings if other == name else {}
    for own in settings_of(leaf.path, name):
        field = own.path.rpartition(".")[2]
        if field in settings:
            yield replace(own, default=settings[field], required=False)
        else:
            yield own


def _shown(default: Any) -> str:
    """A default as it would be typed."""
    if isinstance(default, list):
        return ",".join(map(str, default)) or "none"
    return (default or "empty") if isinstance(default, str) else str(default).lower()


def _find(tree: Mapping[str, Any], path: Sequence[str], default: Any) -> Any:
    """What lies at a path in nested objects, or else the default."""
    for part in path:
        if not isinstance(tree, Mapping) or part not in tree:
            return default
        tree = tree[part]
    return tree


def _put(tree: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Set a value at a path in nested objects."""
    *sections, name = path
    for section in sections:
        tree = tree.setdefault(section, {})
    tree[name] = value


def read_config(path: str | Path | None) -> dict[str, Any]:
    """Read nested training settings from a TOML file; None holds none.

    Raises:
        InputError: There is no such file, it is not TOML, or a setting in it is unknown or of
            another type.
    """
    if path is None:
        return {}
    try:
        with Path(path).open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not TOML: {error}; fix that line") from None
    try:
        return checked(TrainingSettings, document)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
