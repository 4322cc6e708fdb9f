"""The contract of a family of problems."""

import json
from collections.abc import Iterator
from dataclasses import asdict, fields

import torch
from torch import Tensor

from haltwise._core.errors import InputError
from haltwise.tasks import TaskBatch, TaskFamily

__all__ = ["check_family"]

_STEPS = (
    1e-3,
    1e-5,
    1e-7,
    1e-8,
    1e-9,
)  # large ones are exact for smooth losses, small ones miss kinks
_STENCIL = {1: 8 / 12, -1: -8 / 12, 2: -1 / 12, -2: 1 / 12}  # of the five-point difference
_OTHER_STEPS = (0, 2, 10**6)


def check_family(family: TaskFamily, *, num_problems: int = 4) -> None:
    """Check that a family keeps the contract of `TaskFamily` and `TaskBatch`.

    Its problems are drawn and evaluated near their starts, in float64 on the CPU, and compared
    with finite differences, with themselves in other company, and with float32.

    Args:
        family: Any family.
        num_problems: B, at least 3.

    Raises:
        AssertionError: The family breaks the contract; the message says how.

    Examples:
        >>> from haltwise.tasks import family
        >>> check_family(family("quadratic-10d"))
    """
    _ensure(num_problems >= 3, f"num_problems must be at least 3, got {num_problems}")
    _check_settings(family)
    batch = _sample(family, num_problems)
    # Not the starts, which may be special points.
    params = batch.start + 0.1 * _normal(batch, seed=1)
    _check_shapes(family, batch, params)
    _check_generator(family, batch, num_problems)
    _check_purity(family, batch, params)
    _check_observations(batch, params)
    _check_subsets(batch, params)
    _check_gradients(batch, params)
    _check_minimizer(batch)
    _check_single_precision(family, batch, params)


def _ensure(condition: bool | Tensor, sentence: str) -> None:
    if not bool(condition):
        raise AssertionError(sentence)


def _sample(family: TaskFamily, num_problems: int, dtype: torch.dtype = torch.float64) -> TaskBatch:
    return family.sample(num_problems, torch.Generator().manual_seed(0), dtype=dtype)


def _normal(batch: TaskBatch, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch.start.shape, generator=generator, dtype=torch.float64)


def _tensors(batch: TaskBatch) -> Iterator[tuple[str, Tensor]]:
    for name in (field.name for field in fields(batch)):
        value = getattr(batch, name)
        entries = value.items() if isinstance(value, dict) else [("", value)]
        for key, entry in entries:
            if isinstance(entry, Tensor):
                yield f"{name}[{key!r}]" if key else name, entry


def _check_settings(family: TaskFamily) -> None:
    title = type(family).__name__
    try:
        again = type(family)(**json.loads(json.dumps(asdict(family))))
    except TypeError as error:
        raise AssertionError(
            f"the fields of {title} must be JSON values from which it is made again ({error})"
        ) from error
    _ensure(again == family, f"{title} is another family when made again from its fields in JSON")


def _check_shapes(family: TaskFamily, batch: TaskBatch, params: Tensor) -> None:
    num_problems = len(params)
    expected = [num_problems, family.dim]
    try:
        _sample(family, 0)
    except InputError:
        pass
    else:
        raise AssertionError("a batch of 0 problems must be refused; do not override `sample`")
    _ensure(
        list(batch.start.shape) == expected,
        f"start must have shape [B, D] = {expected}, got {list(batch.start.shape)}",
    )
    for name, value in _tensors(batch):
        _ensure(
            value.shape[:1] == (num_problems,),
            f"{name} must have the {num_problems} problems along its first dimension, got shape "
            f"{list(value.shape)}",
        )
        _ensure(value.isfinite().all(), f"{name} holds NaN or infinity")
    seen = batch.evaluate(params, 0)
    shapes = {"loss": 1, "grad": 2, "excess": 1, "excess_grad": 2}
    for name, num_dims in shapes.items():
        value = getattr(seen, name)
        _ensure(
            list(value.shape) == expected[:num_dims],
            f"{name} must have shape {expected[:num_dims]}, got {list(value.shape)}",
        )
        _ensure(value.isfinite().all(), f"{name} is not finite near the start")
    _ensure(
        list(batch.reference_loss.shape) == expected[:1],
        f"reference_loss must have shape {expected[:1]}, got {list(batch.reference_loss.shape)}",
    )


