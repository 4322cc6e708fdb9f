"""Recording: what an engine shows of problems of your own, on disk as any other loop's runs."""

from pathlib import Path

import torch

from haltwise._core.errors import InputError
from haltwise._core.files import flush_all
from haltwise._core.settings import whole_number
from haltwise.engines import Engine
from haltwise.engines.named import choice_of, engine_for
from haltwise.engines.process import EngineProcess
from haltwise.recordings.runs import save_run
from haltwise.rollout.record import record_process
from haltwise.tasks.base import TaskBatch
from haltwise.tasks.trial import require_solvable
from haltwise.update_rules import UpdateRule

__all__ = ["record_descents"]

_AT_ONCE = 2**18  # coordinates, whose records fill some 80 MB


def record_descents(
    problem: TaskBatch,
    directory: str | Path,
    *,
    method: str | Engine | UpdateRule,
    horizon: int,
) -> None:
    """Write what an engine shows of each problem to a file of its own.

    A stop is judged by the loss above the least that the engine reaches.

    Args:
        problem: The problems.
        directory: Where the files are to lie; created if missing.
        method: The engine or update rule, as for `haltwise.solve`.
        horizon: T, evaluations after the first.

    Raises:
        InputError: The problems are no good, or the engine cannot solve them, or there are such
            files already.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> from haltwise.recordings.runs import RecordedRuns
        >>> from haltwise.tasks import family
        >>> problem = family("quadratic-10d").sample(5, torch.Generator().manual_seed(0))
        >>> with TemporaryDirectory() as directory:
        ...     record_descents(problem, directory, method="lbfgs", horizon=10)
        ...     RecordedRuns.load(directory).trajectory.num_steps
        10
    """
    require_solvable(problem)
    horizon = whole_number("horizon", horizon)
    engine, _ = engine_for(method, problem)
    directory, choice = Path(directory), choice_of(engine)
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory} holds something already; choose another directory")
    everything = torch.arange(problem.num_problems, device=problem.start.device)
    for rows in everything.split(max(1, _AT_ONCE // problem.dim)):
        process = EngineProcess(engine, problem.select(rows))
        recorded = record_process(process, horizon + 1)
        above = recorded.excess - recorded.excess.nan_to_num(torch.inf).amin(1, keepdim=True)
        signals = recorded.known("signals").float()
        for number, shown, scores in zip(
            rows.tolist(), signals.cpu(), above[:, :-1].float().cpu(), strict=True
        ):
            name = f"{number:08}-problem"
            save_run(directory, shown, scores, "gradients", name, engine=choice, flush=False)
    flush_all()
