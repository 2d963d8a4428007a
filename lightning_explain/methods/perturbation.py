"""Methods that only look forward: they change the input and watch the output."""

from __future__ import annotations

from dataclasses import dataclass

from captum import attr as captum

from lightning_explain.baselines import check_baseline
from lightning_explain.methods._captum import attribute, freeze
from lightning_explain.types import Attribution, Baseline, Rows, Subject, bare

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Occlusion:
    """How far the output falls when a window of the input is replaced by the baseline (Zeiler & Fergus 2013; ``captum.attr.Occlusion``).

    Args:
        sliding_window_shapes: The window without the row dimension, e.g. ``(3, 8, 8)``; for several inputs a tuple of them.
        strides: How far the window moves in each dimension; a number for all of them; by default 1. Cost: one forward row for each
            position and row.
        baselines: What replaces the window: zero, a number, a tensor, ``"black"``, ``"mean"``, ``"blur"``.

    Raises:
        ValueError: If a window or stride is not positive, or the baseline is unknown.
    """

    sliding_window_shapes: Shape | tuple[Shape, ...] = (1, 4, 4)
    strides: int | Shape | tuple[Shape, ...] | None = None
    baselines: Baseline = None

    def __post_init__(self) -> None:
        freeze(self)
        check_baseline(self.baselines)
        for name in ("sliding_window_shapes", "strides"):
            value = getattr(self, name)
            if value is not None and not _positive(value):
                raise ValueError(f"Occlusion({name}={value!r}); allowed: whole numbers of at least 1, e.g. (3, 8, 8).")

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Input-shaped, in units of output."""
        return attribute(
            captum.Occlusion(subject.forward).attribute,
            rows,
            sliding_window_shapes=self.sliding_window_shapes,
            strides=self.strides,
            baselines=bare(subject.baseline(self.baselines, rows)),
            perturbations_per_eval=max(1, subject.limit // len(rows)),
        )


def _positive(value: object) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(_positive(v) for v in value)
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
