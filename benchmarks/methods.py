"""Times each method alone, without metrics, against Captum's call at the same pass size.

The time of this package includes everything around the method: the isolation, f(x) for targets and predictions, and the
report. Medians of several runs in alternating order, and of the ratios of the pairs, with its 95% interval by the bootstrap; methods
slower than 1.05 times Captum are marked.

    python benchmarks/methods.py [--network resnet18] [--repeat 7] [--clock process --threads 1] [method ...]
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from captum import attr as ca
from torch import Tensor, nn
from torch.nn import functional

from _handwritten import explainers
from _measure import console, explainer, in_turn, parser, ratios, start, table, with_interval
from _workload import CLASSES, COPIES, LAYER, NOISE, STEPS, methods, probe, trained
from lightning_explain import Probe
from lightning_explain import methods as m
from lightning_explain.model.isolation import explaining

PASS = 64
MARK = 1.05


@dataclass(frozen=True)
class Pair:
    """A method of this package, and Captum's call."""

    ours: Any
    captum: Callable[[Tensor, Tensor], object]


def resnet20() -> tuple[nn.Module, Probe, str]:
    """The network of the other benchmarks, 32 x 32 pixels, and its layer."""
    return trained(), probe(), LAYER


def resnet18() -> tuple[nn.Module, Probe, str]:
    """The ResNet-18 of torchvision, 64 x 64 pixels, and its last feature map; Captum's hooks allow nothing in place."""
    from torchvision.models import resnet18 as made

    network = made(num_classes=CLASSES)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    samples = probe()
    assert isinstance(samples.inputs, Tensor)
    return trained(network, steps=3), replace(samples, inputs=functional.interpolate(samples.inputs, 64)), "layer4"


NETWORKS = {"resnet20": resnet20, "resnet18": resnet18}
LEFT_OUT = {"resnet18": ("occlusion", "deep_lift")}
"""What is left out: windows of 8 pixels, of which 64 x 64 have many, and what Captum refuses, because ReLUs are used twice."""


def pairs(model: nn.Module, layer_name: str = LAYER) -> dict[str, Pair]:
    layer = model.get_submodule(layer_name)
    by_hand = explainers(model, layer_name=layer_name)
    ours = {name: replace(one, layer=layer_name) if one.layer else one for name, one in methods().items()}  # type: ignore[type-var]
    # Layer maps as Captum returns them; only the scores upsample them.
    by_hand["grad_cam"] = ca.LayerGradCam(model, layer).attribute
    by_hand["layer_gradient_x_activation"] = ca.LayerGradientXActivation(model, layer).attribute

    def call(function: Callable[..., object], **options: Any) -> Callable[[Tensor, Tensor], object]:
        return lambda x, y: function(x, target=y, **options)

    steps = {"n_steps": STEPS, "internal_batch_size": PASS}
    return {
        **{name: Pair(method, call(by_hand[name])) for name, method in ours.items()},
        "deconvolution": Pair(m.Deconvolution(), call(ca.Deconvolution(model).attribute)),
        "guided_grad_cam": Pair(m.GuidedGradCam(layer=layer_name), call(ca.GuidedGradCam(model, layer).attribute)),
        "deep_lift": Pair(m.DeepLift(), call(ca.DeepLift(model).attribute)),
        "layer_activation": Pair(
            m.LayerActivation(layer=layer_name), lambda x, y: ca.LayerActivation(model, layer).attribute(x)
        ),
        "layer_conductance": Pair(
            m.LayerConductance(layer=layer_name, n_steps=STEPS),
            call(ca.LayerConductance(model, layer).attribute, **steps),
        ),
        "internal_influence": Pair(
            m.InternalInfluence(layer=layer_name, n_steps=STEPS),
            call(ca.InternalInfluence(model, layer).attribute, **steps),
        ),
        "smoothgrad of input_x_gradient": Pair(
            m.NoiseTunnel(m.InputXGradient(), nt_samples=COPIES, stdevs=NOISE),
            call(
                ca.NoiseTunnel(ca.InputXGradient(model)).attribute,
                nt_samples=COPIES,
                stdevs=NOISE,
                nt_samples_batch_size=PASS // 16,
            ),
        ),
    }


def main() -> None:
    arguments = parser(__doc__, repeat=7)
    arguments.add_argument("methods", nargs="*", help="only these")
    arguments.add_argument("--network", choices=NETWORKS, default="resnet20")
    chosen = start(arguments)
    model, samples, layer_name = NETWORKS[chosen.network]()
    found = table(
        f"{chosen.network}, median of {chosen.repeat}, {torch.get_num_threads()} threads, {len(samples)} samples",
        "method",
        "ours, ms",
        "Captum, ms",
        "ratio (95%)",
        f"> {MARK}",
        "Captum isolated, ms",
        "ratio",
    )
    slower = 0
    for name, pair in pairs(model.eval(), layer_name).items():
        if name not in (chosen.methods or [name]) or name in LEFT_OUT.get(chosen.network, ()):
            continue
        times = measured(model, samples, name, pair, chosen.repeat)
        ratio = ratios(times["ours"], times["captum"])
        slower += statistics.median(ratio) > MARK
        shown = {side: f"{statistics.median(values) * 1e3:.1f}" for side, values in times.items()}
        mark = "slower" if statistics.median(ratio) > MARK else ""
        protected = f"{statistics.median(ratios(times['ours'], times['isolated'])):.2f}"
        found.add_row(name, shown["ours"], shown["captum"], with_interval(ratio), mark, shown["isolated"], protected)
    console.print(found, f"{slower} slower than {MARK} of Captum.")


def measured(model: nn.Module, samples: Probe, name: str, pair: Pair, repeat: int) -> dict[str, list[float]]:
    """Seconds of this package, of Captum's call, and of that inside the isolation."""
    x, y = samples.inputs, samples.targets
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)

    def isolated() -> None:
        with explaining(model):
            pair.captum(x, y)

    sides = {
        "ours": explainer(model, samples, {name: pair.ours}, limit=PASS),
        "captum": lambda: pair.captum(x, y),
        "isolated": isolated,
    }
    in_turn(sides, 1)
    return in_turn(sides, repeat)


if __name__ == "__main__":
    main()
