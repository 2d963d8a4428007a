"""Share: a map of several inputs in, how much of it lies on each of them out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method, Metric, MetricInputs, Modality, Score
from lightning_explain.core.naming import unlike
from lightning_explain.core.probe import flat
from lightning_explain.engine.noise import wide


@dataclass(frozen=True)
class Share(Metric):
    r"""Share of the absolute map on each of several inputs (Parcalabescu & Frank 2023), such as an image and a table.

    Each input is a score, ``_image`` for example, after its argument or entry of the batch; ``_input_0`` where inputs have no names.

    Formula: \frac{\sum_{i \in \text{input}} |\phi_i|}{\sum_i |\phi_i|}
    Chance: none: a large input has more units, over which noise adds up.
    Cost: 0 forward, 0 backward.
    Not for: a single input, all of whose map lies on it; maps of a layer, which lie on one input; gradients of inputs with different
        units, such as pixels and years: use a map that is multiplied by the input, such as that of IntegratedGradients.

    Args:
        inputs: The names of the inputs. Default: as the batch says.

    Example:
        >>> from lightning_explain import Probe
        >>> class Sum(torch.nn.Module):
        ...     def forward(self, image, meta):
        ...         return image.flatten(1).sum(1) + 3 * meta.sum(1)
        >>> both = Probe({"image": torch.ones(2, 1, 2, 2), "meta": torch.ones(2, 4)})
        >>> report = explain(Sum(), both, methods=[m.InputXGradient()], metrics=[q.Share()])
        >>> report.scores["share_meta"]["input_x_gradient"]
        tensor([0.7500, 0.7500])
        >>> report.scores["share_image"]["input_x_gradient"].shape
        torch.Size([2])
    """

    inputs: tuple[str, ...] | None = None

    bounds: ClassVar[tuple[float | None, float | None]] = (0.0, 1.0)
    needs: ClassVar[str] = "a map on each of several inputs"
    comparable = True
    maps_only = True

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The names of the inputs, as tags can hold them."""
        return tuple(unlike("_".join(name.replace("/", "_").split()) for name in self.inputs or ()))

    @property
    def undefined(self) -> Mapping[str, str]:  # type: ignore[override]
        """No input has a share of a map of zeros."""
        return dict.fromkeys(self.suffixes, "the map is zero everywhere")

    def named(self, names: Sequence[str]) -> Share:
        """With the names of the inputs, unless some are given."""
        return replace(self, inputs=tuple(names)) if self.inputs is None else self

    def fitted(self, inputs: tuple[Tensor, ...], modalities: tuple[Modality, ...]) -> Share:
        """Itself, if there are several inputs; without any, if there is one.

        Raises:
            ValueError: If there are several, and another number of names.
        """
        if len(inputs) < 2:
            return replace(self, inputs=())
        if len(self.suffixes) != len(inputs):
            raise ValueError(f"Share(inputs={self.inputs!r}) for {len(inputs)} inputs; give a name for each, or none")
        return self

    def scored(self, methods: Sequence[str], maps: Sequence[str], references: object) -> Sequence[str]:
        """All methods with a map in input space, if there are several inputs."""
        return maps if self.inputs else ()

    def can_score(self, method: Method, explained: ExplainedFunction) -> bool:
        """Whether its map lies on all inputs: that of a single layer lies on one."""
        inner = method.innermost
        return not inner.layer_shaped or len(inner.layers) > 1

    def score(self, metric_inputs: MetricInputs) -> Mapping[str, Mapping[str, Score]]:
        """Of each input in 0..1, without unit; of all inputs together 1. A map of zeros gives NaN."""
        inputs, modalities = metric_inputs.samples.inputs, metric_inputs.explained.modalities
        found: dict[str, dict[str, Score]] = {suffix: {} for suffix in self.suffixes}
        for name, maps in metric_inputs.maps.items() if found else ():
            columns = zip(maps, inputs, modalities, strict=True)
            units = [flat(modality.by_unit(part).expand(modality.units(x))) for part, x, modality in columns]
            sizes = torch.stack([wide(part).abs().sum(1) for part in units], 1)
            shares = (sizes / sizes.sum(1, keepdim=True)).to(metric_inputs.outputs.dtype)
            for suffix, share in zip(found, shares.unbind(1), strict=True):
                found[suffix][name] = share, None
        return found
