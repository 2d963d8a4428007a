"""The page of finished runs: what is in the file, and what it says of what the runs lack."""

from __future__ import annotations

import base64
import json
import re
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from finished import HOSTILE, explained, features, finished, images, info, series, texts
from lightning_explain import Probe, compare, load_reports
from lightning_explain import modalities as d
from lightning_explain.cli.main import app
from lightning_explain.core.probe import as_tuple
from lightning_explain.render.image import normalize
from lightning_explain.report import page as pages
from lightning_explain.report.moments import moments
from lightning_explain.report.page import write_page
from lightning_explain.report.stored_runs import short_names
from lightning_explain.store.report_files import save_report


def data_of(page: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data"[^>]*>(.*?)</script>', page)
    assert found is not None
    return dict(json.loads(found[1]))


def array_of(page: str, tensor: dict[str, Any]) -> np.ndarray:
    found = re.search(rf'<script type="text/plain" id="b{tensor["key"]}">(.*?)</script>', page)
    assert found is not None
    content = zlib.decompress(base64.b64decode(found[1]))
    return np.frombuffer(content, tensor["type"]).reshape(tensor["shape"])


def written(folder: Path, *runs: Path) -> tuple[str, dict[str, Any]]:
    page = write_page(runs, folder / "page.html").read_text(encoding="utf-8")
    return page, data_of(page)


def test_the_page_is_one_file_that_names_no_other_and_that_the_files_of_the_runs_decide(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, images(), seed=seed) for name, seed in {"marked": 0, "clean": 5}.items()]
    page, data = written(tmp_path, *runs)
    own = re.sub(r'<script type="text/plain".*?</script>', "", page)
    assert not re.search(r"""(src|href|url\()=?["']?(https?:)?//""", own)
    assert "default-src 'none'" in page
    assert page == write_page(runs, tmp_path / "again.html").read_text(encoding="utf-8")
    assert [run["name"] for run in data["runs"]] == ["marked", "clean"]
    assert HOSTILE not in page
    assert page.count("alert(1)") > 0


def test_maps_are_those_of_pictures_and_cosines_those_of_compare(tmp_path: Path) -> None:
    runs = [finished(tmp_path / name, images(), seed=seed) for name, seed in {"marked": 0, "clean": 5}.items()]
    page, data = written(tmp_path, *runs)
    reports = [load_reports(run) for run in runs]
    (panel,) = data["runs"][1]["explanations"][2]["methods"]["saliency"]["panels"]
    maps = reports[1][2].attributions["saliency"]
    assert isinstance(maps, torch.Tensor)
    expected = normalize(maps, "all", 2.0)
    assert np.abs(array_of(page, panel["values"]) / panel["levels"] - expected.numpy()).max() <= 0.5 / 127 + 1e-6
    assert panel["largest"] == pytest.approx(maps.sum(1).abs().amax((1, 2)).tolist(), rel=1e-3)
    alike = compare(reports[0][2], reports[1][2]).similarity["cosine"]["saliency"]
    assert data["runs"][1]["compared"]["2 2"]["saliency"] == pytest.approx(alike.tolist(), abs=1e-3)
    assert data["runs"][0]["compared"] == {}


def test_the_table_has_what_differs_and_the_last_scores(tmp_path: Path) -> None:
    other = info(images(), hyperparameters={"lr": 0.01, "optimizer": "adam"})
    runs = [finished(tmp_path / "a", images()), finished(tmp_path / "b", images(), seed=5, run=other)]
    page, _ = written(tmp_path, *runs)
    head = [name.replace("<wbr>", "") for name in re.findall(r'<button type="button">(.*?)</button></th>', page)]
    assert head[:3] == ["run", "last explanation", "lr"]
    assert "optimizer" not in head
    assert {"infidelity_relative/ig", "val_loss"} <= set(head)
    assert re.findall(r"<td[^>]*>(0\.1|0\.01)</td>", page) == ["0.1", "0.01"]
    mean = load_reports(runs[0])[-1].scalars()["infidelity_relative/ig"]
    assert f'<td data-value="{mean:.4g}">{mean:.3g} ± ' in page
    for told in (
        "the gradient alone",
        "the model has no feature map",
        "An explanation takes 0.5 s.",
        "IntegratedGradients(n_steps=16)",
    ):
        assert told in page


