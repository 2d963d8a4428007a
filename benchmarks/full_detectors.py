"""torchvision's full-size detectors, with few training steps, explained beside a few lines of torch and Captum.

    python benchmarks/full_detectors.py [--only NAME ...] [--steps 25]

Each has random weights at first, and learns on images of 64 pixels, which an SSDlite enlarges to 320. The object with the highest score of
each of two images is then explained by its score. Printed are

- f, saliency, ig: the largest difference to those by hand, relative to the largest value, computed in float64, and in float32;
- seconds: of ``explain()``, and by hand, in float32;
- cam: the layer that is explained by default, and what the default leaves out;
- training: whether two steps end with the same bits with a monitor that explains before, between and after them, and without.

In float32, an image alone differs by rounding from the same one among others, and a gradient jumps where an activation or a maximum is
nearly undecided, so maps may differ by more than rounding; those of ``explain(max_examples_per_pass=1)`` do not, nor do those in float64.
The benchmark fails if a difference in float64 is above 1e-5, or a training is not the same."""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import captum.attr
import lightning as L
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import detection as zoo
from torchvision.ops import box_iou

from _measure import parser, start, table
from _setups.detection import SIZE, Detector, Squares, collate
from lightning_explain import ExplanationMonitor, Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.registry import build_methods
from lightning_explain.targets import Detection

EQUAL, STEPS, SAMPLES = 1e-5, 4, 2
METHODS = {"saliency": m.Saliency(abs=False), "ig": m.IntegratedGradients(n_steps=STEPS)}
SMALL = {"min_size": SIZE, "max_size": SIZE}
NETWORKS: dict[str, dict[str, Any]] = {
    "ssdlite320_mobilenet_v3_large": {},
    "fasterrcnn_mobilenet_v3_large_320_fpn": SMALL,
    "retinanet_resnet50_fpn": SMALL,
    "fcos_resnet50_fpn": SMALL,
    "fasterrcnn_resnet50_fpn": SMALL,
}
Found = dict[str, float]


def made(name: str) -> nn.Module:
    """The detector of torchvision with this name, for two classes of objects, with random weights."""
    torch.manual_seed(0)
    net: nn.Module = zoo.__dict__[name](weights=None, weights_backbone=None, num_classes=3, **NETWORKS[name])
    return net


def trained(name: str, steps: int) -> nn.Module:
    net, generator = made(name).train(), torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), 1e-4)
    for _ in range(steps):
        images, targets = collate(list(Squares(4, generator)))  # type: ignore[call-overload]
        optimizer.zero_grad()
        torch.stack(list(net(list(images), list(targets)).values())).sum().backward()
        optimizer.step()
    return net.eval()


def images_of(count: int, dtype: torch.dtype) -> list[Tensor]:
    return [image.to(dtype) for image in Squares(count, torch.Generator().manual_seed(1)).images]


def score_by_hand(net: nn.Module, image: Tensor) -> Callable[[Tensor], Tensor]:
    """The score of the object with the highest one in this image, as it is written for Captum."""
    with torch.no_grad():
        clean = net([image])[0]
    sides = clean["boxes"][:, 2:] - clean["boxes"][:, :2]
    best = (clean["scores"] * (sides.prod(1) > 0)).argmax()
    box, label = clean["boxes"][best][None], clean["labels"][best]

    def score(x: Tensor) -> Tensor:
        found = net([x])[0]
        overlap = box_iou(box, found["boxes"].detach())[0]
        overlap = overlap * ((found["labels"] == label) & (overlap >= 0.5))
        match = (overlap * found["scores"].detach()).argmax()
        return found["scores"][match] * bool(overlap[match] > 0)

    return lambda x: torch.stack([score(one) for one in x])


def by_hand(net: nn.Module, images: list[Tensor]) -> dict[str, Tensor]:
    """Scores and maps, one image and one point of a path after the other."""
    net, parts = copy.deepcopy(net), []
    for module in net.modules():
        if isinstance(vars(module).get("score_thresh"), float):
            module.score_thresh = 0.0  # type: ignore[assignment]
    for image in images:
        f, x = score_by_hand(net, image), image[None].clone().requires_grad_()
        saliency = captum.attr.Saliency(f).attribute(x, abs=False)
        ig = captum.attr.IntegratedGradients(f).attribute(x, n_steps=STEPS, internal_batch_size=1)
        parts.append((f(x).detach(), saliency.detach(), ig.detach()))
    return dict(zip(("f", "saliency", "ig"), map(torch.cat, zip(*parts, strict=True)), strict=True))


