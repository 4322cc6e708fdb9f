"""Mistakes in things of one's own: each is one sentence with a way out, before it costs hours.

The files of `tests/own` are right; here they are followed by a class with a mistake.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import haltwise
from haltwise import InputError
from haltwise._core.plugins import load_object
from haltwise.certificates import GainForgone
from haltwise.models import Choice
from haltwise.processes import OptimizationProcess, ProcessFamily, StepObservation, Trajectory
from haltwise.rollout import record, record_process
from haltwise.stop_rules import (
    PonderThreshold,
    ReturnedIterate,
    StopPolicy,
    StopRule,
    calibrate,
    decisions_and_reasons,
)
from haltwise.tasks import family
from haltwise.testing import (
    check_family,
    check_halting_method,
    check_process,
    check_stop_rule,
    check_update_rule,
)
from haltwise.training import train
from haltwise.update_rules import Adam, State, UpdateRule, UpdateStep

OWN = Path(__file__).parent.parent / "own"
TINY: dict[str, Any] = {
    "horizon": 4,
    "price": 0.1,
    "halting": {"num_steps": 4, "num_recorded": 32, "batch_size": 8},
    "validation": {"every": 2, "num_problems": 16, "num_calibration": 64},
}


BEST = ReturnedIterate.BEST


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def written(folder: Path, original: str, mistake: str) -> str:
    """The name of a class `Wrong`, in a file of a user that begins as one of `tests/own`."""
    folder.mkdir(exist_ok=True)
    path = folder / original
    path.write_text((OWN / original).read_text() + "\n\n" + mistake)
    return f"{path}:Wrong"


# -------------------------------------------------------------------------------- update rules


class Own(UpdateRule):
    """Gradient descent, but for one method that a test puts in another's place."""

    def init(self, params: Tensor) -> State:
        return {"last": torch.zeros_like(params)}

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return UpdateStep.without_readout(-0.1 * grad, state)


def with_update(update: Callable[[Tensor, State], Any]) -> Any:
    return type("Own", (Own,), {"update": lambda _, grad, state: update(grad, state)})()


def with_state(make: Callable[[Tensor], Any]) -> Any:
    return type("Own", (Own,), {"init": lambda _, params: make(params)})()


STEP = UpdateStep.without_readout
RULES = {
    "a tuple": (with_update(lambda g, s: (-g, s)), "got tuple"),
    "the update alone": (with_update(lambda g, _: -g), r"UpdateStep\(update, readout, state\)"),
    "nothing": (with_update(lambda _g, _s: None), "got NoneType"),
    "a number": (with_update(lambda g, s: STEP(g.new_tensor(0.1), s)), r"got .* in shape \[\]"),
    # As many problems as parameters: either would be spread over all parameters of a problem.
    "one a problem": (with_update(lambda g, s: STEP(-g.mean(1), s)), r"got .* in shape \[3\]"),
    "a column": (with_update(lambda g, s: STEP(-g.mean(1, True), s)), r"got .* in shape \[3, 1\]"),
    "float64": (with_update(lambda g, s: STEP(-g.double(), s)), r"got torch.float64"),
    "no state": (with_state(lambda _: None), "must be a dictionary of tensors, got NoneType"),
    "a counter": (with_state(lambda _: {"t": torch.zeros(())}), r"t of .* items along dimension 0"),
    "a whole number": (with_state(lambda _: {"t": 0}), r"t of the state .* got int"),
}


@pytest.mark.parametrize("name", RULES)
def test_steps_of_a_rule_that_are_none(name: str) -> None:
    rule, message = RULES[name]
    batch = family("quadratic-10d", {"num_params": 3}).sample(3, seeded())
    with pytest.raises(InputError, match=message):
        record(rule, batch, 3)
    if "state" not in name:
        with pytest.raises(InputError, match=message):
            haltwise.run(OptimizationProcess(rule, batch), stop=Rule(), max_steps=3)
    with pytest.raises(AssertionError, match=r"^Own: "):
        check_update_rule(rule)


# ---------------------------------------------------------------------------------- stop rules