def test_what_runs_lack_is_said(tmp_path: Path) -> None:
    bare = finished(tmp_path / "bare", images(), (10,), inputs=False, run=None)
    lost = torch.full((4,), torch.nan)
    scores = {"infidelity_relative": {"ig": lost}}
    failed = explained(
        images(), 20, methods=("ig",), scores=scores, standard_errors={}, failures={"saliency": "Error\nno map today"}
    )
    maps = failed.attributions["ig"]
    assert isinstance(maps, torch.Tensor)
    maps[1] = torch.nan
    save_report(failed, tmp_path / "nan" / "explain")
    page, data = written(tmp_path, bare, tmp_path / "nan", finished(tmp_path / "other", images(3)))
    assert [group["runs"] for group in data["groups"]] == [[0, 1], [2]]
    assert [group["known"] for group in data["groups"]] == [False, True]
    assert not data["groups"][0]["images"]
    found = data["runs"][1]["explanations"][0]["methods"]["ig"]
    assert found["panels"][0]["kind"] == "map"
    assert found["panels"][0]["largest"][1] is None
    assert found["scores"]["infidelity_relative"] == [[None] * 4, None]
    assert list(data["runs"][1]["compared"]) == ["0 0"]
    for told in (
        "Not known: the run has no run.json.",
        "not stored (save_inputs=False, or no probe.safetensors)",
        "failed at epoch 1, step 20: &#39;no map today&#39;",
        "a map or score is NaN or infinite on samples [100, 101, 102, 103]",
    ):
        assert told in page


def test_samples_that_one_run_has_are_shown_for_the_other_too(tmp_path: Path) -> None:
    _, data = written(
        tmp_path, finished(tmp_path / "a", images(), inputs=False), finished(tmp_path / "b", images(), seed=1)
    )
    assert [len(found) for found in data["groups"][0]["images"]] == [4]
    assert data["runs"][0]["explanations"][0]["captions"][0][0][0] == "label 0 (cat)"


def test_texts_tables_and_series_come_with_their_words_names_and_channels(tmp_path: Path) -> None:
    probes = {"text": texts(), "table": features(), "series": series()}
    page, data = written(tmp_path, *(finished(tmp_path / name, probe, (10, 20)) for name, probe in probes.items()))
    kinds = [run["explanations"][1]["methods"]["ig"]["panels"] for run in data["runs"]]
    assert [[panel["kind"] for panel in panels] for panels in kinds] == [["words"], ["features"], ["series"]]
    (words,), (bars,), (curve,) = kinds
    assert data["values"][words["words"]] == [["[CLS]", "very", HOSTILE, "good"], ["[CLS]", "bad", "", ""]]
    assert np.isnan(array_of(page, words["values"])[1]).tolist() == [True, False, True, True]
    assert data["values"][bars["names"]][:2] == [HOSTILE, "column 0"]
    assert data["values"][curve["channels"]] == ["I", "II", "breath"]
    assert array_of(page, curve["series"]) == pytest.approx(series().inputs.numpy())  # type: ignore[union-attr]
    # What all explanations share is there once.
    assert page.count(f'id="b{curve["series"]["key"]}"') == 1


def test_the_page_says_once_how_to_give_the_words_of_ids(tmp_path: Path) -> None:
    bare = replace(texts(), modalities=d.Text(pad_id=0))
    for probe, count in ((bare, 1), (texts(), 0)):
        page, _ = written(tmp_path, finished(tmp_path / f"{count}", probe, (10, 20)))
        assert page.count('<p class="note">ids: give modalities=Text(tokenizer=...)</p>') == count


@pytest.mark.parametrize("modality", [d.Volume(), d.Video()])
def test_volumes_and_videos_have_every_slice_or_frame_under_its_map(tmp_path: Path, modality: Any) -> None:
    inputs = torch.rand(2, 3, 5, 8, 6) if isinstance(modality, d.Video) else torch.rand(2, 1, 5, 8, 6)
    probe = Probe(inputs, torch.tensor([0, 1]), torch.arange(2), modalities=modality)
    run = finished(tmp_path / "run", probe, (10,))
    page, data = written(tmp_path, run)
    panel = data["runs"][0]["explanations"][0]["methods"]["ig"]["panels"][0]
    stack, (report,) = panel["stack"], load_reports(run)
    maps = as_tuple(report.attributions["ig"])[0].sum(1)
    expected = maps / maps.abs().amax((1, 2, 3), keepdim=True)
    assert np.abs(array_of(page, stack["values"]) / stack["levels"] - expected.numpy()).max() <= 0.5 / 127 + 1e-6
    assert array_of(page, stack["shown"]).shape == (2, 5, 8, 6)
    assert (stack["word"], stack["places"]) == ("frame" if isinstance(modality, d.Video) else "slice", 5)


