import io
import os
import shutil
import sys
import threading
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fsspec
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from numpy.typing import NDArray
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from disk import full_disk
from lightning_explain.core.report import Publication
from lightning_explain.core.run_info import RunInfo
from lightning_explain.loggers.event_file import crc32c
from lightning_explain.loggers.tensorboard import TensorBoardSink
from serving import fetch, get, post, serving, sessions

CHARTS = {
    "explain": {
        "infidelity": ["explain/infidelity/ig"],
        "nonfinite": ["explain_run/nonfinite/ig", "explain_run/nonfinite/cam"],
    },
    "second": {"odd": ["second/a.b(c)/ig[0]"]},
}
MARGINS = {
    "explain, standard errors": {
        "infidelity/ig": [
            "explain/infidelity/ig",
            *(f"explain_margins/infidelity/ig/{end}" for end in ("lower", "upper")),
        ]
    }
}
RUNS = [
    RunInfo(
        "explain",
        settings={"target": "predicted", "at_start": True, "every_n_epochs": 2, "panels": ["a"]},
        changed=["target", "at_start", "panels"],
        methods={"ig": "IntegratedGradients(n_steps=8)", "cam": "LayerGradCam(layer='a|b')"},
        metrics={"infidelity": "Infidelity()"},
        charts=CHARTS["explain"],
        with_errors=["infidelity", "infidelity_relative"],
        how_to_read={"infidelity": "Lower is better."},
        findings={"cam": "warned: its layer is small."},
        left_out={"occlusion": "it is too slow."},
        cost="an explanation takes a second",
        objectives=["val_loss", "explain/infidelity/ig"],
    ),
    RunInfo("second", methods={"m": "Saliency()"}, charts=CHARTS["second"], objectives=["val_loss"]),
]
LAST_TAG = "second_about/remarks/text_summary"
STEPS = (0, 10, 2**33)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, publish: Callable[..., Publication]) -> SimpleNamespace:
    """A run in which one monitor wrote three explanations and another one."""
    directory = tmp_path_factory.mktemp("tensorboard")
    logger = TensorBoardLogger(directory, name="", version="run")
    sink = TensorBoardSink(logger)
    for run in RUNS:
        sink.begin(run)
    errors = {"explain/infidelity/ig": 0.25}
    publications = [replace(publish(step=step, epoch=epoch), errors=errors) for epoch, step in enumerate(STEPS)]
    second = publish(
        step=10,
        name="second",
        scalars={"second/a.b(c)/ig[0]": 2.5, "second/aXb(c)/ig[0]": 1.0, "second/a.b(c)/ig[0]_more": 1.0},
        methods=("m",),
    )
    for publication in [*publications, second]:
        sink.write(publication)
    _write_page(TensorBoardLogger(directory, name="", version="page"), publish(step=3))
    return SimpleNamespace(directory=directory, publications=publications, second=second)


def _write_page(logger: TensorBoardLogger, publication: Publication) -> None:
    """A run with a page for all monitors. TensorBoard's hyperparameters fail at steps from 2**31 on, which the other run has."""
    logger.log_hyperparams({"lr": 0.1, "net": {"width": 8, "name": "wide"}})
    sink = TensorBoardSink(logger)
    sink.layout(RUNS)
    sink.write(publication)
    logger.log_metrics({"val_loss": 0.5}, step=20)
    logger.finalize("success")


@pytest.fixture(scope="module")
def events(written: SimpleNamespace) -> EventAccumulator:
    return EventAccumulator(
        str(written.directory / "run"), size_guidance=dict.fromkeys(["scalars", "images", "tensors"], 0)
    ).Reload()


@pytest.fixture(scope="module")
def server(written: SimpleNamespace) -> Iterator[str]:
    """Address of a TensorBoard that has read the run."""
    with serving(written.directory, "run", LAST_TAG) as url:
        yield url


def pixels(blob: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(blob)))


