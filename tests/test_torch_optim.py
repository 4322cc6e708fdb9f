"""What `torch.optim` promises, asked of ours and of PyTorch's own; and ours equals the library."""

import copy
import inspect
import io
import math
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from haltwise.stop_rules.accounts import ReturnedIterate, StopPolicy
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, parameters_to_vector
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

import haltwise
from haltwise import InputError
from haltwise._core.tensors import map_tensors
from haltwise.halting import (
    AFTER,
    GravesPosterior,
    Posterior,
    SoftmaxPosterior,
    StickBreakingPosterior,
)
from haltwise.interfaces.torch_optim import LearnedOptimizer
from haltwise.models.optimizer_model import ModelConfig
from haltwise.rollout.early_exit import execute
from haltwise.rollout.record import unroll
from haltwise.stop_rules import StepObservation
from haltwise.tasks import family

DOUBLE = torch.float64
Factory = Callable[..., torch.optim.Optimizer]


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE).to(dtype)


def tiny(
    rule: str = "lstm",
    posterior: str | None = "both",
    price: float | None = 0.05,
    seed: int = 1,
    **settings: Any,
) -> haltwise.OptimizerModel:
    """A random optimizer whose head has something to say."""
    settings = settings or ({"hidden_size": 3} if rule == "lstm" else {"learning_rate": 0.1})
    config = ModelConfig(rule, settings, head_width=5, head_memory=4)
    optimizer = haltwise.OptimizerModel(config, seeded(seed))
    nn.init.normal_(optimizer.head.weights[-1], std=0.5, generator=seeded(seed))
    card: dict[str, Any] = {"horizon": 7}
    if posterior is not None:
        card["posterior"] = posterior
    if price is not None:
        card["price"] = price
    optimizer.card = {"config": card}
    if posterior in ("both", "stick-breaking"):
        optimizer.card = {**optimizer.card, "thresholds": [-2.0, -2.0]}
    return optimizer


HALVES: dict[str, Any] = {
    "sizes": [9, None],
    "rules": [["lstm", {"hidden_size": 3}], ["adam", {"learning_rate": 0.05}]],
}
OURS: dict[str, Factory] = {
    "shipped": lambda params, **options: LearnedOptimizer(params, "regression-10d", **options),
    "in chunks": lambda params, **options: LearnedOptimizer(
        params, "regression-10d", chunk_size=3, **options
    ),
    "linear head": lambda params, **options: LearnedOptimizer(
        params, "regression-2d-thesis", **options
    ),
    "of Adam": lambda params, **options: LearnedOptimizer(
        params, tiny("adam"), chunk_size=3, **options
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
every = pytest.mark.parametrize("name", ALL)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, DOUBLE, torch.bfloat16])


