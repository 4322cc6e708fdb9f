"""Stop rules over many seeds and prices, on the trajectories of one update rule."""

import copy
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

import torch
from torch import Tensor, nn

from haltwise._core.errors import require
from haltwise._core.random import stream
from haltwise._core.seen import warn_of_seen
from haltwise._core.settings import price_per_unit
from haltwise._core.tensors import map_tensors
from haltwise.evaluation.baselines import choose_policies, last_improvement
from haltwise.evaluation.evaluate import judge_model, keep_finite, warn_of_price
from haltwise.evaluation.judge import Stops, judge
from haltwise.evaluation.learners import LEARNERS, learned_baselines
from haltwise.evaluation.records import OverSeeds, StoppingRecord, StudyCell, StudyRecord
from haltwise.evaluation.statistics import jackknife
from haltwise.models.halting_model import HaltingModel
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.trajectory import Trajectory
from haltwise.recordings.runs import RecordedRuns
from haltwise.rollout.record import record
from haltwise.stop_rules import BASELINES, CostUnit
from haltwise.tasks.base import TaskFamily

__all__ = ["judge_runs", "study"]


_NAMES = ("learned", "calibrated", "after_gradient", "fixed", "oracle")


def study(
    models: Mapping[str, OptimizerModel],
    families: Mapping[str, TaskFamily],
    *,
    prices: Sequence[float],
    horizon: int,
    seeds: Sequence[int],
    num_problems: int = 2048,
    device: torch.device | str = "cpu",
    learners: bool = False,
    announce: Callable[[str], None] = lambda _: None,
) -> StudyRecord:
    """Judge stop rules seed by seed; see `haltwise.evaluation.judge`.

    A seed has its own test problems, stream (seed, "test"), and its own tuning problems, stream
    (seed, "tune"), on which baselines and the calibrated rule choose their settings.

    Args:
        models: By name, all with the same update rule, learned or hand-designed. The rules of the
            first are studied; of every other one, under its name, the calibrated rule.
        families: What to draw problems from, as many from each.
        prices: c, in units of the loss.
        horizon: T, steps allowed.
        seeds: At least 2.
        num_problems: n per seed, for the test and again for tuning; what is left over where several
            families share it is not drawn.
        device: Where problems are solved.
        learners: Whether trees and a logistic regression on all signals are baselines, too; see
            `haltwise.evaluation.learners`. They take half a minute a seed and price.
        announce: Called with a sentence at the start of each seed.

    Raises:
        InputError: A setting is impossible, a model does not halt, the models have several update
            rules, or no problem of a seed stays finite.
    """
    require(len(seeds) >= 2, f"a study needs at least 2 seeds, got {len(seeds)}")
    require(num_problems >= 32, f"num_problems must be at least 32, got {num_problems}")
    prices = [price_per_unit(price, "every price") for price in prices]
    for what, given in (("seed", seeds), ("price", prices)):
        twice = sorted({each for each in given if given.count(each) > 1})
        require(
            not twice, f"{what} {twice[:1]} is given twice, and would count twice; give it once"
        )
    for name, model in models.items():
        require(model.halting.halts, f"{name} was trained without halting; study another")
    first, *others = models.values()
    taken = sorted({*list(models)[1:]} & {*_NAMES, *BASELINES, *LEARNERS})
    require(not taken, f"{', '.join(taken)} is the name of a stop rule; choose another")
    require(
        all(_same_rule(first, other) for other in others),
        "halting models are compared on the trajectories of one update rule, but these have "
        "several",
    )
    for price in prices:
        for name, model in models.items():
            warn_of_price(model.halting, price, name)
    share, rule = num_problems // len(families), first.rule
    if isinstance(rule, nn.Module):
        rule = copy.deepcopy(rule).to(device)
    judged: dict[tuple[float, CostUnit], list[StoppingRecord]] = {}
    num_left_out = 0
    for seed in seeds:
        announce(f"seed {seed}")
        parts = []
        for part in ("test", "tune"):
            whole = Trajectory.join(
                [
                    record(rule, source.sample(share, stream(seed, part), device=device), horizon)
                    for source in families.values()
                ]
            )
            kept = whole.finite.nonzero().squeeze(1)
            require(len(kept) > 0, f"no problem of seed {seed} stays finite")
            parts.append(map_tensors(whole.select(kept), Tensor.cpu))
            num_left_out += whole.num_items - len(kept)
        for price in prices:
            baselines = learned_baselines(parts[1], parts[0], CostUnit, price) if learners else {}
            for unit in CostUnit:
                test, stops = _stops(models, parts, unit, price)
                cell = judge(test, stops | baselines.get(unit, {}), unit, price=price)
                judged.setdefault((price, unit), []).append(cell)
    return StudyRecord(
        optimizer=next(iter(models)),
        family=" + ".join(families),
        horizon=horizon,
        seeds=list(seeds),
        num_problems=share * len(families),
        num_left_out=num_left_out,
        cells=[_over_seeds(records, list(seeds)) for records in judged.values()],
    )


