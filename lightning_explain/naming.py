"""From what users write (names, mappings, classes, instances) to named instances, and the errors on the way."""

from __future__ import annotations

import difflib
import inspect
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

Requests: TypeAlias = "Mapping[str, Any] | Sequence[Any]"

LONGEST = 200
"""Bytes of a name; file systems take 255, in which loggers write a step and a digest as well."""
_LISTED = 40
_INSIDE = "attribution_method"
"""The argument that takes an instance of the same kind."""
_WORD_STARTS = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def snake_case(name: str) -> str:
    """The name in lower case with underscores: ``NoiseTunnel`` becomes ``noise_tunnel``, ``LRP`` becomes ``lrp``."""
    return _WORD_STARTS.sub("_", name).lower()


def nearest(word: str, options: Iterable[str]) -> str:
    """What an error says after an unknown word: ``did you mean 'a' or 'b'? Allowed: 'a', 'b', 'c'.``

    Case and underscores do not count. A long list of options is cut.

    Args:
        word: What the user wrote.
        options: What is allowed, in the order in which it is listed.
    """
    allowed = list(options)
    if not allowed:
        return "there is nothing to choose from."
    plain: dict[str, str] = {}
    for option in allowed:
        plain.setdefault(_plain(option), option)
    close = [plain[key] for key in difflib.get_close_matches(_plain(word), plain, n=3, cutoff=0.6)]
    more = f" and {len(allowed) - _LISTED} more" if len(allowed) > _LISTED else ""
    listed = ", ".join(map(repr, allowed[:_LISTED])) + more
    return f"did you mean {_either(close)}? Allowed: {listed}." if close else f"allowed: {listed}."


def _plain(word: str) -> str:
    return word.lower().replace("_", "")


def _either(words: Sequence[str]) -> str:
    *head, last = map(repr, words)
    return f"{', '.join(head)} or {last}" if head else last


def build(requests: Requests, classes: Mapping[str, type], kind: str, protocol: type | None = None) -> dict[str, Any]:
    """Turns what users write into named instances.

    A request is an instance, a class, the name of a class, or a mapping ``{"name": ClassName, **arguments}``, whose
    arguments may be such mappings again. Names are looked up in ``classes`` and nowhere else; nothing is imported.

    Args:
        requests: A mapping from names to requests, or a sequence of requests, each named by its snake_case class name.
        classes: The classes that may be named.
        kind: What they are, in the singular, for errors: ``"method"``.
        protocol: A runtime-checkable protocol that every instance must satisfy; it lets in instances of other classes.

    Raises:
        TypeError: If a request is of another kind, or an argument is missing.
        ValueError: If a class, an argument or a key is unknown, empty, given twice, or cannot be written everywhere.
    """
    builder = _Builder(classes, kind, protocol)
    if isinstance(requests, Mapping):
        return {_key(key, kind): builder.instance(request, f"{kind}s[{key!r}]") for key, request in requests.items()}
    if isinstance(requests, (str, bytes)) or not isinstance(requests, Sequence):
        raise TypeError(
            f"{kind}s={requests!r} is of type {type(requests).__name__}; write a list of {kind}s, such as "
            f"[{requests!r}], or a mapping from names to {kind}s."
        )
    return _by_class_name([builder.instance(request, f"{kind}s[{i}]") for i, request in enumerate(requests)], kind)


def _key(key: object, kind: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"{kind}s has the key {key!r} of type {type(key).__name__}; names must be str.")
    if not key.strip():
        raise ValueError(f"{kind}s has the empty key {key!r}; give the {kind} a name.")
    if fault := unwritable(key):
        raise ValueError(f"{kind}s has the key {key[:40]!r}, which {fault}; give the {kind} another name.")
    return key


