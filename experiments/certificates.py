"""Measure how often certificates are wrong, what they cost, and when they refuse.

    python experiments/certificates.py --curves FOLDER      # some half an hour on one core
    python experiments/certificates.py problems --quick

FOLDER holds the recorded training curves (algoperf.npz and so on); without it, only the families of
this package are measured. Parts: problems, tails, groups, streams, speed; all if none is named.

The truth is the whole pool that calibration problems are drawn from, with replacement; where whole
groups are held out it is the mean in one of them, drawn at random.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import binom, norm
from torch import Tensor

from haltwise._core.random import stream
from haltwise.certificates import (
    Certificate,
    ExcessLoss,
    LossAbove,
    Refusal,
    Risk,
    RiskTable,
    certify_table,
    from_the_safest,
    tabulate,
)
from haltwise.certificates.e_process import bets_of, share_waiting
from haltwise.models import load
from haltwise.processes import Trajectory
from haltwise.rollout import record
from haltwise.stop_rules import CostUnit, Plateau, ReturnedIterate, StopRule, costs
from haltwise.tasks import family

CONFIDENCE = 0.9
LEVELS = (0.01, 0.02, 0.05)
NUM_THRESHOLDS = 40
PARTS = ("problems", "tails", "groups", "streams", "speed")
MODELS = {
    "regression-2d": "regression-2d",
    "regression-10d": "regression-10d",
    "regression-10d-plain-adam": "regression-10d-plain",
    "regression-10d-noisy-adam": "regression-10d-noisy",
}
DISTANCES = {"excess": ExcessLoss(), "above": LossAbove(0.1)}


class Pool(NamedTuple):
    """A risk table of all problems there are."""

    name: str
    table: RiskTable


# ---------------------------------------------------------------------------- families of our own


def relative(trajectory: Trajectory) -> Trajectory:
    """What a stop loses against the last step, as a share of the excess loss at the start."""
    kept = trajectory.select(trajectory.finite.nonzero().squeeze(1))
    start, end = kept.excess[:, :1].clamp_min(1e-12), kept.excess[:, -1:]
    return replace(kept, excess=(kept.excess - end).clamp_min(0) / start)


def spread(rules: list[StopRule]) -> list[StopRule]:
    """At most so many of the rules, evenly."""
    places = np.linspace(0, len(rules) - 1, min(NUM_THRESHOLDS, len(rules))).round()
    return [rules[int(place)] for place in np.unique(places)]


def table_of(rules: list[StopRule], whole: Trajectory, risk: Risk, unit: CostUnit) -> RiskTable:
    """Thresholds are found on the first 512 problems, the others are the pool."""
    tuning, pool = whole.select(torch.arange(512)), whole.select(torch.arange(512, len(whole.loss)))
    returns = ReturnedIterate.CURRENT if unit is CostUnit.UPDATES else ReturnedIterate.NEXT
    found = from_the_safest(rules, tuning, risk, unit=unit, returns=returns, bound=1.0)
    ordered = spread(found)
    return tabulate(ordered, pool, risk, unit=unit, returns=returns, bound=1.0, clip=True)


def model_pools(num: int, chosen: str) -> Iterator[Pool]:
    """Shipped halting models on fresh problems of their families."""
    for name, problems in MODELS.items():
        if chosen not in name:
            continue
        model, price = load(name), load(name).card.price
        parts = [
            record(model.rule, family(problems).sample(2048, stream(11, "pool", part)), 60)
            for part in range(num // 2048)
        ]
        whole = relative(model.halting.attach(Trajectory.join(parts), price))
        unit = model.card.unit
        rules = model.halting.method.candidates(
            whole.select(torch.arange(512)), costs(whole.excess[:512], price), unit.decision_time
        )
        for kind, risk in DISTANCES.items():
            yield Pool(f"{name}, {kind}", table_of(list(rules), whole, risk, unit))


def mixture_pools(num: int, chosen: str) -> Iterator[Pool]:
    """EM for mixtures of two normal laws, 50 points, stopped where the likelihood is flat."""
    if chosen not in "EM":
        return
    generator = stream(11, "em")
    points = torch.randn(num, 50, generator=generator, dtype=torch.float64)
    second = torch.rand(num, 50, generator=generator) < 0.4
    points += 3 * torch.rand(num, 1, generator=generator) * second
    centres = points[:, :2].sort(1).values.clone()
    weight = torch.full((num, 1), 0.5, dtype=torch.float64)
    losses = []
    for _ in range(101):
        log_density = -0.5 * (points.unsqueeze(2) - centres.unsqueeze(1)).square()
        joint = log_density + torch.cat((weight, 1 - weight), 1).log().unsqueeze(1)
        losses.append(-joint.logsumexp(2).mean(1))
        share = joint.softmax(2)
        total = share.sum(1).clamp_min(1e-9)
        centres = (share * points.unsqueeze(2)).sum(1) / total
        weight = (total[:, :1] / 50).clamp(1e-6, 1 - 1e-6)
    loss = torch.stack(losses, 1)
    whole = relative(Trajectory(loss, loss - loss.amin(1, keepdim=True)))
    rules: Any = Plateau.candidates(whole.select(torch.arange(512)), whole.excess)
    for kind, risk in DISTANCES.items():
        yield Pool(f"EM, {kind}", table_of(rules, whole, risk, CostUnit.UPDATES))


# ------------------------------------------------------------------------- recorded training curves


class Runs(NamedTuple):
    """Runs with the progress [points] of each, 0 at the start and 1 at its target."""

    progress: list[npt.NDArray[np.float64]]
    length: list[float]
    group: list[str]


def curve_pools(folder: Path | None, chosen: str) -> Iterator[Pool]:
    """Share of successes given up by runs that progress too slowly for their age."""
    if folder is None:
        return
    for maker in (algoperf, taskset, nanogpt, opda, lcdb):
        if chosen not in maker.__name__:
            continue
        runs = maker(folder)
        least = [score(p, n)[k:].min(initial=9) for p, n, k in pieces(runs)]
        found = np.quantile(least, np.linspace(0, 0.9, NUM_THRESHOLDS - 1))
        thresholds = np.concatenate(([-np.inf], found))  # the first gives nothing up
        lost = np.zeros((len(runs.progress), len(thresholds)), bool)
        saved = np.zeros(lost.shape)
        success = np.array([p.max() >= 1 for p in runs.progress])
        for i, (p, n, k) in enumerate(pieces(runs)):
            end = int((p >= 1).argmax()) if success[i] else len(p) - 1
            lowest = np.minimum.accumulate(score(p, n)[k : end + 1])
            first = (lowest[None, :] >= thresholds[:, None]).sum(1)  # points before giving up
            stops = first < len(lowest)
            lost[i] = stops & success[i]
            saved[i] = np.where(stops, end - (k + first), 0) / max(len(p) - 1, 1)
        table = RiskTable.of(lost, saved, groups=runs.group, subjects=success)
        yield Pool(f"{maker.__name__}, given up", table)


def pieces(runs: Runs) -> Iterator[tuple[npt.NDArray[np.float64], float, int]]:
    """Progress, full length, and the first point at which giving up is allowed."""
    for progress, length in zip(runs.progress, runs.length, strict=True):
        yield progress, length, max(1, len(progress) // 20)


def score(progress: npt.NDArray[np.float64], length: float) -> npt.NDArray[np.float64]:
    """Best progress so far for the square root of the age."""
    age = np.arange(len(progress)) / length
    return np.maximum.accumulate(progress) / np.sqrt(np.maximum(age, 1e-9))


def towards(loss: npt.NDArray[Any], target: float, start: float) -> npt.NDArray[np.float64]:
    """Progress of losses from a start to a target; what is not finite makes none."""
    clean = np.where(np.isfinite(loss), loss.astype(float), start)
    return np.clip((start - clean) / max(start - target, 1e-9), -1, 1)


def parted(values: npt.NDArray[Any], offset: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Ragged runs as a list."""
    return [values[a:b] for a, b in itertools.pairwise(offset)]


