"""Objects from a user's own Python file, named as `path/to/file.py:NAME`.

The one mechanism for whatever a user may bring: families, update rules, halting methods, stop
rules and the like. A file is executed only where it is named in this form.
"""

import ast
import contextlib
import inspect
import sys
import traceback
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from haltwise._core.errors import InputError, require

__all__ = [
    "Place",
    "class_of",
    "comes_with_the_package",
    "file_of",
    "is_file",
    "is_from",
    "is_shipped",
    "label",
    "load_object",
    "place",
    "resolve",
    "whereabouts",
]


def is_file(name: str) -> bool:
    """Whether `name` has the form PATH.py:NAME."""
    path, colon, attribute = name.rpartition(":")
    return bool(colon) and path.endswith(".py") and attribute.isidentifier()


def resolve(name: str) -> str:
    """Make the path of PATH.py:NAME absolute, so that it is found from any directory."""
    if not is_file(name):
        return name
    path, attribute = _split(name)
    return f"{path.resolve()}:{attribute}"


def file_of(name: str) -> Path:
    """The file of PATH.py:NAME."""
    return _split(name)[0]


def label(name: str) -> str:
    """Shorten PATH.py:NAME to NAME, for tables and file names."""
    return _split(name)[1] if is_file(name) else name


def load_object(name: str, kind: type, what: str) -> Any:
    """Execute the file and take the object from it.

    The directory of the file is importable meanwhile, as it is for `python PATH.py`.

    Args:
        name: PATH.py:NAME.
        kind: The class that NAME must be a subclass or an instance of.
        what: A noun for such an object in messages, for instance "family".

    Raises:
        InputError: The file is missing or raises an exception, or NAME is missing, of another
            kind or without methods that `kind` asks for; the message names file and line.
    """
    path, attribute = _split(name)
    require(
        path.is_file(),
        f"there is no file {path} to take the {what} {attribute} from; if it has moved, name it "
        f"as NEW/PLACE.py:{attribute}",
    )
    module = _execute(path)
    if not hasattr(module, attribute):
        defined = [
            key
            for key, value in vars(module).items()
            if _is_a(value, kind)
            and class_of(value).__module__ == module.__name__  # not what it imports
            and not key.startswith("_")
            and not isinstance(value, ModuleType)
        ]
        raise InputError(
            f"{path} defines no {attribute}; "
            + (f"it has {', '.join(defined)}" if defined else f"add {_outline(attribute, kind)}")
        )
    found = getattr(module, attribute)
    where = place(name, class_of(found))
    if not _is_a(found, kind):
        given = "a class of its own" if isinstance(found, type) else type(found).__name__
        raise InputError(
            f"{where}: {attribute} must be a subclass of {_public_name(kind)} or an instance of "
            f"one, got {given}; write {_outline(attribute, kind)}"
        )
    lacking = _abstract_methods(found)
    require(
        not lacking,
        f"{where}: {attribute} lacks {' and '.join(lacking)}; define "
        + " and ".join(_signature(found, method) for method in lacking),
    )
    return found


def class_of(found: object) -> type[Any]:
    """The class itself, or that of an instance."""
    return found if isinstance(found, type) else type(found)


def whereabouts(found: object) -> str:
    """Name a class, or that of an instance, as PATH.py:NAME, which `load_object` takes again.

    Raises:
        InputError: The class is not defined at the top of a file.
    """
    kind = class_of(found)
    name = kind.__qualname__
    with contextlib.suppress(TypeError, OSError):  # built in, or typed at a prompt
        name = f"{inspect.getfile(kind)}:{name}"
    require(
        is_file(name),
        f"{kind.__qualname__} must be defined at the top of a .py file, so that the run finds it "
        "again; move it there",
    )
    return resolve(name)


def comes_with_the_package(*things: object) -> bool:
    """Whether classes, and those of the `rules` that they are made of, are none of a caller's.

    What others write may read memory that a recorded loop does not list, change what it does from
    call to call, or take what is a tensor for a number.
    """
    return all(
        is_shipped(type(thing)) and comes_with_the_package(*getattr(thing, "rules", ()))
        for thing in things
    )


def is_shipped(kind: type) -> bool:
    """Whether a class is of this package."""
    return kind.__module__.partition(".")[0] == __name__.partition(".")[0]


