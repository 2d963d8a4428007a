"""HiResCAM and LayerCAM: the products of activation and gradient, in the passes that Grad-CAM takes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from comparing import LAYER, LIMITS, by_hand, distance, together
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from networks import samples


def read_by_hand() -> tuple[Tensor, Tensor]:
    """Activation and gradient at the layer, ``(N, C, h, w)`` each."""
    model, found = by_hand(), []
    model.get_submodule(LAYER).register_forward_hook(lambda module, arguments, output: found.append(output))
    x, y = samples()
    outputs = model(x).gather(1, y[:, None]).sum()
    return found[0].detach(), torch.autograd.grad(outputs, found[0])[0]


def hi_res_cam(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    activation, gradient = read_by_hand()
    return (gradient * activation).sum(1, keepdim=True)


def layer_cam(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    activation, gradient = read_by_hand()
    return (gradient.relu() * activation).sum(1, keepdim=True)


def layer_cam_channels(model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module) -> Tensor:
    activation, gradient = read_by_hand()
    return gradient.relu() * activation


def positive(cam: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *given: cam(*given).relu()


# As in pytorch_grad_cam 1.5.7, whose maps are then scaled to [0, 1]; benchmarks/against_grad_cam.py compares with it.
CASES = {
    "hi_res_cam": (m.HiResCAM(LAYER), hi_res_cam),
    "hi_res_cam_positive": (m.HiResCAM(LAYER, relu_attributions=True), positive(hi_res_cam)),
    "layer_cam": (m.LayerCAM(LAYER), layer_cam),
    "layer_cam_positive": (m.LayerCAM(LAYER, relu_attributions=True), positive(layer_cam)),
    "layer_cam_channels": (m.LayerCAM(LAYER, attr_dim_summation=False), layer_cam_channels),
}


@functools.cache
def explained(limit: int) -> tuple:
    return together({name: method for name, (method, _) in CASES.items()}, limit)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", CASES)
def test_a_cam_is_the_product_written_by_hand(name: str, limit: int) -> None:
    model = by_hand()
    expected = CASES[name][1](model, *samples(), model.get_submodule(LAYER))
    assert distance(explained(limit)[0].attributions[name], expected) <= 1e-5


def test_all_cams_of_a_layer_take_the_passes_of_one() -> None:
    alone, _ = together({"cam": m.LayerGradCam(LAYER)}, 64)
    every, _ = together({"cam": m.LayerGradCam(LAYER), "fine": m.LayerCAM(LAYER), "exact": m.HiResCAM(LAYER)}, 64)
    assert every.passes == alone.passes
    assert torch.equal(every.attributions["cam"], alone.attributions["cam"])


def net(head: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), head).double()


X = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
FLAT = nn.Sequential(nn.Flatten(), nn.Linear(144, 2))


def test_hi_res_cam_adds_up_to_the_output_of_a_linear_head_and_grad_cam_does_not() -> None:
    model = net(FLAT)
    report = explain(model, Probe(X), {"exact": m.HiResCAM("1"), "cam": m.LayerGradCam("1")}, [], target=1)
    output = model(X)[:, 1] - FLAT[1].bias[1]  # type: ignore[union-attr, index]
    sums = {name: found.sum((1, 2, 3)) for name, found in report.attributions.items()}  # type: ignore[union-attr]
    torch.testing.assert_close(sums["exact"], output)
    assert (sums["cam"] - output).abs().max() > 0.1


def test_behind_global_pooling_hi_res_cam_is_grad_cam() -> None:
    model = net(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)))
    report = explain(model, Probe(X), {"exact": m.HiResCAM("1"), "cam": m.LayerGradCam("1")}, [], target=0)
    torch.testing.assert_close(report.attributions["exact"], report.attributions["cam"])


def test_a_layer_cam_has_no_sign_and_a_warning_says_so_beside_infidelity() -> None:
    assert not m.LayerCAM().signed
    assert m.HiResCAM().signed
    with pytest.warns(UserWarning, match=r"\['layer_cam'\] hold no evidence against the output, but \['infidelity'\]"):
        explain(net(FLAT).float(), Probe(X.float()), [m.LayerCAM("1")], [q.Infidelity()], target=0)
