"""Which methods share passes."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_explain import methods as m
from lightning_explain.core.points import DECONVOLUTION, GUIDED, PLAIN, LayerSite
from lightning_explain.engine.plan import plan

LAYER = "block.bn2"
quick = settings(max_examples=30, deadline=None, derandomize=True)


def shared(*methods: Any) -> list[set[str]]:
    """Which methods share a path, by their position in the arguments."""
    planned = plan({str(i): method for i, method in enumerate(methods)})
    return [set(shared_path.methods) for shared_path in planned.paths if shared_path.methods]


def test_two_equal_integrals_share_their_line() -> None:
    assert shared(m.IntegratedGradients(5), m.IntegratedGradients(5)) == [{"0", "1"}]
    assert shared(m.IntegratedGradients(5), m.IntegratedGradients(6)) == [{"0"}, {"1"}]


@quick
@given(n=st.integers(1, 60), method=st.sampled_from(["gausslegendre", "riemann_trapezoid"]))
def test_an_integral_an_influence_and_a_conductance_of_a_step_less_share_one_line(n: int, method: str) -> None:
    where = {"method": method, "baselines": 0.3}
    integral, influence = m.IntegratedGradients(n + 1, **where), m.InternalInfluence("a", n + 1, **where)
    assert shared(integral, influence, m.LayerConductance("b", n, **where)) == [{"0", "1", "2"}]
    assert shared(integral, m.LayerConductance("b", n + 1, **where)) == [{"0"}, {"1"}]


@pytest.mark.parametrize("baselines", [None, 0, 0.0, "zero"])
@pytest.mark.parametrize(
    "method", [partial(m.IntegratedGradients, 4), m.DeepLift, m.FeatureAblation, partial(m.Occlusion, (1, 2, 2))]
)
def test_nothing_is_written_in_several_ways_and_shared(method: Any, baselines: Any) -> None:
    found = plan({"a": method(baselines=baselines), "b": method(), "c": method(baselines=0.5)})
    assert [set(shared_path.methods) for shared_path in found.shared_paths] == [{"a", "b"}, {"c"}]


@pytest.mark.parametrize("kind", [m.IntegratedGradients, m.GradientShap, m.Occlusion, m.FeatureAblation])
def test_equal_tensors_as_baselines_share_and_others_do_not(kind: Any) -> None:
    methods = [kind(baselines=torch.full((1, 1, 8, 8), value)) for value in (0.5, 0.5, 0.25)]
    assert shared(*methods) == [{"0", "1"}, {"2"}]


def test_needs_on_one_path_are_united_and_cost_one_pass_back_for_each_rule() -> None:
    methods = {"a": m.Saliency(), "b": m.GuidedBackprop(), "c": m.LayerGradCam(LAYER), "d": m.Deconvolution()}
    center = plan(methods).center
    site = LayerSite(LAYER)
    assert center.reads == {(PLAIN, None), (GUIDED, None), (DECONVOLUTION, None), (PLAIN, site), (None, site)}
    assert center.rules == (DECONVOLUTION, GUIDED, PLAIN)
    assert center.layers == (LAYER,)


def test_paths_that_only_look_forward_come_last_for_they_use_what_others_saw() -> None:
    methods = {"a": m.Occlusion(), "b": m.IntegratedGradients(3), "c": m.NoiseTunnel(m.GuidedBackprop())}
    assert [shared_path.rules for shared_path in plan(methods).shared_paths] == [(GUIDED,), (PLAIN,), ()]


def test_methods_without_a_path_are_left_apart_in_order() -> None:
    methods = {"b": m.LRP(), "ig": m.IntegratedGradients(3), "a": m.NoiseTunnel(m.LRP()), "c": m.Lime()}
    assert plan(methods).apart == ("b", "a", "c")
