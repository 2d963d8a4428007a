"""Turns a feature mask as the user writes it into numbered features: the elements of an input that change together."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from lightning_explain.core.contracts import ExplainedFunction, Modality
from lightning_explain.core.probe import Samples, flat
from lightning_explain.core.validation import is_whole, one_for_each
from lightning_explain.engine.baselines import fitted

if TYPE_CHECKING:
    FeatureMask: TypeAlias = None | Tensor | Mapping[str, int] | Sequence[Any]
else:
    FeatureMask = Any  # OmegaConf reads the annotations of dataclasses, and refuses unions with containers.

KINDS = frozenset({"grid", "superpixels"})
_WAYS = (
    'None (each element is a feature), an integer tensor, {"grid": 8} or {"superpixels": 50} (whole numbers above 0)'
)


def check_feature_mask(owner: str, spec: FeatureMask) -> None:
    """Checks a feature mask as the user writes it, before any sample is known.

    Args:
        owner: The method and its argument, for messages: ``"FeatureAblation(feature_mask"``.
        spec: The mask as the user writes it.

    Raises:
        ValueError: If the kind is unknown, its number is not positive, or a tensor is not of an integer dtype.
        TypeError: If it is of another type.
    """
    if isinstance(spec, (tuple, list)):
        for part in spec:
            check_feature_mask(owner, part)
    elif isinstance(spec, Mapping):
        if len(spec) != 1 or not KINDS.issuperset(spec) or not all(is_whole(number, 1) for number in spec.values()):
            raise ValueError(f"{owner}={dict(spec)!r}); give {_WAYS}.")
        if "superpixels" in spec:
            _slic()
    elif isinstance(spec, Tensor):
        if spec.is_floating_point() or spec.is_complex():
            raise ValueError(f"{owner}=...) is a tensor of {spec.dtype}; number features in an integer tensor.")
    elif spec is not None:
        raise TypeError(f"{owner}=...) is a {type(spec).__name__}; give {_WAYS}, or one of these for each input.")


@dataclass(frozen=True, eq=False)
class Features:
    """Numbered features of some samples.

    Args:
        masks: For each input the feature number of each element: ``(1, ...)`` if all samples have the same features, else ``(N, ...)``.
        count: Features are numbered ``0..count-1``; where masks differ between samples, a sample may lack the last numbers.
    """

    masks: tuple[Tensor, ...]
    count: int


def features_of(spec: FeatureMask, explained: ExplainedFunction, samples: Samples) -> Features:
    """Returns the features of the samples, renumbered without gaps.

    The same number in the tensors of several inputs is one feature, as in Captum. Patches and superpixels of different
    inputs are different features.

    Args:
        spec: ``None``, a tensor (without a sample dimension, with one of size 1, or with one mask for each sample of the
            probe), ``{"grid": 8}`` (patches of 8 by 8 pixels, the same in all channels), ``{"superpixels": 50}`` (about 50 SLIC
            segments of each clean sample), or one of these for each input.
        explained: The explained function; its probe has all samples.
        samples: The samples.

    Raises:
        ValueError: If the mask does not fit the inputs.
    """
    specs = one_for_each("feature_mask", spec, len(samples.clean))
    if isinstance(spec, Tensor) and len(samples.clean) > 1:
        raise ValueError(f"feature_mask is one tensor for {len(samples.clean)} inputs; give one for each input.")
    return _numbered(list(_raw(specs, explained, samples)))


def shared(
    found: tuple[Tensor, ...], spec: FeatureMask, explained: ExplainedFunction, samples: Samples
) -> tuple[Tensor, ...]:
    """The numbers of features, in equal shares at the elements of each where no mask is given: they add up in the units of the inputs."""
    if spec is not None or [part.shape for part in found] != [x.shape for x in samples.inputs]:
        return found
    parts = []
    for values, modality in zip(found, explained.modalities, strict=True):
        numbers = modality.features(values)
        counts = torch.bincount(numbers.flatten())[numbers]
        parts.append(values / counts if bool((counts > 1).any()) else values)
    return tuple(parts)


def _raw(specs: Sequence[Any], explained: ExplainedFunction, samples: Samples) -> Iterator[Tensor]:
    """Yields masks with their original numbers; generated masks get numbers that no mask before them has."""
    taken = max((int(s.max()) + 1 for s in specs if isinstance(s, Tensor) and s.numel()), default=0)
    for i, (spec, clean, modality) in enumerate(zip(specs, samples.clean, explained.modalities, strict=True)):
        if isinstance(spec, Tensor):
            yield fitted(f"feature_mask of input {i}", spec, samples, clean, explained.probe.ids).long()
            continue
        made = _made(spec, clean, modality, explained) + taken
        taken = int(made.max()) + 1 if made.numel() else taken
        yield made


def _made(spec: Mapping[str, int] | None, clean: Tensor, modality: Modality, explained: ExplainedFunction) -> Tensor:
    if spec is None:
        return modality.features(clean)
    ((kind, number),) = spec.items()
    if (size := modality.grid(clean)) is None:
        what = "a grid needs" if kind == "grid" else "superpixels need"
        raise ValueError(f"{what} images (N, C, H, W), got {tuple(clean.shape)}; give a tensor as feature_mask.")
    if kind == "grid":
        cells = _cells(size, number, clean).reshape(1, *modality.units(clean)[1:])
        return modality.spread(cells, clean).expand(1, *clean.shape[1:])
    if modality.units(clean)[1] > 1:
        raise ValueError(
            f"superpixels need channels first, got {tuple(clean.shape)}; give a grid or a tensor as feature_mask."
        )
    segments = [_superpixels(sample, number, explained) for sample in clean]
    return torch.stack([s.to(clean.device).expand(clean.shape[1:]) for s in segments])


def _cells(size: tuple[int, ...], number: int, like: Tensor) -> Tensor:
    """The number of the patch, or cube, with ``number`` units a side that each unit of a grid of this size lies in."""
    found = torch.zeros((1,) * len(size), dtype=torch.long, device=like.device)
    for axis, n in enumerate(size):
        at = torch.arange(n, device=like.device) // number
        found = found * (int(at[-1]) + 1) + at.reshape([n if i == axis else 1 for i in range(len(size))])
    return found


def _superpixels(sample: Tensor, count: int, explained: ExplainedFunction) -> Tensor:
    """Returns the SLIC segments ``(H, W)`` of one clean sample ``(C, H, W)``, or of a volume; computed once per explanation."""
    image = sample.detach().float().cpu().movedim(0, -1).contiguous().numpy()
    key = ("superpixels", count, image.shape, blake2b(image.tobytes()).digest())
    # Colors in Lab space differ by up to 100, other channels by up to about 1.
    color = image.shape[-1] == 3 and image.ndim == 3
    options = {"compactness": 10.0 if color else 0.1, "convert2lab": color, "start_label": 0, "channel_axis": -1}
    return explained.remembered(key, lambda: torch.from_numpy(_slic()(image, n_segments=count, **options)).long())


def _slic() -> Any:
    try:
        return importlib.import_module("skimage.segmentation").slic
    except ImportError as error:
        fix = 'pip install "lightning-explain[superpixels]", or use {"grid": 8}'
        raise ImportError(f"superpixels need scikit-image: {fix}.") from error


def _numbered(masks: list[Tensor]) -> Features:
    count = max(len(mask) for mask in masks)
    joined = torch.cat([flat(mask.expand(count, *mask.shape[1:])) for mask in masks], 1)
    numbers = torch.stack([torch.unique(sample, return_inverse=True)[1] for sample in joined])
    parts = numbers.split([mask[0].numel() for mask in masks], 1)
    shaped = tuple(part.reshape(count, *mask.shape[1:]) for part, mask in zip(parts, masks, strict=True))
    return Features(shaped, int(numbers.max()) + 1)
