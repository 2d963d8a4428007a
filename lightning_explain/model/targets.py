"""A model's return value, target and labels in; the explained output of each sample, ``(N,)``, out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_explain.core.contracts import Selection, selected
from lightning_explain.core.contracts import Target as TargetClass
from lightning_explain.core.detections import are_detections, padded_detections
from lightning_explain.core.naming import nearest
from lightning_explain.core.validation import is_whole, refused
from lightning_explain.model.clean import CleanSamples, packed, takes_samples, unpacked
from lightning_explain.model.segments import are_soft_masks

Target: TypeAlias = (
    "str | int | tuple[int, ...] | Callable[[Tensor], Tensor] | Callable[[Tensor, CleanSamples], Tensor]"
)

TARGETS = ("label", "predicted")
_OUTPUTS = ("logits", "out")
"""The entries of a mapping that are explained, as models of transformers and segmentations of torchvision return them."""
_ANY_OUTPUT = "a tuple such as (class, row, column), or a callable (N, ...) -> (N,)"
_CALLABLE = "a callable (outputs) or (outputs, sample) that returns (N,)"
_OTHER_WAYS = f'target="predicted", an int, {_ANY_OUTPUT}'
_WAYS = f'target="label", {_OTHER_WAYS.removeprefix("target=")}'


class OutputError(TypeError):
    """Raised if what the model or ``output_fn`` returned holds no tensor to explain."""


def output_tensor(output: Any) -> Tensor:
    """The tensor in what a model returns: the tensor itself, ``.logits``, ``["logits"]``, ``["out"]``, or the first of a tuple.

    The detections of a detector, as :func:`~lightning_explain.core.detections.padded_detections` arranges them.

    Raises:
        OutputError: If there is no tensor in that place.
    """
    if isinstance(output, Tensor):
        return output
    if are_detections(output):
        return padded_detections(output)
    if isinstance(output, Mapping) and (names := [name for name in _OUTPUTS if name in output]):
        output = output[names[0]]
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        keys = f" with keys {list(output)}" if isinstance(output, Mapping) else ""
        raise OutputError(
            f"The model returned {type(output).__name__}{keys}; allowed are a tensor, a tuple that starts with one, "
            "a mapping or an object with 'logits', a mapping with 'out'. Give output_fn=lambda output: ..., which picks the tensor."
            + _each(output)
        )
    return output


def _each(output: Any) -> str:
    """How to explain each tensor of a mapping, for the end of a message; nothing if there are no two."""
    values = output.items() if isinstance(output, Mapping) else ()
    named = [f"{name!r}: ..." for name, x in values if isinstance(x, Tensor) and x.ndim > 0]
    return f" Or explain each: target={{{', '.join(named)}}}." if len(named) > 1 else ""


def each_labelled(labels: Mapping[str, Tensor], choices: int) -> str:
    """How to explain each tensor of a tuple, for the end of a message; nothing if there are not as many labels with names."""
    named = ", ".join(f"{name!r}: 'label'" for name in labels)
    return f" Or explain each, in their order: target={{{named}}}." if len(labels) == choices else ""


def check_target(target: Target) -> None:
    """Checks that a value can be a target: a known word, an int, a tuple of ints, or a callable.

    Raises:
        ValueError: If it is an unknown word.
        TypeError: If it has another type.
    """
    if isinstance(target, str):
        if target not in TARGETS:
            raise ValueError(f"target={target!r}: {nearest(target, TARGETS)} Or give an int, a tuple, or a callable.")
    elif not callable(target) and not all(map(is_whole, target if isinstance(target, (list, tuple)) else [target])):
        raise refused("", "target", target, _WAYS, TypeError)


def predictions_of(outputs: Tensor) -> Tensor:
    """The predicted class of each sample, ``(N,)``.

    For outputs ``(N,)`` or ``(N, 1)``: 1 where the output is positive, else 0. For outputs of more than two dimensions:
    zeros.
    """
    if single(outputs):
        return (outputs.reshape(len(outputs)) > 0).long()
    return outputs.argmax(1) if outputs.ndim == 2 else torch.zeros(len(outputs), dtype=torch.long)


def target_indices(outputs: Tensor, target: Target, labels: Tensor | None, ids: Tensor | None = None) -> Tensor:
    """The index of each sample's explained output, ``(N,)``; of a ``Selection`` the places in it, ``(N, K)``.

    Of a callable ``(outputs, sample)`` it is what that knows of each sample, ``(N, K)``.

    0 if the output is one number per sample, whatever the label; -1 if a tuple or a callable chooses the output.

    Args:
        outputs: The model's outputs, ``(N, ...)``, on the CPU.
        target: Which output is explained.
        labels: Labels of the samples, or ``None``.
        ids: Their ids, ``(N,)``; by default their numbers.

    Raises:
        ValueError: If the target does not fit the outputs.
    """
    n = len(outputs)
    if isinstance(target, Selection):
        return target.select(outputs, None if labels is None else labels.cpu())
    if callable(target) or isinstance(target, (tuple, list)):
        known = torch.full((n,), -1)
        if takes_inputs(target):
            return known
        if takes_samples(target):
            known = packed(CleanSamples(outputs, labels, torch.arange(n) if ids is None else ids))
        chosen = choose(outputs, known, target)
        if not isinstance(chosen, Tensor) or chosen.shape != (n,):
            came = tuple(chosen.shape) if isinstance(chosen, Tensor) else type(chosen).__name__
            raise ValueError(
                f"target={target!r} chose {came} from outputs {tuple(outputs.shape)}; give a target that chooses ({n},)."
            )
        return known
    if single(outputs):
        if isinstance(target, int) and target != 0:
            raise ValueError(
                f"target={target}, but the model returns one number per sample, {tuple(outputs.shape)}; use target=0."
            )
        return torch.zeros(n, dtype=torch.long)
    if outputs.ndim != 2:
        needs = f"target={target!r} needs outputs (N, C), got {tuple(outputs.shape)}"
        if target == "label" and labels is not None and outputs.ndim > 3 and are_soft_masks(labels):
            raise ValueError(
                f"{needs}; labels {tuple(labels.shape)} are masks with soft edges, as of a resize or JPEG: make them 0 and 1, such as "
                f"batch_fn=lambda batch: (batch[0], (batch[1] > {labels.max().item() / 2:.3g}).long()); if they are numbers to predict, "
                "give target=Horizon(), the sum of all outputs."
            )
        # Labels of that shape belong to places whose classes come last, as a token's do.
        last = labels is not None and labels.shape == outputs.shape[:-1]
        if outputs.shape[-1 if last else 1] < 2:
            raise ValueError(f"{needs}; use {_ANY_OUTPUT}, such as target=lambda outputs: outputs.flatten(1).mean(1).")
        mean = f"target=lambda outputs: outputs[{'...' if last else ':'}, 1].flatten(1).mean(1)"
        raise ValueError(f"{needs}; use {_ANY_OUTPUT}, such as {mean}, the mean of class 1.")
    return _class_indices(outputs, target, labels)


def _class_indices(outputs: Tensor, target: str | int, labels: Tensor | None) -> Tensor:
    n, classes = outputs.shape
    if target == "predicted" or (target == "label" and labels is None):
        return outputs.argmax(1)
    if target == "label":
        assert labels is not None
        if labels.shape != (n,) or labels.is_floating_point() or labels.is_complex():
            came = f"{labels.dtype} {tuple(labels.shape)}"
            raise ValueError(
                f'target="label" needs integer labels ({n},), got {came}; give such labels (batch_fn=...), or use {_OTHER_WAYS}.'
            )
        # A copy, because labels made in inference mode cannot be saved for a backward pass.
        indices = labels.long().cpu().clone()
    # Not every int fits into a tensor.
    lowest, highest = (target, target) if isinstance(target, int) else (int(end) for end in indices.aminmax())
    if target == "label" and highest == classes:
        # Outputs of an ordinal model stand for "more than this class"; the highest class has none, and reads the last.
        indices, highest = indices.clamp(max=classes - 1), classes - 1
    if lowest < 0 or highest >= classes:
        raise ValueError(
            f"target={target!r} gives indices {lowest} to {highest} of {classes} outputs; use indices from 0 to {classes - 1}."
        )
    return torch.full((n,), target) if isinstance(target, int) else indices


def takes_inputs(target: Any) -> bool:
    """Whether a target is called with the inputs, too."""
    return isinstance(target, TargetClass) and target.takes_inputs


def choose(outputs: Tensor, indices: Tensor, target: Target, inputs: tuple[Any, ...] = ()) -> Tensor:
    """The explained output of each sample, ``(N,)``.

    Args:
        outputs: The model's outputs, ``(N, ...)``.
        indices: The target index of each sample, ``(N,)``, or its places ``(N, K)``, whose outputs are summed; of a callable
            ``(outputs, sample)`` what :func:`target_indices` returned; not used if the target is a tuple or another callable.
        target: Which output is explained.
        inputs: What the model was called with at this point.

    Raises:
        ValueError: If a tuple lies outside the outputs, or a callable fails on them.
    """
    # Of a callable, which knows its samples, they are no places.
    if isinstance(target, Selection):
        return target.value(outputs, indices)
    if indices.ndim == 2 and not callable(target):
        return selected(outputs, indices)
    if callable(target) or isinstance(target, (tuple, list)):
        try:
            if not callable(target):
                return outputs[(slice(None), *target)]  # type: ignore[index]
            if takes_inputs(target):
                return target(outputs, inputs)  # type: ignore[call-arg, arg-type]
            known = (outputs, unpacked(indices, outputs)) if indices.ndim == 2 else (outputs,)
            return target(*known)
        except torch.OutOfMemoryError:
            raise
        except (LookupError, AttributeError, TypeError, RuntimeError, ValueError) as error:
            # A ValueError also comes of an int that is too large for an index.
            raise ValueError(
                f"target={target!r} does not fit outputs {tuple(outputs.shape)}: {type(error).__name__}: {error}. "
                f"Give a tuple that indexes them, or {_CALLABLE}."
            ) from error
    if single(outputs):
        return outputs.reshape(len(outputs))
    return outputs.gather(1, indices[:, None]).squeeze(1)


class Choice:
    """Computes the target indices of samples from their outputs; stores both, and what is said of them, as ``facts``.

    Args:
        target: Which output is explained.
        labels: Labels of the samples, or ``None``.
        ids: Their ids, ``(N,)``.
    """

    outputs: Tensor
    indices: Tensor
    facts: Mapping[str, Tensor]

    def __init__(self, target: Target, labels: Tensor | None, ids: Tensor | None = None) -> None:
        self._target, self._labels, self._ids = target, labels, ids
        self.refused = False

    def __call__(self, outputs: Tensor) -> Tensor:
        """The indices of the explained outputs, ``(N,)`` or ``(N, K)``, on the device of ``outputs`` ``(N, ...)``."""
        self.outputs, self.refused = outputs.detach(), True
        indices = target_indices(clean := self.outputs.cpu(), self._target, self._labels, self._ids)
        self.indices, self.facts = indices.to(outputs.device), {}
        if isinstance(self._target, Selection):
            self.facts = self._target.facts(clean, None if self._labels is None else self._labels.cpu(), indices)
        self.refused = False
        return self.indices


def single(outputs: Tensor) -> bool:
    """Whether the outputs are one number for each sample, ``(N,)`` or ``(N, 1)``."""
    return outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1)
