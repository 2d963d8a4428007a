"""The packages' levels: which package may import which, read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lightning_explain

PACKAGE = "lightning_explain"
ROOT = Path(__file__).parents[2] / PACKAGE

# A package imports from packages of lower levels and from itself, never beside or above.
LEVELS = {
    "core": 1,
    "distributed": 1,
    "model": 2,
    "modalities": 2,
    "probes": 3,
    "render": 3,
    "store": 3,
    "engine": 4,
    "loggers": 4,
    "methods": 5,
    "metrics": 5,
    "checks": 5,
    "explainer": 6,
    "monitor": 7,
    "report": 8,
    "demo": 9,
    "cli": 10,
}
FLAT = {"__init__.py", "__main__.py"}
"""The only Python files in the package's root."""

_LIGHTNING = {"loggers", "monitor", "demo"}
_LOGGERS = {"loggers"}
# Libraries that only some packages may import.
LIBRARIES: dict[str, set[str]] = {
    "lightning": _LIGHTNING,
    "pytorch_lightning": _LIGHTNING,
    "lightning_fabric": _LIGHTNING,
    "wandb": _LOGGERS,
    "tensorboard": _LOGGERS,
    "torch.utils.tensorboard": _LOGGERS,
    "omegaconf": {"monitor"},
    "hydra": {"monitor"},
    "captum": {"model", "engine", "methods", "metrics", "checks"},
    "mlxtend": {"demo"},
    "matplotlib.pyplot": set(),
    "pylab": set(),
}


def package_of(module: str) -> str:
    """The package of ``lightning_explain.<package>...``; empty for the root itself."""
    return [*module.split("."), ""][1]


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
    package = package_of(module)
    if package not in LEVELS:
        return [f"{module} is in no package of LEVELS; move it into one"]
    found = ((line, name, _fault(package, name)) for line, name in imports(source, module, is_package))
    return [f"{module}:{line} imports {name}: {fault}" for line, name, fault in found if fault]


def _fault(package: str, name: str) -> str | None:
    if name.split(".")[0] == PACKAGE:
        return _own_fault(package, package_of(name))
    for library, packages in LIBRARIES.items():
        if f"{name}.".startswith(f"{library}.") and package not in packages:
            return f"{library} is only for {', '.join(sorted(packages)) or 'nobody'}"
    return None


def _own_fault(package: str, other: str) -> str | None:
    if other not in LEVELS:
        return "import from the package that defines it, not from the root"
    if other == package or LEVELS[other] < LEVELS[package]:
        return None
    return f"{package} is on level {LEVELS[package]}, {other} on level {LEVELS[other]}; only lower levels are allowed"


def modules() -> list[tuple[str, Path]]:
    """Every module but the two of the root, which import lazily from everywhere."""
    files = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT or path.name not in FLAT)
    return [(".".join([PACKAGE, *_parts(path)]), path) for path in files]


def _parts(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_a_module_imports_from_lower_levels_and_its_own_package_only(module: str, path: Path) -> None:
    assert wrong(path.read_text(), module, path.name == "__init__.py") == []


def test_every_package_of_the_table_is_in_the_tree() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} | {"report"} == LEVELS.keys()


BAD = {
    "upwards": ("model.isolation", "from lightning_explain.methods import Saliency", "model is on level 2, methods on"),
    "sideways": ("methods.path", "import lightning_explain.metrics.infidelity", "methods is on level 5, metrics on"),
    "inside a function": (
        "store.report_files",
        "def f():\n    from lightning_explain.monitor import callback",
        "store.report_files:2 imports",
    ),
    "for type checking": (
        "core.probe",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from lightning_explain.model.isolation import Run",
        "core is on level 1, model on level 2",
    ),
    "a lazy name": (
        "model.isolation",
        "from lightning_explain import explain",
        "import from the package that defines it",
    ),
    "relative": ("methods.path", "from ..metrics import Infidelity", "methods is on level 5, metrics on level 5"),
    "relative to the package": ("engine.draws", "from ..monitor import callback", "engine is on level 4, monitor on"),
    "by name": (
        "model.isolation",
        "import importlib\nimportlib.import_module('lightning_explain.cli')",
        "cli on level 10",
    ),
    "Lightning in the core": ("explainer.run", "import lightning.pytorch as pl", "lightning is only for demo"),
    "a logger": ("explainer.run", "import wandb", "wandb is only for loggers"),
    "OmegaConf": ("explainer.run", "from omegaconf import OmegaConf", "omegaconf is only for monitor"),
    "pyplot": ("render.image", "from matplotlib import pyplot as plt", "matplotlib.pyplot is only for nobody"),
    "an unknown package": (
        "model.isolation",
        "from lightning_explain.attic import box",
        "import from the package that",
    ),
}


@pytest.mark.parametrize(("module", "source", "fault"), BAD.values(), ids=BAD.keys())
def test_the_check_sees_an_arrow_that_is(module: str, source: str, fault: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.py"
    bad.write_text(source)
    found = wrong(bad.read_text(), f"{PACKAGE}.{module}")
    assert len(found) == 1
    assert fault in found[0]


def test_a_file_that_lies_flat_is_wrong() -> None:
    assert wrong("", f"{PACKAGE}.attic") == [f"{PACKAGE}.attic is in no package of LEVELS; move it into one"]
    assert {path.name for path in ROOT.glob("*.py")} <= FLAT


GOOD = {
    "a lower level": ("methods.path", "from lightning_explain.core.probe import Samples"),
    "its own package": ("methods.path", "from lightning_explain.methods._base import OnPath\nfrom . import layer"),
    "matplotlib's tables": ("render.color", "import matplotlib\nfrom matplotlib.colors import Colormap"),
}


@pytest.mark.parametrize(("module", "source"), GOOD.values(), ids=GOOD.keys())
def test_the_check_lets_through(module: str, source: str) -> None:
    assert wrong(source, f"{PACKAGE}.{module}") == []


def test_relative_imports_of_a_package_resolve_from_the_package_itself() -> None:
    found = [name for _, name in imports("from . import layer\nfrom .. import core", f"{PACKAGE}.methods", True)]
    assert found == [f"{PACKAGE}.methods.layer", f"{PACKAGE}.core"]


def test_public_names_come_from_where_they_are_defined() -> None:
    for name, home in lightning_explain._HOMES.items():
        assert getattr(lightning_explain, name).__module__ == f"{PACKAGE}.{home}"
