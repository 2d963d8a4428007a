"""Samples a second of each method, alone and in shared passes, and the share of the default monitor: parts of ``gpu.py``."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import share as shares
import torch
from rich.table import Table
from torch import nn

from _measure import explainer, in_turn, table
from _workload import ResNet
from lightning_explain import Probe
from lightning_explain import methods as m


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
    """Samples a second of each method alone, and of all together."""
    samples = 2 if small else 64
    title = f"Samples a second, {samples} samples, at most 64 in a pass, median of {repeat}"
    found = table(title, "network", "method", "float32", "bfloat16")
    wrong: list[str] = []
    for name, network in networks(small).items():
        rates = {dtype: _rates(network, device, dtype, samples, repeat) for dtype in (torch.float32, torch.bfloat16)}
        for method in [*network.methods, TOGETHER, GAIN]:
            found.add_row(name, method, *(rates[dtype][method] for dtype in rates))
        wrong += [f"{name}: no method ran in {dtype}" for dtype, rate in rates.items() if not rate[GAIN]]
        found.add_section()
    return found, wrong


TOGETHER, GAIN = "all of these, together", "one after the other / together"


def _rates(network: Network, device: torch.device, dtype: torch.dtype, samples: int, repeat: int) -> dict[str, str]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            model = network.build().eval().to(device, dtype)
        except ImportError as error:
            return dict.fromkeys([*network.methods, TOGETHER], f"left out: {error}") | {GAIN: "left out"}
        inputs = network.inputs(samples).to(device)
    inputs = inputs.to(dtype) if inputs.is_floating_point() else inputs
    probe = Probe(inputs, targets=torch.arange(samples, device=device) % 10)
    runs, shown = {}, {}
    for name, method in network.methods.items():
        try:
            runs[name] = explainer(model, probe, {name: copy.deepcopy(method)})
            runs[name]()
        except (ValueError, RuntimeError, NotImplementedError) as error:
            runs.pop(name, None)
            shown[name] = f"left out: {str(error).splitlines()[-1].strip()[:60]}"
    if not runs:
        return shown | {TOGETHER: "", GAIN: ""}
    runs[TOGETHER] = explainer(model, probe, {name: network.methods[name] for name in runs})
    runs[TOGETHER]()
    times = {name: statistics.median(values) for name, values in in_turn(runs, repeat).items()}
    shown |= {name: f"{samples / value:,.1f}" for name, value in times.items()}
    return shown | {GAIN: f"{(sum(times.values()) - times[TOGETHER]) / times[TOGETHER]:.2f}"}


def share(device: torch.device, small: bool) -> tuple[Table, list[str]]:
    """The share of an epoch that the default explanation takes."""
    side, count, batch = (32, 64, 16) if small else (224, 1280, 64)
    setups = {"ResNet-50": lambda: resnet(small)} | ({} if small else {"ViT-B/16": lambda: vit(small)})
    found = table(
        "The default monitor", "network", "images of an epoch", "epoch", "explanation", "as long as training on"
    )
    for name, build in setups.items():
        accelerator = "gpu" if device.type == "cuda" else device.type
        epoch, explanation = shares.seconds(build, (3, side, side), count, batch, accelerator)
        equal = f"{explanation / epoch * count:,.0f} images"
        found.add_row(name, f"{count:,}", f"{epoch:.2f} s", f"{explanation:.2f} s", equal)
    return found, []
