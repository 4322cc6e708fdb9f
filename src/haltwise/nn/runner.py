"""Running a process on rows that leave the batch as they end, in batches of few sizes."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from haltwise._core.errors import require
from haltwise._core.settings import got, whole_number
from haltwise._core.tensors import along, nested_state, select_state, sub_state, to_device
from haltwise.nn.base import AdaptiveProcess, ItemStep, State, begin, take_step
from haltwise.nn.inputs import Inputs, count_rows, device_of, select_rows
from haltwise.nn.online import OnlineHalting
from haltwise.nn.prices import price_of_items

__all__ = ["Executed", "run_process"]

_FEWEST = 8
"""Rows of the smallest batch: matrix products of fewer are rounded in another way. Where there are
fewer, places stay empty in double precision alone, in which a row is to be the same to the bit."""
_SHARES = (1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)
_REFILLED = 8
"""Empty places are filled by this part of a batch at a time."""


@final
class Executed(NamedTuple):
    """What became of items of shape `items...`, such as [n] problems or [n, L] tokens.

    Attributes:
        output: What each returns, shape [items..., ...].
        exits: The exit at which it ended, int64 [items...]; -1 of padding, which is no item.
        cost: What that costs, by the process' `exit_costs`, shape [items...]; of padding 0.
        num_row_steps: Steps of rows that were computed, empty places included.
        sizes: Of the batches that were computed, rising.
    """

    output: Tensor
    exits: Tensor
    cost: Tensor
    num_row_steps: int
    sizes: tuple[int, ...]

    @classmethod
    def stack(cls, parts: Sequence["Executed"]) -> "Executed":
        """Items of equal shapes with a new dimension in front, such as the tokens of a sequence."""
        return cls._joined(parts, torch.stack)

    @classmethod
    def cat(cls, parts: Sequence["Executed"]) -> "Executed":
        """Items one after the other along the first dimension."""
        return cls._joined(parts, torch.cat)

    @classmethod
    def _joined(
        cls, parts: Sequence["Executed"], join: Callable[[list[Tensor]], Tensor]
    ) -> "Executed":
        return cls(
            join([part.output for part in parts]),
            join([part.exits for part in parts]),
            join([part.cost for part in parts]),
            sum(part.num_row_steps for part in parts),
            tuple(sorted({size for part in parts for size in part.sizes})),
        )


def run_process(
    process: AdaptiveProcess,
    inputs: Inputs,
    price: Tensor,
    halting: OnlineHalting,
    sizes: Sequence[int] | None,
) -> Executed:
    """Run every row [n] at its price [n] until its items have ended.

    See `haltwise.nn.AdaptiveComputation.run`.
    """
    num_rows = count_rows(inputs)
    require(num_rows > 0, "there is nothing to run: the inputs have no rows")
    chosen = _default_sizes(process, inputs) if sizes is None else _checked(sizes)
    at_once = process.steps_alike and halting.takes_any_steps
    in_turn = 1 if at_once else math.ceil(num_rows / chosen[-1])
    run = _Run(process, inputs, price, halting, chosen)
    for part in torch.arange(num_rows, device=device_of(inputs)).chunk(in_turn):
        run.take(part)
    return run.executed()


def _default_sizes(process: AdaptiveProcess, inputs: Inputs) -> list[int]:
    parts = [inputs] if isinstance(inputs, Tensor) else [*inputs.values()]
    num_rows = len(parts[0])
    is_double = torch.float64 in {part.dtype for part in (*parts, *process.parameters())}
    fewest = _FEWEST if num_rows >= _FEWEST or is_double else 1
    return sorted({max(fewest, math.ceil(share * num_rows)) for share in _SHARES})


def _checked(sizes: Sequence[int]) -> list[int]:
    require(
        hasattr(sizes, "__iter__") and not isinstance(sizes, str),
        f"sizes must be whole numbers in a list, {got(sizes)}",
    )
    chosen = [whole_number("sizes", size) for size in sizes]
    require(
        len(chosen) > 0 and all(low < high for low, high in itertools.pairwise(chosen)),
        f"sizes must be at least one whole number, and rise, got {chosen}",
    )
    return chosen


@final
class _Run:
    """Rows in the places of one batch, and what has become of all.

    Attributes:
        places: What is known of the n places of the batch: under "row" whose each is (B for
            nobody's), "step" how many steps it has taken, "active" which of its items run, "price",
            "process." the state of the process, "halting." the memory of decisions and, where means
            are taken, "outputs" all outputs so far.
    """

    def __init__(
        self,
        process: AdaptiveProcess,
        inputs: Inputs,
        price: Tensor,
        halting: OnlineHalting,
        sizes: list[int],
    ) -> None:
        self._process, self._inputs = process, inputs
        self._price = to_device(price, device_of(inputs))
        self._halting, self._sizes = halting, sizes
        self._num_rows, self._last = count_rows(inputs), process.num_exits - 1
        self._output = self._exits = torch.empty(0)
        self._items: tuple[int, ...] = ()
        self._num_row_steps = 0
        self._used: set[int] = set()
        self._like: ItemStep | None = None
        self.places: State = {}

    def take(self, rows: Tensor) -> None:
        """Run these rows (int64 [M]) to their ends."""
        self._waiting, self._step = rows, 0
        self._is_lockstep = len(rows) <= self._sizes[-1]
        size = next((size for size in self._sizes if size >= len(rows)), self._sizes[-1])
        self.places = self._enter(size)
        while True:
            self._advance()
            alive = (self.places["row"] < self._num_rows).nonzero().squeeze(1)
            if self._refill(alive):
                continue
            if len(alive) == 0:
                return
            if len(self._waiting) == 0:
                self._shrink(alive)

    def executed(self) -> Executed:
        """What has become of all."""
        cost = self._process.exit_costs[self._exits.clamp_min(0)]
        return Executed(
            self._output.unflatten(0, self._items),
            self._exits.view(self._items),
            cost.masked_fill(self._exits < 0, 0).view(self._items),
            self._num_row_steps,
            tuple(sorted(self._used)),
        )

    def _enter(self, number: int) -> State:
        """So many places with the next rows that wait, or, behind the last, copies of a row."""
        rows, self._waiting = self._waiting[:number], self._waiting[number:]
        missing = number - len(rows)
        index = torch.cat((rows, rows[:1].expand(missing)))
        places = {
            "row": pad(rows, (0, missing), value=self._num_rows),
            "step": torch.zeros_like(index),
            "price": self._price[index],
        }
        state = begin(self._process, select_rows(self._inputs, index))
        present = self._process.present(state)
        if present is not None:
            places["active"] = present
        places |= nested_state(state, "process.")
        return places if self._like is None else {**self._memory(places["price"]), **places}

    def _memory(self, price: Tensor) -> State:
        """What is kept of n places beside the state of the process, as long as none has halted."""
        assert self._like is not None
        num, features = len(price), self._like.features
        prices = price_of_items(price, features.expand(num, *features.shape[1:]))
        memory = self._halting.begin(prices.flatten())
        kept = {name: value.unflatten(0, (num, -1)) for name, value in memory.items()}
        places = {
            "active": torch.ones_like(prices, dtype=torch.bool),
            **nested_state(kept, "halting."),
        }
        if self._halting.takes_means:
            output = self._like.output[0]
            places["outputs"] = output.new_zeros(num, self._last + 1, *output.shape)
        return places

    def _advance(self) -> None:
        """Take a step in every place, and write down what ends there."""
        process, places = self._process, self.places
        found = take_step(
            process,
            places["step"] if process.steps_alike else self._step,
            sub_state(places, "process."),
            places.get("active") if process.items_interact else None,
            len(places["row"]),
            None if self._like is None else self._like.output,
        )
        if self._like is None:
            self._begin_results(found)
            places = {**self._memory(places["price"]), **places}
        num = len(places["row"])
        self._num_row_steps += num
        self._used.add(num)
        if self._halting.takes_means:
            kept = places["outputs"]
            kept[torch.arange(num, device=kept.device), places["step"]] = found.output.to(kept)
        stop, memory = self._decide(found, places)
        active = places["active"]
        ends = active & stop
        self.places = places | memory
        ended = ends & along(places["row"] < self._num_rows, ends)
        self._settle(ended.flatten().nonzero().squeeze(1), found.output)
        self._step += 1
        active = active & ~ends
        self.places |= {
            **nested_state(found.state, "process."),
            "step": (places["step"] + 1).clamp_max(self._last),  # what has ended may stay
            "active": active,
            "row": torch.where(_any(active), places["row"], self._num_rows),
        }

    def _begin_results(self, found: ItemStep) -> None:
        self._like = ItemStep(found.output[:1], found.features[:1], {})
        self._items, output = (self._num_rows, *found.features.shape[1:-1]), found.output
        num = math.prod(self._items)
        self._output = output.new_zeros(num, *output.shape[len(self._items) :])
        self._exits = torch.full((num,), -1, dtype=torch.int64, device=output.device)

    def _decide(self, found: ItemStep, places: State) -> tuple[Tensor, State]:
        """Which items end, bool [n, items...], and the memory of decisions after it."""
        active, at = places["active"], along(places["step"], places["active"])
        if self._is_lockstep and self._step == self._last:
            return torch.ones_like(active), {}
        step = self._step if self._is_lockstep else at.expand_as(active).flatten()
        price = price_of_items(places["price"], found.features).flatten()
        memory = {
            name: value.flatten(0, 1) for name, value in sub_state(places, "halting.").items()
        }
        stop, memory = self._halting.decide(
            step, found.output, found.features.flatten(0, -2), price, memory
        )
        kept = {name: value.unflatten(0, (len(active), -1)) for name, value in memory.items()}
        return stop.view_as(active) | (at == self._last), nested_state(kept, "halting.")

    def _settle(self, ended: Tensor, output: Tensor) -> None:
        """Write down what the items return that end: `ended` [k] of all in their places, flat."""
        places = self.places
        per_row = places["active"][0].numel()
        place, within = ended // per_row, ended % per_row
        exits = places["step"][place]
        if self._halting.takes_means:
            memory = {
                name: value.flatten(0, 1)[ended]
                for name, value in sub_state(places, "halting.").items()
            }
            weights = self._halting.weights(memory, exits)
            outputs = places["outputs"]
            ndim = places["active"].ndim
            outputs = outputs.flatten(2, ndim) if ndim > 1 else outputs.unsqueeze(2)
            outputs = outputs[place, :, within]
            weights = along(weights.to(outputs), outputs)
            returned = (weights * outputs.masked_fill(weights == 0, 0)).sum(1)
        else:
            returned = output.flatten(0, places["active"].ndim - 1)[ended]
        rows = places["row"][place] * per_row + within
        self._output[rows] = returned.to(self._output)  # autocast may change its mind
        self._exits[rows] = exits

    def _refill(self, alive: Tensor) -> bool:
        """Let rows that wait have the places of those that have ended; whether any did."""
        size = len(self.places["row"])
        number = max(1, size // _REFILLED)
        if len(self._waiting) == 0 or size - len(alive) < number:
            return False
        empty = (self.places["row"] == self._num_rows).nonzero().squeeze(1)
        for index in empty.split(number):
            if len(index) == number and len(self._waiting):
                entered = self._enter(number)
                require(
                    entered.keys() == self.places.keys(),
                    f"the state of {type(self._process).__name__} must keep its names, got "
                    f"{sorted(sub_state(self.places, 'process.'))} after "
                    f"{sorted(sub_state(entered, 'process.'))}",
                )
                self.places = {
                    name: value.index_copy(0, index, entered[name])
                    for name, value in self.places.items()
                }
        return True

    def _shrink(self, alive: Tensor) -> None:
        """Move the rows that run to the smallest batch that has places for them."""
        size = next(size for size in self._sizes if size >= len(alive))
        if size == len(self.places["row"]):
            return
        missing = size - len(alive)
        index = torch.cat((alive, alive[:1].expand(missing)))
        rows = pad(self.places["row"][alive], (0, missing), value=self._num_rows)
        self.places = {**select_state(self.places, index), "row": rows}


def _any(items: Tensor) -> Tensor:
    """Whether it is so of any item of a row, [n, items...] to [n]."""
    return items.flatten(1).any(1) if items.ndim > 1 else items
