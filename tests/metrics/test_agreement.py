from __future__ import annotations

import pytest
import torch
from scipy.stats import spearmanr

from given import Given, Linear
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.metrics.agreement import agreement
from networks import samples, trained


def test_agreement_is_the_mean_rank_correlation_with_the_other_methods() -> None:
    maps = {name: torch.randn(4, 40, dtype=torch.float64) for name in "abc"}
    found = agreement(maps)
    for name, value in found.items():
        for i in range(4):
            others = [spearmanr(maps[name][i], maps[o][i]).statistic for o in "abc" if o != name]
            assert value[i].item() == pytest.approx(sum(others) / 2)


def test_methods_that_rank_alike_agree_and_a_constant_map_counts_for_nobody() -> None:
    up = torch.arange(6.0)
    maps = {"up": Given(up), "squared": Given(up**2), "flat": Given(torch.ones(6))}
    report = explain(Linear(torch.ones(6)), Probe(torch.ones(2, 6)), maps, [q.Agreement()])
    found = report.scores["agreement"]
    assert found["up"].tolist() == pytest.approx([1, 1])
    assert found["squared"].tolist() == pytest.approx([1, 1])
    assert found["flat"].isnan().all()


def test_agreement_by_size_ignores_signs() -> None:
    up = torch.arange(6.0)
    maps = {"up": Given(up), "down": Given(-up)}
    metrics = {"signed": q.Agreement(), "sizes": q.Agreement(abs=True)}
    report = explain(Linear(torch.ones(6)), Probe(torch.ones(2, 6)), maps, metrics)
    assert report.scores["signed"]["up"].tolist() == pytest.approx([-1, -1])
    assert report.scores["sizes"]["up"].tolist() == pytest.approx([1, 1])


def test_a_single_method_has_nobody_to_agree_with() -> None:
    with pytest.warns(UserWarning, match="'agreement' will score none of the methods; it needs two methods whose maps"):
        report = explain(
            Linear(torch.ones(6)), Probe(torch.ones(2, 6)), {"it": Given(torch.arange(6.0))}, [q.Agreement()]
        )
    assert report.scores["agreement"] == {}
    assert not any(key.startswith("agreement") for key in report.scalars())


def test_maps_of_layers_and_of_inputs_are_compared_pixel_by_pixel() -> None:
    x, y = samples(4)
    methods = {"saliency": m.Saliency(), "cam": m.LayerGradCam("block")}
    report = explain(trained(), Probe(x, y), methods, [q.Agreement()])
    found = report.scores["agreement"]
    assert torch.equal(found["saliency"], found["cam"]), "of two methods each is the other's only other"
    maps = [report.attributions[name].flatten(1) for name in methods]
    assert found["cam"].tolist() == pytest.approx([spearmanr(a, b).statistic for a, b in zip(*maps, strict=True)])
