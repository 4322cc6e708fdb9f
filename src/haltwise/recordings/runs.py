"""Recorded runs of a training loop on disk: a few numbers a step, one file a run."""

import math
import re
import uuid
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, final, get_args

import torch
from torch import Tensor

from haltwise._core.errors import CalibrationWarning, DataWarning, InputError, require, warn
from haltwise._core.files import flush_all, load_tensors, make_directory, save_tensors
from haltwise._core.nested_settings import Choice
from haltwise._core.random import stream
from haltwise._core.tensors import require_like
from haltwise.processes.observation import Observed
from haltwise.processes.signals import SIGNALS, loss_signals_of_steps
from haltwise.processes.trajectory import Trajectory

__all__ = [
    "FEWEST_RUNS",
    "RecordedRun",
    "RecordedRuns",
    "load_run",
    "require_new",
    "save_run",
    "save_trajectory",
    "warn_of_rounding",
]

FEWEST_RUNS = 40
"""With fewer, nothing is learned that holds for another run."""

_FEW_RUNS = 100  # with 60, a tuned logistic rule was as good in examples/stop_your_own_loop.py
_SHARES = {"recorded": 0.65, "validation": 0.1, "calibration": 0.25}  # of the runs
_SHORT = 0.5  # of the steps of the middle run: cutting all to so few is worth a word
_KIND = "recorded run"
_NUMBERED = re.compile(r"(\d{6,18})-", re.ASCII)
_LONGEST = 200  # bytes of a name, to which others are added


def require_new(directory: Path, name: str | None) -> None:
    """Refuse the name of a run that lies in `directory`, or one that is no name.

    Raises:
        InputError: It is so; the message says what to do.
    """
    if name is not None:
        require(isinstance(name, str), f"the name of a run must be a text, got {name!r:.80}")
        require(
            0 < len(name.encode(errors="replace")) <= _LONGEST and not re.search(r"[/\\\0]", name),
            f"the name of a run must have 1 to {_LONGEST} bytes and no slash, got {name!r}",
        )
        path = directory / f"{name}.safetensors"
        require(not path.exists(), f"there is a run {path} already; choose another name")


def warn_of_rounding(losses: Tensor, price: float) -> None:
    """Say so where most runs, losses [n, T+1], end where single precision rounds by a price."""
    lowest = losses.nan_to_num(math.inf).amin(1)
    lowest = lowest[lowest.isfinite()].abs().double()
    rounding = torch.finfo(torch.float32).eps * lowest.median().item() if len(lowest) else 0.0
    if rounding > price / 10:
        warn(
            f"losses of some {lowest.median().item():g} are rounded by {rounding:.1g} in single "
            f"precision, and the price of a step is {price:g}; take a constant from all of them, "
            "when recording and in use",
            DataWarning,
        )


def save_run(
    directory: Path,
    signals: Tensor,
    scores: Tensor | None,
    observed: Observed,
    name: str | None = None,
    *,
    maximizes: bool = False,
    engine: Choice | None = None,
    flush: bool = True,
) -> Path:
    """Write one run to a file of its own in `directory`, which is created if missing.

    Args:
        directory: Where the runs lie.
        signals: Of each of n calls; see `haltwise.processes.signals`; shape [n, S].
        scores: What stopping there is judged by, shape [n]; the next call's loss if None.
        observed: What the signals were taken from.
        name: Of the file, which is returned; numbered if None.
        maximizes: Whether losses and scores are the negatives of what was given.
        engine: The engine of `haltwise.solve` that ran, if one did.
        flush: Whether to wait for the disk; see `write_atomically`.

    Raises:
        InputError: It cannot be written, or there is one of that name.
    """
    make_directory(directory)
    require_new(directory, name)
    if name is None:
        found = map(_NUMBERED.match, (path.name for path in directory.glob("*.safetensors")))
        number = 1 + max((int(match[1]) for match in found if match), default=-1)
        # Threads, processes and hosts may record at once: they share numbers, but no names.
        name = f"{number:06}-{uuid.uuid4().hex[:12]}"
    path = directory / f"{name}.safetensors"
    tensors = {"signals": signals} | ({} if scores is None else {"scores": scores})
    card = {
        "kind": _KIND,
        "signals": list(SIGNALS),
        "observed": observed,
        "maximizes": maximizes,
        "engine": None if engine is None else asdict(engine),
    }
    save_tensors(path, tensors, card, new=True, flush=flush)
    return path


