"""What a fault is: it comes from outside of the monitor, from user code, the file system or a signal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from faults.scene import Scene

Inject = Callable[[Scene], None]


@dataclass(frozen=True)
class Fault:
    """What is done where.

    Args:
        place: What it strikes.
        name: What it is.
        inject: Changes the scene; called on all ranks, where ``scene.injured`` tells those that are struck.
        refused: Whether it is a mistake that ends the run before the first batch, instead of one to be survived.
        raises: Whether it is raised with ``on_error="raise"``; otherwise it is got over, or told without a failure.
        writing: Whether it strikes what rank zero alone does.
    """

    place: str
    name: str
    inject: Inject
    refused: bool = False
    raises: bool = True
    writing: bool = False


def fails(error: Exception, scene: Scene | None = None) -> Callable[..., Any]:
    """A function of anything that raises."""

    def function(*arguments: Any, **named: Any) -> Any:
        if scene is not None:
            scene.strike()
        raise error

    return function


def argument(make: Callable[[Scene], dict[str, Any]]) -> Inject:
    """Arguments of the monitor; all ranks need the same names, so what they hold asks whether this rank is struck."""
    return lambda scene: scene.arguments.update(make(scene))
