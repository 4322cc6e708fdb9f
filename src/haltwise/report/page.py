"""The page: everything said and drawn of a directory's records, in one file without requests."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from haltwise._core.errors import InputError
from haltwise._core.files import write_atomically
from haltwise._core.version import __version__
from haltwise.evaluation import Evaluation
from haltwise.evaluation.records import load_heads, load_records
from haltwise.models.loading import names, read_card
from haltwise.report.figures import (
    Panel,
    budgets,
    gains,
    record_panels,
    reliability,
    training,
)
from haltwise.report.formats import plain
from haltwise.report.palette import ACCOUNTS
from haltwise.report.reading import mapping, name_at, number
from haltwise.report.stopping import (
    contenders_table,
    degeneracy_table,
    notes,
    seeds_table,
    summarize_stopping,
)
from haltwise.report.tables import (
    Data,
    Table,
    comparison_table,
    first_objective_table,
    flatten,
    heads_table,
    learning_table,
    overview_table,
    rules_table,
)
from haltwise.report.words import Summary, first_objective, summarize
from haltwise.training.run.log import read_log

__all__ = ["render", "slug", "write_report", "write_stopping_report"]

_HERE = Path(__file__).parent


def write_report(run: Path, path: Path) -> Path:
    """Write one HTML page about the evaluations in `run` and how it was trained.

    The page holds everything it needs, plotly.js included: it makes no request, which its
    content security policy enforces.

    Args:
        run: Directory with the records of `haltwise evaluate`; with the training log and what
            `haltwise study --head` wrote to heads.json, if there is any.
        path: Where the page goes.

    Returns:
        `path`.

    Raises:
        InputError: There is no record, a record is corrupt, or the page cannot be written.
    """
    records = load_records(run)
    embedded = _Embedded()
    sections = [_section(record, place, embedded) for place, record in enumerate(records, 1)]
    overview = None
    if len(records) > 1:
        overview = embedded.table(overview_table(records, [section.anchor for section in sections]))
    trained, study = training(read_log(run)), load_heads(run)
    heads = [table for account in ACCOUNTS if (table := heads_table(study, account))]
    page = _render(
        run.resolve().name,
        sections,
        embedded,
        overview=overview,
        heads=[embedded.table(table) for table in heads],
        training=None if trained is None else embedded.panel(trained),
        card=_card(run, records),
    )
    write_atomically(path, page.encode())
    return path


def write_stopping_report(report: Mapping[str, Any], path: Path, title: str) -> Path:
    """Write one HTML page about a `haltwise.evaluation.stopping_report`.

    Args:
        report: What to show.
        path: Where the page goes.
        title: Its title, for instance the name of the file with the trajectories.

    Returns:
        `path`.

    Raises:
        InputError: The page cannot be written.
    """
    embedded, stem = _Embedded(), slug(title)
    frontier, seeds = budgets(report, stem), seeds_table(report, stem)
    long = {"frontier", "rows_left_out", "regret", "reliability", "seeds", "warnings"}
    section = _Section(
        anchor="stops",
        title=title,
        subtitle=f"price {plain(number(report, 'price'))} per step, {name_at(report, 'account')}",
        words=summarize_stopping(report),
        numbers=embedded.numbers(report, stem),
        rules=embedded.table(contenders_table(report, stem)),
        panels=[] if frontier is None else [embedded.panel(frontier)],
        stopping=_stopping({name_at(report, "account"): report}, stem, embedded, said=True),
        comparisons=None if seeds is None else embedded.table(seeds),
        settings=flatten({key: value for key, value in report.items() if key not in long}),
    )
    write_atomically(path, _render(title, [section], embedded).encode())
    return path


@final
@dataclass
class _Embedded:
    """Figures and numbers that travel as JSON, each under the identifier of its place."""

    figures: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)

    def table(self, table: Table) -> dict[str, Any]:
        """A table for the template."""
        return {"table": table, "id": self._keep(table.data)}

    def panel(self, panel: Panel) -> dict[str, Any]:
        """A figure for the template."""
        identifier = self._keep(panel.data)
        figure = panel.figure.to_plotly_json()
        figure["layout"].pop("template", None)
        self.figures[identifier] = {"data": figure["data"], "layout": figure["layout"]}
        return {"panel": panel, "id": identifier}

    def numbers(self, tree: Mapping[str, Any], stem: str) -> str:
        """Everything that was recorded, a line a number."""
        return self._keep(Data(f"{stem}-summary", ["name", "value"], flatten(tree)))

    def _keep(self, data: Data) -> str:
        identifier = f"data-{len(self.data) + 1}"
        self.data[identifier] = {
            "name": slug(data.name),
            "columns": list(data.columns),
            "rows": data.rows,
        }
        return identifier


@final
@dataclass(frozen=True)
class _Section:
    """One record as the template shows it."""

    anchor: str
    title: str
    subtitle: str
    words: Summary
    numbers: str
    """Where the numbers behind the words are embedded."""
    rules: dict[str, Any]
    panels: list[dict[str, Any]]
    comparisons: dict[str, Any] | None
    settings: list[tuple[str, str]]
    stopping: dict[str, Any] | None = None
    objective: list[str] = field(default_factory=list)
    objective_table: dict[str, Any] | None = None
    learning: dict[str, Any] | None = None


def _render(
    title: str,
    sections: Sequence[_Section],
    embedded: _Embedded,
    *,
    overview: dict[str, Any] | None = None,
    heads: Sequence[dict[str, Any]] = (),
    training: dict[str, Any] | None = None,
    card: Sequence[tuple[str, str]] | None = None,
) -> str:
    """The page; `card` is None where there is no optimizer, empty where its card is missing."""
    return render(
        "page",
        title=title,
        embedded={"figures": embedded.figures, "data": embedded.data},
        overview=overview,
        sections=sections,
        heads=heads,
        training=training,
        card=card,
    )


def render(name: str, *, title: str, embedded: Mapping[str, Any], **values: Any) -> str:
    """The template `name` with its script, plotly.js and all it draws embedded.

    Args:
        name: Of the files `NAME.html.jinja` and `NAME.js`.
        title: Of the page.
        embedded: What the script reads; `data` holds what can be downloaded.
        values: What else the template names.
    """
    import jinja2
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = "".join(
        (_HERE / f"{each}.js").read_text(encoding="utf-8") for each in ("common", name)
    )
    return environment.get_template(f"{name}.html.jinja").render(
        title=title,
        embedded=embedded,
        version=__version__,
        # All of it comes with the packages or is escaped, nothing from records as it stands.
        style=Markup((_HERE / "style.css").read_text(encoding="utf-8")),  # noqa: S704
        script=Markup(script),  # noqa: S704
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),  # noqa: S704
        json=Markup(to_json(embedded)),  # noqa: S704
        **values,
    )


def _section(record: Evaluation, place: int, embedded: _Embedded) -> _Section:
    summary = record.summary
    price, seed = plain(number(summary, "price")), plain(number(summary, "seed"))
    stem = slug(f"{name_at(summary, 'family')}-{price}-{seed}")
    objective_table = first_objective_table(record, stem)
    comparisons, learning = comparison_table(record, stem), learning_table(record, stem)
    settings = {
        key: summary.get(key)
        for key in (
            "optimizer", "family", "family_settings", "price", "seed", "num_problems", "horizon",
            "fixed_budget", "stop_rules", "tuned_rules", "tuned_optimizers",
        )
    }  # fmt: skip
    known = {key: value for key, value in settings.items() if value is not None}
    return _Section(
        anchor=f"evaluation-{place}",
        title=f"{name_at(summary, 'optimizer')} on {name_at(summary, 'family')}",
        subtitle=f"price {price} per step, problems of seed {seed}",
        words=summarize(record),
        numbers=embedded.numbers(summary, stem),
        rules=embedded.table(rules_table(record, stem)),
        panels=[embedded.panel(panel) for panel in record_panels(record, stem)],
        stopping=_stopping(
            {account: mapping(summary, "stopping_report", account) for account in ACCOUNTS},
            stem,
            embedded,
        ),
        objective=first_objective(record),
        objective_table=None if objective_table is None else embedded.table(objective_table),
        comparisons=None if comparisons is None else embedded.table(comparisons),
        learning=None if learning is None else embedded.table(learning),
        settings=flatten(known),
    )


def _stopping(
    reports: Mapping[str, Mapping[str, Any]], stem: str, embedded: _Embedded, *, said: bool = False
) -> dict[str, Any] | None:
    """How the stops vary, what they are worth at other prices, how reliable the hazard is.

    Args:
        reports: Stopping reports by account.
        stem: Of the names of files.
        embedded: Takes the figures and numbers.
        said: Whether the sentences stand above already.
    """
    table = degeneracy_table(reports, stem)
    panels = [gains(reports, stem), *(reliability(report, stem) for report in reports.values())]
    shown = [embedded.panel(panel) for panel in panels if panel is not None]
    if table is None and not shown:
        return None
    return {
        "sentences": [] if said else [" ".join(notes(report)) for report in reports.values()],
        "table": None if table is None else embedded.table(table),
        "panels": shown,
    }


def _card(run: Path, records: Sequence[Evaluation]) -> list[tuple[str, str]]:
    """What the optimizer was trained for: its card, or else why there is none."""
    weights = run / "best.safetensors"
    shipped = {name_at(record.summary, "optimizer") for record in records} & set(names())
    sources = [weights] if weights.exists() else sorted(shipped)
    lines = []
    for source in sources:
        try:
            lines += flatten(read_card(source))
        except InputError as error:
            lines.append(("card", f"unreadable: {error}"))
    return lines


def slug(name: str) -> str:
    """`name` as a file name: letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:80] or "data"


def to_json(value: object) -> str:
    """JSON that no script element ends early, whatever its strings; not finite becomes null."""
    text = json.dumps(_finite(value), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return value
