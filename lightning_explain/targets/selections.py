"""Clean outputs and labels of samples in; the places in each sample's output whose sum is explained out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_explain.core.contracts import Selection, Target, selected
from lightning_explain.core.shares import shares_of
from lightning_explain.core.validation import check_whole, is_whole, refused
from lightning_explain.model.tasks import classes_last


@dataclass(frozen=True)
class Position(Selection):
    """One place of outputs for each token or step: the output of its label there, or of its predicted class without a label.

    Args:
        position: ``"label"``: the first place with a label, which is none of -100 and other negative ones; or the index of the
            place, from the end if negative.

    Example:
        >>> import torch
        >>> from lightning_explain import targets as t
        >>> outputs, labels = torch.arange(8.0).reshape(1, 4, 2), torch.tensor([[-100, 1, 0, -100]])
        >>> t.Position().select(outputs, labels).tolist()  # The second token, class 1.
        [[3]]
        >>> t.Position(2).select(outputs, labels).tolist()
        [[4]]
    """

    position: str | int = "label"

    def __post_init__(self) -> None:
        if self.position != "label" and not is_whole(self.position):
            raise refused("Position", "position", self.position, '"label" or a whole number', TypeError)

    def select(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The place of each sample, ``(N, 1)``, in outputs ``(N, T, C)`` with labels ``(N, T)``; also ``(N, C, T)``, by the labels."""
        last = classes_last(outputs, labels)
        if outputs.ndim < 3 or last is None or (labels is not None and labels.is_floating_point()):
            came = "no labels" if labels is None else f"labels {labels.dtype} {tuple(labels.shape)}"
            raise ValueError(
                f"{self} needs outputs (N, T, C) and whole labels (N, T), got {tuple(outputs.shape)} and {came}; give such labels "
                "(batch_fn=...), or a callable (N, ...) -> (N,)."
            )
        places = outputs.flatten(1, -2) if last else outputs.flatten(2).mT
        count, classes = places.shape[1:]
        known = places.new_full((len(places), count), -1).long() if labels is None else labels.flatten(1).long()
        if int(known.max()) >= classes:
            raise ValueError(f"{self} got the label {int(known.max())} for {classes} classes; give labels below that.")
        if self.position == "label":
            at = (known >= 0).int().argmax(1)
        elif -count <= int(self.position) < count:
            at = known.new_full((len(known),), int(self.position) % count)
        else:
            raise ValueError(f"{self} is outside of the outputs with {count} positions; use {-count} to {count - 1}.")
        own, samples = places[torch.arange(len(places)), at], torch.arange(len(places))
        label = known[samples, at]
        label = label.where(label >= 0, own.argmax(1))
        return (at * classes + label if last else label * count + at)[:, None]

    def facts(self, outputs: Tensor, labels: Tensor | None, places: Tensor) -> Mapping[str, Tensor]:
        """``position``, ``class``, and the class ``predicted`` there with its ``probability``."""
        last, first = bool(classes_last(outputs, labels)), places[:, 0]
        by_place = outputs.flatten(1, -2) if last else outputs.flatten(2).mT
        count, classes = by_place.shape[1:]
        at, own = (first // classes, first % classes) if last else (first % count, first // count)
        probability, predicted = shares_of(by_place[torch.arange(len(places)), at]).max(1)
        return {"position": at, "class": own, "predicted": predicted, "probability": probability}


@dataclass(frozen=True)
class Horizon(Selection):
    """A step of a forecast, the sum of all steps, or each step by itself.

    Args:
        step: ``"sum"``; the index of the step, from the end if negative; or ``"each"``: a map and scores of each step, which needs labels
            ``(N, H, ...)``. Several channels of a step are summed.
        most: Of ``"each"``: how many steps of a longer forecast are explained, evenly spaced from the first to the last.

    Example:
        >>> import torch
        >>> from lightning_explain import targets as t
        >>> t.Horizon().select(torch.zeros(1, 4)).tolist()
        [[0, 1, 2, 3]]
        >>> t.Horizon(-1).select(torch.zeros(1, 4)).tolist()
        [[3]]
        >>> t.Horizon("each", most=3).steps(9)
        [0, 4, 8]
    """

    step: str | int = "sum"
    most: int = 24

    def __post_init__(self) -> None:
        if self.step not in ("sum", "each") and not is_whole(self.step):
            raise refused("Horizon", "step", self.step, '"sum", "each" or a whole number', TypeError)
        check_whole("Horizon", "most", self.most, least=2)

    def steps(self, count: int) -> list[int]:
        """The steps, of so many, that ``"each"`` explains."""
        return torch.linspace(0, count - 1, min(count, self.most), dtype=torch.float64).round().long().tolist()

    def select(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The places of the step, ``(N, K)``, in outputs ``(N, H)`` or ``(N, H, channels)``.

        Of ``"each"``: those of the steps whose labels are not -inf, which ``targets.entries.labels_of`` puts at all but one.
        """
        count = outputs.shape[1] if outputs.ndim > 1 else 1
        places = torch.arange(outputs[0].numel()).reshape(count, -1)
        if self.step == "each":
            own = self._own(outputs, labels, count)
            return places.where(own[..., None], -1).flatten(1)
        if self.step != "sum":
            if not -count <= int(self.step) < count:
                raise ValueError(
                    f"{self} is outside of the outputs {tuple(outputs.shape)}; use {-count} to {count - 1}, 'sum', or 'each'."
                )
            places = places[int(self.step)]
        return places.reshape(1, -1).repeat(len(outputs), 1)

    def _own(self, outputs: Tensor, labels: Tensor | None, count: int) -> Tensor:
        """The steps ``(N, H)`` that have labels."""
        if labels is None or labels.numel() % (len(outputs) * count) or (labels.ndim > 1 and labels.shape[1] != count):
            came = "none" if labels is None else tuple(labels.shape)
            raise ValueError(
                f"{self} needs labels ({len(outputs)}, {count}, ...) for outputs {tuple(outputs.shape)}, got {came}; give such labels, "
                "or one step, as Horizon(0)."
            )
        return (labels.reshape(len(outputs), count, -1) != -torch.inf).any(2)

    def facts(self, outputs: Tensor, labels: Tensor | None, places: Tensor) -> Mapping[str, Tensor]:
        """``step``, of a single one, and the ``true`` value, the sum of the labels there."""
        count = outputs.shape[1] if outputs.ndim > 1 else 1
        channels = outputs[0].numel() // count
        single = bool(((places >= 0).sum(1) == channels).all())
        step = {"step": places.amax(1) // channels} if single and self.step != "sum" else {}
        if labels is None or labels.numel() != outputs.numel():
            return step
        return {**step, "true": selected(labels.reshape(outputs.shape).double(), places)}


@dataclass(frozen=True)
class Positive(Selection):
    """Each of a sample's positive labels, those above 0.5, by itself: a map and scores of each. Without one: its largest output.

    Args:
        most: How many labels of a sample are explained, those of the lowest index; 0: the sum of all, as one map.

    Example:
        >>> import torch
        >>> from lightning_explain import targets as t
        >>> t.Positive().select(torch.tensor([[3.0, 1.0, 2.0]] * 2), torch.tensor([[0, 1, 1], [0, 0, 0]])).tolist()
        [[-1, 1, 2], [0, -1, -1]]
    """

    most: int = 4

    def __post_init__(self) -> None:
        check_whole("Positive", "most", self.most, least=0)

    def select(self, outputs: Tensor, labels: Tensor | None = None) -> Tensor:
        """The places of the positive labels, ``(N, C)``, -1 for the others; labels have the shape of the outputs."""
        if labels is None or labels.numel() != outputs.numel() or len(labels) != len(outputs):
            came = "none" if labels is None else tuple(labels.shape)
            raise ValueError(
                f"{self} needs labels {tuple(outputs.shape)} as the outputs, got {came}; give such labels."
            )
        positive, flat = labels.flatten(1) > 0.5, outputs.flatten(1)
        largest = torch.zeros_like(positive).scatter(1, flat.argmax(1, keepdim=True), True)
        positive = positive.where(positive.any(1, keepdim=True), largest)
        return torch.arange(flat.shape[1]).expand_as(flat).where(positive, -1)


@dataclass(frozen=True)
class Norm(Target):
    """The Euclidean norm of each sample's output, such as an embedding.

    Example:
        >>> import torch
        >>> from lightning_explain import targets as t
        >>> t.Norm()(torch.tensor([[3.0, 4.0]])).tolist()
        [5.0]
    """

    def __call__(self, outputs: Tensor) -> Tensor:
        """The norm ``(N,)`` of outputs ``(N, ...)``."""
        norm: Tensor = outputs.flatten(1).norm(dim=1)
        return norm
