"""Share: closed forms of linear models of several inputs, their names, and pictures with a block for each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from captum import attr as captum
from torch import Tensor, nn

from lightning_explain import Probe, Report, draw, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.modalities import Image, Plain
from lightning_explain.render.beside import joined_images
from lightning_explain.render.drawn import drawn_inputs
from lightning_explain.render.figure import figure_of
from lightning_explain.render.options import Options

PAIR = torch.ones(2, 1, 4, 4), torch.ones(2, 1, 4, 4)


class Both(nn.Module):
    """The sum of an image, and three times that of a second input."""

    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return image.flatten(1).sum(1) + 3 * other.flatten(1).sum(1)


class Siamese(nn.Module):
    """Two images through one encoder."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(8, 2)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        found: Tensor = self.head(torch.cat([self.encoder(left), self.encoder(right)], 1))
        return found


def test_shares_of_a_linear_model_are_those_of_its_weights_and_are_named_after_the_inputs() -> None:
    table = torch.ones(2, 4)
    both = Probe({"image": PAIR[0], "other": table})
    report = explain(Both(), both, [m.InputXGradient()], [q.Share()])
    # 16 pixels of 1, and four columns of 3.
    assert report.scores["share_image"]["input_x_gradient"].tolist() == pytest.approx([16 / 28] * 2)
    assert report.scores["share_other"]["input_x_gradient"].tolist() == pytest.approx([12 / 28] * 2)
    given = explain(
        Both(), Probe((PAIR[0], table)), [m.InputXGradient()], {"s": q.Share(), "own": q.Share(("a b", "c/d"))}
    )
    assert set(given.scores) == {"s_input_0", "s_input_1", "own_a_b", "own_c_d"}


def test_a_map_of_zeros_has_no_share_and_a_layer_lies_on_one_input() -> None:
    report = explain(Siamese(), Probe(tuple(x * 0 for x in PAIR)), {"ixg": m.InputXGradient()}, [q.Share()])
    assert report.undefined()["share_input_0"] == {"ixg": [0, 1]}
    explained: Any = None
    assert not q.Share().can_score(m.LayerGradCam("encoder.0"), explained)
    assert q.Share().can_score(m.LayerIntegratedGradients(("words", 1)), explained)
    assert q.Share().can_score(m.Saliency(), explained)


def test_one_input_is_scored_nothing_and_too_few_names_are_refused() -> None:
    with pytest.warns(
        UserWarning, match="'share' will score none of the methods; it needs a map on each of several inputs"
    ):
        report = explain(nn.Linear(4, 2), Probe(torch.ones(2, 4)), ["Saliency"], [q.Share()])
    assert not report.scores
    with pytest.raises(ValueError, match=r"Share\(inputs=\('a',\)\) for 2 inputs; give a name for each, or none"):
        explain(Both(), Probe(PAIR), ["Saliency"], [q.Share(("a",))])


