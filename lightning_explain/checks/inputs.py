"""What preflight recorded, and what the user says of the inputs, in; what each input is, bound to the probe, out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any

import torch
from torch import Tensor, nn

from lightning_explain.checks.blind import unreached
from lightning_explain.checks.channels import channels_last
from lightning_explain.checks.frames import layout_of
from lightning_explain.core.contracts import InputFacts, Lookup, Modality
from lightning_explain.core.naming import nearest
from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.core.record import Record
from lightning_explain.core.warn import warn_or_log
from lightning_explain.modalities import guess
from lightning_explain.modalities.plain import FIRST_CHANNELS, LAST_CHANNELS


def settled(
    given: Any, probe: Probe, model: nn.Module, record: Record, names: Sequence[str] = ()
) -> tuple[Modality, ...]:
    """What each input of the probe is, made of plain values.

    Args:
        given: As the user says it: a modality, one for each input, a mapping of names or positions to modalities, or ``None``; what is
            left open is guessed.
        probe: The samples.
        model: The module.
        record: What preflight recorded of a forward pass.
        names: Those that the data set has for columns.

    Raises:
        ValueError: If a modality does not fit its input, or names one that is not there.
    """
    inputs = as_tuple(probe.inputs)
    facts = [_facts(i, probe, model, record, names) for i in range(len(inputs))]
    for i in range(len(inputs)):
        if line := channels_last(i, probe, model, record):
            warn_or_log(line)
    own = _by_input(given, probe)
    guessed = guess(tuple(inputs), facts)
    return tuple(own.get(i, guessed[i]).bound(x.cpu(), facts[i]) for i, x in enumerate(inputs))


def lookups(model: nn.Module, record: Record) -> dict[str, Lookup]:
    """The embedding layers that look something of the inputs up, by name, with what that is: one vector for each."""
    named = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Embedding))
    return {name: record.lookups[id(module)] for name, module in named if id(module) in record.lookups}


def _by_input(given: Any, probe: Probe) -> dict[int, Modality]:
    """The modalities that the user gives, by the position of the input."""
    count = len(as_tuple(probe.inputs))
    if given is None or isinstance(given, Modality):
        return {} if given is None else dict.fromkeys(range(count), given)
    if isinstance(given, Mapping):
        names: dict[Any, int] = {place[-1]: i for i, place in enumerate(probe.places[:count])} | {
            i: i for i in range(count)
        }
        for name in given:
            if name not in names:
                raise ValueError(f"modalities names the input {name!r}: {nearest(str(name), list(map(str, names)))}")
        found = {names[name]: value for name, value in given.items()}
    else:
        if not isinstance(given, Sequence) or len(given) != count:
            raise ValueError(
                f"modalities={given!r}; give one for each of the {count} inputs, or a mapping of their names."
            )
        found = dict(enumerate(given))
    for value in found.values():
        if not isinstance(value, Modality):
            raise TypeError(f"modalities holds a {type(value).__name__}; give modalities, such as modalities.Text().")
    return found


def _facts(i: int, probe: Probe, model: nn.Module, record: Record, names: Sequence[str]) -> InputFacts:
    x = record.points[i].detach()
    time = _time_axis(x, model, record) if x.ndim == 3 and x.is_floating_point() else None
    own = {name: module for name, module in model.named_modules() if _of(i, module, record)}
    layout, by_frame = layout_of(x, model, record) if x.ndim == 5 else (None, False)
    counts = {name: len(set(_of(i, module, record))) for name, module in own.items()}
    return InputFacts(
        embeddings={name: module for name, module in own.items() if counts[name] == x[0].numel()},
        time_axis=time,
        masked=_masked(probe, as_tuple(probe.inputs)[i]),
        blind=unreached(i, as_tuple(probe.inputs)[i], model, record),
        names=_names(i, probe, names),
        by_column=set(counts.values()) == {1},
        texts=probe.meta,
        layout=layout,
        by_frame=by_frame,
    )


def _names(i: int, probe: Probe, names: Sequence[str]) -> tuple[str, ...]:
    """The names of the columns of a table: the data set's, if there are as many; or made of the name of the argument or the entry."""
    count, last = as_tuple(probe.inputs)[i][0].numel(), probe.places[i][-1]
    if len(names) == count:
        return tuple(map(str, names))
    if not isinstance(last, str) or len(as_tuple(probe.inputs)) == 1:
        return ()
    return (last,) if count == 1 else tuple(f"{last} {column}" for column in range(count))


def _of(i: int, module: nn.Module, record: Record) -> tuple[int, ...]:
    """The elements of an input that a module looks up; none for modules that do not."""
    found = record.lookups.get(id(module))
    return found.elements or () if found is not None and found.input == i else ()


def _received(module: nn.Module, record: Record) -> tuple[Tensor, ...]:
    passed = record.received.get(id(module))
    return () if passed is None else passed.tensors


def _time_axis(x: Tensor, model: nn.Module, record: Record) -> int | None:
    """The dimension of a series ``(N, a, b)`` that the first layer which takes it, in any order of dimensions, runs over."""
    modules = {id(module): module for module in model.modules()}
    for key in record.received:
        module = modules.get(key)
        if not isinstance(module, (*FIRST_CHANNELS, *LAST_CHANNELS)):
            continue
        for value in _received(module, record):
            order = next(_orders(value.detach(), x), None)
            if order is not None:
                return order[_time_in(module, order)]
    return None


def _orders(value: Tensor, x: Tensor) -> Iterator[tuple[int, ...]]:
    """The orders of dimensions in which the input is what a layer received."""
    for order in permutations(range(3)):
        if value.shape == tuple(x.shape[i] for i in order) and torch.equal(value, x.permute(order)):
            yield order


def _time_in(module: nn.Module, order: tuple[int, ...]) -> int:
    """The dimension of what a layer received that runs over times."""
    if isinstance(module, FIRST_CHANNELS):
        return 2
    # The samples are the first dimension of the input; the last one has the channels.
    return 1 - order.index(0)


def _masked(probe: Probe, x: Tensor) -> Tensor | None:
    """``(N, T)``: where an attention or padding mask among the further arguments says that there is nothing."""
    for place, value in zip(probe.places[len(as_tuple(probe.inputs)) :], probe.forward_args, strict=True):
        if isinstance(value, Tensor) and value.shape == x.shape[:2]:
            name = str(place[-1])
            if "padding_mask" in name:
                return value.cpu() != 0
            if "mask" in name:
                return value.cpu() == 0
    return None
