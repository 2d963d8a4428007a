"""What the offline archive of a Comet experiment holds: read back."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CometLogger
from PIL import Image

from lightning_explain.core.report import Publication
from lightning_explain.core.run_info import RunInfo
from lightning_explain.loggers.comet import CometSink
from training import start_line

RUN = RunInfo("explain", settings={"methods": {"ig": {"n_steps": 16}}, "seed": 3})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, publish: Callable[..., Publication]) -> Any:
    """The messages and files of an experiment with two explanations, and what was published."""
    folder, reports = tmp_path_factory.mktemp("comet"), tmp_path_factory.mktemp("reports")
    with pytest.MonkeyPatch.context() as patch:
        # CometLogger(online=False) switches the whole experiment off in Lightning 2.6.
        patch.setenv("COMET_START_ONLINE", "false")
        quiet = ("GIT_METADATA", "GIT_PATCH", "CODE", "ENV_DETAILS", "ENV_GPU", "ENV_CPU", "ENV_NETWORK", "ENV_DISK")
        for name in quiet:
            patch.setenv(f"COMET_AUTO_LOG_{name}", "false")
        patch.setenv("COMET_LOGGING_CONSOLE", "ERROR")
        logger = CometLogger(offline_directory=str(folder), workspace="w", project="p")
        sink = CometSink(logger)
        publications = [publish(step=10 * (epoch + 1), epoch=epoch) for epoch in range(2)]
        sink.begin(RUN)
        for publication in publications:
            sink.write(publication)
        (reports / "step=00000010.safetensors").write_bytes(b"maps")
        sink.upload(reports)
        line = start_line(folder, logger=logger)
        logger.experiment.end()
    with zipfile.ZipFile(next(folder.glob("*.zip"))) as archive:
        lines = archive.read("messages.json").decode().splitlines()
        messages = [json.loads(line) for line in lines]
        files = {name: archive.read(name) for name in archive.namelist()}
    return SimpleNamespace(messages=messages, files=files, publications=publications, line=line, logger=logger)


def payloads(written: SimpleNamespace, kind: str) -> list[dict[str, Any]]:
    return [message["payload"] for message in written.messages if message["type"] == kind]


def uploads(written: SimpleNamespace, kind: str) -> list[tuple[dict[str, Any], bytes]]:
    """What was uploaded: how it is described, and the file."""
    found = [payload for payload in payloads(written, "file_upload") if payload["upload_type"] == kind]
    return [(payload["additional_params"], written.files[Path(payload["file_path"]).name]) for payload in found]


def test_every_scalar_is_there_at_its_step(written: SimpleNamespace) -> None:
    metrics = [payload["metric"] for payload in payloads(written, "metric_msg")]
    found = [(m["metricName"], m["step"], m["metricValue"]) for m in metrics if m["metricName"].startswith("explain")]
    expected = [(tag, p.step, value) for p in written.publications for tag, value in p.charted.items()]
    assert sorted(found) == sorted(expected)


def test_pictures_are_graphics_at_their_steps_and_keep_every_pixel(written: SimpleNamespace) -> None:
    found = {(about["figName"], about["step"]): content for about, content in uploads(written, "visualization")}
    expected = {(tag, p.step): picture for p in written.publications for tag, picture in p.pictures.items()}
    assert found.keys() == expected.keys()
    for key, picture in expected.items():
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(found[key]))), picture)


def test_settings_are_parameters(written: SimpleNamespace) -> None:
    params = {
        p["param"]["paramName"]: p["param"]["paramValue"] for p in payloads(written, "parameter_msg") if "param" in p
    }
    assert (params["explain|methods|ig|n_steps"], params["explain|seed"]) == (16, 3)


def test_what_is_true_of_the_run_and_the_reports_are_assets(written: SimpleNamespace) -> None:
    found = {about["fileName"]: content for about, content in uploads(written, "asset")}
    assert json.loads(found["explain/run.json"])["settings"]["seed"] == 3
    (report,) = (content for name, content in found.items() if name.endswith("step=00000010.safetensors"))
    assert report == b"maps"


def test_the_line_at_the_start_names_the_experiment(written: SimpleNamespace) -> None:
    place = f"Comet (experiment {written.logger.version})"
    assert written.line.startswith(f"scalars and pictures go to {place}; reports to ")
