"""A loader and a ``ProbeSelection`` in; the probe, chosen from the loader's dataset and read once, out."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile, zip_longest
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, default_collate

from lightning_explain.core.deviations import MOST, measured, standard_deviations
from lightning_explain.core.probe import Probe, as_tuple
from lightning_explain.core.random_state import seed_generators, seeded_random_state
from lightning_explain.core.schema import LARGEST_SEED
from lightning_explain.core.serialization import columns, copied
from lightning_explain.core.validation import MANY, check_choice, check_flag, check_whole, is_whole, refused
from lightning_explain.core.warn import warn_or_log
from lightning_explain.probes.binding import BatchFn, Say, samples_of
from lightning_explain.probes.signature import Signature

Source = Literal["val", "train", "test"]
Read: TypeAlias = "Callable[[Any], Probe]"


_MOST_CANDIDATES = 1000


# -- which samples ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeSelection:
    """Says which samples of which loader become the probe; the monitor reads them once, before training.

    Args:
        count: How many samples. They are drawn at random from the whole dataset, by ``seed``; a stream gives its first
            ones.
        source: The loader whose dataset they come from: ``"val"``, ``"train"`` or ``"test"``.
        indices: Exactly these samples of the dataset, in this order; ``count`` is then ignored.
        per_class: Whether to choose equally many samples of each class, as far as possible. The labels are the
            dataset's ``targets`` or ``labels`` if it has them; otherwise up to 1000 samples (or ``count``, if larger)
            are read to find the labels.
        seed: Decides which samples are drawn, and seeds random transforms while they are read.
        dataloader_idx: Index of the loader if the source has several.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or both ``per_class`` and ``indices`` are given.

    Example:
        >>> from lightning_explain import ProbeSelection
        >>> ProbeSelection(indices=[3, 14, 15], source="train").indices
        (3, 14, 15)
    """

    count: int = 16
    source: Source = "val"
    indices: Sequence[int] | None = None
    per_class: bool = False
    seed: int = 0
    dataloader_idx: int = 0

    def __post_init__(self) -> None:
        for name, least, most in (("count", 1, MANY), ("seed", 0, LARGEST_SEED), ("dataloader_idx", 0, MANY)):
            object.__setattr__(self, name, int(_whole(name, getattr(self, name), least, most)))
        check_choice("ProbeSelection", "source", self.source, get_args(Source))
        check_flag("ProbeSelection", "per_class", self.per_class)
        if self.indices is not None:
            object.__setattr__(self, "indices", self._checked_indices(self.indices))

    def _checked_indices(self, given: Any) -> tuple[int, ...]:
        if isinstance(given, (Tensor, np.ndarray)):
            given = given.tolist()
        if isinstance(given, (str, bytes)) or not isinstance(given, Sequence):
            raise refused("ProbeSelection", "indices", given, "a list of whole numbers, or None", TypeError)
        indices = [_whole(f"indices[{place}]", index, 0, sys.maxsize) for place, index in enumerate(given)]
        twice = sorted(index for index, times in Counter(indices).items() if times > 1)
        if not indices or twice:
            what = f"has {twice} twice" if twice else "is empty"
            raise ValueError(f"ProbeSelection(indices=...) {what}; give at least one sample, and each only once.")
        if self.per_class:
            raise ValueError("ProbeSelection(indices=..., per_class=True): they exclude each other; give only one.")
        return tuple(map(int, indices))


def _whole(name: str, value: Any, least: int, most: int) -> int:
    number = int(value) if isinstance(value, np.integer) else value
    check_whole("ProbeSelection", name, number, least, wrong_type=TypeError, most=most)
    assert is_whole(number)
    return number


# -- from a loader -------------------------------------------------------------------------------------------------


def collect(
    loader: Any,
    selection: ProbeSelection,
    batch_fn: BatchFn | None = None,
    transfer: Callable[[Any], Any] | None = None,
    forward: Signature | None = None,
    say: Say = warn_or_log,
) -> Probe:
    """The selected samples of a loader's dataset, read once, as a probe; every random generator is restored.

    The samples are chosen from ``loader.dataset``, so shuffled and distributed loaders give the same ones, and are
    collated by the loader's own ``collate_fn``. If the loader has workers, the samples are read in one worker. Random
    transforms are seeded with ``selection.seed``. Other state of the dataset moves: see :func:`in_child`.

    A stream (an ``IterableDataset``, or a loader without ``dataset``) gives its first samples, with ids ``0..N-1``.

    Args:
        loader: A ``DataLoader``, or any iterable of batches.
        selection: Which samples.
        batch_fn: Reads a batch (after ``transfer``); see :func:`samples_of`. It must keep the samples and their order.
        transfer: Applied to the collated batch, such as Lightning's batch-transfer hooks.
        forward: What the model takes, by which batches are bound.
        say: Receives what the user should know.

    Returns:
        The samples on the CPU, with the dataset's indices as ids.

    Raises:
        TypeError: If a batch cannot be read.
        ValueError: If the dataset has no such samples, or there are no labels for ``per_class``.
    """
    dataset = getattr(loader, "dataset", None)
    said: dict[str, None] = {}

    def read(batch: Any) -> Probe:
        return samples_of(batch, batch_fn, forward, lambda line: said.update({line: None}))

    def kept(batch: Any) -> Probe:
        return Probe(**copied(columns(read(batch if transfer is None else transfer(batch)))))

    with torch.inference_mode(False), seeded_random_state(selection.seed, loader):
        if not _is_map_style(dataset):
            probe = _first_samples(loader, selection, kept, say)
            chosen: Sequence[int] = range(len(probe))
        else:
            chosen = _choose(loader, selection, read, say)
            said.clear()
            probe = _with_deviations(loader, selection.seed, chosen, kept, say)
    for line in said:
        say(line)
    if len(probe) != len(chosen):
        raise ValueError(
            f"{len(chosen)} samples of the dataset became {len(probe)} samples of a batch; collate_fn and batch_fn must keep "
            "every sample. Change them, or give a Probe."
        )
    return replace(probe, ids=torch.tensor(list(chosen)))


def _is_map_style(dataset: Any) -> bool:
    return hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset)


def _batches(loader: Any, size: int | None, seed: int, samples: Sequence[int] | None = None) -> Iterator[Any]:
    """Batches of the loader's dataset, collated as the loader does it, but of these samples and this size."""
    collate = getattr(loader, "collate_fn", default_collate)
    if size is not None and getattr(loader, "batch_sampler", loader) is None:
        # The collate function of a loader that does not batch takes a single sample.
        collate = partial(_collate_each, collate)
    # Seeded before each reading, so that samples are equal whether or not labels were read first, here or in a worker.
    seed_generators(seed)
    return iter(
        DataLoader(
            loader.dataset,
            batch_size=size,
            sampler=samples,
            num_workers=min(1, getattr(loader, "num_workers", 0)),
            collate_fn=collate,
            worker_init_fn=partial(_start_worker, getattr(loader, "worker_init_fn", None), seed),
            multiprocessing_context=getattr(loader, "multiprocessing_context", None),
            generator=torch.Generator().manual_seed(seed),
        )
    )


