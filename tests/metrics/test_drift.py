"""Drift: the map of a sample against that of the explanation before and of the first one, also across a resume."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from scipy.stats import spearmanr
from torchmetrics.functional.image import structural_similarity_index_measure

from given import Given, Linear
from lightning_explain import ExplanationMonitor, Probe, ProbeSelection, Report, explain, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.probe import Samples
from lightning_explain.explainer.history import History
from lightning_explain.metrics.drift import cosine, ssim
from lightning_explain.modalities import of_probe
from networks import samples, trained
from training import QUIET, SAFE, DigitModule, fit, keys, loader, loaders, report_of, trainer
from training import monitor_of_digits as monitor

pytestmark = QUIET

SIX = Probe(torch.ones(2, 6))
PLAIN = {f"drift_{kind}_{since}" for kind in ("cosine", "spearman") for since in ("previous", "first")}
LIKE_NOW = 1.0


def found(value: torch.Tensor, *history: Report, metric: Any = None, **arguments: Any) -> Report:
    """The report of a map that is known beforehand."""
    maps = {"it": Given(value, **arguments)}
    return explain(Linear(torch.ones(6)), SIX, maps, {"drift": metric or q.Drift()}, history=history)


def scores(report: Report) -> dict[str, float]:
    return {key.partition("/")[0]: value for key, value in report.scalars().items() if key.startswith("drift")}


def test_the_first_explanation_has_no_drift() -> None:
    assert scores(found(torch.arange(6.0))) == {}


def test_a_map_that_stays_has_not_moved() -> None:
    first = found(torch.arange(6.0))
    assert scores(found(torch.arange(6.0), first)) == pytest.approx(dict.fromkeys(PLAIN, LIKE_NOW))


def test_a_map_is_compared_with_the_one_before_and_with_the_first() -> None:
    up, down, third = torch.tensor([1.0, 2, 3, 4, 5, 6]), -torch.arange(1.0, 7), torch.tensor([1.0, 0, 0, 0, 0, 0])
    first = found(up)
    second = found(down, first)
    assert scores(second) == pytest.approx(dict.fromkeys(PLAIN, -1.0))
    last = scores(found(third, first, second))
    assert last["drift_cosine_first"] == pytest.approx(1 / math.sqrt(91))
    assert last["drift_cosine_previous"] == pytest.approx(-1 / math.sqrt(91))
    assert last["drift_spearman_first"] == pytest.approx(spearmanr(third, up).statistic)


def test_drift_by_size_ignores_signs() -> None:
    first = found(torch.arange(6.0))
    turned = scores(found(-torch.arange(6.0), first, metric=q.Drift(abs=True)))
    assert turned == pytest.approx(dict.fromkeys(PLAIN, LIKE_NOW))


def test_the_scale_of_a_map_does_not_matter() -> None:
    first = found(1e-30 * torch.arange(6.0))
    assert scores(found(1e30 * torch.arange(6.0), first)) == pytest.approx(dict.fromkeys(PLAIN, LIKE_NOW))


def test_a_sample_is_found_by_its_id_whatever_its_place() -> None:
    x, y = samples(4)
    probe = Probe(x, y, ids=torch.tensor([5, 3, 9, 1]))
    first = explain(trained(), probe, {"it": m.Saliency()}, [])
    history = History().followed_by(first, probe)
    order = torch.tensor([2, 0, 3, 1])
    turned = Probe(x[order], y[order], ids=probe.sample_ids[order])
    mixed = explain(trained(), turned, {"it": m.Saliency()}, [])
    at = Samples((turned.inputs,), (turned.inputs,), (), turned.sample_ids, turned.sample_ids)  # type: ignore[arg-type]
    (placed,) = history.of(first.fingerprint, at, of_probe(turned))["first"]["it"]
    assert torch.equal(placed, mixed.attributions["it"])


def test_samples_of_another_probe_have_no_history() -> None:
    first = found(torch.arange(6.0))
    other = explain(
        Linear(torch.ones(6)), Probe(torch.zeros(2, 6)), {"it": Given(torch.ones(6))}, [q.Drift()], history=[first]
    )
    assert scores(other) == {}
    with pytest.raises(ValueError, match="history holds reports of different probes; give those of one probe"):
        found(torch.arange(6.0), first, other)


@pytest.mark.parametrize("history", ["one", 3, [1]])
def test_a_history_that_is_none_is_refused(history: Any) -> None:
    with pytest.raises(TypeError, match=r"history .* give a list of reports, the oldest first"):
        explain(Linear(torch.ones(6)), SIX, {"it": Given(torch.ones(6))}, [], history=history)


def test_a_sample_that_once_was_no_number_is_compared_with_what_came_before_or_after() -> None:
    up = torch.arange(12.0).reshape(2, 6)
    broken = up.clone()
    broken[1] = torch.nan
    reports = [found(broken, by_sample=True), found(up, by_sample=True)]
    again = found(up, *reports, by_sample=True)
    assert all(values["it"].isfinite().all() for values in again.scores.values())
    assert scores(found(up, reports[1], reports[0], by_sample=True)) == pytest.approx(dict.fromkeys(PLAIN, LIKE_NOW))


def test_structural_similarity_is_torchmetrics_of_maps_over_their_largest_size() -> None:
    a, b = torch.randn(3, 1, 12, 13), torch.randn(3, 1, 12, 13)
    b[0] = 7 * a[0]
    a[2] = 0
    values = ssim(a, b)
    assert values[0].item() == pytest.approx(1)
    first, second = a[1:2] / a[1].abs().max(), b[1:2] / b[1].abs().max()
    assert values[1].item() == pytest.approx(
        float(structural_similarity_index_measure(first, second, data_range=2.0)), abs=1e-5
    )
    assert values[2].isnan()
    assert cosine(a.flatten(1), b.flatten(1))[2].isnan()


@pytest.mark.parametrize(("side", "there"), [(11, True), (10, False)])
def test_structural_similarity_is_for_images_of_at_least_11_pixels(side: int, there: bool) -> None:
    probe = Probe(torch.randn(2, 3, side, 12))
    model = Linear(torch.randn(3, side, 12))
    methods = {"it": m.InputXGradient()}
    first = explain(model, probe, methods, [q.Drift()])
    second = explain(model, probe, methods, [q.Drift()], history=[first])
    images = {"drift_ssim_previous", "drift_ssim_first"} if there else set()
    assert set(second.scores) == PLAIN | images
    assert scores(second) == pytest.approx(dict.fromkeys(PLAIN | images, LIKE_NOW))


def test_maps_of_layers_drift_on_the_image() -> None:
    x, y = samples(3)
    methods = {"cam": m.LayerGradCam("block.relu2"), "head": m.LayerActivation("head")}
    with pytest.warns(UserWarning, match="No metric will score 'head': its map has no place on the image"):
        first = explain(trained(), Probe(x, y), methods, [q.Drift()])
    with pytest.warns(UserWarning, match="No metric will score 'head'"):
        second = explain(trained(), Probe(x, y), methods, [q.Drift()], history=[first])
    assert second.scores["drift_cosine_first"].keys() == {"cam"}
    assert second.scores["drift_cosine_first"]["cam"].tolist() == pytest.approx([1, 1, 1])


# -- in a training -------------------------------------------------------------------------------------------------

METHODS = {"saliency": m.Saliency(abs=False), "cam": m.LayerGradCam()}


def drifting(**arguments: Any) -> ExplanationMonitor:
    return monitor(**{"methods": METHODS, "metrics": [q.Drift()], **arguments})


def test_a_run_has_no_drift_in_its_first_explanation_and_all_in_its_second(tmp_path: Path) -> None:
    assert not any("drift" in key for key in keys(fit(tmp_path, drifting())))
    finished = fit(tmp_path / "two", drifting(), max_epochs=2)
    both = {f"explain/{score}/{method}" for score in PLAIN for method in METHODS}
    assert {key for key in keys(finished) if "drift" in key} == both
    first, second = load_reports(tmp_path / "two" / "explain")
    one, two = (r.attributions["saliency"].flatten(1).double() for r in (first, second))
    expected = torch.nn.functional.cosine_similarity(one, two)
    assert torch.allclose(second.scores["drift_cosine_first"]["saliency"].double(), expected, atol=1e-5)
    assert torch.equal(second.scores["drift_cosine_first"]["cam"], second.scores["drift_cosine_previous"]["cam"]), (
        "of two explanations the first is the one before"
    )


@pytest.mark.parametrize("save_probe", [True, False])
def test_a_resumed_run_has_the_drift_of_an_uninterrupted_one(save_probe: bool, tmp_path: Path) -> None:
    def trainings(root: Path, epochs: int, ckpt: Path | None = None) -> Report:
        torch.manual_seed(1)
        watch = drifting(save_probe=save_probe, probe=ProbeSelection(count=4))
        run = trainer(root, watch, max_epochs=epochs)
        resumed = {} if ckpt is None else {"ckpt_path": ckpt, **SAFE}
        torch.manual_seed(1)
        module = DigitModule()
        module.net.dropout.p = 0.0
        run.fit(module, loader(0, 32), loader(100, 24), **resumed)
        run.save_checkpoint(root / "last.ckpt")
        return report_of(watch)

    whole = trainings(tmp_path / "whole", 3)
    trainings(tmp_path / "half", 2)
    resumed = trainings(tmp_path / "resumed", 3, tmp_path / "half" / "last.ckpt")
    assert whole.scores.keys() == resumed.scores.keys() == PLAIN
    for score, by_method in whole.scores.items():
        assert by_method.keys() == METHODS.keys()
        for method, values in by_method.items():
            assert torch.equal(values, resumed.scores[score][method]), (score, method)


def test_what_is_kept_is_small_and_only_kept_where_it_is_wanted() -> None:
    watch = monitor()
    assert watch.state_dict()["history"]["first"] == {}
    x, y = samples(3)
    probe = Probe(x.repeat(1, 3, 1, 1), y)
    report = explain(Linear(torch.randn(3, 8, 8)), probe, {"it": m.InputXGradient()}, [])
    state = History().followed_by(report, probe).state()
    (kept,) = state["first"]["it"]
    assert kept.shape == (3, 1, 8, 8)
    assert kept.dtype == torch.float32
    assert kept.device.type == "cpu"


def test_a_method_that_failed_in_between_is_compared_with_the_last_map_it_had() -> None:
    up = found(torch.arange(6.0))
    history = (
        History()
        .followed_by(up, SIX)
        .followed_by(explain(Linear(torch.ones(6)), SIX, {"other": Given(torch.ones(6))}, []), SIX)
    )
    assert torch.equal(history.previous["it"][0], history.first["it"][0])


# -- those who watch -----------------------------------------------------------------------------------------------

KEY = "explain/drift_cosine_first/saliency"


def test_a_watcher_finds_a_value_if_the_monitor_explains_at_the_start(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "checkpoints", monitor=KEY, mode="max", save_top_k=-1)
    fit(tmp_path, drifting(at_start=True), best, EarlyStopping(monitor=KEY, patience=9), max_epochs=2)
    assert len(best.best_k_models) == 2
    assert all(value.isfinite() for value in best.best_k_models.values())


def test_a_checkpoint_that_looks_before_the_second_explanation_sees_the_worst_value(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "checkpoints", monitor=KEY, mode="max")
    finished = fit(tmp_path, drifting(), best, max_epochs=2)
    assert finished.current_epoch == 2
    assert best.best_model_path.endswith("epoch=1-step=8.ckpt")


@pytest.mark.filterwarnings("ignore:.*runs more often")
def test_a_watcher_that_looks_from_the_second_explanation_on_is_let_through(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "checkpoints", monitor=KEY, every_n_epochs=2)
    fit(tmp_path, drifting(), best, max_epochs=2)
    assert best.best_model_score is not None


def test_a_watcher_of_structural_similarity_on_small_images_is_refused_before_training(tmp_path: Path) -> None:
    stop = EarlyStopping(monitor="explain/drift_ssim_first/saliency")
    with pytest.raises(ValueError, match="monitors a score that is not logged: did you mean"):
        fit(tmp_path, drifting(at_start=True), stop)


def test_a_run_resumed_without_history_explains_at_the_start_again(tmp_path: Path) -> None:
    before = fit(tmp_path, monitor(methods=METHODS, metrics=[]), max_epochs=1)
    before.save_checkpoint(tmp_path / "last.ckpt")
    watch = drifting(at_start=True)
    stop = EarlyStopping(monitor=KEY, patience=9)
    run = trainer(tmp_path, watch, stop, max_epochs=2)
    run.fit(DigitModule(), **loaders(), ckpt_path=tmp_path / "last.ckpt", **SAFE)
    assert stop.best_score.isfinite()
