"""The caption of each sample."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_explain import explain
from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Report
from lightning_explain.modalities import Text
from lightning_explain.model.tasks import task_of
from lightning_explain.render.captions import Caption, Short, _plain, captions
from lightning_explain.render.explained import sides
from lightning_explain.targets import Horizon

NAMES = ["zero", "one", "two"]


def report(outputs: Tensor, targets: list[int], predictions: list[int] | None = None) -> Report:
    if predictions is None:
        predictions = outputs.argmax(1).tolist()
    tensors = {"predictions": torch.tensor(predictions), "targets": torch.tensor(targets)}
    return Report({}, {}, {}, outputs=outputs, ids=torch.arange(len(outputs)) + 40, **tensors)


def one(outputs: Tensor, target: int, label: Any = None, predictions: list[int] | None = None) -> Caption:
    targets = None if label is None else torch.tensor([label])
    (found,) = captions(report(outputs, [target], predictions), Probe(torch.zeros(1, 2), targets), NAMES, 1)
    return found


def test_a_row_names_its_label_its_prediction_and_its_probability() -> None:
    outputs = torch.tensor([[0.01, 0.01, 0.98]])
    assert one(outputs, 2, label=2) == Caption(("label 2 (two)", "predicted 2 (two) 98%"), wrong=False)


def test_a_wrong_prediction_is_marked() -> None:
    found = one(torch.tensor([[0.2, 0.7, 0.1]]), 2, label=2)
    assert found == Caption(("label 2 (two)", "predicted 1 (one) 70%"), wrong=True)


def test_an_explained_output_that_is_not_the_label_is_named() -> None:
    assert one(torch.tensor([[0.2, 0.7, 0.1]]), 1, label=2).lines[-1] == "explained 1 (one)"


def test_without_a_label_the_explained_output_is_named_unless_it_is_the_prediction() -> None:
    outputs = torch.tensor([[0.2, 0.7, 0.1]])
    assert one(outputs, 1) == Caption(("predicted 1 (one) 70%",))
    assert one(outputs, 0) == Caption(("predicted 1 (one) 70%", "explained 0 (zero)"))


def test_a_target_without_an_index_is_not_named() -> None:
    assert one(torch.tensor([[0.2, 0.7, 0.1]]), -1, label=1).lines == ("label 1 (one)", "predicted 1 (one) 70%")


def test_a_row_about_which_nothing_is_known_is_named_by_its_id() -> None:
    assert one(torch.zeros(1, 2, 4, 4), -1, predictions=[0]) == Caption(("sample 40",))


def test_a_class_without_a_name_is_a_number() -> None:
    probe = Probe(torch.zeros(1, 2), torch.tensor([-1]))
    found = captions(report(torch.tensor([[0.0, 0.01, 0.99]]), [2]), probe, ["a"], 1)
    assert found[0].lines[0].startswith("predicted 2 ")
    assert captions(report(torch.tensor([[9.0, 0.0]]), [0]), Probe(torch.zeros(1, 2)), ["0", "1"], 1)[0].lines == (
        "predicted 0 >99%",
    )


def test_a_probability_is_rounded_to_certainty_only_when_it_is_one() -> None:
    assert one(torch.tensor([[0.0, 0.999, 0.001]]), 1).lines == ("predicted 1 (one) >99%",)
    assert one(torch.tensor([[0.0, 1.0, 0.0]]), 1).lines == ("predicted 1 (one) 100%",)


def many(outputs: Any, labels: Any, names: Any = NAMES, values: Any = (), targets: int = -1) -> list[tuple[str, ...]]:
    """The lines of each caption."""
    outputs = torch.as_tensor(outputs)
    single = outputs.ndim == 1 or outputs.shape[1] == 1
    predictions = [0] * len(outputs) if single or outputs.ndim > 2 else None
    made = replace(report(outputs, [targets] * len(outputs), predictions), values=torch.as_tensor(values))
    probe = Probe(torch.zeros(len(outputs), 2), None if labels is None else torch.as_tensor(labels))
    return [found.lines for found in captions(made, probe, names, len(outputs))]


def test_only_whole_labels_of_classes_make_logits_a_softmax() -> None:
    logits = [[2.0, 0.0, -1.0], [1.0, 3.0, 0.5]]
    softmax = ["predicted 0 (zero) 84%", "predicted 1 (one) 82%"]
    assert many(logits, [0, 1]) == [("label 0 (zero)", softmax[0]), ("label 1 (one)", softmax[1])]
    assert many(logits, [0, -100])[1] == (softmax[1],)
    # Without labels, names or shares say that the columns are classes.
    assert many(logits, None) == [(line,) for line in softmax]
    assert many([[0.1, 0.2, 0.7]], None, names=None) == [("predicted 2 70%",)]


@pytest.mark.parametrize("whole", [torch.float32, torch.int64, torch.bool])
def test_independent_classes_have_sigmoids(whole: torch.dtype) -> None:
    labels = torch.tensor([[1, 0, 1], [0, 0, 0]]).to(whole)
    first, second = many([[3.0, 1.0, -2.0], [-9.0, -1.0, -2.0]], labels)
    assert first == ("labels 0 (zero), 2 (two)", "sigmoid 0 (zero) 95%", "sigmoid 1 (one) 73%", "sigmoid 2 (two) 12%")
    assert second == ("labels none", "sigmoid 1 (one) 27%", "sigmoid 2 (two) 12%", "sigmoid 0 (zero) <1%")
    # Sigmoids that the model has already taken stay as they are.
    assert many([[0.9, 0.2, 0.3], [0.6, 0.1, 0.8]], labels)[0][1] == "sigmoid 0 (zero) 90%"
    assert captions(
        report(torch.tensor([[3.0, -1.0]]), [0]), Probe(torch.zeros(1, 2), torch.tensor([[1.0, 1.0]])), None, 1
    )[0].wrong


@pytest.mark.parametrize("labels", [[1, 0, -100], [[1.0], [0.0], [-100.0]], [True, False, False]])
def test_a_model_of_one_logit_shows_label_and_sigmoid(labels: Any) -> None:
    first, second, third = many([[1.0], [0.5], [-1.0]], labels, names=["cat", "dog"])
    assert first == ("label 1 (dog)", "sigmoid 73%")
    assert second == ("label 0 (cat)", "sigmoid 62%")
    assert third[-1] == "sigmoid 27%"
    assert many([0.9, 0.2, 0.1], labels)[0] == ("label 1 (one)", "sigmoid 90%")
    probe = Probe(torch.zeros(3, 2), torch.as_tensor(labels))
    assert [c.wrong for c in captions(report(torch.tensor([1.0, 0.5, -1.0]), [0] * 3, [1, 1, 0]), probe, None, 3)] == [
        False,
        True,
        False,
    ]


def test_a_regression_shows_true_and_predicted_values() -> None:
    assert many([0.7341, 2.0], [0.5, 3.25]) == [("true 0.5", "predicted 0.734"), ("true 3.25", "predicted 2")]
    assert many([[0.7341], [2.0]], [[0.5], [3.0]])[0] == ("true 0.5", "predicted 0.734")
    # Ages are whole numbers, but no classes; a horizon has several values; mean and deviation belong to one.
    assert many([31.5, 40.0], [30, 41])[0] == ("true 30", "predicted 31.5")
    horizon = many([[1.0, 2.0, 3.0, 4.0]], [[1.5, 2.5, 3.5, 4.5]], values=[10.0])
    assert horizon == [("true 1.5, 2.5, 3.5, ...", "predicted 1, 2, 3, ...", "f = 10")]
    probe = Probe(torch.zeros(1, 2), torch.tensor([[1.5, 2.5]]))
    (found,) = captions(report(torch.tensor([[1.0, 2.0]]), [-1]), probe, None, 1)
    assert found.short == Short("true 1.5, ...", "pred. 1, ..."), "one line of a narrow column"
    assert many([[1.0, 0.5]], [1.25], targets=1) == [("true 1.25", "predicted 1, 0.5", "explained output 1")]


def explained(target: Any, outputs: Tensor, labels: Tensor, inputs: Tensor, task: str, **probe: Any) -> list[Caption]:
    """The captions of a model that returns these outputs."""

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return outputs[x.flatten(1)[:, 0].detach().long()] + 0.0 * x.flatten(1).sum(1).reshape(
                -1, *(1,) * (outputs.ndim - 1)
            )

    samples = Probe(inputs, labels, **probe)
    found = explain(Constant(), samples, ["Saliency"], [], target)
    assert found.task == task
    return captions(found, found.probe or samples, NAMES, len(found.ids))


def test_tags_show_the_word_its_tag_and_the_prediction() -> None:
    outputs = torch.tensor([[[0.0, 0.0, 0.0], [0.0, 2.0, 1.0]], [[9.0, 0.0, 0.0], [0.0, 0.0, 0.0]]])
    labels = torch.tensor([[-100, 2], [0, 1]])
    first, second = explained("label", outputs, labels, torch.arange(2.0).reshape(2, 1), "tokens")
    assert first.lines == ("position 1", "label 2 (two)", "predicted 1 (one) 67%", "f = 1")
    assert (first.wrong, first.short) == (True, Short("position 1: two", "one", "67%", True))
    assert second.lines[:2] == ("position 0", "label 0 (zero)")
    assert not second.wrong
    ids, made = torch.tensor([[1, 2]]), replace(report(torch.zeros(1, 0), [-1], [0]), task="tokens")
    facts = {"position": 1, "class": 2, "predicted": 2, "probability": 0.5}
    made = replace(made, explained={name: torch.tensor([value]) for name, value in facts.items()})
    text = Probe(ids, torch.tensor([[0, 2]]), modalities=(Text(vocabulary=["a", "b", "Paris"]),))
    assert captions(made, text, NAMES, 1)[0].lines == ("Paris", "label 2 (two)", "predicted 2 (two) 50%")
    assert sides(made, text, NAMES) == ("against", "for", "the tag")


def test_a_segmentation_shows_the_class_its_share_and_overlap() -> None:
    outputs = torch.tensor([[[[0.0, 0.0, 1.0, 1.0]], [[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]]])
    (found,) = explained("label", outputs, torch.tensor([[[1, 0, 0, 0]]]), torch.zeros(1, 4), "dense")
    assert found.lines == ("class 1 (one), 2 pixels (50%)", "IoU 50%", "f = 2")


def test_a_forecast_shows_the_true_and_predicted_value_of_what_is_explained() -> None:
    outputs, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.5, 2.5]])
    (total,) = explained("label", outputs, labels, torch.zeros(1, 4), "regression")
    assert total.lines == ("true 4 in all", "predicted 3")
    (step,) = explained(Horizon(-1), outputs, labels, torch.zeros(1, 4), "regression")
    assert step.lines == ("true 2.5 at step 1", "predicted 2")


def test_unknown_labels_are_neither_right_nor_wrong() -> None:
    (found,) = explained(
        "label", torch.tensor([[3.0, 3.0, -3.0]]), torch.tensor([[1, -1, 0]]), torch.zeros(1, 4), "multilabel"
    )
    assert (found.lines[0], found.lines[-1], found.wrong) == ("labels 0 (zero)", "f = 3", False)


def test_each_label_of_a_sample_has_its_own_title() -> None:
    found = explained(
        "label", torch.tensor([[3.0, -3.0, -3.0]]), torch.tensor([[1, 1, 0]]), torch.zeros(1, 4), "multilabel"
    )
    assert [each.short for each in found] == [
        Short("zero", share="95%", judged=True),
        Short("one", share="5%", judged=True),
    ]
    assert [each.wrong for each in found] == [False, True]
    assert found[1].lines[:2] == ("labels 0 (zero), 1 (one)", "sigmoid 1 (one) 5%")


def test_other_outputs_get_no_softmax() -> None:
    sphere = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    sphere /= sphere.norm(dim=1, keepdim=True)
    assert many(sphere * 3, None, names=None, values=[3.0] * 4)[0] == ("embedding", "f = 3")
    assert many(sphere, [0, 1, 2, 3], names=None, values=[1.0] * 4)[0] == ("embedding", "f = 1")
    # Ordinal: thresholds of one score (CORAL), and labels that count one class more than there are logits.
    coral = torch.tensor([[0.5], [-2.0], [4.0], [1.0]]) + torch.tensor([2.0, 0.0, -2.0])
    assert many(coral, [1, 0, 2, 1], names=None, values=[0.5] * 4)[0] == ("label 1", "f = 0.5")
    assert many(sphere[:, :3], [1, 0, 3, 1], names=None, values=[0.5] * 4)[2] == ("label 3", "f = 0.5")
    # Sums over pixels, with labels for each pixel.
    assert many([[400.0, 20.0]], torch.zeros(1, 8, 8, dtype=torch.long), values=[400.0]) == [("f = 400",)]


@pytest.mark.parametrize(
    ("outputs", "labels", "task"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 1]), "multiclass"),
        (torch.eye(3), torch.eye(3), "multilabel"),
        (torch.zeros(2), torch.tensor([-1, 1]), "regression"),
        (torch.zeros(2, 1), None, "other"),
        (torch.zeros(2, 5, 7), torch.zeros(2, 5), "other"),
        (torch.zeros(2, 0), torch.tensor([0, 1]), "other"),
        (torch.zeros(2, 3), torch.zeros(2, 2), "other"),
        (torch.zeros(2, 3), torch.zeros(2, dtype=torch.complex64), "other"),
        (torch.zeros(2, 3), torch.tensor([torch.nan, 1.0]), "regression"),
    ],
)
def test_a_task_is_recognised_by_shapes_and_labels(outputs: Tensor, labels: Tensor | None, task: str) -> None:
    assert task_of(outputs, labels) == task


def test_only_the_explained_number_is_taken_apart_for_narrow_columns() -> None:
    made = replace(report(torch.zeros(1, 2, 4, 4), [-1], [0]), values=torch.tensor([0.25]), task="reconstruction")
    alone, labelled = (
        captions(made, Probe(torch.zeros(1, 2), labels), None, 1)[0] for labels in (None, torch.tensor([3]))
    )
    assert (alone.lines, alone.short) == (("error = 0.25",), Short("error", "0.25"))
    assert (labelled.lines, labelled.short) == (("label 3", "error = 0.25"), Short("label 3", "error = 0.25"))
    assert _plain("a = 3", "predicted 2").short == Short("a = 3", "predicted 2")


def test_the_signs_of_maps_speak_for_the_label_the_prediction_one_class_or_the_output() -> None:
    outputs, labels = torch.tensor([[0.2, 0.7, 0.1], [0.9, 0.1, 0.0]]), torch.tensor([2, 0])
    probe = Probe(torch.zeros(2, 2), labels)

    def said(targets: list[int]) -> tuple[str, str, str]:
        return sides(report(outputs, targets), probe, NAMES)

    assert said([2, 0]) == ("against", "for", "the label")
    assert said([1, 0]) == ("against", "for", "the prediction")
    assert said([1, 1]) == ("against", "for", "one")
    assert said([-1, -1]) == said([0, 1]) == ("lowers", "raises", "the output")
    single = report(torch.tensor([0.5, -1.0]), [0, 0], [1, 0])
    assert sides(single, Probe(torch.zeros(2, 2), torch.tensor([1, 0])), None) == ("against", "for", "class 1")
