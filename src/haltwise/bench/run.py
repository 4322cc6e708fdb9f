"""Every rule on every domain: cells are computed side by side, kept, and never computed twice."""

import hashlib
import json
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, final

from haltwise._core import discovery, plugins
from haltwise._core.errors import InputError, require
from haltwise._core.extras import extra
from haltwise._core.files import make_directory, read_bytes, read_json, write_atomically
from haltwise._core.json import from_json, to_json
from haltwise._core.locks import locked
from haltwise._core.progress import Show
from haltwise._core.settings import whole_number
from haltwise._core.version import __version__
from haltwise.bench.cases import PRICES, make_case
from haltwise.bench.domain import Domain, Question, Sample
from haltwise.bench.domains import domains
from haltwise.bench.given import GivenDomain
from haltwise.bench.protocol import Candidates, Judged, judge_rule
from haltwise.bench.records import BenchCase, BenchCell, BenchRecord, case_of, cell_of
from haltwise.curves.curves import Curves, Direction
from haltwise.curves.readers import read
from haltwise.curves.rule import CurveRule
from haltwise.curves.rules import curve_rules

__all__ = ["GIVEN", "QUICK", "RECORD", "REFERENCE", "BenchSettings", "find_domain", "run_bench"]

RECORD = "bench.json"
"""The file of the output directory that holds all figures."""

REFERENCE = "best-causal"
"""What the best causal rule of a known law is called."""

GIVEN = "these-stops"
"""What stops that were given are called."""


@final
@dataclass(frozen=True)
class BenchSettings:
    """What all cells have in common."""

    num_runs: int = 400
    """Of a domain, at most."""
    num_folds: int = 3
    """That groups are dealt to."""
    prices: tuple[float, ...] = PRICES
    """Of a whole budget, in typical gains of a run of the same task."""
    seed: int = 0

    def __post_init__(self) -> None:
        whole_number("seed", self.seed, 0)


QUICK = BenchSettings(num_runs=120, num_folds=2, prices=(0.1,))
"""A first look in minutes: too few runs for fine differences."""


def run_bench(
    directory: Path,
    names: Sequence[str],
    rules: Sequence[str],
    settings: BenchSettings,
    *,
    data_dir: Path | None = None,
    num_jobs: int = 1,
    report: Show | None = None,
    price: float | None = None,
    direction: Direction = "min",
) -> BenchRecord:
    """Judge rules on domains; what was judged before in this directory is not judged again.

    Args:
        directory: Keeps the record and the runs that are made.
        names: Of domains, PATH.py:NAME for one's own, or FILE.npz with somebody's stops.
        rules: Their names, or PATH.py:NAME for one's own.
        settings: What all cells have in common.
        data_dir: A folder of recorded curves.
        num_jobs: Processes.
        report: Told how many domains have their runs and then how many cells are done: ("domain" or
            "cell", how many, of how many, the last); and ("", 0, 0, which domain is left out, why).
        price: Of a unit of cost, in units of the loss, for files with somebody's stops; their own
            if None.
        direction: Whether lower or higher is better of the losses in such files.

    Raises:
        InputError: The directory holds a bench of other settings, another bench writes there now, a
            name is unknown, or a rule of one's own fails.
    """
    report = report or _ignore
    for what, given in (("domains", names), ("rules", rules)):
        labels = [_label(name) for name in given]
        twice = sorted({label for label in labels if labels.count(label) > 1})
        require(
            not twice,
            f"two {what} are called {' and '.join(twice)}, which tables could not tell apart; "
            "rename one, or name it once",
        )
    bench = _Bench(directory, settings, data_dir, price, direction)
    make_directory(directory / "curves")
    taken = f"another bench writes to {directory}; wait for it, or name another directory by --out"
    with locked(directory / ".lock", taken):
        return _run(bench, names, rules, num_jobs, report)


