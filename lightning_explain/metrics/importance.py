"""Importance: a map in, the mean absolute attribution of each named feature, such as a column of a table, out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import Metric, MetricInputs, Modality, Score
from lightning_explain.core.naming import nearest, unlike
from lightning_explain.core.validation import check_whole
from lightning_explain.engine.arguments import CheckedArguments
from lightning_explain.engine.noise import wide
from lightning_explain.metrics._ranking import relevance
from lightning_explain.modalities import named_features

_MOST = 256
"""The most features, each of which is a score of its own."""


@dataclass(frozen=True)
class Importance(CheckedArguments, Metric):
    r"""Mean absolute attribution of each named feature (Lundberg and Lee 2017): a column or group of columns, or a channel of a series.

    Each feature is a score, ``_age`` for example. Reports have all of them; dashboards have a chart for each method, with curves of its
    ``curves`` strongest features. A feature that becomes one of them later gets its curve then, and a curve that has begun goes on.

    Formula: \frac{\sum_{i \in \text{feature}} |\phi_i|}{\sum_i |\phi_i|}
    Chance: one over the number of features, of equally long channels, with ``normalize=True``.
    Cost: 0 forward, 0 backward.
    Not for: text and images, which have no features in common; categories that only one of many columns tells, which are to be
        grouped: ``Tabular(groups=...)``.

    Args:
        normalize: Divide by the sample's absolute attributions of all features, so that curves do not follow the scale of the output.
            ``False``: the mean absolute attribution, as a plot of shap shows it, in units of the output.
        curves: Of how many features each method has a curve.
        features: Names of the features to score; a checkpoint or an alert can watch only what is named here. Default: all.

    Raises:
        ValueError: If ``curves`` is less than 1; before the first explanation, if there is no such feature, or there are more than 256.
        TypeError: If ``normalize`` is not a bool, or ``features`` no list of names.

    Example:
        >>> from lightning_explain import Probe
        >>> from lightning_explain.modalities import Tabular
        >>> table = Probe(torch.tensor([[43.0, 1.5], [31.0, 0.5]]), modalities=Tabular(feature_names=["age", "income"]))
        >>> report = explain(torch.nn.Linear(2, 1), table, methods=[m.InputXGradient()], metrics=[q.Importance()])
        >>> report.scores["importance_age"]["input_x_gradient"].shape
        torch.Size([2])
    """

    normalize: bool = True
    curves: int = 10
    features: tuple[str, ...] | None = None

    needs: ClassVar[str] = "an input with named features: columns of a table, channels of a series"
    maps_only = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_whole("Importance", "curves", self.curves)
        given = self.features
        if given is not None and not (isinstance(given, tuple) and all(isinstance(name, str) for name in given)):
            raise TypeError(f"Importance(features={given!r}); give a list of names.")

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The names of the features, without what no tag can hold."""
        return tuple(unlike([name.replace("/", "_") for name in self.features or ()]))

    @property
    def comparable(self) -> bool:
        """Whether scores are shares."""
        return self.normalize

    @property
    def undefined(self) -> Mapping[str, str]:  # type: ignore[override]
        """No feature has a share of a map of zeros."""
        return dict.fromkeys(self.suffixes, "the map is zero everywhere") if self.normalize else {}

    def fitted(self, inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...]) -> Importance:
        """With the names of all features, unless some are given; without any, if the inputs have none."""
        known = named_features(inputs, modalities)
        for name in (self.features or ()) if known else ():
            if name not in known:
                raise ValueError(f"there is no feature {name!r}: {nearest(name, known)}")
        if self.features is None and len(known) > _MOST:
            raise ValueError(
                f"{len(known)} features are more than {_MOST}; name those to score: Importance(features=[{known[0]!r}, ...])"
            )
        return replace(self, features=tuple(known) if self.features is None or not known else self.features)

    def scored(self, methods: Sequence[str], maps: Sequence[str], references: object) -> Sequence[str]:
        """All methods with a map in input space, if there are features."""
        return maps if self.features else ()

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """Of each feature: in 0..1, without unit; in units of output, at least 0, with ``normalize=False``. A map of zeros gives NaN."""
        inputs, modalities = metric_inputs.samples.inputs, metric_inputs.explained.modalities
        known = named_features(inputs, modalities)
        places = [known.index(name) for name in self.features or ()]
        found: dict[str, dict[str, Score]] = {suffix: {} for suffix in self.suffixes}
        for name, maps in metric_inputs.maps.items() if places else ():
            columns = zip(maps, inputs, modalities, strict=True)
            parts = [mod.by_name(mod.by_unit(part).expand(mod.units(x)).abs(), x) for part, x, mod in columns]
            sizes = torch.cat([wide(part) for part in parts], 1)
            if self.normalize:
                sizes = sizes / wide(relevance({name: maps}, metric_inputs, True)[name]).sum(1, keepdim=True)
            for suffix, place in zip(found, places, strict=True):
                found[suffix][name] = sizes[:, place].to(metric_inputs.outputs.dtype), None
        return found
