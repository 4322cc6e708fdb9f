"""Contract checks for what users bring: each raises `AssertionError` with what is broken."""

from haltwise.testing.update_rule import check_update_rule

__all__ = ["check_update_rule"]
