"""The workload that both sides of the benchmarks share: a ResNet-20, 16 samples, nine methods, two metrics.

When no point is evaluated twice, each sample costs

- 341 forward samples with a gradient: the sample itself, 20 steps of integrated gradients and 10 noisy copies, each at
  the sample and at its 10 perturbed versions (11 x 31);
- 352 backward samples: guided backpropagation runs a second backward pass through the same forward pass (11 x 32);
- 59 forward samples without a gradient: 10 draws of infidelity and 49 windows of occlusion; f(x) is already known.

Captum's calls, one after the other, cost 689: see ``_handwritten``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_explain import Probe
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import Method, Metric

SAMPLES, CLASSES, SIZE = 16, 10, 32
STEPS, COPIES, DRAWS, NOISE = 20, 10, 10, 0.1
WINDOW, STRIDES, WINDOWS = (3, 8, 8), (3, 4, 4), 49
LAYER = "stages.2"

_POINTS = 1 + DRAWS
WITH_GRADIENT = _POINTS * (1 + STEPS + COPIES)
BACKWARD = _POINTS * (2 + STEPS + COPIES)
WITHOUT_GRADIENT = DRAWS + WINDOWS
DISTINCT = WITH_GRADIENT + WITHOUT_GRADIENT
"""The lowest possible cost of each sample, in samples sent through the model."""


class Block(nn.Module):
    """A basic block as Captum needs it: no in-place operations, a separate module for each ReLU.

    Args:
        channels: Of the input.
        width: Channels of the output.
        stride: Of the first convolution.
    """

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        same = channels == width and stride == 1
        self.shortcut = nn.Identity() if same else _projection(channels, width, stride)
        self.relu2 = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(out + self.shortcut(x))


def _projection(channels: int, width: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride, bias=False), nn.BatchNorm2d(width))


class ResNet(nn.Module):
    """CIFAR's ResNet; the default is the ResNet-20.

    Args:
        widths: Channels of each stage.
        blocks: Basic blocks in each stage.
    """

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 1, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        before = (widths[0], *widths)
        self.stages = nn.Sequential(
            *(_stage(c, w, blocks, 1 if i == 0 else 2) for i, (c, w) in enumerate(zip(before, widths, strict=False)))
        )
        self.head = nn.Linear(widths[-1], CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(self.stem(x)).mean((2, 3)))


def _stage(channels: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(channels, width, stride), *(Block(width, width, 1) for _ in range(blocks - 1)))


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy colored gratings ``(count, 3, 32, 32)`` and their classes, which determine direction and color."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    angle, shift = labels * torch.pi / CLASSES, torch.rand(count, generator=generator) * 6
    y, x = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    along = x * angle.cos()[:, None, None] + y * angle.sin()[:, None, None]
    grating = torch.sin(along * 0.6 + shift[:, None, None])
    color = torch.stack([(labels * k % CLASSES).float() / CLASSES for k in (1, 3, 7)], 1)
    noise = 0.3 * torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return 0.5 * grating[:, None] * (0.3 + color[:, :, None, None]) + noise, labels


def trained(model: nn.Module | None = None, steps: int = 30, batch: int = 40) -> nn.Module:
    """A network in train mode after a few training steps, so that its statistics and biases are not the initial ones.

    The global random generator does not change.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = ResNet() if model is None else model
        optimizer = torch.optim.Adam(model.parameters(), 0.003)
        for step in range(steps):
            x, y = images(batch, seed=step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def probe(samples: int = SAMPLES) -> Probe:
    """Images that the network was not trained on."""
    x, y = images(samples, seed=10_000)
    return Probe(x, targets=y)


def methods(inside: str = "") -> dict[str, Method]:
    """The nine methods as arguments of this package.

    Args:
        inside: Prefix of the layer's name if the network is a submodule of the model, such as ``"net."``.
    """
    noisy = {"attribution_method": m.Saliency(abs=False), "nt_samples": COPIES, "stdevs": NOISE}
    return {
        "saliency": m.Saliency(abs=False),
        "input_x_gradient": m.InputXGradient(),
        "guided_backprop": m.GuidedBackprop(),
        "grad_cam": m.LayerGradCam(layer=inside + LAYER),
        "layer_gradient_x_activation": m.LayerGradientXActivation(layer=inside + LAYER),
        "integrated_gradients": m.IntegratedGradients(n_steps=STEPS),
        "smoothgrad": m.NoiseTunnel(nt_type="smoothgrad", **noisy),
        "vargrad": m.NoiseTunnel(nt_type="vargrad", **noisy),
        "occlusion": m.Occlusion(sliding_window_shapes=WINDOW, strides=STRIDES),
    }


def metrics() -> dict[str, Metric]:
    """Infidelity of all methods; sensitivity of all methods but occlusion."""
    moved = tuple(name for name in methods() if name != "occlusion")
    return {
        "infidelity": q.Infidelity(perturb_func="gaussian", n_perturb_samples=DRAWS, stdevs=NOISE),
        "sensitivity": q.SensitivityMax(n_perturb_samples=DRAWS, methods=moved),
    }


class Counter:
    """Counts the samples sent through a model, with a hook on its forward.

    Args:
        model: The model; the hook stays until :meth:`remove`.
    """

    def __init__(self, model: nn.Module) -> None:
        self.samples = 0
        self._handle = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module: nn.Module, arguments: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        self.samples += len(next(iter((*arguments, *named.values()))))

    def remove(self) -> None:
        self._handle.remove()


def samples_sent(model: nn.Module, action: Callable[[], object]) -> int:
    """The number of samples that an action sends through the model."""
    counter = Counter(model)
    try:
        action()
    finally:
        counter.remove()
    return counter.samples
