from __future__ import annotations

import captum.attr as ca
import pytest
import torch

from captum_reference import layers, perturbation, primary
from comparing import LAYER, ROUNDED_STEPS, by_hand, distance, keyed, ours
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from networks import DigitNet, samples, trained


def captums_own_blocks() -> DigitNet:
    return by_hand(type(trained().block))


PLAIN = {
    "saliency": (m.Saliency(abs=False), primary.saliency),
    "saliency_abs": (m.Saliency(), primary.saliency_abs),
    "input_x_gradient": (m.InputXGradient(), primary.input_x_gradient),
    "integrated_gradients": (m.IntegratedGradients(n_steps=13, baselines=0.3), primary.integrated_gradients),
    "integrated_gradients_riemann": (
        m.IntegratedGradients(n_steps=9, method="riemann_trapezoid", baselines=-0.5, multiply_by_inputs=False),
        primary.integrated_gradients_riemann,
    ),
    "occlusion": (
        m.Occlusion(sliding_window_shapes=(1, 3, 2), strides=(1, 2, 1), baselines=-0.7),
        perturbation.occlusion,
    ),
}

LAYERS = {
    "grad_cam": (m.LayerGradCam(LAYER, relu_attributions=True), layers.layer_grad_cam),
    "grad_cam_input": (m.LayerGradCam(LAYER, attribute_to_layer_input=True), layers.layer_grad_cam_input),
    "grad_cam_channels": (m.LayerGradCam(LAYER, attr_dim_summation=False), layers.layer_grad_cam_channels),
    "gradient_x_activation": (m.LayerGradientXActivation(LAYER), layers.layer_gradient_x_activation),
    "layer_gradient": (m.LayerGradientXActivation(LAYER, multiply_by_inputs=False), layers.layer_gradient),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [1, 3, 64])
@pytest.mark.parametrize("name", PLAIN)
def test_a_method_equals_captum_in_any_chunk(name: str, limit: int) -> None:
    method, theirs = PLAIN[name]
    found, expected = ours(method, max_examples_per_pass=limit), theirs(by_hand(), *samples())
    if ROUNDED_STEPS and distance(found, expected) > 1e-5:
        # A point so near the kink of a ReLU that rounding decides; in float64 both sides see it on the same one.
        x, y = samples()
        report = explain(trained().double(), Probe(x, y), {"it": method}, [], max_examples_per_pass=limit)
        found, expected = report.attributions["it"], theirs(by_hand().double(), x.double(), y)
    assert distance(found, expected) <= 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [1, 3, 64])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_method_equals_captum_on_the_network_without_inplace_operations(name: str, limit: int) -> None:
    method, theirs = LAYERS[name]
    model = by_hand()
    expected = theirs(model, *samples(), model.get_submodule(LAYER))
    assert distance(ours(method, max_examples_per_pass=limit), expected) <= 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [1, 3, 64])
def test_guided_backprop_equals_captum_and_not_the_plain_gradient(limit: int) -> None:
    expected = primary.guided_backprop(captums_own_blocks(), *samples())
    found = ours(m.GuidedBackprop(), max_examples_per_pass=limit)
    assert distance(found, expected) <= 1e-5
    assert distance(found, primary.saliency(by_hand(), *samples())) > 0.1


