import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import WandbLogger
from numpy.typing import NDArray
from PIL import Image

from lightning_explain import Probe
from lightning_explain.core.naming import LONGEST
from lightning_explain.core.report import Publication
from lightning_explain.core.run_info import RunInfo
from lightning_explain.loggers.wandb import WandbSink
from lightning_explain.render.letters import write
from lightning_explain.render.page import HEIGHT, LETTERS, WIDTH
from offline_wandb import read_back, staged

DIRECTIONS = {"explain/infidelity/ig": "min", "explain/sensitivity/ig": "max", "explain/seconds": "last"}
CHARTED = {"explain_run/seconds" if tag == "explain/seconds" else tag: kind for tag, kind in DIRECTIONS.items()}
METRICS = {**CHARTED, "explain/late/ig": "last"}
VALUES = ((3.0, 5.0, 1.5), (1.0, 9.0, 2.5), (2.0, 7.0, 3.5))


CHARTS = {"infidelity": ["explain/infidelity/ig", "explain/infidelity/cam"], "late": ["explain/late/ig"]}
RUN = RunInfo(
    "explain",
    settings={"methods": {"ig": {"class": "IntegratedGradients", "n_steps": 16}}, "seed": 3},
    charts=CHARTS,
    higher_is_better={"infidelity": False, "late": True},
    class_names=("zero", "one", "two"),
)
TITLES = ("infidelity (lower is better)", "late (not comparable between epochs)")
COLUMNS = ["image", "epoch", "step", "sample", "label", "prediction", "probability", "f", "method"]


def publications_of(publish: Callable[..., Publication]) -> Iterator[Publication]:
    """Three explanations; the last has a score that the others lack."""
    for epoch, values in enumerate(VALUES):
        scalars = dict(zip(DIRECTIONS, values, strict=True))
        if epoch == 2:
            scalars["explain/late/ig"] = 0.25
        yield drawn(publish(step=10 * epoch, epoch=epoch, scalars=scalars, directions=DIRECTIONS))


def drawn(publication: Publication) -> Publication:
    """The same with labels, standard errors, and a picture for each sample and method."""
    probe = Probe(torch.zeros(2, 3, 4, 4), torch.tensor([0, 1]))
    errors = {"infidelity": {"ig": torch.tensor([0.5, float("nan")])}}
    report = replace(publication.report, probe=probe, standard_errors=errors, values=torch.tensor([1.5, -2.0]))
    return replace(publication, report=report, draw_sample=partial(sample_picture, publication.step))


def sample_picture(step: int, method: str, index: int) -> NDArray[np.uint8]:
    return np.full((6, 8, 3), step + 100 * (method == "ig") + index, dtype=np.uint8)


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


