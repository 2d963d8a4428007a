from __future__ import annotations

import functools
from functools import partial

import pytest
import torch
from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule
from torch import nn

from captum_reference import layers, primary
from comparing import LIMITS, distance, prepared, together
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from networks import Added, Layered, Residual, samples, trained


def layered() -> nn.Module:
    return trained(Added, Layered)


def with_rules() -> nn.Module:
    model = layered()
    model.stem[0].rule = GammaRule(gamma=0.5)
    model.head.rule = EpsilonRule(epsilon=1e-3)
    return model


# Of a ReLU and of a block Captum knows no relevance; it is that of the layer before, or of what follows.
CASES = {
    "lrp": (m.LRP(), primary.lrp),
    **{
        f"layer_{name}": (
            m.LayerLRP(name),
            lambda model, x, y, name=name: layers.layer_lrp(model, x, y, model.get_submodule(name)),
        )
        for name in ("stem.0", "block.bn2", "block.add", "pool", "head")
    },
    **{
        f"layer_{name}_input": (
            m.LayerLRP(name, attribute_to_layer_input=True),
            lambda model, x, y, name=name: layers.layer_lrp(model, x, y, model.get_submodule(name), True),
        )
        for name in ("block.conv2", "pool", "head")
    },
    "layer_block": (m.LayerLRP("block"), lambda model, x, y: layers.layer_lrp(model, x, y, model.block.add)),
    "layer_relu": (m.LayerLRP("stem.2"), lambda model, x, y: layers.layer_lrp(model, x, y, model.stem[1])),
    "layer_default": (m.LayerLRP(), lambda model, x, y: layers.layer_lrp(model, x, y, model.pool)),
}


@functools.cache
def explained(limit: int) -> tuple:
    return together({name: method for name, (method, _) in CASES.items()}, limit, layered)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", CASES)
def test_relevance_equals_captum_in_any_chunk(name: str, limit: int) -> None:
    report, largest = explained(limit)
    assert distance(report.attributions[name], CASES[name][1](prepared(layered()), *samples())) <= 1e-5
    assert largest[name] <= limit


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", LIMITS)
def test_rules_of_the_user_hold_in_every_chunk_and_stay(limit: int) -> None:
    # Gamma takes differences of large numbers.
    model = with_rules().double()
    rules = {name: module.rule for name, module in model.named_modules() if hasattr(module, "rule")}
    weights = {name: (p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    report, _ = together({"it": m.LRP(), "layer": m.LayerLRP("block")}, limit, lambda: model)
    x, y = samples()
    assert distance(report.attributions["it"], primary.lrp(prepared(with_rules().double()), x.double(), y)) <= 1e-8
    assert {name: module.rule for name, module in model.named_modules() if hasattr(module, "rule")} == rules
    for name, parameter in model.named_parameters():
        assert parameter.data_ptr() == weights[name][0]
        assert torch.equal(parameter, weights[name][1])


def test_without_biases_relevance_adds_up_to_the_output() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    report = explain(model, Probe(torch.randn(4, 6)), {"it": m.LRP(), "layer": m.LayerLRP("0")}, [])
    chosen = report.outputs.gather(1, report.targets[:, None]).squeeze(1)
    for found in report.attributions.values():
        torch.testing.assert_close(found.sum(1), chosen, rtol=1e-4, atol=1e-5)


def test_a_layer_without_a_rule_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3))
    with pytest.raises(ValueError, match=r"'1' \(GELU\)"):
        explain(model, Probe(torch.randn(4, 6)), {"it": m.LRP()}, [])


def test_a_residual_network_with_a_plain_addition_is_refused() -> None:
    x, y = samples()
    with pytest.raises(ValueError, match="add in 'block'"):
        explain(trained(Residual, partial(Layered)), Probe(x, y), {"it": m.LRP()}, [])
