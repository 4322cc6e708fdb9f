"""Any process in one call: each item runs until another step is not worth its price."""

from dataclasses import replace
from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from haltwise._core.arrays import require_unmasked
from haltwise._core.errors import InputError, require
from haltwise._core.settings import got, real_number, shown
from haltwise._core.tensors import ZERO, undisturbed
from haltwise.halting.session import HaltingSession
from haltwise.interfaces.fit import FirstRoundsCheck, FirstStepsCheck, first_steps_check
from haltwise.interfaces.kept import model_for
from haltwise.models.files import placed
from haltwise.models.halting_model import HaltingModel
from haltwise.models.loading import load_halting
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.base import Process, begun, result_of
from haltwise.processes.observation import StepObservation
from haltwise.processes.optimization import OptimizationProcess
from haltwise.rollout.early_exit import Execution, Outcome, RowWatch, run_until_halted
from haltwise.rollout.rows import Rows
from haltwise.stop_rules import RETURNABLE, CostUnit, StopPolicy, StopRule

__all__ = ["price_of_each", "run", "stop_policy"]


@undisturbed()
def run(
    process: Process,
    model: str | Path | HaltingModel | OptimizerModel | None = None,
    stop: StopRule | StopPolicy | None = None,
    *,
    price: float | Tensor | None = None,
    max_steps: int | None = None,
) -> Execution:
    """Advance B items side by side; each leaves the batch as soon as it halts.

    Args:
        process: B items.
        model: A run directory, a weights file or the model itself, trained on such processes; None
            where a stop rule that reads no outputs of a model says when to stop.
        stop: When to stop, as a policy or as a rule; the model's own policy if None.
        price: What a step must earn, in units of the loss, one for all or [B]; what the model was
            trained for if None.
        max_steps: Steps an item may take at most; those the model was trained on if None.

    Returns:
        One outcome per item; an item that goes wrong disturbs no other.

    Raises:
        InputError: A price or a number of steps is impossible, or there is no such model.

    Warns:
        FitWarning: Prices, or the signals of the first steps, lie outside those trained on.

    Examples:
        >>> from haltwise.processes import OptimizationProcess
        >>> from haltwise.tasks import family
        >>> from haltwise.models import load
        >>> batch = family("regression-2d").sample(10, torch.Generator().manual_seed(0))
        >>> model = load("regression-2d")
        >>> process = OptimizationProcess(model.rule, batch)
        >>> run(process, model).result.shape
        torch.Size([10, 2])

        A stop rule alone:

        >>> from haltwise.stop_rules import Patience
        >>> run(process, stop=Patience(3), max_steps=60).reasons[0]
        'the loss has not fallen by more than 0 for 3 steps'
    """
    optimizer = model if isinstance(model, OptimizerModel) else None
    halting = _halting(model, stop, price, max_steps)
    require(
        isinstance(process, Process),
        f"a process must be a haltwise.processes.Process, got {type(process).__name__}; for a "
        "batch of problems call haltwise.solve",
    )
    first = result_of(process, begun(process))
    like = first if first.is_floating_point() else torch.zeros((), device=first.device)
    if halting is None:
        assert isinstance(stop, StopRule | StopPolicy)
        assert max_steps is not None
        policy, num_steps, check = _as_policy(stop, CostUnit.UPDATES), max_steps, None
        session = HaltingSession(policy, price_of_each(1.0, process.num_items, like))
    else:
        card = halting.card
        policy = stop_policy(halting, stop, card.unit)
        prices = price_of_each(card.price if price is None else price, process.num_items, like)
        session = HaltingSession(policy, prices, placed(halting, like).prepare())
        if stop is None:
            halting.warn_of_prices(prices)
        num_steps = card.horizon if max_steps is None else max_steps
        check = first_steps_check(card, process.num_items) if stop is None else None
    exact = isinstance(process, OptimizationProcess) and not process.batch.stochastic
    graphs = None
    if optimizer is not None and isinstance(process, OptimizationProcess):
        graphs = model_for(optimizer, like)[1] if process.is_moved_by(optimizer.rule) else None
    watch = _RunWatch(check, is_exact=exact)
    ran = run_until_halted(process, session, num_steps, watch=watch, graphs=graphs)
    if check is not None:
        check.warn()
    if not exact:
        return ran
    taken = ran.outcome == Outcome.TAKEN
    return replace(
        ran,
        outcome=ran.outcome.masked_fill(taken, int(Outcome.HALTED)),
        reason=ran.reason.masked_fill(taken, len(ran.reasons)),
        reasons=(*ran.reasons, "the gradient is zero"),
    )


