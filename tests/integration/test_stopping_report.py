"""The stopping report on somebody else's losses and stops: refusals, and the command."""

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import forked
import numpy as np
import pytest
import torch
from in_process import haltwise
from stopping_cases import (
    GROUPS,
    HAZARDS,
    LOSSES,
    ORACLE,
    PRICE,
    STOPS,
    N,
    T,
    judged,
)
from torch import Tensor

from haltwise import InputError
from haltwise._core.errors import DataWarning
from haltwise._core.json import to_json
from haltwise.evaluation import stopping_report
from haltwise.report.figures import frontier
from haltwise.report.stopping import headline, rules_table, sentences, verdict, warnings
from haltwise.stop_rules import CostUnit


def test_items_that_are_not_finite_are_left_out_and_counted() -> None:
    losses = LOSSES.clone()
    losses[3, T], losses[40, 0] = math.inf, math.nan
    record = judged(losses, hazards=HAZARDS, groups=GROUPS)
    kept = [i for i in range(N) if i not in (3, 40)]
    same = judged(LOSSES[kept], STOPS[kept], hazards=HAZARDS[kept], groups=GROUPS[kept])
    assert record.num_left_out == 2
    assert "Left out: 2 problems that did not" in " ".join(warnings(record))
    assert to_json(record) == {**to_json(same), "num_left_out": 2}


def test_what_is_returned_is_judged_where_it_is_not_what_the_unit_says() -> None:
    record = judged(returned=ORACLE)
    expected = (LOSSES.gather(1, ORACLE.unsqueeze(1)).squeeze(1) + PRICE * STOPS).mean().item()
    assert record.stops.j.value == pytest.approx(expected)


def nan_at(values: Tensor, row: int) -> Tensor:
    values = values.clone()
    values[row, 0] = math.nan
    return values


