"""Volumes: voxels, cubes and slices; maps as Captum computes them by hand."""

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
from lightning_explain.core.panels import VolumePanel
from lightning_explain.modalities import Image, Volume, guess, restored, stored
from lightning_explain.render import slices
from lightning_explain.render.image import smooth
from lightning_explain.render.kinds import recalled, remembered
from lightning_explain.render.regions import OUTLINE_COLOR

SHAPE = (4, 1, 8, 10, 12)


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


X, LABELS = rand(*SHAPE), torch.tensor([0, 1, 0, 1])


class Convolutions(nn.Module):
    """Two 3-D convolutions, of which the second one halves the volume."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv3d(1, 4, 3, padding=1), nn.Conv3d(4, 6, 3, stride=2, padding=1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.second(torch.relu(self.first(x)))).mean((2, 3, 4)))
        return found


class Linear(nn.Module):
    """The exact map of its output is the weight times the voxel."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = rand(1, *SHAPE[1:], seed=3)

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.weight).flatten(1).sum(1, keepdim=True)


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).detach().abs().max() <= 1e-5 * theirs.detach().abs().max())


def test_a_tensor_of_rank_five_is_a_volume_whose_units_are_voxels() -> None:
    (modality,) = guess((X,))
    assert modality == Volume()
    assert modality.units(rand(2, 4, 3, 5, 6)) == (2, 1, 3, 5, 6)
    assert modality.grid(X) == (8, 10, 12)
    assert modality.pixels(X) is None
    assert guess((X[:, 0],)) == (Image(),)


def test_the_default_explanation_is_captums() -> None:
    model = Convolutions().eval()
    report = explain(model, Probe(X, LABELS), metrics=[q.Infidelity(n_perturb_samples=4)])
    ig = captum.IntegratedGradients(model).attribute(X, target=LABELS, n_steps=16)
    cam = captum.LayerGradCam(model, model.second).attribute(X, target=LABELS)
    assert close(report.attributions["ig"], ig)  # type: ignore[arg-type]
    assert close(report.attributions["cam"], cam)  # type: ignore[arg-type]
    upsampled = captum.LayerAttribution.interpolate(cam, SHAPE[2:], "trilinear")
    assert close(Volume().onto(report.attributions["cam"], X), upsampled)  # type: ignore[arg-type]
    assert set(report.scores["infidelity"]) == {"saliency", "ig", "cam"}