def test_maps_of_two_images_are_captums() -> None:
    model = Siamese().eval()
    left, right = (torch.randn(3, 1, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(2))
    labels = torch.tensor([0, 1, 0])
    report = explain(model, Probe((left, right), labels), {"ig": m.IntegratedGradients(n_steps=8)}, [q.Share()])
    by_hand = captum.IntegratedGradients(model).attribute((left, right), target=labels, n_steps=8)
    for ours, theirs in zip(report.attributions["ig"], by_hand, strict=True):
        assert (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()
    sizes = torch.stack([part.abs().flatten(1).sum(1) for part in by_hand])
    assert torch.allclose(report.scores["share_input_0"]["ig"].double(), (sizes[0] / sizes.sum(0)).double(), atol=1e-5)


def report_of(maps: tuple[Tensor, ...]) -> Report:
    n = len(maps[0])
    return Report({"ig": maps}, {}, {}, torch.zeros(n), torch.zeros(n), torch.zeros(n), torch.arange(n))


def test_two_images_lie_side_by_side_on_one_scale() -> None:
    images, maps = (
        (torch.rand(2, 3, 16, 16), torch.rand(2, 1, 12, 16)),
        (torch.zeros(2, 3, 16, 16), torch.zeros(2, 1, 12, 16)),
    )
    maps[0][:, :, 2:4, 2:4], maps[1][:, :, 2:4, 2:4] = 1.0, -1.5
    probe = Probe({"left": images[0], "right": images[1]})
    figure = figure_of(report_of(maps), probe)
    assert [panel.kind for panel, _ in figure.panels["ig"]] == ["original_image", "heat_map", "blended_heat_map"]
    (values,) = {panel.values for panel, _ in figure.panels["ig"][1:2]}
    assert values.shape == (2, 1, 16, 16 + 1 + 16)
    assert values[0, 0, 3, 3] == 3.0
    assert values[0, 0, 3, 16 + 1 + 3] == -1.5
    assert figure.lines["ig"][0] == ("67% left", "33% right")
    whole = joined_images(drawn_inputs(probe, Options()))[0].images
    assert whole is not None
    assert (whole[:, :, 12:, 17:] == 1).all(), "white below the smaller image"
    assert torch.equal(whole[:, :, :12, 17:], images[1].expand(-1, 3, -1, -1))
    assert (
        draw(report_with(maps, probe), "ig").shape == draw(report_with(maps, probe), "overview").shape == (430, 700, 3)
    )


def report_with(maps: Any, probe: Probe) -> Report:
    from dataclasses import replace

    return replace(report_of(maps), probe=probe)


def test_each_input_says_how_much_of_the_map_lies_on_it() -> None:
    image, table = torch.rand(2, 1, 8, 8), torch.rand(2, 4)
    maps = torch.full((2, 1, 8, 8), 1 / 64), torch.full((2, 4), -0.75)
    figure = figure_of(report_of(maps), Probe({"image": image, "meta": table}))
    assert figure.lines["ig"][0] == ("25% on", "image")
    assert figure.heads["ig"] == ["75% meta"] * len(figure.own["ig"])
    assert len(figure.pictures()) == figure.count()
    plain = figure_of(report_of(maps[:1]), Probe(image))
    assert not plain.lines["ig"]
    bars = figure_of(report_of(maps), Probe((image, table), modalities=(Image(), Plain())))
    assert bars.lines["ig"][1] == ("75% on", "input 1")


def test_a_table_with_little_of_the_map_has_short_bars_beside_the_image() -> None:
    image, probe = torch.rand(2, 1, 8, 8), Probe({"image": torch.rand(2, 1, 8, 8), "meta": torch.zeros(2, 4)})
    inked = []
    for part in (1e-3, 1e3):
        table = torch.tensor([[1.0, 0.0, 0.0, 0.0]] * 2) * part
        (row,) = figure_of(report_of((image, table)), probe)._strongest("ig", ("ig",))
        assert row.pixels is not None
        pixels = row.pixels.astype(int)
        inked.append((pixels[..., 0] > pixels[..., 2] + 50).mean())
    assert inked[0] < 0.01
    assert inked[1] > 0.25


def test_the_first_page_names_the_strongest_column_of_a_table_beside_images() -> None:
    image, probe = torch.rand(2, 1, 8, 8), Probe({"image": torch.rand(2, 1, 8, 8), "meta": torch.zeros(2, 4)})
    drawn = []
    for column in (0, 2):
        table = torch.full((2, 4), 0.01)
        table[:, column] = -5.0
        drawn.append(figure_of(report_of((image, table)), probe).pictures())
    for key in ("overview", "ig"):
        assert (drawn[0][key] != drawn[1][key]).any(), "the shares and the images are the same"


def test_masks_are_outlined_on_the_image_that_they_fit() -> None:
    images = torch.rand(2, 1, 16, 16), torch.rand(2, 1, 20, 20)
    maps, masks = tuple(x - 0.5 for x in images), torch.zeros(2, 20, 20, dtype=torch.bool)
    masks[:, 5:15, 5:15] = True
    original = figure_of(report_of(maps), Probe(images, masks=masks)).inputs[0].original
    yellow = (original == (255, 220, 0)).all(-1)
    assert yellow.any()
    assert np.flatnonzero(yellow.any((0, 1))).min() > yellow.shape[2] * 17 / 37
