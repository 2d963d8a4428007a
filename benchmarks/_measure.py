"""What the benchmarks have in common: arguments, clocks, and the bytes of live tensors."""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lightning_explain import Probe, Report
from lightning_explain.explainer.explainer import Explainer

console = Console(width=140)
_clock: Callable[[], float] = time.perf_counter


def parser(description: str | None, repeat: int | None = None, clocks: bool = True) -> argparse.ArgumentParser:
    """Arguments that every benchmark takes."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--threads", type=int, default=2, help="threads of torch (default: 2)")
    if repeat is not None and clocks:
        made.add_argument(
            "--clock",
            choices=("wall", "process"),
            default="wall",
            help="process: seconds of all cores, for a machine that others use as well; with --threads 1",
        )
    if repeat is not None:
        made.add_argument(
            "--repeat", type=int, default=repeat, help=f"times each thing is measured (default: {repeat})"
        )
    return made


def start(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with torch's threads set and Captum's warnings silenced."""
    global _clock
    chosen = made.parse_args()
    if getattr(chosen, "clock", "wall") == "process":
        _clock = time.process_time
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("ignore")
    return chosen


def seconds(action: Callable[[], object]) -> float:
    """Seconds of the chosen clock."""
    started = _clock()
    action()
    return _clock() - started


def in_turn(actions: Mapping[Any, Callable[[], object]], repeat: int) -> dict[Any, list[float]]:
    """Seconds of each action, ``repeat`` times, every other time in reversed order, so that no action is always the warm one."""
    times: dict[Any, list[float]] = {name: [] for name in actions}
    for i in range(repeat):
        for name in reversed(actions) if i % 2 else actions:
            times[name].append(seconds(actions[name]))
    return times


def median_ratio(first: list[float], second: list[float]) -> float:
    """Median of the ratios of each pair: both of a pair were measured within moments of each other."""
    return statistics.median(a / b for a, b in zip(first, second, strict=True))


def explainer(
    model: nn.Module,
    probe: Probe,
    methods: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    limit: int = 64,
    tuned: bool = False,
    channels_last: bool = False,
) -> Callable[[], Report]:
    """A function that explains, with everything that is checked only once already checked; ``tuned``: at the pass size a monitor finds."""
    checked = Explainer(methods, metrics or {}, limit=limit, channels_last=channels_last).check(model, probe)
    if tuned:
        checked = replace(checked, limit=checked.pass_size(model, probe))
    return lambda: checked.explain(model, probe)


@contextmanager
def without_parameter_gradients(model: nn.Module) -> Iterator[None]:
    """In eval mode, with parameters that need no gradient: what the bare passes are measured with."""
    training = model.training
    saved = [(p, p.requires_grad) for p in model.parameters()]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        model.train(training)
        for parameter, requires_grad in saved:
            parameter.requires_grad_(requires_grad)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside that are alive, and their peak.

    What a kernel allocates for itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        result = function(*arguments, **(named or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self._note(value.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def peak_mib(action: Callable[[], object]) -> float:
    """Peak of the live bytes of what the action makes, in MiB."""
    with LiveBytes() as counter:
        action()
    return counter.peak / 2**20


def table(title: str, *columns: str) -> Table:
    made = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right")
    return made


def first_samples(probe: Probe, count: int) -> Probe:
    """The first samples of a probe with one input."""
    assert isinstance(probe.inputs, Tensor)
    assert probe.targets is not None
    return replace(probe, inputs=probe.inputs[:count], targets=probe.targets[:count], ids=probe.sample_ids[:count])