def algoperf(folder: Path) -> Runs:
    """Until the validation target; runs end there, and groups are submissions."""
    data = np.load(folder / "algoperf.npz")
    kept = [], [], []
    for i, value in enumerate(parted(data["value"], data["offset"])):
        metric = -value[:, 4].astype(float) * data["metric_sign"][i]
        if len(metric) < 5 or not np.isfinite(metric[0]):
            continue
        target = -float(data["target"][i, 0] * data["metric_sign"][i])
        seconds = float(data["target"][i, 2]) * (3 if data["ruleset"][i] == "self_tuning" else 1)
        share = max(value[-1, 1] / seconds, 1e-3)
        kept[0].append(towards(metric, target, metric[0]))
        kept[1].append(len(metric) / min(share, 1))
        kept[2].append(str(data["submission"][i]))
    return Runs(*kept)


def taskset(folder: Path) -> Runs:
    """Until the best fifth of a task's configurations; groups are tasks."""
    data = np.load(folder / "taskset.npz")
    progress, group = [], []
    for name, valid in zip(data["task"], data["valid"], strict=True):
        best = np.nanmin(np.where(np.isfinite(valid), valid, np.nan), 1)
        target, start = float(np.nanquantile(best, 0.2)), float(np.nanmedian(valid[:, 0]))
        progress += [towards(run, target, start) for run in valid]
        group += [str(name)] * len(valid)
    return Runs(progress, [51.0] * len(progress), group)


