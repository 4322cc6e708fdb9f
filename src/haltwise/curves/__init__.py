"""Recorded runs of any iterative process: what they showed, what they cost, whether they succeeded.

`haltwise.curves.curves` is the record, `haltwise.curves.readers` fills it from files and arrays.
"""

from haltwise.curves.certify import certify_curves
from haltwise.curves.curves import Curve, Curves
from haltwise.curves.learning import Learned, learn
from haltwise.curves.model import CurveModel
from haltwise.curves.readers import read
from haltwise.curves.shipped import load_curve_model, load_curve_rule
from haltwise.curves.stop_model import StopModel
from haltwise.curves.stopping import LearnedStop, learn_to_stop

__all__ = [
    "Curve",
    "CurveModel",
    "Curves",
    "Learned",
    "LearnedStop",
    "StopModel",
    "certify_curves",
    "learn",
    "learn_to_stop",
    "load_curve_model",
    "load_curve_rule",
    "read",
]
