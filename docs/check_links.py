"""Checks the links of the built documentation without a network: ``python docs/check_links.py [docs/_build]``.

A link to a page, a file or a place on a page must lead there; one to the project's own repository must name a file of this tree.
Links to other sites are asked for by ``make linkcheck``.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]


class Page(HTMLParser):
    """One page.

    Attributes:
        links: What it links to or shows.
        places: The places on it that can be linked to.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects links and places."""
        found = dict(attrs)
        self.links += [link for link in (found.get("href"), found.get("src")) if link]
        self.places |= {place for place in (found.get("id"), found.get("name")) if place}


def broken(folder: Path, repository: str) -> tuple[int, list[str]]:
    """How many links to files of our own there are, and those that lead nowhere, each with the page it is on."""
    pages = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    count, lost = 0, []
    for path, page in pages.items():
        for link in page.links:
            target = _target(path, link, repository)
            if target is None:
                continue
            count += 1
            place = unquote(urlsplit(link).fragment)
            known = target.exists() and (not place or target not in pages or place in pages[target].places)
            if not known:
                lost.append(f"{path.relative_to(folder.resolve())}: {link}")
    return count, lost


def _target(page: Path, link: str, repository: str) -> Path | None:
    """The file that a link means; ``None`` for another site."""
    parts = urlsplit(link)
    if parts.scheme in ("http", "https"):
        own = re.fullmatch(rf"/{re.escape(repository)}/(?:(?:blob|tree|raw)/)?main/(.+)", parts.path)
        return ROOT / unquote(own[1]) if own else None
    if parts.scheme:
        return None
    return (page.parent / unquote(parts.path)).resolve() if parts.path else page


def main(folder: Path) -> None:
    """Prints how many links were checked, or ends with those that are broken."""
    source = re.search(r'^Source = "https://github.com/(\S+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert source is not None
    count, lost = broken(folder, source[1])
    if lost or not count:
        sys.exit("\n".join(["Links that lead nowhere:", *sorted(set(lost))]) if count else f"No page is in {folder}.")
    print(f"{count} links lead to a file or a place on a page.")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "_build"))
