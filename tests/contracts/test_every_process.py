"""What every process must satisfy: update rules on tasks, and a loop without gradients."""

from pathlib import Path
from typing import Any

import pytest
import torch
from draws import DOUBLE, seeded

from haltwise import update_rules
from haltwise._core.plugins import load_object
from haltwise.processes import OptimizationProcess, ProcessFamily
from haltwise.tasks import family
from haltwise.testing import check_process

SETTINGS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.01, "momentum": 0.9},
    "adam": {"learning_rate": 0.1},
    "rmsprop": {"learning_rate": 0.01},
    "lstm": {"hidden_size": 3},
    "partitioned": {
        "sizes": [4, None],
        "rules": [["lstm", {"hidden_size": 3}], ["adam", {"learning_rate": 0.05}]],
    },
}


def own_family() -> ProcessFamily:
    """Newton's iteration for square roots."""
    file = Path(__file__).parent.parent / "own" / "own_process.py"
    kind: Any = load_object(f"{file}:SquareRoots", ProcessFamily, "process family")
    made: ProcessFamily = kind()
    return made


def process(rule: str, name: str, dtype: torch.dtype) -> OptimizationProcess:
    made = update_rules.make(rule, SETTINGS[rule], seeded())
    if isinstance(made, torch.nn.Module):
        made = made.to(dtype)
    return OptimizationProcess(made, family(name).sample(5, seeded(), dtype=dtype))


@pytest.mark.parametrize("rule", SETTINGS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("regression-10d", DOUBLE),
        ("regression-10d-noisy", torch.float32),
        ("student-t-10d", torch.float32),
    ],
)
def test_an_update_rule_on_a_task_is_a_process(rule: str, name: str, dtype: torch.dtype) -> None:
    check_process(process(rule, name, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_loop_without_gradients_is_a_process(dtype: torch.dtype) -> None:
    check_process(own_family().sample(6, seeded(), dtype=dtype), tolerance=0)
