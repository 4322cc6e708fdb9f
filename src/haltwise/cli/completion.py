"""Completion in a shell: names are read off files, for importing what they name takes seconds.

Options are read off options.json, which `make completion` writes and a test compares with the
commands.
"""

import ast
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import final

import click
from click.shell_completion import CompletionItem

__all__ = [
    "Completed",
    "command",
    "family_names",
    "option_table",
    "run_names",
    "weight_names",
    "write_option_table",
    "written_option_table",
]

_PACKAGE = Path(__file__).parents[1]
_TABLE = Path(__file__).with_name("options.json")
_HELP = "Show this message and exit."  # which click makes when a command is first asked for it


def command(name: str) -> click.Command:
    """A command by its name, imported."""
    module = importlib.import_module(f"haltwise.cli.{name.replace('-', '_')}")
    found: click.Command = module.command
    return found


def family_names() -> list[str]:
    """The families of problems and of processes."""
    return sorted([*_keys("tasks", "FAMILIES"), *_keys("processes", "PROCESS_FAMILIES")])


def weight_names() -> list[str]:
    """The weights that come with the package."""
    return sorted(path.stem for path in (_PACKAGE / "models" / "weights").glob("*.safetensors"))


def run_names() -> list[str]:
    """The runs in the directory runs/ here."""
    found = [*Path("runs").glob("*/best.safetensors"), *Path("runs").glob("*/config.json")]
    return sorted({path.parent.name for path in found})


def _curve_models() -> list[str]:
    paths = (_PACKAGE / "curves" / "weights").glob("*.safetensors")
    return sorted(path.stem for path in paths)


def _runs_and_weights() -> list[str]:
    return [*weight_names(), *run_names()]


_Names = Callable[[], list[str]]
_ARGUMENTS: Mapping[str, _Names] = {
    "calibrate": run_names,
    "certify": run_names,
    "diagnose": _runs_and_weights,
    "evaluate": _runs_and_weights,
    "explore": _runs_and_weights,
    "judge": _curve_models,
    "recommend": family_names,
    "report": run_names,
    "study": _runs_and_weights,
    "train": family_names,
}
"""What the first argument of a command names; others are files."""
_OPTIONS: Mapping[str, _Names] = {
    "--baseline": _runs_and_weights,
    "--compare": _runs_and_weights,
    "--family": family_names,
    "--model": _curve_models,
    "--preset": lambda: ["act", "lstm", "thesis"],
    "--resume": run_names,
}


@final
class Completed(click.Command):
    """A command while its line is typed, which imports the real one for its options alone.

    Args:
        name: Of the command.
        help: In a sentence.
    """

    def __init__(self, name: str, help: str) -> None:  # noqa: A002 - click's word
        words = click.Argument(
            ["words"], nargs=-1, type=click.UNPROCESSED, shell_complete=self._values
        )
        settings = {"ignore_unknown_options": True, "help_option_names": []}
        super().__init__(name, help=help, params=[words], context_settings=settings)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The options."""
        assert self.name is not None
        words: Sequence[str] = ctx.params["words"]
        options = _written_options(self.name, words)
        if options is None:
            options = _options(self.name, words)
        every = {**options, "-h": _HELP, "--help": _HELP}
        return [
            CompletionItem(option, help=text)
            for option, text in every.items()
            if option.startswith(incomplete)
        ]

    def _values(
        self, ctx: click.Context, _: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Names that an argument or an option takes, or files where there are none."""
        assert self.name is not None
        words: Sequence[str] = ctx.params["words"]
        option = words[-1] if words and words[-1] in _OPTIONS else None
        first = not any(
            not word.startswith("-") and not before.startswith("-")
            for before, word in zip(("", *words), words, strict=False)
        )
        names: Iterable[str] = ()
        if option is not None:
            names = _OPTIONS[option]()
        elif first and self.name in _ARGUMENTS:
            names = _ARGUMENTS[self.name]()
        found = [CompletionItem(name) for name in names if name.startswith(incomplete)]
        return found or [CompletionItem(incomplete, type="file")]


Options = dict[str, str]
"""Names, with what each is for."""


def option_table(names: Iterable[str]) -> dict[str, Options]:
    """The options of every command, and those that a family adds or changes; imports them all.

    Args:
        names: Of the commands.

    Returns:
        By command; by "train FAMILY" what is not as it is without one. A family that takes options
        away is not there.
    """
    table = {name: _options(name, []) for name in names}
    plain = table["train"]
    for family in family_names():
        own = _options("train", [family])
        if own.keys() >= plain.keys():
            changed = {key: text for key, text in own.items() if plain.get(key) != text}
            table[f"train {family}"] = changed
    return table


def write_option_table(names: Iterable[str]) -> None:
    """Bring options.json up to date with the commands."""
    _TABLE.write_text(json.dumps(option_table(names), indent=1) + "\n", encoding="utf-8")


def written_option_table() -> dict[str, Options]:
    """What `write_option_table` wrote."""
    table: dict[str, Options] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return table


def _written_options(name: str, words: Sequence[str]) -> Options | None:
    """The options of a command after some words, or None where the table cannot tell."""
    table = written_option_table()
    found = table[name]
    typed = {word.partition("=")[0] for word in words}
    # What is chosen among several has options of its own, and a preset or a file chooses, too.
    chosen = typed & {"--config", "--preset", *(option.rpartition(".")[0] for option in found)}
    if chosen or any(".py:" in word for word in words):
        return None
    families = typed.intersection(family_names()) if name == "train" else ()
    for family in families:
        if f"train {family}" not in table:
            return None
        found |= table[f"train {family}"]
    return found


def _options(name: str, words: Sequence[str]) -> Options:
    """The options of a command after some words, imported."""
    real = command(name)
    with real.make_context(name, list(words), resilient_parsing=True) as typed:
        return {
            option: param.help or ""
            for param in real.get_params(typed)
            if isinstance(param, click.Option) and not param.hidden and "--help" not in param.opts
            for option in (*param.opts, *param.secondary_opts)
        }


def _keys(room: str, table: str) -> Iterator[str]:
    """The names in the table `table` of every module of a room."""
    for path in sorted((_PACKAGE / room).glob("*.py")):
        text = path.read_text(encoding="utf-8")
        if f"\n{table} = " not in text:
            continue
        for node in ast.parse(text).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                if table in names:
                    for key in node.value.keys:
                        if isinstance(key, ast.Constant) and isinstance(key.value, str):
                            yield key.value
