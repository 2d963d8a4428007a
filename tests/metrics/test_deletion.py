from __future__ import annotations

from itertools import permutations

import pytest
import torch
from torch import Tensor

from given import Given, Linear
from lightning_explain import Probe, explain
from lightning_explain import metrics as q
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.metrics.deletion import area, counts, places
from networks import samples, trained

# f(x) - f(0) = 1 - 2 + 3 + 4 = 6: what each number contributes is known.
W, X = torch.tensor([1.0, -2.0, 3.0, 4.0]), torch.ones(1, 4)
BOTH = {"deletion": q.Deletion(n_steps=4), "insertion": q.Insertion(n_steps=4)}


def scored(
    maps: dict[str, Given], metrics: dict[str, object], w: Tensor = W, x: Tensor = X
) -> dict[str, dict[str, float]]:
    report = explain(Linear(w), Probe(x), maps, metrics)
    return {key: {name: v.item() for name, v in by.items()} for key, by in report.scores.items()}


def test_the_perfect_and_the_worst_map_of_a_linear_model_have_the_analytic_areas() -> None:
    found = scored({"perfect": Given(W), "worst": Given(-W)}, BOTH)
    # Deleted 4, 3, 1, -2 the output is 6 2 -1 -2 0; deleted -2, 1, 3, 4 it is 6 8 7 4 0.
    assert found["deletion"] == pytest.approx({"perfect": (3 + 2 - 1 - 2) / 4 / 6, "worst": (3 + 8 + 7 + 4) / 4 / 6})
    # Inserted they give 0 4 7 8 6 and 0 -2 -1 2 6.
    assert found["insertion"] == pytest.approx({"perfect": (4 + 7 + 8 + 3) / 4 / 6, "worst": (-2 - 1 + 2 + 3) / 4 / 6})


def test_no_other_ranking_is_better_than_the_perfect_one_or_worse_than_the_worst() -> None:
    maps = {str(order): Given(torch.tensor(order, dtype=torch.float32)) for order in permutations(range(4))}
    found = scored({"perfect": Given(W), "worst": Given(-W), **maps}, BOTH)
    for key, better, worse in (("deletion", min, max), ("insertion", max, min)):
        assert better(found[key].values()) == pytest.approx(found[key]["perfect"])
        assert worse(found[key].values()) == pytest.approx(found[key]["worst"])


def test_many_equal_pixels_fall_in_a_straight_line() -> None:
    w = torch.ones(3, 8, 8)
    found = scored(
        {"any": Given(torch.randn(3, 8, 8))}, {"d": q.Deletion(), "i": q.Insertion()}, w, torch.ones(1, 3, 8, 8)
    )
    assert found == {"d": {"any": pytest.approx(0.5)}, "i": {"any": pytest.approx(0.5)}}


def test_without_normalization_the_area_is_in_units_of_output() -> None:
    metrics = {"deletion": q.Deletion(n_steps=4, normalize=False), "insertion": q.Insertion(n_steps=4, normalize=False)}
    found = scored({"perfect": Given(W)}, metrics)
    assert found["deletion"]["perfect"] == pytest.approx(2 / 4 + 2), "f has the offset 2"
    assert found["insertion"]["perfect"] == pytest.approx(22 / 4 + 2)


def test_a_negative_gap_does_not_turn_better_into_worse() -> None:
    w = torch.tensor([1.0, -4.0, -1.0, -2.0])
    found = scored({"perfect": Given(w), "worst": Given(-w)}, BOTH, w)
    assert found["deletion"]["perfect"] < found["deletion"]["worst"]
    assert found["insertion"]["perfect"] > found["insertion"]["worst"]


def test_the_baseline_is_what_pixels_are_replaced_by() -> None:
    baseline = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    found = scored({"it": Given(W)}, {"d": q.Deletion(n_steps=4, baselines=baseline)})
    # Only -2, 3 and 4 change: 5 1 -2 -2 0.
    assert found["d"]["it"] == pytest.approx((2.5 + 1 - 2 - 2) / 4 / 5)


def test_the_channels_of_a_pixel_are_replaced_together_and_inputs_are_ranked_together() -> None:
    image, table = torch.tensor([[[1.0, 5.0]], [[1.0, -2.0]]]), torch.tensor([4.0])
    probe = Probe((torch.ones(1, 2, 1, 2), torch.ones(1, 1)))
    report = explain(Linear(image, table), probe, {"it": Given(image, table)}, [q.Deletion(n_steps=3)])
    # Units 2, 3 and 4 of the gap 9: 9 5 2 0.
    assert report.scores["deletion"]["it"].item() == pytest.approx((4.5 + 5 + 2) / 3 / 9)


def test_samples_without_a_ranking_or_without_a_gap_are_not_finite() -> None:
    x = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    values = torch.tensor([[1.0, 2.0], [1.0, torch.nan], [1.0, 2.0]])
    maps = {"it": Given(values, by_sample=True)}
    report = explain(Linear(torch.ones(2)), Probe(x), maps, [q.Deletion(), q.Insertion()])
    for found in report.scores.values():
        assert found["it"].isfinite().tolist() == [True, False, False]


def test_ranking_steps_and_area() -> None:
    assert places(torch.tensor([[0.0, 3.0, 3.0, -1.0]])).tolist() == [[2, 0, 1, 3]]
    assert counts(4, 100).tolist() == [0, 1, 2, 3, 4]
    assert counts(10, 4).tolist() == [0, 2, 5, 8, 10]
    assert area(torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([0, 1, 4])).tolist() == [0.25 + 0.75 / 2]


@pytest.mark.parametrize("limit", [1, 5, 64])
def test_steps_are_evaluated_many_at_once_and_never_above_the_limit(limit: int) -> None:
    x, y = samples(8)
    model, calls = trained(), []
    model.register_forward_hook(lambda module, arguments, output: calls.append(len(output)))
    maps = {"a": Given(torch.randn(1, 8, 8)), "b": Given(torch.randn(1, 8, 8))}
    report = Explainer(maps, {"deletion": q.Deletion(n_steps=16)}, limit=limit).explain(model, Probe(x, y))
    assert sum(calls) == report.passes.forward == 8 + 8 + 2 * 15 * 8, "the samples, their baselines, the steps"
    assert max(calls) == limit
    assert report.passes.backward == 0


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"n_steps": 0}, ValueError, r"\(n_steps=0\); give a whole number of at least 1"),
        ({"baselines": "blck"}, ValueError, "did you mean 'black'"),
        ({"normalize": 1}, TypeError, r"\(normalize=1\); give True or False"),
    ],
)
@pytest.mark.parametrize("metric", [q.Deletion, q.Insertion])
def test_arguments_are_checked(metric: type, arguments: dict[str, object], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        metric(**arguments)
