"""What preflight recorded of a model of videos in; how its first convolution takes them, and whether frames are among the samples, out."""

from __future__ import annotations

from contextlib import suppress

import torch
from torch import Tensor, nn

from lightning_explain.core.contracts import Modality
from lightning_explain.core.record import Record
from lightning_explain.distributed.fsdp import is_sharded
from lightning_explain.modalities import Video


def layout_of(x: Tensor, model: nn.Module, record: Record) -> tuple[str | None, bool]:
    """How the first convolution that takes ``x`` ``(N, ...)`` of five dimensions does, and whether it takes frame by frame."""
    modules = {id(module): module for module in model.modules()}
    for key, passed in record.received.items():
        module = modules.get(key)
        if not isinstance(module, (nn.Conv2d, nn.Conv3d)):
            continue
        for value in (tensor.detach() for tensor in passed.tensors):
            for layout, frames in (("NTCHW", x), ("NCTHW", x.transpose(1, 2))):
                if isinstance(module, nn.Conv2d) and _takes(value, frames):
                    return layout, True
                if isinstance(module, nn.Conv3d) and _same(value, frames.transpose(1, 2)):
                    return layout, False
    return None, False


def _takes(value: Tensor, frames: Tensor) -> bool:
    """Whether a tensor holds all frames ``(N, T, C, H, W)``, in one of both orders, or those of one time."""
    orders = frames.flatten(0, 1), frames.transpose(0, 1).flatten(0, 1)
    return any(_same(value, found) for found in (*orders, *frames.unbind(1)))


def _same(value: Tensor, other: Tensor) -> bool:
    return value.shape == other.shape and torch.equal(value, other)


def frames_among_samples(model: nn.Module, record: Record, modalities: tuple[Modality, ...]) -> int:
    """How many tensors layers have for each sample, one after the other, because the model puts the frames of a video there; else 1.

    A sample must depend on its own ones alone.
    """
    count, columns = len(record.samples), zip(modalities, record.samples.inputs, strict=True)
    times = [modality.grid(x)[0] for modality, x in columns if isinstance(modality, Video)]
    found = [
        passed.value
        for passed in record.returned.values()
        if isinstance(passed.value, Tensor) and passed.value.requires_grad and passed.value.ndim > 1
    ]
    for frames in times:
        layers = [value for value in found if len(value) == frames * count]
        if frames > 1 and count > 1 and layers and not is_sharded(model) and record.chosen.requires_grad:
            places = _reaching(record.chosen[1], layers[-1])
            if places and frames <= min(places) and max(places) < 2 * frames:
                return frames
    return 1


def _reaching(output: Tensor, value: Tensor) -> list[int]:
    """The entries of a layer's tensor that an output depends on; none if that is not known."""
    with suppress(RuntimeError):
        (gradient,) = torch.autograd.grad(output, value, retain_graph=True, allow_unused=True)
        found: list[int] = [] if gradient is None else gradient.flatten(1).any(1).nonzero().flatten().tolist()
        return found
    return []