def ours(net: nn.Module, images: list[Tensor]) -> Report:
    return explain(net, Probe(images), METHODS, [], Detection(box="best"))


def differences(net: nn.Module, dtype: torch.dtype) -> tuple[Found, Found]:
    """Those of f and each map, relative to the largest value of each; and the seconds of both sides."""
    net, images = copy.deepcopy(net).to(dtype), images_of(SAMPLES, dtype)
    started = time.perf_counter()
    report = ours(net, images)
    between = time.perf_counter()
    theirs = by_hand(net, images)
    seconds = {"explain": between - started, "hand": time.perf_counter() - between}
    found = {"f": report.values, **report.attributions}
    far = {key: float((found[key] - own).abs().max() / own.abs().max()) for key, own in theirs.items()}
    return far, seconds


def default_of(net: nn.Module) -> tuple[str, str]:
    """The layer of the default ``cam``, and what the default leaves out."""
    explainer = Explainer(build_methods(None), {}, default_methods=True)
    ready = explainer.check(net, Probe(images_of(SAMPLES, torch.float32)))
    layer = ready.methods["cam"].innermost.layer if "cam" in ready.methods else ""
    return str(layer), ", ".join(ready.left_out) or "nothing"


def is_undisturbed(name: str) -> bool:
    """Whether two steps of training end with the same bits with a monitor and without."""
    states = []
    for enabled in (True, False):
        L.seed_everything(0, verbose=False)
        watch = ExplanationMonitor(
            {"saliency": METHODS["saliency"]},
            [],
            Probe(images_of(SAMPLES, torch.float32)),
            every_n_train_steps=1,
            at_start=True,
            enabled=enabled,
            sinks=[],
            save_reports=False,
        )
        loader = DataLoader(Squares(4, torch.Generator().manual_seed(0)), 2, collate_fn=collate)
        module, quiet = (
            Detector(made(name), 1e-3),
            dict.fromkeys(("enable_progress_bar", "enable_model_summary"), False),
        )
        with tempfile.TemporaryDirectory() as root:
            trainer = L.Trainer(
                max_epochs=1,
                callbacks=[watch],
                logger=False,
                enable_checkpointing=False,
                default_root_dir=root,
                **quiet,
            )
            trainer.fit(module, loader)
        assert not enabled or watch.last_report is not None
        states.append(module.state_dict())
    return all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def line(name: str, steps: int) -> tuple[list[str], list[str]]:
    """The cells of one detector, and what is wrong with it."""
    net = trained(name, steps)
    (exact, _), (rounded, seconds) = (differences(net, dtype) for dtype in (torch.float64, torch.float32))
    layer, left_out = default_of(net)
    same = is_undisturbed(name)
    wrong = [f"{name}, {key}: {value:.1e}" for key, value in exact.items() if not value <= EQUAL]
    cells = [name, *(f"{found[key]:.0e}" for found in (exact, rounded) for key in ("f", "saliency", "ig"))]
    cells += [*(f"{seconds[side]:.1f}" for side in ("explain", "hand")), layer, left_out, "same" if same else "differs"]
    return cells, wrong + ([] if same else [f"{name}: the training differs"])


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--only", nargs="+", choices=list(NETWORKS), metavar="NAME", help="detectors by name")
    arguments.add_argument("--steps", type=int, default=25, help="training steps (default: 25)")
    chosen, failed = start(arguments), []
    columns = [
        "f",
        "saliency",
        "ig",
        "f, float32",
        "saliency",
        "ig",
        "seconds",
        "by hand",
        "cam",
        "left out",
        "training",
    ]
    shown = table("Detectors of torchvision, and the same by hand", "detector", *columns)
    for name in chosen.only or NETWORKS:
        cells, wrong = line(name, chosen.steps)
        shown.add_row(*cells)
        failed += wrong
    console = Console(width=200)
    console.print(shown)
    console.print("; ".join(failed) if failed else f"all within {EQUAL:.0e} in float64, and no training is disturbed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
