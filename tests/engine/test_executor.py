"""Shared passes give what separate passes and Captum give, at the price that was forecast."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from captum_reference import layers, perturbation, primary
from comparing import LAYER, by_hand, distance
from lightning_explain import Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.points import Point, Reducer
from lightning_explain.core.probe import Attribution, Samples, as_tuple
from lightning_explain.engine.executor import PlanExecution, execute
from lightning_explain.engine.plan import plan
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.methods._base import OnPath
from networks import DigitNet, samples, trained

PATCHES = {"grid": 4}
WINDOW = {"sliding_window_shapes": (1, 4, 4), "strides": (1, 4, 4)}
STREAMED: dict[str, Any] = {
    "saliency": m.Saliency(abs=False),
    "saliency_abs": m.Saliency(),
    "times": m.InputXGradient(),
    "guided": m.GuidedBackprop(),
    "deconvolution": m.Deconvolution(),
    "guided_cam": m.GuidedGradCam("stem.2"),
    "cam": m.LayerGradCam(LAYER),
    "activation": m.LayerActivation("stem.1"),
    "activation_input": m.LayerActivation(LAYER, attribute_to_layer_input=True),
    "gradient_x_activation": m.LayerGradientXActivation(LAYER),
    "ig": m.IntegratedGradients(n_steps=4),
    "ig_again": m.IntegratedGradients(n_steps=4, multiply_by_inputs=False),
    "ig_from": m.IntegratedGradients(n_steps=4, baselines=0.3),
    "conductance": m.LayerConductance(LAYER, n_steps=3),
    "conductance_4": m.LayerConductance("stem.2", n_steps=4),
    "influence": m.InternalInfluence(LAYER, n_steps=4),
    "shap": m.GradientShap(n_samples=3, stdevs=0.1),
    "occlusion": m.Occlusion(**WINDOW),
    "ablation": m.FeatureAblation(feature_mask=PATCHES),
    "permutation": m.FeaturePermutation(feature_mask=PATCHES),
}
NOISY = {"nt_samples": 2, "stdevs": 0.3}
NESTED: dict[str, Any] = {
    "smooth": m.NoiseTunnel(m.Saliency(abs=False), **NOISY),
    "variance": m.NoiseTunnel(m.Saliency(abs=False), nt_type="vargrad", **NOISY),
    "smooth_guided": m.NoiseTunnel(m.GuidedBackprop(), nt_type="smoothgrad_sq", **NOISY),
    "smooth_smooth": m.NoiseTunnel(m.NoiseTunnel(m.InputXGradient(), **NOISY), **NOISY),
    "smooth_ig": m.NoiseTunnel(m.IntegratedGradients(n_steps=3), **NOISY),
    "smooth_occlusion": m.NoiseTunnel(m.Occlusion(**WINDOW), **NOISY),
    "smoother_occlusion": m.NoiseTunnel(m.Occlusion(**WINDOW), nt_samples=3, stdevs=0.3),
    "smooth_cam": m.NoiseTunnel(m.LayerGradCam(LAYER), **NOISY),
    "smooth_activation": m.NoiseTunnel(m.LayerActivation(LAYER), **NOISY),
    "smooth_conductance": m.NoiseTunnel(m.LayerConductance(LAYER, n_steps=2), **NOISY),
    "smooth_shap": m.NoiseTunnel(m.GradientShap(n_samples=2), **NOISY),
}
APART: dict[str, Any] = {
    "deep_lift": m.DeepLift(),
    "neuron": m.NeuronGradient(LAYER, (0, 1, 1)),
    "smooth_deep_lift": m.NoiseTunnel(m.DeepLift(), **NOISY),
}
SHARED = STREAMED | NESTED
ALL = SHARED | APART
# Without Completeness, which evaluates equal baselines of samples with equal targets once.
METRICS: dict[str, Any] = {
    "infidelity": q.Infidelity(n_perturb_samples=2),
    "sensitivity": q.SensitivityMax(n_perturb_samples=2),
    "deletion": q.Deletion(n_steps=3),
    "insertion": q.Insertion(n_steps=200),
    "randomization": q.Randomization(n_layers=2, n_draws=2),
    "agreement": q.Agreement(),
    "concentration": q.Concentration(),
}
COUNT = 5
LIMITS = (1, 3, 7, 64)
quick = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def chosen(pool: Mapping[str, Any], least: int = 2, most: int = 7) -> st.SearchStrategy[dict[str, Any]]:
    names = st.lists(st.sampled_from(sorted(pool)), min_size=least, max_size=most, unique=True)
    return names.map(lambda found: {name: pool[name] for name in found})


def probe() -> Probe:
    return Probe(*samples(COUNT))


def report_of(
    methods: Mapping[str, Any], limit: int, metrics: Mapping[str, Any] | None = None, double: bool = False
) -> tuple[Report, list[int]]:
    """The explanation, and the samples of each call by a hook."""
    model, calls = trained(), list[int]()
    model.register_forward_hook(lambda module, arguments, output: calls.append(len(output)))
    model = model.double() if double else model
    return Explainer(methods, metrics or {}, limit=limit).explain(model, probe()), calls


@pytest.fixture(scope="module")
def alone() -> dict[str, Attribution]:
    """Each method as the only one of an explanation, with one point in each pass."""
    return {name: report_of({name: method}, COUNT)[0].attributions[name] for name, method in ALL.items()}


@pytest.fixture(scope="module")
def exact() -> dict[str, Attribution]:
    return {
        name: report_of({name: method}, COUNT, double=True)[0].attributions[name] for name, method in SHARED.items()
    }


# -- the same numbers ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@quick
@given(methods=chosen(ALL))
def test_shared_passes_give_bitwise_what_each_method_gives_alone(
    alone: Mapping[str, Attribution], methods: dict[str, Any]
) -> None:
    found = report_of(methods, COUNT)[0].attributions
    assert list(found) == list(methods)
    for name, value in found.items():
        assert torch.equal(value, alone[name]), name


@quick
@given(methods=chosen(SHARED), limit=st.sampled_from(LIMITS))
def test_no_chunk_size_changes_the_numbers(
    exact: Mapping[str, Attribution], methods: dict[str, Any], limit: int
) -> None:
    for name, value in report_of(methods, limit, double=True)[0].attributions.items():
        torch.testing.assert_close(value, exact[name], rtol=1e-10, atol=1e-10)


CAPTUM: dict[str, tuple[Any, Any]] = {
    "saliency": (m.Saliency(abs=False), primary.saliency),
    "times": (m.InputXGradient(), primary.input_x_gradient),
    "guided": (m.GuidedBackprop(), primary.guided_backprop),
    "deconvolution": (m.Deconvolution(), primary.deconvolution),
    "ig": (m.IntegratedGradients(n_steps=13, baselines=0.3), primary.integrated_gradients),
    "occlusion": (
        m.Occlusion(sliding_window_shapes=(1, 3, 2), strides=(1, 2, 1), baselines=-0.7),
        perturbation.occlusion,
    ),
    "guided_cam": (m.GuidedGradCam(LAYER, interpolate_mode="bilinear"), layers.guided_grad_cam),
    "cam": (m.LayerGradCam(LAYER, relu_attributions=True), layers.layer_grad_cam),
    "gradient_x_activation": (m.LayerGradientXActivation(LAYER), layers.layer_gradient_x_activation),
    "activation": (m.LayerActivation(LAYER), layers.layer_activation),
    "conductance": (m.LayerConductance(LAYER, n_steps=7, baselines=0.3), layers.layer_conductance),
    "influence": (
        m.InternalInfluence(LAYER, n_steps=7, baselines=0.3, method="riemann_right"),
        layers.internal_influence,
    ),
}
CAPTUMS_BLOCKS = ("guided", "deconvolution", "guided_cam")


@pytest.fixture(scope="module")
def captum() -> dict[str, Tensor]:
    found = {}
    for name, (method, theirs) in CAPTUM.items():
        model = by_hand(type(trained().block)) if name in CAPTUMS_BLOCKS else by_hand()
        layer = () if method.place == "input" else (model.get_submodule(LAYER),)
        found[name] = theirs(model, *samples(COUNT), *layer)
    return found


@pytest.mark.filterwarnings("ignore")
@quick
@given(names=st.lists(st.sampled_from(sorted(CAPTUM)), min_size=2, unique=True), limit=st.sampled_from(LIMITS))
def test_shared_passes_give_what_captum_gives(captum: Mapping[str, Tensor], names: list[str], limit: int) -> None:
    found = report_of({name: CAPTUM[name][0] for name in names}, limit)[0].attributions
    for name in names:
        assert distance(found[name], captum[name]) <= 1e-5, name


# -- the price -----------------------------------------------------------------------------------------------------


# Points beside the sample itself, for those who look at the same ones together.
POINTS = {
    ("ig", "ig_again", "influence", "conductance"): 4,
    ("ig_from",): 4,
    ("conductance_4",): 5,
    ("shap",): 3,
    ("occlusion",): 4,
    ("ablation",): 4,
    ("permutation",): 4,
}


def least(methods: Mapping[str, Any]) -> int:
    """Points for each sample, counted on paper."""
    return 1 + sum(count for names, count in POINTS.items() if any(name in methods for name in names))


@quick
@given(methods=chosen(STREAMED), limit=st.sampled_from(LIMITS))
def test_every_point_is_visited_once(methods: dict[str, Any], limit: int) -> None:
    report, calls = report_of(methods, limit)
    assert sum(calls) == report.passes.forward == least(methods) * COUNT
    assert max(calls) <= limit


@quick
@given(methods=chosen(SHARED), metrics=chosen(METRICS, 0, 3), limit=st.sampled_from(LIMITS))
def test_the_forecast_says_how_many_samples_go_forward_and_backward(
    methods: dict[str, Any], metrics: dict[str, Any], limit: int
) -> None:
    report, calls = report_of(methods, limit, metrics)
    forecast = Explainer(methods, metrics, limit=limit).forecast(trained(), probe())
    assert forecast.passes == report.passes
    assert report.passes.forward == sum(calls)
    assert max(calls) <= limit


def test_calls_are_as_few_as_can_be() -> None:
    _, calls = report_of({name: STREAMED[name] for name in ("saliency", "ig", "shap", "ig_from")}, 2 * COUNT)
    assert len(calls) == 1 + ceil((4 + 3 + 4) / 2)


def test_methods_that_only_look_forward_share_the_outputs_of_points_in_one_pass() -> None:
    # Without a look at the samples beforehand, both ask for them in the same pass.
    methods = {"occlusion": STREAMED["occlusion"], "ablation": STREAMED["ablation"]}
    metrics = {"sensitivity": q.SensitivityMax(n_perturb_samples=1)}
    report, calls = report_of(methods, 64, metrics)
    assert sum(calls) == (1 + 8) * COUNT + (1 + 8) * COUNT
    expected, _ = report_of(methods, COUNT, metrics)
    for name, value in expected.scores["sensitivity"].items():
        torch.testing.assert_close(report.scores["sensitivity"][name], value, rtol=1e-3, atol=1e-5)


# -- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds",
    [
        ("ig",),
        ("smooth",),
        ("ig", "smooth", "conductance"),
        ("occlusion", "fewer"),
    ],
    ids=str,
)
def test_no_more_than_a_chunk_of_points_is_alive(kinds: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    alive, peak = Counter[str](), 0

    def begin(self: Point, *arguments: Any, **named: Any) -> None:
        nonlocal peak
        original(self, *arguments, **named)
        alive["points"] += 1
        peak = max(peak, alive["points"])

    def end(self: Point) -> None:
        alive["points"] -= 1

    original = Point.__init__
    monkeypatch.setattr(Point, "__init__", begin)
    monkeypatch.setattr(Point, "__del__", end, raising=False)
    peaks = []
    for count in (5, 50):
        tunnels = {"nt_samples": count, "stdevs": 0.1}
        pool = {
            "ig": m.IntegratedGradients(n_steps=count),
            "conductance": m.LayerConductance(LAYER, n_steps=count),
            "smooth": m.NoiseTunnel(m.Saliency(abs=False), **tunnels),
            "occlusion": m.NoiseTunnel(m.Occlusion(**WINDOW), **tunnels),
            "fewer": m.NoiseTunnel(m.Occlusion(**WINDOW), nt_samples=count - 1, stdevs=0.1),
        }
        gc.collect()
        alive["points"], peak = 0, 0
        report_of({name: pool[name] for name in kinds}, 4 * COUNT)
        peaks.append(peak)
        assert alive["points"] == 0
    # Four points fill a pass; twice as many wait if all but some are known; each level of a path has one in its hands.
    slack = 3 * len(kinds)
    assert peaks[1] <= (8 if "fewer" in kinds else 4) + slack
    assert peaks[1] <= peaks[0] + slack


# -- failures ------------------------------------------------------------------------------------------------------


class Failing(m.InputXGradient):
    """Shares the pass of the samples, and fails there."""

    def finish(self, evaluation: Any) -> tuple[Tensor, ...]:
        raise ArithmeticError("no map today")


@dataclass(frozen=True)
class Uneven(m.IntegratedGradients):
    """Reads another number of points than its path has."""

    more: int = 0

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        return replace(self, n_steps=self.n_steps + self.more).weighted(explained, samples)

    def weighted(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        return super().reduce(explained, samples)


class Silent(m.Saliency):
    """Returns a map without looking at anything."""

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Any]:
        return samples.inputs
        yield


@pytest.mark.parametrize("bad", [Failing(), Uneven(n_steps=4, more=1), Silent()], ids=lambda bad: type(bad).__name__)
def test_a_method_that_fails_leaves_the_others_as_they_are_and_is_named(
    bad: Any, alone: Mapping[str, Attribution]
) -> None:
    names = ("saliency", "ig", "cam", "occlusion", "smooth")
    methods = {"saliency": ALL["saliency"], "bad": bad, **{name: ALL[name] for name in names[1:]}}
    report = Explainer(methods, {}, limit=COUNT, raising=False).explain(trained(), probe())
    assert list(report.failures) == ["bad"]
    assert tuple(report.attributions) == names
    for name in names:
        assert torch.equal(report.attributions[name], alone[name]), name


@pytest.mark.parametrize("limit", [COUNT, 64])
@pytest.mark.parametrize(("more", "word"), [(-1, "longer"), (1, "shorter"), (-3, "longer")])
def test_a_path_and_a_reducer_of_different_lengths_are_an_error(more: int, word: str, limit: int) -> None:
    methods = {"ig": m.IntegratedGradients(n_steps=4), "uneven": Uneven(n_steps=4, more=more)}
    with pytest.raises(RuntimeError, match=f"The path of 'uneven' is {word} than its reducer: Line"):
        explain(trained(), probe(), methods, [], max_examples_per_pass=limit)


def test_a_reducer_that_asks_for_nothing_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="The reducer of Silent never yields; make it yield once"):
        explain(trained(), probe(), {"it": Silent()}, [])


# -- a user's own methods ------------------------------------------------------------------------------------------


class Doubled(m.Saliency):
    """A user's subclass that changes what comes out."""

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        return 2 * as_tuple(super().attribute(explained, samples))[0]


