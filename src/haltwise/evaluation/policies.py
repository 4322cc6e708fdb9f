"""The stop rules that are compared: the optimizer's own, and opponents tuned on other problems."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from haltwise.halting.accounts import RECALLS, Account, Policy, Recall, calibrate, costs
from haltwise.halting.head import AFTER, BEFORE
from haltwise.halting.stopping import (
    GradientNorm,
    HazardThreshold,
    Logistic,
    Patience,
    Plateau,
    PosteriorMode,
    StopRule,
    Traces,
)
from haltwise.optimizer import LearnedOptimizer

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


def speaks_hazard(optimizer: LearnedOptimizer) -> bool:
    """Whether the head was trained as a hazard."""
    return optimizer.card["config"]["posterior"] in ("stick-breaking", "both")


def choose_policies(
    optimizer: LearnedOptimizer,
    tuning: Traces,
    account: Account,
    price: float,
    opponents: Mapping[str, type[StopRule]] = OPPONENTS,
) -> dict[str, Policy]:
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
        output = AFTER if account is Account.UPDATES else BEFORE
        min_steps = optimizer.card.get("min_steps", (0, 0))[output]
        policies["posterior_mode"] = Policy(PosteriorMode(output, min_steps), RECALLS[account][0])
    table = costs(tuning.excess, price)
    candidates: dict[str, Sequence[StopRule]] = {
        name: kind.candidates(tuning, table) for name, kind in opponents.items()
    }
    if speaks_hazard(optimizer):
        outputs = (AFTER, BEFORE) if account is Account.GRADIENTS else (AFTER,)
        spoken = {output: HazardThreshold.candidates(tuning, table, output) for output in outputs}
        candidates["rule_calibrated"] = [rule for rules in spoken.values() for rule in rules]
        if account is Account.GRADIENTS:
            candidates["rule_after_gradient"] = spoken[AFTER]
    without_head = tuple(recall for recall in RECALLS[account] if recall is not Recall.LEARNED)
    for name, choices in candidates.items():
        recalls = without_head if name in opponents else RECALLS[account]
        chosen = calibrate(choices, tuning, account, price=price, recalls=recalls)
        policies[name] = chosen.policy
    return policies
