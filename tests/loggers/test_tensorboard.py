import io
import json
import re
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_explain.core.report import Publication
from lightning_explain.loggers.tensorboard import TensorBoardSink

CHARTS = {
    "explain": {
        "infidelity": ["explain/infidelity/ig"],
        "nonfinite": ["explain/nonfinite/ig", "explain/nonfinite/cam"],
    },
    "second": {"odd": ["second/a.b(c)/ig[0]"]},
}
LAST_TAG = "second/caption/text_summary"
STEPS = (0, 10, 2**33)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, publish: Callable[..., Publication]) -> Iterator[SimpleNamespace]:
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
    # Not finalized: a run that is killed here must have everything on disk.
    yield SimpleNamespace(directory=directory, publications=publications, second=second)
    logger.experiment.close()


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
    for tag in written.publications[0].scalars:
        expected = [(p.step, np.float32(p.scalars[tag])) for p in written.publications]
        assert [(e.step, e.value) for e in events.Scalars(tag)] == expected
    assert set(events.Tags()["scalars"]) == {*written.publications[0].scalars, *written.second.scalars}


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


def test_what_is_written_is_on_disk_at_once(tmp_path: Path, publish: Callable[..., Publication]) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    sink = TensorBoardSink(logger)
    for step in range(20):
        sink.write(publish(step=step))
        (file,) = (tmp_path / "run").glob("events*")
        size = file.stat().st_size
        logger.experiment.flush()
        assert file.stat().st_size == size
    logger.experiment.close()


def test_writing_goes_on_after_the_logger_was_closed(tmp_path: Path, publish: Callable[..., Publication]) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    sink = TensorBoardSink(logger)
    sink.write(publish(step=1))
    logger.finalize("success")
    sink.write(publish(step=2))
    logger.experiment.close()
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"images": 0}).Reload()
    assert [e.step for e in events.Images("explain/ig")] == [1, 2]
