"""The tall composite picture of a method: a row for each sample, a column for each panel."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_explain.core.probe import Attribution, Probe
from lightning_explain.core.report import Picture, Report
from lightning_explain.modalities import Image, Plain
from lightning_explain.render.bars import KINDS, NEGATIVE, POSITIVE
from lightning_explain.render.composite import composite as draw
from lightning_explain.render.figure import draw_sample
from lightning_explain.render.image import normalize, panel, to_display
from lightning_explain.render.options import Options

BARE = Options(titles=False, colorbar=False)
HEAT = Options(titles=False, colorbar=False, panels=(("heat_map", "all"),))
RED, AMBER = np.array([190, 20, 40]), np.array([150, 85, 0])


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def report(maps: dict[str, Attribution], n: int, **changes: Any) -> Report:
    outputs = torch.eye(3)[torch.arange(n) % 3] * 4
    fields = {"outputs": outputs, "predictions": outputs.argmax(1), "targets": outputs.argmax(1)}
    return Report(maps, {}, {}, ids=torch.arange(n), **{**fields, **changes})


def picture(found: Attribution, probe: Probe, options: Options | None = None, **changes: Any) -> Picture:
    drawn = draw(report({"ig": found}, len(probe), **changes), probe, options)
    assert list(drawn) == ["ig"]
    return drawn["ig"]


def charts(found: Tensor) -> list[Picture]:
    """The columns of bar charts of a map."""
    return [KINDS[panel.kind](panel) for panel in Plain().panels((found,), (), ())]


def contains(canvas: Picture, part: Picture) -> bool:
    """Whether the part stands somewhere in the canvas, pixel by pixel."""
    height, width = part.shape[:2]
    corners = [(0, 0), (height - 1, width - 1), (height // 2, width // 2)]
    # Pixels that are no background leave few places to compare.
    drawn = np.argwhere((part != part[0, 0]).any(-1))
    corners += [tuple(at) for at in drawn[[0, len(drawn) // 2]]] if len(drawn) else []
    down, right = len(canvas) - height + 1, canvas.shape[1] - width + 1
    fits = [(canvas[y : y + down, x : x + right] == part[y, x]).all(-1) for y, x in corners]
    starts = np.argwhere(np.logical_and.reduce(fits))
    return any(np.array_equal(canvas[y : y + height, x : x + width], part) for y, x in starts)


def enlarged(panels: Tensor, factor: int) -> list[Picture]:
    large = panels.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    return list(large.permute(0, 2, 3, 1).numpy())


def test_every_panel_of_every_row_stands_in_the_picture_with_true_pixels() -> None:
    inputs, maps = rand(3, 3, 32, 32), rand(3, 3, 32, 32, seed=1) - 0.5
    canvas = picture(maps, Probe(inputs))
    for kind in ("original_image", "heat_map", "blended_heat_map"):
        for part in enlarged(panel(kind, "all", to_display(inputs), normalize(maps, "all")), 4):
            assert contains(canvas, part), kind


def test_a_picture_is_bytes_on_white() -> None:
    canvas = picture(rand(2, 1, 8, 8), Probe(rand(2, 1, 8, 8, seed=1)))
    assert canvas.dtype == np.uint8
    assert canvas.ndim == 3
    assert canvas.shape[2] == 3
    assert (canvas[[0, -1]] == 255).all()
    assert (canvas[:, [0, -1]] == 255).all()


def test_the_options_reach_the_panels() -> None:
    inputs, maps = rand(2, 3, 128, 128), rand(2, 3, 128, 128, seed=1) - 0.5
    wanted = Options(
        panels=(("heat_map", "positive"), ("blended_heat_map", "negative"), ("alpha_scaling", "absolute_value")),
        cmap="viridis",
        outlier_perc=10,
        alpha_overlay=0.3,
        normalization=(0.2, 0.5),
    )
    canvas = picture(maps, Probe(inputs), wanted)
    display = to_display(inputs, (0.2, 0.5))
    for kind, sign in wanted.panels:
        for part in enlarged(panel(kind, sign, display, normalize(maps, sign, 10), "viridis", 0.3), 1):
            assert contains(canvas, part), kind


def test_each_method_has_the_panels_the_colors_and_the_outliers_it_is_given() -> None:
    inputs, maps = rand(2, 3, 128, 128), rand(2, 3, 128, 128, seed=1) - 0.5
    options = Options(
        panels={"default": [["heat_map", "all"]], "ig": [["masked_image", "negative"], ["heat_map", "positive"]]},
        cmap={"ig": "viridis"},
        outlier_perc={None: 1, "ig": 10},
        titles=False,
        colorbar=False,
    )
    drawn = draw(report({"ig": maps, "cam": maps}, 2), Probe(inputs), options)
    display = to_display(inputs)
    wanted = {
        "ig": [("masked_image", "negative", 10, "viridis"), ("heat_map", "positive", 10, "viridis")],
        "cam": [("heat_map", "all", 1, None)],
    }
    for name, columns in wanted.items():
        assert drawn[name].shape[1] == 24 + len(columns) * 136 - 8
        for kind, sign, outliers, cmap in columns:
            for part in enlarged(panel(kind, sign, display, normalize(maps, sign, outliers), cmap), 1):
                assert contains(drawn[name], part), (name, kind)


def test_a_layer_map_is_drawn_upsampled_to_the_input() -> None:
    inputs, layer = rand(2, 3, 128, 128), rand(2, 5, 4, 4, seed=1) - 0.5
    upsampled = torch.nn.functional.interpolate(layer.sum(1, keepdim=True), (128, 128), mode="bilinear")
    canvas = picture(layer, Probe(inputs), HEAT)
    for part in enlarged(panel("heat_map", "all", to_display(inputs), normalize(upsampled, "all")), 1):
        assert contains(canvas, part)


def test_each_of_several_inputs_has_columns_of_its_own() -> None:
    inputs = (rand(2, 5), rand(2, 3, 128, 128), rand(2, 1, 128, 64))
    maps = tuple(x - 0.5 for x in inputs)
    # The normalization is that of the first image; the other one has other channels.
    canvas = picture(
        maps,
        Probe(inputs, masks=rand(2, 8, 8) > 0.9, modalities=(Plain(), Image(), Image())),
        replace(HEAT, normalization=([0.0] * 3, [1.0] * 3)),
    )
    expected = [*charts(maps[0])[0]]
    for i, width in ((1, 128), (2, 64)):
        values = normalize(maps[i].sum(1, keepdim=True), "all")
        # A short side of 64 is enlarged to 128.
        expected += enlarged(panel("heat_map", "all", to_display(inputs[i]), values), 128 // width)
    assert [part for part in expected if not contains(canvas, part)] == []


def test_a_sample_is_marked_if_any_of_its_maps_is_not_finite() -> None:
    inputs = (rand(2, 3, 128, 128), rand(2, 5))
    broken = (rand(2, 3, 128, 128), torch.tensor([[1.0] * 5, [torch.nan] * 5]))
    assert (picture(broken, Probe(inputs)) == AMBER).all(-1).any()
    assert not (picture((broken[0], broken[1].nan_to_num()), Probe(inputs)) == AMBER).all(-1).any()


def test_a_map_without_a_place_in_the_image_is_drawn_as_bars() -> None:
    image = Probe(rand(2, 1, 8, 8))
    two = Probe((rand(2, 1, 8, 8), rand(2, 1, 8, 8)))
    for found, probe in ((rand(2, 10), image), (rand(2, 7, 4), image), (rand(2, 4, 2, 3), two)):
        canvas = picture(found, probe)
        for column in charts(found):
            for part in column:
                assert contains(canvas, part)


def test_a_grid_that_lies_on_none_of_two_images_is_drawn_as_a_map_of_its_own() -> None:
    found = torch.zeros(1, 4, 2, 2)
    found[0, 1, 0, 1], found[0, 2, 1, 0] = 1.0, -1.0
    two = Probe((torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)))
    canvas = picture(found, two)
    for color in (POSITIVE, NEGATIVE):
        rows, columns = (canvas == color).all(-1).nonzero()
        height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert len(rows) == height * width >= 1000, "one cell of the grid, in one piece"


def test_numbers_of_which_nothing_is_known_are_drawn_as_bars() -> None:
    features = rand(2, 5) - 0.5
    canvas = picture(features, Probe(rand(2, 5), modalities=Plain()))
    for part in charts(features)[0]:
        assert contains(canvas, part)


def test_a_stored_place_wins_over_the_shape() -> None:
    inputs, small = rand(2, 3, 128, 128), rand(2, 1, 4, 4, seed=1) - 0.5
    tokens = rand(2, 17, 5)
    drawn = draw(replace(report({"ig": tokens}, 2), maps={"ig": (small,)}), Probe(inputs), HEAT)["ig"]
    assert np.array_equal(drawn, picture(small, Probe(inputs), HEAT))
    none = draw(replace(report({"ig": small}, 2), maps={"ig": ()}), Probe(inputs), BARE)["ig"]
    assert contains(none, charts(small)[0][0])


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((8, 8), (128, 128)),
        ((50, 50), (150, 150)),
        ((16, 100), (48, 300)),
        ((300, 450), (256, 384)),
        ((7, 900), (3, 384)),
    ],
)
def test_images_are_enlarged_by_whole_factors_and_reduced_to_the_limit(
    size: tuple[int, int], shown: tuple[int, int]
) -> None:
    narrow = picture(torch.zeros(1, 1, *size), Probe(torch.zeros(1, 1, *size)), BARE)
    black = (narrow[:, : narrow.shape[1] // 3] == 0).all(-1)
    assert (black.any(1).sum(), black.any(0).sum()) == shown


def test_a_reduced_image_keeps_its_mean() -> None:
    inputs = rand(1, 3, 500, 700)
    canvas = picture(inputs, Probe(inputs), Options(panels=(("original_image", "all"),), titles=False))
    assert abs(canvas[-150:-50, 50:-50].mean() / 255 - 0.5) < 0.01


def test_at_most_max_rows_are_drawn_and_the_rest_is_told() -> None:
    inputs = rand(5, 1, 8, 8)
    few, all_rows = picture(inputs, Probe(inputs), Options(max_rows=2)), picture(inputs, Probe(inputs))
    assert len(all_rows) - len(few) > 2 * 128
    two = picture(inputs[:2], Probe(inputs[:2]), Options(max_rows=2))
    assert len(few) > len(two), "the note takes a line"


def test_epoch_and_step_are_written() -> None:
    inputs = rand(1, 1, 8, 8)
    first, second = (picture(inputs, Probe(inputs), epoch=3, step=s) for s in (10, 20))
    assert first.shape == second.shape
    assert not np.array_equal(first, second)


def test_a_wrong_prediction_and_only_that_is_red() -> None:
    probe = Probe(rand(2, 1, 8, 8), targets=torch.tensor([0, 2]))
    left = picture(rand(2, 1, 8, 8) * 0, probe, Options(panels=(("original_image", "all"),)))
    red = (left == RED).all(-1).any(1)
    middle = len(left) - 12 - 128 - 4
    assert red[middle:].any()
    assert not red[:middle].any()


def test_a_row_that_is_not_finite_is_an_empty_map_and_says_so() -> None:
    inputs, maps = rand(2, 3, 32, 32), rand(2, 3, 32, 32, seed=1) - 0.5
    broken, empty = maps.clone(), maps.clone()
    broken[1, 0, 3, 3] = torch.nan
    empty[1] = 0
    assert np.array_equal(picture(broken, Probe(inputs), BARE), picture(empty, Probe(inputs), BARE))
    marked, explicit_maps = picture(broken, Probe(inputs)), picture(empty, Probe(inputs))
    assert marked.shape == explicit_maps.shape
    assert (marked == AMBER).all(-1).any()
    assert not (explicit_maps == AMBER).all(-1).any()
    changed = (marked != explicit_maps).any(-1)
    assert changed.any()
    assert not changed[:, 130:].any(), "only the title differs"
    assert not changed[: len(marked) // 2].any(), "only the second row differs"


def test_a_layer_map_that_is_not_finite_leaves_the_other_rows_alone() -> None:
    inputs, layer = rand(2, 3, 32, 32), rand(2, 4, 8, 8, seed=1)
    broken = layer.clone()
    broken[0, 2, 0, 0] = torch.inf
    canvas, whole = picture(broken, Probe(inputs), BARE), picture(layer, Probe(inputs), BARE)
    half = len(canvas) - 12 - 128
    assert np.array_equal(canvas[half:], whole[half:])


def test_a_mask_is_outlined_on_the_original_image_only() -> None:
    inputs, masks = rand(2, 3, 32, 32), torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 8:24, 8:24] = True
    options = Options(panels=(("original_image", "all"), ("heat_map", "all")), titles=False, colorbar=False)
    plain, outlined = picture(inputs, Probe(inputs), options), picture(inputs, Probe(inputs, masks=masks), options)
    changed = (plain != outlined).any(-1)
    y, x = np.nonzero(changed)
    assert (y.max() - y.min() + 1, x.max() - x.min() + 1) == (66, 66), "the region and one pixel around it"
    assert not changed[y.min() + 8 : y.max() - 8, x.min() + 8 : x.max() - 8].any(), "thin"
    assert not changed[:, changed.shape[1] // 2 :].any()


def test_the_scale_shows_all_colors_beside_the_panels() -> None:
    inputs = rand(1, 1, 8, 8)
    with_bar, without = picture(inputs, Probe(inputs)), picture(inputs, Probe(inputs), Options(colorbar=False))
    assert with_bar.shape[0] == without.shape[0]
    strip = with_bar[:, without.shape[1] - 12 :]
    blue, orange = (np.argwhere((strip == color).all(-1))[:, 0] for color in ([0, 114, 178], [213, 94, 0]))
    assert len(blue)
    assert len(orange)
    assert orange.max() < blue.min(), "the positive end is at the top"


def test_each_sign_has_its_scale() -> None:
    inputs = rand(1, 1, 8, 8)
    both = (("heat_map", "positive"), ("heat_map", "negative"))
    same = (("heat_map", "positive"), ("blended_heat_map", "positive"))
    widths = [picture(inputs, Probe(inputs), Options(panels=p)).shape[1] for p in (both, same)]
    assert widths[0] > widths[1] + 20


def test_the_options_name_the_classes_before_the_probe_does() -> None:
    inputs = rand(1, 1, 8, 8)
    probe = Probe(inputs, class_names=["aaa", "b", "c"])
    named = picture(inputs, Probe(inputs, class_names=["zzz", "b", "c"]))
    assert np.array_equal(picture(inputs, probe, Options(class_names=["zzz", "b", "c"])), named)
    assert not np.array_equal(picture(inputs, probe), named)


@pytest.mark.parametrize("name", ["x" * 500, "", "integrated gradients of the seventh layer of the second branch"])
def test_long_names_do_not_widen_the_picture(name: str) -> None:
    inputs = rand(1, 1, 8, 8)
    probe = Probe(inputs, class_names=[name] * 3, targets=torch.tensor([1]))
    canvas = draw(report({name: inputs}, 1), probe)[name]
    assert canvas.shape[1] < 700


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 3, 200), (3, 5, 200, 3), (2, 3, 33, 47)])
def test_any_shape_of_image_is_drawn(shape: tuple[int, ...]) -> None:
    assert picture(rand(*shape), Probe(rand(*shape))).min() < 255


def test_drawing_is_repeatable_and_changes_nothing() -> None:
    inputs, maps = rand(2, 3, 8, 8), rand(2, 3, 8, 8, seed=1).requires_grad_()
    before = (inputs.clone(), maps.detach().clone())
    assert np.array_equal(picture(maps, Probe(inputs)), picture(maps, Probe(inputs)))
    assert torch.equal(inputs, before[0])
    assert torch.equal(maps, before[1])


def test_one_sample_is_drawn_alone_with_the_panels_it_has_in_the_picture() -> None:
    inputs, maps = rand(3, 3, 32, 32), rand(3, 3, 32, 32, seed=1) - 0.5
    made = report({"ig": maps}, 3)
    alone = [draw_sample(made, Probe(inputs), Options(), "ig", i) for i in range(3)]
    assert [one.shape for one in alone] == [(128, 3 * 128 + 16, 3)] * 3
    for i, one in enumerate(alone):
        for kind in ("original_image", "heat_map", "blended_heat_map"):
            parts = panel(kind, "all", to_display(inputs), normalize(maps, "all"))
            assert contains(one, enlarged(parts, 4)[i]), kind


def test_a_probe_of_other_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"report has 3 samples, but probe has 2; give the probe it came from"):
        draw(report({"ig": rand(3, 1, 8, 8)}, 3), Probe(rand(2, 1, 8, 8)))


def test_neither_import_nor_drawing_loads_pyplot_or_torchvision() -> None:
    code = """
import sys
import torch
from lightning_explain.render.composite import composite as draw
from lightning_explain.render.options import Options
assert not any(m.startswith("matplotlib") for m in sys.modules), "import"
from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Report
x = torch.rand(1, 1, 8, 8)
r = Report({"ig": x}, {}, {}, torch.rand(1, 2), torch.zeros(1), torch.zeros(1), torch.arange(1))
draw(r, Probe(x), Options(panels=(("heat_map", "positive"),)))
assert not {"matplotlib.pyplot", "torchvision"} & sys.modules.keys(), "draw"
"""
    subprocess.run([sys.executable, "-c", code], check=True)
