"""The reference pages match the docstrings, leave nothing out, and state the passes that a model counts."""

from __future__ import annotations

import importlib.util
import re
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from latex2mathml.converter import convert
from torch import nn
from typer.main import get_command

import lightning_explain
from lightning_explain import Probe
from lightning_explain import methods as m
from lightning_explain.cli.main import app
from lightning_explain.core.points import path_of
from lightning_explain.engine.paths import Ablations, AtInput, Windows
from lightning_explain.engine.permutations import Permutations
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.registry import METHODS, METRICS

DOCS = Path(__file__).parents[2] / "docs"
ALL = {**METHODS, **METRICS}


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look up their module there.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = load()


def test_the_pages_on_disk_are_what_the_docstrings_say() -> None:
    written = {
        path.relative_to(DOCS / "reference").as_posix(): path.read_text(encoding="utf-8")
        for pattern in ("command-line.md", "methods*", "metrics*", "methods/*", "metrics/*")
        for path in (DOCS / "reference").glob(pattern)
        if path.is_file()
    }
    expected = {name: page() for name, page in generate.PAGES.items()}
    other = [name for name in written | expected if written.get(name) != expected.get(name)]
    assert not other, f"{other} of docs/reference are not current: run `make docs`."


def test_every_command_has_a_section_that_tells_each_of_its_options() -> None:
    page = generate.PAGES["command-line.md"]()
    for command in app.registered_commands:
        name = command.name or command.callback.__name__
        section = page.partition(f"\n## {name}\n")[2].partition("\n## ")[0]
        assert f"`lightning-explain {name} [OPTIONS]" in section
        for parameter in get_command(app).commands[name].params:
            said = parameter.metavar or parameter.name if parameter.param_type_name == "argument" else parameter.opts[0]
            row = re.search(rf"^\| `[^`]*{re.escape(said)}[^`]*` \| (.*) \|$", section, re.M | re.I)
            assert row, f"{name} {parameter.name}"
            assert row[1].strip(), f"{name} {parameter.name} says nothing"


API = "".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference" / "api").glob("*.md"))


@pytest.mark.parametrize("name", [name for name in lightning_explain.__all__ if name != "__version__"])
def test_a_public_name_has_its_entry_in_the_api(name: str) -> None:
    value = getattr(lightning_explain, name)
    if not isinstance(value, ModuleType):
        assert re.search(rf"^\.\. auto(class|function):: lightning_explain\.{name}$", API, re.MULTILINE)
        return
    pages = {"methods": set(METHODS), "metrics": set(METRICS)}
    entries = set(re.findall(rf"^\.\. autoclass:: lightning_explain\.{name}\.(\w+)$", API, re.MULTILINE))
    assert pages.get(name, entries) == set(value.__all__)


