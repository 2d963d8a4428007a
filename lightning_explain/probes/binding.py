"""A batch and the signature of ``forward`` in, a ``Probe`` out: what is explained, what goes on as an argument, what are labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import Tensor

from lightning_explain.core.call import Place, by_position, divided, leaves, named
from lightning_explain.core.detections import are_boxes
from lightning_explain.core.probe import Attribution, Labels, Probe, as_tuple, bare, kind
from lightning_explain.probes.parts import (
    are_labels,
    are_tensors,
    column,
    count_of,
    graph_package,
    holds_tensors,
    is_label,
    labels_of,
    names_in,
    one_each,
    texts,
)
from lightning_explain.probes.signature import Signature, fitted, misfit

BatchFn = Callable[[Any], "tuple[Attribution | Mapping[str, Any], Tensor | None] | Probe"]
Say: TypeAlias = "Callable[[str], None]"

FIX = "Give batch_fn=..., a function of a batch that returns (inputs, targets) or a Probe."

_PLAIN = (bool, int, float, str, type(None))


def _silent(text: str) -> None:
    """Says nothing."""


def samples_of(
    batch: Any, batch_fn: BatchFn | None = None, forward: Signature | None = None, say: Say = _silent
) -> Probe:
    """The N samples of a batch as a probe, bound to the arguments of the model.

    - A tensor: the input, without targets.
    - A tuple or list ``(x,)``, ``(x, y)``, ``(x1, x2, ..., y)``, ``((x1, x2), y)``: if there are several tensors, the last is
      the targets (also in ``(y, None)``, without weights); the others are bound by position. A tuple in it is one argument if
      ``forward`` does not take as many.
    - Labels of several outputs are a mapping or tuple of tensors at the end, or tensors ``(N,)`` after the first; they become
      ``Probe.labels``. If ``forward`` takes one argument, further views of the same shape are left out, with one line.
    - A mapping, a dataclass, or a named tuple with such a field: the tensor under label, labels, target, targets or y (in any
      case) is the targets; the others are bound by name. If one is left over, and ``forward`` has one required argument, it is
      that one.
    - Object detection, ``(images, targets)`` or a mapping of these: a list or tuple of images, or a tensor, and a list or tuple of mappings
      with ``boxes`` and ``labels``. The model gets the images in the same form.
    - ``({...}, y)``: the mapping is bound by name, or is one argument, if its names do not fit and ``forward`` takes one.

    Floating-point tensors are explained, and codes of categories beside the numbers of a table (the first tensor, if there are no
    floating-point ones); others go on as forward arguments. Lists of N strings
    become ``Probe.meta``. Integer targets ``(N, 1)`` become ``(N,)``.

    Args:
        batch: A batch as the loader yields it.
        batch_fn: Reads the batch instead. It returns ``(inputs, targets)``, where inputs is a tensor, a tuple of tensors or a
            mapping of names, and targets a tensor or ``None``; or it returns a ``Probe``.
        forward: What the model takes; ``None``: not known, so nothing is checked.
        say: Receives the line that names what is not explained, if there is any.

    Returns:
        The samples, on the batch's device, with ids ``0..N-1`` unless ``batch_fn`` sets others.

    Raises:
        TypeError: If the batch, or what ``batch_fn`` returns, has another form, or does not fit ``forward``.
        ValueError: If the tensors do not have the same number of samples.
    """
    if batch_fn is not None:
        return bound(_by_user(batch, batch_fn), forward, say)
    _refuse_graphs(batch)
    by_name = names_in(batch, forward)
    parts = list(by_name.values()) if by_name is not None else batch
    if isinstance(parts, (tuple, list)) and any(map(are_boxes, parts)):
        return _of_detection(parts)
    if by_name is not None:
        return _from_mapping(by_name, forward, say)
    if isinstance(batch, (Tensor, tuple, list)):
        return _from_sequence(batch, forward, say)
    raise TypeError(f"Cannot read a batch of type {type(batch).__name__}. {FIX}")


def _refuse_graphs(batch: Any) -> None:
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    graph = next((part for part in (batch, *parts) if graph_package(part)), None)
    if graph is not None:
        raise TypeError(
            f"A batch holds a graph ({type(graph).__name__} of {graph_package(graph)}), whose nodes are no samples of one shape. "
            "For graphs there is torch_geometric.explain. To explain graphs that all have equally many nodes, give batch_fn=..., which "
            "returns the node features (graphs, nodes, features) and the labels, and forward_fn=..., which makes a graph of them and "
            "calls the model."
        )


def _of_detection(parts: Sequence[Any]) -> Probe:
    """The images, and the boxes of each."""
    targets = next(part for part in parts if are_boxes(part))
    images = next((part for part in parts if isinstance(part, Tensor) or are_tensors(part)), None)
    if images is None or len(images) != len(targets):
        came = "no images" if images is None else f"{len(images)} images"
        raise TypeError(
            f"A batch of object detection has {came} for the boxes of {len(targets)}; it needs a list of as many. {FIX}"
        )
    inputs = images if isinstance(images, Tensor) else list(images)
    return _probe("A batch of object detection", inputs, list(targets))


def bound(probe: Probe, forward: Signature | None, say: Say = _silent) -> Probe:
    """The probe with its names checked against those that ``forward`` takes; a probe without names as it is.

    Raises:
        TypeError: If they do not fit.
    """
    if forward is None or not all(isinstance(place[0], str) for place in probe.places):
        return probe
    what, given = "Probe(inputs={...})", dict(zip(probe.places, probe.arguments, strict=True))
    found, left_out = fitted(given, forward, what)
    if left_out:
        raise TypeError(misfit(what, given, forward))
    inputs, forward_args, places = divided(found)
    say_unexplained(places, inputs, forward_args, [], forward, say)
    # In their new order.
    own = [id(x) for x in as_tuple(probe.inputs)]
    kept = probe.stds and {id(x) for x in inputs} == set(own)
    stds = tuple(probe.stds[own.index(id(x))] for x in inputs) if kept else ()
    return replace(probe, inputs=bare(inputs), forward_args=forward_args, parameters=places, stds=stds)


def _by_user(batch: Any, batch_fn: BatchFn) -> Probe:
    try:
        found: Any = batch_fn(batch)
    except (LookupError, AttributeError, TypeError) as error:
        raise TypeError(
            f"batch_fn failed on a batch, a {kind(batch)}: {type(error).__name__}: {error}. Change it to read such a batch."
        ) from error
    if isinstance(found, Probe):
        return found
    if isinstance(found, tuple) and len(found) == 2 and are_boxes(found[1]):
        return _of_detection(found)
    if (
        not isinstance(found, tuple)
        or len(found) != 2
        or not (found[1] is None or isinstance(found[1], (Tensor, Mapping)))
    ):
        raise TypeError(
            f"batch_fn returned a {kind(found)}; return a tuple (inputs, targets), inputs a tensor "
            "or a tuple of tensors and targets a tensor, a mapping of the names of outputs to tensors, or None, or return a Probe."
        )
    inputs, targets = found
    return _probe("What batch_fn returned", tuple(inputs) if isinstance(inputs, list) else inputs, targets)


def _probe(what: str, inputs: Any, targets: Labels, **rest: Any) -> Probe:
    targets = column(targets) if isinstance(targets, Tensor) else targets
    try:
        return Probe(bare(inputs) if isinstance(inputs, tuple) and inputs else inputs, targets, **rest)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what} does not read as samples. {error} {FIX}") from error


@dataclass(frozen=True)
class _Rest:
    """What a batch has beside the arguments of the model.

    Args:
        targets: The labels; of several outputs by name.
        meta: Texts, by name.
        left_out: Names of what the model does not take.
        views: Whether these are further views of the samples.
    """

    targets: Labels
    meta: Mapping[str, Sequence[str]]
    left_out: list[str]
    views: bool = False


def _bound_probe(what: str, found: Mapping[Place, Any], rest: _Rest, forward: Signature | None, say: Say) -> Probe:
    inputs, forward_args, places = divided(found)
    say_unexplained(places, inputs, forward_args, rest.left_out, forward, say)
    parameters = () if places == by_position(len(places)) else places
    return _probe(
        what, inputs, rest.targets, forward_args=forward_args, parameters=parameters, meta=rest.meta, views=rest.views
    )


def say_unexplained(
    places: Sequence[Place],
    inputs: Sequence[Tensor],
    others: Sequence[Any],
    left_out: Sequence[str],
    forward: Signature | None,
    say: Say,
) -> None:
    """Says which tensors are not explained, in one line; nothing if all are."""
    count = len(inputs)
    passed = [
        f"{named(place)} ({str(value.dtype).removeprefix('torch.')})"
        for place, value in zip(places[count:], others, strict=True)
        if isinstance(value, Tensor)
    ]
    if not passed and not left_out:
        return
    called = "the model" if forward is None else forward.text
    lines = [f"Explained: {', '.join(map(named, places[:count]))}."]
    lines += [f"Passed to the model, but not explained: {', '.join(passed)}."] if passed else []
    lines += [f"Left out, because {called} does not take it: {', '.join(left_out)}."] if left_out else []
    say(
        " ".join(
            [
                *lines,
                "To choose otherwise, give Probe(inputs=..., forward_args=...), or batch_fn=..., which returns it.",
            ]
        )
    )


# -- by name -----------------------------------------------------------------------------------------------------------


def _from_mapping(batch: dict[str, Any], forward: Signature | None, say: Say) -> Probe:
    what = f"A batch with {list(batch)}"
    required = set() if forward is None else set(forward.required)
    targets = _labels_in(batch, required)
    parts = {key: value for key, value in batch.items() if key in required or not is_label(key)}
    lists, count = list(batch.values()), count_of(targets, batch.values())
    odd = [key for key, value in parts.items() if one_each(value, lists, count)]
    found = _arguments_in({key: value for key, value in parts.items() if key not in odd}, forward)
    if not any(isinstance(value, Tensor) for value in found.values()):
        kinds = {key: kind(value) for key, value in parts.items()}
        raise TypeError(f"{what} has no tensor to explain, only {kinds}. {FIX}")
    given = found
    found, left_out = (found, []) if forward is None else fitted(found, forward, what)
    # What the model does not take may be the labels of its outputs, by name.
    named = {name: given[(name,)] for name in left_out if (name,) in given}
    own = {n: x for n, x in named.items() if isinstance(x, Tensor) and x.ndim < 3 and are_labels([x], count)}
    if targets is None and len(own) > 1:
        targets, left_out = labels_of(own), [name for name in left_out if name not in own]
    rest = _Rest(targets, texts(batch, count), [repr(name) for name in (*left_out, *odd)])
    return _bound_probe(what, found, rest, forward, say)


def _labels_in(batch: Mapping[str, Any], required: set[str]) -> Labels:
    """The labels in a mapping: the tensor, or several by name, under such a name, preferably one that ``forward`` does not require."""
    found: dict[str, Any] = {}
    for key in filter(is_label, batch):
        inner = [value for _, value in leaves(batch[key]) if isinstance(value, Tensor)]
        if isinstance(batch[key], (Tensor, Mapping)) and len(inner) == 1:
            found[key] = inner[0]
        elif isinstance(batch[key], Mapping) and are_labels(batch[key], count_of(None, batch.values())):
            found[key] = labels_of(batch[key])
    free = {key: value for key, value in found.items() if key not in required} or found
    if len(free) > 1:
        raise ValueError(f"Cannot infer which of {list(free)} in a batch is the targets. {FIX}")
    return next(iter(free.values()), None)


def _arguments_in(parts: Mapping[str, Any], forward: Signature | None) -> dict[Place, Any]:
    """What a call may take of the parts, by its place: tensors, containers of tensors, and plain values that have a name for it."""
    takes = set() if forward is None else set(forward.names)
    found: dict[Place, Any] = {}
    for key, value in parts.items():
        if isinstance(value, Mapping) and key not in takes and takes and set(value) <= takes:
            found.update(leaves(value))
        elif isinstance(value, _PLAIN) and key in takes:
            found[(key,)] = value
        elif isinstance(value, Tensor) or any(isinstance(x, Tensor) for _, x in leaves(value)):
            found.update(leaves(value, (key,)))
    return found


# -- by position -------------------------------------------------------------------------------------------------------


def _only(part: Any) -> Any:
    """The tensor of a part that is a tensor beside ``None``, as labels without weights are."""
    known = [x for x in part if x is not None] if isinstance(part, (tuple, list)) else []
    return known[0] if len(known) == 1 and len(part) > 1 and isinstance(known[0], Tensor) else part


def _from_sequence(batch: Any, forward: Signature | None, say: Say) -> Probe:
    what = "A tensor" if isinstance(batch, Tensor) else f"A {type(batch).__name__} batch"
    parts = [batch] if isinstance(batch, Tensor) else [*batch[:1], *map(_only, batch[1:])]
    if not parts or not (isinstance(parts[0], Tensor) or are_tensors(parts[0]) or names_in(parts[0], forward)):
        first = type(parts[0]).__name__ if parts else "nothing"
        raise TypeError(
            f"Cannot read a {type(batch).__name__} batch that starts with {first}, not with a tensor, or a tuple or mapping of "
            f"them. {FIX}"
        )
    several = _of_several(parts, forward)
    last = max((i for i, part in enumerate(parts) if isinstance(part, Tensor) or are_tensors(part)), default=0)
    last = several or (len(parts) if _takes_all(parts, forward) else last)
    targets = parts[last] if 0 < last < len(parts) else None
    count = count_of(targets, parts)
    if one_each(parts[0], parts, count):
        shapes = ", ".join(str(tuple(x.shape)) for x in parts[0][:3])
        raise TypeError(
            f"{what} starts with {len(parts[0])} tensors of the shapes {shapes}, ...: one for each sample, not several inputs. "
            f"Samples must have one shape: pad or resize them. {FIX}"
        )
    if several:
        named = labels_of(parts[several])
        targets = named if len(named) > 1 else next(iter(named.values()))
    elif not (targets is None or isinstance(targets, Tensor)):
        raise TypeError(f"Cannot infer which of the last {len(targets)} tensors of a batch is the targets. {FIX}")
    inner = {i: part for i, part in enumerate(parts) if i < max(last, 1)}
    odd = [i for i, part in inner.items() if i and not _is_argument(i, part, parts, count, forward)]
    placed, more, targets = _beyond([part for i, part in inner.items() if i not in odd], targets, forward)
    found, left_out = _in_positions(placed, what, forward)
    left_out += more
    left_out += [f"part {i}" for i in odd if holds_tensors(parts[i])]
    meta = texts({str(i): part for i, part in enumerate(parts)}, count)
    return _bound_probe(what, found, _Rest(targets, meta, left_out, bool(more)), forward, say)


def _takes_all(parts: Sequence[Any], forward: Signature | None) -> bool:
    """Whether the model requires each tensor of a batch, the last too, as one of two inputs does; numbers ``(N,)`` are labels."""
    spread = [x for part in parts for x in (part if are_tensors(part) else [part])]
    if forward is None or len(spread) < 2 or not are_tensors(spread) or spread[-1].ndim < 2:
        return False
    return len(forward.required) == len(spread) and forward.takes(len(spread))


def _of_several(parts: Sequence[Any], forward: Signature | None) -> int:
    """The place of the last part, if it holds the labels of several outputs, and not further inputs; otherwise 0."""
    last = len(parts) - 1
    if last < 1 or isinstance(parts[last], Tensor) or not are_labels(parts[last], count_of(None, parts[:last])):
        return 0
    # Behind labels, a mapping holds something else.
    free = last == 1 or (forward is not None and forward.takes(last))
    taken = isinstance(parts[last], Mapping) and (not free or (forward is not None and forward.takes(last + 1)))
    return 0 if taken else last


def _beyond(parts: list[Any], targets: Any, forward: Signature | None) -> tuple[list[Any], list[str], Any]:
    """The parts that a model with one argument takes, the names of those that are left out, and the labels.

    Tensors after the first are labels of further outputs where all of them are numbers ``(N,)``; of several views, which have one shape,
    the first is taken.
    """
    inner = isinstance(parts[0], (tuple, list))
    spread = [x for part in parts for x in (part if are_tensors(part) else [part])]
    one = forward is not None and len(forward.positional) == 1 and not forward.any_position
    if not one or len(spread) < 2 or (inner and _takes_several(forward)) or not are_tensors(spread):
        return parts, [], targets
    if not inner and isinstance(targets, Tensor) and all(x.ndim == 1 for x in (*spread[1:], targets)):
        return spread[:1], [], labels_of([*spread[1:], targets])
    if any(x.shape != spread[0].shape or x.dtype != spread[0].dtype for x in spread[1:]):
        return parts, [], targets
    where = "tensor {} of the first part" if inner else "part {}"
    return spread[:1], [where.format(i) for i in range(1, len(spread))], targets


def _takes_several(forward: Signature | None) -> bool:
    """Whether the name of the one argument is that of several tensors: ``xs``, ``pair``, ``batch``."""
    return forward is not None and forward.positional[0].lower().endswith(("s", "pair", "batch", "tuple", "list"))


def _is_argument(i: int, part: Any, parts: Sequence[Any], count: int | None, forward: Signature | None) -> bool:
    """Whether a part that is not the first may go on to the model."""
    if isinstance(part, Mapping):
        return holds_tensors(part) and forward is not None and forward.takes(i + 1)
    return holds_tensors(part) and not one_each(part, parts, count)


def _in_positions(parts: Sequence[Any], what: str, forward: Signature | None) -> tuple[dict[Place, Any], list[str]]:
    """Values by their places in the call, for the parts of a sequence; and the names of what does not go there."""
    names = names_in(parts[0], forward)
    if names is not None and len(parts) == 1:
        found = _arguments_in(names, forward)
        if forward is None:
            return found, []
        if set(names) <= set(forward.names) or len(found) == 1 or forward.only is None:
            return fitted(found, forward, what)
    whole = [names_in(part, forward) or part for part in parts]
    spread = [x for part in whole for x in (part if are_tensors(part) else [part])]
    placed = spread if forward is None or forward.takes(len(spread)) else whole
    if forward is not None and not forward.takes(len(placed)):
        raise TypeError(
            f"{what} does not fit {forward.text}: it has {len(placed)} tensors before the last one, which is read as the targets. "
            f"{FIX}"
        )
    return {place: x for i, part in enumerate(placed) for place, x in leaves(part, (i,))}, []
