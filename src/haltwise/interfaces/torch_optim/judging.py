"""When a group is to stop: every step that came with its loss is shown to the group's halter."""

from typing import NamedTuple

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise.halting.posteriors import Posterior
from haltwise.interfaces.fit import is_below_those_seen
from haltwise.interfaces.torch_optim.chunks import UpdateStatistics, working_dtype
from haltwise.interfaces.torch_optim.groups import (
    Group,
    GroupModels,
    Record,
    head_of,
    num_coordinates,
)
from haltwise.interfaces.torch_optim.problem import Problem
from haltwise.processes.observation import StepObservation
from haltwise.processes.signals import SIGNALS, combine_products
from haltwise.stop_rules import CostUnit, DecisionTime, takes_update

__all__ = ["ShownStep", "end_with_horizon", "judge", "keeps_update", "posterior", "require_judged"]


class ShownStep(NamedTuple):
    """What a halter is shown of a step.

    Attributes:
        step: t.
        loss: Signed, so that it is to be minimised, shape [1]; on the device of the halter.
        products: See `haltwise.processes.signals.sum_products`, shape [1, 5, 5].
        readout: Means over coordinates, shape [1, R].
        num_coordinates: D.
    """

    step: int
    loss: Tensor
    products: Tensor
    readout: Tensor
    num_coordinates: int

    @classmethod
    def of(cls, problem: Problem, loss: Tensor, statistics: UpdateStatistics) -> "ShownStep":
        """The last step that a group has taken, which began with a loss."""
        group, like = problem.group, head_of(problem.group)
        value = loss.to(like.device, working_dtype(like)).reshape(1)
        return cls(
            problem.record["step"] - 1,
            -value if group["maximize"] else value,
            statistics.products.to(like.device),
            statistics.readout.to(value),
            num_coordinates(problem.params),
        )


def judge(models: GroupModels, group: Group, record: Record, shown: ShownStep) -> None:
    """Decide whether another step is worth its price; the record is brought up to date.

    It is decided on the device of the loss, which need not be the group's. Where the loss is lower
    than any that the weights know, they do not ask to stop.

    Warns:
        FitWarning: It is so for the first time.
    """
    step, loss = shown.step, shown.loss
    products, dim = shown.products, shown.num_coordinates
    signals = combine_products(step, loss.to(products), products, dim).to(loss)
    session = models.new_session(group, loss)
    if step:
        state: dict[str, Tensor] = record["session"]
        session.restore({name: value.to(loss.device) for name, value in state.items()})
    log_grad_norm = signals[:, SIGNALS.index("log_grad")]
    decision = session.observe(StepObservation(step, loss, log_grad_norm, signals, shown.readout))
    record["session"] = session.state()
    stopped = record.get("stop", torch.zeros_like(decision.stop))
    is_low = is_below_those_seen(models.of(group).card, loss, session.price)
    record["stop"] = (decision.stop & ~is_low) | stopped.to(loss.device)
    outputs = decision.observation.outputs
    record["outputs"] = {
        name: torch.cat([*([record["outputs"][name].to(new)] if step else []), new.unsqueeze(1)], 1)
        for name, new in outputs.items()
    }
    if is_low:
        models.warn_of_level(group)


def end_with_horizon(models: GroupModels, group: Group, record: Record) -> None:
    """Let a group stop where the horizon that its weights were trained for has ended."""
    if "stop" in record and record["step"] >= models.of(group).card.horizon:
        record["stop"] = torch.ones_like(record["stop"])


def require_judged(models: GroupModels, group: Group, record: Record) -> None:
    """Refuse a group of which it is not known whether it is to stop."""
    halting = models.of(group).halting
    require(
        halting.halts,
        f"the weights {group['weights']!r} were meta-trained without halting and never ask to "
        "stop; choose others or end the loop yourself",
    )
    halting.policy(CostUnit.GRADIENTS)  # says so if none was calibrated
    require(
        record["judged"] == record["step"],
        f"when to stop is judged from the loss, which {record['step'] - record['judged']} of "
        f"{record['step']} steps came without; pass it to every step, as step(loss=loss) or "
        "through a closure",
    )


def keeps_update(problem: Problem) -> bool:
    """Whether the last update is kept where the loop ends now; so if nothing asked it to end."""
    record = problem.record
    if not record.get("stop") or record["judged"] != record["step"]:
        return True
    halting = problem.models.of(problem.group).halting
    hold = record.get("outputs", {}).get("hold_logits")
    returns = halting.policy(CostUnit.GRADIENTS).returns
    kept = takes_update(returns, None if hold is None else hold[:, -1], record["stop"])
    return bool(kept)


def posterior(models: GroupModels, group: Group, record: Record) -> Posterior:
    """q(t | x, T) of a group's steps so far."""
    method = models.of(group).halting.method
    return method.posterior(record["outputs"], DecisionTime.AFTER_GRADIENT)