def test_a_slider_moves_through_epochs_of_runs_with_other_steps() -> None:
    def reports(*places: tuple[int, int, str]) -> list[Any]:
        return [explained(images(2), step, epoch=epoch, stage=stage) for epoch, step, stage in places]

    first = reports((0, 0, "fit"), (0, 63, "fit"), (1, 126, "fit"), (1, 126, "test"))
    found = moments([first, reports((0, 30, "fit"), (2, 90, "fit"))])
    assert found.labels == (
        "epoch 0, step 0",
        "epoch 0, step 63",
        "epoch 1, step 126",
        "epoch 1, step 126 (test)",
        "epoch 2, step 90",
    )
    assert found.shown == ((0, 1, 2, 3, 3), (None, 0, 0, 0, 1))
    assert moments([[replace(first[0], epoch=None, step=None)]]) == (("explanation",), ((0,),))


def test_names_are_what_tells_paths_apart() -> None:
    assert short_names([Path("runs/a/version_0/explain"), Path("runs/a/version_1/explain")]) == [
        "version_0",
        "version_1",
    ]
    assert short_names([Path("runs/a/explain"), Path("runs/a")]) == ["explain", "runs/a"]
    assert short_names([Path("runs/a/explain")]) == ["runs/a/explain"]


def test_a_page_of_nothing_or_of_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    run = finished(tmp_path / "run", images(2), (10,))
    with pytest.raises(ValueError, match="No run was given; give the folder of at least one"):
        write_page([], tmp_path / "page.html")
    with pytest.raises(ValueError, match="is given twice; give each run once"):
        write_page([run, run / "explain"], tmp_path / "page.html")
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("package", ["jinja2", "plotly.offline"])
def test_without_its_packages_the_error_names_the_extra(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    pages._charts.cache_clear()
    with pytest.raises(ImportError, match=r"pip install 'lightning-explain\[report\]'"):
        write_page([finished(tmp_path / "run", images(2), (10,))], tmp_path / "page.html")


def test_the_command_writes_the_page_and_errors_are_one_line(tmp_path: Path) -> None:
    run, page = finished(tmp_path / "run", images(2), (10,)), tmp_path / "new" / "page.html"
    found = CliRunner().invoke(app, ["report", str(run), "-o", str(page), "--title", "Mine & yours"])
    assert (found.exit_code, found.output) == (0, f"page: {page}\n")
    assert "<title>Mine &amp; yours: explanations</title>" in page.read_text()
    found = CliRunner().invoke(app, ["report", str(tmp_path / "nowhere")])
    assert found.exit_code == 2
    assert found.output.startswith("Error: No reports in")


def test_samples_whose_maps_are_alike_and_forecasts_are_shown(tmp_path: Path) -> None:
    probe = replace(images(16), targets=torch.zeros(16, dtype=torch.long))
    halves = torch.rand(16, 3, 12, 12)
    halves[::2, :, :6], halves[1::2, :, 6:] = 0, 0
    one = finished(tmp_path / "one", probe, (10,), attributions={"ig": halves}, scores={}, standard_errors={})
    future = series().inputs[:, :, :8].transpose(1, 2)  # type: ignore[index, union-attr]
    told = {"outputs": future + 1, "targets": torch.full((2,), -1), "methods": ("ig",)}
    other = finished(tmp_path / "other", replace(series(), targets=future), (10,), **told)
    page, data = written(tmp_path, one, other)
    places = data["runs"][0]["clusters"]["ig"]
    assert {places[str(100 + i)] for i in range(0, 16, 2)} != {places[str(101 + i)] for i in range(0, 16, 2)}
    assert "<dt>ig, cat</dt><dd>1 of 2: samples 100, 102," in page
    (panel,) = data["runs"][1]["explanations"][0]["methods"]["ig"]["panels"]
    assert array_of(page, panel["forecast"]) == pytest.approx(future.transpose(1, 2).numpy() + 1)


def test_a_sample_with_several_labels_is_named_by_its_own_id_and_each_entry_has_its_strategy(tmp_path: Path) -> None:
    samples, own = torch.arange(12).repeat_interleave(2) + 40, torch.arange(2).repeat(12)
    entries = torch.stack([samples, own], 1)
    positive = torch.tensor([[1.0, 1.0, 0.0, 0.0]]).expand(24, -1)
    probe = replace(images(24), targets=positive, ids=samples * 4 + own, masks=None, entries=entries)
    maps = 0.01 * torch.rand(24, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    # Of label 0, samples with even ids are explained by the upper half; of label 1, the first six are.
    upper = torch.where(own == 0, samples % 2 == 0, samples < 46)
    maps[upper, :, :6] += 1
    maps[~upper, :, 6:] += 1
    told: dict[str, Any] = {"attributions": {"ig": maps}, "scores": {}, "standard_errors": {}, "methods": ("ig",)}
    told |= {"targets": own, "task": "multilabel", "explained": {"sample": samples}}
    page, data = written(tmp_path, finished(tmp_path / "run", probe, (10,), **told))
    (group,) = data["groups"]
    assert (group["ids"], group["entries"]) == (samples.tolist(), probe.sample_ids.tolist())
    places = data["runs"][0]["clusters"]["ig"]
    assert [places[str(entry)] for entry in probe.sample_ids[own == 0].tolist()] == ["1 of 2", "2 of 2"] * 6
    assert [places[str(entry)] for entry in probe.sample_ids[own == 1].tolist()] == ["1 of 2"] * 6 + ["2 of 2"] * 6
    assert "<dd>1 of 2: samples 40, 42, 44, 46, 48, 50; 2 of 2: samples 41, 43, 45, 47, 49, 51</dd>" in page
    assert "<dd>1 of 2: samples 40, 41, 42, 43, 44, 45; 2 of 2: samples 46, 47, 48, 49, 50, 51</dd>" in page


def test_the_steps_of_a_forecast_are_one_map_for_each_sample(tmp_path: Path) -> None:
    count, steps, times = 3, 4, 12
    inputs = torch.rand(count, 1, times, generator=torch.Generator().manual_seed(0)).repeat_interleave(steps, 0)
    future, own = torch.rand(count, steps).repeat_interleave(steps, 0), torch.arange(steps).repeat(count)
    ids = torch.tensor([5, 2, 9]).repeat_interleave(steps)
    entries, modality = torch.stack([ids, own], 1), d.TimeSeries(["load"], "NCT", rate=4.0)
    probe = Probe(inputs, future, ids * steps + own, modalities=modality, entries=entries)
    # Of step h the strongest place is the (h + 1)-th last one.
    maps = 0.1 * torch.rand(count * steps, 1, times)
    maps[torch.arange(len(maps)), 0, times - 1 - own] = -2.0
    told: dict[str, Any] = {"attributions": {"ig": maps}, "outputs": future, "values": own.double(), "targets": own}
    told |= {"explained": {"step": own, "sample": ids}, "task": "regression", "methods": ("ig",)}
    runs = [finished(tmp_path / name, probe, (10,), seed, **told) for seed, name in enumerate("ab")]
    page, data = written(tmp_path, *runs)
    (group,), (found,) = data["groups"], data["runs"][0]["explanations"]
    assert (group["ids"], group["count"], len(group["about"])) == ([5, 2, 9], 3, 3)
    assert found["captions"] == [[["mean error 0", "scores are means over 4 steps"], False]] * count
    (panel,) = found["methods"]["ig"]["panels"]
    assert (panel["kind"], data["values"][panel["steps"]]) == ("horizon", [0, 1, 2, 3])
    drawn = array_of(page, panel["values"])
    assert drawn.shape == (count, steps, times)
    assert np.argwhere(drawn == -127).tolist() == [[i, h, times - 1 - h] for i in range(count) for h in range(steps)]
    scores = load_reports(runs[0])[0]
    values, errors = found["methods"]["ig"]["scores"]["infidelity_relative"]
    means = scores.scores["infidelity_relative"]["ig"].reshape(count, steps).mean(1)
    expected = scores.standard_errors["infidelity_relative"]["ig"].reshape(count, steps).norm(dim=1) / steps
    assert values == pytest.approx(means.tolist(), rel=1e-3)
    assert errors == pytest.approx(expected.tolist(), rel=1e-3)
    assert data["runs"][1]["compared"]["0 0"]["ig"] == pytest.approx([1.0] * count)