def test_each_scalar_has_one_point_an_explanation_at_its_step(
    written: SimpleNamespace, events: EventAccumulator
) -> None:
    for tag in written.publications[0].charted:
        expected = [(p.step, np.float32(p.charted[tag])) for p in written.publications]
        assert [(e.step, e.value) for e in events.Scalars(tag)] == expected
    for end, sign in {"lower": -1, "upper": 1}.items():
        expected = [
            (p.step, np.float32(p.scalars["explain/infidelity/ig"] + 0.25 * sign)) for p in written.publications
        ]
        assert [(e.step, e.value) for e in events.Scalars(f"explain_margins/infidelity/ig/{end}")] == expected
    margins = {f"explain_margins/infidelity/ig/{end}" for end in ("lower", "upper")}
    ours = {*written.publications[0].charted, *written.second.charted, *margins}
    assert set(events.Tags()["scalars"]) == ours


def test_an_objective_that_is_not_charted_is_charted_under_its_key_and_no_other_is(
    tmp_path: Path, publish: Callable[..., Publication]
) -> None:
    sink, found = TensorBoardSink(TensorBoardLogger(tmp_path, name="", version="run")), publish()
    found = replace(found, uncharted=frozenset({"explain/infidelity/ig"}))
    sink.begin(RunInfo("explain", objectives=["explain/infidelity/ig", "explain/nonfinite/ig", "val_loss"]))
    sink.write(found)
    logged = set(read(tmp_path / "run").Tags()["scalars"])
    assert logged - found.charted.keys() == {"explain/infidelity/ig", "explain/nonfinite/ig"}


def test_alerts_that_fired_are_among_the_remarks(tmp_path: Path, publish: Callable[..., Publication]) -> None:
    sink, found = TensorBoardSink(TensorBoardLogger(tmp_path, name="", version="run")), publish()
    sink.write(replace(found, report=replace(found.report, scores={}), alerts=["explain/mass/ig is 0.9."]))
    (event,) = read(tmp_path / "run").Tensors("explain_about/remarks/text_summary")
    assert event.tensor_proto.string_val[0].decode() == "- Alert: explain/mass/ig is 0.9."


def test_a_run_of_tensorboardx_is_written_by_its_own_functions_and_read_by_tensorboard(
    tmp_path: Path, publish: Callable[..., Publication], monkeypatch: pytest.MonkeyPatch
) -> None:
    writers = pytest.importorskip("tensorboardX")
    logger, publications = (
        TensorBoardLogger(tmp_path, name="", version="run"),
        [publish(step=s, epoch=s) for s in (1, 2)],
    )
    logger._experiment = writers.SummaryWriter(logger.log_dir)  # what Lightning does where tensorboard is not installed
    with monkeypatch.context() as without:
        for module in ("torch.utils.tensorboard.summary", "tensorboard.compat.proto.event_pb2"):
            without.setitem(sys.modules, module, None)
        sink = TensorBoardSink(logger)
        sink.begin(RUNS[0])
        sink.layout(RUNS)
        for publication in publications:
            sink.write(replace(publication, errors={"explain/infidelity/ig": 0.25}))
    logger.experiment.add_scalar("val_loss", 0.5, 2)
    logger.finalize("success")
    found = read(tmp_path / "run")
    assert [e.value for e in found.Scalars("val_loss")] == [0.5]
    for tag in publications[0].charted:
        expected = [(p.step, np.float32(p.charted[tag])) for p in publications]
        assert [(e.step, e.value) for e in found.Scalars(tag)] == expected
    assert len(found.Scalars("explain_margins/infidelity/ig/upper")) == 2
    for event, publication in zip(found.Images("explain/ig"), publications, strict=True):
        assert np.array_equal(pixels(event.encoded_image_string), publication.pictures["explain/ig"])
    for tag, words in {"about": b"Lower is better.", "about/remarks": b"NaN or infinite"}.items():
        assert words in found.Tensors(f"explain_{tag}/text_summary")[0].tensor_proto.string_val[0]
    assert b"explain, standard errors" in found.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    assert {"_hparams_/experiment", "_hparams_/session_start_info"} <= set(found.summary_metadata)


def test_each_method_has_one_picture_an_explanation_under_a_stable_tag(
    written: SimpleNamespace, events: EventAccumulator
) -> None:
    assert set(events.Tags()["images"]) == {"explain/ig", "explain/cam", "second/m"}
    for tag in ("explain/ig", "explain/cam"):
        found = events.Images(tag)
        assert [e.step for e in found] == list(STEPS)
        for event, publication in zip(found, written.publications, strict=True):
            assert np.array_equal(pixels(event.encoded_image_string), publication.pictures[tag])


