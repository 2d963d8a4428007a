"""The parts of ``gpu.py``, each a table of what was found and whether it is as it should be."""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version

import memory
import torch
from _gpu_speed import share, speed
from _gpu_training import interference
from methods import pairs
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from _measure import distance, explainer, in_short, in_turn, peak_mib, table
from _workload import ResNet, images, methods, trained
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.core.probe import flat
from lightning_explain.explainer.explainer import Explainer

EQUAL = 1e-5
GROWS = 1.2
RANDOM = ("smoothgrad", "vargrad", "smoothgrad of input_x_gradient")
"""Methods whose draws are not Captum's."""


@dataclass(frozen=True)
class Setting:
    """What every part gets.

    Args:
        device: Where the network is.
        small: Whether networks are tiny.
        repeat: How often each thing is measured.
    """

    device: torch.device
    small: bool
    repeat: int

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def network(self) -> nn.Module:
        """A trained ResNet-20 in eval mode, or one with a block a stage."""
        small = trained(ResNet((8, 8, 8), blocks=1), steps=3)
        return (small if self.small else trained()).eval().to(self.device)

    def probe(self, samples: int = 16) -> Probe:
        x, y = images(samples, seed=10_000)
        return Probe(x.to(self.device), targets=y.to(self.device))


Found = tuple[Table, list[str]]
"""A table, and what is not as it should be."""


def run(chosen: argparse.Namespace, names: Sequence[str]) -> int:
    """Runs the parts, prints their tables, and returns the exit code. A part that fails does not end the others."""
    warnings.simplefilter("ignore")
    setting = Setting(device_of(chosen.device), chosen.small, chosen.repeat)
    console = Console(width=150, record=chosen.save is not None)
    console.print(machine(setting.device))
    parts: dict[str, Callable[[Setting], Found]] = {
        "interference": lambda s: interference(s.device),
        "equality": equality,
        "memory": peaks,
        "passes": passes,
        "out_of_memory": out_of_memory,
        "speed": lambda s: speed(s.device, s.small, s.repeat),
        "share": lambda s: share(s.device, s.small),
    }
    failed: list[str] = []
    for name in chosen.parts or names:
        try:
            found, wrong = parts[name](setting)
            console.print(found)
        except Exception as error:
            traceback.print_exc()
            wrong = [f"did not run: {in_short(error)}"]
            console.print(f"{name}: {wrong[0]}", markup=False)
        failed += [f"{name}: {what}" for what in wrong]
        if setting.cuda:
            torch.cuda.empty_cache()
        _save(console, chosen)
    console.print(f"failed: {'; '.join(failed)}" if failed else "all checks passed", markup=False)
    _save(console, chosen)
    return int(bool(failed))


def _save(console: Console, chosen: argparse.Namespace) -> None:
    if chosen.save is not None:
        chosen.save.write_text(console.export_text(clear=False), encoding="utf-8")


def device_of(name: str) -> torch.device:
    """The device of a name; a card becomes the current one, so that clocks and kernels are its own."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = torch.device("cuda", device.index if device.index is not None else 0)
    if device.index >= count:
        built = "for CUDA " + torch.version.cuda if torch.version.cuda else "without CUDA"
        sys.exit(
            f"--device {name}: torch {torch.__version__}, built {built}, finds {count} cards. Take --device cpu to try the script."
        )
    torch.cuda.set_device(device)
    return device


def machine(device: torch.device) -> str:
    """The device and the versions, on one line."""
    cuda = device.type == "cuda"
    card = (
        f"{torch.cuda.get_device_name(device)}, {torch.cuda.get_device_properties(device).total_memory / 2**30:.0f} GiB"
        if cuda
        else f"{platform.machine()} processor, {torch.get_num_threads()} threads"
    )
    below = f", CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}" if cuda else ""
    packages = ", ".join(f"{name} {version(name)}" for name in ("lightning", "captum", "torchvision"))
    return f"{card}; torch {torch.__version__}{below}; {packages}"


# -- the same numbers ----------------------------------------------------------------------------------------------


def equality(setting: Setting) -> Found:
    """Maps against Captum's call on the same device."""
    found, wrong = table("Maps against Captum's", "method", "float32", "float64", "allowed"), []
    single, model = setting.probe(), setting.network()
    double = replace(single, inputs=single.inputs.double())
    exact = copy.deepcopy(model).double()
    for name, pair in pairs(model).items():
        if name in RANDOM:
            continue
        try:
            values = [_difference(model, single, name, pair)]
            if not values[0] <= EQUAL:
                values.append(_difference(exact, double, name, pairs(exact)[name]))
        except Exception as error:
            traceback.print_exc()
            found.add_row(name, "did not run", "", f"{EQUAL:.0e}")
            wrong.append(f"{name}: {in_short(error)}")
            continue
        if not values[-1] <= EQUAL:
            wrong.append(f"{name} differs by {values[-1]:.1e}")
        found.add_row(name, *(f"{v:.1e}" for v in values), *[""] * (2 - len(values)), f"{EQUAL:.0e}")
    return found, wrong