def _with_deviations(loader: Any, seed: int, chosen: Sequence[int], read: Read, say: Say) -> Probe:
    """The chosen samples, with the standard deviations over up to 1,024 samples if these are tables or series."""
    length = len(loader.dataset)
    many = random.Random(seed).sample(range(length), min(MOST, length))
    batches = _batches(loader, len(chosen), seed, [*chosen, *many])
    probe = read(next(batches))
    floating = [x for x in as_tuple(probe.inputs) if x.is_floating_point()]
    if not (floating and all(map(measured, floating))):
        return probe
    try:
        return replace(probe, stds=standard_deviations(as_tuple(read(batch).inputs) for batch in batches))
    except Exception as error:
        say(
            "Standard deviations are of the probe's own samples, because others of the dataset cannot be read: "
            f"{type(error).__name__}: {error}"
        )
        return probe


def _start_worker(init: Callable[[int], Any] | None, seed: int, worker: int) -> None:
    if init is not None:
        init(worker)
    # After init, because Lightning's worker_init_fn seeds by rank, and samples must be equal on all ranks.
    seed_generators(seed)


def _collate_each(collate: Callable[[Any], Any], samples: list[Any]) -> Any:
    return default_collate([collate(sample) for sample in samples])


def _choose(loader: Any, selection: ProbeSelection, read: Read, say: Say) -> Sequence[int]:
    where = f"the dataset behind the {selection.source} loader ({type(loader.dataset).__name__})"
    length = len(loader.dataset)
    if length == 0:
        raise ValueError(
            f"ProbeSelection(source={selection.source!r}) finds no samples: {where} is empty. Use another source or a Probe."
        )
    if selection.indices is not None:
        outside = [i for i in selection.indices if i >= length]
        if outside:
            raise ValueError(f"ProbeSelection(indices=...) has {outside}; use indices of {where}: 0 to {length - 1}.")
        return selection.indices
    _warn_if_short(length, selection, say)
    if selection.per_class:
        return sorted(_balanced(loader, selection, read))
    # Not the first ones, which in a sorted dataset are all of one class.
    return sorted(random.Random(selection.seed).sample(range(length), min(selection.count, length)))


def _warn_if_short(found: int, selection: ProbeSelection, say: Say) -> None:
    if found < selection.count:
        say(
            f"ProbeSelection(count={selection.count}), but the {selection.source} loader has {found} samples; "
            f"{found} of {selection.count} are explained. Lower count to silence this warning."
        )


# -- streams -------------------------------------------------------------------------------------------------------


