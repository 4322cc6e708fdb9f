"""The callback for Lightning, with the real package."""

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from line_fits import assert_records_as_plain_loop, line_data, new_line, plain_loop
from safetensors.torch import load_file
from tiny_rules import patience, small_model, stop_of
from torch import Tensor, nn

from haltwise import HaltingMonitor, RunMonitor
from haltwise._core.errors import DataWarning
from haltwise.curves.model import CurveModel
from haltwise.interfaces import monitor as monitor_module
from haltwise.models.files import fingerprint
from haltwise.recordings.runs import RecordedRuns

pytestmark = pytest.mark.filterwarnings("ignore")  # their own


class TestLightning:
    def fit(
        self,
        callback: Any,
        seed: int,
        num: int,
        folder: Path,
        skip: tuple[int, ...] = (),
        validate: bool = True,
        size: int = 32,
        rate: float = 0.2,
        checkpoint: Path | None = None,
        **settings: Any,
    ) -> Any:
        """A fit of a line; `skip` names batches, `size` is that of a batch."""
        lightning = pytest.importorskip("lightning.pytorch")

        class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.model = new_line(seed)

            def training_step(self, batch: list[Tensor], number: int) -> Tensor | None:
                if number in skip:
                    return None
                loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
                self.log("train_loss", loss, on_step=False, on_epoch=True)
                return loss

            def validation_step(self, batch: list[Tensor], _: int) -> None:
                loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
                self.log("val_loss", loss)
                self.log("val_double", 2 * loss)

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=rate)

        trainer = lightning.Trainer(
            max_epochs=num,
            accelerator="cpu",
            callbacks=callback if isinstance(callback, list) else [callback],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **{"enable_checkpointing": False, **settings},
        )
        loader = torch.utils.data.DataLoader(line_data(seed), batch_size=size)
        trainer.fit(Module(), loader, loader if validate else None, ckpt_path=checkpoint)
        return trainer

    def callback(self, *arguments: Any, **settings: Any) -> Any:
        pytest.importorskip("lightning")
        from haltwise.interfaces.lightning import HaltingCallback

        return HaltingCallback(*arguments, **settings)

    def test_it_records_and_stops_as_a_plain_loop(self, sgd_stopper: Path, tmp_path: Path) -> None:
        assert_records_as_plain_loop(
            lambda monitor, seed, num: self.fit(self.callback(monitor), seed, num, tmp_path),
            tmp_path,
        )
        stops = []
        for seed in range(500, 504):
            expected, monitor = HaltingMonitor(sgd_stopper), HaltingMonitor(sgd_stopper)
            plain_loop(expected, seed, 20)
            trainer = self.fit(self.callback(monitor), seed, 20, tmp_path)
            assert trainer.global_step == monitor.steps == expected.steps
            stops.append(monitor.steps)
        assert len(set(stops)) > 1

    def test_a_round_may_be_an_epoch_with_its_validation(self, tmp_path: Path) -> None:
        monitor = HaltingMonitor.recording(tmp_path / "a")
        self.fit(self.callback(monitor, "val_loss", score="val_double"), 0, 5, tmp_path)
        found = RecordedRuns.load(tmp_path / "a").trajectory
        assert found.num_steps == 4
        torch.testing.assert_close(found.excess, 2 * found.loss)
        with pytest.raises(
            ValueError, match=r"no metric 'x' was logged; there are val_double, val"
        ):
            self.fit(self.callback(HaltingMonitor.recording(tmp_path), "x"), 0, 1, tmp_path)
        with pytest.raises(ValueError, match="a score needs a metric"):
            self.callback(monitor, score="val_loss")

    def test_a_stop_is_judged_by_what_was_validated_then(self, tmp_path: Path) -> None:
        """Not by the validation after the epoch that follows."""
        self.fit(self.callback(HaltingMonitor.recording(tmp_path), "val_loss"), 0, 5, tmp_path)
        found = RecordedRuns.load(tmp_path).trajectory
        assert torch.equal(found.excess, found.loss)

    def recorded(self, folder: Path) -> list[Tensor]:
        """Signals of all rounds of each run."""
        return [load_file(path)["signals"] for path in sorted(folder.iterdir())]

    @pytest.mark.parametrize("metric", [None, "val_loss"])
    def test_every_fit_is_a_run_of_its_own(self, metric: str | None, tmp_path: Path) -> None:
        callback = self.callback(HaltingMonitor.recording(tmp_path / "a"), metric)
        for _ in range(2):
            self.fit(callback, 3, 5, tmp_path)
        with pytest.raises(ZeroDivisionError):
            self.fit([callback, self.interruption()], 3, 5, tmp_path)
        trainer = self.fit(callback, 3, 5, tmp_path)
        loader = trainer.val_dataloaders
        trainer.validate(trainer.lightning_module, loader, verbose=False)  # no round
        assert callback.monitor.steps == 5
        first, *others = self.recorded(tmp_path / "a")
        assert len(first) == 5
        assert [torch.equal(first, other) for other in others] == [True, True]

    def interruption(self) -> Any:
        class Fails(pytest.importorskip("lightning.pytorch").Callback):  # type: ignore[misc]
            def on_train_epoch_end(self, trainer: Any, _: Any) -> None:
                raise ZeroDivisionError

        return Fails()

    def test_a_monitor_may_stop_several_fits(self, sgd_stopper: Path, tmp_path: Path) -> None:
        callback = self.callback(HaltingMonitor(sgd_stopper))
        stops = [self.fit(callback, 500, 20, tmp_path).global_step for _ in range(2)]
        assert 1 < stops[0] == stops[1] < 20

    def test_gradients_are_seen_with_a_metric(self, sgd_stopper: Path, tmp_path: Path) -> None:
        for name, metric in (("a", "val_loss"), ("b", None)):
            monitor = HaltingMonitor.recording(tmp_path / name)
            self.fit(self.callback(monitor, metric), 3, 5, tmp_path)
        (by_metric,), (by_step,) = (self.recorded(tmp_path / name) for name in "ab")
        torch.testing.assert_close(by_metric[..., 2:4], by_step[..., 2:4])
        assert (by_metric[..., 1] < by_step[..., 1]).all()  # the loss after the step
        monitor = HaltingMonitor(sgd_stopper)
        self.fit(self.callback(monitor, "val_loss"), 3, 5, tmp_path)  # it wants gradients
        assert monitor.steps > 1

    @pytest.mark.parametrize(
        ("accumulated", "skip", "rounds"),
        [
            (1, (), [[0], [1], [2], [3]]),
            (4, (), [[0, 1, 2, 3]]),
            (3, (), [[0, 1, 2], [3]]),
            (1, (1,), [[0], [2], [3]]),
            (4, (0, 1), [[2, 3]]),
            (2, (2, 3), [[0, 1]]),
        ],
    )
    def test_a_round_has_the_mean_loss_of_its_batches(
        self, accumulated: int, skip: tuple[int, ...], rounds: list[list[int]], tmp_path: Path
    ) -> None:
        callback = self.callback(HaltingMonitor.recording(tmp_path / "a"))
        settings: dict[str, Any] = {
            "accumulate_grad_batches": accumulated,
            "size": 8,
            "skip": skip,
            "rate": 0.0,
        }
        self.fit(callback, 3, 3, tmp_path, **settings)
        x, y = line_data(3).tensors
        losses = (new_line(3)(x) - y).square().reshape(4, 8).mean(1).detach()
        expected = torch.stack([losses[chosen].mean() for chosen in rounds] * 3)
        (found,) = self.recorded(tmp_path / "a")
        torch.testing.assert_close(found[:, 1], expected)

    def test_several_callbacks_may_be_in_one_trainer(
        self, sgd_stopper: Path, tmp_path: Path
    ) -> None:
        stops = HaltingMonitor(sgd_stopper), HaltingMonitor(sgd_stopper, price=1e-9)
        callbacks = [
            *map(self.callback, stops),
            self.callback(HaltingMonitor.recording(tmp_path / "a")),
            self.callback(HaltingMonitor.recording(tmp_path / "b")),
            self.callback(HaltingMonitor.recording(tmp_path / "c"), "val_loss"),
        ]
        trainer = self.fit(callbacks, 500, 20, tmp_path)
        assert trainer.global_step < 20
        assert stops[0].should_stop
        assert not stops[1].should_stop
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        saved = torch.load(tmp_path / "x.ckpt", weights_only=True)["callbacks"]
        assert {callback.state_key for callback in callbacks} <= saved.keys()

    def test_steps_that_a_scaler_skipped_are_no_rounds(self, tmp_path: Path) -> None:
        class Overflows(pytest.importorskip("lightning.pytorch").Callback):  # type: ignore[misc]
            def on_train_start(self, trainer: Any, _: Any) -> None:
                trainer.precision_plugin.scaler = object()

            def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
                if trainer.global_step == 2:
                    module.model.weight.grad.fill_(torch.inf)

        monitor = HaltingMonitor.recording(tmp_path / "a")
        self.fit([Overflows(), self.callback(monitor)], 3, 5, tmp_path)
        assert monitor.steps == 4
        (found,) = self.recorded(tmp_path / "a")
        assert found.isfinite().all()

    def test_a_metric_needs_a_validation(self, tmp_path: Path) -> None:
        callback = self.callback(HaltingMonitor.recording(tmp_path), "val_loss")
        with pytest.raises(ValueError, match="this fit has none"):
            self.fit(callback, 0, 1, tmp_path, validate=False)

    def test_its_state_is_in_the_checkpoint(self, sgd_stopper: Path, tmp_path: Path) -> None:
        callback = self.callback(HaltingMonitor(sgd_stopper))
        trainer = self.fit(callback, 500, 2, tmp_path)
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        other = self.callback(HaltingMonitor(sgd_stopper))
        saved = torch.load(tmp_path / "x.ckpt", weights_only=False)["callbacks"]
        other.load_state_dict(saved[other.state_key])
        assert other.monitor.steps == 2
        for expected in (3, 1):  # it goes on once, then begins anew
            self.fit(other, 500, 1, tmp_path)
            assert other.monitor.steps == expected

    @pytest.mark.parametrize("accumulated", [1, 4])
    def test_a_recording_goes_on_from_a_checkpoint(self, accumulated: int, tmp_path: Path) -> None:
        class Saves(pytest.importorskip("lightning.pytorch").Callback):  # type: ignore[misc]
            def on_train_epoch_end(self, trainer: Any, _: Any) -> None:
                if trainer.current_epoch == 1:
                    trainer.save_checkpoint(tmp_path / "x.ckpt")

        settings: dict[str, Any] = {"size": 8, "accumulate_grad_batches": accumulated}
        callback = self.callback(HaltingMonitor.recording(tmp_path / "a"))
        self.fit([callback, Saves()], 3, 4, tmp_path, **settings)
        self.fit(callback, 3, 4, tmp_path, checkpoint=tmp_path / "x.ckpt", **settings)
        whole, resumed = self.recorded(tmp_path / "a")
        assert len(whole) == 4 * 4 // accumulated
        assert torch.equal(whole, resumed)
        other = self.callback(HaltingMonitor.recording(tmp_path / "b"))  # not in the checkpoint
        with pytest.warns(DataWarning, match="its first rounds were not seen: this run is not re"):
            self.fit(other, 3, 4, tmp_path, checkpoint=tmp_path / "x.ckpt", **settings)
        assert other.monitor.steps == 2 * 4 // accumulated
        assert not any((tmp_path / "b").iterdir())

    def run_callback(self, *arguments: Any, **settings: Any) -> Any:
        pytest.importorskip("lightning")
        from haltwise.interfaces.lightning import RunCallback

        return RunCallback(*arguments, **settings)

    def losses(self, name: str, folder: Path, seed: int, num: int, **settings: Any) -> list[float]:
        """A metric after each epoch."""
        found: list[float] = []

        class Log(pytest.importorskip("lightning.pytorch").Callback):  # type: ignore[misc]
            def on_train_epoch_end(self, trainer: Any, _: Any) -> None:
                found.append(trainer.callback_metrics[name].item())

        self.fit(Log(), seed, num, folder, **settings)
        return found

    NOISY: ClassVar[dict[str, Any]] = {"size": 2, "rate": 0.3}  # so that losses rise and fall

    @pytest.mark.parametrize(("name", "in_training"), [("val_loss", False), ("train_loss", True)])
    def test_it_is_given_up_by_its_log(self, name: str, in_training: bool, tmp_path: Path) -> None:
        callback = self.run_callback(patience(1, min_points=2), name, in_training=in_training)
        stops = set()
        for seed in range(2):
            log = self.losses(name, tmp_path, seed, 12, **self.NOISY)
            trainer = self.fit(callback, seed, 12, tmp_path, **self.NOISY)
            monitor = callback.monitor
            assert trainer.current_epoch == monitor.steps == stop_of(log, 1, 2)
            assert monitor.curve.columns["loss"].tolist() == log[: monitor.steps]
            assert monitor.curve.cost.tolist() == [16 * n for n in range(1, monitor.steps + 1)]
            assert monitor.curve.budget == 16 * 12
            stops.add(monitor.steps)
        assert len(stops) > 1

    def test_the_log_is_in_the_checkpoint(self, tmp_path: Path) -> None:
        rule = patience(9), patience(9), patience(8)
        callbacks = [self.run_callback(monitor, "val_loss") for monitor in rule]
        trainer = self.fit([callbacks[0], callbacks[2]], 0, 3, tmp_path, enable_checkpointing=True)
        saved = tmp_path / "x.ckpt"
        trainer.save_checkpoint(saved)
        for monitor in rule[:2]:
            monitor.update(-100, cost=1e9)  # which is forgotten
        self.fit([callbacks[1]], 0, 6, tmp_path, checkpoint=saved)
        assert rule[1].curve.cost.tolist() == [1, 2, 3, 4, 5, 6]
        assert rule[1].curve.budget == 6  # of this fit
        self.fit([callbacks[1]], 0, 2, tmp_path)  # of a run of its own
        assert rule[1].curve.cost.tolist() == [1, 2]

    def test_to_validate_a_checkpoint_resumes_nothing(
        self, sgd_stopper: Path, tmp_path: Path
    ) -> None:
        callbacks = [
            self.run_callback(patience(0, min_points=1)),
            self.callback(HaltingMonitor(sgd_stopper)),
        ]
        for callback in callbacks:
            trainer = self.fit(callback, 500, 30, tmp_path)
            seen, saved = callback.monitor.state_dict(), tmp_path / "x.ckpt"
            assert seen["reason"] is not None
            trainer.save_checkpoint(saved)
            self.fit(callback, 500, 1, tmp_path)
            loader, begun = trainer.val_dataloaders, callback.monitor.steps
            trainer.validate(trainer.lightning_module, loader, saved, verbose=False)
            assert callback.monitor.steps == begun  # what is known of the last fit stays
            again = self.fit(callback, 500, 30, tmp_path)  # and the next is a run of its own
            assert again.global_step == trainer.global_step
            assert callback.monitor.steps == seen["steps"]

    @pytest.mark.parametrize("halts", [True, False])
    def test_a_search_for_a_learning_rate_resumes_nothing(
        self, halts: bool, sgd_stopper: Path, tmp_path: Path
    ) -> None:
        finder = pytest.importorskip("lightning.pytorch.callbacks").LearningRateFinder

        class Finds(finder):  # type: ignore[misc, valid-type]
            def on_fit_start(self, trainer: Any, module: Any) -> None:
                module.lr = 0.0  # where the rate is written, which this fit does not take
                super().on_fit_start(trainer, module)

        callback = self.run_callback(patience(0, min_points=2))
        if halts:
            callback = self.callback(HaltingMonitor(sgd_stopper))
        steps = []
        for beside in ([], [Finds(num_training_steps=3)]):
            self.fit([callback, *beside], 500, 30, tmp_path)
            steps.append(callback.monitor.steps)
        assert 1 < steps[0] == steps[1] < 30

    @pytest.mark.parametrize("validates", [True, False])
    def test_a_fit_without_a_point_is_reported(self, validates: bool, tmp_path: Path) -> None:
        callback = self.run_callback(patience(1))
        if not validates:
            callback = self.callback(HaltingMonitor.recording(tmp_path / "a"), "val_loss")
        with pytest.warns(
            DataWarning, match="no metric 'val_loss' was logged, but train_l"
        ) as told:
            self.fit(callback, 0, 2, tmp_path, check_val_every_n_epoch=3)
        assert __file__ in {each.filename for each in told if each.category is DataWarning}

    def test_a_fit_asks_but_once_which_trees_it_goes_by(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Lightning wants a callback's key at every hook, and a checksum of many trees is slow."""
        asked: list[CurveModel] = []
        model = small_model()

        def checksum(model: CurveModel) -> str:
            asked.append(model)
            return "trees"

        monkeypatch.setattr(CurveModel, "digest", property(checksum))
        callback = self.run_callback(RunMonitor(model, target=0.01), "val_loss")
        self.fit(callback, 0, 5, tmp_path)
        assert callback.monitor.steps == 5
        assert "CurveModel trees" in callback.state_key
        assert len(asked) == 1

    def test_a_fit_asks_but_once_which_weights_it_goes_by(
        self, sgd_stopper: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[Any] = []

        def counted(model: Any) -> str:
            asked.append(model)
            return fingerprint(model)

        monkeypatch.setattr(monitor_module, "fingerprint", counted)
        callback = self.callback(HaltingMonitor(sgd_stopper))
        self.fit(callback, 500, 5, tmp_path)
        assert callback.monitor.steps > 1
        assert len(asked) == 1

    def test_the_log_must_have_the_metric(self, tmp_path: Path) -> None:
        for name, settings, message in (
            ("x", {}, "no metric 'x' was logged; there are .*val_loss.* in validation_step"),
            ("x", {"in_training": True}, "no metric 'x' was logged.* in training_step, with on_ep"),
            ("train_loss", {}, "no metric 'train_loss' was logged"),
        ):
            with pytest.raises(ValueError, match=message):
                self.fit(self.run_callback(patience(1), name, **settings), 0, 1, tmp_path)
        with pytest.raises(ValueError, match="this fit has none"):
            self.fit(self.run_callback(patience(1)), 0, 1, tmp_path, validate=False)
