"""Settings of torch that decide the last digits of a number in; the same settings, in another process, out."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cuda, mha

_PRECISIONS = (
    "",
    "cuda.matmul",
    "cudnn",
    "cudnn.conv",
    "cudnn.rnn",
    "mkldnn",
    "mkldnn.matmul",
    "mkldnn.conv",
    "mkldnn.rnn",
)
"""What has a ``fp32_precision`` from torch 2.9 on; each after what it takes over where it has none of its own."""
_ATTRIBUTES = (
    *(("cudnn", name) for name in ("enabled", "benchmark", "deterministic", "allow_tf32")),
    ("cuda.matmul", "allow_tf32"),
    ("cuda.matmul", "allow_fp16_reduced_precision_reduction"),
    ("cuda.matmul", "allow_bf16_reduced_precision_reduction"),
    ("cuda.matmul", "allow_fp16_accumulation"),
    *(("mkldnn", name) for name in ("enabled", "deterministic", "allow_tf32")),
    ("opt_einsum", "enabled"),
    ("opt_einsum", "strategy"),
    # After the older interface, which sets some of them.
    *((owner, "fp32_precision") for owner in _PRECISIONS),
)
"""Attributes of ``torch.backends``."""
_SWITCHES: Mapping[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "flash_sdp": (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    "mem_efficient_sdp": (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    "math_sdp": (cuda.math_sdp_enabled, cuda.enable_math_sdp),
    "cudnn_sdp": (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
    "reduction_math_sdp": (cuda.fp16_bf16_reduction_math_sdp_allowed, cuda.allow_fp16_bf16_reduction_math_sdp),
    "linalg_library": (cuda.preferred_linalg_library, cuda.preferred_linalg_library),
    "blas_library": (cuda.preferred_blas_library, cuda.preferred_blas_library),
    "attention_fastpath": (mha.get_fastpath_enabled, mha.set_fastpath_enabled),
    "flush_denormal": (lambda: _flushes_denormal(), torch.set_flush_denormal),
}
"""What has a function that reads it, and one that sets it."""
_DENORMAL = 1e-39


def torch_settings() -> dict[str, Any]:
    """The number of threads, precision, determinism, kernels, and default type and device of this process."""
    with _without_warnings():
        return {
            "threads": torch.get_num_threads(),
            "precision": _found(torch.get_float32_matmul_precision),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "only_warns": torch.is_deterministic_algorithms_warn_only_enabled(),
            "dtype": torch.get_default_dtype(),
            "device": str(torch.get_default_device()),
            "switches": {name: _found(read) for name, (read, _) in _SWITCHES.items()},
            "backends": {f"{owner}.{name}": _backend(owner, name) for owner, name in _ATTRIBUTES},
        }


def set_torch_settings(settings: Mapping[str, Any], device: str | None = None) -> None:
    """Sets what :func:`torch_settings` returned; ``device``: the default device if it is an accelerator, ``None``: the same one."""
    with _without_warnings():
        if torch.get_num_threads() != settings["threads"]:
            torch.set_num_threads(settings["threads"])
        if settings["precision"] not in (None, _found(torch.get_float32_matmul_precision)):
            torch.set_float32_matmul_precision(settings["precision"])
        torch.use_deterministic_algorithms(settings["deterministic"], warn_only=settings["only_warns"])
        torch.set_default_dtype(settings["dtype"])
        _set_default_device(settings["device"], device)
        for name, (read, put) in _SWITCHES.items():
            value = settings["switches"][name]
            if value is not None and value != _found(read):
                put(value)
        for owner, name in _ATTRIBUTES:
            value = settings["backends"][f"{owner}.{name}"]
            if value is not None and value != _backend(owner, name):
                setattr(_owner(owner), name, value)


def compute_on(device: torch.device) -> None:
    """Makes a CUDA device the current one of this process, where ``tensor.cuda()`` goes; nothing for other devices."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def give_back_memory() -> None:
    """Gives the blocks that torch keeps for later back to the CUDA device, if this process uses one: another one may need them."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Without torch's advice to use only one of its two interfaces for precision."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _found(read: Callable[[], Any]) -> Any:
    """What a setting is; ``None`` where this torch has none, or its newer interface has set what the older one has no word for."""
    try:
        return read()
    except (AttributeError, RuntimeError):
        return None


def _set_default_device(wanted: str, instead: str | None) -> None:
    if instead is not None and torch.device(wanted).type not in ("cpu", "meta"):
        wanted = instead
    if wanted != str(torch.get_default_device()):
        torch.set_default_device(None if wanted == "cpu" else wanted)


def _flushes_denormal() -> bool:
    """Whether this thread takes numbers that are smaller than the smallest normal one for 0."""
    return not (torch.tensor([_DENORMAL], dtype=torch.float32, device="cpu") * 1).item()


def _backend(owner: str, name: str) -> Any:
    return _found(lambda: getattr(_owner(owner), name))


def _owner(path: str) -> Any:
    found: Any = torch.backends
    for name in filter(None, path.split(".")):
        found = getattr(found, name)
    return found
