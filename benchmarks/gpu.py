"""Checks on one device that training is not disturbed and that the numbers are right, and measures the speed of each method.

One command for a machine with a CUDA card, which needs no network:

    python benchmarks/gpu.py [--device cuda] [--wheels DIR] [--save FILE] [--small] [part ...]

Torch, torchvision and Lightning must be there (transformers for BERT); whatever else is missing can lie as wheels in ``DIR``, from
``pip download --no-deps captum omegaconf ...``, and is installed in a temporary folder. Without a card it runs on the CPU, and says so.

- ``interference``: the same training without the monitor, again, and with it: weights, optimizers, gradients, generators (also of the
  device), cuDNN's settings and the scale of float16 losses, after every step, compared bit by bit; also with ``torch.compile``, and
  explained beside on the CPU.
- ``equality``: maps on the device against Captum's call there, max|a - b| / max|b|; where float32 gives more than 1e-5, in float64.
- ``memory``: the peak against Captum's, and how it grows with steps and draws.
- ``passes``: seconds at several pass sizes and memory formats, and the size that is chosen.
- ``out_of_memory``: a device too small for the first pass size gives the same maps.
- ``speed``: samples a second of each method alone, and of all in shared passes, for ResNet-50, ViT-B/16 and BERT-base with random
  weights, in float32 and bfloat16.
- ``share``: the share of an epoch that the default monitor takes.

It fails if a check fails. ``--small`` takes tiny networks, to try the script itself: its times mean nothing.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PARTS = ("interference", "equality", "memory", "passes", "out_of_memory", "speed", "share")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("parts", nargs="*", choices=[*PARTS, []], help="only these (default: all)")
    made.add_argument("--device", default="auto", help='"auto", "cuda", "cuda:1", "cpu" ... (default: auto)')
    made.add_argument("--wheels", type=Path, help="folder of wheels to install in a temporary folder first")
    made.add_argument("--save", type=Path, help="also write the tables to this file")
    made.add_argument("--repeat", type=int, default=5, help="times each thing is measured (default: 5)")
    made.add_argument("--small", action="store_true", help="tiny networks, to try the script")
    return made.parse_args(arguments)


def with_wheels(folder: Path) -> int:
    """Runs this script again, with the wheels of a folder installed in a temporary one."""
    with tempfile.TemporaryDirectory() as site:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site]
        subprocess.run([*install, *map(str, sorted(folder.glob("*.whl")))], check=True)
        given = sys.argv[1:]
        at = next(i for i, argument in enumerate(given) if argument.startswith("--wheels"))
        rest = given[:at] + given[at + (1 if "=" in given[at] else 2) :]
        path = os.pathsep.join(filter(None, [site, str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")]))
        return subprocess.run([sys.executable, __file__, *rest], env={**os.environ, "PYTHONPATH": path}).returncode


def main(arguments: list[str] | None = None) -> int:
    chosen = parsed(arguments)
    if chosen.wheels is not None:
        return with_wheels(chosen.wheels)
    # Read when CUDA starts: without it some of its kernels may sum in another order each time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from _gpu_parts import run

    return run(chosen, PARTS)


if __name__ == "__main__":
    sys.exit(main())
