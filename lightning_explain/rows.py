"""The rows a monitor explains: chosen once, kept in checkpoints, the same ever after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_explain import trainer as trainers
from lightning_explain.gather import Ranks
from lightning_explain.probe import ProbeSelection, collect, fingerprint, probe_from_state, probe_state
from lightning_explain.types import Probe


def _asked(selection: ProbeSelection) -> dict[str, Any]:
    """What was asked for, as a checkpoint can hold it."""
    indices = None if selection.indices is None else [int(index) for index in selection.indices]
    return {**asdict(replace(selection, indices=None)), "indices": indices}


def _shown(asked: Mapping[str, Any]) -> str:
    given = {k: v for k, v in asked.items() if v != getattr(ProbeSelection(), k, None) or k == "count"}
    return f"ProbeSelection({', '.join(f'{key}={value!r}' for key, value in given.items())})" if asked else "a Probe"


class FixedRows:
    """The rows, or how they are chosen.

    Args:
        probe: The rows, if they are given.
        selection: How they are chosen, otherwise.
        batch_fn: Turns a collated batch into ``(inputs, targets)`` or a ``Probe``.
        save: Keep the rows in checkpoints; otherwise their indices and fingerprint only.
    """

    def __init__(
        self, probe: Probe | None, selection: ProbeSelection, batch_fn: Callable[[Any], Any] | None, save: bool
    ) -> None:
        self.probe = probe
        self._selection = selection
        self._batch_fn = batch_fn
        self._save = save
        self._expected: tuple[Tensor, str] | None = None
        self._asked = {} if probe is not None else _asked(selection)
        self._saved = False

    def choose(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: str) -> Probe:
        """The rows; the first time they are read from this source, unless they are given or saved."""
        if self.probe is None:
            self.probe = self._collect(trainer, pl_module, source)
            self._warn_if_others(self.probe)
        elif self._saved and trainer.state.fn == "fit":
            self._warn_if_moved(trainer, pl_module, source)
        self._expected, self._saved = None, False
        return self.probe

    def share(self, ranks: Ranks) -> None:
        """Takes the rows of rank zero where those of the ranks differ, as those of a stream may. To be called on all of them.

        Raises:
            TypeError: If they differ, and have a forward argument that cannot be sent.
        """
        if self.probe is not None and not ranks.equal(fingerprint(self.probe)):
            self.probe = probe_from_state(ranks.first(ranks.agreed(partial(probe_state, self.probe))))

    def _collect(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: str) -> Probe:
        selection = self._selection
        loader = trainers.find_loader(trainer, source, selection.dataloader_idx)
        if self._expected is not None and not trainers.is_stream(loader):
            selection = replace(selection, indices=self._expected[0].tolist(), per_class=False)
        transfer = trainers.transferred(trainer, pl_module, selection.dataloader_idx)
        return collect(loader, selection, self._batch_fn, transfer)

    def _warn_if_others(self, probe: Probe) -> None:
        if self._expected is not None and fingerprint(probe) != self._expected[1]:
            ids, before = self._expected
            rank_zero_warn(
                f"The probe rows {probe.row_ids.tolist()} have the fingerprint {fingerprint(probe)[:12]}, but the "
                f"checkpoint was of rows {ids.tolist()} with {before[:12]}: the data has changed. Curves "
                "from here on are of other rows; save_probe=True keeps the rows themselves."
            )

    def _warn_if_moved(self, trainer: pl.Trainer, pl_module: pl.LightningModule, source: str) -> None:
        """Reads the saved rows again, to see whether the dataset still has them."""
        assert self.probe is not None
        loader = trainers.find_loader(trainer, source, self._selection.dataloader_idx)
        if trainers.is_stream(loader):
            return  # What is read from it would be missing in training.
        try:
            now = fingerprint(self._collect(trainer, pl_module, source))[:12]
        except Exception as error:
            now = f"none ({type(error).__name__}: {error})"
        before = fingerprint(self.probe)[:12]
        if now != before:
            rank_zero_warn(
                f"The dataset has moved under the probe rows {self.probe.row_ids.tolist()}: their fingerprint in the "
                f"checkpoint is {before}, in the dataset {now}. The monitor goes on with the rows of the checkpoint, so "
                "that its curves stay of the same rows. To explain the new ones, give it another name."
            )

    def state(self) -> dict[str, Any]:
        """What must survive in a checkpoint; loads with ``weights_only=True``."""
        if self.probe is None:
            # Rows that could not be read in this run may be there in the next one.
            waiting = dict(zip(("ids", "fingerprint"), self._expected, strict=True)) if self._expected else {}
            return {**waiting, "probe": None} if waiting else {}
        named = {"ids": self.probe.row_ids, "fingerprint": fingerprint(self.probe), "selection": self._asked}
        return {**named, "probe": self._whole_state(self.probe) if self._save else None}

    def _whole_state(self, probe: Probe) -> dict[str, Any] | None:
        try:
            return probe_state(probe)
        except TypeError as error:
            # A checkpoint without the rows is better than a training without checkpoints.
            rank_zero_warn(f"The probe rows are not kept in checkpoints, only their indices and fingerprint: {error}")
            return None

    def load(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state: its rows, or what they must be."""
        known = {"ids", "fingerprint"} <= state.keys()
        self._expected = (state["ids"], state["fingerprint"]) if known else None
        if state.get("probe") is None:
            return
        if self.probe is None and state.get("selection", self._asked) != self._asked:
            rank_zero_warn(
                f"ExplanationMonitor goes on with the probe rows {state['ids'].tolist()} of the checkpoint; they were chosen by "
                f"{_shown(state['selection'])}, and now {_shown(self._asked)} was asked for. To explain other rows, give the "
                "monitor another name."
            )
        given, self.probe = self.probe, probe_from_state(state["probe"])
        # Rows that were given belong to no dataset.
        self._saved = given is None and known
        if given is not None and fingerprint(given) != fingerprint(self.probe):
            rank_zero_warn(
                "ExplanationMonitor goes on with the probe rows of the checkpoint, which are not those it was given. "
                "To explain other rows, give the monitor another name."
            )