def test_cubes_are_occluded_and_ablated_as_captum_does() -> None:
    model, window = Convolutions().eval(), {"sliding_window_shapes": (1, 4, 4, 4), "strides": (1, 2, 3, 4)}
    cubes = torch.stack(torch.meshgrid(*(torch.arange(n) // 4 for n in SHAPE[2:]), indexing="ij"))
    mask = (cubes[0] * 100 + cubes[1] * 10 + cubes[2])[None, None]
    report = explain(
        model,
        Probe(X, LABELS),
        {
            "occlusion": m.Occlusion(**window),  # type: ignore[arg-type]
            "ablation": m.FeatureAblation(feature_mask={"grid": 4}),
            "lime": m.Lime(feature_mask={"grid": 4}, n_samples=4),
        },
        [],
    )
    assert close(report.attributions["occlusion"], captum.Occlusion(model).attribute(X, target=LABELS, **window))  # type: ignore[arg-type]
    by_hand = captum.FeatureAblation(model).attribute(
        X, target=LABELS, feature_mask=mask.unique(return_inverse=True)[1]
    )
    assert close(report.attributions["ablation"], by_hand)  # type: ignore[arg-type]
    assert report.attributions["lime"].shape == X.shape  # type: ignore[union-attr]


def test_exact_maps_predict_every_removed_cube_and_masks_are_three_dimensional() -> None:
    model, masks = Linear(), torch.zeros(4, *SHAPE[2:], dtype=torch.bool)
    masks[:, 2:5, 3:7, 4:9] = True
    metrics = [q.Infidelity(), q.RelevanceMass(), q.PointingGame(tolerance=1), q.Deletion(n_steps=4)]
    report = explain(model.double(), Probe(X.double(), masks=masks), [m.InputXGradient()], metrics)
    assert report.scores["infidelity_relative"]["input_x_gradient"].max() <= 1e-12
    exact = (X.double() * model.weight.double())[:, 0]
    share = (exact.clamp(min=0) * masks).sum((1, 2, 3)) / exact.clamp(min=0).sum((1, 2, 3))
    assert torch.allclose(report.scores["relevance_mass"]["input_x_gradient"].double(), share, atol=1e-6)
    grown = nn.functional.max_pool3d(masks[:, None].float(), 3, 1, 1)[:, 0].flatten(1)
    hits = grown.gather(1, exact.flatten(1).argmax(1, keepdim=True))[:, 0]
    assert torch.equal(report.scores["pointing_game"]["input_x_gradient"].float(), hits)


def test_a_region_is_a_cube_of_a_quarter_of_the_shortest_side() -> None:
    region = Volume().region(X, None, lambda like: torch.full_like(like, 0.5))
    assert region.shape == (4, 1, 8, 10, 12)
    assert (region[0, 0].sum((1, 2)) > 0).sum() == (region[0, 0].sum((0, 1)) > 0).sum() == 2
    assert region[0].sum() == 8
    with pytest.raises(ValueError, match="needs cubes no larger than the shortest side of the volumes, 8 voxels"):
        Volume().region(X, 9, torch.rand_like)


def test_a_blurred_volume_keeps_constants() -> None:
    assert torch.allclose(Volume().blurred(torch.full((1, 1, 4, 5, 6), 3.0)), torch.tensor(3.0))
    assert Volume().blurred(X).std() < 0.5 * X.std()


@pytest.mark.parametrize(
    ("shape", "placed"),
    [
        ((4, 6, 4, 5, 6), (4, 6, 4, 5, 6)),
        ((4, 4, 5, 6, 7), (4, 7, 4, 5, 6)),  # Channels last.
        ((4, 4 * 5 * 6, 7), (4, 7, 4, 5, 6)),  # Tokens of patches of 2 voxels a side,
        ((4, 1 + 4 * 5 * 6, 7), (4, 7, 4, 5, 6)),  # behind a class token.
        ((4, 6), None),
    ],
)
def test_maps_of_layers_lie_on_the_volume(shape: tuple[int, ...], placed: tuple[int, ...] | None) -> None:
    found = Volume().place(torch.zeros(shape), X, Arrangement())
    assert placed == (None if found is None else tuple(found.shape))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"orientation": "RAZ"}, r"Volume\(orientation='RAZ'\); give three letters such as"),
        ({"orientation": "RLS"}, "give three letters"),
        ({"spacing": (1, 2)}, r"Volume\(spacing=\(1, 2\)\); give three positive numbers"),
        ({"channel": 3}, "give one of the 1 channels"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Volume(**arguments).bound(X, InputFacts())
    with pytest.raises(ValueError, match=r"Volume needs \(N, C, D, H, W\), got \(4, 8, 10, 12\)"):
        Volume().bound(X[:, 0], InputFacts())


# -- pictures ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", ["SPL", "RAS", "LPI"])
def test_slices_are_seen_as_radiologists_look_at_them(orientation: str) -> None:
    """A voxel toward the patient's right, front and head lies at the left of the axial slice, at its top, and so on."""
    ends = {"R": 1, "L": 0, "A": 1, "P": 0, "S": 1, "I": 0}
    sizes = (8, 10, 12)
    voxel = [(n - 2) if ends[letter] else 1 for n, letter in zip(sizes, orientation, strict=True)]
    volume = torch.zeros(sizes)
    volume[tuple(voxel)] = 1.0
    axial, coronal, sagittal = slices.views(orientation)
    assert [view.name for view in (axial, coronal, sagittal)] == ["axial", "coronal", "sagittal"]
    for view, top, left in ((axial, "A", "R"), (coronal, "S", "R"), (sagittal, "S", "A")):
        found = view.of(volume, voxel[view.fixed])
        row, column = divmod(int(found.argmax()), found.shape[1])
        assert found[row, column] == 1
        assert row == 1
        assert column == 1
        assert (view.edges[0], view.edges[3]) == (top, left)
        places = view.place(voxel, sizes)
        assert [int(p * n) for p, n in zip(places, found.shape, strict=True)] == [row, column]


def panel(**further: Any) -> VolumePanel:
    values = torch.zeros(2, 8, 10, 12)
    values[0, 6, 2, 9], values[1, 1, 7, 3] = 1.0, -2.0
    return VolumePanel("slices", values=values, volume=torch.rand(2, 8, 10, 12) * 0.5, **further)


def test_the_cross_is_at_the_strongest_voxel_which_the_titles_number() -> None:
    shown = slices.Shown(panel(), 0, panel().values[0])
    assert shown.voxel == (6, 2, 9)
    names = [name for name, _ in shown.pictures((120, 120), 20)]
    assert names == ["slice D 7/8", "slice H 3/10", "slice W 10/12", "projection"]
    (_, first), *_ = shown.pictures((120, 120), 20)
    green = (first == (0, 200, 90)).all(-1)
    assert green.any(1).sum() > 60  # A vertical line,
    assert np.flatnonzero(green.sum(0) > 20).tolist() == [int(9.5 / 12 * first.shape[1])]  # at column 9 of 12,
    assert np.flatnonzero(green.sum(1) > 20).tolist() == [
        int(2.5 / 10 * first.shape[0])
    ]  # and a horizontal one at row 2 of 10.


def test_plain_slices_have_no_map_and_no_cross() -> None:
    plain = slices.Shown(panel(), 0, panel().values[0]).pictures((120, 120), 20, mapped=False)
    mapped = slices.Shown(panel(), 0, panel().values[0]).pictures((120, 120), 20)
    assert [name for name, _ in plain] == [name for name, _ in mapped], "the same slices"
    assert not any(np.ptp(picture, axis=-1).any() for _, picture in plain), "gray"


def test_a_map_of_zeros_has_no_cross() -> None:
    nothing = slices.Shown(panel(), 0, torch.zeros(8, 10, 12))
    assert not any((picture == (0, 200, 90)).all(-1).any() for _, picture in nothing.pictures((120, 120), 20))


def test_a_millimeter_is_equally_long_in_all_slices() -> None:
    pictures = slices.Shown(panel(spacing=(5.0, 1.0, 1.0)), 0, panel().values[0]).pictures((120, 120), 20)
    (depth, height, width), sizes = (8 * 5, 10, 12), [picture.shape[:2] for _, picture in pictures]
    scale = 120 / depth
    assert sizes[:3] == [
        (int(a * scale), int(b * scale)) for a, b in ((height, width), (depth, width), (depth, height))
    ]


def test_masks_are_outlined_on_every_slice_through_them() -> None:
    masks = torch.zeros(2, 8, 10, 12, dtype=torch.bool)
    masks[:, 5:8, 1:4, 8:11] = True
    report = explain(Linear(), Probe(X, masks=masks[:1].expand(4, -1, -1, -1)), [m.InputXGradient()], [])
    assert ((draw(report, "input_x_gradient") == OUTLINE_COLOR).all(-1)).any()
    for _, picture in slices.Shown(panel(masks=masks), 0, panel().values[0]).pictures((120, 120), 20)[:3]:
        assert (picture == OUTLINE_COLOR).all(-1).any()


def test_smoothing_a_volume_is_smoothing_along_each_axis() -> None:
    flat = rand(1, 9, 14)
    assert torch.allclose(smooth(flat)[0], smooth(flat[:, None].expand(1, 5, 9, 14))[0, 2], atol=1e-5)


def test_what_is_kept_for_later_pages_has_the_strongest_voxel_near_its_place() -> None:
    large = VolumePanel("slices", values=torch.zeros(1, 50, 60, 70), volume=torch.zeros(1, 50, 60, 70))
    large.values[0, 31, 5, 60] = -3.0
    weights, largest = remembered(large)
    assert weights.dtype == torch.int8
    assert weights.shape == (1, 24, 24 * 24)
    again = recalled(weights, largest, large)
    place = np.unravel_index(int(again.abs().argmax()), (50, 60, 70))
    assert again.min() < -1.0
    assert all(abs(int(a) - b) <= 2 for a, b in zip(place, (31, 5, 60), strict=True))


def test_what_files_keep_draws_the_same_picture() -> None:
    modality = Volume(orientation="SPL", spacing=[5, 1, 1]).bound(X, InputFacts())
    assert restored(stored((modality,))) == (modality,)
    report = explain(Convolutions().eval(), Probe(X, LABELS), [m.Saliency(abs=False)], [], modalities=modality)
    page = draw(report, "saliency")
    assert page.shape == (430, 700, 3)
    assert np.array_equal(page, draw(report, "saliency"))
    assert draw(report, "overview").shape == page.shape
    assert draw(report, "saliency", layout="composite").shape[1] > 300
