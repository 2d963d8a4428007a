"""Detectors and several targets on one and two ranks, launched by ``test_targets_on_ranks.py``: ``python targets_run.py FOLDER``.

What the ranks saw is saved as ``FOLDER/found.pt``.
"""

from __future__ import annotations

import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectors import SIDE, faster_rcnn, scenes
from torch import Tensor, distributed, nn

from forked import on_ranks
from gather_run import seen
from lightning_explain import Probe
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.distributed.ranks import Ranks
from lightning_explain.explainer.explainer import Explainer

METHODS = {
    "saliency": m.Saliency(abs=False),
    "ig": m.IntegratedGradients(n_steps=4),
    "occlusion": m.FeatureAblation(feature_mask={"grid": 2}),
}
METRICS = {"infidelity": q.Infidelity(n_perturb_samples=16), "pointing": q.PointingGame()}
SIZES = {"one size": [(SIDE, SIDE)] * 3, "several sizes": [(SIDE, SIDE), (SIDE, 40), (40, SIDE)]}


class Heads(nn.Module):
    """Two outputs by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten())
        self.age, self.sex = nn.Linear(144, 1), nn.Linear(144, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x)
        return {"age": self.age(h), "sex": self.sex(h)}


class Target:
    """The first output, once the checks are over; on one rank, or wherever there is one, it fails then."""

    def __init__(self, rank: int | None) -> None:
        self.rank, self.armed = rank, False

    def __call__(self, outputs: Tensor) -> Tensor:
        if self.armed and self.rank in (None, distributed.get_rank()):
            raise ArithmeticError("no target")
        return outputs[:, 0]


def faces() -> Probe:
    x = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)).double()
    return Probe(x, {"age": torch.arange(5.0).double(), "sex": torch.tensor([2, 0, 1, 1, 0])})


def explained(model: nn.Module, probe: Probe, metrics: Any, target: Any = "label", **options: Any) -> dict[str, Any]:
    ranks = Ranks(distributed.get_world_size())
    ready = Explainer(METHODS, metrics, target, ranks=ranks, **options).check(model.double(), probe)
    for one in target.values() if isinstance(target, dict) else ():
        if isinstance(one, Target):
            one.armed = True
    try:
        report = ready.explain(model, probe)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    of_each = {name: dict(part) for name, part in report.by_target.items()}
    of_each = {name: {key: part[key] for key in ("outputs", "values", "targets")} for name, part in of_each.items()}
    return {**seen(report), "values": report.values, "explained": dict(report.explained), "by_target": of_each}


def work(rank: int) -> dict[str, Any]:
    found = {}
    for name, sizes in SIZES.items():
        images, targets = scenes(sizes)
        images = [image.double() for image in images]
        # Its pooling takes the scales of its levels from the first image that it sees, which training has shown it.
        (net := faster_rcnn().double())(images[:1])
        found[name] = explained(net, Probe(images, targets), METRICS)
    run = partial(explained, Heads(), faces(), {"infidelity": METRICS["infidelity"]})
    fine, one, all_ = ({"age": "label", "sex": other} for other in ("label", Target(1), Target(None)))
    return {
        **found,
        "several": run(target=fine),
        "age": run(target={"age": "label"}),
        "failing": run(target=one, raising=False),
        "failing first": run(target={"sex": Target(0), "age": "label"}, raising=False),
        "failing everywhere": run(target=all_, raising=False),
        "all failing": run(target={"age": Target(1), "sex": Target(1)}, raising=False),
        "raising": run(target={"age": "label", "sex": Target(1)}),
    }


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.save({world: on_ranks(world, work, folder) for world in (1, 2)}, folder / "found.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
