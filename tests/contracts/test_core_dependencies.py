"""What stops, solves and moves needs PyTorch, NumPy and safetensors; all else names its extra."""

import subprocess
import sys

BLOCK = """
import sys

for name in (
    "click rich jinja2 joblib plotly sklearn scipy threadpoolctl pandas pooch triton"
).split():
    sys.modules[name] = None
"""

CORE = """
import torch, haltwise
from haltwise.tasks import family

problems = family("regression-10d").sample(20, torch.Generator().manual_seed(0))
assert haltwise.solve(problems).success.all()
assert haltwise.solve(problems, "regression-10d").success.any()

model = torch.nn.Linear(3, 1)
optimizer = haltwise.LearnedOptimizer(model.parameters())
monitor = haltwise.HaltingMonitor("regression-10d-plain-adam", price=0.01)
for _ in range(3):
    optimizer.zero_grad()
    loss = model(torch.ones(5, 3)).square().mean()
    loss.backward()
    optimizer.step(loss=loss)
    monitor.update(loss, model)

goal = {"metric": "accuracy", "direction": "max", "target": 0.9, "budget": 9}
runs = haltwise.RunMonitor("training-runs", **goal)
for hour in range(3):
    runs.update(0.1 * hour, cost=hour)
assert runs.should_stop in (True, False)
"""

MISSING = {
    "report": "page.write_template(Path('page.html'), 'page', title='', embedded={})",
    "learn": "family('diabetes-large').sample(2, torch.Generator())",
}

NAME = f"""
from pathlib import Path

from haltwise.report import page

for code in {[*MISSING.values()]}:
    try:
        eval(code)
    except Exception as error:
        print(error)
"""


def run(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code], capture_output=True, text=True, check=False
    )


def test_the_core_runs_alone_and_names_the_extra_that_is_missing() -> None:
    """In one process, for each takes seconds to import PyTorch."""
    done = run(CORE + NAME)
    assert done.returncode == 0, done.stderr
    for extra, said in zip(MISSING, done.stdout.splitlines(), strict=True):
        assert f"pip install 'haltwise[{extra}]'" in said


def test_the_command_line_says_what_it_misses() -> None:
    done = run("from haltwise.__main__ import main\nmain()")
    assert done.returncode == 1
    assert done.stderr.strip() == "the command line needs click: pip install 'haltwise[full]'"


def test_packages_are_there_by_their_names_once_they_are_asked_for() -> None:
    done = run(
        "import sys, haltwise\n"
        "assert not hasattr(haltwise, 'nosuch') and 'torch' not in sys.modules\n"
        "haltwise.training.train, haltwise.tasks.family, haltwise.testing.check_family\n"
        "import haltwise.interfaces\n"
        "assert callable(haltwise.run)\n"
    )
    assert done.returncode == 0, done.stderr
