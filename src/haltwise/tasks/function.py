"""Problems given by one function: a loss that PyTorch differentiates, and data per problem."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, field
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from haltwise._core.errors import GradientWarning, InputError, require, warn
from haltwise._core.random import stream
from haltwise._core.tensors import copied_array, undisturbed, widest
from haltwise.tasks.base import (
    CurvedObservation,
    Observation,
    SupportsCurvature,
    SupportsResiduals,
    TaskBatch,
)
from haltwise.tasks.coordinates import Bounds, Coordinates
from haltwise.tasks.own_errors import likely_cause, require_selectable

__all__ = ["FunctionBatch", "squares"]

_REACH = 2.0  # of a step in coordinates that stand for bounded ones: a factor of 7.4
_TELLS, _WRONG = 0.01, 0.1  # of a difference of losses, see `FunctionBatch._check_gradient`
_LARGE = 2**22  # numbers in parameters and data, of which a trial is no longer cheap


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
            InputError: It has changed its arguments in place, which are not its own.
        """
        lent = {"params": params, **{f"data[{key!r}]": v for key, v in self.data.items()}}
        lent = {key: value for key, value in lent.items() if isinstance(value, Tensor)}
        before = {key: value._version for key, value in lent.items()}
        found = function(self.own(params), **self.data)
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
            f"parameters of shape {list(params.shape)}; got {_shape(loss)}",
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
            f"{list(params.shape)}; got {_shape(residuals)}",
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
        got = ", ".join(map(_shape, given)) if isinstance(given, tuple) else repr(type(given))
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

    def check(self) -> None:
        """Try the function on a few problems, together and alone.

        Raises:
            InputError: Data have the wrong length, a function fails on a subset of the problems, a
                loss changes with the problems beside it, or derivatives are not those of the loss.

        Warns:
            GradientWarning: Automatic gradients are not those of the loss, as where a part of it is
                detached.
        """
        require(
            self.loss is not None or self.residuals is not None or self.derivatives is not None,
            "there is nothing to minimise; give a loss, residuals or derivatives",
        )
        require(
            self.loss is None or self.residuals is None,
            "give a loss or residuals, not both: the loss of residuals is half the sum of their "
            "squares",
        )
        require(
            isinstance(self.data, Mapping),
            "data must be a dictionary of tensors, the keyword arguments of the loss, got "
            + type(self.data).__name__
            + ("; give its .data" if isinstance(getattr(self.data, "data", 0), Mapping) else ""),
        )
        for name, value in self.data.items():
            require(
                isinstance(value, Tensor) and value.shape[:1] == self.start.shape[:1],
                f"data[{name!r}] must be a tensor with the {self.num_problems} problems along its "
                f"first dimension, got {_shape(value)}",
            )
            require(
                value.layout == torch.strided,
                f"data[{name!r}] is {str(value.layout).removeprefix('torch.')}, of which problems "
                f"cannot be selected; make it dense by data[{name!r}].to_dense()",
            )
            require_selectable(f"data[{name!r}]", value)
            require(
                value.device == self.start.device,
                f"data[{name!r}] is on {value.device} and start on {self.start.device}; move both "
                f"by FunctionBatch(...).to('{self.start.device}')",
            )
        index = sorted({0, self.num_problems // 2, self.num_problems - 1})
        some = self.select(torch.tensor(index, device=self.start.device))
        # Between problems with equal starts, a loss that compares them may have no gradient.
        draw: dict[str, Any] = {"generator": stream(0, "check"), "device": "cpu"}
        away = 0.01 * torch.rand(some.start.shape, dtype=torch.float32, **draw).to(some.start)
        params = torch.where(some.start == 0, away, some.start * (1 + away))
        together = self._try(some, params)
        tolerance = torch.finfo(params.dtype).eps ** 0.5
        if self.derivatives is not None:
            with self._explained(some, params):
                some._check_derivatives(params, together)
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
        if self.derivatives is None:
            some._check_gradient(params, together)

    def _check_gradient(self, params: Tensor, seen: Observation) -> None:
        """Compare automatic gradients along two directions with differences of losses.

        A difference tells nothing where that of twice the step is another, as in rounding and on
        curves too sharp for it. In float64, if the functions take it, there is less rounding.
        """
        step = torch.finfo(params.dtype).eps ** 0.4
        batch, params, seen = self._in_float64(params) or (self, params, seen)
        eps = torch.finfo(params.dtype).eps
        uniform = torch.rand(params.shape, generator=stream(0, "direction"), device="cpu")
        drawn = (2 * uniform.round() - 1) * (0.5 + uniform)  # no two coordinates cancel
        along = torch.where(seen.grad * params < 0, -1, 1)  # all of them add up
        move = step * torch.cat((params * drawn.to(params), params * along))
        ways = torch.arange(len(params), device=params.device).repeat(4)
        params, grad, loss = (
            value.repeat(2, 1) for value in (params, seen.grad, seen.loss[:, None])
        )
        there = torch.cat((params + move, params + 2 * move))
        with self._explained(batch, params):
            losses = batch.select(ways).observe_loss(there, 0)
        loss = loss.squeeze(1)
        near, far = (losses - loss.repeat(2)).chunk(2)
        forecast = (grad * move).sum(1)
        noise = 16 * eps * loss.abs()
        clear = (near - far / 2).abs() + noise < _TELLS * near.abs()
        clear |= (near == 0) & (far == 0) & (noise < _TELLS * forecast.abs())
        wrong = clear & (
            (near - forecast).abs() > _WRONG * torch.maximum(near.abs(), forecast.abs())
        )
        if wrong.sum() > max(1, clear.sum() / 2):  # one may seem clear by chance
            warn(
                "the gradient of the loss is not that of its values, so what is found need be no "
                "minimum: is a part of it computed in NumPy, under torch.no_grad(), by .item(), "
                ".detach() or round(), or by a function with a backward of its own? If that is "
                "meant, give loss and gradient as derivatives",
                GradientWarning,
            )

    def _in_float64(self, params: Tensor) -> "tuple[FunctionBatch, Tensor, Observation] | None":
        """The batch, parameters and what is observed there in float64; None if it cannot be.

        Nor is it where functions convert to less by themselves: then a small step changes nothing.
        """
        if params.dtype == torch.float64 or widest(params.device) != torch.float64:
            return None
        batch, params = self.to(dtype=torch.float64), params.double()
        try:
            seen = batch.observe(params, 0)
            beside = batch.observe_loss(params * (1 + 1e-9), 0)
        except Exception:  # functions may bring tensors of their own
            return None
        is_narrow = torch.equal(beside, seen.loss) and bool(seen.grad.any())
        return (batch, params, seen) if seen.loss.dtype == torch.float64 and not is_narrow else None

    @undisturbed(grad=True)
    def _check_derivatives(self, params: Tensor, given: Observation) -> None:
        """Compare given losses and gradients with automatic ones, where there are any."""
        assert self.derivatives is not None
        if self.loss is not None or self.residuals is not None:
            leaf, loss = self._losses(params)
        else:
            leaf = params.clone().requires_grad_()
            loss = self._called("derivatives", self.derivatives, leaf)[0]
        if not loss.requires_grad:
            return
        tolerance = torch.finfo(params.dtype).eps ** 0.4
        own = Observation(loss.detach(), _gradient(loss, leaf).detach())
        for name, expected, found in zip(("loss", "gradient"), own, given, strict=True):
            finite = expected.isfinite() & found.isfinite()
            size = expected[finite].abs().amax().item() if finite.any() else 0.0
            require(
                torch.allclose(found[finite], expected[finite], tolerance, tolerance * size),
                f"the {name} that derivatives returns is not that of "
                f"{'the residuals' if self.residuals is not None else 'the loss'}: it differs by "
                f"{(found - expected)[finite].abs().amax().item() if size else math.nan:.2g} from "
                "what automatic differentiation finds; correct it, or leave derivatives out",
            )

    def _try(self, part: "FunctionBatch", params: Tensor) -> Observation:
        with self._explained(part, params):
            return part.observe(params, 0)

    @contextlib.contextmanager
    def _explained(self, part: "FunctionBatch", params: Tensor) -> Iterator[None]:
        """Say of an error inside a function what its likely cause is."""
        try:
            yield
        except InputError:
            raise
        except (RuntimeError, IndexError, TypeError, ValueError) as error:
            names = ("loss", "residuals", "derivatives")
            given = {name: getattr(part, name) for name in names if getattr(part, name) is not None}
            own = part.own(params)
            cause = likely_cause(error, given, own, part.data)
            among = ""
            if cause is None and self._fails_for_its_size(params):
                among = f" for {len(params)} of the {self.num_problems} problems"
                cause = (
                    "it must take any subset of them, even a single one, so what belongs to a "
                    "problem must come in `data`"
                )
            if cause is None:
                tensors = (
                    {f"params[{key!r}]": v for key, v in own.items()}
                    if isinstance(own, dict)
                    else {"params": own}
                )
                shapes = (f"{name} {list(v.shape)}" for name, v in {**tensors, **part.data}.items())
                cause = "it was called with " + ", ".join(shapes)
            text = (str(error) or type(error).__name__).splitlines()[0]
            raise InputError(f"the loss fails{among} ({text}); {cause}") from error

    def _fails_for_its_size(self, params: Tensor) -> bool:
        """Whether a function that failed for some problems takes all of them."""
        if len(params) == 1 < self.num_problems:  # it was called with three of them before
            return True
        if sum(value.numel() for value in (self.start, *self.data.values())) > _LARGE:
            return False
        try:
            self.observe(self.start, 0)
        except Exception:  # whatever it is, it is no matter of the size
            return False
        return True


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


def _shape(value: object) -> str:
    return f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