class Halved(m.Saliency):
    """A user's subclass that changes what is made of an evaluation."""

    def finish(self, evaluation: Any) -> tuple[Tensor, ...]:
        return tuple(part / 2 for part in super().finish(evaluation))


def test_a_subclass_is_run_as_it_says_also_inside_a_noise_tunnel(alone: Mapping[str, Attribution]) -> None:
    methods = {
        "saliency": ALL["saliency"],
        "doubled": Doubled(abs=False),
        "halved": Halved(abs=False),
        "smooth_doubled": m.NoiseTunnel(Doubled(abs=False), **NOISY),
        "twice": m.NoiseTunnel(m.NoiseTunnel(Doubled(abs=False), **NOISY), **NOISY),
        "smooth_halved": m.NoiseTunnel(Halved(abs=False), **NOISY),
        "once": m.NoiseTunnel(m.NoiseTunnel(m.Saliency(abs=False), **NOISY), **NOISY),
    }
    assert plan(methods).apart == ("doubled", "smooth_doubled", "twice")
    found = report_of(methods, COUNT)[0].attributions
    assert torch.equal(found["doubled"], 2 * alone["saliency"])
    assert torch.equal(found["halved"], alone["saliency"] / 2)
    assert distance(found["smooth_doubled"], 2 * alone["smooth"]) <= 1e-6
    assert distance(found["smooth_halved"], alone["smooth"] / 2) <= 1e-6
    assert distance(found["twice"], 2 * found["once"]) <= 1e-5


