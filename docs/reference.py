"""The pages of the reference, written before Sphinx reads: public names first, internals apart.

Every name is described once, at the shortest name by which it can be imported. All other names
that lead to it, those of its module among them, are aliases: they stand in the inventory, and
links to them arrive at the one description.
"""

import inspect
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import click
from sphinx.application import Sphinx
from sphinx.domains.python import ObjectEntry
from sphinx.environment import BuildEnvironment
from sphinx.pycode import ModuleAnalyzer

import haltwise
from haltwise.cli import cli

# Modules that are imported by their own names, each for a library that need not be there.
_HOSTS = "keras lightgbm lightning optuna ray scipy sklearn transformers xgboost"
CALLBACKS = tuple(f"haltwise.interfaces.{host}" for host in _HOSTS.split())


class PublicName(NamedTuple):
    """A name that a package exports, and the name where it is described."""

    package: str
    name: str
    home: str
    """The shortest public name."""
    place: str
    """The name in the module that defines it; empty for constants."""

    @property
    def path(self) -> str:
        """The name as it is imported."""
        return f"{self.package}.{self.name}"


def modules() -> Iterator[pkgutil.ModuleInfo]:
    """All modules and packages but private ones and the command line's."""
    for module in pkgutil.walk_packages(haltwise.__path__, "haltwise."):
        if "._" not in module.name and not module.name.startswith("haltwise.cli"):
            yield module


def public_packages() -> list[str]:
    """Packages that say what they export, the outer before the inner."""
    packages = [module.name for module in modules() if module.ispkg]
    found = [name for name in packages if hasattr(import_module(name), "__all__")]
    return sorted(["haltwise", *found], key=lambda name: (name.count("."), name))


def public_names() -> list[PublicName]:
    """Every name of every `__all__`."""
    homes: dict[str, str] = {}
    found = []
    for package in public_packages():
        for name in import_module(package).__all__:
            if name == "__version__":
                continue
            value = getattr(import_module(package), name)
            place = _place(value)
            home = homes.setdefault(place or f"{package}.{name}", f"{package}.{name}")
            found.append(PublicName(package, name, home, place))
    return found


def _place(value: object) -> str:
    if inspect.isclass(value) or inspect.isfunction(value):
        return f"{value.__module__}.{value.__qualname__}"
    return ""


def aliases() -> dict[str, str]:
    """Other names by the one where each is described."""
    found = {}
    for public in public_names():
        for other in (public.path, public.place):
            if other not in ("", public.home):
                found[other] = public.home
    return found


# ------------------------------------------------------------------------------------------ pages


def write_pages(app: Sphinx) -> None:
    """Write docs/api, one page a package and one for the commands, so that nothing is forgotten."""
    folder = Path(app.srcdir) / "api"
    names = public_names()
    pages = {package: _package(package, names) for package in public_packages()}
    pages["callbacks"] = "\n\n".join(
        ["# Callbacks", *(f"## {_short(name)}\n\n{_module(name, names)}" for name in CALLBACKS)]
    )
    pages["commands"] = _commands()
    internal = _internals(names)
    pages |= {f"internals/{package}": text for package, text in internal.items()}
    pages["internals/index"] = _index(
        "Internals", "What is behind the public names; it may change.", sorted(internal)
    )
    public = [*public_packages(), "callbacks", "commands", "internals/index"]
    pages["index"] = _index("Reference", "Public names, by the package that exports them.", public)
    for path in folder.rglob("*.md"):
        if path.relative_to(folder).with_suffix("").as_posix() not in pages:
            path.unlink()
    for name, text in pages.items():
        _write(folder / f"{name}.md", text + "\n")


def _package(package: str, names: list[PublicName]) -> str:
    own = [each for each in names if each.package == package]
    rows = [
        f"| {{py:obj}}`{each.name} <{each.home}>` | {_summary(package, each.name)} |"
        for each in own
    ]
    parts = [f"# {package}", _directive("automodule", package)]
    parts.append("\n".join(["| name | |", "|---|---|", *rows]))
    parts += [_describe(each) for each in own if each.home == each.path]
    return "\n\n".join(parts)


def _describe(public: PublicName) -> str:
    value = getattr(import_module(public.package), public.name)
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, Exception) else "autoclass"
        return _directive(kind, public.path, "members")
    if inspect.isfunction(value):
        return _directive("autofunction", public.path)
    text = " ".join(_doc_of_constant(public))
    head = f".. py:data:: {public.name}\n   :module: {public.package}"
    return f"```{{eval-rst}}\n{head}\n\n   {text}\n```"


