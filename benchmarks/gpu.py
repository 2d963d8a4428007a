"""Checks on one device that training is not disturbed and that the numbers are right, and measures the speed of each method.

One command for a machine with a CUDA card, which needs no network:

    python benchmarks/gpu.py [--device cuda] [--wheels DIR] [--save FILE] [--small] [part ...]

Torch, torchvision and Lightning must be there (transformers for BERT), a C compiler and Triton for the training with ``torch.compile``.
Whatever else is missing can lie as wheels in ``DIR``, and is installed in a temporary folder. They are made with network, by the same
Python on the same kind of machine, with ``pip wheel``; ``pip download`` is not enough, because antlr4-python3-runtime, which omegaconf
needs, is published without a wheel:

    pip wheel --no-deps --wheel-dir DIR captum omegaconf antlr4-python3-runtime==4.9.3 cloudpickle safetensors rich markdown-it-py \
        mdurl pygments matplotlib contourpy cycler fonttools kiwisolver pyparsing python-dateutil six tensorboard absl-py grpcio \
        markdown protobuf werkzeug markupsafe tensorboard-data-server pillow tqdm packaging psutil

Nothing else is read from outside the tree: networks have random weights, and images are drawn. Without a card it runs on the CPU, and
says so.

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

It fails if a check fails. A part that cannot run is a failed check; the others go on. What does not fit into the card's memory is made
smaller, and the table says so. ``--small`` takes tiny networks, to try the script itself: its times mean nothing.
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
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument("parts", nargs="*", choices=[*PARTS, []], help="only these (default: all)")
    made.add_argument("--device", default="auto", help='"auto", "cuda", "cuda:1", "cpu" ... (default: auto)')
    made.add_argument("--wheels", type=Path, help="folder of wheels to install in a temporary folder first")
    made.add_argument("--save", type=Path, help="also write the tables to this file, after each part")
    made.add_argument("--repeat", type=int, default=5, help="times each thing is measured (default: 5)")
    made.add_argument("--small", action="store_true", help="tiny networks, to try the script")
    return made.parse_args(arguments)


def wheels_in(folder: Path) -> list[str]:
    """The wheels of a folder, which must have some, and no package without one."""
    wheels, sources = sorted(folder.glob("*.whl")), [*folder.glob("*.tar.gz"), *folder.glob("*.zip")]
    if sources or not wheels:
        found = (
            f"{', '.join(sorted(one.name for one in sources))}, which must be built first" if sources else "no *.whl"
        )
        sys.exit(
            f"--wheels {folder}: the folder has {found}. Make wheels with pip wheel --no-deps --wheel-dir {folder} ..."
        )
    return [*map(str, wheels)]


def with_wheels(folder: Path, given: list[str]) -> int:
    """Runs this script again, with the wheels of a folder installed in a temporary one."""
    wheels = wheels_in(folder)
    with tempfile.TemporaryDirectory() as site:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site]
        subprocess.run([*install, *wheels], check=True)
        at = next(i for i, argument in enumerate(given) if argument.startswith("--wheels"))
        rest = given[:at] + given[at + (1 if "=" in given[at] else 2) :]
        path = os.pathsep.join(filter(None, [site, os.environ.get("PYTHONPATH")]))
        return subprocess.run([sys.executable, __file__, *rest], env={**os.environ, "PYTHONPATH": path}).returncode


def main(arguments: list[str] | None = None) -> int:
    chosen = parsed(arguments)
    if chosen.wheels is not None:
        return with_wheels(chosen.wheels, sys.argv[1:] if arguments is None else arguments)
    # Read when CUDA starts: without it some of its kernels may sum in another order each time.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    from _gpu_parts import run

    return run(chosen, PARTS)


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).resolve().parents[1]))
    sys.exit(main())
