"""One line at the start says where everything goes, whatever the logger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_explain import Sink
from lightning_explain.core.report import Publication
from lightning_explain.render.page import HEIGHT, NARROW, WIDTH
from training import QUIET, fit, start_line
from training import monitor_of_digits as monitor

pytestmark = QUIET


class Mine(Sink):
    def write(self, publication: Publication) -> None:
        pass


class Shapes(Mine):
    def __init__(self) -> None:
        self.found: list[tuple[int, ...]] = []

    def write(self, publication: Publication) -> None:
        assert list(publication.files()) == list(publication.pictures)
        self.found = [picture.shape for picture in publication.pictures.values()]


class Narrow(Shapes):
    narrow_pages = True


class Numbers(Mine):
    most_pictures = 0

    @property
    def place(self) -> str:
        return "the wall"


def board(root: Path) -> TensorBoardLogger:
    return TensorBoardLogger(root, name="tb", version="one")


def table(root: Path) -> CSVLogger:
    return CSVLogger(root, name="csv", version="one")


def wandb(root: Path) -> WandbLogger:
    return WandbLogger(save_dir=root, project="p", id="abc", offline=True)


LINES: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "no logger": (
        lambda root: {"logger": False},
        "scalars and pictures go to files in ROOT/explain; reports to ROOT/explain",
    ),
    "TensorBoard": (
        lambda root: {"logger": board(root)},
        "scalars and pictures go to TensorBoard (ROOT/tb/one); reports to ROOT/tb/one/explain",
    ),
    "W&B": (
        lambda root: {"logger": wandb(root)},
        "scalars and pictures go to W&B (project p, run abc); reports to ROOT/p/abc/explain",
    ),
    "CSV": (
        lambda root: {"logger": table(root)},
        "scalars go to CSVLogger (ROOT/csv/one), files in ROOT/csv/one/explain; pictures to files in ROOT/csv/one/explain; "
        "reports to ROOT/csv/one/explain",
    ),
    "several": (
        lambda root: {"logger": [board(root), wandb(root)], "sinks": [Mine(), Numbers()]},
        "scalars go to TensorBoard (ROOT/tb/one), W&B (project p, run abc), Mine, the wall; "
        "pictures to TensorBoard (ROOT/tb/one), W&B (project p, run abc), Mine; reports to ROOT/tb/one/explain",
    ),
    "a dummy": (
        lambda root: {"logger": DummyLogger()},
        "nothing is written: this is a fast_dev_run, or its logger is a DummyLogger",
    ),
    "fast_dev_run": (
        lambda root: {"logger": board(root), "fast_dev_run": True, "sinks": [Mine()]},
        "nothing is written: this is a fast_dev_run, or its logger is a DummyLogger",
    ),
}


@pytest.mark.parametrize("what", LINES)
def test_a_line_at_the_start_says_where_everything_goes(what: str, tmp_path: Path) -> None:
    arguments, line = LINES[what]
    assert start_line(tmp_path, **arguments(tmp_path)) == line.replace("ROOT", str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_the_line_says_what_is_uploaded_and_what_is_not_kept(tmp_path: Path) -> None:
    for arguments, end in (
        ({"log_artifacts": True}, f"; reports to {tmp_path / 'explain'} (uploaded at the end)"),
        ({"save_reports": False}, f"files in {tmp_path / 'explain'}"),
    ):
        watch = monitor(**arguments)
        watch._publisher.open(fit(tmp_path, fast_dev_run=False, max_epochs=0))
        assert watch._publisher.destination.endswith(end)


def test_to_upload_what_is_not_kept_is_refused() -> None:
    with pytest.raises(ValueError, match=r"log_artifacts=True uploads .* save_reports=False writes none"):
        monitor(log_artifacts=True, save_reports=False)


def test_each_sink_gets_pages_of_the_width_it_takes(tmp_path: Path) -> None:
    wide, narrow = Shapes(), Narrow()
    fit(tmp_path, monitor(sinks=[wide, narrow], metrics=[]))
    assert set(wide.found) == {(HEIGHT, WIDTH, 3)}
    assert set(narrow.found) == {(HEIGHT, NARROW, 3)}
    assert len(narrow.found) == 2 * len(wide.found), "two of the four samples on a page"