def _difference(model: nn.Module, probe: Probe, name: str, pair: object) -> float:
    with _exact():
        ours = explain(model, probe, {name: pair.ours}, []).attributions[name]
        theirs = pair.captum(probe.inputs, probe.targets).detach()
    return distance(ours.to(theirs.device), theirs)


@contextmanager
def _exact() -> Iterator[None]:
    """Without TensorFloat-32, in which numbers have ten bits."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


# -- memory --------------------------------------------------------------------------------------------------------


def peak(setting: Setting, action: Callable[[], object]) -> float:
    """Peak of an action in MiB: what CUDA's allocator gave, or the bytes of live tensors."""
    if not setting.cuda:
        return peak_mib(action)
    torch.cuda.synchronize(setting.device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(setting.device)
    before = torch.cuda.memory_allocated(setting.device)
    action()
    torch.cuda.synchronize(setting.device)
    return (torch.cuda.max_memory_allocated(setting.device) - before) / 2**20


def peaks(setting: Setting) -> Found:
    """Peaks against Captum's default batches, with more and more steps and draws. Where Captum's do not fit into memory, it says so."""
    found, wrong = table("Peak memory, MiB", "", "n", "ours", "Captum", "ours / Captum"), []
    model, samples = setting.network(), setting.probe(4 if setting.small else 16)
    ours: dict[str, list[float]] = {}
    for name, n in memory.sizes():
        if setting.small and n > 50:
            continue
        mine = peak(setting, memory.ours(name, n, model, samples))
        ours.setdefault(name, []).append(mine)
        try:
            theirs = peak(setting, memory.captum(name, n, model, samples))
            cells = f"{theirs:.0f}", f"{mine / theirs:.2f}"
        except torch.OutOfMemoryError:
            cells = "does not fit", ""
        found.add_row(name, str(n), f"{mine:.0f}", *cells)
    for name, values in ours.items():
        if values[-1] > GROWS * values[0] and not setting.small:
            wrong.append(
                f"{name}: the largest number takes {values[-1] / values[0]:.2f} times the memory of the smallest"
            )
    return found, wrong


def passes(setting: Setting) -> Found:
    """Seconds at several pass sizes and memory formats."""
    model, samples = setting.network(), setting.probe(4 if setting.small else 64)
    sizes = (4, 8) if setting.small else (16, 32, 64, 128, 256)
    chosen = {"ig": m.IntegratedGradients(n_steps=16), "saliency": m.Saliency()}
    limit = Explainer(chosen, {}, limit=sizes[-1]).check(model, samples).fastest(model, samples).limit
    found = table(f"Seconds at each pass size; chosen: {limit}", "samples in a pass", "contiguous", "channels_last")
    layouts = {False: "contiguous", True: "channels_last"}
    runs = {
        (size, last): explainer(model, samples, chosen, limit=size, channels_last=last)
        for size in sizes
        for last in layouts
    }
    in_turn(runs, 1)
    times = {key: statistics.median(values) for key, values in in_turn(runs, setting.repeat).items()}
    for size in sizes:
        found.add_row(str(size), *(f"{times[size, last]:.4f}" for last in layouts))
    return found, []


def out_of_memory(setting: Setting) -> Found:
    """The same maps where the first pass size does not fit."""
    model, samples, limit = setting.network(), setting.probe(), 64
    chosen = {"ig": m.IntegratedGradients(n_steps=16), "occlusion": methods()["occlusion"]}

    def maps() -> dict[str, Tensor]:
        return {
            k: flat(v) for k, v in explain(model, samples, chosen, [], max_examples_per_pass=limit).attributions.items()
        }

    sent: list[int] = []
    with _exact(), _counting(model, sent):
        expected = maps()
        needed, largest = peak(setting, maps), max(sent)
        sent.clear()
        with _less_memory(setting, model, needed):
            found = maps()
    differences = {name: distance(found[name].flatten(1), expected[name].flatten(1)) for name in chosen}
    shown = table(
        "A device that is too small for the first pass size", "", "enough memory", "too little", "maps differ by"
    )
    passed = sorted(set(sent))
    shown.add_row(
        "largest pass", str(largest), f"{passed[-1] if passed else 'none'}", f"{max(differences.values()):.1e}"
    )
    wrong = [f"{name} differs by {value:.1e}" for name, value in differences.items() if not value <= EQUAL]
    return shown, wrong + ([] if passed and passed[-1] < largest else ["no pass was made smaller"])


@contextmanager
def _counting(model: nn.Module, sent: list[int]) -> Iterator[None]:
    """Collects the sizes of the passes that came to an end."""
    handle = model.register_forward_hook(lambda module, inputs, output: sent.append(len(output)))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _less_memory(setting: Setting, model: nn.Module, needed: float) -> Iterator[None]:
    """Leaves a quarter of the memory that was needed; on a CPU, where nothing limits it, passes above 16 samples fail."""
    if not setting.cuda:

        def refuse(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if len(inputs[0]) > 16:
                raise torch.OutOfMemoryError("CUDA out of memory")

        handle = model.register_forward_pre_hook(refuse)
        try:
            yield
        finally:
            handle.remove()
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(setting.device).total_memory
    allowed = torch.cuda.memory_reserved(setting.device) + needed / 4 * 2**20
    torch.cuda.set_per_process_memory_fraction(allowed / total, setting.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, setting.device)
