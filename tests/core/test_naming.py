from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import pytest

from lightning_explain.core.naming import nearest, snake_case
from lightning_explain.explainer.registry import build


@runtime_checkable
class Explainer(Protocol):
    def attribute(self) -> str: ...


@dataclass(frozen=True)
class Saliency:
    abs: bool = True

    def attribute(self) -> str:
        return "saliency"


@dataclass(frozen=True)
class IntegratedGradients:
    n_steps: int = 50
    baselines: Any = None

    def attribute(self) -> str:
        return "ig"


@dataclass(frozen=True)
class NoiseTunnel:
    method: Explainer
    nt_samples: int = 5

    def attribute(self) -> str:
        return self.method.attribute()


@dataclass(frozen=True)
class Stranger:
    depth: int = 1

    def attribute(self) -> str:
        return "stranger"


class Anything:
    def __init__(self, **options: int) -> None:
        self.options = options

    def attribute(self) -> str:
        return "anything"


CLASSES: dict[str, type] = {c.__name__: c for c in (Saliency, IntegratedGradients, NoiseTunnel, Anything)}


def made(requests: Any) -> dict[str, Any]:
    return build(requests, CLASSES, "method", Explainer)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("NoiseTunnel", "noise_tunnel"),
        ("GuidedGradCam", "guided_grad_cam"),
        ("LRP", "lrp"),
        ("LayerLRP", "layer_lrp"),
        ("LRPLayer", "lrp_layer"),
        ("KernelShap", "kernel_shap"),
        ("Saliency", "saliency"),
        ("Top5Accuracy", "top5_accuracy"),
        ("already_snake", "already_snake"),
    ],
)
def test_snake_case_splits_words_and_keeps_abbreviations_whole(name: str, expected: str) -> None:
    assert snake_case(name) == expected


def test_nearest_asks_for_the_closest_names_and_lists_all() -> None:
    said = nearest("IntegratedGradient", ["LayerIntegratedGradients", "Saliency", "IntegratedGradients"])
    assert said == (
        "did you mean 'IntegratedGradients' or 'LayerIntegratedGradients'? "
        "Use one of 'LayerIntegratedGradients', 'Saliency', 'IntegratedGradients'."
    )


@pytest.mark.parametrize("word", ["integrated_gradients", "INTEGRATEDGRADIENTS", "integratedgradients"])
def test_nearest_does_not_mind_case_or_underscores(word: str) -> None:
    assert nearest(word, CLASSES).startswith("did you mean 'IntegratedGradients'?")


def test_nearest_guesses_nothing_where_nothing_is_near() -> None:
    assert nearest("xyz", ["label", "predicted"]) == "use one of 'label', 'predicted'."


def test_nearest_says_so_where_there_is_nothing() -> None:
    assert nearest("conv1", {}) == "there is nothing to choose from."


def test_nearest_cuts_a_long_list_and_still_finds_what_was_cut() -> None:
    said = nearest("layer_99", [f"layer{i}" for i in range(100)])
    assert said.startswith("did you mean 'layer99'")
    assert said.endswith("'layer39' and 60 more.")


def test_a_mapping_names_instances_by_its_keys_in_its_order() -> None:
    found = made({"b": Saliency(abs=False), "a": "Saliency", "c": IntegratedGradients, "d": {"name": "Saliency"}})
    assert found == {"b": Saliency(abs=False), "a": Saliency(), "c": IntegratedGradients(), "d": Saliency()}
    assert list(found) == ["b", "a", "c", "d"]


def test_a_list_names_instances_by_their_classes() -> None:
    found = made(["Saliency", {"name": "IntegratedGradients", "n_steps": 8}, NoiseTunnel(Saliency())])
    assert found == {
        "saliency": Saliency(),
        "integrated_gradients": IntegratedGradients(n_steps=8),
        "noise_tunnel": NoiseTunnel(Saliency()),
    }


def test_a_tuple_is_a_list_and_nothing_gives_nothing() -> None:
    assert made(("Saliency",)) == made(["Saliency"])
    assert made([]) == made({}) == {}


def test_a_class_may_be_named_by_itself_inside_a_mapping() -> None:
    assert made([{"name": IntegratedGradients, "n_steps": 2}]) == {"integrated_gradients": IntegratedGradients(2)}


def test_an_instance_stays_the_object_it_is() -> None:
    mine = Saliency()
    assert made({"mine": mine})["mine"] is mine


def test_a_mapping_inside_a_mapping_is_built_too() -> None:
    request = {"name": "NoiseTunnel", "nt_samples": 3, "method": {"name": "Saliency", "abs": False}}
    assert made([request]) == {"noise_tunnel": NoiseTunnel(Saliency(abs=False), nt_samples=3)}


