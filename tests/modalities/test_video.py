"""Videos: frames and their pixels in both layouts; Grad-CAM of each frame where a CNN runs on all of them, as Captum computes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum import attr as captum
from torch import Tensor, nn

from lightning_explain import Probe, draw, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import Arrangement, InputFacts
from lightning_explain.core.panels import FramesPanel
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.modalities import Video, Volume, guess, restored, stored
from lightning_explain.render import frames
from lightning_explain.render.regions import OUTLINE_COLOR


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, LABELS = rand(4, 5, 3, 8, 10), torch.tensor([0, 1, 0, 1])


class ByFrame(nn.Module):
    """A CNN on each frame, and a weighted mean over the frames, so that each sample depends on its own ones; or, mixed up, time first."""

    def __init__(self, time_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.rnn, self.head, self.time_first = nn.GRU(6, 7, batch_first=True), nn.Linear(7, 2), time_first

    def forward(self, x: Tensor) -> Tensor:
        flat = x.transpose(0, 1).flatten(0, 1) if self.time_first else x.flatten(0, 1)
        codes = self.pool(torch.relu(self.second(torch.relu(self.first(flat))))).flatten(1)
        codes = (
            codes.unflatten(0, (x.shape[1], -1)).transpose(0, 1) if self.time_first else codes.unflatten(0, x.shape[:2])
        )
        found: Tensor = self.head(self.rnn(codes)[0].amax(1))
        return found


class InThree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv3d(3, 6, 3, stride=(1, 2, 2), padding=1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.conv(x)).mean((2, 3, 4)))
        return found


def close(ours: Any, theirs: Tensor) -> bool:
    return bool((ours - theirs).detach().abs().max() <= 1e-5 * theirs.detach().abs().max())


@pytest.mark.filterwarnings("ignore:RNN module weights")
def test_grad_cam_of_each_frame_is_captums() -> None:
    model = ByFrame().eval()
    methods = {"saliency": m.Saliency(abs=False), "ig": m.IntegratedGradients(n_steps=16), "cam": m.LayerGradCam()}
    report = explain(model, Probe(X, LABELS), methods, [q.Infidelity(n_perturb_samples=4)])
    assert report.probe is not None
    assert report.probe.modalities == (Video(layout="NTCHW"),)
    by_hand = captum.LayerGradCam(model, model.second).attribute(X, target=LABELS).unflatten(0, (4, 5)).transpose(1, 2)
    assert report.attributions["cam"].shape == (4, 1, 5, 4, 5)  # type: ignore[union-attr]
    assert close(report.attributions["cam"], by_hand)
    assert close(report.attributions["ig"], captum.IntegratedGradients(model).attribute(X, target=LABELS, n_steps=16))
    assert set(report.scores["infidelity"]) == {"saliency", "ig", "cam"}
    placed = Video(layout="NTCHW").onto(report.attributions["cam"], X)  # type: ignore[arg-type]
    each = captum.LayerAttribution.interpolate(by_hand[:, :, 2], (8, 10), "bilinear")
    assert close(placed[:, 2], each)


@pytest.mark.filterwarnings("ignore:RNN module weights")
@pytest.mark.parametrize("limit", [4, 1])
def test_integrated_gradients_of_each_frame_are_captums_and_the_default_before_a_recurrent_network(limit: int) -> None:
    model = ByFrame().eval()
    methods = {
        "lig": m.LayerIntegratedGradients("second", n_steps=4),
        "auto": m.LayerIntegratedGradients(n_steps="auto"),
    }
    report = explain(model, Probe(X, LABELS), methods, [], max_examples_per_pass=limit)
    by_hand = captum.LayerIntegratedGradients(model, model.second).attribute(X, target=LABELS, n_steps=4)
    assert close(report.attributions["lig"], by_hand.unflatten(0, (4, 5)))
    total = model(X) - model(torch.zeros_like(X))
    expected = total.gather(1, LABELS[:, None])[:, 0].detach()
    assert torch.allclose(report.attributions["auto"].flatten(1).sum(1), expected, rtol=0.02, atol=1e-4)  # type: ignore[union-attr]
    assert explain(model, Probe(X, LABELS), metrics=[]).attributions["cam"].shape == (4, 5, 6, 4, 5)  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:RNN module weights")
def test_grad_cam_before_a_recurrent_network_gets_a_finding_and_one_before_a_mean_over_frames_none() -> None:
    class Mean(ByFrame):
        def forward(self, x: Tensor) -> Tensor:
            codes = self.pool(self.second(torch.relu(self.first(x.flatten(0, 1))))).flatten(1)
            return codes.unflatten(0, x.shape[:2]).mean(1)[:, :2]

    named = {"cam": m.LayerGradCam("second")}
    finding = Explainer(named, {}).check(ByFrame().eval(), Probe(X, LABELS)).findings["cam"]
    assert (
        "after the layer 'second' each place of each frame has weights of its own; before a recurrent network"
        in finding
    )
    assert finding.endswith("Fix: use LayerIntegratedGradients.")
    assert not Explainer(named, {}).check(Mean().eval(), Probe(X, LABELS)).findings


def test_layers_that_hold_frames_are_read_by_methods_on_a_path_and_refused_to_others() -> None:
    model = ByFrame().eval()
    methods = {"gxa": m.LayerGradientXActivation("second"), "active": m.LayerActivation("first")}
    report = explain(model, Probe(X, LABELS), methods, [])
    by_hand = captum.LayerGradientXActivation(model, model.second).attribute(X, target=LABELS).unflatten(0, (4, 5))
    assert close(report.attributions["gxa"], by_hand)
    assert report.attributions["active"].shape == (4, 5, 4, 8, 10)  # type: ignore[union-attr]
    with pytest.raises(
        ValueError, match=r"'second' returns \(15, 6, 4, 5\) for 3 samples; its first dimension must be"
    ):
        explain(model, Probe(X, LABELS), [m.LayerFeatureAblation("second")], [])


def test_frames_that_come_time_first_are_left_out_of_the_default_with_one_line() -> None:
    with pytest.warns(UserWarning, match=r"'cam' \(LayerGradCam\) is left out"):
        report = explain(ByFrame(time_first=True).eval(), Probe(X, LABELS), metrics=[])
    assert report.attributions.keys() == {"saliency", "ig"}


def test_three_dimensional_convolutions_of_three_channels_see_a_video() -> None:
    x, model = X.transpose(1, 2).contiguous(), InThree().eval()
    report = explain(model, Probe(x, LABELS), metrics=[])
    assert report.probe is not None
    assert report.probe.modalities == (Video(layout="NCTHW"),)
    assert close(report.attributions["cam"], captum.LayerGradCam(model, model.conv).attribute(x, target=LABELS))
    assert guess((rand(2, 1, 5, 8, 8),)) == (Volume(),)


@pytest.mark.parametrize("layout", ["NTCHW", "NCTHW"])
def test_units_regions_and_masks_follow_the_layout(layout: str) -> None:
    x = X if layout == "NTCHW" else X.transpose(1, 2)
    modality, channels = Video(layout=layout), 3 - (1 + (layout == "NCTHW"))
    assert modality.grid(x) == (5, 8, 10)
    region = modality.region(x, None, lambda like: torch.full_like(like, 0.5))
    assert region.shape == modality.units(x)
    assert region[0].sum() == 1 * 2 * 2
    assert region.sum(channels)[0].any((1, 2)).sum() == 1
    masks = torch.rand(4, 5, 8, 10) > 0.5
    assert torch.equal(modality.inside(masks, x).sum(channels), masks)  # type: ignore[union-attr]
    assert modality.place(torch.zeros(4, 6, 5, 4, 5), x, Arrangement(layer=nn.Conv3d(1, 1, 1))).shape[1] == 6  # type: ignore[union-attr]


def test_a_grid_of_a_video_is_of_cubes() -> None:
    report = explain(ByFrame().eval(), Probe(X, LABELS), {"cubes": m.FeatureAblation(feature_mask={"grid": 4})}, [])
    found = report.attributions["cubes"]
    assert isinstance(found, Tensor)
    assert (found[:, :4, :, :4, :4] == found[:, :1, :1, :1, :1]).all()
    assert found[0].unique().numel() == 2 * 2 * 3


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Video(layout="TNCHW"), r"Video\(layout='TNCHW'\); give"),
        (lambda: Video(rate=0), r"Video\(rate=0\); give frames per second"),
        (lambda: Video().bound(X[0], InputFacts()), r"Video needs \(N, T, C, H, W\) or \(N, C, T, H, W\), got"),
        (lambda: Video().region(X, 9, torch.rand_like), "no larger than the shorter side of the frames, 8 pixels"),
    ],
)
def test_what_does_not_fit_is_refused(make: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_the_strongest_frames_are_shown_in_their_order() -> None:
    values = torch.zeros(1, 12, 6, 6)
    values[0, [9, 2, 4]] = torch.tensor([3.0, -2.0, 1.0])[:, None, None]
    shown = frames.Shown(FramesPanel("", values, frames=torch.rand(1, 12, 3, 6, 6), rate=4.0), 0, values[0] / 3)
    assert shown.strongest(3) == [2, 4, 9]
    assert [shown.name(frame) for frame in (2, 9)] == ["0.50 s", "2.25 s"]
    nothing = frames.Shown(FramesPanel("", values, frames=torch.rand(1, 12, 3, 6, 6)), 0, values[0] * 0)
    assert nothing.strongest(6) == [0, 2, 4, 7, 9, 11]
    assert shown.strongest(6) == [0, 2, 4, 6, 9, 11]
    assert nothing.name(2) == "frame 3"


def test_what_files_keep_draws_the_same_picture() -> None:
    modality = Video(layout="NTCHW", rate=25.0)
    assert restored(stored((modality,))) == (modality,)
    masks = torch.zeros(4, 5, 8, 10, dtype=torch.bool)
    masks[:, :, 2:5, 2:6] = True
    report = explain(ByFrame().eval(), Probe(X, LABELS, masks=masks), [m.Saliency(abs=False)], [q.RelevanceMass()])
    page = draw(report, "saliency")
    assert page.shape == (430, 700, 3)
    assert (page == OUTLINE_COLOR).all(-1).any()
    assert np.array_equal(page, draw(report, "saliency"))
    assert draw(report, "saliency", layout="composite").shape[1] > 300
