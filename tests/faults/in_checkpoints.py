"""Faults of checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from torch import Tensor

from faults.fault import Fault, Inject, argument
from faults.scene import Scene
from lightning_explain import Probe


def strange_arguments(scene: Scene, batch: Any) -> Probe:
    scene.strike()
    return Probe(batch[0], batch[1], forward_args=(object(),))


KEY = "ExplanationMonitor{'name': 'explain'}"


def state(change: Callable[[dict[str, Any]], Any]) -> Inject:
    """Resumes from a checkpoint in which the monitor's state is another; ``scene.checkpoint`` comes from the runner."""

    def inject(scene: Scene) -> None:
        assert scene.checkpoint is not None
        callbacks = scene.checkpoint["callbacks"]
        scene.checkpoint = {**scene.checkpoint, "callbacks": {**callbacks, KEY: change(callbacks[KEY])}}
        scene.strike()

    return inject


def checkpoints() -> Iterator[Fault]:
    """The faults of this kind."""
    changes: dict[str, Callable[[dict[str, Any]], Any]] = {
        "a newer version with keys that are not known": lambda s: {**s, "version": 9, "mood": 1},
        "nothing but a version": lambda s: {"version": 2},
    }
    for name, change in changes.items():
        yield Fault("checkpoint", name, state(change), raises=False)
    targets = state(lambda s: {**s, "probe": {"targets": s["probe"]["targets"]}})
    yield Fault("checkpoint", "samples without inputs", targets)
    yield Fault("checkpoint", "a schedule that is a word", state(lambda s: {**s, "schedule": "daily"}))
    yield Fault("checkpoint", "failures that are nothing", state(lambda s: {**s, "failures": None}))
    unsaved = argument(lambda scene: {"batch_fn": partial(strange_arguments, scene), "forward_fn": without_arguments})
    yield Fault("checkpoint", "samples that a checkpoint cannot hold", unsaved, raises=False)


def without_arguments(module: Any, inputs: Tensor, *arguments: Any) -> Any:
    return module(inputs)
