"""What preflight recorded in; the columns of tables that decide although no gradient reaches them out."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from types import MappingProxyType

import torch
from torch import Tensor, nn

from lightning_explain.checks.findings import Finding, listed
from lightning_explain.core.contracts import ExplainedFunction, Lookup
from lightning_explain.core.probe import Samples
from lightning_explain.core.record import Record
from lightning_explain.distributed.fsdp import is_sharded
from lightning_explain.modalities import Tabular


def unreached(i: int, values: Tensor, model: nn.Module, record: Record) -> Tensor | None:
    """``(F,)``: the columns of a table ``(N, F)`` that hold whole numbers, and that no gradient reaches in any recorded sample.

    Args:
        i: The index of the input.
        values: All of the probe's rows.
        model: The module.
        record: What preflight recorded.
    """
    x = record.points[i]
    if x.ndim != 2 or not x.requires_grad or not record.chosen.requires_grad or is_sharded(model):
        return None
    whole = (values == values.round()).all(0).cpu()
    if not whole.any():
        return whole
    with suppress(RuntimeError):
        (found,) = torch.autograd.grad(record.chosen.sum(), x, retain_graph=True, allow_unused=True)
        still = torch.ones(x.shape[1], dtype=torch.bool) if found is None else (found == 0).all(0).cpu()
        return still & whole
    return None


def blind(
    explained: ExplainedFunction,
    samples: Samples,
    model: nn.Module,
    record: Record,
    lookups: Mapping[str, Lookup] = MappingProxyType({}),
) -> Finding | None:
    """What is found where other categories change f in columns that no gradient reaches, as where they are cast to look up an embedding.

    Args:
        explained: The explained function.
        samples: A few samples.
        model: The module.
        record: What preflight recorded.
        lookups: Embeddings, whose columns are left out.
    """
    found, outputs = list[str](), None
    for i, (x, modality) in enumerate(zip(samples.inputs, explained.modalities, strict=True)):
        others = modality.others(x) if isinstance(modality, Tabular) and x.is_floating_point() else None
        still = None if others is None else unreached(i, x, model, record)
        if others is None or still is None or not isinstance(modality, Tabular):
            continue
        names, outputs = modality.columns(x.shape[1]), explained.evaluate(samples) if outputs is None else outputs
        seen = {e for lookup in lookups.values() if lookup.input == i for e in lookup.elements or ()}
        for column in sorted(set(still.nonzero().flatten().tolist()) - seen):
            moved = x.clone()
            moved[:, column] = others[:, column]
            points = samples.at((*samples.inputs[:i], moved, *samples.inputs[i + 1 :]))
            if not torch.equal(explained.evaluate(points), outputs):
                found.append(names[column])
    if not found:
        return None
    reason = (
        f"no gradient reaches the columns {listed(found)}, although the output depends on them; the map is zero there"
    )
    return Finding(
        "warned", reason, "use FeatureAblation or ShapleyValueSampling, or give these columns as integers of their own"
    )
