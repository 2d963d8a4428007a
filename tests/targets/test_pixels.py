"""Segmentations: which pixels are explained, what is known of them, and what a report keeps, against Captum by hand."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import captum.attr
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_explain import Probe, Report, draw, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain import targets as t
from lightning_explain.core.regions import EXPLAINED, LABELLED, PREDICTED, masks_of
from lightning_explain.store.report_files import load_reports, save_report
from lightning_explain.targets.tasks import settled

N, SIZE = 3, 8
IG = {"ig": m.IntegratedGradients(n_steps=200)}


def scenes(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Squares of class 1 (bright) and 2 (dark) on noise: images ``(N, 1, 8, 8)`` and labels ``(N, 8, 8)``."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.zeros(count, SIZE, SIZE, dtype=torch.long)
    labels[:, 1:4, 1:5], labels[:, 5:8, 4:8] = 1, 2
    noise = 0.5 * torch.randn(count, 1, SIZE, SIZE, generator=generator)
    return (noise + (labels == 1)[:, None] * 2.0 - (labels == 2)[:, None] * 2.0).double(), labels


@functools.cache
def fcn() -> nn.Module:
    """A fully convolutional network that was trained for a few steps; smooth, so that paths are integrated exactly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.Tanh(), nn.Conv2d(8, 3, 3, padding=1)).double()
        optimizer = torch.optim.Adam(net.parameters(), 0.03)
        for step in range(30):
            x, y = scenes(8, seed=step + 1)
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


def frozen(x: Tensor, class_: int) -> Callable[[Tensor], Tensor]:
    """The sum over the pixels that are predicted as a class at the sample, as Captum's tutorial writes it."""
    selected = (fcn()(x).argmax(1) == class_).double()
    return lambda moved: (fcn()(moved)[:, class_] * selected).sum((1, 2))


def moving(outputs: Tensor) -> Tensor:
    """The sum over the pixels that are predicted as class 1 at the moved sample."""
    return (outputs[:, 1] * (outputs.argmax(1) == 1)).sum((1, 2))


def test_the_frozen_region_is_complete_where_the_one_that_moves_is_not() -> None:
    x, labels = scenes(N)
    report, other = (explain(fcn(), Probe(x, labels), IG, [], target) for target in (t.Pixels(1), moving))
    for i in range(N):
        f, own = frozen(x[i : i + 1], 1), x[i : i + 1]
        by_hand = captum.attr.IntegratedGradients(f).attribute(own, n_steps=200)
        ours = report.attributions["ig"][i : i + 1]  # type: ignore[index]
        assert (ours - by_hand).abs().max() <= 1e-5 * by_hand.abs().max()
        assert abs(ours.sum() - (f(own) - f(0 * own))) <= 1e-3
    by_hand = captum.attr.IntegratedGradients(lambda x: moving(fcn()(x))).attribute(x, n_steps=200)
    assert (other.attributions["ig"] - by_hand).abs().max() <= 1e-5 * by_hand.abs().max()
    missed = by_hand.sum((1, 2, 3)) - (moving(fcn()(x)) - moving(fcn()(0 * x)))
    assert missed.abs().max() > 0.5


@pytest.mark.parametrize("limit", [1, 2, 64])
def test_a_report_says_where_the_class_is_explained_predicted_and_labelled(limit: int) -> None:
    x, labels = scenes(N)
    report = explain(fcn(), Probe(x, labels), ["Saliency"], [], max_examples_per_pass=limit)
    predicted, known = fcn()(x).argmax(1), report.explained
    # Both classes have twelve pixels.
    assert known["class"].tolist() == [1] * N
    for bit, expected in ((EXPLAINED, predicted == 1), (PREDICTED, predicted == 1), (LABELLED, labels == 1)):
        assert torch.equal(masks_of(known["region"], bit, (SIZE, SIZE)), expected)
    assert known["pixels"].tolist() == (predicted == 1).sum((1, 2)).tolist()
    union = ((predicted == 1) | (labels == 1)).sum((1, 2))
    assert torch.equal(known["overlap"], ((predicted == 1) & (labels == 1)).sum((1, 2)) / union)


