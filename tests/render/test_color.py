"""Color maps as tables."""

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.colors import LinearSegmentedColormap

from lightning_explain.render.color import BLUE, ORANGE, frozen_pairs, sign_table, table

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


def test_the_default_for_both_signs_runs_from_blue_over_white_to_orange_and_each_sign_has_its_half() -> None:
    expected = LinearSegmentedColormap.from_list("own", [BLUE, "white", ORANGE])
    assert torch.equal(sign_table("all"), table(expected))
    assert torch.equal(sign_table("positive")[-1], sign_table("all")[-1])
    assert torch.equal(sign_table("negative")[-1], sign_table("all")[0])
    assert torch.equal(sign_table("absolute_value"), table("inferno"))


# What is left of red, green and blue without one kind of cones: Machado, Oliveira and Fernandes (2009), severity 1, linear RGB.
BLIND = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


@pytest.mark.parametrize("kind", BLIND)
def test_color_blind_people_tell_the_signs_apart(kind: str) -> None:
    def seen(color: torch.Tensor) -> torch.Tensor:
        linear = torch.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
        lms = torch.tensor(BLIND[kind]) @ linear
        return lms.clamp(0, 1) ** (1 / 2.4)

    def distance(low: torch.Tensor, high: torch.Tensor) -> float:
        return float((seen(low) - seen(high)).norm())

    colors = sign_table("all")
    # Of two colors that are as far apart as can be, black and white, the distance is 1.7.
    assert distance(colors[0], colors[-1]) > 0.5
    assert (
        distance(table(((0.0, "red"), (1.0, "green")))[0], table(((0.0, "red"), (1.0, "green")))[-1]) < 0.5
        or kind == "tritanopia"
    )
    assert min(distance(colors[i], colors[128]) for i in (0, -1)) > 0.3


def test_a_given_map_replaces_the_default_of_every_sign() -> None:
    assert torch.equal(sign_table("negative", "viridis"), table("viridis"))
