"""Which optimizer to use: the shipped ones tried on a sample, beside Adam and L-BFGS.

All are judged on one half of the sample by J, the mean loss at the stop plus price times gradients.
What Adam leaves open, its rate and its number of steps, is tuned for J on the other half.
"""

import math
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.errors import DataWarning, FitWarning, InputError, require, warn
from haltwise._core.percent import in_percent
from haltwise._core.random import stream
from haltwise._core.settings import price_per_unit, whole_number
from haltwise._core.tensors import undisturbed, widened
from haltwise.engines import lbfgs
from haltwise.engines.run import begin, descend
from haltwise.engines.stops import PriceStop
from haltwise.evaluation.optimizers import LEARNING_RATES, loss_curves
from haltwise.interfaces.kept import refuse_engines
from haltwise.interfaces.own_form import in_coordinates
from haltwise.interfaces.solve import Solution, solve
from haltwise.models.files import placed
from haltwise.models.loading import load, names
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.optimization import OptimizationProcess
from haltwise.processes.units import Units
from haltwise.tasks.base import TaskBatch, TaskFamily, ask
from haltwise.update_rules import Adam

__all__ = ["Recommendation", "Trial", "recommend"]

_SHARE = 500  # of the gain to be had, for a price if none is given
_STEPS = 100  # of all, unless told otherwise
_HANDED_OVER, _FOREIGN = 0.1, 0.5  # shares of the problems, above which weights do not fit
_UNTUNED = 1e-3
_COORDINATES, _MOST = 2**17, 128  # of the sample
LBFGS = "L-BFGS"
NOTHING = "nothing"
"""What to use where no step is worth its price."""


@final
@dataclass(frozen=True)
class Trial:
    """What an optimizer did on the judged half of a sample."""

    name: str
    loss: float
    """Mean loss at the stop, above the reference where the problems know one."""
    num_gradients: float
    """Mean number of gradients a problem."""
    seconds: float
    """Time of the whole half."""
    j: float
    """Mean loss plus price times gradients; infinite where a loss is not finite."""
    handed_over: float | None = None
    """Share of the problems handed to L-BFGS; None for what ships without weights."""
    foreign: float | None = None
    """Share whose first two steps lie far outside the scales on the card; None where it has none.
    """
    fits: bool | None = None
    """Whether at most a tenth is handed over, at most half foreign and the price was trained on."""
    learning_rate: float | None = None
    """Adam's."""


@final
@dataclass(frozen=True, repr=False)
class Recommendation:
    """What to use, and what each optimizer did; `repr` is a table."""

    use: str
    """A shipped name, `adam`, `adam 1e-3` or `L-BFGS`; `nothing` where no step is worth its price.
    """
    sentence: str
    """What to use and why, in words."""
    price: float
    num_judged: int
    """Problems that all were judged on."""
    num_tuning: int
    """Others, on which Adam was tuned; 0 if there was one problem alone."""
    trials: tuple[Trial, ...]
    """The lowest J first."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Shipped names that cannot take these problems, and why."""

    def __repr__(self) -> str:
        rows = [("", "J", "loss", "gradients", "seconds", "handed over", "fits")]
        rows += [
            (
                trial.name,
                f"{trial.j:.4g}",
                f"{trial.loss:.4g}",
                f"{trial.num_gradients:.1f}",
                f"{trial.seconds:.2g}",
                "" if trial.handed_over is None else in_percent(trial.handed_over),
                {None: "", True: "yes", False: "no"}[trial.fits],
            )
            for trial in self.trials
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join((row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])))
            for row in rows
        ]
        return "\n".join((*lines, self.sentence))


class _Outcome(NamedTuple):
    """Mean loss and gradients of each judged problem, [B], and what took how long."""

    loss: Tensor
    num_gradients: Tensor
    seconds: float
    learning_rate: float | None = None


