"""The contract of a halting method as a check."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict

import torch
from torch import Tensor

from haltwise._core.errors import InputError
from haltwise.halting.methods.base import HaltingExamples, HaltingMethod
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules import (
    RETURNABLE,
    CostUnit,
    DecisionTime,
    StopRule,
    costs,
    decisions,
    total_cost,
)
from haltwise.testing.assertions import expect, seeded

__all__ = ["check_halting_method"]

_NUM_ITEMS, _NUM_STEPS = 5, 7
_PROGRESS = (None, 0.0, 0.5, 1.0)


def check_halting_method(method: HaltingMethod, *, detached: Collection[str] = ()) -> None:
    """Check what training, calibration and sessions take for granted of a halting method.

    - `outputs` are those named by `output_sizes`, for one step and for whole trajectories.
    - The posterior is a distribution over 0..T at both times of decision, whatever the outputs.
    - The objective is finite, one number an item, which depends on that item alone; its gradient
      with respect to the outputs is that of finite differences, the random numbers being fixed.
    - Rules and candidates are stop rules that need nothing but losses and the method's outputs,
      and there are candidates if they are needed.
    - A policy returns what is returnable at the cost of its unit.
    - Hazards are probabilities, and a forecast gain is above the price where the rule goes on and
      not above it where it stops.
    - The settings survive JSON.

    A method without outputs, which learns nothing, must refuse the rest by `InputError`.

    Args:
        method: In any settings.
        detached: Outputs that the objective takes as data somewhere on purpose; finite differences
            are not asked of them.

    Raises:
        AssertionError: The method breaks the contract; the message says how.

    Examples:
        >>> from haltwise.halting import StickBreaking
        >>> check_halting_method(StickBreaking())
    """
    _check_settings(method)
    if method.num_outputs == 0:
        _check_refusals(method)
        return
    examples = _examples(method)
    _check_outputs(method, examples)
    _check_posteriors(method, examples)
    _check_objective(method, examples)
    _check_gradients(method, examples, detached)
    _check_rules(method, examples)
    _check_forecasts(method, examples)
    for unit in CostUnit:
        _check_policy(method, examples, unit)


def _raw(method: HaltingMethod, *shape: int, seed: int = 0) -> Tensor:
    size = (_NUM_ITEMS, *shape, method.num_outputs)
    return 2 * torch.randn(size, generator=seeded(seed), dtype=torch.float64)


def _examples(method: HaltingMethod, seed: int = 0) -> HaltingExamples:
    """Random trajectories whose losses and prices are all above 0."""
    generator = seeded(100 + seed)
    price = torch.randn(_NUM_ITEMS, generator=generator, dtype=torch.float64).exp()
    excess = torch.randn(_NUM_ITEMS, _NUM_STEPS + 1, generator=generator, dtype=torch.float64)
    initial = method.outputs(_raw(method, seed=seed + 1), price) if method.has_initial else {}
    return HaltingExamples(
        excess=3 * excess.exp(),
        outputs=method.outputs(_raw(method, _NUM_STEPS, seed=seed), price),
        initial=initial,
        price=price,
        progress=1.0,
        generator=seeded(0),
    )


def _objective(method: HaltingMethod, examples: HaltingExamples) -> Tensor:
    """With the same random numbers at every call."""
    return method.objective(examples._replace(generator=seeded(7)))


def _check_settings(method: HaltingMethod) -> None:
    settings = json.loads(json.dumps(asdict(method)))
    again = type(method)(**settings)
    expect(again == method, f"the settings do not survive JSON: {method!r} became {again!r}")


def _check_refusals(method: HaltingMethod) -> None:
    examples = _examples(method)
    asks: dict[str, Callable[[], object]] = {
        "posterior": lambda: method.posterior({}, DecisionTime.AFTER_GRADIENT),
        "objective": lambda: method.objective(examples),
        "rule": lambda: method.rule(DecisionTime.AFTER_GRADIENT),
        "policy": lambda: method.policy(CostUnit.UPDATES),
    }
    for name, ask in asks.items():
        answer = "an answer"
        try:
            ask()
        except InputError:
            continue
        except Exception as error:
            answer = repr(error)
        raise AssertionError(
            f"a method without outputs must refuse {name} by InputError, got {answer}"
        )


def _check_outputs(method: HaltingMethod, examples: HaltingExamples) -> None:
    for shape in ((), (_NUM_STEPS,)):
        found = method.outputs(_raw(method, *shape), examples.price)
        expected = {
            name: (_NUM_ITEMS, *shape) if size == 1 else (_NUM_ITEMS, *shape, size)
            for name, size in method.output_sizes.items()
        }
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        expect(shapes == expected, f"outputs must have the shapes {expected}, got {shapes}")
    new = method.outputs(torch.zeros_like(_raw(method, _NUM_STEPS)), examples.price)
    expect(
        all(bool(value.isfinite().all()) for value in new.values()),
        "the outputs of a new halter, whose raw outputs are zero, must be finite",
    )


def _check_posteriors(method: HaltingMethod, examples: HaltingExamples) -> None:
    for time in DecisionTime:
        log_prob = method.posterior(examples.outputs, time).log_prob()
        expect(
            log_prob.shape == (_NUM_ITEMS, _NUM_STEPS + 1),
            f"the posterior {time.name} must have log_prob of shape "
            f"{[_NUM_ITEMS, _NUM_STEPS + 1]}, got {list(log_prob.shape)}",
        )
        probability = log_prob.exp()
        total = probability.sum(1)
        expect(
            bool((probability >= 0).all()) and bool(((total - 1).abs() < 1e-9).all()),
            f"the posterior {time.name} must have probabilities that sum to one, got sums "
            f"{total.tolist()}",
        )


def _check_objective(method: HaltingMethod, examples: HaltingExamples) -> None:
    for progress in _PROGRESS:
        value = _objective(method, examples._replace(progress=progress))
        expect(
            value.shape == (_NUM_ITEMS,),
            f"the objective must have the shape [{_NUM_ITEMS}], got {list(value.shape)}",
        )
        expect(
            bool(value.isfinite().all()),
            f"the objective must be finite at progress {progress}, got {value.tolist()}",
        )
        others = _examples(method, seed=10)._replace(progress=progress)
        for item in range(_NUM_ITEMS):
            found = _objective(method, _with_item(others, examples, item))[item]
            expect(
                bool((found - value[item]).abs() <= 1e-9 * (1 + value[item].abs())),
                f"the objective of item {item} depends on other items at progress {progress}",
            )


def _with_item(others: HaltingExamples, examples: HaltingExamples, item: int) -> HaltingExamples:
    """The other examples with one item in its place."""
    chosen = torch.arange(_NUM_ITEMS) == item

    def mix(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, *[1] * (one.ndim - 1)), one, other)

    def mix_all(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: mix(value, other[name]) for name, value in one.items()}

    return others._replace(
        excess=mix(examples.excess, others.excess),
        outputs=mix_all(examples.outputs, others.outputs),
        initial=mix_all(examples.initial, others.initial),
        price=mix(examples.price, others.price),
    )


def _check_gradients(
    method: HaltingMethod, examples: HaltingExamples, detached: Collection[str]
) -> None:
    unknown = set(detached) - set(method.output_sizes)
    expect(not unknown, f"detached names {sorted(unknown)}, which the method does not put out")
    names = [name for name in method.output_sizes if name not in detached]

    def value(*changed: Tensor) -> Tensor:
        outputs = {**examples.outputs, **dict(zip(names, changed, strict=True))}
        return _objective(method, examples._replace(outputs=outputs))

    leaves = [examples.outputs[name].clone().requires_grad_() for name in names]
    expect(
        value(*leaves).requires_grad,
        f"the objective does not depend on the outputs {', '.join(names)}: nothing is learned",
    )
    try:
        torch.autograd.gradcheck(value, leaves)
    except RuntimeError as error:
        raise AssertionError(
            "the gradient of the objective is not that of finite differences; name outputs that "
            f"are taken as data in `detached`: {error}"
        ) from None


def _check_rules(method: HaltingMethod, examples: HaltingExamples) -> None:
    trajectory = _trajectory(examples)
    table = costs(examples.excess, 0.1)
    for time in DecisionTime:
        candidates = method.candidates(trajectory, table, time)
        expect(
            len(candidates) > 0 or not method.needs_calibration,
            "a method that needs calibration must offer candidates",
        )
        for rule in (method.rule(time), *candidates):
            expect(isinstance(rule, StopRule), f"{rule!r} is no StopRule")
            try:
                decided = decisions(rule, trajectory)
            except InputError as error:
                raise AssertionError(
                    f"{rule!r} must need nothing but losses and the method's outputs: {error}"
                ) from None
            expect(
                bool(((decided >= 0) & (decided <= _NUM_STEPS)).all()),
                f"{rule!r} decides at {decided.tolist()} in {_NUM_STEPS} steps",
            )


def _check_forecasts(method: HaltingMethod, examples: HaltingExamples) -> None:
    trajectory = _trajectory(examples)
    for time in DecisionTime:
        hazards = method.hazards(examples.outputs, time)
        if hazards is not None:
            expect(
                hazards.shape == (_NUM_ITEMS, _NUM_STEPS)
                and bool(((hazards >= 0) & (hazards <= 1)).all()),
                f"hazards must be probabilities [{_NUM_ITEMS}, {_NUM_STEPS}], got {hazards}",
            )
        rule = method.rule(time)
        memory = rule.init(_NUM_ITEMS, trajectory.loss)
        for observation in trajectory:
            stop, memory = rule.step(observation, memory)
            gain = method.forecast_gain(observation.outputs, rule, examples.price)
            if gain is None:
                continue
            expect(
                gain.shape == (_NUM_ITEMS,),
                f"the forecast gain must have the shape [{_NUM_ITEMS}], got {list(gain.shape)}",
            )
            clear = (gain - examples.price).abs() > 1e-9 * examples.price
            expect(
                bool((stop == (gain < examples.price))[clear].all()),
                f"{rule!r} must stop where the forecast gain is below the price and nowhere else, "
                f"got gains {gain.tolist()} at prices {examples.price.tolist()} and stops "
                f"{stop.tolist()}",
            )


def _check_policy(method: HaltingMethod, examples: HaltingExamples, unit: CostUnit) -> None:
    rule, returns = method.policy(unit)
    expect(isinstance(rule, StopRule), f"the policy of {unit.value} has no stop rule but {rule!r}")
    expect(
        returns in RETURNABLE[unit],
        f"the policy returns {returns!r}, which is not returnable at the cost of {unit.value}; "
        f"choose one of {[choice.value for choice in RETURNABLE[unit]]}",
    )
    trajectory = _trajectory(examples)
    total = total_cost(trajectory, decisions(rule, trajectory), unit, returns, price=0.1)
    expect(
        bool(total.isfinite().all()), f"the policy of {unit.value} costs {total.tolist()} in all"
    )


def _trajectory(examples: HaltingExamples) -> Trajectory:
    """With losses and outputs alone."""
    return Trajectory(examples.excess, examples.excess, outputs=dict(examples.outputs))
