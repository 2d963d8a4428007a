"""A task, a target, clean outputs and labels in; what the target means for that task out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_explain.core.contracts import Target
from lightning_explain.core.shares import are_shares
from lightning_explain.core.validation import is_whole
from lightning_explain.model.segments import without_channel
from lightning_explain.model.targets import single
from lightning_explain.model.tasks import classes_last, of_one_norm, task_of
from lightning_explain.targets.comparisons import ReconstructionError, Similarity, reconstructed
from lightning_explain.targets.detection import Detection
from lightning_explain.targets.pixels import Pixels
from lightning_explain.targets.selections import Horizon, Norm, Position, Positive


@dataclass(frozen=True)
class Task:
    """What a model was trained for, and what is explained of it.

    Args:
        name: One of ``model.tasks.TASKS``, or ``"other"``.
        target: Which output is explained; of ``"label"``, what that means.
        line: Both in words; empty if the user named the target.
    """

    name: str
    target: Any
    line: str = ""

    @property
    def squeezed(self) -> bool:
        """Whether the outputs are those of one channel of a segmentation, without its dimension."""
        return isinstance(self.target, Pixels) and bool(self.target.squeezed)


_FORMS: dict[str, tuple[str, Callable[[Tensor], bool]]] = {
    "multiclass": ("(N, C)", lambda outputs: outputs.ndim == 2 and not single(outputs)),
    "binary": ("(N,) or (N, 1)", single),
    "multilabel": ("(N, C)", lambda outputs: outputs.ndim == 2),
    "dense": ("(N, C, h, w) or (N, C, d, h, w)", lambda outputs: outputs.ndim > 3),
    "tokens": ("(N, T, C) or (N, C, T)", lambda outputs: outputs.ndim == 3),
    "detection": (
        "of a detector, boxes, labels and scores",
        lambda outputs: outputs.ndim == 3 and outputs.shape[2] == 6,
    ),
}
"""The outputs that a task needs, in words and as a check."""
_OF_TARGET: dict[type, str] = {
    Pixels: "dense",
    Similarity: "embedding",
    Norm: "embedding",
    ReconstructionError: "reconstruction",
}
"""The task of outputs that a target reads, whatever the labels."""
_MEANINGS: dict[type, str] = {
    Positive: "each positive label by itself",
    Horizon: "the sum of all outputs",
    Position: "the output of the first label",
    Pixels: "the label's most frequent class but 0, where it is predicted",
    Norm: "the norm of the output",
    ReconstructionError: "the mean squared error of the reconstruction, which has the size of the input",
    Detection: "the score of the detection that finds the largest labelled object, or else of the one with the highest score",
}
_MANY = 32
"""How many outputs ``(N, C)`` there have to be at least before labels far below C say that they are no scores of classes."""
_PAIR = (
    "target=Similarity(), forward_fn=lambda model, a, b: (model(a), model(b)), "
    "batch_fn=lambda batch: ((batch[0], batch[1]), None)"
)
"""How the similarity of two views is explained."""


def settled(
    task: str,
    target: Any,
    outputs: Tensor,
    labels: Tensor | None,
    named: bool = False,
    inputs: tuple[Tensor, ...] = (),
    detects: bool = False,
    views: bool = False,
) -> Task:
    """The task, and what ``target="label"`` means for it; any other target is explained as it is.

    Args:
        task: One of ``TASKS``, or ``"auto"``: the outputs and labels decide.
        target: As the user gives it.
        outputs: The model's outputs on the whole probe, ``(N, ...)``.
        labels: The probe's labels, or ``None``.
        named: Whether the columns of the outputs have names, and so are classes.
        inputs: The model's inputs on the whole probe.
        detects: Whether the model returned detections, which the outputs hold.
        views: Whether the inputs are the first of several views of each sample.

    Raises:
        ValueError: If the outputs are not those of the task, or all have the norm that is to be explained.
    """
    if isinstance(target, Norm):
        _check_norm(outputs)
    flat = without_channel(outputs, labels, inputs)
    if task in _FORMS and not _FORMS[task][1](outputs) and not (task == "dense" and flat):
        raise ValueError(
            f'task="{task}" needs outputs {_FORMS[task][0]}, got {tuple(outputs.shape)}; use task="auto", or the task of such outputs.'
        )
    name = task
    if task == "auto":
        found = _compared(outputs, labels, inputs, named, views)
        found = found or ("dense" if flat else task_of(outputs, labels, named))
        name = "detection" if detects else found
    if name == "detection" and (target == "predicted" or is_whole(target)):
        target = Detection(box="best") if target == "predicted" else Detection(class_=int(target))
    if isinstance(target, Pixels):
        target = target.fitted(outputs, labels, inputs)
    if not (isinstance(target, str) and target == "label"):
        own = next((found for kind, found in _OF_TARGET.items() if isinstance(target, kind)), name)
        return Task(own if task == "auto" else name, target)
    given = task != "auto"
    if name == "embedding":
        view = views or (labels is not None and _is_view(outputs, labels, inputs))
        target = _of_embedding(outputs, labels, given or view) or target
    elif name == "dense":
        target = Pixels().fitted(outputs, labels, inputs)
    else:
        target = _of_labels(name, outputs, labels) or target
    line = _line(name, target, outputs, labels, given)
    return Task(name, target, line if given else line + _doubt(name, outputs, labels, inputs, named, views))


def _check_norm(outputs: Tensor) -> None:
    """Refuses to explain the norm of outputs that all have the same.

    Raises:
        ValueError: If they do.
    """
    if of_one_norm(outputs):
        raise ValueError(
            "The norm of the output is the same for every sample, because the model normalizes it, so that its maps would be rounding "
            f"noise; compare embeddings instead: target=Similarity(to=embedding), or, of two views, {_PAIR}."
        )


def _of_embedding(outputs: Tensor, labels: Tensor | None, norm: bool) -> Target | str | None:
    """What ``"label"`` means for embeddings: the norm, if it is asked for; the largest number where all norms are the same.

    Raises:
        ValueError: If they are, and outputs have no largest number.
    """
    if not norm and labels is None:
        return None
    if not of_one_norm(outputs):
        return Norm() if norm else None
    if outputs.ndim != 2:
        _check_norm(outputs)
    return "predicted"


def _compared(outputs: Tensor, labels: Tensor | None, inputs: tuple[Tensor, ...], named: bool, views: bool) -> str:
    """The task of a model whose outputs or labels have the size of an input: an autoencoder, or one that is given two views."""
    own = reconstructed(outputs, tuple(x for x in inputs if x.is_floating_point()))
    if own is not None and (labels is None or _are_input(labels, own)):
        return "reconstruction"
    if labels is None:
        return ""
    apart = outputs.ndim == 2 and outputs.shape[1] >= _MANY and _far_below(outputs, labels, named)
    if own is not None and (labels.ndim == 1 if outputs.ndim > 2 else apart and _has_places(own)):
        return "reconstruction"
    return "embedding" if outputs.ndim == 2 and (_is_view(outputs, labels, inputs) or (views and apart)) else ""


def _are_input(labels: Tensor, x: Tensor) -> bool:
    """Whether labels are the input itself, maybe flattened."""
    return labels.dtype == x.dtype and labels.numel() == x.numel() and labels.flatten().equal(x.flatten())


def _has_places(x: Tensor) -> bool:
    """Whether samples ``(N, ...)`` have several dimensions, as images have: their numbers are not as many as classes by coincidence."""
    return sum(size > 1 for size in x.shape[1:]) > 1


def _far_below(outputs: Tensor, labels: Tensor, named: bool) -> bool:
    """Whether labels ``(N,)`` stay so far below the C of outputs ``(N, C)`` as those of C equally frequent classes hardly do.

    That is in less than one of a hundred probes. Rare classes and sorted samples stay there, too, so that few outputs tell nothing.
    """
    if outputs.ndim != 2 or labels.numel() != len(outputs) or named or are_shares(outputs):
        return False
    flat = labels.flatten().double()
    highest = 1 if labels.is_floating_point() else len(outputs[0]) - 1
    whole = bool(((flat >= 0) & (flat <= highest) & (flat == flat.round())).all())
    return whole and ((float(flat.max()) + 1) / len(outputs[0])) ** len(flat) < 0.01


def _is_view(outputs: Tensor, labels: Tensor, inputs: tuple[Tensor, ...]) -> bool:
    """Whether what is read as labels is another view of the input."""
    same = any(labels.shape == x.shape and labels.dtype == x.dtype for x in inputs)
    return same and labels.is_floating_point() and labels.ndim > 1 and labels.shape != outputs.shape


def _of_labels(name: str, outputs: Tensor, labels: Tensor | None) -> Target | None:
    """What ``"label"`` means, if it is not the output of one class for each sample."""
    one = outputs[:1].numel() == 1
    if name == "reconstruction":
        return ReconstructionError()
    if name == "multilabel" or (name == "multiclass" and labels is not None and labels.shape == outputs.shape):
        return None if one else Positive()
    if name == "regression":
        # Several numbers that one label belongs to, such as mean and deviation, are no horizon.
        several = labels is None or labels.numel() != len(labels)
        return Horizon() if several and not one else None
    return {"tokens": Position(), "detection": Detection()}.get(name)


def _line(name: str, target: Any, outputs: Tensor, labels: Tensor | None, given: bool) -> str:
    came = f"outputs {_form(outputs)}, {'no labels' if labels is None else f'{_kind(labels)} labels {_form(labels)}'}"
    task = f"task: {'not known' if name == 'other' else name} ({'as given' if given else came})"
    classes = isinstance(target, Norm) and not given and labels is not None and labels.ndim == 1
    other = '; if the outputs are those of classes, give task="multiclass"' if classes else ""
    other += _ambiguity(target, outputs, labels)
    return f'{task}; target="label" means {_meaning(name, target, outputs, labels)}{other}'


def _meaning(name: str, target: Any, outputs: Tensor, labels: Tensor | None) -> str:
    if isinstance(target, Positive):
        return f"{_MEANINGS[Positive]}, at most {target.most} of a sample"
    if type(target) in _MEANINGS:
        return _MEANINGS[type(target)]
    if single(outputs):
        return "the output, which speaks for class 1" if name == "binary" else "the output"
    if target == "predicted":
        means = "target=Similarity(to=means), with the mean embedding of each class"
        other = means if labels is not None and labels.ndim == 1 and not labels.is_floating_point() else _PAIR
        return f"the largest output of each sample, because all outputs have the same norm; to compare embeddings, give {other}"
    if labels is not None:
        return "the output of the label"
    largest = name != "embedding" or of_one_norm(outputs)
    norm = "" if largest else ', and task="embedding" the norm of the output'
    return f"the largest output of each sample, because there are no labels{norm}"


def _ambiguity(target: Any, outputs: Tensor, labels: Tensor | None) -> str:
    """What to do if places and classes cannot be told apart, or numbers of an input and outputs, being equally many."""
    if isinstance(target, ReconstructionError) and outputs.ndim == 2:
        other = "embedding" if labels is None else "regression" if labels.is_floating_point() else "multiclass"
        return f'; the outputs are as many as the numbers of the input: if that is a coincidence, give task="{other}"'
    if isinstance(target, Pixels):
        remark = target.remark(outputs, labels)
        return remark and f"; {remark}"
    square = isinstance(target, Position) and labels is not None and outputs.ndim == 3
    if not square or outputs.shape[1] != outputs.shape[2] or not classes_last(outputs, labels):
        return ""
    return "; the last dimension is taken to be the classes: if it is the positions, give output_fn=lambda output: output.mT"


def _doubt(
    name: str, outputs: Tensor, labels: Tensor | None, inputs: tuple[Tensor, ...], named: bool, views: bool
) -> str:
    """What to do if outputs that were taken for those of classes are a reconstruction or an embedding, which their labels suggest."""
    if name not in ("multiclass", "regression") or labels is None or not _far_below(outputs, labels, named):
        return ""
    if reconstructed(outputs, tuple(x for x in inputs if x.is_floating_point())) is not None:
        return "; the outputs are as many as the numbers of the input: if they reconstruct it, give target=ReconstructionError()"
    return '; if the outputs are an embedding of the first view, give task="embedding"' if views else ""


def _form(value: Tensor) -> str:
    return f"({', '.join(['N', *map(str, value.shape[1:])])}{',' * (value.ndim == 1)})"


def _kind(labels: Tensor) -> str:
    return "float" if labels.is_floating_point() else "whole"
