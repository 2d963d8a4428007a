"""What can be asked of the pictures."""

from typing import Any

import matplotlib as mpl
import pytest

from lightning_explain.render.options import Options


def test_lists_from_yaml_are_the_same_as_tuples() -> None:
    listed = Options(
        panels=[["original_image", "all"], ["masked_image", "positive"]],  # type: ignore[arg-type]
        cmap=[[0, "white"], [1, "black"]],  # type: ignore[list-item]
        normalization=[[0.5, 0.5, 0.5], [0.2, 0.2, 0.2]],  # type: ignore[arg-type]
        class_names=["a", "b"],
    )
    assert listed == Options(
        panels=(("original_image", "all"), ("masked_image", "positive")),
        cmap=((0.0, "white"), (1.0, "black")),
        normalization=((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
        class_names=("a", "b"),
    )
    assert hash(listed) == hash(listed)


def test_a_number_normalizes_all_channels() -> None:
    assert Options(normalization=(0.5, 0.25)).normalization == ((0.5,), (0.25,))


def test_a_colormap_object_is_taken() -> None:
    viridis = mpl.colormaps["viridis"]
    assert Options(cmap=viridis).cmap is viridis


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"panels": []}, r"panels=\[\]; give one \(kind, sign\) pair"),
        ({"panels": ["heat_map"]}, r"panels=\['heat_map'\]; give one \(kind, sign\) pair"),
        ({"panels": [("heat_map", "all", 1)]}, r"give one \(kind, sign\) pair"),
        ({"panels": [("heatmap", "all")]}, r"no panel kind 'heatmap': did you mean 'heat_map'"),
        ({"panels": ["beesworm"]}, r"no panel kind 'beesworm': did you mean 'beeswarm'"),
        ({"panels": [("beeswarm", "positive")]}, r"'beeswarm' shows both signs, not 'positive'; give 'beeswarm' alone"),
        ({"panels": [("heat_map", "both")]}, r"no panel sign 'both': use one of 'all', 'positive'"),
        ({"panels": [("masked_image", "all")]}, r"cannot show both signs"),
        ({"cmap": "virdis"}, r"cmap='virdis'.*did you mean 'viridis'"),
        ({"cmap": [[0, "white"]]}, r"does not describe a color map"),
        ({"outlier_perc": 101}, r"outlier_perc=101; give a number from 0 to 100"),
        ({"outlier_perc": -1}, r"outlier_perc=-1; give a number from 0 to 100"),
        ({"outlier_perc": float("nan")}, r"outlier_perc=nan; give a number from 0 to 100"),
        ({"alpha_overlay": 1.5}, r"alpha_overlay=1.5; give a number from 0 to 1"),
        ({"alpha_overlay": "half"}, r"alpha_overlay='half'; give a number from 0 to 1"),
        ({"normalization": (0.5, 0.2, 0.1)}, r"normalization=\(0.5, 0.2, 0.1\); give a pair"),
        ({"normalization": (0.5, 0)}, r"give positive std"),
        ({"normalization": ((0.5, 0.5), (1, 1, 1))}, r"as many means as stds"),
        ({"min_pixels": 0}, r"min_pixels=0; give a whole number of at least 1"),
        ({"max_pixels": 1.5}, r"max_pixels=1.5; give a whole number of at least 1"),
        ({"max_rows": True}, r"max_rows=True; give a whole number of at least 1"),
    ],
)
def test_a_value_out_of_range_raises_naming_argument_value_and_range(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Options(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"panels": "heat_map"}, r"panels='heat_map' is str; give a list or a tuple"),
        ({"class_names": "abc"}, r"class_names='abc' is str; give a list or a tuple"),
        ({"normalization": 0.5}, r"normalization=0.5 is float; give a list or a tuple"),
        ({"normalization": (None, 1)}, r"normalization=\(None, 1\); give a pair"),
        ({"cmap": 3}, r"cmap=3 is int; give a matplotlib name"),
        ({"titles": "yes"}, r"titles='yes'; give True or False"),
        ({"colorbar": 1}, r"colorbar=1; give True or False"),
    ],
)
def test_a_value_of_the_wrong_kind_raises_naming_argument_and_value(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        Options(**arguments)


def test_a_mapping_gives_each_method_its_own() -> None:
    options = Options(
        panels={None: [["heat_map", "all"]], "ig": (("masked_image", "positive"),)},
        cmap={"ig": [[0, "white"], [1, "black"]]},
        outlier_perc={"cam": 5},
    )
    assert options.of("ig").panels == (("masked_image", "positive"),)
    assert options.of("cam").panels == (("heat_map", "all"),)
    assert (options.of("ig").cmap, options.of("cam").cmap) == (((0.0, "white"), (1.0, "black")), None)
    assert (options.of("ig").outlier_perc, options.of("cam").outlier_perc) == (2.0, 5)
    assert Options(panels={"ig": [["heat_map", "all"]]}).of("cam").panels == Options().panels
    assert hash(options) == hash(options)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"panels": {"ig": [("heatmap", "all")]}}, ValueError, "no panel kind 'heatmap': did you mean 'heat_map'"),
        ({"panels": {"ig": []}}, ValueError, r"panels=\[\]; give one"),
        ({"panels": {1: [("heat_map", "all")]}}, TypeError, "panels has the key 1 of type int"),
        ({"cmap": {"ig": "virdis"}}, ValueError, "did you mean 'viridis'"),
        ({"outlier_perc": {"ig": 101}}, ValueError, "outlier_perc=101; give a number from 0 to 100"),
        ({"outlier_perc": {None: 1, "default": 2}}, ValueError, "outlier_perc has both None and 'default'"),
    ],
)
def test_each_value_of_a_mapping_is_checked(arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Options(**arguments)


def test_methods_that_are_not_there_are_refused_with_the_nearest() -> None:
    options = Options(panels={"salience": [["heat_map", "all"]]})
    options.check_methods(["salience"])
    with pytest.raises(ValueError, match="panels names a method 'salience': did you mean 'saliency'"):
        options.check_methods(["ig", "saliency"])
