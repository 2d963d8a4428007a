"""An input without a dimension of channels is refused with what to give, and that gives it maps of its own modality."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor, Probe, explain, modalities
from lightning_explain.core.contracts import Modality
from training import QUIET, DigitModule, trainer

pytestmark = QUIET

N = 8
LABELS = torch.arange(N) % 2


class Adding(nn.Module):
    """A network that adds the dimension of channels itself."""

    def __init__(self, conv: nn.Module) -> None:
        super().__init__()
        self.conv, self.head = conv, nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.conv(x.unsqueeze(1)).relu().flatten(2).mean(2))
        return scores


CASES: list[tuple[Modality, type[nn.Module], tuple[int, ...]]] = [
    (modalities.TimeSeries(rate=100.0), nn.Conv1d, (64,)),
    (modalities.Spectrogram(rate=100.0, hop_length=4), nn.Conv2d, (16, 20)),
    (modalities.Volume(), nn.Conv3d, (6, 12, 16)),
    (modalities.Video(), nn.Conv3d, (6, 12, 16)),
]


@pytest.mark.parametrize(("modality", "conv", "shape"), CASES, ids=[type(case[0]).__name__ for case in CASES])
def test_the_error_says_what_to_give_and_that_works(
    modality: Modality, conv: type[nn.Module], shape: tuple[int, ...], tmp_path: Path
) -> None:
    x, net = torch.rand(N, *shape), Adding(conv(1, 4, 3, padding=1))
    with pytest.raises(ValueError, match="no dimension of channels") as refusal:
        explain(net, Probe(x, LABELS), modalities=modality)
    assert "waveform" not in str(refusal.value)
    found = re.search(r"batch_fn=(lambda b: .*), forward_fn=(lambda .*)\.$", str(refusal.value))
    assert found
    batch_fn, forward_fn = map(eval, found.groups())
    monitor = ExplanationMonitor(modalities=modality, batch_fn=batch_fn, forward_fn=forward_fn)
    loader = DataLoader(TensorDataset(x, LABELS), N)
    trainer(tmp_path, monitor).fit(DigitModule(net), loader, loader)
    report = monitor.last_report
    assert report is not None
    assert report.probe is not None
    assert [type(one) for one in report.probe.modalities] == [type(modality)]
    assert set(report.attributions) == {"saliency", "ig", "cam"}
    saliency, cam = report.attributions["saliency"], report.attributions["cam"]
    assert isinstance(saliency, Tensor)
    assert isinstance(cam, Tensor)
    assert saliency.shape == (N, 1, *shape)
    assert cam.shape == (N, 1, *shape)


@pytest.mark.parametrize("shape", [(64,), (1, 64)])
def test_a_spectrogram_of_a_waveform_is_told_to_be_a_series(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="for a waveform, give TimeSeries"):
        explain(nn.Sequential(nn.Flatten(), nn.Linear(64, 2)), Probe(torch.rand(N, *shape)), modalities=CASES[1][0])


def test_other_shapes_have_no_such_fix() -> None:
    with pytest.raises(ValueError, match=r"TimeSeries needs .*, got \(8, 3, 8, 8\)\.$"):
        explain(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), Probe(torch.rand(N, 3, 8, 8)), modalities="TimeSeries")
