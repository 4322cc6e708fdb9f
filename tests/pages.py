"""The pages of the documentation, and the files that their recipes tell the reader to write."""

import doctest
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if "api" not in path.relative_to(ROOT).parts
)


class Recipe(NamedTuple):
    """A file that a page tells its reader to write."""

    name: str
    code: str


def fences(text: str, language: str) -> list[str]:
    """The blocks of code of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def recipe(page: Path) -> Recipe | None:
    """The code of a section above "Save this as `NAME.py`", but for examples that show a value."""
    above, found, below = page.read_text(encoding="utf-8").partition("Save this as `")
    if not found:
        return None
    above = above.rpartition("\n## ")[2]
    examples = doctest.DocTestParser().get_examples("".join(fences(above, "python")))
    code = "".join(example.source for example in examples if not example.want)
    return Recipe(below.partition("`")[0], code)
