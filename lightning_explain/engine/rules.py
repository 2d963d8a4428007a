"""Backward rules: plain, guided and deconvolution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from lightning_explain.core.points import DECONVOLUTION, GUIDED, PLAIN
from lightning_explain.model.activations import nodes

Rule: TypeAlias = "Callable[[Tensor], AbstractContextManager[None]]"


def _plain(values: Tensor) -> AbstractContextManager[None]:
    return nullcontext()


@contextmanager
def _guided(values: Tensor) -> Iterator[None]:
    """Springenberg et al. 2014: what is negative is not passed on at a ReLU."""
    with _at_relus(values, lambda grad_inputs, grad_outputs: _positive(grad_inputs)):
        yield


@contextmanager
def _deconvolution(values: Tensor) -> Iterator[None]:
    """Zeiler & Fergus 2013: a ReLU passes on what is positive, whatever it saw."""
    with _at_relus(values, lambda grad_inputs, grad_outputs: _positive(grad_outputs)):
        yield


RULES: dict[str, Rule] = {PLAIN: _plain, GUIDED: _guided, DECONVOLUTION: _deconvolution}


def _positive(gradients: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    return tuple(g if g is None else functional.relu(g) for g in gradients)


@contextmanager
def _at_relus(values: Tensor, rule: Callable[..., Any]) -> Iterator[None]:
    """The rule at each ReLU between the values and what is differentiated, whether a module's or a function's."""
    with ExitStack() as stack:
        for node in nodes(values.grad_fn):
            if _is_relu(node):
                stack.callback(node.register_hook(rule).remove)
        yield


def _is_relu(node: Any) -> bool:
    # Torch's own have a number at the end; a function of the user's may have a name that begins like theirs.
    name = node.name()
    if name == "ReluBackward0":
        return True
    if name.startswith("ClampMinBackward"):
        return bool(torch.as_tensor(node._saved_min == 0).all())
    if name == "ClampBackward1":
        return node._saved_max is None and bool(node._saved_min == 0)
    return name == "ThresholdBackward0" and bool(node._saved_threshold == 0)
