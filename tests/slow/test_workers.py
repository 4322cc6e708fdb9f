"""Workers that come, go and die, alone and by torchrun."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from tiny_runs import assert_same_run, finish
from workers import together

from haltwise._core.files import load_tensors
from haltwise.evaluation import learners
from haltwise.training import Trainer
from haltwise.training.run.log import read_log


def test_four_workers_give_the_bits_of_one(alone: Path, tmp_path: Path) -> None:
    together(4, tmp_path / "run")
    assert_same_run(alone, tmp_path / "run")


def test_workers_stop_together_and_others_go_on(alone: Path, tmp_path: Path) -> None:
    """Interrupted by the last of two, gone on with by three, and by one again."""
    together(2, tmp_path / "run", steps=5)
    together(3, tmp_path / "run", steps=11)
    finish(Trainer.resume(tmp_path / "run"))
    assert_same_run(alone, tmp_path / "run")


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
    done = forked.run("train", *options, "--out", "alone", cwd=tmp_path, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    weights = [load_tensors(tmp_path / run / "best.safetensors")[0] for run in ("shared", "alone")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    steps = [record["step"] for record in read_log(tmp_path / "shared")]
    assert steps == [*range(5, 61, 5)]


def _with_few_trees(arguments: list[str]) -> None:
    """Be a command whose learners need to be the same and not to be good."""
    learners._NUM_TREES |= dict.fromkeys(learners._NUM_TREES, 5)
    forked.command(arguments)


def test_evaluation_by_two_workers_is_that_of_one(tmp_path: Path) -> None:
    command = ["evaluate", "regression-2d", "--num-problems", "64", "--horizon", "6"]
    command += ["--threads", "1"]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}  # as torchrun
    summaries = []
    for name, environments in (
        ("alone", [{}]),
        ("shared", [{**meeting, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]),
    ):
        started = []
        for number, environment in enumerate(environments):
            folder = tmp_path / f"{name}-{number}"
            folder.mkdir()
            call = [*command, "--json", f"{name}.json", "--out", name]
            given: dict[str, Any] = {"folder": folder, "environment": environment}
            started.append(forked.Command(*call, cwd=tmp_path, work=_with_few_trees, **given))
        ended = [process.wait() for process in started]
        assert {done.returncode for done in ended} == {0}, ended
        assert [done.stdout.count("evaluation-") for done in ended] == [1, 0][: len(ended)]
        summaries.append(json.loads((tmp_path / f"{name}.json").read_text()))
    for summary in summaries:
        for seconds in ("seconds", "seconds_fixed"):
            summary["execution"].pop(seconds)
    assert summaries[0] == summaries[1]


_TWO_PROCESSES = """
import logging, sys, warnings
warnings.filterwarnings("ignore")
logging.disable(logging.ERROR)
import torch
import lightning.pytorch as pl
from torch.utils.data import DataLoader, TensorDataset
from haltwise import HaltingMonitor
from haltwise.interfaces.lightning import HaltingCallback
torch.set_num_threads(1)
x = torch.randn(512, 4, generator=torch.Generator().manual_seed(1))
class Uneven(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)
    def training_step(self, batch, number):
        loss = (self.layer(batch[0]) - batch[1]).square().mean()
        return loss if self.global_rank == 0 else loss - loss.detach()  # 0: long done
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 0.1)
    def on_train_end(self):
        sys.stdout.write(f"{self.global_rank}:{self.global_step}\\n")
        sys.stdout.flush()
if __name__ == "__main__":
    stops = HaltingCallback(HaltingMonitor("regression-10d-plain-adam", price=0.01))
    records = HaltingCallback(HaltingMonitor.recording("runs"))
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    fit = pl.Trainer(callbacks=[stops, records], devices=2, strategy="ddp", accelerator="cpu",
                     max_epochs=2, enable_model_summary=False, **quiet)
    fit.fit(Uneven(), DataLoader(TensorDataset(x, x.sum(1, keepdim=True)), batch_size=16))
"""


def test_processes_stop_together_and_the_first_records(tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch")
    (tmp_path / "fit.py").write_text(_TWO_PROCESSES)
    child = subprocess.run(
        [sys.executable, "fit.py"],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    first, second = sorted(child.stdout.split())
    assert first.split(":")[1] == second.split(":")[1]
    assert 1 < int(first.split(":")[1]) < 32
    assert len(list((tmp_path / "runs").glob("*"))) == 1
