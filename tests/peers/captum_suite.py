"""Sends Captum's own tests of attributions and metrics through ``explain()``, and says how each of them ends.

    python tests/peers/captum_suite.py CHECKOUT/tests [arguments of pytest, such as -k deeplift]

Takes the folder ``tests`` of a checkout of Captum; fetches and copies nothing. ``attribute`` of each of Captum's classes,
``captum.metrics.infidelity`` and ``captum.metrics.sensitivity_max`` are replaced by a translation: a model, a probe, a method of the
same name with the same arguments, and the map in Captum's form. A test ends as one of:

- passed: it called the translation, and its assertions hold.
- not about explain(): it passed or failed without ever calling it.
- not translatable: it asks for what explain() has not, by design; the reason is said.
- failed for a known reason: another design, or numbers of other draws.
- failed.
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import warnings
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import captum.attr
import captum.metrics
import pytest
import torch
from captum._utils.common import _run_forward
from captum.attr._utils.common import _format_input_baseline
from torch import Tensor, nn

from lightning_explain import Method, Probe, Report, explain, methods, metrics
from lightning_explain.checks.preflight import UncheckedError
from lightning_explain.core.probe import as_tuple

IGNORED = {"internal_batch_size", "perturbations_per_eval", "max_examples_per_batch"}
"""How many samples go through the model at once; explain() decides that for all methods together."""

NO_COUNTERPART = {
    "show_progress": "no progress bars",
    "grad_kwargs": "no arguments of autograd.grad",
    "draw_baseline_from_distrib": "baselines are not drawn anew for each noisy copy",
    "n_samples_per_baseline": "not there",
    "enable_cross_tensor_attribution": "not there",
    "memory_efficient": "not there",
    "verbose": "nothing is printed",
}

BY_DESIGN = {
    "its output must be (N, ...)": "one output for all samples is not explained",
    "The model returned float;": "one output for all samples is not explained",
    "The model returned int;": "one output for all samples is not explained",
    "inputs have": "all inputs have an entry for each sample",
    "LRP does not see what is computed outside of layers": "refused, where Captum's relevance is counted twice or lost",
    "LRP cannot handle a layer that is used more than once": "refused, where Captum keeps the last call alone",
    "permutes features across samples, but the probe has only one": "refused, where Captum's map is zero",
    "number features in an integer tensor": "feature masks are whole numbers",
    "which does not fit a sample of the layer": "a layer's mask is the same for all samples",
    "chose () from an activation": "a neuron is one number for each sample, not one for all",
    "target=<function one_number": "several outputs are not explained at once",
    "needs outputs (N, C), got (1, 2, 1)": "an output is chosen by all of its indices",
}
"""Parts of the texts with which explain() refuses what it does not do by design, and the reason in short."""


KNOWN = {
    "test_reusable_modules": "by design: a module that is called twice has a DeepLIFT map, where Captum raises",
    "test_simple_ablation_int_to_int": "by design: maps are floating-point",
    "test_improper_dims_multi_input_conv": "by design: the model takes one sample alone, and is examined with several",
    "test_improper_method_multi_input_conv": "by design: an unknown interpolate_mode is refused, where Captum returns nothing",
    "test_sensitivity_n_fa": "by design: perturb_func is called for one draw at a time, not for all three",
    "test_sensitivity_n_ig": "by design: perturb_func is called for one draw at a time, not for all three",
    "test_multi_input_kernel_shap_with_mask": "draws: Captum's number is that of one seed",
    "test_multi_input_shapley_sampling_with_mask": "draws: Captum's number is that of one seed",
    "test_basic_multilayer": "draws: Captum's number is that of one seed",
    "test_basic_multi_tensor_output": "draws: Captum's number is that of one seed",
    "test_basic_multilayer_compare_w_inp_features": "draws: Captum's number is that of one seed",
    "test_basic_multilayer_with_add_args": "draws: Captum's number is that of one seed",
    "test_basic_multilayer_wo_mult_by_inputs": "draws: Captum's number is that of one seed",
    "test_basic_multilayer_wo_mult_by_inputs_agg_neurons": "draws: Captum's number is that of one seed",
}
"""Tests whose failure is known, with the reason."""


class NotTranslatable(BaseException):
    """Raised where a test asks for what explain() has not; no ``except Exception`` of a test catches it."""


class RefusedByExplainError(AssertionError, ValueError, TypeError, NotImplementedError):
    """A refusal of explain(), as each of the types that Captum's tests expect."""