def test_what_an_explanation_could_not_show_is_a_text_when_it_changes(
    tmp_path: Path, publish: Callable[..., Publication]
) -> None:
    sink, whole = TensorBoardSink(TensorBoardLogger(tmp_path, name="", version="run")), publish(step=1)
    whole = replace(whole, report=replace(whole.report, scores={}))
    odd = replace(whole.report, scores={"mass": {"ig": torch.tensor([1.0, torch.nan])}})
    undefined = replace(
        odd, undefined_reasons={"mass": "the mask is empty"}, failures={"cam": "Traceback\nKeyError: 'x'"}
    )
    for step, report in enumerate([whole.report, odd, odd, undefined, whole.report, whole.report]):
        sink.write(replace(whole, step=step, report=report))
    found = read(tmp_path / "run").Tensors("explain_about/remarks/text_summary")
    assert [(e.step, e.tensor_proto.string_val[0].decode()) for e in found] == [
        (1, "- `ig`: a map or score is NaN or infinite on samples [9]"),
        (
            3,
            "- `cam` failed: \"KeyError: 'x'\"\n- `mass` is undefined, because the mask is empty: samples [9] for `ig`",
        ),
        (4, "No more remarks."),
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


def test_the_server_serves_what_is_true_of_the_run_as_html(server: str) -> None:
    (entry,) = get(server, "text/text", run="run", tag="explain_about/text_summary")
    assert entry["step"] == 0
    for part in (
        "<strong>infidelity</strong>: Lower is better.",
        "<code>cam</code>: warned: its layer is small.",
        "<code>occlusion</code>: it is too slow.",
        "An explanation takes a second.",
        "<td><code>IntegratedGradients(n_steps=8)</code></td>",
        "<td><code>LayerGradCam(layer='a|b')</code></td>",
        "<td><code>'predicted'</code></td>",
        "--samples_per_plugin images=1000",
    ):
        assert part in entry["text"]
    assert "every_n_epochs" not in entry["text"]


def test_the_hyperparameters_are_those_of_the_logger_and_of_all_monitors(server: str) -> None:
    (found,) = sessions(server).values()
    expected = {"explain/methods": "ig, cam", "explain/metrics": "infidelity", "explain/target": "predicted"}
    expected |= {"explain/at_start": "True", "second/methods": "m", "second/metrics": ""}
    assert found["hparams"] == expected | {"lr": 0.1, "net/width": 8.0, "net/name": "wide"}
    experiment = post(server, "hparams/experiment", experimentName="", includeMetrics=True)
    assert {info["name"] for info in experiment["hparamInfos"]} == found["hparams"].keys()
    tags = [info["name"]["tag"] for info in experiment["metricInfos"]]
    assert tags == list(
        dict.fromkeys(["val_loss", *(t for c in CHARTS.values() for ts in c.values() for t in ts), "hp_metric"])
    )
    values = {value["name"]["tag"]: value["value"] for value in found["metricValues"]}
    counts = dict(zip(CHARTS["explain"]["nonfinite"], (1, 0), strict=True))
    assert values == {"val_loss": 0.5, "explain/infidelity/ig": 3.5, "hp_metric": -1, **counts}


def test_the_layout_has_a_category_a_monitor_and_a_chart_a_metric(server: str) -> None:
    categories = get(server, "custom_scalars/layout")["category"]
    assert {c["title"]: [chart["title"] for chart in c["chart"]] for c in categories} == {
        k: list(v) for k, v in {**CHARTS, **MARGINS}.items()
    }
    (margin,) = (c["chart"][0]["margin"]["series"] for c in categories if c["title"] in MARGINS)
    assert [[s["value"], s["lower"], s["upper"]] for s in margin] == [*MARGINS["explain, standard errors"].values()]


def test_each_chart_shows_exactly_its_tags(server: str) -> None:
    for category in get(server, "custom_scalars/layout")["category"]:
        for chart in category["chart"]:
            if "multiline" not in chart:
                continue
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
