"""Draws in antithetic pairs: the same mean as independent draws, less variance on smooth networks, and pairs that belong to a sample."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_explain import Method, Probe, explain
from lightning_explain import methods as m
from lightning_explain.methods.shapley import _in_pairs

COPIES, NOISE = 400, 0.5


class Cubic(nn.Module):
    """The sum of cubes, whose gradient smoothed by noise of variance v is 3 (x^2 + v)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.pow(3).sum(1, keepdim=True)


class Smooth(nn.Module):
    """A network of two layers without kinks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1)).double()

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.net(x)
        return found


X = torch.randn(1, 6, generator=torch.Generator().manual_seed(1), dtype=torch.double)


def maps(model: nn.Module, method: Method, copies: int = COPIES, **arguments: Any) -> Tensor:
    """The map of one sample from so many independent sets of draws, ``(copies, 6)``."""
    probe = Probe(X.expand(copies, -1).clone(), ids=torch.arange(copies))
    found = explain(model, probe, {"map": method}, [], target=0, **arguments).attributions["map"]
    assert isinstance(found, Tensor)
    return found


def tunnel(antithetic: bool, count: int = 8, **arguments: Any) -> m.NoiseTunnel:
    return m.NoiseTunnel(m.Saliency(abs=False), nt_samples=count, stdevs=NOISE, antithetic=antithetic, **arguments)


def sampling(antithetic: bool, count: int = 4) -> m.ShapleyValueSampling:
    return m.ShapleyValueSampling(n_samples=count, antithetic=antithetic)


def errors_apart(found: Tensor, known: Tensor) -> float:
    """The largest distance of a mean over copies from what is known, in standard errors."""
    deviation = found.std(0) / len(found) ** 0.5
    return float(((found.mean(0) - known).abs() / deviation.clamp(min=1e-12)).max())


@pytest.mark.parametrize("antithetic", [False, True])
def test_smoothed_gradients_have_the_mean_that_is_known(antithetic: bool) -> None:
    assert errors_apart(maps(Cubic(), tunnel(antithetic)), 3 * (X[0].square() + NOISE**2)) < 4


@pytest.mark.parametrize("antithetic", [False, True])
def test_sampled_shapley_values_have_the_mean_that_is_known(antithetic: bool) -> None:
    exact = maps(Smooth(), m.ShapleyValues(), copies=1)[0]
    assert errors_apart(maps(Smooth(), sampling(antithetic), copies=60), exact) < 4


@pytest.mark.parametrize("make", [tunnel, sampling])
def test_pairs_have_less_variance_on_a_smooth_network(make: Any) -> None:
    copies = COPIES if make is tunnel else 60
    plain, paired = (maps(Smooth(), make(antithetic), copies).var(0).sum() for antithetic in (False, True))
    assert plain / paired > 1.5


def test_the_standard_error_of_pairs_is_that_of_replicates_and_that_of_copies_is_not() -> None:
    count = 16
    replicates = maps(Smooth(), tunnel(True, count)).var(0).sum()
    # As many maps of a single pair, and of single copies, whose mean the former are.
    of_pairs = maps(Smooth(), tunnel(True, 2)).var(0).sum() / (count // 2)
    of_copies = maps(Smooth(), tunnel(False, 1)).var(0).sum() / count
    assert 0.8 < of_pairs / replicates < 1.25
    assert of_copies / replicates > 1.5


class ByItself(m.Saliency):
    """The gradient by a method without a path."""

    path = None

    def __init__(self) -> None:
        super().__init__(abs=False)

    def attribute(self, explained: Any, samples: Any) -> Any:
        x = samples.inputs[0].detach().requires_grad_()
        return torch.autograd.grad(explained.forward(x, *samples.extra).sum(), x)[0]


class Twin(m.NoiseTunnel):
    """The slow twin: the map at each noisy copy of half as many draws, and at its mirror image, one after the other."""

    def attribute(self, explained: Any, samples: Any) -> Any:
        inner, total = self.attribution_method, torch.zeros_like(samples.inputs[0])
        for k in range(self.nt_samples // 2):
            indices = torch.full((len(samples),), k)
            noise = explained.draws.normal("noise/0", samples, indices, samples.inputs[0]) * NOISE
            for sign in (1, -1):
                total += inner.attribute(explained, samples.at((samples.inputs[0] + sign * noise,)))
        return total / self.nt_samples


def test_copies_are_those_of_half_as_many_draws_and_their_mirror_images() -> None:
    slow = Twin(m.Saliency(abs=False), nt_samples=6, stdevs=NOISE)
    for inside in (m.Saliency(abs=False), ByItself()):
        fast = m.NoiseTunnel(inside, nt_samples=6, stdevs=NOISE, antithetic=True)
        torch.testing.assert_close(maps(Smooth(), fast, 3), maps(Smooth(), slow, 3), rtol=1e-6, atol=1e-8)


def test_orders_are_followed_by_their_reverses() -> None:
    torch.manual_seed(0)
    first, reverse, second, last = _in_pairs(5, 4)
    assert reverse == first[::-1]
    assert last == second[::-1]
    assert sorted(first) == sorted(second) == list(range(5))
    torch.manual_seed(0)
    assert first == torch.randperm(5).tolist(), "the orders are those of Captum's generator"


def test_the_draws_of_a_sample_depend_on_neither_chunk_nor_order() -> None:
    for make in (tunnel, sampling):
        whole = maps(Smooth(), make(True), copies=5)
        torch.testing.assert_close(
            maps(Smooth(), make(True), copies=5, max_examples_per_pass=3), whole, rtol=1e-10, atol=1e-12
        )
        probe = Probe(X.expand(2, -1).clone(), ids=torch.tensor([4, 1]))
        apart = explain(Smooth(), probe, {"map": make(True)}, [], target=0).attributions["map"]
        torch.testing.assert_close(apart, whole[[4, 1]], rtol=1e-10, atol=1e-12)


def test_the_default_is_what_it_was() -> None:
    assert not m.NoiseTunnel().antithetic
    assert not m.ShapleyValueSampling().antithetic


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: m.NoiseTunnel(nt_samples=5, antithetic=True),
            r"NoiseTunnel\(nt_samples=5\).*even number .*copies come in pairs",
        ),
        (
            lambda: m.ShapleyValueSampling(n_samples=3, antithetic=True),
            r"ShapleyValueSampling\(n_samples=3\).*even number .*orders come in pairs",
        ),
        (lambda: m.NoiseTunnel(nt_samples=4, antithetic="yes"), r"NoiseTunnel\(antithetic='yes'\)"),
    ],
)
def test_odd_numbers_are_refused(make: Any, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        make()
