from __future__ import annotations

import functools
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from captum_reference import layers, neurons, perturbation
from comparing import LAYER, LIMITS, ORDER, by_hand, distance, keyed, together
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from networks import Separate, samples, trained

UNIT = (3, 2, slice(1, 4))
GRID = (torch.arange(8)[:, None] // 4 * 2 + torch.arange(8) // 4).expand(1, 1, 8, 8)
BASELINES = torch.linspace(-1, 1, 3).reshape(3, 1, 1, 1).expand(3, 1, 8, 8).contiguous()
DRAWS = {
    "draws": keyed("noise/0", 4),
    "baselines": BASELINES,
    "chosen": (keyed("baseline", 4, uniform=True, shape=()) * 3).long(),
    "weights": keyed("coefficient", 4, uniform=True, shape=()),
}


def corner(activation: Tensor) -> Tensor:
    return activation[:, 1, 4, 4] * 2 - activation[:, 0, 3, 3]


CASES = {
    "gradient": (m.NeuronGradient(LAYER, UNIT), neurons.neuron_gradient),
    "gradient_input": (m.NeuronGradient(LAYER, UNIT, True), neurons.neuron_gradient_input),
    "guided_backprop": (m.NeuronGuidedBackprop(LAYER, UNIT), neurons.neuron_guided_backprop),
    "deconvolution": (m.NeuronDeconvolution(LAYER, UNIT), neurons.neuron_deconvolution),
    "integrated_gradients": (
        m.NeuronIntegratedGradients(LAYER, UNIT, n_steps=7, baselines=0.3),
        neurons.neuron_integrated_gradients,
    ),
    "conductance": (
        m.NeuronConductance(LAYER, UNIT, n_steps=7, method="gausslegendre", baselines=0.3),
        neurons.neuron_conductance,
    ),
    "deep_lift": (m.NeuronDeepLift(LAYER, UNIT, baselines=0.3), neurons.neuron_deep_lift),
    "deep_lift_input": (m.NeuronDeepLift(LAYER, UNIT, True, baselines=0.3), neurons.neuron_deep_lift_input),
    "deep_lift_shap": (
        m.NeuronDeepLiftShap(LAYER, UNIT, baselines=BASELINES, multiply_by_inputs=False),
        partial(neurons.neuron_deep_lift_shap, baselines=BASELINES),
    ),
    "feature_ablation": (
        m.NeuronFeatureAblation(LAYER, UNIT, baselines=0.3, feature_mask={"grid": 4}),
        partial(perturbation.neuron_feature_ablation, mask=GRID),
    ),
    "gradient_shap": (
        m.NeuronGradientShap(LAYER, UNIT, n_samples=4, stdevs=0.2, baselines=BASELINES),
        partial(neurons.neuron_gradient_shap, **DRAWS),
    ),
}


@functools.cache
def explained(limit: int) -> tuple:
    return together({name: method for name, (method, _) in CASES.items()}, limit)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", CASES)
def test_a_neuron_method_equals_captum_in_any_chunk(name: str, limit: int) -> None:
    report, largest = explained(limit)
    model = by_hand(Separate)
    expected = CASES[name][1](model, *samples(), model.get_submodule(LAYER), UNIT)
    assert distance(report.attributions[name], expected) <= 1e-5
    assert largest[name] <= max(limit, 2 if "lift" in name else 1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("selector", [4, (4,), corner], ids=["int", "tuple", "callable"])
def test_a_neuron_is_chosen_as_in_captum(selector: object) -> None:
    layer = LAYER if callable(selector) else "head"
    report, _ = together({"it": m.NeuronGradient(layer, selector)}, 3)
    model = by_hand(Separate)
    expected = neurons.neuron_gradient(model, *samples(), model.get_submodule(layer), selector)
    assert distance(report.attributions["it"], expected) <= 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", LIMITS)
def test_the_default_neuron_is_the_strongest_on_the_whole_probe(limit: int) -> None:
    model = by_hand(Separate)
    activation = layers.layer_activation(model, *samples(), model.get_submodule(LAYER)).mean(0)
    unit = tuple(int(i) for i in torch.unravel_index(activation.argmax(), activation.shape))
    expected = neurons.neuron_gradient(model, *samples(), model.get_submodule(LAYER), unit)
    mixed, _ = together({"it": m.NeuronGradient(LAYER), "flow": m.NeuronConductance(LAYER)}, limit, order=ORDER)
    assert distance(mixed.attributions["it"], expected[ORDER]) <= 1e-5
    named, _ = together({"flow": m.NeuronConductance(LAYER, unit)}, limit)
    # Where the unit is cut off by a ReLU nothing flows, so that there is no relative difference.
    assert (mixed.attributions["flow"] - named.attributions["flow"][ORDER]).abs().max() <= 1e-6


def test_one_index_is_enough_where_the_others_have_one_value() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Unflatten(1, (4, 1, 1)), nn.Flatten(), nn.Linear(4, 2))
    whole = {
        "one": m.NeuronGradient("2", 3),
        "all": m.NeuronGradient("2", (3, 0, 0)),
        "callable": m.NeuronGradient("2", lambda activation: activation[:, 3, :, 0]),
    }
    found = explain(net, Probe(samples()[0]), whole, [], target=0).attributions
    assert all(torch.equal(value, found["all"]) for value in found.values())


def test_gradients_of_neurons_are_counted() -> None:
    x, y = samples()
    for method, expected in ((m.NeuronGradient(LAYER, UNIT), 7), (m.NeuronConductance(LAYER, UNIT, n_steps=4), 56)):
        assert explain(trained(), Probe(x, y), {"it": method}, []).passes.backward == expected


def test_the_first_of_equally_strong_units_is_chosen() -> None:
    model = trained()
    torch.nn.init.zeros_(model.head.weight)
    torch.nn.init.ones_(model.head.bias)
    x, y = samples()
    first = explain(model, Probe(x, y), {"it": m.NeuronFeatureAblation("head", feature_mask={"grid": 4})}, [])
    assert first.attributions["it"].abs().max() == 0


@pytest.mark.filterwarnings("ignore")
def test_scores_of_a_neuron_method_are_about_the_neuron() -> None:
    # Infidelity of the exact explanation of a linear function is 0: the neuron is linear in the input, the output is not.
    x, y = samples()
    methods = {
        "neuron": m.NeuronGradient("stem.0", (2, 3, 3)),
        "tunnel": m.NoiseTunnel(m.NeuronGradient("stem.0", (2, 3, 3)), nt_samples=2),
        "output": m.Saliency(abs=False),
    }
    report = explain(trained(), Probe(x, y), methods, [q.Infidelity("gaussian", 8, 0.5, normalize=False)])
    scores = {name: values.max().item() for name, values in report.scores["infidelity"].items()}
    assert scores["neuron"] <= 1e-8
    assert scores["tunnel"] <= 1e-8
    assert scores["output"] > 1e-3


@pytest.mark.parametrize(
    ("selector", "match"),
    [
        (
            (3, 2),
            r"neuron_selector=\(3, 2\) chose \(\d+, 8\) from an activation \(\d+, 8, 8, 8\), not one number",
        ),
        ((3, 2, 99), r"neuron_selector=\(3, 2, 99\) does not fit an activation \(\d+, 8, 8, 8\)"),
        (lambda activation: activation.mean(), r"chose \(\) from an activation"),
    ],
)
def test_a_selector_that_does_not_choose_one_unit_is_refused(selector: object, match: str) -> None:
    x, y = samples()
    with pytest.raises(ValueError, match=match):
        explain(trained(), Probe(x, y), {"it": m.NeuronFeatureAblation(LAYER, selector, feature_mask={"grid": 4})}, [])


@pytest.mark.parametrize("selector", ["strongest", 1.5, (), (1, "2"), True])
def test_a_selector_of_another_kind_is_refused_at_once(selector: object) -> None:
    with pytest.raises(TypeError, match=r"NeuronGradient\(neuron_selector=.*\); give None"):
        m.NeuronGradient(LAYER, selector)


def test_arguments_are_checked_as_those_of_the_method_at_the_neuron() -> None:
    with pytest.raises(ValueError, match=r"NeuronIntegratedGradients\(n_steps=0\); give a whole number"):
        m.NeuronIntegratedGradients(n_steps=0)
    with pytest.raises(ValueError, match=r"NeuronConductance\(method='simpson'\)"):
        m.NeuronConductance(method="simpson")


def test_samples_in_another_order_give_the_same_numbers() -> None:
    methods = {name: method for name, (method, _) in CASES.items()}
    mixed, _ = together(methods, 3, order=ORDER)
    straight, _ = explained(64)
    for name in methods:
        assert distance(mixed.attributions[name], straight.attributions[name][ORDER]) <= 1e-5
