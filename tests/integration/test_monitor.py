"""Stopping any loop: the decisions of a batch, with whatever the loop can show."""

import contextlib
import copy
import io
import itertools
import math
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draws import DOUBLE, seeded
from line_fits import plain_loop
from loops import RATE, Decay, drive, record_runs, steps_of_adam
from random_models import random_model, with_threshold
from safetensors.torch import load_file
from torch import nn
from torch.testing import assert_close

import haltwise
import haltwise.interfaces.watched
from haltwise import DataWarning, HaltingMonitor, InputError, Outcome
from haltwise._core.files import load_tensors
from haltwise.halting import HalterSettings
from haltwise.models import OptimizerModel, load_halting
from haltwise.processes.signals import SIGNALS
from haltwise.recordings.runs import RecordedRuns
from haltwise.rollout import record
from haltwise.tasks import TaskBatch, family


def adam_with_a_halter(horizon: int = 20) -> OptimizerModel:
    """Adam beside a halter that puts out random things; nobody trained it."""
    model = random_model("adam", horizon=horizon, halter=HalterSettings(), learning_rate=RATE)
    return model.requires_grad_(False)


@pytest.fixture
def problems(generator: torch.Generator) -> TaskBatch:
    return family("regression-10d").sample(24, generator)


def test_it_decides_as_solve_does(problems: TaskBatch) -> None:
    model = adam_with_a_halter()
    trajectory = model.halting.attach(record(model.rule, problems, 20), 0.05)
    highest = trajectory.known("hazard_logits")[..., 1].amax(1)
    with_threshold(model, highest.quantile(0.5).item())
    expected = haltwise.solve(problems, model, price=0.05, guard=False)
    monitor = HaltingMonitor(model)
    for problem in range(24):
        loop = steps_of_adam(problems, problem)
        monitor.start(next(loop)[1])
        for loss, params in loop:
            monitor.update(loss, params)
            if monitor.should_stop:
                break
        assert monitor.steps == expected.num_gradients[problem]
        reason = monitor.reason
        assert reason is not None
        if expected.outcome[problem] == Outcome.HALTED:
            assert reason.startswith("another round is forecast to")
        else:
            assert reason == "it was trained on runs of 20 rounds"
    assert len(expected.num_gradients.unique()) > 4
    assert {Outcome.HALTED, Outcome.OUT_OF_STEPS} == set(expected.outcome.tolist())


