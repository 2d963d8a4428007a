"""Targets that know the sample: the defaults of tasks, each against Captum by hand, and how they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import captum.attr
import pytest
import torch
from torch import Tensor, nn

from lightning_explain import ExplanationMonitor, Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain import targets as t

N, T, C = 4, 5, 3
METHODS = {"ig": m.IntegratedGradients(n_steps=8), "gradient": m.Saliency(abs=False)}
TAGS = torch.tensor([[-100, 2, 1, 0, 0], [1, 2, 0, 0, 0], [-100, -100, -100, 0, 1], [-100] * 5])
"""The first labelled position of each: 1, 0, 3, none."""
POSITIVE = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 1]])
ENTRIES = [(0, 0), (0, 2), (1, 1), (2, -1), (3, 0), (3, 1), (3, 2)]
"""Each sample once for each of its positive labels."""
SEGMENTS = torch.tensor([[1, 1, 2], [0, 0, 2], [0, 0, 0], [-100, 1, 2]]).reshape(N, 1, 3)


class Last(nn.Module):
    """Exchanges the last two dimensions, or arranges the last in rows."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, self.shape)


def network(*shape: int) -> nn.Module:
    """Six features in, outputs ``(N, *shape)`` out; smooth, so that gradients differ along the path."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, torch.Size(shape).numel()), Last(shape)]
    return nn.Sequential(*layers).double()


def features() -> Tensor:
    return torch.randn(N, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def report(net: nn.Module, labels: Tensor | None, target: Any = "label", **options: Any) -> Report:
    return explain(net, Probe(features(), labels), METHODS, [], target, **options)


def by_captum(
    net: nn.Module, one: Callable[[int], Callable[[Tensor], Tensor]], samples: Sequence[int] = range(N)
) -> dict[str, Tensor]:
    """Each sample by itself, with a wrapper of the model for its own number, as it is written by hand."""
    found: dict[str, list[Tensor]] = {"ig": [], "gradient": []}
    for i, x in enumerate(features()[list(samples)].split(1)):
        f = one(i)
        found["ig"].append(captum.attr.IntegratedGradients(lambda x, f=f: f(net(x))).attribute(x, n_steps=8))
        found["gradient"].append(
            captum.attr.Saliency(lambda x, f=f: f(net(x))).attribute(x.requires_grad_(), abs=False)
        )
    return {name: torch.cat(maps) for name, maps in found.items()}


def check(found: Report, expected: dict[str, Tensor]) -> None:
    for name, value in expected.items():
        # Captum's step sizes are in float32.
        tolerance = 1e-10 if name == "gradient" else 1e-6
        assert (found.attributions[name] - value).abs().max() <= tolerance * value.abs().max()


def of_positive(place: int) -> Callable[[Tensor], Tensor]:
    i, label = ENTRIES[place]
    if label < 0:  # None is positive: the largest, on the sample itself.
        label = int(network(C)(features())[i].argmax())
    return lambda y: y[:, label]


def of_positives(i: int) -> Callable[[Tensor], Tensor]:
    if i == 2:  # None is positive: the largest, on the sample itself.
        largest = int(network(C)(features())[2].argmax())
        return lambda y: y[:, largest]
    return lambda y: y[:, POSITIVE[i].bool()].sum(1)


@pytest.mark.parametrize("labels", [POSITIVE, POSITIVE.float(), POSITIVE.bool()], ids=["int", "float", "bool"])
def test_of_several_labels_each_positive_one_is_explained_by_itself(labels: Tensor) -> None:
    found = report(network(C), labels)
    samples = [i for i, _ in ENTRIES]
    check(found, by_captum(network(C), of_positive, samples))
    largest = int(network(C)(features())[2].argmax())
    assert found.targets.tolist() == [label if label >= 0 else largest for _, label in ENTRIES]
    assert found.samples.tolist() == samples
    columns, lines = found.table()
    assert [line[columns.index("sample")] for line in lines[::2]] == samples
    assert found.probe is not None
    assert torch.equal(found.probe.targets, labels[torch.tensor(samples)])  # type: ignore[arg-type]


def test_a_label_is_explained_alike_whatever_the_others_are() -> None:
    noisy = {"smooth": m.NoiseTunnel(m.Saliency(abs=False), nt_samples=2)}
    whole, alone = (
        explain(network(C), Probe(features()[rows], POSITIVE[rows], rows), noisy, [], t.Positive(most))
        for rows, most in ((torch.arange(N), 4), (torch.tensor([0, 3]), 2))
    )
    same = [whole.ids.tolist().index(entry) for entry in alone.ids.tolist()]
    assert torch.allclose(whole.attributions["smooth"][same], alone.attributions["smooth"], rtol=1e-10)
    assert len(alone.ids) == 4


def test_the_sum_of_the_positive_labels_is_explained_where_it_is_asked_for() -> None:
    found = report(network(C), POSITIVE, t.Positive(0))
    check(found, by_captum(network(C), of_positives))
    assert found.targets[2] == network(C)(features())[2].argmax()
    assert found.targets[0] == -1


def test_where_entries_cannot_be_made_the_sum_of_the_labels_is_explained_and_said() -> None:
    own = {"own": m.FeatureAblation(feature_mask=torch.arange(6).expand(N, 6))}
    with pytest.warns(
        UserWarning, match="explained by their sum, as one map: 'own' has a feature mask or baselines for each"
    ):
        found = explain(network(C), Probe(features(), POSITIVE), own, [])
    same = explain(network(C), Probe(features(), POSITIVE), {"own": m.FeatureAblation()}, [], t.Positive(0))
    assert torch.equal(found.attributions["own"], same.attributions["own"])  # type: ignore[arg-type]
    with pytest.warns(UserWarning, match="the ids of the samples are too large to number their labels"):
        explain(network(C), Probe(features(), POSITIVE, ids=2**61 + torch.arange(N)), ["Saliency"], [])


@pytest.mark.parametrize("shape", [(4,), (4, 2)], ids=["steps", "steps and channels"])
def test_of_a_forecast_the_sum_of_all_steps_is_explained(shape: tuple[int, ...]) -> None:
    net = network(*shape)
    check(report(net, torch.randn(N, *shape)), by_captum(net, lambda i: lambda y: y.flatten(1).sum(1)))
    step = by_captum(net, lambda i: lambda y: y[:, -1].reshape(len(y), -1).sum(1))
    check(report(net, None, t.Horizon(-1)), step)


def of_tag(net: nn.Module, last: bool) -> Callable[[int], Callable[[Tensor], Tensor]]:
    clean = net(features()) if last else net(features()).mT
    places = [(1, 2), (0, 1), (3, 0), (0, int(clean[3, 0].argmax()))]
    return lambda i: lambda y: (y if last else y.mT)[:, places[i][0], places[i][1]]


@pytest.mark.parametrize("shape", [(T, C), (C, T)], ids=["classes last", "classes first"])
def test_of_tags_the_first_labelled_one_is_explained(shape: tuple[int, int]) -> None:
    net = network(*shape)
    check(report(net, TAGS), by_captum(net, of_tag(net, shape == (T, C))))
    # Any number of samples in a pass, and any one of them alone, chooses the same.
    check(report(net, TAGS, max_examples_per_pass=1), by_captum(net, of_tag(net, shape == (T, C))))


def test_a_position_is_that_of_captums_tuple() -> None:
    net, found = network(T, C), report(network(T, C), TAGS, t.Position(-2))
    labels = [0, 0, 0, int(net(features())[3, 3].argmax())]
    target = [(3, label) for label in labels]
    expected = captum.attr.IntegratedGradients(net).attribute(features(), target=target, n_steps=8)
    check(found, {"ig": expected})


def of_segment(net: nn.Module) -> Callable[[int], Callable[[Tensor], Tensor]]:
    predicted = net(features()).argmax(1)

    def one(i: int) -> Callable[[Tensor], Tensor]:
        labels = SEGMENTS[i]
        counts = (labels if (labels > 0).any() else predicted[i]).clamp(min=0).flatten().bincount(minlength=C)[1:]
        chosen = int(counts.argmax()) + 1 if counts.any() else 0
        region = predicted[i] == chosen
        region = region if region.any() else labels == chosen
        return lambda y: y[:, chosen, region].sum(1)

    return one


def test_of_a_segmentation_the_class_is_explained_where_it_is_predicted() -> None:
    net = network(C, 1, 3)
    check(report(net, SEGMENTS), by_captum(net, of_segment(net)))
    background = by_captum(net, lambda i: lambda y: y[:, 0, net(features()).argmax(1)[i] == 0].sum(1))
    seen = (net(features()).argmax(1) == 0).flatten(1).any(1)
    found = report(net, None, t.Pixels(0)).attributions["gradient"]
    assert torch.allclose(found[seen], background["gradient"][seen], rtol=1e-10)
    assert seen.any()


def test_labels_of_one_class_each_are_explained_as_ever() -> None:
    labels = torch.tensor([0, 1, 2, 0])
    found = report(network(C), labels)
    assert found.targets.tolist() == labels.tolist()
    smooth = nn.functional.one_hot(labels, C) * 0.9 + 0.1 / C
    check(report(network(C), smooth), dict(found.attributions))


@pytest.mark.parametrize(
    ("target", "labels", "shape", "message"),
    [
        ("label", torch.rand(N, 2), (C,), r"needs integer labels \(4,\)"),
        (t.Position(), torch.zeros(N, 2), (T, C), r"Position\(position='label'\) needs outputs \(N, T, C\)"),
        (t.Position(T), TAGS, (T, C), "is outside of the outputs with 5 positions; use -5 to 4"),
        (t.Position(), TAGS + 5, (T, C), "got the label 7 for 3 classes"),
        (t.Horizon(4), None, (4,), r"is outside of the outputs \(4, 4\); use -4 to 3"),
        (t.Positive(), None, (C,), r"needs labels \(4, 3\) as the outputs, got none"),
        (t.Pixels(3), SEGMENTS, (C, 1, 3), "outputs with 3 classes; use 0 to 2"),
        (t.Pixels(), SEGMENTS + 0.5, (C, 1, 3), r"needs outputs \(N, C, h, w\) and whole labels"),
    ],
)
def test_what_does_not_fit_is_refused(target: Any, labels: Tensor | None, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report(network(*shape), labels, target)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: t.Position("first"), TypeError, "position='first'"),
        (lambda: t.Horizon(1.5), TypeError, "step=1.5"),
        (lambda: t.Pixels(region="all"), ValueError, "region='all'"),
        (lambda: t.Pixels(-1), TypeError, "class_=-1"),
        (lambda: t.Positive(-1), ValueError, "most=-1"),
        (lambda: ExplanationMonitor(target={"name": "Horizont"}), ValueError, "no target 'Horizont'.*Horizon"),
        (lambda: ExplanationMonitor(target={"step": {"size": 1}}), TypeError, "mapping of targets again"),
    ],
)
def test_a_wrong_argument_is_refused(make: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        make()


def test_targets_are_written_in_configurations() -> None:
    pytest.importorskip("omegaconf")
    instantiate = pytest.importorskip("hydra.utils").instantiate
    named = ExplanationMonitor.from_config({"target": {"name": "Horizon", "step": "sum"}})
    assert named._explainer.target == t.Horizon("sum")
    config = {"_target_": "lightning_explain.targets.Position", "position": -1}
    built = instantiate({"_target_": "lightning_explain.ExplanationMonitor", "target": config})
    assert built._explainer.target == t.Position(-1)
    assert ExplanationMonitor(target=t.Positive)._explainer.target == t.Positive()
