"""How methods are compared with Captum: the same samples, the same network, any chunk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version

import torch
from packaging.version import Version
from torch import Tensor, nn

from lightning_explain import Probe, Report, explain
from lightning_explain.core.contracts import Method
from lightning_explain.core.draws import KeyedDraws
from lightning_explain.core.probe import Samples
from lightning_explain.explainer.explainer import Explainer
from networks import DigitNet, OutOfPlace, samples, trained

LAYER = "block.bn2"  # its output is changed in place by what follows
LIMITS = (1, 3, 64)
# Captum 0.8 rounds the steps of a path to float32.
ROUNDED_STEPS = Version(version("captum")) < Version("0.9")
ORDER = torch.tensor([3, 0, 6, 1, 5, 2, 4])


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference of a sample, relative to the sample's largest value."""
    assert ours.shape == theirs.shape
    return ((ours - theirs).flatten(1).abs().amax(1) / theirs.flatten(1).abs().amax(1)).max().item()


def by_hand(block: type[nn.Module] = OutOfPlace, kind: type[DigitNet] = DigitNet) -> DigitNet:
    """The network as someone who calls Captum by hand must prepare it: no operation in place, eval mode."""
    return prepared(trained(block, kind))


def prepared(model: nn.Module) -> nn.Module:
    for module in model.eval().modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    return model


def ours(method: Method, **options: object) -> Tensor:
    x, y = samples()
    report = explain(trained(), Probe(x, y), {"it": method}, [], **options)
    found = report.attributions["it"]
    assert isinstance(found, Tensor)
    return found


def together(
    methods: Mapping[str, Method], limit: int, build: Callable[[], nn.Module] = trained, order: Tensor | None = None
) -> tuple[Report, dict[str, int]]:
    """One explanation by all methods, and the most samples the network saw in one call of each."""
    x, y = samples()
    ids = torch.arange(len(x)) if order is None else order
    probe = Probe(x[ids], y[ids], ids=ids)
    model = build()
    explainer = Explainer(methods, {}, limit=limit).check(model, probe)
    largest = {"": 0}

    def start(name: str) -> None:
        largest[name] = 0

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        name = next(reversed(largest))
        largest[name] = max(largest[name], len(inputs[0]))

    model.register_forward_pre_hook(note)
    report = explainer.explain(model, probe, start)
    # Methods that share passes run before any of them is announced.
    return report, {name: max(count, largest[""]) for name, count in largest.items()}


def keyed(
    purpose: str, count: int, uniform: bool = False, shape: tuple[int, ...] = (1, 8, 8), like: Tensor | None = None
) -> Tensor:
    """The draws our methods make, ``(N, count, ...)``, for as many samples and as precise as ``like``."""
    like = samples()[0] if like is None else like
    n = len(like)
    ids = torch.arange(n).repeat_interleave(count)
    all_samples = Samples((), (), (), ids, torch.zeros_like(ids))
    draws = KeyedDraws(0)
    found = (draws.uniform if uniform else draws.normal)(
        purpose, all_samples, torch.arange(count).repeat(n), like.new_empty(n * count, *shape)
    )
    return found.unflatten(0, (n, count))


def permutations(features: int, like: Tensor | None = None) -> Tensor:
    """Ours ``(features, N)``: samples in the order of their draws; one that moves nothing becomes a shift by one."""
    found = keyed("permutation", 1, uniform=True, shape=(features,), like=like)[:, 0].argsort(0).T
    still = torch.arange(found.shape[1])
    return torch.stack([still.roll(1) if torch.equal(sample, still) else sample for sample in found])


def seeded_samples(call: Callable[[Tensor, Tensor], Tensor], given: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Captum on one sample at a time, with the global generators where our methods start them."""
    found = []
    for i, (x, y) in enumerate(zip(*(given or samples()), strict=True)):
        sample = Samples((), (), (), torch.tensor([i]), torch.zeros(1, dtype=torch.long))
        with KeyedDraws(0).seeded("features", sample, torch.zeros(1, dtype=torch.long)):
            found.append(call(x[None], y[None]))
    return torch.cat(found)


def assert_same_numbers(ours: Sequence[Report], theirs: Sequence[Report]) -> None:
    """Reports of the same moments, bit for bit: maps, scores and outputs, of each target too."""
    assert [report.step for report in ours] == [report.step for report in theirs] != []
    for a, b in zip(ours, theirs, strict=True):
        assert (a.epoch, a.fingerprint, a.tasks) == (b.epoch, b.fingerprint, b.tasks)
        for part in ("attributions", "maps", "scores", "standard_errors", "outputs", "values", "targets", "explained"):
            torch.testing.assert_close(getattr(a, part), getattr(b, part), rtol=0, atol=0, equal_nan=True)
        for name, of in b.by_target.items():
            torch.testing.assert_close(dict(a.by_target[name]), dict(of), rtol=0, atol=0, equal_nan=True)
