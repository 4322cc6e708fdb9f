"""The callback for Lightning, with the real package."""

from pathlib import Path
from typing import Any

import pytest
import torch
from line_fits import assert_same_signals, line_data, new_line, plain_loop
from torch import Tensor, nn

from haltwise import HaltingMonitor
from haltwise.recordings.runs import RecordedRuns

pytestmark = pytest.mark.filterwarnings("ignore")  # their own


class TestLightning:
    def fit(self, callback: Any, seed: int, num: int, folder: Path, **settings: Any) -> Any:
        lightning = pytest.importorskip("lightning.pytorch")

        class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                super().__init__()
                self.model = new_line(seed)

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
        loader = torch.utils.data.DataLoader(line_data(seed), batch_size=32)
        trainer.fit(Module(), loader, loader, ckpt_path=None)
        return trainer

    def callback(self, *arguments: Any, **settings: Any) -> Any:
        pytest.importorskip("lightning")
        from haltwise.interfaces.lightning import HaltingCallback

        return HaltingCallback(*arguments, **settings)

    def test_it_records_and_stops_as_a_plain_loop(self, sgd_stopper: Path, tmp_path: Path) -> None:
        self.fit(self.callback(HaltingMonitor.recording(tmp_path / "a")), 500, 8, tmp_path)
        plain_loop(HaltingMonitor.recording(tmp_path / "b"), 500, 8)
        assert_same_signals(tmp_path / "a", tmp_path / "b")
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

    def test_its_state_is_in_the_checkpoint(self, sgd_stopper: Path, tmp_path: Path) -> None:
        callback = self.callback(HaltingMonitor(sgd_stopper))
        trainer = self.fit(callback, 500, 2, tmp_path)
        trainer.save_checkpoint(tmp_path / "x.ckpt")
        other = self.callback(HaltingMonitor(sgd_stopper))
        saved = torch.load(tmp_path / "x.ckpt", weights_only=False)["callbacks"]
        other.load_state_dict(saved[other.state_key])
        assert other.monitor.steps == 2