def nanogpt(folder: Path) -> Runs:
    """Until a validation loss of 3.28, the target of the speedrun; groups are its records."""
    data = np.load(folder / "nanogpt.npz")
    runs = parted(data["value"][:, 1], data["offset"])
    progress = [towards(run, 3.28, float(run[0])) for run in runs]
    return Runs(progress, [float(len(run)) for run in runs], [str(r) for r in data["record"]])


def opda(folder: Path) -> Runs:
    """Until the accuracy that the best fifth of a model's runs ends with; groups are models."""
    data = np.load(folder / "opda.npz")
    progress: list[npt.NDArray[np.float64]] = []
    group: list[str] = []
    for name, column in (("alexnet", 2), ("deberta_base", 1)):
        runs = parted(1 - data[f"{name}_value"][:, column] / 100, data[f"{name}_offset"])
        runs = [run for run in runs if len(run) >= 5]
        target = float(np.quantile([np.nanmin(run) for run in runs], 0.2))
        start = float(np.nanmedian([run[0] for run in runs]))
        progress += [towards(run, target, start) for run in runs]
        group += [name] * len(runs)
    return Runs(progress, [float(len(run)) for run in progress], group)


def lcdb(folder: Path) -> Runs:
    """Until .02 above the best error of a data set; groups are data sets."""
    error = np.load(folder / "lcdb11_error.npz")["value"][:, :, 0, 1].astype(float)
    error[error == 65535] = np.nan
    progress, group = [], []
    for place, curves in enumerate(error / 10000):
        curves = [run[np.isfinite(run)] for run in curves]  # noqa: PLW2901
        curves = [run for run in curves if len(run) >= 10]  # noqa: PLW2901
        if len(curves) < 5:
            continue
        target = min(run.min() for run in curves) + 0.02
        start = float(np.median([run[0] for run in curves]))
        progress += [towards(run, target, start) for run in curves]
        group += [str(place)] * len(curves)
    return Runs(progress, [float(len(run)) for run in progress], group)


# ------------------------------------------------------------------------------------------- parts


def drawn(table: RiskTable, index: Tensor, *, grouped: bool = False) -> RiskTable:
    """The problems at an index as a table of their own."""
    return replace(
        table,
        losses=table.losses[index],
        savings=table.savings[index],
        groups=table.groups[index] if grouped and table.groups is not None else None,
        subjects=table.subjects[index],
    )


