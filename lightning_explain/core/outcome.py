"""A piece of work in; its result, or its error as a value that can be kept and sent to another process, out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Outcome(Generic[T]):
    """What a piece of work returned, or the error that it raised."""

    value: T | None = None
    error: BaseException | None = None

    @classmethod
    def of(cls, work: Callable[[], T]) -> Outcome[T]:
        """Does the work."""
        try:
            return cls(work())
        except Exception as error:
            return cls(error=error)

    def get(self) -> T:
        """Returns or raises as the work did."""
        if self.error is not None:
            raise self.error
        return cast(T, self.value)
