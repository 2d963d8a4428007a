"""The caption of each sample."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_explain.core.probe import Probe
from lightning_explain.core.report import Report
from lightning_explain.render.captions import Caption, captions, probabilities

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


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_an_output_of_one_number_is_shown_as_f(shape: tuple[int, ...]) -> None:
    outputs = torch.full(shape, 0.7341)
    assert one(outputs, 0, predictions=[1]) == Caption(("f = 0.734",))
    assert one(outputs, 0, label=0, predictions=[1]) == Caption(("label 0 (zero)", "f = 0.734"), wrong=False)


@pytest.mark.parametrize("label", [0.5, [0, 1], -100])
def test_targets_that_are_no_class_are_no_label(label: Any) -> None:
    assert one(torch.tensor([[0.2, 0.7, 0.1]]), 1, label=label) == Caption(("predicted 1 (one) 70%",))


def test_a_row_about_which_nothing_is_known_is_named_by_its_id() -> None:
    assert one(torch.zeros(1, 2, 4, 4), -1, predictions=[0]) == Caption(("sample 40",))


def test_a_class_without_a_name_is_a_number() -> None:
    found = captions(report(torch.tensor([[0.0, 0.0, 9.0]]), [2]), Probe(torch.zeros(1, 2)), ["a"], 1)
    assert found[0].lines[0].startswith("predicted 2 ")
    assert captions(report(torch.tensor([[9.0, 0.0]]), [0]), Probe(torch.zeros(1, 2)), ["0", "1"], 1)[0].lines == (
        "predicted 0 >99%",
    )


def test_a_probability_is_rounded_to_certainty_only_when_it_is_one() -> None:
    assert one(torch.tensor([[0.0, 0.999, 0.001]]), 1).lines == ("predicted 1 (one) >99%",)
    assert one(torch.tensor([[0.0, 1.0, 0.0]]), 1).lines == ("predicted 1 (one) 100%",)


def test_probabilities_of_logits_are_their_softmax() -> None:
    logits = torch.randn(5, 3)
    torch.testing.assert_close(probabilities(logits), logits.double().softmax(1))


def test_probabilities_stay_as_they_are() -> None:
    shares = torch.rand(5, 3).softmax(1)
    torch.testing.assert_close(probabilities(shares), shares.double())


def test_positive_numbers_that_do_not_sum_to_one_are_logits() -> None:
    logits = torch.tensor([[0.5, 0.5], [3.0, 1.0]])
    torch.testing.assert_close(probabilities(logits), logits.double().softmax(1))


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2, 4, 4)])
def test_other_outputs_have_no_probabilities(shape: tuple[int, ...]) -> None:
    assert probabilities(torch.rand(shape)) is None
