"""The house's floors: which module may import which, read from the imports themselves."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_explain

PACKAGE = "lightning_explain"
ROOT = Path(__file__).parents[1] / PACKAGE

# A room imports from lower floors and from itself. Files that share a room are joined by a plus; the first names it.
FLOORS = (
    ("types", "maps", "random_state", "naming", "schedule", "repair", "parts"),
    (
        "guard",
        "forward+targets",
        "probe+batch+freeze",
        "draws",
        "gather+packing+meeting",
        "history",
        "render",
        "baselines",
        "masks",
        "randomized",
        "visits",
    ),
    ("methods", "metrics", "doctor"),
    ("plan+sweep+look+pairs+pace",),
    ("pipeline+requests+explanation+forecast+places+rehearsal", "store"),
    ("sinks", "report", "config", "publish", "trainer"),
    ("callback+alerts+arguments+memory+resuming+rounds+rows+telling+watchers",),
    ("demo+demo_run", "consultation"),
    ("cli",),
)
_PLACES = [(number, room.split("+")) for number, floor in enumerate(FLOORS) for room in floor]
ROOMS = {file: files[0] for _, files in _PLACES for file in files}
FLOOR = {files[0]: number for number, files in _PLACES}

LIGHTNING = {"sinks", "trainer", "callback", "cli", "demo"}
LOGGERS = {"sinks", "cli", "demo"}
STANDARD_LIBRARY_ONLY = {"naming", "schedule"}
# Rooms that may import what all others may not.
ALLOWED: dict[str, set[str]] = {
    "lightning": LIGHTNING,
    "pytorch_lightning": LIGHTNING,
    "lightning_fabric": LIGHTNING,
    "wandb": LOGGERS,
    "tensorboard": LOGGERS,
    "torch.utils.tensorboard": LOGGERS,
    "omegaconf": {"config"},
    "hydra": {"config"},
    "captum": {"methods", "metrics", "doctor", "repair", "plan"},
    "mlxtend": {"demo"},
    "matplotlib.pyplot": set(),
    "pylab": set(),
}
# Lower floors that a room must not know all the same.
STRANGERS = {"sinks": {"methods", "metrics"}, "trainer": {"methods", "metrics"}}


def room_of(module: str) -> str | None:
    """The room of ``lightning_explain.<file>...``; ``None`` if the file has no place in the table."""
    return ROOMS.get(module.split(".")[1])


def imports(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported anywhere in a module, lazily or for type checking too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, module, is_package)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and _imports_by_name(node):
            yield node.lineno, node.args[0].value  # type: ignore[attr-defined]


def _base(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parents = module.split(".")[: None if is_package and node.level == 1 else (1 if is_package else 0) - node.level]
    return ".".join([*parents, *([node.module] if node.module else [])])


def _imports_by_name(node: ast.Call) -> bool:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    first = node.args[0] if node.args else None
    return name in ("import_module", "__import__") and isinstance(first, ast.Constant) and isinstance(first.value, str)


def wrong(source: str, module: str, is_package: bool = False) -> list[str]:
    """What is wrong with a module's imports; each entry says where and why."""
    room = room_of(module)
    if room is None:
        return [f"{module} has no place in FLOORS; decide on which floor it lives"]
    found = ((line, name, _fault(room, name)) for line, name in imports(source, module, is_package))
    return [f"{module}:{line} imports {name}: {fault}" for line, name, fault in found if fault]


def _fault(room: str, name: str) -> str | None:
    top = name.split(".")[0]
    if top == PACKAGE:
        return _own_fault(room, _home(name))
    if room in STANDARD_LIBRARY_ONLY and top not in sys.stdlib_module_names:
        return f"{room} knows the standard library only"
    for package, rooms in ALLOWED.items():
        if f"{name}.".startswith(f"{package}.") and room not in rooms:
            return f"{package} is only for {', '.join(sorted(rooms)) or 'nobody'}"
    return None


def _home(name: str) -> str:
    """``lightning_explain.Probe`` is a lazy name of ``lightning_explain.types``."""
    parts = name.split(".")
    return (
        f"{PACKAGE}.{lightning_explain._HOMES[parts[1]]}"
        if parts[1:] and parts[1] in lightning_explain._HOMES
        else name
    )


