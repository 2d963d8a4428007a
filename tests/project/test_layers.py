"""The shape of the package: which package may import which, what lies where, how long things are, which names are gone."""

from __future__ import annotations

from pathlib import Path

import pytest

import lightning_explain
from shape import (
    FLAT,
    LEVELS,
    PACKAGE,
    RETIRED,
    ROOT,
    code_lines,
    imports,
    long_bodies,
    main,
    modules,
    retired,
    shape,
    wrong,
)


@pytest.mark.parametrize(("module", "path"), modules(), ids=[name for name, _ in modules()])
def test_a_module_imports_from_lower_levels_and_its_own_package_only(module: str, path: Path) -> None:
    assert wrong(path.read_text(), module, path.name == "__init__.py") == []


def test_every_package_of_the_table_is_in_the_tree() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == LEVELS.keys()


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
    "relative to the package": ("engine.plan", "from ..monitor import callback", "engine is on level 4, monitor on"),
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


def test_the_shape_is_as_promised(capsys: pytest.CaptureFixture[str]) -> None:
    found = shape(ROOT)
    assert not found.bodies
    assert not found.names
    assert not found.arrows
    assert len(found.flat) <= 3
    assert len(found.packages) <= 18
    assert main() == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in printed][:2] == ["files in the root", "packages"]


def test_a_broken_promise_is_printed_and_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package = tmp_path / "model"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "bad.py").write_text("from lightning_explain.engine import plan\nteller = 1\n")
    for name in ("__init__", "attic", "cellar", "shed"):
        (tmp_path / f"{name}.py").write_text("")
    assert main(str(tmp_path)) == 1
    printed = capsys.readouterr().out
    assert "model is on level 2, engine on level 4" in printed
    assert "model/bad.py: teller" in printed
    assert "attic.py" in printed


def test_only_names_count_as_retired_and_pictures_may_have_rows() -> None:
    source = '# a Teller\n"""visits"""\nx = "told"\nsweep = 1\nrow = 2\n'
    assert retired(source) == {"sweep", "row"}
    assert retired(source, of_pictures=True) == {"sweep"}
    assert "Subject" in RETIRED


def test_docstrings_do_not_count_as_the_body_and_not_as_code() -> None:
    source = "def f():\n" + '    """' + "Long.\n" * 50 + '    """\n    # why\n\n    return 1\n'
    assert long_bodies(source) == []
    assert code_lines(source) == 2
    assert long_bodies("def g():\n" + "    x = 1\n" * 41) == ["g (41)"]
