"""Which methods share passes, and what that costs, forecast before anything runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn
from typer.testing import CliRunner

from lightning_explain import Probe
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.cli.main import app
from lightning_explain.core.contracts import Metric
from lightning_explain.core.points import DECONVOLUTION, GUIDED, PLAIN, LayerSite
from lightning_explain.core.report import PassCount
from lightning_explain.engine.plan import plan
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.registry import METRICS
from networks import samples, trained

LAYER = "block.bn2"
quick = settings(max_examples=30, deadline=None, derandomize=True)


def shared(*methods: Any) -> list[set[str]]:
    """Which methods share a path, by their position in the arguments."""
    planned = plan({str(i): method for i, method in enumerate(methods)})
    shared_paths = ([planned.center] if planned.center else []) + list(planned.shared_paths)
    return [set(shared_path.methods) for shared_path in shared_paths]


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
    assert center is not None
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


# -- what it costs -------------------------------------------------------------------------------------------------


def described(methods: dict[str, Any], limit: int = 64, count: int = 5) -> Any:
    return Explainer(methods, {}, limit=limit).forecast(trained(), Probe(*samples(count))).methods


def test_the_description_says_who_looks_where_at_which_price() -> None:
    found = described(
        {
            "ig": m.IntegratedGradients(4),
            "influence": m.InternalInfluence(LAYER, 4),
            "smooth": m.NoiseTunnel(m.Occlusion((1, 4, 4), 4), nt_samples=2),
            "guided": m.NoiseTunnel(m.GuidedBackprop(), nt_samples=3),
            "lift": m.LRP(),
        }
    )
    shares = [(s.methods, s.path, s.points, s.passes, s.layers) for s in found.shares]
    assert shares == [
        ((), "AtInput", 1, PassCount(5, 0), ()),
        (("guided",), "Cloud of AtInput", 3, PassCount(15, 15), ()),
        (("ig", "influence"), "Line", 4, PassCount(20, 20), (LAYER,)),
        # The two noisy samples themselves were seen by the cloud of the guided gradient.
        (("smooth",), "Cloud of Windows", 10, PassCount(40, 0), ()),
    ]
    assert found.apart == ("lift",)
    assert found.passes == PassCount(80, 35)
    assert found.notes == ()


@pytest.mark.parametrize("limit", [1, 2, 3, 64])
def test_the_description_does_not_depend_on_the_chunk(limit: int) -> None:
    methods = {"ig": m.IntegratedGradients(4), "occlusion": m.Occlusion((1, 4, 4), 4), "cam": m.LayerGradCam(LAYER)}
    assert described(methods, limit).passes == described(methods).passes


def test_an_integral_and_a_conductance_of_as_many_steps_get_a_hint_how_to_share() -> None:
    methods = {"ig": m.IntegratedGradients(5), "conductance": m.LayerConductance(LAYER, 5)}
    (note,) = described(methods).notes
    assert "ig (5 points) and conductance (6) share no points" in note
    assert "give it n_steps=k-1" in note
    assert described({**methods, "conductance": m.LayerConductance(LAYER, 5, baselines=0.5)}).notes == ()


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_says_what_it_costs(name: str) -> None:
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
    forecast, report = explainer.forecast(trained(), probe), explainer.explain(trained(), probe)
    assert not report.failures
    assert forecast.metrics["it"] is not None
    assert forecast.passes == report.passes


def test_infidelities_of_the_same_draws_share_what_the_model_says() -> None:
    metrics = {"a": q.Infidelity(), "b": q.Infidelity(normalize=False), "c": q.Infidelity(stdevs=0.5)}
    probe, methods = Probe(*samples(3)), {"s": m.Saliency(abs=False), "i": m.InputXGradient()}
    explainer = Explainer(methods, metrics)
    forecast, report = explainer.forecast(trained(), probe), explainer.explain(trained(), probe)
    assert report.passes == forecast.passes == PassCount(3 + 2 * 30, 3)
    for name in metrics:
        alone = Explainer(methods, {name: metrics[name]}).explain(trained(), probe)
        for method in methods:
            assert torch.equal(report.scores[name][method], alone.scores[name][method])


def test_a_description_is_printed_as_a_table() -> None:
    text = str(described({"a": m.Saliency(), "ig": m.IntegratedGradients(4), "lime": m.Lime()}, count=3))
    assert "AtInput" in text
    assert "Line" in text
    assert "runs by itself" in text


@pytest.mark.parametrize("metric", [q.SensitivityMax(), q.Randomization()], ids=lambda metric: type(metric).__name__)
def test_what_depends_on_captum_is_not_known(metric: Any) -> None:
    explainer = Explainer({"lift": m.LRP()}, {"it": metric, "infidelity": q.Infidelity()})
    found = explainer.forecast(trained(), Probe(*samples(3))).metrics
    assert found == {"it": None, "infidelity": PassCount(30)}


def test_a_metric_that_says_nothing_is_not_known() -> None:
    class Mute(Metric):
        higher_is_better, suffixes = None, ("",)

        def score(self, case: Any) -> dict[str, Any]:
            return {"": {}}

    assert Explainer({"a": m.Saliency()}, {"it": Mute()}).forecast(trained(), Probe(*samples(3))).metrics == {
        "it": None
    }


def test_a_neuron_is_scored_as_a_function_of_its_own() -> None:
    methods = {"saliency": m.Saliency(abs=False), "neuron": m.NeuronGradient(LAYER, (0, 1, 1))}
    metrics = {"infidelity": q.Infidelity(n_perturb_samples=4)}
    explainer = Explainer(methods, metrics)
    forecast, report = (f(trained(), Probe(*samples(3))) for f in (explainer.forecast, explainer.explain))
    assert forecast.metrics["infidelity"] == PassCount(2 * 12 + 3)
    # What the neuron method itself costs is Captum's.
    assert report.passes.forward - forecast.passes.forward == report.passes.backward - forecast.passes.backward == 3


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
    assert found.saved == (64 + 32) * 4 + gather
    assert found.inputs == 256
    assert found.largest == 16
    assert found.memory == 16 * (found.saved + 2 * 256)
    assert Explainer({"o": m.LayerActivation("linear")}, {}, target=0).forecast(Square(), probe).saved == 0


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
            "lift": "ShapleyValueSampling",
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
    return {line[0]: line[1:] for line in lines}


def test_the_command_prints_the_plan_of_a_configuration() -> None:
    shown = output(TINY, "~monitor.methods.conductance")
    found = cells(shown)
    assert found["saliency"] == ["AtInput", "1", "1", "1", ""]
    assert found["ig"] == ["Line", "3", "3", "3", ""]
    assert found["lift"] == ["runs by itself", "", "as Captum", "as Captum", ""]
    assert found["infidelity"] == ["score", "", "7", "0", ""]
    assert found["sensitivity"] == ["score", "", "not known", "not known", ""]
    assert "6 samples: 66 forward, 24 backward and what runs through Captum." in shown
    assert "MiB beside the model" in shown


def test_without_methods_the_plan_is_that_of_the_monitor() -> None:
    model = {"_target_": "networks.DigitNet"}
    found = cells(output({"model": model, "input_shape": [1, 8, 8], "monitor": {"target": 3}}))
    assert found["saliency, cam"] == ["AtInput", "1", "1", "1", "block"]
    assert found["ig"][1:4] == ["32", "32", "32"]
    assert found["infidelity"][2:4] == ["10", "0"]
    assert found["sensitivity_max"][2:4] == ["330", "330"]


def test_an_error_is_a_sentence() -> None:
    assert "Error: The method 'conductance'" in output(TINY, "monitor.methods.conductance.layer=null", code=2)
    result = CliRunner().invoke(app, ["methods", "monitor=full"])
    assert result.exit_code == 2
    assert "give one with --plan CONFIG." in " ".join(result.output.replace("│", " ").split())