def judge_runs(
    model: HaltingModel, test: RecordedRuns, tuning: RecordedRuns, *, price: float
) -> StoppingRecord:
    """Judge the stops of a monitor on recorded runs beside baselines tuned on other runs.

    One of them, "last_improvement", needs no tuning: it stops where a round has gained no more than
    its price.

    Where the monitor's loop goes back to its best state at the end, all rules do.

    Args:
        model: What `haltwise.training.train_monitor` wrote, loaded.
        test: Runs that nothing was learned or tuned on.
        tuning: On which baselines choose their settings, and whether to return the best state seen.
        price: c, in units of the score.

    Raises:
        InputError: The price is impossible, or the runs differ in length.

    Warns:
        DataWarning: The monitor was trained on more than one in a hundred of the runs to judge by.
    """
    price = price_per_unit(price)
    warn_of_seen(model.card.seen, test.trajectory.loss, "runs")
    pair = [runs.keeping_best() if model.card.keeps_best else runs for runs in (test, tuning)]
    lengths = [runs.trajectory.num_steps for runs in pair]
    require(
        lengths[0] == lengths[1],
        f"the runs to judge by have {lengths[0]} steps, those to tune on {lengths[1]}; record them "
        "alike",
    )
    warn_of_price(model, price, "the monitor")
    runs, others = (model.attach(each.trajectory, price) for each in pair)
    unit, others = CostUnit.UPDATES, keep_finite(others)
    finite = keep_finite(runs)
    baselines = learned_baselines(others, finite, [unit], price)[unit]
    baselines["last_improvement"] = Stops.by(last_improvement(price, unit), finite, unit)
    return judge_model(model, runs, others, unit, price, baselines, has_reference=False)[0]


def _same_rule(one: OptimizerModel, other: OptimizerModel) -> bool:
    weights, others = one.state_dict(), other.state_dict()
    return one.card.rule == other.card.rule and all(
        torch.equal(weights[name], others[name]) for name in weights if name.startswith("rule.")
    )


def _stops(
    models: Mapping[str, OptimizerModel],
    parts: Sequence[Trajectory],
    unit: CostUnit,
    price: float,
) -> tuple[Trajectory, dict[str, Stops]]:
    """The test problems with the first model's outputs, and the stops of every rule on them.

    The learned one that is compared is the first.
    """
    found: dict[str, Stops] = {}
    first = None
    for name, model in models.items():
        test, tuning = (model.halting.attach(part, price) for part in parts)
        if not found:
            first = test
            policies = choose_policies(model.halting, tuning, unit, price)
        else:
            alone = choose_policies(model.halting, tuning, unit, price, baselines={})
            policies = {name: alone.get("calibrated", alone["learned"])}
        found |= {key: Stops.by(policy, test, unit) for key, policy in policies.items()}
    learned = "calibrated" if "calibrated" in found else "learned"
    assert first is not None
    return first, {learned: found.pop(learned), **found}


def _over_seeds(records: list[StoppingRecord], seeds: list[int]) -> StudyCell:
    first = records[0]
    j = {
        name: torch.tensor(
            [each.rules[name].j.value for each in records], dtype=torch.float64, device="cpu"
        )
        for name in first.rules
    }
    tuned = (name for name in (*BASELINES, *LEARNERS) if name in j)
    best = min(tuned, key=lambda name: j[name].mean().item())
    columns = torch.stack([values - j[first.judged] for values in j.values()], 1)
    difference = dict(zip(j, jackknife(lambda means: means, columns), strict=True))
    bound = torch.minimum(j["fixed"], j[best])
    return StudyCell(
        unit=first.unit,
        price=first.price,
        judged=first.judged,
        best_baseline=best,
        failures=[
            seed
            for seed, own, other in zip(seeds, j[first.judged], bound, strict=True)
            if not own < other
        ],
        rules={
            name: OverSeeds(
                j=values.tolist(),
                gain=[each.rules[name].gain.value for each in records],
                difference=difference[name],
                stop_sd=fmean([each.rules[name].sd_cost for each in records]),
                rank_correlation=fmean([each.rules[name].rank_correlation for each in records]),
            )
            for name, values in j.items()
        },
    )
