"""Shared code of the benchmarks: arguments, clocks, and the bytes of live tensors."""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
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

RESAMPLED = 2000
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
            help="process: CPU seconds of all cores, for a machine that runs other jobs too; use it with --threads 1",
        )
    if repeat is not None:
        made.add_argument(
            "--repeat", type=int, default=repeat, help=f"times each thing is measured (default: {repeat})"
        )
    return made


def start(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the arguments, sets torch's threads and silences Captum's warnings."""
    global _clock
    chosen = made.parse_args()
    if getattr(chosen, "clock", "wall") == "process":
        _clock = time.process_time
    torch.set_num_threads(chosen.threads)
    warnings.simplefilter("ignore")
    return chosen


def seconds(action: Callable[[], object]) -> float:
    """Seconds that an action takes, by the chosen clock, until a device has done its work, too."""
    _synchronize()
    started = _clock()
    action()
    _synchronize()
    return _clock() - started


def now() -> float:
    """The wall clock, once the current device has done what it was given."""
    _synchronize()
    return time.perf_counter()


def _synchronize() -> None:
    # The current device is the one that is measured: gpu.py makes it so.
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def in_turn(actions: Mapping[Any, Callable[[], object]], repeat: int) -> dict[Any, list[float]]:
    """Seconds of each action, ``repeat`` times. Every second round is reversed, so that no action always runs warm."""
    times: dict[Any, list[float]] = {name: [] for name in actions}
    for i in range(repeat):
        for name in reversed(actions) if i % 2 else actions:
            times[name].append(seconds(actions[name]))
    return times


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """The ratio of each pair, whose two times were measured within moments of each other."""
    return [a / b for a, b in zip(first, second, strict=True)]


def median_ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """Median ratio of the pairs."""
    return statistics.median(ratios(first, second))


def interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95% interval of the median, by the bootstrap."""
    given, generator = torch.tensor(values, dtype=torch.float64), torch.Generator().manual_seed(0)
    drawn = given[torch.randint(len(given), (RESAMPLED, len(given)), generator=generator)].quantile(0.5, 1)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def with_interval(values: Sequence[float], digits: int = 2) -> str:
    """The median, and its 95% interval, in words."""
    return "{:.{n}f} ({:.{n}f} to {:.{n}f})".format(statistics.median(values), *interval(values), n=digits)


def explainer(
    model: nn.Module,
    probe: Probe,
    methods: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    limit: int = 64,
    tuned: bool = False,
    channels_last: bool = False,
) -> Callable[[], Report]:
    """A function that explains; one-time checks are already done.

    Args:
        model: The network.
        probe: The samples.
        methods: As in ``explain``.
        metrics: As in ``explain``; none by default.
        limit: Samples in a pass.
        tuned: Whether to measure the fastest pass size first, as a monitor does.
        channels_last: Whether images go through the model in that memory layout.
    """
    explainer = Explainer(methods, metrics or {}, limit=limit, channels_last=channels_last)
    checked = explainer.check(model, probe)
    checked = checked.fastest(model, probe) if tuned else checked
    entries = checked.entries(probe)  # As a monitor does, once.
    return lambda: checked.explain(model, entries)


@contextmanager
def without_parameter_gradients(model: nn.Module) -> Iterator[None]:
    """Puts the model in eval mode, with parameters that need no gradient, to measure bare passes."""
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
    """Counts the live bytes of tensors created inside the context, and their peak.

    Memory that a kernel allocates internally is not counted.
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
    """Peak of the live bytes that an action creates, in MiB."""
    with LiveBytes() as counter:
        action()
    return counter.peak / 2**20


def distance(ours: Tensor, theirs: Tensor) -> float:
    """The largest max|a - b| / max|b| of a sample; max|a| for samples where b is zero."""
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    scale = theirs.flatten(1).abs().amax(1)
    return ((ours - theirs).flatten(1).abs().amax(1) / scale.where(scale > 0, torch.ones_like(scale))).max().item()


def in_short(error: BaseException) -> str:
    """The class of an error, and the first line of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


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
