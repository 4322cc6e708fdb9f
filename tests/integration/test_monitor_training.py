"""A monitor learned from recorded runs: better than tuned rules, on little, and resumable."""

import json
import shutil
from pathlib import Path

import in_process
import pytest
import torch
from loops import Decay, drive, record_runs

from haltwise import HaltingMonitor, InputError
from haltwise._core.files import load_tensors
from haltwise.evaluation import judge_runs, learners
from haltwise.models import load_halting
from haltwise.models.loading import card_of
from haltwise.recordings.runs import RecordedRuns
from haltwise.stop_rules import CostUnit, decisions
from haltwise.training import Trainer, monitor_settings, train_monitor


def test_it_learns_when_to_stop_and_beats_tuned_rules(
    recorded_runs: Path, stopper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How good they are is judged elsewhere.
    monkeypatch.setattr(learners, "_NUM_TREES", dict.fromkeys(learners._NUM_TREES, 5))
    held_out = RecordedRuns.load(record_runs(tmp_path, range(1000, 1060)))
    model = load_halting(stopper)
    found = judge_runs(model, held_out, RecordedRuns.load(recorded_runs), price=0.02)
    assert found.num_items == 60
    assert found.stops.gain.value > 0.97 > found.rules["patience"].gain.value
    assert found.rules["patience"].difference.low > 0
    stops = [_first_poor(row, 0.02) for row in held_out.trajectory.loss.tolist()]
    assert found.rules["last_improvement"].mean_cost == pytest.approx(sum(stops) / 60)
    # J is what it says it is, and the loop stops where the batch does.
    rule = model.policy(CostUnit.UPDATES).rule
    expected = decisions(rule, model.attach(held_out.trajectory, 0.02))
    monitor, costs = HaltingMonitor(stopper), []
    for seed, decided in zip(range(1000, 1060), expected.tolist(), strict=True):
        stopped = drive(monitor, seed)
        assert stopped == decided + 1
        costs.append(Decay(seed).loss(stopped) + 0.02 * decided)
    assert sum(costs) / 60 == pytest.approx(found.stops.j.value, rel=1e-5)


def _first_poor(loss: list[float], price: float) -> int:
    """The first step whose improvement is below the price, the last step if none is."""
    poor = (step for step in range(1, len(loss)) if loss[step - 1] - loss[step] < price)
    return next(poor, len(loss) - 1)


@pytest.mark.parametrize("observed", ["loss", "updates"])
def test_it_makes_do_with_less_than_gradients(observed: str, tmp_path: Path) -> None:
    def go(monitor: HaltingMonitor, seed: int) -> int:
        run = Decay(seed)
        model = [run.param] if observed == "updates" else None
        monitor.start(model)
        for step in range(30):
            loss = run.step(step)
            run.param.grad = None
            monitor.update(loss, model)
            if monitor.should_stop:
                break
        return monitor.steps

    monitor = HaltingMonitor.recording(tmp_path / "runs")
    for seed in range(120):
        go(monitor, seed)
    monitor.close()
    assert RecordedRuns.load(tmp_path / "runs").observed == observed
    run = train_monitor(tmp_path / "runs", tmp_path / "run", price=0.02, halting={"num_steps": 60})
    assert load_halting(run).card.observed == observed
    assert len({go(HaltingMonitor(run), seed) for seed in range(300, 310)}) > 2
    # Gradients, which it was not trained for, it does not look at.
    assert drive(HaltingMonitor(run), 300) == go(HaltingMonitor(run), 300)


def test_training_goes_on_where_it_was_cut(
    recorded_runs: Path, stopper: Path, tmp_path: Path
) -> None:
    settings = monitor_settings(recorded_runs, price=0.02, halting={"num_steps": 150})
    for progress in Trainer(settings, tmp_path).run():
        if progress.step == 100:
            break
    for _ in Trainer.resume(tmp_path).run():
        pass
    weights, expected = (load_tensors(path / "best.safetensors")[0] for path in (tmp_path, stopper))
    assert all(torch.equal(value, expected[name]) for name, value in weights.items())
    assert card_of(tmp_path).policies == card_of(stopper).policies


def test_it_does_not_go_on_with_other_recordings(recorded_runs: Path, tmp_path: Path) -> None:
    runs = Path(shutil.copytree(recorded_runs, tmp_path / "runs"))
    settings = monitor_settings(runs, price=0.02, halting={"num_steps": 8}, validation={"every": 2})
    for progress in Trainer(settings, tmp_path / "run").run():
        if progress.step == 5:
            break
    record_runs(runs, range(900, 901))
    with pytest.raises(InputError, match=r"holds a run of other settings \(recordings: "):
        Trainer.resume(tmp_path / "run")


def test_what_a_monitor_has_not_is_refused(recorded_runs: Path, tmp_path: Path) -> None:
    for settings, sentence in (
        ({"rule": "lstm"}, "recorded runs have been moved already, so there is no update rule"),
        ({"mixed_with": ["regression-2d"]}, "drop mixed_with"),
        ({"halting": {"num_step": 3}}, "did you mean 'halting.num_steps'"),
    ):
        with pytest.raises(InputError, match=sentence):
            train_monitor(recorded_runs, tmp_path / "run", price=0.02, **settings)
        assert not (tmp_path / "run").exists()


def test_the_command_line_trains_a_monitor(recorded_runs: Path, tmp_path: Path) -> None:
    options = ["--halting.num-steps", 20, "--keeps-best", "--threads", 1]
    command = ["train-monitor", recorded_runs, "--price", 0.02, "--out", "m", *options]
    result = in_process.haltwise(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert HaltingMonitor(tmp_path / "m").steps == 0
    assert load_halting(tmp_path / "m").card.keeps_best
    resumed = in_process.haltwise("train", "--resume", "m", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr


@pytest.mark.parametrize("command", ["evaluate", "study"])
def test_commands_that_need_an_optimizer_refuse_a_monitor(
    command: str, stopper: Path, tmp_path: Path
) -> None:
    refused = in_process.haltwise(command, stopper, cwd=tmp_path)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
    assert "knows when to stop" in refused.stderr


def test_the_command_line_judges_a_monitor_on_other_runs(
    recorded_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How good they are is judged elsewhere.
    monkeypatch.setattr(learners, "_NUM_TREES", dict.fromkeys(learners._NUM_TREES, 5))
    test = record_runs(tmp_path / "test", range(1000, 1060))
    options = ["--test-runs", test, "--json", "x.json", "--halting.num-steps", 20]
    command = ["train-monitor", recorded_runs, "--price", 0.02, "--out", "m", "--threads", 1]
    result = in_process.haltwise(*command, *options, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "patience" in result.stdout
    found = json.loads((tmp_path / "x.json").read_text(encoding="utf-8"))
    assert (found["num_items"], found["price"]) == (60, 0.02)
    assert f"{found['rules'][found['judged']]['j']['value']:.3g}" in result.stdout
    page = (tmp_path / "m" / "report.html").read_text(encoding="utf-8")
    assert "<h1>m on test</h1>" in page
    again = ["judge", "m", test, "--tuning-runs", recorded_runs, "--html", "y.html"]
    judged = in_process.haltwise(*again, "--json", "y.json", cwd=tmp_path)
    assert judged.returncode == 0, judged.stderr
    assert json.loads((tmp_path / "y.json").read_text(encoding="utf-8")) == found
    assert (tmp_path / "y.html").read_text(encoding="utf-8") == page
    report = in_process.haltwise("report", "m", cwd=tmp_path)  # `evaluate` takes no monitor
    assert "write a page of its stops by `haltwise judge m RECORDINGS --html PAGE`" in report.stderr
    half = in_process.haltwise("judge", "m", test, "--price", 1, cwd=tmp_path)
    assert (half.returncode, "give --tuning-runs, too" in half.stderr) == (2, True)
