"""Recorded runs on disk: cut to one length, scored, split, and refused when they do not fit."""

import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from loops import Decay, drive, record_runs
from torch.testing import assert_close

from haltwise import HaltingMonitor, InputError
from haltwise._core.errors import CalibrationWarning, DataWarning
from haltwise._core.files import load_tensors, save_tensors
from haltwise.engines.record import record_descents
from haltwise.processes import Trajectory
from haltwise.processes.signals import SIGNALS
from haltwise.recordings.runs import (
    FEWEST_RUNS,
    RecordedRuns,
    save_trajectory,
    warn_of_rounding,
)
from haltwise.tasks import family
from haltwise.training import train_monitor


def test_without_scores_a_stop_is_worth_the_loss_of_the_next_round(tmp_path: Path) -> None:
    """The loss that is scored is the one the next call observes, so both ways must agree."""
    scored = RecordedRuns.load(record_runs(tmp_path / "a", range(4), scored=True)).trajectory
    plain = RecordedRuns.load(record_runs(tmp_path / "b", range(4))).trajectory
    assert (scored.num_steps, plain.num_steps) == (31, 30)
    assert_close(scored.excess[:, :31], plain.excess)
    assert torch.equal(scored.known("signals")[:, :30], plain.known("signals"))


def test_a_loop_may_keep_its_best_state(tmp_path: Path) -> None:
    """What a stop is worth is then the score of the round whose loss is the lowest so far."""
    losses = [3.0, 2.0, 2.0, 4.0, 1.0, 5.0]
    scores = [30.0, 20.0, 21.0, 40.0, 10.0, 50.0]
    with HaltingMonitor.recording(tmp_path) as monitor:
        improved = []
        for loss, score in zip(losses, scores, strict=True):
            monitor.update(loss, score=score)
            improved.append(monitor.improved)
    assert improved == [True, True, False, False, True, False]
    runs = RecordedRuns.load(tmp_path)
    assert runs.observed == "loss"
    assert runs.trajectory.excess.tolist() == [scores]
    brute = [scores[min(range(t + 1), key=losses.__getitem__)] for t in range(6)]
    assert brute == [30, 20, 20, 20, 10, 10]
    assert runs.keeping_best().trajectory.excess.tolist() == [brute]


@pytest.mark.parametrize("scored", [False, True])
def test_runs_of_several_lengths_are_cut_behind_the_first_rounds(
    tmp_path: Path, scored: bool
) -> None:
    draw = torch.Generator().manual_seed(0)
    runs = [torch.rand(2, num, generator=draw) for num in (8, 6, 9)]
    with HaltingMonitor.recording(tmp_path) as monitor:
        for losses, scores in runs:
            monitor.start()
            for loss, score in zip(losses, scores, strict=True):
                monitor.update(loss, score=score if scored else None)
    found = RecordedRuns.load(tmp_path).trajectory
    num = found.num_steps + 1  # without scores a stop at the last round is worth nothing known
    assert num == (6 if scored else 5)
    assert torch.equal(found.loss.float(), torch.stack([losses[:num] for losses, _ in runs]))
    worth = [scores[:num] if scored else losses[1 : num + 1] for losses, scores in runs]
    assert torch.equal(found.excess.float(), torch.stack(worth))


def test_a_place_that_cannot_be_is_refused_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="choose another directory"):
        HaltingMonitor.recording(tmp_path / "file")
    with pytest.raises(InputError, match="directory must be a path"):
        HaltingMonitor.recording(None)  # type: ignore[arg-type]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with HaltingMonitor.recording("runs") as monitor:
        monkeypatch.chdir(tmp_path / "elsewhere")
        monitor.update(1.0)
    assert len(list((tmp_path / "runs").iterdir())) == 1


@pytest.mark.parametrize(("price", "warns"), [(0.11, True), (0.13, False)])
def test_a_tenth_of_the_price_may_be_rounding(price: float, warns: bool) -> None:
    """Single precision rounds 100,000 by .012; of each run its lowest loss counts, NaN is none."""
    losses = torch.tensor([[2e5, 1e5, 1.5e5], [1e5, math.nan, 1e7], [3e5, 2e5, 1e5]])
    with pytest.warns(DataWarning, match="are rounded by 0.01 in") if warns else nullcontext():
        warn_of_rounding(losses, price)


def test_losses_that_single_precision_rounds_by_the_price_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the mean loss is 1e\\+39, which single precision"):
        HaltingMonitor.recording(tmp_path / "far").update(1e39)
    with HaltingMonitor.recording(tmp_path / "runs") as recorder:
        for run in range(100):
            recorder.start()
            for step in range(6):
                recorder.update(1e8 + math.exp(-step * (run % 7 + 1) / 7))
    tiny: dict[str, Any] = {
        "halting": {"num_steps": 2, "batch_size": 4},
        "validation": {"every": 2},
    }
    with pytest.warns(DataWarning, match="rounded by 1e\\+01 in single precision, and the price"):
        trained = train_monitor(tmp_path / "runs", tmp_path / "run", price=0.01, **tiny)
    monitor = HaltingMonitor(trained)
    with pytest.warns(DataWarning, match="rounded by 1e\\+01"):
        _watch_to_the_end(monitor)


