"""Draws the pictures of the gallery and of README from short trainings: ``python docs/gallery.py [NAME ...]`` (all: about three minutes).

``image``, ``text``, ``tabular`` and ``series`` are the demos; the others are trained here, on data in which it is known what the
network must look at (``volume``, ``video``, ``audio`` and ``bands`` lie in ``gallery_grids.py``).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gallery_grids
import lightning as L
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor, Probe, draw, load_reports, modalities
from lightning_explain import methods as m
from lightning_explain.demo import training
from lightning_explain.render.color import sign_table

IMAGES = Path(__file__).parent / "images"
SAMPLES, EPOCHS, SIZE, DAY = 1024, 8, 32, 24


def save(picture: Any, name: str) -> None:
    """Writes a picture as PNG, in 256 colors if all of them take more than 150 kB; a quarter are those of maps."""
    path = IMAGES / "gallery" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    drawn = Image.fromarray(picture)
    drawn.save(path, optimize=True)
    if path.stat().st_size >= 150_000:
        # The most frequent colors alone are those of the samples: color bars and maps would come out gray.
        colors = (sign_table("all")[::4] * 255).round().byte().flatten().tolist()
        palette = Image.new("P", (1, 1))
        palette.putpalette([255] * 3 + (drawn.quantize(191).getpalette() or [])[: 3 * 191] + colors)
        found = drawn.quantize(palette=palette, dither=Image.Dither.NONE)
        found.paste(0, mask=Image.fromarray((picture == 255).all(-1)))
        found.save(path, optimize=True)


def draw_demo(modality: str, folder: Path) -> None:
    """Trains both networks of a demo, and draws what each relies on; that of images is README's moving picture, too."""
    training.run(folder, modality=modality)
    runs = folder if modality == "image" else folder / modality
    for variant in training.VARIANTS.values():
        report = load_reports(runs / variant / "version_0" / "explain")[-1]
        save(draw(report, "ig"), f"{modality}-{variant}")
    if modality == "image":
        shutil.copyfile(runs / "epochs.gif", IMAGES / "epochs.gif")