class Rule(StopRule):
    """Stop at the second step; a test puts another method in a place."""

    def step(
        self, observation: StepObservation, memory: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return torch.full_like(observation.loss, observation.step > 1).bool(), memory


def stop_rule(**methods: Any) -> Any:
    return type("Rule", (Rule,), methods)()


ALL = torch.ones(8, dtype=torch.bool)
STOPS = {
    "False": (stop_rule(step=lambda *a: (False, a[2])), "bool tensor of shape .* got bool"),
    "a number": (stop_rule(step=lambda *a: (1.0, a[2])), "got float"),
    "one for all": (stop_rule(step=lambda *a: (torch.tensor(False), a[2])), r"shape \[\]"),
    "no memory": (stop_rule(step=lambda *a: (ALL, None)), "the memory that Rule.step returns must"),
    "a list": (stop_rule(step=lambda *a: (ALL, [1])), "must be a dictionary of tensors, got list"),
    "a counter": (
        stop_rule(step=lambda *a: (ALL, {"t": torch.tensor(1)})),
        "t of the memory .* 8 items along dimension 0",
    ),
    "no beginning": (stop_rule(init=lambda *_: None), "the memory that Rule.init returns must"),
    "a reason for all": (
        stop_rule(why=lambda *_: 0),
        r"Rule.why must return an int64 tensor of shape \[8\].* got int",
    ),
}


@pytest.mark.parametrize("name", STOPS)
def test_decisions_that_are_none(name: str) -> None:
    rule, message = STOPS[name]
    losses = torch.linspace(2, 1, 6).expand(8, -1)
    roots = load_object(f"{OWN / 'own_process.py'}:SquareRoots", ProcessFamily, "family")()
    batch = family("quadratic-10d").sample(8, seeded())
    for way in (
        lambda: decisions_and_reasons(rule, Trajectory(losses, losses)),
        lambda: decisions_and_reasons(rule | Rule(), Trajectory(losses, losses)),
        lambda: haltwise.run(roots.sample(8, seeded()), stop=rule, max_steps=5),
        lambda: haltwise.solve(batch, "regression-10d", stop=rule),
    ):
        with pytest.raises(InputError, match=message):
            way()
    with pytest.raises(AssertionError):
        check_stop_rule(rule)


@pytest.mark.parametrize("given", [[], None, [1, 2], [Rule]])
def test_candidates_that_are_none(given: Any) -> None:
    rule = type("Rule", (Rule,), {"candidates": classmethod(lambda *_: given)})
    losses = torch.rand(600, 6, generator=seeded())
    recorded = Trajectory(losses, losses)
    with pytest.raises(InputError, match="candidates must be stop rules to choose from"):
        calibrate(rule, recorded, price=0.1)
    refusal = "no threshold open" if given == [] else "candidates must be a list of stop rules"
    with pytest.raises(InputError, match=refusal):
        haltwise.certify(rule, recorded, risk=GainForgone(), level=0.1, confidence=0.9, bound=1.0)


def test_a_rule_with_nothing_to_tune_says_what_it_lacks() -> None:
    losses = torch.rand(600, 6, generator=seeded())
    with pytest.raises(InputError, match=r"PonderThreshold has no candidates.*`candidates"):
        calibrate(PonderThreshold, Trajectory(losses, losses), price=0.1)


# ----------------------------------------------------------------------------------- processes

PROCESSES = {
    "no tensor": ("step", "ProcessStep(self.observe(step, loss)._replace(loss=2.0), {})", "float"),
    "whole losses": ("step", "ProcessStep(self.observe(step, loss.long()), state)", "torch.int64"),
    "no state": ("step", "ProcessStep(self.observe(step, loss), None)", "a dictionary of tensors"),
    "a counter": (
        "step",
        "ProcessStep(self.observe(step, loss), {**after, 't': step})",
        "t of the state that Mistaken.step returns must be a tensor with the",
    ),
    "no beginning": ("init", "None", "the state that Mistaken.init returns must be a dictionary"),
    "no result": ("result", "None", "what `result` returns of Mistaken must be a tensor"),
    "one result": (
        "result",
        "state['root'].mean()",
        r"what `result` returns .* got .* \[\]",
    ),
    "no selection": ("select", "None", r"Mistaken.select must return a process of the \d"),
    "all selected": ("select", "self", r"Mistaken.select must return a process of the \d"),
    "others selected": (
        "select",
        "Mistaken(self.numbers[: len(index)])",
        "runs otherwise where others have left",
    ),
    "mixed items": (
        "step",
        "ProcessStep(self.observe(step, loss - loss.mean()), after)",
        "runs otherwise where others have left",
    ),
    "chance": (
        "step",
        "ProcessStep(self.observe(step, loss + torch.rand(len(loss))), after)",
        "draw what is random from the generator",
    ),
    "too few": ("sample", "Mistaken(torch.rand(1, generator=generator))", "as many items as are"),
    "chance in sample": ("sample", "Mistaken(2 + torch.rand(num_items))", "draws other items from"),
    "no process": ("sample", "None", "Wrong.sample must return a Process, got None"),
}
SILENT = ("others selected", "mixed items", "chance", "too few", "chance in sample")
"""What no run shows."""


def mistaken_process(method: str, returned: str) -> str:
    first = {
        "step": "def step(self, step, state):\n"
        "        (_, loss, *_), after = super().step(step, state)",
        "sample": "",
        "init": "def init(self):",
        "result": "def result(self, state):",
        "select": "def select(self, index):",
    }[method]
    select = "" if method == "select" else "    def select(self, index):\n"
    select += "" if method == "select" else "        return Mistaken(self.numbers[index])\n"
    own = "" if method == "sample" else f"    {first}\n        return {returned}\n"
    drawn = returned if method == "sample" else "Mistaken(super().sample(num_items, g).numbers)"
    return (
        f"class Mistaken(Roots):\n{select}{own}\n"
        "@dataclass(frozen=True)\nclass Wrong(SquareRoots):\n"
        "    def sample(self, num_items, generator, *, dtype=torch.float32, device='cpu'):\n"
        f"        g = generator\n        return {drawn}\n"
    )


@pytest.mark.parametrize("name", PROCESSES)
def test_processes_that_do_not_work_are_refused_before_they_are_recorded(
    name: str, tmp_path: Path
) -> None:
    method, returned, message = PROCESSES[name]
    own = written(tmp_path, "own_process.py", mistaken_process(method, returned))
    with pytest.raises(InputError, match=rf"own_process.py, line \d+: .*{message}"):
        train(own, tmp_path / "run", rule="none", **TINY)
    assert not (tmp_path / "run").exists()
    if method == "sample":
        return
    drawn = load_object(own, ProcessFamily, "family")().sample(8, seeded())
    with pytest.raises(AssertionError):
        check_process(drawn)
    if name not in SILENT:
        with pytest.raises(InputError, match=message):
            haltwise.run(drawn, stop=stop_some(), max_steps=5)


def stop_some() -> Any:
    def step(_: object, observation: StepObservation, memory: Any) -> Any:
        return torch.arange(len(observation.loss)) < observation.step, memory

    return stop_rule(step=step)


def test_a_process_is_stopped_by_a_rule_alone() -> None:
    roots = load_object(f"{OWN / 'own_process.py'}:SquareRoots", ProcessFamily, "family")()
    process = roots.sample(8, seeded())
    stopped = haltwise.run(process, stop=Rule(), max_steps=9)
    assert (stopped.num_updates == 2).all()
    expected = record_process(process, 2)
    assert torch.equal(stopped.result, expected.known("final"))
    assert (haltwise.run(process, stop=StopPolicy(Rule(), BEST), max_steps=9).num_updates < 3).all()
    for given in ({}, {"stop": Rule()}, {"stop": Rule(), "max_steps": 3, "price": 0.1}):
        with pytest.raises(InputError, match=r"without a model give a stop rule and the most step"):
            haltwise.run(process, **given)
    misplaced: list[Any] = [Rule(), StopPolicy(Rule(), BEST)]
    for rule in misplaced:
        with pytest.raises(InputError, match=r"give when to stop by its name, as in"):
            haltwise.run(process, rule)


def test_scores_are_one_for_each_item() -> None:
    roots = load_object(f"{OWN / 'own_process.py'}:Roots", object, "process")
    scoring = type("Scoring", (roots,), {"score": lambda *_: torch.tensor(1.0)})
    with pytest.raises(InputError, match=r"what `score` returns of Scoring .* got .* \[\]"):
        record_process(scoring(torch.ones(4)), 3)


# ------------------------------------------------------------------------------------ families

FAMILIES = {
    "a tuple": ("observe", "tuple(seen)", r"must return an Observation\(loss, grad\), got tuple"),
    "a number": ("observe", "seen._replace(loss=2.0)", "the loss that Mistaken.observe .* float"),
    "float64": ("observe", "seen._replace(loss=seen.loss.double())", "got torch.float64"),
    "whole losses": ("observe", "seen._replace(loss=seen.loss.long())", "got torch.int64"),
    "mixed gradients": (
        "observe",
        "seen._replace(grad=seen.grad - seen.grad.mean(0))",
        "the gradient of a problem changes with the problems beside it",
    ),
    "random gradients": (
        "observe",
        "seen._replace(grad=seen.grad + torch.rand(seen.grad.shape))",
        "the gradient of a problem changes|the gradient differs when it is computed again",
    ),
    "steps": ("observe", "seen._replace(loss=seen.loss * (1 + step))", "depends on the step"),
    "a number as reference": ("reference_loss", "0.0", "reference_loss of 2 problems .* got float"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_families_that_do_not_work_are_refused_before_they_are_trained_on(
    name: str, tmp_path: Path
) -> None:
    method, returned, message = FAMILIES[name]
    first = {
        "observe": "def observe(self, params, step):\n        seen = super().observe(params, step)",
        "reference_loss": "@property\n    def reference_loss(self):",
    }[method]
    own = written(
        tmp_path,
        "own_family.py",
        f"class Mistaken(ParabolaBatch):\n    {first}\n        return {returned}\n\n"
        "class Wrong(Parabolas):\n    def _sample(self, num_problems, generator):\n"
        "        drawn = super()._sample(num_problems, generator)\n"
        "        return Mistaken(drawn.start, drawn.widths)\n",
    )
    with pytest.raises(InputError, match=rf"own_family.py, line \d+: .*{message}"):
        train(own, tmp_path / "run", rule={"name": "sgd", "settings": {"learning_rate": 0.1}},
              **TINY)  # fmt: skip
    with pytest.raises(AssertionError):
        check_family(load_object(own, object, "family")())


# ----------------------------------------------------------------- halting methods and estimators

OBJECTIVES = {
    "one for all": ("super().objective(examples).mean()", r"of shape \[8\].* got .* \[\]"),
    "a column": (
        "super().objective(examples)[:, None]",
        r"of shape \[8\].* got .* \[8, 1\]",
    ),
    "a number": ("2.0", r"one number for each item, got float"),
    "detached": ("super().objective(examples).detach()", "does not depend on the outputs"),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_that_would_teach_nothing_or_something_else(name: str, tmp_path: Path) -> None:
    returned, message = OBJECTIVES[name]
    own = written(
        tmp_path,
        "own_method.py",
        "@dataclass(frozen=True)\nclass Wrong(AlwaysThird):\n"
        f"    def objective(self, examples):\n        return {returned}\n",
    )
    descent = {"name": "sgd", "settings": {"learning_rate": 0.1}}
    with pytest.raises(InputError, match=message):
        train("quadratic-10d", tmp_path / "run", rule=descent, method=own, **TINY)
    with pytest.raises(AssertionError):
        check_halting_method(load_object(own, object, "method")())


ESTIMATES = {
    "nothing": ("None", r"an Estimate\(losses, num_left_out\), .* got NoneType"),
    "a mean": ("estimate._replace(losses=estimate.losses.mean())", r"got .* in shape \[\]"),
    "no gradient": ("self.model.zero_grad() or estimate", "has left no gradient"),
}


@pytest.mark.parametrize("name", ESTIMATES)
def test_estimates_that_are_none(name: str, tmp_path: Path) -> None:
    returned, message = ESTIMATES[name]
    own = written(
        tmp_path,
        "own_estimator.py",
        "class Mistaken(_Bound):\n    def accumulate(self, *given):\n"
        f"        estimate = super().accumulate(*given)\n        return {returned}\n\n"
        "@dataclass(frozen=True)\nclass Wrong(Scaled):\n    def bind(self, model, num_steps):\n"
        "        return Mistaken(Pathwise().bind(model, num_steps), model, 1.0)\n",
    )
    joint = {"num_steps": 2, "batch_size": 4, "estimator": own}
    unbound = written(
        tmp_path / "unbound",
        "own_estimator.py",
        "@dataclass(frozen=True)\nclass Wrong(Scaled):\n    def bind(self, model, num_steps):\n"
        "        return None\n",
    )
    with pytest.raises(InputError, match=r"Wrong.bind must return a BoundEstimator, got NoneType"):
        train("quadratic-10d", tmp_path / "other", rule="mlp",
              joint={**joint, "estimator": unbound}, **TINY)  # fmt: skip
    with pytest.raises(InputError, match=message):
        train("quadratic-10d", tmp_path / "run", rule="mlp", joint=joint, **TINY)


# -------------------------------------------------------------------------- scripts, and own=

SCRIPT = """

if GUARD:
    from haltwise.training import train

    train(Parabolas(), RUN, rule={"name": "sgd", "settings": {"learning_rate": 0.1}}, **TINY)
"""


def script(folder: Path, guard: str) -> Path:
    path = folder / "script.py"
    text = SCRIPT.replace("GUARD", guard).replace("RUN", repr(str(folder / "run")))
    path.write_text((OWN / "own_family.py").read_text() + text.replace("**TINY", f"**{TINY!r}"))
    return path


@pytest.mark.parametrize("guard", ["True", '__name__ == "__main__"'])
def test_a_script_trains_once_on_the_family_that_it_defines(guard: str, tmp_path: Path) -> None:
    path = script(tmp_path, guard)
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert haltwise.load(tmp_path / "run").card.family == Choice(
        f"{path}:Parabolas", {"num_params": 3, "spread": 4.0}
    )


def test_a_file_that_trains_while_it_is_executed_is_told_so_once(tmp_path: Path) -> None:
    path = script(tmp_path, "True")
    with pytest.raises(InputError, match='below `if __name__ == "__main__":`') as refused:
        family(f"{path}:Parabolas")
    assert str(refused.value).count("script.py, line") == 1
    assert not (tmp_path / "run").exists()


def test_own_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    named, other = (
        written(folder, "own_chunked_rule.py", "class Adam(Restarts):\n    '''Mine.'''\n")[:-5]
        for folder in (tmp_path / "a", tmp_path / "b")
    )
    mine, theirs = (load_object(f"{path}Adam", UpdateRule, "rule") for path in (named, other))
    run = train("quadratic-10d", tmp_path / "run", rule=f"{named}Adam", **TINY)
    for own in ([mine], [Adam, mine], [theirs, mine, Adam]):
        assert type(haltwise.load(run, own=own).rule) is mine
    assert type(haltwise.load(run, own=[theirs]).rule) is theirs  # files move
    with pytest.raises(InputError, match=r"own=\[Adam\]"):
        haltwise.load(run, own=[Adam])  # the shipped one
    Path(f"{named[:-1]}").unlink()
    third = type("Adam", (theirs,), {"__module__": theirs.__module__})
    with pytest.raises(InputError, match="2 classes called Adam were brought"):
        haltwise.load(run, own=[theirs, third])


@pytest.mark.parametrize("own", [Adam, "adam", ["adam"], [Adam(0.1)], 3])
def test_own_is_a_list_of_classes(own: Any) -> None:
    for load in (haltwise.load, haltwise.load_halting):
        with pytest.raises(InputError, match=r"own must be a list of classes, as in own=\[MyRule"):
            load("regression-2d", own=own)


def test_files_are_said_to_hold_what_they_define(tmp_path: Path) -> None:
    own = written(tmp_path, "own_family.py", "").replace(":Wrong", ":Parabola")
    with pytest.raises(InputError, match=r"it has ParabolaBatch, Parabolas$"):
        train(own, tmp_path / "run")
