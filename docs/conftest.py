"""Pages run in an empty directory that holds the files which they tell the reader to have."""

from pathlib import Path

import numpy as np
import pytest
from pages import recipe


@pytest.fixture(autouse=True)
def in_a_directory_of_its_own(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a page writes is gone when it has been run."""
    found = recipe(request.path) if request.path.suffix == ".md" else None
    if found is not None:
        (tmp_path / found.name).write_text(found.code, encoding="utf-8")
    if request.path.stem == "recipes":
        write_shops(tmp_path / "shops.csv")
    monkeypatch.chdir(tmp_path)


def write_shops(path: Path) -> None:
    """The sales of 5,000 shops, six rows each."""
    random = np.random.default_rng(0)
    columns = random.standard_normal((30_000, 2))
    sales = 1 + columns @ [2.0, -1.0] + 0.1 * random.standard_normal(30_000)
    rows = np.column_stack((np.arange(30_000) % 5000, columns, sales))
    np.savetxt(
        path, rows, "s%d,%.4g,%.4g,%.4g", header="shop,age,price,sales", comments="", newline="\n"
    )
