"""What the doctor says of torchvision's networks, and how far mended maps are from Captum's on copies repaired by hand.

    python benchmarks/doctor_zoo.py [network ...]

Random weights, mean statistics of a few batches. "before" is Captum's DeepLIFT on the network as it is (in-place operations
switched off), "after" the mended one: the largest |sum - (f(x) - f(b))| / |f(x) - f(b)| of two rows.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import captum.attr as ca
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from comparing import distance, prepared
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.doctor import doctor
from lightning_explain.types import Method, Verdict
from repairing import all_rules, repaired_by_hand, warmed

# The size of the input, and a layer that tracing does not flatten away.
NETWORKS: dict[str, tuple[int, str]] = {
    "resnet18": (64, "layer3.1.bn2"),
    "vgg11_bn": (64, "features.25"),
    "mobilenet_v3_small": (64, "features.8.block.3.1"),
    "densenet121": (64, "features.denseblock3.denselayer24.conv2"),
    "convnext_tiny": (64, "features.5.0.block.0"),
    "vit_b_16": (224, "conv_proj"),
}
ROWS = 2


def every_method(layer: str) -> dict[str, Method]:
    classes = {name: getattr(m, name) for name in m.__all__}
    return {
        name: c(layer=layer) if hasattr(c, "layer") and name != "NoiseTunnel" else c() for name, c in classes.items()
    }


def captum(layer: str, x: Tensor, y: Tensor) -> dict[str, Callable[[nn.Module], Tensor]]:
    """Captum's own calls, on a model in which nothing is left to mend."""

    def at(kind: type, **options: object) -> Callable[[nn.Module], Tensor]:
        return lambda model: kind(model, model.get_submodule(layer), **options).attribute(x, target=y)

    return {
        "Saliency": lambda model: ca.Saliency(model).attribute(x, target=y),
        "InputXGradient": lambda model: ca.InputXGradient(model).attribute(x, target=y),
        "LayerGradientXActivation": at(ca.LayerGradientXActivation),
        "GuidedBackprop": lambda model: ca.GuidedBackprop(model).attribute(x, target=y),
        "Deconvolution": lambda model: ca.Deconvolution(model).attribute(x, target=y),
        "GuidedGradCam": at(ca.GuidedGradCam),
        "DeepLift": lambda model: ca.DeepLift(model).attribute(x, target=y),
        "LayerDeepLift": at(ca.LayerDeepLift),
    }


def incompleteness(model: nn.Module, found: Tensor, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        gap = (model(x) - model(torch.zeros_like(x)))[range(len(x)), y]
    return ((found.flatten(1).sum(1) - gap) / gap).abs().max().item()


def before(model: nn.Module, x: Tensor, y: Tensor) -> str:
    try:
        return f"{incompleteness(model, ca.DeepLift(model).attribute(x, target=y), x, y):.1e}"
    except Exception as error:
        return type(error).__name__


def differences(model: nn.Module, layer: str, x: Tensor, states: dict[str, str]) -> Iterator[tuple[str, str]]:
    """For each method that Captum can check: how far it is from Captum on the copy repaired by hand."""
    by_hand, y = repaired_by_hand(model), model.eval()(x).argmax(1)
    chosen = {n: c for n, c in captum(layer, x, y).items() if states[n] != "refused"}
    methods = {name: method for name, method in every_method(layer).items() if name in chosen}
    methods["Saliency"] = m.Saliency()
    found = explain(model, Probe(x), methods, [], target="predicted").attributions
    for name, call in chosen.items():
        with all_rules():
            yield name, f"{distance(found[name], call(by_hand)):.0e}"
    if "DeepLift" in chosen:
        plain = prepared(copy.deepcopy(model))
        after = incompleteness(plain, found["DeepLift"], x, y)
        yield "completeness", f"before {before(plain, x, y)}, after {after:.1e}"


def summary(verdicts: dict[str, list[Verdict]]) -> Table:
    table = Table("method", *verdicts, title="Verdicts")
    for i, name in enumerate(v.method for v in next(iter(verdicts.values()))):
        table.add_row(name, *(found[i].state for found in verdicts.values()))
    return table


def main(names: list[str]) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    console, verdicts = Console(width=160), {}
    for name in names:
        size, layer = NETWORKS[name]
        torch.manual_seed(0)
        model = warmed(getattr(torchvision.models, name)(num_classes=10), size, batches=1 if size > 64 else 4)
        if name == "vit_b_16":
            # torchvision begins with a head of zeros, which has nothing to explain.
            nn.init.normal_(model.heads[-1].weight)
        x = torch.randn(ROWS, 3, size, size)
        started = time.perf_counter()
        verdicts[name] = doctor(model, every_method(layer), Probe(x))
        console.print(f"[bold]{name}[/] examined in {time.perf_counter() - started:.1f} s")
        for method, found in differences(model, layer, x, {v.method: v.state for v in verdicts[name]}):
            console.print(f"  {method}: {found}")
    console.print(summary(verdicts))


if __name__ == "__main__":
    main(sys.argv[1:] or list(NETWORKS))
