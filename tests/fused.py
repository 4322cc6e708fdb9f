"""Where the fused kernels run in tests: on a GPU, or else in Triton's interpreter; and twins there.

Twins train the same small classifier, one with fused steps and one with those taken elsewhere.
"""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

import haltwise
from haltwise import LearnedOptimizer
from haltwise._kernels import fused as room
from haltwise.interfaces.torch_optim.guard import FRESH

__all__ = ["DEVICE", "Run", "assert_alike", "fused_device", "train_both", "twins"]

Spoil = Callable[[int, nn.Module], None]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _call(function: Any, *arguments: Any, **settings: Any) -> Any:
    """Call a function from a kernel; the language is made interpreted only if it is not yet."""
    from triton.language import core
    from triton.runtime import interpreter

    language = [function.fn.__globals__.get(name) for name in ("tl", "core")]
    if any(core.is_builtin(module.arange) for module in language if module is not None):
        interpreter._patch_lang(function.fn)
    return function.rewrite()(*arguments, **settings)


@pytest.fixture
def fused_device(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A device whose tensors go through the fused kernels."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    monkeypatch.setenv("HALTWISE_KERNEL", "triton")
    if not room.serves(DEVICE, torch.float32):
        pytest.skip(room.implementation(DEVICE))  # an older Triton, as that of an older PyTorch
    assert DEVICE.type == "cuda" or room.is_interpreted()  # conftest.py sees to it
    # Triton itself looks through the language at each call, which takes half of the time.
    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", _call)
    return DEVICE


@dataclass
class Run:
    """A small classifier, trained by one optimizer."""

    device: torch.device
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32
    with_loss: bool = True
    groups: Callable[[nn.Module], Any] = lambda model: model.parameters()
    warned: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 3))
        for param in self.model.parameters():
            param.data = 0.5 * torch.randn(param.shape, generator=generator)
        self.model.to(self.device, self.dtype)
        inputs = torch.randn(32, 4, generator=generator)
        self.inputs = inputs.to(self.device, self.dtype)
        self.labels = torch.randint(3, (32,), generator=generator).to(self.device)
        self.optimizer = LearnedOptimizer(self.groups(self.model), **self.options)

    def train(
        self, steps: int, *, spoil: Spoil = lambda step, model: None, rise: float = 1
    ) -> None:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always", haltwise.FitWarning)
            for step in range(steps):
                self.optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.model(self.inputs).float(), self.labels)
                loss = loss * rise**step
                loss.backward()
                spoil(step, self.model)
                self.optimizer.step(loss=loss if self.with_loss else None)
        self.warned += [str(warning.message) for warning in seen]

    @property
    def params(self) -> Tensor:
        return parameters_to_vector(self.model.parameters()).detach().double().cpu()

    @property
    def records(self) -> Iterator[dict[str, Any]]:
        state = self.optimizer.state_dict()["state"]
        return (entry["group"][0] for entry in state.values() if "group" in entry)


def twins(device: torch.device, **options: Any) -> tuple[Run, Run]:
    return Run(device, **copy.deepcopy(options)), Run(torch.device("cpu"), **options)


def train_both(
    monkeypatch: pytest.MonkeyPatch, fused: Run, plain: Run, steps: int, **options: Any
) -> None:
    fused.train(steps, **options)
    assert fused.optimizer._on_device._steps is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", haltwise.FitWarning)
        assert fused.optimizer.steps_taken >= 0  # reads what the device has done
    with monkeypatch.context() as context:
        context.setenv("HALTWISE_KERNEL", "")
        plain.train(steps, **options)
    assert plain.optimizer._on_device._steps is None


def assert_alike(fused: Run, plain: Run, tolerance: float = 1e-4, rel: float = 1e-3) -> None:
    assert fused.optimizer.steps_taken == plain.optimizer.steps_taken
    assert fused.optimizer.num_skipped == plain.optimizer.num_skipped
    assert (fused.params - plain.params).abs().max() <= tolerance
    for one, other in zip(fused.records, plain.records, strict=True):
        assert one.keys() == other.keys()
        assert {name: one[name] for name in ("step", "skipped", "judged")} == {
            name: other[name] for name in ("step", "skipped", "judged")
        }
        for name in FRESH if "guard" in one else ():
            assert one["guard"][name] == pytest.approx(other["guard"][name], rel=rel, abs=1e-6)
        if "stop" in one:
            assert bool(one["stop"]) == bool(other["stop"])
        for name, value in one.get("outputs", {}).items():
            assert torch.allclose(
                value.cpu(), other["outputs"][name], rtol=100 * tolerance, atol=100 * tolerance
            )
