"""What trains around an optimizer: schedulers, hooks, scalers, compilers, several processes."""

import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import (
    ALL,
    Model,
    advance,
    every_optimizer,
    flat,
    given_grads,
    loss_of,
)
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LambdaLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.testing import assert_close

from haltwise import InputError, LearnedOptimizer


@every_optimizer
class TestHosts:
    """Of every optimizer."""

    @pytest.mark.parametrize(
        "schedule",
        [
            lambda optimizer: StepLR(optimizer, 2, gamma=0.5),
            lambda optimizer: LambdaLR(optimizer, lambda epoch: 0.9**epoch),
            lambda optimizer: CosineAnnealingLR(optimizer, 9),
            lambda optimizer: OneCycleLR(optimizer, 0.7, total_steps=9, cycle_momentum=False),
        ],
    )
    def test_schedulers_set_the_learning_rate(
        self, name: str, schedule: Callable[[torch.optim.Optimizer], LRScheduler]
    ) -> None:
        model, twin = Model(), Model()
        optimizer, reference = ALL[name](model.parameters()), ALL[name](twin.parameters())
        scheduler = schedule(optimizer)
        for step in range(5):
            (reference.param_groups[0]["lr"],) = scheduler.get_last_lr()
            advance(model, optimizer, 1, first=step)
            advance(twin, reference, 1, first=step)
            scheduler.step()
            assert torch.equal(flat(model), flat(twin))
        assert len({0.0, *scheduler.get_last_lr(), *scheduler.base_lrs}) == 3
        copied = pickle.loads(pickle.dumps(optimizer))
        assert copied.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]
        plateau = ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
        last = optimizer.param_groups[0]["lr"]
        for _ in range(3):
            plateau.step(1.0)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(last / 4)

    def test_hooks_are_called_in_order(self, name: str) -> None:
        model = Model()
        optimizer = ALL[name](model.parameters())
        called: list[str] = []

        def note(what: str) -> Callable[..., None]:
            return lambda *_: called.append(what)

        handles = [
            register_optimizer_step_pre_hook(note("global before")),
            register_optimizer_step_post_hook(note("global after")),
            optimizer.register_step_pre_hook(note("before")),
            optimizer.register_step_post_hook(note("after")),
            optimizer.register_state_dict_pre_hook(note("save")),
            optimizer.register_state_dict_post_hook(note("saved")),
            optimizer.register_load_state_dict_pre_hook(note("load")),
            optimizer.register_load_state_dict_post_hook(note("loaded")),
        ]
        advance(model, optimizer, 1)
        optimizer.load_state_dict(optimizer.state_dict())
        for handle in handles:
            handle.remove()
        advance(model, optimizer, 1)
        steps = ["global before", "before", "after", "global after"]
        assert called == [*steps, "save", "saved", "load", "loaded"]

    def test_gradients_may_be_clipped(self, name: str) -> None:
        model = Model()
        optimizer = ALL[name](model.parameters())
        torch.autograd.backward(loss_of(model))
        clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        assert all(param.isfinite().all() for param in model.parameters())

    def test_the_gradient_scaler_unscales_and_skips(self, name: str) -> None:
        model, twin = Model(), Model()
        optimizer, reference = ALL[name](model.parameters()), ALL[name](twin.parameters())
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step in range(4):
            optimizer.zero_grad()
            loss = loss_of(model, step)
            torch.autograd.backward(scaler.scale(loss))
            if step == 2:
                assert model.second.weight.grad is not None
                model.second.weight.grad[0, 1] = torch.inf
            if step == 3:
                scaler.unscale_(optimizer)
                clip_grad_norm_(model.parameters(), 1e6)
            before = flat(model)
            options = {"loss": loss} if isinstance(optimizer, LearnedOptimizer) else {}
            scaler.step(optimizer, **options)
            scaler.update()
            assert torch.equal(flat(model), before) == (step == 2)
            if step != 2:
                advance(twin, reference, 1, first=step)
            assert_close(flat(model), flat(twin), rtol=1e-6, atol=1e-7)
        assert scaler.get_scale() == 2.0**9
        if isinstance(optimizer, LearnedOptimizer):
            assert optimizer.steps_taken == 3
            assert optimizer.num_skipped == 0  # the scaler's business
            assert optimizer.halting_posterior[0].log_prob().shape == (1, 4)

    def test_autocast_around_a_step_changes_nothing(self, name: str) -> None:
        (param,), (twin,) = given_grads((5,)), given_grads((5,))
        optimizer, reference = ALL[name]([param]), ALL[name]([twin])
        for _ in range(2):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                optimizer.step()
            reference.step()
        assert torch.equal(param, twin)

    @pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # by torch.compile itself
    def test_compiled_models_and_compiled_steps(self, name: str) -> None:
        model, twin = Model(), Model()
        optimizer, reference = ALL[name](model.parameters()), ALL[name](twin.parameters())
        compiled: Any = torch.compile(model, backend="eager")

        def train(step: int) -> None:
            advance(compiled, optimizer, 1, first=step)

        for step in range(3):
            train(step)
            advance(twin, reference, 1, first=step)
        assert_close(flat(model), flat(twin), rtol=1e-4, atol=1e-5)
        around = torch.compile(optimizer.step, backend="eager")
        torch.autograd.backward(loss_of(model))
        torch.autograd.backward(loss_of(twin))
        around()
        reference.step()
        assert_close(flat(model), flat(twin), rtol=1e-4, atol=1e-5)
        torch.compiler.reset()


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@every_optimizer
@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(name: str) -> None:
    model, twin = Model(), Model()
    parallel = DistributedDataParallel(model)
    optimizer, reference = ALL[name](parallel.parameters()), ALL[name](twin.parameters())
    advance(parallel, optimizer, 3)
    advance(twin, reference, 3)
    assert_close(flat(model), flat(twin), rtol=1e-6, atol=1e-7)


# --- Ours ---


@pytest.mark.filterwarnings("ignore")  # its own
def test_lightning_takes_steps_by_hand_and_by_itself(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self, *, by_hand: bool) -> None:
            super().__init__()
            self.model, self.automatic_optimization = Model(), not by_hand

        def training_step(self, _: object, number: int) -> Tensor:
            loss = loss_of(self.model, number)
            if not self.automatic_optimization:
                optimizer = self.optimizers()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step(loss=loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return LearnedOptimizer(self.parameters())

    ends = []
    for by_hand in (False, True):
        module = Module(by_hand=by_hand)
        lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        ).fit(module, list(range(4)))
        assert not module.optimizers().optimizer.should_stop  # it is known
        ends.append(flat(module))
    model = Model()
    advance(model, LearnedOptimizer(model.parameters()), 4)
    assert torch.equal(ends[0], flat(model))
    assert torch.equal(ends[1], flat(model))


def test_a_loss_comes_with_a_closure_or_from_it() -> None:
    model = Model()
    optimizer = LearnedOptimizer(model.parameters())
    torch.autograd.backward(loss_of(model))
    optimizer.step(lambda: None, loss=loss_of(model))  # type: ignore[arg-type, return-value]
    assert not optimizer.should_stop
    with pytest.raises(InputError, match=r"the closure returned the loss that is given to step"):
        optimizer.step(lambda: 1.0, loss=1.0)
    assert optimizer.steps_taken == 1
