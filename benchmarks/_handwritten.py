"""The same explanations by hand: one Captum call for each method and metric, one figure for each sample, a SummaryWriter.

This code stays as it is, so that results remain comparable. The calls are those of Captum's documentation, with Captum's
default batches: all draws of all samples in one pass (integrated gradients inside ``sensitivity_max``: 3200 samples,
about 5 GB), and one pass for each window of occlusion. ``pass_size=64`` is the version of a user who limits the batches.

Samples sent through the model for each sample of the probe:

========================================================  =========================  =====
maps     5 of one pass, IG 20, two NoiseTunnels of 10,    5 + 20 + 10 + 10 + 50         95
         Occlusion 1 + 49 windows
metric   infidelity of 9 maps: f(x) again, and 10 draws   9 x (1 + 10)                  99
metric   sensitivity of 8 methods: the clean map again,   (1 + 10) x (5 + 20 + 20)     495
         and 10 draws
sum                                                                                    689
========================================================  =========================  =====

For 16 samples that is 11,024. ``perturbations_per_eval`` of Occlusion, ``internal_batch_size`` of IG,
``nt_samples_batch_size`` of NoiseTunnel and ``max_examples_per_batch`` of ``sensitivity_max`` do not change the number.
``max_examples_per_batch`` of ``infidelity`` would, because Captum computes f(x) for every chunk; it keeps its default.

    python benchmarks/_handwritten.py [--samples 16] [--pass-size 64]

counts the samples and prints the time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import torch
from captum import attr as ca
from captum.attr import visualization
from captum.metrics import infidelity, sensitivity_max
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from _measure import parser, start
from _workload import COPIES, DRAWS, LAYER, NOISE, SAMPLES, STEPS, STRIDES, WINDOW, probe, samples_sent, trained

SAMPLES_EACH = 689
PANELS = ["original_image", "heat_map", "blended_heat_map"]

Maps = dict[str, Tensor]
Scores = dict[str, dict[str, Tensor]]
Explain = Callable[..., Tensor]


def explainers(model: nn.Module, pass_size: int | None = None, layer_name: str = LAYER) -> dict[str, Explain]:
    """One function per method, in the form that ``sensitivity_max`` calls: (inputs, target=...) to an input-shaped map.

    Args:
        model: The network.
        pass_size: Samples in one pass, where Captum has an argument for it; ``None``: Captum's defaults.
        layer_name: The layer of layer methods.
    """

    def times(x: Tensor) -> int | None:
        return None if pass_size is None else max(1, pass_size // len(x))

    layer = model.get_submodule(layer_name)
    saliency, ig, occlusion = ca.Saliency(model), ca.IntegratedGradients(model), ca.Occlusion(model)
    tunnel = ca.NoiseTunnel(saliency)

    def noisy(x: Tensor, y: Tensor, nt_type: str) -> Tensor:
        return tunnel.attribute(
            x,
            target=y,
            nt_type=nt_type,
            nt_samples=COPIES,
            nt_samples_batch_size=times(x),
            stdevs=NOISE,
            abs=False,
        )

    calls: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "saliency": lambda x, y: saliency.attribute(x, target=y, abs=False),
        "input_x_gradient": lambda x, y: ca.InputXGradient(model).attribute(x, target=y),
        "guided_backprop": lambda x, y: ca.GuidedBackprop(model).attribute(x, target=y),
        "grad_cam": lambda x, y: upsampled(ca.LayerGradCam(model, layer).attribute(x, target=y), x),
        "layer_gradient_x_activation": lambda x, y: upsampled(
            ca.LayerGradientXActivation(model, layer).attribute(x, target=y), x
        ),
        "integrated_gradients": lambda x, y: ig.attribute(
            x, target=y, n_steps=STEPS, internal_batch_size=pass_size and max(pass_size, len(x))
        ),
        "smoothgrad": lambda x, y: noisy(x, y, "smoothgrad"),
        "vargrad": lambda x, y: noisy(x, y, "vargrad"),
        "occlusion": lambda x, y: occlusion.attribute(
            x, target=y, sliding_window_shapes=WINDOW, strides=STRIDES, perturbations_per_eval=times(x) or 1
        ),
    }
    return {name: _for_metrics(call) for name, call in calls.items()}


def _for_metrics(call: Callable[[Tensor, Tensor], Tensor]) -> Explain:
    # For the clean map, sensitivity_max passes a tuple and switches gradients off.
    def explain(inputs: Any, target: Tensor) -> Any:
        with torch.enable_grad():
            if isinstance(inputs, tuple):
                return (call(inputs[0], target).detach(),)
            return call(inputs, target).detach()

    return explain


def upsampled(found: Tensor, x: Tensor) -> Tensor:
    """A layer's map summed over its channels and upsampled to the inputs' shape, as ``infidelity`` requires."""
    size = (int(x.shape[2]), int(x.shape[3]))
    return ca.LayerAttribution.interpolate(found.sum(1, keepdim=True), size, "bilinear").expand_as(x).contiguous()


def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Captum's form of a perturbation: the noise, and the inputs without it."""
    noise = NOISE * torch.randn_like(inputs)
    return noise, inputs - noise


