"""The form of a probe that comes from a checkpoint or a file."""

from __future__ import annotations

from lightning_explain.core import schema

SAMPLES = 100_000
"""The most samples that a checkpoint or a file may name."""

_COLUMN, TEXTS = schema.nothing_or(schema.tensor()), schema.listed(schema.text(), SAMPLES)
_PLACE = schema.listed(lambda value, where: (schema.text() if isinstance(value, str) else schema.whole())(value, where))
PROBE = {
    "inputs": schema.tensors,
    "targets": _COLUMN,
    "ids": schema.nothing_or(schema.tensor(1, of_whole=True)),
    "masks": _COLUMN,
    "class_names": schema.nothing_or(TEXTS),
    "forward_args": schema.tree,
    "stds": schema.listed(schema.tensor()),
    "parameters": schema.listed(_PLACE),
    "meta": schema.mapped(TEXTS),
    "entries": schema.nothing_or(schema.tensor(2, of_whole=True)),
    "labels": schema.mapped(schema.tensor()),
    "views": schema.flag,
}
"""By field: the check of its value."""
