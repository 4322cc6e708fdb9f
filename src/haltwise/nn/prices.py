"""The price of a unit of cost, of every row and of every item in it."""

import math

import numpy as np
import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import real_number, shown
from haltwise._core.tensors import copied_array, is_exporting

__all__ = ["price_of_items", "price_of_rows"]

_LEAST, _MOST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max


def price_of_rows(price: float | Tensor, num_rows: int) -> Tensor:
    """Check a price, a number or a tensor or array [n], and give every row its own, shape [n].

    Raises:
        InputError: A price is not a finite number above 0, or there is another number of them.
    """
    given: object = price
    if isinstance(given, np.ndarray) and given.ndim > 0:
        price = copied_array(given, "price")
    if not isinstance(price, Tensor) or price.ndim == 0:
        require(
            not isinstance(given, list | tuple),
            f"price must be a number or a tensor of shape [{num_rows}], got {shown(price)}",
        )
        number = real_number("price", price)
        _require_prices([number])
        return torch.full((num_rows,), number, dtype=torch.float64, device="cpu")
    require(
        list(price.shape) == [num_rows],
        f"price must be a number or have shape [{num_rows}], got {shown(price)}",
    )
    require(
        not price.is_complex() and price.dtype != torch.bool,
        f"prices must be real numbers, got {price.dtype}",
    )
    if not is_exporting():
        _require_prices(price[~((price >= _LEAST) & (price <= _MOST))].tolist())
    return price


def _require_prices(prices: list[float]) -> None:
    """Refuse prices of which one is none, or none that single precision knows, as laws may need."""
    wrong = [price for price in prices if not 0 < price < math.inf]
    require(not wrong, f"prices must be finite numbers above 0, got {wrong[:1]}")
    wrong = [price for price in prices if not _LEAST <= price <= _MOST]
    require(not wrong, f"prices must lie between {_LEAST:.1e} and {_MOST:.1e}, got {wrong[:1]}")


def price_of_items(price: Tensor, features: Tensor) -> Tensor:
    """The price [n] of its row for every item with features [n, items..., F], [n, items...].

    In the precision of the features, but at least single: laws of exits are no matter for half.
    """
    items, dtype = features.shape[:-1], torch.promote_types(features.dtype, torch.float32)
    price = price.to(features.device, dtype)
    return price.view(-1, *[1] * (len(items) - 1)).expand(items)
