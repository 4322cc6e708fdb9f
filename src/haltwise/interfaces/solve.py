"""Thousands of problems in one call: each runs until it is not worth another gradient."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from haltwise._core.arrays import require_unmasked
from haltwise._core.errors import FitWarning, InputError, require, warn
from haltwise._core.progress import followed
from haltwise._core.settings import require_flags, shown, whole_number
from haltwise._core.tensors import select_state, undisturbed, widened
from haltwise.engines import Engine
from haltwise.engines.named import engine_for
from haltwise.engines.run import ZERO
from haltwise.interfaces.chunk import Chunk
from haltwise.interfaces.engine_run import rule_to_stop, solve_by_engine, tolerances_of
from haltwise.interfaces.fit import MANY_MISFITS, warn_of_misfits
from haltwise.interfaces.kept import model_for, named
from haltwise.interfaces.near_bounds import STUCK, stuck_at_bounds
from haltwise.interfaces.own_form import (
    Values,
    columns_of,
    data_frame,
    in_own_form,
    num_parameters,
)
from haltwise.interfaces.run import price_of_each, stop_policy
from haltwise.interfaces.standard_errors import (
    FAR,
    WRONG,
    StandardErrors,
    require_curvature,
    standard_errors_at,
)
from haltwise.interfaces.stationary import NO_MINIMUM, falls_from
from haltwise.models.halting_model import HaltingModel
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.rollout.early_exit import Outcome
from haltwise.stop_rules import CostUnit, StopPolicy, StopRule
from haltwise.stop_rules.base import begin
from haltwise.tasks.base import TaskBatch
from haltwise.tasks.trial import require_solvable
from haltwise.update_rules import UpdateRule

__all__ = ["Solution", "solve"]

_CHUNK = 2**17  # coordinates at once; their states and temporaries take 1.4 kB each
_LARGEST_CHUNK = 2**21  # on an accelerator
_MEMORY_EACH = 2**14  # bytes of its memory for each of them
_OPTIMIZER = "regression-10d"
_EVALUATIONS = 200  # of an engine, unless told otherwise
_MANY = 20  # problems of which a share tells more than each


@final
@dataclass(frozen=True, repr=False)
class Solution:
    """What became of B problems; arrays where the start was given in NumPy arrays, else tensors.

    Attributes:
        params: The parameters returned, in the form of the start, shape [B, D] or [B, ...] by name.
        loss: The loss there, shape [B]; of a stochastic task that of minibatch number `steps`.
        steps: Gradients evaluated before they were reached, int64 [B].
        num_gradients: Gradients evaluated, int64 [B].
        outcome: `haltwise.Outcome` values, int64 [B]: HALTED, OUT_OF_STEPS, or NONFINITE where
            the loss at the start, or without the guard any loss, gradient or update, was not
            finite; the parameters are then those of that step, before the update.
        reason: Index into `reasons` of what stopped each problem, -1 where nothing did; int64 [B].
        reasons: Why a problem may be stopped, in words.
        success: Whether it halted where the price pays for no more, or where a tolerance is met.
            Of a learned optimizer, whether what is left to gain, by the curvature seen, is not
            clearly above the price, that is by more than three times. Never OUT_OF_STEPS or
            NONFINITE; bool [B].
        left: What another step is forecast to gain from there, shape [B]. Of a learned optimizer, a
            step of L-BFGS, by the last gradients observed; infinite where the loss is convex along
            none of the last steps, NaN where there was no step or losses are stochastic.
        fallback: Where L-BFGS took over from the optimizer, bool [B].
        param_scale: Units of parameters in which the optimizer saw each problem, shape [B]: 1
            where they were its own.
        loss_scale: Likewise, by what factor it saw the losses, shape [B].
        history: If asked for, the losses in the order of evaluation, NaN behind the last, shape
            [B, max(num_gradients)].
        method: The engine that solved them, and why.
        standard_errors: If asked for, those of the parameters, by the curvature where they ended.
    """

    params: Any
    loss: Values
    steps: Values
    num_gradients: Values
    outcome: Values
    reason: Values
    reasons: tuple[str, ...]
    success: Values
    left: Values
    fallback: Values
    param_scale: Values
    loss_scale: Values
    history: Values | None = None
    method: str = "lstm"
    standard_errors: StandardErrors | None = None

    def __repr__(self) -> str:
        number, dim = len(self.loss), num_parameters(self.params)
        method = self.method.partition(", as ")[0]
        counts = {outcome: int((self.outcome == outcome).sum()) for outcome in Outcome}
        ends = ", ".join(
            f"{count:,} {outcome.name.lower().replace('_', ' ')}"
            for outcome, count in counts.items()
            if count
        )
        taken = int(self.fallback.sum())
        early = int(((self.outcome == Outcome.HALTED) & ~self.success).sum())
        return (
            f"Solution({number:,} problems of {dim:,} parameters by {method}: "
            f"{ends}; {widened(torch.as_tensor(self.num_gradients)).mean():.1f} gradients each, "
            f"median loss {torch.as_tensor(self.loss).nanmedian():.4g}"
            + (f"; L-BFGS took over in {taken:,}" if taken else "")
            + (f"; {early:,} halted {self._unsuccessfully})" if early else ")")
        )

    @property
    def _unsuccessfully(self) -> str:
        return "too early for their price" if self.method == "lstm" else "without success"

    def why(self, problem: int) -> str:
        """Say in words why a problem ended.

        Args:
            problem: Its index.
        """
        reason = int(self.reason[problem])
        if reason < 0:
            return _WHY[Outcome(int(self.outcome[problem]))]
        left = self.left[problem].item()
        if self.success[problem] or math.isnan(left) or self.method != "lstm":
            return self.reasons[reason]
        more = f"{left:.2g} is" if math.isfinite(left) else "more than one can tell is"
        return f"{self.reasons[reason]}, but by the curvature seen {more} left to gain"

    def to_frame(
        self,
        index: Any = None,
        names: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    ) -> Any:
        """Convert to a data frame of pandas with a row for each problem.

        Columns are the parameters by name (`rate`, `effect[0]`, ...; `params[0]`, ... of a single
        tensor), their standard errors (`rate_se`, ...) if asked for, `loss`, `num_gradients`,
        `success`, `outcome` and `reason`.

        Args:
            index: A label for each row; or the `haltwise.Groups` that the problems were made of,
                whose keys they then are, and the index is called as their column; counted from 0 if
                None.
            names: What to call the D numbers of a single tensor, in order, for instance
                `["intercept", *groups.columns["x"]]`; of named parameters a dictionary of such
                lists, for those that are to have other names.

        Raises:
            InputError: pandas is not installed, the index has another length, names do not fit the
                parameters, or a parameter is called as another column.

        Examples:
            >>> from haltwise import FunctionBatch
            >>> batch = FunctionBatch(torch.ones(2, 2), lambda params: params.square().sum(1))
            >>> solution = solve(batch, method="newton")
            >>> frame = solution.to_frame(["a", "b"], names=["base", "slope"])  # doctest: +SKIP
            >>> frame.loc["a", "slope"]  # doctest: +SKIP
            0.0
        """
        errors = self.standard_errors
        columns = [*columns_of(self.params, names=names).items()]
        columns += [] if errors is None else columns_of(errors.params, "_se", names).items()
        own = {name: getattr(self, name) for name in ("loss", "num_gradients", "success")}
        columns += columns_of(own).items()
        outcome, reason = (torch.as_tensor(v).cpu() for v in (self.outcome, self.reason))
        why = torch.where(reason < 0, len(self.reasons) + outcome, reason)
        reasons = (*self.reasons, *(_WHY.get(outcome, "") for outcome in Outcome))
        texts = {
            "outcome": (outcome.numpy(), [outcome.name for outcome in Outcome]),
            "reason": (why.numpy(), reasons),
        }
        return data_frame(columns, texts, index)


_WHY = {
    Outcome.OUT_OF_STEPS: "it used all the gradients allowed; raise max_steps",
    Outcome.NONFINITE: "its loss or gradient is not finite",
}


@undisturbed()
def solve(
    problem: TaskBatch,
    optimizer: str | Path | OptimizerModel | None = None,
    stop: StopRule | StopPolicy | str | Path | HaltingModel | OptimizerModel | None = None,
    *,
    method: str | Engine | UpdateRule | None = None,
    price: float | Tensor | None = None,
    gtol: float | None = None,
    ftol: float | None = None,
    xtol: float | None = None,
    max_steps: int | None = None,
    param_scale: float | Tensor | None = None,
    guard: bool = True,
    history: bool = False,
    chunk_size: int | None = None,
    standard_errors: bool = False,
    progress: bool = False,
) -> Solution:
    """Minimise B problems side by side; each leaves the batch as soon as it halts.

    All is computed in the dtype (float32 or float64) and on the device of `problem.start`.
    Problems run in chunks, so what memory is needed beside the problems and the solution does not
    grow with B. No problem disturbs another, the best point seen is returned, to within rounding of
    the loss, and none is worse than the start.

    `method` says by which engine:

    - `"newton"`: Newton's method with a line search, or IRLS where the problem gives such a
      curvature. The fastest where curvature is given.
    - `"bfgs"`: BFGS that begins with the Hessian; the fastest for few parameters of a smooth loss
      that gives none.
    - `"gauss-newton"`: for residuals, damped after Levenberg and Marquardt where it must be.
    - `"lbfgs"`: L-BFGS, for any smooth loss and any number of parameters.
    - `"adam"`, `"gradient-descent"`, `"momentum"`, `"nesterov"`, `"rmsprop"`: rules at a rate of
      0.1 for Adam and 0.01 for others; for another give the rule, as in
      `method=haltwise.update_rules.Adam(0.3)`.
    - `"auto"`: Gauss-Newton for residuals, Newton where curvature is given, BFGS for up to 16
      parameters, else L-BFGS; `Solution.method` says which and why.
    - `"lstm"`: a learned `optimizer`.
    - None: `"lstm"` where an `optimizer`, `param_scale` or `guard=False` is given, or where losses
      differ from step to step, which no other method takes; else `"auto"`. Weights know the
      problems that they were trained on, and nobody said that these are such.

    An engine stops a problem by a price: where the next evaluation is not worth it. Newton,
    Gauss-Newton and BFGS know from the curvature what a step will gain; the step at hand is then
    taken, if the loss behind it is no higher. Or by tolerances, each with SciPy's meaning; those
    that are not given are off, and of several the first that is met counts:

    - `gtol`: max_i |g_i| <= gtol, as L-BFGS-B, BFGS and `least_squares` have it.
    - `ftol`: a step from f to f' with (f - f') / max(|f|, |f'|, 1) <= ftol, as L-BFGS-B has it;
      of Gauss-Newton f - f' < ftol f, as `least_squares` has it.
    - `xtol`: a step s from x with |s| < xtol (xtol + |x|), as `least_squares` has it.

    Without any of them, these are gtol = 1e-5 and ftol = 2.2e-9, SciPy's for L-BFGS-B, and for
    Gauss-Newton all 1e-8, those of `least_squares`.

    What follows is about learned optimizers. On an NVIDIA GPU steps of few problems are recorded as
    CUDA graphs, where batch, stop rule and optimizer are made of this package's classes, and kept
    with the optimizer for its next problems (`haltwise.rollout.step_graphs`); a loss of your own is
    called step by step. A guard watches what is evaluated anyway. The first steps tell in which
    units a problem is one that the optimizer was trained on, judged by the median of the call's
    problems and then each by itself; what was spent in other units counts in `num_gradients`. And
    where a problem does not behave as those in training did, where anything is not finite, or steps
    are left after the trained horizon, L-BFGS goes on from the best point, as long as its steps
    earn their price.

    Args:
        problem: The batch, for instance a `haltwise.FunctionBatch` of your own loss.
        optimizer: Of method "lstm", a shipped name, a run directory, a weights file or the
            optimizer itself; "regression-10d" if None.
        stop: When to stop, as a policy or as a rule, which of method "lstm" returns the last update
            applied. Of engines also a halting model that was trained for them (`train_stop`,
            `haltwise train FAMILY --rule lbfgs`): itself, its run, or "stop-lbfgs",
            "stop-gauss-newton" or "stop-adam", which are shipped. If None, the optimizer's own
            policy, gradients being counted; of engines price and tolerances.
        method: The name of an engine, an engine (`haltwise.engines.Engine`) or an update rule; or
            None, see above.
        price: What an evaluation must earn, in units of the loss, one for all or [B]: a gradient,
            of Newton with the curvature, of Gauss-Newton residuals and Jacobian. What a learned
            optimizer or stop was trained for if None.
        gtol: Of engines, a tolerance of gradients, at least 0.
        ftol: Of engines, a tolerance of losses, at least 0.
        xtol: Of engines, a tolerance of steps, at least 0.
        max_steps: Evaluations a problem may cost at most. If None, 200; of "lstm" twice the
            optimizer's horizon, so that L-BFGS can go on where that ends, or the horizon itself
            where nothing takes over: without a guard, and where `stop` decides.
        param_scale: Of method "lstm", typical sizes of changes of the parameters, up to a common
            factor, one for each: give it where they are measured in different units.
        guard: Of method "lstm", whether to guard. Without, the optimizer is followed whatever it
            does.
        history: Whether to return the losses.
        chunk_size: Problems at once. If None, of engines on a CPU as many as come to 16 MB, and of
            "lstm" so many that their parameters come to 131,072 numbers on a CPU (some 200 MB), and
            up to 2^21 on a GPU (an eighth of its memory at most).
        standard_errors: Whether to compute standard errors, the loss being a negative
            log-likelihood: see `haltwise.interfaces.standard_errors.StandardErrors`. They need
            solutions closer than a learned optimizer comes to many; choose another method.
        progress: Whether to show on the standard error stream how many problems are done: a bar on
            a terminal, else a line every ten seconds.

    Returns:
        One outcome per problem; a problem that goes wrong disturbs no other. Where the loss of
        what is returned was never observed, it is evaluated once more, without being counted in
        `num_gradients`.

    Raises:
        InputError: The problem, the optimizer or a setting is no good, or the engine cannot solve
            such problems.

    Warns:
        FitWarning: Prices lie outside those trained on, L-BFGS took over in many problems, a few
            are far from those trained on, some stop too early for the standard errors asked for, or
            the loss has no second derivatives for any.

    Examples:
        >>> from haltwise.tasks import family
        >>> problem = family("regression-10d").sample(100, torch.Generator().manual_seed(0))
        >>> solution = solve(problem, optimizer="regression-10d")
        >>> solution.params.shape, bool(solution.steps.float().mean() < 15)
        (torch.Size([100, 10]), True)

        Two Rosenbrock valleys, by residuals:

        >>> from haltwise import FunctionBatch
        >>> def residuals(params):
        ...     x, y = params.unbind(1)
        ...     return torch.stack((10 * (y - x * x), 1 - x), 1)
        >>> start = torch.tensor([[-1.2, 1.0], [2.0, 2.0]], dtype=torch.float64)
        >>> solution = solve(FunctionBatch(start, residuals=residuals), method="auto")
        >>> solution.params.round(decimals=6).tolist(), solution.method
        ([[1.0, 1.0], [1.0, 1.0]], 'gauss-newton, as the losses are sums of squares of residuals')
        >>> solution.why(0)
        'its gradient is within gtol = 1e-08'
    """
    require_solvable(problem)
    require_flags(guard=guard, history=history, standard_errors=standard_errors, progress=progress)
    if standard_errors:
        require_curvature(problem)
    learned = optimizer is not None or param_scale is not None or not guard or problem.stochastic
    method = ("lstm" if learned else "auto") if method is None else method
    if method != "lstm":
        for name, value in (("optimizer", optimizer), ("param_scale", param_scale)):
            require(value is None, f"{name} belongs to method 'lstm'; leave it out, or the method")
        solution = _by_engine(
            *(problem, method, stop, price, gtol, ftol, xtol, max_steps),
            history=history,
            chunk_size=chunk_size,
            progress=progress,
        )
        return _finished(solution, problem, standard_errors=standard_errors)
    for name, tolerance in (("gtol", gtol), ("ftol", ftol), ("xtol", xtol)):
        require(
            tolerance is None,
            f"method 'lstm' stops by a price and has no {name}; choose another method, as 'auto'",
        )
    optimizer = _OPTIMIZER if optimizer is None else optimizer
    start = problem.start
    model = optimizer if isinstance(optimizer, OptimizerModel) else named(optimizer)
    model, graphs = model_for(model, start)
    policy = stop_policy(model.halting, stop, CostUnit.GRADIENTS)
    price = model.card.price if price is None else price
    prices = price_of_each(price, problem.num_problems, start)
    guarded = guard and not problem.stochastic
    if max_steps is None:
        num_steps = model.card.horizon * (2 if guarded and stop is None else 1)
    else:
        num_steps = whole_number("max_steps", max_steps)
    if chunk_size is None:
        chunk_size = max(1, _coordinates_at_once(start.device) // problem.dim)
    chunk_size = whole_number("chunk_size", chunk_size)
    sizes = _sizes(param_scale, start)
    # Of the whole batch: where a rule draws lots, chunks must not draw the same.
    memory = begin(policy.rule, problem.num_problems, start)
    chunks: list[Chunk] = []
    whole = torch.arange(problem.num_problems, device=start.device)
    for index in followed(whole.split(chunk_size), "problems", asked=progress):
        part = problem if len(index) == problem.num_problems else problem.select(index)
        own = select_state(memory, index)
        chunk = Chunk(
            *(model, policy, part, prices[index], own, sizes),
            guarded=guarded,
            history=history,
            graphs=graphs,
        )
        if guarded:
            if chunks:  # of one call all problems are of one kind
                chunk.scale += chunks[-1].scale.median()
                chunk.loss_scale += chunks[-1].loss_scale.median()
            chunk.solve_guarded(num_steps, by_own_rule=stop is not None)
        else:
            chunk.solve(num_steps, by_own_rule=stop is not None)
        chunks.append(chunk)
    solution = _joined(chunks, history=history)
    if guard:
        _warn(solution, model, prices, chunks)
    return _finished(solution, problem, standard_errors=standard_errors)


def _finished(solution: Solution, problem: TaskBatch, *, standard_errors: bool) -> Solution:
    """The same, its standard errors if they are asked for, and in the form of the problem.

    What is stuck at a bound, or starts where the gradient is zero above a minimum, is no success.
    """
    # A learned optimizer may linger there.
    spent = solution.num_gradients * (solution.method != "lstm")
    solution = _without_success(solution, stuck_at_bounds(problem, solution.params, spent), STUCK)
    still = (solution.num_gradients == 1) & (solution.reason == solution.reasons.index(ZERO))
    falls = falls_from(problem, solution.params, solution.loss, still & solution.success)
    solution = _without_success(solution, falls, NO_MINIMUM)
    if standard_errors:
        errors = standard_errors_at(problem, solution.params)
        far = int((torch.as_tensor(errors.reason) == FAR).sum())
        if far:
            warn(
                f"{far} of {problem.num_problems} problems have no standard errors: they were "
                "stopped more than half a standard error from the minimum; solve them by another "
                "method, as 'auto', or at a lower price",
                FitWarning,
            )
        if bool((torch.as_tensor(errors.reason) == WRONG).any()):
            warn(f"there are no standard errors: {errors.reasons[WRONG]}", FitWarning)
        solution = replace(solution, standard_errors=errors)
    return in_own_form(solution, problem)


def _without_success(solution: Solution, where: Tensor, reason: str) -> Solution:
    """The same, but for problems [B] whose success is none for another reason."""
    where = where & solution.success
    if not where.any():
        return solution
    return replace(
        solution,
        success=solution.success & ~where,
        left=solution.left.masked_fill(where, math.nan),
        reason=solution.reason.masked_fill(where, len(solution.reasons)),
        reasons=(*solution.reasons, reason),
    )


def _coordinates_at_once(device: torch.device) -> int:
    if device.type == "cpu":
        return _CHUNK
    if device.type != "cuda":
        return 2**20
    memory = torch.cuda.get_device_properties(device).total_memory
    return max(_CHUNK, min(_LARGEST_CHUNK, memory // _MEMORY_EACH))


def _by_engine(
    problem: TaskBatch,
    method: str | Engine | UpdateRule,
    stop: StopRule | StopPolicy | str | Path | HaltingModel | OptimizerModel | None,
    price: float | Tensor | None,
    gtol: float | None,
    ftol: float | None,
    xtol: float | None,
    max_steps: int | None,
    *,
    history: bool,
    chunk_size: int | None,
    progress: bool,
) -> Solution:
    engine, choice = engine_for(method, problem)
    rule = None if stop is None else rule_to_stop(stop, engine, problem.start)
    if rule is not None and rule.model is not None and price is None:
        price = rule.model.card.price
    prices = None if price is None else price_of_each(price, problem.num_problems, problem.start)
    if rule is not None and rule.model is not None:
        assert prices is not None
        rule.model.warn_of_prices(prices)
    own = (gtol, ftol, xtol)
    found, reasons, losses = solve_by_engine(
        engine,
        problem,
        tolerances_of(engine, *own, by_default=price is None and stop is None),
        prices,
        _EVALUATIONS if max_steps is None else whole_number("max_steps", max_steps),
        rule=rule,
        chunk_size=None if chunk_size is None else whole_number("chunk_size", chunk_size),
        history=history,
        progress=progress,
    )
    ones = torch.ones_like(found.loss[:1]).expand(len(found.loss))
    return Solution(
        **found._asdict(),
        reasons=reasons,
        fallback=torch.zeros_like(found.success),
        param_scale=ones,
        loss_scale=ones,
        history=_padded(losses) if history else None,
        method=f"{choice.name}, as {choice.why}",
    )


def _padded(losses: list[Tensor]) -> Tensor:
    """Losses of all chunks, shape [B, largest number of them]."""
    width = max(seen.shape[1] for seen in losses)
    return torch.cat([pad(seen, (0, width - seen.shape[1]), value=math.nan) for seen in losses])


def _sizes(param_scale: float | Tensor | None, start: Tensor) -> Tensor | None:
    if param_scale is None:
        return None
    require_unmasked(param_scale, "param_scale")
    try:
        sizes = torch.as_tensor(param_scale, dtype=start.dtype, device=start.device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"param_scale must hold numbers, got {shown(param_scale)}") from error
    require(
        sizes.shape in ((), start.shape[1:]) and bool(((sizes > 0) & sizes.isfinite()).all()),
        "param_scale must be one number above 0, or one for each of the "
        f"{start.shape[1]} parameters, got {shown(param_scale)}",
    )
    return sizes.expand(start.shape[1])


def _joined(chunks: list[Chunk], *, history: bool) -> Solution:
    """The problems of all chunks in order."""

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(chunk, name) for chunk in chunks])

    return Solution(
        params=joined("params"),
        loss=joined("loss"),
        steps=joined("at"),
        num_gradients=torch.cat([chunk.ledger.count for chunk in chunks]),
        outcome=joined("outcome"),
        reason=joined("reason"),
        reasons=chunks[0].reasons,
        success=joined("success"),
        left=joined("left"),
        fallback=joined("fallback"),
        param_scale=joined("scale").exp(),
        loss_scale=joined("loss_scale").exp(),
        history=_padded([chunk.ledger.losses for chunk in chunks]) if history else None,
    )


def _warn(solution: Solution, model: OptimizerModel, prices: Tensor, chunks: list[Chunk]) -> None:
    """Say once where the weights do not fit the problems."""
    asked = prices * solution.loss_scale
    if len(asked) < _MANY:  # of losses in other units the solution says it
        asked = torch.where(solution.loss_scale == 1, asked, model.card.price)
    model.halting.warn_of_prices(asked)
    misfits = torch.cat([chunk.misfits for chunk in chunks])
    share = widened(misfits).mean().item()
    if len(asked) < _MANY:
        warn_of_misfits(torch.cat([chunk.foreign for chunk in chunks]))
    elif share > MANY_MISFITS:
        warn(
            f"the weights do not fit {int(misfits.sum())} of the {len(misfits)} problems, which do "
            "not behave as those that they were trained on; choose a method, as 'auto', or other "
            "weights by haltwise.recommend, or train some on such problems",
            FitWarning,
        )
