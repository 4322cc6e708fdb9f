"""A trial of a user's processes, before hours are spent on ones that do not work."""

import torch
from torch import Tensor

from haltwise._core import plugins
from haltwise._core.errors import require
from haltwise._core.random import stream
from haltwise._core.settings import got
from haltwise._core.tensors import select_state, undisturbed
from haltwise.processes.base import Process, ProcessFamily, advanced, begun, result_of, selected

__all__ = ["require_usable"]

_NUM_ITEMS, _NUM_STEPS = 3, 3


@undisturbed(grad=True, on_cpu=True)
def require_usable(family: ProcessFamily, name: str) -> None:
    """Run a few items of the family PATH.py:NAME for a few steps, and one of them alone.

    Raises:
        InputError: A method fails or returns what it must not, or items change with others beside
            them or from run to run; the message names file and line.
    """
    title = type(family).__name__
    with plugins.place(name, type(family)).errors():
        process, again = (_drawn(family, title) for _ in range(2))
        run = _run(process)
        kept = torch.tensor([_NUM_ITEMS - 1])
        for other, expected, what in (
            (_run(again), run, f"{title}.sample draws other items from the same generator, or they "
             "run otherwise the second time; draw what is random from the generator that is given"),
            (_run(process, kept), [value[kept] for value in run],
             f"an item of {title} runs otherwise where others have left; `select` must take the "
             "rows of the items at its index, and no step may mix items or remember anything but "
             "in the state"),
        ):  # fmt: skip
            same = (
                torch.allclose(one, two, 1e-3, 1e-5, equal_nan=True)
                for one, two in zip(other, expected, strict=True)
            )
            require(all(same), what)


def _drawn(family: ProcessFamily, title: str) -> Process:
    drawn: object = family.sample(_NUM_ITEMS, stream(0, "try"), device="cpu")
    require(isinstance(drawn, Process), f"{title}.sample must return a Process, {got(drawn)}")
    assert isinstance(drawn, Process)
    require(
        drawn.num_items == _NUM_ITEMS,
        f"{title}.sample must return a process of as many items as are asked for, "
        f"{_NUM_ITEMS}, got one of {drawn.num_items}",
    )
    return drawn


def _run(process: Process, kept: Tensor | None = None) -> list[Tensor]:
    """Losses and results, step after step; with `kept`, of these items, alone from step 1 on."""
    found: list[Tensor] = []
    state = begun(process)
    for step in range(_NUM_STEPS):
        if kept is not None and step == 1:
            process, state = selected(process, kept), select_state(state, kept)
            found = [value[kept] for value in found]
        observation, state = advanced(process, step, state)
        found += [observation.loss.detach().clone(), result_of(process, state).detach().clone()]
    return found
