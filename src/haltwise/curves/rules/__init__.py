"""Rules that stop a run or give it up by its curve, one file each.

A new rule is one file with a frozen dataclass, a `haltwise.curves.rule.CurveRule`, and
`CURVE_RULES`, from its name to the class.
"""

import sys
from collections.abc import Mapping

from haltwise._core import discovery
from haltwise.curves.rule import CurveRule

__all__ = ["curve_rules"]


def curve_rules() -> Mapping[str, type[CurveRule]]:
    """Every named rule on curves: what `haltwise bench` runs and generic tests walk.

    Examples:
        >>> "patience" in curve_rules()
        True
    """
    return discovery.collect(sys.modules[__name__], "CURVE_RULES")
