"""Engines by name: what `haltwise.solve`, recordings and the cards of halting models refer to."""

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from haltwise import update_rules
from haltwise._core import discovery
from haltwise._core.errors import InputError, require
from haltwise._core.nested_settings import Choice
from haltwise._core.settings import got
from haltwise.engines import Engine, engines
from haltwise.engines.choose import EngineChoice, choose
from haltwise.engines.hand_rule import RuleEngine
from haltwise.tasks.base import TaskBatch
from haltwise.update_rules import UpdateRule

__all__ = ["choice_of", "engine_for", "engine_of", "own_kinds"]


def engine_for(
    method: str | Engine | UpdateRule, problem: TaskBatch
) -> tuple[Engine, EngineChoice]:
    """The engine that is meant, and why.

    Raises:
        InputError: There is none of this name, or it cannot solve such problems.
    """
    choice = choose(problem) if method == "auto" else EngineChoice(str(method), "it was asked for")
    if isinstance(method, UpdateRule):
        method = RuleEngine(method)
    if isinstance(method, Engine):
        engine = method
    else:
        require(
            isinstance(method, str),
            f"method must be a name, an engine or an update rule, {got(method)}",
        )
        names = {"lstm": None, "auto": None, **engines()}
        found = discovery.lookup(names, choice.name, "method")
        if found is None:
            raise InputError(
                f"method {choice.name!r} is no engine, but a learned optimizer; choose 'auto' or "
                f"one of {', '.join(engines())}"
            )
        engine = found
    require(
        not problem.stochastic,
        f"method {choice.name!r} needs a loss that is the same at every step; choose 'lstm'",
    )
    refusal = engine.refusal(problem)
    if refusal is not None:
        raise InputError(
            f"method {choice.name!r} cannot solve these problems: {refusal}; choose 'lbfgs' or "
            "'auto'"
        )
    return engine, choice


def own_kinds() -> Mapping[str, type[Engine]]:
    """Classes of the engines that are no update rules, by name."""
    return {
        name: type(engine)
        for name, engine in engines().items()
        if not isinstance(engine, RuleEngine)
    }


def choice_of(engine: Engine) -> Choice:
    """The name and settings by which a card knows an engine; those of the rule of a `RuleEngine`.

    Examples:
        >>> choice_of(engines()["momentum"]).name
        'sgd'
    """
    thing: Any = engine.rule if isinstance(engine, RuleEngine) else engine
    kinds: Mapping[str, type] = {**own_kinds(), **update_rules.rules()}
    names = {kind: name for name, kind in kinds.items()}
    settings = asdict(thing) if is_dataclass(thing) and not isinstance(thing, type) else {}
    return Choice(names.get(type(thing), type(thing).__name__), settings)


def engine_of(choice: Choice) -> Engine:
    """The engine of the package that a choice names.

    Raises:
        InputError: There is none, or a setting is unknown or impossible.
    """
    if choice.name in own_kinds():
        engine: Engine = discovery.configure(own_kinds()[choice.name], choice.settings, choice.name)
        return engine
    return RuleEngine(update_rules.make(choice.name, choice.settings))
