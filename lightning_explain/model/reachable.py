"""Modules in; what their forward can reach and change out: one walk that looks into each object once.

What belongs to the modules and to the objects in their attributes is *owned*. What lies behind functions and classes (closures,
defaults, globals, class attributes) is *shared* with other code, which may want it changed.
"""

from __future__ import annotations

import array
import concurrent.futures
import functools
import io
import operator
import queue
import random
import sys
import threading
import types
from argparse import Namespace
from collections import UserDict, UserList, deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.quasirandom import SobolEngine

Container: TypeAlias = "dict[Any, Any] | list[Any] | deque[Any] | set[Any] | frozenset[Any] | tuple[Any, ...]"
Part: TypeAlias = "tuple[Any, Any]"

MOST = 100_000
"""Objects that are looked at, at most; those nearest to the modules come first."""

_ITERATORS: tuple[type, ...] = (
    type(iter([])),
    type(iter(())),
    type(iter({})),
    type(iter(range(0))),
    enumerate,
    zip,
    map,
)
# What the code of these packages holds is theirs, except for the objects named below.
_FOREIGN = sys.stdlib_module_names | {
    *("torch", "torchmetrics", "lightning", "pytorch_lightning", "lightning_fabric", "lightning_utilities"),
    *(
        "lightning_explain",
        "captum",
        "numpy",
        "pandas",
        "matplotlib",
        "PIL",
        "tensorboard",
        "wandb",
        "mlflow",
        "comet_ml",
    ),
    *("_pytest", "pytest", "pluggy"),  # Where an ``assert`` was rewritten, code names them.
}
_SORTS: dict[str, tuple[type, ...]] = {
    "tensor": (Tensor,),
    "generator": (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator, torch.Generator),
    "": (np.memmap, types.ModuleType),
    "array": (np.ndarray, bytearray, array.array),
    "container": (dict, list, deque, set, frozenset, tuple),
    "module": (nn.Module,),
    "class": (type,),
    "function": (types.FunctionType,),
    "wrapper": (staticmethod, classmethod, property, functools.cached_property),
    "method": (types.MethodType, types.BuiltinMethodType),
    "partial": (functools.partial,),
    "iterator": (types.GeneratorType, *_ITERATORS),
    "object": (types.SimpleNamespace, Namespace, UserDict, UserList, SobolEngine),
    # Threads share an object that holds one of these; what it had would be taken from them.
    "lock": (
        *(type(threading.Lock()), type(threading.RLock()), threading.Condition, threading.Event, threading.Thread),
        *(queue.Queue, queue.SimpleQueue, concurrent.futures.Executor, io.IOBase),
    ),
}


def _sort_of(cls: type) -> str:
    """What the instances of a class are, a key of the table above; empty: nothing that can hold or change anything."""
    for sort, classes in _SORTS.items():
        if issubclass(cls, classes):
            return sort
    if cls.__module__ == "itertools":
        return "iterator"
    theirs = any(_package(base.__module__) in ("torch", "lightning", "pytorch_lightning") for base in cls.__mro__)
    return "" if theirs or _is_foreign(cls) else "object"


sort_of: Callable[[type], str] = functools.cache(_sort_of)
"""Cached, because ``isinstance`` is slow for tensors."""


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]


def _is_foreign(code: Any) -> bool:
    return _package(getattr(code, "__module__", None)) in _FOREIGN


@functools.lru_cache(4096)
def is_hooks(name: str) -> bool:
    """Whether an attribute of a module with this name holds its hooks."""
    return name.startswith("_") and "_hooks" in name


def hooks_of(attributes: Mapping[str, Any]) -> Iterable[Any]:
    """What holds the hooks of a module with these attributes."""
    return _hooks_among(tuple(attributes))(attributes)


@functools.lru_cache(4096)
def _hooks_among(names: tuple[str, ...]) -> Callable[[Mapping[str, Any]], Iterable[Any]]:
    hooks = tuple(filter(is_hooks, names))
    return operator.itemgetter(*hooks) if len(hooks) > 1 else lambda attributes: [attributes[name] for name in hooks]