def _check_generator(family: TaskFamily, batch: TaskBatch, num_problems: int) -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    again = family.sample(num_problems, generator, dtype=torch.float64)
    single = dict(_tensors(_sample(family, num_problems, torch.float32)))
    for (name, value), (_, other) in zip(_tensors(batch), _tensors(again), strict=True):
        _ensure(torch.equal(value, other), f"equal generators give problems that differ in {name}")
        _ensure(
            torch.equal(value.to(single[name].dtype), single[name]),
            f"problems drawn in float32 differ in {name}; draw in float64 and let `sample` convert",
        )
    _ensure(
        not torch.equal(generator.get_state(), before),
        "drawing problems must advance the generator, or all batches are equal",
    )
    loss = batch.observe_loss(batch.start + 0.1 * _normal(batch, seed=1)[:1], 0)
    _ensure(len(loss.unique()) > 1, "all problems of a batch are equal")


def _check_purity(family: TaskFamily, batch: TaskBatch, params: Tensor) -> None:
    copy = params.clone()
    before = {name: value.clone() for name, value in _tensors(batch)}
    first = batch.evaluate(params, 1)
    _ensure(torch.equal(copy, params), "evaluate changes the parameters that it is given")
    for name, value in _tensors(batch):
        _ensure(torch.equal(before[name], value), f"evaluate changes {name} of the batch")
    again = _sample(family, len(params)).evaluate(params, 1)
    for name, one, other in zip(first._fields, first, again, strict=True):
        _ensure(
            torch.equal(one, other),
            f"{name} differs when it is computed again for the same problems, parameters and step",
        )
    losses = [batch.observe(params, step).loss for step in _OTHER_STEPS]
    varies = not all(torch.equal(loss, first.loss) for loss in losses)
    _ensure(
        batch.stochastic or not varies,
        "the observed loss depends on the step; make `stochastic` true",
    )
    _ensure(
        varies or not batch.stochastic,
        "the observed loss does not depend on the step; make `stochastic` false",
    )
    excess = batch.score(params, 1).excess
    _ensure(
        all(torch.equal(batch.score(params, step).excess, excess) for step in _OTHER_STEPS),
        "the excess of `score` depends on the step; it must be a function of the parameters",
    )


def _check_observations(batch: TaskBatch, params: Tensor) -> None:
    seen, scored = batch.evaluate(params, 2), batch.score(params, 2)
    observed = batch.observe(params, 2)
    for method, other in (("evaluate", seen), ("score", scored)):
        for name in ("loss", "grad"):
            _ensure(
                torch.equal(getattr(other, name), getattr(observed, name)),
                f"{name} of `{method}` differs from that of `observe`",
            )
    _ensure(
        _close(batch.observe_loss(params, 2), observed.loss, 1e-12),
        "`observe_loss` differs from the loss of `observe`",
    )
    if not batch.stochastic:
        _ensure(
            _close(seen.excess, seen.loss - batch.reference_loss, 1e-9, seen.loss),
            "the excess of `evaluate` is not the loss minus reference_loss",
        )
        _ensure(
            _close(scored.excess, seen.excess, 1e-9, seen.loss),
            "the excess of `score` differs from that of `evaluate`",
        )


def _check_subsets(batch: TaskBatch, params: Tensor) -> None:
    whole = batch.evaluate(params, 1)
    index = torch.tensor([2, 0, 2])
    chosen = batch.select(index)
    _ensure(
        torch.equal(chosen.reference_loss, batch.reference_loss[index]),
        "`select` gives other reference losses",
    )
    part, excess = chosen.evaluate(params[index], 1), chosen.score(params[index], 1).excess
    expected = whole._asdict() | {"score": batch.score(params, 1).excess}
    for name, value in (part._asdict() | {"score": excess}).items():
        _ensure(
            _close(value, expected[name][index], 1e-9, whole.loss.abs().amax()),
            f"{name} of selected problems differs from theirs in the whole batch; per-problem data "
            "must be tensor fields with the problems along the first dimension",
        )
    poisoned = params.clone()
    poisoned[1] = torch.nan
    others = torch.arange(len(params)) != 1
    after = batch.evaluate(poisoned, 1)
    for name, value in after._asdict().items():
        _ensure(
            torch.equal(value[others], expected[name][others]),
            f"{name} of a problem changes with the parameters of another",
        )


