"""The servers of TensorBoard and MLflow on a folder, and TensorBoard's answers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def serving(directory: Path, run: str, last_text: str) -> Iterator[str]:
    """Starts the server, waits until it has read a text of a run, and yields its address."""
    log = directory / "server.txt"
    options = f"--logdir={directory} --host=127.0.0.1 --port=0".split()
    command = [sys.executable, "-m", "tensorboard.main", *options]
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=out) as process:
        try:
            url = _wait(lambda: re.search(r"http://127\.0\.0\.1:\d+(?=\D)", log.read_text()), log)[0]
            _wait(lambda: last_text in get(url, "text/tags").get(run, []), log)
            yield url
        finally:
            process.terminate()


@contextmanager
def mlflow_page(store: Path, folder: Path) -> Iterator[str]:
    """Starts the page of MLflow on a file store, with its files in a folder, and yields its address."""
    log = folder / "server.txt"
    options = f"--backend-store-uri=file:{store} --host=127.0.0.1 --port=0 --workers=1".split()
    environment = {**os.environ, "MLFLOW_ALLOW_FILE_STORE": "true"}
    command = [sys.executable, "-m", "mlflow", "ui", *options]
    with (
        log.open("w") as out,
        subprocess.Popen(
            command, stdout=out, stderr=out, cwd=folder, env=environment, start_new_session=True
        ) as process,
    ):
        try:
            yield _wait(lambda: re.search(r"running on (http://127\.0\.0\.1:\d+)(?=\D)", log.read_text()), log)[1]
        finally:
            os.killpg(process.pid, signal.SIGTERM)  # and its workers


def _wait(condition: Callable[[], Any], log: Path) -> Any:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        # It may not listen yet, or not answer in time.
        with suppress(OSError):
            if found := condition():
                return found
        time.sleep(0.1)
    return pytest.fail(f"The server did not answer:\n{log.read_text()}")


def fetch(url: str, plugin_route: str, **query: str | int) -> bytes:
    """What a plugin answers."""
    address = f"{url}/data/plugin/{plugin_route}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(address, timeout=30) as answer:
        return bytes(answer.read())


def get(url: str, plugin_route: str, **query: str | int) -> Any:
    """What a plugin answers, from JSON."""
    return json.loads(fetch(url, plugin_route, **query))


def post(url: str, plugin_route: str, **body: Any) -> Any:
    """What a plugin answers to a body, both as JSON."""
    address, head = f"{url}/data/plugin/{plugin_route}", {"Content-Type": "application/json"}
    request = urllib.request.Request(address, json.dumps(body).encode(), head)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def sessions(url: str) -> dict[str, Any]:
    """The hyperparameters' session of each run: ``hparams``, and the last value of each metric."""
    statuses = [f"STATUS_{kind}" for kind in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")]
    asked = {"experimentName": "", "includeMetrics": True, "colParams": [], "startIndex": 0, "sliceSize": 10}
    found = post(url, "hparams/session_groups", allowedStatuses=statuses, **asked)["sessionGroups"]
    return {group["name"]: group for group in found}
