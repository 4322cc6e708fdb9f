"""Options made of typed settings: a field's docstring is its help, its annotation its type."""

import contextlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, final, get_args, get_origin

import click

from haltwise._core.nested_settings import Choice, Leaf, leaves, merge
from haltwise._core.settings import alternatives, words
from haltwise.training import TrainingSettings
from haltwise.training.choices import CHOICES, settings_of

__all__ = ["SettingOption", "SettingsCommand", "parse", "setting_leaves"]

LeavesOf = Callable[[Mapping[str, str], Sequence[str]], Iterable[Leaf]]
_OPTIONS = "haltwise.setting_options"


@final
class SettingOption(click.Option):
    """An option for one setting, with the default that is shown."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        note = "required" if leaf.required else f"default: {_shown(leaf.default)}"
        kind = words(leaf.hint)
        super().__init__(
            [f"--{leaf.path.replace('_', '-')}", f"setting__{leaf.path.replace('.', '__')}"],
            metavar=kind.upper() if kind.isalpha() else kind,
            help=f"{leaf.help.replace('`', '')}  [{note}]",
        )

    @property
    def section(self) -> str:
        """Path of the section that it belongs to, empty at the top."""
        return self.leaf.path.rpartition(".")[0]

    def nested(self, text: str) -> Any:
        """The typed value within nested settings."""
        path = self.leaf.path
        if path in CHOICES:
            path = f"{path}.name"
        elif self.section in CHOICES:
            path = f"{self.section}.settings.{path.rpartition('.')[2]}"
        value = parse(text, self.leaf.hint)
        for part in reversed(path.split(".")):
            value = {part: value}
        return value


@final
class SettingsCommand(click.Command):
    """A command with options for settings, handed to its function as nested `settings`.

    Which settings those are, `leaves` tells from the options and the arguments that are typed.
    """

    def __init__(self, *args: Any, leaves: LeavesOf, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leaves = leaves

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        options = [param for param in super().get_params(ctx) if isinstance(param, click.Option)]
        flags = {name for option in options if option.is_flag for name in option.opts}
        ctx.meta[_OPTIONS] = [SettingOption(leaf) for leaf in self._leaves(*_scan(args, flags))]
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *ctx.meta.get(_OPTIONS, ())]

    def invoke(self, ctx: click.Context) -> Any:
        typed = [(option, ctx.params.pop(option.name)) for option in ctx.meta[_OPTIONS]]
        given = [option.nested(text) for option, text in typed if text is not None]
        ctx.params["settings"] = merge(*given)
        return super().invoke(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each section under a heading of its own."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if isinstance(param, click.Option) and record is not None:
                title = "Options"
                if isinstance(param, SettingOption):
                    title = f"Settings of {param.section}" if param.section else "Settings"
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _scan(args: Sequence[str], flags: Collection[str]) -> tuple[dict[str, str], list[str]]:
    """Tell options (the last value of each, no flags) from arguments, before they are parsed."""
    options, arguments = {}, []
    typed = iter(args)
    for word in typed:
        if not word.startswith("-"):
            arguments.append(word)
        elif "=" in word:
            name, _, value = word.partition("=")
            options[name] = value
        elif word not in flags:  # every other option takes one value
            options[word] = next(typed, "")
    return options, arguments


def setting_leaves(
    typed: Mapping[str, str], below: Mapping[str, Any], is_option: Callable[[str], object]
) -> Iterator[Leaf]:
    """List the settings of a training that are options: those at whose path `is_option`.

    The settings of a choice (a rule, a method, ...) are options as well: those of what the command
    line names, or else the settings `below` it, which also are the defaults.
    """
    for leaf in leaves(TrainingSettings):
        if is_option(leaf.path):
            if leaf.hint is Choice:
                yield from _choice_leaves(leaf, below, typed)
            else:
                yield replace(leaf, default=_find(below, leaf.path, leaf.default))


def _choice_leaves(
    leaf: Leaf, below: Mapping[str, Any], typed: Mapping[str, str]
) -> Iterator[Leaf]:
    """A choice, and the settings of what it names; a family is an argument instead."""
    choice = _find(below, leaf.path, {})
    settings = choice.get("settings", {})
    name = choice.get("name", leaf.default.name)
    if leaf.path == "family" and "name" not in choice:
        return
    if leaf.path != "family":
        text = f"{leaf.help} Names: {', '.join(CHOICES[leaf.path].table())}."
        yield replace(leaf, hint=str, default=name, help=text)
        other = typed.get(f"--{leaf.path}", name)
        name, settings = other, settings if other == name else {}
    for own in settings_of(leaf.path, name):
        field = own.path.rpartition(".")[2]
        if field in settings:
            yield replace(own, default=settings[field], required=False)
        else:
            yield own


def _find(tree: Mapping[str, Any], path: str, default: Any) -> Any:
    """What lies at a path in nested objects, or else the default."""
    for part in path.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            return default
        tree = tree[part]
    return tree


def _shown(default: Any) -> str:
    """A default as it would be typed."""
    if isinstance(default, list):
        return ",".join(map(str, default)) or "none"
    return (default or "empty") if isinstance(default, str) else str(default).lower()


def parse(text: str, hint: Any) -> Any:
    """Read a value as it is typed: "none" is None, lists have commas between or are JSON.

    What is no value of the annotation stays text, to be refused by the check of all settings.
    """
    kinds = alternatives(hint)
    if text == "none" and type(None) in kinds:
        return None
    if str in kinds:
        return text
    for kind in kinds:
        if get_origin(kind) in (list, Sequence) and not text.startswith("["):
            return [parse(part, get_args(kind)[0]) for part in text.split(",")]
    with contextlib.suppress(ValueError):
        return float(text) if float in kinds else json.loads(text)
    return text
