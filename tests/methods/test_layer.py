from __future__ import annotations

import functools
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from captum_reference import layers, perturbation
from comparing import LAYER, LIMITS, ORDER, ROUNDED_STEPS, by_hand, distance, keyed, together
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from networks import Separate, samples

BASELINES = torch.linspace(-1, 1, 3).reshape(3, 1, 1, 1).expand(3, 1, 8, 8).contiguous()
CHANNELS = torch.arange(8).reshape(1, 8, 1, 1).expand(1, 8, 8, 8)


def draws(samples: int) -> dict[str, torch.Tensor]:
    return {
        "draws": keyed("noise/0", samples),
        "baselines": BASELINES,
        "chosen": (keyed("baseline", samples, uniform=True, shape=()) * 3).long(),
        "weights": keyed("coefficient", samples, uniform=True, shape=()),
    }


CASES = {
    "activation": (m.LayerActivation(LAYER), layers.layer_activation),
    "activation_input": (m.LayerActivation(LAYER, attribute_to_layer_input=True), layers.layer_activation_input),
    "conductance": (m.LayerConductance(LAYER, n_steps=7, baselines=0.3), layers.layer_conductance),
    "conductance_riemann": (
        m.LayerConductance(LAYER, n_steps=6, method="riemann_trapezoid", baselines=-0.5, attribute_to_layer_input=True),
        layers.layer_conductance_riemann,
    ),
    "internal_influence": (
        m.InternalInfluence(LAYER, n_steps=7, method="riemann_right", baselines=0.3),
        layers.internal_influence,
    ),
    "integrated_gradients": (
        m.LayerIntegratedGradients(LAYER, n_steps=7, baselines=0.3),
        layers.layer_integrated_gradients,
    ),
    "integrated_gradients_input": (
        m.LayerIntegratedGradients(
            LAYER,
            n_steps=5,
            method="riemann_left",
            baselines=0.3,
            multiply_by_inputs=False,
            attribute_to_layer_input=True,
        ),
        layers.layer_integrated_gradients_input,
    ),
    "feature_ablation": (
        m.LayerFeatureAblation(LAYER, layer_baselines=0.4, layer_mask=CHANNELS),
        partial(perturbation.layer_feature_ablation, layer_mask=CHANNELS),
    ),
    "gradient_shap": (
        m.LayerGradientShap(LAYER, n_samples=4, stdevs=0.2, baselines=BASELINES),
        partial(layers.layer_gradient_shap, **draws(4)),
    ),
}


@functools.cache
def explained(limit: int) -> tuple:
    return together({name: method for name, (method, _) in CASES.items()}, limit)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", CASES)
def test_a_layer_method_equals_captum_on_the_network_without_inplace_operations(name: str, limit: int) -> None:
    report, largest = explained(limit)
    model = by_hand(Separate)
    expected = CASES[name][1](model, *samples(), model.get_submodule(LAYER))
    assert distance(report.attributions[name], expected) <= 1e-5
    # Conductance takes differences between neighboring points.
    assert largest[name] <= max(limit, 2 if "conductance" in name else 1)


@pytest.mark.filterwarnings("ignore")
def test_each_unit_is_ablated_by_itself_without_a_mask() -> None:
    report, _ = together({"it": m.LayerFeatureAblation("head", layer_baselines=0.4)}, 5)
    model = by_hand(Separate)
    expected = perturbation.layer_feature_ablation(model, *samples(), model.head, None)
    assert distance(report.attributions["it"], expected) <= 1e-5


class Parted(nn.Module):
    """Parts of unlike shapes, as a tuple or a list."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> tuple[Tensor, ...] | list[Tensor]:
        return self.kind([x[:, :, :2], x[:, :, 2:].flatten(1)])


class Joined(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first.flatten(1), second.relu_()], 1)


class Several(nn.Module):
    """Layers that return or receive two tensors: in a tuple, in a list, one of them unread."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.listed, self.joined = Parted(tuple), Parted(list), Joined()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        attended, _ = self.attention(x, x, x)
        first, second = self.parts(attended)
        third, fourth = self.listed(attended)
        return self.head(self.joined(first + third, second * fourth))


MASKS = (torch.tensor([[[0, 1]]]).expand(1, 3, 2), torch.tensor([[1, 2, 3, 1, 2, 3]]))
# What is one feature in several tensors since Captum 0.9 is refused below it.
COMPARED = (MASKS[0], MASKS[1] + 1) if ROUNDED_STEPS else MASKS


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [1, 7, 64])
@pytest.mark.parametrize(
    ("layer", "of_input", "arguments"),
    [
        ("parts", False, {}),
        ("parts", False, {"layer_baselines": (0.4, torch.arange(6.0)[None]), "layer_mask": COMPARED}),
        ("joined", True, {"layer_baselines": (0.4, -1.0), "layer_mask": COMPARED}),
        ("attention", False, {}),
    ],
)
def test_each_of_several_tensors_is_ablated_as_in_captum(
    layer: str, of_input: bool, arguments: dict, limit: int
) -> None:
    torch.manual_seed(0)
    model, x, y = Several().eval(), torch.randn(5, 3, 4), torch.tensor([0, 1, 2, 0, 1])
    method = m.LayerFeatureAblation(layer, attribute_to_layer_input=of_input, **arguments)
    found = explain(model, Probe(x, y), {"it": method}, [], max_examples_per_pass=limit).attributions["it"]
    expected = perturbation.ablation_of_several_tensors(model, x, y, model.get_submodule(layer), of_input, **arguments)
    assert len(found) == len(expected) == 2
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert found[0].abs().max() > 0.01
    # Nothing reads the attention's weights; one pass of other sizes may round otherwise.
    assert (found[1].abs().max() < 1e-6) == (layer == "attention")