WINDOW = {"sliding_window_shapes": (1, 4, 4), "strides": (1, 4, 4)}
INNER = {
    "saliency": (m.Saliency(abs=False), ca.Saliency, {"abs": False}),
    "ig": (m.IntegratedGradients(n_steps=5), ca.IntegratedGradients, {"n_steps": 5}),
    "occlusion": (m.Occlusion(**WINDOW), ca.Occlusion, WINDOW),
    "cam": (m.LayerGradCam(LAYER), lambda model: ca.LayerGradCam(model, model.get_submodule(LAYER)), {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [1, 3, 64])
@pytest.mark.parametrize("nt_type", ["smoothgrad", "smoothgrad_sq", "vargrad"])
@pytest.mark.parametrize("inner", INNER)
def test_a_noise_tunnel_equals_captum_on_the_same_draws(inner: str, nt_type: str, limit: int) -> None:
    method, theirs, arguments = INNER[inner]
    x, y = samples()
    tunnel = m.NoiseTunnel(method, nt_type=nt_type, nt_samples=4, stdevs=0.4)
    # The variance is a small difference of large numbers, which Captum takes in the precision of the input.
    model = by_hand().double() if nt_type == "vargrad" else by_hand()
    like = next(model.parameters())
    draws = keyed("noise/0", 4).to(like)
    expected = primary.noise_tunnel(theirs(model), x.to(like), y, draws, nt_type, **arguments).float()
    tolerance = 3e-5 if nt_type == "vargrad" else 1e-5
    assert distance(ours(tunnel, max_examples_per_pass=limit), expected) <= tolerance


@pytest.mark.filterwarnings("ignore")
def test_a_noise_tunnel_without_noise_is_the_method_itself() -> None:
    tunnel = m.NoiseTunnel(m.InputXGradient(), nt_samples=3, stdevs=0.0)
    assert distance(ours(tunnel), primary.input_x_gradient(by_hand(), *samples())) <= 1e-6


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [1, 3, 64])
def test_gradient_shap_equals_captum_on_the_same_draws(limit: int) -> None:
    x, y = samples()
    baselines = torch.linspace(-1, 1, 3).reshape(3, 1, 1, 1).expand(3, 1, 8, 8).contiguous()
    found = ours(m.GradientShap(n_samples=6, stdevs=0.2, baselines=baselines), max_examples_per_pass=limit)
    chosen = (keyed("baseline", 6, uniform=True, shape=()) * 3).long()
    weights = keyed("coefficient", 6, uniform=True, shape=())
    expected = primary.gradient_shap(by_hand(), x, y, keyed("noise/0", 6), baselines, chosen, weights)
    assert distance(found, expected) <= 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("spec", "value"),
    [
        ("zero", 0.0),
        ("black", -0.5),
        ("mean", "mean"),
        (0.3, 0.3),
        (torch.full((1, 1, 8, 8), 0.2), 0.2),
    ],
)
def test_a_baseline_by_name_is_the_tensor_it_stands_for(spec: object, value: float | str) -> None:
    x, y = samples()
    tensor = x.mean(0, keepdim=True).expand_as(x) if value == "mean" else torch.full_like(x, float(value))
    found = ours(m.IntegratedGradients(n_steps=13, baselines=spec), normalization=([0.25], [0.5]))
    assert distance(found, primary.integrated_gradients(by_hand(), x, y, tensor)) <= 1e-5


@pytest.mark.parametrize("limit", [1, 3, 64])
@pytest.mark.parametrize(
    "method",
    [
        m.Saliency(abs=False),
        m.IntegratedGradients(n_steps=6),
        m.GradientShap(n_samples=4, stdevs=0.1),
        m.NoiseTunnel(m.GradientShap(n_samples=3), nt_samples=3, stdevs=0.1),
        m.LayerGradCam(LAYER),
    ],
    ids=lambda method: type(method).__name__,
)
def test_samples_in_another_order_give_the_same_numbers(method: m.Saliency, limit: int) -> None:
    x, y = samples()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    straight = explain(trained(), Probe(x, y), {"it": method}, [])
    mixed = explain(trained(), Probe(x[order], y[order], ids=order), {"it": method}, [], max_examples_per_pass=limit)
    assert distance(mixed.attributions["it"], straight.attributions["it"][order]) <= 1e-5


def test_nested_samples_have_draws_of_their_own() -> None:
    tunnel = m.NoiseTunnel(m.GradientShap(n_samples=1, baselines=0.0), nt_type="vargrad", nt_samples=4, stdevs=0.0)
    assert ours(tunnel).abs().max() > 0
