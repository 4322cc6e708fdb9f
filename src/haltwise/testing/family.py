"""The contract of a family of problems as a check."""

import json
from dataclasses import asdict

import torch
from torch import Tensor

from haltwise.tasks import Observation, TaskBatch, TaskFamily
from haltwise.testing.assertions import (
    close,
    expect,
    expect_alike,
    expect_instance,
    expect_items,
    expect_shape,
    global_randomness_untouched,
    normal,
    seeded,
    tensors,
    unchanged,
)

__all__ = ["check_family"]

# Large steps are exact for smooth losses, small ones miss kinks.
_STEPS = (1e-3, 1e-5, 1e-7, 1e-8, 1e-9)
_STENCIL = {1: 8 / 12, -1: -8 / 12, 2: -1 / 12, -2: 1 / 12}  # of the five-point difference
_OTHER_STEPS = (0, 2, 10**6)


@global_randomness_untouched()
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
    expect(num_problems >= 3, f"num_problems must be at least 3, got {num_problems}")
    expect_instance(family, TaskFamily, "a family")
    _check_settings(family)
    _check_draw(family, num_problems)
    batch = _sample(family, num_problems)
    # Not the starts, which may be special points.
    params = batch.start + 0.1 * normal(1, *batch.start.shape)
    _check_shapes(batch, params)
    _check_generator(family, batch)
    _check_purity(family, batch, params)
    _check_observations(batch, params)
    _check_subsets(batch, params)
    _check_gradients(batch, params)
    if batch.minimizer is not None:
        _check_minimizer(batch, batch.minimizer)
    _check_single_precision(family, batch, params)


def _sample(family: TaskFamily, num_problems: int, dtype: torch.dtype = torch.float64) -> TaskBatch:
    return family.sample(num_problems, seeded(0), dtype=dtype)


def _seen(batch: TaskBatch, params: Tensor, step: int) -> dict[str, Tensor]:
    score = batch.score(params, step).excess
    return batch.evaluate(params, step)._asdict() | {"the excess of `score`": score}


def _check_settings(family: TaskFamily) -> None:
    title = type(family).__name__
    expect(
        type(family).sample is TaskFamily.sample,
        f"{title} must not override `sample`; draw problems by `_sample`, in float64",
    )
    try:
        again = type(family)(**json.loads(json.dumps(asdict(family))))
    except TypeError as error:
        raise AssertionError(
            f"the fields of {title} must be JSON values from which it is made again ({error})"
        ) from error
    expect(again == family, f"{title} is another family when made again from its fields in JSON")


def _check_draw(family: TaskFamily, num_problems: int) -> None:
    drawn = family._sample(num_problems, seeded(0))
    expect_instance(drawn, TaskBatch, "what `_sample` draws")
    expect_shape(drawn.start, [num_problems, family.dim], "start")
    expect(
        drawn.start.dtype == torch.float64,
        f"`_sample` must draw starts in torch.float64, got {drawn.start.dtype}",
    )


def _check_shapes(batch: TaskBatch, params: Tensor) -> None:
    num_problems = len(params)
    expect_items(tensors(batch), num_problems, "the batch")
    for name, value in tensors(batch).items():
        expect(value.isfinite().all(), f"{name} holds NaN or infinity")
    observed: object = batch.observe(params, 0)
    expect_instance(observed, Observation, "what `observe` returns")
    for name, value in _seen(batch, params, 0).items():
        expect_shape(value, params.shape if "grad" in name else [num_problems], name)
        expect(value.isfinite().all(), f"{name} is not finite near the start")
    expect_shape(batch.reference_loss, [num_problems], "reference_loss")


def _check_generator(family: TaskFamily, batch: TaskBatch) -> None:
    generator = seeded(0)
    before = generator.get_state()
    again = tensors(family.sample(batch.num_problems, generator, dtype=torch.float64))
    expect_alike(again, tensors(batch), "equal generators give problems that differ in {}")
    expect(
        not torch.equal(generator.get_state(), before),
        "drawing problems must advance the generator, or all batches are equal",
    )
    loss = batch.observe_loss(batch.start + 0.1 * normal(1, 1, batch.dim), 0)
    expect(len(loss.unique()) > 1, "all problems of a batch are equal")


def _check_purity(family: TaskFamily, batch: TaskBatch, params: Tensor) -> None:
    with (
        unchanged("evaluate changes the parameters that it is given", {"params": params}),
        unchanged("evaluate changes {} of the batch", batch),
    ):
        batch.evaluate(params, 1)
    first = _seen(batch, params, 1)
    expect_alike(
        _seen(_sample(family, len(params)), params, 1),
        first,
        "{} differs when it is computed again for the same problems, parameters and step",
    )
    for step in _OTHER_STEPS:
        expect(
            close(batch.score(params, step).excess, first["the excess of `score`"]),
            "the excess of `score` depends on the step; it must be a function of the parameters",
        )
    losses = [batch.observe(params, step).loss for step in _OTHER_STEPS]
    varies = not all(close(loss, first["loss"]) for loss in losses)
    does, wanted = ("depends", "true") if varies else ("does not depend", "false")
    expect(
        batch.stochastic == varies,
        f"the observed loss {does} on the step; make `stochastic` {wanted}",
    )