def save_trajectory(directory: str | Path, trajectory: Trajectory) -> None:
    """Write each item of which losses alone are known as a run, from which a monitor learns.

    A stop at step t is judged by the excess there, and decided by the losses observed so far: those
    of the exits of a network, for instance (`haltwise.nn.Pondered.trajectory`).

    Args:
        directory: Where the runs are to lie; created if missing.
        trajectory: Of n items, which stay finite.

    Raises:
        InputError: An item does not stay finite, or there are such runs already.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> losses = torch.rand(5, 1) * 0.5 ** torch.arange(4)
        >>> with TemporaryDirectory() as directory:
        ...     save_trajectory(directory, Trajectory(losses, losses))
        ...     RecordedRuns.load(directory).trajectory.num_items
        5
    """
    signals, excess = loss_signals_of_steps(trajectory.loss).float(), trajectory.excess.float()
    kept = signals.isfinite().flatten(1).all(1) & excess.isfinite().all(1)
    wrong = (~(trajectory.finite & kept)).nonzero().flatten().tolist()
    require(
        not wrong,
        f"item {wrong[:1]} does not stay finite in float32, of which files are; leave such items "
        "out, or scale the losses",
    )
    for number, (shown, scores) in enumerate(zip(signals, excess, strict=True)):
        save_run(Path(directory), shown, scores, "loss", f"{number:06}-item", flush=False)
    flush_all()


