"""Faults of methods, metrics and targets, which are the user's own."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from faults.fault import Fault, Inject, argument, fails
from faults.scene import Scene, Trap
from lightning_explain import Probe
from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.probe import Attribution, Samples


class Broken(Method):
    """A method that does something else on the ranks that are struck."""

    def __init__(self, scene: Scene, work: Callable[[Samples], Any]) -> None:
        self.scene, self.work = scene, work

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        if not self.scene.injured:
            return torch.ones_like(samples.inputs[0])
        self.scene.strike()
        found: Attribution = self.work(samples)
        return found


def method(work: Callable[[Samples], Any]) -> Inject:
    return argument(lambda scene: {"methods": {**scene.arguments["methods"], "bad": Broken(scene, work)}})


def asleep(samples: Samples) -> Tensor:
    time.sleep(0.5)
    return torch.ones_like(samples.inputs[0])


def timed_out(samples: Samples) -> Tensor:
    def handler(*arguments: Any) -> None:
        raise TimeoutError("the user's own time limit")

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        time.sleep(5)
    finally:
        signal.signal(signal.SIGALRM, before)
    return torch.ones_like(samples.inputs[0])


def endless(samples: Samples) -> Tensor:
    return endless(samples)


METRICS = (
    q.Infidelity,
    q.SensitivityMax,
    q.Completeness,
    q.Deletion,
    q.Insertion,
    q.Randomization,
    q.Concentration,
    q.Agreement,
    q.PointingGame,
    q.RelevanceMass,
    q.RelevanceRank,
)


def with_masks(batch: Any) -> Probe:
    x, y = batch
    return Probe(x, y, masks=x[:, 0] > 0)


def failing(kind: type) -> Callable[[Scene], dict[str, Any]]:
    """A metric of this kind whose ``score`` is the user's own, and fails."""

    def make(scene: Scene) -> dict[str, Any]:
        def score(metric: Any, case: Any) -> Any:
            if scene.injured:
                scene.strike()
                raise ZeroDivisionError("division by zero")
            return kind.score(metric, case)  # type: ignore[attr-defined]

        small = {"n_perturb_samples": 2} if hasattr(kind, "n_perturb_samples") else {}
        small = {"n_steps": 2} if hasattr(kind, "n_steps") else small
        made = type(kind.__name__, (kind,), {"score": score})(**small)
        return {"metrics": {"bad": made}, "batch_fn": with_masks}

    return make


def perturbing(kind: type, found: Callable[..., Any]) -> Callable[[Scene], dict[str, Any]]:
    def make(scene: Scene) -> dict[str, Any]:
        def perturb(inputs: Any, *radius: Any) -> Any:
            if not scene.injured:
                return (inputs, inputs * 0) if kind is q.Infidelity else inputs * 1.01
            scene.strike()
            return found(inputs)

        return {"metrics": {"bad": kind(n_perturb_samples=2, perturb_func=perturb)}}

    return make


def scoring(found: Any) -> Callable[[Scene], dict[str, Any]]:
    def make(scene: Scene) -> dict[str, Any]:
        class Odd(q.Infidelity):
            def score(self, case: Any) -> Any:
                if not scene.injured:
                    return super().score(case)
                scene.strike()
                return found

        return {"metrics": {"bad": Odd(n_perturb_samples=2)}}

    return make


def target(scene: Scene) -> dict[str, Any]:
    # It does nothing; it knows when training has begun.
    trap = scene.trap = Trap(lambda output: output, last=0)

    def choose(outputs: Tensor) -> Tensor:
        if trap.begun and scene.injured:
            scene.strike()
            raise ArithmeticError("no target")
        return outputs[:, 0]

    return {"target": choose}


def methods_and_metrics() -> Iterator[Fault]:
    """The faults of this kind."""
    yield Fault("method", "raises", method(fails(ArithmeticError("no map"))))
    yield Fault("method", "recurses without end", method(endless))
    yield Fault("method", "is interrupted by the user's SIGALRM", method(timed_out))
    yield Fault("method", "is half a second late", method(asleep), raises=False)
    yield Fault("gather", "a map of another shape", method(lambda samples: torch.ones(3, 2)), raises=False)
    yield Fault("gather", "a map of fewer samples", method(lambda samples: torch.ones_like(samples.inputs[0])[:-1]))
    yield Fault("gather", "a map of whole numbers", method(lambda samples: samples.inputs[0].long()), raises=False)
    yield Fault("gather", "no map at all", method(lambda samples: None))
    yield Fault("gather", "a sparse map", method(lambda samples: samples.inputs[0].to_sparse()))
    unlike = method(lambda samples: (samples.inputs[0], samples.inputs[0][:1]))
    yield Fault("gather", "maps of unlike numbers of samples", unlike)
    yield Fault("gather", "a word for a map", method(lambda samples: "map"))
    yield Fault("target", "the function raises", argument(target))
    for kind in METRICS:
        yield Fault("metric", f"{kind.__name__} raises", argument(failing(kind)))
    for kind in (q.Infidelity, q.SensitivityMax):
        given: Callable[..., Any] = fails(ValueError("no perturbation"))
        yield Fault("metric", f"{kind.__name__}: perturb_func raises", argument(perturbing(kind, given)))
        nothing: Callable[..., Any] = lambda *arguments: None  # noqa: E731
        yield Fault("metric", f"{kind.__name__}: perturb_func returns None", argument(perturbing(kind, nothing)))
    yield Fault("metric", "a score of None", argument(scoring(None)))
    yield Fault("metric", "a score of words", argument(scoring({"": {"saliency": "good"}})))
    yield Fault("metric", "a score without a tensor", argument(scoring({"": {"saliency": (1.0, None)}})))
