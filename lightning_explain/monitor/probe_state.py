"""Takes a probe or a selection; chooses samples once, keeps them in checkpoints, and returns the same ever after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import lightning.pytorch as pl
from torch import Tensor
from torch.utils._pytree import tree_map_only

from lightning_explain.core.contracts import Modality
from lightning_explain.core.probe import Probe
from lightning_explain.core.probe_form import SAMPLES
from lightning_explain.core.schema import MalformedError, brief, listed_ids
from lightning_explain.core.serialization import bytes_of, columns, copied, fingerprint, frozen, probe_state
from lightning_explain.distributed.ranks import Ranks
from lightning_explain.model.function import ForwardFn
from lightning_explain.monitor import loaders
from lightning_explain.monitor.failures import rank_zero_warn_or_log
from lightning_explain.probes.binding import bound, samples_of
from lightning_explain.probes.child import in_child
from lightning_explain.probes.parts import tensors_in
from lightning_explain.probes.selection import ProbeSelection, Source, collect
from lightning_explain.probes.signature import Signature, signature_of

Expected: TypeAlias = "tuple[Tensor, str] | None"
"""Indices and fingerprint of the samples that a checkpoint or the training so far has."""


def _asked(selection: ProbeSelection) -> dict[str, Any]:
    """The selection as plain values that a checkpoint can hold."""
    indices = None if selection.indices is None else [int(index) for index in selection.indices]
    return {**asdict(replace(selection, indices=None)), "indices": indices}


def _shown(asked: Mapping[str, Any]) -> str:
    given = {k: v for k, v in asked.items() if v != getattr(ProbeSelection(), k, None) or k == "count"}
    return (
        f"ProbeSelection({', '.join(f'{key}={brief(value)}' for key, value in given.items())})" if asked else "a Probe"
    )


def _of_indices(selection: ProbeSelection, indices: list[int], loader: Any) -> ProbeSelection:
    """The selection of those indices that the dataset still has; the selection unchanged, if it has none of them."""
    length = len(loader.dataset) if hasattr(loader.dataset, "__len__") else 0
    left = [index for index in dict.fromkeys(indices) if 0 <= index < length]
    return replace(selection, indices=left, per_class=False) if left else selection


@dataclass(frozen=True)
class _Reading:
    """Reads samples in whatever process it is called.

    Args:
        find: Returns the source of the loader, and the loader.
        transferred: Returns the function that applies the batch-transfer hooks.
        selection: Which samples.
        batch_fn: Reads a batch.
        signature: What the model takes.
        expected: What a checkpoint or the training so far has.
        kept: The samples are there already, and are compared with.
    """

    find: Callable[..., tuple[Source, Any]]
    transferred: Callable[..., Callable[[Any], Any] | None]
    selection: ProbeSelection
    batch_fn: Callable[[Any], Any] | None
    signature: Signature | None
    expected: Expected
    kept: bool

    def __call__(self, say: Callable[[str], None], on_device: Callable[[Any], Any]) -> Probe | None:
        source, loader = self.find(say=say)
        selection = replace(self.selection, source=source)
        stream = loaders.is_stream(loader)
        if stream and self.kept:
            return None
        if self.expected is not None and not stream:
            selection = _of_indices(selection, self.expected[0].tolist(), loader)
        return collect(loader, selection, self.batch_fn, self.transferred(on_device), self.signature, say)


def _found(found: tuple[Source, Any], say: Callable[[str], None]) -> tuple[Source, Any]:
    return found


def _not_transferred(on_device: Callable[[Any], Any]) -> None:
    return None


class FixedSamples:
    """The fixed samples of a monitor.

    A training keeps its samples from the first batch to the last, also when it is resumed. A validation outside of ``fit`` explains
    the samples of the checkpoint that it loads, if that has any; else it takes samples from its own loader, as a test does.

    Args:
        probe: The samples, if a ``Probe``; otherwise they are chosen.
        selection: How to choose them.
        batch_fn: Takes a collated batch, and returns ``(inputs, targets)`` or a ``Probe``.
        save: Keep the samples in checkpoints; otherwise only their indices and fingerprint.
        forward_fn: What is called instead of the module, if anything: batches are bound to what it takes.
    """

    def __init__(
        self,
        probe: object,
        selection: ProbeSelection,
        batch_fn: Callable[[Any], Any] | None,
        save: bool,
        forward_fn: ForwardFn = None,
    ) -> None:
        self._given = frozen(probe) if isinstance(probe, Probe) else None
        self._selection = selection
        self._batch_fn = batch_fn
        self._forward_fn = forward_fn
        self._save = save
        self.dataloader_idx = selection.dataloader_idx
        self._asked = _asked(selection) if self._given is None else {}
        self.begin_again()

    @property
    def restored(self) -> bool:
        """Whether the samples are those saved in a checkpoint."""
        return self._restored

    @property
    def given(self) -> bool:
        """Whether the user gave the samples themselves."""
        return self._given is not None

    def begin_again(self) -> None:
        """Forgets the chosen samples, because another training begins."""
        self.probe: Probe | None = self._given
        self._trained: Probe | None = None
        self._expected: Expected = None
        self._notice = ""
        self._saved = self._restored = False

    def choose(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: Source) -> None:
        """Decides on the samples of this run: given, restored, from the training so far, or read from the loader."""
        if self._given is not None:
            self._given = bound(self._given, signature_of(pl_module, self._forward_fn), rank_zero_warn_or_log)
        if trainer.state.fn == "fit":
            self.probe = self._trained = self._of_training(trainer, pl_module, source)
            self._expected, self._notice, self._saved = None, "", False
        elif trainer.state.fn == "validate" and self._expected is not None:
            self.probe = self._of_loaded_state(trainer, pl_module, source)
        else:
            self.probe = self._alone(trainer, pl_module, source)

    def _of_training(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: Source) -> Probe | None:
        if self._notice:
            rank_zero_warn_or_log(self._notice)
        kept, expected = self._trained, self._expected
        if kept is not None:
            if self._given is not None:
                return kept  # They belong to no dataset.
            expected = kept.sample_ids, fingerprint(kept)
        try:
            found = self._given or self._collect(trainer, pl_module, source, expected, kept=kept is not None)
            if found is None:
                return kept
            now = fingerprint(found)[:12]
            if kept is not None and found.parameters and not kept.parameters:
                if now != fingerprint(kept)[:12]:
                    rank_zero_warn_or_log(
                        f"The probe samples {listed_ids(kept.sample_ids)} of the checkpoint were bound by position, as version 0.1 did. "
                        "The curves continue with the same samples, bound by name."
                    )
                kept, expected = found, (found.sample_ids, fingerprint(found))
        except Exception as error:
            if kept is None:
                raise
            found, now = kept, f"none ({type(error).__name__}: {error})"
        found = found if kept is None else kept
        if expected is not None and now != expected[1][:12]:
            whose = "the checkpoint" if kept is None or self._saved else "the training so far"
            rank_zero_warn_or_log(
                f"The data has changed under the probe samples {listed_ids(expected[0])}: fingerprint {expected[1][:12]} in "
                f"{whose}, {now} now. The curves continue with the samples {listed_ids(found.sample_ids)} of "
                f"{'the data now' if kept is None else whose}. To keep samples in checkpoints, use save_probe=True; to "
                "explain other ones, give the monitor another name."
            )
        return found

    def _of_loaded_state(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: Source) -> Probe | None:
        """The samples that the loaded checkpoint holds; if it holds only indices, and these are of another loader, the validation's own."""
        if self._trained is None and self._given is None and self._selection.source != source:
            rank_zero_warn_or_log(
                f"The checkpoint has indices of {self._selection.source} samples, which a validation does not load: samples of its own are "
                "explained. To explain the same ones, save checkpoints with save_probe=True."
            )
            found = self._alone(trainer, pl_module, source)
        elif self._given is not None or self._selection.source == source:
            found = self._trained = self._of_training(trainer, pl_module, source)
        else:
            found = self._trained  # The loader of this validation has no samples to compare them with.
        # The next validation may load no checkpoint.
        self._expected, self._notice, self._saved = None, "", False
        return found

    def _alone(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: Source) -> Probe | None:
        """The samples of a validation or test outside of ``fit``; if its loader has none, those of the training."""
        if self._given is not None:
            return self._given
        try:
            return self._collect(trainer, pl_module, source)
        except (TypeError, ValueError) as error:
            if self._trained is None:
                raise
            rank_zero_warn_or_log(
                f"The samples of the training are explained again; the {source} loader has none: {error}"
            )
            return self._trained

    def describe(self, modalities: tuple[Modality, ...]) -> None:
        """Notes what the inputs are, as the check of the model settled it."""
        assert self.probe is not None
        described = replace(self.probe, modalities=modalities)
        self._trained = described if self._trained is self.probe else self._trained
        self.probe = described

    def share(self, ranks: Ranks) -> None:
        """Replaces the samples by those of rank zero if ranks differ, as they may on a stream. Call it on all ranks.

        Raises:
            TypeError: If they differ, and a forward argument cannot be sent to the other ranks.
        """
        if self.probe is None:
            return
        own = (fingerprint(self.probe), *map(bytes_of, self.probe.stds))
        if len(set(ranks.gather(own))) > 1:
            with ranks.agree("packing the samples"):
                state = probe_state(self.probe)
            shared = replace(self.probe, **ranks.first(state))
            self._trained = shared if self._trained is self.probe else self._trained
            self.probe = shared

    def _collect(
        self,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        source: Source,
        expected: Expected = None,
        kept: bool = False,
    ) -> Probe | None:
        """Reads the selected samples, or those whose indices a checkpoint holds, in a child process.

        ``None``: the samples are kept already, and a stream has no others to compare them with.
        """
        index, signature = self.dataloader_idx, signature_of(module, self._forward_fn)
        find = partial(loaders.find_loader, trainer, source, index)
        transferred = partial(loaders.transferred, trainer, module, index)
        work = _Reading(find, transferred, self._selection, self._batch_fn, signature, expected, kept)

        def portable() -> _Reading:
            if loaders.has_hooks(trainer, module):
                raise TypeError("the batch-transfer hooks need the Trainer")
            return replace(work, find=partial(_found, find()), transferred=_not_transferred)

        here = {"say": rank_zero_warn_or_log, "on_device": loaders.after_transfer(trainer, module, index)}
        return in_child(work, here, retries=not kept, portable=portable)

    def read(self, module: pl.LightningModule, batch: Any) -> Probe:
        """The samples of a batch of the training, with its own tensors, bound as those of the loader are."""
        signature = signature_of(module)
        if self._batch_fn is None:
            return samples_of(batch, None, signature)
        # The user's function gets a copy, which it may change.
        twin = deepcopy(batch)
        copies = tensors_in(twin)
        probe = samples_of(twin, self._batch_fn, signature)
        originals = {id(copy): x for (_, copy), (_, x) in zip(copies, tensors_in(batch), strict=True)}
        return replace(probe, **tree_map_only(Tensor, lambda x: originals.get(id(x), x), columns(probe)))

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint; loads with ``weights_only=True``."""
        probe = self._given if self._trained is None else self._trained
        if probe is None:
            # Samples that this run could not read may be readable in the next one.
            return dict(zip(("ids", "fingerprint"), self._expected, strict=True)) if self._expected else {}
        named = {"ids": copied(probe.sample_ids), "fingerprint": fingerprint(probe), "selection": self._asked}
        try:
            return {**named, "probe": probe_state(probe) if self._save else None}
        except TypeError as error:
            # A checkpoint without the samples is better than a training without checkpoints.
            rank_zero_warn_or_log(f"Checkpoints hold only indices and fingerprint of the probe samples: {error}")
            return {**named, "probe": None}

    def load_ids(self, state: Mapping[str, Any]) -> None:
        """Takes the indices and the fingerprint of the samples to expect from a saved state.

        Raises:
            MalformedError: If there are too many samples, or one twice.
        """
        if not {"ids", "fingerprint"} <= state.keys():
            return
        ids = state["ids"]
        if not 0 < len(ids) <= SAMPLES or len(ids.unique()) < len(ids):
            raise MalformedError(f"ids names {len(ids)} samples instead of 1 to {SAMPLES} different ones")
        self._expected = ids, state["fingerprint"]

    def load_probe(self, state: Mapping[str, Any]) -> None:
        """Restores the samples themselves from a saved state that has them.

        Raises:
            ValueError: If they are not those whose fingerprint was saved, or their shapes do not fit together.
        """
        if state.get("probe") is None:
            return
        given = None if self._given is None else self._given.modalities
        probe, selection = Probe(**state["probe"], modalities=given), dict(state.get("selection", self._asked))
        if self._expected is None or fingerprint(probe) != self._expected[1]:
            raise MalformedError("these are not the samples whose fingerprint the checkpoint has")
        other = selection != self._asked if self._given is None else fingerprint(self._given) != fingerprint(probe)
        if other:
            asked = _shown(self._asked) if self._given is None else "other ones"
            self._notice = (
                f"ExplanationMonitor keeps the probe samples {listed_ids(probe.sample_ids)} of the checkpoint, chosen by "
                f"{_shown(selection)}; this run asks for {asked}. To explain other samples, give the monitor another "
                "name."
            )
        self.probe = self._trained = probe
        self._saved = self._restored = True
