"""Everything a training run depends on: typed, nested settings of plain JSON values.

The docstring of a field is its help on the command line, where `joint.batch_size` is the option
`--joint.batch-size`.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self, final

from haltwise._core import plugins
from haltwise._core.errors import require
from haltwise._core.nested_settings import Choice, build, checked, merge
from haltwise._core.settings import require_types
from haltwise.halting.halter import HalterSettings
from haltwise.training.presets import default_settings
from haltwise.training.transfer import brought_settings

__all__ = [
    "AdamSettings",
    "HaltingPhaseSettings",
    "JointPhaseSettings",
    "RunSettings",
    "TrainingSettings",
    "ValidationSettings",
]

_LOWEST, _HIGHEST = 1e-37, 1e34  # prices; costs in their units are sums over steps and problems


@final
@dataclass(frozen=True)
class JointPhaseSettings:
    """The first phase: update rule and halter are trained together. A hand-designed rule has none.

    The update rule learns by the losses over the horizon, the halter by its method's objective.
    """

    num_steps: int = 2500
    """Meta-steps."""
    batch_size: int = 128
    """Problems of a meta-step."""
    warmup: float = 0.2
    """Share of the meta-steps, at the start, on the sum of losses alone."""
    sum_weight: float = 0.3
    """Weight of the losses over the horizon beside the halting objective, both in prices."""
    losses: Literal["mean", "log"] = "mean"
    """How the losses of the steps count for the rule: their mean in prices, or the mean of
    log(1 + loss / price), in which problems of large and of small losses count alike."""
    estimator: Choice = field(default_factory=lambda: Choice("pathwise"))
    """Gradient estimator, a name in its table or PATH.py:NAME."""

    def __post_init__(self) -> None:
        _check(self, num_steps=0, batch_size=1)
        require(0 <= self.warmup <= 1, f"warmup must lie in [0, 1], got {self.warmup}")


@final
@dataclass(frozen=True)
class HaltingPhaseSettings:
    """The second phase: the halter alone, on recorded trajectories of the final update rule."""

    num_steps: int = 3000
    """Steps of the halter."""
    num_recorded: int = 32768
    """Trajectories recorded for it."""
    batch_size: int = 256
    """Trajectories of a step."""
    price_exponent: float = 0.5
    """Exponent e of the weight (c / price)^e of an item at price c. Errors of the halter count
    prices, so they grow as the price falls: 0 favours low prices, 1 high ones."""

    def __post_init__(self) -> None:
        _check(self, num_steps=0, num_recorded=1, batch_size=1)


@final
@dataclass(frozen=True)
class AdamSettings:
    """The meta-optimizer, Adam."""

    learning_rate: float = 3e-3
    """Learning rate, decayed to 1 % by a cosine over each phase."""
    clip_norm: float = 1.0
    """Norm to which meta-gradients are clipped, for the rule and for the halter apart."""

    def __post_init__(self) -> None:
        _check(self, "learning_rate", "clip_norm")


@final
@dataclass(frozen=True)
class ValidationSettings:
    """Problems of their own, by which weights are kept and stop rules calibrated."""

    every: int = 100
    """Meta-steps between validations; each leaves a checkpoint."""
    num_problems: int = 512
    """Validation problems, by which the best weights are chosen."""
    num_calibration: int = 4096
    """Calibration problems, on which the stop rule's thresholds are chosen."""

    def __post_init__(self) -> None:
        _check(self, every=1, num_problems=1, num_calibration=1)


@final
@dataclass(frozen=True)
class RunSettings:
    """How a run is divided, kept and saved from divergence."""

    num_shards: int = 1
    """Virtual shards of a batch, each drawn and differentiated by itself, summed in their order:
    the weights depend on it, but not on how many workers share them. W workers need W at least."""
    num_checkpoints: int = 3
    """Number of recent checkpoints to keep, so that a corrupt one does no harm."""
    max_rollbacks: int = 3
    """How often a training that diverges returns to its last good checkpoint, each time with .3 of
    the learning rate, before it is given up."""

    def __post_init__(self) -> None:
        _check(self, num_shards=1, num_checkpoints=1, max_rollbacks=0)


