"""One examination: structure first, then a few measurements, then a verdict for each method."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_explain.checks import findings as rules
from lightning_explain.checks import measurements as measure
from lightning_explain.checks import method_properties
from lightning_explain.checks.findings import Finding
from lightning_explain.checks.submodels import From, UpTo
from lightning_explain.checks.trace import Op, Record, probabilities, record, reentrant
from lightning_explain.core.contracts import Method
from lightning_explain.core.probe import Probe, Samples
from lightning_explain.core.verdict import Canonizer, Verdict
from lightning_explain.model.function import ForwardFn, OutputFn, TargetFunction, samples_for
from lightning_explain.model.isolation import Run, explaining
from lightning_explain.model.layers import find_layer
from lightning_explain.model.targets import Target, choose, target_indices

SAMPLES = 3
MOST_SAMPLES = 2 * SAMPLES
"""Samples that the model sees at once: each beside what it is compared with."""
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
    """Says of each method whether it is right on this model, with the reason and the fix.

    It looks at at most three samples; the model is as before afterwards.

    Args:
        model: The module, as it is trained.
        methods: By name.
        probe: The samples that will be explained.
        target: Which output is explained.
        forward_fn: ``forward_fn(model, *inputs, *forward_args)`` instead of ``model(...)``.
        output_fn: The tensor in what the model returns.
        forward_context: Entered around each forward, such as autocast.
        limit: Samples the model may see in one call; at least two are needed.
    """
    count = max(2, min(limit, SAMPLES))
    inplace = any(getattr(module, "inplace", None) is True for module in model.modules())
    with explaining(model, forward_context) as run:
        target_function = TargetFunction(model, run, target, forward_fn, output_fn)
        samples = _samples(model, probe, count)
        seen = record(model, target_function.outputs, samples.inputs, samples.extra)
        indices = target_indices(seen.outputs.detach().cpu(), target, _labels(probe, count))
        indices = indices.to(seen.outputs.device)
        chosen = choose(seen.outputs, indices, target)
        context = DoctorContext(
            model, run, target_function, samples, seen, indices, chosen, inplace, len(probe), max(1, limit // 2)
        )
        return [context.verdict(name, method) for name, method in methods.items()]


def unexamined(methods: Mapping[str, Method]) -> list[Verdict]:
    """What is to be said where the model cannot be run on two samples: rules that may be wrong are refused."""
    ruled = [
        name
        for name, method in methods.items()
        if method_properties.rule(method_properties.innermost(method)) in ("deeplift", "lrp")
    ]
    reason = "two samples at once do not fit into memory, so nobody can say whether its rule is right on this model"
    return [Verdict(name, "refused", reason, f"explain smaller inputs, or {rules.INSTEAD}", ()) for name in ruled]


def _samples(model: nn.Module, probe: Probe, count: int) -> Samples:
    samples = samples_for(model, probe)[:count]
    return samples if len(samples) > 1 else _doubled(samples)


def _doubled(samples: Samples) -> Samples:
    """A second sample that differs, for with one sample nothing can be seen of how samples influence each other."""
    return samples.repeat(2).at(tuple(torch.cat([x, _another(x)]) for x in samples.inputs))


def _another(x: Tensor) -> Tensor:
    """Half of a sample; of whole numbers, which name things, the first everywhere."""
    return x * 0.5 if x.is_floating_point() else x.reshape(1, -1)[:, :1].reshape(1, *[1] * (x.ndim - 1)).expand_as(x)


def _labels(probe: Probe, count: int) -> Tensor | None:
    if probe.targets is None:
        return None
    labels = probe.targets[:count]
    return labels if len(labels) > 1 else labels.repeat_interleave(2, dim=0)


@dataclass(eq=False)
class DoctorContext:
    """A model inside the guard, and what one forward of it showed."""

    model: nn.Module
    run: Run
    target_function: TargetFunction
    samples: Samples
    seen: Record
    indices: Tensor
    chosen: Tensor
    inplace: bool
    probe_size: int
    pairs: int
    measured: dict[Hashable, float | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.whole = measure.agreement(
            self.target_function, self.samples, self.seen.outputs.detach(), self.seen.low_precision
        )

    def verdict(self, name: str, method: Method) -> Verdict:
        """The worst of what was found about the method, with every reason of that kind."""
        inner = method_properties.innermost(method)
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
            tuple(m for f in findings for m in f.canonizers) if state != "refused" else (),
        )

    def _few_samples(self, method: Method) -> list[Finding]:
        if type(method).__name__ != "FeaturePermutation" or self.probe_size > 1:
            return []
        return [
            Finding(
                "refused", "it permutes across the samples of the probe, which has one", "give at least two samples"
            )
        ]

    def _layer(self, method: Method) -> list[Finding]:
        name = getattr(method, "layer", None)
        if name is None:
            return []
        try:
            layer = self._module(method)
        except ValueError as error:
            return [Finding("refused", str(error).rstrip("."), "name another layer")]
        calls = self.seen.calls[id(layer)]
        if calls == 0:
            reason = f"the layer {name!r} is not run for this input"
            return [Finding("refused", reason, "name a layer that forward calls as a module")]
        if id(layer) in self.seen.nested and not method_properties.of_input(method):
            reason = f"the layer {name!r} does not return a tensor, or a plain tuple of tensors"
            if method_properties.place(method) == "neuron" and not callable(method.neuron_selector):  # type: ignore[attr-defined]
                fix = "give a callable neuron_selector, which chooses from what it returns"
                return [Finding("refused", reason, fix)]
            if not method_properties.picks_tensors(method):
                fix = "name a layer that returns a tensor, or use LayerGradientXActivation or LayerConductance"
                return [Finding("refused", reason, fix)]
        if calls == 1:
            return self._leads_nowhere(method, name, layer)
        reason = f"the layer {name!r} runs {calls} times in one forward, "
        if method_properties.replaces_the_layer(method):
            return [Finding("refused", f"{reason}and would be replaced each time", "name a layer that runs once")]
        return [Finding("warned", f"{reason}and the last time is explained", "name a layer that runs once")]

    def _module(self, method: Method) -> nn.Module:
        """The layer that the method names."""
        return find_layer(self.model, str(getattr(method, "layer", None)))

    def _leads_nowhere(self, method: Method, name: str, layer: nn.Module) -> list[Finding]:
        """An auxiliary head, or a branch that is thrown away."""
        backward = method_properties.rule(method) != "none" and method_properties.place(method) == "layer"
        if (
            not (backward or method_properties.goes_through(method))
            or method_properties.of_input(method)
            or id(layer) not in self.seen.ends
        ):
            return []
        if not self.seen.outputs.requires_grad or self.seen.leads_on(layer):
            return []
        reason = f"the explained output does not depend on the layer {name!r} through anything that has a gradient"
        return [Finding("refused", reason, "name another layer, or choose another output (output_fn)")]

    def _whole_numbers(self, method: Method) -> list[Finding]:
        if all(x.is_floating_point() for x in self.samples.inputs):
            return []
        if method_properties.adds_noise(method):
            fix = "use the method without the noise tunnel"
            return [Finding("refused", "it adds noise to inputs that are whole numbers", fix)]
        if method_properties.reads_input(method_properties.innermost(method)):
            layers = "LayerIntegratedGradients or LayerGradientXActivation"
            fix = f"explain an embedding layer, with {layers}"
            if not any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in self.model.modules()):
                fix = f"give floating-point inputs (batch_fn), or explain a layer, with {layers}"
            return [Finding("refused", "it takes the gradient of inputs that are whole numbers", fix)]
        return []

    def _gradient(self, method: Method) -> list[Finding]:
        if method_properties.rule(method) == "none":
            return []
        if not self.seen.outputs.requires_grad:
            reason = "the output does not depend on the input through anything that has a gradient"
            fix = "remove what cuts it off (torch.no_grad(), detach(), argmax, rounding), or use Occlusion"
            return [Finding("refused", reason, fix)]
        if not self.chosen.requires_grad and (
            method_properties.place(method) != "neuron" or method_properties.goes_through(method)
        ):
            reason = "what target chooses does not depend on the outputs through anything that has a gradient"
            fix = "choose it without detach(), item(), argmax or rounding: target=lambda output: output[:, 0]; or use Occlusion"
            return [Finding("refused", reason, fix)]
        return [*self._checkpointed(), *self._unread(method), *self._recurrent(), *self._saturated(method)]

    def _checkpointed(self) -> list[Finding]:
        if not reentrant(self.seen.outputs.grad_fn):
            return []
        reason = "torch.utils.checkpoint(use_reentrant=True) gives gradients to parameters only by backward(), and to inputs not at all"
        return [Finding("refused", reason, "checkpoint with use_reentrant=False")]

    def _unread(self, method: Method) -> list[Finding]:
        """Captum, too, takes the gradient at all inputs or at none."""
        if not method_properties.reads_input(method):
            return []
        unit = self._module(method) if method_properties.place(method) == "neuron" else None
        if unit is not None and id(unit) not in self.seen.ends:
            return []
        unread = self.seen.unread(unit)
        if not unread:
            return []
        what = f"the layer {method.layer!r}" if unit is not None else "the output"  # type: ignore[attr-defined]
        reason = f"{what} does not depend on {rules.listed(f'inputs[{i}]' for i in unread)} through anything that has a gradient"
        return [Finding("refused", reason, "hand it on without explaining it: Probe(forward_args=...)")]

    def _recurrent(self) -> list[Finding]:
        if not any(isinstance(m, nn.RNNBase) and self.seen.calls[id(m)] for m in self.model.modules()):
            return []
        reason = "cuDNN cannot go back through a recurrent layer in eval mode, so it is off while explaining"
        return [Finding("canonized", reason, canonizers=(Canonizer("recurrent"),))]

    def _saturated(self, method: Method) -> list[Finding]:
        """A softmax whose values are the outputs flattens every gradient that is taken at the sample alone."""
        name = probabilities(self.seen.outputs.grad_fn) if method_properties.at_the_point(method) else None
        if name is None:
            return []
        where = next((str(op) for op in reversed(self.seen.ops) if op.name in name), name[0])
        reason = f"the outputs are probabilities ({where}), whose gradients vanish where the model is sure"
        return [Finding("warned", reason, "return logits, or give output_fn")]

    def _rule(self, method: Method) -> list[Finding]:
        rule = method_properties.rule(method)
        if rule in ("gradient", "none"):
            return []
        scripted = [n for n, m in self.model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
        if scripted:
            reason = f"{rules.listed(scripted)} is scripted, and the rule cannot reach what runs inside"
            return [Finding("refused", reason, f"give the module before torch.jit.script, or {rules.INSTEAD}")]
        if rule == "lrp":
            return rules.lrp(self.model, self.seen)
        ops = self._passed(method)
        beyond = (
            rule == "deeplift" and method_properties.goes_back(method) == "layer" and method_properties.of_input(method)
        )
        findings_of_state = self._module(method) if beyond else None
        rescaled = rules.deeplift(self.seen, ops, findings_of_state)
        found = list(rescaled if rule == "deeplift" else rules.guided(self.seen, ops))
        if self.inplace:
            found.append(
                Finding(
                    "canonized", "activations run out of place while explaining", canonizers=(Canonizer("inplace"),)
                )
            )
        if any(f.state == "refused" for f in rescaled):
            return found
        if rule == "deeplift":
            return found + rules.missed(self._misses(method, tuple(m for f in found for m in f.canonizers)))
        if any(f.state == "warned" for f in found):
            return found
        missed = self._misses(method, (rules.deeplift_canonizer(self.seen),))
        return [*found, rules.UNGUIDED] if isinstance(missed, float) and missed > rules.INCOMPLETE else found

    def _passed(self, method: Method) -> list[Op]:
        """The calls the method goes back through: all, those after its layer, or those before its neuron."""
        place = method_properties.goes_back(method)
        if place == "input":
            return self.seen.ops
        first, last = self.seen.spans[id(self._module(method))]
        if place == "neuron":
            return self.seen.ops[: first if method_properties.of_input(method) else last]
        return self.seen.ops[first if method_properties.of_input(method) else last :]

    def _misses(self, method: Method, canonizers: tuple[Canonizer, ...]) -> float | str:
        """By how much DeepLIFT's map misses its sum in the part of the model that the method goes back through, or why it cannot be."""
        place, of_input = method_properties.goes_back(method), method_properties.of_input(method)
        layer = None if place == "input" else self._module(method)
        if layer is not None and self.seen.calls[id(layer)] > 1:
            return 0.0
        key = (canonizers, place, layer, of_input)
        if key not in self.measured:
            try:
                with self.run.canonized(canonizers):
                    self.measured[key] = self._measured(place, layer, of_input)
            except AssertionError as error:
                # So Captum says that it cannot; all other errors are accidents.
                self.measured[key] = str(error)
        return self.measured[key]

    def _measured(self, place: str, layer: nn.Module | None, of_input: bool) -> float:
        samples = replace(self.samples, extra=(*self.samples.extra, self.indices))[: self.pairs]
        baselines, coarse = measure.baselines_of(samples), self.seen.low_precision
        if layer is None:
            return measure.completeness(self.target_function, samples, baselines, coarse)
        if place == "neuron":
            return measure.completeness(UpTo(self.target_function, layer, of_input), samples, baselines, coarse)
        beyond = From(self.target_function, layer, of_input)
        baselines, samples = [beyond.at(samples, b).inputs for b in baselines], beyond.at(samples, samples.inputs)
        with beyond.replacing():
            return measure.completeness(beyond, samples, baselines, coarse)
