"""Hooks in, what they see out: at the input or output of one layer, or before and after every module of a model.

Both work as contexts: the hooks are removed on exit, also after an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle


def at_layer(layer: nn.Module, of_input: bool, see: Callable[[Any], Any]) -> RemovableHandle:
    """Calls ``see`` with what comes out of a layer, or with the tuple of arguments that go in; use it in a ``with`` statement.

    Args:
        layer: The module.
        of_input: Whether the input is meant instead of the output.
        see: If it returns a value other than ``None``, the forward pass goes on with that.
    """
    if of_input:
        return layer.register_forward_pre_hook(lambda module, arguments: see(arguments))
    return layer.register_forward_hook(lambda module, arguments, output: see(output))


@contextmanager
def at_modules(
    model: nn.Module,
    enter: Callable[[nn.Module, Any], Any] | None = None,
    leave: Callable[[nn.Module, Any, Any], Any] | None = None,
) -> Iterator[None]:
    """A context in which functions see every module of a model run; TorchScript modules, which take no hooks, are left out.

    Args:
        model: The module.
        enter: Called as ``enter(module, arguments)`` before a module runs.
        leave: Called as ``leave(module, arguments, output)`` after a module has run.
    """
    with ExitStack() as stack:
        for module in model.modules():
            if enter is not None and not isinstance(module, torch.jit.ScriptModule):
                stack.enter_context(module.register_forward_pre_hook(enter))
            if leave is not None and not isinstance(module, torch.jit.ScriptModule):
                stack.enter_context(module.register_forward_hook(leave))
        yield
