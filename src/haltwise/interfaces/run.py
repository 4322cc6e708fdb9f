"""Any process in one call: each item runs until another step is not worth its price."""

from pathlib import Path

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise.halting.session import HaltingSession
from haltwise.models.files import placed
from haltwise.models.halting_model import HaltingModel
from haltwise.models.loading import load_halting
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.base import Process
from haltwise.rollout.early_exit import Execution, run_until_halted
from haltwise.stop_rules import RETURNABLE, CostUnit, StopPolicy, StopRule

__all__ = ["price_of_each", "run", "stop_policy"]


@torch.no_grad()
def run(
    process: Process,
    model: str | Path | HaltingModel | OptimizerModel,
    stop: StopRule | StopPolicy | None = None,
    *,
    price: float | Tensor | None = None,
    max_steps: int | None = None,
) -> Execution:
    """Advance B items side by side; each leaves the batch as soon as it halts.

    Args:
        process: B items.
        model: A run directory, a weights file or the model itself, trained on such processes.
        stop: When to stop, as a policy or as a rule; the model's own policy if None.
        price: What a step must earn, in units of the loss, one for all or [B]; what the model was
            trained for if None.
        max_steps: Steps an item may take at most; those it was trained on if None.

    Returns:
        One outcome per item; an item that goes wrong disturbs no other.

    Raises:
        InputError: A price or a number of steps is impossible, or there is no such model.

    Examples:
        >>> from haltwise.processes import OptimizationProcess
        >>> from haltwise.tasks import family
        >>> from haltwise.models import load
        >>> batch = family("regression-2d").sample(10, torch.Generator().manual_seed(0))
        >>> model = load("regression-2d")
        >>> run(OptimizationProcess(model.rule, batch), model).result.shape
        torch.Size([10, 2])
    """
    if isinstance(model, OptimizerModel):
        model = model.halting
    halting = model if isinstance(model, HaltingModel) else load_halting(model)
    first = process.result(process.init())
    like = first if first.is_floating_point() else torch.zeros((), device=first.device)
    session = HaltingSession(
        stop_policy(halting, stop, halting.card.unit),
        price_of_each(halting, price, process.num_items, like),
        placed(halting, like),
    )
    return run_until_halted(
        process, session, halting.card.horizon if max_steps is None else max_steps
    )


def stop_policy(
    model: HaltingModel, stop: StopRule | StopPolicy | None, unit: CostUnit
) -> StopPolicy:
    """The policy meant by `stop`; of a rule, the unit's default iterate is returned."""
    if stop is None:
        return model.policy(unit)
    if isinstance(stop, StopPolicy):
        return stop
    require(
        isinstance(stop, StopRule),
        f"stop must be a StopRule, a StopPolicy or None, got {stop!r}; for a number of steps give "
        "max_steps or haltwise.stop_rules.FixedBudget",
    )
    return StopPolicy(stop, RETURNABLE[unit][0])


def price_of_each(
    model: HaltingModel, price: float | Tensor | None, num_items: int, like: Tensor
) -> Tensor:
    """The price of every item, shape [B]; the model's own if None."""
    price = model.card.price if price is None else price
    given = torch.as_tensor(price, dtype=like.dtype, device=like.device)
    require(
        given.shape in ((), (num_items,)),
        f"price must be one number or one per item, shape [{num_items}], "
        f"got shape {list(given.shape)}",
    )
    require(
        bool(((given > 0) & given.isfinite()).all()),
        f"every price must be above 0 and finite, got {given.min().item():g}; it is what a step "
        "must earn, in units of the loss",
    )
    return given.expand(num_items)
