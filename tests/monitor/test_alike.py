"""Ranks are told apart by what they were asked for, not by objects of the user's own, which may know their rank."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_explain import Alert, Probe, ProbeSelection
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.probe import Attribution, Samples
from lightning_explain.monitor.alike import _differing, _digest


class Helper:
    """An object that knows on which rank it is."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def __call__(self, *arguments: Any) -> Any:
        return arguments[0]

    def read(self, batch: Any) -> Any:
        return batch


class Own(Method):
    """A method of the user's own."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        return torch.ones_like(samples.inputs[0])


def first(outputs: Tensor) -> Tensor:
    return outputs[:, 0]


def second(outputs: Tensor) -> Tensor:
    return outputs[:, 1]


def _scaled(by: float) -> Callable[[Tensor], Tensor]:
    return lambda outputs: by * outputs[:, 0]


def _looped() -> dict[str, Any]:
    found: dict[str, Any] = {}
    found["itself"] = found
    return found


ALIKE: dict[str, tuple[Any, Any]] = {
    "equal methods": ([m.IntegratedGradients(n_steps=5)], [m.IntegratedGradients(n_steps=5)]),
    "an object": (Helper(0), Helper(1)),
    "its method": (Helper(0).read, Helper(1).read),
    "a partial with an object": (partial(first, Helper(0), by=Helper(0)), partial(first, Helper(1), by=Helper(1))),
    "a method of the user's own": ({"own": Own(0)}, {"own": Own(1)}),
    "an object in a metric": (q.Infidelity(perturb_func=Helper(0)), q.Infidelity(perturb_func=Helper(1))),
    "an object in a method": (m.GradientShap(baselines=Helper(0)), m.GradientShap(baselines=Helper(1))),
    "lambdas of one name": (_scaled(1.0), _scaled(2.0)),
    "not a number": (float("nan"), -float("nan")),
    "not a number in tensors": (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, float("nan")])),
    "not a number in a method": (
        m.Lime(baselines=torch.tensor(float("nan"))),
        m.Lime(baselines=torch.tensor(float("nan"))),
    ),
    "sets in any order": ({"a", "b", "c", "d"}, set("dcba")),
    "samples": (Probe(torch.zeros(2, 3)), Probe(torch.ones(2, 3))),
    "a view": (torch.arange(6.0).view(2, 3).T, torch.arange(6.0).view(2, 3).T.contiguous()),
    "a dict that holds itself": (_looped(), _looped()),
}
OTHER: dict[str, tuple[Any, Any]] = {
    "an argument of a method": ([m.IntegratedGradients(n_steps=5)], [m.IntegratedGradients(n_steps=6)]),
    "an argument of a method in a method": (
        m.NoiseTunnel(m.IntegratedGradients(n_steps=5)),
        m.NoiseTunnel(m.IntegratedGradients(n_steps=6)),
    ),
    "a baseline": (m.FeatureAblation(baselines=torch.zeros(3)), m.FeatureAblation(baselines=torch.eye(3)[0])),
    "an argument of a metric": (q.Infidelity(n_perturb_samples=2), q.Infidelity(n_perturb_samples=3)),
    "an argument of a selection": (ProbeSelection(count=4), ProbeSelection(count=4, seed=1)),
    "an argument of an alert": (Alert("infidelity/ig", above=1.0), Alert("infidelity/ig", above=2.0)),
    "functions": (first, second),
    "functions of a partial": (partial(first), partial(second)),
    "a plain argument of a partial": (partial(first, by=1), partial(first, by=2)),
    "kinds of methods": ([m.Saliency()], [m.InputXGradient()]),
    "names": ({"a": m.Saliency()}, {"b": m.Saliency()}),
    # In this order ranks go through them together.
    "the order of methods": (
        {"a": m.Saliency(), "b": m.InputXGradient()},
        {"b": m.InputXGradient(), "a": m.Saliency()},
    ),
    "a number and its text": (1, "1"),
    "a number and a flag": (1, True),
    "kinds of numbers": (1, 1.0),
    "zeros of either sign": (0.0, -0.0),
    "shapes": (torch.zeros(2, 3), torch.zeros(3, 2)),
    "dtypes": (np.zeros(3), np.zeros(3, np.float32)),
    "nothing": (None, ()),
}


@pytest.mark.parametrize(("one", "two"), ALIKE.values(), ids=ALIKE)
def test_what_may_differ_between_ranks_has_one_digest(one: Any, two: Any) -> None:
    assert _digest(one) == _digest(two)


@pytest.mark.parametrize(("one", "two"), OTHER.values(), ids=OTHER)
def test_what_the_user_asked_for_has_a_digest_of_its_own(one: Any, two: Any) -> None:
    assert _digest(one) != _digest(two)
    assert len(_digest(one)) == 32


def test_every_argument_that_differs_is_named_with_its_ranks() -> None:
    ranks = [{"explain": {"methods": "a", "seed": str(rank // 2)}} for rank in range(4)]
    assert _differing(ranks) == ["seed on ranks 2, 3"]
    assert _differing(ranks[:2]) == []
    two = {"explain": {"seed": "0"}, "other": {"seed": "0"}}
    assert _differing([two, {**two, "other": {"seed": "1"}}]) == ["seed of 'other' on rank 1"]
    assert _differing([two, ranks[0]]) == ["the names of the monitors (['explain']) on rank 1"]
    assert _differing([ranks[0]] + 12 * [ranks[3]]) == ["seed on ranks 1, 2, 3, 4, 5, 6, 7, 8 and 4 more"]
