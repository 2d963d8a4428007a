import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import pytorch_lightning
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from disk import full_disk
from lightning_explain.core.report import Publication
from lightning_explain.loggers.event_file import crc32c
from lightning_explain.loggers.tensorboard import TensorBoardSink

CHARTS = {
    "explain": {
        "infidelity": ["explain/infidelity/ig"],
        "nonfinite": ["explain_run/nonfinite/ig", "explain_run/nonfinite/cam"],
    },
    "second": {"odd": ["second/a.b(c)/ig[0]"]},
}
LAST_TAG = "second/caption/text_summary"
STEPS = (0, 10, 2**33)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, publish: Callable[..., Publication]) -> SimpleNamespace:
    """A run in which one monitor wrote three explanations and another one."""
    directory = tmp_path_factory.mktemp("tensorboard")
    logger = TensorBoardLogger(directory, name="", version="run")
    sink = TensorBoardSink(logger)
    sink.layout(CHARTS)
    publications = [publish(step=step, epoch=epoch) for epoch, step in enumerate(STEPS)]
    second = publish(
        step=10,
        name="second",
        scalars={"second/a.b(c)/ig[0]": 2.5, "second/aXb(c)/ig[0]": 1.0, "second/a.b(c)/ig[0]_more": 1.0},
        methods=("m",),
    )
    for publication in [*publications, second]:
        sink.write(publication)
    return SimpleNamespace(directory=directory, publications=publications, second=second)


@pytest.fixture(scope="module")
def events(written: SimpleNamespace) -> EventAccumulator:
    return EventAccumulator(
        str(written.directory / "run"), size_guidance=dict.fromkeys(["scalars", "images", "tensors"], 0)
    ).Reload()


@pytest.fixture(scope="module")
def server(written: SimpleNamespace) -> Iterator[str]:
    """Address of a TensorBoard that has read the run."""
    log = written.directory / "server.txt"
    options = f"--logdir={written.directory} --host=127.0.0.1 --port=0".split()
    command = [sys.executable, "-m", "tensorboard.main", *options]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            url = _wait(lambda: re.search(r"http://127\.0\.0\.1:\d+", log.read_text()), log)[0]
            _wait(lambda: LAST_TAG in get(url, "text/tags").get("run", []), log)
            yield url
        finally:
            process.terminate()


def _wait(condition: Callable[[], Any], log: Path) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.1)
    return pytest.fail(f"TensorBoard did not answer:\n{log.read_text()}")


def fetch(url: str, plugin_route: str, **query: str | int) -> bytes:
    address = f"{url}/data/plugin/{plugin_route}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(address, timeout=30) as answer:
        return bytes(answer.read())


def get(url: str, plugin_route: str, **query: str | int) -> Any:
    return json.loads(fetch(url, plugin_route, **query))


def pixels(blob: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(blob)))


def test_each_scalar_has_one_point_an_explanation_at_its_step(
    written: SimpleNamespace, events: EventAccumulator
) -> None:
    for tag in written.publications[0].charted:
        expected = [(p.step, np.float32(p.charted[tag])) for p in written.publications]
        assert [(e.step, e.value) for e in events.Scalars(tag)] == expected
    assert set(events.Tags()["scalars"]) == {*written.publications[0].charted, *written.second.charted}


def test_each_method_has_one_picture_an_explanation_under_a_stable_tag(
    written: SimpleNamespace, events: EventAccumulator
) -> None:
    assert set(events.Tags()["images"]) == {"explain/ig", "explain/cam", "second/m"}
    for tag in ("explain/ig", "explain/cam"):
        found = events.Images(tag)
        assert [e.step for e in found] == list(STEPS)
        for event, publication in zip(found, written.publications, strict=True):
            assert np.array_equal(pixels(event.encoded_image_string), publication.pictures[tag])


def test_the_caption_is_a_text_at_each_step(written: SimpleNamespace, events: EventAccumulator) -> None:
    found = events.Tensors("explain/caption/text_summary")
    assert [(e.step, e.tensor_proto.string_val[0].decode()) for e in found] == [
        (p.step, p.caption) for p in written.publications
    ]


def test_the_server_serves_the_scalars(written: SimpleNamespace, server: str) -> None:
    found = get(server, "scalars/scalars", run="run", tag="explain/infidelity/ig")
    assert [(step, value) for _, step, value in found] == [
        (p.step, p.scalars["explain/infidelity/ig"]) for p in written.publications
    ]


def test_the_server_serves_every_picture_pixel_by_pixel(written: SimpleNamespace, server: str) -> None:
    assert get(server, "images/tags")["run"].keys() == {"explain/ig", "explain/cam", "second/m"}
    for tag in ("explain/ig", "explain/cam"):
        listed = get(server, "images/images", run="run", tag=tag, sample=0)
        assert [entry["step"] for entry in listed] == list(STEPS)
        for entry, publication in zip(listed, written.publications, strict=True):
            query = dict(urllib.parse.parse_qsl(entry["query"]))
            assert np.array_equal(pixels(fetch(server, "images/individualImage", **query)), publication.pictures[tag])


def test_the_server_serves_the_captions(written: SimpleNamespace, server: str) -> None:
    found = get(server, "text/text", run="run", tag="explain/caption/text_summary")
    assert [entry["step"] for entry in found] == list(STEPS)
    assert all(p.caption in entry["text"] for entry, p in zip(found, written.publications, strict=True))


def test_the_layout_has_a_category_a_monitor_and_a_chart_a_metric(server: str) -> None:
    categories = get(server, "custom_scalars/layout")["category"]
    assert {c["title"]: [chart["title"] for chart in c["chart"]] for c in categories} == {
        k: list(v) for k, v in CHARTS.items()
    }


