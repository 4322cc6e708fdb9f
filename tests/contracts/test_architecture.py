"""The plan of the house: imports point one way, between rooms and between files."""

import ast
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from inspect import isabstract
from pathlib import Path
from typing import Any

import grimp
import pytest

import haltwise
from haltwise.bench.domain import Domain
from haltwise.bench.domains import domains
from haltwise.curves.rule import CurveRule
from haltwise.curves.rules import curve_rules
from haltwise.engines import Engine, engines
from haltwise.halting.features import FeatureSet, feature_sets
from haltwise.halting.methods import HaltingMethod, halting_methods
from haltwise.processes import ProcessFamily, process_families
from haltwise.stop_rules import StopRule, stop_rules
from haltwise.tasks import TaskFamily, families
from haltwise.training.gradients import GradientEstimator, estimators
from haltwise.update_rules import UpdateRule
from haltwise.update_rules.table import rules as update_rules

SOURCE = Path(haltwise.__file__).parent
OF_WHAT_USERS_GIVE = {"AllOf", "AnyOf", "ModuleTask"}  # which have no name before


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("haltwise")


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "haltwise"


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one file (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            component = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(component) > 1:
                found.append(sorted(component))

    for name in sorted(arrows):
        if name not in index:
            visit(name)
    return found


def test_a_circle_is_found_where_there_is_one() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": {"c"}, "c": set()}) == []


def test_no_files_import_each_other_in_a_circle(graph: grimp.ImportGraph) -> None:
    arrows = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert circles(arrows) == []


def test_rooms_are_tied_by_few_imports(graph: grimp.ImportGraph) -> None:
    pairs = {
        (room(module), room(imported))
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    }
    assert len({pair for pair in pairs if pair[0] != pair[1]}) <= 142  # of 24 rooms


def test_nothing_lies_loose_beside_the_rooms() -> None:
    assert sorted(path.name for path in SOURCE.glob("*.py")) == ["__init__.py", "__main__.py"]


def test_one_public_class_has_one_name() -> None:
    places: dict[str, list[str]] = {}
    for path in SOURCE.rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(SOURCE)))
    # Callbacks are called alike in every framework.
    twice = {name: where for name, where in places.items() if len(where) > 1}
    assert set(twice) <= {"HaltingCallback", "RunCallback"}, twice


FOREIGN_WORDS = ("speak", "hear", "said", "heard", "anybody", "likewise")


def test_tensors_do_not_speak() -> None:
    """Names say what a thing is, in the field's terms (no verbs of speech for tensors)."""
    wrong = []
    for path in SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {
            node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }
        wrong += [
            f"{path.relative_to(SOURCE)}: {name}"
            for name in names
            if set(name.strip("_").split("_")) & set(FOREIGN_WORDS)
        ]
    assert wrong == []


@pytest.mark.parametrize(
    ("room", "kind", "table"),
    [
        ("bench.domains", Domain, domains),
        ("curves.rules", CurveRule, curve_rules),
        ("engines", Engine, engines),
        ("halting.features", FeatureSet, feature_sets),
        ("halting.methods", HaltingMethod, halting_methods),
        ("processes", ProcessFamily, process_families),
        ("stop_rules", StopRule, stop_rules),
        ("tasks", TaskFamily, families),
        ("training.gradients", GradientEstimator, estimators),
        ("update_rules", UpdateRule, update_rules),
    ],
)
def test_what_a_room_defines_has_a_name_in_its_table(
    room: str, kind: type, table: Callable[[], Mapping[str, Any]]
) -> None:
    package = importlib.import_module(f"haltwise.{room}")
    defined = {
        value
        for info in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        for value in vars(importlib.import_module(info.name)).values()
        if isinstance(value, type) and value.__module__ == info.name
        if issubclass(value, kind) and not isabstract(value) and not value.__name__.startswith("_")
    }
    named = {entry if isinstance(entry, type) else type(entry) for entry in table().values()}
    assert {each.__name__ for each in defined - named} <= OF_WHAT_USERS_GIVE
