"""What the terms of pages mean; a page explains those that it uses."""

import re

__all__ = ["explained"]

_TERMS = {
    "Excess loss": "The loss that counts above a reference of the problem: its minimum where that "
    "is known.",
    "Price": "What a step must gain to be worth taking, in units of the loss; where runs are given "
    "up, what a unit of cost is worth, in units of what a success is.",
    "J": "Mean excess loss of what is returned plus price × cost; lower is better.",
    "Cost": "Counted in updates, a stop decided at step t costs t. Counted in gradients it costs "
    "t + 1, since the gradient at t is paid for, and may return the next iterate.",
    "Oracle": "Ends every problem at its step of least J, knowing its future.",
    "Best fixed budget": "The same number of steps for all, the one of least mean J in hindsight.",
    "Captured gain": "(J of the best fixed budget − J) / (J of the best fixed budget − J of the "
    "oracle): 0 is the best fixed budget, 100 % the oracle.",
    "Budgets mixed at random": "Two fixed budgets dealt to the problems at random: the best that "
    "can be done without telling problems apart. What is saved is the share of the cost that they "
    "need for equal excess.",
    "Tuned baseline": "A stop rule without a model, its settings of least J on other problems than "
    "those it is judged on.",
    "Interval": "95 %, by the jackknife over problems, or over the groups that are given.",
    "Solved": "Ends with at most 5 % of its initial excess.",
}
_SEEN_BY = {
    "Cost": "counted in (updates|gradients)",
    "Excess loss": "excess",
    "Oracle": "oracle|hindsight",
    "Tuned baseline": "tuned",
}
"""What shows that a term is used, where it is not the term itself."""


def explained(text: str) -> dict[str, str]:
    """The terms that a text uses, or what explains another of them, each with its meaning.

    Examples:
        >>> list(explained("Captured gain at a price of 0.1"))
        ['Excess loss', 'Price', 'J', 'Oracle', 'Best fixed budget', 'Captured gain']
    """
    found: dict[str, str] = {}
    while True:
        known = "\n".join((text, *found.values()))
        more = {
            term: meaning
            for term, meaning in _TERMS.items()
            if re.search(
                rf"\b({_SEEN_BY.get(term, term)})s?\b", known, re.NOFLAG if term == "J" else re.I
            )
        }
        if len(more) == len(found):
            return more
        found = more
