"""Networks repaired by hand, as someone who calls Captum alone must repair them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from captum.attr._core import deep_lift
from torch import Tensor, fx, nn
from torch.nn import functional as F

RELUS = (F.relu, torch.relu, torch.relu_, F.relu_)
POOLS = (F.max_pool2d, torch.max_pool2d)


class Functional(torchvision.models.resnet.BasicBlock):
    """torchvision's block with functional activations."""

    def forward(self, x: Tensor) -> Tensor:
        same = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(out)) + same)


class Copy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clone()


def warmed(model: nn.Module, size: int = 64, batches: int = 4) -> nn.Module:
    """Random weights, and the mean statistics of a few batches."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for _ in range(batches):
            model.train()(torch.randn(8, 3, size, size))
    return model


def repaired_by_hand(model: nn.Module) -> nn.Module:
    """A copy in which every activation is a module of its own that shares no tensor with another."""
    graph = fx.symbolic_trace(copy.deepcopy(model).eval())
    for i, node in enumerate(list(graph.graph.nodes)):
        module = graph.get_submodule(node.target) if node.op == "call_module" else None
        if isinstance(module, nn.ReLU) or node.target in RELUS or (node.op, node.target) == ("call_method", "relu"):
            own: nn.Module = nn.ReLU()
        elif node.target in POOLS:
            own = nn.MaxPool2d(
                *node.args[1:], **{k: v for k, v in node.kwargs.items() if k in ("kernel_size", "stride")}
            )
        elif isinstance(module, (nn.MaxPool2d, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.SiLU)):
            own = copy.deepcopy(module)
        else:
            continue
        own.inplace = False
        graph.add_module(f"own_{i}", nn.Sequential(Copy(), own))
        with graph.graph.inserting_before(node):
            new = graph.graph.call_module(f"own_{i}", (node.args[0],))
        node.replace_all_uses_with(new)
        graph.graph.erase_node(node)
    graph.recompile()
    return graph


def overlapping(
    module: nn.MaxPool2d, inputs: Tensor, outputs: Tensor, grad_input: Tensor, grad_output: Tensor, eps: float = 1e-10
) -> Tensor:
    """Captum's rule for maxima, with the contributions of windows added one by one."""
    (x, b), (out, out_b) = inputs.chunk(2), outputs.chunk(2)
    _, where = F.max_pool2d(inputs, module.kernel_size, module.stride, module.padding, return_indices=True)
    top = torch.maximum(out, out_b)
    parts = (grad_output * torch.cat([top - out_b, out - top])).flatten(2)
    placed = torch.zeros_like(inputs).flatten(2).scatter_add(2, where.flatten(2), parts).reshape(inputs.shape)
    delta = torch.cat([x - b] * 2)
    return torch.where(delta.abs() < eps, grad_input, torch.cat([sum(placed.chunk(2))] * 2) / delta)


@contextmanager
def all_rules() -> Iterator[None]:
    """Captum's DeepLIFT with rules for the activations it does not know, and for overlapping windows."""
    rules = dict.fromkeys((nn.ReLU6, nn.Hardswish, nn.Hardsigmoid, nn.GELU, nn.SiLU), deep_lift.nonlinear)
    with patch.dict(deep_lift.SUPPORTED_NON_LINEAR, {**rules, nn.MaxPool2d: overlapping}):
        yield


class Own(torch.autograd.Function):
    """A non-linearity that nobody can see into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * (ctx.saved_tensors[0] > 0)
