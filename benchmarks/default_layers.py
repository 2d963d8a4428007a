"""Which layer ``cam`` explains by default, and by which method, on every family of networks in timm and torchvision that is at hand.

    pip install timm torchvision
    python benchmarks/default_layers.py [--seconds 40] [--table docs/reference/default-layers.md] [family ...]

Without timm, its families are skipped. Each family is tried with its smallest network, random weights and images of 128
pixels (more, if it runs on no less). It learns for ``--seconds`` of processor time to tell the color of a bright square (a sixteenth of the
image) in noise; then the pointing game says on how many of 16 images the strongest place of the default ``cam`` lies in the
square (by chance on 0.06). A network that has not learned the task has no score.

The benchmark fails if a default method stops anything, if a chosen layer is none that the user may have meant (it has no
places on the input, or its map is zero), or if the scores of the networks that learned are on average below 0.5.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.registry import build_methods, build_metrics

SIZES, COLORS, SQUARES, TESTED = (128, 160, 192, 224, 240, 256), 3, 4, 16
# What the names of small networks contain, and how many parameters a large one has.
SMALL = re.compile("test_|nano|pico|femto|atto|zepto|tiny|xxs|xx_s|small|_s|_t|18|b0|x0|_0|m0|a0|050|025|_xs|mini")
LARGE = 40_000_000
# A network that takes fewer steps in the given time is not trained.
ENOUGH = 15


def images(count: int, size: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noise with a square that is bright in one channel: images, which channel, and where."""
    generator = torch.Generator().manual_seed(seed)
    x = 0.5 * torch.randn(count, 3, size, size, generator=generator)
    y, cell = torch.randint(COLORS, (count,), generator=generator), torch.arange(count) * 7 % SQUARES**2
    cell = (cell + torch.randint(SQUARES**2, (1,), generator=generator)) % SQUARES**2
    masks, side = torch.zeros(count, size, size, dtype=torch.bool), size // SQUARES
    for i, (row, column) in enumerate(zip(cell // SQUARES, cell % SQUARES, strict=True)):
        masks[i, row * side : (row + 1) * side, column * side : (column + 1) * side] = True
        x[i, y[i]][masks[i]] += 3
    return x, y, masks


def learn(model: nn.Module, size: int, seconds: float, batch: int = 8) -> bool:
    """Trains until the loss is small, or for so many seconds; returns whether there was time for enough steps."""
    optimizer, began, losses = torch.optim.AdamW(model.parameters(), 1e-3), time.process_time(), [9.0] * 5
    for module in model.train().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            # What it has seen counts after a few steps already.
            module.momentum = 0.3
    for step in range(1000):
        spent = time.process_time() - began
        if spent > seconds or (step > ENOUGH and max(losses[-5:]) < 0.05):
            break
        if step == 2 and spent > 2 * seconds / ENOUGH:
            return False
        x, y, _ = images(batch, size, 1000 + step)
        loss = F.cross_entropy(logits(model(x)), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return True


def logits(found: object) -> Tensor:
    """The first tensor of what a network returns in training."""
    return found if isinstance(found, Tensor) else logits(found[0])  # type: ignore[index]


# -- networks ------------------------------------------------------------------------------------------------------------


def of_timm() -> Iterator[tuple[str, Callable[[int], nn.Module]]]:
    """The smallest network of every family of timm."""
    try:
        import timm
    except ImportError:
        print("timm is not installed, so its families are skipped; pip install timm")
        return

    @cache
    def smallest(family: str) -> tuple[int, str]:
        names, sizes = timm.list_models(module=family), []
        small = [n for n in names if SMALL.search(n)] or names
        for name in small[:14]:
            with torch.device("meta"):
                sizes.append((sum(p.numel() for p in timm.create_model(name).parameters()), name))
        return min(sizes)

    def make(family: str, size: int) -> nn.Module:
        parameters, name = smallest(family)
        # The large ones are transformers that can be made with two blocks only.
        forms = [{"img_size": size, "depth": 2}] if parameters > LARGE else []
        for options in (*forms, {"img_size": size}):
            with suppress(TypeError, AssertionError):
                return timm.create_model(name, num_classes=COLORS, **options)
        return timm.create_model(name, num_classes=COLORS)

    for family in timm.list_modules():
        yield f"timm {family}", lambda size, family=family: make(family, size)


def of_torchvision() -> Iterator[tuple[str, Callable[[int], nn.Module]]]:
    """The smallest classifier of every family of torchvision, and its networks for videos and dense outputs."""
    names = (
        "alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5 "
        "mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_1 swin_t "
        "swin_v2_t vgg11_bn vit_b_16 wide_resnet50_2"
    )

    def make(name: str, size: int) -> nn.Module:
        options = {"vit_b_16": {"image_size": size}, "maxvit_t": {"input_size": (size, size)}}.get(name, {})
        if name in ("googlenet", "inception_v3"):
            options = {"aux_logits": False, "init_weights": True}
        return torchvision.models.get_model(name, num_classes=COLORS, **options)

    for name in names.split():
        yield f"torchvision {name}", lambda size, name=name: make(name, size)


class Attention(nn.Module):
    """Attention by hand, with normalized keys and a softmax module."""

    def __init__(self, dim: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.k_norm, self.softmax = nn.LayerNorm(dim // heads), nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.softmax(q @ self.k_norm(k).transpose(-2, -1) / k.shape[-1] ** 0.5)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), Attention(dim), nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """A transformer by hand, with a class token."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 32, 16, 16), nn.Parameter(torch.randn(1, 1, 32))
        self.position = nn.Parameter(0.1 * torch.randn(1, (size // 16) ** 2 + 1, 32))
        self.blocks, self.norm, self.head = nn.Sequential(Block(32), Block(32)), nn.LayerNorm(32), nn.Linear(32, COLORS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def convolutions(width: int = 16) -> nn.Sequential:
    """Three convolutions, each of half the resolution."""
    layers: list[nn.Module] = []
    for before, after in ((3, width), (width, width), (width, width)):
        layers += [nn.Conv2d(before, after, 3, 2, 1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class Decoder(nn.Module):
    """A classifier, and behind it a decoder that draws the image again."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head = convolutions(), nn.Linear(16, COLORS)
        self.decoder = nn.Sequential(nn.Upsample(scale_factor=8), nn.Conv2d(16, 3, 3, padding=1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.encoder(x)
        return self.head(h.mean((2, 3))), self.decoder(h)


class Frames(nn.Module):
    """Sees an image as two frames, which its convolutions take for samples."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late, self.head = nn.Conv2d(3, 3, 3, padding=1), convolutions(), nn.Linear(16, COLORS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.early(x)
        frames = torch.stack([x, x.flip(-1)], 1)
        return self.head(self.late(frames.flatten(0, 1)).mean((2, 3)).unflatten(0, frames.shape[:2]).mean(1))


class Series(nn.Module):
    """A transformer on series ``(N, T, F)``."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.block, self.head = nn.Linear(5, 32), Block(32), nn.Linear(32, COLORS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.lift(x)).mean(1))


class Words(nn.Module):
    """An LSTM on token ids ``(N, T)``."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.lstm = nn.Embedding(50, 16), nn.LSTM(16, 16, batch_first=True)
        self.head = nn.Linear(16, COLORS)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.lstm(self.embedding(ids))[0][:, -1])


def by_hand() -> Iterator[tuple[str, Callable[[int], nn.Module]]]:
    """Networks as people write them."""
    yield "hand-written ViT", Vit
    yield (
        "hand-written Swin",
        lambda size: torchvision.models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], num_classes=COLORS),
    )
    yield "decoder behind the classifier", lambda size: Decoder()
    yield "time-distributed CNN", lambda size: Frames()


# Inputs that are no images; nothing is trained on them.
OTHERS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "time-series transformer": (Series, lambda: torch.randn(4, 12, 5)),
    "token LSTM": (Words, lambda: torch.randint(50, (4, 9))),
    "torchvision r3d_18 (video)": (
        lambda: torchvision.models.video.r3d_18(num_classes=COLORS),
        lambda: torch.randn(3, 3, 8, 64, 64),
    ),
}


# -- one family ----------------------------------------------------------------------------------------------------------


@dataclass
class Line:
    """What was found for one family: the chosen layer or why there is none, and the score of the map there."""

    family: str
    size: int = 0
    layer: str = "-"
    method: Any = None
    shape: str = ""
    learned: float | None = None
    score: float | None = None
    note: str = ""
    wrong: bool = False

    def __str__(self) -> str:
        learned, score = ("" if value is None else f"{value:.2f}" for value in (self.learned, self.score))
        return (
            f"{self.family:38} {self.size or '':>4} {self.layer:44} {type(self.method).__name__:24} "
            f"{self.shape:18} {learned:>5} {score:>5}  "
            f"{'WRONG ' if self.wrong else ''}{self.note}"
        )

    @property
    def row(self) -> str:
        """A row of the table in the documentation."""
        size, score = self.size or "", "" if self.score is None else f"{self.score:.2f}"
        if self.layer == "-":
            return f"| {self.family} | {size} | {self.note or 'none: of texts, `cam` is no default'} |  |  |  |"
        by, shape = type(self.method).__name__, self.shape.replace("x", " x ")
        return f"| {self.family} | {size} | `{self.layer}` | {by} | {shape} | {score} |"


def write(found: list[Line], path: Path) -> None:
    """Puts the rows in the place of those of a table, the last thing of a document; and how many learned into the line before it."""
    scores = [line.score for line in found if line.score is not None]
    head, _, _ = path.read_text().partition("| family |")
    head = re.sub(
        r"\d+ families; \d+ learned the task.*",
        f"{len(found)} families; {len(scores)} learned the task, with {mean(scores):.2f} on average (median {median(scores):.2f}).",
        head,
    )
    table = ["| family | pixels | layer | by | shape | pointing game |", "|---|---|---|---|---|---|"]
    path.write_text(head + "\n".join([*table, *(line.row for line in found)]) + "\n")


def running(make: Callable[[int], nn.Module]) -> tuple[nn.Module, int]:
    """The network, and the smallest size of images that it runs on."""
    said: Exception | None = None
    for size in SIZES:
        try:
            torch.manual_seed(0)
            model = make(size).eval()
            with torch.no_grad():
                logits(model(torch.zeros(2, 3, size, size)))
        except Exception as error:
            said = error
            continue
        return model, size
    raise RuntimeError(f"does not run here: {type(said).__name__}: {str(said)[:80]}") from said


def tried(family: str, make: Callable[[int], nn.Module], seconds: float) -> Line:
    """Checks the defaults on a network, trains it, and plays the pointing game with the default layer."""
    line = Line(family)
    try:
        model, line.size = running(make)
    except RuntimeError as error:
        line.note = str(error)
        return line
    x, y, _ = images(4, line.size, 0)
    choose(line, model, Probe(x, y))
    if line.layer == "-" or seconds <= 0:
        return line
    if not learn(model, line.size, seconds):
        line.note = "too large to train here"
        return line
    x, y, masks = images(TESTED, line.size, 1)
    model.eval()
    report = explain(
        model,
        Probe(x, y, masks=masks),
        {"cam": line.method},
        {"pointing": q.PointingGame()},
        max_examples_per_pass=8,
    )
    line.learned = (report.predictions == y).float().mean().item()
    if line.learned >= 0.9:
        line.score = report.scores["pointing"]["cam"].nanmean().item()
    elif not report.attributions["cam"].any():
        line.wrong, line.note = True, "its map is zero"
    return line


def choose(line: Line, model: nn.Module, probe: Probe) -> None:
    """Runs the checks of a default monitor, and notes the layer or the reason why there is none."""
    explainer = Explainer(
        build_methods(None), build_metrics(None, True), default_methods=True, default_metrics=True, limit=8
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            ready = explainer.check(model.eval(), probe)
        except Exception as error:
            line.wrong, line.note = True, f"STOPPED: {type(error).__name__}: {error}"
            return
    if "cam" not in ready.methods:
        line.note = "; ".join(str(w.message)[:160] for w in said if "'cam'" in str(w.message))
        return
    line.method = ready.methods["cam"]
    line.layer = str(line.method.layer)
    found = explain(
        model, probe, {"a": m.LayerActivation(line.layer), "c": ready.methods["cam"]}, [], max_examples_per_pass=8
    )
    line.shape = "x".join(map(str, found.attributions["a"].shape[1:]))
    if "cam" not in ready.scored["infidelity"]:
        line.wrong, line.note = True, "its map has no place on the input"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("families", nargs="*", help="families to try; parts of their names")
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="processor seconds of training for each network; 0 for none"
    )
    parser.add_argument("--table", type=Path, help="document whose table is written again")
    asked = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    found: list[Line] = []
    for family, make in (*by_hand(), *of_torchvision(), *of_timm()):
        if not asked.families or any(part in family for part in asked.families):
            found.append(tried(family, make, asked.seconds))
            print(found[-1], flush=True)
    for family, (make_other, sample) in OTHERS.items():
        if not asked.families or any(part in family for part in asked.families):
            found.append(Line(family))
            choose(found[-1], make_other(), Probe(sample()))
            print(found[-1], flush=True)
    scores = [line.score for line in found if line.score is not None]
    if asked.table is not None:
        write(found, asked.table)
    print(
        f"{len(found)} families, {sum(line.layer != '-' for line in found)} with a layer, {len(scores)} learned; ",
        end="",
    )
    print(f"the pointing game is {mean(scores):.2f} on average" if scores else "no scores")
    return int(any(line.wrong for line in found) or bool(scores and mean(scores) < 0.5))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
