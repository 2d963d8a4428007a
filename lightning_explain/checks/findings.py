"""Where the backward rules of DeepLIFT, guided backpropagation, deconvolution and LRP go wrong on a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR
from captum.attr._core.lrp import SUPPORTED_LAYERS_WITH_RULES, SUPPORTED_NON_LINEAR_LAYERS
from torch import nn

from lightning_explain.checks.trace import Op, Record
from lightning_explain.core.verdict import Canonizer
from lightning_explain.model.activations import words
from lightning_explain.model.inventory import is_layer

INCOMPLETE = 1e-2
"""Largest accepted error of the sum of DeepLIFT's map, relative to f(x) - f(baseline)."""
INSTEAD = "use IntegratedGradients or GradientShap, which need no backward rule"

_PRODUCTS = words(
    "mul matmul mm bmm dot mv outer einsum div true_divide divide addmm baddbmm bilinear linear tensordot"
)
_WITHIN = {
    "a gate": {"glu"},
    "softmax": {"softmax", "log_softmax", "softmin", "gumbel_softmax", "logsumexp"},
    "attention": {"scaled_dot_product_attention", "multi_head_attention_forward"},
    "a norm of the activations": words(
        "layer_norm group_norm instance_norm rms_norm local_response_norm normalize norm std var std_mean var_mean vector_norm "
        "cosine_similarity"
    ),
    "a recurrent layer": words("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"),
}
# Calls outside of layers that LRP may pass: they move values and do not mix them.
_MOVES = words(
    "relu flatten reshape view permute transpose squeeze unsqueeze contiguous clone dropout getitem movedim chunk split cat "
    "unflatten narrow select expand to float double t"
)


# In eval mode they return their input, at most in another shape.
TRANSPARENT = (
    *(nn.Identity, nn.Flatten, nn.Unflatten),
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout),
)
_LRP = (*SUPPORTED_LAYERS_WITH_RULES, *SUPPORTED_NON_LINEAR_LAYERS)


@dataclass(frozen=True)
class Finding:
    """One thing the doctor found about a method; fields as in :class:`~lightning_explain.core.verdict.Verdict`."""

    state: str
    reason: str
    fix: str = ""
    canonizers: tuple[Canonizer, ...] = ()


UNGUIDED = Finding(
    "warned",
    "something in the model acts as an activation without calling one, so it passes its plain gradient; only ReLU is guided",
    "write ReLU as nn.ReLU, F.relu or clamp(min=0)",
)


def listed(things: Iterable[Any], most: int = 3) -> str:
    """Joins the first few distinct names for a message: ``"a, b, c and 2 more"``."""
    names = list(dict.fromkeys(str(thing) for thing in things))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def deeplift(record: Record, ops: Sequence[Op], input_layer: nn.Module | None = None) -> list[Finding]:
    """Returns what has to change for Captum's DeepLIFT to be right on a model, or why it cannot be.

    Args:
        record: The record of one forward pass.
        ops: The calls that the method's backward pass goes through.
        input_layer: The layer whose input is explained; ``None`` for any other method.
    """
    refused = [
        Finding("refused", f"DeepLIFT has no rule for {what}: {listed(found)}", INSTEAD)
        for what, found in _without_rule(ops).items()
    ]
    # Captum hooks the whole model, even the part that the backward pass does not reach.
    reasons = list(_deeplift_faults(record))
    if type(input_layer) in SUPPORTED_NON_LINEAR:
        reasons.append("the layer whose input is explained is an activation, to which Captum does not apply its rule")
    if refused or not reasons:
        return refused
    return [
        Finding(
            "canonized",
            "; ".join([*reasons, "while explaining, every activation call runs as a module of its own"]),
            canonizers=(deeplift_canonizer(record),),
        )
    ]


def deeplift_canonizer(record: Record) -> Canonizer:
    """Returns the canonizer that gives every activation call of the record a module of its own."""
    return Canonizer("deeplift", record.count("relu"), record.count("elementwise"), record.count("pool"))


def _without_rule(ops: Sequence[Op]) -> dict[str, list[Op]]:
    found: dict[str, list[Op]] = {}
    for op in ops:
        if op.name in _PRODUCTS and op.activations > 1:
            found.setdefault("a product of two activations", []).append(op)
        for what, names in _WITHIN.items():
            if op.name in names:
                found.setdefault(what, []).append(op)
    return found


def _deeplift_faults(record: Record) -> Iterable[str]:
    hooked = [op for op in record.ops if op.family]
    owned = [op for op in hooked if op.where is not None and _is_activation(op.module)]
    without = [op for op in owned if type(op.module) not in SUPPORTED_NON_LINEAR]
    functional = [op for op in hooked if op not in owned]
    reused = [op for op in owned if op not in without and record.calls[id(op.module)] > 1]
    doubled = [op for op in owned if op not in [*without, *reused] and id(op.module) in record.doubled]
    overlapping = [op for op in owned if op.family == "pool" and op not in without and _overlaps(op.module)]
    for what, found in (
        ("functional activations, which Captum does not see", functional),
        ("activations for which Captum has no rule", without),
        ("a module used more than once", reused),
        ("a module that is registered twice, so that Captum hooks it twice", doubled),
        ("activations that directly follow each other (Captum issue 1104)", [op for op in hooked if op.beside]),
        ("max pooling with overlapping windows, of which Captum keeps only the last", overlapping),
    ):
        if found:
            yield f"{what}: {listed(found)}"