def test_it_records_what_a_batch_records(
    problems: TaskBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(haltwise.interfaces.watched, "_CHUNK", 3)
    for problem in range(24):
        with HaltingMonitor.recording(tmp_path, name=f"{problem:03}") as monitor:
            loop = steps_of_adam(problems, problem)
            monitor.start(next(loop)[1])
            for loss, params in itertools.islice(loop, 8):
                monitor.update(loss, params)
                assert not monitor.should_stop
    found = RecordedRuns.load(tmp_path)
    expected = record(adam_with_a_halter().rule, problems, 7)
    assert found.observed == "gradients"
    runs = found.trajectory
    assert runs.num_steps == 6  # the last score is the last loss, which nothing follows
    assert_close(runs.signals, expected.known("signals")[:, :6], rtol=1e-3, atol=1e-4)
    close = partial(assert_close, rtol=1e-4, atol=1e-4)
    close(runs.loss, expected.loss[:, :7])
    close(runs.excess, expected.loss[:, 1:])  # what a stop leaves behind
    close(runs.log_grad_norm, expected.known("log_grad_norm")[:, :7])


def test_a_stop_depends_on_nothing_that_comes_later(stopper: Path) -> None:
    for seed in range(5):
        expected = drive(HaltingMonitor(stopper), seed)
        assert 1 < expected < 31
        monitor, run = HaltingMonitor(stopper), Decay(seed)
        monitor.start([run.param])
        for step in range(expected):
            assert not monitor.should_stop
            monitor.update(run.step(step), [run.param], score=math.nan)
        reason = monitor.reason
        assert reason is not None
        monitor.update(-100.0, [run.param])  # much better, but too late
        assert (monitor.reason, monitor.steps) == (reason, expected + 1)


def test_gradients_may_be_seen_before_the_loss_is_known(stopper: Path) -> None:
    at_once, apart = HaltingMonitor(stopper), HaltingMonitor(stopper)
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


def test_the_dearer_a_round_the_sooner_it_stops(stopper: Path) -> None:
    means = [
        sum(drive(HaltingMonitor(stopper, price=price), seed) for seed in range(300, 320))
        for price in (0.01, 0.02, 0.05)
    ]
    assert means[0] > means[1] > means[2]


def test_the_model_given_is_copied_and_may_be_of_any_precision() -> None:
    model = load_halting("regression-10d-plain-adam")
    expected = drive(HaltingMonitor(model), 0)
    assert 1 < expected < 32
    monitor = HaltingMonitor(model.double())
    assert next(model.parameters()).dtype == DOUBLE
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    assert drive(monitor, 0) == expected


def test_parameters_may_be_of_any_precision() -> None:
    stops = []
    for dtype in (torch.float32, DOUBLE):
        monitor = HaltingMonitor("regression-10d-plain-adam")
        batch = family("regression-10d-plain").sample(2, seeded(), dtype=dtype)
        loop = steps_of_adam(batch, 0, beta2=0.95)
        monitor.start(next(loop)[1])
        for loss, params in loop:
            assert params[0].dtype == dtype
            monitor.update(loss, params)
            if monitor.should_stop:
                break
        stops.append(monitor.steps)
    assert 1 < stops[0] == stops[1] < 60


@pytest.mark.parametrize("late", [False, True])
def test_parameters_may_be_frozen_and_unfrozen(late: bool, tmp_path: Path) -> None:
    """What is seen is as if there were only those that are not frozen."""
    body, head = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(2))
    both, alone = (HaltingMonitor.recording(tmp_path / name) for name in ("both", "alone"))
    body.requires_grad_(not late)
    both.start([body, head])
    alone.start([head])
    for step in range(6):
        if step == 3:
            body.requires_grad_(late)
        for param in (body, head):
            param.grad = torch.full_like(param, 0.5) if param.requires_grad else None
            param.data -= 0.1 * param.requires_grad
        both.update(1.0, [body, head])
        alone.update(1.0, [head])
    seen, expected = (torch.cat(each.state_dict()["signals"])[:, 2:4] for each in (both, alone))
    one = slice(0, 3) if late else slice(3, 6)
    assert_close(seen[one], expected[one])
    assert both.state_dict()["memory"].keys() == ({0, 1} if late else {1})
    if late:  # its first displacement is not known
        assert_close(seen[3, 1].exp(), seen.new_tensor(0.1 * (2 / 6) ** 0.5))
        assert_close(seen[4], expected[4])


def test_parameters_that_are_not_whole_are_refused(tmp_path: Path) -> None:
    for odd in (nn.Linear(2, 1, device="meta"), nn.LazyLinear(1)):
        with pytest.raises(InputError, match="not whole and in memory"):
            HaltingMonitor.recording(tmp_path).start(odd)


# --- Persistence ---------------------------------------------------------------------------------


@pytest.mark.parametrize("when", [0, 1, 3])
def test_it_goes_on_exactly_from_its_state(stopper: Path, when: int, tmp_path: Path) -> None:
    monitor, run = HaltingMonitor(stopper), Decay(5)
    expected = drive(HaltingMonitor(stopper), 5)
    assert expected > 4
    monitor.start([run.param])
    for step in range(when):
        monitor.update(run.step(step), [run.param])
    torch.save(monitor.state_dict(), tmp_path / "state.pt")
    kept = copy.deepcopy(monitor.state_dict())
    other = HaltingMonitor(stopper)
    other.load_state_dict(torch.load(tmp_path / "state.pt"))
    for step in range(when, expected):
        loss = run.step(step)
        for each in (monitor, other):
            assert not each.should_stop
            each.update(loss, [run.param])
        found, twin = monitor.state_dict(), other.state_dict()
        assert found.keys() == twin.keys()
        assert_close(twin["session"], found["session"], rtol=0, atol=0)
        assert_close(twin["memory"], found["memory"], rtol=0, atol=0)
    assert monitor.should_stop
    assert (other.should_stop, other.steps) == (True, expected)
    assert other.reason == monitor.reason
    assert_close(torch.load(tmp_path / "state.pt")["session"], kept["session"], rtol=0, atol=0)


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
        RecordedRuns.load(tmp_path / name).trajectory.known("signals")
        for name in ("whole", "parts")
    )
    assert torch.equal(whole, parts)


