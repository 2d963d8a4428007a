"""What an explanation costs, forecast from what it costs for one sample and for two."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from typer.testing import CliRunner

from lightning_explain import Method, Metric, Probe
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.cli.main import app
from lightning_explain.core.report import PassCount
from lightning_explain.explainer.cost import Forecast
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.registry import METRICS, build_methods, build_metrics
from networks import samples, trained

LAYER = "block.bn2"


class Slow(nn.Flatten):
    """Takes 10 ms for each sample, by a clock that stands still otherwise; the hooks of a module see it."""

    now = 0.0

    def forward(self, x: Tensor) -> Tensor:
        Slow.now += 0.01 * len(x)
        return super().forward(x)


@pytest.mark.parametrize("target", ["label", "predicted", {"one": 0, "two": 1}])
def test_the_time_is_that_of_the_model_where_checks_share_its_calls(
    target: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for clock in ("perf_counter", "process_time"):
        monkeypatch.setattr(time, clock, lambda: Slow.now)
    count, ig = len(target) if isinstance(target, dict) else 1, {"ig": m.IntegratedGradients(n_steps=2)}
    x, y = samples(4)
    estimate = Explainer(ig, {}, target).check(nn.Sequential(Slow()), Probe(x, y), timed=True).estimate
    assert estimate is not None
    assert estimate.passes.backward == 2 * count
    assert estimate.seconds == pytest.approx(3 * 0.01), "a backward pass takes twice the time of a forward pass"


def assert_estimated(explainer: Explainer, probe: Probe) -> None:
    """What is said before the first batch is what it costs, unless it says that a part is not known."""
    ready = explainer.check(trained(), probe, timed=True)
    expected, found = ready.estimate, ready.explain(trained(), probe).passes
    assert expected is not None
    assert expected.seconds > 0
    counted = [expected.passes.forward, expected.passes.backward]
    taken = [found.forward / len(probe), found.backward / len(probe)]
    if expected.besides:
        assert all(c <= t for c, t in zip(counted, taken, strict=True))
    else:
        # One sample more in an explanation, by which the layers of a model are put in order.
        assert taken == [pytest.approx(counted[0], abs=1 / len(probe) + 1e-9), counted[1]]


@pytest.mark.parametrize(
    "methods",
    [
        None,
        {"deeplift": m.DeepLift(), "guided": m.GuidedBackprop(), "plain": m.InputXGradient()},
        {"shap": m.DeepLiftShap(baselines=torch.zeros(3, 1, 8, 8)), "occlusion": m.Occlusion((1, 4, 4), 4)},
        {"smooth": m.NoiseTunnel(m.IntegratedGradients(3), nt_samples=2), "cam": m.LayerGradCam(LAYER)},
        {"layer": m.LayerIntegratedGradients(LAYER, 3), "lime": m.Lime(n_samples=9), "deep": m.LayerDeepLift(LAYER)},
    ],
)
def test_the_estimate_is_what_an_explanation_takes(methods: dict[str, Any] | None) -> None:
    explainer = Explainer(build_methods(methods), build_metrics(None, methods is None), limit=8)
    assert_estimated(explainer, Probe(*samples(3)))


def test_a_default_explanation_takes_at_most_a_hundred_evaluations_of_each_sample() -> None:
    probe = Probe(*samples(4))
    ready = Explainer(build_methods(None), build_metrics(None, True)).check(trained(), probe)
    found = ready.explain(trained(), probe).passes
    assert found.backward == 65 * 4
    assert found.forward == 97 * 4, "with the forward passes of infidelity still less than a hundred"


def forecast(
    methods: dict[str, Any], metrics: dict[str, Any] | None = None, limit: int = 64, count: int = 5
) -> Forecast:
    return Explainer(methods, metrics or {}, limit=limit).forecast(trained(), Probe(*samples(count)))


def costs(found: Forecast) -> dict[str, PassCount]:
    """The cost of each part, by the names of its methods or its metric."""
    return {", ".join(share.names): share.passes for share in found.shares}


def test_the_forecast_says_what_each_shared_path_each_method_and_each_metric_costs() -> None:
    found = forecast(
        {
            "ig": m.IntegratedGradients(4),
            "influence": m.InternalInfluence(LAYER, 4),
            "smooth": m.NoiseTunnel(m.Occlusion((1, 4, 4), 4), nt_samples=2),
            "guided": m.NoiseTunnel(m.GuidedBackprop(), nt_samples=3),
            "lrp": m.LRP(),
        },
        {"infidelity": q.Infidelity(n_perturb_samples=3)},
    )
    assert [(s.names, s.path, s.points, s.passes, s.layers) for s in found.shares] == [
        ((), "AtInput", 1, PassCount(5, 0), ()),
        (("guided",), "Cloud of AtInput", 3, PassCount(15, 15), ()),
        (("ig", "influence"), "Line", 4, PassCount(20, 20), (LAYER,)),
        # The cloud of the guided gradient has evaluated the two noisy samples.
        (("smooth",), "Cloud of Windows", 10, PassCount(40, 0), ()),
        # LRP runs the model on a sample more, once in an explanation.
        (("lrp",), "runs by itself", None, PassCount(11, 5), ()),
        (("infidelity",), "score", None, PassCount(15, 0), ()),
    ]
    assert found.passes == PassCount(106, 40)
    assert found.hints == ()
    assert all(share.seconds > 0 for share in found.shares)


@pytest.mark.parametrize("limit", [1, 2, 3, 64])
def test_the_forecast_does_not_depend_on_the_pass_size(limit: int) -> None:
    methods = {"ig": m.IntegratedGradients(4), "occlusion": m.Occlusion((1, 4, 4), 4), "cam": m.LayerGradCam(LAYER)}
    assert costs(forecast(methods, limit=limit)) == costs(forecast(methods))


def test_an_integral_and_a_conductance_of_as_many_steps_get_a_hint_how_to_share() -> None:
    methods = {"ig": m.IntegratedGradients(5), "conductance": m.LayerConductance(LAYER, 5)}
    (hint,) = forecast(methods).hints
    assert "ig (5 points) and conductance (6) share no points" in hint
    assert "give it n_steps=k-1" in hint
    assert forecast({**methods, "conductance": m.LayerConductance(LAYER, 5, baselines=0.5)}).hints == ()


@pytest.mark.parametrize("name", METRICS)
def test_the_forecast_of_every_metric_is_what_it_costs(name: str) -> None:
    x, y = samples(3)
    probe = Probe(x, y, masks=x[:, 0] > 0)
    methods = {
        "saliency": m.Saliency(abs=False),
        "ig": m.IntegratedGradients(3, baselines="mean"),
        "shap": m.GradientShap(n_samples=2),
        "layer": m.LayerConductance(LAYER, 3),
        "vector": m.LayerGradientXActivation("head"),
    }
    explainer = Explainer(methods, {"it": METRICS[name]()}, limit=7)
    report = explainer.explain(trained(), probe)
    assert not report.failures
    assert explainer.forecast(trained(), probe).passes == report.passes
    assert_estimated(explainer, probe)


def test_infidelities_of_the_same_draws_share_what_the_model_says() -> None:
    metrics = {
        "a": q.Infidelity("gaussian", 10),
        "b": q.Infidelity("gaussian", 10, normalize=False),
        "c": q.Infidelity("gaussian", 10, stdevs=0.5),
    }
    probe, methods = Probe(*samples(3)), {"s": m.Saliency(abs=False), "i": m.InputXGradient()}
    explainer = Explainer(methods, metrics)
    report = explainer.explain(trained(), probe)
    assert report.passes == explainer.forecast(trained(), probe).passes == PassCount(3 + 2 * 30, 3)
    for name in metrics:
        alone = Explainer(methods, {name: metrics[name]}).explain(trained(), probe)
        for method in methods:
            assert torch.equal(report.scores[name][method], alone.scores[name][method])


ALONE = {
    "lrp": m.LRP(),
    "lime": m.Lime(n_samples=9),
    "shapley": m.ShapleyValueSampling(n_samples=2, feature_mask=torch.arange(64).reshape(1, 1, 8, 8) // 16),
    "layer": m.LayerIntegratedGradients(LAYER, 3),
    "neuron": m.NeuronGradient(LAYER, (0, 1, 1)),
    "strongest": m.NeuronGradient(LAYER),
    "smooth": m.NoiseTunnel(m.LRP(), nt_samples=2),
    "permutation": m.FeaturePermutation(feature_mask=torch.arange(64).reshape(1, 1, 8, 8) // 16),
}


@pytest.mark.parametrize("name", ALONE)
def test_methods_that_share_no_passes_and_metrics_that_run_them_again_are_forecast(name: str) -> None:
    probe, metrics = (
        Probe(*samples(5)),
        {"s": q.SensitivityMax(n_perturb_samples=2), "r": q.Randomization(2, 1), "i": q.Infidelity()},
    )
    explainer = Explainer({"saliency": m.Saliency(abs=False), name: ALONE[name]}, metrics)
    assert explainer.forecast(trained(), probe).passes == explainer.explain(trained(), probe).passes
    if name not in ("lrp", "smooth"):  # Refused on this network.
        assert_estimated(explainer, probe)


class Twice(Method):
    """A method of a user's own, which says nothing about its cost."""

    def attribute(self, explained: Any, samples: Any) -> Any:
        explained.evaluate(samples)
        explained.evaluate(samples)
        return samples.inputs[0]


