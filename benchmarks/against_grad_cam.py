"""Compares CAMs with pytorch-grad-cam: the same networks, samples and layers, in float32.

    pip install grad-cam
    python benchmarks/against_grad_cam.py

- Difference: the largest max|ours - theirs| / max|theirs| of a sample, of maps as the methods compute them (``get_cam_image``), before
  pytorch-grad-cam drops what is negative, scales to [0, 1] and resizes to the image.
- Passes: samples sent forward and backward by this package, for all CAMs together, and by theirs, one call for each.

The benchmark fails if a difference is above 1e-5.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_grad_cam as theirs
import torch
import torchvision
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from networks import samples, trained

EQUAL = 1e-5
PAIRS = {"LayerGradCam": "GradCAM", "HiResCAM": "HiResCAM", "LayerCAM": "LayerCAM"}


@dataclass(frozen=True)
class Case:
    """A network in eval mode, images with labels, a layer, and how its tokens become a map ``(N, C, h, w)``."""

    model: nn.Module
    x: Tensor
    y: Tensor
    layer: str
    reshape: Callable[[Tensor], Tensor] | None = None


def cases() -> Iterator[tuple[str, Case]]:
    """By name: a trained network, a ResNet, tokens with a class token, channels last."""
    x, y = samples()
    yield "digits", Case(trained().eval(), x, y, "block")
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 3, 64, 64, generator=generator), torch.tensor([1, 0, 2])
    torch.manual_seed(0)
    resnet = torchvision.models.resnet18(num_classes=3)
    yield "resnet18", Case(resnet.eval(), x, y, "layer3")
    vit = torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=3)
    nn.init.normal_(vit.heads.head.weight)
    tokens = "encoder.layers.encoder_layer_1.ln_1"
    yield "ViT", Case(vit.eval(), x, y, tokens, lambda v: v[:, 1:].transpose(1, 2).unflatten(2, (4, 4)))
    swin = torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=3)
    yield "Swin", Case(swin.eval(), x, y, "norm", lambda v: v.movedim(-1, 1))


def distance(ours: Tensor, other: Tensor) -> float:
    return float(((ours - other).flatten(1).abs().amax(1) / other.flatten(1).abs().amax(1)).max())


def of_theirs(name: str, case: Case) -> Tensor:
    """Their map ``(N, h, w)``, before anything is done to it."""
    layer, targets = case.model.get_submodule(case.layer), [ClassifierOutputTarget(int(label)) for label in case.y]
    with getattr(theirs, name)(case.model, [layer], reshape_transform=case.reshape) as cam:
        cam(case.x, targets)
        reads: Any = cam.activations_and_grads
        activation, gradient = (part[0].detach().numpy() for part in (reads.activations, reads.gradients))
        return torch.as_tensor(cam.get_cam_image(case.x, layer, targets, activation, gradient, False))


def main() -> int:
    warnings.simplefilter("ignore")
    table = Table("network", "layer", "method", "difference", "ours: passes", "theirs", title="CAMs")
    failed = []
    for name, case in cases():
        methods = {ours: getattr(m, ours)(case.layer) for ours in PAIRS}
        report = explain(case.model, Probe(case.x, case.y), methods, [])
        n = len(case.x)
        for ours, other in PAIRS.items():
            found = report.attributions[ours]
            assert isinstance(found, Tensor)
            difference = distance(found[:, 0], of_theirs(other, case))
            failed += [f"{name} {ours}"] if not difference <= EQUAL else []
            sent = f"{report.passes.forward / n:.0f} + {report.passes.backward / n:.0f} for all"
            table.add_row(name, case.layer, ours, f"{difference:.1e}", sent, "1 + 1 each")
    console = Console(width=140)
    console.print(table)
    console.print(f"above {EQUAL:.0e}: {', '.join(failed)}" if failed else f"all within {EQUAL:.0e}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
