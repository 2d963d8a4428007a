"""The tutorial: a pretrained network, a cat, and heat on the cat."""

from __future__ import annotations

import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import resnet18

from lightning_explain.core.report import Report
from lightning_explain.metrics.localisation import relevance_mass
from lightning_explain.modalities.image import upsample

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import tutorial_cat as tutorial

pytestmark = pytest.mark.slow

CHEAP = {"n_steps": 4, "nt_samples": 2, "n_samples": 4, "window": 48, "stride": 48}
HEAD = (slice(10, 180), slice(20, 230))
"""Rows and columns of a box around the cat's head."""
BACKGROUND = (slice(60, None), slice(245, None))
"""Rows and columns of what is behind it, on the right."""


@pytest.fixture(scope="module")
def network() -> tutorial.Network:
    return tutorial.efficientnet_lite0()


@pytest.fixture(scope="module")
def done(network: tutorial.Network, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, list[Path]]:
    return tutorial.run(network, tmp_path_factory.mktemp("tutorial"), **CHEAP)


def test_the_network_sees_a_cat(done: tuple[Report, list[Path]]) -> None:
    top = tutorial.prediction(done[0])
    assert {name for name, _ in top} == {"Egyptian cat", "tabby", "tiger cat"}
    assert top[0][1] > 0.5


def test_every_figure_is_written_and_shows_something(
    done: tuple[Report, list[Path]], network: tutorial.Network
) -> None:
    paths = done[1]
    assert [path.name for path in paths] == [f"tutorial_{name}.png" for name in tutorial.figures(network)]
    pictures = [np.asarray(Image.open(path)) for path in paths]
    # A heat map begins after the titles and the photo.
    assert all(picture[60:, picture.shape[1] // 2 :].std() > 5 for picture in pictures)


def test_a_color_map_of_ones_own_colors_the_heat_map(done: tuple[Report, list[Path]]) -> None:
    top, left, (height, width) = 61, 203, tutorial.SIZE
    plain, blue = (np.asarray(Image.open(path)).astype(int) for path in done[1][:2])
    green = plain[top : top + height, left + width + 8 : left + 2 * width + 8]
    heat = blue[top : top + height, left : left + width]
    # Greens have most of green, and from white to blue to black blue is never less than the others.
    assert (green[:, :, 1] >= green[:, :, 2]).all()
    assert (heat[:, :, 2] >= heat[:, :, :2].max(2)).all()
    assert heat[:, :, 2].std() > 5


@pytest.mark.parametrize(("method", "least"), {"LayerGradCam": 1.5, "NoiseTunnel": 2, "IntegratedGradients": 1}.items())
def test_a_pixel_of_the_cat_has_more_heat_than_one_of_the_background(
    done: tuple[Report, list[Path]], method: str, least: float
) -> None:
    found = done[0].attributions[method]
    assert isinstance(found, torch.Tensor)
    heat = upsample(found.sum(1, keepdim=True), tutorial.SIZE)[0, 0].clamp(min=0)
    assert heat[HEAD].mean() > least * heat[BACKGROUND].mean()


@pytest.mark.parametrize("method", ["LayerGradCam", "NoiseTunnel"])
def test_the_share_on_the_head_is_more_than_its_share_of_the_photo(
    done: tuple[Report, list[Path]], method: str
) -> None:
    found = done[0].attributions[method]
    assert isinstance(found, torch.Tensor)
    mask = torch.zeros(1, *tutorial.SIZE, dtype=torch.bool)
    mask[0][HEAD] = True
    mass = relevance_mass(upsample(found.sum(1, keepdim=True), tutorial.SIZE), mask).item()
    assert mass > mask.float().mean().item() + 0.05


def test_occlusion_has_evidence_for_and_against(done: tuple[Report, list[Path]]) -> None:
    found = done[0].attributions["Occlusion"]
    assert isinstance(found, torch.Tensor)
    assert found.amax() > 0 > found.amin()


def test_without_a_download_efficientnet_takes_the_place_of_resnet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    assert tutorial.pretrained().name == "EfficientNet-Lite0"
    assert "cannot be downloaded (no network)" in capsys.readouterr().out


def test_weights_from_a_file_make_a_resnet(tmp_path: Path) -> None:
    given = resnet18()
    torch.save(given.state_dict(), tmp_path / "weights.pth")
    network = tutorial.pretrained(tmp_path / "weights.pth")
    assert network.name == "ResNet-18"
    assert isinstance(network.module.get_submodule(network.layer), torch.nn.Conv2d)
    assert torch.equal(network.module.state_dict()["fc.weight"], given.state_dict()["fc.weight"])
    assert not network.module.training
