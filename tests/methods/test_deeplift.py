from __future__ import annotations

import functools
from functools import partial

import pytest
import torch
from torch import nn

from captum_reference import layers, primary
from comparing import LAYER, LIMITS, ORDER, by_hand, distance, together
from lightning_explain import methods as m
from networks import Averaged, Separate, samples, trained

BASELINES = torch.linspace(-1, 1, 3).reshape(3, 1, 1, 1).expand(3, 1, 8, 8).contiguous()


def squared(multipliers: tuple[torch.Tensor], inputs: tuple[torch.Tensor], baselines: tuple[torch.Tensor]) -> tuple:
    return tuple(w * (x - b) ** 2 for w, x, b in zip(multipliers, inputs, baselines, strict=True))


CASES = {
    "deconvolution": (m.Deconvolution(), primary.deconvolution),
    "deep_lift": (m.DeepLift(baselines=0.3, eps=1e-9), primary.deep_lift),
    "deep_lift_multipliers": (
        m.DeepLift(baselines=-0.2, multiply_by_inputs=False),
        primary.deep_lift_multipliers,
    ),
    "deep_lift_shap": (
        m.DeepLiftShap(baselines=BASELINES),
        partial(primary.deep_lift_shap, baselines=BASELINES),
    ),
}
LAYER_CASES = {
    "guided_grad_cam": (m.GuidedGradCam(LAYER, interpolate_mode="bilinear"), layers.guided_grad_cam),
    "layer_deep_lift": (m.LayerDeepLift(LAYER, baselines=0.3), layers.layer_deep_lift),
    "layer_deep_lift_input": (
        m.LayerDeepLift(LAYER, baselines=0.3, attribute_to_layer_input=True, multiply_by_inputs=False),
        layers.layer_deep_lift_input,
    ),
    "layer_deep_lift_shap": (
        m.LayerDeepLiftShap(LAYER, baselines=BASELINES),
        partial(layers.layer_deep_lift_shap, baselines=BASELINES),
    ),
}


def averaged() -> nn.Module:
    return trained(kind=Averaged)


@functools.cache
def explained(limit: int) -> tuple:
    return together({name: method for name, (method, _) in (CASES | LAYER_CASES).items()}, limit, averaged)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", CASES | LAYER_CASES)
def test_a_rule_at_every_activation_equals_captum_in_any_chunk(name: str, limit: int) -> None:
    report, largest = explained(limit)
    _, theirs = (CASES | LAYER_CASES)[name]
    model = by_hand(Separate, Averaged)
    arguments = (model.get_submodule(LAYER),) if name in LAYER_CASES else ()
    assert distance(report.attributions[name], theirs(model, *samples(), *arguments)) <= 1e-5
    # DeepLIFT sends a sample and its baseline side by side.
    # All of them are explained together, and DeepLIFT sends samples in pairs.
    assert largest[name] <= max(limit, 2)


@pytest.mark.filterwarnings("ignore")
def test_deconvolution_and_deep_lift_are_not_the_plain_gradient() -> None:
    report, _ = explained(64)
    gradient = primary.saliency(by_hand(Separate, Averaged), *samples())
    for name in ("deconvolution", "deep_lift_multipliers"):
        assert distance(report.attributions[name], gradient) > 0.1


@pytest.mark.parametrize("limit", LIMITS)
def test_deep_lift_shap_is_the_mean_of_deep_lift_over_its_baselines(limit: int) -> None:
    singles = {str(i): m.DeepLift(baselines=BASELINES[i : i + 1]) for i in range(3)}
    report, _ = together({"shap": m.DeepLiftShap(baselines=BASELINES), **singles}, limit)
    mean = torch.stack([report.attributions[name] for name in singles]).mean(0)
    assert distance(report.attributions["shap"], mean) <= 1e-5


@pytest.mark.filterwarnings("ignore")
def test_a_users_own_function_replaces_the_product() -> None:
    custom = {"custom_attribution_func": squared}
    report, _ = together(
        {"plain": m.DeepLift(baselines=0.3), "custom": m.DeepLift(baselines=0.3, **custom)},
        64,
    )
    expected = report.attributions["plain"] * (samples()[0] - 0.3)
    assert distance(report.attributions["custom"], expected) <= 1e-5


def test_a_layer_without_a_map_cannot_be_upsampled() -> None:
    with pytest.raises(ValueError, match=r"GuidedGradCam\(layer='head', .* cannot upsample"):
        together({"it": m.GuidedGradCam("head")}, 64)


@pytest.mark.parametrize(
    ("cls", "arguments", "error", "match"),
    [
        (m.DeepLift, {"eps": 0.0}, ValueError, r"DeepLift\(eps=0.0\); give a number above 0"),
        (m.DeepLift, {"baselines": "probe"}, ValueError, "baselines='probe'"),
        (m.DeepLiftShap, {"baselines": "nothing"}, ValueError, "baselines='nothing'"),
        (
            m.DeepLift,
            {"custom_attribution_func": 3},
            TypeError,
            r"DeepLift\(custom_attribution_func=3\); give None",
        ),
        (m.LayerDeepLift, {"custom_attribution_func": 3}, TypeError, r"LayerDeepLift\(custom_attribution_func=3\)"),
    ],
)
def test_what_is_not_allowed_is_refused_at_once(cls: type, arguments: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        cls(**arguments)


def test_samples_in_another_order_give_the_same_numbers() -> None:
    methods = {name: method for name, (method, _) in (CASES | LAYER_CASES).items()}
    mixed, _ = together(methods, 3, averaged, order=ORDER)
    straight, _ = explained(64)
    for name in methods:
        assert distance(mixed.attributions[name], straight.attributions[name][ORDER]) <= 1e-5


def test_deep_lift_and_its_layers_share_their_passes_and_give_what_they_give_alone() -> None:
    methods = {
        "input": m.DeepLift(),
        "multipliers": m.DeepLift(multiply_by_inputs=False),
        "block": m.LayerDeepLift(layer="block"),
        "into_block": m.LayerDeepLift(layer="block", attribute_to_layer_input=True),
    }
    shared, _ = together(methods, 64)
    assert shared.passes.forward == 7 * (1 + 2)
    assert shared.passes.backward == 7 * 2
    for name, method in methods.items():
        alone, _ = together({name: method}, 64)
        assert distance(shared.attributions[name], alone.attributions[name]) <= 1e-6


class Twice(nn.Module):
    """One layer runs two times."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.twice, self.last = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 10)
        self.tanh, self.relu = nn.Tanh(), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        again = self.tanh(self.twice(self.first(x.flatten(1))))
        return self.last(self.relu(self.twice(again)))


@pytest.mark.filterwarnings("ignore:.*runs 2 times in one forward pass, and only the last run is explained")
@pytest.mark.parametrize("of_input", [False, True])
def test_at_a_layer_that_runs_twice_its_last_time_counts_as_it_does_alone(of_input: bool) -> None:
    layer = {"layer": m.LayerDeepLift("twice", attribute_to_layer_input=of_input)}
    shared, _ = together({"input": m.DeepLift(), **layer}, 64, Twice)
    alone, _ = together(layer, 64, Twice)
    assert distance(shared.attributions["layer"], alone.attributions["layer"]) <= 1e-6


@pytest.mark.filterwarnings("ignore:'other'. the map misses")
def test_another_threshold_is_another_rule() -> None:
    report, _ = together({"one": m.DeepLift(), "other": m.DeepLift(eps=1.0)}, 64)
    assert report.passes.backward == 7 * 4
    assert distance(report.attributions["one"], report.attributions["other"]) > 1e-3
