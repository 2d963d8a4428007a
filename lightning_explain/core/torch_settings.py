"""Settings of torch that decide the last digits of a number in; the same settings, in another process, out."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch

_BACKENDS = {
    "cudnn": ("enabled", "benchmark", "deterministic", "allow_tf32"),
    "cuda.matmul": (
        "allow_tf32",
        "allow_fp16_reduced_precision_reduction",
        "allow_bf16_reduced_precision_reduction",
    ),
    "mkldnn": ("enabled",),
}


def torch_settings() -> dict[str, Any]:
    """The number of threads, precision, determinism and default type of this process."""
    return {
        "threads": torch.get_num_threads(),
        "precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "only_warns": torch.is_deterministic_algorithms_warn_only_enabled(),
        "dtype": torch.get_default_dtype(),
        "backends": {f"{owner}.{name}": _backend(owner, name) for owner, names in _BACKENDS.items() for name in names},
    }


def set_torch_settings(settings: Mapping[str, Any]) -> None:
    """Sets what :func:`torch_settings` returned."""
    if torch.get_num_threads() != settings["threads"]:
        torch.set_num_threads(settings["threads"])
    torch.set_float32_matmul_precision(settings["precision"])
    torch.use_deterministic_algorithms(settings["deterministic"], warn_only=settings["only_warns"])
    torch.set_default_dtype(settings["dtype"])
    for key, value in settings["backends"].items():
        owner, _, name = key.rpartition(".")
        if value is not None and value != _backend(owner, name):
            setattr(_owner(owner), name, value)


def _backend(owner: str, name: str) -> Any:
    """A setting of a backend; ``None`` where this torch has none, or was set to mixed ones by its newer interface."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return getattr(_owner(owner), name)
        except (AttributeError, RuntimeError):
            return None


def _owner(path: str) -> Any:
    found: Any = torch.backends
    for name in path.split("."):
        found = getattr(found, name)
    return found
