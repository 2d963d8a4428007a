"""Methods on tables beside ``shap``, and the ablation of words beside its formula."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from lightning_explain import Probe, explain
from lightning_explain import methods as m

Prepared = tuple[nn.Module, Tensor, Tensor]
"""A network in eval mode, its inputs and their labels."""
_BACKGROUND = 5


def peers(table: Prepared, text: Prepared) -> Iterator[tuple[str, str, float]]:
    """What is compared with what, and the largest difference relative to the largest value, in float64."""
    yield _ablation(*text)
    if importlib.util.find_spec("shap"):
        model, x, labels = table
        yield from _shap(model.double(), x[_BACKGROUND:].double(), labels[_BACKGROUND:], x[:_BACKGROUND].double())


def _ours(model: nn.Module, x: Tensor, labels: Tensor, method: Any) -> Tensor:
    found = explain(model, Probe(x, labels), {"it": method}, []).attributions["it"]
    assert isinstance(found, Tensor)
    return found


def _distance(ours: Tensor, theirs: Any) -> float:
    theirs = torch.as_tensor(theirs)
    return float((ours - theirs).abs().max() / theirs.abs().max())


@torch.no_grad()
def _ablation(model: nn.Module, ids: Tensor, labels: Tensor) -> tuple[str, str, float]:
    """f(words) - f(words, one of them padding), one sentence and one word at a time."""
    model, found = model.double(), torch.zeros(ids.shape, dtype=torch.float64)
    for i, (sentence, label) in enumerate(zip(ids, labels, strict=True)):
        for t in range(len(sentence)):
            without = sentence.clone()
            without[t] = 0
            found[i, t] = model(sentence[None])[0, label] - model(without[None])[0, label]
    with torch.enable_grad():
        ours = _ours(model, ids, labels, m.FeatureAblation())
    return "FeatureAblation of words", "f(words) - f(words without one), a loop", _distance(ours, found)


def _shap(model: nn.Module, x: Tensor, labels: Tensor, background: Tensor) -> Iterator[tuple[str, str, float]]:
    import shap

    def outputs(values: Any) -> Any:
        with torch.no_grad():
            return model(torch.as_tensor(values)).numpy()

    def of_label(values: Any) -> Tensor:
        """Of ``(N, F, outputs)`` the output of the label."""
        return torch.as_tensor(values)[torch.arange(len(labels)), :, labels]

    zeros, exact = torch.zeros_like(x[:1]), _ours(model, x, labels, m.ShapleyValues())
    masker = shap.maskers.Independent(zeros.numpy())
    found = shap.explainers.Exact(outputs, masker)(x.numpy(), silent=True).values
    yield "ShapleyValues", "shap.explainers.Exact", _distance(exact, of_label(found))
    kernel = shap.KernelExplainer(outputs, zeros.numpy())
    found = kernel.shap_values(x.numpy(), nsamples=2 ** x.shape[1], l1_reg=False, silent=True)
    yield "ShapleyValues", "shap.KernelExplainer, all coalitions", _distance(exact, of_label(found))
    for method, several in ((m.DeepLift(), zeros), (m.DeepLiftShap(baselines=background), background)):
        found = shap.DeepExplainer(model, several).shap_values(x)
        name = f"shap.DeepExplainer, {len(several)} of background"
        yield type(method).__name__, name, _distance(_ours(model, x, labels, method), of_label(found))
