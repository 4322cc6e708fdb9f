"""Certificates: bounds on what a stop loses that hold, or a refusal with the number needed.

Everything works on a `RiskTable`, the losses of calibration problems under thresholds from the
safest to the boldest, wherever they come from. The page "Certificates" of the
documentation has the proofs.
"""

from haltwise.certificates.certificate import Certificate, Promise, Refusal
from haltwise.certificates.certify import certify_table, require_promise
from haltwise.certificates.copies import warn_of_copies
from haltwise.certificates.e_process import EProcess
from haltwise.certificates.risk_monitor import RiskMonitor
from haltwise.certificates.risks import (
    RISKS,
    Cost,
    ExcessLoss,
    FunctionOfStop,
    GainForgone,
    LossAbove,
    Risk,
    StopOutcomes,
    SuccessGivenUp,
)
from haltwise.certificates.table import RiskTable, label_codes
from haltwise.certificates.tabulate import from_the_safest, largest_loss, set_aside, tabulate

__all__ = [
    "RISKS",
    "Certificate",
    "Cost",
    "EProcess",
    "ExcessLoss",
    "FunctionOfStop",
    "GainForgone",
    "LossAbove",
    "Promise",
    "Refusal",
    "Risk",
    "RiskMonitor",
    "RiskTable",
    "StopOutcomes",
    "SuccessGivenUp",
    "certify_table",
    "from_the_safest",
    "label_codes",
    "largest_loss",
    "require_promise",
    "set_aside",
    "tabulate",
    "warn_of_copies",
]
