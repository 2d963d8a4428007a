from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from captum.attr._utils.lrp_rules import EpsilonRule, GammaRule
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

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


def settled(model: nn.Module, *shape: int) -> nn.Module:
    """A model in float64 whose batch statistics are those of some data, in eval mode."""
    for module in model.double().modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(20):
            model(3 * torch.randn(16, *shape, dtype=torch.float64) + 1)
    return model.eval()


NORMALIZED: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...]]] = {
    "behind a linear layer": (lambda: [nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)], (6,)),
    "behind a 1-D convolution": (
        lambda: [nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.AvgPool1d(2), nn.Flatten(), nn.Linear(12, 3)],
        (2, 8),
    ),
    "behind a 2-D convolution": (
        lambda: [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)],
        (2, 8, 8),
    ),
}


@pytest.mark.parametrize("name", NORMALIZED)
def test_batch_normalization_is_as_if_merged_into_the_layer_before_it(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NORMALIZED[name]
    model = settled(nn.Sequential(*make()), *shape)
    fuse = fuse_linear_bn_eval if isinstance(model[0], nn.Linear) else fuse_conv_bn_eval
    merged = nn.Sequential(fuse(model[0], model[1]), *model[2:])
    x = torch.randn(4, *shape, dtype=torch.float64)
    found, expected = (explain(net, Probe(x), [m.LRP()], [], target=1).attributions["lrp"] for net in (model, merged))
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-8)  # type: ignore[arg-type]
    assert found.abs().max() > 1e-3  # type: ignore[union-attr]
    assert not any(hasattr(module, "rule") for module in model.modules())


def test_batch_normalization_of_columns_is_as_if_merged_into_the_layer_after_it() -> None:
    torch.manual_seed(0)
    model = settled(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), 6)
    norm, linear = model[0], copy.deepcopy(model[1])
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    with torch.no_grad():
        linear.bias += linear.weight @ (norm.bias - norm.running_mean * scale)
        linear.weight *= scale
    x = torch.randn(4, 6, dtype=torch.float64)
    nets = model, nn.Sequential(linear, *model[2:])
    found, expected = (explain(net, Probe(x), [m.LRP()], [], target=1).attributions["lrp"] for net in nets)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-8)  # type: ignore[arg-type]
