"""Where a layer's map lies on the image."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captum import attr as captum
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from lightning_explain import ExplanationMonitor, Probe, explain, load_reports
from lightning_explain import methods as m
from lightning_explain import modalities as d
from lightning_explain.core.contracts import Arrangement
from lightning_explain.modalities import guess
from lightning_explain.modalities.image import check_reshape
from lightning_explain.modalities.placement import arrange, onto
from lightning_explain.render.composite import composite as draw
from lightning_explain.store.report_files import save_report
from training import QUIET, Blind, trainer

VIT_LAYER = "encoder.layers.encoder_layer_0.ln_1"
IMAGE = (torch.zeros(1, 3, 64, 64),)


def vit() -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(
        image_size=64, patch_size=16, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
    )
    model.heads.head.weight.data.normal_()
    return model.eval()


def swin(channels: int = 12) -> SwinTransformer:
    torch.manual_seed(0)
    return SwinTransformer([4, 4], channels, [1, 1], [2, 2], [4, 4], stochastic_depth_prob=0.0, num_classes=3).eval()


class Tokens(nn.Module):
    """Patches of 16 pixels as tokens, behind a class token; each network of its kind in small."""

    def __init__(self, first: int = 1) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = first
        self.patches = nn.Conv2d(3, 6, 16, 16, bias=False)
        self.tokens = nn.Linear(6, 5)
        self.relu = nn.ReLU()
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([patches.new_zeros(len(x), self.first, 6), patches], 1)
        return self.head(self.relu(self.tokens(tokens)).mean(1))


class AsImage(nn.Module):
    """A module whose ``(N, ..., C)`` goes through an identity as ``(N, C, h, w)``, which Captum can look at."""

    def __init__(self, real: nn.Module, size: tuple[int, int], first: int) -> None:
        super().__init__()
        self.real, self.size, self.first, self.looked_at = real, size, first, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.real(x)
        flat = out.reshape(len(out), -1, out.shape[-1])
        grid = flat[:, self.first :].transpose(1, 2).unflatten(2, self.size)
        back = self.looked_at(grid).flatten(2).transpose(1, 2)
        return torch.cat([flat[:, : self.first], back], 1).reshape(out.shape)


def images(n: int = 2) -> Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def to_input_space(found: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
    placed = arrange(found, inputs, guess(inputs))
    return None if placed is None else onto(placed, inputs, guess(inputs))


def hottest(found: tuple[Tensor, ...] | None) -> tuple[int, int]:
    assert found is not None
    (placed,) = found
    assert placed.shape[1:] == (1, 64, 64)
    # The mean of each block of 16 pixels, for bilinear upsampling blurs its borders.
    blocks = F.avg_pool2d(placed, 16)
    return divmod(int(blocks[0, 0].argmax()), 4)


# -- a planted patch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
@pytest.mark.parametrize("patch", [0, 3, 9, 15])
def test_a_hot_token_lands_on_its_block(first: int, patch: int) -> None:
    tokens = torch.zeros(1, first + 16, 5)
    tokens[0, first + patch, 2] = 1
    assert hottest(to_input_space((tokens,), IMAGE)) == divmod(patch, 4)


def test_the_class_token_is_dropped() -> None:
    tokens = torch.zeros(1, 17, 5)
    tokens[0, 0] = 100
    placed = to_input_space((tokens,), IMAGE)
    assert placed is not None
    assert placed[0].abs().max() == 0


@pytest.mark.parametrize("patch", [0, 3, 9, 15])
def test_a_hot_place_of_channels_last_lands_on_its_block(patch: int) -> None:
    value = torch.zeros(1, 16, 6)
    value[0, patch] = 1
    assert hottest(to_input_space((value.reshape(1, 4, 4, 6),), IMAGE)) == divmod(patch, 4)


@pytest.mark.parametrize("patch", [0, 6, 15])
def test_a_hot_patch_of_an_image_lands_where_it_is(patch: int) -> None:
    sample, column = divmod(patch, 4)
    x = torch.zeros(1, 3, 64, 64)
    x[:, :, 16 * sample : 16 * sample + 16, 16 * column : 16 * column + 16] = 1
    first, second = vit(), swin()
    with torch.no_grad():
        first.conv_proj.weight.abs_()
        second.features[0][0].weight.abs_()
        for zero in (first.conv_proj.bias, first.encoder.pos_embedding, second.features[0][0].bias):
            zero.zero_()
        first.class_token.fill_(100)
    for model, layer, shape in (
        (first, "encoder.dropout", (1, 17, 16)),
        (second, "features.0.1", (1, 16, 16, 12)),
    ):
        report = explain(model, Probe(x), {"it": m.LayerActivation(layer)}, [])
        assert report.attributions["it"].shape == shape, "the layer's own shape stays"  # type: ignore[union-attr]
        size = (4, 4) if model is first else (16, 16)
        assert report.maps["it"][0].shape == (1, 1, *size)
        assert hottest(to_input_space(report.maps["it"], (x,))) == (sample, column)


# -- how a shape is read -------------------------------------------------------------------------------------------


def arranged(*shape: int, image: tuple[int, int] = (64, 64), **how: Any) -> tuple[int, ...] | None:
    inputs = (torch.zeros(2, 3, *image),)
    found = arrange((torch.zeros(2, *shape),), inputs, guess(inputs), Arrangement(**how))
    return None if found is None else tuple(found[0].shape[1:])


@pytest.mark.parametrize(
    ("shape", "image", "expected"),
    [
        ((197, 8), (224, 224), (1, 14, 14)),
        ((196, 8), (224, 224), (1, 14, 14)),
        ((9, 8), (32, 64), (1, 2, 4)),
        ((8, 8), (64, 32), (1, 4, 2)),
        ((50, 8), (100, 100), (1, 7, 7)),
        ((199, 8), (224, 224), None),
        ((201, 8), (224, 224), (1, 14, 14)),
        ((68, 8), (128, 128), (1, 8, 8)),
        ((1, 8), (64, 64), None),
        ((10,), (64, 64), None),
        ((8, 4, 4), (64, 64), (8, 4, 4)),
        ((4, 4, 8), (64, 64), (1, 4, 4)),
        ((2, 4, 16), (32, 64), (1, 2, 4)),
        ((16, 2, 4), (32, 64), (16, 2, 4)),
        ((8, 8, 8), (64, 64), (8, 8, 8)),
        ((8, 13, 7), (64, 64), (8, 13, 7)),
        ((3, 64, 64), (64, 64), (3, 64, 64)),
        ((8, 0, 0), (64, 64), None),
    ],
)
def test_the_shape_says_how_a_map_lies(
    shape: tuple[int, ...], image: tuple[int, int], expected: tuple[int, ...] | None
) -> None:
    assert arranged(*shape, image=image) == expected


@pytest.mark.parametrize(
    ("layer", "last"),
    [
        (nn.LayerNorm(8), True),
        (nn.Linear(4, 8), True),
        (nn.Conv2d(3, 8, 1), False),
        (nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Linear(8, 8))), False),
        (nn.ReLU(), False),
    ],
)
def test_the_layer_decides_where_the_shape_does_not(layer: nn.Module, last: bool) -> None:
    assert arranged(8, 8, 8, layer=layer) == ((1, 8, 8) if last else (8, 8, 8))


def test_torchvision_layers_decide_for_themselves() -> None:
    model = swin(16)
    ends = {name: model.get_submodule(name) for name in ("features.0", "features.1.0", "features.1.0.mlp")}
    assert {name: arranged(16, 16, 16, layer=layer) for name, layer in ends.items()} == dict.fromkeys(ends, (1, 16, 16))
    assert arranged(16, 16, 16, layer=model.features[0][0]) == (16, 16, 16)
    assert arranged(16, 16, 16, layer=model.features[0], of_input=True) == (16, 16, 16)
    assert arranged(16, 16, 16, layer=model.permute) == (16, 16, 16)
    assert arranged(16, 16, 16, layer=model.permute, of_input=True) == (1, 16, 16)


@pytest.mark.parametrize(
    ("shape", "reshape", "expected"),
    [
        ((21, 8), (4, 4), (1, 4, 4)),
        ((17, 8), (2, 8), (1, 2, 8)),
        ((4, 8, 4), (4, 8), (1, 4, 8)),
        ((4, 8, 16), (8, 16), (4, 8, 16)),
        ((8, 13, 7), "channels_first", (8, 13, 7)),
        ((8, 8, 8), "channels_last", (1, 8, 8)),
        ((17, 8), "tokens", (1, 4, 4)),
        ((8, 8, 8), "none", None),
        ((16,), lambda v: v.reshape(len(v), 1, 2, 8), (1, 2, 8)),
    ],
)
def test_reshape_says_how_a_map_lies(shape: tuple[int, ...], reshape: Any, expected: tuple[int, ...] | None) -> None:
    assert arranged(*shape, reshape=reshape) == expected


@pytest.mark.parametrize("value", ["token", (4,), (4, 0), (2.0, 2), 4, True])
def test_what_is_no_way_to_arrange_is_refused_at_once(value: Any) -> None:
    with pytest.raises(ValueError, match=r"LayerLRP\(reshape=.*\); give None, 'channels_first'"):
        m.LayerLRP(reshape=value)
    with pytest.raises(ValueError, match="Grad"):
        check_reshape("Grad", value)


@pytest.mark.parametrize(
    ("reshape", "match"),
    [
        ((3, 3), r"'cam' \(\w+\): reshape=\(3, 3\) does not fit the layer's \(3, 17, 5\); give None"),
        ("channels_last", r"'cam' \(\w+\): reshape='channels_last' does not fit the layer's \(3, 17, 5\)"),
        (lambda v: v, r"reshape turned \(3, 17, 5\) into \(3, 17, 5\); give a function that returns \(3, C, h, w\)"),
    ],
)
@pytest.mark.parametrize("cls", [m.LayerGradCam, m.GuidedGradCam, m.LayerActivation])
def test_a_way_that_does_not_fit_is_refused_before_anything_is_explained(cls: Any, reshape: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        explain(Tokens(), Probe(images()), {"cam": cls("tokens", reshape=reshape)}, [])


def test_a_model_without_an_image_has_no_place_for_a_map() -> None:
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))
    with pytest.raises(
        ValueError,
        match=r"'act' .*: it has reshape=<.*whose only input is an image \(N, C, H, W\); leave reshape out",
    ):
        explain(net, Probe(torch.rand(2, 4)), {"act": m.LayerActivation("1", reshape=lambda v: v[:, None, None])}, [])


# -- every method --------------------------------------------------------------------------------------------------

CAMS = ("LayerGradCam", "LayerCAM", "HiResCAM")
AT_LAYER = [cls for name in m.__all__ if (cls := getattr(m, name)).layer_shaped]


def test_there_are_thirteen_methods_at_layers() -> None:
    assert len(AT_LAYER) == 13


@pytest.mark.filterwarnings("ignore")
def test_every_layer_method_keeps_its_shape_and_is_scored_on_the_image() -> None:
    methods = {cls.__name__: cls(layer="tokens") for cls in AT_LAYER if cls is not m.LayerLRP}
    methods["tunnel"] = m.NoiseTunnel(m.LayerGradientXActivation("tokens"), nt_samples=2)
    report = explain(Tokens(), Probe(images()), methods, ["Infidelity"])
    for name in methods:
        shape = (2, 1, 4, 4) if name in CAMS else (2, 17, 5)
        assert report.attributions[name].shape == shape, name  # type: ignore[union-attr]
        assert name in report.scores["infidelity"]
    assert {name: found[0].shape for name, found in report.maps.items()} == {
        name: (2, 1, 4, 4) for name in methods if name not in CAMS
    }
    unplaced = {name: replace(method, reshape="none") for name, method in methods.items() if name != "tunnel"}
    report = explain(Tokens(), Probe(images()), unplaced, ["Infidelity"])
    assert not report.scores.get("infidelity")


def test_a_conv_net_needs_no_stored_places() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 256, 2))
    methods = {"cam": m.LayerGradCam(), "act": m.LayerActivation("1"), "flat": m.LayerActivation("2")}
    assert explain(net, Probe(images()), methods, []).maps == {}


@pytest.mark.parametrize("summed", [True, False])
@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize(
    ("build", "layer", "size", "first"),
    [
        (vit, VIT_LAYER, (4, 4), 1),
        (Tokens, "tokens", (4, 4), 1),
        (swin, "features.0", (16, 16), 0),
        (swin, "features.1.0", (16, 16), 0),
        (swin, "features.2", (8, 8), 0),
    ],
)
def test_grad_cam_is_captums_of_the_layer_as_an_image(
    build: Any, layer: str, size: tuple[int, int], first: int, relu: bool, summed: bool
) -> None:
    x, y = images(), torch.tensor([0, 2])
    method = m.LayerGradCam(layer, relu_attributions=relu, attr_dim_summation=summed)
    report = explain(build(), Probe(x, y), {"it": method}, [], max_examples_per_pass=1)
    model = build()
    parent, _, name = layer.rpartition(".")
    wrapper = AsImage(model.get_submodule(layer), size, first)
    setattr(model.get_submodule(parent), name, wrapper)
    expected = captum.LayerGradCam(model, wrapper.looked_at).attribute(
        x, y, relu_attributions=relu, attr_dim_summation=summed
    )
    assert expected.abs().max() > 0
    torch.testing.assert_close(report.attributions["it"], expected.detach(), rtol=1e-4, atol=1e-7)


@pytest.mark.filterwarnings("ignore:Setting", "ignore:Input Tensor")
def test_guided_grad_cam_is_captums_of_the_layer_as_an_image() -> None:
    x, y = images(), torch.tensor([0, 2])
    report = explain(Tokens(), Probe(x, y), {"it": m.GuidedGradCam("tokens")}, [])
    model = Tokens()
    model.tokens = wrapper = AsImage(model.tokens, (4, 4), 1)  # type: ignore[assignment]
    expected = captum.GuidedGradCam(model, wrapper.looked_at).attribute(x, y)
    torch.testing.assert_close(report.attributions["it"], expected.detach(), rtol=1e-4, atol=1e-7)


def test_grad_cam_without_a_place_is_captums() -> None:
    x, y = images(), torch.tensor([0, 2])
    report = explain(Tokens(), Probe(x, y), {"it": m.LayerGradCam("tokens", reshape="none")}, [])
    model = Tokens()
    assert torch.equal(report.attributions["it"], captum.LayerGradCam(model, model.tokens).attribute(x, y).detach())  # type: ignore[arg-type]


# -- stored, drawn, watched ----------------------------------------------------------------------------------------


def test_a_stored_report_draws_the_same_pictures(tmp_path: Path) -> None:
    probe = Probe(images())
    methods = {"act": m.LayerActivation("features.0"), "none": m.LayerGradCam("features.0", reshape="none")}
    report = explain(swin(16), probe, methods, [])
    assert report.maps["none"] == ()
    (loaded,) = load_reports(save_report(report, tmp_path))
    first, second = draw(report, probe), draw(loaded, probe)
    assert all(np.array_equal(first[name], second[name]) for name in methods)
    assert not np.array_equal(first["act"], draw(replace(report, maps={}), probe)["act"]), "the shape alone misleads"


def test_a_report_written_before_there_were_places_is_read(tmp_path: Path) -> None:
    path = save_report(explain(Tokens(), Probe(images()), {"act": m.LayerActivation("tokens")}, []), tmp_path)
    with safe_open(path, "pt") as file:
        (key, text), *_ = file.metadata().items()
        tensors = {name: file.get_tensor(name) for name in file.keys() if not name.startswith("maps")}  # noqa: SIM118
    content = json.loads(text)
    del content["maps"]
    save_file(tensors, path, {key: json.dumps(content)})
    (loaded,) = load_reports(path)
    assert loaded.maps == {}
    assert draw(loaded, Probe(images()))["act"].shape[0] < 500, "tokens are placed by their shape"


class TestWatched:
    pytestmark = QUIET

    def test_a_vision_transformer_is_watched_while_it_trains(self, tmp_path: Path) -> None:
        data = TensorDataset(images(8), torch.arange(8) % 3)
        monitor = ExplanationMonitor.from_config(
            {
                "methods": {
                    "cam": {"name": "LayerGradCam", "layer": f"net.{VIT_LAYER}", "reshape": [4, 4]},
                    "act": {"name": "LayerActivation", "layer": f"net.{VIT_LAYER}"},
                    "head": {"name": "LayerActivation", "layer": "net.heads"},
                },
                "metrics": [{"name": "Infidelity", "n_perturb_samples": 2}],
                "panels": {"cam": [["masked_image", "positive"]], "default": [["heat_map", "all"]]},
                "cmap": {"act": "viridis"},
                "on_error": "raise",
            },
            probe=Probe(images(2), torch.tensor([0, 1])),
        )
        with pytest.warns(UserWarning, match="No metric will score 'head'"):
            trainer(tmp_path, monitor).fit(Blind(vit().train()), DataLoader(data, batch_size=4))
        (report,) = load_reports(tmp_path / "explain")
        assert set(report.scores["infidelity"]) == {"cam", "act"}
        assert set(report.maps) == {"act"}
        pictures = {path.parent.name for path in (tmp_path / "explain").rglob("*.png")}
        assert pictures == {"overview", "cam", "act", "head"}


def test_channels_are_small_maps_side_by_side() -> None:
    x, found = torch.zeros(2, 3, 17, 16), torch.zeros(2, 3, 2, 2)
    found[:, 2] = 1
    asked = [("heat_map", "positive"), ("channels", "positive")]
    whole, small = d.Image().panels((found.sum(1, keepdim=True), found), (x,), asked)
    assert (whole.values.shape, small.values.shape) == ((2, 1, 2, 2), (2, 1, 17, 16))
    assert small.values[:, 0, 8:15, :7].eq(1).all(), "the third one begins the second row"
    assert small.values.sum() == 2 * 7 * 7
    many = d.Image().panels((x, torch.ones(2, 100, 2, 2)), (x,), asked[1:])[0].values
    assert many.shape == (2, 1, 17, 16), "as many as fit"
