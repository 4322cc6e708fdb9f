"""Tables on a terminal of any width: nothing of them is lost."""

import math
import re

import pytest

from haltwise import Curves, RunMonitor
from haltwise.cli.printing import print_table
from haltwise.curves.rules.last_improvement import UntunedImprovementRule
from haltwise.evaluation import Interval
from haltwise.evaluation.give_up import GiveUpFigures, GiveUpRecord
from haltwise.report.formats import interval, percent, percent_estimate
from haltwise.report.give_up import levels_table
from haltwise.report.page import Column, Table
from haltwise.stop_rules import Plateau

NAMES = ["a", "last-improvement-untuned", "best fixed budget (hindsight)"]


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("num", [1, 9])
def test_what_does_not_fit_follows_in_another_block(
    width: int, num: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    columns = [Column("rule", str), *(Column(f"domain{i}", str) for i in range(num))]
    rows = [[name, *(f"{row}{i} of 100" for i in range(num))] for row, name in enumerate(NAMES)]
    print_table(Table("t", "Title", columns, rows, note="A note."))
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for cell in (*(column.heading for column in columns), *(c for row in rows for c in row[1:])):
        assert cell in text
    blocks = [line for line in lines if line.strip().startswith("rule")]
    assert len(blocks) == text.count("\n a ")  # each names its rows
    assert (len(blocks) == 1) == (num == 1 or width == 200)
    assert "…" not in text
    assert lines[0] == "Title"
    assert lines[-1] == "A note."


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.86, "86"),
        (-25.71, "−2,571"),
        (-20886.85, "−2.1e+06"),
        (0.0, "0"),
        (-0.0, "0"),
        (1e-9, "1e−07"),
        (4e-4, "0.04"),
        (0.9996, "99.96"),
    ],
)
def test_shares_are_in_the_notation_of_the_table(share: float, text: str) -> None:
    assert percent(share) == f"{text}\N{NARROW NO-BREAK SPACE}%"


def test_an_interval_of_no_width_is_none() -> None:
    for show in (interval, percent_estimate):
        assert "[" not in show(Interval(0.0, 0.0, 0.0))
        assert "[" not in show(Interval(0.0, math.nan, math.nan))
        assert "[" in show(Interval(0.5, 0.4, 0.6))


def given_up(runs: int, groups: int, unit: str, ended_early: int) -> str:
    half = Interval(0.5, 0.4, 0.6)
    record = GiveUpRecord(
        runs, groups, 1, ended_early, 8827.0, unit, 0.5, 0.9,
        {"0.05": GiveUpFigures(0.1, half, half)}, {},
    )  # fmt: skip
    table = levels_table(record)
    return f"{table.title} {table.note}"


def test_numbers_and_words_agree() -> None:
    alone = given_up(400, 400, "epoch", 1)
    assert "8,827 epochs in 400 runs" in alone
    assert "runs left out in turn" in alone
    assert "group" not in alone
    assert "1 run that ended" in alone
    assert "7 groups left out in turn" in given_up(400, 7, "hours", 2)
    assert "2 runs that ended" in given_up(400, 7, "hours", 2)
    for text in (alone, given_up(1, 1, "s", 1), given_up(2, 2, "GPU hours", 0)):
        assert not re.findall(r"\b1 [a-z]+s\b", text)


@pytest.mark.parametrize(
    ("tolerance", "reason"),
    [
        (0.25, "the last step lowered the loss by no more than 0.25"),
        (0.0, "the last step did not lower the loss"),
        (-0.03613, "the last step raised the loss by 0.03613 or more"),
    ],
)
def test_a_plateau_says_which_way_the_loss_went(tolerance: float, reason: str) -> None:
    assert Plateau(tolerance).reasons == (reason,)


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([5.0, 4.0, 3.99], "the last gain was 0.01 per unit of cost, below its price of 0.1"),
        ([5.0, 4.0, 4.5], "nothing was gained: the last point is worse by 0.5 per unit of cost"),
        ([5.0, 4.0, math.inf], "the last metric is not finite"),
    ],
)
def test_a_last_improvement_says_what_it_was(losses: list[float], reason: str) -> None:
    (curve,) = Curves.from_matrix([losses])
    assert UntunedImprovementRule(0.1).why(curve) == reason


def test_what_is_not_known_of_a_run_is_not_shown_as_a_number() -> None:
    monitor = RunMonitor(price=0.1)
    (curve,) = Curves.from_matrix([[3.0, 2.0]])
    for shown, words in (
        (repr(monitor), "no target, no budget"),
        (repr(curve), "no target, budget 1"),
        (repr(curve._replace(target=1.5, budget=math.nan)), "target 1.5, no budget"),
    ):
        assert "nan" not in shown
        assert words in shown
