"""A probe as plain data: its fingerprint, and its way into a checkpoint and back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from lightning_explain.core.probe import Probe

# Their exact types: a NumPy float is a float too, but does not load with weights_only=True.
_PLAIN = (bool, int, float, str, type(None))


def fingerprint(probe: Probe) -> str:
    """SHA-256 over the bytes, shapes and dtypes of inputs, targets, ids, masks and forward arguments.

    Device and memory layout do not matter. Of forward arguments that are neither tensors nor plain values only the type counts.
    """
    digest = hashlib.sha256()
    for name, value in _leaves({**columns(probe), "class_names": None}):
        if isinstance(value, Tensor):
            head, body = f"{value.dtype} {tuple(value.shape)}", _bytes(value)
        else:
            head, body = f"{value!r}" if type(value) in _PLAIN else f"{type(value)}", b""
        digest.update(f"{name} {head} {len(body)}\n".encode() + body)
    return digest.hexdigest()


def _bytes(value: Tensor) -> bytes:
    # NumPy has no bfloat16, but it has the bytes.
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def probe_state(probe: Probe) -> dict[str, Any]:
    """The probe as a dictionary that ``torch.load(weights_only=True)`` loads. Tensors are copies on the CPU.

    Raises:
        TypeError: If a forward argument is neither a tensor nor a number, text, ``None``, or a tuple, list or
            dictionary of such.
    """
    state = columns(probe)
    for name, value in _leaves(state):
        if not (isinstance(value, Tensor) or type(value) in _PLAIN):
            raise TypeError(
                f"Probe({name}=...) is a {type(value).__name__}, which a checkpoint cannot hold; use save_probe=False."
            )
    return dict(copied(state))


def probe_from_state(state: Mapping[str, Any]) -> Probe:
    """The probe that ``probe_state`` described."""
    return Probe(**state)


def columns(probe: Probe) -> dict[str, Any]:
    """The probe's fields by name; class names as a tuple of text."""
    found = {field.name: getattr(probe, field.name) for field in fields(probe)}
    names = found["class_names"]
    return {**found, "class_names": None if names is None else tuple(map(str, names))}


def copied(value: Any) -> Any:
    """Tensors, also those in tuples, lists and dictionaries, as copies on the CPU without gradients."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
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
