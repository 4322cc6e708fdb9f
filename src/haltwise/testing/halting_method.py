"""The contract of a halting method as a check."""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from haltwise._core.errors import InputError
from haltwise.halting.methods.base import HaltingExamples, HaltingMethod
from haltwise.halting.posteriors import Posterior
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
from haltwise.testing.assertions import (
    close,
    expect,
    expect_instance,
    expect_items,
    expect_shape,
    global_randomness_untouched,
    normal,
    seeded,
)

__all__ = ["check_halting_method"]

_NUM_ITEMS, _NUM_STEPS = 5, 7
_PROGRESS = (None, 0.0, 0.5, 1.0)


@global_randomness_untouched()
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
    expect_instance(method, HaltingMethod, "a halting method")
    again = type(method)(**json.loads(json.dumps(asdict(method))))
    expect(again == method, f"the settings do not survive JSON: {method!r} became {again!r}")
    examples = _examples(method)
    if method.num_outputs == 0:
        _check_refusals(method, examples)
        return
    _check_outputs(method, examples)
    for time in DecisionTime:
        _check_posterior(method, examples, time)
    _check_objective(method, examples)
    _check_gradients(method, examples, detached)
    trajectory = Trajectory(examples.excess, examples.excess, outputs=dict(examples.outputs))
    for time in DecisionTime:
        _check_rules(method, trajectory, time)
        _check_forecasts(method, trajectory, examples.price, time)
    for unit in CostUnit:
        _check_policy(method, trajectory, unit)


def _raw(method: HaltingMethod, *shape: int, seed: int = 0) -> Tensor:
    return 2 * normal(seed, _NUM_ITEMS, *shape, method.num_outputs)


def _examples(method: HaltingMethod, seed: int = 0) -> HaltingExamples:
    """Draw trajectories whose losses and prices are all above 0."""
    price = normal(100 + seed, _NUM_ITEMS).exp()
    return HaltingExamples(
        excess=3 * normal(200 + seed, _NUM_ITEMS, _NUM_STEPS + 1).exp(),
        outputs=method.outputs(_raw(method, _NUM_STEPS, seed=seed), price),
        initial=method.outputs(_raw(method, seed=seed + 1), price) if method.has_initial else {},
        price=price,
        progress=1.0,
        generator=seeded(0),
    )


def _objective(method: HaltingMethod, examples: HaltingExamples) -> Tensor:
    """Call the objective with the same random numbers every time."""
    return method.objective(examples._replace(generator=seeded(7)))


def _check_refusals(method: HaltingMethod, examples: HaltingExamples) -> None:
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
        expect_items(found, _NUM_ITEMS, "the outputs")
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


def _check_posterior(method: HaltingMethod, examples: HaltingExamples, time: DecisionTime) -> None:
    name = f"log_prob of the posterior {time.name}"
    posterior: object = method.posterior(examples.outputs, time)
    expect_instance(posterior, Posterior, f"the posterior {time.name}")
    assert isinstance(posterior, Posterior)
    log_prob = posterior.log_prob()
    expect_shape(log_prob, (_NUM_ITEMS, _NUM_STEPS + 1), name)
    total = log_prob.exp().sum(1)
    expect(
        close(total, torch.ones_like(total), 1e-9),
        f"{name} must be of probabilities that sum to one, got sums {total.tolist()}",
    )


def _check_objective(method: HaltingMethod, examples: HaltingExamples) -> None:
    for progress in _PROGRESS:
        value = _objective(method, examples._replace(progress=progress))
        expect_shape(value, (_NUM_ITEMS,), "the objective")
        expect(
            value.isfinite().all(),
            f"the objective must be finite at progress {progress}, got {value.tolist()}",
        )
        others = _examples(method, seed=10)._replace(progress=progress)
        for item in range(_NUM_ITEMS):
            chosen = torch.arange(_NUM_ITEMS) == item

            def mix(one: Any, other: Any, chosen: Tensor = chosen) -> Any:
                if not isinstance(one, Tensor):
                    return other
                return torch.where(chosen.view(-1, *[1] * (one.ndim - 1)), one, other)

            found = _objective(method, tree_map(mix, examples, others))
            expect(
                close(found[item], value[item], 1e-9, 1.0),
                f"the objective of item {item} depends on other items at progress {progress}",
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


def _check_rules(method: HaltingMethod, trajectory: Trajectory, time: DecisionTime) -> None:
    candidates = method.candidates(trajectory, costs(trajectory.excess, 0.1), time)
    expect_instance(candidates, Sequence, "what candidates returns")
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
            ((decided >= 0) & (decided <= _NUM_STEPS)).all(),
            f"{rule!r} decides at {decided.tolist()} in {_NUM_STEPS} steps",
        )


def _check_forecasts(
    method: HaltingMethod, trajectory: Trajectory, price: Tensor, time: DecisionTime
) -> None:
    hazards = method.hazards(trajectory.outputs, time)
    if hazards is not None:
        expect_shape(hazards, (_NUM_ITEMS, _NUM_STEPS), "hazards")
        expect(
            ((hazards >= 0) & (hazards <= 1)).all(), f"hazards must be probabilities, got {hazards}"
        )
    rule = method.rule(time)
    memory = rule.init(_NUM_ITEMS, trajectory.loss)
    for observation in trajectory:
        stop, memory = rule.step(observation, memory)
        gain = method.forecast_gain(observation.outputs, rule, price)
        if gain is None:
            continue
        expect_shape(gain, (_NUM_ITEMS,), "the forecast gain")
        clear = (gain - price).abs() > 1e-9 * price
        expect(
            (stop == (gain < price))[clear].all(),
            f"{rule!r} must stop where the forecast gain is below the price and nowhere else, got "
            f"gains {gain.tolist()} at prices {price.tolist()} and stops {stop.tolist()}",
        )


def _check_policy(method: HaltingMethod, trajectory: Trajectory, unit: CostUnit) -> None:
    rule, returns = method.policy(unit)
    expect(isinstance(rule, StopRule), f"the policy of {unit.value} has no stop rule but {rule!r}")
    expect(
        returns in RETURNABLE[unit],
        f"the policy returns {returns!r}, which is not returnable at the cost of {unit.value}; "
        f"choose one of {[choice.value for choice in RETURNABLE[unit]]}",
    )
    total = total_cost(trajectory, decisions(rule, trajectory), unit, returns, price=0.1)
    expect(total.isfinite().all(), f"the policy of {unit.value} costs {total.tolist()} in all")
