"""The default explanation of each modality as one writes it by hand: a few lines of Captum, and plain loops for the scores.

Nothing here comes from the package. What a loop removes or adds is given, so that the scores can be compared with those of the package,
which draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from captum import attr as ca
from torch import Tensor, nn

STEPS, RADIUS = 16, 0.02
Forward = Callable[..., Tensor]


@dataclass(frozen=True)
class Draws:
    """What is drawn for N samples.

    Args:
        removed: Which units are removed, ``(N, draws, ...)``, broadcastable to the inputs.
        moved: Where in the ball around the sample the map is computed again, ``(N, draws, ...)`` in [0, 1).
    """

    removed: Tensor
    moved: Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Found:
    """Maps by method, and scores by metric and method."""

    maps: dict[str, Tensor]
    scores: dict[str, dict[str, Tensor]]


def text(model: nn.Module, ids: Tensor, labels: Tensor, draws: Draws, embedding: str, pad: int = 0) -> Found:
    """Integrated gradients at the embedding, and ablation of each word; missing words are padding."""
    return _text(model, ids, (), labels, draws, model.get_submodule(embedding), pad)


def bert(model: nn.Module, batch: dict[str, Tensor], labels: Tensor, draws: Draws, embedding: str) -> Found:
    """The same for a network that takes the batch by name."""

    def logits(ids: Tensor, mask: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask).logits

    further = (batch["attention_mask"],)
    return _text(logits, batch["input_ids"], further, labels, draws, model.get_submodule(embedding), 0)


def _text(
    f: Forward, ids: Tensor, further: tuple[Tensor, ...], labels: Tensor, draws: Draws, layer: nn.Module, pad: int
) -> Found:
    reference = torch.full_like(ids, pad)
    given: dict[str, Any] = {"target": labels, "additional_forward_args": further}
    ig = ca.LayerIntegratedGradients(f, layer).attribute(ids, reference, n_steps=STEPS, **given)
    ablation = ca.FeatureAblation(f).attribute(ids, reference, **given)
    by_word = {"ig": ig.sum(2), "ablation": ablation}
    scores = {
        "infidelity": infidelity(lambda x: chosen(f(x, *further), labels), ids, reference, by_word, draws.removed)
    }
    radius = RADIUS * layer(ids)[ids != pad].detach().std(correction=0)

    def again(shift: Tensor) -> Tensor:
        def moved(module: nn.Module, arguments: Any, output: Tensor) -> Tensor:
            words = (arguments[0] != pad)[:, :, None]
            return output + words * shift.repeat(len(output) // len(shift), 1, 1)

        with layer.register_forward_hook(moved):
            return ca.LayerIntegratedGradients(f, layer).attribute(ids, reference, n_steps=STEPS, **given).sum(2)

    still = torch.zeros_like(ig).detach()
    scores["sensitivity_max"] = {"ig": sensitivity(again, still, by_word["ig"], radius, draws.moved)}
    return Found({"ig": ig, "ablation": ablation}, scores)


def table(model: nn.Module, x: Tensor, labels: Tensor, draws: Draws) -> Found:
    """Gradient, integrated gradients, and ablation of each column."""
    ablation = ca.FeatureAblation(model).attribute(x, target=labels)
    return _numbers(model, x, labels, draws, RADIUS * x.std(0), {"ablation": ablation}, {"ablation": ablation})


def series(model: nn.Module, x: Tensor, labels: Tensor, draws: Draws, layer: str = "") -> Found:
    """Gradient and integrated gradients; Grad-CAM where a layer is named, as long as the series."""
    cams = {}
    if layer:
        cams = {"cam": ca.LayerGradCam(model, model.get_submodule(layer)).attribute(x, target=labels)}
    return _numbers(model, x, labels, draws, RADIUS * x.std(0), cams, cams)


def image(model: nn.Module, x: Tensor, labels: Tensor, draws: Draws, layer: str) -> Found:
    """Gradient, integrated gradients and Grad-CAM."""
    cam = ca.LayerGradCam(model, model.get_submodule(layer)).attribute(x, target=labels)
    upsampled = ca.LayerAttribution.interpolate(cam, (x.shape[2], x.shape[3]), "bilinear")
    return _numbers(model, x, labels, draws, RADIUS, {"cam": cam}, {"cam": upsampled})


def volume(model: nn.Module, x: Tensor, labels: Tensor, draws: Draws, layer: str) -> Found:
    """Gradient, integrated gradients and Grad-CAM of a volume, or of a video with channels first."""
    cam = ca.LayerGradCam(model, model.get_submodule(layer)).attribute(x, target=labels)
    upsampled = ca.LayerAttribution.interpolate(cam, x.shape[2:], "trilinear")
    return _numbers(model, x, labels, draws, RADIUS, {"cam": cam}, {"cam": upsampled})


def frames(model: nn.Module, x: Tensor, labels: Tensor, draws: Draws, layer: str) -> Found:
    """The same of videos ``(N, T, C, H, W)`` whose frames go through 2-D layers as if they were samples, into a recurrent network:
    integrated gradients of the layer in the place of Grad-CAM.
    """
    by_frame = ca.LayerIntegratedGradients(model, model.get_submodule(layer)).attribute(x, target=labels, n_steps=4)
    cam = by_frame.detach().unflatten(0, x.shape[:2])
    summed = cam.sum(2, keepdim=True)
    upsampled = torch.stack(
        [ca.LayerAttribution.interpolate(each, x.shape[3:], "bilinear") for each in summed.unbind(1)], 1
    )
    return _numbers(model, x, labels, draws, RADIUS, {"cam": cam}, {"cam": upsampled})


def dense(model: nn.Module, x: Tensor, labels: Tensor, draws: Draws, layer: str) -> Found:
    """The same of the sum of a class over the pixels predicted as it: those at the sample, wherever a method moves it; HiResCAM in the
    place of Grad-CAM.
    """
    summed = frozen(model, x, labels.flatten(1).amax(1), labels)
    of_layer = ca.LayerGradientXActivation(summed, model.get_submodule(layer)).attribute(x, target=0)
    cam = of_layer.detach().sum(1, keepdim=True)
    upsampled = ca.LayerAttribution.interpolate(cam, (x.shape[2], x.shape[3]), "bilinear")
    labels = torch.zeros(len(x), dtype=torch.long)
    return _numbers(summed, x, labels, draws, RADIUS, {"cam": cam}, {"cam": upsampled})


@torch.no_grad()
def frozen(model: nn.Module, x: Tensor, classes: Tensor, labels: Tensor) -> Summed:
    """A segmentation as the sum of each sample's class over the pixels predicted as it at these samples; else over those labelled."""
    outputs = model(x)
    of_each = classes[:, None, None]
    predicted, labelled = outputs.argmax(1) == of_each, labels == of_each
    region = predicted.where(predicted.flatten(1).any(1)[:, None, None], labelled)
    selected = torch.zeros_like(outputs).scatter_(1, of_each.expand_as(labels)[:, None], region[:, None].to(outputs))
    return Summed(model, selected)


