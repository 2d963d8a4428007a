"""Turns a baseline as the user writes it (a number, a name, a tensor) into tensors shaped like the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from inspect import signature
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from lightning_explain.core.contracts import Modality
from lightning_explain.core.naming import nearest
from lightning_explain.core.probe import Baseline, Samples, bare
from lightning_explain.core.random_state import seeded_random_state
from lightning_explain.core.validation import one_for_each, refused
from lightning_explain.modalities.image import Normalization

NAMES = ("zero", "black", "mean", "blur")
DISTRIBUTIONS = (*NAMES, "probe")


def check_baseline(owner: str, spec: Baseline, names: Sequence[str] = NAMES, functions: bool = False) -> None:
    """Checks the ``baselines`` of the class ``owner`` as the user writes them, before any sample is known.

    Args:
        owner: The name of the class.
        spec: The baselines.
        names: The names that they may have.
        functions: Whether a function may make them.

    Raises:
        ValueError: If it is an unknown name, or a number that is not finite.
        TypeError: If it is of another type.
    """
    if isinstance(spec, (tuple, list)):
        for part in spec:
            check_baseline(owner, part, names, functions)
    elif isinstance(spec, str) and spec not in names:
        raise ValueError(f"{owner}(baselines={spec!r}): {nearest(spec, names)} Or give a number, a tensor or a tuple.")
    elif isinstance(spec, Real) and not math.isfinite(float(spec)):
        raise ValueError(f"{owner}(baselines={spec!r}) is not finite; give a finite number.")
    elif not (spec is None or isinstance(spec, (str, Real, Tensor)) or (functions and callable(spec))):
        kinds = "None, a number, a tensor, a function that returns a set" if functions else "None, a number, a tensor"
        allowed = f"{kinds}, one of {list(names)}, or a tuple of these"
        raise refused(owner, "baselines", spec, allowed, TypeError)


def settled(spec: Baseline) -> Baseline:
    """Returns the canonical form of a baseline: zero becomes ``None``, a list a tuple, every number a float."""
    if isinstance(spec, (tuple, list)):
        return tuple(settled(part) for part in spec)
    if isinstance(spec, Real):
        return float(spec) or None
    return None if isinstance(spec, str) and spec == "zero" else spec


@dataclass(frozen=True, eq=False)
class Baselines:
    """Turns baselines as the user writes them into tensors, for the samples of one probe.

    Args:
        inputs: All samples of the probe in the order of their ids, each ``(N, ...)``, on the model's device.
        normalization: ``(mean, std)`` per channel of image inputs; needed by ``"black"``.
        ids: ``(N,)`` sample ids in the probe's own order, which is also the order of tensors with one baseline per sample.
        modalities: What the inputs are.
        seed: Seeds the global generators while a function makes a set.
    """

    inputs: tuple[Tensor, ...]
    normalization: Normalization | None = None
    ids: Tensor = field(default_factory=lambda: torch.empty(0))
    modalities: tuple[Modality, ...] = ()
    seed: int = 0
    _made: dict[int, Baseline] = field(default_factory=dict)

    def points(self, spec: Baseline, samples: Samples) -> tuple[Tensor, ...]:
        """Returns one baseline per sample: for each input a tensor of that input's shape, ``(N, ...)``.

        A tuple holds one baseline for each input. A tensor applies to all samples, or holds one baseline for each
        sample of the probe. Names: ``"zero"``, ``"black"`` (a black image after normalization), ``"mean"`` (of the
        probe's samples), ``"blur"`` (the blurred sample).

        Raises:
            ValueError: If the baseline does not fit the inputs.
        """
        specs = one_for_each("baselines", spec, len(samples.clean))
        return tuple(self._point(s, i, x, samples) for i, (s, x) in enumerate(zip(specs, samples.clean, strict=True)))

    def _point(self, spec: Any, index: int, clean: Tensor, samples: Samples) -> Tensor:
        if isinstance(spec, Tensor):
            return _held(fitted("baselines", spec, samples, clean, self.ids), clean)
        if spec == "mean":
            return _held(_floating(self.inputs[index]).mean(0, keepdim=True), clean)
        if spec == "blur":
            try:
                return _held(self.modalities[index].blurred(_floating(clean)), clean)
            except ValueError as error:
                raise ValueError(f'baselines="blur" {error}; give "zero" or "mean".') from None
        reference = self.modalities[index].reference(clean) if spec is None and self.modalities else None
        if reference is not None:
            return _held(reference, clean)
        if spec != "black":
            return _held(torch.tensor(0.0 if spec in (None, "zero") else float(spec), dtype=torch.float64), clean)
        if self.normalization is None:
            raise ValueError('baselines="black" is 0 after normalization; give normalization=(mean, std).')
        like = _floating(clean[:1])
        mean, std = (torch.as_tensor(v, dtype=like.dtype, device=like.device) for v in self.normalization)
        return self._point((-mean / std).reshape(1, -1, *(1,) * (clean.ndim - 2)), index, clean, samples)

    def distribution(self, spec: Baseline, samples: Samples) -> tuple[Tensor, ...]:
        """Returns the set of K reference samples that random methods draw baselines from, one ``(K, ...)`` per input.

        A tensor ``(K, ...)`` is the set itself, and ``"probe"`` is all samples of the probe. A number or a name gives
        one reference (``"blur"`` gives every sample, blurred). A tuple gives the union of its entries. With several
        inputs, a tuple of tensors is one set, with a tensor ``(K, ...)`` for each input, as in Captum; each entry of any
        other tuple applies to all inputs. A function returns any of these; it is called once, without arguments or with
        all inputs of the probe, as in Captum.

        Raises:
            ValueError: If the baseline does not fit the inputs, or the function fails.
        """
        if callable(spec):
            if id(spec) not in self._made:
                self._made[id(spec)] = self._from_function(spec)
            return self.distribution(self._made[id(spec)], samples)
        if isinstance(spec, Tensor):
            return self._set((spec,))
        if isinstance(spec, (tuple, list)):
            if len(self.inputs) > 1 and all(isinstance(part, Tensor) for part in spec):
                return self._set(spec)
            parts = [self.distribution(part, samples) for part in spec]
            return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))
        if isinstance(spec, str) and spec == "probe":
            return self.inputs
        count = len(self.inputs[0]) if spec == "blur" else 1
        return tuple(self._point(spec, i, x[:count], samples) for i, x in enumerate(self.inputs))

    def _from_function(self, function: Callable[..., Any]) -> Baseline:
        """What the function returns; it draws the same numbers in every explanation and on every rank."""
        inputs = bare(tuple(x.clone() for x in self.inputs))
        with torch.no_grad(), seeded_random_state(self.seed % 2**64):
            try:
                made: Baseline = function(inputs) if signature(function).parameters else function()
                check_baseline("the function", made, DISTRIBUTIONS)
            except torch.OutOfMemoryError:
                raise
            except Exception as error:
                raise ValueError(f"the function of the baselines failed: {type(error).__name__}: {error}") from error
        return made

    def _set(self, given: Sequence[Tensor]) -> tuple[Tensor, ...]:
        for value, x in zip(one_for_each("baselines", tuple(given), len(self.inputs)), self.inputs, strict=True):
            if value.shape[1:] != x.shape[1:] or len(value) == 0 or len(value) != len(given[0]):
                shapes, own = ", ".join(str(tuple(v.shape)) for v in given), tuple(x.shape[1:])
                raise ValueError(f"baselines has shape {shapes}; give (K, *{own}), K >= 1, the same K for all inputs.")
        return tuple(_held(value, x, len(value)) for value, x in zip(given, self.inputs, strict=True))


def _floating(x: Tensor) -> Tensor:
    """Whole numbers as floating-point ones; all others unchanged."""
    return x if x.is_floating_point() else x.to(torch.get_default_dtype())


def _held(value: Tensor, x: Tensor, count: int | None = None) -> Tensor:
    """A baseline for an input ``(N, ...)``: in its dtype, but fractions for whole numbers stay what they are, as floats."""
    held = value.to(x.dtype)
    if not (x.is_floating_point() or torch.equal(held.to(value.dtype), value)):
        held = value.to(torch.get_default_dtype()) if value.is_floating_point() else value
    return held.to(x.device).expand(len(x) if count is None else count, *x.shape[1:])


def fitted(name: str, value: Tensor, samples: Samples, clean: Tensor, ids: Tensor) -> Tensor:
    """The entries of a user's tensor that belong to the samples, ``(N, ...)``, or ``(1, ...)`` if they are the same for all.

    Args:
        name: Name of the argument, for the error.
        value: The tensor.
        samples: N samples.
        clean: The input that it belongs to, ``(N, ...)``.
        ids: The ids of the probe, in its order, for a tensor with an entry for each sample of the probe.

    Raises:
        ValueError: If it does not fit the input.
    """
    own = samples.own(value, clean, ids)
    with suppress(RuntimeError):
        if own is not None:
            return own.to(clean.device).expand(len(own) if own.ndim == clean.ndim else 1, *clean.shape[1:])
    shape = tuple(clean.shape[1:])
    fix = f"give one that broadcasts to (1, *{shape}), or has a first dimension of {len(ids)}: an entry for each sample of the probe"
    raise ValueError(f"{name} has shape {tuple(value.shape)}, which does not fit {shape}; {fix}.")
