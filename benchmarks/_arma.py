"""Series of a known process, a regressor that is known in full, and how well maps find what matters (Crabbé & van der Schaar 2021)."""

from __future__ import annotations

import torch
from sklearn.metrics import auc, precision_recall_curve
from torch import Tensor, nn

TIMES, FEATURES, RARE = 50, 50, 5


class WhiteBox(nn.Module):
    """The sum of the squares of what matters: ``(N,)`` of numbers and truth, both ``(N, F)``."""

    def forward(self, numbers: Tensor, truth: Tensor) -> Tensor:
        return (numbers * truth).square().sum(1)


def arma(noise: Tensor) -> Tensor:
    """The process 2 y[t] = 2 e[t] - 0.5 y[t-1] - 0.2 y[t-2] - 0.1 y[t-3] of noise e ``(N, T, F)``, from rest."""
    found: list[Tensor] = []
    for now in noise.unbind(1):
        past = zip((0.25, 0.1, 0.05), reversed(found), strict=False)
        found.append(now - sum(weight * before for weight, before in past))
    return torch.stack(found, 1)


def truth_of(kind: str, generator: torch.Generator) -> Tensor:
    """What matters, ``(T, F)``: five features in the middle half of the times, or the middle half of the features at five times."""
    truth = torch.zeros(TIMES, FEATURES, dtype=torch.bool)
    if kind == "rare features":
        truth[TIMES // 4 : 3 * TIMES // 4, torch.randperm(FEATURES, generator=generator)[:RARE]] = True
    else:
        first = int(torch.randint(TIMES - RARE, (), generator=generator))
        truth[first : first + RARE, FEATURES // 4 : 3 * FEATURES // 4] = True
    return truth


def areas(maps: Tensor, truth: Tensor) -> tuple[float, float]:
    """AUP and AUR: the areas under precision and recall over the threshold on maps, each scaled to 0..1; both ``(N, ...)``."""
    flat = maps.flatten(1)
    least, most = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    scaled = (flat - least) / (most - least + 1e-5)
    precision, recall, thresholds = precision_recall_curve(truth.flatten().numpy(), scaled.flatten().numpy())
    return float(auc(thresholds, precision[:-1])), float(auc(thresholds, recall[:-1]))
