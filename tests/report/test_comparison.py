"""What ``compare`` says of two explanations of the same samples, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import sem, spearmanr

from lightning_explain import Report, compare
from lightning_explain.cli.compare import _most_changed as most_changed_lines
from lightning_explain.core.run_info import RunInfo, plain
from lightning_explain.store.report_files import save_report
from lightning_explain.targets import Horizon, Pixels


def report(*order: int, **changes: Any) -> Report:
    """Maps and scores of samples 0..2, in some order."""
    noise = torch.Generator().manual_seed(0)
    maps, wide = torch.randn(3, 4, 5, generator=noise), torch.randn(3, 20, generator=noise)
    index, ids = torch.tensor(order or (0, 1, 2)), torch.tensor([30, 10, 20])
    found = {"ig": maps[index], "two": (maps[index], wide[index])}
    scores, classes = {"a": {"ig": torch.tensor([1.0, 2.0, 3.0])[index]}}, torch.tensor([0, 1, 2])[index]
    return replace(Report(found, scores, {}, wide[index], classes, classes, ids[index], fingerprint="f"), **changes)


def test_equal_reports_are_alike_in_any_order_of_their_samples() -> None:
    found = compare(report(), report(2, 0, 1))
    assert found.ids.tolist() == [30, 10, 20]
    for measure in ("cosine", "spearman", "top_overlap"):
        for method in ("ig", "two"):
            assert torch.allclose(found.similarity[measure][method], torch.ones(3, dtype=torch.float64))
    assert found.changes["a"]["ig"].tolist() == [0, 0, 0]
    assert not found.other_prediction.any()
    assert found.left_out == {}


def test_numbers_are_those_of_their_definitions_and_the_most_changed_come_first() -> None:
    a, b = report(), report(scores={"a": {"ig": torch.tensor([1.5, 2.0, 0.0])}}, epoch=3, step=7)
    assert isinstance(a.attributions["ig"], torch.Tensor)
    other = a.attributions["ig"].clone()
    other[1] = -other[1]
    other[2, 0] = 0.0
    found = compare(a, replace(b, attributions={"ig": other, "new": other}, predictions=torch.tensor([0, 1, 5])))
    first, second = a.attributions["ig"].flatten(1), other.flatten(1)
    assert found.similarity["cosine"]["ig"].tolist() == pytest.approx(
        torch.cosine_similarity(first, second).tolist(), abs=1e-6
    )
    expected = [spearmanr(x, y).statistic for x, y in zip(first, second, strict=True)]
    assert found.similarity["spearman"]["ig"].tolist() == pytest.approx(expected)
    tops = [{*x.abs().topk(2).indices.tolist()} for x in (first[2], second[2])]
    assert found.similarity["top_overlap"]["ig"].tolist() == [1.0, 1.0, len(tops[0] & tops[1]) / 2]
    assert found.changes["a"]["ig"].tolist() == [0.5, 0.0, -3.0]
    assert found.most_changed("ig", 2) == [10, 20]
    assert found.other_prediction.tolist() == [False, False, True]
    assert found.left_out == {"two": "only a has it", "new": "only b has it"}
    assert found.moments == ((None, None), (3, 7))
    columns, lines = found.table()
    assert columns == ["sample", "other_prediction", "method", "cosine", "spearman", "top_overlap", "a_change"]
    assert [line[:3] for line in lines] == [[30, False, "ig"], [10, False, "ig"], [20, True, "ig"]]


def test_maps_without_a_similarity_have_none_and_come_last() -> None:
    a = report()
    assert isinstance(a.attributions["ig"], torch.Tensor)
    broken = a.attributions["ig"].clone()
    broken[0], broken[1, 0, 0] = 0.0, torch.nan
    found = compare(a, replace(a, attributions={"ig": broken}))
    for measure in ("cosine", "spearman", "top_overlap"):
        assert found.similarity[measure]["ig"].isnan().tolist() == [True, True, False]
    assert found.most_changed("ig") == [20, 30, 10]


def test_maps_of_other_shapes_are_left_out_with_the_reason() -> None:
    small = replace(report(), attributions={"ig": torch.ones(3, 2), "two": report().attributions["two"]})
    found = compare(report(), small)
    assert found.left_out == {"ig": "its maps have the shapes [(4, 5)] and [(2,)]"}
    assert list(found.similarity["cosine"]) == ["two"]


def test_other_samples_are_refused_with_the_reason() -> None:
    with pytest.raises(
        ValueError, match=r"fingerprint f, b has samples .* of fingerprint g; .* Give both runs the same probe"
    ):
        compare(report(), report(fingerprint="g"))
    with pytest.raises(ValueError, match="only explanations of the same samples"):
        compare(report(), report(ids=torch.tensor([1, 2, 3])))
    with pytest.raises(TypeError, match=r"got Report and list; give two reports, or two folders"):
        compare(report(), [report()])  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"not \[1\]; give one of these"):
        compare([1], [report()])  # type: ignore[list-item]


def test_runs_line_up_by_step_as_lists_or_folders(tmp_path: Path) -> None:
    runs = [[report(step=step, epoch=epoch) for epoch, step in enumerate(steps)] for steps in ((4, 8, 12), (4, 8))]
    for name, run in zip("ab", runs, strict=True):
        for one in run:
            save_report(one, tmp_path / name)
    for found in (compare(*runs), compare(tmp_path / "a", tmp_path / "b"), compare(str(tmp_path / "a"), runs[1])):
        assert [one.moments for one in found] == [((0, 4), (0, 4)), ((1, 8), (1, 8))]
    with pytest.raises(ValueError, match=r"no step, stage and epoch in common \(steps \[4, 8, 12\] and \[5\]\)"):
        compare(runs[0], [report(step=5)])


def test_scores_are_compared_in_pairs_with_the_error_of_the_pairs_and_that_of_the_draws() -> None:
    first, second = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.5, 2.0, 3.0])
    drawn = {"s": {"ig": torch.tensor([0.3, 0.0, 0.4])}}
    a = report(scores={"s": {"ig": first, "only": first}, "t": {"ig": first}}, standard_errors=drawn)
    order = (2, 0, 1)
    b = report(*order, scores={"s": {"ig": second[[*order]]}, "t": {"ig": first[[*order]] + 1}})
    b = replace(b, standard_errors={"s": {"ig": torch.tensor([0.0, 0.4, 0.0])}})
    found, other = compare(a, b).differences
    pairs = (second - first).numpy()
    assert (found.score, found.method, found.samples) == ("s", "ig", 3)
    assert [found.a, found.b] == pytest.approx([7 / 3, 6.5 / 3])
    assert found.change == pytest.approx(pairs.mean())
    assert found.error == pytest.approx(sem(pairs))
    assert found.drawing_error == pytest.approx((0.3**2 + 0.4**2 + 0.4**2) ** 0.5 / 3)
    assert (other.change, other.error, other.drawing_error) == (pytest.approx(1.0), 0.0, None)


def test_samples_without_a_score_in_one_of_the_reports_make_no_pair() -> None:
    a = report(scores={"s": {"ig": torch.tensor([1.0, torch.nan, 3.0])}, "t": {"ig": torch.full((3,), torch.nan)}})
    b = report(scores={"s": {"ig": torch.tensor([2.0, 9.0, torch.inf])}, "t": {"ig": torch.ones(3)}})
    (found,) = compare(a, b).differences
    assert (found.score, found.samples, found.change, found.error) == ("s", 1, 1.0, None)


def test_samples_that_changed_most_are_found_by_a_score_too() -> None:
    found = compare(report(), report(scores={"a": {"ig": torch.tensor([1.5, torch.nan, 0.0])}}))
    assert found.most_changed("ig", by="a") == [20, 30, 10]
    with pytest.raises(
        ValueError, match="by='cosin' is neither a measure of similarity nor a score: did you mean 'cosine'"
    ):
        found.most_changed("ig", by="cosin")
    with pytest.raises(ValueError, match="method='two' has not been compared by 'a': use one of 'ig'"):
        found.most_changed("two", by="a")


def test_what_two_reports_explain_otherwise_is_said_with_both_values() -> None:
    cam, shared = "LayerGradCam(layer='net.0')", {"ig": "IntegratedGradients(n_steps=16)"}
    first = RunInfo("a", plain({"target": "label", "seed": 0, "name": "a"}), methods={**shared, "cam": cam}, task="T")
    second = plain({"target": Horizon(2), "seed": 0, "name": "b"})
    second = RunInfo("b", second, methods={"cam": cam.replace("0", "3"), **shared}, metrics={"s": "S()"}, task="U")
    other = report(2, 0, 1, task="regression", run=second, targets=torch.tensor([2, 0, 0]))
    found = compare(report(task="binary", run=first), other)
    assert found.differing == {
        "target": ('"label"', "Horizon(step=2, most=24)"),
        "what is explained": ("T", "U"),
        "recognized task": ("binary", "regression"),
        "explained outputs": ("[1] of 1 of 3 samples, [10]", "[0] of 1 of 3 samples, [10]"),
        "method 'cam'": (cam, "LayerGradCam(layer='net.3')"),
    }
    assert compare(report(run=first), report(1, 2, 0, run=first)).differing == {}
    assert compare(report(run=first), report()).differing == {}


def test_arguments_that_an_older_run_did_not_have_differ_only_where_they_are_given() -> None:
    def run(target: Any) -> Report:
        return report(run=RunInfo("a", {"target": target}))

    older = {"class": "Pixels", "class_": 1, "region": "label"}
    for form in (lambda target: target, lambda target: {"mask": target, "age": "label"}, lambda target: [target]):
        now, given = (form({**older, "squeezed": None, "positive": positive}) for positive in (None, 255))
        assert compare(run(form(older)), run(now)).differing == {}
        assert compare(run(now), run(form(older))).differing == {}
        assert compare(run(form(older)), run(form({**older, "class_": None}))).differing
        (pair,) = compare(run(form(older)), run(given)).differing.values()
        assert "positive" not in pair[0]
        assert "positive=255" in pair[1]
        assert "squeezed" not in pair[1]
    real = plain({"target": Pixels(1)})
    stored = {name: value for name, value in real["target"].items() if name not in ("positive", "squeezed")}
    assert compare(run(stored), run(real["target"])).differing == {}


def test_labels_of_one_sample_are_told_apart_by_their_outputs() -> None:
    shared = {"explained": {"sample": torch.tensor([7, 7, 5])}, "targets": torch.tensor([0, 2, 1])}
    a = report(**shared)
    assert isinstance(a.attributions["ig"], torch.Tensor)
    moved = a.attributions["ig"] * torch.tensor([1.0, -1.0, 1.0])[:, None, None]
    moved[2, 0] = 0.0
    found = compare(a, replace(a, attributions={"ig": moved}))
    assert found.ids.tolist() == [7, 7, 5]
    assert found.most_changed("ig") == [7, 5]
    assert found.order("ig").tolist() == [1, 2, 0]
    columns, lines = found.table()
    assert columns[:4] == ["sample", "target", "other_prediction", "method"]
    assert [line[:2] for line in lines] == [[7, 0], [7, 2], [5, 1]]
    listed = most_changed_lines(found, 2)
    assert listed == (columns, [lines[1], lines[2]])


def test_several_targets_are_compared_by_name() -> None:
    def several(age: int, **others: int) -> Report:
        zeros = torch.zeros(3, dtype=torch.long)
        parts = {
            name: {"outputs": torch.zeros(3, 4), "targets": zeros + k} for name, k in {"age": age, **others}.items()
        }
        return report(by_target=parts)

    found = compare(several(0, sex=1), several(2)).differing
    assert found["names of targets"] == ("age, sex", "age")
    samples = "of 3 of 3 samples, [30, 10, 20]"
    assert found["explained outputs of target 'age'"] == (f"[0, 0, 0] {samples}", f"[2, 2, 2] {samples}")
    assert compare(several(1), report()).differing == {"names of targets": ("age", "one target without a name")}


def test_samples_of_equal_ids_but_other_content_are_named_as_such() -> None:
    with pytest.raises(ValueError, match="their ids are equal, but inputs, labels or masks are not"):
        compare(report(), report(fingerprint="g"))
    with pytest.raises(ValueError, match=r"b has samples \[1, 2, 3\] of fingerprint f; only"):
        compare(report(), report(ids=torch.tensor([1, 2, 3])))
