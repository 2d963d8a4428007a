"""NoiseTunnel: any method in, its map averaged over noisy copies of the input out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.points import Path, Read, Reducer, path_of
from lightning_explain.core.probe import Attribution, Samples, as_tuple, bare
from lightning_explain.core.validation import check_whole, refused
from lightning_explain.engine.noise import Scale, add_noise, mean_over_draws, narrowed, scales, wide
from lightning_explain.engine.paths import Cloud
from lightning_explain.methods._base import OnPath, added, each
from lightning_explain.methods.gradient import Saliency

_SALIENCY = Saliency(abs=False)


@dataclass(frozen=True)
class NoiseTunnel(OnPath):
    r"""Map of a method averaged over noisy inputs (Smilkov et al. 2017, Adebayo et al. 2018; ``captum.attr.NoiseTunnel``).

    Follows Captum's formula with random draws keyed by sample id: every explanation repeats the same draws, so a curve
    moves only when the model changes.

    Formula: \phi = \frac{1}{n} \sum_{k=1}^{n} \phi^{\text{inside}}(x + \varepsilon_k),\quad \varepsilon_k \sim
        \mathcal{N}(0, \sigma^2)
    Cost: nt_samples * inside forward, nt_samples * inside backward; inside is the cost of the method inside.
    Signed: as the method inside; no with ``smoothgrad_sq`` and ``vargrad``.
    Not for: noise as large as the signal: 1.0 drowns normalized images, Smilkov et al. use 0.1 to 0.2 of the range;
        Infidelity with ``smoothgrad_sq`` or ``vargrad``, which have no sign.

    Args:
        attribution_method: The method inside.
        nt_type: ``smoothgrad`` (mean), ``smoothgrad_sq`` (mean of squares) or ``vargrad`` (variance).
        nt_samples: Noisy copies of each sample.
        nt_samples_batch_size: Noisy copies of a sample in one call, for a method inside that runs through Captum. Other
            methods fill passes up to ``max_examples_per_pass``; lower that to make their passes smaller.
        stdevs: Standard deviation of the Gaussian noise: a number in units of the input, ``"std"`` (the standard deviation
            of each number of the input over the samples that ``Probe.stds`` tells; ``"0.1 std"`` for a tenth of it), a
            tensor ``(1, ...)``, or a tuple with one of these for each input. Default: ``"std"`` for tables and series, if
            it is known; otherwise 1.
        antithetic: Draw the copies in pairs with opposite noise, x + e and x - e, whose errors partly cancel: a smaller error for the
            same copies where the method inside is smooth. The mean of a pair, not the copy, is then one independent draw.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If ``attribution_method`` is not a method.

    Example:
        >>> method = m.NoiseTunnel(m.Saliency(abs=False), nt_samples=4, stdevs=0.1)
        >>> report = explain(model, probe, methods=[method], metrics=[])
        >>> report.attributions["noise_tunnel"].shape
        torch.Size([2, 3, 8, 8])
    """

    attribution_method: Method = _SALIENCY
    nt_type: str = "smoothgrad"
    nt_samples: int = 5
    nt_samples_batch_size: int | None = None
    stdevs: Scale = None
    antithetic: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.attribution_method, Method):
            allowed = "a method of lightning_explain.methods, e.g. Saliency(abs=False)"
            raise refused("NoiseTunnel", "attribution_method", self.attribution_method, allowed, TypeError)
        # The variance over a single copy is zero.
        check_whole("NoiseTunnel", "nt_samples", self.nt_samples, least=2 if self.nt_type == "vargrad" else 1)
        if self.antithetic and self.nt_samples % 2:
            allowed = "an even number with antithetic=True, because copies come in pairs"
            raise refused("NoiseTunnel", "nt_samples", self.nt_samples, allowed)
        check_whole("NoiseTunnel", "nt_samples_batch_size", self.nt_samples_batch_size, also=(None,))

    def fits(self, explained: ExplainedFunction, samples: Samples, activation: Any) -> None:
        """Refuses noise whose size does not fit the inputs.

        Raises:
            ValueError: If it does not.
        """
        scales(explained, samples, "stdevs", self.stdevs)

    @property
    def path(self) -> Path | None:
        """The path of the method inside at each noisy copy; ``None`` if that method has no path."""
        around = path_of(self.attribution_method)
        return None if around is None else Cloud(self.nt_samples, self.stdevs, around, self.antithetic)

    @property
    def reads(self) -> frozenset[Read]:
        """What the method inside reads."""
        return self.attribution_method.reads

    def reduce(self, explained: ExplainedFunction, samples: Samples) -> Reducer:
        """Shaped and in units as the method inside; squared for ``smoothgrad_sq`` and ``vargrad``."""
        inner: Any = self.attribution_method
        total: tuple[Tensor, ...] = ()
        for _ in range(self.nt_samples):
            found = each(wide, (yield from inner.reduce(explained, samples)))
            total = added(total, (*found, *each(torch.square, found)))
        means, half = [t / self.nt_samples for t in total], len(total) // 2
        return self._finished(means[:half], means[half:], samples)

    def _finished(self, first: Iterable[Tensor], second: Iterable[Tensor], samples: Samples) -> tuple[Tensor, ...]:
        """The map, from the means over the copies of the maps and of their squares."""
        if self.nt_type == "vargrad":
            second = each(lambda f, s: s - f * f, first, second)
        return narrowed(tuple(first if self.nt_type == "smoothgrad" else second), samples)

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Shaped and in units as the method inside; squared for ``smoothgrad_sq`` and ``vargrad``."""
        if self.path is not None:
            return super().attribute(explained, samples)

        def one(part: Samples, indices: Tensor) -> tuple[Tensor, ...]:
            noisy = part.at(add_noise(explained, part, indices, self.stdevs, self.antithetic)).draw(indices)
            return as_tuple(self.attribution_method.attribute(explained, noisy))

        first, second = mean_over_draws(explained, samples, self.nt_samples, one, (1, 2), self.nt_samples_batch_size)
        return bare(self._finished(first, second, samples))
