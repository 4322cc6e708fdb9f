"""Pages: sections of words, tables and figures in one HTML file that makes no request."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, final

from haltwise._core.extras import extra
from haltwise._core.files import make_directory, write_atomically
from haltwise._core.version import __version__
from haltwise.evaluation import Interval
from haltwise.report.drawing import Drawing
from haltwise.report.formats import MISSING, Saving, Spread, num, rounded
from haltwise.report.glossary import explained

__all__ = ["Column", "Facts", "Figure", "Section", "Table", "write_page", "write_template"]

_HERE = Path(__file__).parent


class Column(NamedTuple):
    """A column of a table: its heading, and how its values are shown."""

    heading: str
    show: Callable[[Any], str] | None = num
    """None for what is downloaded but not shown."""


@final
@dataclass(frozen=True)
class Table:
    """Values that are shown rounded and downloaded in full."""

    name: str
    """Of the file that is downloaded, unique on its page."""
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Any]]
    """A row a thing, its name first; None where a value is missing."""
    note: str = ""
    strong: int | None = None
    """The row to stress."""
    links: Sequence[str] = ()
    """Where the names of the rows lead."""
    kind: ClassVar[str] = "table"

    @property
    def headings(self) -> list[str]:
        """The headings of the columns shown."""
        return [column.heading for column in self.columns if column.show]

    @property
    def cells(self) -> list[list[str]]:
        """The values shown."""
        return [
            [
                MISSING if value is None else column.show(value)
                for value, column in zip(row, self.columns, strict=True)
                if column.show
            ]
            for row in self.rows
        ]

    def embedded(self) -> dict[str, Any]:
        """What is downloaded; an interval takes three columns, a spread or a saving two."""
        kinds = [
            next((type(row[i]) for row in self.rows if row[i] is not None), float)
            for i in range(len(self.columns))
        ]
        ends = [_ENDS.get(kind, ("",)) for kind in kinds]
        pairs = zip(self.columns, ends, strict=True)
        return {
            "columns": [f"{column.heading}{end}" for column, each in pairs for end in each],
            "rows": [
                [
                    part
                    for value, each in zip(row, ends, strict=True)
                    for part in _parts(value, each)
                ]
                for row in self.rows
            ],
        }


@final
@dataclass(frozen=True)
class Figure:
    """A figure whose title says what it shows, and stays true beside every line in it."""

    name: str
    """Of the file that is downloaded, unique on its page."""
    title: str
    note: str
    drawing: Drawing
    half: bool = False
    """Whether it may share a line with another on wide screens."""
    kind: ClassVar[str] = "figure"


@final
@dataclass(frozen=True)
class Facts:
    """Settings by name, folded away until asked for."""

    title: str
    lines: Sequence[tuple[str, str]]
    kind: ClassVar[str] = "facts"


@final
@dataclass(frozen=True)
class Section:
    """A part of a page."""

    anchor: str
    title: str
    subtitle: str = ""
    headline: str = ""
    """The finding, in a sentence."""
    verdict: str = "unclear"
    """`gain`, `loss` or `unclear`: its colour."""
    sentences: Sequence[str] = ()
    warnings: Sequence[str] = ()
    blocks: Sequence[Table | Figure | Facts] = field(default_factory=list)


def write_page(path: Path, title: str, sections: Sequence[Section]) -> Path:
    """Write a page of sections, the figures' definitions below them.

    Raises:
        InputError: The page cannot be written.
    """
    blocks = [block for section in sections for block in section.blocks]
    tables = {block.name: block.embedded() for block in blocks if isinstance(block, Table)}
    figures = {
        block.name: block.drawing.embedded() for block in blocks if isinstance(block, Figure)
    }
    embedded = {"tables": tables, "figures": figures}
    assert len(tables) + len(figures) == sum(not isinstance(block, Facts) for block in blocks)
    glossary = explained("\n".join(_words(sections)))
    return write_template(
        path, "page", title=title, embedded=embedded, sections=sections, glossary=glossary
    )


def _words(sections: Sequence[Section]) -> Iterator[str]:
    for section in sections:
        yield from (section.title, section.subtitle, section.headline, *section.sentences)
        for block in section.blocks:
            yield block.title
            if isinstance(block, Table):
                yield from (block.note, *block.headings, *(row[0] for row in block.cells))
            if isinstance(block, Figure):
                yield block.note
                for panel in block.drawing.panels:
                    yield from (panel.x.title, panel.y.title, *(each.name for each in panel.series))


def write_template(
    path: Path,
    name: str,
    *,
    title: str,
    embedded: Mapping[str, Any],
    scripts: Sequence[str] = (),
    **values: Any,
) -> Path:
    """Write the template `NAME.html.jinja` with `NAME.js` and all it draws embedded.

    The script reads `embedded`, JSON values, and finds the other `scripts` before it; the template
    names the other values. The directory is made if it is missing.

    Raises:
        InputError: The page cannot be written.
    """
    with extra("report"):
        import jinja2
        from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    code = [
        (_HERE / f"{each}.js").read_text(encoding="utf-8")
        for each in ("common", "drawing", *scripts, name)
    ]
    page = environment.get_template(f"{name}.html.jinja").render(
        title=title,
        embedded=embedded,
        version=__version__,
        # All of it comes with the packages or is escaped, nothing from records as it stands.
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),  # noqa: S704
        script=Markup("".join(code)),  # noqa: S704
        json=Markup(_json(embedded)),  # noqa: S704
        **values,
    )
    make_directory(path.parent)
    write_atomically(path, page.encode(errors="backslashreplace"))  # names may be no text
    return path


_ENDS: Mapping[type, tuple[str, ...]] = MappingProxyType(
    {Interval: ("", " (low)", " (high)"), Spread: ("", " (±)"), Saving: ("", " (lost)")}
)
"""What the columns of a value of several numbers are called beside its heading."""


def _parts(value: Any, ends: tuple[str, ...]) -> list[Any]:
    if value is None:
        return [None] * len(ends)
    if isinstance(value, Interval):
        value = (value.value, value.low, value.high)
    parts = value if isinstance(value, tuple) else (value,)
    return [rounded(part) if isinstance(part, float) else part for part in parts]


def _json(value: Any) -> str:
    """JSON that no script element ends early, whatever its strings."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
