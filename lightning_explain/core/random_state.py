"""Contexts that restore every random generator on exit, so that code inside may draw random numbers freely."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Deep enough for loader -> dataset -> subset -> transform -> list -> transform -> generator; containers longer than
# _LONGEST are not searched, because many datasets hold a list of a million file names.
_DEPTH = 8
_LONGEST = 100

_OWNED = (random.Random, torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator)


@contextmanager
def preserved_random_state(*owners: object) -> Iterator[None]:
    """Restores every random generator on exit, also after an exception.

    Covers the global generators of Python, NumPy and torch (CPU, MPS, and each CUDA device if CUDA is already
    initialized; this does not initialize it), and the private generators that the owners hold.

    Args:
        owners: Objects whose own generators are restored too: those in their attributes, and in the attributes, lists,
            tuples and dictionaries below (such as a transform of a dataset of a loader).
    """
    restore = [*_global(), *(_rewind(g) for g in _generators(owners))]
    try:
        yield
    finally:
        for put_back in restore:
            put_back()


@contextmanager
def seeded_random_state(seed: int, *owners: object) -> Iterator[None]:
    """Restores every random generator on exit, and seeds the global ones with ``seed`` on entry.

    Args:
        seed: A number from 0 to 2**64 - 1; NumPy takes its lowest 32 bits.
        owners: As in ``preserved_random_state``; their own generators are restored but not seeded.
    """
    with preserved_random_state(*owners):
        seed_generators(seed)
        yield


def seed_generators(seed: int) -> None:
    """Seeds the global generators with ``seed``, 0 to 2**64 - 1; does not initialize CUDA."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    # torch.manual_seed would also store a seed for CUDA, to be used when CUDA is initialized later.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def cpu_generators() -> list[Callable[[], Any]]:
    """Functions that set the global generators of the CPU as they are now, in this process or in one that unpickles them."""
    return [
        partial(random.setstate, random.getstate()),
        partial(np.random.set_state, np.random.get_state()),
        partial(torch.set_rng_state, torch.get_rng_state()),
    ]


def cuda_generators() -> list[Tensor]:
    """The states of the generators of all CUDA devices, on the CPU; none if CUDA is not initialized, which this does not do."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def set_cuda_generators(states: Sequence[Tensor], former: torch.device, device: torch.device) -> None:
    """Sets what :func:`cuda_generators` returned, in a process that may compute on another device; does not touch CUDA if it does not.

    Args:
        states: One for each device.
        former: Where the states' process computes.
        device: Where this one does; its generator becomes that of ``former``.
    """
    if not states or device.type != "cuda":
        return
    torch.cuda.set_rng_state_all(states)
    if former.type == "cuda" and former != device:
        torch.cuda.set_rng_state(states[former.index or 0], device)


def _global() -> Iterator[Callable[[], Any]]:
    yield from cpu_generators()
    if torch.cuda.is_initialized():
        yield partial(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
    if torch.backends.mps.is_available():
        yield partial(torch.mps.set_rng_state, torch.mps.get_rng_state())


def _rewind(generator: Any) -> Callable[[], Any]:
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    if hasattr(generator, "set_state"):  # of torch, and NumPy's RandomState
        return partial(generator.set_state, generator.get_state())
    bits = generator.bit_generator if isinstance(generator, np.random.Generator) else generator
    return partial(setattr, bits, "state", bits.state)


def _generators(owners: tuple[object, ...]) -> list[object]:
    found: list[object] = []
    seen: dict[int, object] = {}
    level: list[object] = list(owners)
    for _ in range(_DEPTH):
        new = {id(value): value for value in level if id(value) not in seen}
        seen.update(new)
        found += [value for value in new.values() if isinstance(value, _OWNED)]
        level = [child for value in new.values() for child in _children(value)]
    # A SystemRandom has no state to restore.
    return [value for value in found if not isinstance(value, random.SystemRandom)]


def _children(value: object) -> list[object]:
    if isinstance(value, (type, ModuleType, *_OWNED)):
        return []
    container = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [*(container if len(container) <= _LONGEST else ()), *getattr(value, "__dict__", {}).values()]