def test_each_chart_shows_exactly_its_tags(server: str) -> None:
    for category in get(server, "custom_scalars/layout")["category"]:
        for chart in category["chart"]:
            # As TensorBoard's page asks for them.
            tags = chart["multiline"]["tag"]
            expression = tags[0] if len(tags) == 1 else "|".join(f"({tag})" for tag in tags)
            found = get(server, "custom_scalars/scalars", run="run", tag=expression)
            assert found["regex_valid"]
            assert sorted(found["tag_to_events"]) == sorted(CHARTS[category["title"]][chart["title"]])


def test_what_is_written_is_on_disk_at_once_and_nothing_stays_open(
    tmp_path: Path, publish: Callable[..., Publication]
) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    sink, before = TensorBoardSink(logger), (threading.active_count(), len(os.listdir("/proc/self/fd")))
    for step in range(20):
        sink.write(publish(step=step))
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) == before
    (file,) = (tmp_path / "run").iterdir()
    assert [e.step for e in read(tmp_path / "run").Images("explain/ig")] == [*range(20)]
    assert file.name < "events.out.tfevents.1", "what reads one file after the other ends at the logger's own"


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance=dict.fromkeys(["scalars", "images", "tensors"], 0)).Reload()


def test_writing_goes_on_after_the_logger_was_closed(tmp_path: Path, publish: Callable[..., Publication]) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    sink = TensorBoardSink(logger)
    sink.write(publish(step=1))
    logger.log_metrics({"loss": 1.0}, step=1)
    logger.finalize("success")
    sink.write(publish(step=2))
    assert [e.step for e in read(tmp_path / "run").Images("explain/ig")] == [1, 2]


WHERE: dict[str, dict[str, Any]] = {
    "a version": {"name": "some"},
    "a folder below": {"name": "some", "version": "three", "sub_dir": "deeper"},
    "no name": {"name": "", "version": 7},
}


@pytest.mark.parametrize("kind", [TensorBoardLogger, pytorch_lightning.loggers.TensorBoardLogger])
@pytest.mark.parametrize("given", WHERE.values(), ids=WHERE.keys())
def test_what_a_logger_writes_and_what_we_write_is_one_run(
    kind: Any, given: dict[str, Any], tmp_path: Path, publish: Callable[..., Publication]
) -> None:
    logger = kind(tmp_path, **given)
    logger.log_metrics({"loss": 1.0}, step=1)
    sink = TensorBoardSink(logger)
    sink.write(publish(step=1))
    logger.log_metrics({"loss": 2.0}, step=2)
    logger.finalize("success")
    # The run is resumed.
    logger = kind(tmp_path, **{**given, "version": logger.version})
    TensorBoardSink(logger).write(publish(step=3))
    (folder,) = {path.parent for path in tmp_path.rglob("events*")}
    found = read(folder)
    assert [e.step for e in found.Scalars("loss")] == [1, 2]
    assert [e.step for e in found.Scalars("explain_run/nonfinite/ig")] == [1, 3]
    assert [e.step for e in found.Images("explain/ig")] == [1, 3]


def test_a_remote_run_has_a_file_for_each_explanation(tmp_path: Path, publish: Callable[..., Publication]) -> None:
    remote = fsspec.filesystem("memory")
    sink = TensorBoardSink(TensorBoardLogger("memory://bucket", version="one"))
    for step in (1, 2):
        sink.write(publish(step=step))
    files = remote.ls("/bucket/lightning_logs/one", detail=False)
    assert len(files) == 2
    for file in files:
        (tmp_path / Path(file).name).write_bytes(remote.cat(file))
    assert [e.step for e in read(tmp_path).Images("explain/ig")] == [1, 2]


def test_a_failed_write_leaves_whole_records_and_the_next_one_begins_another_file(
    tmp_path: Path, publish: Callable[..., Publication]
) -> None:
    sink = TensorBoardSink(TensorBoardLogger(tmp_path, name="", version="run"))
    sink.write(publish(step=1))
    (first,) = (tmp_path / "run").iterdir()
    before = first.read_bytes()
    with (
        full_disk(len(before) + 100),
        pytest.raises(OSError, match=r"File too large|100 of \d+ bytes could be written"),
    ):
        sink.write(publish(step=2))
    assert first.read_bytes() == before
    with full_disk(100), pytest.raises(OSError, match=r"File too large|100 of \d+ bytes could be written"):
        sink.write(publish(step=3))
    assert [*(tmp_path / "run").iterdir()] == [first], "nothing of a file that has nothing whole"
    sink.write(publish(step=4))
    assert len([*(tmp_path / "run").iterdir()]) == 2
    first.unlink()
    sink.write(publish(step=5))
    assert [e.step for e in read(tmp_path / "run").Images("explain/ig")] == [4, 5]


def test_the_last_bytes_of_a_disk_are_left_to_the_training(
    tmp_path: Path, publish: Callable[..., Publication], monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = TensorBoardSink(TensorBoardLogger(tmp_path, name="", version="run"))
    for total, left in ((2**40, 64 * 2**20), (2**24, 2**21)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, t=total, f=left: SimpleNamespace(total=t, free=f + 100))
        with pytest.raises(OSError, match=f"{left + 100:,} bytes are free, of which {left:,} are left to the training"):
            sink.write(publish(step=2))
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=0, free=0))
    sink.write(publish(step=3))
    assert [e.step for e in read(tmp_path / "run").Images("explain/ig")] == [3]


@pytest.mark.parametrize("count", [4, 255, 256, 257, 1000])
def test_the_checksum_is_that_of_tensorboard(count: int) -> None:
    data = np.random.default_rng(count).integers(0, 256, count, dtype=np.uint8).tobytes()
    assert crc32c(data) == pywrap_tensorflow.crc32c(data)
