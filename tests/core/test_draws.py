"""Laws of random draws: they belong to the sample."""

from __future__ import annotations

import random
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_explain.core.draws import KeyedDraws
from lightning_explain.core.probe import Samples
from lightning_explain.core.random_state import seeded_random_state

Kind = Literal["normal", "uniform"]
KINDS: tuple[Kind, ...] = ("normal", "uniform")
IDS = [7, 3, 3, 900, 0, -1]
INDICES = [0, 0, 1, 5, 2, 2]


def samples(ids: list[int], branches: list[int] | None = None) -> Samples:
    return Samples((), (), (), torch.tensor(ids), torch.tensor(branches or [0] * len(ids)))


def draw(
    kind: Kind,
    ids: list[int] = IDS,
    indices: list[int] = INDICES,
    purpose: str = "noise",
    seed: int = 0,
    branches: list[int] | None = None,
    dtype: torch.dtype = torch.float32,
    shape: tuple[int, ...] = (2, 3),
) -> Tensor:
    draws = KeyedDraws(seed)
    function = draws.normal if kind == "normal" else draws.uniform
    return function(purpose, samples(ids, branches), torch.tensor(indices), torch.empty(len(ids), *shape, dtype=dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_do_not_depend_on_the_order_of_samples(kind: Kind) -> None:
    order = [4, 2, 0, 5, 1, 3]
    shuffled = draw(kind, [IDS[i] for i in order], [INDICES[i] for i in order])
    assert torch.equal(shuffled, draw(kind)[order])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_draws_do_not_depend_on_chunks(kind: Kind, size: int) -> None:
    starts = range(0, len(IDS), size)
    chunks = [draw(kind, IDS[i : i + size], INDICES[i : i + size]) for i in starts]
    assert torch.equal(torch.cat(chunks), draw(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_draws_do_not_depend_on_what_was_drawn_before(kind: Kind) -> None:
    draws = KeyedDraws(0)
    first = draws.normal("a", samples([1]), torch.tensor([0]), torch.empty(1, 3))
    draws.uniform("b", samples([1]), torch.tensor([0]), torch.empty(1, 5))
    assert torch.equal(draws.normal("a", samples([1]), torch.tensor([0]), torch.empty(1, 3)), first)
    assert torch.equal(draw(kind), draw(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_every_part_of_the_key_gives_other_numbers(kind: Kind) -> None:
    found = [
        draw(kind, [1], [1]),
        draw(kind, [2], [1]),
        draw(kind, [1], [2]),
        draw(kind, [1], [1], branches=[1]),
        draw(kind, [1], [1], purpose="noise/1"),
        draw(kind, [1], [1], seed=1),
        draw(kind, [1], [1], seed=-1),
        draw(kind, [11], [1]),
        draw(kind, [1], [11]),
        draw(kind, [1], [1], branches=[11]),
        draw("uniform" if kind == "normal" else "normal", [1], [1]),
    ]
    values = torch.cat(found).flatten().tolist()
    assert len(set(values)) == len(values)


def test_samples_inside_different_random_samples_draw_differently() -> None:
    outer = samples([5, 5]).draw(torch.tensor([0, 1]))
    found = KeyedDraws(0).normal("inner", outer, torch.tensor([0, 0]), torch.empty(2, 4))
    assert not torch.equal(found[0], found[1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_draws_take_the_shape_and_dtype_asked_for(kind: Kind, dtype: torch.dtype) -> None:
    for shape in [(), (1,), (3, 4, 5), (0,)]:
        found = draw(kind, shape=shape, dtype=dtype)
        assert found.shape == (len(IDS), *shape)
        assert found.dtype == dtype


@pytest.mark.parametrize("kind", KINDS)
def test_every_precision_is_single_precision_rounded(kind: Kind) -> None:
    single = draw(kind, shape=(100,))
    assert torch.equal(draw(kind, shape=(100,), dtype=torch.float64), single.double())
    assert (draw(kind, shape=(100,), dtype=torch.bfloat16).float() - single).abs().max() < 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_the_same_for_any_memory_layout_and_in_inference_mode(kind: Kind) -> None:
    like = torch.empty(2, 3, 4, 4).to(memory_format=torch.channels_last)
    function = getattr(KeyedDraws(0), kind)
    with torch.inference_mode():
        inside = function("noise", samples([1, 2]), torch.tensor([0, 0]), like)
    assert torch.equal(inside, draw(kind, [1, 2], [0, 0], shape=(3, 4, 4)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moments_are_those_of_the_distribution(dtype: torch.dtype) -> None:
    ids = list(range(200))
    normal = draw("normal", ids, [0] * 200, shape=(1000,), dtype=dtype).double()
    uniform = draw("uniform", ids, [0] * 200, shape=(1000,), dtype=dtype).double()
    assert normal.mean().item() == pytest.approx(0, abs=0.01)
    assert normal.var().item() == pytest.approx(1, abs=0.02)
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.003)
    assert uniform.var().item() == pytest.approx(1 / 12, abs=0.002)
    # Samples are independent: means over samples scatter as those of independent numbers.
    assert normal.mean(0).var().item() == pytest.approx(1 / 200, rel=0.2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_uniform_numbers_are_at_least_0_and_below_1_in_every_precision(dtype: torch.dtype) -> None:
    found = draw("uniform", shape=(20_000,), dtype=dtype)
    assert found.min() >= 0
    assert found.max() < 1


def test_the_numbers_are_these_in_every_version() -> None:
    normal = draw("normal", [0], [0], purpose="golden", shape=(4,))
    uniform = draw("uniform", [0], [0], purpose="golden", shape=(4,))
    torch.testing.assert_close(normal, torch.tensor([[-0.0729, 0.6317, -0.4057, 0.1234]]), atol=1e-4, rtol=0)
    torch.testing.assert_close(uniform, torch.tensor([[0.5378, 0.7951, 0.9959, 0.3961]]), atol=1e-4, rtol=0)


def numbers() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), torch.rand(()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_draws_neither_read_nor_move_global_generators(kind: Kind) -> None:
    with seeded_random_state(1):
        expected = numbers()
    with seeded_random_state(1):
        first = draw(kind)
        assert numbers() == expected
    with seeded_random_state(2):
        assert torch.equal(draw(kind), first)


def test_a_users_function_draws_from_the_key_and_leaves_no_trace() -> None:
    draws = KeyedDraws(0)

    def inside(sample: int, index: int, purpose: str = "perturb") -> tuple[float, float, float]:
        with draws.seeded(purpose, samples([sample]), torch.tensor([index])):
            return numbers()

    with seeded_random_state(1):
        expected = numbers()
    with seeded_random_state(1):
        first = inside(3, 0)
        others = [inside(4, 0), inside(3, 1), inside(3, 0, "other")]
        assert numbers() == expected
    assert inside(3, 0) == first
    assert not set(first) & {x for other in others for x in other}


def test_several_samples_cannot_share_one_seed() -> None:
    with pytest.raises(ValueError, match="the key of one sample, got 2 samples"):
        KeyedDraws(0).seeded("perturb", samples([1, 2]), torch.tensor([0, 0]))


def test_draws_for_whole_numbers_are_refused() -> None:
    with pytest.raises(
        TypeError, match=r"need a floating-point `like`, got torch\.int64; pass a floating-point tensor"
    ):
        draw("normal", dtype=torch.int64)


def test_samples_without_an_index_are_refused() -> None:
    with pytest.raises(ValueError, match="shorter"):
        draw("normal", IDS, INDICES[:-1])
