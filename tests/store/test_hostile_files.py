"""Whatever lies in a folder of reports, reading it ends at once: with the report, or with one short line that names the file."""

from __future__ import annotations

import json
import os
import re
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_explain.core.report import PassCount, Report
from lightning_explain.store.report_files import load_reports, save_report

KEY = "lightning_explain_report"
NAME = "step=00000001.safetensors"


def report(**changed: Any) -> Report:
    ids, values = torch.arange(2), torch.ones(2)
    given: dict[str, Any] = {
        "attributions": {"ig": torch.ones(2, 3)},
        "scores": {"a": {"ig": values}},
        "standard_errors": {},
    }
    given |= {"outputs": torch.zeros(2, 5), "predictions": ids, "targets": ids, "ids": ids, "passes": PassCount(1, 2)}
    return Report(**{**given, "step": 1, "epoch": 0, "stage": "fit", "seconds": 0.5, **changed})


def content_of(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
    return json.loads(header["__metadata__"][KEY]), load_file(path)


def change(**changed: Any) -> Callable[[Path], None]:
    """A report with other values in its header."""

    def write(path: Path) -> None:
        save_report(report(), path)
        content, tensors = content_of(path)
        save_file(tensors, path, metadata={KEY: json.dumps({**content, **changed})})

    return write


def text(edit: Callable[[str], str]) -> Callable[[Path], None]:
    """A report whose JSON is another text."""

    def write(path: Path) -> None:
        save_report(report(), path)
        content, tensors = content_of(path)
        save_file(tensors, path, metadata={KEY: edit(json.dumps(content))})

    return write


def with_tensors(**changed: Any) -> Callable[[Path], None]:
    """A report with other tensors."""

    def write(path: Path) -> None:
        save_report(report(), path)
        content, tensors = content_of(path)
        save_file({**tensors, **changed}, path, metadata={KEY: json.dumps(content)})

    return write


def raw(data: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(data) and None  # type: ignore[func-returns-value]


def headed(header: Any, size: int | None = None) -> bytes:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(body) if size is None else size) + body


def sparse(path: Path) -> None:
    """A file of 2^36 bytes that take no place, and a header that fits them."""
    save_report(report(), path)
    content, _ = content_of(path)
    count = 2**34
    header = {"__metadata__": {KEY: json.dumps(content)}}
    for i, name in enumerate(("ids", "outputs", "predictions", "targets")):
        header[name] = {"dtype": "F32", "shape": [count // 4], "data_offsets": [i * count, (i + 1) * count]}  # type: ignore[dict-item]
    path.write_bytes(headed(header))
    os.truncate(path, path.stat().st_size + 4 * count)


def crowded(path: Path) -> None:
    save_report(report(), path)
    content, tensors = content_of(path)
    more = {f"more/{i}": torch.zeros(1) for i in range(20_000)}
    save_file({**tensors, **more}, path, metadata={KEY: json.dumps(content)})


def loop(path: Path) -> None:
    path.symlink_to(path)


DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    # no files
    "a pipe": (os.mkfifo, "not a regular file"),
    "a link to a pipe": (
        lambda path: (os.mkfifo(path.with_name("pipe")), path.symlink_to("pipe")),
        "not a regular file",
    ),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
    "a folder": (Path.mkdir, "not a regular file"),
    "a link to nothing": (lambda path: path.symlink_to("nowhere"), "No such file"),
    "a link to itself": (loop, "."),
    # no safetensors
    "nothing": (raw(b"") and Path.touch, "no header"),
    "seven bytes": (raw(b"1234567"), "no header"),
    "a header of 10^15 bytes": (raw(struct.pack("<Q", 10**15) + b"{}"), "no header of at most"),
    "a header that is cut": (raw(headed(b"{", 1000)), "."),
    "a header that is no text": (raw(headed(b"\xff\xfe{}")), "."),
    "a header that is deep": (raw(headed(DEEP.encode())), "."),
    "tensors of 10^15 bytes": (
        raw(headed({"ids": {"dtype": "F32", "shape": [10**15], "data_offsets": [0, 4 * 10**15]}})),
        ".",
    ),
    "negative shape": (raw(headed({"ids": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}})), "."),
    "64 GB of nothing": (sparse, "."),
    "20,000 tensors": (crowded, "tensors, more than"),
    # JSON
    "deep": (text(lambda _: DEEP), "recursion"),
    "no JSON": (text(lambda _: "{"), "Expecting"),
    "a list": (text(lambda _: "[1]"), "instead of a report"),
    "a name twice": (text(lambda s: s.replace('"step": 1', '"step": 1, "step": 2')), "a name twice"),
    "NaN": (text(lambda s: s.replace('"seconds": 0.5', '"seconds": NaN')), "the number NaN"),
    "infinity": (text(lambda s: s.replace('"seconds": 0.5', '"seconds": -Infinity')), "the number -Infinity"),
    "a number of 10^5 digits": (text(lambda s: s.replace('"step": 1', '"step": ' + "1" * 100_000)), "."),
    # types
    "a step that is a path": (change(step="../../x"), "step is '../../x' instead of a whole number"),
    "a step that is true": (change(step=True), "step is True"),
    "a step below 0": (change(step=-1), "step is -1"),
    "a step of 10^30": (change(step=10**30), "step is 1000"),
    "an epoch that is a list": (change(epoch=[1]), "epoch is"),
    "a stage that is a path": (change(stage="../x"), "stage is '../x'"),
    "seconds that are a word": (change(seconds="long"), "seconds is 'long'"),
    "passes that are a number": (change(passes=3), "passes is 3"),
    "passes with more": (change(passes={"forward": 1, "sideways": 2}), "'sideways'"),
    "failures that are a list": (change(failures=["ig"]), "failures is"),
    "a failure that is a number": (change(failures={"ig": 3}), "failures['ig'] is 3"),
    "a name of 10^6 letters": (change(failures={"x" * 10**6: "y"}), "a name in failures"),
    "a name in colors": (change(failures={"\x1b[31m\n": 3}), "x1b[31m"),
    "a text that is a table": (change(meta={"file": {"a": 1}}), "meta['file'] is"),
    "a fingerprint of 10^6 letters": (change(fingerprint="f" * 10**6), "fingerprint is"),
    "an unknown field": (change(mood=1), "unknown field 'mood'"),
    "a field of an object": (change(__class__="os.system"), "__class__"),
    "maps that are a number": (change(attributions=5), "attributions is 5"),
    "maps that are text": (change(attributions="ids"), "attributions"),
    "maps in maps": (change(attributions={"ig": {"a": {"b": {"c": {"d": "ids"}}}}}), "attributions"),
    "a map that is not there": (change(attributions={"ig": "gone"}), "'gone'"),
    "no ids": (text(lambda s: s.replace('"ids": "ids"', '"idz": "ids"')), "lacks ids"),
    # tensors
    "ids that are fractions": (with_tensors(ids=torch.rand(2)), "ids is"),
    "ids of two dimensions": (with_tensors(ids=torch.zeros(2, 2, dtype=torch.long)), "ids is"),
    "a score too many": (with_tensors(**{"scores/a/ig": torch.ones(3)}), "scores holds"),
    "outputs of nobody": (with_tensors(outputs=torch.zeros(())), "outputs holds"),
}


@pytest.mark.parametrize(("write", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_report_is_named_at_once(write: Any, reason: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path(NAME))
    save_report(report(step=0, epoch=3), Path("step=00000000.safetensors"))
    for place in [Path()] if Path(NAME).is_dir() else [Path(NAME), Path()]:
        begun = time.process_time()
        with pytest.raises(
            ValueError, match=rf"Report '{re.escape(NAME)}' is broken \(.*; delete it to read"
        ) as raised:
            load_reports(place)
        assert time.process_time() - begun < 1
        assert reason in str(raised.value)
        assert len(str(raised.value)) <= 300
        assert str(raised.value).isprintable()
    # Nor is it in the way of the next report of that moment, or of its epoch.
    if not Path(NAME).is_dir():
        assert len(load_reports(save_report(report(epoch=2), Path()))) == 1


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_report(report(), tmp_path)

    def denied(*arguments: Any, **named: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ValueError, match=r"is broken \(.*Permission denied\); delete it"):
        load_reports(path)


def test_a_folder_named_in_bytes_is_named(tmp_path: Path) -> None:
    """Safetensors itself cannot open it."""
    path = save_report(report(), tmp_path / os.fsdecode(b"\xff\xfe \x1b[31m"))
    with pytest.raises(ValueError, match=r"is broken \(") as raised:
        load_reports(path.parent)
    assert str(raised.value).isprintable()
    assert len(HOSTILE) > 40


def test_the_search_for_other_folders_ends(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "up").symlink_to(tmp_path)
    begun = time.process_time()
    with pytest.raises(FileNotFoundError, match="No reports in"):
        load_reports(tmp_path)
    with pytest.raises(FileNotFoundError, match="No reports in"):
        load_reports("/proc/self")
    assert time.process_time() - begun < 1
