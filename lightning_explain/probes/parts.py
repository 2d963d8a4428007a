"""Parts of a batch in; what they are (several inputs, one tensor for each sample, labels, texts) out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor

from lightning_explain.core.call import Place, leaves
from lightning_explain.probes.signature import Signature

_LABEL_KEYS = ("label", "labels", "target", "targets", "y")


_GRAPHS = ("torch_geometric", "dgl")


def graph_package(value: Any) -> str:
    """The package of a graph or a batch of graphs, PyTorch Geometric or DGL; empty for other parts."""
    packages = (cls.__module__.partition(".")[0] for cls in type(value).__mro__)
    return next((package for package in packages if package in _GRAPHS), "")


def names_in(batch: Any, forward: Signature | None) -> dict[str, Any] | None:
    """The parts of a batch by their names; ``None`` if it has no names to go by."""
    if isinstance(batch, Mapping):
        return {str(key): value for key, value in batch.items()}
    if is_dataclass(batch) and not isinstance(batch, type):
        return {field.name: getattr(batch, field.name) for field in fields(batch)}
    if isinstance(batch, tuple) and hasattr(batch, "_asdict"):
        parts: dict[str, Any] = batch._asdict()
        fits = forward is not None and set(parts) <= set(forward.names)
        return parts if fits or any(map(is_label, parts)) else None
    return None


def is_label(key: str) -> bool:
    """Whether a name is that of the labels."""
    return key.lower() in _LABEL_KEYS


def are_tensors(value: Any) -> bool:
    """Whether a part is a tuple or list of tensors, at least one."""
    return isinstance(value, (tuple, list)) and len(value) > 0 and all(isinstance(x, Tensor) for x in value)


def are_labels(value: Any, count: int | None) -> bool:
    """Whether a part holds the labels of several outputs: a mapping or sequence of tensors, each with a label for each sample."""
    parts = list(value.values()) if isinstance(value, Mapping) else value if are_tensors(value) else []
    return len(parts) > 0 and all(isinstance(x, Tensor) and x.ndim > 0 and len(x) == count for x in parts)


def labels_of(value: Any) -> dict[str, Tensor]:
    """The labels of several outputs by name, those of a sequence by number; classes ``(N, 1)`` become ``(N,)``."""
    named = value.items() if isinstance(value, Mapping) else enumerate(value)
    return {str(name): column(x) for name, x in named}


def column(targets: Tensor) -> Tensor:
    """Labels; whole numbers ``(N, 1)`` become ``(N,)``."""
    single = not targets.is_floating_point() and targets.ndim == 2 and targets.shape[1] == 1
    return targets.squeeze(1) if single else targets


def holds_tensors(value: Any) -> bool:
    """Whether a part is a tensor, or a container with one in it."""
    return any(isinstance(x, Tensor) for _, x in leaves(value))


def tensors_in(batch: Any) -> list[tuple[Place, Tensor]]:
    """The tensors in a batch or a part of one, with the keys that lead to them."""
    return [(place, x) for place, x in leaves(names_in(batch, None) or batch) if isinstance(x, Tensor)]


def count_of(targets: Any, parts: Iterable[Any]) -> int | None:
    """The number of samples, as far as targets, tensors or lists tell it."""
    if isinstance(targets, Tensor):
        return len(targets) if targets.ndim else None
    return next((len(part) for part in parts if isinstance(part, Tensor) and part.ndim), None)


def one_each(value: Any, parts: Iterable[Any], count: int | None) -> bool:
    """Whether a part is a list with one tensor for each sample (images of unlike sizes), and not several inputs."""
    if not are_tensors(value):
        return False
    beside = (
        part for part in parts if part is not value and isinstance(part, (tuple, list)) and len(part) == len(value)
    )
    # Such as a dictionary with the boxes of each image.
    listed = any(_unlike(part) or any(isinstance(x, Mapping) for x in part) for part in beside)
    return listed or _unlike(value) or (len(value) == count and len(value[0]) != count)


def _unlike(value: Any) -> bool:
    return are_tensors(value) and (len({x.shape[:1] for x in value}) > 1 or value[0].ndim == 0)


def texts(parts: Mapping[str, Any], count: int | None) -> dict[str, tuple[str, ...]]:
    """The lists of one string for each sample; of a list of words for each, joined by spaces."""
    lists = {key: part for key, part in parts.items() if isinstance(part, (tuple, list)) and len(part) == count}
    found = {key: tuple(x if isinstance(x, str) else _sentence(x) for x in part) for key, part in lists.items() if part}
    return {key: tuple(map(str, part)) for key, part in found.items() if None not in part}


def _sentence(words: Any) -> str | None:
    """The words of a list of strings, joined by spaces; ``None`` if it is none."""
    listed = isinstance(words, (tuple, list)) and all(isinstance(word, str) for word in words)
    return " ".join(words) if listed and words else None
