"""Takes the arguments of all monitors of a Trainer, and checks that they are the same on every rank."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from datetime import timedelta
from functools import partial
from hashlib import blake2b
from typing import Any, TypeAlias

import lightning.pytorch as pl
import numpy as np
from torch import Tensor

from lightning_explain.core.contracts import Method, Metric
from lightning_explain.core.probe import Probe
from lightning_explain.core.schema import brief, one_line
from lightning_explain.core.serialization import bytes_of
from lightning_explain.distributed import collectives
from lightning_explain.monitor import lightning as trainers

Digests: TypeAlias = "dict[str, dict[str, str]]"

PATIENCE = timedelta(minutes=5)
"""How long a rank waits in ``setup`` for one that may have no monitor, unless the strategy's ``timeout`` is shorter."""
_DEEPEST = 8


def check_alike(trainer: pl.Trainer, given: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether all ranks have monitors; call it on all ranks that have.

    Args:
        trainer: The Trainer.
        given: By the name of a monitor: its arguments.

    Raises:
        ValueError: On all ranks, if an argument is another one on any of them.
    """
    everyone = trainers.everyone(trainer)
    if everyone.world == 1:
        return True
    if not collectives.all_arrive(min(PATIENCE, getattr(trainer.strategy, "_timeout", None) or PATIENCE)):
        return False
    own = {name: {key: _digest(value) for key, value in by_name.items()} for name, by_name in given.items()}
    differing = _differing(everyone.gather(own))
    if differing:
        raise ValueError(
            one_line(
                f"ExplanationMonitor: the ranks were given different arguments: {'; '.join(differing)} (compared with rank 0). Give every "
                "rank the same monitors with the same arguments."
            )
        )
    return True


def _differing(everywhere: Sequence[Digests]) -> list[str]:
    """What is other than on rank zero, with the ranks on which it is."""
    first = everywhere[0]
    found: dict[str, list[int]] = {}
    for rank, digests in enumerate(everywhere):
        if digests.keys() != first.keys():
            found.setdefault(f"the names of the monitors ({brief(list(digests))})", []).append(rank)
            continue
        for name, arguments in digests.items():
            for key in {**first[name], **arguments}:
                if arguments.get(key) != first[name].get(key):
                    of = f" of {brief(name)}" if len(first) > 1 else ""
                    found.setdefault(f"{key}{of}", []).append(rank)
    return [f"{what} on rank{'s' * (len(ranks) > 1)} {_listed(ranks)}" for what, ranks in found.items()]


def _listed(ranks: Sequence[int]) -> str:
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return ", ".join(map(str, ranks[:8])) + more


def _digest(value: Any) -> str:
    return blake2b(_described(value, _DEEPEST).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _described(value: Any, depth: int) -> str:
    """An argument as text that is the same in every process; what has no value of its own counts by its type."""
    inner: Callable[[Any], str] = partial(_described, depth=depth - 1)
    kind = type(value).__qualname__
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return f"{kind} {value!r}"
    if isinstance(value, Probe) or depth == 0:
        return kind  # Where the samples differ, those of rank zero are explained.
    if isinstance(value, (Tensor, np.ndarray)):
        bits = bytes_of(value) if isinstance(value, Tensor) else value.tobytes()
        return f"{value.dtype} {tuple(value.shape)} {blake2b(bits).hexdigest()}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{inner(key)}: {inner(part)}' for key, part in value.items())}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(inner, value))})"
    if isinstance(value, (set, frozenset)):
        return f"({', '.join(sorted(map(inner, value)))})"
    if isinstance(value, partial):
        return f"{inner(value.func)}{inner(value.args)}{inner(value.keywords)}"
    ours = isinstance(value, (Method, Metric)) or type(value).__module__.startswith("lightning_explain.")
    if ours and is_dataclass(value):  # An object of the user's own may know its rank.
        return f"{kind}{inner({field.name: getattr(value, field.name, None) for field in fields(value)})}"
    return str(getattr(value, "__qualname__", kind))
