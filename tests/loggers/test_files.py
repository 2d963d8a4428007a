import errno
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from disk import full_disk
from lightning_explain.core.report import Publication
from lightning_explain.core.run_info import RunInfo
from lightning_explain.loggers.files import FilesSink


def lines(directory: Path) -> list[dict[str, Any]]:
    text = (directory / "scalars.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, parse_constant=pytest.fail) for line in text.splitlines()]


def files(directory: Path) -> set[str]:
    return {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}


def test_each_explanation_is_one_line_and_one_picture_a_method(
    tmp_path: Path, publish: Callable[..., Publication]
) -> None:
    sink = FilesSink(tmp_path / "run" / "explain")
    publications = [publish(step=s, epoch=e) for e, s in enumerate((0, 120))]
    for publication in publications:
        sink.write(publication)
    assert files(tmp_path / "run" / "explain") == {
        "scalars.jsonl",
        *(f"{m}/step={s:08d}.png" for m in ("ig", "cam") for s in (0, 120)),
    }
    assert lines(tmp_path / "run" / "explain") == [
        {"name": "explain", "epoch": p.epoch, "step": p.step, "scalars": p.scalars} for p in publications
    ]


def test_pictures_keep_every_pixel(tmp_path: Path, publish: Callable[..., Publication]) -> None:
    publication = publish(step=7)
    FilesSink(tmp_path).write(publication)
    for tag, picture in publication.pictures.items():
        folder = tmp_path / tag.removeprefix("explain/")
        assert np.array_equal(np.asarray(Image.open(folder / "step=00000007.png")), picture)


def test_numbers_that_json_lacks_become_null(tmp_path: Path, publish: Callable[..., Publication]) -> None:
    scalars = {"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 0.1 + 0.2}
    FilesSink(tmp_path).write(publish(scalars=scalars))
    assert lines(tmp_path)[0]["scalars"] == {"a": None, "b": None, "c": None, "d": 0.1 + 0.2}


@pytest.mark.parametrize("former", ['{"step": 1}\n', '{"step": 1}'])
def test_former_lines_are_kept_and_never_run_into(
    tmp_path: Path, publish: Callable[..., Publication], former: str
) -> None:
    (tmp_path / "scalars.jsonl").write_text(former)
    FilesSink(tmp_path).write(publish(step=2))
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_line_longer_than_any_buffer_is_written_whole(tmp_path: Path, publish: Callable[..., Publication]) -> None:
    scalars = {f"explain/metric_{i}/ig": float(i) for i in range(10_000)}
    FilesSink(tmp_path).write(publish(scalars=scalars))
    FilesSink(tmp_path).write(publish(step=11))
    assert [line["step"] for line in lines(tmp_path)] == [10, 11]
    assert lines(tmp_path)[0]["scalars"] == scalars


@pytest.mark.parametrize("name", ["../../x", "a/b", "", "CON", "重要", "/abs", ".."])
def test_no_name_leaves_the_directory(tmp_path: Path, publish: Callable[..., Publication], name: str) -> None:
    directory = tmp_path / "a" / "run" / "explain"
    FilesSink(directory).write(publish(name=name, methods=(name, "ig")))
    assert files(tmp_path) == {f"a/run/explain/{f}" for f in files(directory)}
    assert len(files(directory)) == 3


def test_methods_of_like_names_have_folders_of_their_own(tmp_path: Path, publish: Callable[..., Publication]) -> None:
    FilesSink(tmp_path).write(
        publish(name="a/b", methods=("b/c", "b", "b%2Fc", "b_c", "scalars.jsonl", "", "..", "b/"))
    )
    assert len(files(tmp_path)) == 8 + 1


def test_no_temporary_file_is_left(tmp_path: Path, publish: Callable[..., Publication]) -> None:
    broken = replace(publish(step=5), pictures={"explain/bad": np.zeros((4, 4, 7), dtype=np.uint8)})
    with pytest.raises(TypeError, match="Cannot handle this data type"):
        FilesSink(tmp_path).write(broken)
    FilesSink(tmp_path).write(publish())
    assert not [f for f in files(tmp_path) if f.endswith(".tmp")]


def test_making_a_sink_makes_no_folder(tmp_path: Path) -> None:
    FilesSink(tmp_path / "run").layout([RunInfo("explain", charts={"infidelity": ["explain/infidelity/ig"]})])
    assert not list(tmp_path.iterdir())


def test_a_line_that_fits_in_part_only_is_told_and_leaves_the_lines_before_it(
    tmp_path: Path, publish: Callable[..., Publication]
) -> None:
    sink = FilesSink(tmp_path)
    first = replace(publish(), pictures={})
    sink.write(first)
    size = (tmp_path / "scalars.jsonl").stat().st_size
    with full_disk(size + 10), pytest.raises(OSError, match=r"10 of .* bytes could be written") as told:
        sink.write(first)
    assert told.value.errno == errno.ENOSPC
    assert (tmp_path / "scalars.jsonl").stat().st_size == size
    sink.write(first)
    assert [line["step"] for line in lines(tmp_path)] == [first.step] * 2
