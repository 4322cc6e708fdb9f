"""The stop rules that are compared: the optimizer's own, and opponents tuned on other problems."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from haltwise.halting.halter import AFTER, BEFORE
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.stop_rules import (
    GradientNorm,
    HazardThreshold,
    Logistic,
    Patience,
    Plateau,
    PosteriorMode,
    StopRule,
    Traces,
)
from haltwise.stop_rules.accounts import (
    RETURNABLE,
    CostUnit,
    ReturnedIterate,
    StopPolicy,
    calibrate,
    costs,
)

__all__ = ["OPPONENTS", "choose_policies", "speaks_hazard"]

OPPONENTS: Mapping[str, type[StopRule]] = MappingProxyType(
    {
        "gradient_norm": GradientNorm,
        "plateau": Plateau,
        "patience": Patience,
        "logistic": Logistic,
    }
)
"""Rules that need no learned head."""


def speaks_hazard(optimizer: OptimizerModel) -> bool:
    """Whether the head was trained as a hazard."""
    return optimizer.card["config"]["posterior"] in ("stick-breaking", "both")


def choose_policies(
    optimizer: OptimizerModel,
    tuning: Traces,
    account: CostUnit,
    price: float,
    opponents: Mapping[str, type[StopRule]] = OPPONENTS,
) -> dict[str, StopPolicy]:
    """Every policy by name, tuned on problems that nothing is judged on.

    `rule` is the optimizer as it ships and `posterior_mode` the thesis' rule: neither is tuned
    here. `rule_calibrated` has its threshold, its time of decision and what it returns chosen as
    the opponents have theirs; `rule_after_gradient` likewise, but pays for a gradient first.

    Args:
        optimizer: Whose head spoke on the traces.
        tuning: Traces of finite problems.
        account: What is counted.
        price: c, in units of the loss.
        opponents: Rules to compare with, by name.
    """
    policies = {"rule": optimizer.policy(account)}
    if optimizer.card["config"]["posterior"] in ("softmax", "both"):
        output = AFTER if account is CostUnit.UPDATES else BEFORE
        min_steps = optimizer.card.get("min_steps", (0, 0))[output]
        policies["posterior_mode"] = StopPolicy(
            PosteriorMode(output, min_steps), RETURNABLE[account][0]
        )
    table = costs(tuning.excess, price)
    candidates: dict[str, Sequence[StopRule]] = {
        name: kind.candidates(tuning, table) for name, kind in opponents.items()
    }
    if speaks_hazard(optimizer):
        outputs = (AFTER, BEFORE) if account is CostUnit.GRADIENTS else (AFTER,)
        spoken = {output: HazardThreshold.candidates(tuning, table, output) for output in outputs}
        candidates["rule_calibrated"] = [rule for rules in spoken.values() for rule in rules]
        if account is CostUnit.GRADIENTS:
            candidates["rule_after_gradient"] = spoken[AFTER]
    without_head = tuple(
        recall for recall in RETURNABLE[account] if recall is not ReturnedIterate.LEARNED
    )
    for name, choices in candidates.items():
        recalls = without_head if name in opponents else RETURNABLE[account]
        chosen = calibrate(choices, tuning, account, price=price, recalls=recalls)
        policies[name] = chosen.policy
    return policies
