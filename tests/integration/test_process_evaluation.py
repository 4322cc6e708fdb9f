"""A model that stops a named family of processes: trained, judged beside the best causal rule."""

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
from in_process import haltwise

from haltwise import InputError, load_halting
from haltwise._core.progress import working
from haltwise._core.random import stream
from haltwise.evaluation import StoppingRecord, judge_processes
from haltwise.planning import optimal_stopping
from haltwise.processes import Process, ProcessFamily, process_families
from haltwise.processes.markov_chain import MarkovChainFamily
from haltwise.rollout import record_process
from haltwise.training import train

TINY: dict[str, Any] = {
    "price": 0.02,
    "horizon": 40,
    "method": {"name": "stick-breaking", "settings": {"distilled": 0.8}},
    "halter": {"memory": 0, "width": 32},
    "halting": {"num_steps": 200, "num_recorded": 2048, "batch_size": 256},
    "adam": {"learning_rate": 0.03},
    "validation": {"every": 100, "num_problems": 256, "num_calibration": 512},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train("markov-chain", tmp_path_factory.mktemp("chain") / "run", **TINY)


def judged(run: Path, family: Any = None, **settings: Any) -> StoppingRecord:
    family = MarkovChainFamily() if family is None else family
    settings = {"price": 0.02, "horizon": 40, "seed": 3, "num_items": 2048, **settings}
    return judge_processes(load_halting(run), family, learners=False, **settings)


def test_a_short_training_captures_half_of_what_is_possible(run: Path) -> None:
    record = judged(run)
    assert record.judged == "learned"
    learned, best = (record.rules[name] for name in ("learned", "best-causal"))
    assert 0.5 * best.gain.value < learned.gain.value < best.gain.value
    assert best.gain.value < 0.5  # the oracle sees the future


def test_the_best_causal_line_is_that_of_the_law(run: Path) -> None:
    """Its J is the mean cost of the runs of the stream, stopped by hand in states 8 and above."""
    family = MarkovChainFamily()
    recorded = record_process(family.sample(2048, stream(3, "test")), 40)
    level = family.losses()[8].item() * 1.001
    paid = []
    for losses in recorded.loss.tolist():
        stop = next((t for t, loss in enumerate(losses) if loss <= level), 40)
        paid.append(losses[stop] + 0.02 * stop)
    record = judged(run)
    assert record.rules["best-causal"].j.value == pytest.approx(sum(paid) / 2048, rel=1e-6)
    expected = optimal_stopping(family.transition(), family.losses(), 0.02, 40).value[0].item()
    assert sum(paid) / 2048 == pytest.approx(expected, abs=0.02)


def test_no_such_line_where_the_law_is_unknown(run: Path) -> None:
    class Unknown(ProcessFamily):
        def sample(self, *args: Any, **kwargs: Any) -> Process:
            return MarkovChainFamily().sample(*args, **kwargs)

    assert "best-causal" not in judged(run, Unknown()).rules


def test_impossible_settings_are_refused(run: Path) -> None:
    for settings, sentence in (
        ({"price": 0.0}, "price must be a finite number above 0, got 0"),
        ({"num_items": 8}, "at least 32 items are needed to judge by, got 8"),
    ):
        with pytest.raises(InputError, match=sentence):
            judged(run, **settings)


def test_the_command_shows_the_line(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(inspect.unwrap(working).__kwdefaults__, "every", 0.001)
    done = haltwise(
        "evaluate", run, "--num-problems", 256, "--no-learners", "--json", "found.json",
        "--family.relapse", 0.0, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "best causal rule" in done.stdout
    assert "recording 256 items to test, 0 s" in done.stderr  # of thousands it takes minutes
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["num_steps"] == 40
    assert found["rules"]["best-causal"]["gain"]["value"] > 0
    for options, sentence in (
        (["--compare", "regression-2d"], "there is no optimizer to compare"),
        (["--family", "regression-2d"], "regression-2d is no family of processes; choose among"),
        (["--family.relapse", 2.0], "relapse is a probability"),
    ):
        done = haltwise("evaluate", run, *options, cwd=tmp_path)
        assert done.returncode == 2
        assert sentence in done.stderr


def test_the_command_lists_processes(tmp_path: Path) -> None:
    lines = haltwise("list", cwd=tmp_path).stdout.splitlines()
    for name in process_families():
        assert any(line.split()[:1] == [name] for line in lines)
