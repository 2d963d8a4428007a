"""Clean outputs and labels of a segmentation in; the places of one class, whose sum is explained, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_explain.core.contracts import Selection
from lightning_explain.core.regions import NAME, packed
from lightning_explain.core.validation import is_whole, refused
from lightning_explain.model.segments import Segments, are_masks, segments_of, without_channel, zero_and_255


@dataclass(frozen=True)
class Pixels(Selection):
    """The sum of a class over the pixels that are predicted as it, in outputs of a segmentation ``(N, C, h, w)`` or ``(N, C, d, h, w)``.

    The pixels are those at the unperturbed sample: they stay the same while a method moves the input.

    Args:
        class_: ``"label"``: the sample's most frequent class but 0, the background; or the index of a class. Without labels, the
            most frequent predicted one. One channel of outputs speaks for class 1.
        region: ``"predicted"`` or ``"label"``: the pixels of that class. Where there are none: the other's; else all pixels.
        positive: The label that stands for class 1 where a channel of outputs is a class by itself. Default: 1, or 255 where labels are 0
            and 255 alone, as masks are stored in image files, and 255 at more than borders and few places; else 255 is ignored.
        squeezed: Whether outputs are ``(N, h, w)`` or ``(N, d, h, w)``, those of one channel without its dimension. Default: found out
            from labels and inputs.

    Example:
        >>> import torch
        >>> from lightning_explain import targets as t
        >>> outputs = torch.tensor([[[[3.0, 0.0]], [[0.0, 1.0]]]])  # Two classes, two pixels.
        >>> t.Pixels().select(outputs, torch.tensor([[[0, 1]]])).tolist()
        [[-1, 3]]
    """

    class_: str | int = "label"
    region: str = "predicted"
    positive: int | None = None
    squeezed: bool | None = None

    def __post_init__(self) -> None:
        if self.class_ != "label" and (not is_whole(self.class_) or int(self.class_) < 0):
            raise refused("Pixels", "class_", self.class_, '"label" or a whole number of at least 0', TypeError)
        if self.region not in ("predicted", "label"):
            raise refused("Pixels", "region", self.region, '"predicted" or "label"', ValueError)
        if self.positive is not None and (not is_whole(self.positive) or int(self.positive) < 1):
            raise refused("Pixels", "positive", self.positive, "a whole number of at least 1", ValueError)
        if self.squeezed not in (None, True, False):
            raise refused("Pixels", "squeezed", self.squeezed, "True or False", TypeError)

    def fitted(self, outputs: Tensor, labels: Tensor | None, inputs: Sequence[Tensor]) -> Pixels:
        """The same with ``positive`` and ``squeezed``, as the outputs and labels of the whole probe tell them."""
        squeezed = without_channel(outputs, labels, inputs) if self.squeezed is None else self.squeezed
        fitted = replace(self, squeezed=squeezed or self.squeezed)
        masks = fitted._by_channel(outputs, labels) and are_masks(labels, outputs.ndim - (1 if squeezed else 2))
        return replace(fitted, positive=self.positive or (255 if masks else None))

    def remark(self, outputs: Tensor, labels: Tensor | None) -> str:
        """What to give if 255 is the other of what it is taken for, the class or what is ignored; empty if other labels tell."""
        if not self._by_channel(outputs, labels) or not zero_and_255(labels):
            return ""
        if self.positive == 255:
            return "labels are 0 and 255 alone, so 255 is read as the class: if it is to be ignored, give target=Pixels(positive=1)"
        return "labels are 0 and, at few places or borders, 255, which is ignored: if it is the class, give target=Pixels(positive=255)"

    def _by_channel(self, outputs: Tensor, labels: Tensor | None) -> bool:
        """Whether each channel of the outputs is a class by itself."""
        return bool(self.squeezed) or (outputs.ndim > 3 and (outputs.shape[1] == 1 or _shape(labels) == outputs.shape))

    def select(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The places of the pixels, ``(N, h * w)``, -1 for the others, in outputs ``(N, C, h, w)``; labels as in ``segments_of``."""
        outputs, labels = self._arranged(outputs, labels)
        found = self._segments(outputs, labels)
        chosen = self._chosen(found)
        regions = [found.of_class(each, chosen) for each in (found.predicted, found.labelled) if each is not None]
        own, *others = regions if self.region == "predicted" else regions[::-1]
        for other in (*others, torch.ones_like(own)):
            own = own.where(own.any(1, keepdim=True), other)
        count = own.shape[1]
        return ((chosen - found.first)[:, None] * count + torch.arange(count)).where(own, -1)

    def facts(self, outputs: Tensor, labels: Tensor | None, places: Tensor) -> Mapping[str, Tensor]:
        """``class``, the number of ``pixels`` explained and their ``share``, ``region``, and of labels ``overlap`` and ``predicted``.

        ``region`` is ``(N, h, w)``, the bytes of ``core.regions``; ``overlap`` is the intersection over union of prediction and label;
        ``predicted`` the class that is predicted most often where the label has the explained one.
        """
        outputs, labels = self._arranged(outputs, labels)
        found, size = self._segments(outputs, labels), outputs.shape[2:]
        inside = places >= 0
        chosen = places.amax(1) // inside.shape[1] + found.first
        predicted = found.of_class(found.predicted, chosen)
        known = {"class": chosen, "pixels": inside.sum(1), "share": inside.double().mean(1)}
        if found.labelled is None:
            return {**known, NAME: packed(inside, predicted, None).reshape(-1, *size)}
        labelled = found.of_class(found.labelled, chosen)
        known |= {"overlap": found.overlap(chosen), "predicted": found.instead(chosen)}
        return {**known, NAME: packed(inside, predicted, labelled).reshape(-1, *size)}

    def _arranged(self, outputs: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Outputs ``(N, C, *places)``, and labels in which class 1 is 1."""
        if self.squeezed:
            # The same number of places, in the same order.
            outputs, labels = outputs[:, None], None if labels is None else labels.reshape(outputs.shape)
        if labels is None or self.positive in (None, 1):
            return outputs, labels
        return outputs, labels.masked_fill(labels == self.positive, 1)

    def _segments(self, outputs: Tensor, labels: Tensor | None) -> Segments:
        """What is predicted and labelled.

        Raises:
            ValueError: If the labels are none of pixels.
        """
        found = segments_of(outputs, labels)
        if found is None:
            came = "no labels" if labels is None else f"labels {labels.dtype} {tuple(labels.shape)}"
            raise ValueError(
                f"{self} needs outputs (N, C, h, w) and whole labels (N, h, w), or channels of 0 and 1 as the outputs, got "
                f"{tuple(outputs.shape)} and {came}; give such labels (batch_fn=...), or a callable (N, ...) -> (N,)."
            )
        return found

    def _chosen(self, found: Segments) -> Tensor:
        """The class that is explained of each sample, ``(N,)``.

        Raises:
            ValueError: If the outputs do not have it.
        """
        if self.class_ == "label":
            return found.most_frequent()
        if found.first and self.class_ != 1:
            raise ValueError(f"{self}: the only channel of the outputs speaks for class 1; use Pixels(1).")
        if int(self.class_) >= found.classes:
            raise ValueError(
                f"{self} is outside of the outputs with {found.classes} classes; use 0 to {found.classes - 1}."
            )
        return torch.full((len(found.predicted),), int(self.class_))


def _shape(labels: Tensor | None) -> torch.Size | None:
    return None if labels is None else labels.shape
