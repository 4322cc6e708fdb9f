"""SQLite databases, read as data: nothing in them is executed or changed."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from haltwise._core.errors import InputError, require

if TYPE_CHECKING:
    import sqlite3

__all__ = ["has_tables", "opened_database"]

_HEAD = "SQLite format 3\0"


@contextlib.contextmanager
def opened_database(path: Path) -> Iterator["sqlite3.Connection"]:
    """Open a database to read its tables.

    Raises:
        InputError: It is corrupt, locked or cannot be read, also while it is.
    """
    try:
        import sqlite3
    except ImportError:
        raise InputError(
            f"this Python was built without SQLite, in which {path} is written; take another"
        ) from None
    address = f"file:{quote(str(path.absolute()))}?mode=ro"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as database:
            database.execute("PRAGMA trusted_schema = OFF")
            yield database
    except (sqlite3.Error, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"cannot read the database {path} ({error}); end what writes it, or restore it from a "
            "copy"
        ) from None


def has_tables(path: Path, head: str, **tables: str) -> bool:
    """Whether a file is a database with these tables, and each with these columns, plain ones.

    Args:
        path: The file.
        head: Its first characters.
        **tables: The columns of each, separated by blanks.
    """
    if not head.startswith(_HEAD):
        return False
    with opened_database(path) as database:
        for table, columns in tables.items():
            found = database.execute(
                "SELECT sql FROM sqlite_master WHERE name = ? AND type = 'table'", (table,)
            ).fetchone()
            if found is None or str(found[0])[:13].upper() != "CREATE TABLE ":
                return False  # a view or a virtual table could compute for ever
            known = {name for _, name, *_ in database.execute(f'PRAGMA table_info("{table}")')}
            require(
                known.issuperset(columns.split()),
                f"the table {table} of {path} has no columns {columns}; it was written by another "
                "version of the program, which can upgrade it",
            )
    return True