def scores(
    model: nn.Module, x: Tensor, y: Tensor, found: Maps, explain: dict[str, Explain], pass_size: int | None
) -> Scores:
    """Infidelity of all maps; sensitivity of all methods but occlusion."""
    return {
        "infidelity": {
            name: infidelity(model, perturb, x, attribution, target=y, n_perturb_samples=DRAWS, normalize=True)
            for name, attribution in found.items()
        },
        "sensitivity": {
            name: sensitivity_max(
                call,
                x,
                n_perturb_samples=DRAWS,
                max_examples_per_batch=pass_size and min(DRAWS * len(x), max(pass_size, len(x))),
                target=y,
            )
            for name, call in explain.items()
            if name != "occlusion"
        },
    }


class HandwrittenMonitor(pl.Callback):
    """Explains after each epoch.

    Args:
        x: The samples ``(N, 3, H, W)``.
        y: Their labels ``(N,)``.
        folder: The folder of TensorBoard's files.
        pictures: Whether pictures and scores are logged.
        pass_size: Samples in one pass; ``None``: Captum's defaults.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        folder: str | os.PathLike[str] = "",
        pictures: bool = True,
        pass_size: int | None = None,
    ) -> None:
        self.pass_size = pass_size
        self.x, self.y, self.folder, self.pictures = x, y, str(folder), pictures
        self.maps: Maps = {}
        self.scores: Scores = {}
        self.seconds = 0.0
        """Time of the maps and scores of the last explanation, without pictures."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.explain(pl_module)
        if self.pictures:
            self.log_all(trainer.current_epoch)

    def explain(self, model: nn.Module) -> None:
        started, training = time.perf_counter(), model.training
        model.eval()
        # Captum hooks submodules, so it gets the network itself if a LightningModule wraps one.
        network = getattr(model, "net", model)
        calls = explainers(network, self.pass_size)
        self.maps = {name: call(self.x, target=self.y) for name, call in calls.items()}
        self.scores = scores(network, self.x, self.y, self.maps, calls, self.pass_size)
        model.train(training)
        self.seconds = time.perf_counter() - started

    def log_all(self, epoch: int) -> None:
        writer = SummaryWriter(self.folder)
        for metric, by_method in self.scores.items():
            for name, values in by_method.items():
                writer.add_scalar(f"{metric}/{name}", values.mean().item(), epoch)
        for name, found in self.maps.items():
            for sample, (attribution, image) in enumerate(zip(found, self.x, strict=True)):
                writer.add_figure(f"{name}/{sample}", _figure(attribution, image, name, int(self.y[sample])), epoch)
        writer.close()


def _figure(attribution: Tensor, image: Tensor, name: str, label: int) -> Any:
    low, high = image.amin(), image.amax()
    figure, _ = visualization.visualize_image_attr_multiple(
        attribution.permute(1, 2, 0).numpy(),
        ((image - low) / (high - low)).permute(1, 2, 0).numpy(),
        methods=PANELS,
        signs=["all"] * len(PANELS),
        titles=[f"{name}: label {label}"] * len(PANELS),
        show_colorbar=True,
        use_pyplot=False,
    )
    return figure


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--samples", type=int, default=SAMPLES, help="samples of the probe")
    arguments.add_argument(
        "--pass-size", type=int, help="samples in one pass; default: Captum's own batches, about 5 GB"
    )
    chosen = start(arguments)
    samples = probe(chosen.samples)
    monitor, model = HandwrittenMonitor(samples.inputs, samples.targets, pass_size=chosen.pass_size), trained()
    sent = samples_sent(model, lambda: monitor.explain(model))
    print(
        f"{sent} samples, {sent / chosen.samples:g} for each sample of the probe, in {monitor.seconds:.1f} s without pictures."
    )
    assert sent == SAMPLES_EACH * chosen.samples, f"expected {SAMPLES_EACH * chosen.samples}"


if __name__ == "__main__":
    main()