def _first_samples(loader: Any, selection: ProbeSelection, read: Read, say: Say) -> Probe:
    dataset = getattr(loader, "dataset", None)
    what = f"what the {selection.source} loader reads ({type(loader if dataset is None else dataset).__name__}) is a stream"
    if selection.indices is not None or selection.per_class:
        raise ValueError(
            f"indices and per_class need a dataset with __getitem__ and __len__; {what}. Give count alone, or a Probe."
        )
    say(f"The first {selection.count} samples are explained, because {what}. To explain others, give a Probe.")
    parts: list[Probe] = []
    for batch in _stream(loader, selection):
        parts.append(read(batch))
        if sum(map(len, parts)) >= selection.count:
            break
    if not parts:
        raise ValueError(
            f"ProbeSelection(source={selection.source!r}) finds no samples: {what}, and it gave none. Give a Probe."
        )
    alike = _alike(parts)
    probe = _joined(alike, selection.count)
    if len(alike) < len(parts):
        say(
            f"The batches of the stream are not alike (padded to different lengths?): only the {len(probe)} samples of the first "
            "ones, which are, are explained. To explain more, pad all samples to one length, or give a Probe."
        )
    else:
        _warn_if_short(len(probe), selection, say)
    return probe


def _stream(loader: Any, selection: ProbeSelection) -> Iterator[Any]:
    if not isinstance(getattr(loader, "dataset", None), IterableDataset):
        return iter(loader)
    # The stream of a loader that does not batch yields whole batches.
    whole_batches = getattr(loader, "batch_sampler", loader) is None
    return _batches(loader, None if whole_batches else selection.count, selection.seed)


def _joined(parts: list[Probe], count: int) -> Probe:
    """The first ``count`` samples of several batches."""

    def join(value: Any, *others: Any) -> Any:
        by_sample = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(parts[0])
        return torch.cat([value, *others])[:count] if by_sample else value

    tensors = tree_map(join, *({**columns(part), "meta": {}} for part in parts))
    meta = {name: [text for part in parts for text in part.meta[name]][:count] for name in parts[0].meta}
    return Probe(**{**tensors, "meta": meta})


def _alike(parts: list[Probe]) -> list[Probe]:
    """The batches up to the first whose samples have another form than those of the first batch."""

    def form(probe: Probe) -> list[Any]:
        values = [*probe.arguments, probe.targets, probe.masks, *probe.labels.values()]
        return [probe.meta.keys(), *(x.shape[1:] if isinstance(x, Tensor) else None for x in values)]

    return list(takewhile(lambda part: form(part) == form(parts[0]), parts))


# -- classes -------------------------------------------------------------------------------------------------------


def _balanced(loader: Any, selection: ProbeSelection, read: Read) -> list[int]:
    labels = _known_labels(loader.dataset)
    samples: Sequence[int] = range(len(loader.dataset))
    if labels is None:
        samples = random.Random(selection.seed).sample(
            samples, min(len(samples), max(_MOST_CANDIDATES, selection.count))
        )
        labels = _read_labels(loader, selection, samples, read)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(selection.seed))
    classes: dict[int, list[int]] = {}
    for i, label in zip(order.tolist(), labels[order].tolist(), strict=True):
        classes.setdefault(label, []).append(samples[i])
    rounds = (i for one_of_each in zip_longest(*classes.values()) for i in one_of_each if i is not None)
    return list(islice(rounds, selection.count))


def _known_labels(dataset: Any) -> Tensor | None:
    if isinstance(dataset, Subset):
        labels = _known_labels(dataset.dataset)
        return None if labels is None else labels[torch.as_tensor(dataset.indices)]
    found = [getattr(dataset, name, None) for name in ("targets", "labels")]
    if isinstance(dataset, TensorDataset) and len(dataset.tensors) > 1:
        found.append(dataset.tensors[-1])
    usable = (_labels(value, len(dataset)) for value in found if value is not None)
    return next((labels for labels in usable if labels is not None), None)


def _labels(value: Any, count: int) -> Tensor | None:
    """The class labels ``(count,)``; ``None`` unless they are whole numbers (0.0 and 1.0 of a binary loss are)."""
    try:
        found = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError):  # ragged lists, dtypes that NumPy does not have
        return None
    found = found.squeeze(1) if found.shape == (count, 1) else found
    if found.shape != (count,) or found.dtype.kind not in "biuf" or not np.isfinite(found).all():
        return None
    whole = found.astype(np.int64)
    return torch.from_numpy(whole) if (whole == found).all() else None


def _read_labels(loader: Any, selection: ProbeSelection, samples: Sequence[int], read: Read) -> Tensor:
    found: list[int] = []
    for batch in _batches(loader, 1, selection.seed, samples):
        label = _labels(read(batch).targets, 1)
        if label is None:
            raise ValueError(
                f"ProbeSelection(per_class=True) finds no labels: {type(loader.dataset).__name__} has no targets or "
                "labels with one whole number per sample, nor do its samples. Give indices=[...], a batch_fn, or a Probe."
            )
        found.append(int(label))
        if len(set(found)) == selection.count:
            break  # There are as many classes as samples to choose; more candidates cannot improve the balance.
    return torch.tensor(found)
