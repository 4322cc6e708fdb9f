"""Family, rule, stop rule, method, process and estimator of one's own: one file each, outside.

Each is driven through every face that it concerns, and every face must show *its* behaviour.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import haltwise
from haltwise._core.nested_settings import Choice
from haltwise._core.plugins import load_object
from haltwise.halting import HaltingMethod
from haltwise.models import Card, HaltingModel, OptimizerModel
from haltwise.models.files import build_model
from haltwise.processes import OptimizationProcess, ProcessFamily, Trajectory
from haltwise.rollout import record, record_process
from haltwise.stop_rules import (
    RETURNABLE,
    CostUnit,
    FixedBudget,
    StopPolicy,
    StopRule,
    costs,
    decisions,
    total_cost,
)
from haltwise.tasks import TaskFamily, family
from haltwise.testing import check_update_rule
from haltwise.training import GradientEstimator, train
from haltwise.training.run.log import read_log
from haltwise.update_rules import UpdateRule

OWN = Path(__file__).parent.parent / "own"
FAMILY, RULE = f"{OWN / 'own_family.py'}:Parabolas", f"{OWN / 'own_rule.py'}:SignDescent"
COUNTING_RULE = f"{OWN / 'own_chunked_rule.py'}:Restarts"
METHOD, STOP = f"{OWN / 'own_method.py'}:AlwaysThird", f"{OWN / 'own_stop_rule.py'}:LossBelow"
PROCESS = f"{OWN / 'own_process.py'}:SquareRoots"
ESTIMATOR = f"{OWN / 'own_estimator.py'}:Scaled"

TINY: dict[str, Any] = {
    "horizon": 8,
    "price": 0.1,
    "joint": {"num_steps": 6, "batch_size": 8},
    "halting": {"num_steps": 40, "num_recorded": 64, "batch_size": 16},
    "validation": {"every": 20, "num_problems": 32, "num_calibration": 64},
}


def own(name: str, kind: type) -> type:
    found = load_object(name, kind, "class")
    assert isinstance(found, type)
    return found


def problems(num: int = 16) -> haltwise.FunctionBatch:
    drawn: haltwise.FunctionBatch = family(FAMILY).sample(  # type: ignore[assignment]
        num, torch.Generator().manual_seed(0)
    )
    return drawn


def network() -> tuple[torch.nn.Module, Callable[[], Tensor]]:
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(4, 1)
    for param in model.parameters():
        param.data.normal_(generator=generator)
    x = torch.randn(20, 4, generator=generator)
    return model, lambda: model(x).square().mean()


# ------------------------------------------------------------------------------------- a family


def test_a_family_is_trained_on_and_solved(tmp_path: Path) -> None:
    run = train(FAMILY, tmp_path / "run", rule={"name": "sgd", "settings": {"learning_rate": 0.2}},
                **TINY)  # fmt: skip
    card = haltwise.load(run).card
    assert card.family == Choice(FAMILY, {"num_params": 3, "spread": 4.0})
    batch = problems()
    solution = haltwise.solve(batch, haltwise.load(run), guard=False)
    # The oracle of this family: gradient descent shrinks the distance to 3 by 1 - 0.2 w a step.
    widths = batch.widths  # type: ignore[attr-defined]
    expected = 3 - 3 * (1 - 0.2 * widths) ** solution.steps.unsqueeze(1)
    torch.testing.assert_close(solution.params, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------- an update rule


@pytest.fixture(scope="module")
def sign_descent(tmp_path_factory: pytest.TempPathFactory) -> OptimizerModel:
    directory = tmp_path_factory.mktemp("rule") / "run"
    train(FAMILY, directory, rule={"name": RULE, "settings": {"size": 0.5}}, **TINY)
    return haltwise.load(directory, own=[own(RULE, UpdateRule)])


def test_a_rule_is_what_weights_carry_and_move_by(sign_descent: OptimizerModel) -> None:
    assert type(sign_descent.rule).__name__ == "SignDescent"
    solution = haltwise.solve(problems(), sign_descent)
    torch.testing.assert_close(solution.params / 0.5, (solution.params / 0.5).round())
    assert (solution.params.abs().amax(1) <= 0.5 * solution.steps + 1e-6).all()


def test_a_rule_moves_the_parameters_of_a_module(sign_descent: OptimizerModel) -> None:
    model, loss = network()
    before = [param.detach().clone() for param in model.parameters()]
    optimizer = haltwise.LearnedOptimizer(model.parameters(), weights=sign_descent)
    loss().backward()
    optimizer.step(loss=loss())
    for old, new in zip(before, model.parameters(), strict=True):
        assert new.grad is not None
        torch.testing.assert_close(new.detach(), old - 0.5 * new.grad.sign())


@pytest.mark.parametrize("chunk_size", [None, 3, 1])
def test_a_rule_that_counts_moves_a_module_as_it_moves_a_problem(
    chunk_size: int | None, tmp_path: Path
) -> None:
    train(FAMILY, tmp_path / "run", rule={"name": COUNTING_RULE, "settings": {"rate": 0.3}}, **TINY)
    rules = own(COUNTING_RULE, UpdateRule)
    weights = haltwise.load(tmp_path / "run", own=[rules])
    model, loss = network()
    optimizer = haltwise.LearnedOptimizer(
        model.parameters(), weights=weights, guard=False, chunk_size=chunk_size
    )
    rule = rules(rate=0.3)
    check_update_rule(rule)
    params = torch.cat([param.detach().flatten() for param in model.parameters()]).unsqueeze(0)
    state = rule.init(params)
    for step in range(12):
        optimizer.zero_grad()
        loss().backward()
        grads = [param.grad.flatten() for param in model.parameters() if param.grad is not None]
        taken = rule.update(torch.cat(grads).unsqueeze(0), state)
        params, state = params + taken.update, taken.state
        if step == 6:  # what it counts is in the checkpoint
            saved = optimizer.state_dict()
            optimizer = haltwise.LearnedOptimizer(
                model.parameters(), weights=weights, guard=False, chunk_size=chunk_size
            )
            optimizer.load_state_dict(saved)
        optimizer.step(loss=loss())
    moved = torch.cat([param.detach().flatten() for param in model.parameters()])
    torch.testing.assert_close(moved.unsqueeze(0), params)
    assert state["steps"] < 12  # it has begun anew


def test_a_rule_that_moves_whole_problems_alone_is_refused_before_the_first_step(
    tmp_path: Path,
) -> None:
    path = tmp_path / "plain.py"
    path.write_text(
        "from haltwise.update_rules import UpdateRule, UpdateStep\n"
        "class Descent(UpdateRule):\n"
        "    def init(self, params):\n"
        "        return {}\n"
        "    def update(self, grad, state):\n"
        "        return UpdateStep.without_readout(-0.1 * grad, state)\n"
    )
    name = f"{path}:Descent"
    weights = haltwise.load(
        train(FAMILY, tmp_path / "run", rule=name, **TINY), own=[own(name, UpdateRule)]
    )
    with pytest.raises(haltwise.InputError, match=r"Descent moves all coordinates.*`update_chunk`"):
        haltwise.LearnedOptimizer(network()[0].parameters(), weights=weights)


def test_a_rule_of_ones_own_is_never_executed_from_a_file_of_weights(
    sign_descent: OptimizerModel, tmp_path: Path
) -> None:
    from haltwise.models import save_model

    save_model(tmp_path / "weights.safetensors", sign_descent.state_dict(), sign_descent.card)
    with pytest.raises(haltwise.InputError, match=r"own=\[SignDescent\]"):
        haltwise.load(tmp_path / "weights.safetensors")


# ------------------------------------------------------------------------------ a halting method


@pytest.fixture(scope="module")
def thirds(tmp_path_factory: pytest.TempPathFactory) -> OptimizerModel:
    directory = tmp_path_factory.mktemp("method") / "run"
    descent = {"name": "sgd", "settings": {"learning_rate": 0.05}}
    changes = {"rule": descent, "method": {"name": METHOD, "settings": {"last": 3}}}
    train(FAMILY, directory, **{**TINY, **changes})
    return haltwise.load(directory, own=[own(METHOD, HaltingMethod), own_rule_of_method()])


def own_rule_of_method() -> type:
    return own(f"{OWN / 'own_method.py'}:StopAtThird", StopRule)


def test_a_method_is_trained_by_its_own_objective(thirds: OptimizerModel) -> None:
    trajectory = record(thirds.rule, problems(), 8)
    judged = thirds.halting.attach(trajectory, 0.1)
    fresh = build_model(thirds.card, own=[type(thirds.halting.method)])
    assert isinstance(fresh, OptimizerModel)
    untrained = fresh.halting.attach(trajectory, 0.1).outputs["own_logits"]
    trained = judged.outputs["own_logits"]
    assert (trained - 7).abs().mean() < 0.9 * (untrained - 7).abs().mean()


def test_a_method_stops_solve_the_optimizer_and_the_monitor_by_its_own_rule(
    thirds: OptimizerModel,
) -> None:
    solution = haltwise.solve(problems(), thirds)
    assert (solution.num_gradients == 4).all()
    assert solution.reasons[:1] == ("the third step is always the last",)
    assert (solution.reason == 0).all()

    model, loss = network()
    optimizer = haltwise.LearnedOptimizer(model.parameters(), weights=thirds)
    monitor = haltwise.HaltingMonitor(thirds)
    stops = []
    for _ in range(6):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step(loss=value)
        monitor.update(value, model)
        stops.append((optimizer.should_stop, monitor.should_stop))
    assert stops == [(False, False)] * 3 + [(True, True)] * 3
    assert monitor.reason == "the third step is always the last"
    (posterior,) = optimizer.halting_posterior
    assert type(posterior).__name__ == "Third"
    assert posterior.log_prob().argmax(1).tolist() == [3]


# ----------------------------------------------------------------------------------- a stop rule


def test_a_stop_rule_stops_every_face(sign_descent: OptimizerModel) -> None:
    rule = own(STOP, StopRule)(level=2.0)
    batch = problems()
    solution = haltwise.solve(batch, sign_descent, stop=rule, max_steps=8)
    trajectory = record(sign_descent.rule, batch, 8)
    decided = (trajectory.loss[:, :-1] <= 2.0).int().argmax(1)
    stopped = (trajectory.loss[:, :-1] <= 2.0).any(1)
    assert (solution.num_gradients[stopped] == decided[stopped] + 1).all()
    assert solution.reasons[:1] == ("the loss is at most 2",)
    assert torch.equal(decisions(rule, trajectory)[stopped], decided[stopped])

    policy = StopPolicy(rule, RETURNABLE[CostUnit.GRADIENTS][0])
    process = OptimizationProcess(sign_descent.rule, batch)
    executed = haltwise.run(process, sign_descent, policy, max_steps=8)
    assert torch.equal(executed.num_gradients, solution.num_gradients)


def test_a_stop_rule_is_kept_on_a_card(sign_descent: OptimizerModel) -> None:
    rule = own(STOP, StopRule)(level=2.0)
    policies = {CostUnit.GRADIENTS: StopPolicy(rule, RETURNABLE[CostUnit.GRADIENTS][0])}
    card = Card(method=Choice("none"), price=0.1, horizon=8, policies=policies)
    again = Card.from_json(card.to_json(), own=[own(STOP, StopRule)])
    assert repr(again.policies[CostUnit.GRADIENTS].rule) == repr(rule)


# ------------------------------------------------------------------------------------- a process


def test_a_process_is_learned_and_stopped(tmp_path: Path) -> None:
    # A step costs 1 in units of |x^2 - a|: large numbers are worth many steps, small ones few.
    longer: dict[str, Any] = {"price": 1.0, "horizon": 20, "rule": "none"}
    longer |= {"halting": {"num_steps": 300, "num_recorded": 2048, "batch_size": 128}}
    longer |= {"validation": {"every": 100, "num_problems": 256, "num_calibration": 1024}}
    run = train(PROCESS, tmp_path / "run", **longer)
    model = haltwise.load_halting(run)
    assert isinstance(model, HaltingModel)
    drawn = own(PROCESS, ProcessFamily)().sample(500, torch.Generator().manual_seed(1))
    executed = haltwise.run(drawn, model)
    trajectory = record_process(drawn, 20)
    j = trajectory.excess.gather(1, executed.num_updates.unsqueeze(1)).squeeze(1)
    # The best iterate seen may lie before the last update that was paid for.
    j = j + 1.0 * torch.maximum(executed.num_updates, executed.num_gradients - 1)
    table = costs(trajectory.excess, 1.0)
    oracle, fixed = table.min(1).values.mean(), table.mean(0).min()
    assert (fixed - j.mean()) / (fixed - oracle) > 0.8
    roots = executed.result.squeeze(1)
    assert ((roots**2 - drawn.numbers).abs() < 10).all()

    again = model.attach(trajectory, 1.0)
    policy = model.policy()
    decided = decisions(policy.rule, again)
    offline = total_cost(again, decided, CostUnit.UPDATES, policy.returns, price=1.0)
    torch.testing.assert_close(offline, j)


def test_a_process_is_stopped_by_rules_that_need_the_loss_alone() -> None:
    drawn = own(PROCESS, ProcessFamily)().sample(50, torch.Generator().manual_seed(1))
    trajectory = record_process(drawn, 20)
    assert isinstance(trajectory, Trajectory)
    assert decisions(FixedBudget(4), trajectory).tolist() == [4] * 50


# --------------------------------------------------------------------------- a gradient estimator


def test_an_estimator_is_what_the_rule_learns_by(tmp_path: Path) -> None:
    losses = {}
    for factor in (1.0, -1.0):
        estimator: object = {"name": ESTIMATOR, "settings": {"factor": factor}}
        if factor > 0:  # an instance says the same
            estimator = own(ESTIMATOR, GradientEstimator)(factor)
        joint = {"num_steps": 40, "batch_size": 32, "estimator": estimator}
        train(
            FAMILY,
            tmp_path / f"run{factor}",
            preset="lstm",
            **{**TINY, "joint": joint, "halting": {"num_steps": 0}},
        )
        losses[factor] = read_log(tmp_path / f"run{factor}")[-1]["mean_loss"]
    assert losses[-1.0] > 2 * losses[1.0]  # uphill
    assert issubclass(own(ESTIMATOR, GradientEstimator), GradientEstimator)
    assert issubclass(own(FAMILY, TaskFamily), TaskFamily)
