"""Samples a second of each method, alone and in shared passes, and the share of the default monitor: parts of ``gpu.py``."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import share as shares
import torch
from _gpu_training import place
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from _measure import explainer, in_turn, table
from _workload import ResNet
from lightning_explain import Probe
from lightning_explain import methods as m
from lightning_explain.engine.pass_size import within_memory


@dataclass(frozen=True)
class Network:
    """A network with random weights, on which the time does not depend.

    Args:
        build: Makes it.
        inputs: Makes that many samples.
        methods: The methods that are timed.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], torch.Tensor]
    methods: dict[str, Any]


def of_images(window: int) -> dict[str, Any]:
    return {
        "Saliency": m.Saliency(),
        "InputXGradient": m.InputXGradient(),
        "GuidedBackprop": m.GuidedBackprop(),
        "DeepLift": m.DeepLift(),
        "LayerGradCam": m.LayerGradCam(),
        "IntegratedGradients, 16 steps": m.IntegratedGradients(n_steps=16),
        "GradientShap, 8 draws": m.GradientShap(n_samples=8),
        "NoiseTunnel(Saliency), 8 draws": m.NoiseTunnel(m.Saliency(), nt_samples=8),
        "Occlusion, 16 windows": m.Occlusion((3, window, window), strides=(3, window, window)),
    }


OF_TEXT = {
    "LayerGradientXActivation": m.LayerGradientXActivation(),
    "LayerIntegratedGradients, 16 steps": m.LayerIntegratedGradients(n_steps=16),
    "FeatureAblation": m.FeatureAblation(),
}


def bert(small: bool) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    size = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 50,
    }
    return BertForSequenceClassification(BertConfig(num_labels=10, **size if small else {}))


def vit(small: bool) -> nn.Module:
    from torchvision.models import VisionTransformer, vit_b_16

    return VisionTransformer(32, 8, 1, 2, 16, 16, num_classes=10) if small else vit_b_16(weights=None)


def resnet(small: bool) -> nn.Module:
    from torchvision.models import resnet50

    return ResNet((8, 8, 8), blocks=1) if small else resnet50(weights=None)


def networks(small: bool) -> dict[str, Network]:
    """By name; tiny ones have the same kinds of layers."""
    side, length, words = (32, 8, 50) if small else (224, 128, 30_000)

    def noise(count: int) -> torch.Tensor:
        return torch.randn(count, 3, side, side)

    def ids(count: int) -> torch.Tensor:
        return torch.randint(5, words, (count, length))

    pictures = of_images(side // 4)
    return {
        "ResNet-50": Network(lambda: resnet(small), noise, pictures),
        "ViT-B/16": Network(lambda: vit(small), noise, pictures),
        "BERT-base": Network(lambda: bert(small), ids, OF_TEXT),
    }


def speed(device: torch.device, small: bool, repeat: int) -> tuple[Table, list[str]]:
    """Samples a second of each method alone, and of all together.

    Where a pass does not fit into memory, the largest that did is taken from the start, and said."""
    samples = 2 if small else 64
    title = f"Samples a second, {samples} samples, at most {PASS} in a pass unless another number is said, median of {repeat}"
    found = table(title, "network", "method", "float32", "bfloat16")
    wrong: list[str] = []
    for name, network in networks(small).items():
        rates = {dtype: _rates(network, device, dtype, samples, repeat) for dtype in (torch.float32, torch.bfloat16)}
        for method in [*network.methods, TOGETHER, GAIN]:
            found.add_row(name, method, *(rates[dtype][method] for dtype in rates))
        wrong += [f"{name}, {dtype}: {rate[TOGETHER]}" for dtype, rate in rates.items() if not rate[GAIN]]
        found.add_section()
    return found, wrong


TOGETHER, GAIN = "all of these, together", "one after the other / together"
PASS = 64


def _rates(network: Network, device: torch.device, dtype: torch.dtype, samples: int, repeat: int) -> dict[str, str]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = network.build().eval().to(device, dtype)
        except (ImportError, RuntimeError) as error:
            # Without a package, or one that does not fit to this torch.
            shown = dict.fromkeys([*network.methods, TOGETHER], f"left out: {_why(error)}")
            return shown | {GAIN: "left out" if isinstance(error, ImportError) else ""}
        inputs = network.inputs(samples).to(device)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    probe = Probe(inputs, targets=torch.arange(samples, device=device) % 10)
    runs, sizes, shown = {}, {}, {}
    for name in [*network.methods, TOGETHER]:
        if name == TOGETHER and not runs:
            shown[name] = "left out: no method ran"
            continue
        methods = {name: network.methods[name]} if name != TOGETHER else {one: network.methods[one] for one in runs}
        try:
            runs[name], sizes[name] = fitting(model, probe, copy.deepcopy(methods))
        except (ValueError, RuntimeError, NotImplementedError) as error:
            shown[name] = f"left out: {_why(error)}"
    if TOGETHER not in runs:
        return dict.fromkeys(runs, "") | shown | {GAIN: ""}
    times = {name: statistics.median(values) for name, values in in_turn(runs, repeat).items()}
    full = min(PASS, samples)
    for name, value in times.items():
        shown[name] = f"{samples / value:,.1f}" + (f" ({sizes[name]} in a pass)" if sizes[name] < full else "")
    return shown | {GAIN: f"{(sum(times.values()) - times[TOGETHER]) / times[TOGETHER]:.2f}"}


def _why(error: Exception) -> str:
    return " ".join(str(error).split())[:140]


def fitting(model: nn.Module, probe: Probe, methods: dict[str, Any]) -> tuple[Callable[[], object], int]:
    """An explanation that fits into memory, and the most samples in a pass that came to an end."""
    sent: list[int] = []

    def count(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        sent.append(max(len(x) for x in tree_leaves((inputs, named)) if isinstance(x, Tensor) and x.ndim))

    run = explainer(model, probe, methods, limit=PASS)
    handle = model.register_forward_hook(count, with_kwargs=True)
    try:
        run()
    finally:
        handle.remove()
    size = max(sent, default=PASS)
    return (run if size >= min(PASS, len(probe)) else explainer(model, probe, methods, limit=size)), size


def share(device: torch.device, small: bool) -> tuple[Table, list[str]]:
    """The share of an epoch that the default explanation takes; batches are halved until a training fits into memory."""
    side, count, batch = (32, 64, 16) if small else (224, 1280, 64)
    setups = {"ResNet-50": lambda: resnet(small)} | ({} if small else {"ViT-B/16": lambda: vit(small)})
    columns = "images of an epoch", "in a batch", "epoch", "explanation", "as long as training on"
    found = table("The default monitor", "network", *columns)
    for name, build in setups.items():

        def seconds(size: int, build: Callable[[], nn.Module] = build) -> tuple[float, float]:
            return shares.seconds(build, (3, side, side), count, size, **place(device))

        (epoch, explanation), size = within_memory(seconds, batch)
        equal = f"{explanation / epoch * count:,.0f} images"
        found.add_row(name, f"{count:,}", str(size), f"{epoch:.2f} s", f"{explanation:.2f} s", equal)
    return found, []
