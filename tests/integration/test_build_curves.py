"""Archives of public curves, built from clones of their repositories."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from programs import program

from haltwise.curves import read


def clone(folder: Path) -> Path:
    for words in (
        ("init", "-q"),
        ("add", "."),
        ("-c", "user.name=a", "-c", "user.email=b", "commit", "-qm", "c"),
    ):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


def build(name: str, folder: Path, out: Path, *options: str) -> str:
    result = CliRunner().invoke(
        program("build_curves").main, [name, str(folder), str(out), *options]
    )
    return result.output


def test_nanogpt(tmp_path: Path) -> None:
    source = tmp_path / "source"
    folder = source / "records" / "track_1" / "one"
    folder.mkdir(parents=True)
    lines = [
        f"step:{step}/500 val_loss:{9 - step / 100} train_time:{step * 20}ms step_avg:20ms\n"
        f"step:{step + 1}/500 train_time:{step * 20}ms step_avg:nanms\n"
        for step in range(0, 501, 100)
    ]
    (folder / "a.txt").write_text("".join(lines) + "".join(lines[:3]))
    (folder / "b.txt").write_text("".join(lines))  # there already
    old = [f"s:{step} tel:{8 - step / 1000:.4f}\n" for step in range(0, 1000, 200)]
    (folder.parent / "c.log").write_text("".join(old))
    out = tmp_path / "nanogpt.npz"
    assert "give --any-commit" in build("nanogpt", clone(source), out)
    assert "sha256" in build("nanogpt", source, out, "--any-commit")
    found = read(out, group="record")
    assert found.name.tolist() == ["track_1/c.log", "track_1/one/a.txt"]
    assert found.task.tolist() == ["track_1", "track_1"]
    assert found.budget.tolist() == [800, 500]
    np.testing.assert_allclose(found[1].columns["val_loss"], np.arange(9, 3, -1))
    np.testing.assert_allclose(found[1].columns["train_seconds"], np.arange(0, 11, 2))


@pytest.mark.filterwarnings("ignore:left out")
def test_opda(tmp_path: Path) -> None:
    data = tmp_path / "source" / "data"
    curve = [
        {"time": 60.0 * (epoch + 1), "epoch": epoch, "top_1": epoch / 9, "top_5": epoch / 5}
        for epoch in range(3)
    ]
    vision = [
        {"iteration": 1, "epochs": 3, "lr": 0.1, "learning_curve": curve},
        {"iteration": 2, "epochs": 9, "lr": 9.0, "learning_curve": []},
    ]
    parts = {"matched": [[1000, 0.5], [1500, 0.75]], "mismatched": [[1000, 0.4], [1500, 0.5]]}
    language = [{"iteration": 1, "total_model_steps": 1500, "learning_curves": parts}]
    for name, entries in (("new-net", vision), ("text", language)):
        path = data / name / f"{name}.results.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(map(json.dumps, entries)))
    out = tmp_path / "opda.npz"
    assert "sha256" in build("opda", clone(data.parent), out, "--any-commit")
    found = read(out)
    assert found.name.tolist() == ["new_net/0", "text/0"]
    assert found.budget.tolist() == [3, 1500]
    assert found.cost.tolist() == [1, 2, 3, 1000, 1500]
    assert found.cost_unit == "epochs or steps"
    np.testing.assert_allclose(
        found.values[:, found.columns.index("accuracy")], [0, 1 / 9, 2 / 9, 0.5, 0.75], rtol=1e-6
    )
    np.testing.assert_allclose(found[0].columns["seconds"], [60, 120, 180])
