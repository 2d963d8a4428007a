"""Several outputs of one model, and several targets of one output: each has maps and scores of its own, equal to those of it alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn

from lightning_explain import Probe, Report, draw, explain, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.run_info import RunInfo
from lightning_explain.core.serialization import fingerprint
from lightning_explain.report.page import write_page
from lightning_explain.store.report_files import save_report
from lightning_explain.store.run_files import save_probe

pytestmark = pytest.mark.filterwarnings("ignore:.*scores none of the methods:UserWarning")
METHODS = {"ig": m.IntegratedGradients(n_steps=4), "saliency": m.Saliency(abs=False)}
METRICS = [q.Infidelity(n_perturb_samples=16)]


class Heads(nn.Module):
    """``form`` makes of the outputs what it returns."""

    def __init__(self, form: Any = dict) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.age, self.sex, self.form = nn.Linear(16, 1), nn.Linear(16, 3), form

    def forward(self, x: Tensor) -> Any:
        h = self.body(x)
        return self.form({"age": self.age(h), "sex": self.sex(h)})


def heads(form: Any = dict) -> Heads:
    torch.manual_seed(0)
    return Heads(form).eval()


LABELS = {"age": torch.tensor([30.0, 41.0, 7.0, 66.0]), "sex": torch.tensor([2, 0, 1, 1])}


def images() -> Tensor:
    return torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def explained(**more: Any) -> Report:
    return explain(heads(), Probe(images(), LABELS), METHODS, METRICS, **more)


def test_every_output_is_explained_as_if_it_were_the_only_one() -> None:
    report = explained()
    assert list(report.attributions) == ["ig@age", "saliency@age", "ig@sex", "saliency@sex"]
    assert report.tasks == {"age": "regression", "sex": "multiclass"}
    for name, labels in LABELS.items():
        alone = explain(
            heads(), Probe(images(), labels), METHODS, METRICS, output_fn=lambda found, name=name: found[name]
        )
        part = report.of_target(name)
        torch.testing.assert_close(part.values, alone.values)
        torch.testing.assert_close(part.outputs, alone.outputs)
        assert torch.equal(part.targets, alone.targets)
        assert torch.equal(part.probe.targets, labels)
        for method in METHODS:
            torch.testing.assert_close(part.attributions[f"{method}@{name}"], alone.attributions[method])
            for score, values in alone.scores.items():
                torch.testing.assert_close(report.scores[score][f"{method}@{name}"], values[method], equal_nan=True)


def test_maps_equal_captum_by_hand() -> None:
    net, x, found = heads(), images(), explained()
    by_hand = IntegratedGradients(lambda x: net(x)["sex"]).attribute(
        x.requires_grad_(), target=LABELS["sex"], n_steps=4
    )
    mine = found.attributions["ig@sex"]
    assert (mine - by_hand).abs().max() <= 1e-5 * by_hand.abs().max()


def test_the_model_runs_three_times_before_the_explanation_however_many_outputs() -> None:
    from lightning_explain.explainer.explainer import Explainer

    calls = []

    def counted(found: dict[str, Tensor]) -> dict[str, Tensor]:
        calls.append(1)
        return found

    Explainer(METHODS, {}).check(heads(counted), Probe(images(), LABELS))
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("form", "labels"),
    [
        (lambda found: tuple(found.values()), LABELS),
        (lambda found: tuple(found.values()), {"0": LABELS["age"], "1": LABELS["sex"]}),
        (dict, torch.stack([LABELS["age"], LABELS["sex"].float()], 1)),
    ],
)
def test_outputs_and_labels_are_found_by_name_or_else_by_place(form: Any, labels: Any) -> None:
    report = explain(heads(form), Probe(images(), labels), METHODS, [], target=dict.fromkeys(LABELS, "label"))
    expected = explained()
    for name, value in report.attributions.items():
        torch.testing.assert_close(value, expected.attributions[name])
    assert torch.equal(report.of_target("sex").targets, LABELS["sex"])


def test_a_tuple_of_outputs_is_explained_where_labels_are_as_many_by_place() -> None:
    net = heads(lambda found: (*found.values(), found["sex"]))
    labels = {"0": LABELS["age"], "1": LABELS["sex"], "2": LABELS["sex"]}
    report = explain(net, Probe(images(), labels), METHODS, METRICS)
    assert report.tasks == {"0": "regression", "1": "multiclass", "2": "multiclass"}
    for name, own in labels.items():
        alone = explain(
            net, Probe(images(), own), METHODS, METRICS, output_fn=lambda found, name=name: found[int(name)]
        )
        for method in METHODS:
            torch.testing.assert_close(report.attributions[f"{method}@{name}"], alone.attributions[method])
        assert torch.equal(report.of_target(name).probe.targets, own)


def test_more_labels_by_place_than_are_explained_stay_with_their_outputs() -> None:
    net = heads(lambda found: (found["age"], found["sex"], *[found["age"]] * 3))
    labels = {"0": LABELS["age"], "1": LABELS["sex"], **dict.fromkeys("234", LABELS["age"])}
    with pytest.warns(UserWarning, match="returns 5 outputs: '0'.*'3' are explained, '4' are not"):
        report = explain(net, Probe(images(), labels), METHODS, [])
    assert report.tasks == {"0": "regression", "1": "multiclass", "2": "regression", "3": "regression"}


@pytest.mark.parametrize("names", [("4", "5"), ("5", "0"), ("3",), ("5", "4", "3", "2", "1", "0")], ids=str)
def test_outputs_of_a_tuple_are_chosen_by_their_places(names: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    body, x = nn.Linear(4, 18), torch.randn(8, 4)
    labels = {str(place): torch.randint(0, 3, (8,)) for place in range(6)}
    net = nn.Sequential(body, _Thirds())
    report = explain(net, Probe(x, labels), METHODS, [], target=dict.fromkeys(names, "label"))
    assert list(report.by_target) == list(names)
    for name in names:
        outputs = body(x)[:, 3 * int(name) : 3 * int(name) + 3].detach()
        part, own = report.of_target(name), labels[name]
        torch.testing.assert_close(part.outputs, outputs)
        torch.testing.assert_close(part.values, outputs[torch.arange(8), own])
        torch.testing.assert_close(part.attributions[f"saliency@{name}"], body.weight[3 * int(name) + own].detach())


class _Thirds(nn.Module):
    """Columns in, a tuple of threes out."""

    def forward(self, columns: Tensor) -> tuple[Tensor, ...]:
        return columns.split(3, 1)


def test_a_tuple_of_outputs_with_labels_of_other_names_is_explained_by_a_mapping_that_is_proposed() -> None:
    with pytest.warns(UserWarning, match=r"Or explain each, in their order: target=\{'age': 'label', 'sex': 'label'\}"):
        explain(heads(lambda found: tuple(found.values())), Probe(images(), LABELS), METHODS, [])


def test_several_targets_of_one_output() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    report = explain(net, Probe(images()), METHODS, [], target={"two": 2, "four": 4, "best": "predicted"})
    for name, index in (("two", 2), ("four", 4)):
        alone = explain(net, Probe(images()), METHODS, [], target=index)
        torch.testing.assert_close(report.attributions[f"ig@{name}"], alone.attributions["ig"])


def test_by_default_at_most_four_outputs_are_explained_and_the_others_are_named_once() -> None:
    def six(found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return dict.fromkeys("abcdef", found["age"])

    with pytest.warns(
        UserWarning, match=r"returns 6 outputs by name: 'a', 'b', 'c', 'd' are explained, 'e', 'f' are not"
    ) as seen:
        report = explain(heads(six), Probe(images()), METHODS, [])
    assert sum("6 outputs" in str(one.message) for one in seen) == 1
    assert list(report.by_target) == ["a", "b", "c", "d"]


def test_a_default_output_that_cannot_be_explained_is_left_out_and_a_named_one_is_refused() -> None:
    labels = {"age": LABELS["age"], "sex": torch.tensor([2, 0, 1, 9])}
    with pytest.warns(UserWarning, match=r"The output 'sex' is left out: .*9"):
        report = explain(heads(), Probe(images(), labels), METHODS, [])
    assert list(report.by_target) == ["age"]
    with pytest.raises(ValueError, match=r"target 'sex': .*indices 7 to 7 of 3 outputs"):
        explain(heads(), Probe(images()), METHODS, [], target={"sex": 7})
    with pytest.raises(TypeError, match=r"target has the name 'size', but the model returns \['age', 'sex'\]"):
        explain(heads(), Probe(images()), METHODS, [], target={"size": "predicted"})


def test_one_word_for_several_outputs_is_refused_with_the_mapping_to_give() -> None:
    with pytest.raises(
        TypeError, match=r"keys \['age', 'sex'\].*Or explain each: target=\{'age': \.\.\., 'sex': \.\.\.\}"
    ):
        explain(heads(), Probe(images()), METHODS, [], target="predicted")


def test_a_mapping_with_one_output_is_that_output() -> None:
    report = explain(heads(lambda found: {"sex": found["sex"]}), Probe(images(), LABELS["sex"]), METHODS, [])
    assert list(report.attributions) == ["ig", "saliency"]
    torch.testing.assert_close(report.attributions["ig"], explained().attributions["ig@sex"])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({}, "empty mapping"),
        ({"a@b": 0}, "names without @"),
        ({"a": {"b": 0}}, "a mapping of targets again"),
        ({"a": "labels"}, "did you mean 'label'"),
    ],
)
def test_targets_that_are_none_are_refused(target: Any, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        explain(heads(), Probe(images()), METHODS, [], target=target)


def test_metrics_may_name_methods_and_compare_with_earlier_reports() -> None:
    scores = {"infidelity": q.Infidelity(methods=("ig",)), "drift": q.Drift()}
    first = explain(heads(), Probe(images(), LABELS), METHODS, scores)
    second = explain(heads(), Probe(images(), LABELS), METHODS, scores, history=[first])
    assert list(second.scores["infidelity"]) == ["ig@age", "ig@sex"]
    drift = next(values for name, values in second.scores.items() if name.startswith("drift"))
    assert set(drift) == set(second.attributions)


def test_files_pictures_tables_and_the_page_know_every_target(tmp_path: Path) -> None:
    from dataclasses import replace

    report = explained()
    report = replace(report, run=RunInfo(name="explain", fingerprint=report.fingerprint), step=3, epoch=0)
    save_report(report, tmp_path)
    save_probe(report.probe, tmp_path)
    (loaded,) = load_reports(tmp_path)
    assert fingerprint(loaded.probe) == fingerprint(report.probe) == report.fingerprint
    assert loaded.tasks == report.tasks
    assert torch.equal(loaded.of_target("age").outputs, report.of_target("age").outputs)
    for name in ("overview@age", "overview@sex", "ig@sex"):
        assert (draw(loaded, name) == draw(report, name)).all()
    assert (draw(report, "ig@age") != draw(report, "ig@sex")).any()
    assert draw(report, "ig@sex", layout="composite").ndim == 3
    columns, lines = report.table()
    assert len(lines) == 4 * len(report.attributions)
    labels = {
        line[columns.index("method")]: line[columns.index("label")]
        for line in lines
        if line[columns.index("sample")] == 0
    }
    assert labels["ig@sex"] == 2
    text = write_page([tmp_path], tmp_path / "page.html").read_text(encoding="utf-8")
    assert "ig@age" in text
    assert "sex: label 2" in text