def test_a_run_that_diverged_goes_on_from_its_state(tmp_path: Path) -> None:
    """As from a checkpoint: its parameters are NaN, and so they are in the monitor's memory."""
    param = nn.Parameter(torch.ones(2))
    monitor = HaltingMonitor.recording(tmp_path)
    for value in (0.5, math.nan):
        param.grad = torch.ones(2)
        param.data.fill_(value)
        monitor.update(value, [param])
    other = HaltingMonitor.recording(tmp_path)
    other.load_state_dict(monitor.state_dict())
    other.update(math.nan, [param])
    assert other.steps == 3


def test_the_state_of_a_long_recording_takes_little_more_than_its_signals(tmp_path: Path) -> None:
    """A checkpoint after 100,000 rounds held as many tensors."""
    monitor, sizes = HaltingMonitor.recording(tmp_path), []
    for number in range(200):
        monitor.update(1 / (1 + number))
        if number in (99, 199):
            torch.save(monitor.state_dict(), file := io.BytesIO())
            sizes.append(file.tell())
    assert sizes[1] - sizes[0] < 2 * 100 * 4 * len(SIGNALS)
    other = HaltingMonitor.recording(tmp_path)
    other.load_state_dict(monitor.state_dict())
    for each in (monitor, other):
        each.update(0.0)
        each.close()
    files = [load_file(path)["signals"] for path in tmp_path.iterdir()]
    assert len(files[0]) == 201
    assert torch.equal(*files)


def test_an_infinite_entry_that_stays_has_not_moved(tmp_path: Path) -> None:
    """As of a table of log-probabilities some of which are 0."""
    plain = nn.Parameter(torch.ones(3))
    masked = nn.Parameter(torch.tensor([1.0, -math.inf, 1.0]))
    seen = []
    for param in (plain, masked):
        monitor = HaltingMonitor.recording(tmp_path)
        for loss in (3.0, 2.0, 1.0):
            param.grad = torch.tensor([0.5, 0.0, 0.25])
            param.data -= 0.1 * param.grad
            monitor.update(loss, [param])
        seen.append(torch.cat(monitor.state_dict()["signals"]))
        HaltingMonitor.recording(tmp_path).load_state_dict(monitor.state_dict())
    assert torch.equal(*seen)


def test_it_remembers_three_numbers_a_parameter() -> None:
    model = nn.Sequential(nn.Linear(30, 20, dtype=torch.bfloat16), nn.Linear(20, 10))
    model[0].bias.requires_grad_(False)
    seen = [param for param in model.parameters() if param.requires_grad]
    monitor = HaltingMonitor(adam_with_a_halter())
    monitor.start(model)
    for param in seen:
        param.grad = torch.ones_like(param)
    for _ in range(3):
        monitor.update(1.0, model)
    memories = monitor.state_dict()["memory"].values()
    kept = [value for memory in memories for value in memory.values()]
    size = sum(value.nbytes for value in kept)
    assert size == 3 * sum(param.nbytes for param in seen)


# --- Bad input -----------------------------------------------------------------------------------


def watch_a_layer(monitor: HaltingMonitor, **changes: object) -> None:
    """One round of a linear layer whose gradients are zero."""
    model = nn.Linear(2, 1)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    monitor.update(**{"loss": 1.0, "model": model, **changes})  # type: ignore[arg-type]


def test_a_monitor_of_recorded_runs_takes_no_update_back(sgd_stopper: Path) -> None:
    """A recorded loop stayed where it was at its end; so does one that is stopped."""
    monitor = HaltingMonitor(sgd_stopper)
    model = plain_loop(monitor, 7, 40)
    assert monitor.should_stop
    assert monitor.steps < 20
    before = [param.detach().clone() for param in model.parameters()]
    assert not monitor.take_back(model)
    assert all(map(torch.equal, before, model.parameters()))


@pytest.mark.parametrize("spoil", ["loss", "gradient", "parameter"])
def test_what_is_not_finite_stops_it(spoil: str, stopper: Path) -> None:
    monitor, run = HaltingMonitor(stopper), Decay(0)
    monitor.start([run.param])
    monitor.update(run.step(0), [run.param])
    loss = run.step(1)
    if spoil == "gradient":
        run.param.grad = torch.tensor([math.inf])
    elif spoil == "parameter":
        run.param.data.fill_(math.nan)
    monitor.update(math.nan if spoil == "loss" else loss, [run.param])
    assert monitor.reason == "the loss, a gradient or an update is not finite"


def test_weights_that_cannot_judge_a_loop_are_refused(stopper: Path) -> None:
    with pytest.raises(InputError, match="reads the hidden state of its own optimizer"):
        HaltingMonitor("regression-10d")
    with pytest.raises(InputError, match="trained without halting"):
        HaltingMonitor("regression-2d-lstm")
    with pytest.raises(InputError, match="price must be above 0 and finite, got 0"):
        HaltingMonitor(stopper, price=0)


