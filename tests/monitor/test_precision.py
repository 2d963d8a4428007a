"""Whatever the training's precision: maps in float32 or higher, finite, and close to those of the same weights in float32."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_explain import ExplanationMonitor, Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.probe import as_tuple
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.registry import METHODS, METRICS
from networks import Added, Layered, samples, trained
from training import QUIET, DigitModule, loader, report_of, trainer

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::UserWarning")]

# How far a sample's map may be from that in float32, over the size of the latter; bfloat16 has 8 bits.
PRECISIONS = {"bf16-mixed": 0.2, "bf16-true": 0.2, "64-true": 1e-4}
# One neuron is looked at through a maximum and a ReLU, whose choice 8 bits may turn.
HERE = [name for name in METHODS if name != "AttentionRollout"]
"""Those for a network without attention."""
ROUGH = dict.fromkeys((name for name in METHODS if name.startswith("Neuron")), 0.4)
CLOSE = ("Agreement", "Concentration", "Deletion", "Infidelity", "RelevanceMass", "SensitivityMax")
PATCHES = {"feature_mask": {"grid": 4}}
NEEDED: dict[str, dict[str, Any]] = {
    "NoiseTunnel": {"attribution_method": m.Saliency(abs=False), "stdevs": 0.1},
    "ShapleyValueSampling": {"n_samples": 2, **PATCHES},
    **dict.fromkeys(("ShapleyValues", "Lime", "KernelShap"), PATCHES),
    **{name: {"layer": "net.block.bn1", "neuron_selector": (3, 4, 4)} for name in METHODS if name.startswith("Neuron")},
}


def all_methods() -> dict[str, Any]:
    found = {name: METHODS[name](**NEEDED.get(name, {})) for name in HERE}
    return {
        name: replace(method, n_steps=8) if hasattr(method, "n_steps") else method for name, method in found.items()
    }


def few(metric: Any) -> Any:
    """The metric with three draws: they are the same in every precision."""
    return replace(metric, **{name: 3 for name in ("n_perturb_samples", "n_draws") if hasattr(metric, name)})


def probe() -> Probe:
    x, y = samples(3)
    return Probe(x, y, masks=x[:, 0] > 0.5)


def after_training(root: Path, precision: str, methods: Any, metrics: Any, epochs: int = 1) -> tuple[Report, Report]:
    """What the monitor found after the last epoch, and what there is to find in float32."""
    # Not as many at a time as timed: the kernels differ, and 8 bits show it.
    watch = ExplanationMonitor(
        methods=methods, metrics=metrics, probe=probe(), on_error="raise", max_examples_per_pass=8
    )
    module = DigitModule(trained(Added, Layered))
    # Behind the first use of the network, which may train it: dropout decides how near to its ReLU's turn a neuron comes to lie.
    torch.manual_seed(0)
    run = trainer(root, watch, max_epochs=epochs, precision=precision, limit_train_batches=2)
    run.fit(module, loader(0, 16), loader(100, 8))
    single = explain(copy.deepcopy(module).float().eval(), probe(), methods, metrics)
    return report_of(watch), single


def distance(found: Tensor, expected: Tensor) -> Tensor:
    """For each sample how far the maps are apart, over the size of the expected one, or of all if that is nothing."""
    apart, size = ((part.double().flatten(1)).norm(dim=1) for part in (found.double() - expected.double(), expected))
    return apart / torch.maximum(size, 1e-3 * size.max())


@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_method_finds_nearly_what_it_finds_in_float32(precision: str, tmp_path: Path) -> None:
    report, single = after_training(tmp_path, precision, all_methods(), [])
    assert report.attributions.keys() == single.attributions.keys() == set(HERE)
    for name, attribution in report.attributions.items():
        for found, expected in zip(as_tuple(attribution), as_tuple(single.attributions[name]), strict=True):
            assert found.dtype in (torch.float32, torch.float64), name
            assert found.isfinite().all(), name
            assert expected.any(), name
            allowed = max(PRECISIONS[precision], ROUGH.get(name, 0.0) if precision != "64-true" else 0.0)
            apart = distance(found, expected)
            assert apart.max() < allowed, (name, apart)
            assert apart.median() < PRECISIONS[precision], (name, apart)


@pytest.mark.filterwarnings("ignore:.*'cam' has a map or score that is NaN")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_every_metric_of_the_default_methods_scores_nearly_as_in_float32(precision: str, tmp_path: Path) -> None:
    metrics = {name: few(cls()) for name, cls in METRICS.items()}
    report, single = after_training(tmp_path, precision, None, metrics, epochs=2)
    told = {f"{k}_{s}" if s else k for k, metric in metrics.items() for s in metric.suffixes if s[:4] != "ssim"}
    assert report.scores.keys() == told
    for score, by_method in {**report.scores, **report.standard_errors}.items():
        assert by_method, score
        for method, values in by_method.items():
            assert values.dtype in (torch.float32, torch.float64), (score, method)
    # Drift has nothing to look back on in a single explanation.
    for score, by_method in single.scores.items():
        for method, expected in by_method.items():
            found = report.scores[score][method]
            # A map without any positive relevance has no mass: not a number in every precision.
            assert torch.equal(found.isnan(), expected.isnan()), (score, method)
            if score in CLOSE:
                close = {"rtol": 1e-3, "atol": 1e-4} if precision == "64-true" else {"rtol": 0.1, "atol": 0.05}
                if score == "SensitivityMax" and precision == "bf16-true":
                    # Its noise of 0.02 is few steps of a 16-bit number, which round it.
                    close["atol"] = 0.15
                assert torch.allclose(found.double(), expected.double(), **close, equal_nan=True), (score, method)


def test_half_precision_on_accelerators_is_the_same_code() -> None:
    """``16-mixed`` is refused by Lightning on a CPU; its autocast runs there."""
    model = trained(Added, Layered).eval()
    # Captum stabilizes LRP by 1e-9, which is 0 in float16: its maps are NaN, which is counted and told.
    methods = {name: method for name, method in all_methods().items() if "LRP" not in name and name[:6] != "Neuron"}
    metrics = {"infidelity": few(q.Infidelity()), "sensitivity": few(q.SensitivityMax())}
    explainer = Explainer(methods, metrics, forward_context=lambda: torch.autocast("cpu", torch.float16))
    report = explainer.check(model, probe()).explain(model, probe())
    single = explain(model, probe(), methods, metrics)
    for name, attribution in report.attributions.items():
        found, expected = as_tuple(attribution)[0], as_tuple(single.attributions[name])[0]
        assert found.dtype == torch.float32, name
        assert distance(found, expected).max() < 0.05, (name, distance(found, expected))
    for by_method in report.scores.values():
        assert all(values.isfinite().all() for values in by_method.values())
