"""Contracts as checks, for families of your own as for those of the package."""

from haltwise.testing.family import check_family

__all__ = ["check_family"]
