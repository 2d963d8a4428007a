"""What the distribution says of itself: the packages that it needs, its address, how it is cited, how faults are reported."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import lightning_explain
from shape import ROOT as PACKAGE

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

ROOT = Path(__file__).parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
ADDRESS = PROJECT["urls"]["Source"]
# A run that has the logger has its package.
LOGGERS = {"mlflow": "loggers/mlflow.py", "tensorboardX": "loggers/"}
# Parts of the package's own that find Hydra running; read() says what to install.
RUNS_INSIDE_HYDRA = {"report/sweeps.py"}


def distributions(requirements: list[str]) -> set[str]:
    """The names that these requirements install, those of extras of the package's own included."""
    found = set()
    for requirement in map(Requirement, requirements):
        if requirement.name == PROJECT["name"]:
            found |= distributions([line for extra in requirement.extras for line in EXTRAS[extra]])
        else:
            found.add(canonicalize_name(requirement.name))
    return found


INSTALLED = packages_distributions()
NEEDED = distributions(PROJECT["dependencies"])


def imported(tree: ast.AST) -> Iterator[str]:
    """The packages of others that this code imports, by statement or by name."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "find_spec")):
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        for name in (full.partition(".")[0] for full in names):
            if name not in sys.stdlib_module_names and name != PACKAGE.name:
                yield name


def installed_as(module: str) -> set[str]:
    return {canonicalize_name(name) for name in INSTALLED.get(module, [module])}


TREES = {
    path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")
}
USES = sorted({(module, file) for file, tree in TREES.items() for module in imported(tree)})
OPTIONAL = [(module, file) for module, file in USES if not installed_as(module) & NEEDED]


def test_what_is_imported_is_found() -> None:
    tree = ast.parse("import numpy.random, os\ndef f():\n    from PIL import Image\n    importlib.import_module('a.b')")
    assert set(imported(tree)) == {"numpy", "a", "PIL"}


@pytest.mark.parametrize("module", sorted({module for module, _ in USES}))
def test_every_package_that_is_imported_is_declared(module: str) -> None:
    declared = NEEDED.union(*(distributions(lines) for name, lines in EXTRAS.items() if name not in ("dev", "docs")))
    assert installed_as(module) & declared or module in LOGGERS, f"pyproject.toml declares nothing that has {module}"


@pytest.mark.parametrize(("module", "file"), OPTIONAL)
def test_without_a_package_that_not_everybody_needs_the_error_names_the_extra_that_has_it(
    module: str, file: str
) -> None:
    if file.startswith(LOGGERS.get(module, "nowhere")) or file in RUNS_INSIDE_HYDRA:
        return
    texts = [node.value for node in ast.walk(TREES[file]) if isinstance(node, ast.Constant)]
    named = {
        extra for text in texts if isinstance(text, str) for extra in re.findall(r"lightning-explain\[(\w+)\]", text)
    }
    assert any(installed_as(module) & distributions(EXTRAS[extra]) for extra in named), (
        f"{file} names {named or 'none'}"
    )


def test_dashboards_are_dependencies() -> None:
    assert {"wandb", "tensorboard"} <= NEEDED


def test_every_dependency_is_used() -> None:
    used = set().union(*(installed_as(module) for module, _ in USES))
    assert sorted(NEEDED - used) == []


def test_the_readme_the_citation_and_the_site_have_one_address() -> None:
    files = [ROOT / name for name in ("README.md", "CITATION.cff", "SECURITY.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    files += [
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("docs/*.py"),
        *ROOT.glob("examples/*"),
        *ROOT.glob(".github/**/*.yml"),
    ]
    owner = re.compile(r"https://(?:raw\.githubusercontent|github)\.com/([\w.-]+/lightning[-_]explain)\b")
    found = {match for file in files if file.is_file() for match in owner.findall(file.read_text(encoding="utf-8"))}
    assert found == {ADDRESS.removeprefix("https://github.com/")}
    assert all(url.startswith(ADDRESS) for url in PROJECT["urls"].values())


def test_the_citation_agrees_with_the_distribution() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    # What the schema of version 1.2.0 requires.
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] in ("software", "dataset")
    assert all(author.keys() & {"name", "family-names"} for author in cited["authors"])
    assert cited["repository-code"] == ADDRESS
    assert cited["license"] == PROJECT["license"] == "Apache-2.0"
    assert cited["abstract"] == PROJECT["description"]
    # A version here would have to be kept up; the one of a release is its tag.
    assert "version" not in cited
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", lightning_explain.__version__)


TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_an_issue_template_is_a_form_that_github_reads(path: Path) -> None:
    form = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(form) <= {"name", "description", "title", "labels", "assignees", "projects", "type", "body"}
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert fields, "a form needs a field"
    assert all(field["type"] in ("textarea", "input", "dropdown", "checkboxes") for field in fields)
    assert all(field["attributes"]["label"] for field in fields)
    identifiers = [field["id"] for field in fields]
    assert len(set(identifiers)) == len(identifiers)
    assert all(re.fullmatch(r"[\w-]+", identifier) for identifier in identifiers)


def test_there_are_templates_and_a_way_to_report_in_private() -> None:
    assert len(TEMPLATES) == 2
    assert "Report a vulnerability" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