@undisturbed()
def recommend(
    problems: TaskBatch | TaskFamily,
    optimizers: Iterable[str | Path] | None = None,
    *,
    price: float | None = None,
    max_steps: int = _STEPS,
    num_problems: int | None = None,
    seed: int = 0,
) -> Recommendation:
    """Try optimizers on a sample of problems and say which to use.

    Each shipped optimizer solves half of the sample as `haltwise.solve` would, guarded. Beside it
    are Adam, its rate and number of steps of least J on the other half; Adam at 1e-3, its number of
    steps chosen so; and, where losses are deterministic, safeguarded L-BFGS, which halts where its
    steps do not earn their price. What is recommended has the lowest J; of the optimizers with
    weights only those that fit are, since what L-BFGS did for the others it does alone. Where none
    is below the mean loss at the start nothing is.

    Args:
        problems: A batch, of which a sample is taken, or a family to draw it from.
        optimizers: Names, run directories or weights files to try; what ships if None.
        price: What a gradient must earn, in units of the loss; a 500th of the mean gain of L-BFGS
            (of Adam, where losses are stochastic) if None. See `haltwise.price_for_time`.
        max_steps: Gradients a problem may cost at most.
        num_problems: Size of the sample; if None up to 128, fewer of large problems.
        seed: Of the sample. All but the seconds depend on it alone.

    Raises:
        InputError: The problems or a setting are no good.

    Warns:
        DataWarning: Problems are left out, since their first loss is not finite.

    Examples:
        >>> from haltwise.tasks import family
        >>> found = recommend(
        ...     family("quadratic-10d"), ["quadratic-10d"], price=0.003, num_problems=40
        ... )
        >>> found.use, found.num_judged
        ('L-BFGS', 20)
    """
    max_steps = whole_number("max_steps", max_steps)
    sample = _sample(problems, num_problems, seed)
    sample = _with_finite_starts(sample)
    half = sample.num_problems // 2
    index = torch.arange(sample.num_problems, device=sample.start.device)
    judged = sample.select(index[half:]) if half else sample
    tuning = sample.select(index[:half]) if half else sample
    price = price_per_unit(_price_of(judged, max_steps) if price is None else price)
    own = {} if sample.stochastic else {LBFGS: _lbfgs(judged, price, max_steps)}
    own["adam"] = _adam(LEARNING_RATES[::3], tuning, judged, price, max_steps)
    own["adam 1e-3"] = _adam((_UNTUNED,), tuning, judged, price, max_steps)
    trials = [_trial(name, outcome, price) for name, outcome in own.items()]
    outcomes, skipped = dict(own), {}
    for name in names() if optimizers is None else optimizers:
        try:
            refuse_engines(name)
            model = placed(load(name), sample.start)
            if optimizers is None and not model.halting.halts:
                continue
            outcomes[str(name)], solution = _solved(judged, model, price, max_steps)
        except InputError as error:
            require(optimizers is None, f"{name} cannot be tried: {error}")
            skipped[str(name)] = str(error)
            continue
        trials.append(_trial(str(name), outcomes[str(name)], price, model, judged, solution))
    trials.sort(key=lambda trial: trial.j)
    use = next(trial for trial in trials if trial.fits is not False)
    sentence = _advice(use, outcomes[use.name], price, max_steps)
    sentence += f"{_reason(use, trials, outcomes, price)}."
    gains = use.j < _score(judged, judged.start).mean().item()
    return Recommendation(
        use.name if gains else NOTHING,
        sentence if gains else _NO_GAIN.format(price=price),
        price,
        judged.num_problems,
        half,
        tuple(trials),
        skipped,
    )


