"""Inputs with channels last are told before the first batch, with what to give, and that gives the maps of the channels."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from captum.attr import LayerAttribution, LayerGradCam
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor, Probe, explain
from training import DigitModule, trainer

N = 8
LABELS = torch.arange(N) % 2


class Net(nn.Module):
    """A network of images, or of the frames of videos, that takes its channels from where ``before`` puts them."""

    def __init__(self, conv: nn.Module, before: Callable[[Tensor], Tensor], frames: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.before, self.frames = conv, before, frames
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found = self.conv(self.before(x)).relu().flatten(2).mean(2)
        scores: Tensor = self.head(found.unflatten(0, (-1, self.frames)).mean(1))
        return scores


def image() -> Net:
    return Net(nn.Conv2d(3, 4, 3, padding=1), lambda x: x.permute(0, 3, 1, 2))


def scaled() -> Net:
    return Net(nn.Conv2d(3, 4, 3, padding=1), lambda x: x.permute(0, 3, 1, 2) / 255 - 0.5)


def video() -> Net:
    return Net(nn.Conv3d(3, 4, 3, padding=1), lambda x: x.permute(0, 4, 1, 2, 3))


def by_frame() -> Net:
    return Net(nn.Conv2d(3, 4, 3, padding=1), lambda x: x.movedim(-1, 2).flatten(0, 1), frames=6)


CASES = [
    (image, (12, 16, 3), 1),
    (scaled, (12, 16, 3), 1),
    (video, (6, 12, 16, 3), 1),
    (by_frame, (6, 12, 16, 3), 2),
]


def trained(net: Net, x: Tensor, path: Path, monitor: ExplanationMonitor) -> list[str]:
    """The warnings of channels of a training."""
    loader = DataLoader(TensorDataset(x, LABELS), N)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(path, monitor).fit(DigitModule(net), loader, loader)
    return [str(w.message) for w in caught if "channels" in str(w.message)]


@pytest.mark.parametrize(("made", "shape", "place"), CASES, ids=["image", "scaled", "video", "by_frame"])
def test_what_the_warning_says_to_give_moves_the_channels_of_maps(
    made: Callable[[], Net], shape: tuple[int, ...], place: int, tmp_path: Path
) -> None:
    x, net = torch.rand(N, *shape), made()
    (line,) = set(trained(net, x, tmp_path / "before", ExplanationMonitor(metrics=["Infidelity"])))
    assert f"(N, {', '.join(map(str, shape))})" in line
    found = re.search(r"batch_fn=(lambda b: .*) and forward_fn=(lambda .*)\.$", line)
    assert found, line
    batch_fn, forward_fn = map(eval, found.groups())
    net, monitor = made(), ExplanationMonitor(batch_fn=batch_fn, forward_fn=forward_fn)
    assert not trained(net, x, tmp_path / "after", monitor)
    report = monitor.last_report
    assert report is not None
    assert report.probe is not None
    assert isinstance(report.probe.inputs, Tensor)
    assert report.probe.inputs.shape[1:] == x.movedim(-1, place).shape[1:]
    assert set(report.attributions) == {"saliency", "ig", "cam"}


def test_the_cam_of_moved_channels_is_that_of_captum_on_the_model_as_it_is() -> None:
    x, net = torch.rand(N, 12, 16, 3), image().eval()
    probe = Probe(x.movedim(-1, 1), LABELS)
    report = explain(net, probe, ["LayerGradCam"], [], forward_fn=lambda model, x: model(x.movedim(1, -1)))
    (found,) = report.attributions.values()
    torch.testing.assert_close(found, LayerGradCam(net, net.conv).attribute(x, LABELS))
    assert LayerAttribution.interpolate(found, (12, 16)).shape == (N, 1, 12, 16)


def test_channels_first_and_other_orders_are_not_warned_of() -> None:
    first = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 12, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    spectrogram = nn.Sequential(Moved(), nn.Conv2d(20, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for net, shape in ((first, (3, 12, 3)), (first, (3, 12, 16)), (spectrogram, (20, 8, 20))):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            explain(net, Probe(torch.rand(N, *shape), LABELS), ["Saliency"], [])


class Moved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 3)
