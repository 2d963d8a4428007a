"""Where the backward rules of guided backpropagation, deconvolution and LRP go wrong on a model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from captum.attr._core.lrp import SUPPORTED_NON_LINEAR_LAYERS
from torch import nn

from lightning_explain.core.record import Op, Record
from lightning_explain.engine.captum_adapter import RULED_LAYERS
from lightning_explain.engine.rules import INSTEAD
from lightning_explain.model.activations import words
from lightning_explain.model.inventory import TRANSPARENT, is_layer

_PRODUCTS = words(
    "mul matmul mm bmm dot mv outer einsum div true_divide divide addmm baddbmm bilinear linear tensordot"
)
# With a constant they can be a ReLU.
_BOUNDS = words("max min maximum minimum fmax fmin")
_WITHOUT_RULE = words(
    "glu softmax log_softmax softmin gumbel_softmax logsumexp scaled_dot_product_attention multi_head_attention_forward layer_norm "
    "group_norm instance_norm rms_norm local_response_norm normalize norm std var std_mean var_mean vector_norm cosine_similarity "
    "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell"
)
# Calls outside of layers that LRP may pass: they move values and do not mix them.
_MOVES = words(
    "relu flatten reshape view permute transpose squeeze unsqueeze contiguous clone dropout getitem movedim chunk split cat "
    "unflatten narrow select expand to float double t"
)

_LRP = (*RULED_LAYERS, *SUPPORTED_NON_LINEAR_LAYERS)


@dataclass(frozen=True)
class Finding:
    """One thing the doctor found about a method; fields as in :class:`~lightning_explain.core.verdict.Verdict`."""

    state: str
    reason: str
    fix: str = ""


def refused(reason: str, fix: str = "") -> Finding:
    """A finding by which a method's map would be wrong, or cannot be computed."""
    return Finding("refused", reason, fix)


UNGUIDED = Finding(
    "warned",
    "something in the model acts as an activation without calling one, so it passes its plain gradient; only ReLU is guided",
    "write ReLU as nn.ReLU, F.relu or clamp(min=0)",
)


UNEVEN = (
    "after the layer {layer!r} each place has weights of its own (a flattened head, a class token, a strided convolution, a segmentation), "
    "over which Grad-CAM averages: its map may point elsewhere"
)
UNEVEN_FRAMES = (
    "after the layer {layer!r} each place of each frame has weights of its own; before a recurrent network, whose gates may pass no "
    "gradient at the sample, the map of Grad-CAM may lie on other frames"
)


def listed(things: Iterable[Any], most: int = 3) -> str:
    """Joins the first few distinct names for a message: ``"a, b, c and 2 more"``."""
    names = list(dict.fromkeys(str(thing) for thing in things))
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def is_exact(ops: Iterable[Op]) -> bool:
    """Whether DeepLIFT is exact for these calls, so that any error comes from an activation that is not called as one."""
    return not any((op.name in _PRODUCTS and op.activations > 1) or op.name in _WITHOUT_RULE for op in ops)


def guided(ops: Sequence[Op], part: str = "the model") -> list[Finding]:
    """Returns what guided backpropagation and deconvolution leave unguided; their rules are for ReLU alone.

    Args:
        ops: The calls that the backward pass meets.
        part: The part of the model in which they are made, in words.
    """
    others = listed(op.name for op in ops if op.family == "elementwise")
    if not any(op.family == "relu" for op in ops):
        has = f"its activations are {others}" if others else "and no other activation"
        reason = f"{part} has no ReLU ({has}), so this is the plain gradient"
        return [Finding("warned", reason, "use Saliency(abs=False)")]
    if any(op.family == "elementwise" and op.name in _BOUNDS for op in ops):
        return [UNGUIDED]
    return [Finding("fine", f"only ReLU is guided; {others} pass their plain gradient")] if others else []


def lrp(model: nn.Module, record: Record) -> list[Finding]:
    """Returns why Captum's LRP cannot be right on a model; nothing is changed for it."""
    ran = {name: m for name, m in model.named_modules() if record.calls[id(m)] and is_layer(m)}
    unknown = [f"{n!r} ({type(m).__name__})" for n, m in ran.items() if not _has_rule(m)]
    reused = [repr(n) for n, m in ran.items() if record.calls[id(m)] > 1 and not isinstance(m, TRANSPARENT)]
    outside = [op for op in record.ops if not (op.name in _MOVES or op.idle or is_layer(op.module))]
    mixed = [str(name) for name, m in ran.items() if _is_ruled(m) and _goes_past(m, record)]
    known = listed((c.__name__ for c in RULED_LAYERS), most=len(RULED_LAYERS))
    wrong: dict[str, tuple[Sequence[Any], str]] = {
        "has no rule for layers": (unknown, "set module.rule to one of captum.attr._utils.lrp_rules"),
        "does not see what is computed outside of layers": (outside, f"use layers ({known})"),
        "cannot handle a layer that is used more than once": (reused, "use a separate layer for each call"),
        "mistakes relevance for a gradient where a tensor enters a layer and also bypasses it (in a concatenation, a slice, an "
        "activation)": (mixed, "begin both branches with a layer"),
    }
    return [refused(f"LRP {what}: {listed(on)}", f"{fix}, or {INSTEAD}") for what, (on, fix) in wrong.items() if on]


def _has_rule(module: nn.Module) -> bool:
    return type(module) in _LRP or isinstance(module, TRANSPARENT) or hasattr(module, "rule")


def _is_ruled(module: nn.Module) -> bool:
    """Returns whether Captum's LRP hooks the input of the layer; it treats activations differently."""
    return type(module) in RULED_LAYERS or hasattr(module, "rule")


def _goes_past(module: nn.Module, record: Record) -> bool:
    """Returns whether the layer's input is also used by something other than layers with rules."""
    return any(module in consumers and not all(map(_is_ruled, consumers)) for consumers in record.consumers.values())