def _halting(model: object, stop: object, price: object, max_steps: object) -> HaltingModel | None:
    """The halting model to ask, None where a stop rule needs none.

    Raises:
        InputError: There is no such model; or there is none, and it is not known when to stop.
    """
    if model is None:
        require(
            isinstance(stop, StopRule | StopPolicy) and price is None and max_steps is not None,
            "without a model give a stop rule and the most steps, as in "
            "haltwise.run(process, stop=Patience(5), max_steps=100), and no price, which a rule "
            "does not know",
        )
        return None
    if isinstance(model, StopRule | StopPolicy):
        raise InputError(
            f"model must be a halting model, {got(model)}; give when to stop by its name, as in "
            "haltwise.run(process, stop=Patience(5), max_steps=100)"
        )
    if isinstance(model, OptimizerModel):
        return model.halting
    return model if isinstance(model, HaltingModel) else load_halting(model)  # type: ignore[arg-type]


@final
class _RunWatch(RowWatch):
    """Check the first steps, and take those away that have nothing to gain."""

    def __init__(self, check: FirstStepsCheck | FirstRoundsCheck | None, *, is_exact: bool) -> None:
        self._check, self._is_exact = check, is_exact

    def __call__(self, items: Tensor, observation: StepObservation) -> Tensor | None:
        if self._check is not None and observation.signals is not None:
            self._check.observe(items, observation)
        return observation.known("log_grad_norm") <= ZERO if self._is_exact else None

    @property
    def rows(self) -> Rows:
        return {}

    @property
    def kind(self) -> tuple[object, ...]:
        return (self._is_exact,)

    def part(self, items: Tensor) -> "_RunWatch":
        del items
        return _RunWatch(None, is_exact=self._is_exact)  # the first steps have been taken

    def take_back(self, items: Tensor, part: "_RunWatch") -> None:
        """Nothing is remembered."""


def stop_policy(model: HaltingModel, stop: object, unit: CostUnit) -> StopPolicy:
    """The policy meant by `stop`; of a rule, the unit's default iterate is returned.

    Raises:
        InputError: It is neither a rule nor a policy nor None.
    """
    if stop is None:
        return model.policy(unit)
    if not isinstance(stop, StopRule | StopPolicy):
        raise InputError(
            f"stop must be a StopRule, a StopPolicy or None, {got(stop)}; for a number of steps "
            "give max_steps or haltwise.stop_rules.FixedBudget"
        )
    return _as_policy(stop, unit)


def _as_policy(stop: StopRule | StopPolicy, unit: CostUnit) -> StopPolicy:
    """A policy as it is, or that of a rule, which returns the unit's default iterate."""
    return stop if isinstance(stop, StopPolicy) else StopPolicy(stop, RETURNABLE[unit][0])


def price_of_each(price: float | Tensor, num_items: int, like: Tensor) -> Tensor:
    """The price of every item, shape [B]."""
    if isinstance(price, Tensor | np.ndarray | list | tuple):
        require_unmasked(price, "price")
        try:
            # A list would be rounded to PyTorch's default dtype.
            plain = price if isinstance(price, Tensor) else np.asarray(price)
            given = torch.as_tensor(plain, device=like.device)
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(f"price must hold real numbers, got {shown(price)}") from error
        kinds = given.is_complex(), given.dtype == torch.bool
        require(not any(kinds), f"price must hold real numbers, got {given.dtype}")
        given = given.to(like.dtype)
    else:
        number = real_number("price", price)
        given = torch.tensor(number, dtype=like.dtype, device=like.device)
    require(
        given.shape in ((), (num_items,)),
        f"price must be one number or one per item, shape [{num_items}], "
        f"got shape {list(given.shape)}",
    )
    bad = ~((given > 0) & given.isfinite())
    if bad.any():
        first = price if given.ndim == 0 else given[bad][0].item()
        raise InputError(
            f"every price must be above 0 and finite, got {shown(first)}, in {given.dtype}; it is "
            "what a step must earn, in units of the loss"
        )
    return given.expand(num_items)