def _check_observations(batch: TaskBatch, params: Tensor) -> None:
    seen, scored = batch.evaluate(params, 2), batch.score(params, 2)
    observed = batch.observe(params, 2)
    for method, other in (("evaluate", seen), ("score", scored)):
        expect_alike(
            {"loss": other.loss, "grad": other.grad},
            observed._asdict(),
            f"{{}} of `{method}` differs from that of `observe`",
        )
    expect(
        close(batch.observe_loss(params, 2), observed.loss, 1e-12),
        "`observe_loss` differs from the loss of `observe`",
    )
    if not batch.stochastic:
        size = seen.loss.abs()
        expect(
            close(seen.excess, seen.loss - batch.reference_loss, 1e-9, size),
            "the excess of `evaluate` is not the loss minus reference_loss",
        )
        expect(
            close(scored.excess, seen.excess, 1e-9, size),
            "the excess of `score` differs from that of `evaluate`",
        )


def _check_subsets(batch: TaskBatch, params: Tensor) -> None:
    whole = _seen(batch, params, 1)
    index = torch.tensor([2, 0, 2])
    chosen = batch.select(index)
    expect(
        close(chosen.reference_loss, batch.reference_loss[index]),
        "`select` gives other reference losses",
    )
    expect_alike(
        _seen(chosen, params[index], 1),
        {name: value[index] for name, value in whole.items()},
        "{} of selected problems differs from theirs in the whole batch; per-problem data must be "
        "tensor fields with the problems along the first dimension",
        1e-9,
        whole["loss"].abs().amax(),
    )
    poisoned = params.clone()
    poisoned[1] = torch.nan
    others = torch.arange(len(params)) != 1
    expect_alike(
        {name: value[others] for name, value in batch.evaluate(poisoned, 1)._asdict().items()},
        {name: value[others] for name, value in batch.evaluate(params, 1)._asdict().items()},
        "{} of a problem changes with the parameters of another",
    )


def _check_gradients(batch: TaskBatch, params: Tensor) -> None:
    seen = batch.evaluate(params, 3)
    grads = torch.stack([seen.grad, seen.excess_grad])
    for seed in range(2, 5):
        direction = normal(seed, *params.shape)
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
            expect(
                error[worst] <= allowed[worst],
                f"{name}: along a random direction it gives {value[worst]:.6g}, which differs from "
                f"finite differences by {error[worst]:.3g}",
            )


def _difference(batch: TaskBatch, params: Tensor, offset: Tensor) -> Tensor:
    """Compute five-point differences of loss and excess, shape [2, B]."""
    total = params.new_zeros(2, len(params))
    for place, factor in _STENCIL.items():
        seen = batch.evaluate(params + place * offset, 3)
        total += factor * torch.stack([seen.loss, seen.excess])
    return total


def _check_minimizer(batch: TaskBatch, minimizer: Tensor) -> None:
    best, start = batch.evaluate(minimizer, 0), batch.evaluate(batch.start, 0)
    rounding = 1e-13 * batch.reference_loss.abs()
    expect(
        (best.excess.abs() <= 1e-12 * start.excess.abs() + rounding).all(),
        f"the excess at the minimizer must be 0, got {best.excess.abs().max():.3g}",
    )
    expect(
        (best.excess_grad.norm(dim=1) <= 1e-8 * start.excess_grad.norm(dim=1) + rounding).all(),
        f"the excess must have gradient 0 at the minimizer, got {best.excess_grad.abs().max():.3g}",
    )
    for exponent in range(-6, 3):
        offset = 10.0**exponent * normal(exponent + 20, *minimizer.shape)
        expect(
            (batch.evaluate(minimizer + offset, 0).excess >= best.excess - rounding).all(),
            "there is a point with a lower excess than the minimizer",
        )


def _check_single_precision(family: TaskFamily, batch: TaskBatch, params: Tensor) -> None:
    single = _sample(family, len(params), torch.float32).evaluate(params.float(), 1)
    exact = batch.evaluate(params, 1)
    for name, value, reference in zip(exact._fields, single, exact, strict=True):
        expect(
            value.dtype == torch.float32,
            f"{name} of a float32 batch must be of torch.float32, got {value.dtype}",
        )
        scale = reference.norm(dim=1, keepdim=True) if reference.ndim == 2 else exact.loss.abs()
        expect(
            close(value, reference, 1e-3, scale),
            f"{name} in float32 is far from that in float64: {value.flatten()[:1].tolist()} and "
            f"{reference.flatten()[:1].tolist()}",
        )
