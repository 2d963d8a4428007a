from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

from comparing import ROUNDED_STEPS
from given import Given, Linear
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction, Reference
from lightning_explain.core.probe import Attribution, Samples
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.metrics.completeness import convergence_delta
from networks import samples, trained


@dataclass(frozen=True)
class Wrong(m.IntegratedGradients):
    """A map that promises to add up and is half as large again."""

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        found = super().attribute(explained, samples)
        assert isinstance(found, torch.Tensor)
        return 1.5 * found


def test_the_error_of_known_maps_of_a_linear_model() -> None:
    w, x = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([[1.0, 1.0, 2.0], [2.0, 0.0, 0.0]])
    maps = {
        "exact": Given(x * w, by_sample=True, reference=Reference()),
        "double": Given(2 * x * w, by_sample=True, reference=Reference()),
        "from_one": Given((x - 1) * w, by_sample=True, reference=Reference(1.0)),
        "from_several": Given((x - 0.5) * w, by_sample=True, reference=Reference((0.0, 1.0), distribution=True)),
        "silent": Given(x * w, by_sample=True),
    }
    report = explain(Linear(w), Probe(x), maps, [q.Completeness()])
    relative, delta = report.scores["completeness"], report.scores["completeness_delta"]
    assert set(relative) == set(delta) == {"exact", "double", "from_one", "from_several"}
    for name in ("exact", "from_one", "from_several"):
        assert delta[name].abs().max() < 1e-6
    assert relative["double"].tolist() == pytest.approx([1, 1])
    assert delta["double"].tolist() == pytest.approx([5, 2]), "f(x) - f(0) without the offset"


def test_a_gap_of_zero_has_no_relative_error() -> None:
    w, x = torch.tensor([1.0, -1.0]), torch.tensor([[1.0, 1.0]])
    maps = {
        "zeros": Given(0 * w, reference=Reference()),
        "ones": Given(torch.ones(2), reference=Reference()),
    }
    report = explain(Linear(w), Probe(x), maps, [q.Completeness()])
    assert report.scores["completeness"]["zeros"].isnan().all()
    assert report.scores["completeness"]["ones"].isnan().all()
    assert report.scores["completeness_delta"]["ones"].tolist() == [2]


def test_integrated_gradients_of_a_trained_network_add_up_and_a_wrong_map_does_not() -> None:
    x, y = samples()
    methods = {"ig": m.IntegratedGradients(n_steps=200), "few": m.IntegratedGradients(n_steps=2), "wrong": Wrong(200)}
    report = explain(trained().double(), Probe(x, y), methods, [q.Completeness()])
    found = report.scores["completeness"]
    assert found["ig"].max() < 0.01
    assert found["few"].mean() > 3 * found["ig"].mean(), "too few steps show"
    assert (found["wrong"] - 0.5).abs().max() < 0.02


def test_the_delta_is_captums() -> None:
    import captum.attr as ca

    x, y = samples()
    report = explain(trained().double(), Probe(x, y), {"ig": m.IntegratedGradients(n_steps=7)}, [q.Completeness()])
    explainer = ca.IntegratedGradients(trained().double().eval())
    _, theirs = explainer.attribute(x.double(), target=y, n_steps=7, return_convergence_delta=True)
    assert torch.allclose(
        report.scores["completeness_delta"]["ig"], theirs.abs(), atol=1e-7 if ROUNDED_STEPS else 1e-10
    )


def test_layer_maps_add_up_in_their_own_shape() -> None:
    x, y = samples()
    methods = {
        "conductance": m.LayerConductance("block", n_steps=200),
        "layer_ig": m.LayerIntegratedGradients("block", n_steps=200),
    }
    report = explain(trained().double(), Probe(x, y), methods, [q.Completeness()])
    for name in methods:
        assert report.scores["completeness"][name].max() < 0.01, name


def test_a_random_method_adds_up_in_expectation() -> None:
    x, y = samples()
    methods = {"shap": m.GradientShap(n_samples=500, baselines=("zero", 1.0))}
    report = explain(trained(), Probe(x, y), methods, [q.Completeness()])
    assert report.scores["completeness"]["shap"].mean() < 0.2


def test_methods_that_promise_nothing_have_no_score() -> None:
    x, y = samples(3)
    methods = {
        "saliency": m.Saliency(),
        "ig": m.IntegratedGradients(n_steps=2, multiply_by_inputs=False),
        "cam": m.LayerGradCam("block"),
        "noise": m.NoiseTunnel(m.IntegratedGradients(n_steps=2)),
    }
    with pytest.warns(
        UserWarning, match="'completeness' will score none of the methods; it needs a method whose map prom"
    ):
        report = explain(trained(), Probe(x, y), methods, [q.Completeness()])
    assert report.scores["completeness"] == {}


@pytest.mark.parametrize("limit", [1, 3, 64])
def test_each_baseline_goes_through_the_model_once_for_each_target(limit: int) -> None:
    x, y = samples(16)
    maps = {
        "zero": Given(x, by_sample=True, reference=Reference()),
        "also_zero": Given(x, by_sample=True, reference=Reference(0.0)),
        "one_and_zero": Given(x, by_sample=True, reference=Reference(("zero", 1.0), distribution=True)),
        "blur": Given(x, by_sample=True, reference=Reference("blur")),
    }
    explainer = Explainer(maps, {"completeness": q.Completeness()}, limit=limit)
    model, calls = trained(), []
    model.register_forward_hook(lambda module, arguments, output: calls.append(len(output)))
    report = explainer.explain(model, Probe(x, y))
    targets = len(set(y.tolist()))
    assert targets < 16
    assert sum(calls) == report.passes.forward == 16 + 2 * targets + 16, (
        "the samples, 0 and 1 for each target, each blurred sample"
    )
    assert max(calls) <= limit


def test_the_sum_is_taken_over_all_inputs() -> None:
    parts = (torch.ones(2, 3), torch.ones(2, 1, 2, 2))
    assert convergence_delta(parts, torch.tensor([7.0, 5.0])).tolist() == [0, 2]
