"""Measures the fixed cost of an explanation: its time without the passes through the model.

Run with: python benchmarks/fixed.py [--repeat 200] [--clock process --threads 1]

The gradient of 16 samples takes one pass. The fixed cost is the time of an explanation by it, minus that of the bare pass: the isolation,
the choice of targets, and the report. Both are measured in turn; the interval (95%) of the median difference comes from the bootstrap.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from _measure import console, explainer, in_turn, parser, start, table, without_parameter_gradients
from lightning_explain import Probe
from lightning_explain import methods as m

SAMPLES, CLASSES, RESAMPLED = 16, 10, 2000


def small() -> tuple[nn.Module, tuple[int, ...]]:
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(400, CLASSES)), (1, 28, 28)


def resnet() -> tuple[nn.Module, tuple[int, ...]]:
    from torchvision.models import resnet18

    return resnet18(num_classes=CLASSES), (3, 64, 64)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, tuple[int, ...]]]] = {
    "small CNN, 28 x 28": small,
    "ResNet-18, 64 x 64": resnet,
}


def bare(model: nn.Module, probe: Probe) -> Callable[[], object]:
    """A forward and a backward pass, without anything around it."""
    x, y = probe.inputs, probe.targets
    assert isinstance(x, Tensor)
    assert isinstance(y, Tensor)

    def run() -> object:
        inputs = x.detach().requires_grad_()
        return torch.autograd.grad(model(inputs).gather(1, y[:, None]).sum(), inputs)

    return run


def median_difference(first: Tensor, second: Tensor) -> tuple[float, float, float]:
    """The median difference of pairs, and its 95% interval by the bootstrap."""
    found = first - second
    medians = found[torch.randint(len(found), (RESAMPLED, len(found)))].median(1).values
    low, high = medians.quantile(torch.tensor([0.025, 0.975])).tolist()
    return float(found.median()), low, high


def main() -> None:
    chosen = start(parser(__doc__, repeat=200))
    found = table(f"{chosen.threads} threads", "network", "explanation, ms", "bare pass, ms", "fixed, ms (95%)")
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        model, shape = make()
        probe = Probe(torch.randn(SAMPLES, *shape), torch.arange(SAMPLES) % CLASSES)
        explain, passes = explainer(model.eval(), probe, {"saliency": m.Saliency(abs=False)}), bare(model, probe)
        with without_parameter_gradients(model):
            actions = {"explanation": explain, "pass": passes}
            in_turn(actions, 5)
            times = {key: torch.tensor(values) * 1e3 for key, values in in_turn(actions, chosen.repeat).items()}
        middle, low, high = median_difference(times["explanation"], times["pass"])
        each = [f"{float(times[key].median()):.2f}" for key in actions]
        found.add_row(name, *each, f"{middle:.2f} ({low:.2f} to {high:.2f})")
    console.print(found)


if __name__ == "__main__":
    main()
