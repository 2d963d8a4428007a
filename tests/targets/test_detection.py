"""Detection: the score of an object that is found again, against Captum by hand; lists of images of one size and of several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import captum.attr
import pytest
import torch
from detectors import SIDE, Body, faster_rcnn, scenes, ssd_lite
from torch import Tensor, nn
from torchvision.ops import box_iou

from lightning_explain import Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain import targets as t
from lightning_explain.core.serialization import fingerprint, probe_state
from lightning_explain.core.verdict import RefusedError
from lightning_explain.probes.binding import samples_of

METHODS = {"gradient": m.Saliency(abs=False), "ig": m.IntegratedGradients(n_steps=4)}
ONE_SIZE, SEVERAL = [(SIDE, SIDE)] * 3, [(SIDE, SIDE), (SIDE, 2 * SIDE), (2 * SIDE, SIDE)]


def best(net: nn.Module, image: Tensor) -> tuple[Tensor, Tensor]:
    """The box and the label of the detection with the highest score."""
    with torch.no_grad():
        found = net([image])[0]
    return found["boxes"][0], found["labels"][0]


def by_hand(net: nn.Module, image: Tensor) -> Callable[[Tensor], Tensor]:
    """A wrapper of the model for one image, as it is written for Captum."""
    box, label = best(net, image)

    def score(x: Tensor) -> Tensor:
        found = net([x])[0]
        overlap = box_iou(box[None], found["boxes"].detach())[0]
        overlap = overlap * ((found["labels"] == label) & (overlap >= 0.5))
        match = (overlap * found["scores"].detach()).argmax()
        return found["scores"][match] * bool(overlap[match] > 0)

    return lambda x: torch.stack([score(one) for one in x])


@pytest.mark.parametrize("make", [faster_rcnn, ssd_lite])
@pytest.mark.parametrize("sizes", [ONE_SIZE, SEVERAL], ids=["one size", "several sizes"])
def test_maps_are_those_of_captum_with_a_wrapper_by_hand(make: Any, sizes: list[tuple[int, int]]) -> None:
    net, images = make().double(), [image.double() for image in scenes(sizes)[0]]
    report = explain(net, Probe(images), METHODS, [], t.Detection(box="best"))
    for i, image in enumerate(images):
        f, x = by_hand(net, image), image[None].requires_grad_()
        expected = {
            "gradient": captum.attr.Saliency(f).attribute(x, abs=False),
            "ig": captum.attr.IntegratedGradients(f).attribute(x, n_steps=4),
        }
        for name, own in expected.items():
            found = report.attributions[name][i]
            assert own.any()
            torch.testing.assert_close(
                found[:, : image.shape[1], : image.shape[2]],
                own[0],
                rtol=1e-5,
                atol=1e-5 * float(own.detach().abs().max()),
            )
            assert not found[:, image.shape[1] :].any()
            assert not found[:, :, image.shape[2] :].any()
        torch.testing.assert_close(report.values[i], f(x)[0].detach())


def test_images_do_not_influence_each_other() -> None:
    # In float64, because the nearly equal scores of an untrained network change places by rounding.
    net, (images, targets) = faster_rcnn().double(), scenes(SEVERAL)
    images = [image.double() for image in images]
    together = explain(net, Probe(images, targets), METHODS, [])
    for i, image in enumerate(images):
        alone = explain(net, Probe([image], targets[i : i + 1]), METHODS, [])
        torch.testing.assert_close(alone.values, together.values[i : i + 1])
        own = together.attributions["ig"][i : i + 1, :, : image.shape[1], : image.shape[2]]
        torch.testing.assert_close(alone.attributions["ig"], own, rtol=1e-10, atol=1e-12)


def test_the_detector_stays_what_it_was() -> None:
    net, (images, targets) = faster_rcnn(box_score_thresh=0.9), scenes(ONE_SIZE)
    before = [{key: value.clone() for key, value in found.items()} for found in net(images)]
    state = {name: value.clone() for name, value in net.state_dict().items()}
    report = explain(net, Probe(images, targets), METHODS, [q.Infidelity(n_perturb_samples=16)])
    # Below the threshold, scores are explained all the same.
    assert (report.values > 0).all()
    assert (report.values < 0.9).all()
    assert net.roi_heads.score_thresh == 0.9
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(a[key], b[key]) for a, b in zip(before, net(images), strict=True) for key in a)


def detections(*rows: tuple[float, ...]) -> Tensor:
    return torch.tensor([(*rows, (-1.0,) * 6)])


TWO = detections((0, 0, 10, 10, 0.8, 1), (20, 20, 30, 30, 0.6, 2), (26, 20, 36, 30, 0.1, 2))
ON_SECOND = torch.tensor([[[23.2, 20, 33.2, 30, 2], [0, 0, 5, 5, 1], [-1] * 5]])
NOWHERE = torch.tensor([[[40.0, 40, 60, 60, 2]]])


@pytest.mark.parametrize(
    ("target", "labels", "score"),
    [
        (t.Detection(), None, 0.8),
        (t.Detection(), ON_SECOND, 0.6),  # Not the third, which lies nearer, but has a lower score.
        (t.Detection(), NOWHERE, 0.8),
        (t.Detection(box="best"), ON_SECOND, 0.8),
        (t.Detection(box=1), ON_SECOND, 0.6),
        (t.Detection(class_=2), NOWHERE, 0.6),
        (t.Detection(class_=2, box=1), None, 0.1),
        (t.Detection(class_=3), None, 0.0),
        (t.Detection(class_=1, box=1), None, 0.0),
    ],
)
def test_the_object_is_chosen_as_the_target_says(target: t.Detection, labels: Tensor | None, score: float) -> None:
    chosen = target.select(TWO, labels)
    assert target.value(TWO, chosen).tolist() == pytest.approx([score])


def test_a_box_without_an_area_is_not_chosen_because_it_could_not_be_found_again() -> None:
    line = (4.0, 0, 4, 10)
    found = detections((*line, 0.9, 1), (0, 0, 10, 10, 0.8, 1), (*line, 0.7, 2))
    for target, score in ((t.Detection(), 0.8), (t.Detection(box=1), 0.0), (t.Detection(class_=2), 0.0)):
        assert target.value(found, target.select(found)).tolist() == pytest.approx([score])


def test_the_object_is_found_again_by_class_and_overlap() -> None:
    target = t.Detection(box="best")
    chosen = target.select(TWO)
    moved = detections((1, 1, 11, 11, 0.7, 1), (0, 0, 10, 10, 0.9, 2), (30, 30, 40, 40, 0.95, 1))
    assert target.value(moved, chosen).tolist() == pytest.approx([0.7])
    assert target.value(detections((8, 8, 18, 18, 0.7, 1)), chosen).tolist() == [0.0]
    facts = target.facts(TWO, torch.tensor([[[0.0, 0, 10, 20, 1]]]), chosen)
    expected = {"class": 1, "probability": 0.8, "left": 0, "top": 0, "right": 10, "bottom": 10, "overlap": 0.5}
    assert {name: float(fact) for name, fact in facts.items()} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (lambda: t.Detection(class_="cat"), r"Detection\(class_='cat'\); give a whole number"),
        (lambda: t.Detection(box="first"), r"Detection\(box='first'\); give \"label\", \"best\" or a whole number"),
        (lambda: t.Detection(iou=0), r"Detection\(iou=0\); give a number above 0"),
        (lambda: t.Detection(box=7).select(TWO), "outside of the detections; use 0 to 3"),
        (lambda: t.Detection().select(torch.zeros(2, 3)), "needs a detector, which returns boxes, labels and scores"),
    ],
)
def test_mistakes_are_named(target: Callable[[], Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        target()


def test_words_and_classes_are_targets_of_a_detector() -> None:
    net, (images, targets) = faster_rcnn(), scenes(ONE_SIZE)

    def values(target: Any) -> Tensor:
        return explain(net, Probe(images, targets), ["Saliency"], [], target).values

    assert torch.equal(values("label"), values(t.Detection()))
    assert torch.equal(values("predicted"), values(t.Detection(box="best")))
    assert torch.equal(values(2), values(t.Detection(class_=2)))


# -- lists ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [list, tuple])
def test_lists_of_images_and_boxes_become_a_probe(form: Any) -> None:
    images, targets = scenes(SEVERAL)
    targets[1] = {key: torch.cat([value, value]) for key, value in targets[1].items()}
    batches = (form(images), form(targets)), {"images": form(images), "targets": form(targets), "id": torch.arange(3)}
    for batch in batches:
        probe = samples_of(batch)
        assert probe.inputs.shape == (3, 3, 2 * SIDE, 2 * SIDE)
        assert probe.targets.shape == (3, 2, 5)
        assert probe.targets[0, 1].tolist() == [-1] * 5
        assert probe.masks.flatten(1).sum(1).tolist() == [144] * 3
        again = Probe(**probe_state(probe))
        assert fingerprint(again) == fingerprint(probe)
        assert again.parameters == probe.parameters


def test_images_in_one_tensor_stay_one() -> None:
    images, targets = scenes(ONE_SIZE)
    probe = samples_of((torch.stack(images), targets))
    assert (probe.parameters, probe.forward_args) == ((), ())
    listed = explain(faster_rcnn(), Probe(images, targets), ["Saliency"], [])
    assert torch.equal(explain(faster_rcnn(), probe, ["Saliency"], []).values, listed.values)


def test_images_without_boxes_of_their_own_are_refused() -> None:
    images, targets = scenes(ONE_SIZE)
    with pytest.raises(TypeError, match="has 3 images for the boxes of 2; it needs a list of as many"):
        samples_of((images, targets[:2]))


# -- layers, scores -------------------------------------------------------------------------------------------------------


def report_of_layers(net: nn.Module) -> Report:
    images, targets = scenes(ONE_SIZE)
    return explain(net, Probe(images, targets), {"cam": m.LayerGradCam()}, [q.PointingGame(), q.RelevanceMass()])


def test_the_default_layer_is_the_last_that_all_levels_depend_on() -> None:
    for net, body in ((faster_rcnn(), "backbone"), (ssd_lite(), "backbone.first")):
        report = report_of_layers(net)
        last = dict(net.named_modules())[f"{body}.{len(Body()) - 1}"]
        shapes: list[Any] = []
        last.register_forward_hook(lambda module, given, found, shapes=shapes: shapes.append(found.shape))
        net(scenes(ONE_SIZE)[0])
        assert report.attributions["cam"].shape[2:] == shapes[0][2:] == (SIDE // 4, SIDE // 4)
        assert report.scores["relevance_mass"]["cam"].shape == (3,)


def test_a_layer_of_images_of_several_sizes_is_left_out_with_the_true_reason() -> None:
    (images, targets), reason = scenes(SEVERAL), "images of several sizes go through the model one by one"
    with pytest.warns(UserWarning, match=f"'cam' .* is left out: {reason}.* resize them to one size") as caught:
        report = explain(faster_rcnn(), Probe(images, targets), metrics=[])
    assert "names no layer" not in "".join(str(w.message) for w in caught)
    assert list(report.attributions) == ["saliency", "ig"]
    for method in (m.LayerGradCam("backbone"), m.NoiseTunnel(m.LayerActivation("backbone")), m.LayerGradCam()):
        with pytest.raises(RefusedError, match=f"{reason}.* resize them to one size") as refusal:
            explain(faster_rcnn(), Probe(images, targets), {"one": method}, [])
        assert "Choose a layer" not in str(refusal.value)
