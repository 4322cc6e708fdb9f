"""Problems given by one function: a loss that PyTorch differentiates, and data per problem."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.random import stream
from haltwise._core.tensors import copied_array, undisturbed
from haltwise.tasks.base import Observation, TaskBatch

__all__ = ["FunctionBatch"]


@final
@dataclass(frozen=True, eq=False)
class FunctionBatch(TaskBatch):
    """B problems given by one function: `loss(params [B, D], **data)` returns losses [B].

    The function is called with any number of the problems, as those that have halted leave the
    batch. So what belongs to each problem is passed as data, selected along with the parameters,
    and no loss may depend on another problem's row. A function of a single problem can be wrapped
    by `torch.vmap`.

    Examples:
        >>> def loss(params, x, y):  # exponential decays
        ...     return (y - params[:, :1] * torch.exp(-params[:, 1:] * x)).square().sum(1)
        >>> x = torch.rand(100, 8)
        >>> decays = FunctionBatch(torch.ones(100, 2), loss, {"x": x, "y": torch.exp(-x)})
        >>> decays.observe(decays.start, 0).loss.shape
        torch.Size([100])
    """

    loss: Callable[..., Tensor]
    """From parameters [B, D] and data to losses [B], differentiable in its first argument."""
    data: dict[str, Tensor] = field(default_factory=dict)
    """Its keyword arguments, each [B, ...]; tensors, or NumPy arrays to be copied to tensors."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", _plain(self.start))
        if isinstance(self.data, Mapping):
            data = {name: _plain(value, f"data[{name!r}]") for name, value in self.data.items()}
            object.__setattr__(self, "data", data)

    @property
    def reference_loss(self) -> Tensor:
        """Zero, as the least loss is unknown."""
        return self.start.new_zeros(self.num_problems)

    @undisturbed(grad=True)
    def observe(self, params: Tensor, step: int) -> Observation:
        """Compute loss and gradient, the latter by automatic differentiation.

        Raises:
            InputError: The loss has the wrong shape or type, or does not depend on the parameters.
        """
        leaf, loss = self._losses(params)
        grad = None
        if loss.requires_grad:
            (grad,) = torch.autograd.grad(loss.sum(), leaf, allow_unused=True)
        if grad is None:
            raise InputError(
                "the loss has no gradient in its parameters; compute it from them by PyTorch "
                "alone, without NumPy, .item() or .detach()"
            )
        return Observation(loss.detach(), grad)

    @undisturbed(grad=True)
    def observe_loss(self, params: Tensor, step: int) -> Tensor:
        return self._losses(params)[1].detach()

    def _losses(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters as a leaf, for the function may differentiate inside, and the losses."""
        params = _plain(params).detach().requires_grad_()
        loss = self.loss(params, **self.data)
        require(
            isinstance(loss, Tensor) and loss.shape == params.shape[:1],
            f"the loss must return one value per problem, a tensor of shape [{len(params)}] for "
            f"parameters of shape {list(params.shape)}; got {_shape(loss)}",
        )
        require(
            loss.dtype == params.dtype,
            f"the loss has dtype {loss.dtype} for parameters of {params.dtype}; "
            "give start and data the same dtype",
        )
        return params, loss

    def check(self) -> None:
        """Try the function on a few problems, together and alone.

        Raises:
            InputError: Data have the wrong length, the function fails on a subset of the problems,
                or a loss changes with the problems beside it.
        """
        require(
            isinstance(self.data, Mapping),
            "data must be a dictionary of tensors, the keyword arguments of the loss, got "
            + type(self.data).__name__,
        )
        for name, value in self.data.items():
            require(
                isinstance(value, Tensor) and value.shape[:1] == self.start.shape[:1],
                f"data[{name!r}] must be a tensor with the {self.num_problems} problems along its "
                f"first dimension, got {_shape(value)}",
            )
        index = sorted({0, self.num_problems // 2, self.num_problems - 1})
        some = self.select(torch.tensor(index, device=self.start.device))
        # Between problems with equal starts, a loss that compares them may have no gradient.
        draw: dict[str, Any] = {"generator": stream(0, "check"), "device": "cpu"}
        away = 0.01 * torch.rand(some.start.shape, dtype=torch.float32, **draw).to(some.start)
        params = torch.where(some.start == 0, away, some.start * (1 + away))
        together = self._try(some, params)
        tolerance = torch.finfo(params.dtype).eps ** 0.5
        for number, problem in enumerate(index):
            row = torch.tensor([number], device=params.device)
            alone = self._try(some.select(row), params[row])
            for own, beside in zip(alone, together, strict=True):
                size = own.abs().nan_to_num().amax().item()
                require(
                    torch.allclose(own, beside[row], tolerance, tolerance * size, equal_nan=True),
                    f"the loss of problem {problem} or its gradient changes with the problems "
                    "beside it; each loss must be a function of its own row of parameters and data "
                    "alone, and not random",
                )

    def _try(self, part: "FunctionBatch", params: Tensor) -> Observation:
        try:
            return part.observe(params, 0)
        except InputError:
            raise
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            raise InputError(
                f"the loss fails for {len(params)} of the {self.num_problems} problems ({error}); "
                "it must take any subset of them, so what belongs to a problem must come in `data`"
            ) from error


def _plain(value: Any, name: str = "start") -> Any:
    """A tensor that gradients may be taken through, of a NumPy array, too; all else as it is."""
    if isinstance(value, np.ndarray):
        return copied_array(value, name)
    if isinstance(value, Tensor) and value.is_inference():
        with torch.inference_mode(False):
            return value.clone()
    return value


def _shape(value: object) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
