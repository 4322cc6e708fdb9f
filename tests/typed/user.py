"""A user's script, for type checkers: mypy (strict) and pyright accept it, and it runs."""

from pathlib import Path

import numpy as np
import torch

import haltwise


def stop_a_loop(losses: list[float]) -> int:
    """A loop of one's own, stopped by its losses."""
    monitor = haltwise.HaltingMonitor("regression-10d-plain-adam", price=0.01)
    weights = torch.zeros(3, requires_grad=True)
    for loss in losses:
        weights.grad = torch.ones(3)
        monitor.update(np.float32(loss), [weights])
        if monitor.should_stop:
            print(monitor.reason)
            break
    return monitor.steps


def give_a_run_up(accuracies: list[float]) -> str | None:
    """A training run, given up by its learning curve."""
    runs = haltwise.RunMonitor(
        "training-runs", metric="accuracy", direction="max", target=0.9, budget=20
    )
    for hour, accuracy in enumerate(accuracies):
        runs.update(accuracy, cost=hour, train_loss=1 - accuracy)
        if runs.should_stop:
            break
    return runs.reason


def train(model: torch.nn.Module, inputs: torch.Tensor) -> bool:
    """A training loop with a learned optimizer."""
    optimizer = haltwise.LearnedOptimizer(model.parameters(), "regression-10d", price=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(inputs).square().mean()
        loss.backward()
        optimizer.step(loss=loss)
    return optimizer.should_stop


def fit() -> haltwise.Solution:
    """Many small fits at once."""
    targets = torch.arange(4.0).unsqueeze(1)

    def loss(params: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (params - targets).square().sum(-1)

    problems = haltwise.FunctionBatch(torch.zeros(4, 1), loss, {"targets": targets})
    solution = haltwise.solve(problems, method="lbfgs", price=1e-3)
    worst: float = solution.loss.max().item()
    print(solution, worst, solution.why(0))
    return solution


def fit_arrays() -> float:
    """The same in NumPy, of which the answer is arrays."""

    def loss(params: dict[str, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        return (params["level"] - targets).square()

    start, targets = {"level": np.zeros(4)}, np.arange(4.0)
    solution = haltwise.solve(
        haltwise.FunctionBatch(start, loss, {"targets": targets}), standard_errors=True
    )
    errors = solution.standard_errors
    assert errors is not None
    share = float(solution.success.astype(np.float32).mean() * errors.distance.astype(int).size)
    return share + float(np.median(solution.params["level"][solution.success]))


def minimise() -> float:
    """One function, in SciPy's manner."""
    result = haltwise.minimize(lambda x: float(((x - 1) ** 2).sum()), np.zeros(10), maxiter=20)
    return float(result.fun)


def look(weights: str | Path) -> str:
    """What weights say of themselves."""
    model = haltwise.load(weights)
    return f"{model}"


if __name__ == "__main__":
    print(stop_a_loop([1.0, 0.5, 0.4]), give_a_run_up([0.1, 0.2]), minimise(), fit_arrays())
    print(train(torch.nn.Linear(3, 1), torch.ones(5, 3)), fit().success.all())
    print(look("regression-2d"), look("training-runs"))
