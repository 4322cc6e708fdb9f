"""The page: the words, tables and figures of records, in one file that makes no request."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import Tensor

from haltwise._core.errors import InputError
from haltwise._core.files import write_atomically
from haltwise._core.json import to_json
from haltwise._core.version import __version__
from haltwise.evaluation import EvaluationRecord, StoppingRecord
from haltwise.evaluation.records import load_evaluations, load_study
from haltwise.models.files import read_card
from haltwise.models.loading import card_of, names
from haltwise.report import figures, tables
from haltwise.report.drawing import Panel
from haltwise.report.formats import plain
from haltwise.report.tables import Table, flatten
from haltwise.report.words import Summary, summarize, summarize_evaluation
from haltwise.stop_rules import CostUnit
from haltwise.training.run.log import read_log

__all__ = ["render", "slug", "write_report", "write_stopping_report"]

_HERE = Path(__file__).parent


def write_report(run: Path, path: Path) -> Path:
    """Write one HTML page about the evaluations in `run` and how it was trained.

    The page holds everything it needs, plotly.js included: it makes no request, which its
    content security policy enforces.

    Args:
        run: Directory with the records of `haltwise evaluate`; with the training log and what
            `haltwise study --json` wrote to study.json, if there is any.
        path: Where the page goes.

    Returns:
        `path`.

    Raises:
        InputError: There is no record, a record is corrupt, or the page cannot be written.
    """
    evaluations = load_evaluations(run)
    sections = [
        _section(record, arrays, place) for place, (record, arrays) in enumerate(evaluations, 1)
    ]
    records = [record for record, _ in evaluations]
    if len(records) > 1:
        anchors = [section.anchor for section in sections]
        sections.insert(0, _Section("overview", [tables.overview_table(records, anchors)]))
    study = load_study(run)
    if study is not None:
        shown = [tables.study_table(study, unit) for unit in CostUnit]
        prose = [sentence for unit in CostUnit for sentence in tables.margins(study, unit)]
        sections.append(_Section("study", shown, title="Over seeds", prose=prose))
    trained = figures.training(read_log(run))
    if trained:
        sections.append(_Section("training", trained, title="Training"))
    page = _render(run.resolve().name, sections, _cards(run, records))
    write_atomically(path, page.encode())
    return path


def write_stopping_report(record: StoppingRecord, path: Path, title: str) -> Path:
    """Write one HTML page about a `haltwise.evaluation.stopping_report`.

    Args:
        record: What to show.
        path: Where the page goes.
        title: Its title, for instance the name of the file with the trajectories.

    Returns:
        `path`.

    Raises:
        InputError: The page cannot be written.
    """
    section = _Section(
        "stops",
        [
            tables.rules_table(record),
            figures.frontier(record),
            figures.parts_of_j(record),
            figures.reliability(record),
        ],
        title=title,
        subtitle=f"price {plain(record.price)} per step, {record.unit.value}",
        words=summarize(record),
        numbers=flatten(to_json(record)),
    )
    write_atomically(path, _render(title, [section], []).encode())
    return path


@final
@dataclass(frozen=True)
class _Section:
    """A part of the page: words, then tables and figures in order."""

    anchor: str
    parts: Sequence[Table | Panel | None]
    title: str = ""
    subtitle: str = ""
    words: Summary | None = None
    prose: Sequence[str] = ()
    numbers: Sequence[tuple[str, str]] = ()
    """Everything that was recorded, for a CSV file."""
    settings: Sequence[tuple[str, str]] = ()
    """Those of an evaluation, for the end of the page."""


def _section(record: EvaluationRecord, arrays: Mapping[str, Tensor], place: int) -> _Section:
    document = to_json(record)
    names = ("family_settings", "seed", "num_problems", "horizon", "price", "environment")
    first, second = (record.stopping[unit] for unit in (CostUnit.GRADIENTS, CostUnit.UPDATES))
    return _Section(
        f"evaluation-{place}",
        [
            tables.rules_table(first),
            tables.rules_table(second),
            figures.frontier(first),
            figures.parts_of_j(first),
            figures.parts_of_j(second),
            figures.difficulty(record, arrays),
            figures.posterior(record, arrays),
            figures.reliability(first),
            figures.reliability(second),
            figures.losses(record),
            tables.optimizers_table(record),
            tables.learning_table(record),
            tables.others_table(record),
        ],
        title=f"{record.optimizer} on {record.family}",
        subtitle=f"price {plain(record.price)} per step, problems of seed {record.seed}",
        words=summarize_evaluation(record),
        numbers=flatten(document),
        settings=flatten({name: document[name] for name in names}),
    )


def _cards(run: Path, records: Sequence[EvaluationRecord]) -> list[tuple[str, str]]:
    """What the model was trained for: its card, or else why there is none."""
    weights = run / "best.safetensors"
    shipped = sorted({record.optimizer for record in records} & set(names()))
    lines = []
    for source in [weights] if weights.exists() else shipped:
        try:
            card = read_card(source) if isinstance(source, Path) else card_of(source)
            lines += flatten(card.to_json())
        except InputError as error:
            lines.append(("card", f"unreadable: {error}"))
    return lines


def _render(title: str, sections: Sequence[_Section], card: Sequence[tuple[str, str]]) -> str:
    embedded: dict[str, Any] = {"figures": {}, "data": {}}

    def keep(name: str, data: Mapping[str, Any]) -> str:
        identifier = f"data-{len(embedded['data']) + 1}"
        embedded["data"][identifier] = {"name": slug(name), **data}
        return identifier

    shown = []
    for section in sections:
        parts = []
        for part in section.parts:
            if isinstance(part, Table):
                parts.append(
                    {"table": part, "id": keep(f"{section.anchor}-{part.title}", part.data)}
                )
            elif part is not None:
                identifier = keep(f"{section.anchor}-{part.title}", part.plot.data)
                embedded["figures"][identifier] = part.plot.figure()
                parts.append({"panel": part, "id": identifier})
        numbers = {"columns": ["name", "value"], "rows": section.numbers}
        identifier = keep(f"{section.anchor}-numbers", numbers) if section.numbers else ""
        shown.append({"section": section, "parts": parts, "numbers": identifier})
    return render("page", title=title, embedded=embedded, shown=shown, card=card)


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
        json=Markup(_script_json(embedded)),  # noqa: S704
        **values,
    )


def slug(name: str) -> str:
    """`name` as a file name: letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:80] or "data"


def _script_json(value: object) -> str:
    """JSON that no script element ends early, whatever its strings; not finite becomes null."""
    shown = json.dumps(to_json(value), allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        shown = shown.replace(character, f"\\u{ord(character):04x}")
    return shown
