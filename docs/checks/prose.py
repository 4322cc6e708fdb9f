"""Words of the pages are spelled right: they are in a dictionary, Hunspell's, or in words.txt.

pytest docs/checks/prose.py
"""

import re
from pathlib import Path

import pytest
from pages import PAGES
from spylls.hunspell import Dictionary

# The dictionary's reader leaves its files open.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WORDS = Path(__file__).with_name("words.txt")
_NO_PROSE = re.compile(
    r"^```(?!\{glossary|\{include).*?^```|\$\$.*?\$\$|\$[^$\n]*\$|`[^`]*`|\{[\w:]+\}|\]\([^)]*\)"
    r"|https?://\S+|<[^>]*>|\A---.*?^---",
    re.DOTALL | re.MULTILINE,
)


def words(page: Path) -> set[str]:
    """What is written in letters, without code, formulas and links."""
    prose = _NO_PROSE.sub(" ", page.read_text(encoding="utf-8"))
    return {
        word.removesuffix("'s") for word in re.findall(r"\b[A-Za-z][a-z]+(?:'[a-z]+)?\b", prose)
    }


def test_every_word_is_in_the_dictionary_or_the_list_of_our_own() -> None:
    dictionary = Dictionary.from_files("en_US")
    own = set(WORDS.read_text(encoding="utf-8").split())
    unknown = {
        page.name: sorted(word for word in words(page) - own if not dictionary.lookup(word))
        for page in PAGES
    }
    assert {name: found for name, found in unknown.items() if found} == {}


def test_a_misspelled_word_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("The `Misspeled` hatler of $\\alpha$ stops [here](htpp).\n")
    found = {word for word in words(page) if not Dictionary.from_files("en_US").lookup(word)}
    assert found == {"hatler"}
