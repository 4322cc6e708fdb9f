"""The documentation site; `make docs` builds it, warnings as errors."""

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import latex2mathml.converter
from docutils import nodes
from plotly.offline import get_plotlyjs
from sphinx.addnodes import toctree
from sphinx.application import Sphinx
from sphinx.domains.python import ObjectEntry, PythonDomain
from sphinx.environment import BuildEnvironment
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

import haltwise

sys.path.insert(0, str(Path(__file__).parent))
import reference

project = "Haltwise"
author = "The Haltwise developers"
release = haltwise.__version__
html_show_copyright = False
html_title = f"Haltwise {release}"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["haltwise.css"]
exclude_patterns = ["_static"]
# Every link to one of our own names must arrive; other projects' would need a network.
nitpicky = True
# Most are type variables.
_UNDESCRIBED = "AnyLoop|AnyModel|Estimator|Places|Record|Run|Seen|Sequences|Value"
nitpick_ignore_regex = [
    ("py:.*", r"(?!haltwise\.).*"),
    ("py:.*", r"haltwise\.(.*\.)?_.*"),
    ("py:class", rf"haltwise\..*\.({_UNDESCRIBED})"),
]

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


def _write_plotly(app: Sphinx) -> None:
    """The notebooks' figures make no request: plotly.js comes with the package."""
    folder = Path(app.outdir) / "_static"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")


def _close_examples(app: Sphinx, docname: str, source: list[str]) -> None:
    """The blank line that ends an example's output is not shown."""
    source[0] = re.sub(r"(^```python\n.*?)\n+^```$", r"\1\n```", source[0], flags=re.S | re.M)


def _say_where_programs_are(app: Sphinx, docname: str, source: list[str]) -> None:
    """A page that cites programs says that none of them is installed."""
    place = Path(app.env.doc2path(docname))
    if place.suffix != ".md":
        return
    included = re.findall(r"^```\{include\} (\S+)", source[0], re.MULTILINE)
    text = "".join((source[0], *((place.parent / name).read_text("utf-8") for name in included)))
    folders = sorted(set(re.findall(r"\b(benchmarks|examples|experiments)/\w", text)))
    if folders:
        named = " and ".join(f"`{folder}`" for folder in folders)
        source[0] += f"\n\n---\n\n*The programs in {named} are in the source repository.*\n"


def _prune_navigation() -> Callable[..., None]:
    """The tree beside a page shows titles only, so it is made from these.

    Sphinx copies all headings and described names of all pages for it, on every page, and drops
    them again, which takes a third of the whole build. Pages of source, which are not in the tree,
    share one for each depth.
    """
    titles: dict[str, nodes.bullet_list] = {}
    trees: dict[int, str] = {}

    def prune(app: Sphinx, page: str, template: str, context: dict[str, Any], tree: Any) -> None:
        del template, tree
        env, make, depth = app.env, context["toctree"], page.count("/")
        if not titles:
            titles.update({name: _titles(toc) for name, toc in env.tocs.items()})

        def from_titles(**settings: Any) -> str:
            if page.startswith("_modules/") and depth in trees:
                return trees[depth]
            whole, env.tocs = env.tocs, titles
            try:
                made: str = make(**settings)
            finally:
                env.tocs = whole
            return trees.setdefault(depth, made) if page.startswith("_modules/") else made

        context["toctree"] = from_titles

    return prune


def _titles(toc: nodes.bullet_list) -> nodes.bullet_list:
    """A page's table of contents without its headings, unless they hold tables of their own."""
    copied = toc.deepcopy()
    for item in copied.children:
        if isinstance(item, nodes.list_item) and not any(item.findall(toctree)):
            item[:] = item[:1]
    return copied


class _OwnNames(PythonDomain):
    """Python's domain, which looks for none of the names that are described elsewhere.

    Sphinx compares each of the types in all signatures, such as `torch.Tensor`, with all of ours.
    """

    _num_names = 0
    _last_parts: frozenset[str] = frozenset()

    def find_obj(
        self, env: BuildEnvironment, modname: str, classname: str, name: str, *how: Any
    ) -> list[tuple[str, ObjectEntry]]:
        if self._num_names != len(self.objects):
            self._num_names = len(self.objects)
            self._last_parts = frozenset(name.rpartition(".")[2] for name in self.objects)
        if name.removesuffix("()").rpartition(".")[2] not in self._last_parts:
            return []
        return super().find_obj(env, modname, classname, name, *how)


def _drop_foreign_sources(app: Sphinx, env: BuildEnvironment) -> None:
    """Readers in parallel keep the modules, too, of what we use from other projects."""
    del app
    sources = vars(env)["_viewcode_modules"]
    for name in [name for name in sources if name.partition(".")[0] != "haltwise"]:
        del sources[name]


def setup(app: Sphinx) -> None:
    """Connect the hooks."""
    # Equations need neither a script nor a network.
    app.add_html_math_renderer("mathml", (_math, None), (_displayed_math, None))
    app.connect("autodoc-process-docstring", _hide_colons, priority=400)  # before napoleon
    app.connect("autodoc-process-docstring", _as_restructured_text, priority=900)
    app.connect("autodoc-skip-member", _skip)
    app.connect("source-read", _close_examples)
    app.connect("source-read", _say_where_programs_are)
    app.connect("builder-inited", reference.write_pages)
    app.connect("env-updated", reference.register_aliases)
    app.connect("env-updated", _drop_foreign_sources)
    app.connect("builder-inited", _write_plotly)
    app.add_domain(_OwnNames, override=True)
    app.connect("html-page-context", _prune_navigation(), priority=400)  # before the theme
    app.add_js_file("plotly.min.js")
    app.add_js_file("figures.js")
