"""Objects from a user's own file: every way it can go wrong is one sentence with file and line."""

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from haltwise import InputError
from haltwise._core import discovery
from haltwise._core.plugins import is_file, label, load_object, place, resolve, whereabouts


class Animal(ABC):
    """Something with a base class like those of the package."""

    @abstractmethod
    def speak(self, loudly: bool) -> str: ...

    @property
    @abstractmethod
    def legs(self) -> int: ...


@dataclass(frozen=True)
class Dog(Animal):
    legs: int = 4
    volume: float = 1.0
    names: list[str] = field(default_factory=list)

    def speak(self, loudly: bool) -> str:
        return "woof" * (1 + loudly)


HEAD = "from dataclasses import dataclass\nfrom test_plugins import Animal\n\n"
GOOD = (
    HEAD
    + """\
@dataclass(frozen=True)
class Cat(Animal):
    legs: int = 4

    def speak(self, loudly):
        return "meow"


three = Cat(3)
other = 7
"""
)
CASES = {
    "syntax": (GOOD.replace("Cat(3)", "Cat(3"), r"line 12: SyntaxError: '\(' was never closed"),
    "import": ("import nothing_of_the_kind\n", r"line 1: ModuleNotFoundError: No module"),
    "deeper": (GOOD + "def f():\n    return 1 / 0\nf()\n", r"line 15: ZeroDivisionError: division"),
    "elsewhere": (GOOD + "Cat('a' ,\n  'b')\n", r"line 14: TypeError: .*takes from 1 to 2 pos"),
    "exit": ("raise SystemExit(3)\n", r"line 1: SystemExit: 3; fix this line$"),
    "null byte": ("x = '\0'\n", r"line 1: \w+: source code string cannot contain null bytes"),
    "missing": (GOOD.replace("Cat", "Kat"), r"mine\.py defines no Cat; it has Kat, three$"),
    "empty": (
        "",
        r"defines no Cat; add `class Cat\(test_plugins\.Animal\):` with `@property def legs\(self\)"
        r":` and `def speak\(self, loudly\):`$",
    ),
    "another kind": (
        GOOD.replace("(Animal)", ""),
        r"line 5: Cat must be a subclass of test_plugins\.Animal or an instance of one, got a c",
    ),
    "abstract": (
        HEAD + "class Cat(Animal):\n    legs = 4\n",
        r"line 4: Cat lacks speak; define `def speak\(self, loudly\):`$",
    ),
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_with_a_file_is_one_sentence(case: str, path: Path) -> None:
    text, sentence = CASES[case]
    path.write_text(text)
    before = list(sys.path)
    with pytest.raises(InputError, match=sentence) as caught:
        load_object(f"{path}:Cat", Animal, "animal")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert sys.path == before


def test_an_object_of_another_kind_or_none_is_named(path: Path) -> None:
    with pytest.raises(InputError, match=r"line 13: other must be a subclass of .*, got int"):
        load_object(f"{path}:other", Animal, "animal")
    with pytest.raises(InputError, match=r"defines no Lion; it has Cat, three"):
        load_object(f"{path}:Lion", Animal, "animal")
    with pytest.raises(InputError, match=r"no file .*none\.py to take the animal Cat from"):
        load_object(f"{path.parent}/none.py:Cat", Animal, "animal")


def test_a_class_or_an_instance_is_taken_and_the_files_beside_it_are_importable(path: Path) -> None:
    path.write_text("from beside_mine import sound\n" + GOOD.replace('"meow"', "sound"))
    (path.parent / "beside_mine.py").write_text("sound = 'purr'\n")
    cat, three = (load_object(f"{path}:{name}", Animal, "animal") for name in ("Cat", "three"))
    assert (cat().speak(True), three.legs) == ("purr", 3)
    assert str(path.parent) not in sys.path
    sys.modules.pop("beside_mine")


def test_a_file_is_executed_anew_by_every_call(path: Path) -> None:
    """And a change within a second, of equal length, is not hidden by compiled code."""
    assert load_object(f"{path}:three", Animal, "animal").legs == 3
    path.write_text(GOOD.replace("Cat(3)", "Cat(5)"))
    assert load_object(f"{path}:three", Animal, "animal").legs == 5
    assert not (path.parent / "__pycache__").exists()


def test_names_and_where_they_are(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve("mine.py:Cat") == f"{path}:Cat"
    assert (resolve("cat"), label("cat"), label("mine.py:Cat")) == ("cat", "cat", "Cat")
    assert is_file("mine.py:Cat")
    assert not any(map(is_file, ("mine.py", "mine.py:", "mine.py:1", "mine:Cat", "Cat")))
    (tmp_path / "a").mkdir()
    other = tmp_path / "a" / "mine.py"  # another file of this name is another module
    other.write_text(GOOD)
    first, second = (load_object(f"{place}:Cat", Animal, "animal") for place in (path, other))
    assert (whereabouts(first), whereabouts(second(3))) == (f"{path}:Cat", f"{other}:Cat")
    assert str(place(f"{path}:three", first)) == f"{path}, line 5"
    assert str(place(f"{path}:three", int)) == f"{path}, line 12"

    class Local(Dog):
        pass

    for kind in (Local, int):
        with pytest.raises(InputError, match=r"must be defined at the top of a \.py file"):
            whereabouts(kind)


# --- Entries of tables ---------------------------------------------------------------------------

TABLE: dict[str, Any] = {"dog": Dog, "puppy": Dog(volume=0.2)}


def make(name: str, **settings: Any) -> Any:
    return discovery.configure(discovery.find(TABLE, name, Animal, "animal"), settings, name)


def test_an_entry_comes_from_the_table_or_a_file_and_takes_settings(path: Path) -> None:
    assert make("dog", volume=2) == Dog(volume=2)
    assert make("puppy") is TABLE["puppy"]
    assert make("puppy", legs=3) == Dog(legs=3, volume=0.2)
    assert make(f"{path}:Cat", legs=3).legs == 3
    assert make(f"{path}:three").legs == 3
    assert make(f"{path}:three", legs=2).legs == 2


def test_a_file_is_executed_only_when_it_is_named_so(path: Path) -> None:
    path.write_text("raise RuntimeError('executed')\n")
    for name in (f"{path}:", "mine", str(path.with_suffix(""))):
        with pytest.raises(InputError, match=r"unknown animal .*(did you mean|there are 'dog')"):
            make(name)
    with pytest.raises(InputError, match=r"which animal of the file to use; name mine\.py:NAME"):
        make("mine.py")


def test_settings_that_will_not_do_are_named(path: Path) -> None:
    for settings, sentence in (
        ({"volum": 1.0}, "unknown setting of dog 'volum'; did you mean 'volume'"),
        ({"volume": "loud"}, "volume must be float, got 'loud'"),
        ({"volume": float("nan")}, "volume must be float, got nan"),
        ({"legs": 2.5}, "legs must be int, got 2.5"),
    ):
        with pytest.raises(InputError, match=sentence):
            make("dog", **settings)
    with pytest.raises(InputError, match=r"unknown setting of Cat 'leg'; did you mean 'legs'"):
        make(f"{path}:Cat", leg=3)


def test_what_a_users_class_asks_for_and_raises(path: Path) -> None:
    path.write_text(
        HEAD
        + "class Cat(Animal):\n    legs = 4\n    def speak(self, loudly): ...\n"
        + "    def __init__(self, name: str, generator):\n        self.name = name[9]\n"
        + "class Mute(Cat):\n    def __init__(self): ...\n"
        + "mute = Mute()\n"
    )
    given = {"generator": torch.Generator()}
    cat = discovery.find({}, f"{path}:Cat", Animal, "animal")
    for settings, sentence in (
        ({}, "^Cat needs the setting name$"),
        ({"generator": 1, "name": "x"}, "unknown setting of Cat 'generator'"),
        ({"name": "Tom"}, r"mine\.py, line 8: IndexError: string index .*; fix this line$"),
    ):
        with pytest.raises(InputError, match=sentence):
            discovery.configure(cat, settings, f"{path}:Cat", **given)
    assert discovery.configure(cat, {"name": "Garfield I"}, f"{path}:Cat", **given).name == "I"
    with pytest.raises(InputError, match=r"^Mute takes no settings, got 'legs'"):
        make(f"{path}:Mute", legs=1)
    assert make(f"{path}:mute").legs == 4
    with pytest.raises(InputError, match="mute is an instance of a class that is no dataclass"):
        make(f"{path}:mute", legs=1)