def _check_gradients(batch: TaskBatch, params: Tensor) -> None:
    seen = batch.evaluate(params, 3)
    grads = torch.stack([seen.grad, seen.excess_grad])
    for seed in range(2, 5):
        direction = _normal(batch, seed)
        slopes = (grads * direction).sum(2)
        tolerance = 1e-7 * grads.norm(dim=2) * direction.norm(dim=1)
        errors = torch.full_like(slopes, torch.inf)
        for step in _STEPS:
            difference = _difference(batch, params, step * direction) / step
            errors = torch.minimum(errors, (difference - slopes).abs())
            if (errors <= tolerance).all():
                break
        names = ("grad is not the gradient of loss", "excess_grad is not the gradient of excess")
        for name, value, error, allowed in zip(names, slopes, errors, tolerance, strict=True):
            worst = int((error - allowed).argmax())
            _ensure(
                error[worst] <= allowed[worst],
                f"{name}: along a random direction it gives {value[worst]:.6g}, which differs from "
                f"finite differences by {error[worst]:.3g}",
            )


def _difference(batch: TaskBatch, params: Tensor, offset: Tensor) -> Tensor:
    """Five-point differences of loss and excess, shape [2, B]."""
    total = params.new_zeros(2, len(params))
    for place, factor in _STENCIL.items():
        seen = batch.evaluate(params + place * offset, 3)
        total += factor * torch.stack([seen.loss, seen.excess])
    return total


def _check_minimizer(batch: TaskBatch) -> None:
    minimizer = batch.minimizer
    if minimizer is None:
        return
    best, start = batch.evaluate(minimizer, 0), batch.evaluate(batch.start, 0)
    rounding = 1e-13 * batch.reference_loss.abs()
    _ensure(
        (best.excess.abs() <= 1e-12 * start.excess.abs() + rounding).all(),
        f"the excess at the minimizer must be 0, got {best.excess.abs().max():.3g}",
    )
    _ensure(
        (best.excess_grad.norm(dim=1) <= 1e-8 * start.excess_grad.norm(dim=1) + rounding).all(),
        f"the excess must have gradient 0 at the minimizer, got {best.excess_grad.abs().max():.3g}",
    )
    for exponent in range(-6, 3):
        offset = 10.0**exponent * _normal(batch, seed=exponent + 20)
        _ensure(
            (batch.evaluate(minimizer + offset, 0).excess >= best.excess - rounding).all(),
            "there is a point with a lower excess than the minimizer",
        )


def _check_single_precision(family: TaskFamily, batch: TaskBatch, params: Tensor) -> None:
    single = _sample(family, len(params), torch.float32)
    found, exact = single.evaluate(params.float(), 1), batch.evaluate(params, 1)
    tensors = {**dict(_tensors(single)), **found._asdict()}
    for name, value in tensors.items():
        _ensure(
            not value.is_floating_point() or value.dtype == torch.float32,
            f"{name} of a float32 batch must be of torch.float32, got {value.dtype}",
        )
    for name, value in found._asdict().items():
        reference = getattr(exact, name)
        size = reference.norm(dim=1, keepdim=True) if reference.dim() == 2 else exact.loss
        _ensure(
            _close(value.double(), reference, 1e-3, size),
            f"{name} in float32 is far from that in float64: {value.flatten()[:1].tolist()} and "
            f"{reference.flatten()[:1].tolist()}",
        )


def _close(value: Tensor, expected: Tensor, tolerance: float, size: Tensor | None = None) -> bool:
    """Whether two tensors agree up to a share of `expected` and of `size`."""
    scale = expected.abs() if size is None else expected.abs() + size.abs()
    return bool(((value - expected).abs() <= tolerance * scale).all())