BAD: list[tuple[dict[str, Any], str]] = [
    ({"price": 0.0}, "price must be a finite number above 0"),
    ({"price": math.nan}, "price must be a finite number above 0"),
    ({"losses": LOSSES[0]}, r"losses must have shape \[n, T\+1\]"),
    ({"losses": LOSSES[:, :1]}, "T at least 1"),
    ({"stops": STOPS[:-1]}, r"stops must have shape \[60\]"),
    ({"stops": STOPS.double()}, "stops must be integers, got float64"),
    ({"stops": STOPS + T + 1}, r"stops must lie in 0\.\.8, the steps that losses hold; got \d+"),
    ({"stops": STOPS - 20}, r"stops must lie in 0\.\.8"),
    ({"returned": STOPS - 20}, r"returned must lie in 0\.\.8"),
    ({"hazards": HAZARDS[:, :-1]}, r"hazards must have shape \[60, 8\]"),
    ({"hazards": HAZARDS * 2}, r"probabilities in \[0, 1\]"),
    ({"hazards": nan_at(HAZARDS, 2)}, r"probabilities in \[0, 1\], got nan"),
    ({"observed": HAZARDS}, "observed must have shape"),
    ({"groups": GROUPS.double()}, "groups must be integers"),
    ({"groups": GROUPS > 12}, "groups must be integers, got bool"),
    ({"groups": GROUPS[:3]}, "groups must have shape"),
    ({"losses": LOSSES * math.nan}, "got 0 after 60 with NaN"),
    ({"losses": LOSSES[:19], "stops": STOPS[:19]}, "at least 20 items with finite losses, got 19"),
    ({"losses": LOSSES[:0], "stops": STOPS[:0]}, "got 0"),
    ({"losses": nan_at(LOSSES[:20], 3), "stops": STOPS[:20]}, "got 19 after 1 with NaN"),
    ({"observed": LOSSES * math.nan}, "got 0 after 60 with NaN"),
    ({"losses": LOSSES * 1e300}, r"below 1e\+150, got .*; divide losses and price"),
    ({"price": 1e300}, r"price must be at most 3.4e\+38, .* got 1e\+300"),
    ({"losses": LOSSES.to(torch.complex64)}, "losses must be real numbers, got complex64"),
    ({"losses": [[1.0], [1.0, 2.0]]}, "losses must be a tensor or an array of numbers"),
    ({"groups": ["a"] * N}, r"groups must be integers, got <U1; number them with numpy.unique"),
    ({"unit": "updates"}, "unit must be CostUnit.UPDATES or CostUnit.GRADIENTS"),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_bad_input_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        judged(**settings)


def test_arrays_of_any_kind_are_judged_alike() -> None:
    own = {"observed": LOSSES, "hazards": HAZARDS, "returned": STOPS, "groups": GROUPS}
    expected = to_json(judged(**own))
    for convert in (Tensor.numpy, Tensor.tolist):
        arrays = {"losses": LOSSES, "stops": STOPS, **own}
        given: dict[str, Any] = {name: convert(value) for name, value in arrays.items()}
        assert to_json(judged(**given)) == expected
    assert to_json(judged(LOSSES.clone().requires_grad_(), **own)) == expected
    price = torch.tensor(PRICE, dtype=torch.float64)
    assert to_json(judged(**own, price=price)) == expected
    halves = LOSSES.bfloat16()
    assert to_json(judged(halves)) == to_json(judged(halves.double()))


def test_the_groups_of_a_loop_may_have_any_numbers() -> None:
    assert to_json(judged(groups=GROUPS * 1000 - 5)) == to_json(judged(groups=GROUPS))


# --------------------------------------------------------------------------------------- command


def save(directory: Path, **arrays: Any) -> None:
    np.savez(directory / "t.npz", **arrays)


def test_the_command_writes_what_the_call_returns(tmp_path: Path) -> None:
    arrays = {"losses": LOSSES, "stops": STOPS, "hazards": HAZARDS, "groups": GROUPS}
    save(tmp_path, **{name: value.numpy() for name, value in arrays.items()})
    files = ("--json", "new/out.json", "--html", "newer/out.html")  # directories are made
    done = haltwise(
        "stopping-report", "t.npz", "--price", PRICE, "--unit", "gradients", *files, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    expected = stopping_report(
        LOSSES, STOPS, price=PRICE, unit=CostUnit.GRADIENTS, hazards=HAZARDS, groups=GROUPS
    )
    assert json.loads((tmp_path / "new" / "out.json").read_text()) == to_json(expected)
    shown = " ".join(done.stdout.split())
    for sentence in sentences(expected):
        assert " ".join(sentence.split()) in shown
    assert "patience" in shown
    page = (tmp_path / "newer" / "out.html").read_text(encoding="utf-8")
    assert page.rstrip().endswith("</html>")
    assert "drawing" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "newer", "t.npz"]


def test_damaged_and_swollen_archives_are_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrays = {"losses": LOSSES.numpy(), "stops": STOPS.numpy()}
    path, rng = tmp_path / "t.npz", np.random.default_rng(0)
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]
    content = path.read_bytes()

    def sentence() -> str:
        done = haltwise("stopping-report", "t.npz", "--price", PRICE, cwd=tmp_path)
        assert done.returncode == 2 or content == path.read_bytes()
        return done.stderr

    for _ in range(100):
        damaged = bytearray(content)
        for place in rng.integers(len(damaged), size=3):
            damaged[place] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        sentence()
    # An encrypted member, and a way of compressing that nobody has.
    for offset, value in ((6, 1), (8, 99)):
        changed = bytearray(content)
        for begin, shift in ((b"PK\3\4", 0), (b"PK\1\2", 2)):
            changed[changed.index(begin) + offset + shift] = value
        path.write_bytes(changed)
        assert "is no .npz file of plain arrays" in sentence()
    monkeypatch.setattr("haltwise._core.files._ROOM", 2**20)
    np.savez_compressed(path, losses=np.zeros((5000, 100)), stops=np.zeros(5000, int))
    assert "too many for so small a file" in sentence()


def _write_in(arguments: list[str]) -> None:
    """Be a command whose output has the encoding that is the first argument."""
    encoding, *command = arguments
    sys.stdout = open(1, "w", encoding=encoding, closefd=False)  # noqa: SIM115
    forked.command(command)


