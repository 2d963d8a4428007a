"""Maps and inputs as panels."""

import contextlib

import numpy as np
import pytest
import torch
from captum.attr._utils.visualization import _normalize_attr
from torch import Tensor

from lightning_explain.render.color import BLUE, ORANGE, SIGNS, table
from lightning_explain.render.image import KINDS, colorize, normalize, panel, smooth, to_bytes, to_display


def rows(n: int = 4, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, channels, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def captum(attribution: Tensor, sign: str, outlier_perc: float) -> Tensor:
    found = [_normalize_attr(row.sum(0).numpy(), sign, outlier_perc) for row in attribution]
    return torch.from_numpy(np.stack(found))


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("outlier_perc", [1e-9, 0.5, 2, 2.0, 10, 50, 95])
@pytest.mark.parametrize("scale", [1.0, 37.5])
def test_normalized_maps_are_captums_row_by_row(sign: str, outlier_perc: float, scale: float) -> None:
    attribution = rows(6) ** 3 * scale
    torch.testing.assert_close(
        normalize(attribution, sign, outlier_perc),
        captum(attribution, sign, outlier_perc).float(),
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize("sign", SIGNS)
def test_clipping_nothing_is_captums_where_captum_finds_a_threshold(sign: str) -> None:
    # With outlier_perc=0 rounding can put Captum's level above the total, and it raises IndexError.
    attribution, found = rows(12), []
    for row in attribution:
        with contextlib.suppress(IndexError):
            found.append((row, captum(row[None], sign, 0)))
    assert found
    kept = torch.stack([row for row, _ in found])
    expected = torch.cat([normalized for _, normalized in found])
    torch.testing.assert_close(normalize(kept, sign, 0), expected.float(), atol=1e-6, rtol=0)


def test_clipping_nothing_divides_by_the_largest_value() -> None:
    attribution = rows(200, channels=1)[:, 0]
    expected = attribution / attribution.abs().amax((1, 2), keepdim=True)
    torch.testing.assert_close(normalize(attribution, "all", 0), expected.float())


def test_the_default_clips_two_percent() -> None:
    assert torch.equal(normalize(rows(), "all"), normalize(rows(), "all", 2.0))


def test_a_map_without_channels_is_a_map_of_one_channel() -> None:
    attribution = rows(channels=1)
    assert torch.equal(normalize(attribution, "all"), normalize(attribution[:, 0], "all"))


def test_a_row_is_normalized_as_if_it_were_alone() -> None:
    attribution = rows() * torch.tensor([1.0, 1e-3, 1e3, 1.0]).view(4, 1, 1, 1)
    together = normalize(attribution, "all")
    alone = torch.cat([normalize(row[None], "all") for row in attribution])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("outlier_perc", [0, 2, 100])
@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
def test_a_map_without_contrast_is_zero(sign: str, outlier_perc: float, value: float) -> None:
    assert normalize(torch.full((2, 3, 4, 4), value), sign, outlier_perc).abs().max() == 0


def test_a_map_with_nothing_of_the_sign_is_zero() -> None:
    attribution = rows(channels=1).abs() + 1
    assert normalize(attribution, "negative").abs().max() == 0


def test_clipping_everything_leaves_the_sign() -> None:
    attribution = torch.tensor([[[0.0, 2.0], [-3.0, 0.5]]])
    assert normalize(attribution, "all", 100).tolist() == [[[0.0, 1.0], [-1.0, 1.0]]]


def test_values_that_are_not_finite_count_as_zero() -> None:
    attribution, zeroed = rows(channels=1), rows(channels=1)
    attribution[:, :, 0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    zeroed[:, :, 0, :3] = 0
    for sign in SIGNS:
        assert torch.equal(normalize(attribution, sign), normalize(zeroed, sign))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_precision_is_normalized_as_the_same_numbers_in_float64(dtype: torch.dtype) -> None:
    attribution = rows().to(dtype)
    assert torch.equal(normalize(attribution, "positive"), normalize(attribution.double(), "positive"))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_of_a_map_does_not_matter(scale: float) -> None:
    torch.testing.assert_close(normalize(rows() * scale, "all"), normalize(rows(), "all"))


def test_normalization_is_undone_for_display() -> None:
    images = torch.rand(2, 3, 5, 4)
    mean, std = (0.4, 0.5, 0.6), (0.1, 0.2, 0.3)
    shifted = (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(to_display(shifted, (mean, std)), images)


def test_one_mean_serves_all_channels() -> None:
    images = torch.rand(2, 3, 5, 4)
    torch.testing.assert_close(to_display((images - 0.5) / 0.25, (0.5, 0.25)), images)


def test_a_normalization_of_the_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"normalization has 3 values for images of 1 channels; give \(mean, std\)"):
        to_display(torch.rand(1, 1, 2, 2), ((0.4, 0.5, 0.6), (0.1, 0.1, 0.1)))


def test_rgb_in_range_is_shown_as_it_is() -> None:
    images = torch.rand(2, 3, 5, 4)
    assert torch.equal(to_display(images), images)


@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_other_channel_counts_are_shown_as_their_gray_mean(channels: int) -> None:
    images = torch.rand(2, channels, 5, 4)
    assert torch.equal(to_display(images), images.mean(1, keepdim=True).expand(-1, 3, -1, -1))


def test_values_out_of_range_are_stretched_row_by_row() -> None:
    shown = to_display(torch.randn(3, 3, 5, 4) * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1))
    assert shown.amin((1, 2, 3)).tolist() == [0, 0, 0]
    assert shown.amax((1, 2, 3)).tolist() == [1, 1, 1]


def test_a_slight_overshoot_is_clipped_not_stretched() -> None:
    images = torch.rand(1, 3, 5, 4)
    images[0, 0, 0, 0] = 1.02
    assert torch.equal(to_display(images), images.clamp(max=1))


def test_with_a_normalization_nothing_is_stretched() -> None:
    images = torch.tensor([-3.0, 0.25, 3.0]).view(1, 1, 1, 3)
    assert to_display(images, (0.0, 1.0))[0, 0, 0].tolist() == [0, 0.25, 1]


def test_bytes_are_shown_as_they_are() -> None:
    images = torch.arange(12, dtype=torch.uint8).view(1, 3, 2, 2)
    assert torch.equal(to_bytes(to_display(images)), images)


def test_constant_and_non_finite_inputs_are_drawn() -> None:
    assert torch.isfinite(to_display(torch.full((1, 3, 2, 2), 7.0))).all()
    assert torch.isfinite(to_display(torch.full((1, 3, 2, 2), torch.nan))).all()


def test_heat_maps_span_the_colors_from_end_to_end() -> None:
    ends = torch.tensor([-1.0, 0.0, 1.0]).view(1, 1, 3)
    both = colorize(ends, "all")[0, :, 0].T
    assert torch.equal(both, table(((0, BLUE), (0.5, "white"), (1, ORANGE)))[[0, 128, 255]])
    positive = colorize(ends.clamp(min=0), "positive")[0, :, 0].T
    assert torch.equal(positive, table(((0, "white"), (1, ORANGE)))[[0, 0, 255]])


def test_colors_are_those_matplotlib_would_draw() -> None:
    import matplotlib as mpl

    values = torch.rand(1, 8, 8)
    expected = mpl.colormaps["inferno"](values.double().numpy())[..., :3]
    drawn = colorize(values, "absolute_value").permute(0, 2, 3, 1)
    np.testing.assert_allclose(drawn.numpy(), expected, atol=1e-6)


IMAGE = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
MAP = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("kind", KINDS)
def test_every_panel_is_bytes_of_the_size_of_the_image(kind: str) -> None:
    drawn = panel(kind, "positive", IMAGE, MAP)
    assert drawn.dtype == torch.uint8
    assert drawn.shape == IMAGE.shape


@pytest.mark.parametrize(("sign", "value"), [("all", 1.0), ("all", -1.0), ("positive", 1.0), ("absolute_value", 1.0)])
def test_an_overlay_is_the_gray_image_where_the_map_is_zero_and_its_color_where_it_is_strongest(
    sign: str, value: float
) -> None:
    gray = to_bytes(IMAGE.mean(1, keepdim=True).expand_as(IMAGE))
    for cmap in (None, "coolwarm"):
        assert torch.equal(panel("blended_heat_map", sign, IMAGE, MAP * 0, cmap), gray)
        full = MAP * 0 + value
        heat = panel("heat_map", sign, IMAGE, full, cmap)
        assert torch.equal(panel("blended_heat_map", sign, IMAGE, full, cmap, alpha=1.0), heat)
        assert torch.equal(panel("blended_heat_map", sign, IMAGE, MAP, cmap, alpha=0.0), gray)
        strong, weak = (
            (panel("blended_heat_map", sign, IMAGE, full * part, cmap).float() - gray).abs().mean()
            for part in (1.0, 0.1)
        )
        assert weak < 0.2 * strong


def test_a_masked_image_is_black_where_the_map_is_zero_and_itself_where_it_is_one() -> None:
    assert panel("masked_image", "positive", IMAGE, torch.zeros_like(MAP)).max() == 0
    assert torch.equal(panel("masked_image", "negative", IMAGE, torch.ones_like(MAP)), to_bytes(IMAGE))


def test_alpha_scaling_is_white_where_the_map_is_zero_and_the_image_where_it_is_one() -> None:
    assert panel("alpha_scaling", "positive", IMAGE, torch.zeros_like(MAP)).min() == 255
    assert torch.equal(panel("alpha_scaling", "absolute_value", IMAGE, torch.ones_like(MAP)), to_bytes(IMAGE))


def test_a_given_color_map_is_used() -> None:
    drawn = panel("heat_map", "positive", IMAGE, torch.ones_like(MAP), cmap=[(0, "white"), (1, "black")])
    assert drawn.max() == 0


@pytest.mark.parametrize("kind", ["masked_image", "alpha_scaling"])
def test_panels_without_sign_refuse_both_signs_and_tell_the_way_out(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"'{kind}' cannot show both signs.*'positive', 'negative' or 'absolute"):
        panel(kind, "all", IMAGE, MAP)


def test_unknown_kinds_and_signs_are_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"no panel kind 'heatmap': did you mean 'heat_map'"):
        panel("heatmap", "all", IMAGE, MAP)
    with pytest.raises(ValueError, match=r"no panel sign 'both': use one of 'all', 'positive'"):
        panel("heat_map", "both", IMAGE, MAP)


def test_a_speckled_map_is_seen_where_it_lies_when_smoothed() -> None:
    speckled, gray = torch.zeros(1, 80, 80), torch.full((1, 3, 80, 80), 0.5)
    speckled[0, 2:18:4, 2:18:4] = 1
    speckled[0, 4:18:4, 4:18:4] = -0.4
    found = smooth(speckled)
    assert found.abs().max() == 1
    assert found[0, :18, :18].sign().mean() > 0.9, "the sign that prevails"
    assert found[0, 40:].abs().max() < 0.001
    changed = [
        (panel("blended_heat_map", "all", gray, values).float() - 127.5).abs().mean(1)[0, :18, :18].mean()
        for values in (speckled, found)
    ]
    assert changed[1] > 3 * changed[0]
    assert torch.equal(smooth(speckled * 0), speckled * 0)
    assert smooth(speckled.abs()).min() >= 0
