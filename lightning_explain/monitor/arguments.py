"""Takes the monitor's arguments as the user wrote them, checks them, and returns the objects the monitor works with."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_explain.core.contracts import Metric, Sink
from lightning_explain.core.naming import score_name
from lightning_explain.core.probe import Probe
from lightning_explain.core.schema import LARGEST_SEED, brief
from lightning_explain.core.validation import (
    check_callable,
    check_choice,
    check_flag,
    check_name,
    check_whole,
    is_number,
    refused,
)
from lightning_explain.monitor.beside import Beside
from lightning_explain.monitor.schedule import Schedule
from lightning_explain.probes.selection import ProbeSelection
from lightning_explain.store.thinning import Reports

Named: TypeAlias = "Mapping[str, object]"

_HOOKS = ("train_epoch_end", "validation_epoch_end")
_RESERVED = ("caption", "overhead", "seconds", "table")


def check_plain(seed: Any, hook: Any, on_error: Any, name: Any, flags: Named, functions: Named) -> None:
    """Refuses arguments that can be checked one at a time.

    Args:
        seed: As the monitor takes it.
        hook: As the monitor takes it.
        on_error: As the monitor takes it.
        name: As the monitor takes it.
        flags: Arguments that must be ``True`` or ``False``, by name.
        functions: Arguments that must be callable or ``None``, by name.

    Raises:
        ValueError: If a value is not allowed.
        TypeError: If a type is not allowed.
    """
    check_whole("", "seed", seed, least=0, most=LARGEST_SEED)
    for flag, value in flags.items():
        check_flag("", flag, value)
    if flags["log_artifacts"] and not flags["save_reports"]:
        raise ValueError(
            "log_artifacts=True uploads the files of the reports, but save_reports=False writes none; leave one of them out."
        )
    for function, value in functions.items():
        check_callable("", function, value)
    check_choice("", "hook", hook, _HOOKS)
    check_choice("", "on_error", on_error, ("warn", "raise"))
    check_name(name)


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The default of each argument."""
    return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}


def asked(target: Any, *named: object) -> bool:
    """Whether the user named what to explain, by a target or by any of the arguments that are ``None`` or ``"auto"`` by default."""
    left = [value is None or (isinstance(value, str) and value == "auto") for value in named]
    return not (isinstance(target, str) and target == "label") or not all(left)


def schedule_of(every_n_epochs: Any, every_n_train_steps: Any, max_overhead: Any, hook: str) -> Schedule:
    """The schedule that these arguments describe.

    Raises:
        ValueError: If a count or the share is out of range, or two arguments exclude each other.
    """
    for name, value in {"every_n_epochs": every_n_epochs, "every_n_train_steps": every_n_train_steps}.items():
        check_whole("", name, value, also=(None,), most=10**12)
    if every_n_epochs is not None and every_n_train_steps is not None:
        raise ValueError("every_n_epochs and every_n_train_steps exclude each other; give only one.")
    if every_n_train_steps is not None and hook == "validation_epoch_end":
        raise ValueError('every_n_train_steps and hook="validation_epoch_end" exclude each other; give only one.')
    if max_overhead is not None and not (is_number(max_overhead) and 0 < max_overhead < math.inf):
        raise refused("", "max_overhead", max_overhead, "None or a share above 0, such as 0.05")
    return Schedule(every=every_n_epochs or every_n_train_steps or 1, max_overhead=max_overhead)


def selection_of(probe: Any) -> ProbeSelection:
    """The selection that the argument ``probe`` describes; the default one if it is ``None`` or a ``Probe``.

    Raises:
        TypeError: If the argument is neither a selection, a probe nor a list of indices.
    """
    if probe is None or isinstance(probe, Probe):
        return ProbeSelection()
    if isinstance(probe, ProbeSelection):
        return probe
    if isinstance(probe, Tensor) or (isinstance(probe, (tuple, list)) and any(isinstance(x, Tensor) for x in probe)):
        raise TypeError("probe is made of tensors; give Probe(inputs, targets), or a list of dataset indices.")
    if isinstance(probe, Sequence) and not isinstance(probe, (str, bytes)):
        return ProbeSelection(indices=probe)
    raise TypeError(f"probe is a {type(probe).__name__}; give a ProbeSelection, a Probe, or a list of dataset indices.")


def reports_of(enabled: bool, keep_every: Any, keep_last: Any, save_inputs: bool) -> Reports:
    """What saves the reports.

    Raises:
        ValueError: If a count is out of range.
    """
    for name, value in {"keep_every": keep_every, "keep_last": keep_last}.items():
        check_whole("", name, value, also=(None,), most=10**12)
    return Reports(enabled, keep_every, keep_last, save_inputs)


def sinks_of(sinks: Any) -> Sequence[Sink]:
    """The user's own sinks.

    Raises:
        TypeError: If the argument is neither ``"auto"`` nor a list of sinks.
    """
    if isinstance(sinks, str) and sinks == "auto":
        return ()
    if not isinstance(sinks, (tuple, list)) or not all(isinstance(sink, Sink) for sink in sinks):
        raise TypeError(f'sinks={brief(sinks)}; give "auto" or a list of Sink objects.')
    return sinks


def beside_of(beside: Any, when_busy: Any, name: str) -> Beside | None:
    """What explains beside the training; ``None``: the training waits for explanations.

    Raises:
        ValueError: If the device or ``when_busy`` is none.
    """
    check_choice("", "when_busy", when_busy, ("skip", "wait"))
    if isinstance(beside, bool):
        return Beside(None, when_busy, name) if beside else None
    try:
        known = isinstance(beside, str) and bool(torch.device(beside))
    except RuntimeError:
        known = False
    if not known:
        raise refused("", "beside", beside, 'True, False, or a device such as "cpu" or "cuda:1"')
    return Beside(beside, when_busy, name)


def check_tags(methods: Iterable[str], metrics: Mapping[str, Metric]) -> None:
    """Refuses names that would write two things to one tag or folder. Case is ignored, as some file systems ignore it.

    Args:
        methods: Names of all methods; each one also names a picture and a folder.
        metrics: All metrics, by name.

    Raises:
        ValueError: If two names collide.
    """
    methods = list(methods)
    scores = [score_name(name, suffix) for name, metric in metrics.items() for suffix in metric.suffixes]
    named = [(place, f"what the monitor itself writes as {place!r}") for place in _RESERVED]
    named += [(method, f"the method {method!r}") for method in methods]
    named += [(f"nonfinite/{m}", f"what the monitor itself writes as 'nonfinite/{m}'") for m in methods]
    named += [(f"{score}/{method}", f"the score {score!r} of {method!r}") for score in scores for method in methods]
    named += [
        (f"undefined/{s}/{m}", f"what the monitor itself writes as 'undefined/{s}/{m}'")
        for s in scores
        for m in methods
    ]
    places: dict[str, str] = {}
    for place, owner in named:
        if place.casefold() in places:
            other = places[place.casefold()]
            raise ValueError(
                f"{owner} and {other} would be written to one place; give methods=... or metrics=... other names."
            )
        places[place.casefold()] = owner
