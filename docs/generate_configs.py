"""Writes the presets ``configs/method/*.yaml`` and ``configs/metric/*.yaml`` from the dataclasses: ``make docs``.

Each file holds every argument of its class with its default. An argument that only a function can fill is left out,
because YAML cannot hold one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any

import yaml

from lightning_explain.core.contracts import Method
from lightning_explain.core.naming import snake_case
from lightning_explain.explainer.registry import METHODS, METRICS

CONFIGS = Path(__file__).parents[1] / "configs"
GROUPS: dict[str, dict[str, Any]] = {"method": METHODS, "metric": METRICS}
ONLY_PYTHON = ("_func", "interpretable_model")
"""Endings of the names of arguments that take a function, or an object that only Python can make."""
REQUIRED = "???"
"""What OmegaConf refuses until a value is given."""


def presets() -> dict[Path, str]:
    """Path and text of every preset."""
    return {
        CONFIGS / group / f"{snake_case(name)}.yaml": preset(cls)
        for group, classes in GROUPS.items()
        for name, cls in classes.items()
    }


def preset(cls: type) -> str:
    """The text of one preset: class name, then each argument with its default.

    A method inside a method comes from its own preset, by Hydra's ``defaults``; only what differs from it is written.
    """
    arguments = [(field.name, default(field)) for field in _written(cls)]
    inner = [(name, value) for name, value in arguments if isinstance(value, Method)]
    lines = [f"name: {cls.__name__}", *(line for name, value in arguments for line in _lines(name, value))]
    return "\n".join([*_defaults(inner), *lines]) + "\n"


def _written(cls: Any) -> list[Field[Any]]:
    return [field for field in fields(cls) if field.init and not takes_only_functions(field)]


def takes_only_functions(field: Field[Any]) -> bool:
    """Whether YAML can hold no value of an argument but ``null``."""
    return field.default is None and field.name.endswith(ONLY_PYTHON)


def default(field: Field[Any]) -> Any:
    """The default of a field; ``???`` if it has none."""
    if field.default_factory is not MISSING:
        return field.default_factory()
    return REQUIRED if field.default is MISSING else field.default


def _defaults(inner: list[tuple[str, Any]]) -> Iterator[str]:
    if inner:
        yield "defaults:"
        yield from (f"  - /method@{name}: {snake_case(type(value).__name__)}" for name, value in inner)
        yield from ("  - _self_", "")


def _lines(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Method):
        yield f"{name}: {_yaml(value)}"
        return
    changed = [(f.name, getattr(value, f.name)) for f in _written(type(value)) if getattr(value, f.name) != default(f)]
    if changed:
        yield f"{name}:"
        yield from (f"  {line}" for key, part in changed for line in _lines(key, part))


def _yaml(value: Any) -> str:
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump(plain, default_flow_style=True, width=10_000).removesuffix("...\n").strip()


def main() -> None:
    """Writes the presets, and deletes those whose class is gone."""
    current = presets()
    for path in (path for group in GROUPS for path in (CONFIGS / group).glob("*.yaml")):
        if path not in current:
            path.unlink()
    for path, text in current.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
