"""Nothing is forgotten: each method is compared with another implementation, has its arguments, a file, and a home."""

from __future__ import annotations

import importlib.util
import inspect
import re
from dataclasses import MISSING, dataclass, fields, is_dataclass
from pathlib import Path

import captum.attr as ca
import pytest
import yaml

from lightning_explain import methods as m
from lightning_explain.core.naming import snake_case
from lightning_explain.explainer.registry import build_methods

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs" / "method"
FAMILIES = ("cam", "deeplift", "layer", "neuron", "perturbation", "lrp")
# Compared in test_against_captum.py, outside of its tables.
ELSEWHERE = {"GuidedBackprop", "NoiseTunnel", "GradientShap"}
# Compared in test_attention.py.
ELSEWHERE |= {"AttentionRollout"}
# Not in Captum: where they come from.
BEYOND = {
    "AttentionRollout": "(Abnar & Zuidema 2020)",
    "HiResCAM": "``pytorch_grad_cam.HiResCAM``",
    "LayerCAM": "``pytorch_grad_cam.LayerCAM``",
}
# What belongs to the call (samples, target), to passes, or to Captum's own output.
NOT_OURS = {
    *("self", "forward_func", "model", "inputs", "target", "additional_forward_args", "args", "kwargs"),
    *("internal_batch_size", "perturbations_per_eval", "device_ids", "memory_efficient", "grad_kwargs"),
    *("return_convergence_delta", "show_progress", "verbose", "draw_baseline_from_distrib"),
}


def compared() -> set[str]:
    found = set()
    for name in (*(f"test_{family}" for family in FAMILIES), "test_against_captum"):
        spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for table in ("CASES", "LAYER_CASES", "RANDOM", "PLAIN", "LAYERS"):
            found |= {type(method).__name__ for method, _ in getattr(module, table, {}).values()}
    return found | ELSEWHERE


def test_every_method_is_compared_with_another_implementation() -> None:
    assert compared() == set(m.__all__)


@pytest.mark.parametrize("name", [name for name in m.__all__ if name not in BEYOND])
def test_a_method_has_captums_name_and_arguments(name: str) -> None:
    theirs = getattr(ca, name)
    known = {
        argument
        for function in (theirs.__init__, theirs.attribute)
        for argument in inspect.signature(inspect.unwrap(function)).parameters
    }
    assert is_dataclass(getattr(m, name))
    ours = {field.name for field in fields(getattr(m, name))}
    assert ours - {"reshape", "tolerance", "antithetic"} == known - NOT_OURS
    # Captum draws each copy and each order for itself.
    assert ("antithetic" in ours) == (name in ("NoiseTunnel", "ShapleyValueSampling"))
    assert ("tolerance" in ours) == name.endswith("IntegratedGradients")
    # Captum has no word for it: how a layer's map lies on the image.
    assert ("reshape" in ours) == ("attribute_to_layer_input" in ours)


@pytest.mark.parametrize("name", m.__all__)
def test_a_method_has_a_file_with_its_defaults(name: str) -> None:
    written = yaml.safe_load((CONFIGS / f"{snake_case(name)}.yaml").read_text())
    written.pop("defaults", None)
    if name != "NoiseTunnel":
        assert build_methods({"it": written})["it"] == getattr(m, name)()
    plain = {f.name for f in fields(getattr(m, name)) if f.default is not MISSING and f.default is not None}
    assert plain | {"name"} <= set(written)


def test_there_is_no_file_without_a_method() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == {snake_case(name) for name in m.__all__}


def documented(name: str) -> set[str]:
    """Names of the arguments that a docstring explains, itself or by the classes under 'Further arguments:'."""
    text = inspect.getdoc(getattr(m, name))
    further = re.search(r"^Further arguments: (.*)\.$", text, re.MULTILINE)
    others = re.findall(r":class:`(\w+)`", further[1]) if further else []
    return set(re.findall(r"^    (\w+): ", text, re.MULTILINE)).union(*map(documented, others))


@pytest.mark.parametrize("name", m.__all__)
def test_a_method_says_what_it_computes_and_documents_each_argument(name: str) -> None:
    assert BEYOND.get(name, f"``captum.attr.{name}``") in vars(getattr(m, name))["__doc__"]
    assert {field.name for field in fields(getattr(m, name))} <= documented(name)


@dataclass(frozen=True)
class Renamed(m.IntegratedGradients):
    """A user's method, with an argument that has another meaning in other methods."""

    stdevs: str = "none"


def test_a_users_subclass_checks_what_it_inherits_and_no_argument_of_its_own() -> None:
    assert Renamed(stdevs="wide").stdevs == "wide"
    with pytest.raises(ValueError, match=r"Renamed\(n_steps=0\); give a whole number"):
        Renamed(n_steps=0)
    with pytest.raises(ValueError, match=r"Renamed\(baselines='probe'\)"):
        Renamed(baselines="probe")
