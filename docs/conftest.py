"""Pages run in an empty directory that holds the file which a recipe tells the reader to write."""

from pathlib import Path

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
    monkeypatch.chdir(tmp_path)
