"""Every example in a docstring runs, and every public name has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import lightning_explain
from lightning_explain import Probe, explain, methods, metrics, modalities, targets


def examples() -> Iterator[doctest.DocTest]:
    """The docstrings of the package that have examples, each with its full name."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    for module in modules():
        # By the module, so that a name that is only imported there is not found twice.
        yield from (found for found in finder.find(module, module.__name__) if found.examples)


def modules() -> list[Any]:
    """Every module of the package, imported; ``__main__`` would run the command line."""
    names = [info.name for info in pkgutil.walk_packages(lightning_explain.__path__, f"{lightning_explain.__name__}.")]
    return [lightning_explain, *(importlib.import_module(name) for name in names if not name.endswith("__main__"))]


def model() -> nn.Module:
    """A convolutional network for images ``(N, 3, 8, 8)`` and 4 classes, in eval mode; its layer ``conv`` has 4 channels."""
    layers = {"conv": nn.Conv2d(3, 4, 3, padding=1), "relu": nn.ReLU(), "pool": nn.MaxPool2d(2), "flat": nn.Flatten()}
    return nn.Sequential(OrderedDict(layers, head=nn.Linear(64, 4))).eval()


def namespace() -> dict[str, Any]:
    """The names that an example may use without importing them."""
    torch.manual_seed(0)
    return {
        "m": methods,
        "q": metrics,
        "model": model(),
        "probe": Probe(torch.rand(2, 3, 8, 8), torch.tensor([0, 1])),
        "explain": explain,
        "torch": torch,
    }


def public() -> dict[str, Any]:
    """Every public name but those of modules and the version, with the object it names."""
    found = {name: getattr(lightning_explain, name) for name in lightning_explain.__all__ if name != "__version__"}
    for package in (methods, metrics, modalities, targets):
        found |= {f"{package.__name__}.{name}": getattr(package, name) for name in package.__all__}
    return {name: value for name, value in found.items() if not inspect.ismodule(value)}


EXAMPLES = {example.name: example for example in examples()}


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_its_docstring_says(name: str) -> None:
    example, output = EXAMPLES[name], []
    # A copy, because running an example empties its namespace.
    own = doctest.DocTest(example.examples, namespace(), name, example.filename, example.lineno, example.docstring)
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(own, out=output.append)
    assert not output, "".join(output)


@pytest.mark.parametrize("name", public())
def test_a_public_name_has_an_example(name: str) -> None:
    thing = public()[name]
    assert f"{thing.__module__}.{thing.__qualname__}" in EXAMPLES


def test_a_wrong_example_fails() -> None:
    wrong, output = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", namespace(), "wrong", None, 0), []
    doctest.DocTestRunner().run(wrong, out=output.append)
    assert "Expected:\n    3\nGot:\n    2" in "".join(output)