def _doc_of_constant(public: PublicName) -> list[str]:
    """The string below it in the module of its package that defines it."""
    for module in modules():
        if module.name.startswith(public.package) and not module.ispkg:
            analyzer = ModuleAnalyzer.for_module(module.name)
            analyzer.analyze()
            if ("", public.name) in analyzer.attr_docs:
                return analyzer.attr_docs["", public.name]
    return []


def _summary(package: str, name: str) -> str:
    value = getattr(import_module(package), name)
    first = (inspect.getdoc(value) or "").partition("\n")[0] if _place(value) else ""
    return first.replace("|", "\\|").replace("*", "\\*").replace("$", "\\$")


def _internals(names: list[PublicName]) -> dict[str, str]:
    public = {"haltwise", *public_packages()}
    pages: dict[str, list[str]] = {}
    for module in sorted(modules(), key=lambda module: module.name):
        if module.name in public or module.name in CALLBACKS:
            continue
        package = module.name if module.ispkg else module.name.rpartition(".")[0]
        parts = pages.setdefault(package, [f"# {package}"])
        heading = [] if module.ispkg else [f"## {_short(module.name)}"]
        parts += [*heading, _module(module.name, names)]
    return {package: "\n\n".join(parts) for package, parts in pages.items()}


def _module(name: str, names: list[PublicName]) -> str:
    """A module, without what is described at a public name."""
    places = {each.place for each in names} - {""}
    if name in CALLBACKS:  # whose libraries need not be there
        own = [place for place in places if place.rpartition(".")[0] == name]
        return _automodule(name, [place.rpartition(".")[2] for place in own])
    module = import_module(name)
    listed = getattr(module, "__all__", vars(module))
    own = [key for key in listed if _place(getattr(module, key)) in places]
    if name not in {each.path for each in names}:
        return _automodule(name, own)
    # A function is imported by the name of its module, so the module is not in the inventory.
    rest = [key for key in listed if key not in own and inspect.isfunction(getattr(module, key))]
    parts = [_directive("autofunction", f"{name}.{key}") for key in rest]
    return "\n\n".join([f"Behind {{py:obj}}`{name}`.", *parts])


def _automodule(name: str, excluded: list[str]) -> str:
    without = [f"exclude-members: {', '.join(sorted(excluded))}"] if excluded else []
    return _directive("automodule", name, "members", *without)


def _short(module: str) -> str:
    return module.removeprefix("haltwise.")


def _index(title: str, sentence: str, pages: list[str]) -> str:
    contents = "\n".join(pages)
    return f"# {title}\n\n{sentence}\n\n```{{toctree}}\n:maxdepth: 1\n\n{contents}\n```"


def _directive(kind: str, name: str, *options: str) -> str:
    """A directive of autodoc."""
    lines = "".join(f"   :{option}{'' if ':' in option else ':'}\n" for option in options)
    return f"```{{eval-rst}}\n.. {kind}:: {name}\n{lines}```"


def _commands() -> str:
    parts = ["# Commands"]
    for name in cli.list_commands(click.Context(cli)):
        parts += [f"## haltwise {name}", f"```text\n{_command_help(name)}\n```"]
    return "\n\n".join(parts)


def _command_help(name: str) -> str:
    """The help of a command; its options depend on what is typed, here nothing."""
    parent = click.Context(cli, info_name="haltwise", max_content_width=80)
    command = cli.get_command(parent, name)
    assert command is not None
    context = click.Context(
        command, parent=parent, info_name=name, max_content_width=80, resilient_parsing=True
    )
    command.parse_args(context, [])
    return command.get_help(context)


def _write(path: Path, text: str) -> None:
    """Only what has changed, so that unchanged pages are not read again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


# ---------------------------------------------------------------------------------------- aliases


def register_aliases(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Let every other name of a thing, and of its members, lead to its description."""
    objects: dict[str, Any] = env.get_domain("py").data["objects"]
    homes: dict[str, list[str]] = {}
    for other, home in aliases().items():
        homes.setdefault(home, []).append(other)
    described = {path: entry for path, entry in objects.items() if not entry.aliased}
    for path, entry in described.items():
        parts = path.split(".")
        for end in range(2, len(parts) + 1):
            for other in homes.get(".".join(parts[:end]), ()):
                name = ".".join((other, *parts[end:]))
                objects.setdefault(name, ObjectEntry(*entry[:3], True))
    return []