class Walk:
    """What is reached from some modules, each object once, the nearest first.

    Args:
        modules: By their names.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.full = False
        # By id: the object, what holds it, and under which key. As long as an object is in here, its id is no other's.
        self._found: dict[int, tuple[Any, Any, Any]] = {}
        self._names = {id(module): name for name, module in modules.items()}
        self._code: list[tuple[Any, Any, Any]] = []
        # Code waits until everything owned is known.
        self.owned = self._reached([(None, None, module) for module in modules.values()], self._owned_parts, _CODE)
        """What belongs to the modules, by its sort."""
        self.shared = self._reached(self._code, _shared_parts)
        """What lies behind code, by its sort."""

    def holder(self, value: Any) -> tuple[Any, Any]:
        """What holds an object, and under which key; where several do, the first."""
        return self._found[id(value)][1:]

    def path(self, value: Any) -> str:
        """The name of an object, such as ``layers.0.helper.counts['seen']``."""
        if id(value) in self._names or id(value) not in self._found:
            return self._names.get(id(value), "")
        _, holder, key = self._found[id(value)]
        start = self.path(holder)
        if key is None or (isinstance(holder, dict) and key in ("_buffers", "_modules", "_parameters")):
            return start
        plain = isinstance(key, str) and key.isidentifier()
        return f"{start}.{key}".removeprefix(".") if plain else f"{start}[{key!r}]"

    def _reached(
        self,
        roots: Iterable[tuple[Any, Any, Any]],
        parts: Callable[[Any, str], Iterable[Part]],
        later: frozenset[str] = frozenset(),
    ) -> dict[str, list[Any]]:
        reached: dict[str, list[Any]] = {sort: [] for sort in _SORTS}
        found = self._found
        waiting: deque[tuple[Any, Iterable[Part]]] = deque((holder, [(key, value)]) for holder, key, value in roots)
        while waiting and not self.full:
            holder, pairs = waiting.popleft()
            for key, value in pairs:
                sort = sort_of(type(value))
                if sort in later:
                    self._code.append((holder, key, value))
                elif sort and id(value) not in found:
                    held = (
                        _of_container(value) if sort == "container" else () if sort == "tensor" else parts(value, sort)
                    )
                    if not held and type(value) is tuple:
                        continue  # It cannot change, and holds nothing that can.
                    if len(found) >= MOST:
                        self.full = True
                        break
                    found[id(value)] = (value, holder, key)
                    reached[sort].append(value)
                    if held:
                        waiting.append((value, held))
        return reached

    def _owned_parts(self, value: Any, sort: str) -> Iterable[Part]:
        if sort in ("module", "object") and _has_code(type(value)):
            self._code.append((value, "__class__", type(value)))
        if sort == "method":
            self._code.append((value, "__func__", getattr(value, "__func__", None)))
        return _parts(value, sort)


_CODE = frozenset({"function", "class", "iterator", "wrapper"})


def _is_own(cls: type) -> bool:
    """Whether a class, or one that it inherits from, is other code than that of the packages above."""
    return not all(map(_is_foreign, cls.__mro__))


_has_code: Callable[[type], bool] = functools.lru_cache(4096)(_is_own)


def _shared_parts(value: Any, sort: str) -> Iterable[Part]:
    if sort == "function":
        return () if _is_foreign(value) else _of_function(value)
    if sort == "class":
        own = [] if _is_foreign(value) else [(k, v) for k, v in vars(value).items() if not k.startswith("__")]
        return [*own, *((None, base) for base in value.__bases__)]
    if sort == "wrapper":
        return [(None, getattr(value, name, None)) for name in ("__func__", "fget", "func")]
    if isinstance(value, types.GeneratorType):
        return [] if value.gi_frame is None else list(value.gi_frame.f_locals.items())
    code = [("__func__", getattr(value, "__func__", None))] if sort == "method" else []
    return [*_parts(value, sort), *code, *([("__class__", type(value))] if sort in ("module", "object") else [])]


def _parts(value: Any, sort: str) -> Iterable[Part]:
    """What an object holds, with the keys."""
    if sort in ("module", "object"):
        attributes = in_slot(value, "__dict__")
        named: dict[str, Any] = attributes if isinstance(attributes, dict) else {}
        if sort == "object" and any(sort_of(type(held)) == "lock" for held in named.values()):
            return ()
        return [(None, named), *((name, in_slot(value, name)) for name in slots(value))]
    if sort == "partial":
        return [("func", value.func), ("args", value.args), ("keywords", value.keywords)]
    if sort == "method":
        return [("__self__", value.__self__)]
    if sort == "array" and isinstance(value, np.ndarray) and value.dtype.hasobject:
        return enumerate(value.flat)
    return ()


def _of_container(value: Any) -> Iterable[Part]:
    # Not by its own values(), which may load them.
    values = dict.values(value) if isinstance(value, dict) else value
    # Quick for long lists of names or numbers, and for the many attributes of a module that are numbers.
    kinds = _searched(frozenset(map(type, values)))
    if not kinds:
        return ()
    if not isinstance(value, dict):
        return [(index, held) for index, held in enumerate(value) if type(held) in kinds]
    return [
        (key, held)
        for key, held in dict.items(value)
        if type(held) in kinds and (type(key) is not str or not is_hooks(key))
    ]


@functools.lru_cache(4096)
def _searched(kinds: frozenset[type]) -> frozenset[type]:
    """Those of the classes whose instances can hold or change something."""
    return frozenset(filter(sort_of, kinds))


@functools.cache
def _slots_of(cls: type) -> tuple[str, ...]:
    named = [vars(base).get("__slots__", ()) for base in cls.__mro__]
    found = [name for part in named for name in ([part] if isinstance(part, str) else part)]
    return tuple(name for name in found if not name.startswith("__"))


def slots(value: Any) -> tuple[str, ...]:
    """The names of the attributes that an object has in slots."""
    cls: type = type(value)
    return _slots_of(cls)


EMPTY = object()


def in_slot(value: Any, name: str) -> Any:
    """What an object has in a slot, by none of its own ways to look up attributes; ``EMPTY``: nothing."""
    try:
        return object.__getattribute__(value, name)
    except AttributeError:
        return EMPTY


def _of_function(function: types.FunctionType) -> list[Part]:
    """Its defaults, its attributes, the cells of its closure, and the globals that its code names."""
    cells = list(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    filled = [(name, cell.cell_contents) for name, cell in cells if is_filled(cell)]
    own = [("__defaults__", function.__defaults__), ("__kwdefaults__", function.__kwdefaults__), (None, vars(function))]
    names, known = _names_in(function.__code__), function.__globals__
    named = [(name, known[name]) for name in names if name in known]
    for _, module in list(named):
        if isinstance(module, types.ModuleType) and _package(module.__name__) not in _FOREIGN:
            named += [(name, vars(module)[name]) for name in names if name in vars(module)]
    return [*filled, *own, *named]


def is_filled(cell: types.CellType) -> bool:
    """Whether a variable of a closure has a value."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


@functools.cache
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names_in(const)]
    return tuple(dict.fromkeys([*code.co_names, *inner]))