class Twice(nn.Module):
    """Adds its second input, which is not explained."""

    def __init__(self) -> None:
        super().__init__()
        self.net: DigitNet = trained()

    def forward(self, x: Tensor, shift: Tensor, scale: float) -> Tensor:
        return self.net(x + shift) * scale


def test_further_arguments_go_along_with_their_samples() -> None:
    x, y = samples(COUNT)
    shift = torch.linspace(-1, 1, COUNT).reshape(-1, 1, 1, 1)
    methods = {name: STREAMED[name] for name in ("ig_from", "occlusion", "cam")}
    methods["cam"] = m.LayerGradCam("net." + LAYER)
    found = explain(Twice(), Probe(x, y, forward_args=(shift, 2.0)), methods, [], max_examples_per_pass=64)
    for i in range(COUNT):
        sample = Probe(x[i : i + 1], y[i : i + 1], forward_args=(shift[i : i + 1], 2.0))
        for name, value in explain(Twice(), sample, methods, []).attributions.items():
            assert distance(found.attributions[name][i : i + 1], value) <= 1e-5


def test_blocks_of_a_sweep_are_the_samples_in_order() -> None:
    with ExitStack() as stack:
        explanation = Explainer({}, {}, limit=3)._begun(stack, trained(), probe(), lambda step: None)
        explanation.with_targets(plan({}))
        explained = explanation.explained
        whole = execute(explained, {"it": STREAMED["saliency"]}, explanation.samples)["it"]
        parts = [
            PlanExecution(explained, plan({"it": STREAMED["saliency"]}), part).run()["it"][0]
            for part in explanation.samples.split(3)
        ]
    assert torch.equal(whole, torch.cat(parts))


