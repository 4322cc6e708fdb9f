"""The documentation site; `make docs` builds it, warnings as errors."""

import pkgutil
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import latex2mathml.converter
from docutils import nodes
from plotly.offline import get_plotlyjs
from sphinx.application import Sphinx
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

import haltwise
from haltwise.cli import cli

project = "Haltwise"
author = "The Haltwise developers"
release = haltwise.__version__
html_show_copyright = False
html_title = f"Haltwise {release}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["haltwise.css"]
exclude_patterns = ["_static"]
# A name in a signature is that of its public entry (haltwise.solve) and that of its module's.
suppress_warnings = ["ref.python"]

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]

myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3
math_eqref_format = "({number})"
html_math_renderer = "mathml"
# The notebooks: executed at every build, an exception ends it.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True

autodoc_default_options = {"show-inheritance": True}
autodoc_mock_imports = ["keras", "ray", "xgboost"]  # optional, and large
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
default_role = "code"
python_maximum_signature_line_length = 80

_EQUATION = re.compile(r"docs/theory\.md, (Eqs?\.) ((?:\([a-z-]+\)(?:, | and )?)+)")
_COLON = "\0"
_FIELD = re.compile(r"\s*:[^:]*:")  # of a list of parameters
_CODE = re.compile(r"(`[^`]*`)")


def _as_restructured_text(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Docstrings are plain text: formulas stay as typed, equations become links."""
    del app, what, name, obj, options
    literal, indent = False, 0
    result: list[str] = []
    for place, line in enumerate(lines):
        depth = len(line) - len(line.lstrip())
        previous = next((each for each in reversed(lines[:place]) if each.strip()), "")
        if literal and line.strip() and depth <= indent:
            literal = False
        blank_before = place > 0 and not lines[place - 1].strip()
        opens = previous and not previous.rstrip().endswith("::") and not previous.startswith(">>>")
        if not literal and line.strip() and blank_before and opens:
            indent = len(previous) - len(previous.lstrip())
            if depth >= indent + 4 and not line.lstrip().startswith(">>>"):  # a formula
                result += [" " * indent + "::", ""]
                literal = True
        if literal or line.lstrip().startswith((">>>", "...", "..")):
            result.append(line)
            continue
        field = _FIELD.match(line)
        begin = field[0] if field else ""
        text = _EQUATION.sub(_link, line.removeprefix(begin))
        text = re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", text)  # `Parameter`s
        parts = _CODE.split(text)
        result.append(begin + "".join(p if p.startswith("`") else _escape(p) for p in parts))
    lines[:] = [line.replace(_COLON, ":") for line in result]


def _link(match: re.Match[str]) -> str:
    labels = re.sub(r"\(([a-z-]+)\)", r":eq:`\1`", match[2])
    return f"{match[1]} {labels}"


def _escape(text: str) -> str:
    """A bar or a trailing underscore means nothing here; **bold** does."""
    text = text.replace("|", "\\|")
    return re.sub(r"(?<![*\\])\*(?!\*)", r"\\*", text)


def _hide_colons(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """What stands before the colon of an attribute's docstring is no type."""
    if what in {"attribute", "data", "property"} and lines:
        lines[0] = lines[0].replace(":", _COLON)


def _mathml(latex: str, display: str) -> str:
    """With the thin space that belongs between a function's name and its argument."""
    text = latex2mathml.converter.convert(latex, display=display)
    return re.sub(r"(<mi>log</mi>)(?!<mo)", r'\1<mspace width="0.17em"/>', text)


def _math(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def _displayed_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    body = translator.body
    body.append(translator.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        body.append("</span>")
    body.append(_mathml(node.astext().strip(), "block") + "</div>")
    raise nodes.SkipNode


def _skip(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Fields of named tuples stand under "Attributes" already."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def _write_reference(app: Sphinx) -> None:
    """One page a package and one for the commands, so that nothing public is forgotten."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    pages: dict[str, list[str]] = {"haltwise": []}
    for module in sorted(pkgutil.walk_packages(haltwise.__path__, "haltwise."), key=_name):
        if "._" in module.name or module.name.startswith("haltwise.cli"):
            continue
        if module.ispkg:
            pages[module.name] = []
        else:
            pages[module.name.rpartition(".")[0]].append(module.name)
    for package, modules in pages.items():
        own = [
            name
            for name, value in vars(import_module(package)).items()
            if getattr(value, "__module__", None) == package and not name.startswith("_")
        ]
        parts = [f"# {package}", _directive("automodule", package, ", ".join(own))]
        if package == "haltwise":
            parts += [_public_entry(name) for name in haltwise.__all__ if name != "__version__"]
        for module in modules:
            parts += [
                f"## {module.removeprefix('haltwise.')}",
                _directive("automodule", module, "*"),
            ]
        _write(folder / f"{package}.md", "\n\n".join(parts) + "\n")
    parts = ["# Commands"]
    for name in cli.list_commands(click.Context(cli)):
        parts += [f"## haltwise {name}", f"```text\n{_command_help(name)}\n```"]
    _write(folder / "commands.md", "\n\n".join(parts) + "\n")
    contents = "```{toctree}\n:maxdepth: 2\n:glob:\n\n*\n```"
    _write(folder / "index.md", f"# API and commands\n\n{contents}\n")


def _name(module: pkgutil.ModuleInfo) -> str:
    return module.name


def _public_entry(name: str) -> str:
    """What `haltwise` exports, which is imported when it is used: a line and where to read on."""
    found = getattr(haltwise, name)
    if found.__module__.startswith("haltwise._"):  # documented nowhere else
        return _directive("autoexception", f"haltwise.{name}")
    kind = "class" if isinstance(found, type) else "function"
    place = f"{found.__module__}.{name}"
    summary = (found.__doc__ or "").partition("\n")[0]
    return (
        f"```{{eval-rst}}\n.. py:{kind}:: haltwise.{name}\n\n"
        f"   {_escape(summary)} See :py:{_ROLES[kind]}:`{place}`.\n```"
    )


_ROLES = {"class": "class", "function": "func"}


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


def _directive(kind: str, name: str, members: str = "") -> str:
    """A directive of autodoc; `members` "*" for all."""
    option = {"": "", "*": "   :members:\n"}.get(members, f"   :members: {members}\n")
    return f"```{{eval-rst}}\n.. {kind}:: {name}\n{option}```"


def _write(path: Path, text: str) -> None:
    """Only what has changed, so that unchanged pages are not read again."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def _write_plotly(app: Sphinx) -> None:
    """The notebooks' figures make no request: plotly.js comes with the package."""
    folder = Path(app.outdir) / "_static"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Connect the hooks."""
    # Equations need neither a script nor a network.
    app.add_html_math_renderer("mathml", (_math, None), (_displayed_math, None))
    app.connect("autodoc-process-docstring", _hide_colons, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=900)
    app.connect("autodoc-skip-member", _skip)
    app.connect("builder-inited", _write_reference)
    app.connect("builder-inited", _write_plotly)
    app.add_js_file("plotly.min.js")
    app.add_js_file("figures.js")
