"""Stops of a halting model on fresh processes of a family."""

import copy
from collections.abc import Callable

import torch

from haltwise._core.errors import require
from haltwise._core.random import stream
from haltwise._core.settings import price_per_unit
from haltwise.evaluation.evaluate import judge_model, keep_finite, warn_of_price
from haltwise.evaluation.judge import Stops
from haltwise.evaluation.learners import learned_baselines
from haltwise.evaluation.records import StoppingRecord
from haltwise.models.halting_model import HaltingModel
from haltwise.processes.base import ProcessFamily
from haltwise.processes.trajectory import Trajectory
from haltwise.rollout.record import record_process
from haltwise.stop_rules import CostUnit

__all__ = ["judge_processes"]


def judge_processes(
    model: HaltingModel,
    family: ProcessFamily,
    *,
    price: float,
    horizon: int,
    seed: int,
    num_items: int = 4096,
    device: torch.device | str = "cpu",
    learners: bool = True,
    announce: Callable[[str], None] = lambda _: None,
) -> StoppingRecord:
    """Judge the stops of a halting model on held-out processes beside tuned baselines.

    Where the family knows the best causal rule, its stops are judged as `best-causal`, too. Items
    are drawn from the streams of `haltwise.evaluation.evaluate`, which training does not use.

    Args:
        model: Trained on processes.
        family: What to draw from.
        price: c, in units of the loss.
        horizon: T, steps allowed.
        seed: Of the items.
        num_items: n, for the test and again for the tuning.
        device: Where the processes run.
        learners: See `haltwise.evaluation.evaluate`.
        announce: Called with a sentence at the start of each part.

    Raises:
        InputError: A setting is impossible, or no item stays finite.
    """
    price = price_per_unit(price)
    require(num_items >= 32, f"at least 32 items are needed to judge by, got {num_items}")
    require(model.halts, "this model was trained without halting; there are no stops to judge")

    warn_of_price(model, price, "the model")

    def recorded(part: str) -> Trajectory:
        announce(f"recording {num_items} items to {part}")
        process = family.sample(num_items, stream(seed, part), device=device)
        found = record_process(process, horizon)
        require(bool(found.finite.any()), f"not one of {num_items} items stays finite")
        return model.attach(found, price)

    model = copy.deepcopy(model).to(device)
    test, tuning = recorded("test"), keep_finite(recorded("tune"))
    kept = keep_finite(test)
    baselines: dict[str, Stops] = {}
    best = family.best_stops(kept, price)
    if best is not None:
        excess = kept.excess.gather(1, best.unsqueeze(1)).squeeze(1)
        baselines["best-causal"] = Stops(excess, best, "knows the law of the items")
    if learners:
        announce("fitting the learned baselines")
        baselines |= learned_baselines(tuning, kept, [CostUnit.UPDATES], price)[CostUnit.UPDATES]
    return judge_model(model, test, tuning, CostUnit.UPDATES, price, baselines)[0]
