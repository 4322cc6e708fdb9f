"""Steps as `torch.optim` promises them, asked of ours and of PyTorch's own."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from draws import DOUBLE
from networks import (
    ALL,
    Model,
    advance,
    every_optimizer,
    flat,
    given_grads,
    loss_of,
    numbers,
)
from torch import Tensor, nn
from torch.testing import assert_close

from haltwise import LearnedOptimizer


@every_optimizer
class TestSteps:
    """Of every optimizer."""

    def test_it_optimizes(self, name: str) -> None:
        if name == "linear halter":
            pytest.skip("meta-trained for sums over 10 rows")
        model = Model().first
        optimizer = ALL[name](model.parameters())
        assert isinstance(optimizer, torch.optim.Optimizer)
        inputs = numbers(10, 2)
        losses = []
        for _ in range(40):
            optimizer.zero_grad()
            loss = (model(inputs)[:, :1] - inputs.sum(1, keepdim=True)).square().sum() / 2
            torch.autograd.backward(loss)
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.1 * losses[0]

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
        param = nn.Parameter(numbers(3))
        optimizer = ALL[name]([param])
        optimizer.step()
        assert torch.equal(param, numbers(3))
        assert not optimizer.state

    def test_scalars_and_empty_tensors(self, name: str) -> None:
        scalar, empty, vector = given_grads((), (0, 3), (2,))
        optimizer = ALL[name]([empty, scalar, vector])
        for _ in range(2):
            optimizer.step()
        assert scalar.shape == ()
        assert empty.shape == (0, 3)
        assert not torch.equal(scalar, numbers())
        joined = nn.Parameter(torch.cat((numbers(1, seed=0), numbers(2, seed=2))))
        joined.grad = torch.cat((numbers(1, seed=50), numbers(2, seed=52)))
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
            assert not torch.equal(plain, numbers(3, 4, 2, 2, seed=0))

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
        assert torch.equal(second, numbers(2, seed=1))
        for own, steps, options in ((first, 2, {}), (third, 1, {"weight_decay": 0.5})):
            alone = nn.Parameter(numbers(*own.shape, seed=0 if own is first else 2))
            alone.grad = own.grad
            single = ALL[name]([alone], **options)
            for _ in range(steps):
                single.step()
            assert torch.equal(alone, own)

    def test_what_is_no_list_of_leaves_is_refused(self, name: str) -> None:
        param = nn.Parameter(numbers(2))
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
            optimizer.add_param_group({"params": {nn.Parameter(numbers(2))}})
        for option in ("lr", "weight_decay"):
            with pytest.raises(ValueError, match="-"):
                ALL[name]([param], **{option: -1.0})
        assert len(optimizer.param_groups) == 1

    def test_the_learning_rate_may_be_a_tensor(self, name: str) -> None:
        model, twin = Model(), Model()
        advance(model, ALL[name](model.parameters(), lr=torch.tensor(0.5)), 3)
        advance(twin, ALL[name](twin.parameters(), lr=0.5), 3)
        assert_close(flat(model), flat(twin), rtol=1e-6, atol=1e-7)

    def test_several_dtypes_in_one_group(self, name: str) -> None:
        kinds = torch.float32, DOUBLE, torch.bfloat16
        mixed = [given_grads((4,), dtype=dtype)[0] for dtype in kinds]
        optimizer = ALL[name](mixed)
        optimizer.step()
        for param, dtype in zip(mixed, kinds, strict=True):
            assert param.dtype == dtype
            assert param.isfinite().all()
            assert not torch.equal(param, numbers(4, seed=0, dtype=dtype))

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


@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_taking_a_step_back_leaves_what_it_did_not_move(weight_decay: float) -> None:
    undone = 0
    for seed in (3, 17, 43):  # whose last step is better left out, mostly
        generator = torch.Generator().manual_seed(seed)
        table = nn.Parameter(torch.randn(3, 5, generator=generator))
        matrix = torch.randn(10, 10, generator=generator)
        matrix *= (0.5 * torch.randn(1, generator=generator)).exp()
        target = torch.randn(10, generator=generator)
        optimizer = LearnedOptimizer(
            [table], "quadratic-10d", weight_decay=weight_decay, guard=False
        )
        while not optimizer.should_stop and optimizer.steps_taken < 40:
            optimizer.zero_grad()
            before = table.detach().clone()
            loss = (matrix @ table[:2].flatten() - target).square().sum() / 2
            torch.autograd.backward(loss)
            optimizer.step(loss=loss)
        optimizer.param_groups[0]["lr"] = 0.5  # as a schedule does at the end of a loop's body
        if optimizer.take_back():
            undone += 1
            assert_close(table.detach(), before, rtol=1e-5, atol=1e-6)
    assert undone >= 1
