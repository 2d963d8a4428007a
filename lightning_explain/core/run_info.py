"""``RunInfo``: what is true of a whole run of one monitor, as plain values that JSON can hold."""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import numpy as np
from torch import Tensor

from lightning_explain.core.probe import Probe
from lightning_explain.core.version import __version__

_MOST_NUMBERS = 64


@dataclass(frozen=True)
class RunInfo:
    """What is true of a whole run of one monitor: known before the first explanation, and equal at all of them.

    Args:
        name: The monitor's name.
        settings: The monitor's arguments by name, as :func:`plain` values.
        changed: The settings that differ from their defaults, but for methods and metrics.
        methods: By name, as the user writes them.
        metrics: The same.
        charts: By score: the tags that belong on one chart.
        incomparable: Scores that cannot be compared between epochs.
        with_errors: Scores that come with standard errors.
        how_to_read: By metric: what it is, its range, the better end, chance level.
        objectives: What a ModelCheckpoint or EarlyStopping of the Trainer monitors.
        findings: By method: what the doctor found, as words; only where there is something to say.
        left_out: By method or metric that is left out, or scores nothing: why.
        cost: What an explanation costs, as a sentence.
        higher_is_better: By score; ``None`` where neither end is better.
        class_names: One name per class; empty if they are not known.
        versions: By package.
        fingerprint: SHA-256 of the probe.
        pass_size: How many samples the model is called with.
        threads: How many threads torch computes with.
        modalities: What each input is, such as ``"Image"``.
        task: What the task was taken for, and what ``target="label"`` means for it, in words; empty if the user named the target.
        memory_format: ``"channels_last"`` or ``"contiguous_format"``, in which images go through the model.
        drawing: How pictures are drawn: the arguments of ``Options``, as far as JSON can hold them.
        precision: What explanations are computed in where it is not what the model trains in, in words; else empty.
        hyperparameters: Those that the module and the data module saved (``save_hyperparameters``), flat: numbers and words by name.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    changed: Sequence[str] = ()
    methods: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    charts: Mapping[str, Sequence[str]] = field(default_factory=dict)
    incomparable: Sequence[str] = ()
    with_errors: Sequence[str] = ()
    how_to_read: Mapping[str, str] = field(default_factory=dict)
    objectives: Sequence[str] = ()
    findings: Mapping[str, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    cost: str = ""
    higher_is_better: Mapping[str, bool | None] = field(default_factory=dict)
    class_names: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    fingerprint: str = ""
    pass_size: int | None = None
    threads: int = 1
    modalities: Sequence[str] = ()
    task: str = ""
    memory_format: str = "contiguous_format"
    drawing: Mapping[str, Any] = field(default_factory=dict)
    precision: str = ""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def short(self) -> dict[str, int | float | str]:
        """The settings that tell runs apart in a table, flat: names of methods and metrics, and what differs from the defaults."""
        values: dict[str, Any] = {"methods": ", ".join(self.methods), "metrics": ", ".join(self.metrics)}
        values |= {name: self.settings[name] for name in self.changed}
        flat = {key: str(value) if isinstance(value, bool) else value for key, value in values.items()}
        return {f"{self.name}/{key}": value for key, value in flat.items() if isinstance(value, (int, float, str))}


def versions() -> dict[str, str]:
    """The versions of this package and of those that its numbers depend on."""
    found = {"lightning_explain": __version__, "python": platform.python_version()}
    return found | {name: _version(name) for name in ("torch", "captum", "numpy")}


@functools.cache
def _version(name: str) -> str:
    """Parses the metadata of an installed package once: each time takes milliseconds."""
    return version(name)


def flat(value: Any, key: str = "", lists: bool = False) -> dict[str, Any]:
    """Nested mappings as one, with ``/`` between the names.

    Args:
        value: The mapping.
        key: A name before all others.
        lists: Whether lists of mappings are taken apart, too, by the numbers of their elements.

    Example:
        >>> from lightning_explain.core.run_info import flat
        >>> flat({"model": {"lr": 0.1}, "seed": 3}, "run")
        {'run/model/lr': 0.1, 'run/seed': 3}
    """
    if isinstance(value, Mapping):
        items: Any = value.items()
    elif lists and isinstance(value, (list, tuple)) and any(isinstance(part, Mapping) for part in value):
        items = enumerate(value)
    else:
        return {key: value}
    parts = (flat(part, f"{key}/{name}" if key else str(name), lists) for name, part in items)
    return {name: found for part in parts for name, found in part.items()}


def plain(value: Any, depth: int = 8, numbers: bool = True) -> Any:
    """An argument as numbers, words, lists and mappings; what is none of them is given by the name of its type.

    Args:
        value: The argument.
        depth: How deep it is looked into.
        numbers: Whether small tensors are given by their numbers; else, and large ones, by their shape. Samples are given by
            their ids.

    Example:
        >>> from lightning_explain import methods as m
        >>> from lightning_explain.core.run_info import plain
        >>> plain({"ig": m.IntegratedGradients(n_steps=8)})["ig"]["n_steps"]
        8
    """
    inner, kind = partial(plain, depth=depth - 1, numbers=numbers), type(value).__name__
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Probe):
        return {"class": kind, "ids": value.sample_ids.tolist()}
    if isinstance(value, (Tensor, np.ndarray, np.generic)):
        small = value.numel() if isinstance(value, Tensor) else value.size
        return inner(value.tolist()) if small <= _MOST_NUMBERS and numbers else f"{kind} {tuple(value.shape)}"
    if depth and isinstance(value, Mapping):
        return {str(key): inner(part) for key, part in value.items()}
    if depth and isinstance(value, (tuple, list)):
        return [inner(part) for part in value]
    if depth and isinstance(value, (set, frozenset)):
        return sorted(map(inner, value), key=str)
    if depth and is_dataclass(value) and not isinstance(value, type):
        return {"class": kind, **{f.name: inner(getattr(value, f.name, None)) for f in fields(value) if f.init}}
    return str(getattr(value, "__qualname__", kind))
