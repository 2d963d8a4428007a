"""Two reports of the same samples in; in what they explain something else, or in another way, with both values, out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from lightning_explain.core.report import Report
from lightning_explain.core.schema import brief

_SETTINGS = ("target", "task", "modalities", "forward_fn", "output_fn", "normalization", "seed")
"""The settings of a monitor on which the numbers of an explanation depend, but for its methods, metrics and samples."""

Differing = Mapping[str, tuple[str, str]]
"""By what differs, in words: that of the first report and that of the second one."""


def differing(a: Report, b: Report, order: Tensor) -> dict[str, tuple[str, str]]:
    """Takes two reports of the same samples, and returns in what they explain something else, or in another way.

    The target and what it means, the explained output of each sample, arguments (with the layer) of methods and metrics of the same name,
    and settings on which numbers depend. Methods and metrics that one of them lacks are not among it.

    Args:
        a: A report.
        b: Another one.
        order: ``(N,)``, where the samples of the first one are in the second one.
    """
    return {name: pair for name, pair in _pairs(a, b, order) if pair[0] != pair[1]}


def _pairs(a: Report, b: Report, order: Tensor) -> Iterator[tuple[str, tuple[str, str]]]:
    first, second = a.run, b.run
    if first is not None and second is not None:
        for name in _SETTINGS:
            if name in first.settings and name in second.settings:
                x, y = first.settings[name], second.settings[name]
                yield name, (_words(_known(x, y)), _words(_known(y, x)))
        if first.task and second.task:
            yield "what is explained", (first.task, second.task)
    if a.task and b.task:
        yield "recognized task", (a.task, b.task)
    if a.by_target or b.by_target:
        yield "names of targets", (_names(a), _names(b))
    yield from _outputs(a, b, order)
    if first is not None and second is not None:
        for kind, x, y in (("method", first.methods, second.methods), ("metric", first.metrics, second.metrics)):
            yield from ((f"{kind} {name!r}", (x[name], y[name])) for name in x if name in y)


def _outputs(a: Report, b: Report, order: Tensor) -> Iterator[tuple[str, tuple[str, str]]]:
    """The indices of the outputs that are explained, where they differ: those of each target that both have."""
    parts = {"": (a, b)}
    if a.by_target or b.by_target:
        parts = {name: (a.of_target(name), b.of_target(name)) for name in a.by_target if name in b.by_target}
    for name, (x, y) in parts.items():
        first, second = x.targets, y.targets[order]
        others = (first != second).nonzero()[:, 0]
        if len(others):
            where = f"of {len(others)} of {len(first)} samples, {brief(a.samples[others].tolist())}"
            pair = f"{brief(first[others].tolist())} {where}", f"{brief(second[others].tolist())} {where}"
            yield "explained outputs" + (f" of target {name!r}" if name else ""), pair


def _names(report: Report) -> str:
    return ", ".join(report.by_target) or "one target without a name"


def _known(value: Any, other: Any) -> Any:
    """A setting without arguments that are ``None`` and that the other one lacks, as it was stored before there were such."""
    if isinstance(value, Mapping) and isinstance(other, Mapping) and value.get("class") == other.get("class"):
        kept = {name: part for name, part in value.items() if name in other or part is not None}
        return {name: _known(part, other.get(name)) for name, part in kept.items()}
    if isinstance(value, (list, tuple)) and isinstance(other, (list, tuple)) and len(value) == len(other):
        return [_known(*pair) for pair in zip(value, other, strict=True)]
    return value


def _words(value: Any) -> str:
    """A setting, as :func:`~lightning_explain.core.run_info.plain` stored it, as the user writes it."""
    if isinstance(value, Mapping):
        inner = {str(name): _words(part) for name, part in value.items() if name != "class"}
        if isinstance(value.get("class"), str):
            return f"{value['class']}({', '.join(f'{name}={text}' for name, text in inner.items())})"
        return f"{{{', '.join(f'{name!r}: {text}' for name, text in inner.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(_words, value))})"
    return f'"{value}"' if isinstance(value, str) else str(value)
