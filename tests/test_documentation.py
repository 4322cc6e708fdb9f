"""The documentation keeps its promises: equations exist, examples run, commands are accepted."""

import doctest
import os
import re
import shlex
import subprocess
import sys
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


RECIPES = {"own-family": "tasks", "own-rule": "update_rules", "own-posterior": "halting/posteriors"}
USE_RECIPES = """
import sys
from pathlib import Path
import haltwise
from haltwise import update_rules as rules
from haltwise import tasks
from haltwise.halting import posteriors
for package in (tasks, rules, posteriors):  # as if the files lay there
    inner = package.__name__.removeprefix("haltwise.").replace(".", "/")
    package.__path__.append(str(Path(sys.argv[1]) / inner))
from haltwise.stop_rules import HazardThreshold
from haltwise.training import Trainer, TrainingConfig
tiny = dict(num_meta_steps=4, head_steps=4, validate_every=4, num_recorded=64, num_validation=64,
            num_calibration=64, batch_size=8, head_batch_size=8, horizon=8)
for name, family, changes in (
    ("family", "valley-5d", {}),
    ("rule", "regression-2d", {"rule": "lion", "rule_settings": {"learning_rate": 0.05}}),
    ("posterior", "regression-2d", {"posterior": "cumulative"}),
):
    config = TrainingConfig.from_preset("act", family, **changes, **tiny)
    trainer = Trainer(config, Path(sys.argv[1]) / name)
    *_, last = trainer.run()
    optimizer = haltwise.load(trainer.directory)
    problems = tasks.family(family).sample(8, __import__("torch").Generator().manual_seed(0))
    solution = haltwise.solve(problems, optimizer)
    assert isinstance(optimizer.policy().rule, HazardThreshold), optimizer.policy()
    print(name, len(solution.params))
"""


def test_each_recipe_is_one_file(tmp_path: Path) -> None:
    for page, folder in RECIPES.items():
        text = (ROOT / "docs/howto" / f"{page}.md").read_text(encoding="utf-8")
        blocks = fences(ROOT / "docs/howto" / f"{page}.md", "python")
        named = re.search(rf"src/haltwise/{folder}/(\w+)\.py", text)
        assert named
        examples = doctest.DocTestParser().get_examples("".join(blocks))
        last = max(
            place
            for place, example in enumerate(examples)
            if re.match(r"[A-Z_]+ = ", example.source)
        )
        code = [example.source for example in examples[: last + 1] if not example.want]
        path = tmp_path / folder / f"{named[1]}.py"
        path.parent.mkdir(parents=True)
        path.write_text("".join(code), encoding="utf-8")
    run = subprocess.run(
        [sys.executable, "-c", USE_RECIPES, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert run.stdout.split() == ["family", "8", "rule", "8", "posterior", "8"], run.stderr
