"""Runs the model doctor on torchvision's networks, and checks its verdicts.

    python benchmarks/doctor_zoo.py [network ...]

The networks have random weights, BatchNorm statistics of a few batches, and 64-pixel inputs. Each method that is fine or
canonized is compared with Captum's on a copy repaired by hand: the largest difference of a sample, relative to its
largest value. A difference above 1e-5 is computed again in float64, and that number counts. "before" is Captum's DeepLIFT
on the original network (in-place operations switched off), "after" the canonized DeepLIFT; both numbers are the largest
|sum - (f(x) - f(b))| / |f(x) - f(b)| of a sample.

The benchmark fails if

- on a resnet18, with reused modules or with F.relu, any method other than LRP and LayerLRP is neither fine nor canonized,
  or DeepLIFT's incompleteness is above 1e-3;
- on any network, a method without a backward rule (plain gradients, paths, layers, noise, perturbations) is not fine;
- a method that is fine or canonized differs from Captum's by more than 1e-5.
"""

from __future__ import annotations

import copy
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping

import captum.attr as ca
import torch
import torchvision
from rich.console import Console
from rich.table import Table
from torch import nn

from _cases import Bench
from _compare import COMPLETE, Line, completeness, lines
from comparing import prepared
from lightning_explain import methods as m
from repairing import Functional, repaired_by_hand, warmed

SIZE, SAMPLES = 64, 2


def functional_resnet18(num_classes: int) -> nn.Module:
    return torchvision.models.ResNet(Functional, [2, 2, 2, 2], num_classes=num_classes)


def small_vit(num_classes: int) -> nn.Module:
    model = torchvision.models.vit_b_16(num_classes=num_classes, image_size=SIZE)
    # torchvision initializes the head with zeros, which leaves nothing to explain.
    nn.init.normal_(model.heads[-1].weight)
    return model


# Constructor of each network, and a layer that survives tracing.
NETWORKS: dict[str, tuple[Callable[..., nn.Module], str]] = {
    "resnet18": (torchvision.models.resnet18, "layer3.1.bn2"),
    "resnet18, F.relu": (functional_resnet18, "layer3.1.bn2"),
    "vgg11_bn": (torchvision.models.vgg11_bn, "features.25"),
    "mobilenet_v3_small": (torchvision.models.mobilenet_v3_small, "features.8.block.3.1"),
    "densenet121": (torchvision.models.densenet121, "features.denseblock3.denselayer24.conv2"),
    "convnext_tiny": (torchvision.models.convnext_tiny, "features.5.0.block.0"),
    "vit_b_16": (small_vit, "conv_proj"),
}
RELEVANCE = {"LRP", "LayerLRP"}
RULED = {name for name in m.__all__ if any(word in name for word in ("DeepLift", "Guided", "Deconvolution", "LRP"))}


def bench(name: str) -> Bench:
    make, layer = NETWORKS[name]
    torch.manual_seed(0)
    model = warmed(make(num_classes=10), SIZE)
    x = torch.randn(SAMPLES, 3, SIZE, SIZE)
    with torch.no_grad():
        y = model.eval()(x).argmax(1)
    return Bench(name, model.train(), repaired_by_hand(model), x, y, layer)


def before(b: Bench) -> str:
    """The incompleteness of Captum's DeepLIFT on the original network, or the error it raises."""
    model = prepared(copy.deepcopy(b.model))
    try:
        total = ca.DeepLift(model).attribute(b.x, target=b.y).flatten(1).sum(1)
    except Exception as error:
        return type(error).__name__
    with torch.no_grad():
        gap = (model(b.x) - model(torch.zeros_like(b.x)))[range(SAMPLES), b.y]
    return f"{((total - gap) / gap).abs().max().item():.1e}"


def faults(name: str, found: Mapping[str, Line], after: float | None) -> Iterator[str]:
    """Sentences about everything that breaks a promise above."""
    for method, line in found.items():
        state = line.verdict.state
        if name.startswith("resnet18") and method not in RELEVANCE and state not in ("fine", "canonized"):
            yield f"{method} is {state} on {name}"
        if method not in RULED and state != "fine":
            yield f"{method} is {state} on {name}"
        if line.differs and state != "warned":
            yield f"{method} is {_difference(line)} from Captum's on {name}"
    if name.startswith("resnet18") and not (after is not None and after <= COMPLETE):
        yield f"DeepLift misses f(x) - f(b) by {after} on {name}"


def summary(by_network: Mapping[str, Mapping[str, Line]]) -> Table:
    drawn = Table("method", *by_network, title="Verdicts, and differences to Captum on a copy repaired by hand")
    for method in sorted(m.__all__):
        drawn.add_row(
            method, *(f"{found[method].verdict.state} {_difference(found[method])}" for found in by_network.values())
        )
    return drawn


def _difference(line: Line) -> str:
    exact = "" if line.exact is None else f" ({line.exact:.0e} in float64)"
    return "" if line.difference is None else f"{line.difference:.0e}{exact}"


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    console, wrong = Console(width=200), []
    by_network: dict[str, dict[str, Line]] = {}
    for name in names:
        started = time.perf_counter()
        b = bench(name)
        found = {line.name: line for line in lines(b, m.__all__)}
        canonized = found["DeepLift"].verdict.state != "refused"
        after = completeness(b, m.DeepLift()) if canonized else None
        console.print(
            f"{name}: {time.perf_counter() - started:.0f} s; DeepLIFT's incompleteness before {before(b)}, after {after}"
        )
        by_network[name] = found
        wrong += faults(name, found, after)
    console.print(summary(by_network))
    console.print("\n".join(wrong) or "all as promised")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(NETWORKS)))
