"""Callbacks for Lightning and transformers, with the real packages."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from haltwise import HaltingMonitor
from haltwise.recordings.runs import RecordedRuns
from haltwise.training import train_monitor

pytestmark = pytest.mark.filterwarnings("ignore")  # their own


def data(seed: int) -> torch.utils.data.TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 3, generator=generator)
    return torch.utils.data.TensorDataset(x, x.sum(1, keepdim=True))


def plain_loop(monitor: HaltingMonitor, seed: int, num: int) -> nn.Module:
    """What the trainers are told to do: a step of SGD on all data a round."""
    model, (x, y) = new_model(seed), data(seed).tensors
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    monitor.start(model)
    for _ in range(num):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        monitor.update(loss, model)
        if monitor.should_stop:
            break
    monitor.close()
    return model


def new_model(seed: int) -> nn.Linear:
    model = nn.Linear(3, 1)
    generator = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        nn.init.normal_(param, generator=generator)
    return model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(100):
        plain_loop(HaltingMonitor.recording(folder / "runs"), seed, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train_monitor(folder / "runs", folder / "run", price=0.03, head_steps=100)


def assert_same_signals(first: Path, second: Path) -> None:
    one, other = (RecordedRuns.load(path).recording for path in (first, second))
    torch.testing.assert_close(one.signals, other.signals, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(one.excess, other.excess, rtol=1e-4, atol=1e-4)


class TestLightning:
    def fit(self, callback: Any, seed: int, num: int, folder: Path, **settings: Any) -> Any:
        lightning = pytest.importorskip("lightning.pytorch")

        class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.model = new_model(seed)

            def training_step(self, batch: list[Tensor], _: int) -> Tensor:
                return nn.functional.mse_loss(self.model(batch[0]), batch[1])

            def validation_step(self, batch: list[Tensor], _: int) -> None:
                loss = nn.functional.mse_loss(self.model(batch[0]), batch[1])
                self.log("val_loss", loss)
                self.log("val_double", 2 * loss)

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=0.2)

        trainer = lightning.Trainer(
            max_epochs=num,
            accelerator="cpu",
            callbacks=[callback],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            **{"enable_checkpointing": False, **settings},
        )
        loader = torch.utils.data.DataLoader(data(seed), batch_size=32)
        trainer.fit(Module(), loader, loader, ckpt_path=None)
        return trainer

    def callback(self, *arguments: Any, **settings: Any) -> Any:
        pytest.importorskip("lightning")
        from haltwise.interfaces.lightning import HaltingCallback

        return HaltingCallback(*arguments, **settings)

    def test_it_records_and_stops_as_a_plain_loop(self, trained: Path, tmp_path: Path) -> None:
        self.fit(self.callback(HaltingMonitor.recording(tmp_path / "a")), 500, 8, tmp_path)
        plain_loop(HaltingMonitor.recording(tmp_path / "b"), 500, 8)
        assert_same_signals(tmp_path / "a", tmp_path / "b")
        stops = []
        for seed in range(500, 504):
            expected, monitor = HaltingMonitor(trained), HaltingMonitor(trained)
            plain_loop(expected, seed, 20)
            trainer = self.fit(self.callback(monitor), seed, 20, tmp_path)
            assert trainer.global_step == monitor.steps == expected.steps
            stops.append(monitor.steps)
        assert len(set(stops)) > 1

    def test_a_round_may_be_an_epoch_with_its_validation(self, tmp_path: Path) -> None:
        monitor = HaltingMonitor.recording(tmp_path / "a")
        self.fit(self.callback(monitor, "val_loss", score="val_double"), 0, 5, tmp_path)
        found = RecordedRuns.load(tmp_path / "a").recording
        assert found.num_steps == 4
        torch.testing.assert_close(found.excess, 2 * found.loss)
        with pytest.raises(
            ValueError, match=r"no metric 'x' was logged; there are val_double, val"
        ):
            self.fit(self.callback(HaltingMonitor.recording(tmp_path), "x"), 0, 1, tmp_path)
        with pytest.raises(ValueError, match="a score needs a metric"):
            self.callback(monitor, score="val_loss")

    def test_its_state_is_in_the_checkpoint(self, trained: Path, tmp_path: Path) -> None:
        callback = self.callback(HaltingMonitor(trained))
        trainer = self.fit(callback, 500, 2, tmp_path)
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        other = self.callback(HaltingMonitor(trained))
        saved = torch.load(tmp_path / "x.ckpt", weights_only=False)["callbacks"]
        other.load_state_dict(saved[other.state_key])
        assert other.monitor.steps == 2


class TestTransformers:
    def fit(self, callback: Any, seed: int, num: int, folder: Path, **settings: Any) -> Any:
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")

        class Model(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.model = new_model(seed)

            def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
                said = self.model(x)
                return {"loss": nn.functional.mse_loss(said, labels), "logits": said}

        x, y = data(seed).tensors
        rows = [{"x": x[row], "labels": y[row]} for row in range(32)]
        arguments = transformers.TrainingArguments(
            output_dir=str(folder),
            max_steps=num,
            per_device_train_batch_size=32,
            per_device_eval_batch_size=32,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            disable_tqdm=True,
            **settings,
        )
        model = Model()
        trainer = transformers.Trainer(
            model=model,
            args=arguments,
            train_dataset=rows,
            eval_dataset=rows,
            callbacks=[callback],
            optimizers=(torch.optim.SGD(model.parameters(), lr=0.2), None),
        )
        trainer.train()
        return trainer

    def callback(self, *arguments: Any, **settings: Any) -> Any:
        pytest.importorskip("transformers")
        from haltwise.interfaces.transformers import HaltingCallback

        return HaltingCallback(*arguments, **settings)

    def test_it_records_and_stops_as_a_plain_loop(self, trained: Path, tmp_path: Path) -> None:
        self.fit(self.callback(HaltingMonitor.recording(tmp_path / "a")), 500, 8, tmp_path)
        plain_loop(HaltingMonitor.recording(tmp_path / "b"), 500, 8)
        assert_same_signals(tmp_path / "a", tmp_path / "b")
        expected, monitor = HaltingMonitor(trained), HaltingMonitor(trained)
        plain_loop(expected, 500, 20)
        trainer = self.fit(self.callback(monitor), 500, 20, tmp_path)
        assert trainer.state.global_step == monitor.steps == expected.steps < 20

    def test_a_round_may_be_an_evaluation(self, tmp_path: Path) -> None:
        monitor = HaltingMonitor.recording(tmp_path / "a")
        callback = self.callback(monitor, "eval_loss", score="eval_runtime")
        trainer = self.fit(
            callback, 0, 8, tmp_path, eval_strategy="steps", eval_steps=2, eval_on_start=True
        )
        found = RecordedRuns.load(tmp_path / "a").recording
        assert found.num_steps == 3
        trainer.evaluate()  # after the training: no round
        assert monitor.steps == 4
        callback = self.callback(HaltingMonitor.recording(tmp_path / "b"), "x")
        with pytest.raises(ValueError, match=r"the evaluation has no 'x', but .*eval_loss"):
            self.fit(callback, 0, 2, tmp_path, eval_strategy="steps", eval_steps=2)
