"""The price of a gradient: from what time costs, from a budget, or from a tolerance."""

import math
import warnings
from pathlib import Path

from haltwise._core.errors import FitWarning, require
from haltwise._core.settings import real_number, whole_number
from haltwise._core.tensors import widened
from haltwise.interfaces.kept import named
from haltwise.interfaces.own_form import in_coordinates
from haltwise.interfaces.solve import solve
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.tasks.base import TaskBatch

__all__ = ["price_for_budget", "price_for_time", "price_for_tolerance"]

_CLOSE = 1.02  # a ratio of prices at which the bisection ends


def price_for_time(
    seconds_per_gradient: float, price_per_second: float, value_of_loss_unit: float
) -> float:
    """The price at which a gradient earns what its time costs.

    c = seconds_per_gradient * price_per_second / value_of_loss_unit, in units of the loss. The last
    two are in one currency, whichever it is.

    Args:
        seconds_per_gradient: Time of one gradient of one problem.
        price_per_second: What a second of the machine costs.
        value_of_loss_unit: What it is worth to lower the loss of one problem by 1.

    Raises:
        InputError: A number is not above 0 and finite.

    Examples:
        A gradient takes 20 ms on a machine of 3.60 an hour, and a loss lower by 1 saves 0.01:

        >>> round(price_for_time(0.02, 3.60 / 3600, 0.01), 6)
        0.002
    """
    seconds = _above_zero("seconds_per_gradient", seconds_per_gradient)
    second = _above_zero("price_per_second", price_per_second)
    return seconds * second / _above_zero("value_of_loss_unit", value_of_loss_unit)


def price_for_tolerance(tolerance: float, num_gradients: int = 1) -> float:
    """The price at which some gradients together must gain a difference that still matters.

    c = tolerance / num_gradients, in units of the loss. A problem stops where `num_gradients`
    more are forecast to gain less than `tolerance`.

    Args:
        tolerance: The largest difference of the loss that no longer matters.
        num_gradients: How many gradients you would still spend to gain it.

    Raises:
        InputError: A number is impossible.

    Examples:
        Below 0.01 a difference is noise, and for as much you would wait 5 gradients:

        >>> price_for_tolerance(0.01, 5)
        0.002
    """
    number = whole_number("num_gradients", num_gradients)
    return _above_zero("tolerance", tolerance) / number


def price_for_budget(
    problem: TaskBatch,
    num_gradients: float,
    optimizer: str | Path | OptimizerModel = "regression-10d",
) -> float:
    """The price at which `haltwise.solve` uses so many gradients a problem on average.

    The mean number of gradients n(c) falls with the price c. The least c with n(c) <=
    `num_gradients` is found by bisection of log c, to 2 %, over the prices that the optimizer was
    trained on.

    Args:
        problem: A sample of your problems; some hundreds are enough.
        num_gradients: Mean number of gradients a problem that you can pay for.
        optimizer: As for `haltwise.solve`.

    Raises:
        InputError: No price trained on leads to so few or so many gradients on these problems; the
            sentence says which numbers can be reached.

    Examples:
        >>> import torch
        >>> from haltwise.tasks import family
        >>> sample = family("regression-2d").sample(200, torch.Generator().manual_seed(0))
        >>> price = price_for_budget(sample, 6, "regression-2d")
        >>> solution = solve(sample, "regression-2d", price=price)
        >>> 5.5 < solution.num_gradients.double().mean() <= 6
        tensor(True)
    """
    budget = _above_zero("num_gradients", num_gradients)
    model = optimizer if isinstance(optimizer, OptimizerModel) else named(optimizer)
    card = model.card
    low, high = card.price / card.price_range, card.price * card.price_range
    problem = in_coordinates(problem)

    def used(price: float) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FitWarning)  # use of what is found warns
            taken = solve(problem, model, price=price).num_gradients
            mean: float = widened(taken).mean().item()
            return mean

    most, fewest = used(low), used(high)
    require(
        fewest <= budget <= most,
        f"with these weights a problem takes from {fewest:.4g} gradients, at a price of "
        f"{high:.3g}, to {most:.4g}, at {low:.3g}, on average, so {budget:g} cannot be reached; "
        "ask for a number between, or choose weights trained for other prices",
    )
    while high > _CLOSE * low:
        middle = math.sqrt(low * high)
        if used(middle) <= budget:
            high = middle
        else:
            low = middle
    return high


def _above_zero(name: str, value: float) -> float:
    number = real_number(name, value)
    require(0 < number < math.inf, f"{name} must be above 0 and finite, got {number:g}")
    return number
