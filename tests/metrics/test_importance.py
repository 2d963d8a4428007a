"""Importance of named features: closed forms of linear models, and which curves dashboards get."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from given import Given, Linear
from lightning_explain import Probe, Report, explain
from lightning_explain import metrics as q
from lightning_explain import modalities as d
from lightning_explain.core.contracts import Method
from lightning_explain.explainer.registry import build_metrics
from lightning_explain.loggers.tags import charts, publication

WEIGHTS = torch.tensor([1.0, -2.0, 0.5, 3.0])
X = torch.tensor([[1.0, 1, 0, 1], [2.0, 0.5, 1, 0]])
TABLE = d.Tabular(feature_names=["age", "income", "red", "blue"], groups={"color": ["red", "blue"]})


def explained(metric: Any, x: Tensor = X, modality: Any = TABLE, weights: Tensor = WEIGHTS) -> Report:
    return explain(Linear(weights), Probe(x), ["InputXGradient"], {"importance": metric}, modalities=modality)


def means(report: Report) -> dict[str, float]:
    return {key.split("/")[0]: value for key, value in report.scalars().items() if key.startswith("importance")}


def test_the_mean_of_a_linear_model_is_that_of_its_weighted_columns_and_of_sums_of_groups() -> None:
    report = explained(q.Importance(normalize=False))
    # |1 * 1|, |1 * 2|; |-2 * 1|, |-2 * .5|; |.5 * 0 + 3 * 1|, |.5 * 1 + 3 * 0|.
    assert means(report) == {"importance_age": 1.5, "importance_income": 1.5, "importance_color": 1.75}
    assert report.scores["importance_income"]["input_x_gradient"].tolist() == [2.0, 1.0]


def test_shares_of_a_sample_add_up_to_one_whatever_the_scale_of_the_output() -> None:
    report = explained(q.Importance())
    assert means(report) == pytest.approx(
        {"importance_age": (1 / 6 + 2 / 3.5) / 2, "importance_income": (2 / 6 + 1 / 3.5) / 2}
        | {"importance_color": (3 / 6 + 0.5 / 3.5) / 2}
    )
    assert means(explained(q.Importance(), weights=1000 * WEIGHTS)) == pytest.approx(means(report))
    assert (report.passes.forward, report.passes.backward) == (2, 2), "it costs no pass"


@pytest.mark.parametrize("layout", ["NCT", "NTC"])
def test_a_channel_of_a_series_has_the_absolute_attributions_of_all_its_times(layout: str) -> None:
    weights = torch.tensor([[1.0, -1.0, 1.0], [0.0, 2.0, 0.0]])
    x = torch.ones(2, 2, 3)
    if layout == "NTC":
        weights, x = weights.T.contiguous(), x.transpose(1, 2)
    modality = d.TimeSeries(channel_names=["II", "V1"], layout=layout)
    assert means(explained(q.Importance(), x, modality, weights)) == pytest.approx(
        {"importance_II": 0.6, "importance_V1": 0.4}
    )


def test_features_of_several_inputs_are_told_apart_and_share_one_sum() -> None:
    class Two(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return a.sum(1) + 3 * b.sum(1)

    tables = [d.Tabular(feature_names=["age"]), d.Tabular(feature_names=["age"])]
    report = explain(Two(), Probe((torch.ones(2, 1),) * 2), ["InputXGradient"], [q.Importance()], modalities=tables)
    assert means(report) == {"importance_age": 0.25, "importance_age (2)": 0.75}


def test_a_map_of_zeros_has_no_shares_and_has_not_failed() -> None:
    maps: dict[str, Method] = {"zero": Given(torch.zeros(4))}
    report = explain(Linear(WEIGHTS), Probe(X), maps, [q.Importance()], modalities=TABLE)
    assert report.undefined()["importance_age"] == {"zero": [0, 1]}
    assert report.nonfinite() == {"zero": []}
    assert report.undefined_reasons["importance_age"] == "the map is zero everywhere"


def test_images_have_no_features_and_no_scores() -> None:
    report = explain(Linear(torch.ones(1, 8, 8)), Probe(torch.ones(2, 1, 8, 8)), ["Saliency"], [q.Importance()])
    assert report.scores == {}


def test_features_are_chosen_by_name_from_yaml_and_wrong_ones_are_refused() -> None:
    metric = build_metrics({"importance": {"name": "Importance", "features": ["income"], "normalize": False}})
    assert means(explained(metric["importance"])) == {"importance_income": 1.5}
    with pytest.raises(ValueError, match="there is no feature 'incme': did you mean 'income'"):
        explained(q.Importance(features=("incme",)))
    with pytest.raises(ValueError, match=r"300 features are more than 256; name those to score: Importance\(features="):
        explained(q.Importance(), torch.ones(2, 300), d.Tabular(), torch.ones(300))
    with pytest.raises(TypeError, match=r"Importance\(features='age'\); give a list of names"):
        q.Importance(features="age")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="curves"):
        q.Importance(curves=0)


def test_a_name_that_no_tag_can_hold_is_changed() -> None:
    metric = q.Importance(features=("km/h", "km_h", "ä"))
    assert metric.suffixes == ("km_h", "km_h (2)", "ä")


def of_epoch(values: list[float]) -> dict[str, float]:
    return {f"importance_{name}/ig": value for name, value in zip("abc", values, strict=True)}


def test_the_strongest_have_curves_and_a_curve_that_has_begun_goes_on() -> None:
    metrics = {"importance": q.Importance(curves=1, features=("a", "b", "c"))}
    assert charts("explain", ["ig"], metrics) == {
        "explain": {"importance/ig": [f"explain/importance_{name}/ig" for name in "abc"]}
    }
    scores = {f"importance_{name}": {"ig": torch.ones(2)} for name in "abc"}
    ids = torch.arange(2)
    report = Report({"ig": torch.ones(2, 3)}, scores, {}, torch.zeros(2), ids, ids, ids)
    first = publication("explain", report, of_epoch([0.5, 0.3, 0.2]), {}, metrics).charted
    assert first == {"explain/importance_a/ig": 0.5}
    second = publication("explain", report, of_epoch([0.2, 0.3, 0.5]), {}, metrics, first).charted
    assert second == {"explain/importance_a/ig": 0.2, "explain/importance_c/ig": 0.5}