def test_the_file_of_a_segmentation_keeps_a_byte_for_each_pixel_and_no_logits(tmp_path: Path) -> None:
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.arange(21.0).view(1, 21, 1, 1)

    x = torch.rand(4, 1, 32, 32)
    report = explain(Wide(), Probe(x, (x[:, 0] * 21).long()), ["Saliency"], [])
    path = save_report(report, tmp_path)
    maps = report.attributions["saliency"].nbytes  # type: ignore[union-attr]
    # 2 MB of 16 samples of 128 x 128; the logits would be 86 times as large as the region.
    assert path.stat().st_size - maps <= 2e6 * x.numel() / (16 * 128**2)
    (found,) = load_reports(path)
    assert torch.equal(found.explained["region"], report.explained["region"])
    assert torch.equal(found.values, report.values)


class Returned(nn.Module):
    """Returns what it makes of the scores of a network."""

    def __init__(self, make: Callable[[Tensor], Any], net: Any = None) -> None:
        super().__init__()
        self.make, self.net = make, net or fcn()

    def forward(self, x: Tensor) -> Any:
        return self.make(self.net(x))


def of(model: nn.Module, labels: Tensor, x: Tensor | None = None, **arguments: Any) -> Report:
    x = scenes(N)[0] if x is None else x
    return explain(model, Probe(x, labels), {"gradient": m.Saliency(abs=False)}, [], **arguments)


@pytest.mark.parametrize(
    "form",
    [lambda y: y, lambda y: y[:, None], lambda y: y.float(), lambda y: y[:, None].double(), lambda y: y.byte()],
    ids=["whole", "with a channel", "floating", "floating with a channel", "bytes"],
)
def test_labels_may_have_a_channel_and_be_floating(form: Callable[[Tensor], Tensor]) -> None:
    labels, expected = scenes(N)[1], of(fcn(), scenes(N)[1])
    report = of(fcn(), form(labels))
    assert torch.equal(report.attributions["gradient"], expected.attributions["gradient"])  # type: ignore[arg-type]
    assert torch.equal(report.explained["region"], expected.explained["region"])


def test_segmentations_of_torchvision_are_read() -> None:
    labels, expected = scenes(N)[1], of(fcn(), scenes(N)[1])
    report = of(Returned(lambda out: {"aux": out * 0, "out": out}), labels)
    assert torch.equal(report.attributions["gradient"], expected.attributions["gradient"])  # type: ignore[arg-type]


def test_logits_may_be_smaller_than_the_labels() -> None:
    x, labels = scenes(N)
    smaller = Returned(lambda out: F.avg_pool2d(out, 2))
    report = of(smaller, labels, target=t.Pixels(2, region="label"))
    inside = labels[:, 1::2, 1::2] == 2  # The nearest of an even number: the latter.
    own = x.requires_grad_()
    (expected,) = torch.autograd.grad((smaller(own)[:, 2] * inside).sum(), own)
    assert torch.allclose(report.attributions["gradient"], expected)  # type: ignore[arg-type]
    assert report.explained["region"].shape == (N, 4, 4)


@pytest.mark.parametrize("shape", [(N, SIZE, SIZE), (N, 1, SIZE, SIZE)], ids=["without channel", "with channel"])
@pytest.mark.parametrize("kind", [torch.float64, torch.long, torch.bool])
def test_one_channel_speaks_for_class_one(shape: tuple[int, ...], kind: torch.dtype) -> None:
    x, labels = scenes(N)
    model = Returned(lambda out: out[:, 1:2] - 1)
    report = of(model, (labels == 1).reshape(shape).to(kind))
    inside, own = model(x) > 0, x.requires_grad_()
    (expected,) = torch.autograd.grad((model(own) * inside).sum(), own)
    assert torch.allclose(report.attributions["gradient"], expected)  # type: ignore[arg-type]
    assert report.explained["class"].tolist() == [1] * N
    assert settled("auto", "label", model(x), (labels == 1).reshape(shape).to(kind)).name == "dense"
    shares = of(Returned(lambda out: (out[:, 1:2] - 1).sigmoid()), (labels == 1).reshape(shape).to(kind))
    assert torch.equal(shares.explained["region"], report.explained["region"]), "probabilities exceed one half"
    with pytest.raises(ValueError, match=r"only channel of the outputs speaks for class 1; use Pixels\(1\)"):
        of(model, (labels == 1).long(), target=t.Pixels(0))