def _is_activation(module: nn.Module) -> bool:
    return type(module) in SUPPORTED_NON_LINEAR or type(module).__module__ == nn.GELU.__module__


def _overlaps(module: Any) -> bool:
    def pair(value: Any) -> tuple[Any, ...]:
        return value if isinstance(value, tuple) else (value,)

    kernel, stride = pair(module.kernel_size), pair(module.stride)
    size = max(len(kernel), len(stride))
    return any(k > s for k, s in zip(kernel * (size // len(kernel)), stride * (size // len(stride)), strict=True))


def guided(record: Record, ops: Sequence[Op]) -> list[Finding]:
    """Returns what has to change for guided backpropagation and deconvolution, whose rules are for ReLU alone."""
    relus = [op for op in ops if op.family == "relu"]
    others = listed(op.name for op in ops if op.family == "elementwise")
    if not relus:
        has = f"its activations are {others}" if others else "it has no activation"
        return [
            Finding(
                "warned", f"the model has no ReLU ({has}), so this is the plain gradient", "use Saliency(abs=False)"
            )
        ]
    note = f"only ReLU is guided; {others} pass their plain gradient" if others else ""
    modules = [op for op in relus if op.where is not None and isinstance(op.module, nn.ReLU)]
    functional = [op for op in relus if op not in modules]
    reused = [op for op in modules if record.calls[id(op.module)] > 1]
    reasons = [f"functional ReLU, which Captum does not see: {listed(functional)}"] if functional else []
    reasons += [f"a ReLU used more than once: {listed(reused)}"] if reused else []
    if not reasons:
        return [Finding("fine", note)] if note else []
    return [
        Finding(
            "canonized",
            "; ".join(
                [*reasons, *([note] if note else []), "while explaining, every ReLU call runs as a module of its own"]
            ),
            canonizers=(Canonizer("guided", record.count("relu")),),
        )
    ]


def missed(found: float | str) -> list[Finding]:
    """Returns the finding on a DeepLIFT map, if there is one.

    Args:
        found: The error of the map's sum, relative to f(x) - f(baseline); or why the map cannot be computed.
    """
    if isinstance(found, str):
        return [Finding("refused", f"Captum's DeepLIFT does not run on this model: {found.rstrip('.')}", INSTEAD)]
    if found <= INCOMPLETE:
        return []
    reason = f"DeepLIFT's map misses f(x) - f(baseline) by {found:.1%} on the probe: something in the model has no DeepLIFT rule"
    return [Finding("refused", reason, f"write activations as functions or modules of torch.nn; or {INSTEAD}")]


def lrp(model: nn.Module, record: Record) -> list[Finding]:
    """Returns why Captum's LRP cannot be right on a model; nothing is canonized for it."""
    ran = {name: m for name, m in model.named_modules() if record.calls[id(m)] and is_layer(m)}
    unknown = [f"{n!r} ({type(m).__name__})" for n, m in ran.items() if not _has_rule(m)]
    reused = [repr(n) for n, m in ran.items() if record.calls[id(m)] > 1 and not isinstance(m, TRANSPARENT)]
    outside = [op for op in record.ops if op.name not in _MOVES and not is_layer(op.module)]
    mixed = [str(name) for name, m in ran.items() if _is_ruled(m) and _goes_past(m, record)]
    fix = "set module.rule to one of captum.attr._utils.lrp_rules, or " + INSTEAD
    known = listed((c.__name__ for c in SUPPORTED_LAYERS_WITH_RULES), most=9)
    return [
        Finding("refused", f"LRP {what}: {listed(found)}", fix)
        for what, found, fix in (
            ("has no rule for layers", unknown, fix),
            ("does not see what is computed outside of layers", outside, f"use layers ({known}), or {INSTEAD}"),
            (
                "cannot handle a layer that is used more than once",
                reused,
                "use a separate layer for each call, or " + INSTEAD,
            ),
            (
                "mistakes relevance for a gradient where a tensor enters a layer and also bypasses it (in a concatenation, a "
                "slice, an activation)",
                mixed,
                "begin both branches with a layer, or " + INSTEAD,
            ),
        )
        if found
    ]


def _has_rule(module: nn.Module) -> bool:
    return type(module) in _LRP or isinstance(module, TRANSPARENT) or hasattr(module, "rule")


def _is_ruled(module: nn.Module) -> bool:
    """Returns whether Captum's LRP hooks the input of the layer; it treats activations differently."""
    return type(module) in SUPPORTED_LAYERS_WITH_RULES or hasattr(module, "rule")


def _goes_past(module: nn.Module, record: Record) -> bool:
    """Returns whether the layer's input is also used by something other than layers with rules."""
    return any(module in consumers and not all(map(_is_ruled, consumers)) for consumers in record.consumers.values())
