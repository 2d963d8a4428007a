"""A probe as plain data: its fingerprint, and its conversion to and from a checkpoint's state."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_map_only

from lightning_explain.core.probe import Probe

# Compared by exact type: a NumPy float is an instance of float, but does not load with weights_only=True.
_PLAIN = (bool, int, float, str, type(None))


def fingerprint(probe: Probe) -> str:
    """The SHA-256 of a probe: over bytes, shapes and dtypes of its inputs, targets, ids, masks and forward arguments.

    Device and memory layout do not matter. Forward arguments that are neither tensors nor plain values count by their
    type only.
    """
    if (known := _KNOWN.get(probe)) is not None and all(seen.unchanged() for seen in known[0]):
        return known[1]
    others: dict[str, Any] = {"class_names": None, "stds": (), "parameters": (), "meta": {}}
    found = {**columns(probe), **others}
    del found["entries"]  # The ids tell them apart.
    del found["views"]
    parts = list(_leaves(found))
    digest, tensors = _digest(parts), [value for _, value in parts if isinstance(value, Tensor)]
    # What is in other containers may be replaced.
    fixed = type(probe.forward_args) is tuple and not any(
        isinstance(x, (list, tuple, dict)) for x in probe.forward_args
    )
    if fixed and not probe.labels and all(map(_Seen.can_be, tensors)):
        _KNOWN[probe] = list(map(_Seen, tensors)), digest
    return digest


class _Seen:
    """A tensor as it was; tells whether something has been written into it, also through an array that shares its memory."""

    def __init__(self, value: Tensor) -> None:
        flat = value.detach().view(-1)
        self._value, self._flat = value, flat.view(torch.int64 if flat.nbytes % 8 == 0 else torch.uint8)
        self._before = self._state()

    @staticmethod
    def can_be(value: Tensor) -> bool:
        """Whether the numbers of a tensor lie one after the other, and writing into it is counted."""
        plain = type(value) is Tensor and value.is_contiguous() and not value.is_inference()
        return plain and int(value.storage_offset()) * value.element_size() % 8 == 0

    def _state(self) -> tuple[int, int, Any]:
        # A sum tells nearly any change that is not counted, much faster than a digest would.
        numbers = self._flat.tolist() if len(self._flat) <= 64 else self._flat.sum().item()
        return self._value._version, self._value.data_ptr(), numbers

    def unchanged(self) -> bool:
        """Whether the tensor holds what it did."""
        return self._state() == self._before


_KNOWN: WeakKeyDictionary[Probe, tuple[list[_Seen], str]] = WeakKeyDictionary()
"""Fingerprints that have been computed, with the tensors of the probe."""


def _digest(parts: list[tuple[str, Any]]) -> str:
    digest = hashlib.sha256()
    for name, value in parts:
        body = _buffer(value) if isinstance(value, Tensor) else b""
        if isinstance(value, Tensor):
            head = f"{value.dtype} {tuple(value.shape)}"
        else:
            head = f"{value!r}" if type(value) in _PLAIN else f"{type(value)}"
        digest.update(f"{name} {head} {len(body)}\n".encode())
        digest.update(body)
    return digest.hexdigest()


def _buffer(value: Tensor) -> bytes | memoryview:
    if not value.numel():
        return b""  # Its strides need not be contiguous, whatever it is asked for.
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def bytes_of(value: Tensor) -> bytes:
    """The numbers of a tensor as bytes, whatever its dtype: NumPy has no bfloat16."""
    return bytes(_buffer(value))


def probe_state(probe: Probe) -> dict[str, Any]:
    """A probe as a dictionary that ``torch.load(weights_only=True)`` can load; ``Probe(**state)`` is the same probe again.

    Its tensors are copies on the CPU.

    Raises:
        TypeError: If a forward argument is not a tensor, number, string, ``None``, or a tuple, list or dictionary of
            these.
    """
    state = columns(probe)
    for name, value in _leaves(state):
        if not (isinstance(value, Tensor) or type(value) in _PLAIN):
            raise TypeError(
                f"Probe({name}=...) is a {type(value).__name__}, which a checkpoint cannot hold; give tensors, numbers, text, "
                "None, and tuples, lists or dictionaries of them, or use save_probe=False."
            )
    return dict(copied(state))


def columns(probe: Probe) -> dict[str, Any]:
    """The probe's fields by name, but for the modalities, which are found anew with the model; class names as a tuple of strings."""
    left_out = ("modalities",) if probe.labels else ("modalities", "labels")
    found = {field.name: getattr(probe, field.name) for field in fields(probe) if field.name not in left_out}
    names, meta = found["class_names"], {str(key): tuple(map(str, texts)) for key, texts in probe.meta.items()}
    return {**found, "class_names": None if names is None else tuple(map(str, names)), "meta": meta}


def plain(tensor: Tensor) -> Tensor:
    """The numbers of a tensor of a subclass, such as MONAI's ``MetaTensor``, as a plain one; others, sharded ones too, unchanged."""
    if type(tensor) in (Tensor, nn.Parameter) or is_traceable_wrapper_subclass(tensor):
        return tensor
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor)


def frozen(probe: Probe) -> Probe:
    """The same probe, made of plain tensors, and of copies of those made in inference mode, which no backward pass can save.

    It is the given one where it is so already.
    """
    if all(type(x) is Tensor and not x.is_inference() for _, x in _leaves(columns(probe)) if isinstance(x, Tensor)):
        return probe
    with torch.inference_mode(False):
        own = tree_map_only(Tensor, lambda x: plain(x.clone() if x.is_inference() else x), columns(probe))
    return replace(probe, **own)


def copied(value: Any) -> Any:
    """A deep copy of tensors, as plain ones, and of tuples, lists and dictionaries of them, on the CPU and without gradients."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).as_subclass(Tensor)
    if isinstance(value, dict):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return (tuple if isinstance(value, tuple) else list)(map(copied, value))
    return value


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (tuple, list, dict)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value
