"""What a model with several outputs returns in; the outputs by name, and the one that a target asks for, out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from lightning_explain.model.targets import OutputError, output_tensor

MOST = 4
"""The most outputs that are explained where the user names none."""


def heads_of(returned: Any, count: int) -> dict[str, Tensor]:
    """The outputs ``(N, ...)`` of floating-point numbers in a mapping or dataclass, by name; a single one where there is no other.

    Args:
        returned: What the model returns.
        count: N.
    """
    return {
        name: value
        for name, value in _named(returned).items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0 and len(value) == count
    }


def _named(returned: Any) -> dict[str, Any]:
    if isinstance(returned, Mapping):
        return {str(name): value for name, value in returned.items()}
    if is_dataclass(returned) and not isinstance(returned, type):
        return {field.name: getattr(returned, field.name) for field in fields(returned)}
    return {}


@dataclass(frozen=True)
class Head:
    """Picks the output of one of several targets in what a model returns: by name, else by place in a tuple, else the only one.

    Args:
        name: The name of the target.
        place: Its place among the targets.
        count: How many targets there are.
        output_fn: What the user gives to pick the outputs, if anything.

    Example:
        >>> import torch
        >>> from lightning_explain.model.heads import Head
        >>> Head("sex", 1, 2)({"age": torch.zeros(4, 1), "sex": torch.zeros(4, 2)}).shape
        torch.Size([4, 2])
        >>> Head("sex", 1, 2)((torch.zeros(4, 1), torch.zeros(4, 2))).shape
        torch.Size([4, 2])
    """

    name: str
    place: int
    count: int
    output_fn: Callable[[Any], Any] | None = None

    def __call__(self, returned: Any) -> Tensor:
        """The output ``(N, ...)``.

        Raises:
            OutputError: If it is not known which one is meant.
        """
        found = returned if self.output_fn is None else self.output_fn(returned)
        named = _named(found)
        if isinstance(named.get(self.name), Tensor):
            output: Tensor = named[self.name]
            return output
        if isinstance(found, (tuple, list)) and len(found) == self.count and all(isinstance(x, Tensor) for x in found):
            chosen: Tensor = found[self.place]
            return chosen
        try:
            return output_tensor(found)
        except OutputError as error:
            raise OutputError(
                f"target has the name {self.name!r}, but the model returns {list(named) or type(found).__name__}. Use the names of its "
                "outputs, or give output_fn=lambda output: {...}, which returns the outputs by the names of the targets."
            ) from error


class SharedCalls:
    """Calls of a model whose results several checks share: the first makes them, the others get the same ones in the same order.

    A call that failed fails again with the same error; one that ran out of memory is made again.

    ``keeps = False``: what was returned so far is given once more, and then nothing is kept. ``saved`` is how many seconds the calls took
    whose results were given again.
    """

    def __init__(self) -> None:
        self._made: list[tuple[bool, tuple[Any, ...], dict[str, Any], _Outcome]] = []
        self.keeps, self.saved = True, 0.0
        self.begin()

    def begin(self) -> SharedCalls:
        """Begins again with the first call."""
        self._next, self._open = 0, True
        return self

    def end(self) -> None:
        """Shares no further calls."""
        self._open = False

    def shared(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call; with the arguments of the call that comes next, it returns what that returned."""

        def again(*positional: Any, **keywords: Any) -> Any:
            if not self._open:
                return call(*positional, **keywords)
            grad, at = torch.is_grad_enabled(), self._next
            self._next += 1
            # What is compared and copied is no call of the model's.
            with torch._C.DisableTorchFunction():
                if at < len(self._made):
                    known, *arguments, outcome = self._made[at]
                    if known == grad and _equal(tuple(arguments), (positional, keywords)):
                        self.saved += outcome.seconds
                        if not self.keeps:
                            self._made.clear()
                        return outcome.result()
                    # From here on, other calls are made.
                    self._next = len(self._made) + 1
                kept = _copied(positional), _copied(keywords)
            outcome = _outcome(call, positional, keywords)
            if self.keeps and at == len(self._made):
                self._made.append((grad, *kept, outcome))
            return outcome.result()

        return again


@dataclass(frozen=True)
class _Outcome:
    """What a call returned, or the error that it raised, and the seconds that it took."""

    returned: Any
    error: Exception | None
    seconds: float

    def result(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.returned


def _outcome(call: Callable[..., Any], positional: tuple[Any, ...], keywords: dict[str, Any]) -> _Outcome:
    """Makes the call; an accelerator has finished by the end of its time. One without memory is raised, as its error keeps tensors."""
    started = time.perf_counter()
    try:
        returned = call(*positional, **keywords)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        return _Outcome(None, error, time.perf_counter() - started)
    with torch._C.DisableTorchFunction():
        for device in {x.device for x in tree_leaves(returned) if isinstance(x, Tensor) and x.device.type != "cpu"}:
            torch.accelerator.synchronize(device)
    return _Outcome(returned, None, time.perf_counter() - started)


def _copied(value: Any) -> Any:
    # The model may write into what it is given.
    return tree_map_only(Tensor, lambda x: x.detach().clone(), value)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[name], b[name]) for name in a)
    return a is b or (type(a) is type(b) and not isinstance(a, Tensor) and bool(a == b))
