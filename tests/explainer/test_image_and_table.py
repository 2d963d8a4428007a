"""Beside a table, the default Grad-CAM of an image or a series is that of Captum, and lies on the image or series alone."""

from __future__ import annotations

import warnings

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor, nn

from lightning_explain import Probe, draw, explain
from lightning_explain.core.probe import as_tuple

N = 6
LABELS = torch.arange(N) % 2


class Both(nn.Module):
    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = conv, nn.Sequential(nn.Linear(4 + 3, 8), nn.ReLU(), nn.Linear(8, 2))

    def forward(self, scan: Tensor, meta: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.cat([self.conv(scan).relu().flatten(2).mean(2), meta], 1))
        return scores


CASES = {
    "image": (lambda: nn.Conv2d(1, 4, 3, 2, 1), (1, 16, 20), "bilinear"),
    "volume": (lambda: nn.Conv3d(1, 4, 3, 2, 1), (1, 8, 12, 16), "trilinear"),
    "series": (lambda: nn.Conv1d(2, 4, 3, 2, 1), (2, 24), "linear"),
}


@pytest.mark.parametrize("name", CASES)
def test_the_default_cam_is_that_of_captum_and_lies_on_that_input_alone(name: str) -> None:
    made, shape, mode = CASES[name]
    net, scan, meta = Both(made()).eval(), torch.rand(N, *shape), torch.randn(N, 3)
    report = explain(net, Probe({"scan": scan, "meta": meta}, LABELS), metrics=[])
    assert set(report.attributions) == {"saliency", "ig", "cam", "ablation"} - (
        {"ablation"} if scan[0].numel() > 125 else set()
    )
    by_hand = LayerGradCam(net, net.conv).attribute((scan, meta), LABELS)
    (found,) = as_tuple(report.attributions["cam"])
    torch.testing.assert_close(found, by_hand)
    on_scan, on_meta = report.maps["cam"]
    expected = LayerAttribution.interpolate(by_hand, shape[1:], mode)
    torch.testing.assert_close(LayerAttribution.interpolate(on_scan, shape[1:], mode), expected)
    assert on_meta.shape == meta.shape
    assert not on_meta.any()
    assert draw(report, "cam").ndim == draw(report, "overview").ndim == 3


def test_tables_and_codes_alone_have_no_cam() -> None:
    net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "cam" not in explain(net, Probe(torch.randn(N, 3), LABELS), metrics=[]).attributions