def _sample(problems: TaskBatch | TaskFamily, number: int | None, seed: int) -> TaskBatch:
    require(
        isinstance(problems, TaskBatch | TaskFamily),
        f"problems must be a TaskBatch or a TaskFamily, got {type(problems).__name__}; make a "
        "batch of a loss by haltwise.FunctionBatch(start, loss, data)",
    )
    dim = problems.dim
    number = max(4, min(_MOST, _COORDINATES // dim)) if number is None else number
    number = whole_number("num_problems", number)
    generator = stream(seed, "recommend")
    if isinstance(problems, TaskFamily):
        return in_coordinates(problems.sample(number, generator))
    chosen = torch.randperm(problems.num_problems, generator=generator, device="cpu")[:number]
    return in_coordinates(problems).select(chosen.to(problems.start.device))


def _with_finite_starts(sample: TaskBatch) -> TaskBatch:
    """The problems that begin with a finite loss: of others no optimizer makes anything."""
    seen = ask(sample.observe, sample.start, 0).loss.cpu()
    kept = (seen.isfinite() & _score(sample, sample.start).isfinite()).nonzero().squeeze(1)
    num = sample.num_problems
    require(len(kept) > 0, f"none of {num} problems begins with a finite loss; start elsewhere")
    if len(kept) < num:
        warn(
            f"{num - len(kept)} of {num} problems are left out: they begin with a loss that is not "
            "finite",
            DataWarning,
        )
        sample = sample.select(kept.to(sample.start.device))
    return sample


def _score(batch: TaskBatch, params: Tensor) -> Tensor:
    """The loss that stops are judged by, infinite where it is not finite, float64 [B]."""
    return ask(batch.score, params, 0).excess.cpu().double().nan_to_num(math.inf, math.inf)


def _price_of(judged: TaskBatch, max_steps: int) -> float:
    begun = _score(judged, judged.start)
    if not judged.stochastic:
        lowest = _lbfgs(judged, 0.0, max_steps).loss
    else:
        curves = (loss_curves(Adam(r), judged, max_steps).excess for r in LEARNING_RATES[::6])
        ends = torch.stack([widened(each).mean(0).min().cpu() for each in curves])
        lowest = ends.nan_to_num(math.inf, math.inf).min()
    gain = (begun - lowest).mean().item()
    require(
        0 < gain < math.inf,
        f"{'Adam' if judged.stochastic else LBFGS} does not lower the losses, so no price follows "
        "from what it gains; give a price",
    )
    return gain / _SHARE


def _lbfgs(batch: TaskBatch, price: float, max_steps: int) -> _Outcome:
    began = time.perf_counter()
    engine, num = lbfgs.LBFGS(), batch.num_problems
    begun, seen = begin(engine, batch, torch.full((num,), max_steps, device=batch.start.device))
    found = descend(engine, batch, begun, [PriceStop(torch.full_like(seen.loss, price))])
    seconds = time.perf_counter() - began
    spent = (found.spent + 1).cpu().double()
    return _Outcome(_score(batch, found.point.params), spent, seconds)


def _adam(
    rates: Iterable[float], tuning: TaskBatch, judged: TaskBatch, price: float, max_steps: int
) -> _Outcome:
    """Adam at the rate and for the number of steps of least J on the tuning problems."""
    best, rate, steps = math.inf, _UNTUNED, 1
    paid = price * torch.arange(max_steps + 1, dtype=torch.float64, device="cpu")
    for each in rates:
        mean = loss_curves(Adam(each), tuning, max_steps).excess.cpu().double().mean(0)
        j = (mean + paid).nan_to_num(math.inf, math.inf)
        if j.min() < best:
            best, rate, steps = j.min().item(), each, int(j.argmin())
    began = time.perf_counter()
    params, rule = judged.start, Adam(rate)
    state = rule.init(params)
    for step in range(steps):
        update, _, state = rule.update(ask(judged.observe, params, step).grad, state)
        params = params + update
    seconds = time.perf_counter() - began
    loss = _score(judged, params)
    return _Outcome(loss, torch.full_like(loss, steps), seconds, rate)


def _solved(
    batch: TaskBatch, model: OptimizerModel, price: float, max_steps: int
) -> tuple[_Outcome, Solution]:
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)  # the table says it
        solution = solve(batch, model, price=price, max_steps=max_steps)
    seconds = time.perf_counter() - began
    gradients = solution.num_gradients.cpu().double()
    return _Outcome(_score(batch, solution.params), gradients, seconds), solution


def _trial(
    name: str,
    outcome: _Outcome,
    price: float,
    model: OptimizerModel | None = None,
    batch: TaskBatch | None = None,
    solution: Solution | None = None,
) -> Trial:
    loss, gradients = outcome.loss.mean().item(), outcome.num_gradients.mean().item()
    trial = Trial(
        name,
        loss,
        gradients,
        outcome.seconds,
        loss + price * gradients,
        learning_rate=outcome.learning_rate,
    )
    if model is None or batch is None or solution is None:
        return trial
    handed_over = widened(solution.fallback).mean().item()
    foreign = _foreign(model, batch, solution)
    asked = price * solution.loss_scale
    known = (model.halting.trained_price(asked) - asked).abs() <= 1e-4 * asked
    fits = (
        handed_over <= _HANDED_OVER and (foreign or 0) <= _FOREIGN and widened(known).mean() > 0.5
    )
    return Trial(name, loss, gradients, outcome.seconds, trial.j, handed_over, foreign, bool(fits))


def _foreign(model: OptimizerModel, batch: TaskBatch, solution: Solution) -> float | None:
    """Share of the problems far outside the card's scales, in the units they were seen in."""
    scales = model.card.scales
    if scales is None:
        return None
    sizes = solution.param_scale.unsqueeze(1).expand_as(batch.start)
    process = OptimizationProcess(model.rule, batch, Units(sizes, solution.loss_scale))
    first, state = process.step(0, process.init())
    second, _ = process.step(1, state)
    foreign = scales.is_foreign(first.known("signals"), second.known("signals"))
    return widened(foreign).mean().item()


_NO_GAIN = (
    "Leave these problems as they start: at a price of {price:.3g} a gradient nothing that was "
    "tried gains what it costs."
)


def _advice(use: Trial, outcome: _Outcome, price: float, max_steps: int) -> str:
    """What to write to have done what was tried."""
    if use.learning_rate is not None:
        return f"Use Adam at a rate of {use.learning_rate:.3g} for {use.num_gradients:.0f} steps"
    how = 'method="lbfgs"' if use.name == LBFGS else f'"{use.name}"'
    ends = f", max_steps={max_steps}" if outcome.num_gradients.max() >= max_steps else ""
    return f"Use haltwise.solve(problems, {how}, price={price:.3g}{ends})"


def _reason(use: Trial, trials: list[Trial], outcomes: dict[str, _Outcome], price: float) -> str:
    with_weights = [trial for trial in trials if trial.fits is not None]
    fitting = [trial for trial in with_weights if trial.fits]
    rivals = [trial for trial in trials if trial.fits is None] if use.fits else fitting
    why = ""
    for rival in rivals[:1]:  # the best
        gap = _difference(outcomes[rival.name], outcomes[use.name], price)
        why = f": J is lower by {gap} prices a problem than that of {rival.name}, the best of the "
        why += "optimizers without weights" if use.fits else "shipped optimizers that fit"
    if not fitting and with_weights:
        why = "; nothing shipped fits these problems"
    return why


def _difference(worse: _Outcome, better: _Outcome, price: float) -> str:
    """The mean paired difference of J in prices, with twice its standard error."""
    each = (worse.loss - better.loss) / price + worse.num_gradients - better.num_gradients
    if not each.isfinite().all():
        return "infinitely many"
    if len(each) < 2:
        return f"{each.mean().item():.3g}"
    return f"{each.mean().item():.3g} ± {2 * each.std().item() / math.sqrt(len(each)):.2g}"