class Task(L.LightningModule):
    """Trains a network by a loss."""

    def __init__(self, net: nn.Module, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.loss = net, loss

    def forward(self, inputs: Tensor) -> Tensor:
        """What the network says."""
        found: Tensor = self.net(inputs)
        return found

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        return self.loss(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def draw_task(name: str, folder: Path) -> None:
    """Trains one of the tasks, and draws its last explanation."""
    L.seed_everything(0)
    inputs, labels, net, loss, arguments = TASKS[name]()
    probe = Probe(inputs[:4], labels[:4], class_names=arguments.pop("class_names", None))
    monitor = ExplanationMonitor(
        {"ig": m.IntegratedGradients(n_steps=32)}, metrics=[], probe=probe, every_n_epochs=EPOCHS, **arguments
    )
    data = DataLoader(TensorDataset(inputs[4:], labels[4:]), 32, shuffle=True)
    quiet = {"logger": False, "enable_checkpointing": False, "default_root_dir": folder / name}
    L.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[monitor], **quiet).fit(Task(net, loss), data)
    report = load_reports(folder / name / "explain")[-1]
    for method in report.attributions:
        save(draw(report, method), "-".join([name, *method.split("@")[1:]]))
    if name == "bands":
        save(draw(report, "ig/2"), "bands-share")


def _shapes(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise, ``(N, 1, 32, 32)``, and where a disc, a frame and a cross would be, each in its own quarter: boolean ``(N, 3, 32, 32)``."""
    noise = 0.2 * torch.randn(SAMPLES, 1, SIZE, SIZE, generator=generator)
    quarters = torch.rand(SAMPLES, 4, generator=generator).argsort(1)[:, :3]
    centers = 8 + 16 * torch.stack([quarters // 2, quarters % 2], 2)
    rows, columns = torch.arange(SIZE).view(1, 1, -1, 1), torch.arange(SIZE).view(1, 1, 1, -1)
    down, right = (rows - centers[..., :1, None]).abs(), (columns - centers[..., 1:, None]).abs()
    disc, frame = down**2 + right**2 <= 25, torch.maximum(down, right) == 5
    cross = (down == right) & (down <= 5)
    return noise, torch.stack([disc[:, 0], frame[:, 1], cross[:, 2]], 1)


def _dense() -> tuple[Any, ...]:
    """Discs and frames are to be segmented; a cross is in every image, and belongs to the background."""
    generator = torch.Generator().manual_seed(0)
    noise, shapes = _shapes(generator)
    disc, frame = (torch.rand(2, SAMPLES, generator=generator) < 0.5).long()
    present = torch.stack([disc, 1 - disc * (1 - frame), torch.ones_like(disc)], 1).view(-1, 3, 1, 1)
    images = noise + (shapes * present).sum(1, keepdim=True)
    net = nn.Sequential(
        nn.Conv2d(1, 32, 4, stride=4), nn.ReLU(), nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding=2), nn.ReLU(), nn.ConvTranspose2d(32, 3, 4, stride=4),
    )  # fmt: skip
    labels = (shapes[:, :2] * present[:, :2] * torch.tensor([1, 2]).view(1, 2, 1, 1)).sum(1)
    return images, labels, net, F.cross_entropy, {"class_names": ["none", "disc", "frame"]}


def _multilabel() -> tuple[Any, ...]:
    """Any of three shapes may be there, and each is a label."""
    generator = torch.Generator().manual_seed(0)
    noise, shapes = _shapes(generator)
    labels = (torch.rand(SAMPLES, 3, generator=generator) < 0.6).float()
    images = noise + (shapes * labels.view(-1, 3, 1, 1)).sum(1, keepdim=True)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(32, 3),
    )  # fmt: skip
    return images, labels, net, F.binary_cross_entropy_with_logits, {"class_names": ["disc", "frame", "cross"]}


def _forecast() -> tuple[Any, ...]:
    """Four days without a pattern; the next six hours repeat the first six of the last day."""
    generator = torch.Generator().manual_seed(0)
    past = torch.randn(SAMPLES, 1, 4 * DAY, generator=generator)
    past = F.avg_pool1d(past, 5, stride=1, padding=2) * 2
    net = nn.Sequential(nn.Flatten(), nn.Linear(4 * DAY, 6))
    future = past[:, 0, 3 * DAY : 3 * DAY + 6]
    kind = modalities.TimeSeries(channel_names=("load",), layout="NCT")
    return past, future, net, F.mse_loss, {"modalities": kind}


class _Heads(nn.Module):
    """Two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 5, padding=2), nn.ReLU(),
            nn.AdaptiveMaxPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.shape, self.cross = nn.Linear(32, 2), nn.Linear(32, 1)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """The class of the shape, and the brightness of the cross."""
        found = self.body(image)
        return {"shape": self.shape(found), "cross": self.cross(found)}


def _outputs() -> tuple[Any, ...]:
    """A disc or a frame is the class of one output; the brightness of the cross is the number of another one."""
    generator = torch.Generator().manual_seed(0)
    noise, shapes = _shapes(generator)
    frame, brightness = (torch.rand(2, SAMPLES, generator=generator) * torch.tensor([[1.0], [2.0]])).round(decimals=3)
    frame = (frame < 0.5).float()
    strength = torch.stack([1 - frame, frame, brightness], 1).view(-1, 3, 1, 1)
    images = noise + (shapes * strength).sum(1, keepdim=True)

    def loss(found: dict[str, Tensor], labels: Tensor) -> Tensor:
        return F.cross_entropy(found["shape"], labels[:, 0].long()) + F.mse_loss(found["cross"], labels[:, 1:])

    return images, torch.stack([frame, brightness], 1), _Heads(), loss, {"class_names": ["disc", "frame"]}


def _autoencoder() -> tuple[Any, ...]:
    """Discs in one of four places are normal; the samples that are explained have a frame, too, which training never shows."""
    generator = torch.Generator().manual_seed(0)
    noise, _ = _shapes(generator)
    places = torch.randint(4, (SAMPLES,), generator=generator)
    rows, columns = torch.arange(SIZE).view(1, -1, 1), torch.arange(SIZE).view(1, 1, -1)

    def off(at: Tensor) -> tuple[Tensor, Tensor]:
        centers = 8 + 16 * torch.stack([at // 2, at % 2], 1)
        return (rows - centers[:, :1, None]).abs(), (columns - centers[:, 1:, None]).abs()

    (down, right), (below, beside) = off(places), off((places + 1) % 4)
    images = 0.3 * noise + (down**2 + right**2 <= 25)[:, None]
    images[:4] += (torch.maximum(below, beside) == 5)[:4, None]
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(SIZE * SIZE, 64), nn.ReLU(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 64), nn.ReLU(),
        nn.Linear(64, SIZE * SIZE), nn.Unflatten(1, (1, SIZE, SIZE)),
    )  # fmt: skip
    return images, images.clone(), net, F.mse_loss, {}


class Detector(Task):
    """Trains a detector, which has its loss inside."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The sum of its losses on one batch."""
        losses: dict[str, Tensor] = self.net(*map(list, batch))
        return torch.stack(list(losses.values())).sum()


def _objects(count: int) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Two gray squares on noise; a red or a blue mark in the middle of each gives its class."""
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(count):
        image, boxes = 0.1 * torch.rand(3, 64, 64, generator=generator), []
        labels = torch.randint(2, (2,), generator=generator)
        for column, label in enumerate(labels.tolist()):
            top, left = (int(torch.randint(high, (1,), generator=generator)) for high in (40, 8))
            left += 32 * column
            image[:, top : top + 24, left : left + 24] += 0.5
            image[:, top + 8 : top + 16, left + 8 : left + 16] = 0.1
            image[2 * label, top + 8 : top + 16, left + 8 : left + 16] = 1
            boxes.append([left, top, left + 24, top + 24])
        found.append((image, {"boxes": torch.tensor(boxes).float(), "labels": labels + 1}))
    return found


def draw_detection(folder: Path) -> None:
    """Trains a small Faster R-CNN, and draws what the score of its best detection depends on."""
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    L.seed_everything(0)
    body = nn.Sequential(
        nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.ReLU()
    )  # fmt: skip
    body.out_channels = 32  # type: ignore[assignment]
    anchors, pool = AnchorGenerator(((24,),), ((1.0,),)), MultiScaleRoIAlign(["0"], 6, 2)
    few = {
        "rpn_post_nms_top_n_train": 50,
        "rpn_post_nms_top_n_test": 20,
        "image_mean": [0.3] * 3,
        "image_std": [0.3] * 3,
    }
    net = FasterRCNN(body, 3, min_size=64, max_size=64, rpn_anchor_generator=anchors, box_roi_pool=pool, **few)
    objects = _objects(SAMPLES)
    images, targets = zip(*objects[:4], strict=True)
    probe = Probe(list(images), list(targets), class_names=["background", "red", "blue"])
    methods = {"ig": m.IntegratedGradients(n_steps=32)}
    monitor = ExplanationMonitor(methods, metrics=[], probe=probe, every_n_epochs=EPOCHS)
    data = DataLoader(objects[4:], 32, shuffle=True, collate_fn=lambda samples: tuple(zip(*samples, strict=True)))  # type: ignore[arg-type]
    quiet = {"logger": False, "enable_checkpointing": False, "default_root_dir": folder}
    trainer = L.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=[monitor], **quiet)
    trainer.fit(Detector(net, F.l1_loss), data)
    save(draw(load_reports(folder / "explain")[-1], "ig"), "detection")


DEMOS = ("image", "text", "tabular", "series")
TASKS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "dense": _dense,
    "multilabel": _multilabel,
    "forecast": _forecast,
    "outputs": _outputs,
    "autoencoder": _autoencoder,
}
TASKS |= gallery_grids.TASKS


def main(names: list[str]) -> None:
    """Draws those that are named, or all."""
    for name in names or (*DEMOS, *TASKS, "detection"):
        with TemporaryDirectory() as folder:
            if name == "detection":
                draw_detection(Path(folder))
            else:
                (draw_task if name in TASKS else draw_demo)(name, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
