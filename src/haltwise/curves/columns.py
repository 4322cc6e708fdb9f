"""What the names of columns say: which one is judged, which way is better, what was spent."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from haltwise._core.errors import InputError

__all__ = [
    "Direction",
    "choose_cost",
    "choose_metric",
    "direction_of",
    "find_column",
    "is_split",
    "is_validation",
    "plain",
]

Direction = Literal["min", "max"]
"""Whether a lower or a higher value of the metric is better."""

_COSTS = (  # what is nearest to money first
    ("cost", "spent"),
    (
        "seconds", "elapsed", "elapsed_seconds", "elapsed_time", "train_seconds",
        "training_seconds", "total_seconds", "submission_seconds", "runtime", "run_time",
        "wall_clock", "wall_seconds", "hours", "minutes", "time", "train_time", "training_time",
        "time_total_s",
    ),
    (
        "step", "steps", "global_step", "trainer_global_step", "train_step", "training_step",
        "iteration", "iterations", "iter", "n_iter", "num_steps", "update", "updates", "round",
        "boosting_round", "training_iteration",
    ),
    ("epoch", "epochs", "train_epoch"),
)  # fmt: skip
_LOWER = {
    "bpb", "bpc", "brier", "cer", "crossentropy", "deviance", "entropy", "err", "error", "fid",
    "kl", "logloss", "loss", "losses", "mae", "mape", "merror", "mlogloss", "mse", "nll", "nloglik",
    "perplexity", "ppl", "regret", "rmse", "rmsle", "wer",
}  # fmt: skip
_HIGHER = {
    "acc", "accuracy", "ap", "auc", "aucpr", "auprc", "auroc", "bleu", "d2", "dice", "f1", "iou",
    "map", "mcc", "miou", "ndcg", "precision", "psnr", "r2", "recall", "return", "reward", "rouge",
    "ssim", "top", "top1", "top5",
}  # fmt: skip
_NO_METRIC = {  # words of what is measured about a metric or besides
    "best", "grad", "gradient", "lr", "max", "min", "norm", "per", "runtime", "scale", "second",
    "seconds", "std", "stderr", "time", "var", "weight",
}  # fmt: skip
_VALIDATION = {"dev", "eval", "evaluation", "val", "valid", "validation"}
_SPLITS = ({"learn", "train", "training"}, {"test"})


def plain(name: str) -> str:
    """A name in lower case with single underscores for whatever is no letter or digit.

    Examples:
        >>> plain("trainer/global_step"), plain("_runtime"), plain("Val Loss")
        ('trainer_global_step', 'runtime', 'val_loss')
    """
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def direction_of(name: str) -> Direction | None:
    """Whether lower or higher values of a metric of this name are better; None if it is not clear.

    Examples:
        >>> direction_of("val/loss"), direction_of("eval_accuracy"), direction_of("score")
        ('min', 'max', None)
        >>> direction_of("neg_mean_squared_error")  # as scikit-learn calls its scores
        'max'
    """
    # As in validation_0-logloss, auc-mean, f1_macro, top_1.
    words = set(plain(name).split("_"))
    lower, higher = bool(words & _LOWER), bool(words & _HIGHER)
    if lower == higher:
        return None
    return "min" if lower != ("neg" in words) else "max"


def is_validation(name: str) -> bool:
    """Whether the name of a column says that it was measured on validation data.

    Examples:
        >>> is_validation("eval/loss"), is_validation("loss")
        (True, False)
    """
    return not _VALIDATION.isdisjoint(plain(name).split("_"))


def is_split(name: str) -> bool:
    """Whether a name says what data something was measured on, and nothing else.

    Examples:
        >>> is_split("validation"), is_split("Train"), is_split("train_small")
        (True, True, False)
    """
    return plain(name) in _VALIDATION.union(*_SPLITS)


def choose_metric(names: Iterable[str]) -> str:
    """The column that is judged where nobody says which.

    A loss goes before an accuracy, and validation before what is not said to be of any data, before
    training, before test data.

    Raises:
        InputError: There is none, or there are several of the same standing.

    Examples:
        >>> choose_metric(["step", "loss", "val_loss", "val_acc"])
        'val_loss'
    """
    names = list(names)
    ranked: dict[int, list[str]] = {}
    for name in names:
        words = set(plain(name).split("_"))
        direction = direction_of(name)
        if direction is None or words & _NO_METRIC:
            continue
        split = 0 if is_validation(name) else 1
        split += sum(place for place, split_words in enumerate(_SPLITS, 1) if words & split_words)
        ranked.setdefault(2 * split + (direction == "max"), []).append(name)
    return _only(ranked[min(ranked)] if ranked else [], names, "metric")


def choose_cost(names: Iterable[str], *fits: Callable[[str], bool]) -> str | None:
    """The column of what was spent where nobody says which: time, else steps, else epochs.

    Args:
        names: Of the columns.
        *fits: What a column should be, the most that is asked of it first. Where no column is that,
            the next counts, and in the end its name alone.

    Returns:
        None if no column has such a name.

    Raises:
        InputError: There are several of the same standing.

    Examples:
        >>> choose_cost(["epoch", "step", "loss"])
        'step'
    """
    names = list(names)
    for is_fit in (*fits, bool):
        for tier in _COSTS:
            found = [name for name in names if plain(name) in tier and is_fit(name)]
            if found:
                return _only(found, names, "cost")
    return None


def find_column(names: Iterable[str], known: Sequence[str]) -> str | None:
    """The first column that has one of the known names, in the order of those."""
    by_name: dict[str, str] = {}
    for name in names:
        by_name.setdefault(plain(name), name)
    return next((by_name[name] for name in known if name in by_name), None)


_SHOWN = 30  # names of columns in a message


def _only(found: list[str], names: Sequence[str], what: str) -> str:
    if len(found) == 1:
        return found[0]
    listed = ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
    why = f"{' and '.join(found[:_SHOWN])} could all be it" if found else "no name says so"
    raise InputError(
        f"which column is the {what}? {why}; name it ({what}=...) out of: {listed or 'none'}"
    )
