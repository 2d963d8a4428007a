"""Attention rollout: one forward pass in, from which tokens information may reach those that the output reads, out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lightning_explain.core.contracts import Arrangement, ExplainedFunction, Lookup
from lightning_explain.core.probe import Attribution, Samples, as_tuple
from lightning_explain.core.record import AttentionSize
from lightning_explain.core.report import PassCount
from lightning_explain.core.validation import check_range
from lightning_explain.engine.evaluate import Place
from lightning_explain.methods._base import CaptumMethod
from lightning_explain.modalities.placement import place
from lightning_explain.model.activations import name_of
from lightning_explain.model.attention import FUSED, PRODUCTS, AttentionCall, attention_call

_FIX = "use LayerGradCam, HiResCAM or IntegratedGradients"
_FUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda weights: weights.mean(1),
    "max": lambda weights: weights.amax(1),
    "min": lambda weights: weights.amin(1),
}


@dataclass(frozen=True)
class AttentionRollout(CaptumMethod):
    r"""Attention weights multiplied over all layers, from the tokens that the output reads (Abnar & Zuidema 2020).

    The model computes attention as it always does: queries and keys are read beside it, and the weights computed from them, so
    that fused kernels, masks and the model's settings stay as they are. Half of each layer is the residual connection. The map is
    read at the tokens that reach the output after the last attention: the class token, the last token of a causal model, or
    the mean over all that do.

    Formula: \phi = \frac{1}{|S|} \sum_{s \in S} \left(\hat{A}_L \cdots \hat{A}_1\right)_{s},\quad \hat{A}_l = \tfrac{1}{2}\,
        \text{fuse}_h\left(A_l^h\right) + \tfrac{1}{2} I,\quad S\ \text{the tokens that the output reads}
    Cost: 1 forward, 1 backward.
    Signed: no: it says where information may come from, and is the same for every class.
    Not for: telling classes apart; Infidelity, which leaves it out; windows (Swin), tokens that are merged or pooled on the way,
        and attention between two sequences, on all of which it is refused.

    Args:
        head_fusion: How the heads of a layer become one: ``"mean"``, ``"max"`` or ``"min"``.
        discard_ratio: Share of the smallest weights of each layer that count as zero, for each sample.
        attr_head_summation: Sum over the heads of the last layer; otherwise return one map for each of them, which add up to the
            map with ``head_fusion="mean"``.

    Raises:
        ValueError: If an argument is not allowed.

    Example:
        >>> from lightning_explain import Probe
        >>> net = torch.nn.TransformerEncoderLayer(4, 2, batch_first=True).eval()
        >>> ids, embedding = torch.arange(12).reshape(2, 6), torch.nn.Embedding(12, 4)
        >>> reader = torch.nn.Sequential(embedding, net, torch.nn.Flatten(), torch.nn.Linear(24, 3))
        >>> report = explain(reader, Probe(ids), methods=[m.AttentionRollout()], metrics=[], target=0)
        >>> report.attributions["attention_rollout"].shape
        torch.Size([2, 6])
    """

    # The one gradient tells which tokens are read; the map is made of weights alone.
    backward_rule = "none"
    reads_attention = True

    head_fusion: str = "mean"
    discard_ratio: float = 0.0
    attr_head_summation: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range(type(self).__name__, "discard_ratio", self.discard_ratio, 1)

    @property
    def signed(self) -> bool:
        """No: weights are not negative."""
        return False

    @property
    def evaluations(self) -> PassCount:
        """The samples themselves, and back to the last attention."""
        return PassCount(1, 1)

    def fits(self, explained: ExplainedFunction, samples: Samples, activation: Sequence[AttentionSize]) -> None:
        """Refuses models whose attention does not multiply up; ``activation`` is the attention that ran, for each sample.

        Raises:
            ValueError: If it does not, or the tokens do not lie on an input.
        """
        _check(activation)
        self._onto_input(torch.zeros(len(samples), activation[0].keys, 1), explained, samples)

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        """Arranged as the tokens lie: ``(N, 1, h, w)`` on an image, ``(N, T)`` on text; a channel for each head without the sum."""
        reader = _Reader(self, len(samples))
        with torch.enable_grad(), reader:
            values = explained.forward(*explained.in_memory_layout(samples.inputs), *samples.extra)
        if reader.last is None:
            _check(())
        return self._onto_input(reader.relevance(values), explained, samples)

    def mixed(self, weights: Tensor) -> Tensor:
        """Weights ``(N, ..., T, T)`` with the smallest discarded, beside the residual connection; the weights of each token sum to 1."""
        if self.discard_ratio:
            flat = weights.flatten(-2)
            smallest = flat.argsort(-1)[..., : int(self.discard_ratio * flat.shape[-1])]
            weights = flat.scatter(-1, smallest, 0.0).reshape(weights.shape)
        both = (weights + torch.eye(weights.shape[-1]).to(weights)) / 2
        return both / both.sum(-1, keepdim=True)

    def fused(self, weights: Tensor) -> Tensor:
        """Weights of all heads ``(N, H, T, T)`` as one matrix of a sample, ``(N, T, T)``, with the residual connection."""
        return self.mixed(_FUSED[self.head_fusion](weights))

    def _onto_input(self, found: Tensor, explained: ExplainedFunction, samples: Samples) -> Tensor:
        """Relevance of tokens ``(N, T, H)`` where they lie on the input.

        Raises:
            ValueError: If they lie on none.
        """
        if _text(samples, found.shape[1]) is not None:
            return found[..., 0] if self.attr_head_summation else found
        placed = place(found, samples.inputs, explained.modalities, Arrangement(model=explained.forward))
        if placed is None:
            raise ValueError(f"the {found.shape[1]} tokens of its attention do not lie on an input; {_FIX}")
        return placed

    def arrangement(self, explained: ExplainedFunction, found: Attribution) -> Arrangement:
        """As it is on images; maps of heads lie on the words that their tokens are."""
        (value,) = as_tuple(found)
        if value.ndim > 3:
            return Arrangement("channels_first")
        words = _text(explained.probe, value.shape[1]) if value.ndim == 3 else None
        return Arrangement(lookup=None if words is None else Lookup(words, tuple(range(value.shape[1]))))


def _text(samples: Samples, tokens: int) -> int | None:
    """The position of the input ``(N, T)`` whose elements are so many tokens; ``None`` if there is none."""
    return next((i for i, x in enumerate(samples.inputs) if x.shape[1:] == (tokens,)), None)


def _check(sizes: Sequence[AttentionSize]) -> None:
    """Refuses attention whose weights cannot be multiplied from layer to layer.

    Raises:
        ValueError: If there is none, or it is computed within windows, between two sequences, or over changing numbers of tokens.
    """
    if not sizes:
        known = "scaled_dot_product_attention, nn.MultiheadAttention, or a softmax that is multiplied by the values"
        raise ValueError(f"no attention runs in this model ({known}); {_FIX}")
    for size in sizes:
        if size.batch != 1 and (size.heads_apart or size.batch % 1):
            where = f"{size.batch:.0f} windows of {size.keys} tokens" if size.batch > 1 else "parts of the samples"
            raise ValueError(f"attention is computed within {where}, whose weights do not multiply up; {_FIX}")
        if size.queries != size.keys:
            between = f"from {size.queries} tokens to {size.keys} others"
            raise ValueError(f"attention goes {between}, so weights of different layers do not multiply up; {_FIX}")
    if len(counts := dict.fromkeys(size.keys for size in sizes)) > 1:
        changes = " to ".join(map(str, counts))
        raise ValueError(
            f"the number of tokens changes from layer to layer ({changes}), as where they are merged; {_FIX}"
        )


class _Reader(TorchFunctionMode):
    """Reads the weights of each attention that runs, multiplies them up, and notes where the last one lies in the graph.

    Args:
        method: Says how heads are fused.
        count: The number of samples.
    """

    def __init__(self, method: AttentionRollout, count: int) -> None:
        super().__init__()
        self._method, self._count = method, count
        self._before: Tensor | None = None
        self.last: Tensor | None = None
        self._place: Place | None = None
        self._first = 0
        self._sizes: list[AttentionSize] = []
        self._pending: tuple[AttentionCall, Tensor, Place] | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if self._pending is not None and name_of(func) in PRODUCTS and self._multiplies((args, kwargs)):
            self._add(*self._pending)
        call = attention_call(func, args, kwargs)
        returned = func(*args, **kwargs)
        if call is None:
            return returned
        weights, several = call.weights(returned), isinstance(returned, tuple)
        first = _begun(returned[0] if several else returned)
        if name_of(func) in FUSED:
            self._add(call, weights, Place.of(first))
        else:
            self._pending = (call, weights, Place.of(first))
        return (first, *returned[1:]) if several else first

    def _multiplies(self, arguments: Any) -> bool:
        """Whether the weights that wait are among the arguments, perhaps in another shape."""
        assert self._pending is not None
        weights = self._pending[1]
        tensors = [part for part in tree_leaves(arguments) if isinstance(part, Tensor)]
        return any(t.shape[-2:] == weights.shape[-2:] and t.numel() == weights.numel() for t in tensors)

    def _add(self, call: AttentionCall, weights: Tensor, found: Place) -> None:
        """Takes the weights of a further layer."""
        self._sizes.append(call.size.within(self._count))
        _check(self._sizes)
        if self.last is not None:
            fused = self._method.fused(self.last)
            self._before = fused if self._before is None else fused @ self._before
        self.last = weights.reshape(self._count, -1, *weights.shape[-2:])
        self._place, self._first, self._pending = found, int(call.sequence_first), None

    def relevance(self, values: Tensor) -> Tensor:
        """That of each token, ``(N, T, 1)``, or ``(N, T, H)`` for the heads, at the tokens that the values ``(N,)`` depend on."""
        assert self.last is not None
        shares = self._read(values)
        if self._method.attr_head_summation:
            found = shares[:, None] @ self._method.fused(self.last)
        else:
            found = (shares[:, None, None] @ self._method.mixed(self.last))[:, :, 0] / self.last.shape[1]
        return (found if self._before is None else found @ self._before).transpose(1, 2)

    def _read(self, values: Tensor) -> Tensor:
        """The share that each token has in the mean over those that the values read, ``(N, T)``; all, where that is not known."""
        assert self.last is not None
        assert self._place is not None
        read, gradient = torch.ones_like(self.last[:, 0, 0], dtype=torch.bool), None
        if self._place.edge is not None and values.requires_grad:
            end, ones = get_gradient_edge(values), torch.ones_like(values)
            (gradient,) = torch.autograd.grad((end,), (self._place.edge,), (ones,), allow_unused=True)
        if gradient is not None:
            found = gradient.transpose(0, self._first).ne(0).any(-1).reshape(self._count, -1, read.shape[1]).any(1)
            read = torch.where(found.any(1, keepdim=True), found, read)
        return read.to(self.last.dtype) / read.sum(1, keepdim=True)


def _begun(result: Tensor) -> Tensor:
    """The result, where the graph begins if it did not before; a copy, because the model may write into it."""
    return result if result.requires_grad or not torch.is_grad_enabled() else result.requires_grad_().clone()