def is_from(kind: type, name: str) -> bool:
    """Whether a class is defined in the file of PATH.py:NAME."""
    with contextlib.suppress(TypeError, OSError):  # built in, or typed at a prompt
        return is_file(name) and Path(inspect.getfile(kind)).resolve() == file_of(name).resolve()
    return False


class Place(NamedTuple):
    """A line of a user's file, counted from 1."""

    path: Path
    line: int

    def __str__(self) -> str:
        return f"{self.path}, line {self.line}"

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the user's code raises into an `InputError` that names the line.

        That is the last line of the file which was being executed, or else this one.
        """
        try:
            yield
        except InputError as error:  # it says how to fix it
            raise InputError(f"{self._of(error)}: {error}") from error
        except (Exception, SystemExit) as error:
            message = str(error).partition("\n")[0].rstrip(". ")
            raise InputError(
                f"{self._of(error)}: {type(error).__name__}: {message}; fix this line"
            ) from error

    def _of(self, error: BaseException) -> "Place":
        frames = traceback.extract_tb(error.__traceback__)
        seen = [(frame.filename, frame.lineno) for frame in frames]
        if isinstance(error, SyntaxError):
            seen.append((error.filename or "", error.lineno))
        here = self.path.resolve()
        lines = [line for file, line in seen if line and Path(file).resolve() == here]
        return self._replace(line=lines[-1] if lines else self.line)


def place(name: str, kind: type) -> Place:
    """Where the file of PATH.py:NAME defines `kind`, or else NAME; line 1 if neither is found."""
    path, attribute = _split(name)
    lines = {}
    for node in ast.parse(path.read_bytes()).body:
        for target in getattr(node, "targets", [node]):
            lines[getattr(target, "id", getattr(target, "name", None))] = node.lineno
    return Place(path, lines.get(kind.__name__, lines.get(attribute, 1)))


def _split(name: str) -> tuple[Path, str]:
    path, _, attribute = name.rpartition(":")
    return Path(path), attribute


_being_executed: set[str] = set()
"""Modules whose files have not ended yet."""


def _execute(path: Path) -> ModuleType:
    try:
        source = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}; correct its permissions") from None
    main = sys.modules["__main__"]
    script = getattr(main, "__file__", None)
    if script is not None and Path(script).resolve() == path.resolve():
        return main  # a script that trains on what it defines: executed again, it would train again
    folder = str(path.resolve().parent)
    # Two files of one name in two directories are two modules.
    identity = f"haltwise_plugin_{path.stem}_{zlib.crc32(folder.encode()):08x}"
    require(
        identity not in _being_executed,
        f"{path} trains, or loads itself, while it is executed for what it defines; write that "
        'part of it below `if __name__ == "__main__":`',
    )
    module = ModuleType(identity)
    module.__file__ = str(path.resolve())
    sys.modules[identity] = module  # dataclasses look their module up
    sys.path.insert(0, folder)
    _being_executed.add(identity)
    try:
        with Place(path, 1).errors():
            code = compile(source, str(path.resolve()), "exec", dont_inherit=True)
            exec(code, vars(module))  # noqa: S102 - the user has named the file to be executed
    finally:
        sys.path.remove(folder)
        _being_executed.remove(identity)
    return module


def _is_a(value: object, kind: type) -> bool:
    if isinstance(value, type):
        return issubclass(value, kind) and value is not kind
    return isinstance(value, kind)


def _public_name(kind: type) -> str:
    """The name to import a class by: packages export what their module `base` defines."""
    return f"{kind.__module__.removesuffix('.base')}.{kind.__qualname__}"


def _outline(attribute: str, kind: type) -> str:
    methods = " and ".join(_signature(kind, method) for method in _abstract_methods(kind))
    return f"`class {attribute}({_public_name(kind)}):`" + (f" with {methods}" if methods else "")


def _abstract_methods(kind: object) -> list[str]:
    return sorted(getattr(kind, "__abstractmethods__", ()))


def _signature(kind: type, method: str) -> str:
    found = inspect.getattr_static(kind, method)
    if isinstance(found, property):
        return f"`@property def {method}(self):`"
    inner = getattr(found, "__func__", found)  # of a class method
    return f"`def {method}({', '.join(inspect.signature(inner).parameters)}):`"