def problems(pools: list[Pool], repeats: int) -> None:
    """Problems are exchangeable: 1,000 draws of calibration problems from the pool."""
    headings = ("refused", "violated", "without", "kept", "at most")
    print(f"{'family, risk':<38}{'n':>6}{'level':>7}", *(f"{name:>9}" for name in headings))
    for name, table in pools:
        losses = table.relative_losses()
        truth, savings = losses.mean(0), table.savings.mean(0)
        about = table.subjects.nonzero().squeeze(1)
        others = (~table.subjects).nonzero().squeeze(1)
        spread_of_each = losses.std(0)
        for num in (50, 1000):
            generator = stream(0, name, num)
            counts = {level: Counts() for level in LEVELS}
            for _ in range(repeats):
                index = about[torch.randint(len(about), (num,), generator=generator)]
                if len(others):  # they have no risk, but savings
                    more = torch.randint(len(others), (num * len(others) // len(about),),
                                         generator=generator)  # fmt: skip
                    index = torch.cat((index, others[more]))
                sample = drawn(table, index)
                means, saved = sample.relative_losses().mean(0), sample.savings.mean(0)
                for level, count in counts.items():
                    within = (means <= level).nonzero().squeeze(1)
                    bold = within[saved[within].argmax()] if len(within) else None
                    count.naive += bold is not None and bool(truth[bold] > level)
                    found = certify_table(sample, level=level, confidence=CONFIDENCE)
                    if isinstance(found, Refusal):
                        count.refused += 1
                        continue
                    count.violated += bool(truth[found.threshold] > level)
                    if bold is not None:
                        count.certified += savings[found.threshold].item()
                        count.uncertified += savings[bold].item()
            for level, count in counts.items():
                kept = count.certified / count.uncertified if count.uncertified else float("nan")
                mean = count.uncertified / max(repeats - count.refused, 1)
                power = powers(truth, spread_of_each, num, level, table.is_indicator)
                most = kept_at_best(power, savings) / mean if mean else float("nan")
                shares = (n / repeats for n in (count.refused, count.violated, count.naive))
                print(f"{name:<38}{num:>6}{level:>7}",
                      *(f"{s:>9.3f}" for s in (*shares, kept, most)), flush=True)  # fmt: skip


def powers(
    truth: Tensor, spread: Tensor, num: int, level: float, is_indicator: bool
) -> npt.NDArray[np.float64]:
    """A bound on the probability with which any valid test certifies each threshold by itself.

    Of losses of 0 or 1 it is that of the binomial test, which lets k failures pass, the most that
    are no likelier than 1 - confidence at the level. Of others it is that of the test of a normal
    mean with a known spread, which is the best for many problems; nor is it above
    (1 - confidence) / (1 - e)^n: were one problem in 1 / e a loss of 1, the mean would be at the
    level, and n problems would look the same with a probability of (1 - e)^n.
    """
    if not is_indicator:
        distance = (level - truth) * num**0.5 / spread.clamp_min(1e-12)
        unseen = ((level - truth) / (1 - truth)).clamp(0, 1 - 1e-12).numpy()
        hidden = (1 - CONFIDENCE) * np.exp(-num * np.log1p(-unseen))
        return np.minimum(norm.cdf(distance.numpy() - norm.ppf(CONFIDENCE)), hidden)
    passes = [k for k in range(num) if binom.cdf(k, num, level) <= 1 - CONFIDENCE]
    if not passes:
        return np.zeros(len(truth))
    return binom.cdf(passes[-1], num, truth.numpy())


def kept_at_best(power: npt.NDArray[np.float64], savings: Tensor) -> float:
    """Mean savings if each threshold were certified with that power, the bolder ones with it."""
    order = savings.argsort()
    ordered = savings[order].clamp_min(0).numpy()
    passed = np.maximum.accumulate(power[order][::-1])[::-1]
    return float((np.diff(ordered, prepend=0.0) * passed).sum())


@dataclass
class Counts:
    """Splits that went so, and savings summed over those that were certified."""

    refused: int = 0
    violated: int = 0
    naive: int = 0
    certified: float = 0.0
    uncertified: float = 0.0


def tails(repeats: int) -> None:
    """Laws made to deceive; the risk is above the level, so whatever is certified is wrong."""
    print(f"{'law':<38}{'n':>6}{'level':>8}{'certified, wrongly':>20}")
    laws = {
        "1 in one problem of 1,000": (0.001, 0.0009),
        "0 or 1, just above the level": (0.0501, 0.05),
        "0 or 1/2, just above the level": (0.1002, 0.05),
        "exponential, just above the level": (None, 0.05),
        "nearly constant, just above the level": (1.0, 0.05),
    }
    for law, (chance, level) in laws.items():
        for num in (50, 1000, 5000):
            generator = stream(0, law, num)
            wrong = 0
            for _ in range(repeats):
                uniform = torch.rand(num, 1, generator=generator, dtype=torch.float64)
                if law.startswith("exponential"):  # clipped at 1: its mean is .0501
                    losses = (-0.0501 * uniform.log()).clamp_max(1)
                elif law.startswith("nearly"):
                    losses = 0.0501 + 0.001 * (uniform - 0.5)
                else:
                    losses = (uniform < chance).double() * (0.5 if "1/2" in law else 1.0)
                table = RiskTable.of(losses, is_indicator=False)
                found = certify_table(table, level=level, confidence=CONFIDENCE)
                wrong += isinstance(found, Certificate)
            print(f"{law:<38}{num:>6}{level:>8}{wrong / repeats:>20.3f}", flush=True)


def groups(pools: list[Pool], repeats: int) -> None:
    """Whole groups are held out: calibrate on some, look at one of the others."""
    print(f"{'family':<12}{'G':>5}{'level':>7}  {'promise':<13}{'refused':>8}{'needed':>7}"
          f"{'violated':>10}{'mean risk':>11}{'savings':>9}{'by problem':>12}")  # fmt: skip
    for name, table in pools:
        if table.groups is None:
            continue
        with_subject = table.groups[table.subjects].unique()
        total = len(with_subject)
        for num in sorted({total - 1, min(total - 1, 13), min(total - 1, 60)}):
            for level in LEVELS:
                for confidence in (CONFIDENCE, None):
                    measure_groups(name, table, with_subject, num, level, confidence, repeats)


def measure_groups(
    name: str, table: RiskTable, labels: Tensor, num: int, level: float,
    confidence: float | None, repeats: int,
) -> None:  # fmt: skip
    """A line of the table of `groups`."""
    assert table.groups is not None
    generator = stream(0, name, num, str(level), "groups")
    refused = violated = by_problem = 0
    needed: int | None = None
    risks, savings = [], []
    for _ in range(repeats):
        order = labels[torch.randperm(len(labels), generator=generator)]
        index = torch.isin(table.groups, order[:num]).nonzero().squeeze(1)
        held_out = (table.groups == order[num]).nonzero().squeeze(1)
        last = drawn(table, held_out)
        last_means = last.relative_losses().mean(0)
        plain = certify_table(drawn(table, index), level=level, confidence=CONFIDENCE)
        if isinstance(plain, Certificate):
            by_problem += bool(last_means[plain.threshold] > level)
        found = certify_table(drawn(table, index, grouped=True), level=level, confidence=confidence)
        if isinstance(found, Refusal):
            refused, needed = refused + 1, found.num_needed
            risks.append(0.0)  # nothing is stopped
            continue
        violated += bool(last_means[found.threshold] > level)
        risks.append(last_means[found.threshold].item())
        savings.append(last.savings[:, found.threshold].mean().item())
    promise = "expectation" if confidence is None else "next group"
    saved = statistics.fmean(savings) if savings else float("nan")
    short = name.partition(",")[0]
    print(f"{short:<12}{num:>5}{level:>7}  {promise:<13}{refused / repeats:>8.3f}"
          f"{needed or '-':>7}{violated / repeats:>10.3f}{statistics.fmean(risks):>11.4f}"
          f"{saved:>9.3f}{by_problem / repeats:>12.3f}", flush=True)  # fmt: skip


def streams(repeats: int) -> None:
    """The e-process: false alarms over 10,000 runs, and delay once the risk has doubled."""
    print(f"{'losses':<14}{'level':>7}{'confidence':>12}{'false alarms':>14}"
          f"{'median delay':>14}{'after 2,000 at half':>21}")  # fmt: skip
    generator = np.random.default_rng(0)
    for kind, size in (("0 or 1", 1.0), ("0 or 1/4", 0.25), ("exponential", None)):
        for level in LEVELS:
            at_level = np.full(10_000, level)
            risen = np.concatenate((np.full(2000, level / 2), np.full(8000, 2 * level)))
            found = {
                name: highest_wealth(losses_of(generator, size, mean, repeats), level)
                for name, mean in (("at", at_level), ("high", 2 * at_level), ("late", risen))
            }
            for confidence in (0.9, 0.95):
                alarms = {name: (w >= 1 / (1 - confidence)) for name, w in found.items()}
                first = {
                    name: np.where(a.any(0), a.argmax(0) + 1, 10_001) for name, a in alarms.items()
                }
                print(f"{kind:<14}{level:>7}{confidence:>12}{alarms['at'].any(0).mean():>14.3f}"
                      f"{np.median(first['high']):>14.0f}{np.median(first['late']) - 2000:>21.0f}",
                      flush=True)  # fmt: skip


def losses_of(
    generator: np.random.Generator, size: float | None, means: npt.NDArray[Any], num: int
) -> npt.NDArray[Any]:
    """Streams of losses of these means, 0 or `size`, or exponential: [runs, streams]."""
    if size is None:
        return generator.exponential(means[:, None], (len(means), num))
    return size * (generator.random((len(means), num)) < means[:, None] / size)


def highest_wealth(losses: npt.NDArray[Any], level: float) -> npt.NDArray[Any]:
    """The largest wealth so far of an `EProcess` on each of many streams, [runs, streams]."""
    bets, weights = (np.array(each)[:, None] for each in bets_of(level))
    wealth = np.empty_like(losses)
    begun = np.zeros((len(bets), losses.shape[1]))
    for num, loss in enumerate(losses):
        new = share_waiting(num) - share_waiting(num + 1)
        begun = np.minimum((begun + new) * (1 + bets * (loss - level)), 1e100)
        wealth[num] = (weights * begun).sum(0) + share_waiting(num + 1)
    return np.maximum.accumulate(wealth)


def speed() -> None:
    """10^5 problems under 100 thresholds, on one thread."""
    generator = stream(0, "speed")
    losses = torch.rand(100_000, 100, generator=generator, dtype=torch.float64) * 0.04
    for kind, values in (("any losses", losses), ("an indicator", losses < 0.0004)):
        table = RiskTable.of(values, losses)
        begin = time.perf_counter()
        found = certify_table(table, level=0.03, confidence=0.9).require()
        seconds = time.perf_counter() - begin
        print(f"{kind}: {seconds:.2f} s, {found.threshold + 1} thresholds certified")


def main() -> None:
    """Print a table a part."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=PARTS, choices=(*PARTS, []))
    parser.add_argument("--curves", type=Path)
    parser.add_argument("--family", default="", help="part of the names of those measured")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    repeats = 50 if options.quick else 1000
    curves = []
    if {"problems", "groups"} & set(options.parts):
        curves = list(curve_pools(options.curves, options.family))
    if "problems" in options.parts:
        num = 4096 if options.quick else 8192
        own = (*model_pools(num, options.family), *mixture_pools(num, options.family))
        problems([*own, *curves], repeats)
    if "tails" in options.parts:
        tails(repeats)
    if "groups" in options.parts:
        groups(curves, repeats)
    if "streams" in options.parts:
        streams(repeats)
    if "speed" in options.parts:
        speed()


if __name__ == "__main__":
    main()
