import json
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from lightning_explain.core.naming import LONGEST
from lightning_explain.core.report import Publication
from lightning_explain.loggers.wandb import WandbSink

DIRECTIONS = {"explain/infidelity/ig": "min", "explain/sensitivity/ig": "max", "explain/seconds": "last"}
CHARTED = {"explain_run/seconds" if tag == "explain/seconds" else tag: kind for tag, kind in DIRECTIONS.items()}
METRICS = {**CHARTED, "explain/late/ig": "last"}
VALUES = ((3.0, 5.0, 1.5), (1.0, 9.0, 2.5), (2.0, 7.0, 3.5))


def publications_of(publish: Callable[..., Publication]) -> Iterator[Publication]:
    """Three explanations; the last has a score that the others lack."""
    for epoch, values in enumerate(VALUES):
        scalars = dict(zip(DIRECTIONS, values, strict=True))
        if epoch == 2:
            scalars["explain/late/ig"] = 0.25
        yield publish(step=10 * epoch, epoch=epoch, scalars=scalars, directions=DIRECTIONS)


@pytest.fixture(scope="module")
def clean_wandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """W&B offline, with every folder it may write to in a temporary one, and gone afterwards."""
    import wandb

    home = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR", "WANDB_ARTIFACT_DIR"):
            (home / variable).mkdir()
            patch.setenv(variable, str(home / variable))
        (home / "cwd").mkdir()
        patch.chdir(home / "cwd")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.delenv("WANDB_RUN_ID", raising=False)
        yield home
        wandb.finish()
        wandb.teardown()
        assert not list((home / "cwd").iterdir())


def records(path: Path) -> Iterator[Any]:
    """The records of a ``.wandb`` file: blocks of 32 KiB, in them parts with a head of checksum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, whole = path.read_bytes(), 7, b""
    assert data[:4] == b":W&B"
    while len(data) - position >= 7:
        left = 2**15 - position % 2**15
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # the whole of a record, or its last part
            yield Record.FromString(whole)
            whole = b""


def nested(items: Iterable[Any]) -> dict[str, Any]:
    """Items of a history or summary record as nested dictionaries."""
    found: dict[str, Any] = {}
    for item in items:
        *parents, last = item.nested_key or [item.key]
        place = found
        for key in parents:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


@pytest.fixture(scope="module")
def run(clean_wandb: Path, publish: Callable[..., Publication]) -> SimpleNamespace:
    """A finished offline run with three explanations between two calls of the logger itself, read back."""
    logger = WandbLogger(project="test", save_dir=clean_wandb)
    sink = WandbSink(logger)
    sink.layout({"explain": {"infidelity": ["explain/infidelity/ig"]}})
    publications = list(publications_of(publish))
    logger.log_metrics({"loss": 1.0}, step=0)
    for publication in publications:
        sink.write(publication)
    logger.log_metrics({"loss": 0.5}, step=21)
    return finished(logger, publications)


def finished(logger: WandbLogger, publications: list[Publication]) -> SimpleNamespace:
    import wandb

    files = Path(logger.experiment.dir)
    wandb.finish()
    wandb.teardown()  # Only the end of its process says that the file is whole: finish() may return earlier.
    (file,) = files.parent.glob("*.wandb")
    found = list(records(file))
    kinds = {
        k: [getattr(r, k) for r in found if r.WhichOneof("record_type") == k] for k in ("history", "summary", "metric")
    }
    summary: dict[str, Any] = {}
    for record in kinds["summary"]:
        for key, value in nested(record.update).items():
            summary[key] = {**summary.get(key, {}), **value} if isinstance(value, dict) else value
    history = [nested(record.item) for record in kinds["history"]]
    explained = [sample for sample in history if "explain/table" in sample]
    return SimpleNamespace(
        files=files,
        history=history,
        explained=explained,
        summary=summary,
        metrics=kinds["metric"],
        publications=publications,
    )


def test_an_explanation_is_one_entry_with_all_its_scalars_at_its_step(run: SimpleNamespace) -> None:
    assert len(run.history) == 2 + len(run.publications)
    for sample, publication in zip(run.explained, run.publications, strict=True):
        assert {tag: sample[tag] for tag in sample if tag in METRICS} == publication.charted
        assert sample["trainer/global_step"] == publication.step


def test_pictures_keep_every_pixel_and_carry_epoch_and_step(run: SimpleNamespace) -> None:
    for sample, publication in zip(run.explained, run.publications, strict=True):
        for tag, picture in publication.pictures.items():
            assert sample[tag]["caption"] == publication.caption
            assert np.array_equal(np.asarray(Image.open(run.files / sample[tag]["path"])), picture)


def test_each_explanation_has_its_own_table_of_samples_and_methods(run: SimpleNamespace) -> None:
    for sample, publication in zip(run.explained, run.publications, strict=True):
        table = json.loads((run.files / sample["explain/table"]["path"]).read_text())
        columns, lines = publication.report.table()
        assert table["columns"] == columns
        np.testing.assert_equal(table["data"], lines)


def test_each_scalar_is_defined_once_over_the_trainers_step(run: SimpleNamespace) -> None:
    ours = [m for m in run.metrics if m.name in METRICS]
    assert sorted(m.name for m in ours) == sorted(METRICS)
    assert {m.step_metric for m in ours} == {"trainer/global_step"}
    for metric in ours:
        assert [f.name for f, value in metric.summary.ListFields() if value] == [METRICS[metric.name]]


def test_the_summary_is_the_best_value_where_there_is_a_better_end(run: SimpleNamespace) -> None:
    best = {
        "explain/infidelity/ig": {"min": 1},
        "explain/sensitivity/ig": {"max": 9},
        "explain_run/seconds": {"last": 3.5},
    }
    assert {tag: run.summary[tag] for tag in best} == best


def test_of_too_many_pictures_the_first_49_are_sent_and_it_is_told(
    clean_wandb: Path, publish: Callable[..., Publication]
) -> None:
    logger = WandbLogger(project="test", save_dir=clean_wandb)
    methods = [f"method_{i}" for i in range(50)]
    with pytest.warns(UserWarning, match="only the first 49 of 50 pictures of 'explain'"):
        WandbSink(logger).write(publish(methods=methods))
    (sample,) = finished(logger, []).explained
    assert [m for m in methods if f"explain/{m}" not in sample] == ["method_49"]


@pytest.mark.parametrize("method", ["a:b*?|<>", "ig*", "x" * LONGEST])
def test_a_name_that_is_no_name_of_a_file_or_a_pattern_loses_nothing(
    method: str, clean_wandb: Path, publish: Callable[..., Publication]
) -> None:
    logger = WandbLogger(project="test", save_dir=clean_wandb)
    scalars = {f"explain/infidelity/{method}": 2.5}
    WandbSink(logger).write(publish(methods=[method], scalars=scalars))
    run = finished(logger, [])
    (sample,) = run.explained
    key = f"infidelity/{method.replace('*', '%2A')}"
    assert sample[f"explain/{key}"] == 2.5
    assert f"explain/{key}" in {metric.name for metric in run.metrics}
    (picture,) = (run.files / "media" / "images" / "explain").iterdir()
    assert not set('*:?|<>"') & set(picture.name)
    assert np.asarray(Image.open(picture)).shape == (9, 12, 3)
