"""An explanation to be made beside a training in: a module, what explains it, everything else that decides its numbers; its report out.

The training process makes a :class:`Job`, and ``worker.py`` does it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from lightning_explain.core.probe import Probe
from lightning_explain.core.random_state import set_cuda_generators
from lightning_explain.core.report import Report
from lightning_explain.core.torch_settings import compute_on, set_torch_settings
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.history import History
from lightning_explain.loggers.tags import numberless, without
from lightning_explain.monitor.drawing import Drawing, Made
from lightning_explain.monitor.lightning import silenced
from lightning_explain.probes.child import portable_error

Progress = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Job:
    """One explanation: everything that decides its numbers, as it is at that moment.

    Args:
        module: The module.
        explainer: What explains it.
        probe: The samples.
        history: Maps of earlier explanations.
        drawing: What draws and saves the report.
        dated: What the report says of its moment, its run and its samples.
        measures: Whether the fastest number of samples in a pass is still to be found.
        settings: Those of torch.
        generators: Functions that set the random generators of the CPU as they are in the training.
        cuda_generators: The states of those of all CUDA devices; empty if the training has not used any.
    """

    module: pl.LightningModule
    explainer: Explainer
    probe: Probe
    history: History
    drawing: Drawing
    dated: Mapping[str, Any]
    measures: bool
    settings: Mapping[str, Any]
    generators: Sequence[Callable[[], Any]] = ()
    cuda_generators: Sequence[Tensor] = ()

    def begin(self, device: str | None) -> None:
        """Sets everything as it was; ``device``: where to compute, ``None``: where the module is."""
        set_torch_settings(self.settings, device)
        for put in self.generators:
            put()
        former = self.module.device
        if device is not None:
            self.module.to(device)
        compute_on(self.module.device)
        set_cuda_generators(self.cuda_generators, former, self.module.device)

    def done(self, progress: Progress) -> Done:
        """Explains, draws and saves; finds the fastest number of samples in a pass before, if it is not known."""
        explainer, dated, metrics = self.explainer, dict(self.dated), self.explainer.metrics
        with silenced(self.module):
            if self.measures:
                explainer = explainer.fastest(self.module, self.probe)
            found = explainer.explain(self.module, self.probe, progress, self.history)
        limit, run = explainer.pass_size, dated["run"]
        if run is not None and (self.measures or limit < self.explainer.limit):
            dated["run"] = replace(run, pass_size=limit)
        report = replace(without(found, found.failures, metrics), **dated)
        report.scalars()  # If its scores cannot be averaged, the explanation has failed.
        made = self.drawing.make(report, self.probe).map_errors(portable_error)
        return Done(report, made, limit, frozenset(numberless(found, metrics)))


@dataclass(frozen=True, eq=False)
class Done:
    """What became of a job.

    Args:
        report: The report, without the maps and scores of what failed, which its ``failures`` name.
        made: Its pictures and files.
        limit: The most samples in a pass, which fit into memory.
        empty: Methods and metrics without a finite number.
        warnings: What was warned of, with its category.
    """

    report: Report
    made: Made
    limit: int
    empty: frozenset[str] = frozenset()
    warnings: list[tuple[str, type[Warning]]] = field(default_factory=list)
