"""Values from checkpoints, files and configurations: checks of their types and sizes against a declared form, and short words for them.

A check takes a value and the words for its place, and raises ``MalformedError``. Whatever the value is, its message is short.
"""

from __future__ import annotations

import builtins
import math
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor

Check: TypeAlias = "Callable[[Any, str], None]"

MOST = 2**53
"""The largest whole number that is expected anywhere: of steps, ids, or bytes."""
LARGEST_SEED = 2**64 - 1
LONGEST = 300
"""The most characters of an answer to what cannot be read."""
DEEPEST = 20


class MalformedError(ValueError):
    """A value from a checkpoint, a file or a configuration has not its declared form."""


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 4, 60, 60
        self.maxlist = self.maxtuple = self.maxdict = 8

    def repr_int(self, x: int, level: int) -> str:
        return builtins.repr(x) if x.bit_length() < 128 else f"an int of {x.bit_length()} bits"

    def repr_Tensor(self, x: Tensor, level: int) -> str:  # noqa: N802 (found by the name of the type)
        if x.numel() <= 8 and x.device.type == "cpu" and x.layout == torch.strided:
            return self.repr_instance(x, level)
        return f"a tensor {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}"


def brief(value: object) -> str:
    """A value of any kind and size in at most 100 characters, in one line."""
    return one_line(_Brief().repr(value), 100)


def one_line(text: str, longest: int = LONGEST) -> str:
    """A text in one line without control characters; a longer one keeps its beginning and its end."""
    if len(text) > 10 * longest:
        text = f"{text[: 4 * longest]} ... {text[-4 * longest :]}"
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(text.split()))
    return shown if len(shown) <= longest else f"{shown[: longest * 2 // 3 - 5]} ... {shown[-longest // 3 :]}"


@contextmanager
def short_errors() -> Iterator[None]:
    """Errors about what a user's file or mapping holds, in one line of at most 300 characters."""
    try:
        yield
    except RecursionError as error:
        raise ValueError("The configuration is nested too deeply, or refers to itself.") from error
    except (ImportError, TypeError, ValueError) as error:
        text = str(error)
        if len(text) <= LONGEST and text.isprintable():
            raise
        kind = next(base for base in (ImportError, TypeError, ValueError) if isinstance(error, base))
        raise kind(one_line(text)) from error


def listed_ids(ids: Tensor) -> str:
    """The ids of samples for a message: all of a few, the first of many."""
    shown = ids[:16].tolist()
    return str(shown) if len(shown) == len(ids) else f"{shown} and {len(ids) - len(shown)} more"


def _is(fits: bool, value: Any, where: str, expected: str) -> None:
    if not fits:
        raise MalformedError(f"{where} is {brief(value)} instead of {expected}")


def whole(least: int = 0, most: int = MOST) -> Check:
    """A whole number from ``least`` to ``most``."""
    expected = f"a whole number of at least {least}" + (f" and at most {most}" if most < MOST else "")
    return lambda value, where: _is(type(value) is int and least <= value <= most, value, where, expected)


def number(least: float = -math.inf, most: float = math.inf) -> Check:
    """A finite number from ``least`` to ``most``."""
    return lambda value, where: _is(
        type(value) in (int, float) and least <= value <= most and abs(value) < 1e300, value, where, "a finite number"
    )


def text(longest: int = 100_000) -> Check:
    """A text of at most so many characters."""
    return lambda value, where: _is(
        type(value) is str and len(value) <= longest, value, where, f"a text of at most {longest} characters"
    )


def choice(*options: Any) -> Check:
    """One of some plain values, by type too."""
    return lambda value, where: _is(
        any(type(value) is type(option) and value == option for option in options),
        value,
        where,
        f"one of {', '.join(map(repr, options))}",
    )


flag = choice(True, False)


def nothing_or(check: Check) -> Check:
    """``None``, or what the check allows."""
    return lambda value, where: None if value is None else check(value, where)


def listed(check: Check, most: int = 1_000) -> Check:
    """A list or tuple of at most so many parts."""

    def checked(value: Any, where: str) -> None:
        fits = type(value) in (list, tuple) and len(value) <= most
        _is(fits, value, where, f"a list of at most {most}")
        for i, part in enumerate(value):
            check(part, f"{where}[{i}]")

    return checked


def mapped(check: Check, most: int = 1_000) -> Check:
    """A dictionary of at most so many names."""
    name = text(10_000)

    def checked(value: Any, where: str) -> None:
        _is(type(value) is dict and len(value) <= most, value, where, f"a dictionary of at most {most} names")
        for key, part in value.items():
            name(key, f"a name in {where}")
            check(part, f"{where}[{brief(key)}]")

    return checked


def fields(checks: Mapping[str, Check], needed: tuple[str, ...] = ()) -> Check:
    """A dictionary with values for these names, and no others."""

    def checked(value: Any, where: str) -> None:
        _is(type(value) is dict, value, where, "a dictionary")
        unknown = next((key for key in value if key not in checks), None)
        _is(unknown is None, unknown, f"a name in {where}", "one that is known")
        lacking = [name for name in needed if name not in value]
        _is(not lacking, value, where, f"a dictionary with {', '.join(lacking)}")
        for key, part in value.items():
            checks[key](part, f"{where}.{key}")

    return checked


def tensor(ndim: int | None = None, of_whole: bool = False) -> Check:
    """A plain, dense tensor on the CPU that has its own number for every element."""

    def checked(value: Any, where: str) -> None:
        _is(type(value) is Tensor, value, where, "a tensor")
        on_cpu = value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized
        _is(on_cpu, value, where, "a dense tensor on the CPU")
        held = value.untyped_storage().nbytes()
        _is(value.numel() * value.element_size() <= held, value, where, "a tensor that holds all of its elements")
        _is(not value.is_complex(), value, where, "a tensor of real numbers")
        _is(ndim is None or value.ndim == ndim, value, where, f"a tensor with {ndim} dimensions")
        counts = not value.is_floating_point() and value.dtype != torch.bool
        _is(not of_whole or counts, value, where, "a tensor of whole numbers")

    return checked


def tensors(value: Any, where: str) -> None:
    """A tensor, or a tuple or list of them."""
    (tensor() if isinstance(value, Tensor) else listed(tensor()))(value, where)


def tree(value: Any, where: str, depth: int = DEEPEST) -> None:
    """Tensors and plain values, in tuples, lists and dictionaries."""
    _is(depth > 0, value, where, f"one of at most {DEEPEST} levels")

    def inner(part: Any, place: str) -> None:
        tree(part, place, depth - 1)

    if type(value) is dict:
        mapped(inner)(value, where)
    elif type(value) in (list, tuple):
        listed(inner)(value, where)
    elif isinstance(value, Tensor):
        tensor()(value, where)
    else:
        plain(value, where)


def plain(value: Any, where: str) -> None:
    """A number, text, ``True``, ``False`` or ``None``."""
    _is(type(value) in (bool, int, float, str, type(None)), value, where, "a plain value")
