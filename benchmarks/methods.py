"""Times each method alone, without metrics, against Captum's call at the same pass size.

The time of this package includes everything around the method: the isolation, f(x) for targets and predictions, and the
report. Best of several runs in alternating order; methods slower than 1.05 times Captum are marked.

    python benchmarks/methods.py [--repeat 7] [--threads 2] [method ...]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from captum import attr as ca
from torch import Tensor, nn

from _handwritten import explainers
from _measure import console, explainer, in_turn, parser, start, table
from _workload import COPIES, LAYER, NOISE, STEPS, methods, probe, trained
from lightning_explain import methods as m
from lightning_explain.model.isolation import explaining

PASS = 64
MARK = 1.05


@dataclass(frozen=True)
class Pair:
    """A method of this package, and Captum's call."""

    ours: Any
    captum: Callable[[Tensor, Tensor], object]


def pairs(model: nn.Module) -> dict[str, Pair]:
    layer = model.get_submodule(LAYER)
    by_hand = explainers(model)
    # Layer maps as Captum returns them; only the scores upsample them.
    by_hand["grad_cam"] = ca.LayerGradCam(model, layer).attribute
    by_hand["layer_gradient_x_activation"] = ca.LayerGradientXActivation(model, layer).attribute

    def call(function: Callable[..., object], **options: Any) -> Callable[[Tensor, Tensor], object]:
        return lambda x, y: function(x, target=y, **options)

    steps = {"n_steps": STEPS, "internal_batch_size": PASS}
    return {
        **{name: Pair(method, call(by_hand[name])) for name, method in methods().items()},
        "deconvolution": Pair(m.Deconvolution(), call(ca.Deconvolution(model).attribute)),
        "guided_grad_cam": Pair(m.GuidedGradCam(layer=LAYER), call(ca.GuidedGradCam(model, layer).attribute)),
        "deep_lift": Pair(m.DeepLift(), call(ca.DeepLift(model).attribute)),
        "layer_activation": Pair(
            m.LayerActivation(layer=LAYER), lambda x, y: ca.LayerActivation(model, layer).attribute(x)
        ),
        "layer_conductance": Pair(
            m.LayerConductance(layer=LAYER, n_steps=STEPS), call(ca.LayerConductance(model, layer).attribute, **steps)
        ),
        "internal_influence": Pair(
            m.InternalInfluence(layer=LAYER, n_steps=STEPS), call(ca.InternalInfluence(model, layer).attribute, **steps)
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
    chosen = start(arguments)
    model, samples = trained().eval(), probe()
    x, y = samples.inputs, samples.targets
    found = table(
        f"Best of {chosen.repeat}, {torch.get_num_threads()} threads, {len(samples)} samples",
        "method",
        "ours, ms",
        "Captum, ms",
        "ratio",
        f"> {MARK}",
        "Captum isolated, ms",
        "ratio",
    )
    slower = 0
    for name, pair in pairs(model).items():
        if chosen.methods and name not in chosen.methods:
            continue
        sides = {
            "ours": explainer(model, samples, {name: pair.ours}, limit=PASS),
            "captum": lambda p=pair: p.captum(x, y),
        }

        def isolated(p: Pair = pair) -> None:
            with explaining(model):
                p.captum(x, y)

        sides["isolated"] = isolated
        in_turn(sides, 1)
        times = {side: min(values) for side, values in in_turn(sides, chosen.repeat).items()}
        ratio = times["ours"] / times["captum"]
        slower += ratio > MARK
        protected = times["ours"] / times["isolated"]
        shown = {side: f"{value * 1e3:.0f}" for side, value in times.items()}
        mark = "slower" if ratio > MARK else ""
        found.add_row(name, shown["ours"], shown["captum"], f"{ratio:.2f}", mark, shown["isolated"], f"{protected:.2f}")
    console.print(found, f"{slower} slower than {MARK} of Captum.")


if __name__ == "__main__":
    main()