class Thrice(Metric):
    """A metric of a user's own, which says nothing about its cost."""

    def score(self, metric_inputs: Any) -> Any:
        return {"": {name: (self._once(metric_inputs), None) for name in metric_inputs.maps}}

    def _once(self, metric_inputs: Any) -> Any:
        return sum(metric_inputs.explained.evaluate(metric_inputs.samples) for _ in range(3))


def test_what_a_users_own_method_and_metric_cost_is_known() -> None:
    methods, metrics = {"twice": Twice(), "saliency": m.Saliency()}, {"thrice": Thrice()}
    found = forecast(methods, metrics)
    assert costs(found) == {
        "saliency": PassCount(5, 5),
        "twice": PassCount(10, 0),
        "thrice": PassCount(2 * 3 * 5, 0),
    }
    assert found.passes == Explainer(methods, metrics).explain(trained(), Probe(*samples(5))).passes


def test_baselines_and_masks_of_the_whole_probe_and_a_single_sample_are_forecast() -> None:
    x, y = samples(3)
    masks = torch.stack([torch.arange(64).reshape(1, 8, 8) // size for size in (16, 32, 16)])
    methods = {"ig": m.IntegratedGradients(2, baselines=x.flip(0)), "ablation": m.FeatureAblation(feature_mask=masks)}
    for count in (1, 3):
        probe = Probe(x[:count], y[:count], masks=x[:count, 0] > 0)
        chosen = methods if count == 3 else {"ig": m.IntegratedGradients(2)}
        explainer = Explainer(chosen, {"mass": q.RelevanceMass()})
        assert explainer.forecast(trained(), probe).passes == explainer.explain(trained(), probe).passes


def test_a_neuron_is_scored_as_a_function_of_its_own() -> None:
    methods = {"saliency": m.Saliency(abs=False), "neuron": m.NeuronGradient(LAYER, (0, 1, 1))}
    found = costs(forecast(methods, {"infidelity": q.Infidelity(n_perturb_samples=4)}, count=3))
    assert found["infidelity"] == PassCount(2 * 12 + 3)
    assert found["neuron"] == PassCount(3, 3)


def test_memory_is_what_autograd_keeps_of_the_samples_of_a_pass() -> None:
    # A sigmoid keeps its output (32 float32), a product with itself the input (64 times 2, one storage).
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(64, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(self.linear(x * x))

    probe = Probe(torch.randn(4, 64))
    found = Explainer({"ig": m.IntegratedGradients(8)}, {}, limit=16, target=0).forecast(Square(), probe)
    gather = 8
    assert found.largest == 16
    assert found.memory == 16 * ((64 + 32) * 4 + gather + 2 * 256)
    # Without a gradient, autograd keeps nothing.
    assert Explainer({"o": m.LayerActivation("linear")}, {}, target=0).forecast(Square(), probe).memory == 4 * 2 * 256


def test_a_forecast_leaves_the_model_as_it_was() -> None:
    model = trained()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Explainer({"a": m.IntegratedGradients(3)}, {"r": q.Randomization(2, 1)}).forecast(model, Probe(*samples(3)))
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# -- the command ---------------------------------------------------------------------------------------------------

TINY = {
    "model": {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 2},
    "input_shape": [4],
    "monitor": {
        "target": "predicted",
        "probe": {"count": 6},
        "methods": {
            "saliency": {"name": "Saliency", "abs": False},
            "ig": {"name": "IntegratedGradients", "n_steps": 3},
            "conductance": {"name": "LayerConductance", "n_steps": 3, "layer": ""},
            "shapley": "ShapleyValueSampling",
        },
        "metrics": {"infidelity": {"name": "Infidelity", "n_perturb_samples": 7}, "sensitivity": "SensitivityMax"},
    },
}


def output(config: Any, *arguments: str, code: int = 0) -> str:
    Path("plan.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(config)))
    environment = {"COLUMNS": "200", "NO_COLOR": "1", "TERMINAL_WIDTH": "200"}
    result = CliRunner().invoke(app, ["methods", "--plan", "plan.yaml", *arguments], env=environment)
    assert result.exit_code == code, result.output
    return result.output


def cells(shown: str) -> dict[str, list[str]]:
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    # Without the seconds and the layers.
    return {line[0]: line[1:5] for line in lines}


def test_the_command_prints_the_plan_of_a_configuration() -> None:
    shown = output(TINY, "~monitor.methods.conductance")
    found = cells(shown)
    assert found["saliency"] == ["AtInput", "1", "1", "1"]
    assert found["ig"] == ["Line", "3", "3", "3"]
    assert found["shapley"] == ["runs by itself", "", "101", "0"]
    assert found["infidelity"] == ["score", "", "7", "0"]
    # Ten times saliency, ig and shapley.
    assert found["sensitivity"] == ["score", "", "1050", "40"]
    assert "6 samples: 6972 forward, 264 backward, at most about" in shown
    assert "seconds, judging by the first 2. Memory of the largest shared pass (24 samples)" in shown
    assert "MiB beside the model" in shown


def test_without_methods_the_plan_is_that_of_the_monitor() -> None:
    model = {"_target_": "networks.DigitNet"}
    found = cells(output({"model": model, "input_shape": [1, 8, 8], "monitor": {"target": 3}}))
    assert found["saliency, cam"] == ["AtInput", "1", "1", "1"]
    assert found["ig"][1:4] == ["16", "16", "16"]
    assert found["infidelity"][2:4] == ["32", "0"]
    assert found["sensitivity_max"][2:4] == ["48", "48"]


def test_an_error_is_a_sentence() -> None:
    text = output(TINY, "monitor.methods.conductance.layer=null", code=2)
    assert "'conductance' (LayerConductance): it names no layer" in text
    assert "This would run: methods={" in text
    result = CliRunner().invoke(app, ["methods", "monitor=full"])
    assert result.exit_code == 2
    assert "give one with --plan CONFIG." in " ".join(result.output.replace("│", " ").split())