def test_each_channel_may_be_a_class_by_itself() -> None:
    outputs = torch.tensor([[[[2.0, -1.0, 3.0]], [[1.0, 1.0, -2.0]]]]).expand(2, 2, 1, 3)
    nested = torch.tensor([[[[1.0, 1.0, 1.0]], [[1.0, 0.0, 0.0]]]])
    one_hot = torch.tensor([[[[1.0, 1.0, 0.0]], [[0.0, 0.0, 1.0]]]])
    # Of the nested one, class 0 has most pixels, and two of them exceed 0; of the one-hot one, class 0 is the background.
    assert t.Pixels().select(outputs[:1], nested).tolist() == [[0, -1, 2]]
    assert t.Pixels().select(outputs[:1], one_hot).tolist() == [[-1, 4, -1]]
    together = t.Pixels().select(outputs, torch.cat([nested, one_hot]))
    assert together.tolist() == [[0, -1, 2], [-1, 4, -1]], "alone as together"


def test_volumes_are_segmented_too() -> None:
    net, x = nn.Conv3d(1, 3, 3, padding=1).double(), torch.randn(2, 1, 4, 5, 6, dtype=torch.float64)
    labels = torch.randint(3, (2, 1, 4, 5, 6)).float()
    report = of(net, labels, x)
    assert report.explained["region"].shape == (2, 4, 5, 6)
    chosen, own = report.explained["class"], x.requires_grad_()
    outputs = net(own)
    inside = outputs.argmax(1) == chosen.view(2, 1, 1, 1)
    (expected,) = torch.autograd.grad((outputs[torch.arange(2), chosen] * inside).sum(), own)
    assert torch.allclose(report.attributions["gradient"], expected)  # type: ignore[arg-type]


def test_pixels_whose_label_is_ignored_are_no_error() -> None:
    outputs = torch.tensor([[[[0.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0, -1.0]]]])
    labels = torch.tensor([[[1, 255, -100, 1]]])
    found = t.Pixels().facts(outputs, labels, t.Pixels().select(outputs, labels))
    assert found["overlap"].tolist() == [0.5]
    assert settled("auto", "label", outputs, labels).name == "dense"


def test_channels_whose_label_is_ignored_are_no_positive_ones() -> None:
    outputs = torch.tensor([[[[-1.0, 1.0, 1.0, 1.0]], [[1.0, 1.0, -1.0, 1.0]]]])
    labels = torch.tensor([[[[0, 0, 255, 255]], [[1, 0, 1, 255]]]])
    target = t.Pixels(region="label")
    places = target.select(outputs, labels)
    assert places.tolist() == [[4, -1, 6, -1]]
    found = target.facts(outputs, labels, places)
    assert (found["class"].tolist(), found["pixels"].tolist()) == ([1], [2])
    assert found["overlap"].item() == pytest.approx(1 / 3), "one of three that are predicted or labelled, and known"
    one_hot = torch.tensor([[[[1, 0, 1, 255]], [[0, 1, 0, 255]]]])
    assert t.Pixels().select(outputs, one_hot).tolist() == [[4, -1, -1, -1]], "the score of class 1 is the largest"


@pytest.mark.parametrize("shape", [(N, SIZE, SIZE), (N, 1, SIZE, SIZE)], ids=["without channel", "with channel"])
def test_masks_of_0_and_255_are_those_of_0_and_1(shape: tuple[int, ...]) -> None:
    x, labels = scenes(N)
    model, mask = Returned(lambda out: out[:, 1:2] - 1), (labels == 1).reshape(shape)
    expected, report = of(model, mask.long()), of(model, (255 * mask).byte())
    assert torch.equal(report.attributions["gradient"], expected.attributions["gradient"])  # type: ignore[arg-type]
    assert torch.equal(report.explained["region"], expected.explained["region"])
    assert torch.equal(report.explained["overlap"], expected.explained["overlap"])
    line = settled("auto", "label", model(x), (255 * mask).byte(), inputs=(x,)).line
    assert line.endswith("if it is to be ignored, give target=Pixels(positive=1)")
    ignoring = of(model, (255 * mask).byte(), target=t.Pixels(positive=1))
    assert ignoring.explained["overlap"].tolist() == [0.0] * N