@final
@dataclass(frozen=True)
class TrainingSettings:
    """One training run. The same settings on the same machine give the same weights."""

    family: Choice = field(default_factory=lambda: Choice("regression-2d"))
    """Family of problems or of processes: a name in `haltwise.tasks.families()` or in
    `haltwise.processes.process_families()`, or PATH.py:NAME."""
    mixed_with: list[str] = field(default_factory=list)
    """Further families: the rule learns from problems of one of them at a time, drawn with equal
    chances, and the halter from as many of each."""
    runs: str | None = None
    """Directory of recorded runs of a training loop, in place of a family: only a halter is
    trained, see `train_monitor`. The horizon is then that of the runs."""
    keeps_best: bool = False
    """Whether that loop keeps the state of the lowest observed loss, not the last."""
    preset: str = "act"
    """Preset that the settings were made from, for the card."""
    rule: Choice = field(default_factory=lambda: Choice("lstm"))
    """Update rule, a name in its table or PATH.py:NAME; "none" for processes."""
    halter: HalterSettings = field(default_factory=HalterSettings)
    """The shape of the halter."""
    method: Choice = field(default_factory=lambda: Choice("stick-breaking"))
    """Halting method, a name in its table or PATH.py:NAME; "none" learns no halting."""
    rule_from: str | None = None
    """Shipped name, run directory or weights file whose update rule to begin with. With
    `joint.num_steps = 0` it stays as it is, and only a halter is trained for it."""
    halter_from: str | None = None
    """Shipped name, run directory or weights file whose halter to begin with; it must read the
    same of the rule."""
    horizon: int = 60
    """Steps of an unroll, T."""
    price: float = 0.0527
    """Default price of a step, c, in units of the loss."""
    price_range: float = 10.0
    """Prices are drawn log-uniformly from price / price_range to price * price_range."""
    joint: JointPhaseSettings = field(default_factory=JointPhaseSettings)
    """The phase that trains update rule and halter together."""
    halting: HaltingPhaseSettings = field(default_factory=HaltingPhaseSettings)
    """The phase that trains the halter by itself."""
    adam: AdamSettings = field(default_factory=AdamSettings)
    """The meta-optimizer."""
    validation: ValidationSettings = field(default_factory=ValidationSettings)
    """Validation and calibration."""
    run: RunSettings = field(default_factory=RunSettings)
    """Shards, checkpoints and rollbacks."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self) -> None:
        _check(self, "price", horizon=1, price_range=1)
        low, high = self.price / self.price_range, self.price * self.price_range
        require(
            low >= _LOWEST and high <= _HIGHEST,
            f"prices from price / price_range = {low:g} to price * price_range = {high:g} must lie "
            f"from {_LOWEST:g} to {_HIGHEST:g}, so that single precision holds costs; multiply "
            "losses and price by the same number, or lower price_range",
        )
        for name, size in (
            ("joint.batch_size", self.joint.batch_size),
            ("halting.batch_size", self.halting.batch_size),
            ("halting.num_recorded", self.halting.num_recorded),
        ):
            require(
                size % self.run.num_shards == 0,
                f"{name} must be a multiple of run.num_shards = {self.run.num_shards}, got {size}",
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes the same settings."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The settings that `to_json` wrote.

        Raises:
            InputError: A setting is unknown or impossible.
        """
        return build(cls, document)

    @classmethod
    def from_preset(cls, preset: str, family: str, *changes: Mapping[str, Any]) -> Self:
        """The family's defaults with the preset's settings and then `changes` laid over them.

        Raises:
            InputError: The preset is unknown or a setting is impossible.

        Examples:
            >>> TrainingSettings.from_preset("act", "regression-2d", {"price": 0.1}).horizon
            40
        """
        asked = merge(*(checked(cls, document) for document in changes))
        settings = merge(
            {"family": {"name": family}},
            default_settings(preset, family, asked.get("rule", {}).get("name")),
            asked,
            brought_settings(asked),
            {"preset": preset},
        )
        return cls.from_json(_located(settings))


def _located(value: Any) -> Any:
    """A JSON value with the path of every PATH.py:NAME absolute, so that it is found anywhere."""
    if isinstance(value, Mapping):
        return {name: _located(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_located(entry) for entry in value]
    return plugins.resolve(value) if isinstance(value, str) else value


def _check(settings: Any, *above_zero: str, **at_least: int) -> None:
    """Refuse settings of another type, not above 0, or below their bounds."""
    require_types(type(settings).__init__, vars(settings))
    for name in above_zero:
        value = getattr(settings, name)
        require(value > 0, f"{name} must be above 0, got {value}")
    for name, bound in at_least.items():
        value = getattr(settings, name)
        require(value >= bound, f"{name} must be at least {bound}, got {value}")