class Model(nn.Module):
    """1 + 8 + 4 + 4 entries; the first is 0-dimensional."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.first = nn.Linear(2, 4)
        self.second = nn.Linear(4, 1, bias=False)
        self.scale = nn.Parameter(torch.ones(()))
        with torch.no_grad():
            for seed, param in enumerate(self.parameters()):
                param.copy_(randn(*param.shape, seed=seed))
        self.to(dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(inputs).tanh()) * self.scale
        return result


def loss_of(model: nn.Module, step: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    inputs = randn(16, 2, seed=100 + step, dtype=dtype)
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
    """Steps with the loss where it is ours."""
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
        param = nn.Parameter(randn(*shape, seed=seed, dtype=dtype))
        param.grad = randn(*shape, seed=50 + seed, dtype=dtype)
        params.append(param)
    return params


# --- What torch.optim promises -------------------------------------------------------------------


@every
class TestConformance:
    def test_it_optimizes(self, name: str) -> None:
        if name == "linear head":
            pytest.skip("meta-trained for sums over 10 rows")
        model = Model().first
        optimizer = ALL[name](model.parameters())
        assert isinstance(optimizer, torch.optim.Optimizer)
        inputs = randn(10, 2)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = (model(inputs)[:, :1] - inputs.sum(1, keepdim=True)).square().sum() / 2
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.1 * losses[0]

    @every_dtype
    @pytest.mark.parametrize("through", ["dict", "file"])
    def test_a_state_round_trip_goes_on_bit_by_bit(
        self, name: str, dtype: torch.dtype, through: str
    ) -> None:
        model = Model(dtype)
        optimizer = ALL[name](model.parameters())
        advance(model, optimizer, 4, dtype=dtype)
        state = copy.deepcopy(optimizer.state_dict())
        if through == "file":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        twin = Model(dtype)
        twin.load_state_dict(model.state_dict())
        other = ALL[name](twin.parameters())
        other.load_state_dict(state)
        assert_same(other.state_dict(), optimizer.state_dict())
        for each, own in ((model, optimizer), (twin, other)):
            advance(each, own, 4, first=4, dtype=dtype)
        assert torch.equal(flat(twin), flat(model))
        assert_same(other.state_dict(), optimizer.state_dict())

    @pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_copies_go_on_alike_and_apart(self, name: str, copier: Callable[[Any], Any]) -> None:
        model = Model()
        optimizer = ALL[name](model.parameters())
        advance(model, optimizer, 3)
        twin, other = copier((model, optimizer))
        before = flat(model)
        advance(twin, other, 3, first=3)
        assert torch.equal(flat(model), before)
        advance(model, optimizer, 3, first=3)
        assert torch.equal(flat(twin), flat(model))
        assert not torch.equal(flat(model), before)

    def test_unused_and_frozen_parameters_stay_and_have_no_state(self, name: str) -> None:
        used, frozen, unused = given_grads((3,), (2,), (2, 2))
        frozen.requires_grad_(False).grad = None
        unused.grad = None
        before = frozen.clone(), unused.clone()
        optimizer = ALL[name]([used, frozen, unused])
        optimizer.step()
        assert torch.equal(frozen, before[0])
        assert torch.equal(unused, before[1])
        assert set(optimizer.state) == {used}
        alone = given_grads((3,))
        ALL[name](alone).step()
        assert torch.equal(used, alone[0])

    def test_without_any_gradient_nothing_happens(self, name: str) -> None:
        param = nn.Parameter(randn(3))
        optimizer = ALL[name]([param])
        optimizer.step()
        assert torch.equal(param, randn(3))
        assert not optimizer.state

    def test_scalars_and_empty_tensors(self, name: str) -> None:
        scalar, empty, vector = given_grads((), (0, 3), (2,))
        optimizer = ALL[name]([empty, scalar, vector])
        for _ in range(2):
            optimizer.step()
        assert scalar.shape == ()
        assert empty.shape == (0, 3)
        assert not torch.equal(scalar, randn())
        joined = nn.Parameter(torch.cat((randn(1, seed=0), randn(2, seed=2))))
        joined.grad = torch.cat((randn(1, seed=50), randn(2, seed=52)))
        reference = ALL[name]([joined])
        for _ in range(2):
            reference.step()
        assert_close(torch.cat((scalar.view(1), vector)), joined, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("kind", ["transposed", "strided", "channels last"])
    def test_layouts_do_not_matter(self, name: str, kind: str) -> None:
        (plain,) = given_grads((3, 4, 2, 2))
        assert plain.grad is not None
        lay_out: Callable[[Tensor], Tensor] = {
            "transposed": lambda x: x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0),
            "strided": lambda x: torch.stack((x, x), -1)[..., 0],
            "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
        }[kind]
        param = nn.Parameter(lay_out(plain.detach().clone()))
        assert not param.is_contiguous()
        for grad in (lay_out(plain.grad), plain.grad.clone()):
            param.grad = grad
            both = ALL[name]([param], weight_decay=0.1), ALL[name]([plain], weight_decay=0.1)
            for optimizer in both:
                optimizer.step()
                optimizer.step()
            assert_close(param, plain, rtol=1e-6, atol=1e-6)
            assert not torch.equal(plain, randn(3, 4, 2, 2, seed=0))

    def test_maximize_descends_the_negative(self, name: str) -> None:
        up, down = Model(), Model()
        ascending = ALL[name](up.parameters(), maximize=True)
        descending = ALL[name](down.parameters())
        for step in range(3):
            for model, optimizer, sign in ((up, ascending, -1), (down, descending, 1)):
                optimizer.zero_grad()
                torch.autograd.backward(sign * loss_of(model, step))
                optimizer.step()
        assert torch.equal(flat(up), flat(down))

    def test_a_closure_is_called_once_with_gradients_enabled(self, name: str) -> None:
        model, twin = Model(), Model()
        optimizer, reference = ALL[name](model.parameters()), ALL[name](twin.parameters())
        calls: list[Tensor] = []

        def closure() -> Tensor:
            assert torch.is_grad_enabled()
            optimizer.zero_grad()
            loss = loss_of(model, len(calls))
            torch.autograd.backward(loss)
            calls.append(loss)
            return loss

        with torch.no_grad():
            for step in range(3):
                returned: Any = optimizer.step(closure)  # type: ignore[arg-type]
                assert returned is calls[-1]
                assert len(calls) == step + 1
                assert not torch.is_grad_enabled()
        advance(twin, reference, 3)
        assert torch.equal(flat(model), flat(twin))

    def test_groups_have_options_of_their_own_and_may_come_later(self, name: str) -> None:
        first, second, third = given_grads((3,), (2,), (4,))
        optimizer = ALL[name]([{"params": [first]}, {"params": iter([second]), "lr": 0.0}])
        optimizer.step()
        optimizer.add_param_group({"params": third, "weight_decay": 0.5})
        assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 1]
        assert optimizer.param_groups[2]["lr"] == optimizer.param_groups[0]["lr"]
        optimizer.step()
        assert torch.equal(second, randn(2, seed=1))
        for own, steps, options in ((first, 2, {}), (third, 1, {"weight_decay": 0.5})):
            alone = nn.Parameter(randn(*own.shape, seed=0 if own is first else 2))
            alone.grad = own.grad
            single = ALL[name]([alone], **options)
            for _ in range(steps):
                single.step()
            assert torch.equal(alone, own)

    def test_what_is_no_list_of_leaves_is_refused(self, name: str) -> None:
        param = nn.Parameter(randn(2))
        with pytest.raises(TypeError, match="iterable"):
            ALL[name](param)
        with pytest.raises(ValueError, match="empty parameter list"):
            ALL[name]([])
        with pytest.raises(TypeError, match="Tensors"):
            ALL[name]([1.0])
        with pytest.raises(ValueError, match="non-leaf"):
            ALL[name]([param * 2])
        optimizer = ALL[name]([param])
        with pytest.raises(ValueError, match="more than one parameter group"):
            optimizer.add_param_group({"params": [param]})
        with pytest.raises(TypeError, match="ordered"):
            optimizer.add_param_group({"params": {nn.Parameter(randn(2))}})
        for option in ("lr", "weight_decay"):
            with pytest.raises(ValueError, match="-"):
                ALL[name]([param], **{option: -1.0})
        assert len(optimizer.param_groups) == 1

    def test_named_parameters_keep_their_names(self, name: str) -> None:
        model = Model()
        optimizer = ALL[name](model.named_parameters())
        names = [key for key, _ in model.named_parameters()]
        assert optimizer.param_groups[0]["param_names"] == names
        assert optimizer.state_dict()["param_groups"][0]["param_names"] == names

    def test_the_learning_rate_may_be_a_tensor(self, name: str) -> None:
        model, twin = Model(), Model()
        advance(model, ALL[name](model.parameters(), lr=torch.tensor(0.5)), 3)
        advance(twin, ALL[name](twin.parameters(), lr=0.5), 3)
        assert_close(flat(model), flat(twin), rtol=1e-6, atol=1e-7)

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
        heard: list[str] = []

        def note(what: str) -> Callable[..., None]:
            return lambda *_: heard.append(what)

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
        assert heard == [*steps, "save", "saved", "load", "loaded"]

    def test_a_load_hook_may_change_the_state(self, name: str) -> None:
        model = Model()
        optimizer = ALL[name](model.parameters())
        advance(model, optimizer, 1)

        def halve(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            state = copy.deepcopy(state)
            state["param_groups"][0]["lr"] /= 2
            for entry in state["state"].values():
                for value in entry.values():
                    if isinstance(value, Tensor):
                        value.div_(2)
            return state

        optimizer.register_load_state_dict_pre_hook(halve)
        before = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(before)
        expected = halve(optimizer, before)
        assert_same(optimizer.state_dict(), expected)

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
            assert optimizer.halting_posterior[0].horizon == 3

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

    def test_several_dtypes_in_one_group(self, name: str) -> None:
        kinds = torch.float32, DOUBLE, torch.bfloat16
        mixed = [given_grads((4,), dtype=dtype)[0] for dtype in kinds]
        optimizer = ALL[name](mixed)
        optimizer.step()
        for param, dtype in zip(mixed, kinds, strict=True):
            assert param.dtype == dtype
            assert param.isfinite().all()
            assert not torch.equal(param, randn(4, seed=0, dtype=dtype))

    def test_zero_grad_and_words(self, name: str) -> None:
        (param,) = given_grads((2,))
        optimizer = ALL[name]([param])
        assert "Parameter Group 0" in repr(optimizer)
        optimizer.zero_grad(set_to_none=False)
        assert param.grad is not None
        assert (param.grad == 0).all()
        optimizer.zero_grad()
        assert param.grad is None

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_on_cuda(self, name: str) -> None:
        model, twin = Model(DOUBLE), Model(DOUBLE)
        optimizer = ALL[name](model.parameters())
        model.cuda()
        reference = ALL[name](twin.parameters())
        for step in range(4):
            advance(twin, reference, 1, first=step, dtype=DOUBLE)
            for param, other in zip(model.parameters(), twin.parameters(), strict=True):
                assert other.grad is not None
                param.grad = other.grad.cuda()
            optimizer.step()
        assert_close(flat(model).cpu(), flat(twin), rtol=1e-9, atol=1e-9)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


@every
@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel(name: str) -> None:
    model, twin = Model(), Model()
    parallel = DistributedDataParallel(model)
    optimizer, reference = ALL[name](parallel.parameters()), ALL[name](twin.parameters())
    advance(parallel, optimizer, 3)
    advance(twin, reference, 3)
    assert_close(flat(model), flat(twin), rtol=1e-6, atol=1e-7)


# --- Ours is the library's optimizer -------------------------------------------------------------

WEIGHTS: dict[str, Callable[[], haltwise.OptimizerModel]] = {
    "shipped": lambda: haltwise.load("regression-10d"),
    "thesis": lambda: haltwise.load("regression-2d-thesis"),
    "mode": lambda: haltwise.load("regression-2d-mode"),
    "tiny": tiny,
    "graves": lambda: tiny(posterior="graves"),
    "adam": lambda: tiny("adam"),
    "momentum": lambda: tiny("sgd", learning_rate=0.05, momentum=0.9),
    "partitioned": lambda: tiny("partitioned", **HALVES),
    "nested": lambda: tiny(
        "partitioned",
        sizes=[13, 4],
        rules=[["partitioned", HALVES], ["lstm", {"hidden_size": 2, "num_layers": 1}]],
    ),
}


def posterior(kind: str, said: Tensor) -> Posterior:
    """Of what the head said at steps 0..T-1, shape [1, T]."""
    if kind == "softmax":
        return SoftmaxPosterior(torch.cat((torch.zeros_like(said[:, :1]), said.cumsum(1)), 1))
    return GravesPosterior(said) if kind == "graves" else StickBreakingPosterior(said)


@pytest.mark.parametrize("chunk_size", [1, 3, 1000])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_steps_equal_those_on_the_flat_problem(weights: str, chunk_size: int) -> None:
    learned = WEIGHTS[weights]()
    model, twin = Model(DOUBLE), Model(DOUBLE)
    optimizer = LearnedOptimizer(model.parameters(), learned, chunk_size=chunk_size)
    config = learned.card["config"]
    learned = copy.deepcopy(learned).double()
    price = torch.full((1,), config["price"], dtype=DOUBLE)
    params = flat(twin).unsqueeze(0)
    state, said = learned.init(params), []
    rule = learned.policy().rule
    memory, stopped = rule.init(1, price), False
    for step in range(8):
        advance(model, optimizer, 1, first=step, dtype=DOUBLE)
        nn.utils.vector_to_parameters(params[0], twin.parameters())
        loss = loss_of(twin, step, DOUBLE)
        grads = torch.autograd.grad(loss, list(twin.parameters()))
        grad = torch.cat([value.flatten() for value in grads]).unsqueeze(0)
        update, halting, state = learned.step(step, loss.detach().view(1), grad, price, state)
        params = params + update
        assert_close(flat(model), params[0], rtol=1e-10, atol=1e-10)
        kind = config["posterior"]
        words = halting.increments if kind == "softmax" else halting.hazard_logits
        said.append(words[:, AFTER])
        seen = StepObservation(step, loss.detach().view(1), None, *halting)
        stop, memory = rule.step(seen, memory)
        stopped = stopped or bool(stop)
        assert optimizer.should_stop == stopped
        assert optimizer.steps_taken == step + 1
        expected = posterior(kind, torch.stack(said, 1))
        (found,) = optimizer.halting_posterior
        assert type(found) is type(expected)
        assert_close(found.log_prob(), expected.log_prob(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["regression-10d", "quadratic-10d"])
def test_it_stops_after_as_many_gradients_as_execute_and_moves_as_unroll(name: str) -> None:
    learned = haltwise.load(name)
    config = learned.card["config"]
    problems = map_tensors(family(config["family"]).sample(6, seeded()), Tensor.double)
    learned = copy.deepcopy(learned).double()
    price = torch.full((6,), config["price"], dtype=DOUBLE)
    policy = StopPolicy(learned.policy().rule, ReturnedIterate.NEXT)
    result = execute(learned, problems, policy, price, config["horizon"])
    whole = unroll(learned, problems, 10, price).recording.params
    for problem in range(6):
        one = problems.select(torch.tensor([problem]))
        param = nn.Parameter(one.start[0].clone())
        optimizer = LearnedOptimizer([param], name)
        ended = None
        for step in range(config["horizon"]):
            loss, grad = one.observe(param.detach().unsqueeze(0), step)
            param.grad = grad[0]
            optimizer.step(loss=loss)
            if step == 9:
                assert_close(param.detach(), whole[problem], rtol=1e-9, atol=1e-9)
            if optimizer.should_stop and ended is None:
                ended = step + 1
                assert_close(param.detach(), result.params[problem], rtol=1e-6, atol=1e-6)
        assert ended == result.num_gradients[problem]


def test_single_precision_agrees_with_double() -> None:
    models = Model(torch.float32), Model(DOUBLE)
    for model, dtype in zip(models, (torch.float32, DOUBLE), strict=True):
        advance(model, OURS["in chunks"](model.parameters()), 8, dtype=dtype)
    assert_close(flat(models[0]).double(), flat(models[1]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_moved_in_single(dtype: torch.dtype) -> None:
    (half,) = given_grads((6,), dtype=dtype)
    assert half.grad is not None
    single = nn.Parameter(half.detach().float())
    single.grad = half.grad.float()
    optimizer, reference = OURS["shipped"]([half]), OURS["shipped"]([single])
    optimizer.step()
    reference.step()
    assert torch.equal(half, single.to(dtype))
    assert_same(
        [*optimizer.state_dict()["state"].values()], [*reference.state_dict()["state"].values()]
    )
    floats = [value for value in optimizer.state[half].values() if isinstance(value, Tensor)]
    assert {value.dtype for value in floats} == {torch.float32}


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    chunk_size=st.integers(1, 12),
    scale=st.floats(-12, 12),
)
def test_cutting_a_group_into_tensors_and_chunks_changes_nothing(
    sizes: list[int], chunk_size: int, scale: float
) -> None:
    whole = nn.Parameter(randn(sum(sizes), dtype=DOUBLE))
    pieces = [nn.Parameter(piece.clone()) for piece in whole.detach().split(sizes)]
    learned = tiny()
    optimizer = LearnedOptimizer([whole], learned)
    cut = LearnedOptimizer(pieces, learned, chunk_size=chunk_size)
    for step in range(3):
        grad = 10**scale * randn(sum(sizes), seed=step, dtype=DOUBLE)
        whole.grad = grad
        for piece, own in zip(pieces, grad.split(sizes), strict=True):
            piece.grad = own
        optimizer.step(loss=float(step))
        cut.step(loss=float(step))
    assert_close(torch.cat([piece.detach() for piece in pieces]), whole.detach())
    assert_close(cut.halting_posterior[0].log_prob(), optimizer.halting_posterior[0].log_prob())


@pytest.mark.parametrize("scale", [0.0, 1e-40, 1e-20, 1e19, 3e38])
def test_extreme_gradients_leave_everything_finite(scale: float) -> None:
    param = nn.Parameter(torch.zeros(4))
    optimizer = OURS["in chunks"]([param])
    assert isinstance(optimizer, LearnedOptimizer)
    for sign in (1.0, -1.0, 1.0):
        param.grad = sign * torch.tensor([scale, -scale, scale / 3, scale])
        optimizer.step(loss=1.0)
    assert optimizer.num_skipped == 0
    assert param.isfinite().all()
    assert (param.abs() < 100).all()
    assert optimizer.halting_posterior[0].log_prob().isfinite().all()


def test_a_state_of_several_dtypes_goes_on_bit_by_bit() -> None:
    kinds = torch.bfloat16, torch.float32, DOUBLE
    model = nn.ParameterList([given_grads((4,), dtype=dtype)[0] for dtype in kinds])
    twin = nn.ParameterList([given_grads((4,), dtype=dtype)[0] for dtype in kinds])
    optimizer = LearnedOptimizer(model, "regression-10d")
    for step in range(3):
        optimizer.step(loss=3.0 - step)
    other = LearnedOptimizer(twin, "regression-10d")
    other.load_state_dict(optimizer.state_dict())
    twin.load_state_dict(model.state_dict())
    assert_same(other.state_dict(), optimizer.state_dict())
    for own in (optimizer, other):
        own.step(loss=0.1)
    assert_same(other.state_dict(), optimizer.state_dict())
    assert_same([*twin.state_dict().values()], [*model.state_dict().values()])
    (found,) = other.halting_posterior
    assert found.log_prob().dtype == DOUBLE
    assert found.horizon == 4


def test_weight_decay_is_decoupled() -> None:
    (param,), (plain,) = given_grads((5,), dtype=DOUBLE), given_grads((5,), dtype=DOUBLE)
    decayed = OURS["in chunks"]([param], lr=0.5, weight_decay=0.1)
    reference = OURS["in chunks"]([plain], lr=0.5)
    for _ in range(4):
        start, before = param.detach().clone(), plain.detach().clone()
        decayed.step()
        reference.step()
        update = plain.detach() - before  # of the same gradient, at another place
        assert_close(param.detach(), start * (1 - 0.5 * 0.1) + update, rtol=1e-12, atol=1e-12)


def test_each_group_is_a_problem_with_weights_of_its_own() -> None:
    model, twin = Model(), Model()
    groups: list[dict[str, Any]] = [
        {"params": model.first.parameters(), "weights": tiny(seed=1), "price": 0.5},
        {"params": [model.second.weight, model.scale], "weights": "regression-10d"},
    ]
    both = LearnedOptimizer(groups, "there is no such default, nor need of it")
    apart = (
        LearnedOptimizer(twin.first.parameters(), tiny(seed=1), price=0.5),
        LearnedOptimizer([twin.second.weight, twin.scale], "regression-10d"),
    )
    stops = []
    for step in range(12):
        advance(model, both, 1, first=step)
        loss = loss_of(twin, step)
        twin.zero_grad()
        torch.autograd.backward(loss)
        for own in apart:
            own.step(loss=loss)
        assert torch.equal(flat(model), flat(twin))
        stops.append([own.should_stop for own in apart])
        assert both.should_stop == all(stops[-1])
    assert any(first != second for first, second in stops)
    for found, own in zip(both.halting_posterior, apart, strict=True):
        assert torch.equal(found.log_prob(), own.halting_posterior[0].log_prob())
    assert [group["weights"] for group in both.param_groups] == [
        "LearnedOptimizer",
        "regression-10d",
    ]


def test_a_later_group_begins_at_its_own_step() -> None:
    first, second = given_grads((3,), (4,))
    optimizer = LearnedOptimizer([first], "regression-10d")
    for _ in range(2):
        optimizer.step(loss=2.0)
    optimizer.add_param_group({"params": [second]})
    optimizer.step(loss=1.0)
    assert [each.horizon for each in optimizer.halting_posterior] == [3, 1]
    assert optimizer.steps_taken == 3


def test_maximizing_halts_as_minimizing_the_negative() -> None:
    up, down = Model(), Model()
    ascending = LearnedOptimizer(up.parameters(), tiny(), maximize=True)
    descending = LearnedOptimizer(down.parameters(), tiny())
    for step in range(4):
        for model, optimizer, sign in ((up, ascending, -1), (down, descending, 1)):
            optimizer.zero_grad()
            loss = sign * loss_of(model, step)
            torch.autograd.backward(loss)
            optimizer.step(loss=loss)
    found, expected = ascending.halting_posterior[0], descending.halting_posterior[0]
    assert torch.equal(found.log_prob(), expected.log_prob())


def test_a_parameter_that_misses_a_step_goes_on_where_it_was() -> None:
    first, second = given_grads((3,), (2,))
    optimizer = LearnedOptimizer([first, second], tiny("adam"))
    (twin,) = given_grads((3,))
    reference = LearnedOptimizer([twin], tiny("adam"))
    kept = first.grad
    for step in range(4):
        first.grad = None if step == 1 else kept
        optimizer.step()
        if step != 1:
            reference.step()
    assert torch.equal(first, twin)


# --- When something is wrong ---------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["nan", "inf", "loss", "other group"])
@pytest.mark.parametrize("weights", ["shipped", "adam"])
def test_steps_that_are_not_finite_are_skipped_and_counted(bad: str, weights: str) -> None:
    learned = WEIGHTS[weights]()

    def build(model: Model) -> LearnedOptimizer:
        groups = [{"params": model.first.parameters()}, {"params": model.second.parameters()}]
        return LearnedOptimizer(groups, learned, chunk_size=2)

    model, twin = Model(), Model()
    optimizer, reference = build(model), build(twin)
    for step in range(4):
        advance(model, optimizer, 1, first=step)
        advance(twin, reference, 1, first=step)
        before, state = flat(model), optimizer.state_dict()
        wrong = model.second.weight if bad == "other group" else model.first.bias
        assert wrong.grad is not None
        if bad != "loss":
            wrong.grad.view(-1)[1] = torch.inf if bad == "inf" else torch.nan
        optimizer.step(loss=math.nan if bad == "loss" else 1.0)
        assert torch.equal(flat(model), before)
        assert optimizer.num_skipped == step + 1
        for entry in state["state"].values():
            if "group" in entry:
                entry["group"]["skipped"] += 1
        assert_same(optimizer.state_dict(), state)
    assert torch.equal(flat(model), flat(twin))
    assert optimizer.steps_taken == reference.steps_taken == 4
    assert optimizer.should_stop == reference.should_stop


def test_steps_that_are_not_finite_may_raise_and_change_nothing() -> None:
    model = Model()
    optimizer = LearnedOptimizer(model.named_parameters(), "regression-10d", nonfinite="raise")
    advance(model, optimizer, 2)
    before, state = flat(model), optimizer.state_dict()
    assert model.second.weight.grad is not None
    model.second.weight.grad[0, 2] = torch.nan
    with pytest.raises(InputError, match=r"not finite at step 2 \(first in the gradient of param"):
        optimizer.step(loss=1.0)
    with pytest.raises(InputError, match=r"'second\.weight'"):
        optimizer.step()
    model.second.weight.grad[0, 2] = 0.0
    with pytest.raises(InputError, match="the loss or a gradient is not finite at step 2; lower"):
        optimizer.step(loss=torch.tensor(torch.inf))
    assert torch.equal(flat(model), before)
    assert_same(optimizer.state_dict(), state)


@pytest.mark.parametrize("nonfinite", ["skip", "raise"])
def test_an_update_that_overflows_is_dropped(nonfinite: str) -> None:
    (param,) = given_grads((3,))
    learned = tiny("sgd", learning_rate=1e30)
    optimizer = LearnedOptimizer([param], learned, nonfinite=nonfinite)
    assert param.grad is not None
    param.grad *= 1e20
    if nonfinite == "raise":
        with pytest.raises(InputError, match="an update is not finite at step 0; lower lr"):
            optimizer.step(loss=1.0)
    else:
        optimizer.step(loss=1.0)
    assert torch.equal(param, randn(3, seed=0))
    assert (optimizer.num_skipped, optimizer.steps_taken) == (int(nonfinite == "skip"), 0)
    kept = [value for value in optimizer.state[param].values() if isinstance(value, Tensor)]
    assert all(value.isfinite().all() for value in kept)
    param.grad *= 1e-50
    optimizer.step(loss=1.0)
    assert param.isfinite().all()
    assert optimizer.halting_posterior[0].log_prob().isfinite().all()


def test_without_the_loss_it_does_not_pretend_to_know() -> None:
    (param,) = given_grads((3,))
    optimizer = LearnedOptimizer([param], "regression-10d")
    assert optimizer.should_stop is False
    assert [each.horizon for each in optimizer.halting_posterior] == []
    optimizer.step(loss=3.0)
    assert [each.horizon for each in optimizer.halting_posterior] == [1]
    optimizer.step()
    optimizer.step(loss=2.0)
    for ask in ("should_stop", "halting_posterior"):
        with pytest.raises(InputError, match="1 of 3 steps came without; pass it to every step"):
            getattr(optimizer, ask)
    assert optimizer.steps_taken == 3


@pytest.mark.parametrize(
    ("learned", "said"),
    [
        (lambda: haltwise.load("regression-10d-lstm"), "meta-trained without halting"),
        (lambda: tiny(price=None), "come without a price"),
    ],
)
def test_weights_that_cannot_halt_say_so(
    learned: Callable[[], haltwise.OptimizerModel], said: str
) -> None:
    (param,) = given_grads((3,))
    optimizer = LearnedOptimizer([param], learned())
    optimizer.step(loss=1.0)
    with pytest.raises(InputError, match=said):
        optimizer.should_stop  # noqa: B018
    assert not torch.equal(param, randn(3, seed=0))


def test_a_price_given_replaces_that_of_meta_training() -> None:
    problem = family("regression-10d").sample(1, seeded())

    def steps(**options: Any) -> int:
        param = nn.Parameter(problem.start[0].clone())
        optimizer = LearnedOptimizer([param], "regression-10d", **options)
        while not optimizer.should_stop:
            loss, grad = problem.observe(param.detach().unsqueeze(0), optimizer.steps_taken)
            param.grad = grad[0]
            optimizer.step(loss=loss)
        return optimizer.steps_taken

    assert steps(price=0.5) < steps(price=0.0527) == steps() < steps(price=0.005)


@pytest.mark.parametrize("loss", [torch.ones(2), torch.ones((), dtype=torch.complex64)])
def test_a_loss_that_is_no_number_is_refused(loss: Tensor) -> None:
    (param,) = given_grads((3,))
    optimizer = LearnedOptimizer([param], "regression-10d")
    with pytest.raises(InputError, match="single real number"):
        optimizer.step(loss=loss)
    with pytest.raises(InputError, match="not both"):
        optimizer.step(lambda: 1.0, loss=1.0)
    assert torch.equal(param, randn(3, seed=0))


def test_sparse_gradients_are_refused() -> None:
    layer = nn.Embedding(4, 2, sparse=True)
    optimizer = LearnedOptimizer(layer.named_parameters(), "regression-10d")
    torch.autograd.backward(layer(torch.tensor([1, 2])).sum())
    with pytest.raises(
        InputError, match=r"gradient of parameter 'weight' is sparse .*sparse=False"
    ):
        optimizer.step()
    assert not optimizer.state


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64])
def test_other_numbers_are_refused(dtype: torch.dtype) -> None:
    good = nn.Parameter(randn(2))
    odd = torch.zeros(3, dtype=dtype)
    with pytest.raises(InputError, match=r"parameter 1 of shape \[3\] is a .* tensor of torch"):
        LearnedOptimizer([good, odd], "regression-10d")
    optimizer = LearnedOptimizer([good], "regression-10d")
    with pytest.raises(InputError, match="real floating-point"):
        optimizer.add_param_group({"params": [odd]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"nonfinite": "ignore"}, "'skip' or 'raise', got 'ignore'"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"price": 0.0}, "price must be above 0, got 0.0"),
        ({"weights": "regresion-10d"}, "did you mean 'regression-10d'"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        LearnedOptimizer(given_grads((2,)), **{"weights": "regression-10d", **options})


def test_weights_for_other_sizes_are_refused() -> None:
    learned = tiny("partitioned", sizes=[4, 3], rules=[["adam", {"learning_rate": 0.1}]] * 2)
    LearnedOptimizer(given_grads((2, 2), (0,), (2,), (1,)), learned)
    with pytest.raises(InputError, match=r"do not fit .* \[4, 3\] coordinates do not make up 8"):
        LearnedOptimizer(given_grads((4,), (4,)), learned)
    with pytest.raises(InputError, match=r"from coordinate 4 on.* within parameter 1 of shape \[3"):
        LearnedOptimizer(given_grads((2,), (3,), (2,)), learned)


def test_a_state_of_others_is_refused_and_changes_nothing() -> None:
    model = Model()
    optimizer = LearnedOptimizer(model.parameters(), "regression-10d")
    advance(model, optimizer, 2)
    before = optimizer.state_dict()

    def state(params: Any, weights: Any) -> dict[str, Any]:
        params = list(params)
        other = LearnedOptimizer(params, weights)
        for param in params:
            param.grad = torch.zeros_like(param)
        other.step()
        return other.state_dict()

    shapes = [param.shape for param in Model().parameters()]
    larger = [nn.Parameter(torch.zeros(2, *shape)) for shape in shapes]
    adam = torch.optim.Adam(Model().parameters()).state_dict()
    for wrong, said in (
        (state(Model().parameters(), "quadratic-10d"), "taken with the weights 'quadratic-10d'"),
        (state(larger, "regression-10d"), r"is for 2 entries, but it has 1"),
        (adam, "not that of a learned optimizer"),
    ):
        with pytest.raises(InputError, match=said):
            optimizer.load_state_dict(wrong)
        assert_same(optimizer.state_dict(), before)
    few = LearnedOptimizer([*Model().parameters()][:2], "regression-10d").state_dict()
    with pytest.raises(ValueError, match="size of optimizer's group"):
        optimizer.load_state_dict(few)
    assert_same(optimizer.state_dict(), before)
    assert len(before["param_groups"][0]["digest"]) == 32


def test_a_state_is_a_copy_on_both_ways() -> None:
    model, twin = Model(), Model()
    optimizer = LearnedOptimizer(model.parameters(), "regression-10d")
    advance(model, optimizer, 2)
    state, start = optimizer.state_dict(), flat(model)
    kept = copy.deepcopy(state)
    other = LearnedOptimizer(twin.parameters(), "regression-10d")
    other.load_state_dict(state)
    for each, own in ((model, optimizer), (twin, other)):
        nn.utils.vector_to_parameters(start.clone(), each.parameters())
        advance(each, own, 3, first=2)
        assert_same(state, kept)
    assert torch.equal(flat(model), flat(twin))


def test_the_digest_is_of_all_that_moving_and_stopping_depend_on() -> None:
    def digest(learned: haltwise.OptimizerModel | str) -> str:
        found: str = LearnedOptimizer(given_grads((2,)), learned).param_groups[0]["digest"]
        return found

    others = tiny(seed=2), tiny(price=3.0), tiny(posterior="softmax"), tiny(hidden_size=4)
    assert len({digest(tiny()), digest(tiny()), *map(digest, others)}) == 5
    assert digest("regression-10d") == digest(haltwise.load("regression-10d"))


def test_the_weights_given_are_copied() -> None:
    learned = tiny()
    (param,), (twin,) = given_grads((3,)), given_grads((3,))
    optimizer, reference = LearnedOptimizer([param], learned), LearnedOptimizer([twin], learned)
    nn.init.ones_(learned.rule_parameters()[0])
    optimizer.step()
    assert all(weight.requires_grad for weight in learned.rule_parameters())
    reference.step()
    assert torch.equal(param, twin)


# --- Costs ---------------------------------------------------------------------------------------


def test_state_is_made_at_the_first_step_and_as_large_as_documented() -> None:
    param = nn.Parameter(randn(100))
    optimizer = LearnedOptimizer([param], "regression-10d")
    assert not optimizer.state
    param.grad = randn(100)
    optimizer.step()
    tensors = {name: value for name, value in optimizer.state[param].items() if name != "group"}
    storages = {value.untyped_storage().data_ptr() for value in tensors.values()}
    assert len(storages) == len(tensors)
    assert sum(value.untyped_storage().nbytes() for value in tensors.values()) == 328 * 100


_PEAK = """
import torch
from haltwise.interfaces.torch_optim import LearnedOptimizer

torch.set_num_threads(1)

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def step(size):
    param = torch.nn.Parameter(torch.ones(size))
    param.grad = torch.ones(size)
    before = memory("VmRSS")
    optimizer = LearnedOptimizer([param], "regression-10d")
    for _ in range(2):
        optimizer.step(loss=1.0)
    return memory("VmHWM") - before

step(10)
print(step(500_000) / 500_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_step_takes_less_than_400_bytes_a_parameter() -> None:
    found = subprocess.run(
        [sys.executable, "-c", _PEAK], check=True, capture_output=True, text=True
    )
    assert 328 < float(found.stdout) < 400


def test_the_default_weights_are_those_of_networks() -> None:
    assert inspect.signature(LearnedOptimizer).parameters["weights"].default == "mnist-mlp"
