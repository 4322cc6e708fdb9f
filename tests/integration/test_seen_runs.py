"""What something was learned on does not judge or certify it unnoticed."""

import warnings
from pathlib import Path

import in_process
import numpy as np
import numpy.typing as npt
import pytest
from loops import record_runs

import haltwise
from haltwise import Curves, InputError
from haltwise._core.errors import DataWarning
from haltwise._core.seen import marks_of, require_marks, share_seen
from haltwise.certificates import ExcessLoss
from haltwise.curves import learn
from haltwise.evaluation import judge_runs
from haltwise.evaluation.give_up import judge_curves
from haltwise.models import load_halting
from haltwise.recordings.runs import RecordedRuns
from haltwise.training import train_monitor


def falling(seed: int) -> npt.NDArray[np.float64]:
    ends = np.random.default_rng(seed).uniform(0.2, 2.0, (60, 1))
    return ends + (3 - ends) * 0.9 ** np.arange(30)


def curves(losses: npt.NDArray[np.float64], hours: float = 1.0) -> Curves:
    groups = [str(i % 12) for i in range(len(losses))]
    costs = hours * np.arange(losses.shape[1])
    return Curves.from_matrix(losses, costs, target=1.0, group=groups)


@pytest.mark.parametrize(("learned", "share"), [(300, 0.3), (20_000, 0.3), (20_000, 0.0)])
def test_the_share_that_was_seen_is_told_of_few_and_of_many(learned: int, share: float) -> None:
    rng = np.random.default_rng(learned)
    rows = rng.standard_normal((learned, 5))
    num = 2000 if learned > 2000 else 100
    others = rng.standard_normal((num, 5))
    others[: int(share * num)] = rows[rng.choice(learned, int(share * num), replace=False)]
    found = share_seen(marks_of(rows), rng.permuted(others, axis=0))
    shuffled = share_seen(marks_of(rows), others[rng.permutation(num)])
    assert found == 0.0  # the same numbers in other rows are other runs
    # Of 20,000 rows 1,024 have marks, so some 100 of 2,000 tell: a standard error of .045.
    assert shuffled == pytest.approx(share, abs=0.0 if learned < 1024 else 0.14)


def test_what_never_moves_is_like_others_by_chance() -> None:
    still = np.tile([[0.1, 0.1, np.nan, 0.9]], (50, 1))
    assert marks_of(still) == ""
    assert share_seen(marks_of(falling(0)), still) == 0.0
    half = [*falling(0)[:10], *still[:10, :1]]
    assert share_seen(marks_of(falling(0)), half) == 0.5


@pytest.mark.parametrize("marks", ["xyz", "0" * 11, "0" * 12 * 1025, "G" * 12])
def test_damaged_marks_are_refused(marks: str) -> None:
    with pytest.raises(InputError, match="marks of what was learned from are damaged"):
        require_marks(marks)


def test_a_model_is_not_judged_or_certified_by_runs_it_has_learned_from(tmp_path: Path) -> None:
    losses, others = falling(0), falling(1)
    model = learn(curves(losses)).model
    model.save(tmp_path / "model.safetensors")
    model = haltwise.CurveModel.load(tmp_path / "model.safetensors")
    mixed = np.concatenate((losses[:20], others[:40]))
    with pytest.warns(DataWarning, match="about 33 % of these runs are among those"):
        judge_curves(model, curves(mixed, hours=2.5))  # however cost is counted
    with pytest.raises(InputError, match=r"33 % .* certified by them does not hold for others"):
        haltwise.certify(model, curves(mixed), risk="given-up", level=0.5, confidence=0.9)
    haltwise.certify(model, curves(others), risk="given-up", level=0.5, confidence=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DataWarning)
        judge_curves(model, curves(others))


def test_a_monitor_is_not_judged_or_certified_by_runs_it_has_learned_from(
    recorded_runs: Path, tmp_path: Path
) -> None:
    train_monitor(recorded_runs, tmp_path / "run", price=0.02, halting={"num_steps": 2})
    model, own = load_halting(tmp_path / "run"), RecordedRuns.load(recorded_runs)
    others = RecordedRuns.load(record_runs(tmp_path / "others", range(4000, 4060)))
    with pytest.warns(DataWarning, match="100 % of these runs"):
        judge_runs(model, own, others, price=0.02)
    with pytest.raises(InputError, match="100 % of these runs"):
        haltwise.certify(
            model, own.trajectory, risk=ExcessLoss(), level=0.5, confidence=0.9, bound=9.0
        )
    asked = ("--risk", "excess", "--level", 0.5, "--confidence", 0.9, "--bound", 9, "--clip")
    weights = tmp_path / "run" / "best.safetensors"
    before = weights.read_bytes()
    refused = in_process.haltwise("certify", weights, *asked, "--runs", recorded_runs, cwd=tmp_path)
    assert (refused.returncode, weights.read_bytes()) == (2, before)
    assert "among those that the model was learned on" in refused.stderr