def _run(
    bench: "_Bench", names: Sequence[str], rules: Sequence[str], num_jobs: int, report: Show
) -> BenchRecord:
    directory = bench.directory
    record = _previous(directory, _settings_of(bench.settings, bench.data_dir))
    for path in () if (directory / RECORD).exists() else map(bench.path, names):
        require(
            not path.exists(),
            f"{directory} holds no bench, for there is no {RECORD}, but {path} would be "
            "overwritten; move it or name another directory by --out",
        )
    for rule in rules:
        _candidates(rule)  # an unknown one is refused before anything is computed
    # Cells of other rules and domains stay in the record; what is skipped may be there next time.
    record = replace(record, skipped={})
    _save(directory, record)  # now, for runs that are made for these settings are kept here
    prepared = {}
    report("domain", 0, len(names), "")
    for name, found in _side_by_side(bench.prepare, names, num_jobs):
        prepared[name] = found
        report("domain", len(prepared), len(names), _label(name))
    for name in names:
        found = prepared[name]
        if isinstance(found, str):
            record.skipped[_label(name)] = found
            report("", 0, 0, f"{_label(name)} is left out: {found}")
        else:
            for case, cells in found:
                _forget(record, case)
                record.cases[_key(case)] = case
                record.cells.update({f"{_key(case)}/{cell.rule}": cell for cell in cells})
    plan = [
        (name, case.question, rule)
        for name in names
        for case in record.cases.values()
        if case.domain == _label(name) and case.domain not in record.skipped
        for rule in (*rules, *_references(name))
    ]
    todo = [each for each in plan if not _is_done(record, *each)]
    _save(directory, record)
    done = len(plan) - len(todo)
    report("cell", done, len(plan), "")
    for _, cell in _side_by_side(lambda each: bench.cell(*each), todo, num_jobs):
        record.cells[f"{cell.domain}/{cell.question}/{cell.rule}"] = cell
        _save(directory, record)
        done += 1
        report("cell", done, len(plan), f"{cell.rule} on {cell.domain}, {cell.question}")
    return record


def _ignore(unit: str, done: int, total: int, what: str) -> None:
    del unit, done, total, what


def _forget(record: BenchRecord, case: BenchCase) -> None:
    """Drop what was measured on other runs of a case: its data have changed."""
    before = record.cases.get(_key(case))
    if before is not None and before.digest != case.digest:
        for key in [key for key in record.cells if key.startswith(f"{_key(case)}/")]:
            del record.cells[key]


def find_domain(name: str, price: float | None = None, direction: Direction = "min") -> Domain:
    """A named domain, one of a user's file, or the runs and stops of an .npz file.

    Args:
        name: Its name.
        price: See `run_bench`, as is `direction`.
        direction: Whether lower or higher is better.

    Raises:
        InputError: The name is unknown; near ones are suggested.
    """
    if name.endswith(".npz"):
        return GivenDomain(Path(name), price, direction)
    found = discovery.find(domains(), name, Domain, "domain")
    made: Domain = found() if isinstance(found, type) else found
    return made


@final
@dataclass(frozen=True)
class _Bench:
    """What a process needs to compute a cell: names, since code of a user's does not travel."""

    directory: Path
    settings: BenchSettings
    data_dir: Path | None
    price: float | None
    direction: Direction

    def prepare(self, name: str) -> str | list[tuple[BenchCase, list[BenchCell]]]:
        """The cases of a domain, with the cells of stops that it brings; or why it has none."""
        domain = self._domain(name)
        keeps = domain.is_made and self.path(name).exists()
        try:
            if not keeps:
                domain.curves(self._sample()).save(self.path(name))
        except InputError as error:
            if plugins.is_file(name) or isinstance(domain, GivenDomain):
                raise
            return str(error)
        curves = self._kept(name)  # as the cells see them
        found = []
        for question in domain.questions:
            case = make_case(domain, question, curves, self.settings.prices)
            cells = []
            stops = domain.stops(case.shown)
            if stops is not None:
                (price,) = case.prices
                charged = case.charges(stops[:, None], price)[:, 0]
                judged = Judged({f"charge@{price:g}": charged}, {})
                cells.append(cell_of(_label(name), GIVEN, case, judged, case.digest, 0.0))
            made = case_of(_label(name), domain.title, case, domain.given_price())
            found.append((made, cells))
        return found

    def cell(self, name: str, question: Question, rule: str) -> BenchCell:
        """One rule under one question on one domain."""
        domain = self._domain(name)
        curves = self._kept(name)
        case = make_case(domain, question, curves, self.settings.prices)
        candidates = _candidates(rule) if rule != REFERENCE else _reference(domain)
        begun = time.perf_counter()
        inside = (
            plugins.place(rule, _kind(rule)).errors() if plugins.is_file(rule) else nullcontext()
        )
        with inside, warnings.catch_warnings():
            # Of solvers that do not converge in some of hundreds of fits.
            warnings.simplefilter("ignore")
            judged = judge_rule(candidates, case, self.settings.num_folds, self.settings.seed)
        seconds = time.perf_counter() - begun
        digest = _digest(case.digest, rule)
        return cell_of(_label(name), _label(rule), case, judged, digest, seconds)

    def _domain(self, name: str) -> Domain:
        return find_domain(name, self.price, self.direction)

    def _sample(self) -> Sample:
        return Sample(self.settings.num_runs, self.settings.seed, self.data_dir)

    def _kept(self, name: str) -> Curves:
        return read(self.path(name), format="npz")

    def path(self, name: str) -> Path:
        """Where the runs of a domain are kept."""
        return self.directory / "curves" / f"{_label(name)}.npz"


