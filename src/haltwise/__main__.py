"""`python -m haltwise`."""

from haltwise.cli import main

if __name__ == "__main__":
    main()
