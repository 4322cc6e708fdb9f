"""A study over seeds and prices, as tables and sentences."""

import math
from statistics import fmean, stdev
from typing import Any

from haltwise.evaluation import StudyRecord
from haltwise.report.formats import (
    MISSING,
    Spread,
    as_given,
    count,
    interval,
    short,
    spread,
)
from haltwise.report.page import Column, Section, Table
from haltwise.report.palette import rule_name
from haltwise.stop_rules import CostUnit

__all__ = ["margins", "study_section", "study_table"]


def study_section(record: StudyRecord) -> Section:
    """The learned rule beside the best tuned baseline, and every rule in each unit of cost."""
    trials = len(record.cells) * len(record.seeds)
    passed = trials - sum(len(cell.failures) for cell in record.cells)
    lost = f"{count(record.num_left_out)} problems did not stay finite and are left out."
    name = short(record.optimizer)
    return Section(
        anchor="study",
        title=f"Study of {name} on {short(record.family)}",
        subtitle=f"{len(record.seeds)} seeds of {count(record.num_problems)} problems, up to "
        f"{record.horizon} steps",
        headline=f"{name} is below the best fixed budget and the best tuned baseline in {passed} "
        f"of {trials} trials",
        warnings=[lost] if record.num_left_out else [],
        blocks=[_cells_table(record), *(study_table(record, unit) for unit in CostUnit)],
    )


def study_table(record: StudyRecord, unit: CostUnit) -> Table:
    """Captured gain of every rule over seeds, a column a price."""
    cells = [cell for cell in record.cells if cell.unit is unit]
    names = dict.fromkeys(name for cell in cells for name in cell.rules)
    shown = [name for name in names if name not in ("fixed", "oracle")]
    rows = [
        [
            name,
            *(_over(cell.rules[name].gain) if name in cell.rules else None for cell in cells),
        ]
        for name in shown
    ]
    prices = [Column(f"price {as_given(cell.price)}", _gain) for cell in cells]
    return Table(
        f"study-{unit.value}",
        f"Captured gain, counted in {unit.value}",
        [Column("stop rule", rule_name), *prices],
        rows,
        note=f"Mean ± standard deviation over {len(record.seeds)} seeds of problems; 1 is the "
        "oracle, 0 the best fixed budget. All rules stop the same trajectories; their settings "
        "were chosen on other problems.",
        strong=shown.index(cells[0].judged),
    )


def margins(record: StudyRecord, unit: CostUnit) -> list[str]:
    """How far the learned rule is ahead of the best tuned baseline, a sentence a price."""
    return [
        f"Price {as_given(cell.price)}: J of {rule_name(cell.best_baseline)}, the best baseline, "
        f"is {interval(cell.rules[cell.best_baseline].difference)} above that of the "
        f"{rule_name(cell.judged)}; {len(cell.failures)} of {len(record.seeds)} seeds failed."
        for cell in record.cells
        if cell.unit is unit
    ]


def _cells_table(record: StudyRecord) -> Table:
    """Every price and unit of cost in a line."""
    rows: list[list[Any]] = []
    for cell in record.cells:
        own, best = cell.rules[cell.judged], cell.rules[cell.best_baseline]
        rows.append(
            [
                f"price {as_given(cell.price)}, {cell.unit.value}",
                _over(own.j),
                _over(own.gain),
                rule_name(cell.best_baseline),
                _over(best.gain),
                best.difference,
                len(cell.failures),
            ]
        )
    return Table(
        "study",
        "The learned rule beside the best tuned baseline",
        [
            Column("price and unit of cost", str),
            Column("J", spread),
            Column("captured gain", _gain),
            Column("best baseline", str),
            Column("its captured gain", _gain),
            Column("its J above the learned rule’s", interval),
            Column("seeds failed", count),
        ],
        rows,
        note="Mean ± standard deviation over seeds of problems, one training each. A seed fails "
        "where the learned rule is not below the best fixed budget and that baseline.",
    )


def _gain(value: Spread) -> str:
    """A captured gain with the three decimals that studies are quoted by: 0.907 ± 0.011."""
    if not math.isfinite(value.mean):
        return MISSING
    return f"{value.mean:.3f} ± {value.sd:.3f}".replace("-", "\N{MINUS SIGN}")


def _over(values: list[float]) -> Spread:
    if not all(map(math.isfinite, values)):
        return Spread(math.nan, math.nan)
    return Spread(fmean(values), stdev(values))
