"""A study over seeds and prices, as tables and sentences."""

import math
from statistics import fmean, stdev

from haltwise.evaluation import StudyRecord
from haltwise.report.formats import (
    MISSING,
    Spread,
    as_given,
    count,
    counted,
    interval,
    short,
    spread,
)
from haltwise.report.page import Column, Section, Table
from haltwise.report.palette import rule_name
from haltwise.stop_rules import CostUnit

__all__ = ["margins_table", "study_section", "study_table"]


def study_section(record: StudyRecord) -> Section:
    """The learned rule beside the best tuned baseline, and every rule in each unit of cost."""
    trials = len(record.cells) * len(record.seeds)
    passed = trials - sum(len(cell.failures) for cell in record.cells)
    lost = f"Left out: {counted(record.num_left_out, 'problem')} that did not stay finite."
    name = short(record.optimizer)
    return Section(
        anchor="study",
        title=f"Study of {name} on {short(record.family)}",
        subtitle=f"{len(record.seeds)} seeds of {count(record.num_problems)} problems, up to "
        f"{record.horizon} steps",
        headline=f"{name} is below the best fixed budget and the best tuned baseline in {passed} "
        f"of {trials} trials",
        warnings=[lost] if record.num_left_out else [],
        blocks=[table(record, unit) for table in (margins_table, study_table) for unit in CostUnit],
    )


def study_table(record: StudyRecord, unit: CostUnit) -> Table:
    """Captured gain of every rule over seeds, a column a price."""
    cells = [cell for cell in record.cells if cell.unit is unit]
    shown = [name for name in cells[0].rules if name not in ("fixed", "oracle")]
    rows = [[name, *(_over(cell.rules[name].gain) for cell in cells)] for name in shown]
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


def margins_table(record: StudyRecord, unit: CostUnit) -> Table:
    """How far the learned rule is ahead of the best tuned baseline, a row a price."""
    rows = [
        [
            cell.price,
            _over(cell.rules[cell.judged].j),
            rule_name(cell.best_baseline),
            cell.rules[cell.best_baseline].difference,
            len(cell.failures),
        ]
        for cell in record.cells
        if cell.unit is unit
    ]
    return Table(
        f"study-margins-{unit.value}",
        f"The learned rule beside the best tuned baseline, counted in {unit.value}",
        [
            Column("price", as_given),
            Column("J", spread),
            Column("best baseline", str),
            Column("its J above that", interval),
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
