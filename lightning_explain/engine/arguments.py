"""Checks of the arguments of methods and metrics: a name, or the type bool, means the same in all, and is checked alike."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

from lightning_explain.core import validation
from lightning_explain.core.containers import resolved
from lightning_explain.core.naming import nearest
from lightning_explain.engine.baselines import DISTRIBUTIONS, NAMES, check_baseline
from lightning_explain.engine.features import check_feature_mask
from lightning_explain.engine.noise import check_scale
from lightning_explain.modalities.image import check_reshape

AUTO = "auto"
_OURS = __package__.split(".")[0] + "."
_COUNTS = ("n_steps", "n_samples", "nt_samples", "n_perturb_samples", "n_draws", "n_layers", "size")
_SIZES = {"eps": "1e-10", "tolerance": "0.01"}
_MODES = ("nearest", "nearest-exact", "linear", "bilinear", "bicubic", "trilinear", "area")
_CHOICES = {
    "method": ("riemann_right", "riemann_left", "riemann_middle", "riemann_trapezoid", "gausslegendre"),
    "head_fusion": ("mean", "max", "min"),
    "nt_type": ("smoothgrad", "smoothgrad_sq", "vargrad"),
}


class CheckedArguments:
    """Base class of dataclasses that check their arguments as soon as they are given.

    Replaces the lists of YAML and Hydra by tuples, which can be hashed and compared. What a user's subclass adds is its own.

    Raises:
        ValueError: If an argument has a value that is not allowed.
        TypeError: If it is of another type.
    """

    def __post_init__(self: Any) -> None:
        built_in = [cls for cls in type(self).__mro__ if is_dataclass(cls) and cls.__module__.startswith(_OURS)]
        kinds = {field.name: str(field.type) for cls in built_in for field in fields(cls)}
        for field in fields(self):
            value = _tupled(resolved(getattr(self, field.name)))
            object.__setattr__(self, field.name, value)
            if field.name in kinds:
                _check(self, type(self).__name__, field.name, value, kinds[field.name])


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


def _check(instance: Any, owner: str, name: str, value: Any, kind: str) -> None:
    if kind == "bool":
        validation.check_flag(owner, name, value)
    elif name in _COUNTS:
        also = (None,) if kind.endswith("None") else (AUTO,) if hasattr(instance, "tolerance") else ()
        validation.check_whole(owner, name, value, also=also)
    elif name in _SIZES:
        validation.check_number(owner, name, value, _SIZES[name])
    elif name.endswith("_func") and kind != "Perturbation":
        validation.check_callable(owner, name, value)
    elif name in _CHOICES:
        validation.check_choice(owner, name, value, _CHOICES[name])
    elif name == "interpolate_mode" and value not in _MODES:
        raise ValueError(f"{owner}({name}={value!r}): {nearest(str(value), _MODES)}")
    elif name == "baselines":
        sets = getattr(instance, "takes_distribution", False)
        check_baseline(owner, value, DISTRIBUTIONS if sets else NAMES, functions=sets)
    elif name == "feature_mask":
        check_feature_mask(f"{owner}(feature_mask", value)
    elif name in ("stdevs", "perturb_radius"):
        check_scale(owner, name, value)
    elif name == "reshape":
        check_reshape(owner, value)
    elif name == "layer":
        _check_layer(owner, value, instance.several_layers)
    elif name == "methods" and value is not None and not (isinstance(value, tuple) and set(map(type, value)) == {str}):
        raise validation.refused(owner, name, value, "None (all methods) or a list of names of methods", TypeError)


def _check_layer(owner: str, value: Any, several: bool) -> None:
    """Checks the name of a layer, or of several where they can be explained together.

    Raises:
        TypeError: If it is anything else.
    """
    parts = value if several and isinstance(value, tuple) and value else (value,)
    numbers = value is not parts[0]
    if value is None or all(isinstance(part, str) or (numbers and validation.is_whole(part, 0)) for part in parts):
        return
    allowed = "the name of one module, such as 'layer4'"
    if several:
        allowed += ", or a list of names, and of positions of floating-point inputs, such as ['words', 'characters', 1]"
    raise validation.refused(
        owner, "layer", value, allowed + ("" if several else " (for several layers, one method for each)"), TypeError
    )
