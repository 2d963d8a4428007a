"""Compares DeepLIFT with tangermeme's: ``python tests/peers/against_tangermeme.py``; needs ``pip install tangermeme``.

tangermeme has a DeepLIFT of its own, for networks on DNA. Each network runs in float32 and in float64, on one-hot sequences
with references of their own alphabet, and the largest difference relative to a sample's largest value is printed. It exits with
1 if one is above 1e-5 or 1e-9.
"""

from __future__ import annotations

import sys
import warnings

import torch
from tangermeme.deep_lift_shap import deep_lift_shap
from torch import Tensor, nn

from lightning_explain import Probe, explain
from lightning_explain import methods as m

BOUNDS = {torch.float32: 1e-5, torch.float64: 1e-9}
# Below this difference of inputs tangermeme takes the derivative; Captum does so below 1e-10.
EPS = 1e-6


def network(activation: nn.Module, pool: nn.Module) -> nn.Sequential:
    """A small network on DNA, with an activation beside a maximum."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv1d(4, 8, 7, padding=3), activation, pool, nn.Conv1d(8, 8, 5), type(activation)(), nn.Flatten()),
        *(nn.LazyLinear(16), type(activation)(), nn.Linear(16, 2)),
    )


def one_hot(count: int, length: int, seed: int) -> Tensor:
    """Random sequences ``(count, 4, length)``."""
    letters = torch.randint(0, 4, (count, length), generator=torch.Generator().manual_seed(seed))
    return nn.functional.one_hot(letters, 4).transpose(1, 2).float()


def difference(model: nn.Module, x: Tensor, references: Tensor) -> float:
    """The largest difference of the two maps of a sample, relative to the sample's largest value."""
    theirs = deep_lift_shap(
        model,
        x,
        references=references.expand(len(x), *references.shape),
        target=1,
        raw_outputs=True,
        device="cpu",
        dtype=x.dtype,
    )
    expected = (theirs.to(x) * (x[:, None] - references)).mean(1)
    lifts = {str(i): m.DeepLift(baselines=reference[None], eps=EPS) for i, reference in enumerate(references)}
    found = torch.stack([*explain(model, Probe(x), lifts, [], target=1).attributions.values()]).mean(0)
    worst = (found - expected).flatten(1).abs().amax(1) / expected.flatten(1).abs().amax(1)
    return float(worst.max())


def main() -> int:
    """Prints the table; returns the exit code."""
    warnings.simplefilter("ignore")
    x, references, wrong = one_hot(6, 40, 1), one_hot(5, 40, 2), 0
    activations = [
        nn.ReLU,
        nn.ELU,
        nn.LeakyReLU,
        nn.Softplus,
        nn.Sigmoid,
        nn.Tanh,
        nn.GELU,
        nn.SiLU,
        nn.SELU,
        nn.CELU,
        nn.Mish,
    ]
    pools = [nn.Identity(), nn.MaxPool1d(2), nn.MaxPool1d(3, 1), nn.MaxPool1d(3, 2, padding=1), nn.AvgPool1d(2)]
    print(f"{'activation':<12}{'pool':<66}{'float32':>10}{'float64':>10}")
    for activation in activations:
        for pool in pools:
            model = network(activation(), pool).eval()
            model(x)
            found = []
            for dtype, bound in BOUNDS.items():
                model = model.to(dtype)
                found.append(difference(model, x.to(dtype), references.to(dtype)))
                wrong += found[-1] > bound
            print(f"{activation.__name__:<12}{pool!s:<66}{found[0]:>10.1e}{found[1]:>10.1e}", flush=True)
    print(f"{wrong} of {2 * len(activations) * len(pools)} above their bounds")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
