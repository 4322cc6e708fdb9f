"""The documentation keeps its promises: equations exist, examples run, commands are accepted."""

import ast
import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import forked
import pytest
from pages import PAGES, ROOT, fences, recipe
from programs import program

import haltwise.testing
from haltwise._core.settings import fits
from haltwise.cli import cli
from haltwise.cli.settings import SettingOption, parse

THEORY = ("docs/theory.md", "docs/certificates.md")
REFERENCE = re.compile(r"docs/(?:theory|certificates)\.md, Eqs?\. ((?:\([a-z-]+\)(?:, | and )?)+)")


def test_every_equation_that_a_docstring_names_exists() -> None:
    theory = "".join((ROOT / page).read_text(encoding="utf-8") for page in THEORY)
    labels = set(re.findall(r"^\$\$ \(([a-z-]+)\)$", theory, re.MULTILINE))
    named: dict[str, Path] = {}
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        found = REFERENCE.findall(text)
        rest = REFERENCE.sub("", text)
        assert "theory.md" not in rest, f"{path}: write docs/theory.md, Eq. (label)"
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
    for block in fences(page.read_text(encoding="utf-8"), "python"):
        assert block.startswith(">>>"), f"nobody runs this: {block[:60]!r}"


def test_no_example_to_run_is_in_a_module_that_is_not_collected(
    pytestconfig: pytest.Config,
) -> None:
    left_out = [name for name in pytestconfig.getoption("ignore") if name.startswith("src/")]
    assert len(left_out) == 2
    described = ast.Module, ast.ClassDef, ast.FunctionDef
    for name in left_out:
        for node in ast.walk(ast.parse((ROOT / name).read_text(encoding="utf-8"))):
            text = ast.get_docstring(node) if isinstance(node, described) else None
            for example in doctest.DocTestParser().get_examples(text or ""):
                assert example.options.get(doctest.SKIP), f"nobody runs this: {example.source!r}"


# -------------------------------------------------------------------------------------- commands


def commands(page: Path) -> list[str]:
    """Every `haltwise ...` that a page shows, in blocks and in the text."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(fences(text, "sh")).replace("\\\n", " ")
    lines = [" ".join(line.split()) for line in blocks.splitlines()]
    inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`(haltwise [^`]+)`(?!`)", text)]
    found = [re.sub(r".* -m haltwise ", "haltwise ", line) for line in lines]
    return [line for line in (*found, *inline) if line.startswith("haltwise ")]


def accept(line: str) -> None:
    """Parse a command line as a shell would hand it over; words in capitals are placeholders."""
    _, name, *words = shlex.split(line, comments=True)
    words = [word for word in words if word not in ("...", "…", "--help")]
    words = ["regression-2d" if word == "FAMILY" else word for word in words]
    context = click.Context(cli, info_name="haltwise")
    command = cli.get_command(context, name)
    assert command is not None, f"no such command: {line}"
    # Which options there are depends on what is typed.
    command.parse_args(click.Context(command, parent=context, resilient_parsing=True), [*words])
    inner = click.Context(command, info_name=name, parent=context)
    parsed, left, _ = command.make_parser(inner).parse_args([*words])
    assert not left, f"{line}: {left}"
    for parameter in command.get_params(inner):
        value = parsed.get(parameter.name or "")
        if isinstance(value, str) and not value.isupper() and isinstance(parameter, click.Option):
            parameter.type.convert(value, parameter, inner)
            if isinstance(parameter, SettingOption):
                hint = parameter.leaf.hint
                assert fits(parse(value, hint), hint), f"{line}: {value}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_on_a_page_are_accepted(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = recipe(page)
    if found is not None:
        (tmp_path / found.name).write_text(found.code, encoding="utf-8")
    monkeypatch.chdir(ROOT if found is None else tmp_path)
    for line in commands(page):
        try:
            accept(line)
        except click.ClickException as error:
            raise AssertionError(f"{page.name}: {line}: {error.format_message()}") from None


def test_a_command_that_does_not_exist_is_found() -> None:
    for line in (
        "haltwise train regression-2d --no-such-option 1",
        "haltwise train regression-2d --joint.num-steps many",
        "haltwise evaluate a b",
    ):
        with pytest.raises((click.ClickException, AssertionError)):
            accept(line)


# --------------------------------------------------------------------------------------- recipes

USE_RECIPES = """
import sys
from pathlib import Path
import torch
import haltwise
from haltwise import stop_rules, tasks, training, update_rules
from haltwise.halting import methods
from haltwise.training import gradients, train

