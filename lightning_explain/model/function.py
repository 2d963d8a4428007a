"""A model and a probe in; the explained function ``f(inputs) -> (N,)`` and the samples on the model's device out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lightning_explain.core.call import EACH, SIZES, Place, arguments
from lightning_explain.core.contracts import Target as TargetClass
from lightning_explain.core.detections import are_detections
from lightning_explain.core.probe import Probe, Samples, Shared, as_tuple
from lightning_explain.core.report import PassCount
from lightning_explain.core.serialization import plain
from lightning_explain.model.heads import SharedCalls
from lightning_explain.model.isolation import Run, restorer
from lightning_explain.model.reachable import hooks_of
from lightning_explain.model.targets import OutputError, Target, choose, output_tensor

ForwardFn: TypeAlias = "Callable[..., Any] | None"


OutputFn: TypeAlias = "Callable[[Any], Tensor] | None"


class TargetFunction(nn.Module):
    """A model as ``f(*inputs, *forward_args, target indices) -> (N,)``; counts the samples that go through it.

    It is a module, so that Captum can hook the layers in it. It exists only inside the isolation of one explanation.
    ``choices`` is the number of tensors in the model's return value from which the first was taken by default; 1 if
    there was no choice. ``dtype`` is the precision in which the model last returned its output, ``detects`` whether that was the
    detections of a detector. In a model that takes a list of images, thresholds of scores are 0 until the isolation puts them back,
    so that what is explained does not vanish where its score falls below; detections above the threshold stay what they are.

    Args:
        model: The module.
        run: What ``isolation.explaining`` yields.
        target: Which output is explained.
        forward_fn: Called as ``forward_fn(model, *inputs, *forward_args)`` instead of ``model(...)``.
        output_fn: Picks the output tensor from what the model returns, instead of :func:`output_tensor`.
        synchronized: Wraps the run in a call that stays in step with the other ranks.
        places: Where each of the inputs and forward arguments goes in the call; empty: in their order.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Run,
        target: Target,
        forward_fn: ForwardFn = None,
        output_fn: OutputFn = None,
        synchronized: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda run: run,
        places: tuple[Place, ...] = (),
    ) -> None:
        super().__init__()
        self.model = model
        self._places = places
        call = synchronized(run)
        self._call: Callable[..., Any] = partial(call, forward_fn, model) if forward_fn else partial(call, model)
        self._target = target
        self._output_fn = output_fn
        self.choices = 1
        self.detects = False
        self.dtype = torch.float32
        self._forward = self._backward = 0
        self._calls: SharedCalls | None = None
        # Only what takes a list of images is a detector; an attribute of that name elsewhere is another thing.
        for module in model.modules() if any(place[-1] == EACH for place in places) else ():
            if isinstance(vars(module).get("score_thresh"), float):
                vars(module)["score_thresh"] = 0.0
        self._run, self._restore_own = run, restorer(hooks_of(vars(self)))

    def remove_hooks(self) -> None:
        """Leaves this module without hooks, and those of the model with what they had when the isolation began."""
        self._run.remove_hooks()
        self._restore_own()

    @property
    def passes(self) -> PassCount:
        """How many samples went forward and backward so far."""
        return PassCount(self._forward, self._backward)

    @property
    def one_by_one(self) -> bool:
        """Whether samples go through the model one by one, as images of several sizes do."""
        return any(place[-1] == SIZES for place in self._places)

    def outputs(self, *values: Any) -> Tensor:
        """All outputs of the model, ``(N, ...)``, in float32 or higher; the values are its inputs and forward arguments.

        Raises:
            ValueError: If the model did not return one entry for each sample.
            OutputError: If there is no tensor to explain in what it returned.
        """
        if len(values[0]) > 1 and self.one_by_one:
            # Together, images would be padded to the largest of them, and so depend on each other.
            return torch.cat([self.outputs(*part) for part in _one_by_one(values)])
        outputs = plain(self._chosen(self.returned(*values)))
        if outputs.ndim == 0 or len(outputs) != len(values[0]):
            came = "one number for all samples, such as a loss"
            if outputs.ndim > 0:
                came = f"{len(outputs)} samples for {len(values[0])}"
            raise ValueError(
                f"The model returned {came}; its output must be (N, ...). Give output_fn=lambda output: ..., which picks that."
            )
        self.dtype = outputs.dtype
        outputs = outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
        self._forward += len(outputs)
        if outputs.requires_grad:
            outputs.register_hook(self.count_backward)
        return outputs

    def share(self, calls: SharedCalls) -> None:
        """Shares the calls of the model, so that what it returns can be used again."""
        self._calls, self._call = calls, calls.shared(self._call)

    @property
    def saved(self) -> float:
        """How many seconds the calls took whose results were used again."""
        return 0.0 if self._calls is None else self._calls.saved

    def returned(self, *values: Any) -> Any:
        """What the model returns; the values are its inputs and forward arguments."""
        copies = list(map(_own, values))
        positional, keywords = arguments(self._places, copies) if self._places else (copies, {})
        return self._call(*positional, **keywords)

    def _chosen(self, returned: Any) -> Tensor:
        if self._output_fn is None:
            picked = self._target.output(returned) if isinstance(self._target, TargetClass) else None
            if picked is not None:
                return picked
            found, self.detects = output_tensor(returned), are_detections(returned)
            if isinstance(returned, (tuple, list)) and returned[0] is found:
                # A loss is no candidate.
                self.choices = sum(isinstance(x, Tensor) and x.ndim > 0 for x in returned)
            return found
        try:
            outputs = self._output_fn(returned)
        except OutputError:
            raise
        except (LookupError, AttributeError, TypeError) as error:
            raise OutputError(
                f"output_fn failed on what the model returned, a {type(returned).__name__}: {type(error).__name__}: {error}. "
                "Change output_fn so that it picks a tensor (N, ...) from that."
            ) from error
        if not isinstance(outputs, Tensor):
            raise OutputError(f"output_fn returned {type(outputs).__name__}; change it to return a tensor (N, ...).")
        return outputs

    def count_backward(self, gradient: Tensor) -> None:
        """Adds the N samples of a gradient ``(N, ...)`` to the backward count; a hook on the outputs."""
        self._backward += len(gradient)

    def forward(self, *values: Any) -> Tensor:
        """The explained outputs ``(N,)``; the last value is the target indices ``(N,)``, or a ``Choice``."""
        *inputs, indices = values
        outputs = self.outputs(*inputs)
        return choose(outputs, indices(outputs) if callable(indices) else indices, self._target, tuple(inputs))


