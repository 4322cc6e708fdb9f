"""The family that a run learns from: of problems or of processes, named or from a file."""

from pathlib import Path

from haltwise._core import plugins
from haltwise._core.discovery import configure
from haltwise._core.nested_settings import Choice
from haltwise.processes.base import ProcessFamily
from haltwise.tasks import TaskFamily, family

__all__ = ["find_family", "is_process_family"]


def is_process_family(name: str) -> bool:
    """Whether a name, PATH.py:NAME, is that of a family of processes; its file is executed.

    Raises:
        InputError: The file does not run, or it defines no such name.
    """
    if not plugins.is_file(name):
        return False
    found = plugins.load_object(name, object, "family")
    return issubclass(found if isinstance(found, type) else type(found), ProcessFamily)


def find_family(choice: Choice, data_dir: Path | str | None = None) -> TaskFamily | ProcessFamily:
    """Make the family that a choice names.

    Args:
        choice: Its name and settings.
        data_dir: Directory of the family's data files, see `haltwise.tasks.family`.

    Raises:
        InputError: There is none, or no such setting, and near names are suggested; or the file
            does not run.
    """
    if not is_process_family(choice.name):
        return family(choice.name, choice.settings, data_dir=data_dir)
    found = plugins.load_object(choice.name, ProcessFamily, "family of processes")
    made: ProcessFamily = configure(found, choice.settings, choice.name)
    return made