def test_building_leaves_the_request_as_it_was() -> None:
    request = {"name": "NoiseTunnel", "method": {"name": "Saliency"}}
    made([request])
    assert request == {"name": "NoiseTunnel", "method": {"name": "Saliency"}}


def test_a_mapping_without_a_name_is_an_ordinary_argument() -> None:
    assert made([{"name": "IntegratedGradients", "baselines": {"a": 1}}])["integrated_gradients"].baselines == {"a": 1}


def test_a_class_of_ones_own_is_welcome_if_it_keeps_the_protocol() -> None:
    assert made([Stranger(2)]) == {"stranger": Stranger(2)}
    assert made([Stranger]) == {"stranger": Stranger()}


def test_a_class_that_takes_any_argument_gets_any_argument() -> None:
    assert made([{"name": "Anything", "depth": 3}])["anything"].options == {"depth": 3}


def test_a_name_of_ones_own_class_is_not_looked_up_anywhere() -> None:
    with pytest.raises(ValueError, match=r"methods\[0\]: there is no method 'Stranger': use one of 'Saliency'"):
        made(["Stranger"])


@pytest.mark.parametrize("path", ["os.system", "lightning_explain.methods.Saliency", "builtins.eval"])
def test_a_dotted_path_is_never_imported(path: str) -> None:
    with pytest.raises(ValueError, match=f"there is no method '{path}'"):
        made([{"name": path}])


def test_two_alike_in_a_list_ask_for_a_mapping() -> None:
    with pytest.raises(ValueError, match=r"lists Saliency twice.*'saliency'; give a mapping.*'saliency_1'"):
        made([Saliency(), Saliency(abs=False)])


def test_an_unknown_class_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"methods\['a'\]: there is no method 'saliency': did you mean 'Saliency'\?"):
        made({"a": "saliency"})


def test_an_unknown_nested_class_name_says_where_it_is() -> None:
    with pytest.raises(ValueError, match=r"methods\[0\]\['method'\]: there is no method 'Salency': did you mean 'Sal"):
        made([{"name": "NoiseTunnel", "method": {"name": "Salency"}}])


def test_an_unknown_argument_is_answered_with_the_nearest() -> None:
    expected = (
        r"methods\['ig'\]: IntegratedGradients has no argument 'nsteps': did you mean 'n_steps'\? Use one of 'n_st"
    )
    with pytest.raises(ValueError, match=expected):
        made({"ig": {"name": "IntegratedGradients", "nsteps": 3}})


@pytest.mark.parametrize("request_", ["NoiseTunnel", NoiseTunnel, {"name": "NoiseTunnel", "nt_samples": 2}])
def test_a_missing_argument_is_named(request_: Any) -> None:
    with pytest.raises(TypeError, match=r"NoiseTunnel needs 'method'; write NoiseTunnel\(method=\.\.\.\)"):
        made([request_])


def test_a_mapping_without_a_class_name_shows_how_to_write_it() -> None:
    with pytest.raises(ValueError, match=r"methods\['ig'\]=\{'n_steps': 3\} has no 'name'; write \{'name': ClassName"):
        made({"ig": {"n_steps": 3}})


@pytest.mark.parametrize("name", [3, None, ["Saliency"]])
def test_a_class_name_that_is_no_string_is_refused(name: Any) -> None:
    with pytest.raises(TypeError, match="write the name of a class"):
        made([{"name": name}])


@pytest.mark.parametrize("value", [3, None, object(), len, int])
def test_what_is_no_method_is_refused_and_what_is_allowed_is_said(value: Any) -> None:
    with pytest.raises(
        TypeError, match=r"methods\['x'\] is .* which is not a method; give an instance.*Names: Saliency, Int"
    ):
        made({"x": value})


@pytest.mark.parametrize("requests", ["Saliency", Saliency(), None, 3, {"Saliency"}])
def test_what_is_neither_list_nor_mapping_is_refused(requests: Any) -> None:
    with pytest.raises(TypeError, match=r"methods=.* is of type .*; write a list of methods, such as \["):
        made(requests)


def test_a_name_must_be_a_string_that_is_not_empty() -> None:
    with pytest.raises(TypeError, match="methods has the key 1 of type int; write names as str"):
        made({1: "Saliency"})
    with pytest.raises(ValueError, match="methods has the key ' ', which is empty; give the method another name"):
        made({" ": "Saliency"})


def test_the_kind_is_said_in_errors() -> None:
    with pytest.raises(ValueError, match=r"metrics\[0\]: there is no metric 'Infidelty'"):
        build(["Infidelty"], {"Infidelity": Saliency}, "metric", Explainer)
