"""What draws in pairs, and as many draws as a tolerance needs, save on three trained networks, those of ``default_cost.py``.

    pip install "lightning-explain[demo]"
    python benchmarks/draws.py [--replicates 48]

Pairs: each map is computed anew from independent draws, as often as there are replicates. The ratio of variances over the replicates, plain
over antithetic, is how many times as many evaluations independent draws need for the same standard error; its interval (95%) comes from
bootstrapping the replicates. "error by pairs" is the standard error that the spread of maps of one pair gives, over the one that the
replicates show, and should be 1; "error by copies" takes all copies or orders of the pairs for independent ones, and is wrong.

As many as needed: ``Infidelity`` with a fixed number of draws and with ``"auto"``, for each of three methods alone. The error is the root
mean square, over samples and methods, of the difference from the score of 2,048 draws.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from default_cost import digits, parity, trained
from default_cost import table as breast_cancer
from torch import Tensor, nn

from _measure import console, parser, start, table
from lightning_explain import Method, Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q

COPIES, ORDERS, SAMPLES, RESAMPLED = 16, 8, 4, 1000
NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor, Tensor]]] = {
    "digits": digits,
    "parity of digits": parity,
    "breast cancer": breast_cancer,
}
NOISE = 0.15
GRIDS = {"digits": {"grid": 2}, "parity of digits": {"grid": 4}}


def replicates(model: nn.Module, probe: Probe, method: Method, count: int) -> Tensor:
    """Maps of each sample from independent draws, ``(count, N, elements)``."""
    assert isinstance(probe.inputs, Tensor)
    assert isinstance(probe.targets, Tensor)
    times = (count, *[1] * (probe.inputs.ndim - 1))
    inputs, targets = probe.inputs.repeat(times), probe.targets.repeat(count)
    many = Probe(inputs, targets, ids=torch.arange(len(inputs)))
    found = explain(model, many, {"map": method}, []).attributions["map"]
    assert isinstance(found, Tensor)
    return found.double().reshape(count, len(probe), -1)


def variance(maps: Tensor) -> Tensor:
    """Variance over the replicates, summed over all elements of all maps."""
    return maps.var(0).sum()


def interval(plain: Tensor, paired: Tensor) -> tuple[float, float]:
    """The 95% interval of the ratio of variances, by the bootstrap."""
    ratios = []
    for _ in range(RESAMPLED):
        first, second = (maps[torch.randint(len(maps), (len(maps),))] for maps in (plain, paired))
        ratios.append(variance(first) / variance(second))
    low, high = torch.stack(ratios).quantile(torch.tensor([0.025, 0.975], dtype=torch.double)).tolist()
    return low, high


def in_pairs(found: Any, name: str, model: nn.Module, probe: Probe, count: int) -> None:
    """Adds a line for each method to the table."""
    noisy = {"attribution_method": m.Saliency(abs=False), "stdevs": NOISE}
    mask = {"feature_mask": GRIDS[name]} if name in GRIDS else {}
    made: Mapping[str, tuple[int, Callable[[bool, int], Method]]] = {
        "SmoothGrad": (COPIES, lambda anti, n: m.NoiseTunnel(nt_samples=n, antithetic=anti, **noisy)),
        "ShapleyValueSampling": (ORDERS, lambda anti, n: m.ShapleyValueSampling(n_samples=n, antithetic=anti, **mask)),
    }
    for method, (draws, make) in made.items():
        plain, paired = (replicates(model, probe, make(anti, draws), count) for anti in (False, True))
        ratio, (low, high) = variance(plain) / variance(paired), interval(plain, paired)
        by_pairs = variance(replicates(model, probe, make(True, 2), count)) / (draws // 2)
        by_copies = variance(replicates(model, probe, make(False, 1), count)) / draws
        errors = [f"{float((part / variance(paired)).sqrt()):.2f}" for part in (by_pairs, by_copies)]
        needed = f"{draws * float(ratio):.0f}"
        found.add_row(name, method, str(draws), needed, f"{float(ratio):.2f} ({low:.2f} to {high:.2f})", *errors)


def as_needed(found: Any, name: str, model: nn.Module, probe: Probe) -> None:
    """Adds a line for each way to draw to the table."""
    methods = {
        "gradient": m.Saliency(abs=False),
        "times input": m.InputXGradient(),
        "ig": m.IntegratedGradients(n_steps=16),
    }

    def scored(methods: Mapping[str, Method], **arguments: Any) -> Any:
        return explain(model, probe, methods, {"i": q.Infidelity(**arguments)})

    best, ways = scored(methods, n_perturb_samples=2048), dict[str, dict[str, Any]]()
    ways |= {f"fixed, {n}": {"n_perturb_samples": n} for n in (16, 32, 64, 128)}
    ways |= {f'"auto", {t}': {"n_perturb_samples": "auto", "tolerance": t} for t in (0.1, 0.05, 0.025)}
    for way, arguments in ways.items():
        each, errors, largest = [], [], []
        for key, method in methods.items():
            report, none = scored({key: method}, **arguments), explain(model, probe, {key: method}, [])
            each.append((report.passes.forward - none.passes.forward) / len(probe))
            errors.append(report.scores["i_relative"][key] - best.scores["i_relative"][key])
            largest.append(report.standard_errors["i_relative"][key].nan_to_num().max())
        error = torch.cat(errors).square().nanmean().sqrt()
        found.add_row(name, way, f"{sum(each) / len(each):.0f}", f"{float(error):.3f}", f"{float(max(largest)):.3f}")


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--replicates", type=int, default=48)
    chosen = start(made)
    warnings.simplefilter("ignore")
    columns = (
        "draws",
        "independent draws for the same error",
        "ratio of variances",
        "error by pairs",
        "error by copies",
    )
    pairs = table(f"In pairs, {chosen.replicates} replicates of {SAMPLES} samples", "network", "method", *columns)
    needed = table(
        "Infidelity, 16 samples", "network", "draws", "evaluations a sample", "error", "largest standard error"
    )
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        model, x, y = make()
        model = trained(model, x, y).eval()
        few = Probe(x[:SAMPLES], y[:SAMPLES])
        in_pairs(pairs, name, model, few, chosen.replicates)
        as_needed(needed, name, model, replace(few, inputs=x[:16], targets=y[:16], ids=None))
    console.print(pairs)
    console.print(needed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