def _own_fault(room: str, name: str) -> str | None:
    if name in (PACKAGE, f"{PACKAGE}.__version__"):
        return None
    other = room_of(name)
    if other is None:
        return "it has no place in FLOORS"
    if other in STRANGERS.get(room, ()):
        return f"{room} must not know {other}"
    if other != room and FLOOR[other] >= FLOOR[room]:
        return f"{room} is on floor {FLOOR[room]}, {other} on floor {FLOOR[other]}; only lower floors are allowed"
    return None


def modules() -> list[tuple[str, Path]]:
    """Every module but the front door, which imports lazily from everywhere."""
    files = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")
    return [(".".join([PACKAGE, *_parts(path)]), path) for path in files]


def _parts(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_a_module_imports_from_lower_floors_and_its_own_room_only(module: str, path: Path) -> None:
    assert wrong(path.read_text(), module, path.name == "__init__.py") == []


BAD = {
    "upwards": ("guard", "from lightning_explain.methods import Saliency", "guard is on floor 1, methods on floor 2"),
    "sideways": ("methods.path", "import lightning_explain.metrics.infidelity", "methods is on floor 2, metrics on"),
    "inside a function": ("store", "def f():\n    from lightning_explain import callback", "store:2 imports"),
    "for type checking": (
        "types",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lightning_explain.guard import Run",
        "types is on floor 0, guard on floor 1",
    ),
    "a lazy name": ("guard", "from lightning_explain import explain", "guard is on floor 1, pipeline on floor 4"),
    "relative": ("methods.path", "from ..metrics import Infidelity", "methods is on floor 2, metrics on floor 2"),
    "relative to the package": ("draws", "from . import callback", "draws is on floor 1, callback on floor 6"),
    "by name": ("guard", "import importlib\nimportlib.import_module('lightning_explain.cli')", "cli on floor 8"),
    "a stranger": ("sinks.files", "from lightning_explain.metrics import Infidelity", "sinks must not know metrics"),
    "Lightning in the core": ("pipeline", "import lightning.pytorch as pl", "lightning is only for callback"),
    "a logger": ("pipeline", "import wandb", "wandb is only for cli, demo, sinks"),
    "OmegaConf": ("callback", "from omegaconf import OmegaConf", "omegaconf is only for config"),
    "pyplot": ("render.image", "from matplotlib import pyplot as plt", "matplotlib.pyplot is only for nobody"),
    "more than the standard library": ("naming", "import torch", "naming knows the standard library only"),
    "an unknown file": ("guard", "from lightning_explain.attic import box", "it has no place in FLOORS"),
}


@pytest.mark.parametrize(("module", "source", "fault"), BAD.values(), ids=BAD.keys())
def test_the_check_sees_an_arrow_that_is(module: str, source: str, fault: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(source)
    found = wrong(bad.read_text(), f"{PACKAGE}.{module}")
    assert len(found) == 1
    assert fault in found[0]


def test_a_module_without_a_place_in_the_table_is_wrong() -> None:
    assert wrong("", f"{PACKAGE}.attic") == [f"{PACKAGE}.attic has no place in FLOORS; decide on which floor it lives"]


GOOD = {
    "a lower floor": ("methods.path", "from lightning_explain.types import Rows"),
    "its own room": ("methods.path", "from lightning_explain.methods._captum import attribute\nfrom . import layer"),
    "a file of its own room": ("probe", "from lightning_explain.batch import rows_of"),
    "the version": ("store", "from lightning_explain import __version__"),
    "a lazy name below": ("store", "from lightning_explain import Report"),
    "matplotlib's tables": ("render.color", "import matplotlib\nfrom matplotlib.colors import Colormap"),
}


@pytest.mark.parametrize(("module", "source"), GOOD.values(), ids=GOOD.keys())
def test_the_check_lets_through(module: str, source: str) -> None:
    assert wrong(source, f"{PACKAGE}.{module}") == []


def test_relative_imports_of_a_package_resolve_from_the_package_itself() -> None:
    found = [name for _, name in imports("from . import layer\nfrom .. import types", f"{PACKAGE}.methods", True)]
    assert found == [f"{PACKAGE}.methods.layer", f"{PACKAGE}.types"]