# -- Captum's arguments to ours ------------------------------------------------------------------------------------------


class Called(nn.Module):
    """A function, or a module that lacks a layer, as a module with that layer."""

    def __init__(self, function: Callable[..., Any], layers: list[nn.Module]) -> None:
        super().__init__()
        owner = getattr(function, "__self__", None)
        self.parts = nn.ModuleList([owner, *layers] if isinstance(owner, nn.Module) else layers)
        self.function = function
        self.training = False

    def forward(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def model_with(function: Callable[..., Any], layers: list[nn.Module]) -> tuple[nn.Module, list[str]]:
    """The function as a module, and the names of layers in it."""
    model = function
    known = dict(map(reversed, model.named_modules())) if isinstance(model, nn.Module) else {}
    if not isinstance(model, nn.Module) or not all(known.get(layer) for layer in layers):
        model = Called(function, layers)
        known = {module: name for name, module in model.named_modules()}
    return model, [known[layer] for layer in layers]


@dataclass
class Translation:
    """What an ``attribute`` of Captum asks for: the method, and what is explained."""

    method: Any
    target: Any
    inputs: Any
    extra: Any


def bound(explainer: Any, given: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of ``attribute`` by name, with their defaults."""
    signature = inspect.signature(original(type(explainer)))
    call = signature.bind(explainer, *given, **named)
    call.apply_defaults()
    arguments = dict(call.arguments)
    arguments |= arguments.pop("kwargs", {})
    return {name: value for name, value in arguments.items() if name != "self"}


OF_OBJECT: dict[str, Callable[[Any], Any]] = {
    "multiply_by_inputs": lambda explainer: explainer.multiplies_by_inputs,
    "eps": lambda explainer: explainer.eps,
    "layer": lambda explainer: getattr(explainer, "grad_cam", explainer).layer,
    "interpretable_model": lambda explainer: explainer.interpretable_model,
    "similarity_func": lambda explainer: explainer.similarity_func,
    "perturb_func": lambda explainer: explainer.perturb_func,
    "perm_func": lambda explainer: explainer.perm_func,
}
"""Arguments of our methods that Captum takes when the object is made."""


def translated(explainer: Any, arguments: dict[str, Any]) -> Translation:
    """Our method with the arguments of a call of Captum's ``attribute``."""
    name = next(base.__name__ for base in type(explainer).__mro__ if base.__name__ in METHODS)
    asked = {k: v for k, v in arguments.items() if k not in IGNORED}
    inputs, target = asked.pop("inputs"), asked.pop("target", None)
    extra = asked.pop("additional_forward_args", None)
    values: dict[str, Any] = {}
    if name == "NoiseTunnel":
        inner, kinds = explainer.attribution_method, {f.name for f in fields(METHODS[name])}
        inside = {k: asked.pop(k) for k in list(asked) if k not in {*kinds, *NO_COUNTERPART}}
        inside |= {"target": target} if target is not None else {}
        inside |= {"additional_forward_args": extra} if extra is not None else {}
        found = translated(inner, bound(inner, (inputs,), inside))
        values["attribution_method"], target, extra = found.method, found.target, found.extra
    for field in fields(METHODS[name]):
        if field.name in asked:
            values[field.name] = asked.pop(field.name)
        elif field.name in OF_OBJECT and field.name not in values:
            values[field.name] = OF_OBJECT[field.name](explainer)
    values = {k: v for k, v in values.items() if v is not None}
    for field in ("baselines", "feature_mask", "stdevs", "sliding_window_shapes", "strides"):
        if field in values:
            values[field] = single(values[field], inputs, nested=field in ("sliding_window_shapes", "strides"))
    check_leftover(explainer, asked)
    return Translation((name, values), target, inputs, extra)


def single(value: Any, inputs: Any, nested: bool) -> Any:
    """A tuple of one, of one input, as that one; a nested one only if there is a tuple in it."""
    lone = (not isinstance(inputs, tuple) or len(inputs) == 1) and isinstance(value, tuple) and len(value) == 1
    return value[0] if lone and (not nested or isinstance(value[0], tuple)) else value


def check_leftover(explainer: Any, asked: dict[str, Any]) -> None:
    """Says what of the call has no counterpart."""
    own = inspect.signature(original(type(explainer))).parameters
    for name, value in asked.items():
        default = own[name].default if name in own else None
        if value is not None and value is not default and value != default:
            raise NotTranslatable(f"{name}: {NO_COUNTERPART.get(name, 'no such argument')}")


def built(asked: tuple[str, dict[str, Any]], name_of: Callable[[Any], Any]) -> Any:
    """The method itself, with names in the place of layers."""
    name, values = asked
    values = dict(values)
    if "layer" in values:
        values["layer"] = name_of(values["layer"])
    if "attribution_method" in values:
        values["attribution_method"] = built(values["attribution_method"], name_of)
    with refusals():
        return METHODS[name](**values)


def layers_of(asked: tuple[str, dict[str, Any]]) -> list[nn.Module]:
    """The layers that a method names."""
    values = asked[1]
    inner = layers_of(values["attribution_method"]) if "attribution_method" in values else []
    layer = values.get("layer", [])
    return inner + (layer if isinstance(layer, list) else [layer])


def one_number(outputs: Tensor) -> Tensor:
    """The output itself, where Captum is given no target."""
    return outputs.reshape(len(outputs))


def any_number(outputs: Tensor) -> Tensor:
    """Some output, for methods of Captum that take no target because they explain none."""
    return outputs.reshape(len(outputs), -1).sum(1)


def target_of(target: Any, count: int) -> tuple[Any, Tensor | None, Tensor | None]:
    """Our ``target``, the probe's labels, and where each sample's own indices of the output have to be picked, those."""
    if target is None:
        return one_number, None, None
    if isinstance(target, Tensor):
        target = target.tolist() if target.numel() > 1 or target.ndim else target.item()
    if isinstance(target, list) and len(target) == 1 and count > 1:
        target = target[0]
    if not isinstance(target, list):
        return target, None, None
    if len(target) != count:
        raise RefusedByExplainError(f"{len(target)} targets for {count} samples")
    rows = torch.tensor(target)
    return ("label", rows, None) if rows.ndim == 1 else (one_number, None, rows)


def picking() -> Callable[..., Any]:
    """A ``forward_fn`` that picks the output of each sample at the indices in its last argument."""

    def forward(model: nn.Module, *arguments: Any) -> Tensor:
        *inputs, rows = arguments
        outputs = model(*inputs)
        return outputs[(torch.arange(len(outputs)), *rows.unbind(1))]

    return forward


# -- one explanation ---------------------------------------------------------------------------------------------------------


@contextmanager
def refusals() -> Iterator[None]:
    """Turns what explain() refuses into ``RefusedByExplainError``, or ``NotTranslatable`` where that is by design."""
    try:
        yield
    except (ValueError, TypeError, AssertionError, UncheckedError) as error:
        for part, reason in BY_DESIGN.items():
            if part in str(error):
                raise NotTranslatable(reason) from error
        raise RefusedByExplainError(f"{type(error).__name__}: {error}") from error


def ids_of(inputs: tuple[Tensor, ...]) -> Tensor:
    """Ids by what is in the samples, so that a sample alone has the draws that it has among others."""
    seen: Counter[bytes] = Counter()
    ids = []
    for row in range(len(inputs[0])):
        key = b"".join(x[row].detach().contiguous().numpy().tobytes() for x in inputs)
        ids.append(zlib.crc32(key) * 1000 + seen[key])
        seen[key] += 1
    return torch.tensor(ids)


def run(model: nn.Module, found: Translation, method: Any, scores: Any = ()) -> Report:
    """The report on one method."""
    inputs = found.inputs if isinstance(found.inputs, Tensor) else tuple(found.inputs)
    extra = found.extra if isinstance(found.extra, tuple) else () if found.extra is None else (found.extra,)
    with refusals(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        count = len(inputs if isinstance(inputs, Tensor) else inputs[0])
        target, labels, rows = target_of(found.target, count)
        forward = None if rows is None else picking()
        probe = Probe(inputs, labels, forward_args=(*extra, *(() if rows is None else (rows,))))
        probe = replace(probe, ids=ids_of(as_tuple(inputs)))
        return explain(model, probe, {"map": method}, scores, target, forward_fn=forward)


def attribute(explainer: Any, *given: Any, **named: Any) -> Any:
    """In the place of ``attribute`` of a Captum object: the map by explain(), in Captum's form."""
    arguments = bound(explainer, given, named)
    wants_delta = arguments.pop("return_convergence_delta", False)
    found = translated(explainer, arguments)
    if "target" not in inspect.signature(original(type(explainer))).parameters and found.target is None:
        found.target = any_number
    layers = layers_of(found.method)
    model, names = model_with(function_of(explainer), layers)
    lookup = dict(zip(map(id, layers), names, strict=True))
    layer = found.method[1].get("layer")
    if isinstance(layer, list):
        if found.method[0] not in APART:
            raise NotTranslatable("layer: several layers on one path")
        each = [(found.method[0], found.method[1] | {"layer": one}) for one in layer]
        maps: Any = [run(model, found, built(asked, lambda x: lookup[id(x)])).attributions["map"] for asked in each]
    else:
        method = built(found.method, lambda x: lookup[id(x)])
        maps = run(model, found, method).attributions["map"]
        shaped_as_inputs = method.innermost.place != "layer" and arguments.get("return_input_shape", True)
        if shaped_as_inputs and isinstance(found.inputs, tuple) and isinstance(maps, Tensor):
            maps = (maps,)
    return (maps, delta_of(explainer, maps, arguments, found)) if wants_delta else maps


class NoDelta:
    """In the place of the deltas of single draws, of which explain() returns none; the test ends where it looks at them."""

    def __getattr__(self, name: str) -> Any:
        raise NotTranslatable("return_convergence_delta: deltas of single draws are not returned")

    __iter__ = __getitem__ = __len__ = lambda self, *_: self.shape


def delta_of(explainer: Any, maps: Any, arguments: dict[str, Any], found: Translation) -> Any:
    """How far the map is from its sum, by Captum's own ``compute_convergence_delta``."""
    rest = {"additional_forward_args": found.extra, "target": found.target}
    if isinstance(explainer, (captum.attr.LRP, captum.attr.LayerLRP)):
        output = _run_forward(explainer.model, found.inputs, found.target, found.extra)
        each = maps if isinstance(maps, list) else [maps]
        deltas = [explainer.compute_convergence_delta(one, output) for one in each]
        return deltas if isinstance(maps, list) else deltas[0]
    if not isinstance(explainer, WITH_DELTA):
        return NoDelta()
    start = arguments["baselines"]
    start = start(*[found.inputs][: len(inspect.signature(start).parameters)]) if callable(start) else start
    if not isinstance(explainer, (captum.attr.DeepLiftShap, captum.attr.LayerDeepLiftShap)):
        _, start = _format_input_baseline(found.inputs, start)
        return explainer.compute_convergence_delta(maps, start, as_tuple(found.inputs), **rest)
    # Captum's deltas are those of each baseline, of which the map has the mean.
    sets = as_tuple(start)
    single = [
        explainer.compute_convergence_delta(maps, tuple(b[k : k + 1] for b in sets), as_tuple(found.inputs), **rest)
        for k in range(len(sets[0]))
    ]
    return torch.stack(single).mean(0).repeat_interleave(len(single))


def function_of(explainer: Any) -> Callable[..., Any]:
    """What a Captum object explains."""
    for name in ("attribution_method", "grad_cam"):
        if hasattr(explainer, name):
            return function_of(getattr(explainer, name))
    return explainer.forward_func if hasattr(explainer, "forward_func") else explainer.model


@dataclass(frozen=True, eq=False)
class Given(Method):
    """A map that is there already, by sample id, or that a function makes."""

    maps: Any
    make: Callable[..., Any] | None = None

    backward_rule = "none"

    def attribute(self, explained: Any, samples: Any) -> Any:
        if self.make is not None:
            return self.make(samples.inputs if len(samples.inputs) > 1 else samples.inputs[0])
        places = samples.places_in(explained.probe.ids)
        return self.maps[places] if isinstance(self.maps, Tensor) else tuple(x[places] for x in self.maps)


def infidelity(
    forward_func: Callable[..., Any],
    perturb_func: Callable[..., Any],
    inputs: Any,
    attributions: Any,
    baselines: Any = None,
    additional_forward_args: Any = None,
    target: Any = None,
    n_perturb_samples: int = 10,
    max_examples_per_batch: int | None = None,
    normalize: bool = False,
) -> Tensor:
    """In the place of ``captum.metrics.infidelity``."""
    if baselines is not None:
        raise NotTranslatable("baselines: perturb_func is given the inputs alone")
    model, _ = model_with(forward_func, [])
    score = metrics.Infidelity(perturb_func=perturb_func, n_perturb_samples=n_perturb_samples, normalize=normalize)
    found = Translation(None, target, inputs, additional_forward_args)
    maps = attributions if isinstance(attributions, Tensor) else tuple(attributions)
    return run(model, found, Given(maps), {"score": score}).scores["score"]["map"]


def sensitivity_max(
    explanation_func: Callable[..., Any],
    inputs: Any,
    perturb_func: Callable[..., Any] | None = None,
    perturb_radius: float = 0.02,
    n_perturb_samples: int = 10,
    norm_ord: str = "fro",
    max_examples_per_batch: int | None = None,
    **kwargs: Any,
) -> Tensor:
    """In the place of ``captum.metrics.sensitivity_max``."""
    if perturb_func is captum.metrics._core.sensitivity.default_perturb_func:
        perturb_func = None
    explainer = getattr(explanation_func, "__self__", None)
    if isinstance(explainer, captum.attr.Attribution):
        found = translated(explainer, bound(explainer, (inputs,), kwargs))
        model, names = model_with(function_of(explainer), layers_of(found.method))
        method = built(found.method, lambda layer: names[0])
    else:
        found, method = (
            Translation(None, None, inputs, None),
            Given(None, functools.partial(explanation_func, **kwargs)),
        )
        model = Called(lambda *x: x[0].flatten(1).sum(1) if x[0].ndim > 1 else x[0], [])
    if perturb_func is not None and len(inspect.signature(perturb_func).parameters) < 2:
        perturb_func = functools.partial(lambda own, x, radius: own(x), perturb_func)
    score = metrics.SensitivityMax(perturb_radius, perturb_func, n_perturb_samples, norm_ord)
    return run(model, found, method, {"score": score}).scores["score"]["map"]


# -- in the place of Captum ----------------------------------------------------------------------------------------------

METHODS = {name: getattr(methods, name) for name in methods.__all__ if hasattr(captum.attr, name)}
WITH_DELTA = tuple(
    getattr(captum.attr, name)
    for name in (
        "IntegratedGradients",
        "LayerIntegratedGradients",
        "LayerConductance",
        "DeepLift",
        "LayerDeepLift",
    )
)
APART = ("LayerActivation", "LayerGradientXActivation", "LayerLRP")
"""Methods that give each of several layers what they give that layer alone."""
ORIGINAL: dict[type, Callable[..., Any]] = {}
calls: list[str] = []
_inside = [False]


def original(kind: type) -> Callable[..., Any]:
    """Captum's own ``attribute`` of a class."""
    return next(ORIGINAL[base] for base in kind.__mro__ if base in ORIGINAL)


@contextmanager
def inside() -> Iterator[None]:
    """While this lasts, Captum is Captum: explain() itself calls it."""
    _inside[0] = True
    try:
        yield
    finally:
        _inside[0] = False


def instead(translation: Callable[..., Any], own: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(inspect.unwrap(own))
    def call(*given: Any, **named: Any) -> Any:
        if _inside[0]:
            return own(*given, **named)
        calls.append(own.__name__)
        with inside():
            return translation(*given, **named)

    return call


def subclasses(kind: type) -> Iterator[type]:
    for child in kind.__subclasses__():
        yield child
        yield from subclasses(child)


def nothing_like_it(explainer: Any, *given: Any, **named: Any) -> Any:
    raise NotTranslatable(f"{type(explainer).__name__}: there is no such method")


def replace_captum() -> None:
    """Puts the translation in the place of each ``attribute`` and metric of Captum."""
    for kind in {*subclasses(captum.attr.Attribution), captum.attr.DataLoaderAttribution}:
        if "attribute" in vars(kind):
            ORIGINAL[kind] = kind.attribute
            known = any(base.__name__ in METHODS for base in kind.__mro__) and kind.__name__ in METHODS
            kind.attribute = instead(attribute if known else nothing_like_it, kind.attribute)
    for name, translation in (("infidelity", infidelity), ("sensitivity_max", sensitivity_max)):
        setattr(captum.metrics, name, instead(translation, getattr(captum.metrics, name)))


# -- the run -----------------------------------------------------------------------------------------------------------------


class Outcomes:
    """Collects how each test ends, as a plugin of pytest."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, str]] = {}

    def pytest_runtest_setup(self, item: Any) -> None:
        calls.clear()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self, item: Any, call: Any) -> Iterator[None]:
        outcome = yield
        report = outcome.get_result()
        if report.when != "call" and report.passed:
            return
        name = item.nodeid.split("tests/", 1)[-1]
        error = call.excinfo
        if error is not None and error.type is NotTranslatable:
            self.found[name] = ("not translatable", str(error.value))
            report.outcome = "skipped"
            report.longrepr = (str(item.path), 0, str(error.value))
        elif report.skipped:
            self.found[name] = ("not translatable", f"Captum skips it: {error.value if error else ''}")
        elif not calls:
            self.found[name] = ("not about explain()", "" if report.passed else "and fails")
        elif report.failed:
            lines = str(error.value).splitlines() if error else [""]
            reason = f"{error.typename}: {' | '.join(lines)[:700]}" if error else ""
            known = KNOWN.get(item.name)
            self.found[name] = (
                ("failed for a known reason", f"{known} ({reason[:120]})") if known else ("failed", reason)
            )
        else:
            self.found[name] = ("passed", "")

    def tell(self) -> int:
        """Prints each test that did not pass, and the counts; returns the number of failures."""
        groups: dict[str, dict[str, str]] = defaultdict(dict)
        for name, (how, why) in sorted(self.found.items()):
            groups[how][name] = why
        for how in ("not translatable", "failed for a known reason", "failed"):
            print(f"\n{how}:")
            for name, why in groups[how].items():
                print(f"  {name}\n    {why}")
        print(f"\n{len(self.found)} tests: " + ", ".join(f"{len(names)} {how}" for how, names in groups.items()))
        return len(groups["failed"])


def main(folder: str, *further: str) -> int:
    """Runs the tests in ``folder``, the ``tests`` of a checkout of Captum."""
    folder = os.path.abspath(folder)
    os.chdir(os.path.dirname(folder))
    sys.path.insert(0, os.getcwd())
    replace_captum()
    outcomes = Outcomes()
    where = [os.path.join(folder, part) for part in ("attr", "metrics")]
    pytest.main(
        [*where, "-q", "--tb=no", "-c", os.devnull, f"--rootdir={os.getcwd()}", "-p", "no:cacheprovider", *further],
        [outcomes],
    )
    return outcomes.tell()


if __name__ == "__main__":
    sys.exit(min(main(*sys.argv[1:]), 1))
