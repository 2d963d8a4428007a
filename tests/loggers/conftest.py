from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch

from lightning_explain.core.report import Publication, Report


@pytest.fixture(scope="session")
def publish() -> Callable[..., Publication]:
    """Makes the publication of one step; equal arguments make equal publications."""

    def make(
        step: int = 10,
        epoch: int = 1,
        name: str = "explain",
        scalars: Mapping[str, float] | None = None,
        methods: Sequence[str] = ("ig", "cam"),
        directions: Mapping[str, str] | None = None,
    ) -> Publication:
        random = np.random.default_rng(step)
        draw = torch.Generator().manual_seed(step)
        scores = {"infidelity": {methods[0]: torch.tensor([step + 0.5, float("nan")])}}
        for _, score, method in (tag.split("/", 2) for tag in scalars or {} if tag.count("/") > 1):
            scores.setdefault(score, {})[method] = scores["infidelity"][methods[0]]
        report = Report(
            attributions={m: torch.randn(2, 3, 4, 4, generator=draw) for m in methods},
            scores=scores,
            standard_errors={},
            outputs=torch.randn(2, 3, generator=draw),
            predictions=torch.tensor([0, 2]),
            targets=torch.tensor([0, 1]),
            ids=torch.tensor([5, 9]),
            epoch=epoch,
            step=step,
        )
        pictures = {f"{name}/{m}": random.integers(0, 256, (9, 12, 3), dtype=np.uint8) for m in methods}
        if scalars is None:
            scalars = {f"{name}/{key}": value for key, value in report.scalars().items()}
        return Publication(name, epoch, step, scalars, pictures, directions or {}, report)

    return make
