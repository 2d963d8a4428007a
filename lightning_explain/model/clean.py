"""Clean outputs, labels and ids in; what a callable target may know of its own samples at every point of a path out."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
_DTYPES = (*_WHOLE, torch.float16, torch.bfloat16, torch.float32, torch.float64)
_NO_LABEL = -1


@dataclass(frozen=True)
class CleanSamples:
    """What a target ``(outputs, sample)`` knows of its N samples: the same at every point of a path, on the device of the outputs.

    Args:
        outputs: The outputs of the unperturbed samples, ``(N, ...)``, without a graph.
        label: Their labels, ``(N, ...)``; ``None`` if they are unknown.
        id: Their ids, ``(N,)``.
    """

    outputs: Tensor
    label: Tensor | None
    id: Tensor

    @property
    def prediction(self) -> Tensor:
        """The index of the largest output of each unperturbed sample, ``(N,)``, in its flattened outputs."""
        return self.outputs.flatten(1).argmax(1) if self.outputs.ndim > 1 else torch.zeros_like(self.id)


def takes_samples(target: Any) -> bool:
    """Whether a target is a callable with two required positional parameters, ``(outputs, sample)``."""
    if not callable(target):
        return False
    try:
        parameters = inspect.signature(target).parameters.values()
    except (ValueError, TypeError):  # Some builtins have no signature.
        return False
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(p.kind in positional and p.default is p.empty for p in parameters) == 2


def packed(samples: CleanSamples) -> Tensor:
    """All of the samples as whole numbers ``(N, K)``, which go through chunks, copies and ranks as target indices do."""
    n, head, label = len(samples.id), [_NO_LABEL], samples.label
    columns = [samples.id.cpu().long()[:, None]]
    if label is not None:
        head = [_DTYPES.index(label.dtype), label.ndim - 1, *label.shape[1:]]
        columns.append(_whole(label))
    columns.append(_whole(samples.outputs))
    return torch.cat([torch.tensor(head).expand(n, -1), *columns], 1)


def unpacked(values: Tensor, outputs: Tensor) -> CleanSamples:
    """What :func:`packed` was given.

    Args:
        values: What it returned, or some lines of it, ``(N, K)``.
        outputs: Outputs of the same samples at any point, ``(N, ...)``, for their form.
    """
    n, head, label, own = len(values), 1, None, outputs[0].numel()
    kind = int(values[0, 0])
    if kind != _NO_LABEL:
        head = 2 + int(values[0, 1])
        label = values[:, head + 1 : values.shape[1] - own]
        label = _numbers(label, _DTYPES[kind]).reshape(n, *values[0, 2:head].tolist())
    clean = _numbers(values[:, values.shape[1] - own :], outputs.dtype).reshape(outputs.shape)
    return CleanSamples(clean, label, values[:, head])


def _whole(values: Tensor) -> Tensor:
    """Numbers ``(N, ...)`` as whole numbers ``(N, K)``: of floating ones the bits in float64."""
    flat = values.detach().cpu().reshape(len(values), -1)
    return flat.double().view(torch.int64) if flat.is_floating_point() else flat.long()


def _numbers(values: Tensor, dtype: torch.dtype) -> Tensor:
    return (values.contiguous().view(torch.float64) if dtype.is_floating_point else values).to(dtype)
