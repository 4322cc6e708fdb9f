"""Certify the stops of a model or a stop rule on recorded trajectories."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.seen import require_unseen
from haltwise._core.settings import (
    parameters,
    price_per_unit,
    real_number,
    require_flags,
    shown,
    words,
)
from haltwise._core.tensors import map_tensors, widened
from haltwise.certificates import (
    Certificate,
    ExcessLoss,
    FunctionOfStop,
    Refusal,
    Risk,
    certify_table,
    from_the_safest,
    label_codes,
    set_aside,
    tabulate,
    warn_of_copies,
)
from haltwise.curves import Curves, certify_curves
from haltwise.curves.rule import CurveRule
from haltwise.models.files import Model, fingerprint, halting_of, placed
from haltwise.models.halting_model import HaltingModel
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules import (
    RETURNABLE,
    CostUnit,
    ReturnedIterate,
    StopPolicy,
    StopRule,
    costs,
)

__all__ = ["certify"]


def certify(
    model_or_rule: Model | type[StopRule] | Sequence[StopRule] | CurveRule,
    recorded: Trajectory | Curves,
    *,
    risk: Risk | Callable[[Tensor, Tensor], Tensor] | Literal["given-up"],
    level: float,
    confidence: float | None,
    group: Sequence[Any] | Tensor | None = None,
    bound: float | None = None,
    clip: bool = False,
    price: float | None = None,
    unit: CostUnit | None = None,
    returns: ReturnedIterate | None = None,
) -> Certificate | Refusal:
    """Find the boldest stop whose risk is certified to be at most a level.

    The candidates are thresholds from the safest, which stops last, to the boldest. They must not
    depend on the problems that certify them: those of a model or of a class of stop rules are found
    on one problem in ten, or on one group in ten, set aside for it. Without `group` the mean over
    problems is certified, with this confidence; with it the mean in the next group, with this
    probability, or in expectation if confidence is None. The page "Certificates" of the
    documentation has the proofs.

    Args:
        model_or_rule: A model, a class of stop rules with `candidates`, or stop rules from the
            safest to the boldest that were chosen elsewhere.
        recorded: Trajectories that go on past any stop, each of an independent problem; they must
            have signals where a model is to be asked. Or recorded runs, for a curve model or
            another rule that gives runs up, of which the share of successes given up is certified
            (`haltwise.curves.certify_curves`).
        risk: What is lost at a stop, see `haltwise.certificates.Risk`; or a function of excess
            loss and cost, float64 [n, C] each, to losses of at most 1. For recorded runs, which
            have their own targets, "given-up".
        level: The bound on the risk, in its own units.
        confidence: Such as 0.9.
        group: A label a problem, [n]: whole groups are exchangeable, not problems. Recorded runs
            have groups of their own: give those, `curves.group`, where they count.
        bound: The largest loss that a problem can have; the kind of risk knows its own, but for
            the excess loss and the gain forgone.
        clip: Whether losses above the bound count as the bound; the certificate says so.
        price: c, at which a model is asked; that of its card if None.
        unit: What is paid for; the model's own, or updates for a rule.
        returns: What a stop returns; what the model's policy or else the unit does.

    Returns:
        A certificate, whose `policy` is the stop; or a refusal with the number of problems or
        groups needed. Call `require()` on it to insist.

    Raises:
        InputError: An argument is impossible, a loss is above the bound, or the model was learned
            on one in a hundred of what is recorded or more.

    Warns:
        CalibrationWarning: One problem in a hundred or more has the very losses of another, or
            groups have too few problems for the level of a share to matter.

    Examples:
        >>> import torch
        >>> from haltwise.certificates import ExcessLoss
        >>> from haltwise.stop_rules import Plateau
        >>> rate = 0.3 + torch.rand(1000, 1, generator=torch.Generator().manual_seed(0))
        >>> losses = torch.exp(-rate * torch.arange(30))
        >>> recorded = Trajectory(losses, losses)
        >>> found = certify(
        ...     Plateau, recorded, risk=ExcessLoss(), level=0.02, confidence=0.9, bound=1.0
        ... ).require()
        >>> found.mean_risk < 0.02, found.kept > 0.9, found.num_set_aside
        (True, True, 100)
        >>> print(f"{found.policy.rule.tolerance:.4f}")
        0.0206
    """
    rule: Any = model_or_rule
    if isinstance(recorded, Curves) or isinstance(rule, CurveRule):
        return _certify_curves(rule, recorded, risk, level, confidence, group)
    require(
        isinstance(recorded, Trajectory),
        f"recorded must be a Trajectory or Curves, got {shown(recorded)}; of losses [n, T+1] make "
        "Trajectory(losses, excess), of tensors or arrays",
    )
    if isinstance(risk, type):
        raise InputError(
            f"risk is the class {risk.__name__}; make one, as in "
            f"risk={risk.__name__}({', '.join(parameters(risk))})"
        )
    if isinstance(risk, str):
        raise InputError(f"name a kind of risk, such as SuccessGivenUp(0.1), not {risk!r}")
    kinds: tuple[tuple[str, Any, Any], ...] = (
        ("risk", risk, Risk | Callable),
        ("unit", unit, CostUnit | None),
        ("returns", returns, ReturnedIterate | None),
    )
    for name, value, kind in kinds:
        require(isinstance(value, kind), f"{name} must be {words(kind)}, got {shown(value)}")
    require_flags(clip=clip)
    bound = None if bound is None else real_number("bound", bound)
    model = rule if isinstance(rule, HaltingModel | OptimizerModel) else None
    if price is not None:
        require(model is not None, "a price is what a model is asked at; a stop rule knows none")
        price = price_per_unit(price)
    if model is not None:
        card = model.card
        price = card.price if price is None else price
        unit = card.unit if unit is None else unit
        recorded = placed(halting_of(model), recorded.loss).attach(recorded, price)
        if returns is None and unit in card.policies:
            returns = card.policies[unit].returns
    recorded = map_tensors(recorded, Tensor.cpu)  # few numbers, and many small operations
    unit = CostUnit.UPDATES if unit is None else unit
    returns = RETURNABLE[unit][0] if returns is None else returns
    if group is not None:  # now, while labels stand in the order of the problems
        group = label_codes(group, recorded.num_items)
    if model is not None:
        require_unseen(model.card.seen, recorded.loss, "runs")
    record = torch.cat((recorded.loss, recorded.excess), 1).numpy()
    warn_of_copies([row.tobytes() for row in record], group)
    at_risk = risk if isinstance(risk, Risk) else FunctionOfStop(risk)
    largest = at_risk.natural_bound(recorded.num_steps) if bound is None else bound
    is_complete = largest is not None and (confidence is not None or group is not None)
    if isinstance(at_risk, ExcessLoss) and is_complete:
        _require_no_floor(recorded.excess, real_number("level", level), largest if clip else None)
    candidates, used, num_set_aside = _candidates(
        rule, recorded, at_risk, group, unit=unit, returns=returns, bound=largest
    )
    if used is not None:
        recorded = recorded.select(used)
        group = None if group is None else group[used]
    table = tabulate(
        candidates,
        recorded,
        at_risk,
        unit=unit,
        returns=returns,
        groups=group,
        bound=bound,
        clip=clip,
    )
    found = certify_table(table, level=level, confidence=confidence)
    if isinstance(found, Refusal):
        return found
    return replace(
        found,
        num_set_aside=num_set_aside,
        policy=StopPolicy(candidates[found.threshold], returns),
        unit=unit,
        price=price,
        model=None if model is None else fingerprint(model, with_policies=False),
    )


def _require_no_floor(excess: Tensor, level: float, bound: float | None) -> None:
    """Refuse losses [n, T+1] above the level wherever they are stopped, for they have a floor."""
    least = widened(excess).nan_to_num(math.inf).amin(1)
    mean = least.clamp_max(math.inf if bound is None else bound).mean().item()
    # Of most problems, for that of a few may be high since they diverged.
    is_floor = level < mean < math.inf and least.median().item() > level
    require(
        not is_floor,
        f"no stop keeps the mean excess loss at or below {level:g}: where it is least on each "
        f"course, it is {mean:.4g} on average. Losses that have a floor are to be given without "
        "it; or certify what is lost against going on to the end, risk=GainForgone() (--risk "
        "forgone)",
    )


def _certify_curves(
    rule: Any, recorded: Any, risk: Any, level: float, confidence: float | None, group: Any
) -> Certificate | Refusal:
    require(
        isinstance(recorded, Curves) and isinstance(rule, CurveRule),
        "recorded runs (Curves) are for rules that give runs up, such as a curve model, and "
        "trajectories for models and stop rules",
    )
    require(risk == "given-up", f'of recorded runs risk="given-up" is certified, got {risk!r}')
    if group is not None:
        recorded = recorded.with_groups([str(label) for label in group])
    return certify_curves(
        rule, recorded, level=level, confidence=confidence, grouped=group is not None
    )


def _candidates(
    rule: Any,
    recorded: Trajectory,
    risk: Risk,
    group: Tensor | None,
    *,
    unit: CostUnit,
    returns: ReturnedIterate,
    bound: float | None,
) -> tuple[Sequence[StopRule], Tensor | None, int]:
    """Candidates from the safest on, the problems that are left (all if None), those set aside."""
    if isinstance(rule, Sequence):
        require(
            len(rule) > 0 and all(isinstance(each, StopRule) for each in rule),
            "give at least one stop rule, from the safest to the boldest",
        )
        return rule, None, 0
    aside = set_aside(recorded.num_items, group)
    tuning = recorded.select(aside.nonzero().squeeze(1))
    table = costs(tuning.excess, 0.0)
    if isinstance(rule, HaltingModel | OptimizerModel):
        method = halting_of(rule).method
        found = method.candidates(tuning, table, unit.decision_time)
    elif isinstance(rule, type) and issubclass(rule, StopRule):
        found = rule.candidates(tuning, table)
    else:
        raise InputError(
            "give a model, a class of stop rules or stop rules from the safest to the boldest, got "
            f"{type(rule).__name__}"
        )
    require(
        isinstance(found, Sequence) and all(isinstance(each, StopRule) for each in found),
        f"candidates must be a list of stop rules to choose from, got {shown(found)}",
    )
    require(len(found) > 0, "the halting method leaves no threshold open to certify")
    left = (~aside).nonzero().squeeze(1)
    what = "problem" if group is None else "group"
    require(len(left) > 0, f"every {what} was set aside to find thresholds; record more {what}s")
    ordered = from_the_safest(
        found,
        tuning,
        risk,
        unit=unit,
        returns=returns,
        bound=math.inf if bound is None else bound,
    )
    return ordered, left, int(aside.sum())
