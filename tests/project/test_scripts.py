"""Scripts that the Makefile runs find what they import, although their folder, and not ``tests``, is on the path then."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(set(re.findall(r"python (tests/\S+\.py)", (ROOT / "Makefile").read_text())))
OF_TESTS = {path.stem for path in (ROOT / "tests").iterdir() if path.is_dir() or path.suffix == ".py"}


def test_the_makefile_runs_scripts() -> None:
    assert len(SCRIPTS) > 4


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_adds_the_path_of_the_tests_before_it_imports_from_them(script: str) -> None:
    added = (ROOT / script).parent == ROOT / "tests"
    for statement in ast.parse((ROOT / script).read_text()).body:
        added = added or "sys.path" in ast.unparse(statement)
        if isinstance(statement, ast.ImportFrom) and (statement.module or "").split(".")[0] in OF_TESTS:
            assert added, ast.unparse(statement)
