"""The documentation keeps its promises: equations exist, examples run, commands are accepted."""

import re
import shlex
from pathlib import Path

import click
import pytest

from haltwise.cli import cli

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")] if "api" not in path.parts
)
REFERENCE = re.compile(r"docs/theory\.md, Eqs?\. ((?:\([a-z-]+\)(?:, | and )?)+)")


def fences(page: Path, language: str) -> list[str]:
    """The blocks of code of one language on a page."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_every_equation_that_a_docstring_names_exists() -> None:
    theory = (ROOT / "docs/theory.md").read_text(encoding="utf-8")
    labels = set(re.findall(r"^\$\$ \(([a-z-]+)\)$", theory, re.MULTILINE))
    named: dict[str, Path] = {}
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found = REFERENCE.findall(text)
        assert len(found) == text.count("theory.md"), f"{path}: write docs/theory.md, Eq. (label)"
        named |= {label: path for group in found for label in re.findall(r"[a-z-]+", group)}
    named.pop("and", None)
    assert len(named) >= 10
    assert named.keys() <= labels, {label: named[label] for label in named.keys() - labels}


def test_no_two_equations_share_a_label() -> None:
    labels = [
        label
        for page in PAGES
        for label in re.findall(
            r"^\$\$ \(([a-z-]+)\)$", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    ]
    assert len(labels) == len(set(labels)) > 30


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_on_a_page_is_a_doctest(page: Path) -> None:
    for block in fences(page, "python"):
        assert block.startswith(">>>"), f"nobody runs this: {block[:60]!r}"


def commands(page: Path) -> list[str]:
    """Every `haltwise ...` that a page shows, in blocks and in the text."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(fences(page, "sh")).replace("\\\n", " ")
    lines = [line.strip() for line in blocks.splitlines()]
    inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`(haltwise [^`]+)`(?!`)", text)]
    return [line for line in (*lines, *inline) if line.startswith("haltwise ")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_a_page_are_accepted(page: Path) -> None:
    for line in commands(page):
        _, *words = shlex.split(line, comments=True)
        name, words = words[0], [word for word in words[1:] if word not in ("...", "…")]
        assert name in cli.commands, f"{page.name}: no such command: {line}"
        command = cli.commands[name]
        context = click.Context(command, info_name=name, resilient_parsing=True)
        parsed, left, _ = command.make_parser(context).parse_args(list(words))
        assert not left, f"{page.name}: {line}: {left}"
        for parameter in command.params:
            value = parsed.get(parameter.name or "")
            if isinstance(parameter.type, click.Choice) and value in parameter.type.choices:
                continue
            numeric = isinstance(
                parameter.type, (click.types.IntParamType, click.types.FloatParamType)
            )
            if numeric and isinstance(value, str) and not value.isupper():
                parameter.type.convert(value, parameter, context)
