"""The benchmark of torchvision's full-size detectors, on two that are fast: explanations are those by hand, training is as without."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import full_detectors as bench

from training import QUIET

pytestmark = [
    *QUIET,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients"),
]


@pytest.mark.parametrize("name", list(bench.NETWORKS)[:2])
def test_explanations_of_full_size_detectors_are_those_by_hand(name: str) -> None:
    net = bench.trained(name, steps=1)
    exact, _ = bench.differences(net, torch.float64)
    assert list(exact) == ["f", "saliency", "ig"]
    assert max(exact.values()) <= bench.EQUAL
    layer, left_out = bench.default_of(net)
    assert layer.startswith("backbone.")
    assert left_out == "nothing"
    assert bench.is_undisturbed(name)


def test_a_score_of_another_object_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def other(net: Any, images: Any) -> Any:
        return bench.explain(net, bench.Probe(images), bench.METHODS, [], bench.Detection(box=1))

    monkeypatch.setattr(bench, "ours", other)
    far, _ = bench.differences(copy.deepcopy(bench.trained("fasterrcnn_mobilenet_v3_large_320_fpn", 1)), torch.float64)
    assert far["f"] > bench.EQUAL
