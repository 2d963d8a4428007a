"""The model doctor: from what preflight recorded, and a method, to the verdict on that method.

Structure decides; only an activation that is not called as one has to be measured, for methods that guide ReLUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice, permutations
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from lightning_explain.checks import findings as rules
from lightning_explain.checks.blind import blind
from lightning_explain.checks.default_layer import (
    DefaultLayer,
    attention_in,
    default_layer,
    is_linear_behind,
    reads_below_zero,
    weighs_places,
)
from lightning_explain.checks.findings import Finding, refused
from lightning_explain.checks.trace import probabilities, reads_whole, reentrant
from lightning_explain.core.contracts import Arrangement, ExplainedFunction, Method, Metric
from lightning_explain.core.points import DEEPLIFT, PLAIN, LayerSite, path_of
from lightning_explain.core.probe import Baseline, Samples, flat
from lightning_explain.core.record import AttentionSize, Op, Passed, Record, meet, node_of
from lightning_explain.core.report import SumCheck
from lightning_explain.core.verdict import Verdict
from lightning_explain.distributed.fsdp import is_sharded
from lightning_explain.engine.evaluate import by_sample, check_length, watching
from lightning_explain.engine.features import features_of
from lightning_explain.engine.pairs import rescaled
from lightning_explain.engine.pass_size import within_memory
from lightning_explain.engine.rules import INSTEAD, NoRuleError, check_precision, check_softmax
from lightning_explain.modalities.placement import arrange, place
from lightning_explain.model.layers import find_layer
from lightning_explain.targets.tasks import Task

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
        seconds: Measured time of a forward pass, for each sample.
        task: What the model was trained for, and which output is explained.
        examined: Whether two samples at once fit into memory.
        facts: What is known of the explained outputs of the probe, as in ``Report.explained``.
    """

    model: nn.Module
    explained: ExplainedFunction
    record: Record
    whole: list[Finding]
    probe_size: int
    seconds: float
    task: Task = field(default_factory=lambda: Task("other", "label"))
    examined: bool = True
    facts: Mapping[str, Tensor] = field(default_factory=dict)
    _hidden: dict[Any, bool] = field(default_factory=dict)
    _led: dict[LayerSite, bool] = field(default_factory=dict)

    @cached_property
    def few(self) -> Samples:
        """The recorded samples, with their targets."""
        return replace(self.record.samples, extra=(*self.record.samples.extra, self.record.indices))

    @property
    def layer(self) -> str | None:
        """The default layer of layer methods; ``None`` if there is none."""
        return self._default_layer.name

    @cached_property
    def _default_layer(self) -> DefaultLayer:
        detects = self.task.name == "detection"
        return default_layer(self.model, self.record, self.explained.modalities, self.explained.frames, detects)

    @cached_property
    def attention(self) -> tuple[AttentionSize, ...]:
        """Over what the model computes attention, for each sample, in the order in which it runs."""
        sizes = (self.record.ops[part.softmax].attends for part in attention_in(self.record))
        return tuple(size.within(len(self.record.samples)) for size in sizes if size is not None)

    @cached_property
    def averaging_misleads(self) -> bool:
        """Whether Grad-CAM's mean over the places of the default layer is wrong: each place has weights of its own.

        So it is where a class token weighs them, where frames of a video do as a recurrent network reads them (its gates saturate, and the
        gradient is that of other frames), where the output is linear, where much of what is read of the last map is below zero, as the
        features of a ConvNeXt (they hold values that are the same everywhere), and where a region of the outputs is explained, as in a
        segmentation: most places do not lead to it, whatever the region is before the model learns. Before nonlinear layers that read a
        flattened map behind a ReLU, and where a mean reads all tokens, Grad-CAM points at least as well as other maps of the layer.
        """
        layer = None if self.layer is None else find_layer(self.model, self.layer)
        if layer is None or self._default_layer.reads_several:
            return False
        if self.record.dense:
            return True
        tokens = len(self.attention) > 0 and self.record.returned[id(layer)].tensors[0].ndim == 3
        known = tokens or self._holds_frames(layer)
        if not self._weighs_places(layer, tokens, self.explained.frames):
            return False
        return known or is_linear_behind(layer, self.record) or reads_below_zero(layer, self.model, self.record)

    def _reads_apart(self, layer: nn.Module) -> bool:
        """Whether each place of a layer has weights of its own, but not because a mean reads all tokens behind attention."""
        return self._weighs_places(layer, frames=self.explained.frames) and not self._default_layer.reads_several

    def _uneven(self, name: str) -> Finding:
        """That the mean over the places of a layer may mislead: why, and the method that is the default there."""
        by_frame = self._holds_frames(find_layer(self.model, name)) and not self.record.dense
        reason = (rules.UNEVEN_FRAMES if by_frame else rules.UNEVEN).format(layer=name)
        return Finding("fine", reason, f"use {'HiResCAM' if self.record.dense else 'LayerIntegratedGradients'}")

    def _holds_frames(self, layer: nn.Module) -> bool:
        """Whether the frames of a video are among the samples of what a layer returns."""
        return len(self.record.returned[id(layer)].tensors[0]) > len(self.record.samples)

    def _weighs_places(self, layer: nn.Module, unknown: bool = False, frames: int = 1) -> bool:
        return weighs_places(layer, self.model, self.record, self.explained.modalities, unknown, frames)

    @cached_property
    def blind(self) -> Finding | None:
        """Columns of tables that decide although no gradient reaches them; ``None`` if there are none."""
        return blind(self.explained, self.few, self.model, self.record)

    @cached_property
    def blind_beside_lookups(self) -> Finding | None:
        """The same without the columns that embeddings look up."""
        return blind(self.explained, self.few, self.model, self.record, self.explained.lookups)

    def check_metric(self, metric: Metric) -> None:
        """Refuses a metric that cannot score the samples.

        Raises:
            ValueError: If it cannot.
        """
        if metric.baselines is not None:
            self._check_baselines(metric.baselines, self.explained.baseline)
        metric.check_samples(self.explained, self.few[:1])

    def _check_baselines(self, given: Baseline, make: Callable[[Baseline, Samples], tuple[Tensor, ...]]) -> None:
        """Refuses fractions in the place of ids, and baselines that do not fit."""
        inputs = self.few.inputs
        if all(x.is_floating_point() for x in inputs):
            make(given, self.few[:1])
            return
        for i, (x, points) in enumerate(zip(inputs, make(given, self.explained.probe), strict=True)):
            if points.is_floating_point() and not x.is_floating_point():
                where, first = int(flat(points.frac()).ne(0).any(1).int().argmax()), self.few[:1]
                moved = first.at((*first.inputs[:i], points[where : where + 1], *first.inputs[i + 1 :]))
                if reads_whole(lambda moved=moved: self.explained.evaluate(moved)):  # type: ignore[misc]
                    raise ValueError(
                        f"baselines are not values of {x.dtype}, but the model reads inputs[{i}] as ids or other whole numbers; give whole "
                        "numbers, such as the id of a mask or pad token"
                    )

    def has_map(self, method: Method) -> bool:
        """Whether the method's map has a place in input space.

        Raises:
            ValueError: If ``reshape`` does not fit its layer.
        """
        inner = method.innermost
        return not inner.layer_shaped or inner.layer is None or self._is_placed(inner)

    def _is_placed(self, inner: Method) -> bool:
        found = tuple(t.detach() for name in inner.layers for t in self._tensors(inner, name))
        how = Method.arrangement(inner, self.explained, found)
        return arrange(found, self.record.samples.inputs, self.explained.modalities, how) is not None

    def _tensors(self, method: Method, name: str | int) -> tuple[Tensor, ...]:
        """What one of the method's layers received or returned, or the input among them."""
        if isinstance(name, int):
            return self.record.points[name : name + 1]
        passed = self.record.passed(find_layer(self.model, name), method.of_input)
        return tuple(map(self._by_sample, passed.tensors)) if passed else ()

    def _by_sample(self, tensor: Tensor) -> Tensor:
        """What a layer has, with the samples first, where frames are among them."""
        return by_sample(tensor, len(self.record.samples), self.explained.frames)

    def verdict(self, name: str, method: Method) -> Verdict:
        """Returns the verdict on a method: the worst state among its findings, with all reasons for it."""
        findings = list(self.whole)
        try:
            self._together(method)
            placed = method.at(self.layer)
            for check in (self._layers, self._samples, self._gradient, self._rule, self._arguments):
                if not any(finding.state == "refused" for finding in findings):
                    findings += check(placed if check == self._samples else placed.innermost)
        except ValueError as error:
            findings.append(refused(str(error).rstrip(".")))
        state = max((f.state for f in findings), key=_ORDER.index, default="fine")
        findings_of_state = [f for f in findings if f.state == state or state != "refused"]
        return Verdict(
            name,
            state,
            "; ".join(f.reason for f in findings_of_state),
            "; ".join(dict.fromkeys(f.fix for f in findings_of_state if f.fix)),
        )

    def _together(self, method: Method) -> None:
        """Refuses methods of layers where samples go through the model one by one."""
        function: Any = self.explained.forward
        if method.innermost.place != "input" and function.one_by_one and len(self.record.samples) > 1:
            raise ValueError(
                "images of several sizes go through the model one by one, so that no layer has all of them at once; "
                "resize them to one size in the dataset, or in batch_fn."
            )

    def _layers(self, method: Method) -> Iterator[Finding]:
        for name in method.layers:
            if isinstance(name, str):
                one = method if method.layer == name else replace(method, layer=name)  # type: ignore[type-var]
                yield from self._layer(one, name)
                if one is not method and len(self._tensors(one, name)) > 1:
                    yield refused(
                        f"the layer {name!r} does not return a single tensor", "explain it with a separate method"
                    )
            elif name >= len(self.record.points) or not self.record.points[name].is_floating_point():
                whole = [i for i, x in enumerate(self.record.points) if x.is_floating_point()]
                yield refused(f"inputs[{name}] is not a floating-point input", f"name layers, or inputs among {whole}")
        for later, earlier in permutations(method.layers, 2):
            of, on = ([node_of(t) for t in self._tensors(method, n) if t.requires_grad] for n in (later, earlier))
            if meet(of, on):
                reason = f"the layer {later!r} depends on {earlier!r}, which moves together with it"
                yield refused(reason, "name layers of which none depends on another")

    def _layer(self, method: Method, name: str) -> Iterator[Finding]:
        try:
            layer = self._module(method)
        except ValueError as error:
            yield refused(str(error).rstrip("."), "name another layer")
            return
        calls, passed = self.record.calls[id(layer)], self._passed(method)
        if passed is None:
            reason = f"the layer {name!r} does not run for this input"
            yield refused(reason, "name a layer that the model's forward calls as a module")
            return
        if not passed.plain and not method.of_input:
            reason = f"the layer {name!r} does not return a tensor, or a plain tuple of tensors"
            if method.place == "neuron" and not callable(method.neuron_selector):
                yield refused(reason, "give a callable neuron_selector, which selects from what the layer returns")
            elif method.tensor_layers_only:
                fix = "name a layer that returns a tensor, or use LayerGradientXActivation or LayerConductance"
                yield refused(reason, fix)
        for tensor in passed.tensors if method.place == "layer" else ():
            by_hand = (method.path is None and not method.by_frame) or method.backward_rule == "deeplift"
            found = tensor if by_hand else self._by_sample(tensor)
            check_length(LayerSite(name, method.of_input), found, len(self.record.samples))
        # An auxiliary head, or a branch that is discarded.
        ends_there = (method.backward_rule != "none" and method.place == "layer") or method.through_neuron
        differentiable = passed.floating and self.record.chosen.requires_grad and not method.of_input
        if calls == 1 and ends_there and differentiable and not self._leads_on(method):
            reason = f"no gradient flows from the explained output back to the layer {name!r}"
            yield refused(reason, "name another layer, or select another output with output_fn")
        elif calls == 1 and differentiable and method.at_sample and self._reads_other_tokens(method, passed):
            reason = (
                f"after the layer {name!r} the output reads none of the patches, only a class token: the map is zero"
            )
            yield Finding("warned", reason, "name an earlier layer, before the last attention")
        elif calls == 1 and differentiable and method.averages_places and self._reads_apart(layer):
            yield self._uneven(name)
        reason = f"the layer {name!r} runs {calls} times in one forward pass, "
        if calls > 1 and method.replaces_layer:
            yield refused(f"{reason}and every run would be replaced", "name a layer that runs once")
        elif calls > 1:
            yield Finding("warned", f"{reason}and only the last run is explained", "name a layer that runs once")

    def _reads_other_tokens(self, method: Method, passed: Passed) -> bool:
        """Whether the output depends on tokens of the layer that lie nowhere on the image, and on no others."""
        tokens = passed.value
        if not isinstance(tokens, Tensor) or tokens.ndim != 3 or not tokens.requires_grad or is_sharded(self.model):
            return False
        how = Arrangement(method.reshape, self._module(method), method.of_input, self.model)
        (found,) = torch.autograd.grad(self.record.chosen.sum(), tokens, retain_graph=True, allow_unused=True)
        samples, modalities = self.record.samples, self.explained.modalities
        placed = None if found is None else place(found, samples.inputs, modalities, how)
        return placed is not None and bool(found.any()) and not placed.any()

    def _leads_on(self, method: Method) -> bool:
        """Whether gradients flow from the explained output back to the method's layer."""
        if isinstance(method.layer, tuple):
            inside = [replace(method, layer=name) for name in method.layer if isinstance(name, str)]  # type: ignore[type-var]
            return all(map(self._leads_on, inside))
        if not method.of_input and self.record.leads_on(self._module(method)):
            return True
        # Behind integers, as at an embedding, the graph begins at the layer itself.
        site, few = LayerSite(str(method.layer), method.of_input), self.few
        if site not in self._led:
            with torch.enable_grad(), watching(self.explained.layer, [(PLAIN, site)]) as caught:
                value = self.explained.forward(*few.inputs, *few.extra)
            begins = [place.edge.node for place in caught.places.get(site, ()) if place.edge is not None]
            self._led[site] = meet([value.grad_fn], begins)
        return self._led[site]

    def _module(self, method: Method) -> nn.Module:
        """Returns the layer that the method names."""
        return find_layer(self.model, str(method.layer))

    def _passed(self, method: Method) -> Passed | None:
        """Returns what the method's layer received or returned; ``None`` if it did not run."""
        return self.record.passed(self._module(method), method.of_input)

    def _samples(self, method: Method) -> Iterator[Finding]:
        inner = method.innermost
        if method.attribution_method is not None and all(x.is_floating_point() for x in self.record.samples.inputs):
            method.fits(self.explained, self.few[:1], None)
        if inner.samples_needed > self.probe_size:
            yield refused(
                "it permutes features across samples, but the probe has only one", "give at least two samples"
            )
        whole = [x for x in self.record.samples.inputs if not x.is_floating_point()]
        if not whole:
            return
        what = "they are " + ("booleans" if whole[0].dtype == torch.bool else "integers")
        if method.attribution_method is not None:
            yield refused(f"it adds noise to the inputs, but {what}", "use the method without NoiseTunnel")
        elif inner.differentiates_input:
            layers = "LayerIntegratedGradients or LayerGradientXActivation"
            fix = f"explain an embedding layer with {layers}"
            if not any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in self.model.modules()):
                fix = f"convert the inputs to floating point (batch_fn), or explain a layer with {layers}"
            yield refused(f"it takes the gradient at the inputs, but {what}", fix)

    def _gradient(self, method: Method) -> Iterator[Finding]:
        if method.backward_rule == "none":
            return
        record = self.record
        at_layer = method.place == "layer" and self._leads_on(method)
        if not record.outputs.requires_grad and not at_layer:
            fix = "remove what blocks it (torch.no_grad(), detach(), argmax, rounding), or use Occlusion"
            yield refused("no gradient flows from the output back to the input", fix)
            return
        needs_target = method.place != "neuron" or method.through_neuron
        if not record.chosen.requires_grad and needs_target and not at_layer:
            fix = "select it without detach(), item(), argmax or rounding: target=lambda output: output[:, 0]; or use Occlusion"
            yield refused("no gradient flows from what target selects back to the outputs", fix)
            return
        if reentrant(record.outputs.grad_fn):
            reason = "torch.utils.checkpoint(use_reentrant=True) gives parameters gradients only in backward(), and inputs none at all"
            yield refused(reason, "use torch.utils.checkpoint with use_reentrant=False")
        if unread := self._unread(method):
            what = f"the layer {method.layer!r}" if method.place == "neuron" else "the output"
            reason = f"no gradient flows from {what} back to {rules.listed(f'inputs[{i}]' for i in unread)}"
            yield refused(reason, "pass it without explaining it: Probe(forward_args=...)")
        if self.blind is not None and method.differentiates_input:
            yield self.blind
        if any(isinstance(m, nn.RNNBase) and record.calls[id(m)] for m in self.model.modules()):
            reason = (
                "cuDNN has no backward pass for recurrent layers in eval mode; while explaining, cuDNN is switched off"
            )
            yield Finding("canonized", reason)
        # At the sample itself, softmax and sigmoid make gradients vanish.
        name = probabilities(record.outputs.grad_fn) if method.at_sample else None
        if name is not None:
            where = next((str(op) for op in reversed(record.ops) if op.name in name), name[0])
            reason = f"the outputs are probabilities ({where}), whose gradients vanish where the model is confident"
            yield Finding("warned", reason, "return logits, or select them with output_fn")

    def _unread(self, method: Method) -> list[int]:
        """Finds inputs without a gradient: as in Captum, the gradient is taken at all inputs or at none."""
        at_layer = method.place == "layer" and not any(rule and site is None for rule, site in method.reads)
        if not method.differentiates_input or at_layer:
            return [i for i in self.record.unread() if i in method.layers]
        unit = self._module(method) if method.place == "neuron" else None
        if unit is not None and not self.record.returned[id(unit)].floating:
            return []
        return self.record.unread(unit)

    def _rule(self, method: Method) -> Iterator[Finding]:
        rule = method.backward_rule
        if rule in ("plain", "none"):
            return
        scripted = [n for n, m in self.model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
        if rule in ("deeplift", "lrp") and not self.examined:
            reason = "two samples at once do not fit into memory, so its backward rule cannot be checked on this model"
            yield refused(reason, f"explain smaller inputs, or {INSTEAD}")
        elif scripted:
            reason = f"{rules.listed(scripted)} is a TorchScript module, and the backward rule cannot be applied inside"
            yield refused(reason, f"explain the module that went into torch.jit.script, or {INSTEAD}")
        elif rule == "lrp":
            yield from rules.lrp(self.model, self.record)
        elif rule == "deeplift":
            yield from self._deeplift(method)
        else:
            ops, layer = self._ops(method), repr(method.layer)
            parts = {"layer": f"what comes after the layer {layer}", "neuron": f"what comes before the layer {layer}"}
            found = rules.guided(ops, parts.get(method.ends_at, "the model"))
            yield from found
            if not any(f.state == "warned" for f in found) and rules.is_exact(ops) and self._hides_activation(method):
                yield rules.UNGUIDED

    def _ops(self, method: Method) -> list[Op]:
        """Returns the calls on the method's backward pass: all, those after its layer, or those before its neuron."""
        place = method.ends_at
        if place == "input":
            return self.record.ops
        first, last = self.record.spans[id(self._module(method))]
        if place == "neuron":
            return self.record.ops[: first if method.of_input else last]
        return self.record.ops[first if method.of_input else last :]

    def _deeplift(self, method: Method) -> Iterator[Finding]:
        """Finds what DeepLIFT has no rule for on the method's backward pass."""
        place, record = method.ends_at, self.record
        begins = [node_of(x) for x in record.points if x.requires_grad]
        passed = None if place == "input" else self._passed(method)
        at = [] if passed is None else passed.nodes
        starts, ends = (at, begins) if place == "neuron" else ([record.chosen.grad_fn], at or begins)
        try:
            check_precision(self.explained.forward)
            check_softmax(starts, ends)
            if any(op.name == "grad" for op in self._ops(method)):
                # Whether a rule is needed inside a gradient that the model takes itself shows only when it runs.
                self._sums(method)
        except NoRuleError as error:
            yield refused(f"DeepLIFT {error.reason}", error.fix)

    def _hides_activation(self, method: Method) -> bool:
        """Whether the method's backward pass meets an activation that is not called as one: DeepLIFT's sum is wrong."""
        key = (method.ends_at, method.ends_at != "input" and method.layer, method.of_input)
        if key not in self._hidden:
            checks = self._sums(method) if self.examined else []
            wrong = ((c.error.abs() > 1e-2 * c.change.abs() + 1e-4 * c.size).any() for c in checks)
            self._hidden[key] = any(map(bool, wrong))
        return self._hidden[key]

    def _sums(self, method: Method) -> list[SumCheck]:
        """Checks DeepLIFT's sum there, for two baselines of a few samples."""
        explained, place = self.explained, method.ends_at
        if place != "input" and self.record.calls[id(self._module(method))] > 1:
            return []
        if place == "neuron":
            explained = replace(method, neuron_selector=_all_units).focused(explained)  # type: ignore[type-var]
        site = LayerSite(str(method.layer), method.of_input) if place == "layer" else None
        reads = frozenset({(f"{DEEPLIFT}:1e-10", site)})

        def measured(pairs: int) -> list[SumCheck]:
            samples = self.few[:pairs]
            halved = tuple(x.roll(1, 0) * (0.5 if x.is_floating_point() else 1) for x in samples.inputs)
            baselines = (tuple(map(torch.zeros_like, samples.inputs)), halved)
            passes = [rescaled(explained, samples, baseline, reads) for baseline in baselines]
            return [check for found in passes for check in found.checks.values()]

        return within_memory(measured, max(1, min(explained.limit // 2, len(self.few))))[0]

    def _arguments(self, method: Method) -> Iterator[Finding]:
        """Checks that arguments fit a sample, by building its baselines, features and first points."""
        try:
            with torch.no_grad():
                self._try_out(method)
        except (TypeError, AssertionError, IndexError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            reason = f"it does not fit the samples: {str(error).rstrip('.')}"
            yield refused(reason, f"check its arguments: {str(method)[:500]}")

    def _try_out(self, method: Method) -> None:
        explained, sample = self.explained, self.few[:1]
        self._check_baselines(
            method.baselines, explained.distribution if method.takes_distribution else explained.baseline
        )
        if method.feature_mask is not None:
            features_of(method.feature_mask, explained, sample)
        method.fits(explained, sample, self._activation(method))
        if method.reshape not in (None, "none") and not self._is_placed(method):
            raise ValueError(
                f"it has reshape={method.reshape!r}, which needs a layer that returns one tensor, and a model whose only input is "
                "an image (N, C, H, W); leave reshape out."
            )
        path = path_of(method.applied)
        floating = all(x.is_floating_point() for x in sample.inputs)
        for point in islice(path.points(explained, sample), _POINTS) if path is not None else ():
            if not (floating or method.reads):
                # Whether the model takes such integers (ids outside of a vocabulary) shows only when it runs.
                explained.evaluate(point.samples)

    def _activation(self, method: Method) -> Any:
        """What the method's layer received or returned for one sample, or the attention that it reads; ``None`` without a layer."""
        if method.reads_attention:
            return self.attention
        passed = None if len(method.layers) != 1 else self._passed(method)
        value = None if passed is None else passed.value
        value = value[0] if isinstance(value, tuple) and len(value) == 1 else value
        return tree_map_only(Tensor, lambda t: t.detach()[:1] if t.ndim else t, value)


def _all_units(activation: Any) -> Tensor:
    """A weighted sum of all units of a layer, ``(N,)``."""
    parts = activation if isinstance(activation, (tuple, list)) else [activation]
    units = torch.cat([t.flatten(1) for t in parts if isinstance(t, Tensor) and t.is_floating_point()], 1)
    return (units * torch.arange(units.shape[1]).cos().to(units)).sum(1)
