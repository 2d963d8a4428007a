"""A batch in, a ``Probe`` out: which tensors are inputs, which are targets, and which are further forward arguments."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from lightning_explain.core.probe import Attribution, Probe, kind

BatchFn = Callable[[Any], "tuple[Attribution, Tensor | None] | Probe"]

FIX = "Give batch_fn=..., a function of a batch that returns (inputs, targets) or a Probe."

_LABEL_KEYS = ("label", "labels", "target", "targets", "y")


def samples_of(batch: Any, batch_fn: BatchFn | None = None) -> Probe:
    """The N samples of a batch as a probe.

    - A tensor: inputs without targets.
    - A tuple or list ``(x,)``, ``(x, y)``, ``(x1, x2, ..., y)``, ``((x1, x2), y)``: if there are several tensors, the
      last is the targets. Tensors between the last floating-point one and the targets (lengths, masks) are forward
      arguments.
    - A mapping: the tensor with the key label, labels, target, targets or y (in any case) is the targets;
      floating-point tensors are the inputs, in the order of their keys; other tensors (``attention_mask``) are forward
      arguments.

    Anything that is not a tensor (file names) is left out. Integer targets ``(N, 1)`` become ``(N,)``.

    Args:
        batch: A batch as the loader yields it.
        batch_fn: Reads the batch instead. It returns ``(inputs, targets)``, where inputs is a tensor or a tuple of
            tensors and targets a tensor or ``None``; or it returns a ``Probe``.

    Returns:
        The samples, on the batch's device, with ids ``0..N-1`` unless ``batch_fn`` sets others.

    Raises:
        TypeError: If the batch, or what ``batch_fn`` returns, has another form.
        ValueError: If the tensors do not have the same number of samples.
    """
    if batch_fn is not None:
        try:
            found = batch_fn(batch)
        except (LookupError, AttributeError, TypeError) as error:
            raise TypeError(
                f"batch_fn failed on a batch, a {kind(batch)}: {type(error).__name__}: {error}. Change it to read such a batch."
            ) from error
        return _by_user(found)
    if isinstance(batch, Tensor):
        return _probe("A tensor", (batch,), None)
    if isinstance(batch, Mapping):
        return _from_mapping(batch)
    if isinstance(batch, (tuple, list)):
        return _from_sequence(batch)
    raise TypeError(f"Cannot read a batch of type {type(batch).__name__}. {FIX}")


def _probe(what: str, inputs: tuple[Any, ...], targets: Tensor | None, forward_args: tuple[Tensor, ...] = ()) -> Probe:
    if targets is not None and not targets.is_floating_point() and targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets.squeeze(1)
    try:
        return Probe(inputs[0] if len(inputs) == 1 else inputs, targets, forward_args=forward_args)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what} does not read as samples. {error} {FIX}") from error


def _by_user(found: Any) -> Probe:
    if isinstance(found, Probe):
        return found
    if not isinstance(found, tuple) or len(found) != 2 or not (found[1] is None or isinstance(found[1], Tensor)):
        raise TypeError(
            f"batch_fn returned a {kind(found)}; return a tuple (inputs, targets), inputs a tensor "
            "or a tuple of tensors and targets a tensor or None, or return a Probe."
        )
    inputs, targets = found
    inputs = tuple(inputs) if isinstance(inputs, list) else inputs
    return _probe("What batch_fn returned", inputs if isinstance(inputs, tuple) else (inputs,), targets)


def _from_sequence(batch: tuple[Any, ...] | list[Any]) -> Probe:
    if not batch or not (isinstance(batch[0], Tensor) or _are_tensors(batch[0])):
        first = type(batch[0]).__name__ if batch else "nothing"
        raise TypeError(
            f"Cannot read a {type(batch).__name__} batch that starts with {first}, not with a tensor or a tuple of them. {FIX}"
        )
    parts = [part for part in batch if isinstance(part, Tensor) or _are_tensors(part)]
    targets = parts.pop() if len(parts) > 1 else None
    if not (targets is None or isinstance(targets, Tensor)):
        raise TypeError(f"Cannot infer which of the last {len(targets)} tensors of a batch is the targets. {FIX}")
    tensors = [x for part in parts for x in (part if _are_tensors(part) else [part])]
    # In the order of the batch, which is the order of the arguments of forward.
    last = max((i for i, x in enumerate(tensors) if x.is_floating_point()), default=len(tensors) - 1)
    return _probe(f"A {type(batch).__name__} batch", tuple(tensors[: last + 1]), targets, tuple(tensors[last + 1 :]))


def _are_tensors(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) > 0 and all(isinstance(x, Tensor) for x in value)


def _from_mapping(batch: Mapping[Any, Any]) -> Probe:
    tensors = {key: value for key, value in batch.items() if isinstance(value, Tensor)}
    labels = [key for key in tensors if str(key).lower() in _LABEL_KEYS]
    if len(labels) > 1:
        raise ValueError(f"Cannot infer which of {labels} in a batch is the targets. {FIX}")
    targets = tensors.pop(labels[0]) if labels else None
    inputs = tuple(x for x in tensors.values() if x.is_floating_point())
    if not inputs:
        dtypes = {key: str(x.dtype) for key, x in tensors.items()}
        raise TypeError(f"A batch has no floating-point tensor to explain, only {dtypes}. {FIX}")
    others = tuple(x for x in tensors.values() if not x.is_floating_point())
    return _probe(f"A batch with {list(batch)}", inputs, targets, others)