def test_a_monitor_moves_nothing(stopper: Path) -> None:
    problems = family("regression-2d").sample(3, seeded())
    with pytest.raises(InputError, match=r"not how to move parameters; use it by haltwise\.Halt"):
        haltwise.solve(problems, stopper)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": torch.ones(2)}, r"loss must be a single real number, got shape \[2\]"),
        ({"model": None}, "recorded runs had gradients, but no model was given"),
        ({"model": nn.Linear(1, 1).requires_grad_(False)}, "no parameter that is not frozen"),
        (
            {"model": [torch.ones(1, dtype=torch.cfloat).requires_grad_()]},
            r"torch.complex64; the monitor sees",
        ),
        ({"model": nn.Linear(1, 1)}, "no parameter has a gradient"),
    ],
)
def test_rounds_that_cannot_be_seen_are_refused(
    changes: dict[str, object], message: str, stopper: Path
) -> None:
    with pytest.raises(InputError, match=message):
        watch_a_layer(HaltingMonitor(stopper), **changes)


def test_rounds_and_states_that_do_not_fit_are_refused(stopper: Path, tmp_path: Path) -> None:
    monitor = HaltingMonitor(stopper)
    watch_a_layer(monitor)
    with pytest.raises(InputError, match=r"parameter 0 .* has 3 entries, but had 2"):
        watch_a_layer(monitor, model=nn.Linear(3, 1))
    with pytest.raises(InputError, match="give every update"):
        watch_a_layer(monitor, model=None)
    with pytest.raises(InputError, match="no state of a HaltingMonitor"):
        monitor.load_state_dict({})
    other = HaltingMonitor(stopper, price=0.05).state_dict()
    with pytest.raises(InputError, match="taken with other weights"):
        monitor.load_state_dict(other)
    recorder = HaltingMonitor.recording(tmp_path)
    watch_a_layer(recorder, score=1.0)
    with pytest.raises(InputError, match="some with"):
        watch_a_layer(recorder)


def test_half_a_run_is_no_run(tmp_path: Path) -> None:
    def half_a_run() -> None:
        with HaltingMonitor.recording(tmp_path / "none") as monitor:
            watch_a_layer(monitor)
            watch_a_layer(monitor, loss="high")

    with pytest.raises(InputError, match="single real number"):
        half_a_run()
    assert not any((tmp_path / "none").iterdir())
    monitor = HaltingMonitor.recording(tmp_path)
    with contextlib.suppress(MemoryError), monitor:
        watch_a_layer(monitor)
        raise MemoryError
    with monitor:  # nor does the next run write it
        monitor.start()
        for _ in range(5):
            monitor.update(1.0)
    (path,) = tmp_path.glob("*.safetensors")
    assert len(load_tensors(path)[0]["signals"]) == 5


def test_numpy_arrays_are_parameters_without_gradients(tmp_path: Path) -> None:
    """Of loops without PyTorch; a single array will do, and one that is read-only."""
    weights = np.array([[3.0, 4.0], [0.0, 0.0]])
    models: dict[str, Any] = {
        "one": weights,
        "two": [weights, weights[0].astype(np.float32)],
        "named": {"weights": weights},
    }
    for name, model in models.items():
        with HaltingMonitor.recording(tmp_path / name) as monitor:
            monitor.start(model)
            for step in range(4):
                weights.flags.writeable = True
                weights *= 0.5
                weights.flags.writeable = False
                monitor.update(np.float64(1 / (step + 1)), model)
        (path,) = (tmp_path / name).iterdir()
        tensors, card = load_tensors(path)
        assert card["observed"] == "updates"
        sizes = tensors["signals"][:, SIGNALS.index("log_update")].diff()
        assert_close(sizes, torch.full((3,), math.log(0.5)), atol=1e-5, rtol=0)
    with pytest.raises(InputError, match="there is a str"):
        HaltingMonitor.recording(tmp_path).update(1.0, "model")  # type: ignore[arg-type]
    monitor, params = HaltingMonitor.recording(tmp_path), nn.Linear(2, 1).parameters()
    monitor.start(params)
    with pytest.raises(InputError, match="an iterator that is used up; give every call a list"):
        monitor.update(1.0, params)