def _watch_to_the_end(monitor: HaltingMonitor) -> None:
    while not monitor.should_stop:
        monitor.update(1e8)


def test_runs_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    record_runs(tmp_path, range(3))
    with HaltingMonitor.recording(tmp_path) as bad:
        run = Decay(0)
        bad.start([run.param])
        for step in range(32):
            bad.update(run.step(step) if step != 9 else math.inf, [run.param])
    with pytest.warns(CalibrationWarning, match="1 of 4 runs are left out.* not finite"):
        assert RecordedRuns.load(tmp_path).trajectory.num_items == 3


def test_few_runs_are_refused_or_warned_of(tmp_path: Path) -> None:
    record_runs(tmp_path / "runs", range(FEWEST_RUNS - 1))
    with pytest.raises(InputError, match=f"{FEWEST_RUNS - 1} runs are too few"):
        train_monitor(tmp_path / "runs", tmp_path / "out", price=0.02)
    record_runs(tmp_path / "runs", range(1000, 1001))
    with pytest.warns(CalibrationWarning, match=f"{FEWEST_RUNS} runs are few"):
        parts = RecordedRuns.load(tmp_path / "runs").split(0)
    assert [part.num_items for part in parts.values()] == [26, 4, 10]
    first = torch.cat([part.loss[:, 0] for part in parts.values()])
    assert len(first.unique()) == FEWEST_RUNS  # every run is in one part


def test_a_hundred_runs_are_not_few(tmp_path: Path) -> None:
    record_runs(tmp_path, range(FEWEST_RUNS))
    runs = RecordedRuns.load(tmp_path)
    many = [
        replace(runs, trajectory=runs.trajectory.select(torch.arange(n) % FEWEST_RUNS))
        for n in (99, 100)
    ]
    with pytest.warns(CalibrationWarning, match="99 runs are few.*100 or more are better"):
        many[0].split(0)
    assert [part.num_items for part in many[1].split(0).values()] == [65, 10, 25]


def test_runs_are_cut_to_one_length(tmp_path: Path) -> None:
    cut_short(tmp_path)
    with pytest.warns(CalibrationWarning, match="has 8 steps, but half of the 3 runs"):
        assert RecordedRuns.load(tmp_path).trajectory.num_steps == 8
    with pytest.warns(CalibrationWarning, match="1 of 3 runs are left out: .* fewer than 20"):
        assert RecordedRuns.load(tmp_path, 20).trajectory.num_items == 2


def test_a_name_is_given_once_and_refused_before_the_run(tmp_path: Path) -> None:
    one, other = (HaltingMonitor.recording(tmp_path, name="a") for _ in range(2))
    drive(one, 0)
    for late in (lambda: HaltingMonitor.recording(tmp_path, name="a"), one.start):
        with pytest.raises(InputError, match=r"there is a run .*a\.safetensors already"):
            late()
    written = (tmp_path / "a.safetensors").read_bytes()
    other.update(1.0)
    with pytest.raises(InputError, match="already"):
        other.close()
    assert (tmp_path / "a.safetensors").read_bytes() == written
    for name in ("", "../a", "a/b", "a" * 201):
        with pytest.raises(InputError, match="the name of a run must have 1 to 200 bytes"):
            HaltingMonitor.recording(tmp_path, name=name)


def test_no_run_takes_the_name_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of threads, of processes with one id, which containers have, or after a deletion."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda seed: record_runs(tmp_path, range(seed, seed + 5)), range(8)))
    assert len(list(tmp_path.iterdir())) == 40
    min(tmp_path.iterdir()).unlink()
    drive(HaltingMonitor.recording(tmp_path), 0)
    last = sorted(path.name for path in tmp_path.iterdir())[-1]
    record_runs(tmp_path, range(1))
    found = sorted(path.name for path in tmp_path.iterdir())
    assert len(found) == 41
    assert found[-2] == last


