"""Settings as a tree: in Python, in TOML and on the command line, each name and type checked."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import pytest
from in_process import haltwise
from tiny_runs import TINY_OPTIONS, tiny

from haltwise import InputError, load
from haltwise._core.nested_settings import (
    Choice,
    Leaf,
    build,
    checked,
    leaves,
    merge,
)
from haltwise.cli.settings import SettingOption, parse
from haltwise.cli.train import command as train_command
from haltwise.cli.train_monitor import command as train_monitor_command
from haltwise.evaluation.records import load_evaluations
from haltwise.halting import halting_methods
from haltwise.processes import process_families
from haltwise.tasks import families
from haltwise.training import Trainer, TrainingSettings, estimators, train
from haltwise.training.choices import CHOICES
from haltwise.update_rules import LSTMRule, rules

NOT_TYPED = {"preset", "runs", "keeps_best"}  # arguments of the commands instead


def options_of(command: click.Command, *args: str) -> dict[str, SettingOption]:
    """The options for settings of a command line, by the path of the setting."""
    context = command.make_context("haltwise", list(args), resilient_parsing=True)
    return {
        param.leaf.path: param
        for param in command.get_params(context)
        if isinstance(param, SettingOption)
    }


# --- Every setting is an option ------------------------------------------------------------------


def test_every_setting_has_help() -> None:
    for leaf in leaves(TrainingSettings):
        assert leaf.help.endswith("."), leaf.path


def test_every_setting_is_an_option_with_its_help_and_default() -> None:
    options = options_of(train_command, "student-t-10d")
    for leaf in leaves(TrainingSettings):
        if leaf.path in {"family", *NOT_TYPED}:
            continue
        option = options[leaf.path]
        assert (option.help or "").startswith(leaf.help.replace("`", ""))
        assert option.opts == [f"--{leaf.path.replace('_', '-')}"]
    assert "[default: 60]" in (options["horizon"].help or "")
    assert "[default: 0.003]" in (options_of(train_command, "mnist-mlp")["price"].help or "")


def test_a_monitor_has_the_settings_of_a_halter_alone() -> None:
    options = options_of(train_monitor_command, "runs", "--price", "1")
    assert {path.partition(".")[0] for path in options} == {
        *("halter", "method", "halter_from", "price_range", "halting", "adam", "validation"),
        *("run", "seed"),
    }
    assert "[default: 16]" in (options["halter.memory"].help or "")
    assert "halting.num_recorded" not in options  # the runs are there already


def named() -> Iterator[tuple[str, str, Any]]:
    for path, table in (
        ("family", {**families(), **process_families()}),
        ("rule", rules()),
        ("method", halting_methods()),
        ("joint.estimator", estimators()),
    ):
        for name, found in table.items():
            yield path, name, found


@pytest.mark.parametrize(("path", "name", "found"), [pytest.param(*n, id=n[1]) for n in named()])
def test_every_setting_of_what_is_named_is_a_typed_option(path: str, name: str, found: Any) -> None:
    args = [name] if path == "family" else ["regression-2d", f"--{path}", name]
    options = options_of(train_command, *args)
    own = {leaf.path: leaf for leaf in leaves(found, f"{path}.")}
    assert own.keys() == {key for key in options if key.rpartition(".")[0] == path}
    for key, leaf in own.items():
        assert "[required]" in (options[key].help or "") or not leaf.required
        if path in ("rule", "method", "joint.estimator", "family"):
            assert leaf.help.endswith("."), key
        typed = leaf.default if isinstance(leaf.default, list | dict) else str(leaf.default)
        if leaf.required or isinstance(typed, list | dict):
            continue
        shown = typed.lower() if leaf.default is None or isinstance(leaf.default, bool) else typed
        assert parse(shown, leaf.hint) == leaf.default


def test_a_required_setting_says_so(tmp_path: Path) -> None:
    options = options_of(train_command, "regression-2d", "--rule", "adam")
    assert (options["rule.learning_rate"].help or "").endswith("[required]")
    done = haltwise("train", "regression-2d", "--rule", "adam", cwd=tmp_path)
    assert done.stderr == "haltwise: adam needs the setting learning_rate\n"


def test_settings_of_a_file_s_class_are_options(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from dataclasses import dataclass\n"
        "from haltwise.tasks.regression import LinearRegression\n\n"
        "@dataclass(frozen=True)\n"
        "class Mine(LinearRegression):\n"
        "    depth: int = 3\n"
        '    """How deep."""\n\n'
        "deep = Mine(depth=7)\n"
    )
    for name, default in (("Mine", 3), ("deep", 7)):
        option = options_of(train_command, f"{path}:{name}")["family.depth"]
        assert option.help == f"How deep.  [default: {default}]"


def test_options_may_stand_before_the_family(tmp_path: Path) -> None:
    args = ["--family.num-params", "3", "--out", "run", "--threads", "1", "--joint.num-steps", "7"]
    for order in (["regression-2d", *args], [*args, "regression-2d"]):
        options = options_of(train_command, *order)
        assert "family.num_params" in options


# --- Names and types -----------------------------------------------------------------------------

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"horizn": 3}, "unknown setting 'horizn'; did you mean 'horizon'"),
    (
        {"joint": {"num_step": 3}},
        "unknown setting 'joint.num_step'; did you mean 'joint.num_steps'",
    ),
    ({"batch_size": 3}, "did you mean 'joint.batch_size' or 'halting.batch_size'"),
    ({"halter": {"widht": 3}}, "did you mean 'halter.width'"),
    ({"rule": {"nam": "adam"}}, "settings of what rule names belong into 'rule.settings'"),
    ({"rule": {"name": "adma"}}, "unknown update rule 'adma'; did you mean 'adam'"),
    (
        {"rule": {"name": "lstm", "settings": {"hiden_size": 3}}},
        "unknown setting of lstm 'hiden_size'; did you mean 'hidden_size'",
    ),
    ({"method": {"name": "softmx"}}, "unknown halting method 'softmx'; did you mean 'softmax'"),
    (
        {"method": {"settings": {"learn": "value"}}},
        "unknown setting of stick-breaking 'learn'; did you mean 'learn_by'",
    ),
    ({"joint": {"estimator": "pathwis"}}, "unknown gradient estimator 'pathwis'; did you mean"),
    (
        {"joint": {"estimator": {"settings": {"segmnt": 3}}}},
        "unknown setting of pathwise 'segmnt'; did you mean 'segment'",
    ),
    (
        {"family": {"settings": {"alhpa": 3.0}}},
        "unknown setting of regression-2d 'alhpa'; did you mean 'alpha'",
    ),
    ({"price": "cheap"}, "price must be float, got 'cheap'"),
    ({"joint": {"batch_size": 2.5}}, "joint.batch_size must be int, got 2.5"),
    ({"joint": {"batch_size": True}}, "joint.batch_size must be int, got True"),
    ({"joint": 3}, "joint must be an object of settings by name, got 3"),
    ({"rule": 3}, "rule must be an object of settings by name, got 3"),
    ({"rule": {"name": 3}}, "rule.name must be str, got 3"),
    ({"rule": {"settings": 3}}, "rule.settings must be an object of settings by name, got 3"),
    ({"rule": {"settings": {"hidden_size": "a"}}}, "hidden_size must be int, got 'a'"),
    ({"mixed_with": "regression-2d"}, r"mixed_with must be list\[str\], got 'regression-2d'"),
    ({"mixed_with": [3]}, r"mixed_with must be list\[str\], got \[3\]"),
    ({"method": {"settings": {"learn_by": "hope"}}}, "learn_by must be .*, got 'hope'"),
    ({"seed": 10**30}, "seed must be int"),
    ({"price": 0.0}, "price must be above 0, got 0"),
    ({"horizon": 0}, "horizon must be at least 1, got 0"),
    ({"joint": {"batch_size": 0}}, "joint.batch_size must be at least 1, got 0"),
    ({"joint": {"num_steps": -1}}, "joint.num_steps must be at least 0, got -1"),
    ({"joint": {"warmup": 2.0}}, r"joint.warmup must lie in \[0, 1\], got 2.0"),
    ({"halting": {"num_steps": -1}}, "halting.num_steps must be at least 0"),
    ({"halting": {"num_recorded": 0}}, "halting.num_recorded must be at least 1"),
    ({"halting": {"batch_size": 0}}, "halting.batch_size must be at least 1"),
    ({"adam": {"learning_rate": -1.0}}, "adam.learning_rate must be above 0"),
    ({"adam": {"clip_norm": 0.0}}, "adam.clip_norm must be above 0"),
    ({"validation": {"num_calibration": 0}}, "validation.num_calibration must be at least 1"),
    ({"validation": {"every": 0}}, "validation.every must be at least 1"),
    ({"run": {"num_shards": 3}}, "joint.batch_size must be a multiple of run.num_shards = 3"),
    ({"run": {"num_checkpoints": 0}}, "run.num_checkpoints must be at least 1"),
    ({"price_range": 0.5}, "price_range must be at least 1, got 0.5"),
    ({"price": 1e60}, r"to price \* price_range = 1e\+61 must lie from 1e-37 to 1e\+34"),
    ({"price": 1e-60}, "from price / price_range = 1e-61 .* multiply losses and price"),
    ({"price_range": 1e60}, "must lie from 1e-37 to .* or lower price_range"),
    ({"halter": {"width": -1}}, "halter.width must be at least 0, got -1"),
    ({"halter": {"features": "optimisation"}}, "unknown kind of features .* 'optimization'"),
    ({"halter": {"features": "none", "readout": False}}, "^(haltwise: )?the halter reads nothing"),
    (
        {"method": {"name": "softmax", "settings": {"continuation": 1.0}}},
        "continuation must lie strictly between 0 and 1, got 1.0",
    ),
    (
        {"method": {"settings": {"final_temperature": 0.0}}},
        "final_temperature must be above 0, got 0",
    ),
    ({"method": {"settings": {"distilled": 1.5}}}, "distilled must lie between 0 and 1"),
]


@pytest.mark.parametrize(("settings", "sentence"), WRONG)
def test_what_is_wrong_is_one_sentence_in_python(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        Trainer(tiny("act", merge(settings)), tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_numbers_that_json_does_not_know_are_refused(tmp_path: Path) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(InputError, match="price must be float"):
            train("regression-2d", tmp_path / "run", price=value)


@pytest.mark.parametrize("rule", [LSTMRule, LSTMRule(3)])
def test_a_learned_rule_is_asked_for_by_its_name(rule: object, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"rule begins with new weights, .* 'lstm', or as"):
        train("regression-2d", tmp_path / "run", rule=rule)


def to_toml(tree: dict[str, Any]) -> str:
    """Inline tables at the top level."""

    def text(value: Any) -> str:
        if isinstance(value, dict):
            return "{ " + ", ".join(f"{key} = {text(one)}" for key, one in value.items()) + " }"
        return json.dumps(value)

    return "".join(f"{key} = {text(value)}\n" for key, value in tree.items())


@pytest.mark.parametrize(("settings", "sentence"), WRONG)
def test_what_is_wrong_is_one_sentence_in_toml(
    settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(to_toml(settings))
    done = haltwise("train", "regression-2d", "--config", path, "--out", "run", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    with pytest.raises(InputError, match=sentence.replace("^(haltwise: )?", "")):
        raise InputError(done.stderr)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("--horizn 3", "No such option '--horizn'. Did you mean '--horizon'?"),
        ("--joint.num-step 3", "No such option '--joint.num-step'."),
        ("--rule adma", "unknown update rule 'adma'; did you mean 'adam'?"),
        ("--rule.hiden-size 3", "No such option '--rule.hiden-size'."),
        ("--family.alhpa 3", "No such option '--family.alhpa'."),
        ("--method graves --method.learn-by value", "No such option '--method.learn-by'."),
        ("--method softmx", "unknown halting method 'softmx'; did you mean 'softmax'?"),
        ("--joint.estimator pathwis", "unknown gradient estimator 'pathwis'; did you mean"),
        ("--price cheap", "price must be float, got 'cheap'"),
        ("--joint.batch-size 2.5", "joint.batch_size must be int, got 2.5"),
        ("--halter.readout maybe", "halter.readout must be true|false, got 'maybe'"),
        ("--method.learn-by hope", "learn_by must be free-energy|distillation|value, got 'hope'"),
        ("--rule.hidden-size none", "hidden_size must be int, got 'none'"),
        ("--joint.batch-size 0", "joint.batch_size must be at least 1, got 0"),
        ("--price nan", "price must be float, got nan"),
        ("--config nowhere.toml", "there is no file nowhere.toml"),
        ("--preset akt", "unknown preset 'akt'; did you mean 'act'?"),
    ],
)
def test_what_is_wrong_is_one_sentence_on_the_command_line(
    typed: str, sentence: str, tmp_path: Path
) -> None:
    done = haltwise("train", "regression-2d", "--out", "run", *typed.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert done.stderr.startswith("haltwise: ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["evaluate", "study", "diagnose", "explore"])
@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        ("--family.num-param 3", "unknown setting of regression-2d 'num_param'; did you mean"),
        ("--family.alpha high", "alpha must be float, got 'high'"),
        ("--family.inputs none", "inputs must be uniform|normal, got None"),
        ("--family.alpha", "Option '--family.alpha' requires an argument."),
    ],
)
def test_settings_of_the_family_that_is_judged_are_checked(
    command: str, typed: str, sentence: str, tmp_path: Path
) -> None:
    done = haltwise(command, "regression-2d", *typed.split(), cwd=tmp_path)
    assert (done.returncode, sentence in done.stderr) == (2, True), done.stderr


def test_a_torn_toml_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "torn.toml").write_text("price = \n")
    done = haltwise("train", "regression-2d", "--config", "torn.toml", cwd=tmp_path)
    assert done.stderr.startswith("haltwise: torn.toml is not TOML: Invalid value (at line 1")
    done = haltwise("train", "regression-2d", "--config", "gone.toml", cwd=tmp_path)
    assert done.stderr == "haltwise: there is no file gone.toml\n"


def test_a_toml_file_may_begin_with_the_mark_of_an_editor(tmp_path: Path) -> None:
    (tmp_path / "marked.toml").write_text("price = -1.0\n", encoding="utf-8-sig")
    done = haltwise("train", "regression-2d", "--config", "marked.toml", cwd=tmp_path)
    assert "price" in done.stderr
    assert "not TOML" not in done.stderr


def test_commands_that_messages_name_may_be_pasted(tmp_path: Path) -> None:
    run = tmp_path / "my run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"`haltwise train --resume '.*/my run'`"):
        load(run)
    with pytest.raises(InputError, match=r"`haltwise evaluate '.*/my run'` first"):
        load_evaluations(run)


# --- What lies over what -------------------------------------------------------------------------


def settings_of(run: Path) -> TrainingSettings:
    return TrainingSettings.from_json(json.loads((run / "config.json").read_text())["settings"])


def test_the_command_line_lies_over_the_file_over_preset_and_family(tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text(
        """
        family = { name = "regression-2d", settings = { alpha = 2.0 } }
        preset = "thesis"
        price = 0.3
        rule = { name = "lstm", settings = { num_layers = 1, hidden_size = 4 } }
        method = { settings = { temperature_per_price = 3.0 } }
        [halting]
        num_steps = 5
        """
    )
    options = [*TINY_OPTIONS, "--halting.num-steps", 2, "--rule.hidden-size", 5]
    options += ["--method.temperature", "none", "--family.beta", 3]
    done = haltwise("train", "--config", "my.toml", "--out", "run", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = settings_of(tmp_path / "run")
    assert found.family == Choice("regression-2d", {"alpha": 2.0, "beta": 3.0})
    assert (found.preset, found.price, found.horizon) == ("thesis", 0.3, 6)
    assert found.rule == Choice("lstm", {"num_layers": 1, "hidden_size": 5})
    assert found.method.name == "softmax"  # of the preset
    assert found.method.settings["temperature"] is None
    assert found.method.settings["temperature_per_price"] == 3.0
    assert found.method.settings["horizons"] == "sampled"
    assert (found.halting.num_steps, found.joint.warmup) == (2, 0.0)
    options = [*TINY_OPTIONS, "--rule", "lstm", "--rule.output-scale", 0.1]
    done = haltwise(
        "train", "quadratic-10d", "--config", "my.toml", "--out", "other", *options, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    found = settings_of(tmp_path / "other")
    assert found.family == Choice("quadratic-10d", {})  # the file's are another's
    assert found.rule == Choice("lstm", {"output_scale": 0.1})  # named anew, as a whole


def test_settings_alone_belong_to_the_default_name() -> None:
    found = tiny(rule={"settings": {"num_layers": 1}}, method={"settings": {"distilled": 0.0}})
    assert found.rule == Choice("lstm", {"num_layers": 1})
    assert found.method == Choice("stick-breaking", {"distilled": 0.0})
    estimator = {"estimator": {"settings": {"truncate": True}}}
    assert tiny(joint=estimator).joint.estimator.settings == {"segment": 4, "truncate": True}
    assert build(TrainingSettings, {"joint": estimator}).joint.estimator == Choice(
        "pathwise", {"truncate": True}
    )


def test_a_name_with_settings_in_two_places_keeps_its_name() -> None:
    """`rule = "adam"` in a file, and `--rule.learning-rate` on the command line."""
    found = TrainingSettings.from_preset(
        "act", "regression-2d", {"rule": "adam"}, {"rule": {"settings": {"learning_rate": 0.1}}}
    )
    assert found.rule == Choice("adam", {"learning_rate": 0.1})


def test_lists_and_nested_values_can_be_typed(tmp_path: Path) -> None:
    options = [
        *("--mixed-with", "regression-10d-smooth,rosenbrock-2d", "--rule", "partitioned"),
        *("--rule.sizes", "[1, null]"),
        *("--rule.rules", '[["adam", {"learning_rate": 0.1}], ["lstm", {"num_layers": 1}]]'),
    ]
    done = haltwise("train", "regression-2d", *options, *TINY_OPTIONS, "--out=run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = settings_of(tmp_path / "run")
    assert found.mixed_with == ["regression-10d-smooth", "rosenbrock-2d"]
    assert found.rule.settings["sizes"] == [1, None]
    assert found.rule.settings["rules"][1] == ["lstm", {"num_layers": 1}]


# --- The tree itself -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Inner:
    size: int = 1
    """How large."""


@dataclass(frozen=True)
class Outer:
    name: str
    """A name of
    two lines."""
    inner: Inner = field(default_factory=Inner)
    """A section."""
    chosen: Choice = field(default_factory=lambda: Choice("a", {"x": 1, "y": 2}))
    """A choice."""
    maybe: int | None = None
    """One or none."""


def test_a_tree_is_built_from_its_parts() -> None:
    assert build(Outer, {"name": "n"}) == Outer("n")
    found = build(Outer, {"name": "n", "inner": Inner(3), "chosen": {"settings": {"y": 5}}})
    assert found == Outer("n", Inner(3), Choice("a", {"x": 1, "y": 5}))
    assert build(Outer, {"name": "n", "maybe": None}).maybe is None
    with pytest.raises(InputError, match="name is missing"):
        build(Outer, {})
    assert checked(Outer, {"chosen": "b"}) == {"chosen": {"name": "b"}}
    with pytest.raises(InputError, match=r"'inner.sise'; did you mean 'inner.size'"):
        checked(Outer, {"inner": {"sise": 2}})
    assert list(leaves(Outer)) == [
        Leaf("name", str, None, "A name of two lines.", required=True),
        Leaf("inner.size", int, 1, "How large."),
        Leaf("chosen", Choice, Choice("a", {"x": 1, "y": 2}), "A choice."),
        Leaf("maybe", int | None, None, "One or none."),
    ]


def test_a_setting_may_be_called_name() -> None:
    typed = ({"family": {"settings": {"depth": 3}}}, {"family": {"settings": {"name": "deep"}}})
    assert merge(*typed) == {"family": {"settings": {"depth": 3, "name": "deep"}}}


def test_every_choice_of_the_settings_has_a_table() -> None:
    assert {leaf.path for leaf in leaves(TrainingSettings) if leaf.hint is Choice} == set(CHOICES)
