"""``lightning-explain examples``: a folder in; examples and the configurations that they compose, copied there, out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lightning_explain.cli.printing import Format, as_json, failing_with_2, markdown, table, wide_console

_PACKAGE = Path(__file__).parents[1]


def examples(
    copy: Annotated[
        Path | None, typer.Option(metavar="DIR", file_okay=False, help="Copy them to DIR/examples and DIR/configs.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files that differ.")] = False,
    form: Annotated[Format, typer.Option("--format", help="How to print the list.")] = Format.table,
) -> None:
    """List the examples, or copy them with their configurations. The exit code is 2 if a file would be overwritten."""
    if copy is not None:
        with failing_with_2():
            count = copied(copy, force)
        typer.echo(f"{count} files in {copy}; {copy / 'examples' / 'README.md'} describes them.")
        return
    columns = ("file", "about")
    lines = [(name, _about(path)) for name, path in sources("examples").items()]
    if form is Format.json:
        typer.echo(as_json([dict(zip(columns, line, strict=True)) for line in lines]))
    elif form is Format.markdown:
        typer.echo(markdown("Examples", columns, lines))
    else:
        wide_console().print(table("Examples", columns, lines))


def sources(*folders: str) -> dict[str, Path]:
    """The files in these folders of the wheel, or of the checkout, by their names relative to it."""
    found = dict[str, Path]()
    for folder in folders:
        root = _PACKAGE if (_PACKAGE / folder).is_dir() else _PACKAGE.parent
        # Packages of configurations are needed inside a wheel only.
        files = (
            p for p in sorted((root / folder).rglob("*")) if p.is_file() and "__" not in f"{p.parent.name}{p.name}"
        )
        found |= {path.relative_to(root).as_posix(): path for path in files}
    return found


def copied(to: Path, force: bool = False) -> int:
    """Copies examples and configurations, and returns how many files that are.

    Raises:
        FileExistsError: If other files have their names; then nothing is copied.
    """
    files = {to / name: path.read_bytes() for name, path in sources("examples", "configs").items()}
    others = [path for path, content in files.items() if path.exists() and not _holds(path, content)]
    if others and not force:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        raise FileExistsError(
            f"'{others[0]}'{more} would be overwritten, so nothing was copied; choose another folder, or use --force."
        )
    for path, content in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return len(files)


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() == content


def _about(path: Path) -> str:
    """The first line of a file, without its marks."""
    return path.read_text(encoding="utf-8").partition("\n")[0].strip('#" ')
