"""The model doctor: from a model, methods and samples to one verdict per method.

Structure is checked first, then a few passes are measured.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_explain.checks import findings as rules
from lightning_explain.checks import measurements as measure
from lightning_explain.checks.findings import Finding
from lightning_explain.checks.submodels import UpTo
from lightning_explain.checks.trace import Op, Record, probabilities, record, reentrant
from lightning_explain.core.contracts import Method
from lightning_explain.core.points import DEEPLIFT, LayerSite
from lightning_explain.core.probe import Probe, Samples
from lightning_explain.core.report import SumCheck
from lightning_explain.core.verdict import Verdict
from lightning_explain.engine.pairs import rescaled
from lightning_explain.engine.rules import INSTEAD, NoRuleError
from lightning_explain.model.function import ForwardFn, OutputFn, TargetFunction, samples_for
from lightning_explain.model.isolation import explaining
from lightning_explain.model.layers import find_layer
from lightning_explain.model.targets import Target, choose, target_indices

SAMPLES = 3
MOST_SAMPLES = 2 * SAMPLES
"""Most samples in one call of the model: each sample with its baseline."""
_ORDER = ("fine", "canonized", "warned", "refused")


def doctor(
    model: nn.Module,
    methods: Mapping[str, Method],
    probe: Probe,
    *,
    target: Target = "label",
    forward_fn: ForwardFn = None,
    output_fn: OutputFn = None,
    forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    limit: int = 32,
) -> list[Verdict]:
    """Examines methods on a model and returns a verdict for each: whether its map is right, why, and what to change.

    Runs the model on at most three samples, and leaves it as it was.

    Args:
        model: The module, as it is trained.
        methods: Methods by name.
        probe: The samples that will be explained.
        target: Which output is explained.
        forward_fn: ``forward_fn(model, *inputs, *forward_args)`` instead of ``model(...)``.
        output_fn: Selects the tensor in what the model returns.
        forward_context: Entered around each forward, such as autocast.
        limit: Most samples in one call of the model; at least two are needed.

    Returns:
        The verdicts, in the order of the methods.
    """
    count = max(2, min(limit, SAMPLES))
    with explaining(model, forward_context) as run:
        target_function = TargetFunction(model, run, target, forward_fn, output_fn)
        samples = _samples(model, probe, count)
        seen = record(model, target_function.outputs, samples.inputs, samples.extra)
        indices = target_indices(seen.outputs.detach().cpu(), target, _labels(probe, count))
        indices = indices.to(seen.outputs.device)
        chosen = choose(seen.outputs, indices, target)
        context = DoctorContext(model, target_function, samples, seen, indices, chosen, len(probe), max(1, limit // 2))
        return [context.verdict(name, method) for name, method in methods.items()]


def unexamined(methods: Mapping[str, Method]) -> list[Verdict]:
    """Returns the verdicts for a model that cannot run on two samples: backward rules that may be wrong are refused."""
    ruled = [name for name, method in methods.items() if method.innermost.backward_rule in ("deeplift", "lrp")]
    reason = "two samples at once do not fit into memory, so its backward rule cannot be checked on this model"
    return [Verdict(name, "refused", reason, f"explain smaller inputs, or {INSTEAD}") for name in ruled]


def _samples(model: nn.Module, probe: Probe, count: int) -> Samples:
    samples = samples_for(model, probe)[:count]
    return samples if len(samples) > 1 else _doubled(samples)


def _doubled(samples: Samples) -> Samples:
    """Adds a second, different sample: whether samples influence each other takes two."""
    return samples.repeat(2).at(tuple(torch.cat([x, _another(x)]) for x in samples.inputs))


def _another(x: Tensor) -> Tensor:
    """Returns half of a floating-point sample; for integers (ids), the first id everywhere."""
    return x * 0.5 if x.is_floating_point() else x.reshape(1, -1)[:, :1].reshape(1, *[1] * (x.ndim - 1)).expand_as(x)


def _labels(probe: Probe, count: int) -> Tensor | None:
    if probe.targets is None:
        return None
    labels = probe.targets[:count]
    return labels if len(labels) > 1 else labels.repeat_interleave(2, dim=0)


@dataclass(eq=False)
class DoctorContext:
    """A model inside the isolation, with a record of one forward pass.

    Args:
        model: The module.
        target_function: The model as a function of its inputs.
        samples: Two or three samples.
        seen: The record of the forward pass.
        indices: ``(N,)`` indices of the explained outputs.
        chosen: ``(N,)`` explained outputs, with their graph.
        probe_size: Samples in the probe.
        pairs: Most pairs of sample and baseline in one pass.
        tried: Checks of DeepLIFT's sum that were already made.
    """

    model: nn.Module
    target_function: TargetFunction
    samples: Samples
    seen: Record
    indices: Tensor
    chosen: Tensor
    probe_size: int
    pairs: int
    tried: dict[Hashable, list[SumCheck]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.whole = measure.agreement(
            self.target_function, self.samples, self.seen.outputs.detach(), self.seen.low_precision
        )

    def verdict(self, name: str, method: Method) -> Verdict:
        """Returns the verdict on a method: the worst state among its findings, with all reasons for it."""
        inner = method.innermost
        findings = [*self.whole, *self._layer(inner), *self._whole_numbers(method), *self._few_samples(inner)]
        if not any(f.state == "refused" for f in findings):
            findings += self._gradient(inner)
        if not any(f.state == "refused" for f in findings):
            findings += self._rule(inner)
        state = max((f.state for f in findings), key=_ORDER.index, default="fine")
        findings_of_state = [f for f in findings if f.state == state or state != "refused"]
        return Verdict(
            name,
            state,
            "; ".join(f.reason for f in findings_of_state),
            "; ".join(dict.fromkeys(f.fix for f in findings_of_state if f.fix)),
        )

    def _few_samples(self, method: Method) -> list[Finding]:
        if method.samples_needed <= self.probe_size:
            return []
        return [
            Finding(
                "refused",
                "it permutes features across samples, but the probe has only one",
                "give at least two samples",
            )
        ]

    def _layer(self, method: Method) -> list[Finding]:
        name = method.layer
        if name is None:
            return []
        try:
            layer = self._module(method)
        except ValueError as error:
            return [Finding("refused", str(error).rstrip("."), "name another layer")]
        calls = self.seen.calls[id(layer)]
        if calls == 0:
            reason = f"the layer {name!r} does not run for this input"
            return [Finding("refused", reason, "name a layer that the model's forward calls as a module")]
        if id(layer) in self.seen.nested and not method.of_input:
            reason = f"the layer {name!r} does not return a tensor, or a plain tuple of tensors"
            if method.place == "neuron" and not callable(method.neuron_selector):
                fix = "give a callable neuron_selector, which selects from what the layer returns"
                return [Finding("refused", reason, fix)]
            if method.tensor_layers_only:
                fix = "name a layer that returns a tensor, or use LayerGradientXActivation or LayerConductance"
                return [Finding("refused", reason, fix)]
        if calls == 1:
            return self._leads_nowhere(method, name, layer)
        reason = f"the layer {name!r} runs {calls} times in one forward pass, "
        if method.replaces_layer:
            return [Finding("refused", f"{reason}and every run would be replaced", "name a layer that runs once")]
        return [Finding("warned", f"{reason}and only the last run is explained", "name a layer that runs once")]

    def _module(self, method: Method) -> nn.Module:
        """Returns the layer that the method names."""
        return find_layer(self.model, str(method.layer))

    def _leads_nowhere(self, method: Method, name: str, layer: nn.Module) -> list[Finding]:
        """Finds layers without an effect on the output, such as an auxiliary head or a branch that is discarded."""
        backward = method.backward_rule != "none" and method.place == "layer"
        if not (backward or method.through_neuron) or method.of_input or id(layer) not in self.seen.ends:
            return []
        if not self.seen.outputs.requires_grad or self.seen.leads_on(layer):
            return []
        reason = f"no gradient flows from the explained output back to the layer {name!r}"
        return [Finding("refused", reason, "name another layer, or select another output with output_fn")]

    def _whole_numbers(self, method: Method) -> list[Finding]:
        if all(x.is_floating_point() for x in self.samples.inputs):
            return []
        if method.attribution_method is not None:
            fix = "use the method without NoiseTunnel"
            return [Finding("refused", "it adds noise to the inputs, but they are integers", fix)]
        if method.innermost.differentiates_input:
            layers = "LayerIntegratedGradients or LayerGradientXActivation"
            fix = f"explain an embedding layer with {layers}"
            if not any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in self.model.modules()):
                fix = f"convert the inputs to floating point (batch_fn), or explain a layer with {layers}"
            return [Finding("refused", "it takes the gradient at the inputs, but they are integers", fix)]
        return []

    def _gradient(self, method: Method) -> list[Finding]:
        if method.backward_rule == "none":
            return []
        if not self.seen.outputs.requires_grad:
            reason = "no gradient flows from the output back to the input"
            fix = "remove what blocks it (torch.no_grad(), detach(), argmax, rounding), or use Occlusion"
            return [Finding("refused", reason, fix)]
        if not self.chosen.requires_grad and (method.place != "neuron" or method.through_neuron):
            reason = "no gradient flows from what target selects back to the outputs"
            fix = "select it without detach(), item(), argmax or rounding: target=lambda output: output[:, 0]; or use Occlusion"
            return [Finding("refused", reason, fix)]
        return [*self._checkpointed(), *self._unread(method), *self._recurrent(), *self._saturated(method)]

    def _checkpointed(self) -> list[Finding]:
        if not reentrant(self.seen.outputs.grad_fn):
            return []
        reason = "torch.utils.checkpoint(use_reentrant=True) gives parameters gradients only in backward(), and inputs none at all"
        return [Finding("refused", reason, "use torch.utils.checkpoint with use_reentrant=False")]

    def _unread(self, method: Method) -> list[Finding]:
        """Finds inputs without a gradient: as in Captum, the gradient is taken at all inputs or at none."""
        if not method.differentiates_input:
            return []
        unit = self._module(method) if method.place == "neuron" else None
        if unit is not None and id(unit) not in self.seen.ends:
            return []
        unread = self.seen.unread(unit)
        if not unread:
            return []
        what = f"the layer {method.layer!r}" if unit is not None else "the output"
        reason = f"no gradient flows from {what} back to {rules.listed(f'inputs[{i}]' for i in unread)}"
        return [Finding("refused", reason, "pass it without explaining it: Probe(forward_args=...)")]

    def _recurrent(self) -> list[Finding]:
        if not any(isinstance(m, nn.RNNBase) and self.seen.calls[id(m)] for m in self.model.modules()):
            return []
        reason = "cuDNN has no backward pass for recurrent layers in eval mode; while explaining, cuDNN is switched off"
        return [Finding("canonized", reason)]

    def _saturated(self, method: Method) -> list[Finding]:
        """Warns of outputs that are probabilities: at the sample itself, softmax and sigmoid make gradients vanish."""
        name = probabilities(self.seen.outputs.grad_fn) if method.at_sample else None
        if name is None:
            return []
        where = next((str(op) for op in reversed(self.seen.ops) if op.name in name), name[0])
        reason = f"the outputs are probabilities ({where}), whose gradients vanish where the model is confident"
        return [Finding("warned", reason, "return logits, or select them with output_fn")]

    def _rule(self, method: Method) -> list[Finding]:
        rule = method.backward_rule
        if rule in ("plain", "none"):
            return []
        scripted = [n for n, m in self.model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
        if scripted:
            reason = f"{rules.listed(scripted)} is a TorchScript module, and the backward rule cannot be applied inside"
            return [Finding("refused", reason, f"explain the module that went into torch.jit.script, or {INSTEAD}")]
        if rule == "lrp":
            return rules.lrp(self.model, self.seen)
        if rule == "deeplift":
            return self._deeplift(method)
        ops = self._passed(method)
        found = rules.guided(ops)
        if any(f.state == "warned" for f in found) or not rules.is_exact(ops):
            return found
        return [*found, rules.UNGUIDED] if self._hidden_activation(method) else found

    def _passed(self, method: Method) -> list[Op]:
        """Returns the calls on the method's backward pass: all, those after its layer, or those before its neuron."""
        place = method.ends_at
        if place == "input":
            return self.seen.ops
        first, last = self.seen.spans[id(self._module(method))]
        if place == "neuron":
            return self.seen.ops[: first if method.of_input else last]
        return self.seen.ops[first if method.of_input else last :]

    def _deeplift(self, method: Method) -> list[Finding]:
        """Tries DeepLIFT's rule on the submodel that the method's backward pass goes through."""
        try:
            self._rescaled(method)
        except NoRuleError as error:
            return [Finding("refused", f"DeepLIFT {error.reason}", error.fix)]
        return []

    def _hidden_activation(self, method: Method) -> bool:
        """Whether that submodel has an activation that is not called as one: DeepLIFT's sum is wrong."""
        return any(
            bool((check.error.abs() > 1e-2 * check.change.abs() + 1e-4 * check.size).any())
            for check in self._rescaled(method)
        )

    def _rescaled(self, method: Method) -> list[SumCheck]:
        """Checks DeepLIFT's sum on that submodel, for two baselines of a few samples."""
        place, of_input = method.ends_at, method.of_input
        layer = None if place == "input" else self._module(method)
        if layer is not None and self.seen.calls[id(layer)] > 1:
            return []
        key = (place, layer, of_input)
        if key not in self.tried:
            site = LayerSite(str(method.layer), of_input) if place == "layer" else None
            neuron = UpTo(self.target_function, layer, of_input) if place == "neuron" and layer is not None else None
            samples = replace(self.samples, extra=(*self.samples.extra, self.indices))[: self.pairs]
            find, reads = partial(find_layer, self.model), frozenset({(f"{DEEPLIFT}:1e-10", site)})
            passes = [
                rescaled(neuron or self.target_function, find, samples, baselines, reads)
                for baselines in measure.baselines_of(samples)
            ]
            self.tried[key] = [check for found in passes for check in found.checks.values()]
        return self.tried[key]