# -- what is kept --------------------------------------------------------------------------------------------------


class Dense(nn.Module):
    """A number for each pixel, of which one is explained."""

    def forward(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(4, 1).pow(2)


@pytest.mark.parametrize("fewer", [False, True], ids=["gradients", "and occlusion"])
def test_of_dense_outputs_no_more_than_a_passs_stay_alive(fewer: bool) -> None:
    alive: list[weakref.ref[Any]] = []
    most = 0

    class Watched(Dense):
        def forward(self, x: Tensor) -> Tensor:
            nonlocal most
            most = max(most, sum(ref() is not None for ref in alive))
            found = super().forward(x)
            alive.append(weakref.ref(found.untyped_storage()))
            return found

    methods: dict[str, Any] = {"ig": m.IntegratedGradients(n_steps=12)}
    methods |= {"occlusion": m.Occlusion(**WINDOW)} if fewer else {}
    x, _ = samples(2)
    explain(Watched(), Probe(x), methods, [], target=(1, 3, 3), max_examples_per_pass=4)
    assert len(alive) > 6
    assert most <= 2


@dataclass(frozen=True)
class Unnamed:
    """Points that are like no other, whose author gave them no key."""

    def points(self, explained: ExplainedFunction, samples: Samples) -> Iterator[Point]:
        yield from (Point(samples.at(tuple(x * scale for x in samples.inputs))) for scale in (0.5, 0.25))


class Halves(OnPath):
    """The outputs there, ``(N, 2)``."""

    reads: Any = frozenset()
    path = Unnamed()

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        return (torch.stack([(yield).output, (yield).output], 1),)


def test_points_without_a_key_are_taken_for_no_other() -> None:
    x, y = samples(COUNT)
    methods = {"saliency": m.Saliency(), "it": Halves(), "smooth": m.NoiseTunnel(Halves(), nt_samples=1, stdevs=0.0)}
    report = explain(trained(), Probe(x, y), methods, [])
    with torch.no_grad():
        model = trained().eval()
        expected = torch.stack([model(x * s).gather(1, y[:, None]).squeeze(1) for s in (0.5, 0.25)], 1)
        torch.testing.assert_close(report.outputs, model(x))
    torch.testing.assert_close(report.attributions["it"], expected)
    torch.testing.assert_close(report.attributions["smooth"], expected)
    described = Explainer(methods, {}, limit=64).forecast(trained(), Probe(x, y))
    assert report.passes == described.passes


def test_pairs_read_the_layers_of_their_own_stream_alone() -> None:
    lifts = {"lift": m.LayerDeepLift("stem"), "shap": m.LayerDeepLiftShap("block", baselines=torch.zeros(2, 1, 8, 8))}
    together = report_of(lifts, 64)[0]
    apart = [report_of({name: method}, 64)[0] for name, method in lifts.items()]
    once = COUNT  # The samples themselves, for their outputs.
    assert together.passes.forward - once == sum(report.passes.forward - once for report in apart)
    described = Explainer(lifts, {}, limit=64).forecast(trained(), probe()).passes
    assert together.passes == described
    for name, report in zip(lifts, apart, strict=True):
        assert distance(together.attributions[name], report.attributions[name]) <= 1e-6
