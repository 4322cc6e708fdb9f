"""A test of "the risk is at most the level" that never ends, by betting."""

import math
import sys
from typing import Any, final

from haltwise._core.errors import refusing_others, require
from haltwise._core.settings import real_number, shown, whole_number

__all__ = ["EProcess", "bets_of", "share_waiting"]

_LEAST_BET = 0.25  # the best against a risk a quarter above the level, if losses are 0 or 1
_LARGEST_SHARE = 0.5  # of the wealth, that a loss of 0 can take
_RATIO = 2.0
_LARGEST = sys.float_info.max / 2  # of wealth and sums of losses, which must stay numbers


@final
class EProcess:
    r"""Bet on losses above the level, and sound the alarm when too much is won.

    The wealth is a mixture over fixed bets $\lambda_j$ and over the run $s$ at which a bet begins,

    $$E_n = \sum_{s} w_s \sum_j v_j \prod_{i=s}^{n} (1 + \lambda_j (x_i - m)),$$

    with $w_1 = 1/2$, and the other half shared among later runs, so that a risk that rises late is
    noticed as well (docs/certificates.md, Eq. (e-process)). While every mean, given the past, is at
    most the level m, the wealth ever reaches 1 / (1 - confidence) with a probability of at most
    1 - confidence, whatever the law, the dependence and the largest loss.

    Args:
        level: m, above 0, in the units of the losses.
        confidence: That there never is a false alarm.

    Raises:
        InputError: One of them is impossible.

    Source: Waudby-Smith & Ramdas 2024; Shin, Ramdas & Rinaldo 2022, "E-detectors".

    Examples:
        >>> test = EProcess(0.05, 0.95)
        >>> for _ in range(6):
        ...     alarm = test.update(1.0)
        >>> alarm, test.num
        (True, 6)
    """

    def __init__(self, level: float, confidence: float) -> None:
        self.level = real_number("level", level)
        self.confidence = real_number("confidence", confidence)
        tiny = sys.float_info.min  # whose inverse is finite
        require(
            tiny <= self.level < math.inf, f"level must be above 0 and finite, got {shown(level)}"
        )
        require(
            0 < self.confidence < 1, f"confidence must be above 0 and below 1, got {confidence!r}"
        )
        self._bets, self._weights = bets_of(self.level)
        self._begun = [0.0] * len(self._bets)  # the wealth of each bet, over all beginnings so far
        self._num = 0
        self._sum = 0.0
        self._alarm: int | None = None

    @property
    def num(self) -> int:
        """Losses seen."""
        return self._num

    @property
    def mean(self) -> float:
        """Mean loss so far; NaN if there is none."""
        return self._sum / self._num if self._num else math.nan

    @property
    def alarm(self) -> int | None:
        """The number of losses that had been seen at the alarm; None while there is none."""
        return self._alarm

    @property
    def wealth(self) -> float:
        """The e-value: evidence against the level, 1 at the start; kept as it was at the alarm."""
        pairs = zip(self._weights, self._begun, strict=True)
        won = math.fsum(weight * wealth for weight, wealth in pairs)
        return won + share_waiting(self._num if self._alarm is None else self._alarm)

    def update(self, loss: float) -> bool:
        """See the next loss, at least 0; whether there is, or ever was, an alarm.

        Raises:
            InputError: The loss is negative or not finite.
        """
        loss = real_number("loss", loss)
        require(
            0 <= loss < math.inf,
            f"a loss must be at least 0 and finite, got {loss:g}; report the largest that counts "
            "for a run that diverged",
        )
        if self._alarm is None:
            new = share_waiting(self._num) - share_waiting(self._num + 1)
            self._begun = [
                min((wealth + new) * (1 + bet * (loss - self.level)), _LARGEST)
                for wealth, bet in zip(self._begun, self._bets, strict=True)
            ]
        self._num += 1
        self._sum = min(self._sum + loss, _LARGEST)
        if self._alarm is None and self.wealth * (1 - self.confidence) >= 1:
            self._alarm = self._num
        return self._alarm is not None

    def state_dict(self) -> dict[str, Any]:
        """All that it depends on, as plain numbers, to go on exactly."""
        return {
            "level": self.level,
            "confidence": self.confidence,
            "wealth": [*self._begun],
            "num": self._num,
            "sum": self._sum,
            "alarm": self._alarm,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            InputError: It is no such state, or that of another test.
        """
        message = "this is no state of an EProcess; load what its state_dict() gave"
        with refusing_others(message):
            level, confidence = (real_number(name, state[name]) for name in ("level", "confidence"))
            wealth = [real_number("wealth", each) for each in state["wealth"]]
            num, total = whole_number("num", state["num"], 0), real_number("sum", state["sum"])
            alarm = None if state["alarm"] is None else whole_number("alarm", state["alarm"])
            own = set(state) == set(self.state_dict()) and len(wealth) == len(self._bets)
        possible = (
            all(0 <= each < math.inf for each in (*wealth, total))
            and (num > 0 or total == sum(wealth) == 0)
            and (alarm is None or alarm <= num)
        )
        require(own and possible, message)
        require(
            (level, confidence) == (self.level, self.confidence),
            f"the state is of a test at level {level:g} and confidence {confidence:g}, this one is "
            f"at {self.level:g} and {self.confidence:g}",
        )
        self._begun, self._num, self._sum, self._alarm = wealth, num, total, alarm


def bets_of(level: float) -> tuple[list[float], list[float]]:
    """Bets from large to small, and their weights v_j: most on those that meet small rises."""
    largest = _LARGEST_SHARE / level
    num = 1 + max(0, math.floor(math.log(largest / _LEAST_BET, _RATIO)))
    bets = [largest * _RATIO**-step for step in range(num)]
    total = math.fsum(bet**-0.5 for bet in bets)
    return bets, [bet**-0.5 / total for bet in bets]


def share_waiting(num: int) -> float:
    """The share of the wealth that no bet has begun with after `num` losses."""
    return 1.0 if num == 0 else 0.5 / (1 + math.log(num))
