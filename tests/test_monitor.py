"""Stopping anybody's loop: the same decisions as in batches, and they can be learned."""

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import in_process
import pytest
import torch
from haltwise.stop_rules.accounts import CostUnit
from torch import Tensor, nn
from torch.testing import assert_close

import haltwise.interfaces.monitor
from haltwise import HaltingMonitor, InputError, load
from haltwise import update_rules as rules
from haltwise._core.errors import CalibrationWarning
from haltwise._core.files import load_tensors, save_tensors
from haltwise.evaluation import study_runs
from haltwise.halting.halter import BEFORE, HaltingOutput
from haltwise.models.optimizer_model import ModelConfig, OptimizerModel
from haltwise.processes.signals import SIGNALS
from haltwise.recordings.runs import FEWEST_RUNS, RecordedRuns
from haltwise.rollout.early_exit import Outcome, execute
from haltwise.rollout.record import Recording, Trajectory, record, unroll
from haltwise.stop_rules import decisions
from haltwise.tasks import TaskBatch, family
from haltwise.training import Trainer, train_monitor

RATE = 0.15


def adam_with_a_head(horizon: int = 20, seed: int = 0) -> OptimizerModel:
    """Adam beside a head that says random things; nobody trained it."""
    config = ModelConfig(rule="adam", rule_settings={"learning_rate": RATE})
    generator = torch.Generator().manual_seed(seed)
    optimizer = OptimizerModel(config, generator)
    optimizer.head.weights[-1].data.normal_(generator=generator)
    optimizer.card = {
        "config": {"posterior": "stick-breaking", "price": 0.05, "horizon": horizon},
        "thresholds": [-1.0, -1.0],
    }
    return optimizer.requires_grad_(False)


def steps_of(batch: TaskBatch, problem: int) -> Iterator[tuple[float, list[Tensor]]]:
    """A plain loop of torch's Adam on one problem, its parameters in two tensors."""
    single = batch.select(torch.tensor([problem]))
    params = [value.clone().requires_grad_() for value in single.start.tensor_split(2, 1)]
    optimizer = torch.optim.Adam(params, lr=RATE)
    yield math.nan, params
    for step in itertools.count():
        loss, grad = single.observe(torch.cat(params, 1).detach(), step)
        for param, part in zip(params, grad.tensor_split(2, 1), strict=True):
            param.grad = part.clone()
        optimizer.step()
        yield loss.item(), params


@pytest.fixture
def problems(generator: torch.Generator) -> TaskBatch:
    return family("regression-10d").sample(24, generator)


def test_it_decides_as_execute_does(problems: TaskBatch) -> None:
    optimizer = adam_with_a_head()
    price = torch.full((24,), 0.05)
    said = unroll(optimizer, problems, 20, price).halting.hazard_logits[..., BEFORE]
    optimizer.card["thresholds"] = [0.0, said.amax(1).quantile(0.5).item()]  # type: ignore[index]
    expected = execute(optimizer, problems, optimizer.policy(), price, 20)
    monitor = HaltingMonitor(optimizer)
    for problem in range(24):
        loop = steps_of(problems, problem)
        monitor.start(next(loop)[1])
        for loss, params in loop:
            monitor.update(loss, params)
            if monitor.should_stop:
                break
        assert monitor.steps == expected.num_gradients[problem]
        halted = expected.outcome[problem] == Outcome.HALTED
        assert monitor.reason == (
            expected.reasons[0] if halted else "it was trained on runs of 20 rounds"
        )
    assert len(expected.num_gradients.unique()) > 4
    assert {Outcome.HALTED, Outcome.OUT_OF_STEPS} == set(expected.outcome.tolist())