def test_a_list_of_tensors_is_ablated_as_a_tuple_of_them() -> None:
    torch.manual_seed(0)
    model, probe = Several().eval(), Probe(torch.randn(5, 3, 4), torch.tensor([0, 1, 2, 0, 1]))
    found = {}
    for kind in (tuple, list):
        model.parts, model.listed = Parted(kind), Parted(tuple)
        found[kind] = explain(model, probe, {"it": m.LayerFeatureAblation("parts")}, []).attributions["it"]
    assert found[tuple][1].abs().max() > 0.01
    assert all(torch.equal(a, b) for a, b in zip(found[tuple], found[list], strict=True))


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"layer_baselines": 0.4}, "layer_baselines has 1 entries for 2 tensors of the layer; give one for each"),
        ({"layer_mask": MASKS * 2}, "layer_mask has 4 entries for 2 tensors"),
        (
            {"layer_mask": MASKS[::-1]},
            r"layer_mask has shape \(1, 6\), which does not fit a sample of the layer, \(1, 3, 2\)",
        ),
    ],
)
def test_arguments_that_do_not_fit_several_tensors_are_refused(arguments: dict, match: str) -> None:
    probe = Probe(torch.randn(5, 3, 4), torch.tensor([0, 1, 2, 0, 1]))
    with pytest.raises(ValueError, match=match):
        explain(Several().eval(), probe, {"it": m.LayerFeatureAblation("parts", **arguments)}, [])


@pytest.mark.parametrize("captum", ["0.8.0", "0.8.0.post1", "0.9.0"])
def test_one_number_in_several_tensors_is_refused_where_captum_takes_it_for_several_features(
    captum: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_explain.methods.layer.version", lambda name: captum)
    method, activation = m.LayerFeatureAblation("parts", layer_mask=MASKS), (torch.zeros(1, 3, 2), torch.zeros(1, 6))
    own = m.LayerFeatureAblation("parts", layer_mask=(MASKS[0], MASKS[1] + 1))
    own.fits(None, None, activation)
    if captum >= "0.9":
        method.fits(None, None, activation)
    else:
        with pytest.raises(ValueError, match=r"which Captum before 0.9 takes for several features; give each tensor"):
            method.fits(None, None, activation)


def test_the_default_layer_is_the_last_with_a_feature_map() -> None:
    names = [name for name in m.__all__ if name.startswith(("Layer", "Internal"))]
    chosen = {name: getattr(m, name)() for name in names if "LRP" not in name}
    named = {f"{name}_named": getattr(m, name)(layer="block.relu2") for name in chosen}
    report, _ = together(chosen | named, 64)
    for name in chosen:
        assert torch.equal(report.attributions[name], report.attributions[f"{name}_named"])


@pytest.mark.parametrize(
    ("cls", "arguments", "error", "match"),
    [
        (m.LayerConductance, {"n_steps": 0}, ValueError, r"LayerConductance\(n_steps=0\); give a whole number"),
        (
            m.InternalInfluence,
            {"method": "simpson"},
            ValueError,
            r"InternalInfluence\(method='simpson'\); give one of 'rie",
        ),
        (m.LayerIntegratedGradients, {"baselines": "probe"}, ValueError, "baselines='probe'"),
        (m.LayerGradientShap, {"n_samples": 0}, ValueError, r"LayerGradientShap\(n_samples=0\)"),
        (m.LayerGradientShap, {"stdevs": -1.0}, ValueError, r"LayerGradientShap\(stdevs=-1.0\)"),
        (
            m.LayerFeatureAblation,
            {"layer_mask": 3},
            TypeError,
            r"LayerFeatureAblation\(layer_mask\) is a int; give None",
        ),
        (m.LayerFeatureAblation, {"layer_baselines": "mean"}, TypeError, r"LayerFeatureAblation\(layer_baselines\) is"),
    ],
)
def test_what_is_not_allowed_is_refused_at_once(cls: type, arguments: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        cls(**arguments)


def test_samples_in_another_order_give_the_same_numbers() -> None:
    methods = {name: method for name, (method, _) in CASES.items()}
    mixed, _ = together(methods, 3, order=ORDER)
    straight, _ = explained(64)
    for name in methods:
        assert distance(mixed.attributions[name], straight.attributions[name][ORDER]) <= 1e-5
