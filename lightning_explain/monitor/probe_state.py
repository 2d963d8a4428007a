"""Takes a probe or a selection; chooses samples once, keeps them in checkpoints, and returns the same ever after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_explain.core.probe import Probe
from lightning_explain.distributed.ranks import Ranks
from lightning_explain.monitor import lightning as trainers
from lightning_explain.monitor.failures import rank_zero_warn_or_log
from lightning_explain.probes.selection import ProbeSelection, collect, fingerprint, probe_from_state, probe_state


def _asked(selection: ProbeSelection) -> dict[str, Any]:
    """The selection as plain values that a checkpoint can hold."""
    indices = None if selection.indices is None else [int(index) for index in selection.indices]
    return {**asdict(replace(selection, indices=None)), "indices": indices}


def _shown(asked: Mapping[str, Any]) -> str:
    given = {k: v for k, v in asked.items() if v != getattr(ProbeSelection(), k, None) or k == "count"}
    return f"ProbeSelection({', '.join(f'{key}={value!r}' for key, value in given.items())})" if asked else "a Probe"


def _of_indices(selection: ProbeSelection, indices: list[int], loader: Any) -> ProbeSelection:
    """The selection of those indices that the dataset still has; the selection unchanged, if it has none of them."""
    length = len(loader.dataset) if hasattr(loader.dataset, "__len__") else 0
    left = [index for index in dict.fromkeys(indices) if 0 <= index < length]
    return replace(selection, indices=left, per_class=False) if left else selection


class FixedSamples:
    """The fixed samples of a monitor.

    A training keeps its samples from the first batch to the last, also when it is resumed. A validation or test outside
    of ``fit`` takes samples from its own loader.

    Args:
        probe: The samples; ``None``: choose them.
        selection: How to choose them.
        batch_fn: Takes a collated batch, and returns ``(inputs, targets)`` or a ``Probe``.
        save: Keep the samples in checkpoints; otherwise only their indices and fingerprint.
    """

    def __init__(
        self, probe: Probe | None, selection: ProbeSelection, batch_fn: Callable[[Any], Any] | None, save: bool
    ) -> None:
        self.probe = probe
        self._given = probe
        self._selection = selection
        self._batch_fn = batch_fn
        self._save = save
        self._asked = {} if probe is not None else _asked(selection)
        self.begin_again()

    def begin_again(self) -> None:
        """Forgets the chosen samples, because another training begins."""
        self.probe = self._given
        self._trained: Probe | None = None
        self._expected: tuple[Tensor, str] | None = None
        self._notice = ""
        self._saved = False

    def choose(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: str) -> Probe:
        """The samples of this run: given, restored, from the training so far, or read from the loader."""
        if trainer.state.fn == "fit":
            self.probe = self._trained = self._of_training(trainer, pl_module, source)
            self._expected, self._notice, self._saved = None, "", False
        else:
            self.probe = self._alone(trainer, pl_module, source)
        return self.probe

    def _of_training(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: str) -> Probe:
        if self._notice:
            rank_zero_warn(self._notice)
        if self._trained is None:
            given = self._given
            probe = self._collect(trainer, pl_module, source, self._expected) if given is None else given
            self._warn_if_others(probe)
            return probe
        if self._given is None:
            # Given samples belong to no dataset, so they cannot be compared with one.
            self._warn_if_moved(trainer, pl_module, source, self._trained)
        return self._trained

    def _alone(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: str) -> Probe:
        """The samples of a validation or test outside of ``fit``; if its loader has none, those of the training."""
        if self._given is not None:
            return self._given
        try:
            return self._collect(trainer, pl_module, source)
        except (TypeError, ValueError) as error:
            if self._trained is None:
                raise
            rank_zero_warn(
                f"The samples of the training are explained again, because none can be taken from the {source} loader: "
                f"{error}"
            )
            return self._trained

    def share(self, ranks: Ranks) -> None:
        """Replaces the samples by those of rank zero if ranks differ, as they may on a stream. Call it on all ranks.

        Raises:
            TypeError: If they differ, and a forward argument cannot be sent to the other ranks.
        """
        if self.probe is not None and len(set(ranks.gather(fingerprint(self.probe)))) > 1:
            with ranks.agree("packing the samples"):
                state = probe_state(self.probe)
            shared = probe_from_state(ranks.first(state))
            self._trained = shared if self._trained is self.probe else self._trained
            self.probe = shared

    def _collect(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        source: str,
        expected: tuple[Tensor, str] | None = None,
    ) -> Probe:
        """Reads the selected samples, or those whose indices a checkpoint holds."""
        selection = self._selection
        loader = trainers.find_loader(trainer, source, selection.dataloader_idx)
        if expected is not None and not trainers.is_stream(loader):
            selection = _of_indices(selection, expected[0].tolist(), loader)
        transfer = trainers.transferred(trainer, pl_module, selection.dataloader_idx)
        return collect(loader, selection, self._batch_fn, transfer)

    def _warn_if_others(self, probe: Probe) -> None:
        if self._expected is not None and fingerprint(probe) != self._expected[1]:
            ids, before = self._expected
            rank_zero_warn(
                f"The probe samples {probe.sample_ids.tolist()} have the fingerprint {fingerprint(probe)[:12]}, but "
                f"the checkpoint has samples {ids.tolist()} with {before[:12]}: the data has changed. From here on the "
                "curves describe other samples. To keep the samples themselves in checkpoints, use save_probe=True."
            )

    def _warn_if_moved(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: str, probe: Probe) -> None:
        """Reads the samples of the training again, and warns if the dataset no longer has them."""
        loader = trainers.find_loader(trainer, source, self._selection.dataloader_idx)
        if trainers.is_stream(loader):
            return  # The training would miss the batches read here.
        before, whose = fingerprint(probe), "the checkpoint" if self._saved else "the training so far"
        try:
            now = fingerprint(self._collect(trainer, pl_module, source, (probe.sample_ids, before)))[:12]
        except Exception as error:
            now = f"none ({type(error).__name__}: {error})"
        if now != before[:12]:
            rank_zero_warn(
                f"The dataset has changed under the probe samples {probe.sample_ids.tolist()}: their fingerprint in "
                f"{whose} is {before[:12]}, in the dataset {now}. The monitor keeps the samples of {whose}, so that "
                "its curves describe the same samples throughout. To explain the new ones, give the monitor another "
                "name."
            )

    def state(self) -> dict[str, Any]:
        """The state to save in a checkpoint; loads with ``weights_only=True``."""
        probe = self._given if self._trained is None else self._trained
        if probe is None:
            # Samples that this run could not read may be readable in the next one.
            waiting = dict(zip(("ids", "fingerprint"), self._expected, strict=True)) if self._expected else {}
            return {**waiting, "probe": None} if waiting else {}
        named = {"ids": probe.sample_ids, "fingerprint": fingerprint(probe), "selection": self._asked}
        return {**named, "probe": self._whole_state(probe) if self._save else None}

    def _whole_state(self, probe: Probe) -> dict[str, Any] | None:
        try:
            return probe_state(probe)
        except TypeError as error:
            # A checkpoint without the samples is better than a training without checkpoints.
            rank_zero_warn_or_log(
                f"Checkpoints hold only the indices and the fingerprint of the probe samples, not the samples: {error}"
            )
            return None

    def load(self, state: Mapping[str, Any]) -> None:
        """Restores a saved state: the samples themselves, or the indices and fingerprint to expect."""
        known = {"ids", "fingerprint"} <= state.keys()
        self.begin_again()
        self._expected = (state["ids"], state["fingerprint"]) if known else None
        if state.get("probe") is None:
            return
        self.probe = self._trained = probe_from_state(state["probe"])
        self._saved = True
        self._notice = self._other_samples(self._trained, state.get("selection", self._asked))

    def _other_samples(self, probe: Probe, selection: Mapping[str, Any]) -> str:
        """The warning about saved samples that differ from those requested or given; empty if they do not."""
        if self._given is None and selection != self._asked:
            return (
                f"ExplanationMonitor keeps the probe samples {probe.sample_ids.tolist()} of the checkpoint; they were "
                f"chosen by {_shown(selection)}, and this run asks for {_shown(self._asked)}. To explain other "
                "samples, give the monitor another name."
            )
        if self._given is not None and fingerprint(self._given) != fingerprint(probe):
            return (
                "ExplanationMonitor keeps the probe samples of the checkpoint, which differ from those it was given. "
                "To explain other samples, give the monitor another name."
            )
        return ""
