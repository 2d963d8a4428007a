"""Laws of what goes from a report to the sinks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import pytest
import torch

from lightning_explain import Report
from lightning_explain import metrics as q
from lightning_explain.core.contracts import Metric, MetricInputs, Score
from lightning_explain.core.run_info import RunInfo
from lightning_explain.explainer.registry import METRICS as METRIC_CLASSES
from lightning_explain.loggers.tags import charts, described, publication, score_names, titled, without


class Drift(Metric):
    """A metric of two scores."""

    higher_is_better: ClassVar[bool | None] = True
    suffixes: ClassVar[tuple[str, ...]] = ("cosine", "rank")

    def score(self, case: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        return {}


METRICS: dict[str, Metric] = {"infidelity": q.Infidelity(), "drift": Drift()}


def report(*methods: str) -> Report:
    """A report of two samples with every score of every method."""
    scores = {name: {method: torch.tensor([1.0, 2.0]) for method in methods} for name in score_names(METRICS)}
    return Report(
        attributions={method: torch.ones(2, 1, 4, 4) for method in methods},
        scores=scores,
        standard_errors={"infidelity": scores["infidelity"]},
        outputs=torch.ones(2, 3),
        predictions=torch.tensor([0, 1]),
        targets=torch.tensor([0, 1]),
        ids=torch.tensor([4, 7]),
        epoch=2,
        step=30,
    )


def test_a_metric_of_several_scores_has_several_names() -> None:
    assert list(score_names(METRICS)) == ["infidelity", "infidelity_relative", "drift_cosine", "drift_rank"]


def test_a_chart_holds_all_methods_of_one_score() -> None:
    assert charts("explain", ["ig", "cam"], {"infidelity": q.Infidelity()}) == {
        "explain": {"infidelity_relative": ["explain/infidelity_relative/ig", "explain/infidelity_relative/cam"]}
    }


def test_a_score_with_a_unit_says_so_on_its_chart_or_has_none_beside_one_without() -> None:
    class Sum(Metric):
        """In units of output, as its author declares."""

        comparable: ClassVar[bool] = False

        def score(self, case: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
            return {}

    metrics = {
        "a": q.Completeness(),
        "b": q.Deletion(normalize=False),
        "c": q.Infidelity(),
        "d": q.Infidelity(n_perturb_samples=4),
    }
    known = {**metrics, "e": Sum(), "f": q.Insertion()}
    run = RunInfo("explain", charts=charts("explain", ["ig"], known)["explain"], **described(known))
    note = "(not comparable between epochs)"
    assert list(titled(run)) == ["a", f"a_delta {note}", f"b {note}", "c_relative", f"d {note}", f"e {note}", "f"]
    directions = publication("explain", report("ig"), {"d/ig": 1.0, "a/ig": 1.0}, {}, metrics).directions
    assert directions == {"explain/d/ig": "last", "explain/a/ig": "min"}


@pytest.mark.parametrize("name", METRIC_CLASSES)
def test_every_metric_declares_whether_its_scores_can_be_compared(name: str) -> None:
    cls = METRIC_CLASSES[name]
    assert any("comparable" in vars(base) for base in cls.__mro__[: cls.__mro__.index(Metric)])
    assert isinstance(cls().comparable, bool)
    assert {*cls().incomparable, *cls().uncharted} <= {*cls().suffixes}
    assert {*cls().undefined} <= {*cls().suffixes}


def test_a_publication_has_the_monitors_name_before_every_tag() -> None:
    picture = np.zeros((4, 4, 3), dtype=np.uint8)
    found = publication("late", report("ig"), {"seconds": 2.0}, {"ig": picture}, METRICS)
    assert found.scalars == {"late/seconds": 2.0}
    assert list(found.pictures) == ["late_maps/ig"]
    assert (found.epoch, found.step) == (2, 30)


def test_dashboards_get_no_score_with_a_unit_beside_one_without() -> None:
    found = publication("late", report("ig"), report("ig").scalars(), {}, METRICS)
    assert found.scores.keys() == {f"late/{key}/ig" for key in ("infidelity_relative", "drift_cosine", "drift_rank")}
    assert "late/infidelity/ig" in found.scalars


@pytest.mark.parametrize("name", ["explain", "a/b", "explain_run"])
def test_dashboards_get_what_is_no_score_apart(name: str) -> None:
    scored = report("ig", "seconds")
    others = {"nonfinite/ig": 1.0, "undefined/drift_rank/ig": 2.0, "n_steps/ig": 8.0, "seconds": 3.0, "overhead": 0.5}
    found = publication(name, scored, {**scored.scalars(), **others}, {}, METRICS)
    run = {key: value for key, value in found.charted.items() if key not in found.scores}
    assert run == {f"{name}_run/{key}": value for key, value in {**others, "nonfinite/seconds": 0.0}.items()}
    assert f"{name}/drift_rank/seconds" in found.scores
    assert found.scalars == {f"{name}/{key}": value for key, value in {**scored.scalars(), **others}.items()}


@pytest.mark.parametrize("name", ["explain", "a/b"])
@pytest.mark.parametrize("method", ["ig", "ig/fast", "infidelity"])
def test_a_curve_is_summarized_by_its_better_end_whatever_the_names(name: str, method: str) -> None:
    found = report(method)
    scalars = {**found.scalars(), "seconds": 1.0, "overhead": 0.1}
    directions = publication(name, found, scalars, {}, METRICS).directions
    assert directions == {
        f"{name}/infidelity/{method}": "last",
        f"{name}/infidelity_relative/{method}": "min",
        f"{name}/drift_cosine/{method}": "max",
        f"{name}/drift_rank/{method}": "max",
        f"{name}/nonfinite/{method}": "last",
        f"{name}/seconds": "last",
        f"{name}/overhead": "last",
    }


def test_nothing_is_left_of_a_failed_method() -> None:
    left = without(report("ig", "cam"), ["cam"], METRICS)
    assert list(left.attributions) == ["ig"]
    assert not any(key.endswith("/cam") for key in left.scalars())
    assert "cam" not in left.standard_errors["infidelity"]


def test_nothing_is_left_of_a_failed_metric() -> None:
    left = without(report("ig"), ["drift"], METRICS)
    assert list(left.scores) == ["infidelity", "infidelity_relative"]
    assert list(without(report("ig"), ["infidelity"], METRICS).standard_errors) == []


def test_a_report_in_which_nothing_failed_stays_as_it_is() -> None:
    whole = report("ig", "cam")
    assert without(whole, [], METRICS).scalars() == whole.scalars()
