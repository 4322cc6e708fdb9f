"""`haltwise`, and `python -m haltwise`."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line, or say what it needs."""
    try:
        from haltwise import cli
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(f"the command line needs {error.name}: pip install 'haltwise[full]'")
    cli.main()


if __name__ == "__main__":
    main()
