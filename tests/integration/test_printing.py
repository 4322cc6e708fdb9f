"""Tables on a terminal of any width: nothing of them is lost."""

import pytest

from haltwise.cli.printing import print_table
from haltwise.report.page import Column, Table

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