def _side_by_side(
    function: Callable[[Any], Any], items: Sequence[Any], jobs: int
) -> Iterator[tuple[Any, Any]]:
    """Each item with its value, as soon as it is known; several are computed at a time."""

    def valued(item: Any) -> tuple[Any, Any]:
        return item, function(item)

    if jobs == 1 or len(items) < 2:
        yield from map(valued, items)
        return
    with extra("learn"):
        from joblib import Parallel, delayed

    # In any order: a slow item would keep those behind it from being saved.
    parallel = Parallel(n_jobs=jobs, return_as="generator_unordered")
    yield from parallel(delayed(valued)(item) for item in items)


def _candidates(name: str) -> Candidates:
    found = discovery.find(curve_rules(), name, CurveRule, "rule")
    if isinstance(found, type):
        candidates: Candidates = found.candidates  # type: ignore[attr-defined]
        return candidates
    return partial(_only, found)


def _only(rule: CurveRule, price: float | None) -> list[CurveRule]:
    """A rule that was made already has nothing to choose."""
    del price
    return [rule]


def _kind(name: str) -> type:
    return plugins.class_of(discovery.find(curve_rules(), name, CurveRule, "rule"))


def _reference(domain: Domain) -> Candidates:
    assert domain.reference is not None
    return domain.reference.candidates


def _references(name: str) -> tuple[str, ...]:
    return () if find_domain(name).reference is None else (REFERENCE,)


def _label(name: str) -> str:
    """PATH.py:NAME as NAME, PATH/FILE.npz as FILE."""
    return Path(name).stem if name.endswith(".npz") else plugins.label(name)


def _key(case: BenchCase) -> str:
    return f"{case.domain}/{case.question}"


def _digest(runs: str, rule: str) -> str:
    """Of the runs; and of the file of a rule of one's own, which may have changed."""
    if not plugins.is_file(rule):
        return runs
    content = read_bytes(Path(rule.rpartition(":")[0]))
    return hashlib.blake2b(runs.encode() + content, digest_size=16).hexdigest()


def _is_done(record: BenchRecord, name: str, question: Question, rule: str) -> bool:
    key = f"{_label(name)}/{question}"
    cell = record.cells.get(f"{key}/{_label(rule)}")
    return cell is not None and cell.digest == _digest(record.cases[key].digest, rule)


def _settings_of(settings: BenchSettings, data_dir: Path | None) -> dict[str, str]:
    found = {name: str(value) for name, value in asdict(settings).items()}
    found["data_dir"] = "none" if data_dir is None else str(data_dir.resolve())
    return {**found, "version": __version__}


def _previous(directory: Path, settings: dict[str, str]) -> BenchRecord:
    path = directory / RECORD
    if not path.exists():
        return BenchRecord(settings)
    record = from_json(BenchRecord, read_json(path))
    differs = [name for name, value in settings.items() if record.settings.get(name) != value]
    require(
        not differs,
        f"{directory} holds a bench with another {' and another '.join(differs)}; name another "
        "directory by --out",
    )
    return record


def _save(directory: Path, record: BenchRecord) -> None:
    write_atomically(directory / RECORD, json.dumps(to_json(record)).encode())
