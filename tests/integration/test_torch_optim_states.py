"""States as `torch.optim` promises them, saved, copied, loaded and named; and ours."""

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from draws import DOUBLE
from networks import (
    ALL,
    Model,
    advance,
    assert_same,
    every_dtype,
    every_optimizer,
    flat,
    given_grads,
)
from random_models import random_model
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import haltwise
from haltwise import InputError, LearnedOptimizer
from haltwise.models.loading import names


@every_optimizer
class TestStates:
    """Of every optimizer."""

    @every_dtype
    @pytest.mark.parametrize("through", ["dict", "file"])
    def test_a_state_round_trip_goes_on_bit_by_bit(
        self, name: str, dtype: torch.dtype, through: str
    ) -> None:
        model = Model(dtype)
        optimizer = ALL[name](model.parameters())
        advance(model, optimizer, 4, dtype=dtype)
        state = copy.deepcopy(optimizer.state_dict())
        if through == "file":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        twin = Model(dtype)
        twin.load_state_dict(model.state_dict())
        other = ALL[name](twin.parameters())
        other.load_state_dict(state)
        assert_same(other.state_dict(), optimizer.state_dict())
        for each, own in ((model, optimizer), (twin, other)):
            advance(each, own, 4, first=4, dtype=dtype)
        assert torch.equal(flat(twin), flat(model))
        assert_same(other.state_dict(), optimizer.state_dict())

    @pytest.mark.parametrize("copier", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
    def test_copies_go_on_alike_and_apart(self, name: str, copier: Callable[[Any], Any]) -> None:
        model = Model()
        optimizer = ALL[name](model.parameters())
        advance(model, optimizer, 3)
        twin, other = copier((model, optimizer))
        before = flat(model)
        advance(twin, other, 3, first=3)
        assert torch.equal(flat(model), before)
        advance(model, optimizer, 3, first=3)
        assert torch.equal(flat(twin), flat(model))
        assert not torch.equal(flat(model), before)

    def test_a_state_may_be_loaded_again_and_into_copies(self, name: str) -> None:
        model = Model()
        optimizer = ALL[name](model.parameters())
        advance(model, optimizer, 2)
        start, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
        ends = []
        for copied in (False, False, True):  # as a search for a rate, or going back to the best
            if copied:
                model, optimizer = copy.deepcopy((model, optimizer))
            model.load_state_dict(start)
            optimizer.load_state_dict(copy.deepcopy(state))  # PyTorch shares its tensors
            advance(model, optimizer, 2, first=2)
            ends.append(flat(model))
        assert torch.equal(ends[0], ends[1])
        assert torch.equal(ends[0], ends[2])

    def test_named_parameters_keep_their_names(self, name: str) -> None:
        model = Model()
        optimizer = ALL[name](model.named_parameters())
        names = [key for key, _ in model.named_parameters()]
        assert optimizer.param_groups[0]["param_names"] == names
        assert optimizer.state_dict()["param_groups"][0]["param_names"] == names

    def test_a_load_hook_may_change_the_state(self, name: str) -> None:
        model = Model()
        optimizer = ALL[name](model.parameters())
        advance(model, optimizer, 1)

        def halve(_: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
            state = copy.deepcopy(state)
            state["param_groups"][0]["lr"] /= 2
            for entry in state["state"].values():
                for value in entry.values():
                    if isinstance(value, Tensor) and value.is_floating_point():
                        value.div_(2)
            return state

        optimizer.register_load_state_dict_pre_hook(halve)
        before = copy.deepcopy(optimizer.state_dict())
        optimizer.load_state_dict(before)
        expected = halve(optimizer, before)
        assert_same(optimizer.state_dict(), expected)

    def test_zero_grad_and_words(self, name: str) -> None:
        (param,) = given_grads((2,))
        optimizer = ALL[name]([param])
        assert "Parameter Group 0" in repr(optimizer)
        optimizer.zero_grad(set_to_none=False)
        assert param.grad is not None
        assert (param.grad == 0).all()
        optimizer.zero_grad()
        assert param.grad is None


# --- Ours ---


def test_a_state_of_several_dtypes_goes_on_bit_by_bit() -> None:
    kinds = torch.bfloat16, torch.float32, DOUBLE
    model = nn.ParameterList([given_grads((4,), dtype=dtype)[0] for dtype in kinds])
    twin = nn.ParameterList([given_grads((4,), dtype=dtype)[0] for dtype in kinds])
    optimizer = LearnedOptimizer(model, "regression-10d")
    for step in range(3):
        optimizer.step(loss=3.0 - step)
    other = LearnedOptimizer(twin, "regression-10d")
    other.load_state_dict(optimizer.state_dict())
    twin.load_state_dict(model.state_dict())
    assert_same(other.state_dict(), optimizer.state_dict())
    for own in (optimizer, other):
        own.step(loss=0.1)
    assert_same(other.state_dict(), optimizer.state_dict())
    assert_same([*twin.state_dict().values()], [*model.state_dict().values()])
    (found,) = other.halting_posterior
    assert found.log_prob().dtype == DOUBLE
    assert found.log_prob().shape == (1, 5)


@pytest.mark.parametrize("num_entries", [1, 2, 3])
def test_only_what_is_of_coordinates_is_kept_in_bfloat16(num_entries: int) -> None:
    (param,) = given_grads((num_entries,))
    optimizer = LearnedOptimizer([param], "small-networks", state_dtype=torch.bfloat16)
    optimizer.step(loss=1.0)
    narrow = {
        name
        for name, value in optimizer.state[param].items()
        if name.startswith("rule.") and value.dtype is torch.bfloat16
    }
    assert narrow == {"rule.momenta", "rule.squares", "rule.agreement"}


def test_a_state_of_others_is_refused_and_changes_nothing() -> None:
    model = Model()
    optimizer = LearnedOptimizer(model.parameters(), "regression-10d")
    advance(model, optimizer, 2)
    before = optimizer.state_dict()

    def state(params: Any, weights: Any) -> dict[str, Any]:
        params = list(params)
        other = LearnedOptimizer(params, weights)
        for param in params:
            param.grad = torch.zeros_like(param)
        other.step()
        return other.state_dict()

    shapes = [param.shape for param in Model().parameters()]
    larger = [nn.Parameter(torch.zeros(2, *shape)) for shape in shapes]
    adam = torch.optim.Adam(Model().parameters()).state_dict()
    for wrong, message in (
        (state(Model().parameters(), "quadratic-10d"), "taken with the weights 'quadratic-10d'"),
        (state(larger, "regression-10d"), r"shape \[1, 1, 2, 20\], got torch.*, \[1, 2, 2, 20\]"),
        (adam, "not that of a learned optimizer"),
    ):
        with pytest.raises(InputError, match=message):
            optimizer.load_state_dict(wrong)
        assert_same(optimizer.state_dict(), before)
    few = LearnedOptimizer([*Model().parameters()][:2], "regression-10d").state_dict()
    with pytest.raises(ValueError, match="size of optimizer's group"):
        optimizer.load_state_dict(few)
    assert_same(optimizer.state_dict(), before)
    assert len(before["param_groups"][0]["digest"]) == 32


def test_a_state_is_a_copy_on_both_ways() -> None:
    model, twin = Model(), Model()
    optimizer = LearnedOptimizer(model.parameters(), "regression-10d")
    advance(model, optimizer, 2)
    state, start = optimizer.state_dict(), flat(model)
    kept = copy.deepcopy(state)
    other = LearnedOptimizer(twin.parameters(), "regression-10d")
    other.load_state_dict(state)
    for each, own in ((model, optimizer), (twin, other)):
        nn.utils.vector_to_parameters(start.clone(), each.parameters())
        advance(each, own, 3, first=2)
        assert_same(state, kept)
    assert torch.equal(flat(model), flat(twin))


def test_the_digest_is_of_all_that_moving_and_stopping_depend_on() -> None:
    def digest(learned: haltwise.OptimizerModel | str) -> str:
        found: str = LearnedOptimizer(given_grads((2,)), learned).param_groups[0]["digest"]
        return found

    others = (
        random_model(seed=2),
        random_model(price=3.0),
        random_model(method="softmax"),
        random_model(hidden_size=4),
    )
    assert len({digest(random_model()), digest(random_model()), *map(digest, others)}) == 5
    assert digest("regression-10d") == digest(haltwise.load("regression-10d"))


Spoil = Callable[[dict[str, Any], dict[str, Any]], Any]

IMPOSSIBLE: dict[str, tuple[Spoil, str]] = {
    "rows of the rule": (
        lambda s, _: s.update({"rule.hidden": s["rule.hidden"][:, :1]}),
        r"'rule.hidden' .* shape \[1, 3, 2, 20\], got torch.float32, \[1, 1, 2, 20\]",
    ),
    "units of the rule": (
        lambda s, _: s.update({"rule.cell": s["rule.cell"][..., :3]}),
        r"'rule.cell' .* got torch.float32, \[1, 3, 2, 3\]",
    ),
    "precision": (lambda s, _: s.update({"rule.cell": s["rule.cell"].double()}), "float64"),
    "kind": (lambda s, _: s.update({"rule.cell": [1.0]}), r"'rule.cell' .* got \[1.0\]"),
    "layout": (lambda s, _: s.update({"rule.cell": s["rule.cell"].to_sparse()}), "'rule.cell'"),
    "place": (lambda s, _: s.update({"rule.cell": s["rule.cell"].to("meta")}), "'rule.cell'"),
    "NaN": (lambda s, _: s["rule.hidden"].fill_(torch.nan), "'rule.hidden' .* is not finite"),
    "infinity": (lambda s, _: s["guard.mean"].fill_(torch.inf), "'guard.mean' .* not finite"),
    "entry lacks": (lambda s, _: s.pop("signals.update"), "must have the entries"),
    "copy lacks": (lambda s, _: s.pop("guard.params"), "must have the entries"),
    "marks lack": (lambda s, _: s.pop("touched"), "must have the entries"),
    "entry too many": (lambda s, _: s.update(odd=torch.ones(1)), "must have the entries"),
    "numbers lack": (lambda s, _: s.pop("group"), "lacks the steps"),
    "no numbers": (lambda s, _: s.update(group=3), "lacks the steps"),
    "count below 0": (lambda _, r: r.update(skipped=-1), "'skipped': -1"),
    "count of a fraction": (lambda _, r: r.update(step=3.0), "'step': 3.0"),
    "more judged than stepped": (lambda _, r: r.update(step=2), "'step': 2"),
    "count lacks": (lambda _, r: r.pop("judged"), "'judged': None"),
    "unknown number": (lambda _, r: r.update(odd=1), "'odd'"),
    "session lacks": (lambda _, r: r.pop("session"), r"lacks \['session'\]"),
    "decisions lack": (
        lambda _, r: [r.pop(name) for name in ("session", "stop", "outputs")],
        "'outputs', 'session', 'stop'",
    ),
    "session of others": (lambda _, r: r["session"].popitem(), "must have the entries"),
    "session's shape": (
        lambda _, r: r["session"].update({k: v[:0] for k, v in r["session"].items()}),
        r"got torch\..*, \[0",
    ),
    "stop of two": (lambda _, r: r.update(stop=torch.ones(2, dtype=torch.bool)), "'stop'"),
    "stop of floats": (lambda _, r: r.update(stop=torch.ones(1)), "'stop'"),
    "outputs of many steps": (
        lambda _, r: r.update(outputs={k: torch.cat([v] * 3, 1) for k, v in r["outputs"].items()}),
        "outputs of 9 steps",
    ),
    "outputs' kind": (lambda _, r: r.update(outputs=3), "outputs of 0 steps"),
    "guard lacks": (lambda _, r: r.pop("guard"), "must have the entries"),
    "guard's kind": (lambda _, r: r.update(guard=3), "guard's state is impossible"),
    **{
        f"guard's {name} {value}": (
            lambda _, r, name=name, value=value: r["guard"].update({name: value}),  # type: ignore[misc]
            "guard's state is impossible after 3 steps",
        )
        for name, value in (
            *((name, torch.nan) for name in ("smooth", "lowest", "size", "rate", "window")),
            ("adam", -2), ("adam", 9), ("begun", 9), ("failures", -1), ("losses", 0),
            ("losses", 2.0), ("noise", -1.0), ("size_there", torch.inf), ("lowest", torch.inf),
            ("lowest_of", 0), ("lowest_of", 9), ("adam", 2), ("odd", 1),
        )
    },
}  # fmt: skip
"""How a state of one tensor of 3, after 3 steps, is spoiled, and what is said of it."""


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_impossible_states_are_refused_and_change_nothing(case: str) -> None:
    params = given_grads((3,))
    optimizer = LearnedOptimizer(params, "regression-10d")
    for loss in (3.0, 2.0, 1.0):
        optimizer.step(loss=loss)
    before, state = optimizer.state_dict(), optimizer.state_dict()
    spoil, message = IMPOSSIBLE[case]
    spoil(state["state"][0], state["state"][0]["group"][0])
    for own in (optimizer, LearnedOptimizer(given_grads((3,)), "regression-10d")):
        with pytest.raises(InputError, match=message):
            own.load_state_dict(state)
    assert_same(optimizer.state_dict(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": -1.0}, "lr must be at least 0 and finite, got -1.0"),
        ({"lr": torch.nan}, "lr must be at least 0 and finite, got nan"),
        ({"weight_decay": torch.inf}, "weight_decay must be .* finite, got inf"),
        ({"price": "0.1"}, "price must be a single real number, got '0.1'"),
    ],
)
def test_impossible_settings_in_a_state_are_refused(changes: dict[str, Any], message: str) -> None:
    optimizer = LearnedOptimizer(given_grads((3,)), "regression-10d")
    state = optimizer.state_dict()
    state["param_groups"][0] |= changes
    with pytest.raises(InputError, match=message):
        optimizer.load_state_dict(state)
    state["param_groups"][0].pop(next(iter(changes)))
    with pytest.raises(InputError, match="a parameter group of the state lacks"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("name", names())
def test_the_state_of_every_shipped_optimizer_may_be_loaded(name: str) -> None:
    sizes = getattr(haltwise.load(name).rule, "sizes", [4])
    params, twins = (given_grads(*((size or 1,) for size in sizes)) for _ in range(2))
    optimizer, other = LearnedOptimizer(params, name), LearnedOptimizer(twins, name)
    for loss in (3.0, 2.0, 1.0):
        optimizer.step(loss=loss)
    other.load_state_dict(optimizer.state_dict())
    assert_same(other.state_dict(), optimizer.state_dict())


# --- Distributed checkpoints ---


@pytest.mark.filterwarnings("ignore::UserWarning")  # of one process alone
@pytest.mark.parametrize("steps", [0, 4, 65])
def test_a_distributed_checkpoint_goes_on_bit_by_bit(steps: int, tmp_path: Path) -> None:
    """The tools of PyTorch take a dummy step where there is no state yet."""

    def train(model: Model, optimizer: LearnedOptimizer, first: int, num: int) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            advance(model, optimizer, num, first=first)

    model, twin = Model(), Model()
    optimizer = LearnedOptimizer(model.parameters(), "regression-10d", price=1e-9)
    train(model, optimizer, 0, steps)
    saved = get_optimizer_state_dict(model, optimizer)
    state_dict_saver.save(
        {"model": model.state_dict(), "optimizer": saved}, checkpoint_id=tmp_path / "x"
    )
    other = LearnedOptimizer(twin.parameters(), "regression-10d", price=1e-9)
    own = {"model": twin.state_dict(), "optimizer": get_optimizer_state_dict(twin, other)}
    state_dict_loader.load(own, checkpoint_id=tmp_path / "x")
    twin.load_state_dict(own["model"])
    set_optimizer_state_dict(twin, other, own["optimizer"])
    assert other.steps_taken == steps
    never = Model()
    alone = LearnedOptimizer(never.parameters(), "regression-10d", price=1e-9)
    train(never, alone, 0, steps + 5)
    for each, it in ((model, optimizer), (twin, other)):
        train(each, it, steps, 5)
        assert torch.equal(flat(each), flat(never))
        assert it.should_stop == alone.should_stop
        assert_same(it.state_dict(), alone.state_dict())


def test_names_in_another_order_are_refused_and_other_names_are_not() -> None:
    first, second = given_grads((3,), (3,))
    optimizer = LearnedOptimizer([("a", first), ("b", second)], "regression-10d")
    optimizer.step(loss=1.0)
    state = optimizer.state_dict()
    for mixed in ([("b", second), ("a", first)], [{"params": [each]} for each in (("b", second),)]):
        other = LearnedOptimizer(mixed, "regression-10d")
        if len(mixed) == 1:
            other.add_param_group({"params": [("a", first)]})
            state["param_groups"] = [
                {**state["param_groups"][0], "params": [number], "param_names": [name]}
                for number, name in enumerate("ab")
            ]
        with pytest.raises(InputError, match="another order, of 'a' in the place of 'b'"):
            other.load_state_dict(state)
    wrapped = LearnedOptimizer([("m.a", first), ("m.b", second)], "regression-10d")
    wrapped.load_state_dict(optimizer.state_dict())
    assert wrapped.steps_taken == 1


@pytest.mark.parametrize("before", [torch.float32, torch.bfloat16])
def test_a_module_that_is_converted_goes_on_and_its_state_may_be_loaded(
    before: torch.dtype,
) -> None:
    after = torch.bfloat16 if before is torch.float32 else torch.float32
    model = Model(before)
    optimizer = LearnedOptimizer(model.parameters(), "regression-10d")
    advance(model, optimizer, 2, dtype=before)
    model.to(after)
    advance(model, optimizer, 2, first=2, dtype=after)
    other = LearnedOptimizer(copy.deepcopy(model).parameters(), "regression-10d")
    other.load_state_dict(optimizer.state_dict())
    assert_same(other.state_dict(), optimizer.state_dict())


def test_a_parameter_with_infinite_entries_goes_on_from_its_state() -> None:
    """As a table of log-probabilities some of which are 0."""
    ends = []
    for through_state in (False, True):
        start = torch.arange(16.0).view(4, 4) / 10
        param = nn.Parameter(start.masked_fill(torch.eye(4).bool(), -torch.inf))
        optimizer = LearnedOptimizer([param])
        for step in range(4):
            optimizer.zero_grad()
            loss = -param.log_softmax(1)[0, 1] - param.log_softmax(1)[2, 3]
            torch.autograd.backward(loss)
            optimizer.step(loss=loss)
            if step == 1 and through_state:
                state, optimizer = optimizer.state_dict(), LearnedOptimizer([param])
                optimizer.load_state_dict(state)
        ends.append(param.detach())
    assert torch.equal(*ends)
    assert (ends[0].diagonal() == -torch.inf).all()


def test_a_state_may_be_loaded_in_inference_mode() -> None:
    model = Model()
    optimizer = LearnedOptimizer(model.parameters())
    advance(model, optimizer, 2)
    start, state = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    advance(model, optimizer, 2, first=2)
    end = flat(model)
    with torch.inference_mode():  # as where the best state of a validation is taken up again
        model.load_state_dict(start)
        optimizer.load_state_dict(state)
    advance(model, optimizer, 2, first=2)
    assert torch.equal(flat(model), end)
