"""``lightning.pytorch`` and ``pytorch_lightning`` have different classes of one name: the monitor serves both alike."""

from __future__ import annotations

import logging
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning_utilities.core import rank_zero
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_explain import Alert, ExplanationMonitor, load_reports, replay
from lightning_explain import loggers as sinks
from lightning_explain.loggers.choose import sinks_for
from lightning_explain.loggers.packages import in_both
from lightning_explain.monitor import lightning as trainers
from lightning_explain.monitor import metric_watchers as watchers
from lightning_explain.monitor.loaders import listed
from training import QUIET, loader, loaders, monitor, report_of

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")]
PACKAGES = pytest.mark.parametrize("pl", [lightning.pytorch, pytorch_lightning], ids=lambda pl: pl.__name__)
TAG = "explain/infidelity/saliency"


def module(pl: ModuleType) -> Any:
    class Digits(pl.LightningModule):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

        def forward(self, x: Tensor) -> Tensor:
            self.log("seen", float(len(x)))
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

        def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            return (batch[0] + 100 if self.trainer.training else batch[0], batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    return Digits()


def trainer(pl: ModuleType, root: Path, callbacks: Any, **arguments: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": 2}
    machine = {"default_root_dir": root, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1}
    return pl.Trainer(callbacks=callbacks, **{**quiet, **machine, **arguments})


@PACKAGES
def test_pictures_scores_and_checkpoints_come_with_each_package(
    pl: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(rank_zero, "log", logging.getLogger("heard"))
    watch = monitor()
    best = pl.callbacks.ModelCheckpoint(tmp_path / "kept", monitor=TAG, mode="min")
    stop = pl.callbacks.EarlyStopping(TAG, patience=5)
    logs = [pl.loggers.TensorBoardLogger(tmp_path, name="tb"), pl.loggers.CSVLogger(tmp_path, name="csv")]
    with caplog.at_level(logging.INFO):
        finished = trainer(pl, tmp_path, [watch, stop, best], logger=logs)
        finished.fit(module(pl), **loaders())
    assert isinstance(watch, pl.Callback)
    assert [type(sink) for sink in watch._publisher._sinks.values()] == [
        sinks.tensorboard.TensorBoardSink,
        sinks.choose.ScalarSink,
        sinks.files.FilesSink,
    ]
    assert f"pictures to TensorBoard ({tmp_path / 'tb' / 'version_0'}), files in {tmp_path}" in caplog.text
    assert list(tmp_path.glob("tb/version_0/explain/saliency/*.png"))
    assert finished.callback_metrics[TAG] == report_of(watch).scalars()["infidelity/saliency"]
    assert best.best_model_score is not None
    # The samples are those of validation, not augmented ones, and what the model logs of them is not logged.
    assert watch.probe is not None
    assert float(watch.probe.inputs.max()) < 100  # type: ignore[union-attr]
    state = torch.load(best.best_model_path, weights_only=True)["callbacks"]
    assert state[watch.state_key]["schedule"]
    again = monitor()
    trainer(pl, tmp_path, [again], logger=False, max_epochs=3).fit(
        module(pl), **loaders(), ckpt_path=best.best_model_path
    )
    assert report_of(again).epoch == 2
    torch.testing.assert_close(again.probe.inputs, watch.probe.inputs)  # type: ignore[union-attr]


@PACKAGES
def test_a_single_callback_and_a_validation_are_taken(pl: ModuleType, tmp_path: Path) -> None:
    watch = monitor()
    trainer(pl, tmp_path, watch, logger=False).validate(module(pl), loader(100, 24), verbose=False)
    assert report_of(watch).stage == "validate"


@PACKAGES
def test_a_finished_training_is_replayed(pl: ModuleType, tmp_path: Path) -> None:
    content = {"state_dict": module(pl).state_dict(), "epoch": 1, "global_step": 8}
    torch.save(content, tmp_path / "it.ckpt")
    done = replay(tmp_path, module(pl), loader(100, 24), monitor(probe=[0]))
    assert [report.step for report in load_reports(done.folder)] == [8]
    assert list(tmp_path.glob("events.out.tfevents.*"))


@PACKAGES
def test_what_the_run_consists_of_is_recognised(pl: ModuleType, tmp_path: Path) -> None:
    plain = partial(trainer, pl, tmp_path)
    dummy = pl.loggers.logger.DummyLogger()
    offline = pl.loggers.WandbLogger(save_dir=tmp_path, offline=True)
    assert [type(sink).__name__ for sink in sinks_for([dummy, offline], tmp_path)] == ["WandbSink"]
    assert plain([watch := monitor()], fast_dev_run=True).fit(module(pl), **loaders()) is None
    assert watch._publisher._sinks == {}
    both = pl.utilities.CombinedLoader([loader(), loader(100, 8)])
    assert len(listed(both)) == 2
    with pytest.raises(ValueError, match="has no WandbLogger"):
        plain([monitor(alerts=[Alert("infidelity/saliency", above=1, action="wandb")])]).fit(module(pl), **loaders())

    class Swaps(pl.Callback):  # type: ignore[misc,name-defined]
        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            pass

    one = plain([pl.callbacks.EarlyStopping("x"), monitor()], logger=False)
    two = plain([Swaps()], logger=False)
    for asked, answer in ((one, False), (two, True)):
        asked.strategy.connect(module(pl))
        assert trainers.may_swap_weights(asked) is answer
    found = watchers.watchers_of(plain([pl.callbacks.ModelCheckpoint(monitor=TAG)]), "explain", ["explain"])
    assert watchers.missing(found) == [key for _, key in found] == [TAG]
    for kind, allowed in (("DeepSpeedStrategy", False), ("FSDPStrategy", True), ("ModelParallelStrategy", True)):
        strategy = object.__new__(getattr(pl.strategies, kind))
        owner = type("Owner", (), {"strategy": strategy, "model": abs})()
        if allowed:
            trainers.check_strategy(owner)
        else:
            with pytest.raises(ValueError, match="cannot explain under DeepSpeedStrategy"):
                trainers.check_strategy(owner)
        assert (trainers.forward_of(owner) is not None) is (kind == "FSDPStrategy")


def test_only_what_is_imported_is_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = lightning.pytorch.loggers.CSVLogger
    assert in_both(logger) == (logger, pytorch_lightning.loggers.CSVLogger)
    monkeypatch.delitem(sys.modules, logger.__module__.replace("lightning.pytorch", "pytorch_lightning"))
    assert in_both(logger) == (logger,)


def test_a_class_made_before_the_package_is_imported_joins_it() -> None:
    assert issubclass(ExplanationMonitor, (lightning.pytorch.Callback, pytorch_lightning.Callback))
