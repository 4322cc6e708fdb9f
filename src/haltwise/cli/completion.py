"""Completion in a shell: names are read off files, for importing what they name takes seconds."""

import ast
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import final

import click
from click.shell_completion import CompletionItem

__all__ = ["Completed", "command", "family_names", "run_names", "weight_names"]

_PACKAGE = Path(__file__).parents[1]


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
        real = command(self.name)
        words = list(ctx.params["words"])
        with real.make_context(self.name, words, ctx.parent, resilient_parsing=True) as typed:
            return real.shell_complete(typed, incomplete)

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
