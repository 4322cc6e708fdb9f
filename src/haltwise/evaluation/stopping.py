"""The stopping report: how good stops are, from a matrix of losses and the stops alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.json import plain
from haltwise._core.random import stream
from haltwise.evaluation.cross_fitting import OPPONENTS, cross_fitted, halves
from haltwise.evaluation.statistics import (
    NUM_RESAMPLES,
    Interval,
    budget_for_loss,
    gain,
    interval,
    lower_hull,
    permuted_cost,
    randomized_budget,
    rank_correlation,
    resamples,
    weighted_quantiles,
)
from haltwise.stop_rules.accounts import CostUnit, costs, steps_charged

__all__ = ["MIN_PROBLEMS", "stopping_report"]

MIN_PROBLEMS = 20
"""With fewer, an interval means nothing."""

_FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
_LEVELS = (0.5, 0.75, 0.9, 0.95, 0.99)
_NUM_BINS = 10
_FEW_SEEDS = 5


def stopping_report(
    losses: Tensor,
    stops: Tensor,
    *,
    price: float,
    prices: Sequence[float] | None = None,
    account: CostUnit = CostUnit.UPDATES,
    returned: Tensor | None = None,
    hazards: Tensor | None = None,
    observed: Tensor | None = None,
    seeds: Tensor | None = None,
    seconds_per_step: float | None = None,
    seconds_per_decision: float = 0.0,
    opponents: bool = True,
    generator: torch.Generator | None = None,
) -> dict[str, Any]:
    """Judge stops on anybody's trajectories.

    J is the loss where a problem ends plus price times cost. The *oracle* ends each problem at its
    least J, seen in hindsight; the *best fixed budget* is one number of steps for all, chosen in
    hindsight. *Captured gain* is (J_fixed - J_rule) / (J_fixed - J_oracle),
    docs/theory.md, Eq. (captured-gain).

    Every estimate with `value`, `low` and `high` has a 95 % percentile bootstrap interval (Efron
    and Tibshirani 1993, chapter 13) from the same resamples of problems, so that differences are
    paired; the best fixed budget is chosen again in every resample. With two seeds or more, whole
    seeds are resampled.

    The opponents (fixed budget, plateau, patience in length and tolerance) are cross-fitted:
    problems are split into two halves, stratified by seed; each rule is tuned on one half and
    judged on the other, and the other way round, so that every problem is judged once by a rule
    that was not tuned on it. The stops are judged on the same problems. They are taken as given:
    if whatever made them was tuned on these problems, the comparison flatters them. Intervals hold
    for the rules as tuned, not for tuning them again.

    The hazard's reliability is that of a discrete-time hazard: of all (problem, t) that the oracle
    reaches, the share at which it stops, against the mean hazard, in ten equal bins of the hazard
    (as Guo et al. 2017, arXiv 1706.04599, section 2, do for classifiers).
    Cases of one problem depend on each other: `effective_cases`, (sum m)^2 / sum m^2 over the
    problems' numbers of cases m in a bin, counts them as if they agreed wholly (Kish 1965).

    Args:
        losses: Scored loss after 0..T steps, shape [n, T+1]; problems with a loss that is not
            finite are left out, and counted.
        stops: Step 0..T at which each problem's stop was decided, integers [n]; T if never.
        price: Of a step, above 0, in units of the loss.
        prices: At which the captured gain is also judged. [default: price x 1/4, 1/2, 1, 2, 4]
            The stops stay as they are.
        account: `UPDATES`: a stop at t costs t and returns theta_t. `GRADIENTS`: it costs t + 1
            and returns theta_{t+1}. The oracle and fixed budgets pay for the steps they take.
        returned: The s of the theta_s that each problem returns, integers [n], where that is not
            what the account says: the last update was left out, or the best iterate kept.
        hazards: Probability of stopping at t given that it is reached, in [0, 1], shape [n, T].
        observed: What the opponents see in place of `losses`, shape [n, T+1].
        seeds: The run or seed to which each problem belongs, integers [n].
        seconds_per_step: Wall-clock time of a step of one problem.
        seconds_per_decision: Wall-clock time of asking the stop rule once; it is asked at every
            step from 0 to the stop.
        opponents: Whether to tune opponents.
        generator: Of the resamples and the split.

    Returns:
        JSON values, None where a figure is undefined.

    Raises:
        InputError: A shape, a stop, a price or a hazard is impossible, or fewer than
            `MIN_PROBLEMS` problems have finite losses.
    """
    prices = [factor * price for factor in _FACTORS] if prices is None else list(prices)
    _check(losses, stops, price, prices, returned, hazards, observed, seeds)
    _check_seconds(seconds_per_step, seconds_per_decision)
    generator = stream(0, "stopping report") if generator is None else generator
    stops = stops.long()
    finite = losses.isfinite().all(1)
    all_seeds, all_losses, all_paid = (
        seeds,
        losses,
        steps_charged(stops, account, losses.shape[1] - 1),
    )
    all_ends = all_paid if returned is None else returned.long()
    losses, stops, seeds = losses[finite].double(), stops[finite], _rows(seeds, finite)
    hazards, observed = _rows(hazards, finite), _rows(observed, finite)
    _check_hazards(hazards)
    num, num_steps = len(losses), losses.shape[1] - 1
    end = steps_charged(stops, account, num_steps)
    table = costs(losses, price)
    oracle = table.argmin(1)
    loss = losses.gather(1, all_ends[finite].unsqueeze(1))
    cost = loss.squeeze(1) + price * end.double()
    clusters = None if seeds is None else torch.unique(seeds, return_inverse=True)[1]
    if clusters is not None and int(clusters.max()) == 0:
        clusters = None  # one seed: nothing to resample but its problems

    # Everything that is averaged over problems, each [n, k].
    columns = {
        "losses": losses,
        "loss": loss,
        "steps": end.unsqueeze(1),
        "moments": torch.stack((end, end**2, oracle, oracle**2), 1),
        "ends": torch.nn.functional.one_hot(end, num_steps + 1),
        "oracle": torch.stack([costs(losses, p).amin(1) for p in (price, *prices)], 1),
    }
    tuned: list[dict[str, Any]] = []
    if opponents:
        fold = halves(num, clusters, generator)
        seen = losses if observed is None else observed.double()
        columns["opponents"], tuned = cross_fitted(seen, losses, fold, account, price)
    if hazards is not None:
        cases = _cases(hazards.double(), table, account)
        columns |= cases
    if seconds_per_step is not None:
        asked = (stops + 1).clamp_max(num_steps)
        seconds = seconds_per_step * end + seconds_per_decision * asked
        columns["seconds"] = seconds.unsqueeze(1)
    columns = {name: values.double() for name, values in columns.items()}

    def figures(weights: Tensor) -> dict[str, Tensor]:
        return _figures(_means(columns, weights), price, prices, seconds_per_step)

    whole = torch.ones(1, num, dtype=torch.float64)
    levels = torch.tensor(_LEVELS, dtype=torch.float64)
    regret = cost - table.amin(1)
    blocks, quantiles = [], []
    for weights in resamples(num, generator, clusters):
        blocks.append(figures(weights))
        quantiles.append(weighted_quantiles(regret, weights, levels))
    spread = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
    found = {name: _interval(value, spread[name]) for name, value in figures(whole).items()}
    regrets = _interval(weighted_quantiles(regret, whole, levels), torch.cat(quantiles))

    mean_loss = losses.mean(0)
    reachable = mean_loss.cummin(0).values
    report: dict[str, Any] = {
        "account": account.value,
        "price": price,
        "num_problems": num,
        "num_steps": num_steps,
        "num_left_out": int((~finite).sum()),
        "num_left_out_at_nonfinite_loss": int(
            (~all_losses.gather(1, all_ends.unsqueeze(1)).isfinite()).sum()
        ),
        "rows_left_out": (~finite).nonzero().squeeze(1),
        "num_resamples": NUM_RESAMPLES,
        "resampled": "problems" if clusters is None else "seeds",
        "fixed_budget": int(table.mean(0).argmin()),
        "j": {name: found[f"j.{name}"] for name in ("rule", "oracle", "fixed")},
        "captured_gain": found["gain"],
        "captured_gain_by_price": [
            {
                "price": other,
                "fixed_budget": int(costs(losses, other).mean(0).argmin()),
                "gain": found[f"gain.{place}"],
            }
            for place, other in enumerate(prices)
        ],
        "regret": {
            "mean": found["regret"],
            "quantiles": [
                {"level": level, **estimate}
                for level, estimate in zip(_LEVELS, regrets, strict=True)
            ],
        },
        "frontier": {
            "mean_loss_by_budget": mean_loss,
            "hull": [t for t in lower_hull(reachable) if mean_loss[t] == reachable[t]],
            "mean_steps": found["steps"],
            "mean_loss": found["loss"],
            **{name: found[name] for name in _FRONTIER},
            "equal_loss_reached": bool((mean_loss <= found["loss"]["value"]).any()),
        },
        "permutation": {
            "j": permuted_cost(table, end),
            "skill": found["skill"],
        },
        "degeneracy": {
            "mean": end.double().mean().item(),
            "sd": end.double().std().item(),
            "oracle_mean": oracle.double().mean().item(),
            "oracle_sd": oracle.double().std().item(),
            "sd_ratio": found["sd_ratio"],
            "rank_correlation": rank_correlation(end, oracle),
            "share_at_0": (end == 0).double().mean().item(),
            "share_at_horizon": (end == num_steps).double().mean().item(),
            "oracle_share_at_0": (oracle == 0).double().mean().item(),
            "oracle_share_at_horizon": (oracle == num_steps).double().mean().item(),
        },
        "reliability": None if hazards is None else _reliability(cases, found),
        "opponents": {
            name: {
                "j": found["j.opponents"][place],
                "difference": found["difference"][place],
                "captured_gain": found["gain.opponents"][place],
                "settings": [chosen[name] for chosen in tuned],
            }
            for place, name in enumerate(OPPONENTS if opponents else ())
        },
        "seeds": None
        if all_seeds is None
        else _by_seed(all_losses, all_paid, all_ends, all_seeds, price),
        "seconds": None
        if seconds_per_step is None
        else {
            "per_step": seconds_per_step,
            "per_decision": seconds_per_decision,
            **{name: found[f"seconds.{name}"] for name in _SECONDS},
        },
    }
    report["warnings"] = _warnings(report, oracle, clusters)
    result: dict[str, Any] = plain(report)
    return result


_FRONTIER = (
    "fixed_loss_at_equal_steps", "loss_below_fixed", "fixed_steps_for_equal_loss", "saved_steps",
    "saved_share",
)  # fmt: skip
_SECONDS = ("per_problem", "saved_of_horizon", "saved_of_equal_loss")


def _check(
    losses: Tensor,
    stops: Tensor,
    price: float,
    prices: Sequence[float],
    returned: Tensor | None,
    hazards: Tensor | None,
    observed: Tensor | None,
    seeds: Tensor | None,
) -> None:
    require(
        losses.ndim == 2 and losses.shape[1] >= 2,
        "losses must have shape [n, T+1], a row a problem and a column for each of the steps "
        f"0..T, T at least 1; got {list(losses.shape)}",
    )
    num, num_steps = len(losses), losses.shape[1] - 1
    shapes = {
        "stops": (stops, [num]),
        "returned": (returned, [num]),
        "hazards": (hazards, [num, num_steps]),
        "observed": (observed, [num, num_steps + 1]),
        "seeds": (seeds, [num]),
    }
    for name, (value, shape) in shapes.items():
        require(
            value is None or list(value.shape) == shape,
            f"{name} must have shape {shape} to go with losses of shape {list(losses.shape)}, got "
            f"{list(value.shape) if value is not None else None}",
        )
    for name, integers in (("stops", stops), ("returned", returned), ("seeds", seeds)):
        kind = None if integers is None else integers.dtype
        require(
            kind is None or not (kind.is_floating_point or kind.is_complex or kind == torch.bool),
            f"{name} must be integers, got {str(kind).removeprefix('torch.')}; convert with "
            f"{name}.astype(int)",
        )
    if num:
        row = int(stops.argmax())
        require(
            int(stops[row]) <= num_steps,
            f"stops go up to {int(stops[row])} (row {row}), a horizon longer than the data: losses "
            f"hold the steps 0..{num_steps}; record more steps or cap the stops",
        )
        row = int(stops.argmin())
        require(
            int(stops[row]) >= 0,
            f"stops must lie in 0..{num_steps}, got {int(stops[row])} in row {row}; a problem that "
            f"never stopped has {num_steps}",
        )
        if returned is not None:
            row = int(((returned < 0) | (returned > num_steps)).int().argmax())
            require(
                0 <= int(returned[row]) <= num_steps,
                f"returned must lie in 0..{num_steps}, got {int(returned[row])} in row {row}",
            )
    for each in (price, *prices):
        require(
            math.isfinite(each) and each > 0,
            f"price must be a finite number above 0, in units of the loss per step, got {each}",
        )
    num_finite = int(losses.isfinite().all(1).sum())
    require(
        num == 0 or num_finite > 0,
        f"every one of the {num} problems has a loss that is NaN or infinite, so nothing is left "
        "to judge; record losses that are finite",
    )
    left_out = f" after {num - num_finite} with NaN or infinite losses were left out"
    require(
        num_finite >= MIN_PROBLEMS,
        f"a report needs at least {MIN_PROBLEMS} problems, got {num_finite}"
        f"{left_out if num_finite < num else ''}; record more",
    )


def _check_seconds(per_step: float | None, per_decision: float) -> None:
    require(
        per_step is None or (math.isfinite(per_step) and per_step > 0),
        f"seconds per step must be above 0, got {per_step}",
    )
    require(
        math.isfinite(per_decision) and per_decision >= 0,
        f"seconds per decision must be at least 0, got {per_decision}",
    )
    require(
        per_step is not None or per_decision == 0,
        f"seconds per decision ({per_decision}) need seconds per step beside them",
    )


def _check_hazards(hazards: Tensor | None) -> None:
    if hazards is None:
        return
    wrong = ~((hazards >= 0) & (hazards <= 1))
    if wrong.any():
        row, step = wrong.nonzero()[0].tolist()
        require(
            False,
            f"hazards must be probabilities in [0, 1], got {hazards[row, step].item():g} at step "
            f"{step}; apply a sigmoid to log-odds",
        )


def _rows(values: Tensor | None, chosen: Tensor) -> Tensor | None:
    return None if values is None else values[chosen]


def _means(columns: Mapping[str, Tensor], weights: Tensor) -> dict[str, Tensor]:
    """Weighted means over problems: columns [n, k] and weights [R, n] to [R, k]."""
    means = weights @ torch.cat(list(columns.values()), 1) / weights.sum(1, keepdim=True)
    widths = [values.shape[1] for values in columns.values()]
    return dict(zip(columns, means.split(widths, 1), strict=True))


def _figures(
    means: Mapping[str, Tensor],
    price: float,
    prices: Sequence[float],
    seconds_per_step: float | None,
) -> dict[str, Tensor]:
    """Every figure that has an interval, [R] or [R, k], from means [R, k]."""
    losses, loss, steps = means["losses"], means["loss"].squeeze(1), means["steps"].squeeze(1)
    result = {"loss": loss, "steps": steps}

    # J and captured gain, at the price and at the others.
    for place, value in enumerate((price, *prices), start=-1):
        fixed, oracle = costs(losses, value).amin(1), means["oracle"][:, place + 1]
        name = "gain" if place < 0 else f"gain.{place}"
        result[name] = gain(fixed, loss + value * steps, oracle)
    table, oracle = costs(losses, price), means["oracle"][:, 0]
    rule, fixed = loss + price * steps, table.amin(1)
    result |= {"j.rule": rule, "j.oracle": oracle, "j.fixed": fixed, "regret": rule - oracle}
    result["skill"] = (means["ends"] * table).sum(1) - rule  # dealt at random, see permuted_cost

    # Against fixed budgets mixed at random, free to take fewer steps than they may.
    reachable = losses.cummin(1).values
    pairs = list(zip(reachable, steps.tolist(), loss.tolist(), strict=True))
    at_steps = loss.new_tensor([randomized_budget(curve, mean) for curve, mean, _ in pairs])
    needed = loss.new_tensor([budget_for_loss(curve, level) for curve, _, level in pairs])
    needed = needed.clamp_max(losses.shape[1] - 1)  # at least that, if never reached
    result["fixed_loss_at_equal_steps"] = at_steps
    result["loss_below_fixed"] = at_steps - loss
    result["fixed_steps_for_equal_loss"] = needed
    result["saved_steps"] = needed - steps
    result["saved_share"] = 1 - steps / needed

    mean, square, oracle_mean, oracle_square = means["moments"].unbind(1)
    variance, oracle_variance = square - mean**2, oracle_square - oracle_mean**2
    ratio = (variance.clamp_min(0) / oracle_variance).sqrt()
    result["sd_ratio"] = torch.where(oracle_variance > 1e-9, ratio, torch.nan)

    if "opponents" in means:
        theirs = means["opponents"]
        result["j.opponents"] = theirs
        result["difference"] = rule.unsqueeze(1) - theirs
        result["gain.opponents"] = gain(fixed.unsqueeze(1), theirs, oracle.unsqueeze(1))
    if "cases" in means:
        result["frequency"] = means["events"] / means["cases"]
    if seconds_per_step is not None:
        seconds = means["seconds"].squeeze(1)
        result["seconds.per_problem"] = seconds
        result["seconds.saved_of_horizon"] = seconds_per_step * (losses.shape[1] - 1) - seconds
        result["seconds.saved_of_equal_loss"] = seconds_per_step * needed - seconds
    return result


def _interval(value: Tensor, spread: Tensor) -> Any:
    """Intervals as JSON: of value [1] and spread [R] one, of [1, k] and [R, k] a list."""
    if value.ndim == 2:
        return [_interval(value[:, k], spread[:, k]) for k in range(value.shape[1])]
    if not value.isfinite():
        return asdict(Interval(math.nan, math.nan, math.nan))
    known = spread[spread.isfinite()]  # a few resamples may leave a ratio undefined
    return asdict(interval(value.item(), known))


def _cases(hazards: Tensor, table: Tensor, account: CostUnit) -> dict[str, Tensor]:
    """Per problem and bin: cases that the oracle reaches, its stops there, sums of hazards."""
    if account is CostUnit.GRADIENTS:
        # A decision at t ends at t + 1; at T - 1 both answers end at T.
        table, hazards = table[:, 1:], hazards[:, :-1]
    stop = table.argmin(1, keepdim=True)
    steps = torch.arange(hazards.shape[1])
    reached, event = steps <= stop, steps == stop
    place = (hazards * _NUM_BINS).long().clamp_max(_NUM_BINS - 1)

    def by_bin(values: Tensor) -> Tensor:
        return hazards.new_zeros(len(hazards), _NUM_BINS).scatter_add(1, place, values.double())

    return {
        "cases": by_bin(reached),
        "events": by_bin(event),
        "hazards": by_bin(hazards * reached),
    }


def _reliability(cases: Mapping[str, Tensor], found: Mapping[str, Any]) -> dict[str, Any]:
    """The calibration curve and its expected error."""
    count, events, hazards = (cases[name].sum(0) for name in ("cases", "events", "hazards"))
    effective = count**2 / cases["cases"].square().sum(0)
    bins = [
        {
            "low": place / _NUM_BINS,
            "high": (place + 1) / _NUM_BINS,
            "num_cases": int(count[place]),
            "effective_cases": effective[place].item(),
            "mean_hazard": (hazards[place] / count[place]).item(),
            "frequency": found["frequency"][place],
        }
        for place in range(_NUM_BINS)
        if count[place] > 0
    ]
    total = count.sum()
    return {
        "num_cases": int(total),
        "mean_hazard": (hazards.sum() / total).item(),
        "frequency": (events.sum() / total).item(),
        "expected_calibration_error": ((hazards - events).abs().sum() / total).item(),
        "bins": bins,
    }


def _by_seed(
    losses: Tensor, steps: Tensor, end: Tensor, seeds: Tensor, price: float
) -> dict[str, Any]:
    """Each seed by itself, with its own best fixed budget; mean and sd over seeds; failures."""
    entries, failures = [], []
    for seed in torch.unique(seeds).tolist():
        rows = seeds == seed
        finite = losses[rows].isfinite().all(1)
        table = costs(losses[rows][finite].double(), price)
        stop = steps[rows][finite]
        entry: dict[str, Any] = {
            "seed": seed,
            "num_problems": len(table),
            "num_left_out": int((~finite).sum()),
        }
        if len(table) == 0:
            failures.append({"seed": seed, "reason": "every problem has a non-finite loss"})
            entries.append(entry)
            continue
        loss = losses[rows][finite].double().gather(1, end[rows][finite].unsqueeze(1)).squeeze(1)
        rule = (loss + price * stop.double()).mean()
        fixed, oracle = table.mean(0).amin(), table.amin(1).mean()
        entry["j"] = rule.item()
        entry["fixed_j"] = fixed.item()
        entry["oracle_j"] = oracle.item()
        entry["captured_gain"] = gain(fixed, rule, oracle).item()
        entry["mean_steps"] = stop.double().mean().item()
        entries.append(entry)
        if rule > fixed + 1e-12 * fixed.abs():
            reason = f"J {rule.item():.6g} is above {fixed.item():.6g}, the best fixed budget's"
            failures.append({"seed": seed, "reason": reason})
    figures = {}
    for name in ("j", "captured_gain", "mean_steps"):
        values = torch.tensor([e[name] for e in entries if math.isfinite(e.get(name, math.nan))])
        figures[name] = {
            "mean": values.double().mean().item(),
            "sd": values.double().std().item() if len(values) > 1 else None,
        }
    return {"num": len(entries), "over_seeds": figures, "by_seed": entries, "failures": failures}


def _warnings(report: Mapping[str, Any], oracle: Tensor, clusters: Tensor | None) -> list[str]:
    """What a reader must know before believing the figures, a sentence each."""
    warnings = []
    price = f"{report['price']:g}"
    if (oracle == 0).all():
        warnings.append(
            f"At a price of {price} stopping at step 0 is best for every problem, so there is "
            "nothing to learn about when to stop; choose a lower price."
        )
    elif (oracle == report["num_steps"]).all():
        warnings.append(
            f"At a price of {price} using all {report['num_steps']} steps is best for every "
            "problem, so there is nothing to learn about when to stop; choose a higher price or "
            "record more steps."
        )
    elif not math.isfinite(report["captured_gain"]["value"]):
        warnings.append(
            f"At a price of {price} one fixed budget is as good as the oracle, so the captured "
            "gain is undefined."
        )
    if report["num_left_out"]:
        rows = report["rows_left_out"].tolist()
        shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
        ended = report["num_left_out_at_nonfinite_loss"]
        warnings.append(
            f"{len(rows)} problems have NaN or infinite losses and are left out (rows {shown}); "
            f"the stops of {ended} of them end at such a loss."
        )
    if report["degeneracy"]["sd"] == 0:
        warnings.append("Every stop is the same step: this is a fixed budget.")
    if report["degeneracy"]["oracle_share_at_horizon"] > 0.05:
        share = 100 * report["degeneracy"]["oracle_share_at_horizon"]
        warnings.append(
            f"Even the oracle uses the whole horizon on {share:.0f} % of the problems: at this "
            "price the horizon is short."
        )
    if clusters is not None and int(clusters.max()) + 1 < _FEW_SEEDS:
        warnings.append(
            f"Intervals over {int(clusters.max()) + 1} seeds are rough; use at least {_FEW_SEEDS}."
        )
    return warnings