def test_two_cannot_write_one_file_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have seen that the name is free. Where there are no links, too."""
    for links in (True, False):
        path = tmp_path / f"{links}.safetensors"
        if not links:
            monkeypatch.setattr(os, "link", mock.Mock(side_effect=PermissionError))
        save_tensors(path, {"a": torch.ones(1)}, {}, new=True)
        with pytest.raises(InputError, match="there is a file"):
            save_tensors(path, {"a": torch.zeros(1)}, {}, new=True)
        assert load_tensors(path)[0]["a"] == 1
    assert len(list(tmp_path.iterdir())) == 2


Change = Callable[[dict[str, torch.Tensor], dict[str, object]], object]
HOSTILE: list[Change] = [
    lambda t, c: t.clear(),
    lambda t, c: t.pop("signals"),
    lambda t, c: c.clear(),
    lambda t, c: c.pop("signals"),
    lambda t, c: c.update(observed=["loss"]),
    lambda t, c: t.update(signals=t["signals"][:, 0]),
    lambda t, c: t.update(signals=t["signals"][:, :2]),
    lambda t, c: t.update(signals=t["signals"][3]),
    lambda t, c: t.update(signals=t["signals"].to(torch.complex64)),
    lambda t, c: t.update(signals=t["signals"].double()),
    lambda t, c: t.update(signals=t["signals"].int()),
    lambda t, c: t.update(scores=t["signals"][:-1, 0]),
    lambda t, c: t.update(scores=t["signals"]),
    lambda t, c: t.update(scores=torch.tensor(1.0)),
    lambda t, c: t.update(surplus=t["signals"]),
]


@pytest.mark.parametrize("change", HOSTILE)
def test_a_recorded_run_of_other_tensors_is_refused(change: Change, tmp_path: Path) -> None:
    path = min(record_runs(tmp_path, range(3)).iterdir())
    tensors, card = load_tensors(path)
    change(tensors, card)
    save_tensors(path, tensors, card)
    with pytest.raises(InputError, match=path.name):
        RecordedRuns.load(tmp_path)


def cut_short(directory: Path) -> None:
    record_runs(directory, range(2))
    drive(HaltingMonitor.recording(directory), 0, 10)


def mix(directory: Path) -> None:
    record_runs(directory, range(1))
    record_runs(directory, range(1, 2), scored=True)


def foreign(directory: Path) -> None:
    record_runs(directory, range(1))
    save_tensors(directory / "x.safetensors", {"a": torch.zeros(1)}, {})


def other_signals(directory: Path) -> None:
    path = next(iter(record_runs(directory, range(1)).iterdir()))
    tensors, card = load_tensors(path)
    save_tensors(path, tensors, {**card, "signals": SIGNALS[:-1]})


def one_call(directory: Path) -> None:
    drive(HaltingMonitor.recording(directory), 0, 2)


@pytest.mark.parametrize(
    ("make", "horizon", "message"),
    [
        (lambda _: None, None, "no recorded runs in"),
        (mix, None, "with gradients seen and no scores, .* with gradients seen and scores"),
        (foreign, None, r"x\.safetensors is no recorded run"),
        (other_signals, None, "recorded by a version with other signals"),
        (one_call, None, "too few calls"),
        (cut_short, 99, "no run in .* has 99 steps; the longest has 30"),
    ],
)
def test_runs_that_cannot_be_learned_from_are_refused(
    make: Callable[[Path], object], horizon: int | None, message: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=message):
        RecordedRuns.load(tmp_path, horizon)


def test_two_exits_are_runs_of_one_step(tmp_path: Path) -> None:
    """A small network before a large one: what is decided is whether the large one is asked."""
    losses = torch.rand(60, 2)
    save_trajectory(tmp_path, Trajectory(losses, losses))
    assert RecordedRuns.load(tmp_path).trajectory.num_steps == 1
    save_trajectory(tmp_path / "more", Trajectory(torch.rand(60, 9), torch.rand(60, 9)))
    (tmp_path / "000000-item.safetensors").rename(tmp_path / "more" / "short.safetensors")
    with pytest.raises(InputError, match=r"short.* too few calls"):
        RecordedRuns.load(tmp_path / "more")


@pytest.mark.parametrize("way", ["items", "problems"])
def test_many_runs_wait_for_the_disk_once(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each took a hundredth of a second: sixty thousand images, twelve minutes."""
    disk = mock.Mock()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    monkeypatch.setattr(os, "sync", disk.sync, raising=False)
    if way == "items":
        losses = torch.rand(100, 4)
        save_trajectory(tmp_path / "runs", Trajectory(losses, losses))
    else:
        problem = family("quadratic-10d").sample(100, torch.Generator().manual_seed(0))
        record_descents(problem, tmp_path / "runs", method="lbfgs", horizon=3)
    assert len(list((tmp_path / "runs").iterdir())) == 100
    assert [name for name, *_ in disk.mock_calls] == ["sync"]
    assert RecordedRuns.load(tmp_path / "runs").trajectory.num_items == 100


def test_where_a_disk_cannot_be_waited_for_once_each_run_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = mock.Mock()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    monkeypatch.delattr(os, "sync", raising=False)
    losses = torch.rand(3, 4)
    save_trajectory(tmp_path / "runs", Trajectory(losses, losses))
    assert disk.fsync.call_count >= 3
