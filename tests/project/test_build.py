from __future__ import annotations

import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import installed
import lightning_explain

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    # Where the build backend is installed nothing has to be downloaded.
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", *isolation, "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = out.glob("*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_every_module_and_the_typing_marker(wheel: zipfile.ZipFile) -> None:
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lightning_explain").rglob("*.py")}
    assert files | {"lightning_explain/py.typed"} <= set(wheel.namelist())


def test_the_wheel_holds_the_configs_of_the_tree(wheel: zipfile.ZipFile) -> None:
    configs = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yaml")}
    assert configs
    assert {f"lightning_explain/{path}" for path in configs} <= set(wheel.namelist())


def test_the_wheel_holds_the_examples_of_the_tree(wheel: zipfile.ZipFile) -> None:
    examples = {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").iterdir() if path.is_file()}
    assert {"examples/README.md", "examples/doctor.yaml", "examples/train.py"} <= examples
    assert {f"lightning_explain/{path}" for path in examples} <= set(wheel.namelist())


def test_a_wheel_of_the_source_distribution_is_the_wheel_of_the_tree(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    isolation = ["--no-isolation"] if importlib.util.find_spec("hatchling") else []
    command = [sys.executable, "-m", "build", *isolation, "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (again,), (source,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(wheel.namelist())
    if (ROOT / ".git").exists():
        installed.source_is_whole(source, again)


def test_the_wheel_holds_nothing_but_the_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"lightning_explain", f"lightning_explain-{lightning_explain.__version__}.dist-info"}


def test_the_wheel_names_its_license_and_its_command(wheel: zipfile.ZipFile) -> None:
    info = f"lightning_explain-{lightning_explain.__version__}.dist-info"
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
    assert "lightning-explain = lightning_explain.cli.main:app" in wheel.read(f"{info}/entry_points.txt").decode()
