"""Which paths are one: equality by value over all hyperparameters, and a method's word over its class."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_explain import methods as m
from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import Evaluation, Point, path_of, value_of, widened
from lightning_explain.core.probe import Attribution, Samples

quick = settings(max_examples=50, deadline=None, derandomize=True)
PLAIN = st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3) | st.floats(allow_nan=False)
VALUES = st.recursive(PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner))


def rebuilt(value: Any) -> Any:
    """The same value as other objects, lists as tuples."""
    if isinstance(value, dict):
        return {key: rebuilt(part) for key, part in value.items()}
    return tuple(rebuilt(part) for part in value) if isinstance(value, list) else value


@quick
@given(VALUES)
def test_equal_values_are_worth_the_same_and_can_be_keys(value: Any) -> None:
    assert value_of(value) == value_of(rebuilt(value))
    assert hash(value_of(value)) == hash(value_of(rebuilt(value)))


@quick
@given(st.lists(st.integers(-5, 5), min_size=1, max_size=4), st.sampled_from([torch.float32, torch.int64]))
def test_tensors_are_worth_their_content(numbers: list[int], dtype: torch.dtype) -> None:
    a, b = (torch.tensor(numbers, dtype=dtype) for _ in range(2))
    assert value_of(a) == value_of(b) == value_of(b.expand(2, -1)[0])
    assert value_of(a) != value_of(a + 1)
    assert value_of(a) != value_of(a[None])
    assert value_of(a) != value_of(a.to(torch.float64))
    assert value_of(torch.tensor(True)) != value_of(torch.tensor(False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.bool], ids=str)
def test_tensors_of_every_kind_have_a_value(dtype: torch.dtype) -> None:
    a = torch.tensor([0, 1, 1]).to(dtype)
    assert value_of(a) == value_of(a.clone())
    assert value_of(a) != value_of(torch.tensor([0, 0, 1]).to(dtype))


def test_slices_functions_and_what_has_no_value_are_told_apart() -> None:
    def one() -> None: ...
    def other() -> None: ...

    assert value_of(slice(1, 2)) == value_of(slice(1, 2)) != value_of(slice(1, 3))
    assert value_of(one) == value_of(one) != value_of(other)
    a, b = {1}, {1}
    assert value_of(a) == value_of(a) != value_of(b)


PATHS = {
    "n_steps": (m.IntegratedGradients(4), m.IntegratedGradients(5)),
    "method": (m.IntegratedGradients(4), m.IntegratedGradients(4, "riemann_right")),
    "baseline": (m.IntegratedGradients(4), m.IntegratedGradients(4, baselines=0.5)),
    "tensors": (
        m.IntegratedGradients(4, baselines=torch.ones(1, 2)),
        m.IntegratedGradients(4, baselines=torch.zeros(1, 2)),
    ),
    "noise": (m.GradientShap(stdevs=0.1), m.GradientShap(stdevs=0.2)),
    "tunnel": (m.NoiseTunnel(nt_samples=3), m.NoiseTunnel(nt_samples=4)),
    "tunnel noise": (m.NoiseTunnel(stdevs=0.1), m.NoiseTunnel(stdevs=0.2)),
    "inside": (m.NoiseTunnel(m.IntegratedGradients(3)), m.NoiseTunnel(m.IntegratedGradients(4))),
    "nesting": (m.NoiseTunnel(), m.NoiseTunnel(m.NoiseTunnel())),
    "window": (m.Occlusion((1, 2, 2)), m.Occlusion((1, 3, 3))),
    "stride": (m.Occlusion((1, 2, 2), 1), m.Occlusion((1, 2, 2), 2)),
    "mask": (m.FeatureAblation(feature_mask={"grid": 2}), m.FeatureAblation(feature_mask={"grid": 3})),
    "kind": (m.FeatureAblation(), m.FeaturePermutation()),
}


@pytest.mark.parametrize(("first", "second"), PATHS.values(), ids=PATHS)
def test_paths_differ_with_each_hyperparameter_and_are_equal_without(first: Any, second: Any) -> None:
    assert value_of(first.path) != value_of(second.path)
    assert value_of(first.path) == value_of(replace(first).path)


def test_what_is_done_with_the_evaluations_is_not_part_of_the_path() -> None:
    assert value_of(m.IntegratedGradients(4).path) == value_of(m.IntegratedGradients(4, multiply_by_inputs=False).path)
    assert value_of(m.NoiseTunnel(m.Saliency()).path) == value_of(m.NoiseTunnel(m.LayerGradCam("a"), "vargrad").path)


class Own(m.Saliency):
    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        return samples.inputs[0]


class Below(Own):
    """Inherits its own way."""


class Renamed(m.Saliency):
    """Changes nothing."""


class Reduced(Own):
    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Any:
        return ((yield).output,)


def test_a_class_is_taken_at_the_word_that_is_nearest() -> None:
    assert [path_of(cls()) is None for cls in (m.Saliency, Own, Below, Renamed, Reduced)] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert path_of(m.Lime()) is None
    assert path_of(object()) is None
    for inside in (Own(), Below(), m.Lime()):
        assert path_of(m.NoiseTunnel(inside)) is None
        assert path_of(m.NoiseTunnel(m.NoiseTunnel(inside))) is None


def test_a_evaluation_widens_what_is_read_in_half_precision() -> None:
    samples = Samples((torch.zeros(1),), (torch.zeros(1),), (), torch.zeros(1), torch.zeros(1))
    found = Evaluation(
        Point(samples), torch.zeros(1), {("plain", None): (torch.ones(1, dtype=torch.bfloat16),)}
    ).gradient()
    assert found[0].dtype == torch.float32
    assert widened(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def same_name(number: int) -> type:
    @dataclass(frozen=True)
    class Path:
        n: int = 1

    return Path


def test_paths_of_different_classes_differ_though_their_names_do_not() -> None:
    assert value_of(same_name(1)()) != value_of(same_name(2)())
