"""What is found: reports, and what is published of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_explain.core.probe import Attribution, as_tuple

Image: TypeAlias = "NDArray[np.uint8]"
"""A picture: ``(H, W, 3)`` in 0..255."""


@dataclass(frozen=True)
class PassCount:
    """Samples sent through the model, counted."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: PassCount) -> PassCount:
        return PassCount(self.forward + other.forward, self.backward + other.backward)

    def __mul__(self, times: int) -> PassCount:
        return PassCount(self.forward * times, self.backward * times)


@dataclass(frozen=True, eq=False)
class Report:
    """What one explanation found. Tensors are on the CPU; samples are in the probe's order.

    Args:
        attributions: For each method what Captum returns: input-shaped, a tuple for several inputs; layer methods: the layer's own shape.
        scores: ``scores[metric][method]`` is ``(N,)``.
        standard_errors: ``standard_errors[metric][method]`` is ``(N,)``; a score that has none has no entry.
        outputs: The model's outputs at the samples, ``(N,)`` or ``(N, C)`` or larger.
        predictions: ``(N,)`` predicted classes; for one-number outputs whether the output is positive.
        targets: ``(N,)`` index of the explained output of each sample; 0 where the output is one number, -1 where no single index names it.
        ids: ``(N,)`` sample ids.
        passes: Samples sent through the model.
        seconds: Wall time of the explanation.
        failures: For each method or metric that failed, why.
        epoch: Epoch of the training run, if any.
        step: Optimiser step of the training run, if any.
        fingerprint: SHA-256 of the probe.
        maps: For methods whose attribution's shape does not tell how it lies on the image: the map ``(N, 1, h, w)`` that does, at
            the layer's resolution; an empty tuple if there is none.
        n_steps: For methods with ``n_steps="auto"``: points that each sample took, ``(N,)``.
        stage: ``"fit"``, ``"validate"`` or ``"test"``, inside a Trainer.
    """

    attributions: Mapping[str, Attribution]
    scores: Mapping[str, Mapping[str, Tensor]]
    standard_errors: Mapping[str, Mapping[str, Tensor]]
    outputs: Tensor
    predictions: Tensor
    targets: Tensor
    ids: Tensor
    passes: PassCount = PassCount()
    seconds: float = 0.0
    failures: Mapping[str, str] = field(default_factory=dict)
    epoch: int | None = None
    step: int | None = None
    fingerprint: str = ""
    maps: Mapping[str, tuple[Tensor, ...]] = field(default_factory=dict)
    n_steps: Mapping[str, Tensor] = field(default_factory=dict)
    stage: str | None = None

    def nonfinite(self) -> dict[str, list[int]]:
        """For each method the ids of the samples whose map or score is NaN or infinite."""
        return {name: self.ids[~self._finite(name)].tolist() for name in self.attributions}

    def _finite(self, method: str) -> Tensor:
        parts = [*as_tuple(self.attributions[method]), *(s[method] for s in self.scores.values() if method in s)]
        finite = [torch.isfinite(p).flatten(1).all(1) if p.ndim > 1 else torch.isfinite(p) for p in parts]
        return torch.stack(finite).all(0)

    def scalars(self) -> dict[str, float]:
        """``<metric>/<method>``: mean over finite samples; ``nonfinite/<method>``: number of the others; ``n_steps/<method>``: mean."""
        found = {f"n_steps/{method}": steps.double().mean().item() for method, steps in self.n_steps.items()}
        for metric, by_method in self.scores.items():
            for method, values in by_method.items():
                finite = values[torch.isfinite(values)]
                if len(finite):
                    found[f"{metric}/{method}"] = finite.double().mean().item()
        found.update({f"nonfinite/{k}": float(len(v)) for k, v in self.nonfinite().items()})
        return found

    def table(self) -> tuple[list[str], list[list[Any]]]:
        """Columns and one line per row and method: epoch, row, target, prediction, method, then every metric."""
        metrics = list(self.scores)
        lines = []
        for i, sample in enumerate(self.ids.tolist()):
            head = [self.epoch, sample, int(self.targets[i]), int(self.predictions[i])]
            for method in self.attributions:
                values = [self.scores[m][method][i].item() if method in self.scores[m] else None for m in metrics]
                lines.append([*head, method, *values])
        return ["epoch", "sample", "target", "prediction", "method", *metrics], lines


@dataclass(frozen=True, eq=False)
class Publication:
    """What the sinks write for one explanation.

    Args:
        name: The monitor's name: prefix of every tag.
        epoch: Epoch of the run.
        step: Optimiser step of the run: the x-axis.
        scalars: Full tag (``explain/infidelity/ig``) to value.
        pictures: Full tag (``explain/ig``) to a picture ``(H, W, 3)``.
        directions: Full tag to ``"min"``, ``"max"`` or ``"last"``: which value summarises the curve.
        report: The numbers behind it.
    """

    name: str
    epoch: int
    step: int
    scalars: Mapping[str, float]
    pictures: Mapping[str, Image]
    directions: Mapping[str, str]
    report: Report

    @property
    def stage(self) -> str:
        """``"validate"`` or ``"test"``; empty in training, whose steps are explained once each."""
        return "" if self.report.stage in (None, "fit") else self.report.stage

    @property
    def caption(self) -> str:
        """``epoch 3, step 120``."""
        return f"epoch {self.epoch}, step {self.step}"
