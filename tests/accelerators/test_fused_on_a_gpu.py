"""What only a GPU shows of fused steps: no waiting, CUDA graphs, compiled modules."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import haltwise
from haltwise import LearnedOptimizer
from haltwise._kernels import fused

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or not fused.serves(torch.device("cuda"), torch.float32, 20, 2),
    reason="needs an NVIDIA GPU and Triton",
)


def make() -> tuple[nn.Module, LearnedOptimizer, Callable[[], Tensor]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 50), nn.Tanh(), nn.Linear(50, 5)).cuda()
    inputs = torch.randn(64, 20, device="cuda")
    labels = torch.randint(5, (64,), device="cuda")
    return (
        model,
        LearnedOptimizer(model.parameters(), "mnist-mlp"),
        lambda: nn.functional.cross_entropy(model(inputs), labels),
    )


def flat(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach().clone()


def train(steps: int, loss_of: Callable[[], Tensor], optimizer: LearnedOptimizer) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        optimizer.step(loss=loss)


def test_a_step_does_not_wait_for_the_device() -> None:
    _, optimizer, loss_of = make()
    train(3, loss_of, optimizer)
    loss = loss_of()
    loss.backward()
    with warnings.catch_warnings():  # that this mode is new
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step(loss=loss)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.steps_taken == 4


def test_a_captured_step_is_an_ordinary_one() -> None:
    model, optimizer, loss_of = make()
    twin, plain, twins_loss = make()
    train(3, loss_of, optimizer)
    train(9, twins_loss, plain)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        train(1, loss_of, optimizer)
    for _ in range(6):
        graph.replay()
    assert torch.allclose(flat(model), flat(twin), rtol=1e-4, atol=1e-5)
    assert optimizer.steps_taken == plain.steps_taken == 9
    assert optimizer.should_stop is plain.should_stop
    (own,), (other,) = optimizer.halting_posterior, plain.halting_posterior
    assert torch.allclose(own.log_prob().exp(), other.log_prob().exp(), rtol=1e-2, atol=1e-3)
    train(2, loss_of, optimizer)  # and on without the graph
    train(2, twins_loss, plain)
    assert torch.allclose(flat(model), flat(twin), rtol=1e-4, atol=1e-5)


def test_a_capture_before_the_first_step_is_refused() -> None:
    _, optimizer, loss_of = make()
    loss_of().backward()
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(haltwise.InputError, match="take a step"), torch.cuda.graph(graph):
        train(1, loss_of, optimizer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own modules
def test_it_moves_a_compiled_module_as_any_other() -> None:
    model, optimizer, _ = make()
    twin, plain, _ = make()
    inputs = torch.randn(64, 20, device="cuda")
    compiled = torch.compile(model)
    with warnings.catch_warnings():  # compilers advise
        warnings.simplefilter("ignore")
        train(5, lambda: compiled(inputs).square().mean(), optimizer)
    train(5, lambda: twin(inputs).square().mean(), plain)
    assert torch.allclose(flat(model), flat(twin), rtol=1e-3, atol=1e-4)


def test_results_are_the_same_to_the_bit() -> None:
    results = []
    for _ in range(2):
        model, optimizer, loss_of = make()
        train(6, loss_of, optimizer)
        results.append(flat(model))
    assert torch.equal(*results)