@final
@dataclass(frozen=True)
class RecordedRuns:
    """Runs of one loop, cut to one length.

    Call t = 0..T of the loop is step t. What a stop there is worth, the recording's `excess`, is
    the score given with it; where none was given it is the loss that the next call observed, that
    of the parameters which a stop leaves behind.
    """

    trajectory: Trajectory
    observed: Observed
    maximizes: bool = False
    engine: Choice | None = None

    def __repr__(self) -> str:
        return (
            f"RecordedRuns({self.trajectory.num_items:,} runs of {self.trajectory.num_steps:,} "
            f"steps, {self.observed} seen, {'higher' if self.maximizes else 'lower'} is better)"
        )

    @classmethod
    def load(cls, directory: str | Path, horizon: int | None = None) -> "RecordedRuns":
        """The runs in `directory`, in the order of their names.

        Runs shorter than the horizon T are left out; it is that of the shortest run if None.

        Raises:
            InputError: No runs, a foreign or corrupt file, runs that were recorded in different
                ways, or none as long as that.

        Warns:
            CalibrationWarning: Runs were left out because they are shorter or not finite, or most
                are cut since one is far shorter.
        """
        paths = sorted(Path(directory).glob("*.safetensors"))
        require(
            len(paths) > 0,
            f"there are no recorded runs in {directory}; record some with "
            "haltwise.HaltingMonitor.recording(DIRECTORY)",
        )
        runs = [load_run(path) for path in paths]
        for (path, one), (other_path, other) in pairwise(zip(paths, runs, strict=True)):
            require(
                one.how == other.how,
                f"{path} was recorded with {one.how}, {other_path} with {other.how}; record all "
                "runs in the same way",
            )
        lengths = [run.num_steps for run in runs]
        if horizon is None:
            horizon = min(lengths)
            shortest = paths[lengths.index(horizon)]
            usual = sorted(lengths)[len(lengths) // 2]
            require(
                horizon >= max(1, min(2, usual)),
                f"{shortest} holds too few calls of update to learn from; remove it or give a "
                "horizon",
            )
            if horizon < _SHORT * usual:
                warn(
                    f"{shortest} has {horizon} steps, but half of the {len(runs)} runs have "
                    f"{usual} or more: what comes after {horizon} steps is not learned, and every "
                    "loop will be stopped there; remove runs as short as that, or give a horizon, "
                    "which leaves them out",
                    CalibrationWarning,
                )
        kept = [run for run in runs if run.num_steps >= horizon]
        require(
            len(kept) > 0,
            f"no run in {directory} has {horizon} steps; the longest has {max(lengths)}",
        )
        signals = torch.stack([run.signals[: horizon + 1] for run in kept])
        seen = dict(zip(SIGNALS, signals.unbind(-1), strict=True))
        trajectory = Trajectory(
            loss=seen["loss"],
            excess=torch.stack([run.scores[: horizon + 1] for run in kept]),
            log_grad_norm=seen["log_grad"],
            signals=signals[:, :horizon],
        )
        finite = trajectory.finite.nonzero().squeeze(1)
        for number, why in (
            (len(runs) - len(kept), f"have fewer than {horizon} steps"),
            (len(kept) - len(finite), "have a loss, a score or a signal that is not finite"),
        ):
            if number:
                warn(
                    f"{number} of {len(runs)} runs are left out: they {why}",
                    CalibrationWarning,
                )
        require(len(finite) > 0, f"no run in {directory} stays finite for {horizon} steps")
        first = kept[0]
        return cls(trajectory.select(finite), first.observed, first.maximizes, first.engine)

    def keeping_best(self) -> "RecordedRuns":
        """The same where a stop leaves not the last state, but that of the lowest loss observed.

        Such a loop keeps a copy of its model after every round that improves the loss.
        """
        loss = self.trajectory.loss
        # Of equal losses the first: it is the copy that was made.
        new = torch.ones_like(loss, dtype=torch.bool)
        new[:, 1:] = loss[:, 1:] < loss.cummin(1).values[:, :-1]
        steps = torch.arange(loss.shape[1], device=loss.device).expand_as(loss)
        best = torch.where(new, steps, 0).cummax(1).values
        return replace(
            self, trajectory=replace(self.trajectory, excess=self.trajectory.excess.gather(1, best))
        )

    def split(self, seed: int) -> dict[str, Trajectory]:
        """The runs for training, for choosing the weights and for calibration, at random.

        Raises:
            InputError: There are fewer than `FEWEST_RUNS`.

        Warns:
            CalibrationWarning: There are so few that little can be learned.
        """
        num = self.trajectory.num_items
        require(
            num >= FEWEST_RUNS,
            f"{num} runs are too few to learn when to stop: at least {FEWEST_RUNS} are needed and "
            f"{_FEW_RUNS} or more are better; record more",
        )
        if num < _FEW_RUNS:
            warn(
                f"{num} runs are few: a simple rule that is tuned may serve as well; {_FEW_RUNS} "
                "or more are better",
                CalibrationWarning,
            )
        order = torch.randperm(num, generator=stream(seed, "runs"), device="cpu")
        sizes = [round(share * num) for share in _SHARES.values()]
        parts = order.split([num - sum(sizes[1:]), *sizes[1:]])
        return {
            name: self.trajectory.select(part) for name, part in zip(_SHARES, parts, strict=True)
        }


@final
class RecordedRun(NamedTuple):
    """What a monitor saw in n calls of `update`.

    Attributes:
        signals: Shape [n, S].
        scores: What stopping is judged by, shape [T+1]: n scores, or the losses of the next calls.
        observed: What the signals were taken from.
        is_scored: Whether scores were given.
        maximizes: Whether losses and scores are the negatives of what was given.
        engine: The engine of `haltwise.solve` that ran, if one did.
    """

    signals: Tensor
    scores: Tensor
    observed: Observed
    is_scored: bool
    maximizes: bool
    engine: Choice | None

    @property
    def how(self) -> str:
        """How it was recorded, in words."""
        direction = ", direction 'max'" if self.maximizes else ""
        ran = "" if self.engine is None else f" of {self.engine.name} {dict(self.engine.settings)}"
        scored = "scores" if self.is_scored else "no scores"
        return f"{self.observed} seen{ran} and {scored}{direction}"

    @property
    def num_steps(self) -> int:
        """T."""
        return len(self.scores) - 1


def load_run(path: Path) -> RecordedRun:
    """Read one file that `save_run` wrote.

    Raises:
        InputError: It is another file, or corrupt.
    """
    tensors, card = load_tensors(path)
    require(
        card.get("kind") == _KIND and card.get("observed") in get_args(Observed),
        f"{path} is no recorded run; keep other files out of that directory",
    )
    require(
        card.get("signals") == list(SIGNALS),
        f"{path} was recorded by a version with other signals; record it again",
    )
    num = max((len(value) for value in tensors.values() if value.dim()), default=0)
    due = torch.empty(num, len(SIGNALS) + 1, dtype=torch.float32, device="meta")
    like = {"signals": due[:, :-1]} | ({"scores": due[:, -1]} if "scores" in tensors else {})
    try:
        require_like(tensors, like)
    except InputError as error:
        raise InputError(f"{path} is no whole recorded run: {error}; remove it") from None
    signals, observed = tensors["signals"], card["observed"]
    scores = tensors.get("scores", signals[1:, SIGNALS.index("loss")])
    maximizes = card.get("maximizes") is True  # older files have none
    engine = card.get("engine")  # older files have none
    try:
        choice = None if engine is None else Choice(**engine)
    except (InputError, TypeError):
        raise InputError(f"{path} does not say what ran, but {engine!r}; remove it") from None
    return RecordedRun(signals, scores, observed, "scores" in tensors, maximizes, choice)
