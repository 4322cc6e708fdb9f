"""A monitor that stops a training loop, learned on recorded runs of it."""

import copy
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, final, get_args

import torch
from torch import Tensor

from haltwise._core.errors import DataWarning, refusing_others, require, warn
from haltwise._core.files import make_directory
from haltwise._core.settings import fits, got, one_of, real_number
from haltwise._core.tensors import require_like, undisturbed
from haltwise.certificates import RiskMonitor
from haltwise.curves.curves import Direction
from haltwise.halting.session import HaltingSession
from haltwise.interfaces.fit import warn_of_misfits, warn_of_other_rounds
from haltwise.interfaces.run import price_of_each
from haltwise.interfaces.run_monitor import Number
from haltwise.interfaces.watched import Model, WatchedParameters, has_gradients, parameters_of
from haltwise.models.files import certified, fingerprint
from haltwise.models.first_rounds import CHECKED, FirstRounds
from haltwise.models.halting_model import HaltingModel
from haltwise.models.loading import load_halting
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.observation import Observed, StepObservation
from haltwise.processes.signals import SIGNALS, combine_products
from haltwise.recordings.runs import require_new, save_run, warn_of_rounding
from haltwise.stop_rules import CostUnit

__all__ = ["HaltingMonitor"]

_STATE: Mapping[str, Any] = {
    "steps": int,
    "reason": str | None,
    "lowest": Any,  # infinite at first
    "improved": bool,
    "observed": Literal["loss", "gradients", "updates"] | None,
    "products": Tensor | None,
    "signals": list[Tensor],
    "scores": list[float],
    "holds": bool,
    "begun": Tensor | None,
    "is_let_go": bool,
    "is_whole": bool,
    "stop_forgone": int | None,
}
"""What is remembered, and what each entry is."""
_SEEN = torch.float32


