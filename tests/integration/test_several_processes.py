"""Processes that train one model together, each on examples of its own."""

import gc
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from draws import seeded
from forked import hold
from networks import Model, flat, loss_of
from torch import Tensor, distributed, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn.parallel import DistributedDataParallel

import haltwise
from haltwise import LearnedOptimizer
from haltwise.nn import AdaptiveComputation, RecurrentCell

NUM_STEPS = 20


def work(rank: int, folder: Path, train: Callable[[int, Path], None]) -> None:
    """Train as one of two."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    train(rank, folder)
    # Were the reducer the last to hold the group, it would wait for a thread that waits for Python.
    gc.collect()
    distributed.destroy_process_group()


def optimize(rank: int, folder: Path) -> None:
    """Take some steps; only one of the two sees a loss that rises."""
    model = Model()
    parallel = DistributedDataParallel(model)
    optimizer = LearnedOptimizer(parallel.parameters(), average_loss=True)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", haltwise.FitWarning)
        for step in range(NUM_STEPS):
            optimizer.zero_grad()
            loss = loss_of(parallel, 2 * step + rank)
            torch.autograd.backward(loss)
            optimizer.step(loss=loss + (100.0 if rank and step > 14 else 0.0))
    found = {"params": flat(model), "told": [str(each.message) for each in told]}
    torch.save(found | {"stop": optimizer.should_stop}, folder / f"{rank}.pt")


def test_they_stay_together_by_the_mean_of_their_losses(tmp_path: Path) -> None:
    hold(__name__)
    start_processes(work, (tmp_path, optimize), nprocs=2, start_method="forkserver")
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(one["params"], other["params"])
    assert one["told"] == other["told"]
    assert "Adam takes over" in one["told"][0]
    assert one["stop"] == other["stop"]


def ponder(rank: int, folder: Path) -> None:
    """Have the gradients of a layer whose processes know from the first step on what is used."""
    layer = pondering()
    parallel = DistributedDataParallel(layer, static_graph=True)
    for _ in range(2):  # the first finds out
        torch.autograd.backward(objective_of(parallel, examples()[rank::2]))
    torch.save([param.grad for param in layer.parameters()], folder / f"{rank}.pt")


def pondering() -> AdaptiveComputation:
    torch.manual_seed(0)
    return AdaptiveComputation(RecurrentCell(nn.GRUCell(2 + 1, 4), 3), "graves")


def objective_of(layer: nn.Module, inputs: Tensor) -> Tensor:
    pondered = layer(inputs, 0.1)
    objective: Tensor = pondered.objective(pondered.outputs.square().sum(-1)).mean()
    return objective


def examples() -> Tensor:
    return torch.randn(8, 2, generator=seeded())


def test_a_layer_has_the_gradient_of_the_examples_of_all(tmp_path: Path) -> None:
    hold(__name__)
    start_processes(work, (tmp_path, ponder), nprocs=2, start_method="forkserver")
    layer = pondering()
    for _ in range(2):
        torch.autograd.backward(objective_of(layer, examples()))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(found, [param.grad for param in layer.parameters()])


def test_one_process_has_no_other_to_ask() -> None:
    model, twin = Model(), Model()
    for own, average in ((model, True), (twin, False)):
        optimizer = LearnedOptimizer(own.parameters(), average_loss=average)
        for step in range(3):
            optimizer.zero_grad()
            loss = loss_of(own, step)
            torch.autograd.backward(loss)
            optimizer.step(loss=loss)
        assert optimizer.__getstate__()["average_loss"] is average
    assert torch.equal(flat(model), flat(twin))