@pytest.fixture(scope="module")
def run(clean_wandb: Path, publish: Callable[..., Publication], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished offline run with three explanations between two calls of the logger itself, and its files, read back."""
    logger, folder = WandbLogger(project="test", save_dir=clean_wandb), tmp_path_factory.mktemp("explain")
    sink = WandbSink(logger)
    sink.begin(RUN)
    sink.layout([RUN])
    publications = list(publications_of(publish))
    logger.log_metrics({"loss": 1.0}, step=0)
    for publication in publications:
        sink.prepare(publication)
        sink.write(publication)
    logger.log_metrics({"loss": 0.5}, step=21)
    (folder / "run.json").write_text("{}")
    sink.upload(folder)
    return finished(logger, publications)


def finished(logger: WandbLogger, publications: list[Publication]) -> SimpleNamespace:
    found = read_back(logger)
    explained = [sample for sample in found.history if "explain/samples" in sample]
    return SimpleNamespace(**vars(found), explained=explained, publications=publications)


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


def test_one_table_grows_by_a_line_and_a_picture_for_each_sample_and_method(run: SimpleNamespace) -> None:
    increments = [artifact for artifact in run.artifact if artifact.type == "wandb-run-incremental-table"]
    assert [sample["explain/samples"]["increment_num"] for sample in run.explained] == [0, 1, 2]
    assert [sample["explain/samples"]["nrows"] for sample in run.explained] == [4, 8, 12]
    lines = []
    for artifact in increments:
        (table,) = (json.loads(path.read_text()) for path in staged(artifact, ".table.json").values())
        assert table["columns"] == [*COLUMNS, "infidelity", "infidelity_error", "late", "sensitivity"]
        pictures = staged(artifact, ".png")
        lines += [[np.asarray(Image.open(pictures[image["path"]])), *line] for image, *line in table["data"]]
    assert len(lines) == 3 * 2 * 2  # epochs, samples, methods
    for publication in run.publications:
        report = publication.report
        for i, sample in enumerate(report.ids.tolist()):
            for method in ("ig", "cam"):
                image, *line = lines.pop(0)
                assert np.array_equal(image, sample_picture(publication.step, method, i))
                share = report.outputs[i].double().softmax(0)[report.predictions[i]].item()
                names = [("zero", "one")[i], ("zero", "two")[i]]
                expected: list[Any] = [publication.epoch, publication.step, sample, *names, pytest.approx(share)]
                first = method == "ig" and i == 0  # the other sample of it has no finite score
                score = publication.step + 0.5 if first else None
                scores = [score, 0.5 if first else None, score if publication.epoch == 2 else None, score]
                assert line == [*expected, (1.5, -2.0)[i], method, *scores]


def test_each_explanation_uploads_its_own_lines_only(run: SimpleNamespace) -> None:
    for sample in run.explained:
        table = json.loads((run.files / sample["explain/samples"]["path"]).read_text())
        assert len(table["data"]) == 4
    pictures = [a for a in run.artifact if a.type == "wandb-run-incremental-table"]
    assert [len(staged(artifact, ".png")) for artifact in pictures] == [4, 4, 4]


def test_a_chart_has_a_line_for_each_method_up_to_now(run: SimpleNamespace) -> None:
    panels = run.config["_wandb"]["visualize"]
    assert panels.keys() == {"explain/infidelity", "explain/late"}
    panel = panels["explain/infidelity"]["panel_config"]
    assert (panel["panelDefId"], panel["stringSettings"]["title"]) == ("wandb/lineseries/v0", TITLES[0])
    assert panels["explain/late"]["panel_config"]["stringSettings"]["title"] == TITLES[1]
    for epoch, sample in enumerate(run.explained):
        key = "Custom Chart Tables/explain/infidelity_table"
        table = json.loads((run.files / sample[key]["path"]).read_text())
        assert table["columns"] == ["step", "lineKey", "lineVal"]
        assert table["data"] == [[10 * e, "ig", VALUES[e][0]] for e in range(epoch + 1)]


def test_the_settings_are_in_the_config_of_the_run(run: SimpleNamespace) -> None:
    assert run.config["explain"] == RUN.settings


def test_files_are_uploaded_as_an_artifact_if_that_is_asked_for(run: SimpleNamespace) -> None:
    (artifact,) = (artifact for artifact in run.artifact if artifact.type == "explanations")
    assert artifact.name.startswith("explain-")
    assert [path.read_text() for path in staged(artifact, "run.json").values()] == ["{}"]


def test_each_scalar_is_defined_once_over_the_trainers_step(run: SimpleNamespace) -> None:
    ours = [m for m in run.metric if m.name in METRICS]
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


def test_of_too_many_pictures_the_first_49_are_sent(clean_wandb: Path, publish: Callable[..., Publication]) -> None:
    logger = WandbLogger(project="test", save_dir=clean_wandb)
    methods = [f"method_{i}" for i in range(50)]
    publication = publish(methods=methods)
    further = {f"explain/{m}/2": picture for m, picture in zip(methods, publication.pictures.values(), strict=True)}
    pictures = {**further, **publication.pictures}
    draw = partial(sample_picture, 1)
    WandbSink(logger).write(replace(publication, pictures=pictures, draw_sample=draw))
    run = finished(logger, [])
    (sample,) = run.explained
    assert [m for m in methods if f"explain/{m}" not in sample] == ["method_49"]
    assert not further.keys() & sample.keys()
    table = json.loads((run.files / sample["explain/samples"]["path"]).read_text())
    assert len(table["data"]) == 100
    assert all(image is not None for image, *_ in table["data"]), "every line has its picture"


def test_letters_are_nine_pixels_high_in_a_panel_of_the_size_that_wandb_gives_a_section() -> None:
    width, height, besides = 460, 300, 85  # wandb-workspaces 0.4.13; title, caption and slider are not known
    shown = min(width / WIDTH, (height - besides) / HEIGHT)
    picture = np.full((HEIGHT, WIDTH, 3), 255, dtype=np.uint8)
    write(picture, "H", 10, 10, LETTERS, (0, 0, 0))
    rows = np.flatnonzero((picture < 128).any((1, 2)))
    assert (rows[-1] - rows[0] + 1) * shown >= 9


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
    assert f"explain/{key}" in {metric.name for metric in run.metric}
    (picture,) = (run.files / "media" / "images" / "explain").iterdir()
    assert not set('*:?|<>"') & set(picture.name)
    assert np.asarray(Image.open(picture)).shape == (9, 12, 3)


def test_before_wandb_0_20_each_explanation_has_a_table_of_its_own_lines(
    clean_wandb: Path, publish: Callable[..., Publication], monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    class Old(wandb.Table):
        def __init__(self, columns: Any, dtype: Any) -> None:
            super().__init__(columns=columns, dtype=dtype)

    logger = WandbLogger(project="test", save_dir=clean_wandb)
    sink = WandbSink(logger)
    with monkeypatch.context() as patch:
        patch.setattr(wandb, "Table", Old)
        for step in (1, 2):
            sink.write(drawn(publish(step=step)))
    run = finished(logger, [])
    for step, sample in enumerate(run.explained, 1):
        assert sample["explain/samples"]["_type"] == "table-file"
        table = json.loads((run.files / sample["explain/samples"]["path"]).read_text())
        assert [line[2] for line in table["data"]] == [step] * 4


def test_the_charts_of_a_resumed_run_go_on(
    monkeypatch: pytest.MonkeyPatch, publish: Callable[..., Publication]
) -> None:
    import wandb

    asked = []

    def history(samples: int, keys: list[str], pandas: bool) -> list[dict[str, Any]]:
        asked.append((samples, keys, pandas))
        return [dict.fromkeys(keys, 7.0) | {"trainer/global_step": 4}]

    monkeypatch.setattr(wandb, "Api", lambda: SimpleNamespace(run={"me/test/1": SimpleNamespace(history=history)}.get))
    config: dict[str, Any] = {}
    fake = SimpleNamespace(
        resumed=True, path="me/test/1", config=SimpleNamespace(update=lambda new, **_: config.update(new))
    )
    sink = WandbSink(SimpleNamespace(experiment=fake))  # type: ignore[arg-type]
    sink.begin(RUN)
    sink.begin(RUN)  # of a test after the training
    assert config == {"explain": RUN.settings}
    assert asked == [(100, ["trainer/global_step", *tags], False) for tags in CHARTS.values()]
    table = sink._charts(publish())["explain/infidelity"].table
    assert table.data == [[4, "ig", 7.0], [4, "cam", 7.0]]


def test_a_line_of_a_chart_has_at_most_100_points_from_the_first_to_the_last() -> None:
    sink = WandbSink(SimpleNamespace())  # type: ignore[arg-type]
    for step in range(10_000):
        sink._add_point("tag", step, float(step))
        points = sink._points["tag"]
        assert points[0][0] == 0
        assert points[-1][0] == step
        assert min(step, 49) < len(points) <= 100


def test_maps_of_words_are_html_beside_the_pictures(clean_wandb: Path, publish: Callable[..., Publication]) -> None:
    logger, page = WandbLogger(project="test", save_dir=clean_wandb), '<meta charset="utf-8"><p>&lt;b&gt; naïve</p>'
    sink = WandbSink(logger)
    sink.begin(RUN)
    sink.write(replace(publish(), texts=lambda form: {"explain_words/ig": page} if form == "html" else {}))
    found = finished(logger, [])
    (entry,) = [sample for sample in found.history if "explain_words/ig" in sample]
    assert entry["explain_words/ig"]["_type"] == "html-file"
    assert (found.files / entry["explain_words/ig"]["path"]).read_text(encoding="utf-8") == page