def test_frozen_parameters_are_not_seen(tmp_path: Path) -> None:
    for name, extra in (("with", [torch.ones(50)]), ("without", [])):
        monitor, run = HaltingMonitor.recording(tmp_path / name), Decay(3)
        monitor.start([run.param, *extra])
        for step in range(6):
            monitor.update(run.step(step), [run.param, *extra])
        monitor.close()
    seen, plain = (RecordedRuns.load(tmp_path / name) for name in ("with", "without"))
    assert torch.equal(seen.trajectory.known("signals"), plain.trajectory.known("signals"))


# -------------------------------------------------------------------------- metrics and floats


def test_a_metric_is_recorded_and_stopped_by_its_negative(stopper: Path, tmp_path: Path) -> None:
    for direction, sign, kind in (
        ("min", 1, float),
        ("max", -1, np.float32),
        ("max", -1, np.array),
    ):
        path = tmp_path / f"{direction} {kind}"
        with HaltingMonitor.recording(path, direction=direction) as monitor:  # type: ignore[arg-type]
            for value in (3.0, 1.0, 2.0):
                monitor.update(kind(sign * value), score=kind(sign * 2 * value))
                assert monitor.improved == (value != 2)
    runs = [RecordedRuns.load(path) for path in sorted(tmp_path.iterdir(), reverse=True)]
    assert [found.maximizes for found in runs] == [False, True, True]
    for found in runs:
        assert found.trajectory.loss.tolist() == [[3, 1, 2]]
        assert found.trajectory.excess.tolist() == [[6, 2, 4]]


def test_the_direction_is_that_of_the_recorded_runs(stopper: Path) -> None:
    model = load_halting(stopper)
    assert not model.card.maximizes
    with pytest.raises(InputError, match="recorded with direction 'min', not 'max'; leave the"):
        HaltingMonitor(model, direction="max")
    with pytest.raises(InputError, match="direction must be 'min' or 'max', got 'up'"):
        HaltingMonitor(model, direction="up")  # type: ignore[arg-type]
    model.card = replace(model.card, maximizes=True)
    lower, higher = HaltingMonitor(stopper), HaltingMonitor(model)
    assert drive(lower, 3) == drive_upwards(higher, 3) < 31
    assert higher.reason == lower.reason
    with pytest.raises(InputError, match="with another direction"):
        lower.load_state_dict(higher.state_dict())


def drive_upwards(monitor: HaltingMonitor, seed: int) -> int:
    """As `drive`, of a metric that is better the higher it is."""
    run = Decay(seed)
    monitor.start([run.param])
    for step in range(31):
        monitor.update(-run.step(step), [run.param])
        if monitor.should_stop:
            break
    return monitor.steps


def test_half_a_run_is_not_recorded(tmp_path: Path) -> None:
    monitor = HaltingMonitor.recording(tmp_path / "a")
    for resumed in (False, True, False):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            monitor.start(resumed=resumed)
        assert [each.category for each in told] == [DataWarning] * resumed
        for step in range(3):
            monitor.update(1 / (1 + step), score=2.0)
        state = monitor.state_dict()
        if resumed:  # nor where the half is resumed once more
            monitor.load_state_dict(state)
            monitor.update(0.1, score=2.0)
        monitor.close()
    assert len(list((tmp_path / "a").iterdir())) == 2
    monitor.load_state_dict(state)  # closed, and yet it goes on
    monitor.update(0.1, score=2.0)
    assert monitor.steps == 4
    monitor.close()
    monitor.update(1.0)  # without start()
    assert monitor.steps == 1
    monitor.update(0.5)
    monitor.close()
    lengths = [len(load_file(path)["signals"]) for path in sorted((tmp_path / "a").iterdir())]
    assert sorted(lengths) == [2, 3, 3, 4]


def test_a_state_is_loaded_whatever_the_default_device(stopper: Path) -> None:
    monitor, other = HaltingMonitor(stopper), HaltingMonitor(stopper)
    watch_a_layer(monitor)
    with torch.device("meta"):
        other.load_state_dict(monitor.state_dict())
    assert other.state_dict()["steps"] == monitor.state_dict()["steps"] > 0


def test_a_run_that_is_no_whole_one_is_not_recorded_after_a_resume(tmp_path: Path) -> None:
    monitor, other = (HaltingMonitor.recording(tmp_path) for _ in range(2))
    with pytest.warns(DataWarning, match="this run is not recorded"):
        monitor.start(resumed=True)
    other.load_state_dict(monitor.state_dict())
    for _ in range(4):
        other.update(1.0)
    other.close()
    assert not [*tmp_path.iterdir()]
