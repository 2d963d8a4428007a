"""Signals wait while a model is explained, so that the handler of one, such as SLURM's, which saves a checkpoint, finds the training."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import Any

import torch

_SIGNALS = sorted(signal.valid_signals())
# Without the conversion of what is no handler to an enumeration, which takes long for 64 signals.
_handler_of: Callable[[int], Any] = getattr(sys.modules.get("_signal"), "getsignal", signal.getsignal)
PATIENCE = 10.0
"""Seconds after which a waiting signal is handled before the next call of the model."""


@contextmanager
def undone() -> Iterator[list[Callable[[], Any]]]:
    """Yields a list for what is to be done on exit, in reverse order: all of it is done, and then the first error is raised."""
    actions: list[Callable[[], Any]] = []
    try:
        yield actions
    finally:
        errors: list[BaseException] = []
        for action in reversed(actions):
            try:
                action()
            except BaseException as error:
                errors.append(error)
        if errors:
            raise errors[0]


class HeldSignals:
    """Context in which signals with a handler in Python wait; their handlers run on exit.

    Ctrl-C interrupts inside :meth:`interruptible` only, and a signal that has waited for ``PATIENCE`` seconds is handled at its
    beginning. In other threads than the main one, in which Python handles signals, the context does nothing.
    """

    def __init__(self) -> None:
        self._handlers: dict[int, Callable[..., Any]] = {}
        self._since: dict[int, float] = {}
        self._open = False

    def __enter__(self) -> HeldSignals:
        if threading.current_thread() is not threading.main_thread():
            return self
        try:
            for number in _SIGNALS:
                handler = _handler_of(number)
                if callable(handler):
                    self._handlers[number] = handler
                    signal.signal(number, self._arrived)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with undone() as actions:
            # In reverse: first all handlers come back, then what has waited is handled.
            actions += [partial(self._handle, number) for number in self._handlers]
            actions += [partial(self._release, number, handler) for number, handler in self._handlers.items()]

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Context in which Ctrl-C interrupts at once."""
        now = time.monotonic()
        for number, since in list(self._since.items()):
            if self._interrupts(number) or now - since > PATIENCE:
                # Without modes of torch functions, which an explanation may have entered.
                with torch._C.DisableTorchFunction():
                    self._handle(number)
        self._open = True
        try:
            yield
        finally:
            self._open = False

    def _arrived(self, number: int, frame: Any) -> None:
        self._since.setdefault(number, time.monotonic())
        if self._open and self._interrupts(number):
            self._handle(number)

    def _interrupts(self, number: int) -> bool:
        return self._handlers[number] is signal.default_int_handler

    def _handle(self, number: int) -> None:
        if self._since.pop(number, None) is not None:
            self._handlers[number](number, None)

    def _release(self, number: int, handler: Callable[..., Any]) -> None:
        # Code inside may have set another handler.
        if signal.getsignal(number) == self._arrived:
            signal.signal(number, handler)
