"""The model doctor: from what preflight recorded, and a method, to the verdict on that method.

Structure decides; only an activation that is not called as one has to be measured, for methods that guide ReLUs.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_explain.checks import findings as rules
from lightning_explain.checks.findings import Finding
from lightning_explain.checks.submodels import UpTo
from lightning_explain.checks.trace import probabilities, reentrant
from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.points import DEEPLIFT, LayerSite, path_of
from lightning_explain.core.probe import Samples
from lightning_explain.core.record import Op, Record, node_of
from lightning_explain.core.report import SumCheck
from lightning_explain.core.verdict import Verdict
from lightning_explain.engine.evaluate import check_length
from lightning_explain.engine.features import features_of
from lightning_explain.engine.pairs import rescaled
from lightning_explain.engine.pass_size import within_memory
from lightning_explain.engine.rules import INSTEAD, NoRuleError, check_precision, check_softmax
from lightning_explain.modalities.placement import arrange
from lightning_explain.model.layers import default_layer, find_layer

_ORDER = ("fine", "canonized", "warned", "refused")
# Points of a path that are generated: the first is often the sample itself.
_POINTS = 2


@dataclass(eq=False)
class DoctorContext:
    """What is known of a model, inside the isolation.

    Args:
        model: The module.
        explained: The explained function.
        record: The record of one forward pass on a few samples.
        whole: What refuses every method.
        probe_size: Samples in the probe.
        examined: Whether two samples at once fit into memory.
    """

    model: nn.Module
    explained: ExplainedFunction
    record: Record
    whole: list[Finding]
    probe_size: int
    examined: bool = True
    _hidden: dict[Any, bool] = field(default_factory=dict)

    @cached_property
    def sample(self) -> Samples:
        """One sample, with its target."""
        few = self.record.samples
        return replace(few, extra=(*few.extra, self.record.indices))[:1]

    @cached_property
    def layer(self) -> str | None:
        """The default layer of layer methods; ``None`` if there is none."""
        return default_layer(self.model, self.record)

    def at(self, method: Method) -> Method:
        """The method, at the default layer if it needs one and names none.

        Raises:
            ValueError: If there is no default layer.
        """
        return method.at(self.layer)

    def has_map(self, method: Method) -> bool:
        """Whether the method's map has a place in input space.

        Raises:
            ValueError: If ``reshape`` does not fit its layer.
        """
        inner: Any = method.innermost
        if not inner.layer_shaped:
            return True
        layer, of_input = self._module(inner), inner.of_input
        passed = self.record.passed(layer, of_input)
        tensors = tuple(t.detach() for t in passed.tensors) if passed else ()
        inputs, modalities = self.record.samples.inputs, self.explained.modalities
        return arrange(tensors, inputs, modalities, inner.reshape, layer, of_input) is not None

    def verdict(self, name: str, method: Method) -> Verdict:
        """Returns the verdict on a method: the worst state among its findings, with all reasons for it."""
        findings = list[Finding]()
        for check in (self._everything, self._gradient, self._rule, self._arguments):
            try:
                found = check(self.at(method))
            except ValueError as error:
                found = [Finding("refused", str(error).rstrip("."))]
            findings += found
            if any(finding.state == "refused" for finding in found):
                break
        state = max((f.state for f in findings), key=_ORDER.index, default="fine")
        findings_of_state = [f for f in findings if f.state == state or state != "refused"]
        return Verdict(
            name,
            state,
            "; ".join(f.reason for f in findings_of_state),
            "; ".join(dict.fromkeys(f.fix for f in findings_of_state if f.fix)),
        )

    def _everything(self, method: Method) -> list[Finding]:
        inner = method.innermost
        return [*self.whole, *self._layer(inner), *self._whole_numbers(method), *self._few_samples(inner)]

    def _arguments(self, method: Method) -> list[Finding]:
        """Checks that arguments fit a sample, by building its baselines, features and first points."""
        inner = method.innermost
        try:
            with torch.no_grad():
                self._try_out(inner)
        except (TypeError, AssertionError, IndexError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = f"it does not fit the samples: {str(error).rstrip('.')}"
            return [Finding("refused", reason, f"check its arguments: {str(inner)[:500]}")]
        return []

    def _try_out(self, method: Method) -> None:
        explained, sample = self.explained, self.sample
        (explained.distribution if method.takes_distribution else explained.baseline)(method.baselines, sample)
        if method.feature_mask is not None:
            features_of(method.feature_mask, explained, sample)
        method.fits(explained, sample, self._activation(method))
        if method.layer_shaped and method.reshape not in (None, "none") and not self.has_map(method):
            raise ValueError(
                f"it has reshape={method.reshape!r}, which needs a layer that returns one tensor, and a model whose only input is "
                "an image (N, C, H, W); leave reshape out."
            )
        path = path_of(method)
        floating = all(x.is_floating_point() for x in sample.inputs)
        for point in islice(path.points(explained, sample), _POINTS) if path is not None else ():
            if not (floating or method.reads):
                # Whether the model takes such integers (ids outside of a vocabulary) shows only when it runs.
                explained.evaluate(point.samples)

    def _activation(self, method: Method) -> Any:
        """What the method's layer received or returned for one sample; ``None`` without a layer."""
        passed = None if method.layer is None else self.record.passed(self._module(method), method.of_input)
        value = None if passed is None else passed.value
        value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        return tree_map_only(Tensor, lambda t: t.detach()[:1] if t.ndim else t, value)

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
        calls, passed = self.record.calls[id(layer)], self.record.passed(layer, method.of_input)
        if passed is None:
            reason = f"the layer {name!r} does not run for this input"
            return [Finding("refused", reason, "name a layer that the model's forward calls as a module")]
        if not passed.plain and not method.of_input:
            reason = f"the layer {name!r} does not return a tensor, or a plain tuple of tensors"
            if method.place == "neuron" and not callable(method.neuron_selector):
                fix = "give a callable neuron_selector, which selects from what the layer returns"
                return [Finding("refused", reason, fix)]
            if method.tensor_layers_only:
                fix = "name a layer that returns a tensor, or use LayerGradientXActivation or LayerConductance"
                return [Finding("refused", reason, fix)]
        for tensor in passed.tensors if method.place == "layer" else ():
            check_length(LayerSite(name, method.of_input), tensor, len(self.record.samples))
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
        floating = any(t.is_floating_point() for t in self.record.returned[id(layer)].tensors)
        if not (backward or method.through_neuron) or method.of_input or not floating:
            return []
        if not self.record.chosen.requires_grad or self.record.leads_on(layer):
            return []
        reason = f"no gradient flows from the explained output back to the layer {name!r}"
        return [Finding("refused", reason, "name another layer, or select another output with output_fn")]

    def _whole_numbers(self, method: Method) -> list[Finding]:
        if all(x.is_floating_point() for x in self.record.samples.inputs):
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
        method = method.innermost
        if method.backward_rule == "none":
            return []
        if not self.record.outputs.requires_grad:
            reason = "no gradient flows from the output back to the input"
            fix = "remove what blocks it (torch.no_grad(), detach(), argmax, rounding), or use Occlusion"
            return [Finding("refused", reason, fix)]
        if not self.record.chosen.requires_grad and (method.place != "neuron" or method.through_neuron):
            reason = "no gradient flows from what target selects back to the outputs"
            fix = "select it without detach(), item(), argmax or rounding: target=lambda output: output[:, 0]; or use Occlusion"
            return [Finding("refused", reason, fix)]
        return [*self._checkpointed(), *self._unread(method), *self._recurrent(), *self._saturated(method)]

    def _checkpointed(self) -> list[Finding]:
        if not reentrant(self.record.outputs.grad_fn):
            return []
        reason = "torch.utils.checkpoint(use_reentrant=True) gives parameters gradients only in backward(), and inputs none at all"
        return [Finding("refused", reason, "use torch.utils.checkpoint with use_reentrant=False")]

    def _unread(self, method: Method) -> list[Finding]:
        """Finds inputs without a gradient: as in Captum, the gradient is taken at all inputs or at none."""
        if not method.differentiates_input:
            return []
        unit = self._module(method) if method.place == "neuron" else None
        if unit is not None and not any(t.is_floating_point() for t in self.record.returned[id(unit)].tensors):
            return []
        unread = self.record.unread(unit)
        if not unread:
            return []
        what = f"the layer {method.layer!r}" if unit is not None else "the output"
        reason = f"no gradient flows from {what} back to {rules.listed(f'inputs[{i}]' for i in unread)}"
        return [Finding("refused", reason, "pass it without explaining it: Probe(forward_args=...)")]

    def _recurrent(self) -> list[Finding]:
        if not any(isinstance(m, nn.RNNBase) and self.record.calls[id(m)] for m in self.model.modules()):
            return []
        reason = "cuDNN has no backward pass for recurrent layers in eval mode; while explaining, cuDNN is switched off"
        return [Finding("canonized", reason)]

    def _saturated(self, method: Method) -> list[Finding]:
        """Warns of outputs that are probabilities: at the sample itself, softmax and sigmoid make gradients vanish."""
        name = probabilities(self.record.outputs.grad_fn) if method.at_sample else None
        if name is None:
            return []
        where = next((str(op) for op in reversed(self.record.ops) if op.name in name), name[0])
        reason = f"the outputs are probabilities ({where}), whose gradients vanish where the model is confident"
        return [Finding("warned", reason, "return logits, or select them with output_fn")]

    def _rule(self, method: Method) -> list[Finding]:
        method = method.innermost
        rule = method.backward_rule
        if rule in ("plain", "none"):
            return []
        if rule in ("deeplift", "lrp") and not self.examined:
            reason = "two samples at once do not fit into memory, so its backward rule cannot be checked on this model"
            return [Finding("refused", reason, f"explain smaller inputs, or {INSTEAD}")]
        scripted = [n for n, m in self.model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
        if scripted:
            reason = f"{rules.listed(scripted)} is a TorchScript module, and the backward rule cannot be applied inside"
            return [Finding("refused", reason, f"explain the module that went into torch.jit.script, or {INSTEAD}")]
        if rule == "lrp":
            return rules.lrp(self.model, self.record)
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
            return self.record.ops
        first, last = self.record.spans[id(self._module(method))]
        if place == "neuron":
            return self.record.ops[: first if method.of_input else last]
        return self.record.ops[first if method.of_input else last :]

    def _deeplift(self, method: Method) -> list[Finding]:
        """Finds what DeepLIFT has no rule for on the method's backward pass."""
        place, record = method.ends_at, self.record
        begins = [node_of(x) for x in record.points if x.requires_grad]
        at = [] if place == "input" else self._nodes(method)
        starts, ends = (at, begins) if place == "neuron" else ([record.chosen.grad_fn], at or begins)
        try:
            check_precision(self.explained.forward)
            check_softmax(starts, ends)
            if any(op.name == "grad" for op in self._passed(method)):
                # Whether a rule is needed inside a gradient that the model takes itself shows only when it runs.
                self._sums(method)
        except NoRuleError as error:
            return [Finding("refused", f"DeepLIFT {error.reason}", error.fix)]
        return []

    def _nodes(self, method: Method) -> list[Any]:
        passed = self.record.passed(self._module(method), method.of_input)
        return [] if passed is None else passed.nodes

    def _hidden_activation(self, method: Method) -> bool:
        """Whether that submodel has an activation that is not called as one: DeepLIFT's sum is wrong."""
        place = method.ends_at
        key = (place, None if place == "input" else self._module(method), method.of_input)
        if key not in self._hidden:
            checks = self._sums(method) if self.examined else []
            wrong = ((c.error.abs() > 1e-2 * c.change.abs() + 1e-4 * c.size).any() for c in checks)
            self._hidden[key] = any(map(bool, wrong))
        return self._hidden[key]

    def _sums(self, method: Method) -> list[SumCheck]:
        """Checks DeepLIFT's sum on that submodel, for two baselines of a few samples."""
        place, of_input = method.ends_at, method.of_input
        forward: Any = self.explained.forward
        layer = None if place == "input" else self._module(method)
        if layer is not None and self.record.calls[id(layer)] > 1:
            return []
        site = LayerSite(str(method.layer), of_input) if place == "layer" else None
        if place == "neuron" and layer is not None:
            forward = UpTo(forward, layer, of_input)
        few, reads = self.record.samples, frozenset({(f"{DEEPLIFT}:1e-10", site)})

        def measured(pairs: int) -> list[SumCheck]:
            samples = replace(few, extra=(*few.extra, self.record.indices))[:pairs]
            halved = tuple(x.roll(1, 0) * (0.5 if x.is_floating_point() else 1) for x in samples.inputs)
            baselines = (tuple(map(torch.zeros_like, samples.inputs)), halved)
            passes = [rescaled(forward, self.explained.layer, samples, baseline, reads) for baseline in baselines]
            return [check for found in passes for check in found.checks.values()]

        return within_memory(measured, max(1, min(self.explained.limit // 2, len(few))))[0]