def moving(model: nn.Module, classes: Tensor) -> Forward:
    """The same over the pixels predicted as the class wherever a method moves the sample, as in Captum's tutorial."""

    def summed(x: Tensor) -> Tensor:
        outputs, of_each = model(x), classes.repeat(len(x) // len(classes))[:, None, None]
        values = outputs.gather(1, of_each.expand_as(outputs[:, 0])[:, None])[:, 0]
        return (values * (outputs.argmax(1) == of_each)).flatten(1).sum(1, keepdim=True)

    return summed


def incompleteness(f: Forward, x: Tensor, attributions: Tensor) -> tuple[float, float]:
    """The largest |sum of a map - change of the output from zeros to the sample|, and the same relative to that change."""
    with torch.no_grad():
        change = (f(x) - f(torch.zeros_like(x)))[:, 0]
    missed = (attributions.flatten(1).sum(1) - change).abs()
    return float(missed.max()), float((missed / change.abs()).max())


class Summed(nn.Module):
    """A model as one number for each sample: the sum of the selected outputs."""

    def __init__(self, model: nn.Module, selected: Tensor) -> None:
        super().__init__()
        self.model, self.selected = model, selected

    def forward(self, x: Tensor) -> Tensor:
        # A path has all samples at the first point, then all at the next.
        selected = self.selected.repeat(len(x) // len(self.selected), 1, 1, 1)
        return (self.model(x) * selected).flatten(1).sum(1, keepdim=True)


def siamese(model: nn.Module, images: tuple[Tensor, Tensor], labels: Tensor, draws: Draws, layer: str) -> Found:
    """Of two images that one encoder reads: its last run is what Grad-CAM explains, and that has no place on both."""
    cam = ca.LayerGradCam(model, model.get_submodule(layer)).attribute(images, target=labels).detach()
    beside = torch.cat(images, 1)
    return _numbers(Split(model), beside, labels, draws, RADIUS, {"cam": cam}, {})


class Split(nn.Module):
    """A model of two images as one of their channels."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(*x.chunk(2, 1))


def _numbers(
    model: nn.Module,
    x: Tensor,
    labels: Tensor,
    draws: Draws,
    radius: Tensor | float,
    further: dict[str, Tensor],
    on_input: dict[str, Tensor],
) -> Found:
    integrated = ca.IntegratedGradients(model)
    saliency = ca.Saliency(model).attribute(x, target=labels, abs=False)
    ig = integrated.attribute(x, target=labels, n_steps=STEPS)
    # A gradient predicts what a removal changes once it is multiplied by what is removed.
    predicting = {"saliency": saliency * x, "ig": ig, **on_input}
    scores = {
        "infidelity": infidelity(
            lambda moved: chosen(model(moved), labels), x, torch.zeros_like(x), predicting, draws.removed
        ),
        "sensitivity_max": {
            "ig": sensitivity(
                lambda moved: integrated.attribute(moved, target=labels, n_steps=STEPS), x, ig, radius, draws.moved
            )
        },
    }
    return Found({"saliency": saliency, "ig": ig, **further}, scores)


def chosen(outputs: Tensor, labels: Tensor) -> Tensor:
    """The output of each sample's label, ``(N,)``."""
    return outputs.gather(1, labels[:, None])[:, 0]


@torch.no_grad()
def infidelity(f: Forward, x: Tensor, reference: Tensor, maps: dict[str, Tensor], removed: Tensor) -> dict[str, Tensor]:
    """Mean squared difference of the changes that a map predicts, scaled to fit best, and the actual ones (Yeh et al. 2019)."""
    clean = f(x)
    changes = torch.stack([clean - f(torch.where(draw, reference, x)) for draw in removed.unbind(1)], 1)
    scores = {}
    for name, found in maps.items():
        predicted = torch.stack([(found * draw).expand(x.shape).flatten(1).sum(1) for draw in removed.unbind(1)], 1)
        factor = (predicted * changes).sum(1, keepdim=True) / predicted.square().sum(1, keepdim=True)
        scores[name] = (factor * predicted - changes).square().mean(1)
    return scores


def sensitivity(explain: Forward, x: Tensor, found: Tensor, radius: Tensor | float, moved: Tensor) -> Tensor:
    """Largest relative change of a map in the ball around the sample (Yeh et al. 2019)."""
    again = [explain(x + (2 * draw - 1) * radius) - found for draw in moved.unbind(1)]
    return torch.stack([change.flatten(1).norm(dim=1) for change in again]).amax(0) / found.flatten(1).norm(dim=1)
