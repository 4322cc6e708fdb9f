"""Problems given by one function: a loss that PyTorch differentiates, and data per problem."""

import math
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.tensors import copied_array, undisturbed, widest
from haltwise.tasks.base import (
    CurvedObservation,
    Observation,
    SupportsCurvature,
    SupportsResiduals,
    TaskBatch,
)
from haltwise.tasks.coordinates import Bounds, Coordinates

__all__ = ["FunctionBatch", "shape_of", "squares"]

_REACH = 2.0  # of a step in coordinates that stand for bounded ones: a factor of 7.4


@final
@dataclass(frozen=True, eq=False)
class FunctionBatch(TaskBatch, SupportsCurvature, SupportsResiduals):
    """B problems given by functions of parameters and of data, all batched.

    Parameters are a tensor [B, D], or a dictionary of tensors [B, ...] by name, as the start is.

    One of these says what is minimised:

    - `loss(params, **data)` returns losses [B].
    - `residuals(params, **data)` returns residuals [B, M]; the loss is half the sum of their
      squares, as in `scipy.optimize.least_squares`. A mask multiplies what does not count by 0.
    - `derivatives(params, **data)` returns tuples of what you differentiated yourself, for speed:
      (loss [B], gradient [B, D]), or with a third entry, the Hessian [B, D, D] or a positive
      definite matrix that stands for it (IRLS, Fisher scoring); or, beside `residuals`,
      (residuals [B, M], Jacobian [B, M, D]). Named parameters count in their order, flattened one
      after the other, and those with bounds as they are: the chain rule is applied here.

    What is not given is found by automatic differentiation. The functions are called with any
    number of the problems, even one, as those that have halted leave the batch. So what belongs to
    each problem is passed as data, selected along with the parameters, and no loss may depend on
    another problem's row. A function of a single problem can be wrapped by `torch.vmap`.

    Examples:
        Exponential decays, each point a residual:

        >>> def residuals(params, x, y):
        ...     return y - params[:, :1] * torch.exp(-params[:, 1:] * x)
        >>> x = torch.rand(100, 8)
        >>> data = {"x": x, "y": torch.exp(-x)}
        >>> decays = FunctionBatch(torch.ones(100, 2), residuals=residuals, data=data)
        >>> decays.observe(decays.start, 0).loss.shape
        torch.Size([100])

        Logistic regressions with a ridge, their derivatives by hand:

        >>> def logistic(w, x, y):
        ...     z = (w.unsqueeze(1) @ x.mT).squeeze(1)
        ...     mean = z.sigmoid()
        ...     loss = (torch.nn.functional.softplus(z) - y * z).sum(1) + w.square().sum(1) / 4
        ...     gradient = ((mean - y).unsqueeze(1) @ x).squeeze(1) + w / 2
        ...     return loss, gradient, x.mT @ ((mean * (1 - mean)).unsqueeze(-1) * x) + ridge
        >>> ridge, x = torch.eye(3) / 2, torch.randn(100, 20, 3)
        >>> data = {"x": x, "y": (x[..., 0] > 0).float()}
        >>> fits = FunctionBatch(torch.zeros(100, 3), derivatives=logistic, data=data)
        >>> fits.observe_curvature(fits.start).curvature.shape
        torch.Size([100, 3, 3])

        Named parameters, one of which is above 0:

        >>> import haltwise
        >>> def named(params, x, y):
        ...     size, rate = params["size"].unsqueeze(1), params["rate"].unsqueeze(1)
        ...     return (y - size * torch.exp(-rate * x)).square().sum(1)
        >>> start = {"size": torch.ones(100), "rate": torch.full((100,), 0.5)}
        >>> decays = FunctionBatch(
        ...     start, named, {"x": torch.rand(100, 8), "y": torch.rand(100, 8)},
        ...     bounds={"rate": haltwise.positive()},
        ... )
        >>> decays.start.shape, sorted(decays.own(decays.start))
        (torch.Size([100, 2]), ['rate', 'size'])
    """

    start: Any
    """Initial parameters: a tensor [B, D] or a dictionary of tensors [B, ...], float32 or float64,
    or NumPy arrays, for which results are arrays, too. Once the batch is made they are the free
    coordinates [B, D] that are optimized, see `coordinates`, in the dtype of the batch: float64
    where the start or any of the data is, so that no digit is lost, else float32. `to` changes
    it, and moves the batch to another device."""
    loss: Callable[..., Tensor] | None = None
    """From parameters and data to losses [B], differentiable in its first argument."""
    data: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments, each [B, ...]; tensors, or NumPy arrays to be copied to tensors, which go
    to the device of the tensors beside them. Floating-point numbers come to the functions in the
    dtype of the batch; whole numbers and flags stay what they are."""
    _: KW_ONLY
    residuals: Callable[..., Tensor] | None = None
    """From parameters and data to residuals [B, M], differentiable in its first argument."""
    derivatives: Callable[..., tuple[Tensor, ...]] | None = None
    """From parameters and data to values and derivatives in these parameters, see above."""
    bounds: InitVar[Bounds | None] = None
    """Bounds of parameters, `haltwise.positive()` or `haltwise.interval(low, high)`: by name, by
    column or for all. The start must lie strictly within them."""
    coordinates: Coordinates | None = None
    """How coordinates [B, D] stand for the parameters, made of `start` and `bounds`; None where
    they are the parameters, given as a tensor."""

    @undisturbed()
    def __post_init__(self, bounds: Bounds | None) -> None:
        start, data = self.start, self.data
        arrays = _array_names(start, data)
        if self.coordinates is None:
            start, coordinates = Coordinates.of(start, bounds)
            object.__setattr__(self, "coordinates", coordinates)
        start = _plain(start, "start")
        if isinstance(data, Mapping):
            data = {name: _plain(value, f"data[{name!r}]") for name, value in data.items()}
            start, data = _agreeing(start, data, arrays)
            object.__setattr__(self, "data", data)
        object.__setattr__(self, "start", start)

    @property
    def reference_loss(self) -> Tensor:
        """Zero, as the least loss is unknown."""
        return torch.zeros_like(self.start[:, 0])

    @property
    def reach(self) -> Tensor | None:
        """A local model says nothing of a bounded parameter at many times its value."""
        if self.coordinates is None or not any(self.coordinates.bounded):
            return None
        far = [_REACH if is_bounded else math.inf for is_bounded in self.coordinates.bounded]
        reach: Tensor = self.start.new_tensor(far)
        return reach

    def own(self, params: Tensor) -> Any:
        """Convert coordinates [B, D] to parameters as the loss takes them."""
        return params if self.coordinates is None else self.coordinates.own(params)

    @undisturbed(grad=True)
    def observe(self, params: Tensor, step: int) -> Observation:
        """Compute loss and gradient, the latter by automatic differentiation if it is not given.

        Raises:
            InputError: A function returns a wrong shape or type, or does not depend on the
                parameters.
        """
        if self.derivatives is not None:
            if self.residuals is not None:
                residuals, jacobian = self.observe_residuals(params)
                return Observation(*squares(residuals, jacobian)[:2])
            return Observation(*self._derivatives(params)[:2])
        leaf, loss = self._losses(params)
        return Observation(loss.detach(), _gradient(loss, leaf).detach())

    @undisturbed(grad=True)
    def observe_loss(self, params: Tensor, step: int) -> Tensor:
        if self.loss is None and self.residuals is None:
            return self._derivatives(params)[0]
        return self._losses(params)[1].detach()

    @property
    def gives_curvature(self) -> bool:
        if self.derivatives is None or self.residuals is not None:
            return False
        one = self.select(torch.zeros(1, dtype=torch.int64, device=self.start.device))
        return len(one._derivatives(one.start)) == 3

    @property
    def curvature_refusal(self) -> str | None:
        if self.loss is None and self.residuals is None and not self.gives_curvature:
            return "its derivatives are no more than a loss and a gradient; give the loss, too"
        return None

    @undisturbed(grad=True)
    def observe_curvature(self, params: Tensor) -> CurvedObservation:
        """Compute loss, gradient and Hessian; D + 1 backward passes if they are not given.

        Raises:
            InputError: As `observe`, or the loss cannot be differentiated twice.
        """
        if self.derivatives is not None and self.residuals is None:
            given = self._derivatives(params)
            if len(given) == 3:
                return CurvedObservation(*given)
        leaf, loss = self._losses(params)
        grad = _gradient(loss, leaf, create_graph=True)
        return CurvedObservation(loss.detach(), grad.detach(), _rows_of_jacobian(grad, leaf))

    @property
    def residuals_refusal(self) -> str | None:
        return None if self.residuals is not None else "no residuals are given"

    @undisturbed(grad=True)
    def observe_residuals(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Compute residuals and their Jacobian; D + 1 backward passes if it is not given.

        Raises:
            InputError: As `observe`, or the residuals cannot be differentiated twice.
        """
        if self.derivatives is not None:
            residuals, jacobian = self._derivatives(params)
            return residuals, jacobian
        leaf, residuals = self._residuals(params)
        # J^T v is linear in v, and its derivative with respect to v is J^T.
        weights = torch.zeros_like(residuals, requires_grad=True)
        product = _gradient(residuals, leaf, weights, create_graph=True)
        return residuals.detach(), _rows_of_jacobian(product, weights).mT

    def bend(self, params: Tensor) -> Tensor | None:
        if self.coordinates is None or not any(self.coordinates.bounded):
            return None
        # Where the slope vanishes so does all else.
        return (self.coordinates.bend(params) / self.coordinates.slope(params)).nan_to_num(0)

    def _called(self, name: str, function: Callable[..., Any], params: Tensor) -> Any:
        """What a function returns at a copy of the parameters, [B, D] in coordinates.

        Raises:
            InputError: It has changed its arguments in place, which are not its own, or PyTorch
                finds no factorization of one problem's matrix and so returns those of none.
        """
        lent = {"params": params, **{f"data[{key!r}]": v for key, v in self.data.items()}}
        lent = {key: value for key, value in lent.items() if isinstance(value, Tensor)}
        before = {key: value._version for key, value in lent.items()}
        try:
            found = function(self.own(params), **self.data)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise InputError(
                f"{name} fails for all problems as for one of them there is no factorization: "
                f"{error}; let it return NaN for that one, as by torch.linalg.cholesky_ex in the "
                "place of cholesky"
            ) from error
        for key, value in lent.items():
            require(
                value._version == before[key],
                f"{name} changes {key} in place, so what it computes is not of the parameters and "
                "data that it is given; compute a new tensor, as by x.clamp(min=0) in the place "
                "of x.clamp_(min=0), or give bounds",
            )
        return found

    def _losses(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters as a leaf, for the function may differentiate inside, and the losses."""
        if self.loss is None:
            leaf, residuals = self._residuals(params)
            return leaf, 0.5 * residuals.square().sum(1)
        leaf = _leaf(params)
        loss = self._called("the loss", self.loss, leaf)
        require(
            isinstance(loss, Tensor) and loss.shape == params.shape[:1],
            f"the loss must return one value per problem, a tensor of shape [{len(params)}] for "
            f"parameters of shape {list(params.shape)}; got {shape_of(loss)}",
        )
        _require_dtype("the loss", loss, leaf)
        return leaf, loss

    def _residuals(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters as a leaf, and the residuals."""
        assert self.residuals is not None
        leaf = _leaf(params)
        residuals = self._called("residuals", self.residuals, leaf)
        require(
            isinstance(residuals, Tensor)
            and residuals.ndim == 2
            and residuals.shape[:1] == params.shape[:1],
            f"residuals must return a tensor of shape [{len(params)}, M] for parameters of shape "
            f"{list(params.shape)}; got {shape_of(residuals)}",
        )
        _require_dtype("residuals", residuals, leaf)
        return leaf, residuals

    def _derivatives(self, params: Tensor) -> tuple[Tensor, ...]:
        """What `derivatives` returns, checked and detached, in coordinates."""
        assert self.derivatives is not None
        params = _leaf(params).detach()
        with torch.enable_grad():  # it may differentiate inside
            given = self._called("derivatives", self.derivatives, params)
        number, dim = params.shape
        if self.residuals is not None:
            shapes = [[number, -1], [number, -1, dim]]
        else:
            shapes = [[number], [number, dim], [number, dim, dim]]
        counts = {2} if self.residuals is not None else {2, 3}
        fits = isinstance(given, tuple) and len(given) in counts
        if fits:
            width = given[0].shape[-1] if isinstance(given[0], Tensor) and given[0].ndim else 0
            fits = all(
                isinstance(value, Tensor)
                and list(value.shape) == [width if size == -1 else size for size in shape]
                for value, shape in zip(given, shapes, strict=False)
            )
        what = "residuals [{0}, M] and their Jacobian [{0}, M, {1}]"
        if self.residuals is None:
            what = "losses [{0}], gradients [{0}, {1}] and, if known, Hessians [{0}, {1}, {1}]"
        got = ", ".join(map(shape_of, given)) if isinstance(given, tuple) else repr(type(given))
        require(fits, f"derivatives must return a tuple of {what.format(number, dim)}; got {got}")
        for value in given:
            _require_dtype("what derivatives returns", value, params)
        return self._by_chain_rule(params, tuple(value.detach() for value in given))

    def _by_chain_rule(self, params: Tensor, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Derivatives in coordinates [B, D] from those in the parameters that they stand for."""
        if self.coordinates is None or not any(self.coordinates.bounded):
            return given
        slope = self.coordinates.slope(params)
        if self.residuals is not None:
            residuals, jacobian = given
            return residuals, jacobian * slope.unsqueeze(1)
        loss, grad, *curvature = given
        if not curvature:
            return loss, grad * slope
        hessian = slope.unsqueeze(2) * curvature[0] * slope.unsqueeze(1)
        bend = torch.diag_embed(grad * self.coordinates.bend(params))
        return loss, grad * slope, hessian + bend

    @undisturbed(grad=True)
    def _automatic(self, params: Tensor) -> Observation | None:
        """Find by automatic differentiation what `derivatives` gives; None where that fails."""
        assert self.derivatives is not None
        if self.loss is not None or self.residuals is not None:
            leaf, loss = self._losses(params)
        else:
            leaf = _leaf(params)
            loss = self._called("derivatives", self.derivatives, leaf)[0]
        if not loss.requires_grad:
            return None
        return Observation(loss.detach(), _gradient(loss, leaf).detach())


def _array_names(start: Any, data: Any) -> set[str | None]:
    """Which of the data came as arrays, and None among them if the start did."""
    found: set[str | None] = set()
    if isinstance(data, Mapping):
        found |= {name for name, value in data.items() if isinstance(value, np.ndarray)}
    parts = tuple(start.values()) if isinstance(start, Mapping) else (start,)
    if parts and all(isinstance(part, np.ndarray) for part in parts):
        found.add(None)
    return found


def _agreeing(
    start: Any, data: dict[str, Any], arrays: set[str | None]
) -> tuple[Any, dict[str, Any]]:
    """Start and data in the widest of their dtypes, and arrays where the tensors are."""
    if not isinstance(start, Tensor) or start.dtype not in (torch.float32, torch.float64):
        return start, data
    tensors = {name: value for name, value in data.items() if isinstance(value, Tensor)}
    places = [value.device for name, value in tensors.items() if name not in arrays]
    place = places[0] if None in arrays and places else start.device
    is_wide = widest(place) == torch.float64 and any(
        value.dtype == torch.float64 for value in (start, *tensors.values())
    )
    dtype = torch.float64 if is_wide else torch.float32
    moved = {
        name: value.to(
            place if name in arrays else value.device,
            dtype if value.is_floating_point() else value.dtype,
        )
        for name, value in tensors.items()
    }
    return start.to(place, dtype), {**data, **moved}


def _plain(value: Any, name: str) -> Any:
    """A tensor that gradients may be taken through, of a NumPy array, too; all else as it is."""
    if isinstance(value, np.ndarray):
        return copied_array(value, name)
    if isinstance(value, Tensor) and value.is_inference():
        with torch.inference_mode(False):
            return value.clone()
    return value


def _leaf(params: Tensor) -> Tensor:
    """A copy that gradients may be taken for, so that no function can change the parameters."""
    copy: Tensor = _plain(params, "params").detach().clone()
    return copy.requires_grad_()


def squares(residuals: Tensor, jacobian: Tensor) -> CurvedObservation:
    """Half the sum of squares with its gradient J^T r and Gauss-Newton's curvature J^T J."""
    return CurvedObservation(
        0.5 * residuals.square().sum(1),
        (residuals.unsqueeze(1) @ jacobian).squeeze(1),  # J^T r is three times as slow
        jacobian.mT @ jacobian,
    )


def _gradient(
    value: Tensor, leaf: Tensor, weights: Tensor | None = None, *, create_graph: bool = False
) -> Tensor:
    """The gradient of the sum of values, or of their sum weighted, for each problem its own."""
    grad = None
    if value.requires_grad:
        weights = torch.ones_like(value) if weights is None else weights
        (grad,) = torch.autograd.grad(
            value, leaf, weights, create_graph=create_graph, allow_unused=True
        )
    if grad is None:
        raise InputError(
            "the loss has no gradient in its parameters; compute it from them by PyTorch "
            "alone, without NumPy, .item() or .detach()"
        )
    return grad


def _rows_of_jacobian(value: Tensor, leaf: Tensor) -> Tensor:
    """The derivatives [B, D, ...] of values [B, D] with respect to a leaf [B, ...].

    A backward pass for each of the D is several times as fast as `torch.func.hessian` under `vmap`,
    which moves D copies of the data through memory.
    """
    if not value.requires_grad:  # linear
        return leaf.new_zeros(*value.shape, *leaf.shape[1:])
    rows = []
    for total in value.sum(0):
        (row,) = torch.autograd.grad(total, leaf, retain_graph=True, allow_unused=True)
        rows.append(torch.zeros_like(leaf) if row is None else row)
    return torch.stack(rows, 1).detach()


def _require_dtype(name: str, value: Tensor, params: Tensor) -> None:
    require(
        value.dtype == params.dtype,
        f"{name} has dtype {value.dtype} for parameters of {params.dtype}; compute it in that of "
        "the parameters, or give the start in the other",
    )


def shape_of(value: object) -> str:
    """A tensor's shape, in words, or what else a value is."""
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
