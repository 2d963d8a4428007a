"""How a module becomes ``f(inputs) -> (N,)``: which output, which target, which layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from lightning_explain.naming import nearest
from lightning_explain.types import PassCount, Probe, Rows, Shared, as_tuple

Target: TypeAlias = "str | int | tuple[int, ...] | Callable[[Tensor], Tensor]"
ForwardFn: TypeAlias = "Callable[..., Any] | None"
OutputFn: TypeAlias = "Callable[[Any], Tensor] | None"

TARGETS = ("label", "predicted")
_OTHER_WAYS = 'target="predicted", an int, a tuple such as (class, row, column), or a callable (N, ...) -> (N,)'
_WAYS = f'target="label", {_OTHER_WAYS.removeprefix("target=")}'


class OutputError(TypeError):
    """The model, or ``output_fn``, returned something in which there is nothing to explain."""


def output_tensor(output: Any) -> Tensor:
    """The tensor in what a model returns: itself, ``.logits`` or ``["logits"]``, or the first of a tuple.

    Raises:
        OutputError: If no tensor is found there.
    """
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif hasattr(output, "logits"):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        keys = f" with keys {list(output)}" if isinstance(output, Mapping) else ""
        raise OutputError(
            f"The model returned {type(output).__name__}{keys}; allowed are a tensor, a tuple that starts with one, "
            "a mapping or an object with 'logits'. Otherwise give output_fn=lambda output: ..., which picks the tensor."
        )
    return output


def check_target(target: Target) -> None:
    """Refuses what can never be a target.

    Raises:
        ValueError: If it is an unknown word.
        TypeError: If it is of another kind.
    """
    if isinstance(target, str):
        if target not in TARGETS:
            raise ValueError(f"target={target!r}: {nearest(target, TARGETS)} Or an int, a tuple, a callable.")
    elif isinstance(target, (list, tuple)):
        if not all(isinstance(t, int) for t in target):
            raise TypeError(f"target={target!r} is not a tuple of ints; allowed: {_WAYS}.")
    elif isinstance(target, bool) or not (isinstance(target, int) or callable(target)):
        raise TypeError(f"target={target!r} is of type {type(target).__name__}; allowed: {_WAYS}.")


def predictions_of(outputs: Tensor) -> Tensor:
    """``(N,)`` predicted classes; for one number a row whether it is positive; for dense outputs zeros."""
    if _single(outputs):
        return (outputs.reshape(len(outputs)) > 0).long()
    return outputs.argmax(1) if outputs.ndim == 2 else torch.zeros(len(outputs), dtype=torch.long)


def target_indices(outputs: Tensor, target: Target, labels: Tensor | None) -> Tensor:
    """``(N,)`` index of the explained output of each row.

    0 where the output is one number a row, whatever the label; -1 where a tuple or a callable chooses.

    Raises:
        ValueError: If the target does not fit the outputs.
    """
    n = len(outputs)
    if callable(target) or isinstance(target, (tuple, list)):
        chosen = choose(outputs, torch.zeros(n, dtype=torch.long), target)
        if not isinstance(chosen, Tensor) or chosen.shape != (n,):
            came = tuple(chosen.shape) if isinstance(chosen, Tensor) else type(chosen).__name__
            raise ValueError(f"target={target!r} chose {came} from outputs {tuple(outputs.shape)}; it must be ({n},).")
        return torch.full((n,), -1)
    if _single(outputs):
        if isinstance(target, int) and target != 0:
            raise ValueError(f"target={target}, but the model returns one number a row: {tuple(outputs.shape)}.")
        return torch.zeros(n, dtype=torch.long)
    if outputs.ndim != 2:
        ways = "a tuple such as (class, row, column), or a callable (N, ...) -> (N,)"
        raise ValueError(f"target={target!r} needs outputs (N, C), got {tuple(outputs.shape)}; use {ways}.")
    return _class_indices(outputs, target, labels)


def _class_indices(outputs: Tensor, target: str | int, labels: Tensor | None) -> Tensor:
    n, classes = outputs.shape
    if target == "predicted" or (target == "label" and labels is None):
        return outputs.argmax(1)
    if target == "label":
        assert labels is not None
        if labels.shape != (n,) or labels.is_floating_point() or labels.is_complex():
            raise ValueError(
                f'target="label" needs integer labels ({n},), got {labels.dtype} {tuple(labels.shape)}; give such labels '
                f"(batch_fn=...), or use {_OTHER_WAYS}."
            )
        indices = labels.long().cpu()
    else:
        indices = torch.full((n,), int(target))
    if int(indices.min()) < 0 or int(indices.max()) >= classes:
        raise ValueError(
            f"target={target!r} gives indices from {int(indices.min())} to {int(indices.max())}, but the model has "
            f"{classes} outputs (0 to {classes - 1})."
        )
    return indices


def choose(outputs: Tensor, indices: Tensor, target: Target) -> Tensor:
    """The explained number of each row, ``(N,)``.

    Raises:
        ValueError: If a tuple does not lie within the outputs.
    """
    if callable(target):
        return target(outputs)
    if isinstance(target, (tuple, list)):
        try:
            index: tuple[Any, ...] = (slice(None), *target)
            return outputs[index]
        except IndexError as error:
            raise ValueError(f"target={target!r} does not fit outputs {tuple(outputs.shape)}: {error}.") from error
    if _single(outputs):
        return outputs.reshape(len(outputs))
    return outputs.gather(1, indices[:, None]).squeeze(1)


def check_rows(outputs: Tensor, count: int) -> None:
    """Refuses outputs that have not one entry for each row.

    Raises:
        ValueError: If their number differs.
    """
    if len(outputs) != count:
        raise ValueError(
            f"The model returned {len(outputs)} rows for {count}; its output must be (N, ...), one entry for each row (see output_fn)."
        )


class Choice:
    """Chooses the targets of some rows from their outputs, and keeps both.

    Args:
        target: Which output is explained.
        labels: Labels of the rows, or ``None``.
    """

    outputs: Tensor
    indices: Tensor

    def __init__(self, target: Target, labels: Tensor | None) -> None:
        self._target, self._labels = target, labels
        self.refused = False

    def __call__(self, outputs: Tensor) -> Tensor:
        """``(N,)`` indices of the explained outputs."""
        self.outputs, self.refused = outputs.detach(), True
        self.indices = target_indices(self.outputs.cpu(), self._target, self._labels).to(outputs.device)
        self.refused = False
        return self.indices


def _single(outputs: Tensor) -> bool:
    return outputs.ndim == 1 or (outputs.ndim == 2 and outputs.shape[1] == 1)


class Run(Protocol):
    """What ``guard.explaining`` yields: calls the model."""

    calls: nn.ModuleList

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's value, inside the guard."""
        ...


