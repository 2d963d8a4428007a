"""A model that takes gradients inside its forward: what DeepLIFT cannot go through refuses DeepLIFT alone."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from captum import attr as ca
from torch import Tensor, nn
from torch.nn import functional as F

from comparing import distance
from given import doctor
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.core.verdict import RefusedError
from training import QUIET, DigitModule, loaders, report_of, trainer
from training import monitor_of_digits as monitor

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:(Setting|Input Tensor|No metric will):UserWarning")]


class Energy(nn.Module):
    """Ten outputs of an image of a digit, from the gradient of an energy."""

    def __init__(self, gradient: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.head, self.gradient = nn.Linear(64, 16), nn.Linear(64, 10), gradient

    def energy(self, x: Tensor) -> Tensor:
        return F.softplus(self.first(x) + 0.0).sum()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gradient(self.energy, x.flatten(1)))


def by_grad(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.enable_grad():
        x = x if x.requires_grad else x.clone().requires_grad_()
        return torch.autograd.grad(energy(x), x, create_graph=True)[0]


def by_jacobian(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found: Tensor = torch.autograd.functional.jacobian(energy, x, create_graph=True)
    return found


def by_vjp(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    _, found = torch.autograd.functional.vjp(energy, x, create_graph=True)
    return found  # type: ignore[no-any-return]


def by_func(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    found: Tensor = torch.func.grad(energy)(x)
    return found


INSIDE = {"grad": by_grad, "jacobian": by_jacobian, "vjp": by_vjp, "torch.func": by_func}
METHODS = {"ig": m.IntegratedGradients(n_steps=4), "deep_lift": m.DeepLift()}


@pytest.mark.parametrize("gradient", INSIDE.values(), ids=INSIDE)
def test_deep_lift_is_refused_alone(gradient: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    model, x, y = Energy(gradient).eval(), torch.rand(3, 1, 8, 8), torch.tensor([0, 4, 9])
    ig, deep_lift = doctor(model, METHODS, Probe(x, y))
    assert re.search(r"takes gradients itself|transforms of torch\.func", deep_lift.reason)
    assert (ig.state, deep_lift.state) == ("fine", "refused")
    with pytest.raises(RefusedError, match=r"'deep_lift' \(DeepLift\): (?s:.)*This would run: methods=\{'ig'"):
        explain(model, Probe(x, y), METHODS, [])
    found = explain(model, Probe(x, y), {"ig": METHODS["ig"]}, []).attributions["ig"]
    expected = ca.IntegratedGradients(model).attribute(x, target=y, n_steps=4)
    assert distance(found, expected) <= 1e-5


@pytest.mark.parametrize("gradient", INSIDE.values(), ids=INSIDE)
def test_a_training_is_explained_by_the_other(gradient: Callable[..., Tensor], tmp_path: Path) -> None:
    watch = monitor(methods={"ig": METHODS["ig"]}, metrics=[])
    trainer(tmp_path, watch).fit(DigitModule(Energy(gradient)), **loaders())
    assert list(report_of(watch).attributions) == ["ig"]
    with pytest.raises(RefusedError, match=r"'deep_lift' \(DeepLift\): "):
        trainer(tmp_path, monitor(methods=METHODS)).fit(DigitModule(Energy(gradient)), **loaders())
