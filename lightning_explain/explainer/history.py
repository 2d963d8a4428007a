"""Maps of earlier explanations: the first and the previous map of every method, for metrics that compare over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lightning_explain.core.contracts import Modality
from lightning_explain.core.probe import Probe, Samples, all_finite, as_tuple
from lightning_explain.core.report import Report
from lightning_explain.modalities import of_probe
from lightning_explain.modalities.placement import arrange, onto

Maps: TypeAlias = "Mapping[str, tuple[Tensor, ...]]"


@dataclass(frozen=True, eq=False)
class History:
    """Maps of earlier explanations of the same samples, on the CPU, in their original precision.

    Maps are summed within each unit of the input; maps of layers keep the layer's resolution.

    Args:
        first: Each method's map in its first explanation.
        previous: Each method's map in its latest explanation.
        ids: ``(N,)`` sample ids.
        fingerprint: SHA-256 of the probe; samples of another probe have no history.
    """

    first: Maps = field(default_factory=dict)
    previous: Maps = field(default_factory=dict)
    ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    fingerprint: str = ""

    def followed_by(self, report: Report, probe: Probe) -> History:
        """Returns the history with one more explanation; methods that failed in it keep their earlier maps."""
        same = self.fingerprint == report.fingerprint
        found = _kept(report, probe)
        earlier, before = (self.first, self.previous) if same else ({}, {})
        return History(_filled(earlier, found), _filled(found, before), report.ids.clone(), report.fingerprint)

    def of(
        self, fingerprint: str, samples: Samples, modalities: tuple[Modality, ...]
    ) -> dict[str, dict[str, tuple[Tensor, ...]]]:
        """Returns the earlier maps of samples, in input space and on their device, for ``MetricInputs.history``.

        Args:
            fingerprint: SHA-256 of the probe.
            samples: Samples of that probe, in any order.
            modalities: What its inputs are.
        """
        if self.fingerprint != fingerprint:
            return {}
        index = samples.places_in(self.ids)
        kept = {"previous": self.previous, "first": self.first}
        return {when: _placed(maps, index, samples, modalities) for when, maps in kept.items()}

    def misplaced(self, probe: Probe) -> list[str]:
        """Returns the methods whose maps do not lie on these samples, as maps from elsewhere may not."""
        samples = tuple(x[:1] for x in as_tuple(probe.inputs))
        modalities = of_probe(probe)
        inputs = _unit_shaped(samples, modalities)

        def lies(maps: tuple[Tensor, ...]) -> bool:
            try:
                placed = onto(tuple(value[:1] for value in maps), inputs, modalities)
                return all(
                    torch.broadcast_shapes(m.shape, x.shape) == x.shape for m, x in zip(placed, inputs, strict=True)
                )
            except (RuntimeError, ValueError, IndexError):
                return False

        return sorted({name for maps in (self.first, self.previous) for name, value in maps.items() if not lies(value)})

    def without(self, methods: Sequence[str]) -> History:
        """Returns the history without the maps of these methods."""
        first, previous = ({k: v for k, v in maps.items() if k not in methods} for maps in (self.first, self.previous))
        return replace(self, first=first, previous=previous)

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint must hold; it loads with ``weights_only=True``."""
        return dict(vars(self))


def history_of(reports: Sequence[Report], probe: Probe) -> History:
    """Builds the history from reports of the same samples, the oldest first.

    Raises:
        TypeError: If one of them is not a report.
        ValueError: If they are of different probes.
    """
    found = History()
    if isinstance(reports, Report) or not isinstance(reports, Sequence):
        raise TypeError(f"history is a {type(reports).__name__}; give a list of reports, the oldest first.")
    for report in reports:
        if not isinstance(report, Report):
            raise TypeError(f"history holds a {type(report).__name__}; give a list of reports, the oldest first.")
        if found.fingerprint not in ("", report.fingerprint):
            raise ValueError("history holds reports of different probes; give those of one probe.")
        found = found.followed_by(report, probe)
    return found


def _kept(report: Report, probe: Probe) -> dict[str, tuple[Tensor, ...]]:
    found, inputs, modalities = {}, as_tuple(probe.inputs), of_probe(probe)
    for name, attribution in report.attributions.items():
        arranged = report.maps[name] if name in report.maps else arrange(as_tuple(attribution), inputs, modalities)
        if arranged:
            summed = (modality.by_unit(value) for modality, value in zip(modalities, arranged, strict=True))
            found[name] = tuple(value.detach().to("cpu", copy=True) for value in summed)
    return found


def _filled(maps: Maps, others: Maps) -> dict[str, tuple[Tensor, ...]]:
    """Returns the maps, completed from ``others`` where a map is missing or not finite."""
    both = {name: tuple(map(_by_sample, maps[name], others[name])) for name in maps if name in others}
    return {**others, **maps, **both}


def _by_sample(value: Tensor, other: Tensor) -> Tensor:
    if value.shape != other.shape:
        return value
    return torch.where(all_finite(value).reshape(-1, *(1,) * (value.ndim - 1)), value, other)


def _placed(
    maps: Maps, index: Tensor, samples: Samples, modalities: tuple[Modality, ...]
) -> dict[str, tuple[Tensor, ...]]:
    device = samples.inputs[0].device
    inputs = _unit_shaped(samples.inputs, modalities)
    return {
        name: onto(tuple(value[index].to(device) for value in found), inputs, modalities)
        for name, found in maps.items()
    }


def _unit_shaped(inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...]) -> tuple[Tensor, ...]:
    """Returns tensors with one number for each unit of the inputs, as maps have."""
    return tuple(x.new_empty(modality.units(x)) for modality, x in zip(modalities, inputs, strict=True))
