"""Takes a configuration before it is resolved; follows what it refers to, and refuses what is endless or reads the environment."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from lightning_explain.core.schema import brief, one_line

LARGEST = 100_000
"""The most values and characters / 100 of a configuration, with all that it refers to written out."""
DEEPEST = 50
_REFERENCE = re.compile(r"\$\{([^${}:]*)(\$?)")
_ENVIRONMENT = re.compile(r"oc\s*\.\s*env|\$\{[^:{}]*\$\{[^{}]*\}[^{}]*:")
_MOST_BYTES = 2**20


class Reach:
    """Follows the values of one configuration; each is looked at once, however often it is referred to."""

    def __init__(self) -> None:
        self._weights: dict[Any, float] = {}
        self._open: set[Any] = set()
        self._root: Any = None
        self._held: list[Any] = []  # so that no id is used twice

    def check(self, config: Any, environment: bool = False) -> None:
        """Checks a plain or OmegaConf configuration.

        Args:
            config: The configuration; what it refers to may be elsewhere in the OmegaConf configuration that it is a part of.
            environment: Whether it may read environment variables.

        Raises:
            ValueError: If it is too large when written out, too deep, refers to itself, or reads an environment variable.
        """
        raw, keys = config, ()
        if OmegaConf.is_config(config):
            self._root = OmegaConf.to_container(config._get_root(), resolve=False)
            keys = tuple(re.findall(r"[^.\[\]]+", config._get_full_key(None) or ""))
            raw = self._at(keys)
        self._environment = environment
        self._weight(raw, keys)

    def _at(self, keys: Sequence[str]) -> Any:
        node = self._root
        for key in keys:
            if isinstance(node, Mapping):
                node = node.get(key, node.get(int(key)) if key.isdigit() else None)
            else:
                node = node[int(key)] if isinstance(node, list) and key.isdigit() and int(key) < len(node) else None
        return node

    def _weight(self, node: Any, keys: tuple[str, ...], depth: int = 0) -> float:
        """How large a value is, with all that it refers to written out."""
        if isinstance(node, str):
            return self._weight_of_text(node, keys, depth)
        if OmegaConf.is_config(node):
            Reach().check(node, self._environment)
            return 1.0
        if not isinstance(node, (Mapping, list, tuple)):
            return 1.0
        if id(node) in self._weights:
            return self._weights[id(node)]
        if id(node) in self._open or depth > DEEPEST:
            raise ValueError(f"{_shown(keys)} in the configuration is nested too deeply, or refers to itself.")
        self._open.add(id(node))
        found = 1.0
        for key, part in node.items() if isinstance(node, Mapping) else enumerate(node):
            found += self._weight(part, (*keys, str(key)), depth + 1) + len(str(key)) / 100
            if found > LARGEST:
                raise ValueError(
                    f"{_shown(keys)} in the configuration is too large when what it refers to is written out."
                )
        self._open.discard(id(node))
        self._held.append(node)
        self._weights[id(node)] = found
        return found

    def _weight_of_text(self, text: str, keys: tuple[str, ...], depth: int) -> float:
        found = 1 + len(text) / 100
        if "${" not in text:
            return found
        if not self._environment and _ENVIRONMENT.search(text):
            raise ValueError(
                f"{_shown(keys)} in the configuration reads an environment variable, which a monitor's configuration must not: "
                "write the value, or resolve the configuration yourself with OmegaConf.to_container(config, resolve=True)."
            )
        if depth > DEEPEST:
            raise ValueError(f"{_shown(keys)} in the configuration is nested too deeply, or refers to itself.")
        for path, dynamic in _REFERENCE.findall(text):
            at = _absolute(path, keys)
            # Of a name that is itself a reference, everything that it may name.
            target = at[:-1] if dynamic and not path.endswith(".") else at
            if dynamic and not target:
                raise ValueError(
                    f"{_shown(keys)} in the configuration gives the name of a reference by another reference; write the name."
                )
            if self._root is not None:
                found += self._weight_at(target, depth + 1)
        if found > LARGEST:
            raise ValueError(f"{_shown(keys)} in the configuration is too large when what it refers to is written out.")
        return found

    def _weight_at(self, target: tuple[str, ...], depth: int) -> float:
        """How large is what a reference names."""
        if target in self._open:
            raise ValueError(f"{_shown(target)} in the configuration refers to itself.")
        if target not in self._weights:
            self._open.add(target)
            self._weights[target] = self._weight(self._at(target), target, depth)
            self._open.discard(target)
        return self._weights[target]


def _absolute(path: str, keys: tuple[str, ...]) -> tuple[str, ...]:
    """The keys from the root that a reference names; one that begins with dots begins at the place where it stands."""
    dots = len(path) - len(path.lstrip("."))
    start = keys[: len(keys) - dots] if dots else ()
    return (*start, *re.findall(r"[^.\[\]\s]+", path))


def _shown(keys: Sequence[str]) -> str:
    return brief(".".join(keys)) if keys else "A value"


# -- files -----------------------------------------------------------------------------------------------------------


def check_file(path: Path, overrides: Sequence[str] = ()) -> None:
    """Refuses a YAML file, or one that its defaults or overrides name, that takes forever to read.

    Raises:
        ValueError: If a file is too large or deep, or is no YAML; OmegaConf would write out every alias.
    """
    left = [path, *(path.parent / f"{name}.yaml" for name in map(_option, overrides))]
    seen: set[Path] = set()
    while left and len(seen) < 1_000:
        file = left.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        data = file.read_bytes()
        # YAML itself takes long for what is deep.
        depth = accumulate(1 if bracket in b"[{" else -1 for bracket in data[:_MOST_BYTES] if bracket in b"[{]}")
        if len(data) > _MOST_BYTES or max(depth, default=0) > DEEPEST:
            raise ValueError(f"{one_line(str(file), 150)} is too large or too deep for a configuration.")
        try:
            content = yaml.safe_load(data)
            Reach().check(content, environment=True)
        except (yaml.YAMLError, RecursionError, ValueError) as error:
            raise ValueError(f"{one_line(str(file), 100)} cannot be composed: {one_line(str(error), 180)}") from error
        left += [folder / f"{name}.yaml" for name in _defaults(content) for folder in (file.parent, path.parent)]


def _defaults(content: Any) -> Iterator[str]:
    """The files, without ending, that a configuration's defaults list names."""
    entries = content.get("defaults") if isinstance(content, Mapping) else None
    for entry in entries if isinstance(entries, list) else ():
        for group, options in entry.items() if isinstance(entry, Mapping) else [("", entry)]:
            for option in options if isinstance(options, list) else [options]:
                yield _option(f"{group}={option}" if group else str(option))


def _option(text: str) -> str:
    """``override /group@package=option`` as ``group/option``."""
    group, _, option = text.split(" ")[-1].rpartition("=")
    group = group.lstrip("+~/").partition("@")[0]
    return f"{group}/{option}" if group else option.lstrip("/").partition("@")[0]
