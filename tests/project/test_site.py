"""The documentation's links are checked, its pictures are small files, and its search finds pages in a real browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from browser import browser, chromium, tab

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REPOSITORY = "https://github.com/lightning-explain/lightning-explain/blob/main"
LINKS = {
    "other.html": True,
    "other.html#there": True,
    "#here": True,
    f"{REPOSITORY}/README.md": True,
    "https://captum.ai/nowhere": True,
    "missing.html": False,
    "other.html#nowhere": False,
    "#nowhere": False,
    f"{REPOSITORY}/MISSING.md": False,
}


@pytest.mark.parametrize(("link", "leads"), LINKS.items())
def test_a_link_that_leads_nowhere_is_named(tmp_path: Path, link: str, leads: bool) -> None:
    (tmp_path / "other.html").write_text('<p id="there"></p>')
    (tmp_path / "page.html").write_text(f'<p id="here"><a href="{link}">x</a><img src="other.html"></p>')
    checked = subprocess.run(
        [sys.executable, DOCS / "check_links.py", tmp_path], capture_output=True, text=True, check=False
    )
    assert (checked.returncode == 0) is leads
    assert leads or f"page.html: {link}" in checked.stderr


def test_a_folder_without_pages_is_refused(tmp_path: Path) -> None:
    checked = subprocess.run(
        [sys.executable, DOCS / "check_links.py", tmp_path], capture_output=True, text=True, check=False
    )
    assert checked.returncode
    assert f"No page is in {tmp_path}." in checked.stderr


def test_the_gallery_shows_each_of_its_pictures_and_none_is_heavy() -> None:
    shown = re.findall(r"\]\((images/gallery/\S+)\)", (DOCS / "gallery.md").read_text(encoding="utf-8"))
    files = {path.relative_to(DOCS).as_posix(): path.stat().st_size for path in (DOCS / "images/gallery").iterdir()}
    assert sorted(shown) == sorted(files)
    assert max(files.values()) < 150_000
    assert (DOCS / "images" / "epochs.gif").stat().st_size < 600_000


@pytest.mark.browser
def test_a_search_for_a_method_finds_its_page_first(tmp_path: Path) -> None:
    if chromium() is None and not os.environ.get("CI"):
        pytest.skip("no Chromium")
    pages = ("IntegratedGradients", "LayerIntegratedGradients", "Saliency", "Lime")
    (tmp_path / "docs" / "methods").mkdir(parents=True)
    shutil.copy(DOCS / "conf.py", tmp_path / "docs")
    shutil.copytree(DOCS / "_static", tmp_path / "docs" / "_static")
    for name in pages:
        page = (DOCS / "reference" / "methods" / f"{name}.md").read_text(encoding="utf-8")
        # Without links to pages that are not here.
        (tmp_path / "docs" / "methods" / f"{name}.md").write_text(re.sub(r"!?\[(.*?)\]\(.*?\)", r"\1", page))
    toc = "\n".join(f"methods/{name}" for name in pages)
    (tmp_path / "docs" / "index.md").write_text(f"# Some pages\n\n```{{toctree}}\n{toc}\n```\n")
    site = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "sphinx", "-q", "-b", "html", tmp_path / "docs", site], check=True)
    url = f"{(site / 'search.html').as_uri()}?q=IntegratedGradients"
    with browser(tmp_path / "chromium") as found, tab(found, url) as opened:
        opened.wait("document.querySelectorAll('#search-results li a').length > 1")
        titles = opened.value("[...document.querySelectorAll('#search-results li > a')].map(a => a.textContent)")
        assert titles[0] == "IntegratedGradients"
        assert "Lime" not in titles
