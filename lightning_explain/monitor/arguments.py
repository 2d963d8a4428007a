"""The monitor's arguments, checked and put into the form in which they are used."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_explain.core.contracts import Metric
from lightning_explain.core.probe import Probe
from lightning_explain.monitor.schedule import Schedule
from lightning_explain.probes.selection import ProbeSelection
from lightning_explain.render.options import Options

_RESERVED = ("caption", "overhead", "seconds", "table")


def schedule_of(every_n_epochs: Any, every_n_train_steps: Any, max_overhead: Any, hook: str) -> Schedule:
    """When to explain.

    Raises:
        ValueError: If a count or the share is out of range, or two arguments exclude each other.
    """
    for name, value in {"every_n_epochs": every_n_epochs, "every_n_train_steps": every_n_train_steps}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{name}={value!r}; allowed: a whole number of at least 1, or None.")
    if every_n_epochs is not None and every_n_train_steps is not None:
        raise ValueError("every_n_epochs and every_n_train_steps exclude each other; give one of them.")
    if every_n_train_steps is not None and hook == "validation_epoch_end":
        raise ValueError('every_n_train_steps and hook="validation_epoch_end" exclude each other; give one of them.')
    number = isinstance(max_overhead, (int, float)) and not isinstance(max_overhead, bool)
    if max_overhead is not None and not (number and 0 < max_overhead < math.inf):
        raise ValueError(f"max_overhead={max_overhead!r}; allowed: None or a share above 0, such as 0.05.")
    return Schedule(every=every_n_epochs or every_n_train_steps or 1, max_overhead=max_overhead)


def selection_of(probe: Any) -> ProbeSelection:
    """How samples are chosen, if they are not given.

    Raises:
        TypeError: If it is not a way to name samples.
    """
    if probe is None or isinstance(probe, Probe):
        return ProbeSelection()
    if isinstance(probe, ProbeSelection):
        return probe
    if isinstance(probe, Tensor) or (isinstance(probe, (tuple, list)) and any(isinstance(x, Tensor) for x in probe)):
        raise TypeError("probe is made of tensors; give Probe(inputs, targets), or a list of dataset indices.")
    if isinstance(probe, Sequence) and not isinstance(probe, (str, bytes)):
        return ProbeSelection(indices=probe)
    raise TypeError(
        f"probe is a {type(probe).__name__}; allowed: ProbeSelection(count=16), Probe(inputs, targets), "
        "or a list of dataset indices."
    )


def options_of(methods: Iterable[str], panels: Any, cmap: Any, outlier_perc: Any, **others: Any) -> Options:
    """What the pictures look like.

    Raises:
        ValueError: If a value is not allowed, or there is no method of a name.
        TypeError: If a value is of a kind that is not allowed.
    """
    given = {**others, "cmap": cmap, "outlier_perc": outlier_perc}
    options = Options(**given) if panels is None else Options(panels=panels, **given)
    options.check_methods(methods)
    return options


def check_tags(methods: Iterable[str], metrics: Mapping[str, Metric]) -> None:
    """Refuses names under which two things would be written to one place, on systems that do not tell cases apart as well.

    Args:
        methods: The names of all methods, which are those of their pictures and folders.
        metrics: All metrics, by name.

    Raises:
        ValueError: If two are alike.
    """
    methods = list(methods)
    scores = [f"{name}_{suffix}" if suffix else name for name, metric in metrics.items() for suffix in metric.suffixes]
    named = [(place, f"what the monitor itself writes as {place!r}") for place in _RESERVED]
    named += [(method, f"the method {method!r}") for method in methods]
    named += [(f"nonfinite/{m}", f"what the monitor itself writes as 'nonfinite/{m}'") for m in methods]
    named += [(f"{score}/{method}", f"the score {score!r} of {method!r}") for score in scores for method in methods]
    places: dict[str, str] = {}
    for place, owner in named:
        if place.casefold() in places:
            other = places[place.casefold()]
            raise ValueError(
                f"{owner} and {other} would be written to one place; give methods=... or metrics=... other names."
            )
        places[place.casefold()] = owner