def test_it_records_what_a_batch_records(
    problems: TaskBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(haltwise.interfaces.monitor, "_CHUNK", 3)
    for problem in range(24):
        with HaltingMonitor.recording(tmp_path, name=f"{problem:03}") as monitor:
            loop = steps_of(problems, problem)
            monitor.start(next(loop)[1])
            for loss, params in itertools.islice(loop, 8):
                monitor.update(loss, params)
                assert not monitor.should_stop
    found = RecordedRuns.load(tmp_path)
    expected = record(rules.make("adam", {"learning_rate": RATE}), problems, 7)
    assert found.reads == "gradients"
    assert found.recording.num_steps == 6  # the last score is the last loss, which nothing follows
    assert_close(found.recording.signals, expected.signals[:, :6], rtol=1e-3, atol=1e-4)
    close = partial(assert_close, rtol=1e-4, atol=1e-4)
    close(found.recording.loss, expected.loss[:, :7])
    close(found.recording.excess, expected.loss[:, 1:])  # what a stop leaves behind
    close(found.recording.log_grad_norm, expected.log_grad_norm[:, :7])


# --------------------------------------------------------------------------- a loop of one's own


class Decay:
    """Losses a s^t + b with a, s and b of the run, as a model of one parameter goes through them.

    What a stop at a price is worth follows from a and s, which nobody tells the monitor.
    """

    def __init__(self, seed: int) -> None:
        draw = torch.rand(3, generator=torch.Generator().manual_seed(seed)).tolist()
        self.height, self.share, self.floor = 1 + 3 * draw[0], 0.5 + 0.45 * draw[1], draw[2]
        self.param = nn.Parameter(torch.ones(1))

    def loss(self, step: int) -> float:
        return float(self.floor + self.height * self.share**step)

    def step(self, step: int) -> float:
        """Move as gradient descent on a theta^2 / 2 would; the loss before."""
        self.param.grad = 2 * self.height * self.param.detach()
        self.param.data *= self.share**0.5
        return self.loss(step)


def drive(monitor: HaltingMonitor, seed: int, num: int = 32, *, scored: bool = False) -> int:
    """Run the loop under the monitor; how many rounds it took."""
    run = Decay(seed)
    monitor.start([run.param])
    for step in range(num):
        loss = run.step(step)
        monitor.update(loss, [run.param], score=run.loss(step + 1) if scored else None)
        if monitor.should_stop:
            break
    monitor.close()
    return monitor.steps


def record_runs(directory: Path, seeds: range, **changes: bool) -> Path:
    monitor = HaltingMonitor.recording(directory)
    for seed in seeds:
        drive(monitor, seed, **changes)
    return directory


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record_runs(tmp_path_factory.mktemp("runs"), range(150))


@pytest.fixture(scope="module")
def trained(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("monitor") / "run"
    return train_monitor(runs, directory, price=0.02, head_steps=150)


def test_it_learns_when_to_stop_and_beats_tuned_rules(
    runs: Path, trained: Path, tmp_path: Path
) -> None:
    held_out = RecordedRuns.load(record_runs(tmp_path, range(1000, 1060)))
    found = study_runs(load(trained), held_out, RecordedRuns.load(runs), price=0.02)
    test = held_out.recording
    assert found["captured_gain"]["rule"] > 0.97 > found["captured_gain"]["patience"]
    assert found["difference"]["patience"]["low"] > 0
    # J is what it says it is, and the loop stops where the batch does.
    monitor, costs = HaltingMonitor(trained), []
    traces = Trajectory(test, torch.full((60,), 0.02), _said(trained, test)).traces()
    expected = decisions(load(trained).policy(CostUnit.UPDATES).rule, traces)
    for seed, decided in zip(range(1000, 1060), expected.tolist(), strict=True):
        stopped = drive(monitor, seed)
        assert stopped == decided + 1
        costs.append(Decay(seed).loss(stopped) + 0.02 * decided)
    assert sum(costs) / 60 == pytest.approx(found["j"]["rule"], rel=1e-5)
    assert found["num_runs"] == 60


@torch.no_grad()
def _said(weights: Path, recording: Recording) -> HaltingOutput:
    prices = torch.full((recording.num_problems,), 0.02)
    return load(weights).speak(recording.signals, recording.readouts, prices)


def test_a_stop_depends_on_nothing_that_comes_later(trained: Path) -> None:
    for seed in range(5):
        expected = drive(HaltingMonitor(trained), seed)
        assert 1 < expected < 31
        monitor, run = HaltingMonitor(trained), Decay(seed)
        monitor.start([run.param])
        for step in range(expected):
            assert not monitor.should_stop
            monitor.update(run.step(step), [run.param], score=math.nan)
        reason = monitor.reason
        assert reason is not None
        monitor.update(-100.0, [run.param])  # much better, but too late
        assert (monitor.reason, monitor.steps) == (reason, expected + 1)


def test_scores_are_learned_from_and_not_needed_to_stop(tmp_path: Path) -> None:
    """The loss that is scored is the one the next call observes, so both ways must agree."""
    with_scores = RecordedRuns.load(record_runs(tmp_path / "a", range(4), scored=True)).recording
    without = RecordedRuns.load(record_runs(tmp_path / "b", range(4))).recording
    assert (with_scores.num_steps, without.num_steps) == (31, 30)
    assert_close(with_scores.excess[:, :31], without.excess)
    assert torch.equal(with_scores.signals[:, :30], without.signals)


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
    assert runs.recording.excess.tolist() == [scores]
    assert runs.keeping_best().recording.excess.tolist() == [[30, 20, 20, 20, 10, 10]]
    brute = [scores[min(range(t + 1), key=losses.__getitem__)] for t in range(6)]
    assert runs.keeping_best().recording.excess.tolist() == [brute]


def test_gradients_may_be_seen_before_the_loss_is_known(trained: Path) -> None:
    at_once, apart = HaltingMonitor(trained), HaltingMonitor(trained)
    runs = Decay(7), Decay(7)
    at_once.start([runs[0].param])
    apart.start([runs[1].param])
    for step in range(31):
        at_once.update(runs[0].step(step), [runs[0].param])
        loss = runs[1].step(step)
        apart.look([runs[1].param])
        runs[1].param.grad = None
        apart.update(loss)
        assert at_once.reason == apart.reason
        if at_once.should_stop:
            break
    assert at_once.should_stop


def test_the_command_line_trains_and_judges_a_monitor(runs: Path, tmp_path: Path) -> None:
    test = record_runs(tmp_path / "test", range(1000, 1060))
    options = ["--test-runs", test, "--json", "x.json", "--set", "head_steps=20", "--keeps-best"]
    command = ["train-monitor", runs, "--price", 0.02, "--out", "m", "--threads", 1, *options]
    result = in_process.haltwise(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "patience" in result.stdout
    found = json.loads((tmp_path / "x.json").read_text())
    assert found["num_runs"] == 60
    assert f"{found['j']['rule']:.4g}" in result.stdout
    assert found["policies"]["rule"].startswith("StopPolicy(rule=HazardThreshold")
    assert HaltingMonitor(tmp_path / "m").steps == 0
    resumed = in_process.haltwise("train", "--resume", "m", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
    for other in ("evaluate", "study"):
        refused = in_process.haltwise(other, "m", cwd=tmp_path)
        assert (refused.returncode, refused.stderr.count("\n")) == (2, 1), refused.stderr
        assert "recorded runs" in refused.stderr


def test_the_dearer_a_round_the_sooner_it_stops(trained: Path) -> None:
    means = [
        sum(drive(HaltingMonitor(trained, price=price), seed) for seed in range(300, 320))
        for price in (0.01, 0.02, 0.05)
    ]
    assert means[0] > means[1] > means[2]


@pytest.mark.parametrize("reads", ["loss", "updates"])
def test_it_makes_do_with_less_than_gradients(reads: str, tmp_path: Path) -> None:
    def go(monitor: HaltingMonitor, seed: int) -> int:
        run = Decay(seed)
        model = [run.param] if reads == "updates" else None
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
    assert RecordedRuns.load(tmp_path / "runs").reads == reads
    run = train_monitor(tmp_path / "runs", tmp_path / "run", price=0.02, head_steps=60)
    assert len({go(HaltingMonitor(run), seed) for seed in range(300, 310)}) > 2
    # Gradients, which it was not trained for, it does not look at.
    assert drive(HaltingMonitor(run), 300) == go(HaltingMonitor(run), 300)


# ------------------------------------------------------------------------------------- persistence


@pytest.mark.parametrize("when", [0, 1, 3])
def test_it_goes_on_exactly_from_its_state(trained: Path, when: int, tmp_path: Path) -> None:
    monitor, run = HaltingMonitor(trained), Decay(5)
    expected = drive(HaltingMonitor(trained), 5)
    assert expected > 4
    monitor.start([run.param])
    for step in range(when):
        monitor.update(run.step(step), [run.param])
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    kept = copy.deepcopy(monitor.state_dict())
    other = HaltingMonitor(trained)
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    for step in range(when, expected):
        loss = run.step(step)
        for each in (monitor, other):
            assert not each.should_stop
            each.update(loss, [run.param])
        for name, value in monitor.state_dict().items():
            assert_close(other.state_dict()[name], value, rtol=0, atol=0) if isinstance(
                value, dict
            ) else None
    assert monitor.should_stop
    assert (other.should_stop, other.steps) == (True, expected)
    assert other.reason == monitor.reason
    assert_close(torch.load(tmp_path / "state.pt")["head"], kept["head"], rtol=0, atol=0)


def test_a_recording_goes_on_from_its_state(tmp_path: Path) -> None:
    record_runs(tmp_path / "whole", range(1))
    run, first = Decay(0), HaltingMonitor.recording(tmp_path / "parts")
    first.start([run.param])
    for step in range(10):
        first.update(run.step(step), [run.param])
    second = HaltingMonitor.recording(tmp_path / "parts")
    second.load_state_dict(first.state_dict())
    for step in range(10, 32):
        second.update(run.step(step), [run.param])
    second.close()
    second.close()  # once is enough
    whole, parts = (
        RecordedRuns.load(tmp_path / name).recording.signals for name in ("whole", "parts")
    )
    assert torch.equal(whole, parts)


def test_it_remembers_three_numbers_a_parameter() -> None:
    model = nn.Sequential(nn.Linear(30, 20, dtype=torch.bfloat16), nn.Linear(20, 10))
    model[0].bias.requires_grad_(False)
    seen = [param for param in model.parameters() if param.requires_grad]
    monitor = HaltingMonitor(adam_with_a_head())
    monitor.start(model)
    for param in seen:
        param.grad = torch.ones_like(param)
    for _ in range(3):
        monitor.update(1.0, model)
    kept = [value for memory in monitor.state_dict()["memory"] for value in memory.values()]
    size = sum(value.nbytes for value in kept)
    assert size == 3 * sum(param.nbytes for param in seen)


# --------------------------------------------------------------------------------------- bad input


def test_what_is_not_finite_stops_and_is_left_out(trained: Path, tmp_path: Path) -> None:
    for spoil in ("loss", "gradient", "parameter"):
        monitor, run = HaltingMonitor(trained), Decay(0)
        monitor.start([run.param])
        monitor.update(run.step(0), [run.param])
        loss = run.step(1)
        if spoil == "gradient":
            run.param.grad = torch.tensor([math.inf])
        elif spoil == "parameter":
            run.param.data.fill_(math.nan)
        monitor.update(math.nan if spoil == "loss" else loss, [run.param])
        assert monitor.reason == "the loss, a gradient or an update is not finite", spoil
    record_runs(tmp_path, range(3))
    with HaltingMonitor.recording(tmp_path) as bad:
        run = Decay(0)
        bad.start([run.param])
        for step in range(32):
            bad.update(run.step(step) if step != 9 else math.inf, [run.param])
    with pytest.warns(CalibrationWarning, match="1 of 4 runs are left out.* not finite"):
        assert RecordedRuns.load(tmp_path).recording.num_problems == 3


def test_few_runs_are_refused_or_warned_of(tmp_path: Path) -> None:
    record_runs(tmp_path / "runs", range(FEWEST_RUNS - 1))
    with pytest.raises(InputError, match=f"{FEWEST_RUNS - 1} runs are too few"):
        train_monitor(tmp_path / "runs", tmp_path / "out", price=0.02)
    record_runs(tmp_path / "runs", range(1000, 1001))
    with pytest.warns(CalibrationWarning, match=f"{FEWEST_RUNS} runs are few"):
        parts = RecordedRuns.load(tmp_path / "runs").split(0)
    assert [len(part.loss) for part in parts.values()] == [26, 4, 10]
    signals = torch.cat([part.loss[:, 0] for part in parts.values()])
    assert len(signals.unique()) == FEWEST_RUNS  # every run is in one part


def a_loop(monitor: HaltingMonitor, **changes: object) -> None:
    model = nn.Linear(2, 1)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    monitor.update(**{"loss": 1.0, "model": model, **changes})  # type: ignore[arg-type]


def half_a_run(directory: Path) -> None:
    with HaltingMonitor.recording(directory) as monitor:
        a_loop(monitor)
        a_loop(monitor, loss="high")


def cut_short(directory: Path) -> None:
    record_runs(directory, range(2))
    monitor = HaltingMonitor.recording(directory)
    drive(monitor, 0, 10)


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
    ("make", "horizon", "sentence"),
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
    make: Callable[[Path], object], horizon: int | None, sentence: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(InputError, match=sentence):
        RecordedRuns.load(tmp_path, horizon)


def test_runs_are_cut_to_one_length(tmp_path: Path) -> None:
    cut_short(tmp_path)
    assert RecordedRuns.load(tmp_path).recording.num_steps == 8
    with pytest.warns(CalibrationWarning, match="1 of 3 runs are left out: .* fewer than 20"):
        assert RecordedRuns.load(tmp_path, 20).recording.num_problems == 2


def test_bad_calls_are_refused(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="reads the hidden state of its own optimizer"):
        HaltingMonitor("regression-10d")
    with pytest.raises(InputError, match="trained without halting"):
        HaltingMonitor("regression-2d-lstm")
    with pytest.raises(InputError, match="price must be above 0, got 0"):
        HaltingMonitor(trained, price=0)
    with pytest.raises(InputError, match="loss must be a single number, got shape \\[2\\]"):
        a_loop(HaltingMonitor(trained), loss=torch.ones(2))
    with pytest.raises(InputError, match="recorded runs had gradients, but no model was given"):
        a_loop(HaltingMonitor(trained), model=None)
    with pytest.raises(InputError, match="no parameter that is not frozen"):
        a_loop(HaltingMonitor(trained), model=nn.Linear(1, 1).requires_grad_(False))
    with pytest.raises(InputError, match=r"torch.complex64; the monitor sees"):
        a_loop(HaltingMonitor(trained), model=[torch.ones(1, dtype=torch.cfloat).requires_grad_()])
    with pytest.raises(InputError, match="no parameter has a gradient"):
        a_loop(HaltingMonitor(trained), model=nn.Linear(1, 1))
    monitor = HaltingMonitor(trained)
    a_loop(monitor)
    with pytest.raises(InputError, match="2 tensors of 4 entries, not 2 of 3"):
        a_loop(monitor, model=nn.Linear(3, 1))
    with pytest.raises(InputError, match="give every update"):
        a_loop(monitor, model=None)
    with pytest.raises(InputError, match="no state of a HaltingMonitor"):
        monitor.load_state_dict({})
    other = HaltingMonitor(trained, price=0.5).state_dict()
    with pytest.raises(InputError, match="taken with other weights"):
        monitor.load_state_dict(other)
    recorder = HaltingMonitor.recording(tmp_path)
    a_loop(recorder, score=1.0)
    with pytest.raises(InputError, match="some with"):
        a_loop(recorder)
    drive(HaltingMonitor.recording(tmp_path, name="a"), 0)
    with pytest.raises(InputError, match=r"there is a run .*a\.safetensors already"):
        drive(HaltingMonitor.recording(tmp_path, name="a"), 0)
    with pytest.raises(InputError, match="single number"):
        half_a_run(tmp_path / "none")
    assert not (tmp_path / "none").exists()  # half a run is no run


def test_a_monitor_moves_nothing(trained: Path) -> None:
    problems = family("regression-2d").sample(3, torch.Generator().manual_seed(0))
    optimizer = load(trained)
    with pytest.raises(InputError, match=r"haltwise\.HaltingMonitor"):
        execute(optimizer, problems, optimizer.policy(), torch.ones(3), 5)


def test_training_goes_on_where_it_was_cut(runs: Path, trained: Path, tmp_path: Path) -> None:
    from haltwise.training import monitor_config

    trainer = Trainer(monitor_config(runs, price=0.02, head_steps=150), tmp_path)
    for progress in trainer.run():
        if progress.step == 100:
            break
    for _ in Trainer.resume(tmp_path).run():
        pass
    weights, expected = (load_tensors(path / "best.safetensors") for path in (tmp_path, trained))
    assert all(torch.equal(value, expected[0][name]) for name, value in weights[0].items())
    assert weights[1]["thresholds"] == expected[1]["thresholds"]
