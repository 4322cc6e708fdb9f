"""The callback for Hugging Face trainers, with the real package."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from line_fits import assert_records_as_plain_loop, line_data, new_line, plain_loop
from tiny_rules import patience, stop_of
from torch import Tensor, nn

from haltwise import HaltingMonitor
from haltwise._core.errors import DataWarning
from haltwise.recordings.runs import RecordedRuns

pytestmark = pytest.mark.filterwarnings("ignore")  # their own


def test_an_evaluation_before_the_training_is_no_point_of_it() -> None:
    pytest.importorskip("transformers")
    from haltwise.interfaces.transformers import RunCallback

    callback = RunCallback(patience(1))
    callback.on_log(None, SimpleNamespace(global_step=0), None, logs={"eval_loss": 1.0})
    assert callback.monitor.steps == 0


class TestTransformers:
    def fit(
        self,
        callback: Any,
        seed: int,
        num: int,
        folder: Path,
        two_sets: bool = False,
        checkpoint: str | None = None,
        **settings: Any,
    ) -> Any:
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = new_line(seed)

            def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
                predicted = self.model(x)
                return {"loss": nn.functional.mse_loss(predicted, labels), "logits": predicted}

        x, y = line_data(seed).tensors
        rows = [{"x": x[row], "labels": y[row]} for row in range(32)]
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=num,
            per_device_eval_batch_size=32,
            report_to=[],
            use_cpu=True,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            disable_tqdm=True,
            **{
                "logging_steps": 1,
                "save_strategy": "no",
                "per_device_train_batch_size": 32,
                **settings,
            },
        )
        model = Model()
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset={"a": rows, "b": rows[:16]} if two_sets else rows,
            callbacks=callback if isinstance(callback, list) else [callback],
            optimizers=(torch.optim.SGD(model.parameters(), lr=0.2), None),
        )
        trainer.train(resume_from_checkpoint=checkpoint)
        return trainer

    def callback(self, *arguments: Any, **settings: Any) -> Any:
        pytest.importorskip("transformers")
        from haltwise.interfaces.transformers import HaltingCallback

        return HaltingCallback(*arguments, **settings)

    def test_it_records_and_stops_as_a_plain_loop(self, sgd_stopper: Path, tmp_path: Path) -> None:
        assert_records_as_plain_loop(
            lambda monitor, seed, num: self.fit(self.callback(monitor), seed, num, tmp_path),
            tmp_path,
        )
        expected, monitor = HaltingMonitor(sgd_stopper), HaltingMonitor(sgd_stopper)
        plain_loop(expected, 500, 20)
        trainer = self.fit(self.callback(monitor), 500, 20, tmp_path)
        assert trainer.state.global_step == monitor.steps == expected.steps < 20

    def test_a_stop_is_judged_by_what_was_evaluated_then(self, tmp_path: Path) -> None:
        """Not by the evaluation after it."""
        callback = self.callback(HaltingMonitor.recording(tmp_path / "a"), "eval_loss")
        self.fit(callback, 0, 8, tmp_path, eval_strategy="steps", eval_steps=2)
        found = RecordedRuns.load(tmp_path / "a").trajectory
        assert torch.equal(found.excess, found.loss)

    def test_a_round_may_be_an_evaluation(self, tmp_path: Path) -> None:
        monitor = HaltingMonitor.recording(tmp_path / "a")
        callback = self.callback(monitor, "eval_loss", score="eval_runtime")
        trainer = self.fit(
            callback, 0, 8, tmp_path, eval_strategy="steps", eval_steps=2, eval_on_start=True
        )
        found = RecordedRuns.load(tmp_path / "a").trajectory
        assert found.num_steps == 3
        trainer.evaluate()  # after the training: no round
        assert monitor.steps == 4
        callback = self.callback(HaltingMonitor.recording(tmp_path / "b"), "x")
        with pytest.raises(ValueError, match=r"the evaluation has no 'x', but .*eval_loss"):
            self.fit(callback, 0, 2, tmp_path, eval_strategy="steps", eval_steps=2)

    @pytest.mark.parametrize(("metric", "score"), [("a", "b"), ("b", "a"), ("b", "b")])
    def test_metric_and_score_may_be_of_several_sets(
        self, metric: str, score: str, tmp_path: Path
    ) -> None:
        monitor = HaltingMonitor.recording(tmp_path / "a")
        callback = self.callback(monitor, f"eval_{metric}_loss", score=f"eval_{score}_loss")
        settings: dict[str, Any] = {
            "eval_strategy": "steps",
            "eval_steps": 2,
            "eval_on_start": True,
        }
        trainer = self.fit(callback, 0, 8, tmp_path, two_sets=True, **settings)
        found = RecordedRuns.load(tmp_path / "a").trajectory
        assert found.num_steps == 3
        known = [
            {key: value for one in trainer.state.log_history if one["step"] == step
             for key, value in one.items()}
            for step in (2, 4, 6)
        ]  # fmt: skip
        for kind, values in ((metric, found.loss), (score, found.excess)):
            expected = torch.tensor([[one[f"eval_{kind}_loss"] for one in known]])
            torch.testing.assert_close(values[:, :3], expected)
        callback = self.callback(HaltingMonitor.recording(tmp_path / "b"), "eval_loss")
        with pytest.raises(ValueError, match=r"no 'eval_loss', but .*eval_a_loss.*eval_b"):
            self.fit(callback, 0, 8, tmp_path, two_sets=True, **settings)

    def test_layers_may_be_unfrozen(self, sgd_stopper: Path, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")

        class Thaw(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
            def on_step_begin(self, args: Any, state: Any, *_: Any, model: Any, **__: Any) -> None:
                model.model.bias.requires_grad_(state.global_step >= 4)

        monitor = HaltingMonitor.recording(tmp_path / "a")
        for _ in range(2):
            self.fit([Thaw(), self.callback(monitor)], 3, 8, tmp_path)
        signals = RecordedRuns.load(tmp_path / "a").trajectory.known("signals")
        assert signals.shape[:2] == (2, 6)
        assert torch.equal(signals[0], signals[1])
        stops = HaltingMonitor(sgd_stopper)
        trainer = self.fit([Thaw(), self.callback(stops)], 500, 20, tmp_path)
        assert stops.should_stop
        assert 4 < trainer.state.global_step < 20

    def test_skipped_steps_are_not_seen_and_one_process_records(self, tmp_path: Path) -> None:
        callback = self.callback(HaltingMonitor.recording(tmp_path / "a"))
        model, control = new_line(3), SimpleNamespace(should_training_stop=False)
        callback.on_train_begin(model=model)
        for skipped in (True, False, True):
            optimizer = SimpleNamespace(step_was_skipped=skipped)
            callback.on_optimizer_step(model=model, optimizer=optimizer)
            callback.on_log(None, None, control, logs={"loss": 1.0})
        assert callback.monitor.steps == 1
        callback.on_train_end(None, SimpleNamespace(is_world_process_zero=False))
        assert not any((tmp_path / "a").iterdir())

    def test_an_evaluation_after_a_training_that_ended_early_is_no_round(
        self, tmp_path: Path
    ) -> None:
        transformers = pytest.importorskip("transformers")

        class Ends(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
            def on_step_end(self, args: Any, state: Any, control: Any, **__: Any) -> None:
                control.should_training_stop |= state.global_step == 5

        with HaltingMonitor.recording(tmp_path / "a") as monitor:
            callback = self.callback(monitor, "eval_loss")
            trainer = self.fit(
                [callback, Ends()], 0, 8, tmp_path, eval_strategy="steps", eval_steps=2
            )
            rounds = monitor.steps
            trainer.evaluate()
            assert monitor.steps == rounds > 1
        assert len(list((tmp_path / "a").iterdir())) == 1

    def test_a_training_that_fails_is_not_recorded(self, tmp_path: Path) -> None:
        transformers = pytest.importorskip("transformers")

        class Fails(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
            def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
                if state.global_step == 3:
                    raise ZeroDivisionError

        with HaltingMonitor.recording(tmp_path / "a") as monitor:
            callback = self.callback(monitor)
            with pytest.raises(ZeroDivisionError):
                self.fit([callback, Fails()], 3, 8, tmp_path)
            monitor.close()
            assert not any((tmp_path / "a").iterdir())
            with pytest.raises(ZeroDivisionError):
                self.fit([callback, Fails()], 3, 8, tmp_path)
        assert not any((tmp_path / "a").iterdir())
        self.fit(callback, 3, 8, tmp_path)
        assert RecordedRuns.load(tmp_path / "a").trajectory.known("signals").shape[:2] == (1, 6)

    def run_callback(self, *arguments: Any) -> Any:
        pytest.importorskip("transformers")
        from haltwise.interfaces.transformers import RunCallback

        return RunCallback(*arguments)

    def log(self, trainer: Any, name: str) -> list[float]:
        """A metric as the trainer has logged it."""
        return [logs[name] for logs in trainer.state.log_history if name in logs]

    NOISY: ClassVar[dict[str, Any]] = {
        "per_device_train_batch_size": 4
    }  # so that losses rise and fall

    def test_it_is_given_up_by_its_log(self, tmp_path: Path) -> None:
        callback = self.run_callback(patience(2), "loss")
        stops = set()
        for seed in range(3):
            log = self.log(self.fit([], seed, 20, tmp_path, **self.NOISY), "loss")
            trainer = self.fit(callback, seed, 20, tmp_path, **self.NOISY)
            monitor = callback.monitor
            assert trainer.state.global_step == monitor.steps == stop_of(log, 2)
            assert monitor.curve.columns["loss"].tolist() == log[: monitor.steps]
            assert monitor.curve.budget == 20
            stops.add(monitor.steps)
        assert len(stops) > 1

    def test_it_may_go_by_the_evaluation(self, tmp_path: Path) -> None:
        callback = self.run_callback(patience(9))
        settings: dict[str, Any] = {
            "eval_strategy": "steps",
            "eval_steps": 2,
            "eval_on_start": True,
            **self.NOISY,
        }
        trainer = self.fit(callback, 0, 8, tmp_path, **settings)
        assert callback.monitor.curve.cost.tolist() == [0, 2, 4, 6, 8]
        assert callback.monitor.curve.loss.tolist() == self.log(trainer, "eval_loss")
        trainer.evaluate()  # for its own sake
        assert callback.monitor.steps == 5

    def test_a_resumed_training_is_judged_by_its_whole_log(self, tmp_path: Path) -> None:
        settings: dict[str, Any] = {**self.NOISY, "save_strategy": "steps", "save_steps": 3}
        whole = self.run_callback(patience(3), "loss")
        trainer = self.fit(whole, 1, 20, tmp_path, **settings)
        assert 3 < trainer.state.global_step < 20
        resumed = self.run_callback(patience(3), "loss")
        again = self.fit(
            resumed, 1, 20, tmp_path, checkpoint=str(tmp_path / "checkpoint-3"), **settings
        )
        assert again.state.global_step == trainer.state.global_step
        assert resumed.monitor.state_dict() == whole.monitor.state_dict()

    def test_a_metric_that_is_never_logged_is_reported(self, tmp_path: Path) -> None:
        callback = self.run_callback(patience(1, direction="max"), "eval_f1")
        with pytest.warns(DataWarning, match="no metric 'eval_f1' was logged, but .*loss") as told:
            self.fit(callback, 0, 2, tmp_path)
        assert __file__ in {each.filename for each in told if each.category is DataWarning}

    def test_half_a_training_is_not_recorded(self, tmp_path: Path) -> None:
        settings: dict[str, Any] = {"save_strategy": "steps", "save_steps": 3}
        monitor = HaltingMonitor.recording(tmp_path / "a")
        self.fit(self.callback(monitor), 1, 6, tmp_path, **settings)
        with pytest.warns(DataWarning, match="its first rounds were not seen: this run is not re"):
            self.fit(
                self.callback(monitor),
                1,
                6,
                tmp_path,
                checkpoint=str(tmp_path / "checkpoint-3"),
                **settings,
            )
        assert monitor.steps == 3
        self.fit(self.callback(monitor), 1, 6, tmp_path, **settings)
        assert RecordedRuns.load(tmp_path / "a").trajectory.known("signals").shape[:2] == (2, 4)

    @pytest.mark.parametrize("metric", [None, "eval_loss"])
    def test_a_training_without_a_round_is_reported(
        self, metric: str | None, tmp_path: Path
    ) -> None:
        callback = self.callback(HaltingMonitor.recording(tmp_path / "a"), metric)
        known = f"no metric '{metric or 'loss'}' was logged, but "
        with pytest.warns(DataWarning, match=known):
            self.fit(callback, 0, 2, tmp_path, logging_steps=1 if metric else 50)