class Explained(nn.Module):
    """A model as ``f(*inputs, *forward_args, target index) -> (N,)``, with the rows that went through it counted.

    It is a module so that Captum can hook the layers in it. It lives inside the guard and is thrown away. ``choices`` says among
    how many tensors of what the model returned the outputs were chosen without anybody saying so.

    Args:
        model: The module.
        run: What ``guard.explaining`` yields.
        target: Which output is explained.
        forward_fn: ``forward_fn(model, *inputs, *forward_args)`` instead of ``model(...)``.
        output_fn: The tensor in what the model returns, instead of :func:`output_tensor`.
        paced: Makes of the run a call that keeps step with other ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Run,
        target: Target,
        forward_fn: ForwardFn = None,
        output_fn: OutputFn = None,
        paced: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda run: run,
    ) -> None:
        super().__init__()
        # Both are parts of this module, for Captum to hook.
        self.model, self.calls = model, run.calls
        self._call = partial(paced(run), forward_fn, model) if forward_fn else partial(paced(run), model)
        self._target = target
        self._output_fn = output_fn
        self.choices = 1
        self._forward = self._backward = 0

    @property
    def passes(self) -> PassCount:
        """Rows counted so far."""
        return PassCount(self._forward, self._backward)

    def outputs(self, *arguments: Any) -> Tensor:
        """All outputs ``(N, ...)``, in float32 or higher."""
        outputs = self._chosen(self._call(*map(_own, arguments)))
        if outputs.ndim == 0:
            raise ValueError(
                "The model returned one number for all rows, such as a loss; its output must be (N, ...), one entry for "
                "each row. Otherwise give output_fn=lambda output: ..."
            )
        outputs = outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
        self._forward += len(outputs)
        if outputs.requires_grad:
            outputs.register_hook(self.count_backward)
        return outputs

    def _chosen(self, returned: Any) -> Tensor:
        if self._output_fn is None:
            found = output_tensor(returned)
            if isinstance(returned, (tuple, list)) and returned[0] is found:
                # A loss is no choice.
                self.choices = sum(isinstance(x, Tensor) and x.ndim > 0 for x in returned)
            return found
        try:
            outputs = self._output_fn(returned)
        except (LookupError, AttributeError, TypeError) as error:
            raise OutputError(
                f"output_fn failed on what the model returned, a {type(returned).__name__}: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(outputs, Tensor):
            raise OutputError(f"output_fn returned {type(outputs).__name__}; it must return a tensor (N, ...).")
        return outputs

    def count_backward(self, gradient: Tensor) -> None:
        """Counts the rows of a gradient that goes back into the model."""
        self._backward += len(gradient)

    def forward(self, *arguments: Any) -> Tensor:
        """The explained number of each row, ``(N,)``; the last argument is the targets, or a ``Choice`` of them."""
        *inputs, indices = arguments
        outputs = self.outputs(*inputs)
        check_rows(outputs, len(inputs[0]))
        return choose(outputs, indices(outputs) if callable(indices) else indices, self._target)


def _own(argument: Any) -> Any:
    """What the model is given: a copy, for it may change it in place."""
    value = argument.value if isinstance(argument, Shared) else argument
    return value.clone() if isinstance(value, Tensor) else value


def rows_for(model: nn.Module, probe: Probe) -> Rows:
    """The probe's rows, copied to where the model's weights are and as precise as they are."""
    like = next(model.parameters(), torch.empty(0))
    inputs = tuple(_moved(x, like) for x in as_tuple(probe.inputs))
    extra = tuple(_moved_argument(x, len(probe), like.device) for x in probe.forward_args)
    ids = probe.row_ids.cpu()
    return Rows(inputs, inputs, extra, ids, torch.zeros_like(ids))


def _moved(x: Tensor, like: Tensor) -> Tensor:
    dtype = like.dtype if x.is_floating_point() and like.is_floating_point() else x.dtype
    return x.detach().to(like.device, dtype, copy=True)


def _moved_argument(x: Any, count: int, device: torch.device) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.to(device) if x.ndim > 0 and len(x) == count else Shared(x.to(device))


def find_layer(model: nn.Module, name: str) -> nn.Module:
    """The submodule of that dotted name.

    Raises:
        ValueError: If there is none; the nearest names are listed.
    """
    with suppress(AttributeError):
        if name:
            return model.get_submodule(name)
    layers: dict[str, nn.Module] = {_plain(key): module for key, module in model.named_modules() if key}
    if _plain(name) not in layers:
        raise ValueError(f"There is no layer {name!r} in {type(model).__name__}: {nearest(name, layers)}")
    return layers[_plain(name)]


def _plain(name: str) -> str:
    """The name without the level that ``torch.compile`` adds."""
    return ".".join(part for part in name.split(".") if part != "_orig_mod")


def last_feature_map(model: nn.Module, forward: Callable[[], Any]) -> str | None:
    """Name of the module that is the last to return a map ``(N, C, h, w)`` with h*w > 1, or ``None``.

    Args:
        model: The module.
        forward: Runs the model once.
    """
    found: list[str] = []

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2] * output.shape[3] > 1:
                found.append(name)

        return hook

    # Modules compiled by TorchScript take no hooks.
    named = [(k, v) for k, v in model.named_modules() if k and not isinstance(v, torch.jit.ScriptModule)]
    handles = [module.register_forward_hook(note(_plain(name))) for name, module in named]
    try:
        forward()
    finally:
        for handle in handles:
            handle.remove()
    return found[-1] if found else None
