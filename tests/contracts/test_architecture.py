"""The plan of the house: imports point one way, between rooms and between files."""

import ast
from pathlib import Path

import grimp
import pytest

import haltwise

SOURCE = Path(haltwise.__file__).parent


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
    assert len({pair for pair in pairs if pair[0] != pair[1]}) <= 140  # of 24 rooms


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
