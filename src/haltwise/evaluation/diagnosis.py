"""Why does it not learn? What to look at first, each finding with a sentence of advice."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.random import stream
from haltwise.halting.halter import AFTER, HaltingOutput
from haltwise.halting.objectives import cumulative_logits
from haltwise.halting.posteriors import GravesPosterior, SoftmaxPosterior, StickBreakingPosterior
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.rollout.record import Trajectory, backpropagate, unroll
from haltwise.stop_rules import decisions
from haltwise.stop_rules.accounts import CostUnit, costs
from haltwise.tasks import TaskBatch, TaskFamily
from haltwise.tasks.module import ModuleBatch
from haltwise.training import TrainingConfig
from haltwise.training.objective import MetaObjective
from haltwise.update_rules import LSTMRule, PartitionedRule, State, UpdateRule

__all__ = ["Finding", "diagnose"]

_SATURATED = 6.0  # of a gate's logit: its derivative is below .0025
_FAINT = 1e-5  # of the strongest layer's gradient
_GATES = ("input", "forget", "candidate", "output")


@final
@dataclass(frozen=True)
class Finding:
    """Something that keeps an optimizer from learning or from being trusted.

    Attributes:
        name: Of the check.
        where: The layer, gate or group, if it has one.
        measured: What was found, a sentence.
        advice: What to do about it, a sentence.
    """

    name: str
    where: str
    measured: str
    advice: str


@torch.no_grad()
def diagnose(
    optimizer: OptimizerModel,
    family: TaskFamily,
    *,
    price: float | None = None,
    horizon: int | None = None,
    num_problems: int = 128,
    seed: int = 0,
) -> dict[str, Any]:
    """Look at a trained optimizer on problems of the stream (seed, "diagnose").

    Args:
        optimizer: With its card, as `haltwise.load` gives it.
        family: What it was trained on.
        price: c; the card's if None.
        horizon: T; the card's if None.
        num_problems: B.
        seed: Of the problems.

    Returns:
        JSON: `layers`, of the optimizer's weights and their meta-gradient; `groups`, of the
        problem's parameters; `gates`; `scale`, of losses in prices; `posterior`; `drift`, beyond
        the horizon; and `findings`, see `Finding`, none if all is well.

    Raises:
        InputError: The optimizer has no card, or a setting is impossible.
    """
    require("config" in optimizer.card, "this optimizer has no card, so what it learned is unknown")
    config = TrainingConfig.from_json(optimizer.card["config"])
    price = config.price if price is None else price
    horizon = config.horizon if horizon is None else horizon
    require(price > 0, f"price must be above 0, got {price}")
    require(horizon >= 2, f"horizon must be at least 2, got {horizon}")
    require(num_problems >= 8, f"num_problems must be at least 8, got {num_problems}")
    config = replace(config, price=price, horizon=horizon)
    batch = family.sample(num_problems, stream(seed, "diagnose"))
    prices = torch.full((num_problems,), price)
    trajectory = unroll(optimizer, batch, horizon, prices, segment=config.segment)
    walked = _walk(optimizer.rule, batch, 2 * horizon)
    report: dict[str, Any] = {
        "price": price,
        "horizon": horizon,
        "num_problems": num_problems,
        "num_nonfinite": int((~trajectory.finite).sum()),
        "groups": walked["groups"],
        "gates": walked["gates"],
    }
    findings: list[Finding] = []
    if report["num_nonfinite"]:
        share = report["num_nonfinite"] / num_problems
        findings.append(
            Finding(
                "not finite",
                "",
                f"{share:.0%} of the problems do not stay finite for {horizon} steps.",
                "Begin with smaller updates (--set 'rule_settings={\"output_scale\": 0.03}') or a "
                "shorter --horizon.",
            )
        )
    findings += _check_gates(report["gates"])
    finite = trajectory.finite.nonzero().squeeze(1)
    if len(finite):
        trajectory = trajectory.select(finite)
        report["layers"] = _layers(optimizer, trajectory, config, seed)
        report["scale"] = _scale(trajectory.excess, price)
        report["drift"] = _drift(walked["excess"][finite], horizon)
        findings += _check_layers(report["layers"])
        findings += _check_scale(report["scale"], price, horizon)
        findings += _check_drift(report["drift"], horizon)
        if config.posterior != "none":
            report["posterior"] = _posterior(optimizer, trajectory, config.posterior)
            findings += _check_posterior(report["posterior"], report["scale"], horizon)
    report["findings"] = [asdict(finding) for finding in findings]
    return report


# ----------------------------------------------------------------------- optimizee, step by step


def _walk(rule: UpdateRule, batch: TaskBatch, num_steps: int) -> dict[str, Any]:
    """Along the first half of the steps the scales and gates, to the end the excess loss."""
    names, sizes = _groups(batch)
    scales: dict[str, list[Tensor]] = {"gradient": [], "update": [], "parameters": []}
    saturated: dict[str, list[float]] = {}
    params, state, excess = batch.start, rule.init(batch.start), []
    for step in range(num_steps):
        seen = batch.score(params, step)
        excess.append(seen.excess)
        if step < num_steps // 2:
            for name, share in _saturated(rule, seen.grad, state):
                saturated.setdefault(name, []).append(share)
        update, _, state = rule.step(seen.grad, state)
        if step < num_steps // 2:
            for key, value in zip(scales, (seen.grad, update, params), strict=True):
                parts = value.split(sizes, 1)
                scales[key].append(torch.stack([_rms(part) for part in parts]))
        params = params + update
    groups = [
        {
            "name": name,
            "num_parameters": size,
            **{
                f"{key}_rms": {
                    "first": values[0][number].item(),
                    "last": values[-1][number].item(),
                }
                for key, values in scales.items()
            },
        }
        for number, (name, size) in enumerate(zip(names, sizes, strict=True))
    ]
    gates = [
        {"name": name, "saturated": sum(shares) / len(shares)} for name, shares in saturated.items()
    ]
    return {"groups": groups, "gates": gates, "excess": torch.stack(excess, 1)}


def _groups(batch: TaskBatch) -> tuple[list[str], list[int]]:
    """The tensors of a network, or all parameters as one."""
    if isinstance(batch, ModuleBatch):
        shapes = batch.task.shapes
        return list(shapes), [shape.numel() for shape in shapes.values()]
    return ["parameters"], [batch.dim]


def _rms(value: Tensor) -> Tensor:
    """The median over problems, which one that diverges does not move."""
    return value.square().mean(1).sqrt().median()


def _saturated(
    rule: UpdateRule, grad: Tensor, state: State, prefix: str = ""
) -> Iterator[tuple[str, float]]:
    """The share of saturated units of every gate."""
    if isinstance(rule, PartitionedRule):
        begin = 0
        for number, (own, size) in enumerate(
            zip(rule.rules, rule.sizes_of(grad.shape[1]), strict=True)
        ):
            part = {
                name.removeprefix(f"{number}."): value
                for name, value in state.items()
                if name.startswith(f"{number}.")
            }
            yield from _saturated(own, grad[:, begin : begin + size], part, f"rule {number}, ")
            begin += size
    elif isinstance(rule, LSTMRule):
        shares = (rule.gate_logits(grad, state).abs() > _SATURATED).double().mean((0, 1, 4))
        for layer, row in enumerate(shares.tolist()):
            for gate, share in zip(_GATES, row, strict=True):
                yield f"{prefix}layer {layer}, {gate} gate", share


def _check_gates(gates: list[dict[str, Any]]) -> Iterator[Finding]:
    for gate in gates:
        if gate["saturated"] > 0.5:
            yield Finding(
                "saturated gates",
                gate["name"],
                f"{gate['saturated']:.0%} of its units are beyond ±{_SATURATED:g}, where no "
                "gradient passes.",
                "Train anew with a lower --learning-rate, or restart from a checkpoint before the "
                "weights grew.",
            )


# ------------------------------------------------------------------------------- meta-gradient


def _layers(
    optimizer: OptimizerModel, trajectory: Trajectory, config: TrainingConfig, seed: int
) -> list[dict[str, Any]]:
    """Scales of weights and meta-gradients, tensor by tensor."""
    frozen = {name: value.requires_grad for name, value in optimizer.named_parameters()}
    optimizer.requires_grad_(True)
    try:
        with torch.enable_grad():
            excess = trajectory.excess.clone().requires_grad_()
            said = HaltingOutput(*(value.clone().requires_grad_() for value in trajectory.halting))
            objective = MetaObjective(config, optimizer)
            generator = stream(seed, "diagnose", "objective")
            temperature = config.hazard_temperature
            losses = objective(excess, said, trajectory.price, temperature, generator)
            optimizer.zero_grad()
            losses.mean().backward()
        assert excess.grad is not None
        cotangent = HaltingOutput(
            *(torch.zeros_like(value) if value.grad is None else value.grad for value in said)
        )
        with torch.enable_grad():
            backpropagate(optimizer, trajectory, excess.grad, cotangent)
        return [
            {
                "name": name,
                "weight_rms": value.square().mean().sqrt().item(),
                "gradient_rms": 0.0
                if value.grad is None
                else value.grad.square().mean().sqrt().item(),
                # Adam moves every entry by about its learning rate.
                "update_share": config.learning_rate
                / max(value.square().mean().sqrt().item(), 1e-12),
            }
            for name, value in optimizer.named_parameters()
        ]
    finally:
        optimizer.zero_grad()
        for name, value in optimizer.named_parameters():
            value.requires_grad_(frozen[name])


def _check_layers(layers: list[dict[str, Any]]) -> Iterator[Finding]:
    for layer in layers:
        if not math.isfinite(layer["gradient_rms"]):
            yield Finding(
                "exploding gradient",
                layer["name"],
                "Its meta-gradient is not finite.",
                "Cut the state's gradient (--set truncate=true) or shorten the --horizon.",
            )
    rule = [layer for layer in layers if layer["name"].startswith("rule.")]
    strongest = max((layer["gradient_rms"] for layer in rule), default=0.0)
    for layer in rule:
        if layer["gradient_rms"] < _FAINT * strongest or strongest == 0:
            yield Finding(
                "vanishing gradient",
                layer["name"],
                f"Its meta-gradient is {layer['gradient_rms']:.2g}, that of the strongest layer "
                f"{strongest:.2g}.",
                "Look for saturated gates first; else begin anew with another --seed or fewer "
                "layers (--set 'rule_settings={\"num_layers\": 1}').",
            )


# ---------------------------------------------------------------------------- losses and prices


def _scale(excess: Tensor, price: float) -> dict[str, float]:
    table = costs(excess, price).double()
    oracle = table.argmin(1).double()
    gain = (excess[:, 0] - excess.amin(1)).double() / price
    return {
        "initial_in_prices": (excess[:, 0].double().median() / price).item(),
        "gain_in_prices": gain.median().item(),
        "oracle_steps": oracle.mean().item(),
        "oracle_sd": oracle.std().item(),
        "share_stopping_at_once": (oracle <= 1).double().mean().item(),
        "share_at_horizon": (oracle == excess.shape[1] - 1).double().mean().item(),
        "share_worse_at_horizon": (excess[:, -1] >= excess[:, 0]).double().mean().item(),
    }


def _check_scale(scale: Mapping[str, float], price: float, horizon: int) -> Iterator[Finding]:
    if scale["share_worse_at_horizon"] > 0.5:
        yield Finding(
            "no descent",
            "",
            f"{scale['share_worse_at_horizon']:.0%} of the problems end above the loss they "
            "started from.",
            "Let the rule learn by the losses alone at first (--preset lstm, or --set warmup=1), "
            "with --set 'rule_settings={\"initial_descent\": true}'.",
        )
    if scale["share_stopping_at_once"] > 0.9:
        yield Finding(
            "price above the losses",
            "",
            f"At a price of {price:g} it is best to stop {scale['share_stopping_at_once']:.0%} of "
            f"the problems within one step: all there is to gain is {scale['gain_in_prices']:.3g} "
            "prices.",
            "Lower the --price, which is what a step must gain in units of the loss.",
        )
    if scale["share_at_horizon"] > 0.5:
        yield Finding(
            "price below the losses",
            "",
            f"At a price of {price:g} {scale['share_at_horizon']:.0%} of the problems are worth "
            f"all {horizon} steps, so there is nothing to learn about stopping.",
            "Raise the --price or the --horizon.",
        )


# ------------------------------------------------------------------------------------ posterior


def _posterior(optimizer: OptimizerModel, trajectory: Trajectory, kind: str) -> dict[str, float]:
    said = trajectory.halting
    if kind == "softmax":
        mass = SoftmaxPosterior(cumulative_logits(said.increments[..., AFTER])).log_prob()
    elif kind == "graves":
        mass = GravesPosterior(said.hazard_logits[..., AFTER]).log_prob()
    else:
        mass = StickBreakingPosterior(said.hazard_logits[..., AFTER]).log_prob()
    decided = decisions(optimizer.policy(CostUnit.UPDATES).rule, trajectory.traces()).double()
    prob = mass.double().exp()
    return {
        "at_step_0": prob[:, 0].mean().item(),
        "at_horizon": prob[:, -1].mean().item(),
        "mean_stop": decided.mean().item(),
        "sd_stop": decided.std().item(),
    }


def _check_posterior(
    posterior: Mapping[str, float], scale: Mapping[str, float], horizon: int
) -> Iterator[Finding]:
    more = "--set head_steps=5000 --set num_recorded=65536"
    if posterior["at_step_0"] > 0.9 and scale["share_stopping_at_once"] < 0.9:
        yield Finding(
            "posterior collapsed to step 0",
            "",
            f"{posterior['at_step_0']:.0%} of its mass is where nothing is done, though "
            f"{scale['oracle_steps']:.3g} steps would be best on average.",
            "Train the head alone, distilled at first (--meta-steps 0 --rule-from RUN --set "
            "distilled=0.5).",
        )
    elif posterior["at_horizon"] > 0.9 and scale["share_at_horizon"] < 0.5:
        yield Finding(
            "posterior collapsed to the horizon",
            "",
            f"{posterior['at_horizon']:.0%} of its mass is at step {horizon}, though "
            f"{scale['oracle_steps']:.3g} steps would be best on average.",
            f"Train the head longer and on more problems ({more}), distilled at first.",
        )
    elif posterior["sd_stop"] < 0.02 * scale["oracle_sd"]:
        yield Finding(
            "stops do not depend on the problem",
            "",
            f"They differ by {posterior['sd_stop']:.2g} steps, those of the oracle by "
            f"{scale['oracle_sd']:.2g}.",
            f"Train the head longer and on more problems ({more}).",
        )


# ---------------------------------------------------------------------------------------- drift


def _drift(excess: Tensor, horizon: int) -> dict[str, float]:
    """From the horizon to twice as far, in shares of what was gained until then."""
    at, beyond = excess[:, horizon - 1], excess[:, -1]
    gained = (excess[:, 0] - at).clamp_min(1e-12)
    rise = ((beyond - at) / gained).nan_to_num(torch.inf, torch.inf)
    return {
        "median_rise": rise.median().item(),
        "share_rising": (rise > 0.1).double().mean().item(),
    }


def _check_drift(drift: Mapping[str, float], horizon: int) -> Iterator[Finding]:
    if drift["share_rising"] > 0.25:
        yield Finding(
            "drift beyond the horizon",
            "",
            f"From step {horizon} to {2 * horizon}, {drift['share_rising']:.0%} of the problems "
            "lose a tenth or more of what they had gained.",
            f"Never allow more than {horizon} steps, or train with a longer --horizon.",
        )
