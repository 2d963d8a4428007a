"""A model in; the arguments of its ``forward`` out, and values fitted to their names."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lightning_explain.core.call import Place, divided

_BY_POSITION = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Signature:
    """The arguments that a function takes.

    Args:
        text: The function with its arguments, for messages: ``forward(image, reference)``.
        positional: Names of the arguments that can be given by position, in order.
        names: Names of the arguments that can be given by name, in order.
        required: Names of those without a default.
        optional: Names of those that are ``None`` by default and may take a tensor.
        any_position: Whether it takes any number of further arguments by position.
        any_name: Whether it takes any further names.
        by_user: Whether it is the user's ``forward_fn``.
        mappings: Names of the arguments that its source reads by key, as ``batch["image"]`` does.
    """

    text: str
    positional: tuple[str, ...]
    names: tuple[str, ...]
    required: tuple[str, ...]
    optional: tuple[str, ...]
    any_position: bool
    any_name: bool
    by_user: bool = False
    mappings: frozenset[str] = frozenset()

    @property
    def only(self) -> str | None:
        """The name of the one argument that must be given, or of the only one there is; otherwise ``None``."""
        names = self.required or self.names
        return names[0] if len(names) == 1 else None

    def takes(self, count: int) -> bool:
        """Whether it takes that many arguments by position."""
        return self.any_position or count <= len(self.positional)

    def in_order(self, names: Iterable[int | str]) -> list[int | str]:
        """The names in the order of the arguments; those that ``**kwargs`` takes come last."""
        order: dict[int | str, int] = {name: i for i, name in enumerate(self.names)}
        return sorted(names, key=lambda name: order.get(name, len(order)))


def signature_of(model: nn.Module, forward_fn: Callable[..., Any] | None = None) -> Signature | None:
    """The arguments of the model's ``forward``, or of what is called instead of it; ``None`` if they are not known.

    Args:
        model: The module; of a compiled one, the module that was compiled counts.
        forward_fn: ``forward_fn(model, *inputs, *forward_args)``; its first argument is left out.
    """
    if isinstance(model, torch.jit.ScriptModule) and forward_fn is None:
        return _of_script(model)
    forward: Any = getattr(model, "_orig_mod", model).forward if forward_fn is None else forward_fn
    try:
        parameters = list(inspect.signature(forward).parameters.values())
    except (TypeError, ValueError):
        return None
    mappings = _read_by_key(forward)
    if forward_fn is None:
        return _signature("forward", parameters, mappings=mappings)
    own = parameters[parameters[0].kind in _BY_POSITION :] if parameters else []
    return _signature("forward_fn", own, by_user=True, mappings=mappings)


def _read_by_key(function: Callable[..., Any]) -> frozenset[str]:
    """Names whose values the source of a function reads as mappings: ``x["image"]``, ``x.items()``, ``f(**x)``; none without a source.

    A name that the function gives to something else as well is none of them.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except Exception:  # Of a file that has changed since it was imported, anything may be read.
        return frozenset()
    nodes = list(ast.walk(tree))
    read = {value.id for node in nodes if isinstance(value := _mapping_in(node), ast.Name)}
    arguments = [node.arg for node in nodes if isinstance(node, ast.arg)]
    given = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    return frozenset(name for name in read - given if arguments.count(name) == 1)


def _mapping_in(node: ast.AST) -> ast.AST | None:
    """What a node reads as a mapping; ``None`` if nothing."""
    if isinstance(node, ast.Subscript):
        named = isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str)
        return node.value if named else None
    if isinstance(node, ast.Attribute):
        return node.value if node.attr in ("get", "items", "keys", "values") else None
    return node.value if isinstance(node, ast.keyword) and node.arg is None else None


def _of_script(model: Any) -> Signature | None:
    """The signature in the schema of a scripted module."""
    kind, none = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
    arguments = model.forward.schema.arguments[1:]
    given = {a.name: a.default_value if a.has_default_value() else none for a in arguments}
    return _signature("forward", [inspect.Parameter(name, kind, default=default) for name, default in given.items()])


def _signature(
    name: str, parameters: list[inspect.Parameter], by_user: bool = False, mappings: frozenset[str] = frozenset()
) -> Signature:
    named = [p for p in parameters if p.kind in _BY_NAME]
    shown = ", ".join(str(p.replace(annotation=inspect.Parameter.empty)) for p in parameters)
    return Signature(
        text=f"{name}({shown})",
        positional=tuple(p.name for p in parameters if p.kind in _BY_POSITION),
        names=tuple(p.name for p in named),
        required=tuple(p.name for p in named if p.default is p.empty),
        optional=tuple(p.name for p in named if p.default is None),
        any_position=any(p.kind is p.VAR_POSITIONAL for p in parameters),
        any_name=any(p.kind is p.VAR_KEYWORD for p in parameters),
        by_user=by_user,
        mappings=mappings.intersection(p.name for p in named),
    )


def fitted(found: Mapping[Place, Any], forward: Signature, what: str) -> tuple[dict[Place, Any], list[str]]:
    """Values under the names that ``forward`` has, in its order; and the names that it does not take.

    Args:
        found: Values by their places, whose arguments are names.
        forward: What the model takes.
        what: Where the values come from, for messages.

    Raises:
        TypeError: If an argument is lacking, or a name that does not fit might stand for another argument.
    """
    names = list(dict.fromkeys(place[0] for place in found))
    unknown = [name for name in names if name not in forward.names]
    if forward.by_user and unknown == names:
        # As documented, forward_fn is called with what is explained, and then with the rest.
        places = divided(found)[2]
        positions = {name: i for i, name in enumerate(dict.fromkeys(place[0] for place in places))}
        return {(positions[place[0]], *place[1:]): found[place] for place in places}, []
    new: dict[Any, int | str] = {name: name for name in names}
    whole = unknown == names and len(forward.names) == 1 and not forward.any_name and not forward.any_position
    if (
        len(unknown) == 1
        and forward.only is not None
        and forward.only not in names
        and not (whole and forward.mappings)
    ):
        new[unknown.pop()] = forward.only
    elif whole:
        # The mapping itself is what the one argument takes.
        return {(forward.names[0], *place): value for place, value in found.items()}, []
    elif len(names) == 1 and forward.any_position and not forward.any_name and not forward.required:
        new[unknown.pop()] = 0
    lacking = [name for name in forward.required if name not in new.values()]
    open_ = forward.any_position or any(name not in names for name in forward.optional)
    if lacking or (unknown and open_ and not forward.any_name):
        raise TypeError(misfit(what, found, forward))
    left_out = [] if forward.any_name else list(map(str, unknown))
    order = forward.in_order(new[name] for name in names if name not in left_out)
    moved = {(new[place[0]], *place[1:]): value for place, value in found.items() if place[0] not in left_out}
    return {place: value for name in order for place, value in moved.items() if place[0] == name}, left_out


def misfit(what: str, found: Iterable[Place], forward: Signature) -> str:
    """The error for names that do not fit, which shows both sides."""
    names = list(dict.fromkeys(place[0] for place in found))
    return (
        f"{what} does not fit {forward.text}: it has {names}. Use the names of the arguments as keys, or give batch_fn=..., a "
        "function of a batch that returns (inputs, targets), inputs in the order of the arguments or a mapping of their names."
    )
