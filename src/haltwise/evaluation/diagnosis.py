"""Find out why a training does not learn: each finding comes with a sentence of advice."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.percent import in_percent
from haltwise._core.random import stream
from haltwise._core.settings import price_per_unit
from haltwise._core.tensors import sub_state
from haltwise.evaluation.baselines import cross_fit, last_improvement
from haltwise.evaluation.evaluate import beyond_prices, keep_finite
from haltwise.evaluation.judge import Stops, judge
from haltwise.evaluation.stopping_report import FEWEST_ITEMS
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.trajectory import Trajectory
from haltwise.rollout.record import record
from haltwise.stop_rules import CostUnit, costs, decisions
from haltwise.tasks.base import TaskBatch, TaskFamily, ask
from haltwise.tasks.module import ModuleBatch
from haltwise.training.gradients import Pathwise
from haltwise.training.phases import MetaObjective
from haltwise.training.settings import JointPhaseSettings
from haltwise.update_rules import LSTMRule, PartitionedRule, State, UpdateRule

__all__ = ["Diagnosis", "Finding", "diagnose"]

_SATURATED = 6.0  # of a gate's logit: its derivative is below .0025
_FAINT = 1e-5  # of the strongest layer's gradient
_SHARE = 4  # times as many problems to compare stop rules on: they cost no meta-gradients
_GATES = ("input", "forget", "candidate", "output")


@final
@dataclass(frozen=True)
class Finding:
    """Something that keeps an optimizer from learning or from being trusted."""

    name: str
    measured: str
    """What was found, a sentence."""
    advice: str
    """What to do about it, a sentence."""
    where: str = ""
    """The layer or gate, empty if it has none."""


@final
@dataclass(frozen=True)
class Diagnosis:
    """Figures of a trained model by name, and what is wrong with them."""

    figures: dict[str, float]
    findings: list[Finding]
    """None if all is well."""


@torch.no_grad()
def diagnose(
    model: OptimizerModel,
    family: TaskFamily,
    *,
    price: float | None = None,
    horizon: int | None = None,
    num_problems: int = 128,
    seed: int = 0,
) -> Diagnosis:
    """Look at a trained model on problems of the stream (seed, "diagnose").

    Price and horizon are the card's if None.

    Raises:
        InputError: A setting is impossible.
    """
    price = price_per_unit(model.card.price if price is None else price)
    horizon = model.card.horizon if horizon is None else horizon
    require(horizon >= 2, f"horizon must be at least 2, got {horizon}")
    require(num_problems >= 8, f"num_problems must be at least 8, got {num_problems}")
    batch = family.sample(num_problems, stream(seed, "diagnose"))
    figures: dict[str, float] = {"price": price, "horizon": horizon, "problems": num_problems}
    findings = list(_check_rule(figures, model.rule, batch, horizon))
    if beyond := beyond_prices(model.halting, price):
        findings.append(
            Finding(
                "price not trained at",
                f"It {beyond}.",
                "Ask for a price that it knows, or train one for such a --price; what is found "
                "about its stops here says nothing about its training.",
            )
        )
    trajectory = model.halting.attach(record(model.rule, batch, horizon), price)
    finite = trajectory.finite.nonzero().squeeze(1)
    share = 1 - len(finite) / num_problems
    figures["share not finite"] = share
    if share:
        findings.append(
            Finding(
                "not finite",
                f"{in_percent(share)} of the problems do not stay finite for {horizon} steps.",
                "Begin with smaller updates (--rule.output-scale 0.03) or a shorter --horizon.",
            )
        )
    if len(finite):
        trajectory, batch = trajectory.select(finite), batch.select(finite)
        generator = stream(seed, "diagnose", "objective")
        findings += _check_layers(figures, model, batch, horizon, price, generator)
        findings += _check_stops(figures, trajectory.excess, price)
        findings += _check_drift(figures, record(model.rule, batch, 2 * horizon).excess)
        if model.halting.halts:
            findings += _check_posterior(figures, model, trajectory)
            more = family.sample(_SHARE * num_problems, stream(seed, "diagnose", "stops"))
            judged = model.halting.attach(record(model.rule, more, horizon), price)
            findings += _check_rivals(figures, model, keep_finite(judged), price, seed)
    return Diagnosis(figures, findings)


def _check_rule(
    figures: dict[str, float], rule: UpdateRule, batch: TaskBatch, num_steps: int
) -> Iterator[Finding]:
    """Scales of gradients and updates at both ends of the steps, and the gates on the way."""
    sizes = {"parameters": batch.dim}
    if isinstance(batch, ModuleBatch):
        sizes = {name: shape.numel() for name, shape in batch.task.shapes.items()}
    saturated: dict[str, list[float]] = {}
    params, state = batch.start, rule.init(batch.start)
    for step in range(num_steps):
        grad = ask(batch.observe, params, step).grad
        for gate, share in _saturated(rule, grad, state):
            saturated.setdefault(gate, []).append(share)
        update, _, state = rule.update(grad, state)
        params = params + update
        if step not in (0, num_steps - 1):
            continue
        for kind, value in (("gradient", grad), ("update", update)):
            for name, part in zip(sizes, value.split(list(sizes.values()), 1), strict=True):
                # The median over problems, which one that diverges does not move.
                size = part.square().mean(1).sqrt().median().item()
                figures[f"{name}: rms {kind}, step {step}"] = size
    for gate, shares in saturated.items():
        share = sum(shares) / len(shares)
        figures[f"{gate}: share saturated"] = share
        if share > 0.5:
            yield Finding(
                "saturated gates",
                f"{in_percent(share)} of its units are beyond ±{_SATURATED:g}, where no gradient "
                "passes.",
                "Train anew with a lower --adam.learning-rate, or restart from a checkpoint before "
                "the weights grew.",
                gate,
            )


def _saturated(
    rule: UpdateRule, grad: Tensor, state: State, prefix: str = ""
) -> Iterator[tuple[str, float]]:
    """The share of saturated units of every gate."""
    if isinstance(rule, PartitionedRule):
        parts = grad.split(rule.sizes_of(grad.shape[1]), 1)
        for number, (own, part) in enumerate(zip(rule.rules, parts, strict=True)):
            own_state = sub_state(state, f"{number}.")
            yield from _saturated(own, part, own_state, f"rule {number}, ")
    elif isinstance(rule, LSTMRule):
        shares = (rule.gate_logits(grad, state).abs() > _SATURATED).double().mean((0, 1, 4))
        for layer, row in enumerate(shares.tolist()):
            for gate, share in zip(_GATES, row, strict=True):
                yield f"{prefix}layer {layer}, {gate} gate", share


def _check_layers(
    figures: dict[str, float],
    model: OptimizerModel,
    batch: TaskBatch,
    horizon: int,
    price: float,
    generator: torch.Generator,
) -> Iterator[Finding]:
    """Scales of weights and of their meta-gradients, as the joint phase of training has them."""
    model = copy.deepcopy(model).requires_grad_(True)
    weight = JointPhaseSettings().sum_weight
    meta = MetaObjective(model.halting, price=price, losses="mean", sum_weight=weight)
    with torch.enable_grad():
        Pathwise().bind(model, horizon).accumulate(
            batch,
            torch.full_like(batch.start[:, 0], price),
            lambda excess, outputs, prices: meta.joint(excess, outputs, prices, generator),
            batch.num_problems,
            generator,
        )
    gradients = {}
    for name, value in model.named_parameters():
        gradients[name] = 0.0 if value.grad is None else _rms(value.grad)
        figures[f"{name}: rms weight"] = _rms(value)
        figures[f"{name}: rms meta-gradient"] = gradients[name]
        if not math.isfinite(gradients[name]):
            yield Finding(
                "exploding gradient",
                "Its meta-gradient is not finite.",
                "Cut the state's gradient (--joint.estimator.truncate true) or shorten the "
                "--horizon.",
                name,
            )
    rule = {name: size for name, size in gradients.items() if name.startswith("rule.")}
    strongest = max(rule.values(), default=0.0)
    for name, size in rule.items():
        if size < _FAINT * strongest or strongest == 0:
            yield Finding(
                "vanishing gradient",
                f"Its meta-gradient is {size:.2g}, that of the strongest layer {strongest:.2g}.",
                "Look for saturated gates first; else begin anew with another --seed or fewer "
                "layers (--rule.num-layers 1).",
                name,
            )


def _rms(value: Tensor) -> float:
    return value.detach().square().mean().sqrt().item()


def _check_stops(figures: dict[str, float], excess: Tensor, price: float) -> Iterator[Finding]:
    """Losses in prices, and the best stops that follow from them."""
    horizon = excess.shape[1] - 1
    oracle = costs(excess, price).double().argmin(1).double()
    gain = ((excess[:, 0] - excess.amin(1)).double() / price).median().item()
    worse = _share(excess[:, -1] >= excess[:, 0])
    at_once, at_end = _share(oracle <= 1), _share(oracle == horizon)
    figures |= {
        "median gain, prices": gain,
        "oracle's stop, mean": oracle.mean().item(),
        "oracle's stop, sd": oracle.std().item(),
        "share that ends no lower than its start": worse,
        "share best stopped within a step": at_once,
        "share worth every step": at_end,
    }
    if worse > 0.5:
        yield Finding(
            "no descent",
            f"{in_percent(worse)} of the problems end no lower than the loss they started from.",
            "Let the rule learn by the losses alone at first (--preset lstm, or --joint.warmup 1), "
            "with --rule.initial-descent true.",
        )
    if at_once > 0.9:
        yield Finding(
            "price above the losses",
            f"At a price of {price:g} it is best to stop {in_percent(at_once)} of the problems "
            f"within one step: all there is to gain is {gain:.3g} prices.",
            "Lower the --price, which is what a step must gain in units of the loss.",
        )
    if at_end > 0.5:
        yield Finding(
            "price below the losses",
            f"At a price of {price:g} {in_percent(at_end)} of the problems are worth all {horizon} "
            "steps, so there is nothing to learn about stopping.",
            "Raise the --price or the --horizon.",
        )


def _share(which: Tensor) -> float:
    return which.double().mean().item()


def _check_drift(figures: dict[str, float], excess: Tensor) -> Iterator[Finding]:
    """From the horizon to twice as far, in shares of what was gained until then."""
    horizon = (excess.shape[1] - 1) // 2
    at = excess[:, horizon]
    rise = (excess[:, -1] - at) / (excess[:, 0] - at).clamp_min(1e-12)
    share = _share(rise.nan_to_num(torch.inf, torch.inf) > 0.1)
    figures["share that rises beyond the horizon"] = share
    if share > 0.25:
        yield Finding(
            "drift beyond the horizon",
            f"From step {horizon} to {2 * horizon}, {in_percent(share)} of the problems lose a "
            "tenth or more of what they had gained.",
            f"Never allow more than {horizon} steps, or train with a longer --horizon.",
        )


def _check_posterior(
    figures: dict[str, float], model: OptimizerModel, trajectory: Trajectory
) -> Iterator[Finding]:
    """The halting posterior and the model's own stops, updates being counted."""
    halting, unit = model.halting, CostUnit.UPDATES
    mass = halting.method.posterior(trajectory.outputs, unit.decision_time).log_prob().exp()
    at_0, at_end = mass[:, [0, -1]].double().mean(0).tolist()
    policy = halting.card.policies.get(unit, halting.method.policy(unit))
    if unit not in halting.card.policies:
        yield Finding(
            "stop rule not calibrated",
            "Training ended before; the stops looked at are those of the rule untuned.",
            "Finish it with haltwise train --resume RUN.",
        )
    stops = decisions(policy.rule, trajectory).double()
    spread, oracle_spread = stops.std().item(), figures["oracle's stop, sd"]
    figures |= {
        "posterior at step 0": at_0,
        "posterior at the horizon": at_end,
        "stop, mean": stops.mean().item(),
        "stop, sd": spread,
    }
    steps = figures["oracle's stop, mean"]
    best = f"though {steps:.3g} steps would be best on average."
    longer = "Train the halter longer and on more problems (--halting.num-steps 5000 "
    longer += "--halting.num-recorded 65536)"
    if at_0 > 0.9 and figures["share best stopped within a step"] < 0.9:
        yield Finding(
            "posterior collapsed to step 0",
            f"{in_percent(at_0)} of its mass is where nothing is done, {best}",
            "Train the halter alone, distilled at first (--joint.num-steps 0 --rule-from RUN "
            "--method.distilled 0.5).",
        )
    elif at_end > 0.9 and figures["share worth every step"] < 0.5:
        yield Finding(
            "posterior collapsed to the horizon",
            f"{in_percent(at_end)} of its mass is at step {trajectory.num_steps}, {best}",
            f"{longer}, distilled at first.",
        )
    elif spread < 0.02 * oracle_spread:
        yield Finding(
            "stops do not depend on the problem",
            f"They differ by {spread:.2g} steps, those of the oracle by {oracle_spread:.2g}.",
            f"{longer}.",
        )


