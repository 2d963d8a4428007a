from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import lightning_explain

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "matplotlib", "wandb", "tensorboard", "lightning", "captum", "omegaconf")


def in_fresh_python(code: str) -> Any:
    """Runs the code in a process that has imported nothing, and reads the JSON it prints."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = f"import sys, json, lightning_explain; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    assert in_fresh_python(code) == []


def test_importing_a_package_imports_nothing_heavy_unless_it_exports_names() -> None:
    packages = {path.parent.name for path in (ROOT / "lightning_explain").glob("*/__init__.py")}
    names = [
        f"lightning_explain.{name}"
        for name in sorted(packages - {"methods", "metrics", "modalities", "targets", "demo"})
    ]
    code = f"import sys, json, {', '.join(names)}; print(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    assert in_fresh_python(code) == []


def test_a_public_name_imports_its_module_only_when_it_is_used() -> None:
    code = """if True:
        import json, sys
        import lightning_explain
        before = "torch" in sys.modules
        lightning_explain.Probe
        print(json.dumps([before, "lightning_explain.core.probe" in sys.modules, "lightning" in sys.modules]))
    """
    assert in_fresh_python(code) == [False, True, False]


@pytest.mark.parametrize("name", lightning_explain.__all__)
def test_every_public_name_resolves(name: str) -> None:
    assert getattr(lightning_explain, name) is not None


def test_dir_lists_the_public_names_and_they_are_few() -> None:
    assert dir(lightning_explain) == sorted(lightning_explain.__all__)
    assert len(lightning_explain.__all__) <= 22


def test_an_unknown_name_is_an_attribute_error_that_lists_the_names() -> None:
    with pytest.raises(
        AttributeError,
        match="no attribute 'ExplainMonitor'; it has ExplanationMonitor, Probe, ProbeSelection, Report",
    ):
        lightning_explain.ExplainMonitor  # noqa: B018