torch.set_num_threads(1)
folder = Path(sys.argv[1])
for package, name in (
    (tasks, "valley"),
    (update_rules, "lion"),
    (stop_rules, "small_change"),
    (methods, "survival"),
    (gradients, "perturbation"),
):  # as if the files lay in the package
    package.__path__.append(str(folder / name))

tiny = {
    "horizon": 8,
    "joint": {"num_steps": 4, "batch_size": 8},
    "halting": {"num_steps": 4, "num_recorded": 64, "batch_size": 8},
    "validation": {"every": 4, "num_problems": 64, "num_calibration": 64},
}
lion = {"name": "lion", "settings": {"learning_rate": 0.05}}
perturbation = {**tiny["joint"], "estimator": "perturbation"}
for name, family, changes in (
    ("valley", "valley-5d", {}),
    ("lion", "regression-2d", {"rule": lion}),
    ("survival", "regression-2d", {"method": "survival"}),
    ("perturbation", "regression-2d", {"joint": perturbation}),
):
    run = train(family, folder / f"run-{name}", **{**tiny, **changes})
    model = haltwise.load(run)
    problems = tasks.family(family).sample(8, torch.Generator().manual_seed(0))
    solution = haltwise.solve(problems, model)
    chosen = {
        "valley": model.card.family.name,
        "lion": type(model.rule).__name__,
        "survival": type(model.halting.method).__name__,
        "perturbation": gradients.estimators()["perturbation"].__name__,
    }[name]
    print(name, chosen, len(solution.params))

rule = stop_rules.stop_rules()["small-change"](0.5)
solution = haltwise.solve(problems, "regression-2d", stop=rule)
print("small_change", solution.reasons[0].split()[0], len(solution.params))

place = f"{folder / 'waves' / 'waves.py'}:Waves"
family = haltwise._core.plugins.load_object(place, tasks.TaskFamily, "family")()
model = haltwise.load(train(family, folder / "run-waves", **tiny))
waves = family.sample(8, torch.Generator().manual_seed(0))
print("waves", len(haltwise.solve(waves, model).params))

