"""States that were cut, mixed up or written by others are refused whole, in a sentence."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from haltwise import HaltingMonitor, InputError, LearnedOptimizer, RunMonitor
from haltwise.certificates import RiskMonitor
from haltwise.certificates.e_process import EProcess
from haltwise.curves.curves import Curve
from haltwise.curves.rule import CurveRule

STRANGE = (object(), torch.zeros(3), 10**400)


class Latest(CurveRule):
    """The last improvement."""

    def score(self, curve: Curve) -> np.ndarray[Any, Any]:
        return -np.diff(curve.loss, prepend=np.inf)


def run_monitor() -> RunMonitor:
    monitor = RunMonitor(Latest(), level=0.01)
    for step in range(3):
        monitor.update(1 / (1 + step), cost=float(step))
    return monitor


def risk_monitor() -> RiskMonitor:
    monitor = RiskMonitor(0.05, share=1.0)
    monitor.draw()
    monitor.report(0.1)
    return monitor


def e_process() -> EProcess:
    test = EProcess(0.05, 0.95)
    test.update(0.1)
    return test


def halting_monitor() -> HaltingMonitor:
    monitor, model = HaltingMonitor("stop-adam"), torch.nn.Linear(2, 1)
    for loss in (1.0, 0.9):
        model(torch.ones(2)).sum().backward()
        monitor.update(loss, model)
    return monitor


def optimizer() -> LearnedOptimizer:
    draw = torch.Generator().manual_seed(0)
    model = torch.nn.Parameter(torch.randn(3, generator=draw))
    found = LearnedOptimizer([model], "regression-10d")
    for _ in range(2):
        loss = model.square().sum()
        model.grad = (2 * model).detach()
        found.step(loss=loss.detach())
    return found


def places(node: Any, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every entry of nested dictionaries and lists."""
    if isinstance(node, dict | list):
        for key, inner in node.items() if isinstance(node, dict) else enumerate(node):
            yield (*way, key)
            yield from places(inner, (*way, key))


@pytest.mark.parametrize("make", [run_monitor, risk_monitor, e_process, halting_monitor, optimizer])
def test_strange_entries_are_refused_and_change_nothing(make: Callable[[], Any]) -> None:
    known = make()
    sound = known.state_dict()
    for way in places(sound):
        # PyTorch itself judges which parameters a group has.
        for value in () if way[0] == "param_groups" and "params" in way else STRANGE:
            broken = copy.deepcopy(sound)
            node = broken
            for key in way[:-1]:
                node = node[key]
            node[way[-1]] = value
            if value is STRANGE[0]:
                with pytest.raises(InputError):
                    known.load_state_dict(broken)
                continue
            with contextlib.suppress(InputError):  # some entries may be any number
                make().load_state_dict(broken)
    others: tuple[Any, ...] = (None, [], {}, 3, "state")
    for other in others:
        with pytest.raises(InputError):
            known.load_state_dict(other)
    assert str(known.state_dict()) == str(sound)


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (e_process, {"num": 0}),
        (e_process, {"alarm": 2}),
        (e_process, {"sum": -1.0}),
        (risk_monitor, {"num_let_go": 0}),
        (risk_monitor, {"num_runs": 0}),
        (run_monitor, {"cost": [0.0, 2.0, 1.0]}),
        (run_monitor, {"budget": -1.0}),
        (halting_monitor, {"memory": {0: {}}}),
        (halting_monitor, {"steps": -1}),
    ],
)
def test_impossible_counts_are_refused(make: Callable[[], Any], changes: dict[str, Any]) -> None:
    known = make()
    with pytest.raises(InputError, match="load what its state_dict"):
        known.load_state_dict({**known.state_dict(), **changes})