@final
class HaltingMonitor:
    """Watch any iterative process, and say when another round is not worth its price.

    Any loop will do that has a loss or a metric: of PyTorch, of NumPy or of plain floats, with
    gradients or without. Where there are no recorded runs of one's own loop, or a log is all there
    is, a `haltwise.RunMonitor` gives runs up instead.

    First record runs of the loop, some hundreds, each of them longer than it ought to be:

        with HaltingMonitor.recording("runs") as monitor:
            for step in range(100):
                ...  # loss.backward(), optimizer.step()
                monitor.update(loss, model)

    then learn from them, `haltwise train-monitor runs --price 0.01 --out stopper` or
    `haltwise.training.train_monitor`, then stop:

        monitor = HaltingMonitor("stopper")
        for step in range(100):
            ...
            monitor.update(loss, model)
            if monitor.should_stop:
                break

    Call `update` once a round, which may be a step, an epoch or whatever lies between two decisions
    and is paid for by the price: after the optimizer's step and before gradients are cleared. It
    must be called in the same way when recording and when stopping. `start` before the first step
    shows the monitor the parameters from which it sets out; without it the first update counts as
    zero.

    It remembers three numbers a parameter, in the precision of the parameters: where they were, the
    last gradient and the last update. Give it a part of them, such as the last layer, to take less,
    or no model at all and it sees the loss alone. A parameter that is frozen is no longer seen; one
    that is unfrozen begins at zero. Where several processes train one model, give each the same
    loss, or they stop apart; parameters sharded over processes are not supported.

    Args:
        weights: What `train_monitor` wrote, or a run or optimizer whose rule is hand-designed.
        price: c, what a round must gain, in units of the score; None is what was trained for.
        let_go: Test for ever what is certified: a fraction of runs, drawn at random, that go on
            past the stop (`is_let_go`), after which `report` is told what the stop would have
            lost. A fraction takes level and bound from the certificate of the weights; give a
            `RiskMonitor` to choose all else, or to share one among loops.
        direction: `"max"` if a higher loss and score are better, as of an accuracy. None is what
            was recorded, and `"min"` for weights that were not learned on recorded runs.

    Raises:
        InputError: There are no such weights, they do not say when to stop, or the recorded runs
            had another direction; or a fraction of runs is to be let go, and there is no
            certificate of these weights at this price.

    Examples:
        >>> import tempfile
        >>> model = torch.nn.Linear(3, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with HaltingMonitor.recording(folder) as monitor:
        ...         monitor.start(model)
        ...         for _ in range(5):
        ...             monitor.update(1.0, model)
        ...     monitor.steps, monitor.should_stop, len(list(Path(folder).iterdir()))
        (5, False, 1)
    """

    def __init__(
        self,
        weights: str | Path | HaltingModel | OptimizerModel,
        *,
        price: float | None = None,
        let_go: float | RiskMonitor | None = None,
        direction: Direction | None = None,
    ) -> None:
        if isinstance(weights, OptimizerModel):
            weights = weights.halting
        if isinstance(weights, HaltingModel):
            model, name = copy.deepcopy(weights), "these weights"
        else:
            model, name = load_halting(weights), str(weights)
        self._fingerprint: str | None = None
        card = model.card
        require(
            model.halts,
            f"{name} were trained without halting; train some with haltwise train-monitor",
        )
        require(
            model.readout_size == 0,
            f"{name} reads the hidden state of its own optimizer, so it cannot judge another; "
            "train a monitor on recorded runs of this loop with haltwise train-monitor",
        )
        recorded = "max" if card.maximizes else "min"
        one_of("direction", recorded if direction is None else direction, get_args(Direction))
        require(
            card.family is not None or direction in (None, recorded),
            f"{name} were learned on runs recorded with direction {recorded!r}, not {direction!r}; "
            "leave the direction out",
        )
        self._maximizes = (direction or recorded) == "max"
        price = card.price if price is None else price
        self._price = price_of_each(price, 1, torch.zeros((), dtype=_SEEN, device="cpu"))
        model.warn_of_prices(self._price)
        self._model: HaltingModel | None = model.to(self._price).eval().requires_grad_(False)
        # A stop at call t leaves a recorded loop where it is then, t rounds after the first
        # decision: it counts updates. Other models were trained for asking before the gradient.
        self._limit = card.horizon + (card.unit is CostUnit.UPDATES)
        self._observed: Observed | None = card.observed
        self._directory: Path | None = None
        self._name: str | None = None
        self._risk = _risk_monitor(model, name, price, let_go)
        self.start()

    @classmethod
    def recording(
        cls, directory: str | Path, *, name: str | None = None, direction: Direction = "min"
    ) -> Self:
        """A monitor that never stops but writes what it sees to a file in `directory`.

        Args:
            directory: Created if missing; a relative one is meant from here.
            name: Of the file, which holds one run; numbered if None. Runs are sorted by it.
            direction: `"max"` if a higher loss and score are better, as of an accuracy.

        Raises:
            InputError: There is a run of that name, or no directory can be there.
        """
        one_of("direction", direction, get_args(Direction))
        monitor = cls.__new__(cls)
        monitor._model = monitor._observed = monitor._risk = None
        require(
            isinstance(directory, str | os.PathLike), f"directory must be a path, {got(directory)}"
        )
        monitor._directory, monitor._name = Path(directory).absolute(), name  # cwd may change
        make_directory(monitor._directory)  # not at the end of the run
        monitor._maximizes = direction == "max"
        monitor._signals, monitor._awaits_end = [], False
        monitor.start()
        return monitor

    @undisturbed(on_cpu=True)
    def start(
        self, model: Model | None = None, *, resumed: bool = False, awaits_end: bool = False
    ) -> None:
        """Begin a run, at the parameters as they are; a run recorded before it is written.

        Args:
            model: As in `update`, or None: the first update is then taken for zero.
            resumed: Whether the loop goes on from rounds that this monitor has not seen. Half a run
                teaches the wrong thing, so it is not recorded; one that is to be stopped is judged
                from here on.
            awaits_end: Whether the run is recorded only where `end` has been called, for loops
                whose failure nobody tells.

        Warns:
            DataWarning: The run is not recorded.
        """
        if self._directory is not None:
            self.close()
            require_new(self._directory, self._name)  # not at the end of the run
            self._observed = None
            if resumed:
                warn(
                    "the loop was resumed, and its first rounds were not seen: this run is not "
                    "recorded. Record whole runs, or keep the monitor's state_dict() with the loop",
                    DataWarning,
                )
        self._is_whole, self._awaits_end = not resumed, awaits_end
        self._is_written = False
        self._steps = 0
        self._reason: str | None = None
        self._lowest, self._improved = math.inf, False
        self._holds = False
        self._is_let_go = False
        self._stop_forgone: int | None = None
        self._begun: Tensor | None = None  # the signals of the first round
        self._is_warned = False  # that it is unlike what was trained on
        self._watched = WatchedParameters()
        self._products: Tensor | None = None
        self._session = self._new_session()
        self._signals: list[Tensor] = []  # all or none
        self._scores: list[float] = []
        if model is not None and self._observed != "loss":
            self._watched = WatchedParameters.of(model)

    def _new_session(self) -> HaltingSession | None:
        if self._model is None:
            return None
        return HaltingSession(self._model.policy(), self._price, self._model)

    def __repr__(self) -> str:
        seen = f"{self._steps} round{'s' * (self._steps != 1)} seen"
        if self._model is None:
            return f"HaltingMonitor({self.identity}; {seen})"
        state = "goes on" if self._reason is None else f"stops: {self._reason}"
        return (
            f"HaltingMonitor(at a price of {float(self._price):g} a round: "
            f"{self._model.card.summary}; {seen}, {state})"
        )

    @property
    def identity(self) -> str:
        """What tells it from other monitors: weights and price, or where it records."""
        return f"recording to {self._directory.name}" if self._directory else self._digest()

    @property
    def steps(self) -> int:
        """Rounds seen, the calls of `update`."""
        return self._steps

    @property
    def reason(self) -> str | None:
        """Why it should stop, in words; None while it should not."""
        return self._reason

    @property
    def should_stop(self) -> bool:
        """Whether another round is not worth its price; once so, it stays so. Never if recording.

        Also where a loss, gradient or update was not finite, and where the run is as long as those
        it was trained on.
        """
        return self._reason is not None

    @property
    def risk(self) -> RiskMonitor | None:
        """The test of runs that are let go, with its alarm."""
        return self._risk

    @property
    def is_let_go(self) -> bool:
        """Whether this run goes on past its stop; drawn at the first update."""
        return self._is_let_go

    @property
    def stop_forgone(self) -> int | None:
        """The rounds after which a run that is let go would have stopped; None if not yet."""
        return self._stop_forgone

    def report(self, loss: Tensor | float) -> bool:
        """Tell at the end of a run that was let go what the stop would have lost.

        Args:
            loss: By the kind of risk that is certified, 0 where the run ended before the stop.

        Returns:
            Whether there is an alarm: the risk is above its level.

        Raises:
            InputError: This run was not let go, or is reported already.
        """
        require(self._is_let_go, "only a run that was let go (is_let_go) is reported, and once")
        assert self._risk is not None
        alarm = self._risk.report(real_number("loss", loss))
        self._is_let_go = False
        return alarm

    @property
    def improved(self) -> bool:
        """Whether the last round observed the best loss so far.

        A loop that keeps its best state copies its model then; train its monitor with `keeps_best`.
        """
        return self._improved

    @undisturbed(on_cpu=True)
    def look(self, model: Model) -> None:
        """Take parameters and gradients now; the next `update` is given the loss alone.

        For loops in which the loss is known only after the gradients are gone.
        """
        if self._observed is None:
            seen = has_gradients(parameters_of(model))
            self._observed = "gradients" if seen else "updates"
        if self._observed != "loss":
            with_gradients = self._observed == "gradients"
            self._products = self._watched.look(model, with_gradients=with_gradients)

    @undisturbed(on_cpu=True)
    def update(
        self,
        loss: Number,
        model: Model | None = None,
        *,
        score: Number | None = None,
    ) -> None:
        """See one round.

        Args:
            loss: That was observed in it, a single number of Python, NumPy or PyTorch; averaged
                over processes, if several. With direction "max" the higher the better. It is taken
                for that from which the step of this round was made.
            model: A module, of which the parameters that are not frozen are seen, or tensors or
                NumPy arrays, also by name; None to go by the loss alone. Its gradients are those of
                this round, the parameters those after it.
            score: When recording, what a stop now is judged by, for instance the loss on separate
                examples; the loss of the next round if None. Where `loss` is that of what a stop
                now leaves, give it here, too. Not looked at when stopping.

        Raises:
            InputError: The loss is no single number, or this call does not fit those before it or
                the runs that were trained on.

        Warns:
            FitWarning: The first rounds lie far outside what was trained on.
            DataWarning: It stops, but losses are so large that rounding may be the cause.
        """
        if self._is_written:  # and so this is another run
            self.start()
        name = "metric" if self._maximizes else "loss"
        number = self._signed(f"the mean {name}", loss)
        value = torch.tensor([number], dtype=torch.float64)
        if model is not None:
            self.look(model)
        elif self._products is None:
            require(
                self._observed in (None, "loss"),
                "no model was given, but parameters were seen before; give every update() the model"
                if self._model is None or self._steps
                else f"the recorded runs had {self._observed}, but no model was given; give "
                "update() the model, or record without one",
            )
            self._observed = "loss"
        products, self._products = self._products, None
        dim = 1 if products is None else self._watched.dim
        if products is None:
            products = torch.zeros(1, 5, 5, dtype=torch.float64)
        signals = combine_products(self._steps, value, products, dim).float()
        finite = bool(value.isfinite().all() and products.isfinite().all())
        if self._steps == 0 and self._risk is not None:
            self._is_let_go = self._risk.draw()
        if self._directory is not None:
            self._is_whole &= len(self._signals) == self._steps
            self._record(signals if finite else torch.full_like(signals, torch.nan), score)
        elif not self.should_stop:
            self._decide(signals, finite=finite)
        self._steps += 1
        self._improved = number < self._lowest
        self._lowest = number if self._improved else self._lowest

    def _decide(self, signals: Tensor, *, finite: bool) -> None:
        assert self._session is not None
        if self._stop_forgone is not None:
            return  # whoever lets it go says when it ends
        assert self._model is not None
        scales, rounds = self._model.card.scales, self._model.card.first_rounds
        if self._steps == 0:
            self._begun = signals
        if rounds is not None and finite:
            self._compare(rounds, signals)
        if self._steps == 1 and scales is not None and self._begun is not None and finite:
            warn_of_misfits(scales.is_foreign(self._begun, signals))
        if not finite:
            name = "metric" if self._maximizes else "loss"
            self._reason = f"the {name}, a gradient or an update is not finite"
            return
        loss, norm = (signals[:, SIGNALS.index(name)] for name in ("loss", "log_grad"))
        decision = self._session.observe(StepObservation(self._steps, loss, norm, signals))
        if decision.stop and self._is_let_go:
            self._stop_forgone = self._steps + 1
        elif decision.stop:
            if self._steps == 0 and scales is not None:  # the gradient is all that is known
                warn_of_misfits(scales.is_foreign(signals, signals))
            warn_of_rounding(loss.clamp_max(self._lowest).unsqueeze(1), float(self._price))
            self._reason = self._session.explain(decision, step_name="round")
            # Where updates are counted the recorded loop, too, stayed where it was.
            paid = self._model.card.unit is CostUnit.GRADIENTS
            self._holds = paid and not bool(decision.takes_update)
        elif self._steps + 1 >= self._limit:
            self._reason = f"it was trained on runs of {self._limit} rounds"

    def _compare(self, rounds: FirstRounds, signals: Tensor) -> None:
        """Compare the run with those trained on, and say once if it is unlike them all."""
        if self._is_warned or self._steps not in CHECKED or self._begun is None:
            return
        first, loss = (each[:, SIGNALS.index("loss")] for each in (self._begun, signals))
        lowest = loss.clamp_max(self._lowest)
        self._is_warned = warn_of_other_rounds(rounds.misfits(self._steps, first, lowest, signals))

    @undisturbed(on_cpu=True)
    def take_back(self, model: Model) -> bool:
        """Undo the last round's update where it is forecast to be better left out.

        Call it once `should_stop` is true and the loop ends; see
        `haltwise.LearnedOptimizer.take_back`. Monitors trained on recorded runs never ask for it.

        Args:
            model: As in `update`; parameters that the monitor does not see are not touched, nor
                any if one is no longer where the last round left it, as after loading others.

        Returns:
            Whether anything was changed.
        """
        holds, self._holds = self._holds, False
        return holds and self._watched.memory is not None and self._watched.take_back(model)

    # ---------------------------------------------------------------------------------- recording

    def _record(self, signals: Tensor, score: Number | None) -> None:
        if not self._is_whole:
            return
        require(
            (score is not None) == bool(self._scores) or self._steps == 0,
            "some rounds of this run came with a score and some without; give every update() one",
        )
        self._signals.append(signals)
        if score is not None:
            self._scores.append(self._signed("the mean score", score))

    def _signed(self, name: str, value: Number) -> float:
        """A number with the sign that makes lower better."""
        number = real_number(name, value)
        require(
            not math.isfinite(number) or abs(number) <= torch.finfo(_SEEN).max,
            f"{name} is {number:g}, which single precision does not hold; divide all of them, and "
            "the price, by the same number",
        )
        return -number if self._maximizes else number

    def end(self) -> None:
        """Say that the run came to its end; write it if it was recorded."""
        self._awaits_end = False
        self.close()

    @undisturbed(on_cpu=True)
    def close(self) -> None:
        """Write the run that was recorded; nothing if there is none or it is written.

        A run whose `end` is awaited is forgotten.
        """
        if self._awaits_end:
            self.discard()
        if self._directory is None or not self._signals:
            return
        assert self._observed is not None
        scores = torch.tensor(self._scores, dtype=torch.float32) if self._scores else None
        save_run(
            self._directory,
            torch.cat(self._signals),
            scores,
            self._observed,
            self._name,
            maximizes=self._maximizes,
        )
        self._signals, self._scores = [], []
        self._is_written = True

    def discard(self) -> None:
        """Forget the run that was recorded, as one that did not come to its end."""
        self._signals, self._scores = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # half a run teaches the wrong thing
            self.discard()
        self.close()

    # -------------------------------------------------------------------------------- persistence

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the run depends on, to go on exactly; tensors and plain values."""
        own = {name: getattr(self, f"_{name}") for name in _STATE}
        own["signals"] = [torch.cat(self._signals)] if self._signals else []  # one for all rounds
        session = None if self._session is None else self._session.state()
        risk = None if self._risk is None else self._risk.state_dict()
        apart = {"memory": self._watched.memory, "session": session, "risk": risk}
        return copy.deepcopy({"digest": self._digest(), **apart, **own})

    @undisturbed(on_cpu=True)
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            InputError: It is no monitor's state, or that of one with other weights.
        """
        message = "this is no state of a HaltingMonitor; load what its state_dict() gave"
        with refusing_others(message):
            require(set(state) == {"digest", "memory", "session", "risk", *_STATE}, message)
            self._require_possible(state, message)
        require(
            state["digest"] == self._digest(),
            "the state was taken with other weights, with another direction, or by a monitor that "
            "recorded; build this one in the same way",
        )
        require(
            (state["risk"] is None) == (self._risk is None),
            "the state was taken with let_go, and this monitor has none, or the other way round; "
            "build this one in the same way",
        )
        if self._risk is not None:
            self._risk.load_state_dict(state["risk"])
        for name in _STATE:
            setattr(self, f"_{name}", copy.deepcopy(state[name]))
        self._signals = [one for some in self._signals for one in some.split(1)]
        self._is_written = False
        self._watched = WatchedParameters(copy.deepcopy(state["memory"]))
        self._session = self._new_session()
        if self._session is not None and state["session"]:
            self._session.restore(copy.deepcopy(state["session"]))

    def _require_possible(self, state: dict[str, Any], message: str) -> None:
        """Refuse entries of other kinds than this monitor's own."""
        signals = (*state["signals"], *([] if state["begun"] is None else [state["begun"]]))
        products, shape = state["products"], (1, 5, 5)
        require(
            fits(state["memory"], dict | None)
            and all(fits(state[name], hint) for name, hint in _STATE.items())
            and not math.isnan(real_number("lowest", state["lowest"]))
            and state["steps"] >= (state["stop_forgone"] or 0) >= 0
            and all(each.shape == (len(each), len(SIGNALS)) for each in signals)
            and (state["begun"] is None or len(state["begun"]) == 1)
            and (products is None or (products.shape, products.dtype) == (shape, torch.float64)),
            message,
        )
        WatchedParameters.check(state["memory"] or {}, message)
        session = self._new_session()
        if session is not None and (state["session"] or (state["steps"] and not state["reason"])):
            zero = torch.zeros(1, len(SIGNALS), dtype=_SEEN)
            session.observe(StepObservation(0, zero[:, 0], zero[:, 0], zero))
            require_like(state["session"], session.state())

    def _digest(self) -> str:
        direction = ", direction 'max'" if self._maximizes else ""
        if self._model is None:
            return f"recording{direction}"
        self._fingerprint = self._fingerprint or fingerprint(self._model)  # its own, which stays
        return f"{self._fingerprint} at {self._price.item():g}{direction}"


def _risk_monitor(
    model: HaltingModel, name: str, price: float | None, let_go: float | RiskMonitor | None
) -> RiskMonitor | None:
    if let_go is None or isinstance(let_go, RiskMonitor):
        return let_go
    certificates = [each for each in certified(model, price) if each.unit is model.card.unit]
    require(
        len(certificates) == 1,
        f"{name} carry no certificate that let_go={let_go} might test; certify them with haltwise "
        "certify, or give a haltwise.certificates.RiskMonitor",
    )
    return RiskMonitor.of(certificates[0], share=let_go)
