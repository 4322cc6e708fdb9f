"""Stop policies as JSON values and back, for cards and certificates."""

from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

from haltwise._core.discovery import find_known
from haltwise._core.plugins import whereabouts
from haltwise._core.settings import require_types
from haltwise.stop_rules import stop_rules
from haltwise.stop_rules.base import AllOf, AnyOf, DecisionTime, StopRule
from haltwise.stop_rules.policy import ReturnedIterate, StopPolicy

__all__ = ["policy_from_json", "policy_to_json"]

_COMPOSED: Mapping[str, type[AnyOf | AllOf]] = {"any-of": AnyOf, "all-of": AllOf}


def policy_to_json(policy: StopPolicy) -> dict[str, Any]:
    """A JSON object from which `policy_from_json` makes the same policy."""
    return {"rule": _rule_to_json(policy.rule), "returns": policy.returns.value}


def policy_from_json(document: Mapping[str, Any], own: Iterable[type] = ()) -> StopPolicy:
    """The policy that `policy_to_json` wrote; `own` has the caller's stop rules among it.

    Raises:
        InputError: There is no such stop rule, or a setting is of another type.
        KeyError, TypeError, ValueError: It is no such document.
    """
    return StopPolicy(_rule_from_json(document["rule"], own), ReturnedIterate(document["returns"]))


def _rule_to_json(rule: StopRule) -> dict[str, Any]:
    names = {kind: name for name, kind in {**stop_rules(), **_COMPOSED}.items()}
    name = names.get(type(rule)) or whereabouts(rule)
    if isinstance(rule, AnyOf | AllOf):
        return {"kind": name, "rules": [_rule_to_json(part) for part in rule.rules]}
    settings = {
        key: value.name.lower() if isinstance(value, DecisionTime) else value
        for key, value in vars(rule).items()
    }
    return {"kind": name, **settings}


def _rule_from_json(document: Mapping[str, Any], own: Iterable[type]) -> StopRule:
    settings = dict(document)
    name = settings.pop("kind")
    if name in _COMPOSED:
        return _COMPOSED[name](tuple(_rule_from_json(part, own) for part in settings["rules"]))
    kind: type[StopRule] = find_known(stop_rules(), name, "stop rule", own)
    hints = get_type_hints(kind.__init__)
    for key, value in settings.items():
        if hints.get(key) is DecisionTime:
            settings[key] = DecisionTime[str(value).upper()]
        elif isinstance(value, list):
            settings[key] = tuple(value)
    require_types(kind.__init__, settings)
    return kind(**settings)
