"""Invariants of every metric."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_explain import Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import Metric
from lightning_explain.core.naming import snake_case
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.registry import METRICS, build_metrics
from networks import DigitNet, samples, trained


def few(metric: Any) -> Any:
    """A metric with three draws."""
    return replace(metric, **{name: 3 for name in ("n_perturb_samples", "n_draws") if hasattr(metric, name)})


CONFIGS = Path(__file__).parents[2] / "configs" / "metric"
ALL = {name: cls() for name, cls in METRICS.items()}
# The same with fewer draws.
FEW = {name: few(metric) for name, metric in ALL.items()}
METHODS = {
    "saliency": m.Saliency(abs=False),
    "ig": m.IntegratedGradients(n_steps=7),
    "shap": m.GradientShap(n_samples=4),
    "cam": m.LayerGradCam("block.relu2"),
}


def probe(order: list[int] | None = None) -> Probe:
    x, y = samples()
    index = torch.tensor(order or list(range(len(x))))
    return Probe(x[index], y[index], ids=index, masks=x[index, 0] > 0.5)


def before(order: list[int] | None = None) -> Report:
    """An explanation for metrics to look back on."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return explain(DigitNet().double().eval(), probe(order), METHODS, [])


@pytest.fixture(scope="module")
def straight() -> Report:
    return explain(trained().double(), probe(), METHODS, FEW, history=[before()])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", [1, 3, 64])
def test_scores_do_not_depend_on_the_order_of_samples_or_chunks(limit: int, straight: Report) -> None:
    order = [3, 0, 6, 1, 5, 2, 4]
    mixed = explain(
        trained().double(), probe(order), METHODS, FEW, max_examples_per_pass=limit, history=[before(order)]
    )
    for found, expected in ((mixed.scores, straight.scores), (mixed.standard_errors, straight.standard_errors)):
        assert found.keys() == expected.keys()
        for key, by_method in expected.items():
            assert found[key].keys() == by_method.keys()
            for name, values in by_method.items():
                assert torch.allclose(found[key][name], values[order], rtol=1e-9, atol=1e-9, equal_nan=True), (
                    key,
                    name,
                )


def test_every_score_is_one_number_for_each_sample_under_a_name_that_the_metric_declares(straight: Report) -> None:
    fitted = {**FEW, "Drift": q.Drift(ssim=False)}
    declared = {f"{name}_{s}" if s else name for name, metric in fitted.items() for s in metric.suffixes}
    assert set(straight.scores) == declared
    for key, by_method in {**straight.scores, **straight.standard_errors}.items():
        for name, values in by_method.items():
            assert values.shape == (7,), (key, name)
            assert values.dtype == torch.float64, (key, name)


@pytest.mark.parametrize("limit", [1, 5, 32])
def test_no_metric_sends_more_samples_at_once_than_the_limit(limit: int) -> None:
    model, calls = trained(), []
    model.register_forward_hook(lambda module, arguments, output: calls.append(len(output)))
    methods = {name: METHODS[name] for name in ("saliency", "cam")}
    report = Explainer(methods, FEW, limit=limit).explain(model, probe())
    assert max(calls) <= limit
    assert sum(calls) == report.passes.forward


@pytest.mark.parametrize("name", METRICS)
def test_a_map_that_is_not_a_number_in_one_sample_leaves_the_others_alone(name: str) -> None:
    class Broken(m.IntegratedGradients):
        def attribute(self, explained: object, samples: object) -> torch.Tensor:
            found = super().attribute(explained, samples)  # type: ignore[arg-type]
            found[samples.ids == 2] = torch.nan  # type: ignore[union-attr, index, attr-defined]
            return found  # type: ignore[return-value]

    methods = {"broken": Broken(n_steps=4), "sound": m.Saliency(abs=False)}
    earlier = explain(trained(), probe(), {**methods, "broken": m.IntegratedGradients(n_steps=4)}, [])
    report = explain(trained(), probe(), methods, {"it": FEW[name]}, history=[earlier])
    for key, by_method in report.scores.items():
        if "broken" in by_method:
            assert by_method["broken"].isnan().tolist() == [i == 2 for i in range(7)], key
        if "sound" in by_method and name != "Agreement":
            assert by_method["sound"].isfinite().all(), key


@pytest.mark.parametrize("name", METRICS)
def test_the_configuration_of_a_metric_is_the_class_with_all_its_defaults(name: str) -> None:
    written = yaml.safe_load((CONFIGS / f"{snake_case(name)}.yaml").read_text())
    # No preset holds an argument that only a function can fill.
    given = {f.name for f in fields(METRICS[name]) if not (f.name == "perturb_func" and f.default is None)}
    assert set(written) == {"name", *given}
    assert build_metrics({"it": written})["it"] == METRICS[name]()


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_is_a_value(name: str) -> None:
    assert isinstance(ALL[name], Metric)
    assert METRICS[name]() == ALL[name]
    assert hash(METRICS[name]()) == hash(ALL[name])
    assert getattr(q, name) is METRICS[name]
