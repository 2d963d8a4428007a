"""What a report says of samples without a score."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from given import Given, Linear
from lightning_explain import Probe, Report, explain, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.store.report_files import save_report

NAN, INF = math.nan, math.inf


def report(maps: Tensor, **scores: list[float]) -> Report:
    """Of four samples, with the scores of one method; ``mass`` may be undefined."""
    ids = torch.tensor([5, 6, 8, 9])
    named = {name: {"ig": torch.tensor(values)} for name, values in scores.items()}
    errors = {name: {"ig": torch.tensor([0.3, 0.4, 9.0, 9.0])} for name in named}
    reasons = {"mass": "the mask is empty"}
    return Report({"ig": maps}, named, errors, torch.zeros(4), ids * 0, ids * 0, ids, undefined_reasons=reasons)


def test_undefined_is_counted_apart_and_what_failed_is_not_undefined() -> None:
    maps = torch.ones(4, 2)
    found = report(maps, mass=[0.5, 0.25, NAN, NAN], other=[1.0, 3.0, 2.0, NAN])
    assert found.nonfinite() == {"ig": [9]}
    assert found.undefined() == {"mass": {"ig": [8]}}
    scalars = found.scalars()
    assert scalars.pop("other/ig") == 2
    assert scalars == {"mass/ig": 0.375, "nonfinite/ig": 1, "undefined/mass/ig": 1}
    maps[2] = NAN
    assert report(maps, mass=[0.5, 0.25, NAN, NAN]).undefined() == {"mass": {"ig": [9]}}
    infinite = report(torch.ones(4, 2), mass=[0.5, INF, 1.0, 1.0])
    assert (infinite.nonfinite(), infinite.undefined()) == ({"ig": [6]}, {})
    assert "undefined/mass/ig" not in infinite.scalars()


def test_the_error_of_a_mean_is_that_of_these_samples() -> None:
    found = report(torch.ones(4, 2), mass=[0.5, 0.25, NAN, NAN])
    assert found.mean_errors() == pytest.approx({"mass/ig": 0.5 / 2})


def test_a_stored_report_still_knows_why(tmp_path: object) -> None:
    found = report(torch.ones(4, 2), mass=[0.5, 0.25, NAN, NAN])
    (loaded,) = load_reports(save_report(found, tmp_path))  # type: ignore[arg-type]
    assert loaded.undefined() == found.undefined()
    assert loaded.undefined_reasons == {"mass": "the mask is empty"}


IMAGE = torch.tensor([[[3.0, 1.0], [2.0, -4.0]]])


def test_every_score_that_cannot_be_says_why_and_counts_no_failure() -> None:
    """An empty mask, f(x) = f(baseline), a map of zeros, a constant map, an output that does not change."""
    x = torch.stack([IMAGE, IMAGE, torch.zeros(1, 2, 2)])
    masks = torch.tensor([[[1, 1], [0, 0]], [[0, 0], [0, 0]], [[1, 0], [0, 0]]], dtype=torch.bool)
    metrics = {
        name: getattr(q, name)()
        for name in ("RelevanceMass", "RelevanceRank", "PointingGame", "Deletion", "Completeness")
    }
    metrics |= {"Infidelity": q.Infidelity(), "Concentration": q.Concentration(), "Agreement": q.Agreement()}
    methods = {"ig": m.IntegratedGradients(n_steps=2), "other": Given(IMAGE)}
    found = explain(Linear(torch.ones(1, 2, 2)), Probe(x, masks=masks), methods, metrics)
    assert found.nonfinite() == {"ig": [], "other": []}
    assert {score: by_method.get("ig") for score, by_method in found.undefined().items()} == {
        "RelevanceMass": [1, 2],
        "RelevanceMass_over_chance": [1, 2],
        "RelevanceRank": [1, 2],
        "PointingGame": [1, 2],
        "Deletion": [2],
        "Completeness": [2],
        "Infidelity_relative": [2],
        "Concentration": [2],
        "Concentration_entropy": [2],
        "Agreement": [2],
    }
    assert found.undefined().keys() <= found.undefined_reasons.keys()
    assert found.scores["RelevanceMass"]["ig"][0] == pytest.approx(4 / 6)
    assert found.scores["RelevanceMass_over_chance"]["ig"][0] == pytest.approx(4 / 6 * 2)


def test_an_output_that_is_no_number_has_failed() -> None:
    class Broken(Linear):
        def forward(self, *inputs: Tensor) -> Tensor:
            found = super().forward(*inputs)
            return torch.where(
                (inputs[0] == 0).flatten(1).any(1) & (inputs[0] != 0).flatten(1).any(1), torch.nan, found
            )

    metrics = {"d": q.Deletion(), "i": q.Infidelity()}
    found = explain(Broken(torch.ones(1, 2, 2)), Probe(IMAGE[None]), {"it": m.InputXGradient()}, metrics)
    assert (found.nonfinite(), found.undefined()) == ({"it": [0]}, {})
