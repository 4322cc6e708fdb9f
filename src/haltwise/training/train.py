"""A whole training run in one call."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from haltwise._core.errors import require
from haltwise._core.nested_settings import merge
from haltwise._core.plugins import whereabouts
from haltwise._core.settings import got
from haltwise._core.tensors import undisturbed
from haltwise.engines import Engine
from haltwise.engines.record import record_descents
from haltwise.processes.base import ProcessFamily
from haltwise.recordings.runs import RecordedRuns
from haltwise.tasks import TaskBatch, TaskFamily
from haltwise.training.choices import plain
from haltwise.training.presets import ENGINE_DEFAULTS, MONITOR_DEFAULTS
from haltwise.training.settings import TrainingSettings
from haltwise.training.trainer import Trainer
from haltwise.update_rules import UpdateRule

__all__ = ["monitor_settings", "train", "train_monitor", "train_stop"]


@undisturbed(grad=True, on_cpu=True)
def train(
    family: str | TaskFamily | ProcessFamily,
    directory: str | Path,
    *,
    preset: str = "act",
    device: torch.device | str = "cpu",
    data_dir: str | Path | None = None,
    **settings: Any,
) -> Path:
    """Train a model that knows when to stop; what `haltwise train` does, without a display.

    Args:
        family: A name, PATH.py:NAME, or a family of your own, of problems or of processes, whose
            class stands at the top of a file, which is executed again where it is not the script
            that calls: what it is to do only as a script belongs under
            `if __name__ == "__main__":`.
        directory: Directory of the run, created if missing.
        preset: A name in `PRESETS`.
        device: Where to compute.
        data_dir: See `haltwise.tasks.family`; by default that of a family of your own.
        settings: Settings of `TrainingSettings`, sections as dictionaries: `price=0.1`,
            `joint={"num_steps": 500}`; `rule`, `method` and the `estimator` of `joint` by name,
            with settings as in `rule={"name": "adam", "settings": {"learning_rate": 0.1}}`, or as
            an instance.

    Returns:
        The run directory, which `haltwise.load`, `haltwise.solve` and all others take.

    Raises:
        InputError: It is no family, a setting is impossible, or the directory holds a run already.
    """
    changes = {name: plain(name, value) for name, value in settings.items()}
    if isinstance(family, TaskFamily | ProcessFamily):
        changes = {"family": {"settings": asdict(family)}, **changes}
        if isinstance(family, TaskFamily):
            data_dir = data_dir or family.data_dir
        family = whereabouts(family)
    require(
        isinstance(family, str),
        f"a family must be a name, PATH.py:NAME, a TaskFamily or a ProcessFamily, {got(family)}"
        + (
            "; for problems at hand there are train_stop and haltwise.solve"
            if isinstance(family, TaskBatch)
            else ""
        ),
    )
    chosen = TrainingSettings.from_preset(preset, family, changes)
    command = f"train({family!r})"
    return _finish(
        Trainer(chosen, Path(directory), device=device, command=command, data_dir=data_dir)
    )


def _finish(trainer: Trainer) -> Path:
    for _ in trainer.run():
        pass
    return trainer.directory


def monitor_settings(
    runs: str | Path, *, price: float, horizon: int | None = None, **settings: Any
) -> TrainingSettings:
    """Make the settings of `train_monitor`, which explains the arguments."""
    steps = RecordedRuns.load(runs, horizon).trajectory.num_steps
    own = {"runs": str(Path(runs).resolve()), "price": price, "horizon": steps}
    return TrainingSettings.from_preset("act", "recorded-runs", MONITOR_DEFAULTS, own, settings)


@undisturbed(grad=True, on_cpu=True)
def train_monitor(
    runs: str | Path,
    directory: str | Path,
    *,
    price: float,
    horizon: int | None = None,
    device: torch.device | str = "cpu",
    **settings: Any,
) -> Path:
    """Learn when to stop a loop from recorded runs of it; for `haltwise.HaltingMonitor`.

    Of the runs 65 % teach the halter, 10 % choose its weights and 25 % its threshold.

    Args:
        runs: Directory in which `HaltingMonitor.recording` wrote them.
        directory: Directory of the run, created if missing.
        price: c, what a round must gain, in units of the score.
        horizon: T, rounds after the first; the shortest run's if None.
        device: Where to compute.
        settings: Further settings of `TrainingSettings`, sections as dictionaries, for instance
            `keeps_best=True`, for a loop that goes back to its best state.

    Returns:
        The run directory, to give to `HaltingMonitor`.

    Raises:
        InputError: Too few runs, or a setting or a file is no good.

    Warns:
        CalibrationWarning: Few runs, or some that were left out.
        DataWarning: Losses are so large that single precision rounds them by the price.
    """
    chosen = monitor_settings(runs, price=price, horizon=horizon, **settings)
    command = f"train_monitor({str(runs)!r}, price={price:g})"
    return _finish(Trainer(chosen, Path(directory), device=device, command=command))


@undisturbed(grad=True, on_cpu=True)
def train_stop(
    problem: TaskBatch,
    directory: str | Path,
    *,
    method: str | Engine | UpdateRule,
    price: float,
    horizon: int = 60,
    **settings: Any,
) -> Path:
    """Learn when to stop an engine on problems of your own; for `stop` of `haltwise.solve`.

    The engine runs on each problem for `horizon` evaluations beyond the first. What it showed is
    kept in `directory`/recorded, a file for each problem, and `train_monitor` learns from that, by
    features that have no units (`haltwise.halting.features.descent`).

    Args:
        problem: Some hundreds of your problems or more, such as those that are to be solved.
        directory: Directory of the run, created if missing.
        method: The engine or update rule, as for `haltwise.solve`.
        price: c, what an evaluation must earn, in units of the loss.
        horizon: T, evaluations after the first; so many that all have earned what they can.
        settings: Further settings, as of `train_monitor`.

    Returns:
        The run directory.

    Raises:
        InputError: There are too few problems, the engine cannot solve them, a setting is no good,
            or the directory holds a run already.

    Warns:
        CalibrationWarning: Few problems, or some that are not finite and were left out.

    Examples:
        >>> import tempfile, haltwise
        >>> from haltwise.tasks import family
        >>> problem = family("logistic-10d").sample(200, torch.Generator().manual_seed(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = train_stop(
        ...         problem, folder, method="lbfgs", price=0.01, horizon=20,
        ...         halting={"num_steps": 100},
        ...     )
        ...     solution = haltwise.solve(problem, method="lbfgs", stop=run)
        >>> bool(solution.num_gradients.double().mean() < 15)
        True
    """
    recorded = Path(directory) / "recorded"
    record_descents(problem, recorded, method=method, horizon=horizon)
    chosen = monitor_settings(
        recorded, price=price, horizon=horizon, **merge(ENGINE_DEFAULTS, settings)
    )
    command = f"train_stop(method={method!r}, price={price:g})"
    return _finish(Trainer(chosen, Path(directory), command=command))
