import ast
import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_explain import loggers as sinks
from lightning_explain.core.report import Publication
from lightning_explain.core.run_info import RunInfo
from lightning_explain.loggers.choose import ScalarSink, sinks_for
from lightning_explain.loggers.files import FilesSink
from lightning_explain.loggers.tensorboard import TensorBoardSink
from lightning_explain.loggers.wandb import WandbSink


class MyTensorBoardLogger(TensorBoardLogger):
    pass


def kinds(loggers: Sequence[Logger], directory: Path) -> list[type]:
    return [type(sink) for sink in sinks_for(loggers, directory)]


def test_each_logger_has_the_sink_of_its_type(tmp_path: Path) -> None:
    tensorboard = [TensorBoardLogger(tmp_path), MyTensorBoardLogger(tmp_path)]
    assert kinds([*tensorboard, WandbLogger(save_dir=tmp_path)], tmp_path) == [
        TensorBoardSink,
        TensorBoardSink,
        WandbSink,
    ]


def test_any_other_logger_gets_scalars_and_there_is_one_set_of_files(tmp_path: Path) -> None:
    loggers = [CSVLogger(tmp_path), TensorBoardLogger(tmp_path), CSVLogger(tmp_path)]
    assert kinds(loggers, tmp_path) == [ScalarSink, TensorBoardSink, ScalarSink, FilesSink]


def test_no_logger_means_files(tmp_path: Path) -> None:
    trainer = Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path)
    assert kinds(trainer.loggers, tmp_path) == [FilesSink]


def test_a_dummy_logger_gets_nothing_at_all(tmp_path: Path) -> None:
    assert hasattr(DummyLogger(), "add_image")
    assert kinds([DummyLogger()], tmp_path) == []
    trainer = Trainer(fast_dev_run=True, accelerator="cpu", enable_progress_bar=False, default_root_dir=tmp_path)
    assert kinds(trainer.loggers, tmp_path) == []
    assert kinds([DummyLogger(), CSVLogger(tmp_path)], tmp_path) == [ScalarSink, FilesSink]


def test_making_sinks_starts_no_experiment(tmp_path: Path) -> None:
    loggers = [TensorBoardLogger(tmp_path), CSVLogger(tmp_path)]
    sinks_for(loggers, tmp_path / "explain")
    assert not list(tmp_path.iterdir())


def test_another_logger_is_given_each_scalar_at_its_step(tmp_path: Path, publish: Callable[..., Publication]) -> None:
    logger = CSVLogger(tmp_path, name="csv")
    publications = [publish(step=s, epoch=e) for e, s in enumerate((4, 8))]
    for sink in sinks_for([logger], tmp_path / "explain"):
        sink.layout([RunInfo("explain", charts={"infidelity": ["explain/infidelity/ig"]})])
        for publication in publications:
            sink.write(publication)
    logger.save()
    with open(logger.experiment.metrics_file_path, newline="") as file:
        found = [{k: float(v) for k, v in sample.items()} for sample in csv.DictReader(file)]
    assert found == [{**p.charted, "step": p.step} for p in publications]
    assert (tmp_path / "explain" / "ig" / "step=00000008.png").exists()


def imports(nodes: list[ast.stmt]) -> set[str]:
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}


def test_a_logger_library_is_imported_only_where_it_is_used() -> None:
    files = list(Path(str(sinks.__file__)).parent.glob("*.py"))
    assert len(files) == 12
    for file in files:
        found = imports(ast.parse(file.read_text(encoding="utf-8")).body)
        assert not [
            name
            for name in found
            if name.startswith(("wandb", "mlflow", "comet_ml", "tensorboard", "torch.utils.tensorboard"))
        ]


def test_an_error_of_a_logger_is_not_hidden(tmp_path: Path, publish: Callable[..., Publication]) -> None:
    class BrokenLogger(CSVLogger):
        def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
            raise ConnectionError("server gone")

    with pytest.raises(ConnectionError, match="server gone"):
        sinks_for([BrokenLogger(tmp_path)], tmp_path)[0].write(publish())