place = f"{folder / 'k_means' / 'k_means.py'}:Clouds"
run = train(place, folder / "run-k-means", rule="none", **tiny)
model = haltwise.load_halting(run)
clouds = haltwise._core.plugins.load_object(place, haltwise.processes.ProcessFamily, "process")
found = haltwise.run(clouds().sample(8, torch.Generator().manual_seed(0)), model)
print("k_means", type(model.method).__name__, len(found.result))
"""


def test_each_recipe_is_one_file(tmp_path: Path) -> None:
    names = set()
    for page in PAGES:
        found = recipe(page)
        if found is not None:
            names.add(found.name)
            path = tmp_path / found.name.removesuffix(".py") / found.name
            path.parent.mkdir()
            path.write_text(found.code, encoding="utf-8")
    assert names == {
        "valley.py", "waves.py", "lion.py", "small_change.py", "survival.py", "k_means.py",
        "perturbation.py",
    }  # fmt: skip
    run = forked.run(USE_RECIPES, tmp_path, cwd=tmp_path, folder=tmp_path, work=forked.code)
    assert run.stdout.splitlines() == [
        "valley valley-5d 8",
        "lion Lion 8",
        "survival Survival 8",
        "perturbation Perturbation 8",
        "small_change the 8",
        "waves 8",
        "k_means StickBreaking 8",
    ], run.stderr


def test_links_of_the_package_page_lead_somewhere_from_anywhere() -> None:
    done = subprocess.run(
        [sys.executable, "setup.py", "--quiet", "--long-description"],
        env={**os.environ, "HALTWISE_URL": "https://example.org/it/"},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    targets = re.findall(r"\]\(([^)\s]+)\)", done.stdout)
    assert len(targets) > 20
    for target in targets:
        kind, _, path = target.removeprefix("https://example.org/it/").partition("/main/")
        assert kind == ("raw" if path.endswith(".svg") else "blob"), target
        assert (ROOT / path).is_file(), target


# ----------------------------------------------------------------------------- tasks and glossary


def test_each_task_takes_ten_lines_and_one_command() -> None:
    text = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    sections = text.split("\n## ")[1:]
    assert len(sections) == 10
    for section in sections:
        name = section.partition("\n")[0]
        examples = doctest.DocTestParser().get_examples("".join(fences(section, "python")))
        lines = sum(example.source.count("\n") for example in examples if not example.want)
        asked = [line for block in fences(section, "sh") for line in block.splitlines()]
        assert lines <= 10, f"{name}: {lines} lines"
        assert len(asked) <= 1, f"{name}: {asked}"
        assert lines + len(asked) > 0, name


def headings() -> set[str]:
    """What heads the columns and curves of tables and figures, on the terminal and in reports."""
    found = set()
    for path in (ROOT / "src/haltwise").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Column", "Curve"):
                parts = getattr(node.args[0], "values", node.args[:1]) if node.args else ()
                texts = [part.value for part in parts if isinstance(part, ast.Constant)]
                found.add(" ".join(map(str, texts)))
    return found


def glossary() -> set[str]:
    text = (ROOT / "docs/glossary.md").read_text(encoding="utf-8")
    terms = re.findall(r"^(\w.*)\n  \S", text, re.MULTILINE)
    return {part for term in terms for part in term.split(", ")}


# Words of headings that mean what they mean anywhere.
PLAIN = {
    "a", "above", "accuracy", "after", "ahead", "at", "be", "best", "by", "card", "case", "equal",
    "evaluation", "failed", "figure", "first", "fold", "in", "its", "last", "learning", "lost",
    "may", "mean", "of", "one's", "optimizer", "other", "own", "past", "rate", "seconds", "setting",
    "step", "steps", "sum", "test", "that", "the", "their", "to", "where", "with",
}  # fmt: skip


def unexplained(heading: str) -> set[str]:
    """The words of a heading that are neither in the glossary nor plain."""
    left = heading.lower().replace("’s", "")
    for term in sorted(glossary(), key=len, reverse=True):
        left = re.sub(rf"\b{re.escape(term.lower())}(e?s)?\b", " ", left)
    return set(re.findall(r"[a-z][a-z'-]*", left)) - PLAIN


def test_every_term_of_a_table_is_in_the_glossary() -> None:
    found = headings()
    assert {"captured gain", "cost", "stop rule"} <= found
    assert {heading: rest for heading in found if (rest := unexplained(heading))} == {}


# ---------------------------------------------------------------------------------- architecture


def test_the_charts_show_the_figures_of_the_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs/drawing")
    results = importlib.import_module("results")
    for name, chart in results.CHARTS.items():
        committed = (ROOT / f"docs/_static/results-{name}.svg").read_text(encoding="utf-8")
        assert committed == results.draw(chart), "run python docs/drawing/results.py"


def test_the_picture_of_the_architecture_is_todays() -> None:
    drawing = program("architecture", ROOT / "docs/drawing")
    committed = drawing.PICTURE.read_text(encoding="utf-8")
    assert committed == drawing.draw(), "run python docs/drawing/architecture.py"


def test_only_arrows_that_follow_from_others_are_left_out() -> None:
    arrows = {"a": {"b", "c", "d"}, "b": {"c"}, "c": set(), "d": {"c"}}
    drawing = program("architecture", ROOT / "docs/drawing")
    assert drawing.essential(arrows) == [("a", "b"), ("a", "d"), ("b", "c"), ("d", "c")]


def test_where_a_new_thing_goes_is_where_such_things_are() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    section = text.partition("## Where a new thing goes")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if re.match(r"\| [a-z ]+ \| `", line)
    ]
    assert len(rows) >= 10
    for thing, path, table, check, _ in rows:
        place = ROOT / "src/haltwise" / path.strip("`")
        assert (place.parent / "__init__.py").exists(), thing
        assert place.stem == "NAME" or place.exists(), thing
        if table:
            name = table.split("`")[1]
            files = [file.read_text(encoding="utf-8") for file in place.parent.glob("*.py")]
            assert any(f"\n{name}" in text for text in files), f"{thing}: nothing defines {name}"
        if check:
            assert check.strip("`") in haltwise.testing.__all__, thing


def test_the_files_to_read_first_are_there() -> None:
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    named = re.findall(r"^\d\. `([\w/]+\.py)`", text, re.MULTILINE)
    assert len(named) == 6
    assert [name for name in named if not (ROOT / "src/haltwise" / name).exists()] == []
