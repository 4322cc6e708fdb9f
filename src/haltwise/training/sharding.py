"""The gradient of a meta-step: the sum over its virtual shards, whoever differentiates them."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from haltwise._core.errors import require
from haltwise._core.workers import Workers
from haltwise.training.gradients import Estimate
from haltwise.training.phases import Phase

__all__ = ["differentiate_shards"]

_NUMBERS = 4  # of a shard beside its gradient: loss, items used and left out, whether to interrupt


def differentiate_shards(
    phase: Phase,
    step: int,
    learning: Sequence[nn.Parameter],
    workers: Workers,
    num_shards: int,
    *,
    interrupt: bool = False,
) -> tuple[float, int, bool]:
    """Set `.grad` of the parameters that learn to the gradient of a whole meta-step.

    Every shard fills a row of its own, and the rows are added in their order: the sum does not
    depend, to the bit, on how many workers share the shards. Problems left out are made up for by
    those used. `step` steps of the phase are done; `interrupt` asks all workers to end the run.

    Returns:
        The objective per problem used, NaN if none was; the number of problems left out because
        they were not finite; and whether any worker asks to end the run.
    """
    sizes = [weight.numel() for weight in learning]
    # The gradients, whether each weight has one, and the numbers.
    width = sum(sizes) + len(sizes) + _NUMBERS
    rows = learning[0].new_zeros(num_shards, width)
    for shard in workers.shards(num_shards):
        for weight in learning:
            weight.grad = None
        estimate = phase.differentiate(shard, step)
        rows[shard] = _row(estimate, learning, phase.batch_size, interrupt)
    workers.sum(rows)
    total = torch.zeros_like(rows[0])
    for row in rows:
        total = total + row
    *present, loss, used, left_out, interrupts = total[sum(sizes) :].tolist()
    if used < phase.batch_size:
        total = total * (phase.batch_size / max(used, 1))
        loss *= phase.batch_size / used if used else math.nan
    gradients = total[: sum(sizes)].split(sizes)
    for weight, gradient, there in zip(learning, gradients, present, strict=True):
        weight.grad = gradient.view_as(weight) if there else None
    return float(loss), int(left_out), interrupts > 0


def _row(
    estimate: Estimate, learning: Sequence[nn.Parameter], size: int, interrupt: bool
) -> Tensor:
    losses, num_left_out = estimate
    gradients = [weight.grad for weight in learning]
    require(
        len(losses) == 0 or any(gradient is not None for gradient in gradients),
        "a meta-step has left no gradient, so nothing is learned; a gradient estimator adds it to "
        "`.grad` of the weights of the model that it is bound to",
    )
    flat = [
        weight.new_zeros(weight.numel()) if gradient is None else gradient.flatten()
        for weight, gradient in zip(learning, gradients, strict=True)
    ]
    present = losses.new_tensor([gradient is not None for gradient in gradients])
    numbers = losses.new_tensor([len(losses), num_left_out, interrupt])
    return torch.cat([*flat, present, (losses.sum() / size).reshape(1), numbers])
