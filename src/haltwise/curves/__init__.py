"""Recorded runs of any iterative process: what they showed, what they cost, whether they succeeded.

`haltwise.curves.curves` is the record, `haltwise.curves.readers` fills it from files and arrays.
"""

from haltwise.curves.curves import Curve, Curves
from haltwise.curves.readers import read

__all__ = ["Curve", "Curves", "read"]
