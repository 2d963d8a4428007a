"""The map of the steps of a forecast over the lags of its history: each cell is where its step and its lag are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_explain import Probe, Report, draw, explain
from lightning_explain import methods as m
from lightning_explain import modalities as d
from lightning_explain import targets as t
from lightning_explain.render.figure import draw_sample, figure_of
from lightning_explain.render.history import PictureHistory
from lightning_explain.render.options import Options

N, C, T, H = 3, 2, 10, 4
LABELS = torch.zeros(N, H)


def report(channels: int = C, target: Any = t.Horizon("each")) -> Report:  # noqa: B008
    """Step h depends on the value h + 2 times before the forecast, of the last channel."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(channels * T, H, bias=False))
    weights = torch.zeros(H, channels, T)
    for step in range(H):
        weights[step, -1, T - step - 2] = 1.0
    net[1].weight.data = weights.flatten(1)  # type: ignore[union-attr]
    series = torch.rand(N, channels, T, generator=torch.Generator().manual_seed(0)) + 0.5
    names = [f"c{i}" for i in range(channels)]
    probe = Probe(series, LABELS, ids=torch.tensor([4, 8, 6]), modalities=d.TimeSeries(names, "NCT"))
    return explain(net, probe, {"g": m.Saliency(abs=False), "ig": m.IntegratedGradients(n_steps=2)}, [], target)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_a_step_is_where_the_lag_is_that_it_depends_on(channels: int) -> None:
    found = report(channels)
    probe = found.probe
    assert probe is not None
    figure = figure_of(found, probe)
    (panel,) = figure.own["g"]
    blocks = channels if channels < 4 else 1
    cells = panel.values.reshape(N, blocks, H, T)[:, -1].nonzero()[:, 1:].unique(dim=0)
    assert cells.tolist() == [[step, T - step - 2] for step in range(H)]
    pages = figure.pictures()
    assert {"overview", "overview/2", "g", "g/2", "ig", "ig/2"} == set(pages)
    colors = np.unique(pages["g"][40:395, 124:390].reshape(-1, 3), axis=0, return_counts=True)
    strong = max((count, tuple(color)) for color, count in zip(*colors, strict=True) if color.max() - color.min() > 100)
    at = (pages["g"][40:395, 124:390] == strong[1]).all(-1)
    rows, columns = (np.flatnonzero(at.any(axis)) for axis in (1, 0))
    assert at[rows[0]].nonzero()[0].mean() > at[rows[-1]].nonzero()[0].mean(), "later steps look further back"
    assert columns.max() < 0.95 * at.shape[1], "the last value is not used"
    assert [caption.lines[0] for caption in figure.captions] == ["sample 4", "sample 8", "sample 6"]


def test_pictures_over_epochs_and_of_single_steps_are_drawn() -> None:
    found = report()
    probe = found.probe
    assert probe is not None
    figure = figure_of(found, probe)
    history = PictureHistory().followed_by(figure.snapshot, found.fingerprint)
    pages = figure.pictures(history)
    assert {"history/g", "history/ig"} <= set(pages)
    assert all(page.shape == (430, 700, 3) for page in pages.values())
    assert len(PictureHistory.of_state(history.state()).kept) == 1
    assert draw_sample(found, probe, Options(), "g", 5).shape[2] == 3
    assert draw(found, "g", layout="composite").shape[2] == 3


def test_curves_of_each_step_are_drawn_where_they_are_asked_for() -> None:
    found = report()
    assert found.probe is not None
    (panel,) = figure_of(found, found.probe, Options(panels=["series"])).own["g"]  # type: ignore[arg-type]
    assert panel.kind == "series"
    assert len(panel.values) == N * H


def test_a_map_of_steps_without_maps_of_steps_is_refused() -> None:
    found = report(target=t.Horizon(1))
    assert found.probe is not None
    with pytest.raises(ValueError, match=r'panels names "horizon", which needs a map of each step .*Horizon\("each"\)'):
        figure_of(found, found.probe, Options(panels=["horizon"]))  # type: ignore[arg-type]
    broken = report()
    zeros = {name: torch.full_like(value, torch.nan) for name, value in broken.attributions.items()}  # type: ignore[arg-type]
    assert draw(replace(broken, attributions=zeros), "g").shape == (430, 700, 3)
