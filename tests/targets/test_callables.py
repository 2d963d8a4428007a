"""A callable target that knows its samples: the numbers of Captum with a wrapper of the model, whatever runs together."""

from __future__ import annotations

from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn

from lightning_explain import Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain.model.clean import CleanSamples, packed, takes_samples, unpacked

N, C = 5, 3
METHODS = {"ig": m.IntegratedGradients(n_steps=8), "ablation": m.FeatureAblation()}
LABELS = torch.tensor([2, 0, 1, 1, 0])
IDS = torch.tensor([7, 3, 11, 5, 2])
X = torch.randn(N, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, C)).double()


def margin(outputs: Tensor, sample: CleanSamples) -> Tensor:
    """The label against the class that is predicted at the sample itself, by the id and as clean confidence has it."""
    assert sample.label is not None
    rows = torch.arange(len(outputs))
    weight = sample.outputs.softmax(1).amax(1) * sample.id
    return (outputs[rows, sample.label] - 2 * outputs[rows, sample.prediction]) * weight


def found(rows: Any, limit: int = 64, target: Any = margin) -> Report:
    probe = Probe(X[rows], LABELS[rows], IDS[rows])
    return explain(network(), probe, METHODS, [], target, max_examples_per_pass=limit)


def maps(report: Report, name: str) -> Tensor:
    value = report.attributions[name]
    assert isinstance(value, Tensor)
    return value


def test_the_numbers_are_those_of_captum_with_a_wrapper() -> None:
    net, whole = network(), found(slice(None))
    clean = net(X).detach()
    for i in range(N):
        weight, predicted = clean[i].softmax(0).max() * IDS[i], clean[i].argmax()

        def f(x: Tensor, i: int = i, weight: Tensor = weight, predicted: Tensor = predicted) -> Tensor:
            return (net(x)[:, LABELS[i]] - 2 * net(x)[:, predicted]) * weight

        x = X[i : i + 1]
        by_captum = {
            # Captum's steps are in float32.
            "ig": (captum.attr.IntegratedGradients(f).attribute(x, n_steps=8), 1e-6),
            "ablation": (captum.attr.FeatureAblation(f).attribute(x), 1e-10),
        }
        for name, (expected, tolerance) in by_captum.items():
            assert torch.allclose(maps(whole, name)[i], expected[0], rtol=tolerance, atol=tolerance), name
        assert torch.allclose(whole.values[i], f(x)[0])
    assert whole.targets.tolist() == [-1] * N


@pytest.mark.parametrize(("rows", "limit"), [([4, 2, 0, 1, 3], 64), ([0, 1, 2, 3, 4], 2), ([3], 1)])
def test_neither_order_nor_chunks_nor_company_matter(rows: list[int], limit: int) -> None:
    whole, other = found(slice(None)), found(rows, limit)
    for name in METHODS:
        assert torch.allclose(maps(other, name), maps(whole, name)[rows], rtol=1e-10)


def test_without_labels_there_is_none() -> None:
    seen = []

    def first(outputs: Tensor, sample: CleanSamples) -> Tensor:
        seen.append(sample.label)
        return outputs[:, 0]

    explain(network(), Probe(X), ["Saliency"], [], first)
    assert set(seen) == {None}


@pytest.mark.parametrize("dtype", [torch.bool, torch.int32, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
def test_what_is_packed_is_unpacked(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    given = CleanSamples(torch.randn(4, 2, 2), torch.randn(4, *shape).to(dtype), torch.tensor([2**60, -1, 0, 3]))
    again = unpacked(packed(given)[1:3], torch.empty(2, 2, 2))
    assert given.label is not None
    assert again.label is not None
    assert again.label.dtype == dtype
    for one, other in ((again.outputs, given.outputs), (again.label, given.label), (again.id, given.id)):
        assert torch.equal(one, other[1:3])


def test_a_callable_of_outputs_alone_is_called_with_these() -> None:
    assert takes_samples(margin)
    assert not takes_samples(lambda outputs, k=1: outputs[:, k])
    assert not takes_samples(torch.sum)
    assert torch.equal(found([0, 1], target=lambda outputs, k=1: outputs[:, k]).values, network()(X[:2])[:, 1])


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda outputs, sample: outputs[:, sample.lable], "no attribute 'lable'.* Give .*a callable .outputs. or .outputs, sample."),
        (lambda outputs, sample: outputs, r"chose \(5, 3\) from outputs \(5, 3\)"),
        (lambda outputs, sample, more: outputs[:, 0], "Give .*a callable .outputs. or .outputs, sample."),
    ],
)  # fmt: skip
def test_what_does_not_fit_says_what_does(target: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        found(slice(None), target=target)
