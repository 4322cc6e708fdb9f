"""One run shared by several workers: the same bits, whoever does what, and whoever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import assert_same_run, finish, tiny
from torch import distributed
from torch.multiprocessing.spawn import spawn

from haltwise import InputError
from haltwise._core.files import load_tensors
from haltwise._core.workers import Workers
from haltwise.tasks.least_squares import LeastSquaresBatch
from haltwise.training import Trainer, TrainingSettings
from haltwise.training.run.log import read_log
from haltwise.training.sharding import differentiate_shards
from haltwise.training.sources import FamilySource


def sharded(preset: str = "act", num_shards: int = 4) -> TrainingSettings:
    return tiny(preset, run={"num_shards": num_shards})


def work(rank: int, size: int, directory: Path, steps: int, interrupted: bool) -> None:
    torch.set_num_threads(1)
    meeting = f"file://{directory}.{steps}.meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    workers = Workers(rank, size)
    begun = (directory / "config.json").exists()
    workers.wait()
    trainer = (
        Trainer.resume(directory, workers=workers)
        if begun
        else Trainer(sharded(), directory, workers=workers)
    )
    for progress in trainer.run():
        if progress.step == steps and rank == size - 1:
            trainer.interrupt()
    assert trainer.interrupted == interrupted
    workers.leave()


def together(size: int, directory: Path, steps: int = 10**9) -> None:
    arguments = (size, directory, steps, steps < 10**9)
    spawn(work, arguments, nprocs=size)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("alone") / "run"
    finish(Trainer(sharded(), directory))
    return directory


@pytest.mark.parametrize("size", [2, 4])
def test_any_number_of_workers_gives_the_same_bits(size: int, alone: Path, tmp_path: Path) -> None:
    together(size, tmp_path / "run")
    assert_same_run(alone, tmp_path / "run")


def test_workers_stop_together_and_others_go_on(alone: Path, tmp_path: Path) -> None:
    """Interrupted by the last of two, gone on with by three, and by one again."""
    together(2, tmp_path / "run", steps=5)
    together(3, tmp_path / "run", steps=11)
    finish(Trainer.resume(tmp_path / "run"))
    assert_same_run(alone, tmp_path / "run")


def test_the_number_of_shards_is_part_of_the_recipe(alone: Path, tmp_path: Path) -> None:
    finish(Trainer(sharded(num_shards=2), tmp_path))
    one, other = (load_tensors(path / "best.safetensors")[0] for path in (alone, tmp_path))
    assert not torch.equal(one["rule.readout_weight"], other["rule.readout_weight"])


def test_the_gradient_is_the_mean_over_all_finite_problems(tmp_path: Path) -> None:
    """Of shards that hold 4 and no finite problems, those of the first count in full."""
    trainer = Trainer(sharded("lstm", num_shards=2), tmp_path)
    learner = trainer._learner
    weights = learner.adam.learning
    result = learner.phase.differentiate(0, 0)
    assert (result.num_used, result.num_left_out) == (4, 0)
    expected = [None if weight.grad is None else 2 * weight.grad for weight in weights]
    assert isinstance(trainer.source, FamilySource)
    family = trainer.source.family

    class Half:
        calls = 0

        def sample(self, *arguments: object, **settings: object) -> object:
            self.calls += 1
            batch = family.sample(*arguments, **settings)  # type: ignore[arg-type]
            assert isinstance(batch, LeastSquaresBatch)
            broken = torch.full_like(batch.target, torch.nan)
            return batch if self.calls == 1 else replace(batch, target=broken)

    trainer.source.family = Half()  # type: ignore[assignment]
    found = differentiate_shards(learner.phase, 0, weights, Workers(), 2)
    assert found.loss == pytest.approx(2 * result.loss.item())
    assert found.num_left_out == 4
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_more_workers_than_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4 workers share 1 virtual shards"):
        Trainer(tiny(), tmp_path / "run", workers=Workers(0, 4))
    with pytest.raises(InputError, match=r"must be a multiple of run\.num_shards = 3"):
        sharded(num_shards=3)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for workers in /proc")
def test_torchrun_restarts_from_the_last_checkpoint_when_a_worker_dies(tmp_path: Path) -> None:
    options = [
        *("regression-2d", "--preset", "lstm", "--joint.num-steps", "60"),
        *("--joint.batch-size", "8", "--horizon", "6", "--run.num-shards", "2", "--threads", "1"),
        *("--validation.num-problems", "16", "--validation.every", "5"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2", "--max-restarts", "2"]
    process = subprocess.Popen(
        [*launcher, "-m", "haltwise", "train", *options, "--out", "shared"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    try:
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob("shared/checkpoints/step-*")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
        output, _ = process.communicate(timeout=300)
    finally:
        process.terminate()  # has torchrun end its workers
    assert process.returncode == 0, output
    subprocess.run(
        [sys.executable, "-m", "haltwise", "train", *options, "--out", "alone"],
        cwd=tmp_path,
        check=True,
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    weights = [load_tensors(tmp_path / run / "best.safetensors")[0] for run in ("shared", "alone")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    steps = [record["step"] for record in read_log(tmp_path / "shared")]
    assert steps == [*range(5, 61, 5)]


def test_evaluation_by_two_workers_is_that_of_one(tmp_path: Path) -> None:
    options = ["regression-2d", "--num-problems", "64", "--horizon", "6", "--threads", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    summaries = []
    for name, start in (
        ("alone", [sys.executable]),
        ("shared", [*launcher, "--nproc-per-node", "2"]),
    ):
        call = [*start, "-m", "haltwise", "evaluate", *options, "--json", f"{name}.json"]
        done = subprocess.run(
            [*call, "--out", name],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("evaluation-") == 1  # one worker speaks
        summaries.append(json.loads((tmp_path / f"{name}.json").read_text()))
    for summary in summaries:
        for seconds in ("seconds", "seconds_fixed"):
            summary["execution"].pop(seconds)
    assert summaries[0] == summaries[1]
