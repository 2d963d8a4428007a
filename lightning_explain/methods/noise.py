"""NoiseTunnel: any method, averaged over noisy copies of the input."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from lightning_explain.methods._captum import check_positive, freeze
from lightning_explain.methods._cloud import Stdevs, add_noise, check_stdevs, mean_over_draws, narrowed
from lightning_explain.methods.gradient import Saliency
from lightning_explain.types import Attribution, Method, Rows, Subject, as_tuple, bare

_TYPES = ("smoothgrad", "smoothgrad_sq", "vargrad")


@dataclass(frozen=True)
class NoiseTunnel:
    """A method averaged over noisy inputs (Smilkov et al. 2017, Adebayo et al. 2018; ``captum.attr.NoiseTunnel``).

    Captum's formula with this package's own draws, which belong to the row, so that curves move only because the model did.

    Cost: nt_samples * inside forward, nt_samples * inside backward; inside is the cost of the method inside.
    Signed: as the method inside; no with ``smoothgrad_sq`` and ``vargrad``.
    Not for: noise as large as the signal: 1.0 drowns normalized images, Smilkov et al. take 0.1 to 0.2 of the range;
        Infidelity with ``smoothgrad_sq`` or ``vargrad``, which have no sign.

    Args:
        attribution_method: The method inside.
        nt_type: ``smoothgrad`` (mean), ``smoothgrad_sq`` (mean of squares) or ``vargrad`` (variance).
        nt_samples: Noisy copies.
        nt_samples_batch_size: Noisy copies of a row in one call; by default as many as the pass limit allows.
        stdevs: Standard deviation of the noise, in units of the input, one number or one for each input.

    Raises:
        ValueError: If an argument is not allowed.
        TypeError: If ``attribution_method`` is not a method.
    """

    attribution_method: Method = field(default_factory=lambda: Saliency(abs=False))
    nt_type: str = "smoothgrad"
    nt_samples: int = 5
    nt_samples_batch_size: int | None = None
    stdevs: Stdevs = 1.0

    def __post_init__(self) -> None:
        freeze(self)
        if not isinstance(self.attribution_method, Method):
            raise TypeError(
                f"NoiseTunnel(attribution_method={self.attribution_method!r}) is not a method; give one of "
                "lightning_explain.methods, e.g. Saliency(abs=False)."
            )
        if self.nt_type not in _TYPES:
            raise ValueError(f"NoiseTunnel(nt_type={self.nt_type!r}); allowed: {', '.join(_TYPES)}.")
        check_positive("NoiseTunnel(nt_samples", self.nt_samples)
        if self.nt_samples_batch_size is not None:
            check_positive("NoiseTunnel(nt_samples_batch_size", self.nt_samples_batch_size)
        check_stdevs("NoiseTunnel", self.stdevs)

    @property
    def layer(self) -> str | None:
        """The layer of the method inside, if it has one."""
        return getattr(self.attribution_method, "layer", None)

    def focused(self, subject: Subject) -> Subject:
        """The subject whose function is explained: that of the method inside."""
        focused = getattr(self.attribution_method, "focused", None)
        return subject if focused is None else focused(subject)

    def attribute(self, subject: Subject, rows: Rows) -> Attribution:
        """Shaped and in units as the method inside; squared for ``smoothgrad_sq`` and ``vargrad``."""

        def one(part: Rows, indices: Tensor) -> tuple[Tensor, ...]:
            noisy = part.at(add_noise(subject, part, indices, self.stdevs)).draw(indices)
            return as_tuple(self.attribution_method.attribute(subject, noisy))

        first, second = mean_over_draws(subject, rows, self.nt_samples, one, (1, 2), self.nt_samples_batch_size)
        if self.nt_type == "vargrad":
            second = tuple(s - f * f for f, s in zip(first, second, strict=True))
        return bare(narrowed(first if self.nt_type == "smoothgrad" else second, rows))