def _check_rivals(
    figures: dict[str, float],
    model: OptimizerModel,
    trajectory: Trajectory,
    price: float,
    seed: int,
) -> Iterator[Finding]:
    """The model's own stops beside simple rules, tuned on other problems or not at all."""
    if trajectory.num_items < FEWEST_ITEMS:
        return
    halting, unit = model.halting, model.card.unit
    policy = halting.card.policies.get(unit, halting.method.policy(unit))
    stops = {
        "its own stops": Stops.by(policy, trajectory, unit),
        "last improvement below the price": Stops.by(
            last_improvement(price, unit), trajectory, unit
        ),
    }
    tuned = cross_fit(trajectory, unit, price, stream(seed, "diagnose", "halves"))
    stops |= {name.replace("_", " "): each for name, each in tuned.items()}
    rules = judge(trajectory, stops, unit, price=price).rules
    for name in stops:
        figures[f"J in prices, {name}"] = rules[name].j.value / price
    best = min(stops, key=lambda name: rules[name].difference.value)
    difference = rules[best].difference
    if difference.high < 0:
        yield Finding(
            "a simple rule stops better",
            f"Counted in {unit.value}, J is lower by {-difference.value / price:.3g} "
            f"[{-difference.high / price:.3g}, {-difference.low / price:.3g}] prices with the rule "
            f"{best}.",
            "Let `haltwise calibrate RUN` adopt what stops best at all its prices, or train the "
            "halter longer (--halting.num-steps 5000 --halting.num-recorded 65536).",
        )
