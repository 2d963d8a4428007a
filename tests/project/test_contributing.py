"""The pages for developers name packages, levels and files that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from shape import LEVELS
from shape import ROOT as PACKAGE

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "examples" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PACKAGES = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
FILE = re.compile(r"\b(?:lightning_explain|tests|docs|benchmarks|examples|configs)/[\w/-]+\.(?:py|md|ya?ml)\b")
# Lines of CONTRIBUTING.md before its questions.
LONGEST = 72


def test_the_table_has_each_package_of_the_tree_with_its_level() -> None:
    rows = re.findall(r"^\| (\d+) \| `(\w+)` \|", CONTRIBUTING, re.MULTILINE)
    table = {package: int(level) for level, package in rows}
    assert len(rows) == len(table)
    assert table == {package: LEVELS[package] for package in PACKAGES}
    assert [level for level, _ in rows] == [str(level) for level in sorted(table.values(), reverse=True)]


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_says_what_it_is_and_where_to_begin_reading(package: str) -> None:
    text = ast.get_docstring(ast.parse((PACKAGE / package / "__init__.py").read_text(encoding="utf-8")))
    assert text
    assert len(text.splitlines()) <= 10
    named = re.findall(r"``(\w+\.py)``", text)
    assert named, "the introduction names no file to begin with"
    assert not [name for name in named if not (PACKAGE / package / name).is_file()]
    assert not re.search("TODO|FIXME", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    named = set(FILE.findall(page.read_text(encoding="utf-8")))
    assert not [name for name in sorted(named) if not (ROOT / name).is_file()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    headings = {
        re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in re.findall("^#+ (.*)", text, re.M)
    }
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link]
    missing = [link for link in links if not link.startswith("#") and not (page.parent / link.split("#")[0]).exists()]
    assert not missing + [link for link in links if link.startswith("#") and link[1:] not in headings]


def test_how_it_works_names_six_files_to_read_first() -> None:
    text = (ROOT / "docs" / "explanation" / "how-it-works.md").read_text(encoding="utf-8")
    section = text.partition("## Read these six files first\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\d\. \[`(lightning_explain/[\w/]+\.py)`\]\(\.\./\.\./(\S+)\): \S", section, re.MULTILINE)
    assert len(listed) == 6
    assert all(name == link for name, link in listed)


def test_contributing_stays_short_before_its_questions() -> None:
    assert len(CONTRIBUTING.partition("## Twelve questions")[0].splitlines()) <= LONGEST