def test_an_output_of_few_characters_loses_no_sign(tmp_path: Path) -> None:
    """Windows writes what is redirected in cp1252, which has no minus sign."""
    save(tmp_path, losses=LOSSES.numpy() - 30, stops=STOPS.numpy())
    outputs = []
    for encoding in ("utf-8", "cp1252"):
        command = [encoding, "stopping-report", "t.npz", "--price", "0.05"]
        done = forked.run(*command, cwd=tmp_path, folder=tmp_path, work=_write_in)
        assert done.returncode == 0, done.stderr
        outputs.append((tmp_path / "stdout").read_text(encoding))
    numbers = [re.findall(r"[-\N{MINUS SIGN}]?\d[\d.,]*", text) for text in outputs]
    plain = [[number.replace("\N{MINUS SIGN}", "-") for number in each] for each in numbers]
    assert any(number.startswith("\N{MINUS SIGN}") for number in numbers[0])
    assert plain[0] == plain[1]


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        (None, ("missing.npz", "--price", 1), "there is no file missing.npz"),
        (None, ("t.npz",), "--price"),
        (None, ("t.npz", "--price", 0), "price must be a finite number above 0"),
        (lambda a: a.pop("stops"), ("t.npz", "--price", 1), "has no array stops"),
        (lambda a: a.update(stops=a["stops"] + 0.5), ("t.npz", "--price", 1), "stops must be int"),
        (lambda a: a.update(stops=a["stops"] + 99), ("t.npz", "--price", 1), "must lie in 0..8"),
        (
            lambda a: a.update(losses=np.array([{}], dtype=object)),
            ("t.npz", "--price", 1),
            "no .npz file of plain arrays",
        ),
        (
            lambda a: a.update(losses=a["losses"].astype(str)),
            ("t.npz", "--price", 1),
            "losses must be real numbers",
        ),
        (lambda a: a.update(losses=a["losses"][:9]), ("t.npz", "--price", 1), "stops must have sh"),
    ],
)
def test_the_command_refuses_bad_input_in_a_sentence(
    change: Callable[[dict[str, Any]], object] | None,
    arguments: tuple[object, ...],
    sentence: str,
    tmp_path: Path,
) -> None:
    arrays: dict[str, Any] = {"losses": LOSSES.numpy(), "stops": STOPS.numpy()}
    if change is not None:
        change(arrays)
    save(tmp_path, **arrays)
    done = haltwise("stopping-report", *arguments, "--json", "out.json", cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stdout + done.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_files_that_are_no_archives_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "t.npz").write_bytes(content)
    done = haltwise("stopping-report", "t.npz", "--price", 1, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "numpy.savez" in done.stderr


def test_a_single_array_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", LOSSES.numpy())
    done = haltwise("stopping-report", "t.npy", "--price", 1, cwd=tmp_path)
    assert done.returncode == 2
    assert "single array" in done.stderr


# ----------------------------------------------------------------------------------------- words


def reported(directory: Path, *options: object) -> str:
    """What the command prints, in one line."""
    done = haltwise("stopping-report", "t.npz", "--price", PRICE, *options, cwd=directory)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return " ".join(done.stdout.split())


def test_what_is_left_out_is_said_first_and_in_the_right_number(tmp_path: Path) -> None:
    for num, words in ((1, "1 problem that"), (2, "2 problems that")):
        losses = LOSSES.numpy().copy()
        losses[:num, 3] = math.nan
        save(tmp_path, losses=losses, stops=STOPS.numpy())
        assert reported(tmp_path).startswith(f"Warning: Left out: {words} did not stay finite")


@pytest.mark.parametrize("way", ["min", "max"])
def test_losses_that_end_worse_than_they_start_are_taken_for_scores(
    way: Literal["min", "max"], tmp_path: Path
) -> None:
    other: Literal["min", "max"] = "max" if way == "min" else "min"
    given = 5 - LOSSES if way == "min" else LOSSES
    save(tmp_path, losses=given.numpy(), stops=STOPS.numpy())
    sentence = "say so (--direction max)" if way == "min" else "leave out --direction max"
    shown = reported(tmp_path, "--direction", way)
    assert shown.startswith("Warning: ")
    assert sentence in shown.partition("Stop rules")[0]
    with pytest.warns(DataWarning, match=f'direction="{other}"'):
        judged(given, direction=way)
    assert "Warning" not in reported(tmp_path, "--direction", other)


def test_higher_is_better_is_judged_like_the_loss_with_its_sign_changed() -> None:
    observed = LOSSES + 0.1
    found = judged(-LOSSES, observed=-observed, baselines=True, direction="max")
    same = judged(LOSSES, observed=observed, baselines=True)
    assert to_json(found) == {**to_json(same), "direction": "max"}
    assert "the score with its sign changed" in rules_table(found).note
    assert "sign changed" not in rules_table(same).note
    with pytest.raises(InputError, match="direction must be 'min' or 'max', got 'up'"):
        judged(direction="up")


def test_an_array_that_is_not_used_is_named(tmp_path: Path) -> None:
    save(tmp_path, losses=LOSSES, stops=STOPS, group=GROUPS)
    with pytest.warns(DataWarning, match="arrays that are not used, group; those that can be are"):
        haltwise("stopping-report", "t.npz", "--price", PRICE, cwd=tmp_path)


def test_one_group_is_warned_of() -> None:
    assert "All problems are of one group" in " ".join(warnings(judged(groups=GROUPS * 0)))
    assert not warnings(judged(groups=GROUPS))


def test_where_nothing_can_be_gained_no_share_of_it_is_a_headline() -> None:
    losses = torch.ones(N, T + 1, dtype=torch.float64) + torch.arange(T + 1)
    losses[0, 1] = losses[0, 0] - PRICE - 1e-9  # one item may gain next to nothing
    with pytest.warns(DataWarning):
        record = judged(losses, torch.full((N,), T))
    assert abs(record.stops.gain.value) > 1e6
    assert "%" not in headline(record)
    assert "Next to nothing can be gained here" in headline(record)
    assert "J of the stops 8.80 above" in headline(record)
    assert verdict(record) == "loss"
    shown = [cell for row in rules_table(record).cells for cell in row if cell]
    assert not [cell for cell in shown if re.search(r"\d{7}", cell)]
    assert "– more" not in " ".join(sentences(record))


def test_the_point_that_counts_is_told() -> None:
    for settings, words in (
        ({}, "with the loss at the stop."),
        ({"unit": CostUnit.GRADIENTS}, "with the loss one step after the stop."),
        ({"returned": ORACLE}, "with the loss at the steps in `returned`."),
    ):
        assert words in rules_table(judged(**settings)).note


def test_where_no_least_loss_is_known_nothing_is_solved_or_an_excess() -> None:
    table = rules_table(judged())
    shown = [column.heading for column in table.columns if column.show is not None]
    assert "loss at the stop" in shown
    assert "solved" not in shown
    assert "excess" not in " ".join([*shown, table.note, *sentences(judged())])
    known = rules_table(replace(judged(), has_reference=True))
    shown = [column.heading for column in known.columns if column.show is not None]
    assert {"excess at the stop", "solved"} <= set(shown)


def test_words_follow_the_figures() -> None:
    good = judged(baselines=True)
    assert verdict(good) == "gain"
    assert headline(good).startswith("Stopping captures")
    assert "They beat" in " ".join(sentences(good))
    bad = judged(stops=T - ORACLE, baselines=True)
    assert verdict(bad) == "loss"
    assert headline(bad).startswith("The best fixed budget is better")
    assert "They are beaten by" in " ".join(sentences(bad))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("stop", [0, 1, 3, 8])
def test_nothing_is_said_of_what_rounding_leaves(stop: int, seed: int) -> None:
    """Stops that are all one budget are neither better nor worse than it, and know nothing."""
    draw = np.random.default_rng(seed)
    losses = draw.random((60, 1)) * 0.7 ** np.arange(9) + 0.01 * draw.random((60, 9))
    record = stopping_report(losses, np.full(60, stop), price=0.002, baselines=False)
    text = " ".join(sentences(record))
    for claim in ("problems apart lowers", "does harm", "comes so low", "100 %", "e\N{MINUS SIGN}"):
        assert claim not in text
    if stop == 0:
        assert "so that nothing can be saved" in text
    assert ", not below the" in frontier(record, "x").title