def _frame(labels: Tensor) -> None:
    labels[:, [0, -1]] = labels[:, :, [0, -1]] = 255


def _padding(labels: Tensor) -> None:
    labels[:2, SIZE // 2 :] = labels[1:, :, SIZE // 2 :] = 255


def _few(labels: Tensor) -> None:
    labels[:, 3, 2:5] = 255


@pytest.mark.parametrize(
    "form", [lambda y: y, lambda y: y[:, None], lambda y: y[:, None].float()], ids=["places", "channel", "float"]
)
@pytest.mark.parametrize("squeezed", [False, True])
@pytest.mark.parametrize("ignore", [_frame, _padding, _few])
def test_255_at_borders_or_few_places_is_ignored_where_nothing_is_labelled(
    ignore: Any, squeezed: bool, form: Any
) -> None:
    x, plain = scenes(N)
    labels = torch.zeros_like(plain)
    ignore(labels)
    model = Returned(lambda out: out[:, 1] - 1 if squeezed else out[:, 1:2] - 1)
    report = of(model, form(labels), target=t.Pixels(region="label"))
    expected = of(model, form(labels), target=t.Pixels(region="label", positive=1))
    assert torch.equal(report.explained["region"], expected.explained["region"])
    assert not masks_of(report.explained["region"], LABELLED, (SIZE, SIZE)).any()
    line = settled("auto", "label", model(x), form(labels), inputs=(x,)).line
    assert line.endswith("if it is the class, give target=Pixels(positive=255)")
    given = of(model, form(labels), target=t.Pixels(region="label", positive=255))
    assert torch.equal(given.explained["pixels"], (labels == 255).sum((1, 2)))


@pytest.mark.parametrize(
    "form",
    [lambda y: y, lambda y: y[:, 0], lambda y: (255 * y).round().long(), lambda y: (255 * y).byte(), lambda y: y.float()],
    ids=["channel", "places", "whole", "bytes", "float"],
)  # fmt: skip
def test_masks_with_soft_edges_are_refused_with_the_threshold_to_give(form: Any) -> None:
    x, labels = scenes(N)
    resized = F.interpolate((labels == 1)[:, None].double(), scale_factor=2, mode="bilinear")
    model, soft = Returned(lambda out: out[:, 1:2] - 1), form(resized)
    x = F.interpolate(x, scale_factor=2)
    with pytest.raises(ValueError, match=r"soft edges.*batch\[1\] > (0.5|128)\)\.long\(\).*target=Horizon\(\)"):
        of(model, soft, x)
    assert of(model, (soft > soft.max() / 2).long(), x).task == "dense"
    assert of(model, soft, x, target=t.Horizon()).values.shape == (N,)
    depth = torch.linspace(0, 1, soft.numel()).reshape(soft.shape)
    peaks = torch.exp(-(torch.linspace(-4, 4, soft.numel()) ** 2)).reshape(soft.shape)
    for numbers in (depth, (255 * depth).round(), peaks):
        assert of(model, numbers, x).task == "regression"


def test_a_given_target_keeps_what_it_says_of_a_squeezed_channel() -> None:
    x, labels = scenes(N)
    outputs = fcn()(x)[:, 1]
    for given, fitted in ((None, True), (False, False), (True, True)):
        assert t.Pixels(squeezed=given).fitted(outputs, labels % 2, (x,)).squeezed is fitted
    assert t.Pixels().fitted(fcn()(x), labels, (x,)).squeezed is None


@pytest.mark.parametrize("target", ["label", t.Pixels()], ids=["default", "given"])
@pytest.mark.parametrize("task", ["auto", "dense"])
@pytest.mark.parametrize(
    "form",
    [lambda y: y.float(), lambda y: y.long(), lambda y: y[:, None].long()],
    ids=["numbers", "classes", "with a channel"],
)
def test_a_channel_may_be_squeezed(target: Any, task: str, form: Any, tmp_path: Path) -> None:
    labels = scenes(N)[1] == 1
    expected = of(Returned(lambda out: out[:, 1:2] - 1), labels.long())
    report = of(Returned(lambda out: out[:, 1] - 1), form(labels), target=target, task=task)
    assert report.task == "dense"
    assert torch.equal(report.values, expected.values)
    assert torch.equal(report.attributions["gradient"], expected.attributions["gradient"])  # type: ignore[arg-type]
    for name, fact in expected.explained.items():
        assert torch.equal(report.explained[name], fact)
    assert np.array_equal(draw(report, "gradient"), draw(expected, "gradient"))


def test_by_default_a_squeezed_channel_has_the_same_layer_and_method() -> None:
    x, labels = scenes(N)
    maps = [
        explain(Returned(make), Probe(x, (labels == 1).long()), metrics=[]).attributions["cam"]
        for make in (lambda out: out[:, 1] - 1, lambda out: out[:, 1:2] - 1)
    ]
    assert torch.equal(*maps)  # type: ignore[arg-type]


def test_a_volume_may_be_squeezed_and_labels_of_a_series_are_none() -> None:
    x = torch.randn(2, 1, 4, 6, 6, dtype=torch.float64)
    report = of(nn.Sequential(nn.Conv3d(1, 1, 3, padding=1).double(), nn.Flatten(1, 2)), (x[:, 0] > 0).long(), x)
    assert (report.task, report.explained["region"].shape) == ("dense", (2, 4, 6, 6))
    series = torch.randn(2, 3, 8)
    assert settled("auto", "label", series, (series > 0).long(), inputs=(series,)).name == "multilabel"


@pytest.mark.parametrize(
    ("labels", "name"),
    [(torch.rand(2, 1, 4, 4), "other"), (torch.rand(2, 3, 4, 4), "regression"), (torch.full((2, 4, 4), 0.5), "other")],
)
def test_labels_that_are_no_classes_are_no_segmentation(labels: Tensor, name: str) -> None:
    assert settled("auto", "label", torch.randn(2, 3, 4, 4), labels).name == name


def test_without_masks_scores_are_those_of_the_labels_region_of_the_explained_class() -> None:
    x, labels = scenes(N)
    metrics = [q.RelevanceMass(), q.PointingGame()]
    for target in (t.Pixels(1), t.Pixels(2)):
        own = explain(fcn(), Probe(x, labels), ["InputXGradient"], metrics, target)
        masked = Probe(x, labels, masks=labels == target.class_)
        expected = explain(fcn(), masked, ["InputXGradient"], metrics, target)
        assert own.scores.keys() == expected.scores.keys()
        for name in own.scores:
            assert torch.equal(own.scores[name]["input_x_gradient"], expected.scores[name]["input_x_gradient"])
    with pytest.raises(ValueError, match="it needs masks"):
        explain(fcn(), Probe(x), ["InputXGradient"], metrics, t.Pixels(1))


def test_smaller_regions_are_scored_at_the_size_of_the_image() -> None:
    x, labels = scenes(N)
    smaller = Returned(lambda out: F.avg_pool2d(out, 2))
    few = labels[:, 1::2, 1::2]
    report = explain(smaller, Probe(x, few), ["InputXGradient"], [q.RelevanceMass()], t.Pixels(1))
    maps = report.attributions["input_x_gradient"].clamp(min=0)  # type: ignore[union-attr]
    inside = (few == 1).repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None]
    share = (maps * inside).sum((1, 2, 3)) / maps.sum((1, 2, 3))
    assert torch.allclose(report.scores["relevance_mass"]["input_x_gradient"], share)


class Bypassed(nn.Module):
    """A U-Net in small, with a pool of another size beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.inner = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, 2, 1)
        self.pool, self.up, self.head = nn.AdaptiveAvgPool2d(2), nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        early = self.down(x)
        inner = self.inner(early)
        inner = inner + F.interpolate(self.pool(inner), inner.shape[2:])
        return self.head(torch.cat([early, self.up(inner)], 1))


def test_grad_cam_takes_the_bottleneck() -> None:
    x, labels = scenes(N)
    net = Bypassed().double()
    found = explain(net, Probe(x, labels), {"cam": m.LayerGradCam()}, [])
    named = explain(net, Probe(x, labels), {"cam": m.LayerGradCam("inner")}, [])
    assert torch.equal(found.attributions["cam"], named.attributions["cam"])  # type: ignore[arg-type]
