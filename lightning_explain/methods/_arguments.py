"""Checks of the methods' arguments by name: one name means the same in all methods, and is checked alike."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from lightning_explain.core.naming import nearest
from lightning_explain.core.validation import check_callable, check_choice, check_number, check_whole
from lightning_explain.engine.baselines import DISTRIBUTIONS, NAMES, check_baseline
from lightning_explain.engine.features import check_feature_mask
from lightning_explain.engine.noise import check_stdevs
from lightning_explain.modalities.image import check_reshape

AUTO = "auto"
_COUNTS = ("n_steps", "n_samples", "nt_samples")
_SIZES = {"eps": "1e-10", "tolerance": "0.01"}
_MODES = ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area")
_CHOICES = {
    "method": ("riemann_right", "riemann_left", "riemann_middle", "riemann_trapezoid", "gausslegendre"),
    "nt_type": ("smoothgrad", "smoothgrad_sq", "vargrad"),
}


def check_arguments(method: Any) -> None:
    """Replaces the lists of YAML by tuples, which can be hashed and compared, and checks the arguments of a method.

    What a user's subclass adds is its own, whatever its name.

    Raises:
        ValueError: If an argument has a value that is not allowed.
        TypeError: If it is of another type.
    """
    built_in = [cls for cls in type(method).__mro__ if is_dataclass(cls) and cls.__module__.startswith(__package__)]
    ours = {field.name for cls in built_in for field in fields(cls)}
    for field in fields(method):
        value = _tupled(getattr(method, field.name))
        object.__setattr__(method, field.name, value)
        if field.name in ours:
            _check(method, type(method).__name__, field.name, value)


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _check(method: Any, owner: str, name: str, value: Any) -> None:
    if name in _COUNTS:
        check_whole(owner, name, value, also=(AUTO,) if hasattr(method, "tolerance") else ())
    elif name in _SIZES:
        check_number(owner, name, value, _SIZES[name])
    elif name.endswith("_func"):
        check_callable(owner, name, value)
    elif name in _CHOICES:
        check_choice(owner, name, value, _CHOICES[name])
    elif name == "interpolate_mode" and value not in _MODES:
        raise ValueError(f"{owner}({name}={value!r}): {nearest(str(value), _MODES)}")
    elif name == "baselines":
        check_baseline(owner, value, DISTRIBUTIONS if method.takes_distribution else NAMES)
    elif name == "feature_mask":
        check_feature_mask(f"{owner}(feature_mask", value)
    elif name == "stdevs":
        check_stdevs(owner, value)
    elif name == "reshape":
        check_reshape(owner, value)
