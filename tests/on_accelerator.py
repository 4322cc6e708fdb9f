"""What is done on a CPU and on an accelerator, in a process that has one; see `pretended.py`."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import forked
import pytest
import torch
from draws import seeded
from pretended import accelerator
from tiny_runs import TINY
from torch import Tensor, nn
from torch.utils import backend_registration

import haltwise
from haltwise import FunctionBatch, HaltingMonitor, LearnedOptimizer
from haltwise._core.nested_settings import merge
from haltwise._core.tensors import map_tensors, to_device, widest
from haltwise.certificates import ExcessLoss
from haltwise.evaluation import recommend
from haltwise.evaluation.evaluate import evaluate
from haltwise.evaluation.study import study
from haltwise.models.files import read_model
from haltwise.models.loading import find
from haltwise.nn import (
    AdaptiveComputation,
    AdaptiveRNN,
    Coupling,
    LayerStack,
    RepeatedBlock,
    TransformerBlock,
    VariableComputationCell,
)
from haltwise.planning import stopping_costs
from haltwise.processes import Trajectory
from haltwise.processes.markov_chain import MarkovChainFamily
from haltwise.rollout import record
from haltwise.stop_rules import BASELINES, CostUnit, GradientNorm, tune_baselines
from haltwise.tasks import family
from haltwise.training.train import train

__all__ = ["CASES", "SLOW_CASES", "compare", "needs_one"]

Device = torch.device | str


needs_one = pytest.mark.skipif(
    not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this PyTorch takes no device made in Python",
)


def compare(name: str, folder: Path) -> None:
    """See that a case comes to the same on a CPU, on an accelerator, and on one without float64."""
    # A process that has such a device is never rid of it.
    done = forked.run(name, cwd=folder, folder=folder, work=perform)
    assert done.returncode == 0, done.stderr[-3000:]


def perform(arguments: list[str]) -> None:
    """Do the case of this name on all."""
    [name] = arguments
    case = (CASES | SLOW_CASES)[name]
    with accelerator() as device:  # which PyTorch must know before it derives anything
        own = _numbers(case("cpu"))
        _require_same(_numbers(case(device)), own)
    with accelerator(narrow=True) as device:
        if name in PRECISE:
            case(device)  # as far as it comes
        else:
            _require_same(_numbers(case(device)), own)


def _require_same(found: list[Tensor], own: list[Tensor]) -> None:
    assert len(own) == len(found) > 0
    for one, other in zip(own, found, strict=True):
        torch.testing.assert_close(
            other.cpu().double(), one.double(), rtol=1e-3, atol=1e-4, equal_nan=True
        )


def _numbers(found: Any) -> list[Tensor]:
    return [torch.as_tensor(each).detach() for each in found]


# --- Problems ------------------------------------------------------------------------------------


def _logistic(device: Device) -> FunctionBatch:
    x = torch.randn(12, 20, 3, generator=seeded())
    y = (x.sum(-1) + torch.randn(12, 20, generator=seeded(1)) > 0).float()

    def loss(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
        logits = (x @ params.unsqueeze(-1)).squeeze(-1)
        likelihood = nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="none")
        return likelihood.sum(1) + params.square().sum(1) / 2

    data = {"x": x.to(device), "y": y.to(device)}
    return FunctionBatch(torch.zeros(12, 3).to(device), loss, data)


def _solved(device: Device, **settings: Any) -> Any:
    solution = haltwise.solve(_logistic(device), **settings)
    assert solution.params.device.type == torch.device(device).type
    errors = solution.standard_errors
    assert "12 problems of 3 parameters" in str(solution)
    found = [solution.params, solution.loss, solution.num_gradients, solution.outcome]
    return found if errors is None else [*found, errors.params, errors.distance]


def _decays(device: Device) -> Any:
    batch = family("fit-decay").sample(2, seeded(), device=device)
    solution = haltwise.solve(batch, price=1e-3)
    return solution.params, solution.loss


def _learned(device: Device, name: str, **settings: Any) -> Any:
    batch = family(name).sample(8, seeded(), dtype=widest(device), device=device)
    solution = haltwise.solve(batch, name, **settings)
    return solution.params, solution.loss, solution.num_gradients


# --- Loops ---------------------------------------------------------------------------------------


def _optimizer(device: Device, weights: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 1)).to(device)
    inputs = torch.randn(64, 5, generator=seeded()).to(device)
    optimizer = LearnedOptimizer(model.parameters(), weights, **settings)
    for step in range(9):
        if step == 5:
            state = optimizer.state_dict()
            optimizer = LearnedOptimizer(model.parameters(), weights, **settings)
            optimizer.load_state_dict(state)
        optimizer.zero_grad()
        loss = (model(inputs) - inputs[:, :1].sin()).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
    stops = optimizer.should_stop
    optimizer.take_back()
    return [*model.parameters(), stops, loss]


def _monitored(device: Device) -> Any:
    params = [nn.Parameter(torch.zeros(10, device=device))]
    monitor, adam = HaltingMonitor("regression-10d-plain-adam"), torch.optim.Adam(params, 0.1)
    monitor.start(params)
    while not monitor.should_stop:
        adam.zero_grad()
        loss = 30 * (params[0] - 1).square().sum()
        loss.backward()
        monitor.update(loss, params)
        if not monitor.should_stop:
            adam.step()
    return monitor.take_back(params), params[0], loss


def _layer(device: Device, method: str) -> Any:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(size, 16), nn.Tanh()) for size in (2, 16, 16)]
    heads = [nn.Linear(16, 1) for _ in layers]
    stack = LayerStack(layers, num_features=1, heads=heads)
    layer = AdaptiveComputation(stack, method=method).to(device)
    adam = torch.optim.Adam(layer.parameters(), 3e-3)
    inputs = torch.randn(64, 2, generator=seeded()).to(device)
    for _ in range(3):
        pondered = layer(inputs, 0.01, generator=seeded(2))
        losses = (pondered.outputs.squeeze(-1) - inputs[:, :1].sin()).square()
        loss = pondered.objective(losses).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
    executed = layer.run(inputs, 0.01)
    return loss, executed.output, executed.cost, pondered.posterior.log_prob()


def _tokens(device: Device, per: Literal["sequence", "token"], inputs: Any) -> Any:
    torch.manual_seed(0)
    process = RepeatedBlock(TransformerBlock(8, 2), 8, 3, per=per)
    coupling = Coupling.EXPECTED_STATE if per == "token" else Coupling.EXPECTED_LOSS
    layer = AdaptiveComputation(process, coupling=coupling).to(device)
    given = {name: value.to(device) for name, value in inputs.items()}
    prices = torch.full((4,), 0.01, device=device)
    pondered = layer(given, prices, generator=seeded(2))
    loss = pondered.ponder_cost.sum() + pondered.output.square().sum()
    loss.backward()
    executed = layer.run(given, prices)
    grads = [weight.grad for weight in layer.parameters() if weight.grad is not None]
    return [loss, executed.output, executed.cost, executed.exits, *grads]


def _recurrent(device: Device) -> Any:
    torch.manual_seed(0)
    rnn = AdaptiveRNN(nn.RNNCell(4, 8), 3).to(device)
    inputs = torch.randn(5, 4, 3, generator=seeded()).to(device)
    outputs, last, pondered = rnn(inputs, price=0.01)
    (outputs.square().sum() + pondered.ponder_cost.sum()).backward()
    executed = rnn.run(inputs, price=0.01)
    grads = [weight.grad for weight in rnn.parameters() if weight.grad is not None]
    return [outputs, last, *executed[:2], executed[2].exits, *grads]


def _wide(device: Device) -> Any:
    torch.manual_seed(0)
    cell = VariableComputationCell(nn.RNNCell(4, 8)).to(device)
    inputs = torch.randn(5, 4, generator=seeded()).to(device)
    step = cell(inputs, price=0.01)
    ran = cell.run(inputs, price=0.01)
    return step.hidden, step.width, ran.hidden, ran.width


_TOKENS = torch.randn(4, 6, 8, generator=seeded())
_PADDING = torch.arange(6) >= torch.tensor([[6], [3], [5], [4]])

# --- Trainings and what is made of them ----------------------------------------------------------


def _trained(device: Device, name: str = "regression-2d", **settings: Any) -> Any:
    changes = merge(TINY, {"halting": {"num_steps": 4}}, settings)
    with TemporaryDirectory() as folder:
        run = train(name, Path(folder) / "run", device=device, **changes)
        model = read_model(find(run))
    return [weight.flatten()[:3] for weight in model.parameters()]


def _tuned(device: Device) -> Any:
    steps = torch.arange(13.0)
    excess = (2 * torch.randn(40, 1, generator=seeded())).exp() * torch.exp(-0.3 * steps)
    recorded = Trajectory(excess, excess, excess.log() + 0.1 * steps)
    recorded = map_tensors(recorded, lambda value: value.to(device))
    found = tune_baselines(recorded, CostUnit.UPDATES, 0.1, BASELINES)
    return [each.mean_j(0.1) for each in found.values()]


def _resumed(device: Device) -> Any:
    """A monitor whose state was loaded onto the CPU, as Lightning does."""
    params = [nn.Parameter(torch.ones(3, device=device))]
    with TemporaryDirectory() as folder:
        monitor, other = (HaltingMonitor.recording(folder) for _ in range(2))
        monitor.start(params)
        params[0].grad = torch.ones(3, device=device)
        monitor.update(1.0, params)
        state = monitor.state_dict()
        memory = state["memory"]
        state["memory"] = {
            key: {name: value.cpu() for name, value in seen.items()} for key, seen in memory.items()
        }
        other.load_state_dict(state)
        other.update(0.5, params)
        signals = other.state_dict()["signals"]
    return (torch.cat(signals),)


def _planned(device: Device) -> Any:
    chain = MarkovChainFamily(num_states=6)
    start = torch.zeros(6, dtype=widest(device), device=device)
    start[0] = 1
    transition, losses = (to_device(each, device) for each in (chain.transition(), chain.losses()))
    found = stopping_costs(transition, losses, 0.05, start, 12)
    return found.causal, found.clairvoyant


def _certified(device: Device) -> Any:
    model = haltwise.load("regression-2d").to(device)
    recorded = record(model.rule, family("regression-2d").sample(200, seeded(), device=device), 20)
    settings: dict[str, Any] = {"level": 20.0, "confidence": 0.9, "bound": 100.0, "clip": True}
    found = haltwise.certify(model, recorded, risk=ExcessLoss(), **settings).require()
    return found.threshold, found.num_thresholds, found.savings


def _recommended(device: Device) -> Any:
    problems = family("regression-10d").sample(24, seeded(), device=device)
    found = recommend(problems, ["regression-10d"], price=0.01, max_steps=20)
    return [trial.j for trial in found.trials]


def _priced(device: Device) -> Any:
    problems = family("regression-2d").sample(8, seeded(), device=device)
    return (haltwise.price_for_budget(problems, 6.0, "regression-2d"),)


def _evaluated(device: Device) -> Any:
    models = {"regression-2d": haltwise.load("regression-2d")}
    found = evaluate(
        models,
        family("regression-2d"),
        family_name="regression-2d",
        price=0.05,
        horizon=4,
        seed=0,
        num_problems=32,
        device=device,
        learners=False,
    )
    curves = [curve.mean[-1] for curve in found.record.curves.values()]
    return [*curves, found.arrays["excess"], found.arrays["j.updates.learned"]]


def _studied(device: Device) -> Any:
    models = {"regression-2d": haltwise.load("regression-2d")}
    families = {"regression-2d": family("regression-2d")}
    settings: dict[str, Any] = {"prices": [0.05], "horizon": 10, "seeds": [0, 1]}
    found = study(models, families, **settings, num_problems=64, device=device)
    return [each.j for cell in found.cells for each in cell.rules.values()]


CASES: dict[str, Callable[[Device], Any]] = {
    **{
        f"solve by {method}": partial(_solved, method=method)
        for method in ("newton", "bfgs", "lbfgs")
    },
    "standard errors": partial(_solved, method="newton", standard_errors=True),
    "solve at a price": partial(_solved, method="lbfgs", price=0.01),
    "solve by a rule": partial(_solved, method="lbfgs", stop=GradientNorm(-1.0)),
    "bounds and residuals": _decays,
    "learned optimizer": partial(_learned, name="regression-10d"),
    "learned optimizer, unguarded": partial(_learned, name="quadratic-10d", guard=False),
    "torch optimizer": partial(_optimizer, weights="small-networks"),
    "torch optimizer, LSTM": partial(_optimizer, weights="mnist-mlp", weight_decay=0.01),
    "torch optimizer, unguarded": partial(_optimizer, weights="regression-10d", guard=False),
    "monitor": _monitored,
    **{f"layer, {method}": partial(_layer, method=method) for method in ("softmax", "graves")},
    "layer": partial(_layer, method="stick-breaking"),
    "sequences": partial(_tokens, per="sequence", inputs={"tokens": _TOKENS}),
    "tokens that are padded": partial(
        _tokens, per="token", inputs={"tokens": _TOKENS, "padding": _PADDING}
    ),
    "recurrent": _recurrent,
    "variable width": _wide,
    "training": _trained,
    "training of the thesis": partial(_trained, preset="thesis"),
    "training of processes": partial(_trained, name="markov-chain"),
    "baselines": _tuned,
    "certificate": _certified,
    "resumed monitor": _resumed,
    "planning": _planned,
    "recommendation": _recommended,
    "price of a budget": _priced,
}
PRECISE = frozenset(("learned optimizer, unguarded",))
"""In float32 they come to something else, on a CPU, too."""
SLOW_CASES: dict[str, Callable[[Device], Any]] = {
    "solve by Adam": partial(_solved, method="adam"),
    "training by evolution": partial(_trained, joint={"estimator": {"name": "evolution"}}),
    "training of networks": partial(_trained, name="digits-relu"),
    "evaluation": _evaluated,
    "study": _studied,
}
