"""Color maps as tables."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.colors import LinearSegmentedColormap

from lightning_explain.render.color import frozen_pairs, sign_table, table

CUSTOM_BLUE = [(0, "#ffffff"), (0.25, "#000000"), (1, "#000000")]


@pytest.mark.parametrize("name", ["Greens", "viridis", "coolwarm", "tab10"])
def test_a_named_map_has_the_colors_matplotlib_gives_it(name: str) -> None:
    positions = (np.arange(256) + 0.5) / 256
    expected = mpl.colormaps[name](positions)[:, :3]
    assert table(name).shape == (256, 3)
    np.testing.assert_allclose(table(name).numpy(), expected, atol=1e-7)


def test_a_colormap_object_gives_the_same_table_as_its_name() -> None:
    assert torch.equal(table(mpl.colormaps["Reds"]), table("Reds"))


def test_pairs_give_the_same_table_as_matplotlibs_from_list() -> None:
    assert torch.equal(table(CUSTOM_BLUE), table(LinearSegmentedColormap.from_list("custom blue", CUSTOM_BLUE)))
    assert table(CUSTOM_BLUE)[0].tolist() == [1, 1, 1]
    assert table(CUSTOM_BLUE)[64:].max() < 0.02


def test_lists_from_yaml_give_the_same_table_as_tuples() -> None:
    assert torch.equal(table([list(pair) for pair in CUSTOM_BLUE]), table(tuple(CUSTOM_BLUE)))
    assert frozen_pairs([[0, [1.0, 1.0, 1.0]], [1, "k"]]) == ((0.0, (1.0, 1.0, 1.0)), (1.0, "k"))


def test_a_mistyped_name_raises_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"cmap='viridiss' is not a matplotlib color map: did you mean 'viridis'"):
        table("viridiss")


def test_a_name_in_the_wrong_case_is_found_among_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"cmap='blues'.*'Blues'"):
        table("blues")


def test_a_name_like_no_other_raises_with_examples() -> None:
    with pytest.raises(ValueError, match=r"cmap='\?\?\?' is not a matplotlib color map: use one of .magma."):
        table("???")


@pytest.mark.parametrize(
    "pairs",
    [
        [(0, "white")],
        [(0, "white"), (0.5, "black")],
        [(0, "white"), (0.7, "red"), (0.3, "red"), (1, "black")],
        [(0, "white"), (1, "no color")],
        [0, 1],
        [("a", "white"), (1, "black")],
    ],
)
def test_pairs_that_are_no_color_map_raise_with_an_example(pairs: list[object]) -> None:
    with pytest.raises(ValueError, match=r"does not describe a color map; give \(position, color\) pairs"):
        table(pairs)


def test_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match=r"cmap=3 is int; give a matplotlib name"):
        table(3)


@pytest.mark.parametrize(("sign", "name"), [("positive", "Greens"), ("negative", "Reds"), ("absolute_value", "Blues")])
def test_the_default_of_each_sign_is_captums(sign: str, name: str) -> None:
    assert torch.equal(sign_table(sign), table(name))


def test_the_default_for_both_signs_runs_from_red_over_white_to_green() -> None:
    expected = LinearSegmentedColormap.from_list("RdWhGn", ["red", "white", "green"])
    assert torch.equal(sign_table("all"), table(expected))


def test_a_given_map_replaces_the_default_of_every_sign() -> None:
    assert torch.equal(sign_table("negative", "viridis"), table("viridis"))
