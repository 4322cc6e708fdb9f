"""What adapting the scale of its steps is worth to the rule of `small-networks`.

    python experiments/rule_scale.py

New problems of the families that the rule was meta-trained on, without a guard, at one scale and
as it ships; everything else is the same.
"""

import copy

import click
import torch
from torch import Tensor

from haltwise.models import load
from haltwise.tasks import TaskBatch, family
from haltwise.tasks.small_networks import FAMILIES
from haltwise.update_rules import MLPRule

SEED = 8000


def ending(rule: MLPRule, batch: TaskBatch, num_steps: int) -> Tensor:
    """Losses after so many steps, on the images that stopping is judged by, shape [B]."""
    params, state = batch.start, rule.init(batch.start)
    for step in range(num_steps):
        grad = batch.observe(params, step).grad
        with torch.no_grad():
            update, _, state = rule.update(grad, state)
        params = params + update
    return batch.score(params, num_steps).loss


@click.command()
@click.option("--problems", default=8, show_default=True, help="Of each family.")
@click.option("--steps", default=100, show_default=True)
def main(problems: int, steps: int) -> None:
    """Print geometric means of the losses of each family, and of all."""
    torch.set_num_threads(1)
    rule = load("small-networks").rule
    assert isinstance(rule, MLPRule)
    plain = copy.copy(rule)
    plain.gain = 0.0
    logs = []
    for name in ("digits-mlp", *FAMILIES):
        batch = family(name).sample(problems, torch.Generator().manual_seed(SEED))
        logs.append([ending(own, batch, steps).log().mean().item() for own in (plain, rule)])
        one, adapted = torch.tensor(logs[-1]).exp().tolist()
        print(f"{name:32} one scale {one:.3f}, adapted {adapted:.3f}", flush=True)
    one, adapted = torch.tensor(logs).mean(0).exp().tolist()
    print(f"{'all':32} one scale {one:.3f}, adapted {adapted:.3f}: {adapted / one:.2f} times")


if __name__ == "__main__":
    main()