def _one_by_one(values: Sequence[Any]) -> Iterator[list[Any]]:
    """The arguments of a call with N samples as those of N calls."""
    for i in range(len(values[0])):
        yield [x[i : i + 1] if isinstance(x, Tensor) else x for x in values]


def _own(argument: Any) -> Any:
    """A copy of the argument for the model, which may change it in place."""
    value = argument.value if isinstance(argument, Shared) else argument
    return value.clone() if isinstance(value, Tensor) else value


def samples_for(model: nn.Module, probe: Probe) -> Samples:
    """The probe's samples, copied to the device of the model's parameters, and floating inputs to their dtype; uint16 becomes int32."""
    like = next(model.parameters(), torch.empty(0))
    inputs = tuple(_moved(x, like) for x in as_tuple(probe.inputs))
    extra = tuple(_moved_argument(x, len(probe), like.device) for x in probe.forward_args)
    ids = probe.sample_ids.cpu()
    return Samples(inputs, inputs, extra, ids, torch.zeros_like(ids))


# With the unsigned types, torch can do little but convert them.
_WIDER = {torch.uint16: torch.int32, torch.uint32: torch.int64, torch.uint64: torch.int64}


def _moved(x: Tensor, like: Tensor) -> Tensor:
    dtype = like.dtype if x.is_floating_point() and like.is_floating_point() else _WIDER.get(x.dtype, x.dtype)
    return x.detach().to(like.device, dtype, copy=True)


def _moved_argument(x: Any, count: int, device: torch.device) -> Any:
    if not isinstance(x, Tensor):
        return x
    return x.to(device) if x.ndim > 0 and len(x) == count else Shared(x.to(device))
