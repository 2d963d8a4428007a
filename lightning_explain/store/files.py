"""Opens files that others may have written, and replaces files as a whole; names of files."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open

from lightning_explain.core.schema import MalformedError, brief, one_line

SUFFIX = ".safetensors"
MOST_HEADER = 2**24
"""The most bytes of a header, and of a file of JSON."""
_MOST_TENSORS = 10_000
# The most bytes of a file name's part; file systems allow 255.
_LONGEST = 200
_WINDOWS_DEVICE = re.compile(r"con|prn|aux|nul|(com|lpt)[0-9¹²³]", re.IGNORECASE)


def safe_name(name: str) -> str:
    """A name as one path component that is valid on every system; different names give different components.

    Letters, digits, ``_`` and ``-`` are kept; every other character is replaced by its bytes, as in ``a%2Fb``. A name
    too long for a file system is cut, and a digest of the whole name is appended. Where a file system ignores case,
    names that differ only in case still collide.
    """
    kept = re.sub(r"[^\w-]", lambda match: _bytes(match[0]), name)
    if len(kept.encode("utf-8", "surrogatepass")) > _LONGEST:
        digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
        return f"{kept[:40]}%{digest}"
    if _WINDOWS_DEVICE.fullmatch(kept):
        return _bytes(kept[0]) + kept[1:]
    return kept or "%empty"


def _bytes(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


@contextmanager
def replacing(path: Path, shared: bool = False) -> Iterator[Path]:
    """A context that yields a temporary path in the same folder; on exit without an exception it replaces ``path``.

    Args:
        path: The file.
        shared: Whether other processes may write the same file at the same time.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}{f'.{uuid4().hex}' if shared else ''}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def reading(path: Path) -> Iterator[int]:
    """A section that reads a file, if it is a regular one; yields its size in bytes.

    Raises:
        MalformedError: If it is none, or if what is read inside is not as it should be.
    """
    try:
        # Opening a pipe or a device would wait.
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise MalformedError("it is not a regular file")
        yield found.st_size
    except MalformedError:
        raise
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise MalformedError(str(error) if str(error) else type(error).__name__) from error


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A file of tensors, if it has a header of a plausible size.

    Raises:
        MalformedError: If it has not, or if what is read inside is not as it should be.
    """
    with reading(path):
        # Safetensors believes what a header says of its own size.
        with path.open("rb") as raw:
            head = raw.read(8)
        if len(head) < 8 or struct.unpack("<Q", head)[0] > MOST_HEADER:
            raise MalformedError(f"it has no header of at most {MOST_HEADER} bytes")
        with safe_open(path, framework="pt") as file:
            yield file


def tensors_of(file: Any) -> dict[str, Any]:
    """All tensors of an open file, by name.

    Raises:
        MalformedError: If there are too many.
    """
    names = list(file.keys())
    if len(names) > _MOST_TENSORS:
        raise MalformedError(f"it has {len(names)} tensors, more than {_MOST_TENSORS}")
    return {name: file.get_tensor(name) for name in names}


def parsed(text: str, what: str) -> dict[str, Any]:
    """The dictionary in a JSON text.

    Raises:
        MalformedError: If it is none, has a name twice, or a number that is none.
    """
    content = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant)
    if not isinstance(content, dict):
        raise MalformedError(f"it is {brief(content)} instead of {what}")
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise MalformedError("it has a name twice")
    return found


def _refuse_constant(name: str) -> Any:
    raise MalformedError(f"it has the number {name}")


def broken(what: str, path: Path, error: Exception, fix: str) -> str:
    """A line about a file that cannot be read."""
    return f"{what} '{one_line(str(path), 120)}' is broken ({one_line(str(error), 120)}); {fix}"
