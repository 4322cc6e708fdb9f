"""The contract of an engine as a check."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from haltwise._core.tensors import map_tensors
from haltwise.engines import Engine, EngineObservation, Memory, Point, Proposal
from haltwise.engines.process import try_step
from haltwise.tasks.function import FunctionBatch
from haltwise.testing.assertions import (
    expect,
    expect_alike,
    expect_instance,
    expect_items,
    expect_kinds,
    expect_shape,
    global_randomness_untouched,
    normal,
    tensors,
    unchanged,
)

__all__ = ["check_engine"]

_NUM_ITEMS, _NUM_ROWS, _NUM_STEPS = 5, 9, 4
_EXACT = 1e-9  # relative; of float64 numbers that were summed in another order
_SINGLE = 1e-2  # relative; of float32 numbers after a few steps


@global_randomness_untouched()
def check_engine(engine: Engine, *, dim: int = 3) -> None:
    """Check that an engine keeps the contract of `haltwise.engines.Engine`.

    On 5 small problems that are smooth sums of squares, in float64:

    - every entry of the memory has the problems along dimension 0, and keeps its shape and dtype;
    - losses and gradients are those of the problems;
    - moves are [M, D], slopes and gains [M], in the dtype of the problems, and an engine that says
      that it is monotone forecasts gains above 0;
    - `init`, `propose` and `learn` change nothing in place and repeat bit for bit;
    - problems are independent: a permutation permutes, a selection of them runs as it would alone,
      and a problem that is not finite leaves the others as they are;
    - a step to where the loss or an entry of the gradient is not finite is never taken;
    - an engine that says that it is monotone takes no step that raises a loss, and a few steps
      lower all;
    - float32 agrees with float64, and no global generator of random numbers is touched.

    Args:
        engine: The engine.
        dim: D, the number of parameters of each problem.

    Raises:
        AssertionError: Naming the engine and the promise that it breaks.

    Examples:
        >>> from haltwise.engines import Proposal
        >>> class Careless(Engine):
        ...     def init(self, point, seen):
        ...         return {}
        ...     def propose(self, point, memory):
        ...         slope = -point.grad.square().sum(1)
        ...         return Proposal(-1e-3 * point.grad, slope, -1e-3 * slope, slope > 0)
        ...     def learn(self, point, proposal, seen, memory):
        ...         return torch.ones_like(point.loss).bool(), memory
        >>> check_engine(Careless())
        Traceback (most recent call last):
        AssertionError: Careless: a step to where the loss is nan is taken
    """
    expect_instance(engine, Engine, "an engine")
    expect(dim >= 1, f"dim must be at least 1, got {dim}")
    batch = _problems(dim)
    try:
        _check_steps(engine, batch)
        whole = _run(engine, batch)
        for message, index in (
            ("a permutation of the problems does not permute steps", [3, 1, 4, 0, 2]),
            ("selected problems do not run as they would alone", [4, 1]),
            ("a problem does not run as it would alone", [2]),
        ):
            chosen = torch.tensor(index)
            alone = _run(engine, batch.select(chosen))
            own = {name: value[chosen] for name, value in whole.items()}
            expect_alike(alone, own, message, _EXACT)
        poisoned, others = batch.data["target"].clone(), torch.tensor([0, 1, 3, 4])
        poisoned[2] = torch.nan
        spoiled = FunctionBatch(
            batch.start,
            residuals=batch.residuals,
            data={**batch.data, "target": poisoned},
        )
        expect_alike(
            {name: value[others] for name, value in _run(engine, spoiled).items()},
            {name: value[others] for name, value in whole.items()},
            "a problem whose loss is NaN changes the steps of others",
            _EXACT,
        )
        single = _run(engine, map_tensors(batch, Tensor.float))
        expect_alike(single, whole, "float32 and float64 disagree", _SINGLE)
    except AssertionError as error:
        raise AssertionError(f"{type(engine).__name__}: {error}") from error


def _problems(dim: int) -> FunctionBatch:
    def residuals(params: Tensor, design: Tensor, target: Tensor) -> Tensor:
        return (design @ params.unsqueeze(-1)).squeeze(-1).tanh() - target

    data = {
        "design": normal(1, _NUM_ITEMS, _NUM_ROWS, dim),
        "target": normal(2, _NUM_ITEMS, _NUM_ROWS).tanh(),
    }
    return FunctionBatch(0.1 * normal(3, _NUM_ITEMS, dim), residuals=residuals, data=data)


def _begin(engine: Engine, batch: FunctionBatch) -> tuple[Point, Memory]:
    seen = engine.observe_first(batch)
    point = Point(batch.start, seen.loss, seen.grad)
    return point, engine.init(point, seen)


def _run(engine: Engine, batch: FunctionBatch) -> dict[str, Tensor]:
    """Points after each of a few steps, shapes [B, T, ...]."""
    point, memory = _begin(engine, batch)
    points = []
    for _ in range(_NUM_STEPS):
        tried = try_step(engine, batch, point, engine.propose(point, memory), memory)
        point, memory = tried.after, tried.memory
        points.append(point)
    pairs = zip(Point._fields, zip(*points, strict=True), strict=True)
    return {name: torch.stack(values, 1) for name, values in pairs}


def _check_steps(engine: Engine, batch: FunctionBatch) -> None:
    point, memory = _begin(engine, batch)
    expect_instance(memory, dict, "what init returns")
    expect_items(memory, _NUM_ITEMS, "the memory")
    expect_alike(
        {"loss": point.loss, "grad": point.grad},
        batch.observe(batch.start, 0)._asdict(),
        "the {} that observe_first gives is not that of the problems",
        _EXACT,
        1.0,
    )
    first = point.loss
    for _ in range(_NUM_STEPS):
        before = {**point._asdict(), "memory": memory}
        with unchanged("propose changes its arguments in place", before):
            proposal = engine.propose(point, memory)
        expect_instance(proposal, Proposal, "what propose returns")
        expect_alike(
            tensors(engine.propose(point, memory)),
            tensors(proposal),
            "propose does not repeat: it must depend on its arguments alone",
        )
        _check_proposal(engine, proposal, point)
        trial = point.params + proposal.move
        seen = engine.observe(batch, trial)
        expect_alike(
            {"loss": seen.loss, "grad": seen.grad},
            batch.observe(trial, 0)._asdict(),
            "the {} that observe gives is not that of the problems",
            _EXACT,
            1.0,
        )
        given = {**before, "proposal": proposal._asdict(), "seen": seen._asdict()}
        with unchanged("learn changes its arguments in place", given):
            learned = engine.learn(point, proposal, seen, memory)
        expect(
            isinstance(learned, tuple) and len(learned) == 2,
            "learn must return where the step is taken and the memory for the next",
        )
        taken, after = learned
        expect(
            isinstance(taken, Tensor)
            and taken.dtype == torch.bool
            and taken.shape == point.loss.shape,
            f"learn must say by a bool tensor of shape [{_NUM_ITEMS}] where the step is taken, got "
            f"{taken!r}",
        )
        again = engine.learn(point, proposal, seen, memory)
        expect_alike(
            {"taken": again[0], **again[1]},
            {"taken": taken, **after},
            "learn does not repeat: it must depend on its arguments alone",
        )
        expect_kinds(after, memory, "the memory")
        for what, found in _impossible(seen):
            refused = ~engine.learn(point, proposal, found, memory)[0]
            expect(refused.all(), f"a step to where {what} is taken")
        higher = seen._replace(loss=point.loss + 1)
        refused = ~engine.learn(point, proposal, higher, memory)[0]
        expect(
            not engine.is_monotone or bool(refused.all()),
            "a step that raises the loss is taken, though the engine is monotone",
        )
        lower = seen.loss <= point.loss * (1 + _EXACT)
        expect(
            not engine.is_monotone or bool((lower | ~taken).all()),
            "a step that raises the loss is taken, though the engine is monotone",
        )
        point, memory = point.moved(trial, seen, taken), after
    lowered = not engine.is_monotone or bool((point.loss < first).all())
    expect(lowered, "a few steps do not lower the losses")


def _impossible(seen: EngineObservation) -> Iterator[tuple[str, EngineObservation]]:
    """The same where something is not finite, and what, in words."""
    for value in (math.nan, -math.inf, math.inf):
        yield f"the loss is {value}", seen._replace(loss=torch.full_like(seen.loss, value))
    grad = seen.grad.clone()
    grad[:, 0] = torch.nan
    yield "an entry of the gradient is nan", seen._replace(grad=grad)


def _check_proposal(engine: Engine, proposal: Proposal, point: Point) -> None:
    expect_shape(proposal.move, point.params.shape, "move")
    for name in ("slope", "gain", "is_known"):
        expect_shape(getattr(proposal, name), point.loss.shape, name)
    for name in ("move", "slope", "gain"):
        found = getattr(proposal, name).dtype
        expect(found == point.loss.dtype, f"{name} must be {point.loss.dtype}, got {found}")
    expect(proposal.is_known.dtype == torch.bool, "is_known must be bool")
    expect((proposal.slope < 0).all(), "a slope is not below 0 where the gradient is not 0")
    forecast = not engine.is_monotone or bool((proposal.gain > 0).all())
    expect(forecast, "a gain is not above 0, though the engine is monotone")