def test_the_citation_file_is_what_its_readers_expect() -> None:
    found = yaml.safe_load((DOCS.parent / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(found)
    assert found["license"] in (DOCS.parent / "pyproject.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ALL)
def test_a_class_has_every_section(name: str) -> None:
    entry = generate.entry(ALL[name])
    for part in ("summary", "formula", "paper", "result", "signed", "not_for", "example"):
        assert getattr(entry, part), part
    assert [argument for argument, _, _ in entry.arguments] == [field.name for field in fields(ALL[name])]
    twins = [f"``{package}.{name}``" for package in ("captum.attr", "pytorch_grad_cam")]
    assert name in (*METRICS, "AttentionRollout") or entry.twin in twins


@pytest.mark.parametrize("name", ALL)
def test_the_cost_is_stated_in_one_place_only(name: str) -> None:
    entry = generate.entry(ALL[name])
    elsewhere = (entry.summary, *entry.notes, *(meaning for _, _, meaning in entry.arguments))
    assert not [text for text in elsewhere if re.search(r"\bcosts?\b", text, re.IGNORECASE)]


@pytest.mark.parametrize(("kind", "classes"), [("methods", METHODS), ("metrics", METRICS)])
def test_a_table_has_each_class_once_and_links_to_its_page(kind: str, classes: dict[str, type]) -> None:
    page = generate.PAGES[f"{kind}.md"]()
    rows = re.findall(rf"^\| \[(\w+)\]\({kind}/(\w+)\.md\)", page, re.MULTILINE)
    assert sorted(rows) == sorted((name, name) for name in classes)
    assert sorted(re.findall(rf"^{kind}/(\w+)$", page, re.MULTILINE)) == sorted(classes), "the table of contents"
    assert {f"{kind}/{name}.md" for name in classes} < set(generate.PAGES)


def test_pages_are_well_formed() -> None:
    for name, write in generate.PAGES.items():
        page = write()
        tables = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
        assert tables or "/" in name
        for table in tables:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table
        prose = re.sub(r"^```(python|{toctree})\n(.*\n)+?```$", "", page, flags=re.MULTILINE)
        assert "```" not in prose
        assert not [line for line in prose.splitlines() if line.count("`") % 2]
        assert not [line for line in page.splitlines() if line != line.rstrip()]
        assert "\n\n\n" not in page


@pytest.mark.parametrize("name", ALL)
def test_a_page_shows_formula_and_example_with_results_as_comments(name: str) -> None:
    page = generate.PAGES[f"{'methods' if name in METHODS else 'metrics'}/{name}.md"]()
    assert f"\n# {name}\n" in page
    assert f"\n$$\n{generate.entry(ALL[name]).formula}\n$$\n" in page
    assert page.count("```python\n") == 1
    example = page.partition("```python\n")[2].partition("\n```\n")[0]
    assert not page.partition(example)[2].strip("`\n")
    assert f"{name}(" in example
    assert re.search(r"  # torch\.Size\(\[2.*\]\)$", example)
    compile(example, name, "exec")


@pytest.mark.parametrize("name", ALL)
def test_a_formula_is_latex_that_can_be_drawn(name: str) -> None:
    assert "<math" in convert(generate.entry(ALL[name]).formula)


def test_families_hold_the_methods_of_captums_chapters() -> None:
    found = {name: generate.family(cls) for name, cls in METHODS.items()}
    assert {name for name, where in found.items() if where == "Neuron"} == {n for n in METHODS if n[:6] == "Neuron"}
    layers = {n for n in METHODS if n.startswith("Layer")} | {"InternalInfluence", "HiResCAM"}
    assert {name for name, where in found.items() if where == "Layer"} == layers
    assert [name for name, where in found.items() if where == "Around other methods"] == ["NoiseTunnel"]


@dataclass
class Bad:
    """A class (Nobody 2020).

    Formula: f(x)
    Cost: 1 forward, 1 backward.
    Not for: use.

    Args:
        size: Of it.

    Example:
        >>> Bad().size
        1
    """

    size: int = 1

    def attribute(self) -> None:
        """Nothing."""


FAULTS = {
    "no formula": ("    Formula: f(x)\n", "", "has no line 'Formula: ...'"),
    "no cost": ("    Cost: 1 forward, 1 backward.\n", "", "has no line 'Cost: ...'"),
    "another cost": (
        "1 forward, 1 backward",
        "one pass",
        "write 'Cost: <samples> forward, <samples> backward; <remark>.'",
    ),
    "no limits": ("    Not for: use.\n", "", "has no line 'Not for: ...'"),
    "no source": (" (Nobody 2020)", "", r"names no source.*write \(Author et al. 2020"),
    "no argument": ("size: Of it.", "length: Of it.", "does not say under 'Args:' what 'size' means"),
    "no example": ("        >>> Bad().size\n", "", "has no section 'Example:'; write one with '>>>' lines that run"),
    "a stray line": ("use.\n", "use.\n    And so on.\n", "'And so on.' follows a section"),
}


@pytest.mark.parametrize(("old", "new", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_a_docstring_that_is_not_in_the_form_is_refused(old: str, new: str, fault: str) -> None:
    assert generate.entry(Bad).arguments == (("size", "1", "Of it."),)
    text = (Bad.__doc__ or "").replace(old, new)
    with pytest.raises(ValueError, match=fault):
        generate.entry(type("Bad", (Bad,), {"__doc__": text}))


# How costs are measured: 4 samples, 4 features, 4 positions of the window, 4 baselines (the probe).
N = 4
SETTINGS: dict[str, Any] = {
    "n_steps": 3,
    "n_samples": 5,
    "nt_samples": 3,
    "layer": "1",
    "neuron_selector": (0, 1, 1),
    "feature_mask": {"grid": 4},
    "layer_mask": (torch.arange(2 * 8 * 8) % 4).reshape(1, 2, 8, 8),
    "sliding_window_shapes": (1, 4, 4),
    "strides": 4,
}
LETTERS = {"F": 4, "P": 4, "K": N, "B": 1, "M": 2, "inside": 1, "methods": 3}


def configured(cls: type, **settings: Any) -> Any:
    names = {field.name for field in fields(cls)}
    return cls(**{name: value for name, value in {**SETTINGS, **settings}.items() if name in names})


def stated(cls: type, instance: Any) -> tuple[int, int]:
    values = {field.name: getattr(instance, field.name) for field in fields(instance)} | LETTERS
    cost = generate.entry(cls).cost
    forward, backward = (eval(part, {"__builtins__": {}}, values) for part in (cost.forward, cost.backward))
    return forward, backward


def measured(methods: dict[str, Any], metrics: dict[str, Any]) -> tuple[int, int]:
    """Samples forward (counted by a hook) and backward for each explained sample; the sample itself only if a method evaluates it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    forward: list[int] = []
    model.register_forward_hook(lambda module, arguments, output: forward.append(len(output)))
    probe = Probe(torch.randn(N, 1, 8, 8), torch.arange(N), masks=torch.ones(N, 8, 8, dtype=torch.bool))
    report = Explainer(methods, metrics, limit=64).explain(model, probe)
    # Every explanation evaluates the samples themselves. The docstring states a single further sample in words.
    asked = any(_evaluates_samples(path_of(method)) for method in methods.values())
    return sum(forward) // N - (not asked), report.passes.backward // N


def _evaluates_samples(path: Any) -> bool:
    return isinstance(path, (AtInput, Windows, Ablations, Permutations))


# Its network has no attention: that of AttentionRollout is in tests/methods/test_attention.py.
@pytest.mark.parametrize("name", [name for name in METHODS if name != "AttentionRollout"])
def test_a_method_costs_what_its_docstring_says(name: str) -> None:
    method = configured(METHODS[name])
    assert measured({"it": method}, {}) == stated(METHODS[name], method)


@pytest.mark.parametrize("name", [name for name in METHODS if name.startswith("Neuron")])
def test_finding_the_strongest_unit_costs_one_forward_more(name: str) -> None:
    method = configured(METHODS[name], neuron_selector=None)
    forward, backward = stated(METHODS[name], method)
    assert "1 more forward without ``neuron_selector``" in generate.entry(METHODS[name]).cost.note
    assert measured({"it": method}, {}) == (forward + 1, backward)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_costs_what_its_docstring_says(name: str) -> None:
    # A baseline that differs from sample to sample: one forward sample for each.
    methods = {"ig": m.IntegratedGradients(n_steps=2, baselines="blur"), "saliency": m.Saliency(abs=False)}
    metric = configured(METRICS[name], n_layers=2)
    with_it, without = measured(methods, {"it": metric}), measured(methods, {})
    assert (with_it[0] - without[0], with_it[1] - without[1]) == stated(METRICS[name], metric)
