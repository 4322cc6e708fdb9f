"""Everything a training run depends on, in plain JSON values."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Literal, Self, final

from haltwise._core import discovery as _discovery
from haltwise.models import loading
from haltwise._core.errors import InputError, require
from haltwise._core.settings import require_types
from haltwise.models.optimizer_model import ModelConfig
from haltwise._core.plugins import resolve
from haltwise.training.objective import POSTERIORS

__all__ = ["PARTS", "PRESETS", "TrainingConfig"]


@final
@dataclass(frozen=True)
class TrainingConfig:
    """One meta-training run. The same configuration on the same machine gives the same weights."""

    family: str = "regression-2d"
    """A name in `haltwise.tasks.families()`, or PATH.py:NAME."""
    family_settings: dict[str, Any] = field(default_factory=dict)
    """Settings of the family that differ from its own."""
    mixed_with: list[str] = field(default_factory=list)
    """Further families, by name, whose problems the head learns from, too, as many of each; the
    rule is trained on `family` alone."""
    runs: str | None = None
    """A directory of recorded runs of a training loop, in place of a family: only a head is
    trained, see `train_monitor`. The `horizon` is then that of the runs."""
    keeps_best: bool = False
    """Whether that loop keeps the state of the lowest observed loss, not the last."""
    preset: str = "act"
    """The preset it was made from, for the card."""
    optimizer: ModelConfig = field(default_factory=ModelConfig)

    rule_from: str | None = None
    """A shipped name, a run directory or a weights file: begin with the rule trained there. With
    `num_meta_steps = 0` it stays as it is, and only a head is trained for it."""
    head_from: str | None = None
    """Likewise for the halting head, which must read the same of the rule."""
    posterior: str = "both"
    """`none`: the L2L sum of losses, no halting. `softmax`: the thesis' lower bound.
    `stick-breaking`: the free energy of a causal hazard. `graves`: expected loss and ponder cost
    of adaptive computation time. `both`: the mean of softmax and stick-breaking; the head speaks
    for either, so the two can be compared on the same trajectories."""
    horizon: int = 60
    """T, steps of an unroll."""
    price: float = 0.0527
    """c, the default price of a step in units of the loss."""
    price_range: float = 10.0
    """Prices are drawn log-uniformly from price / price_range to price * price_range."""
    continuation: float | None = 0.9
    """nu of the horizon prior; None couples it to the price as the thesis does, exp(-2 c/tau)."""
    horizons: Literal["exact", "sampled"] = "exact"
    """Whether the expectation over horizons is exact or by one sample per problem."""
    warmup: float = 0.2
    """Share of the meta-steps, at the start, on the sum of losses alone."""
    sum_weight: float = 0.3
    """Weight of the mean loss over the horizon beside the bound, both in default prices."""
    hazard_objective: Literal["free-energy", "distillation", "value"] = "free-energy"
    """What the hazard is learned by; see `haltwise.halting.objectives`."""
    distilled: float = 0.3
    """Share of the head's own steps, at the start, in which distillation stands in for the free
    energy; beside the rule it always does."""
    hazard_temperature: float = 0.5
    """tau of the stick-breaking posterior, in prices."""
    final_hazard_temperature: float = 0.2
    """To which it falls while the head is trained by itself."""
    price_exponent: float = 0.5
    """Errors of the head count prices, and are the more of them the lower the price: some twenty
    times from one end of the range to the other, which would drown the rest. They are weighed by
    (c / price)^price_exponent: 0 favours low prices, 1 high ones."""

    num_meta_steps: int = 2500
    """Steps that train rule and head together; a hand-designed rule has none."""
    batch_size: int = 128
    learning_rate: float = 3e-3
    """Of Adam, decayed to 1 % by a cosine."""
    clip_norm: float = 1.0
    """Of the meta-gradient, for the rule and for the head apart."""
    segment: int = 50
    """Steps that are recomputed at once in the backward pass; bounds the memory."""
    truncate: bool = False
    """Whether the state's gradient is cut between segments."""
    head_steps: int = 3000
    """Steps that train the head by itself, afterwards, on recorded problems of the final rule."""
    num_recorded: int = 32768
    """Problems recorded for it."""
    head_batch_size: int = 256
    seed: int = 0
    num_validation: int = 512
    num_calibration: int = 4096
    """Problems on which the hazard's thresholds are chosen."""
    validate_every: int = 100
    num_shards: int = 1
    """Virtual shards of a batch, each drawn and differentiated by itself, summed in their order.
    The weights depend on it, but not on how many workers share them. One is fastest for one
    worker; W workers need W at least."""
    num_checkpoints: int = 3
    """That are kept, so that one may be corrupt."""
    max_rollbacks: int = 3
    """How often a training that diverges goes back to its last good checkpoint, each time with
    .3 of the learning rate, before it is given up."""

    def __post_init__(self) -> None:
        require_types(type(self).__init__, vars(self))
        counts = dict.fromkeys(("horizon", "batch_size", "segment", "num_validation"), 1)
        counts |= dict.fromkeys(
            ("num_recorded", "head_batch_size", "validate_every", "num_calibration"), 1
        )
        counts |= dict.fromkeys(("num_shards", "num_checkpoints"), 1)
        counts |= dict.fromkeys(("num_meta_steps", "head_steps", "max_rollbacks"), 0)
        for name, least in counts.items():
            value = getattr(self, name)
            require(value >= least, f"{name} must be at least {least}, got {value}")
        for name in (
            "price",
            "learning_rate",
            "clip_norm",
            "hazard_temperature",
            "final_hazard_temperature",
        ):
            require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        require(self.price_range >= 1, f"price_range must be at least 1, got {self.price_range}")
        require(
            self.continuation is None or 0 < self.continuation < 1,
            f"continuation must lie strictly between 0 and 1, got {self.continuation}",
        )
        for name, choices in (
            ("posterior", POSTERIORS),
            ("horizons", ("exact", "sampled")),
            ("hazard_objective", ("free-energy", "distillation", "value")),
        ):
            value = getattr(self, name)
            require(value in choices, f"{name} must be one of {', '.join(choices)}, got {value!r}")
        for name in ("warmup", "distilled"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"{name} must lie in [0, 1], got {value}")
        for name in ("batch_size", "head_batch_size", "num_recorded"):
            value = getattr(self, name)
            require(
                value % self.num_shards == 0,
                f"{name} must be a multiple of num_shards = {self.num_shards}, got {value}",
            )

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes the same configuration."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Self:
        """The configuration that `to_json` wrote.

        Raises:
            InputError: A setting is unknown or impossible.
        """
        try:
            settings = dict(document)
            settings["optimizer"] = ModelConfig(**settings["optimizer"])
            return cls(**settings)
        except (TypeError, KeyError, ValueError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"this is not a training configuration: {error}") from None

    @classmethod
    def from_preset(cls, preset: str, family: str, **changes: Any) -> Self:
        """The family's defaults with the preset's settings and then `changes` applied.

        Changes may name settings of the optimizer, too: `rule="adam"`, `head_memory=0`.

        Raises:
            InputError: The preset is unknown or a setting is impossible.
        """
        make = _discovery.lookup(PRESETS, preset, "preset")
        settings: dict[str, Any] = {**FAMILY_DEFAULTS.get(family, {}), **make}
        changes = {name: value for name, value in changes.items() if value is not None}
        for part, names in PARTS.items():
            origin = changes.get(f"{part}_from")
            if origin is not None:
                require(
                    not set(names) & changes.keys(),
                    f"{part}_from brings its own settings; drop {' and '.join(names)}",
                )
                source = loading.load(origin).config
                changes |= {name: getattr(source, name) for name in names}
        inner = {field.name for field in fields(ModelConfig)} & changes.keys()
        optimizer = settings.get("optimizer", ModelConfig())
        settings["optimizer"] = replace(optimizer, **{name: changes.pop(name) for name in inner})
        settings |= changes
        try:
            return cls(family=resolve(family), preset=preset, **settings)
        except TypeError as error:
            known = [field.name for kind in (cls, ModelConfig) for field in fields(kind)]
            bad = [name for name in settings if name not in known]
            raise InputError(
                _discovery.unknown(bad[0], known, "setting") if bad else str(error)
            ) from None

    def with_optimizer(self, **changes: Any) -> Self:
        """A copy with some settings of the optimizer replaced."""
        return replace(self, optimizer=replace(self.optimizer, **changes))


PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "rule": ("rule", "rule_settings"),
        "head": ("head_width", "head_memory", "head_features", "head_readout"),
    }
)
"""What the settings of an optimizer describe: the parts that `rule_from` and `head_from` name."""

PRESETS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        # What works best.
        "act": {},
        # The LSTM optimizer of L2L: no halting head is trained.
        "lstm": {"posterior": "none", "head_steps": 0},
        # The thesis to the letter: linear read-out of the pooled hidden state, tau = 1, one price,
        # one horizon per problem from the p(T) that the price implies.
        "thesis": {
            "optimizer": ModelConfig(
                rule_settings={"shared_gradient": False, "direct_gradient": False},
                head_width=0,
                head_memory=0,
                head_features=False,
                temperature=1.0,
            ),
            "posterior": "softmax",
            "head_steps": 0,
            "continuation": None,
            "horizons": "sampled",
            "price_range": 1.0,
            "warmup": 0.0,
            "sum_weight": 0.0,
        },
    }
)

# Networks: a problem costs a thousand times more, so there are fewer of them. The rule learns by
# the losses of the minibatches alone; what a step is worth is judged on many examples, and learned
# by the head afterwards.
_CAREFUL: dict[str, Any] = {"initial_descent": True, "output_scale": 0.03}
_NETWORK: dict[str, Any] = {
    "optimizer": ModelConfig(rule_settings=_CAREFUL),
    "horizon": 100,
    "price": 0.003,
    "warmup": 1.0,
    "posterior": "stick-breaking",
    "num_meta_steps": 1500,
    "batch_size": 8,
    "segment": 20,
    "num_validation": 32,
    "num_recorded": 640,
    "num_calibration": 192,
    "validate_every": 50,
}

# What differs by family: how long a problem takes and what a step is worth.
FAMILY_DEFAULTS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        "regression-2d": {"horizon": 40, "batch_size": 256},
        "quadratic-10d": {"horizon": 100, "price": 0.003, "sum_weight": 4.0, "warmup": 0.5},
        "mnist-mlp": _NETWORK,
        "digits-mlp": {**_NETWORK, "batch_size": 16},
        # Convolution weights and everything else have an optimizer each, as in L2L.
        "cifar10-cnn": {
            **_NETWORK,
            "optimizer": ModelConfig(
                rule="partitioned",
                rule_settings={
                    "sizes": [14000, None],
                    "rules": [["lstm", _CAREFUL], ["lstm", _CAREFUL]],
                },
            ),
            "batch_size": 4,
        },
    }
)