def unwritable(name: str) -> str:
    """Why a name cannot be a tag and a part of files' names everywhere; empty if it can."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        return "holds a control character or half of a character"
    size = len(name.encode())
    return f"has {size} bytes in UTF-8, and {LONGEST} are the most" if size > LONGEST else ""


def _by_class_name(instances: Sequence[Any], kind: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for instance in instances:
        name = snake_case(type(instance).__name__)
        if name in named:
            raise ValueError(
                f"{kind}s lists {type(instance).__name__} twice, and both would be named {name!r}; "
                f"give a mapping with a name for each: {{'{name}_1': ..., '{name}_2': ...}}."
            )
        named[name] = instance
    return named


class _Builder:
    """Builds one request at a time; ``where`` says in errors which one."""

    def __init__(self, classes: Mapping[str, type], kind: str, protocol: type | None) -> None:
        self._classes = classes
        self._kind = kind
        self._protocol = protocol

    def instance(self, request: object, where: str) -> Any:
        found = self._made(request, where)
        if self._fits(found):
            return found
        raise TypeError(
            f"{where} is {found!r} of type {type(found).__name__}, which is not a {self._kind}; allowed: an instance "
            f"or a class, the name of a class, or a mapping with 'name' and arguments. Names: {', '.join(self._classes)}."
        )

    def _made(self, request: object, where: str) -> Any:
        if isinstance(request, str):
            return self._call(self._class(request, where), {}, where)
        if isinstance(request, Mapping):
            return self._from_mapping(request, where)
        # A class has the attributes of its instances, so the protocol alone would let it through uncalled.
        if isinstance(request, type) and (request in self._classes.values() or self._has_protocol(request)):
            return self._call(request, {}, where)
        return request

    def _fits(self, found: object) -> bool:
        if isinstance(found, type):
            return False
        return isinstance(found, tuple(self._classes.values())) or self._has_protocol(found)

    def _has_protocol(self, found: object) -> bool:
        return self._protocol is not None and isinstance(found, self._protocol)

    def _from_mapping(self, request: Mapping[Any, Any], where: str) -> Any:
        if "name" not in request:
            raise ValueError(
                f"{where}={dict(request)!r} has no 'name'; write {{'name': ClassName, ...arguments}} "
                f"with one of {', '.join(self._classes)}."
            )
        name = request["name"]
        cls = name if isinstance(name, type) else self._class(name, where)
        arguments = {
            key: self._argument(key, value, f"{where}[{key!r}]") for key, value in request.items() if key != "name"
        }
        return self._call(cls, arguments, where)

    def _argument(self, key: str, value: Any, where: str) -> Any:
        named = isinstance(value, Mapping) and "name" in value
        # As everywhere else a name may stand for an instance.
        return self.instance(value, where) if named or (key == _INSIDE and isinstance(value, str)) else value

    def _class(self, name: object, where: str) -> type:
        if not isinstance(name, str):
            raise TypeError(f"{where} has the name {name!r} of type {type(name).__name__}; write the name of a class.")
        if name not in self._classes:
            raise ValueError(f"{where}: there is no {self._kind} {name!r}: {nearest(name, self._classes)}")
        return self._classes[name]

    def _call(self, cls: type, arguments: Mapping[Any, Any], where: str) -> Any:
        parameters = inspect.signature(cls).parameters
        _check_known(cls, arguments, parameters, where)
        missing = [name for name in _required(parameters) if name not in arguments]
        if missing:
            wanted = ", ".join(f"{name}=..." for name in missing)
            raise TypeError(f"{where}: {cls.__name__} needs {_either(missing)}; write {cls.__name__}({wanted}).")
        return cls(**arguments)


def _check_known(
    cls: type, arguments: Mapping[Any, Any], parameters: Mapping[str, inspect.Parameter], where: str
) -> None:
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    names = [name for name, p in parameters.items() if p.kind is not inspect.Parameter.VAR_POSITIONAL]
    for argument in arguments:
        if argument not in names:
            raise ValueError(f"{where}: {cls.__name__} has no argument {argument!r}: {nearest(str(argument), names)}")


def _required(parameters: Mapping[str, inspect.Parameter]) -> Iterator[str]:
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and parameter.kind not in variadic:
            yield name
