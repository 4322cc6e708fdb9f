"""Runs to report: a small evaluation, a study and stops that are judged."""

import functools
import json
from pathlib import Path

import torch

import haltwise
from haltwise import evaluation, tasks
from haltwise.evaluation.records import save_evaluation
from haltwise.models.files import save_model

NAME, PRICE, HORIZON = "regression-2d", 0.05, 12


@functools.cache
def small_evaluation() -> evaluation.Evaluation:
    """A shipped optimizer, another that stops itself and one that does not, on few problems."""
    names = (NAME, "regression-2d-mode", "regression-2d-lstm")
    return evaluation.evaluate(
        {name: haltwise.load(name) for name in names},
        tasks.family(NAME),
        family_name=NAME,
        price=PRICE,
        horizon=HORIZON,
        seed=3,
        num_problems=48,
    )


@functools.cache
def small_study() -> evaluation.StudyRecord:
    """The same optimizer over two seeds."""
    return evaluation.study(
        {NAME: haltwise.load(NAME)},
        {NAME: tasks.family(NAME)},
        prices=[PRICE],
        horizon=HORIZON,
        seeds=[1, 2],
        num_problems=32,
    )


@functools.cache
def judged_stops() -> evaluation.StoppingRecord:
    """Stops two steps short of the oracle's, with hazards."""
    generator = torch.Generator().manual_seed(3)
    scale = 20 * torch.rand(60, 1, generator=generator, dtype=torch.float64) + 1
    losses = scale * 0.5 ** torch.arange(13)
    best = (losses + PRICE * torch.arange(13)).argmin(1)
    hazards = torch.rand(60, 12, generator=generator)
    return evaluation.stopping_report(losses, (best - 2).clamp_min(0), price=PRICE, hazards=hazards)


def write_run(directory: Path, *evaluations: evaluation.Evaluation) -> Path:
    """A run directory with evaluations, weights and a training log whose last line is torn."""
    directory.mkdir(parents=True, exist_ok=True)
    for each in evaluations or (small_evaluation(),):
        save_evaluation(each.record, each.arrays, directory)
    model = haltwise.load(NAME)
    save_model(directory / "best.safetensors", model.state_dict(), model.card)
    log = [{"step": n, "loss": 9 / n, "price_adjusted_loss": 3 / n} for n in (100, 200, 300)]
    lines = "\n".join(map(json.dumps, log))
    (directory / "log.jsonl").write_text(f'{lines}\n{{"step": 400, "lo', encoding="utf-8")
    return directory
