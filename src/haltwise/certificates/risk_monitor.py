"""Runs that are let go on past their stop, to test for ever what was certified."""

import copy
import math
from typing import Any, final

import torch

from haltwise._core.errors import InputError, refusing_others, require
from haltwise._core.random import split_mix, stream
from haltwise._core.settings import real_number, shown, whole_number
from haltwise.certificates.certificate import Certificate
from haltwise.certificates.e_process import EProcess

__all__ = ["RiskMonitor"]


@final
class RiskMonitor:
    """Let a fraction of runs, drawn at random, go on past the stop, and test what they show.

    What a stop loses is only seen where it is not obeyed. Of every run ask `draw` before it begins,
    whatever the run; if it is let go, `report` at its end what the stop would have lost, 0 where
    there was none. While the risk is at most the level there never is an alarm, with this
    confidence; of a risk that is higher, the sooner the higher it is.

    Args:
        level: The bound on the risk, in its own units.
        confidence: That there never is a false alarm.
        share: Of the runs that are let go, in (0, 1].
        bound: The largest loss that counts; larger ones count as it.
        seed: Of the draws.

    Raises:
        InputError: A setting is impossible.

    Examples:
        >>> monitor = RiskMonitor(0.05, share=0.5, seed=1)
        >>> for run in range(100):
        ...     if monitor.draw():  # let this run go on, although it should stop
        ...         alarm = monitor.report(0.0)
        >>> monitor
        RiskMonitor(53 of 100 runs let go, 53 reported: mean risk 0, level 0.05, no alarm)
    """

    def __init__(
        self,
        level: float,
        confidence: float = 0.95,
        *,
        share: float = 0.05,
        bound: float = math.inf,
        seed: int = 0,
    ) -> None:
        self._test = EProcess(level, confidence)
        self.share = real_number("share", share)
        require(0 < self.share <= 1, f"share must be in (0, 1], got {shown(share)}")
        self.bound = real_number("bound", bound)
        require(self.bound > self._test.level, "bound must be above the level")
        self._seed = whole_number("seed", seed, 0)
        key = torch.randint(2**62, (1,), generator=stream(self._seed, "let go"), device="cpu")
        self._key = int(key)
        self._num_runs = self._num_let_go = 0

    @classmethod
    def of(
        cls,
        certificate: Certificate,
        *,
        confidence: float = 0.95,
        share: float = 0.05,
        seed: int = 0,
    ) -> "RiskMonitor":
        """The monitor of a certified risk, with the level and the bound of the certificate.

        Args:
            certificate: What is tested.
            confidence: That there never is a false alarm; not the one of the certificate.
            share: Of the runs that are let go.
            seed: Of the draws.
        """
        bound = certificate.bound
        return cls(certificate.level, confidence, share=share, bound=bound, seed=seed)

    @property
    def num_runs(self) -> int:
        """Runs that were drawn for."""
        return self._num_runs

    @property
    def num_let_go(self) -> int:
        """Runs that were let go."""
        return self._num_let_go

    @property
    def test(self) -> EProcess:
        """The test, with its evidence, its mean and its alarm."""
        return self._test

    def draw(self) -> bool:
        """Whether the next run is let go; a pure function of the seed and the number of the run."""
        bits = split_mix(*torch.tensor([[self._key], [self._num_runs]], device="cpu"))
        self._num_runs += 1
        let_go = (int(bits) % 2**53) < self.share * 2**53
        self._num_let_go += let_go
        return let_go

    def report(self, loss: float) -> bool:
        """See what the stop would have lost in a run that was let go; whether there is an alarm.

        Args:
            loss: At least 0; 0 where the run ended before the stop. Infinite where it diverged and
                there is a bound.

        Raises:
            InputError: Every run that was let go is reported already, or the loss is impossible.
        """
        if self._test.num >= self._num_let_go:
            raise InputError(
                f"all {self._num_let_go} runs that were let go are reported; report just the runs "
                "for which draw() was true"
            )
        return self._test.update(min(real_number("loss", loss), self.bound))

    def state_dict(self) -> dict[str, Any]:
        """All that it depends on, as plain numbers, to go on exactly."""
        return {
            "test": self._test.state_dict(),
            "share": self.share,
            "bound": None if self.bound == math.inf else self.bound,
            "seed": self._seed,
            "num_runs": self._num_runs,
            "num_let_go": self._num_let_go,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            InputError: It is no such state, or that of another monitor.
        """
        own, test = self.state_dict(), copy.copy(self._test)
        message = "this is no state of a RiskMonitor; load what its state_dict() gave"
        with refusing_others(message):
            require(set(state) == set(own), message)
            for name in ("share", "bound", "seed"):
                require(
                    bool(state[name] == own[name]),
                    f"the state is of a monitor with {name} {shown(state[name])}, this one has "
                    f"{own[name]}",
                )
            test.load_state_dict(state["test"])
            num_runs, num_let_go = (
                whole_number(name, state[name], 0) for name in ("num_runs", "num_let_go")
            )
        require(test.num <= num_let_go <= num_runs, message)
        self._test, self._num_runs, self._num_let_go = test, num_runs, num_let_go

    def __repr__(self) -> str:
        test = self._test
        mean = "none" if math.isnan(test.mean) else f"{test.mean:.4g}"
        alarm = "no alarm" if test.alarm is None else f"alarm after {test.alarm}"
        return (
            f"RiskMonitor({self._num_let_go} of {self._num_runs} runs let go, {test.num} reported: "
            f"mean risk {mean}, level {test.level:g}, {alarm})"
        )
