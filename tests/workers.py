"""The worker of ``ExplanationMonitor(beside=True)`` without a process."""

from __future__ import annotations

import traceback
from typing import Any, ClassVar

from lightning_explain.core.random_state import preserved_random_state
from lightning_explain.core.shared_memory import Layout, SharedMemory


class Here:
    """A worker that does its jobs in this process, when it is asked whether they are done.

    ``plan`` holds what happens at the next looks: an error is raised, ``None`` is "not yet"; then jobs are done. ``trial`` is what it
    cannot read the model for, if it cannot. ``begins``: whether jobs set everything as it was, which is so here anyway.
    """

    workers: ClassVar[list[Here]] = []
    plan: ClassVar[list[Exception | None]] = []
    trial: ClassVar[Exception | None] = None
    contexts: ClassVar[list[Any]] = []
    begins: ClassVar[bool] = False

    def __init__(self) -> None:
        self.workers.append(self)
        self.closed, self.known, self._todo = False, [], []  # type: ignore[var-annotated]
        self.sent: list[str] = []

    def send(self, kind: str, memory: SharedMemory, layout: Layout, device: str | None) -> None:
        self.sent.append(kind)
        self._todo.append((kind, memory, layout))

    def has_news(self) -> bool:
        return True

    def message(self, seconds: float) -> tuple[Any, ...] | None:
        kind, memory, layout = self._todo[0]
        if kind == "explain" and self.plan:
            happens = self.plan.pop(0)
            if happens is not None:
                raise happens
            return None
        self._todo.pop(0)
        if kind == "known":
            self.known = memory.read(layout)
            return self.message(seconds)
        job = memory.read(layout, self.known)
        self.contexts.append(job.explainer.forward_context)
        if kind == "try":
            return ("tried",) if self.trial is None else ("failed", self.trial, "")
        try:
            with preserved_random_state():
                if self.begins:
                    job.begin(None)
                done, back = job.done(lambda name: None), SharedMemory()
        except Exception as error:
            return "failed", error, traceback.format_exc()
        return "done", back.write(done, {id(value): number for number, value in enumerate(self.known)}), back

    def close(self) -> None:
        self.closed = True
