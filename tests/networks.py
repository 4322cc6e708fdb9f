"""A small network, the optimizers that move it, and what they are compared by."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from draws import DOUBLE, randn
from random_models import random_model
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from haltwise import LearnedOptimizer

__all__ = [
    "ALL",
    "OURS",
    "Model",
    "advance",
    "assert_same",
    "every_dtype",
    "every_optimizer",
    "flat",
    "given_grads",
    "loss_of",
    "numbers",
]

Factory = Callable[..., torch.optim.Optimizer]

OURS: dict[str, Factory] = {
    "shipped": lambda params, **options: LearnedOptimizer(params, "regression-10d", **options),
    "in chunks": lambda params, **options: LearnedOptimizer(
        params, "regression-10d", chunk_size=3, **options
    ),
    "linear halter": lambda params, **options: LearnedOptimizer(
        params, "regression-2d-thesis", guard=False, **options
    ),
    "of Adam": lambda params, **options: LearnedOptimizer(
        params, random_model("adam"), chunk_size=3, guard=False, **options
    ),
}
TORCHS: dict[str, Factory] = {
    "torch SGD": lambda params, lr=1.0, **options: torch.optim.SGD(
        params, lr=0.1 * lr, momentum=0.9, **options
    ),
    "torch Adam": lambda params, lr=1.0, **options: torch.optim.Adam(
        params, lr=0.1 * lr, **options
    ),
}
ALL = OURS | TORCHS
"""What `torch.optim` promises is asked of ours and of PyTorch's own."""
every_optimizer = pytest.mark.parametrize("name", ALL)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16])


def numbers(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    """`randn` in float32."""
    return randn(*shape, seed=seed, dtype=dtype)


class Model(nn.Module):
    """1 + 8 + 4 + 4 entries; the first is 0-dimensional."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(2, 4)
        self.second = nn.Linear(4, 1, bias=False)
        self.scale = nn.Parameter(torch.ones(()))
        with torch.no_grad():
            for seed, param in enumerate(self.parameters()):
                param.copy_(numbers(*param.shape, seed=seed))
        self.to(dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(inputs).tanh()) * self.scale
        return result


def loss_of(model: nn.Module, step: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    inputs = numbers(16, 2, seed=100 + step, dtype=dtype)
    loss: Tensor = (model(inputs) - inputs.sum(1, keepdim=True).sin()).square().mean()
    return loss


def advance(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    num_steps: int,
    *,
    first: int = 0,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Take steps, with the loss where the optimizer is ours."""
    for step in range(first, first + num_steps):
        optimizer.zero_grad()
        loss = loss_of(model, step, dtype)
        torch.autograd.backward(loss)
        if isinstance(optimizer, LearnedOptimizer):
            optimizer.step(loss=loss)
        else:
            optimizer.step()


def flat(model: nn.Module) -> Tensor:
    return parameters_to_vector(model.parameters()).detach().clone()


def assert_same(found: Any, expected: Any) -> None:
    """Nested structures, bit by bit, NaN nowhere."""
    assert type(found) is type(expected)
    if isinstance(found, Tensor):
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    elif isinstance(found, dict):
        assert found.keys() == expected.keys()
        for name in found:
            assert_same(found[name], expected[name])
    elif isinstance(found, list | tuple):
        assert len(found) == len(expected)
        for pair in zip(found, expected, strict=True):
            assert_same(*pair)
    else:
        assert found == expected


def given_grads(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    params = []
    for seed, shape in enumerate(shapes):
        param = nn.Parameter(numbers(*shape, seed=seed, dtype=dtype))
        param.grad = numbers(*shape, seed=50 + seed, dtype=dtype)
        params.append(param)
    return params
