"""The whole flow without a Trainer: memory, failures, the same numbers in any chunk."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_explain import Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction, Method, Metric, MetricInputs, Score
from lightning_explain.core.probe import Attribution, Samples
from lightning_explain.explainer.explainer import Explainer
from networks import DigitNet, samples, trained

METHODS = {
    "saliency": m.Saliency(abs=False),
    "ig": m.IntegratedGradients(n_steps=5),
    "shap": m.GradientShap(n_samples=3, stdevs=0.1),
    "occlusion": m.Occlusion(strides=(1, 4, 4)),
    "cam": m.LayerGradCam("block.bn2"),
    "guided": m.GuidedBackprop(),
    "tunnel": m.NoiseTunnel(nt_samples=3, stdevs=0.1),
}
METRICS = {
    "infidelity": q.Infidelity(n_perturb_samples=4),
    "sensitivity": q.SensitivityMax(n_perturb_samples=2),
}


class Small(DigitNet):
    """A network on a device that has memory for few samples only."""

    def __init__(self, fits: int, only_with_gradient: bool = False) -> None:
        super().__init__()
        self.load_state_dict(trained().state_dict())
        self.fits = fits
        self.only_with_gradient = only_with_gradient

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.fits and (x.requires_grad or not self.only_with_gradient):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(x)


def assert_close(ours: Report, theirs: Report) -> None:
    """Equal numbers, across chunk sizes and so up to rounding."""
    assert not ours.failures
    assert list(ours.attributions) == list(theirs.attributions)
    for name, expected in theirs.attributions.items():
        torch.testing.assert_close(ours.attributions[name], expected, rtol=1e-9, atol=1e-9)
    for metric, scores in theirs.scores.items():
        for name, expected in scores.items():
            torch.testing.assert_close(ours.scores[metric][name], expected, rtol=1e-8, atol=1e-9)
    assert torch.equal(ours.targets, theirs.targets)


@pytest.mark.filterwarnings("ignore:The methods are not checked on this model")
@pytest.mark.parametrize("only_with_gradient", [False, True])
@pytest.mark.parametrize("fits", [1, 2, 5, 11])
def test_numbers_are_the_same_when_the_device_runs_out_of_memory(fits: int, only_with_gradient: bool) -> None:
    x, y = samples()
    expected = explain(trained().double(), Probe(x, y), METHODS, METRICS)
    found = explain(Small(fits, only_with_gradient).double(), Probe(x, y), METHODS, METRICS)
    assert_close(found, expected)


@pytest.mark.parametrize("fits", [2, 3, 5, 99])
def test_the_doctor_looks_at_fewer_samples_where_more_do_not_fit(fits: int) -> None:
    class Functional(Small):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.gelu(super().forward(nn.functional.gelu(x)))

    x, y = samples()
    found = explain(Functional(fits).double(), Probe(x, y), {"it": m.DeepLift()}, ["Completeness"])
    assert found.scores["completeness"]["it"].max() < 1e-9


def test_rules_that_cannot_be_examined_are_refused() -> None:
    x, y = samples()
    with (
        pytest.warns(UserWarning, match="two samples at once do not fit"),
        pytest.raises(
            ValueError, match=r"'it' \(DeepLift\): two samples at once do not fit into memory.*IntegratedGradients"
        ),
    ):
        explain(Small(1), Probe(x, y), {"it": m.DeepLift(), "fine": m.Saliency()}, [])


@pytest.mark.filterwarnings("ignore:The methods are not checked on this model")
def test_a_device_without_memory_for_one_sample_says_so() -> None:
    x, y = samples()
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        explain(Small(0), Probe(x, y), METHODS, METRICS)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        explain(Small(0, only_with_gradient=True), Probe(x, y), METHODS, METRICS)


@pytest.mark.filterwarnings("ignore:The methods are not checked on this model")
def test_a_model_that_never_fits_is_as_before() -> None:
    x, y = samples()
    model = Small(0, only_with_gradient=True)
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        explain(model, Probe(x, y), METHODS, METRICS)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


@dataclass(frozen=True)
class Broken(Method, Metric):
    """A method and a metric that leaves hooks behind and fails."""

    error: Exception = field(default_factory=lambda: RuntimeError("broken on purpose"))
    higher_is_better: ClassVar[bool | None] = None
    suffixes: ClassVar[tuple[str, ...]] = ("",)

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        for module in explained.forward.modules():
            module.register_forward_hook(lambda module, arguments, output: output * 2)
        explained.forward(*samples.inputs, *samples.extra)
        raise self.error

    def score(self, case: MetricInputs) -> dict[str, dict[str, Score]]:
        self.attribute(case.explained, case.samples)
        raise AssertionError


BROKEN_METHODS = {"saliency": METHODS["saliency"], "broken": Broken(), "ig": METHODS["ig"], "guided": METHODS["guided"]}
BROKEN_METRICS = {"broken_score": Broken(), **METRICS}


def test_a_failure_is_noted_and_the_others_are_as_without_it() -> None:
    x, y = samples()
    expected = explain(trained(), Probe(x, y), {k: v for k, v in BROKEN_METHODS.items() if k != "broken"}, METRICS)
    explainer = Explainer(BROKEN_METHODS, BROKEN_METRICS, raising=False)
    found = explainer.check(trained(), Probe(x, y)).explain(trained(), Probe(x, y))
    assert list(found.failures) == ["broken", "broken_score"]
    assert all("broken on purpose" in text and "Traceback" in text for text in found.failures.values())
    assert list(found.attributions) == ["saliency", "ig", "guided"]
    assert list(found.scores) == ["infidelity", "sensitivity"]
    for name, value in expected.attributions.items():
        assert torch.equal(found.attributions[name], value)
    for metric, scores in expected.scores.items():
        for name, value in scores.items():
            assert torch.equal(found.scores[metric][name], value)


@dataclass(frozen=True)
class Leaving(Method):
    """A method that leaves hooks behind and succeeds."""

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        for module in explained.forward.modules():
            module.register_forward_hook(lambda module, arguments, output: output * 2)
        return torch.ones_like(samples.inputs[0])


def test_hooks_that_a_method_leaves_behind_are_gone_for_what_follows() -> None:
    x, y = samples()
    alone, beside = (
        explain(trained(), Probe(x, y), {"saliency": METHODS["saliency"], **more}, [q.Infidelity()])
        for more in ({}, {"leaving": Leaving()})
    )
    assert torch.equal(beside.attributions["leaving"], torch.ones_like(x))
    for metric, scores in alone.scores.items():
        assert torch.equal(beside.scores[metric]["saliency"], scores["saliency"])


class Numbers(Broken):
    """A metric that gives one number instead of one for each sample."""

    def score(self, case: MetricInputs) -> Any:
        return {"": dict.fromkeys(case.maps, (0.5, None))}


def test_a_metric_that_gives_no_tensors_leaves_the_others_alone() -> None:
    x, y = samples()
    explainer = Explainer(METHODS, {"numbers": Numbers(), **METRICS}, raising=False)
    found = explainer.check(trained(), Probe(x, y)).explain(trained(), Probe(x, y))
    assert list(found.scores) == list(METRICS)
    assert "is (float, NoneType); return two tensors (N,)" in found.failures["numbers"]


def test_a_method_that_never_fits_into_memory_leaves_the_others_alone() -> None:
    x, y = samples()
    methods = {"broken": Broken(torch.OutOfMemoryError("no memory")), **METHODS}
    found = Explainer(methods, {}, limit=8, raising=False).explain(trained().double(), Probe(x, y))
    assert list(found.failures) == ["broken"]
    expected = explain(trained().double(), Probe(x, y), METHODS, [])
    for name, value in expected.attributions.items():
        torch.testing.assert_close(found.attributions[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("methods", "metrics"), [(BROKEN_METHODS, []), ([m.Saliency(abs=False)], BROKEN_METRICS)])
def test_a_failure_is_raised_by_explain(methods: Any, metrics: Any) -> None:
    x, y = samples()
    with pytest.raises(RuntimeError, match="broken on purpose"):
        explain(trained(), Probe(x, y), methods, metrics)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages that were made inside and are still alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inside = {value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        output = func(*args, **(kwargs or {}))
        for value in tree_leaves(output):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage(), inside)
        return output

    def _note(self, storage: torch.UntypedStorage, inside: set[int]) -> None:
        key = storage._cdata
        if key in self._alive or key in inside:
            return
        self._alive.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def peak_bytes(work: Any) -> int:
    """The most bytes that were alive at once while it worked, above those that were before."""
    gc.collect()
    with LiveBytes() as live:
        work()
    return live.peak


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def test_live_bytes_are_counted() -> None:
    def work() -> None:
        a = torch.ones(1000)
        b = a + 1
        del a
        c = b.reshape(10, 100).add_(1)
        del b
        c = c * 2

    assert peak_bytes(work) == 8000


def wide() -> nn.Module:
    """A network whose activations weigh more than its inputs and weights, and none of which is overwritten."""
    return nn.Sequential(
        nn.Conv2d(1, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


@pytest.mark.parametrize(
    ("methods", "metrics"),
    [
        ({"ig": m.IntegratedGradients(n_steps=64)}, {}),
        ({"ig": m.IntegratedGradients(n_steps=64)}, {"infidelity": q.Infidelity(n_perturb_samples=50)}),
        ({"ig": m.IntegratedGradients(n_steps=4)}, {"sensitivity": q.SensitivityMax(n_perturb_samples=8)}),
        ({"tunnel": m.NoiseTunnel(nt_samples=32)}, {}),
        ({"shap": m.GradientShap(n_samples=64)}, {}),
        ({"occlusion": m.Occlusion((1, 2, 2))}, {}),
    ],
    ids=["ig", "infidelity", "sensitivity", "tunnel", "shap", "occlusion"],
)
def test_an_explanation_never_needs_more_memory_than_a_training_step(methods: Any, metrics: Any) -> None:
    x, y = samples(16)
    model = wide()
    optimizer = torch.optim.Adam(model.parameters())
    training_step(model, optimizer, x, y)
    training = peak_bytes(lambda: training_step(model, optimizer, x, y))
    explainer = Explainer(methods, metrics, limit=16)
    explanation = peak_bytes(lambda: explainer.explain(model, Probe(x, y)))
    # Besides what a pass holds, some copies of the samples: points, noise, sums, maps.
    assert explanation <= training + 16 * x.nbytes


@pytest.mark.parametrize(
    ("few", "many", "metrics"),
    [
        ({"ig": m.IntegratedGradients(8)}, {"ig": m.IntegratedGradients(64)}, {}),
        ({"tunnel": m.NoiseTunnel(nt_samples=8)}, {"tunnel": m.NoiseTunnel(nt_samples=64)}, {}),
        ({"shap": m.GradientShap(8)}, {"shap": m.GradientShap(64)}, {}),
    ],
    ids=["ig", "tunnel", "shap"],
)
def test_memory_does_not_grow_with_the_number_of_steps_or_samples(few: Any, many: Any, metrics: Any) -> None:
    assert needed(many, metrics) <= 1.02 * needed(few, metrics)


@pytest.mark.parametrize(
    "metric",
    [q.Infidelity, q.SensitivityMax],
)
def test_memory_hardly_grows_with_the_number_of_draws(metric: Any) -> None:
    saliency = {"saliency": m.Saliency(abs=False)}
    few, many = (needed(saliency, {"it": metric(n_perturb_samples=k)}) for k in (8, 128))
    # A score keeps some numbers for each draw.
    assert many <= few + 16 * 128 * 4 * 8


def needed(methods: Any, metrics: Any) -> int:
    """Peak bytes of an explanation of 16 samples."""
    explainer, model = Explainer(methods, metrics, limit=16), trained()
    return peak_bytes(lambda: explainer.explain(model, Probe(*samples(16))))
