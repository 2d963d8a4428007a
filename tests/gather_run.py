"""Explanations on one to four ranks, launched by ``test_gather.py``: ``python gather_run.py FOLDER``.

``FOLDER/weights.pt`` holds a trained network; what the ranks saw is saved as ``FOLDER/found.pt``, and what those
that lost each other were told as ``FOLDER/lost.pt``.
"""

from __future__ import annotations

import sys
import time
import traceback
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard

from forked import on_ranks
from lightning_explain import Probe, Report
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain import modalities as d
from lightning_explain import targets as t
from lightning_explain.core.contracts import ExplainedFunction, Method, MetricInputs
from lightning_explain.core.probe import Attribution, Samples
from lightning_explain.distributed.collectives import LostRanksError
from lightning_explain.distributed.fsdp import is_sharded
from lightning_explain.distributed.ranks import Agreement, Ranks
from lightning_explain.explainer.explainer import Explainer
from networks import DigitNet, samples

LAYER = "block.bn2"
GRID = {"grid": 4}
METHODS = {
    "saliency": m.Saliency(abs=False),
    "ig": m.IntegratedGradients(n_steps=4, baselines="mean"),
    "shap": m.GradientShap(3, 0.1, "probe"),
    "tunnel": m.NoiseTunnel(m.InputXGradient(), nt_samples=2, stdevs=0.1),
    "std": m.NoiseTunnel(m.Saliency(abs=False), nt_samples=2, stdevs="0.5 std"),
    "cam": m.LayerGradCam(LAYER),
    "deeplift": m.DeepLiftShap(baselines="probe"),
    "permutation": m.FeaturePermutation(feature_mask=GRID),
    "neuron": m.NeuronGradient(LAYER),
    "neuron_lift": m.NeuronDeepLift(LAYER),
    "layer_lift": m.LayerDeepLift(LAYER),
    "kernel": m.KernelShap(n_samples=8, feature_mask=GRID),
}
METRICS = {
    "infidelity": q.Infidelity(n_perturb_samples=2),
    "sensitivity": q.SensitivityMax(n_perturb_samples=1),
    "completeness": q.Completeness(),
    "mass": q.RelevanceMass(),
    "randomization": q.Randomization(1, 2, methods=("saliency", "neuron")),
}
SHARDED = {
    name: METHODS[name] for name in ("saliency", "ig", "cam", "permutation", "neuron", "neuron_lift", "layer_lift")
}


def network(folder: Path, rank: int) -> nn.Module:
    """Weights of all ranks, and batch statistics of each rank's own, as between two steps under DDP."""
    model = DigitNet()
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer += rank
    return model.double()


def probe(count: int) -> Probe:
    x, y = samples(count)
    masks = torch.arange(8).remainder(3).gt(0).expand(count, 8, 8) & (torch.arange(count)[:, None, None] % 2 == 0)
    stds = (samples(64)[0].double().std(0, keepdim=True),)
    return Probe(x.double(), y, ids=torch.arange(count) + 10, masks=masks | (torch.arange(8) < 4), stds=stds)


def seen(report: Report) -> dict[str, Any]:
    found = {name: getattr(report, name) for name in ("outputs", "predictions", "targets", "ids")}
    named = {name: {k: dict(v) for k, v in getattr(report, name).items()} for name in ("scores", "standard_errors")}
    passes = [report.passes.forward, report.passes.backward]
    kept = {"maps": dict(report.maps), "failures": dict(report.failures), "passes": passes}
    return {**found, **named, **kept, "attributions": dict(report.attributions)}


def explained(
    folder: Path, count: int, rank: int, sharded: bool = False, methods: Any = None, metrics: Any = None, **options: Any
) -> dict[str, Any]:
    """The report of one rank, or the error, and whether its own batch statistics are back."""
    model = network(folder, 0 if sharded else rank)
    if sharded:
        fully_shard(model.block)
        fully_shard(model)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    ranks = Ranks(distributed.get_world_size(), sharded=is_sharded(model))
    explainer = Explainer(
        METHODS if methods is None else methods, METRICS if metrics is None else metrics, ranks=ranks, **options
    )
    explainer = explainer.check(model, probe(count))
    try:
        found = seen(explainer.explain(model, probe(count)))
    except Exception as error:
        found = {"error": f"{type(error).__name__}: {error}"}
    return {**found, "restored": all(torch.equal(before[name], buffer) for name, buffer in model.named_buffers())}


# -- what fails ----------------------------------------------------------------------------------------------------


class FailsOn(Method):
    """A map of ones; on one rank none."""

    def __init__(self, rank: int, error: Exception) -> None:
        self.rank, self.error = rank, error

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        if distributed.get_rank() == self.rank:
            raise self.error
        return torch.ones_like(samples.inputs[0]) * explained.evaluate(samples)[:, None, None, None]


class FailsInSweep(m.InputXGradient):
    """A method that shares passes with others, and fails on one rank."""

    def finish(self, evaluation: Any) -> tuple[Tensor, ...]:
        if distributed.get_rank() == 1:
            raise ArithmeticError("no map on rank 1")
        return super().finish(evaluation)


class FailsToScore(q.Infidelity):
    """Fails on rank 0."""

    def score(self, case: MetricInputs) -> Any:
        if distributed.get_rank() == 0:
            raise ArithmeticError("no score on rank 0")
        return super().score(case)


class Unlike(Method):
    """A map of one column less on rank 1."""

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        return torch.ones_like(samples.inputs[0])[..., distributed.get_rank() :]


class UnlikeInSweep(m.InputXGradient):
    """A method that shares passes with others, and whose map is coarser on rank 1."""

    def finish(self, evaluation: Any) -> tuple[Tensor, ...]:
        dtype = [torch.float64, torch.float32][distributed.get_rank()]
        return tuple(x.to(dtype) for x in super().finish(evaluation))


class Omits(q.Concentration):
    """Scores nothing on rank 0, where it has something; otherwise everything but one method on rank 1."""

    def __init__(self, all_of_them: bool) -> None:
        super().__init__()
        object.__setattr__(self, "all_of_them", all_of_them)

    def score(self, case: MetricInputs) -> Any:
        found = super().score(case)
        if self.all_of_them:  # type: ignore[attr-defined]
            return {} if distributed.get_rank() == 0 else found
        rank = distributed.get_rank()
        return {key: {k: v for k, v in score.items() if k != "saliency" or rank == 0} for key, score in found.items()}


class OutOfMemory(Method):
    """Runs out of memory on rank 1 with more than two samples at a time; notes how many it may take in the end."""

    limits: ClassVar[list[int]] = []

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        if distributed.get_rank() == 1 and len(samples) > 2:
            raise torch.OutOfMemoryError("rank 1 is full")
        self.limits.append(explained.limit)
        return torch.ones_like(samples.inputs[0]) * explained.evaluate(samples)[:, None, None, None]


class Uneven(Method):
    """Calls the model as often as its samples say."""

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        for _ in range(int(samples.ids.max())):
            explained.evaluate(samples)
        return torch.ones_like(samples.inputs[0])


def no_target(outputs: Tensor) -> Tensor:
    """There is none on rank 1, once the check is over."""
    no_target.calls += 1  # type: ignore[attr-defined]
    if distributed.get_rank() == 1 and no_target.calls > 4:  # type: ignore[attr-defined]
        raise ArithmeticError("no target on rank 1")
    return outputs[:, 0]


no_target.calls = 0  # type: ignore[attr-defined]


def failing(folder: Path, rank: int, sharded: bool) -> dict[str, Any]:
    """Each failure with a method beside it that does not fail."""
    run = partial(explained, folder, 7, rank, sharded, raising=False)
    error = ArithmeticError("no map on rank 1")
    one, metrics = {"saliency": m.Saliency(abs=False)}, {"infidelity": METRICS["infidelity"]}
    both = {**metrics, "worse": FailsToScore(n_perturb_samples=2)}
    found = {
        "apart": run(methods={"bad": FailsOn(1, error), **one}, metrics=metrics),
        "in_sweep": run(methods={"bad": FailsInSweep(), **one}, metrics=metrics),
        "metric": run(methods=one, metrics=both),
        "raising": run(methods={"bad": FailsOn(1, error), **one}, metrics={}, raising=True),
        "memory": run(methods={"it": OutOfMemory()}, metrics={}, limit=64),
        "unlike": run(methods={"bad": Unlike(), "worse": UnlikeInSweep(), **one}, metrics=metrics),
        "unlike_metric": run(methods=one, metrics={**metrics, "bad": Omits(True), "worse": Omits(False)}),
        "unlike_raising": run(methods={"bad": Unlike(), **one}, metrics={}, raising=True),
    }
    return {**found, "limits": list(OutOfMemory.limits)}


def no_targets(folder: Path, rank: int) -> dict[str, Any]:
    model = network(folder, rank)
    ranks = Ranks(distributed.get_world_size())
    fine = Explainer(SHARDED, {}, raising=False, ranks=ranks).check(model, probe(7))
    broken = Explainer(fine.methods, {}, target=no_target, raising=False, ranks=ranks)
    no_target.calls = 4  # type: ignore[attr-defined]
    try:
        broken.explain(model, probe(7))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": "none"}


# -- forecasts -----------------------------------------------------------------------------------------------------


def error_by_id(outputs: Tensor, sample: Any) -> Tensor:
    """A number for which a share of the samples has to know its own labels, ids and clean outputs."""
    error = (outputs - sample.label).square().sum(1)
    return error * (1 + sample.id) + outputs.gather(1, sample.prediction[:, None])[:, 0]


def forecasts() -> dict[str, Any]:
    """Reports of fifteen steps of three samples, a sample divided over ranks, and of a number that knows its sample."""
    make = torch.Generator().manual_seed(3)
    series, labels = (torch.randn(3, *shape, generator=make).double() for shape in ((1, 6), (5,)))
    linear = nn.Linear(6, 5, bias=False)
    linear.weight.data = torch.randn(5, 6, generator=make)
    model = nn.Sequential(nn.Flatten(), linear, nn.Tanh()).double()
    given = Probe(series, labels, ids=torch.tensor([7, 3, 5]), modalities=d.TimeSeries(layout="NCT"))
    methods = {name: METHODS[name] for name in ("saliency", "ig", "shap")}
    metrics = {"infidelity": METRICS["infidelity"], "deletion": q.Deletion()}
    ranks, found = Ranks(distributed.get_world_size()), {}
    for name, target in {"each": t.Horizon("each"), "callable": error_by_id}.items():
        report = Explainer(methods, metrics, target, ranks=ranks).check(model, given).explain(model, given)
        found[name] = {**seen(report), "explained": dict(report.explained), "values": report.values}
    return found


# -- exchange ------------------------------------------------------------------------------------------------------


def exchange(rank: int) -> dict[str, Any]:
    """Ragged samples of all kinds, what rank zero has, and what the ranks agree upon."""
    ranks = Ranks(distributed.get_world_size())
    count = [2, 0, 3][rank]
    first = rank * 10
    tree = {
        "float": torch.arange(first, first + count).double()[:, None].expand(count, 2),
        "several": (torch.full((count,), rank > 0), torch.full((count, 1, 1), rank / 4, dtype=torch.bfloat16)),
        "nothing": {},
        "nan": torch.full((count,), torch.nan),
        "none": None,
    }
    return {
        "together": ranks.together(tree, count),
        "first": ranks.first({"x": torch.full((3,), rank), "names": ("a", f"é{rank}"), "n": [rank, None, 0.5]}),
        "gather": ranks.gather((rank, f"é{rank}", torch.full((rank,), rank))),
        "failing": ranks.failing([["c"], ["a"], ["a", "c"]][rank]),
        "total": ranks.total(rank, 1),
        "agreements": agreements(ranks, rank),
        "buffers": buffers(ranks, rank),
        "different": error_of(lambda: ranks.together({"x": torch.zeros(1, 1 + rank)}, 1)),
    }


def is_accident(error: Exception) -> bool:
    return isinstance(error, (OSError, torch.OutOfMemoryError))


def reason(agreement: Agreement) -> str:
    """The type and text of this rank's own error."""
    return "" if agreement.error is None else f"{type(agreement.error).__name__}: {agreement.error}"


SECTIONS: dict[str, tuple[dict[int, Exception], dict[str, Any]]] = {
    "fine": ({}, {}),
    "one": ({1: ArithmeticError("on 1")}, {}),
    "two": ({1: ArithmeticError("on 1"), 2: KeyError("on 2")}, {}),
    "memory": ({1: torch.OutOfMemoryError("on 1")}, {}),
    "memory and another": ({0: ArithmeticError("on 0"), 1: torch.OutOfMemoryError("on 1")}, {}),
    "memory and another, to be tried again": (
        {0: ArithmeticError("on 0"), 1: torch.OutOfMemoryError("on 1")},
        {"retries": True},
    ),
    "survived": ({1: OSError("on 1"), 2: OSError("on 2")}, {"survives": is_accident}),
    "survived and another": ({1: OSError("on 1"), 2: KeyError("on 2")}, {"survives": is_accident}),
    "survived memory": ({2: torch.OutOfMemoryError("on 2")}, {"survives": is_accident}),
}


def agreements(ranks: Ranks, rank: int) -> dict[str, Any]:
    """How each section ended on this rank: the error, or the first rank on which it failed and whether this one has a reason."""
    found: dict[str, Any] = {}
    for name, (errors, options) in SECTIONS.items():
        try:
            with ranks.agree("the work", **options) as agreement:
                if rank in errors:
                    raise errors[rank]
            found[name] = [agreement.failed_rank, f"on {rank}" in reason(agreement)]
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    with ranks.agree("the whole", is_accident) as agreement, ranks.agree("a part"):
        if rank == 1:
            raise OSError("inside")
    found["nested"] = [agreement.failed_rank, "OSError: inside" in reason(agreement)]
    return {**found, **{f"between, {name}": left_between(ranks, rank, name) for name in BETWEEN}}


BETWEEN: dict[str, Callable[[Ranks], Any]] = {
    "gather": lambda ranks: ranks.gather("something"),
    "first": lambda ranks: ranks.first({"x": torch.zeros(2)}),
    "together": lambda ranks: ranks.together({"x": torch.zeros(1)}, 1),
    "total": lambda ranks: ranks.total(1),
    "failing": lambda ranks: ranks.failing(["a"]),
    "a part": lambda ranks: part(ranks, lambda: None),
    "a part with an exchange": lambda ranks: part(ranks, lambda: ranks.gather(1)),
    "a part that is survived": lambda ranks: part(ranks, lambda: ranks.gather(1), is_accident),
    "what is caught inside": lambda ranks: [error_of(lambda: ranks.gather(1)), ranks.gather(2)],
    "nothing": lambda ranks: None,
}


def part(ranks: Ranks, work: Callable[[], Any], survives: Callable[[Exception], bool] = lambda error: False) -> None:
    with ranks.agree("a part", survives):
        work()


def left_between(ranks: Ranks, rank: int, name: str) -> list[Any]:
    """How a section ended that one rank leaves where the others exchange something, and whether they agree afterwards."""
    try:
        with ranks.agree("the whole", is_accident) as agreement:
            if rank == 1:
                raise OSError("inside")
            BETWEEN[name](ranks)
        survived: Any = agreement.failed_rank
    except Exception as error:
        survived = repr(error)
    try:
        with ranks.agree("the whole"), ranks.agree("a part"):
            if rank == 1:
                raise KeyError("inside")
            BETWEEN[name](ranks)
        raised = "nothing"
    except Exception as error:
        raised = f"{type(error).__name__}: {error}"
    return [survived, "OSError: inside" in reason(agreement), raised, ranks.gather(rank)]


def buffers(ranks: Ranks, rank: int) -> dict[str, Any]:
    """What is sent of a model of which one buffer differs, one differs in form, and all others are equal; twice."""
    model, sent = nn.BatchNorm1d(3), []
    with torch.no_grad():
        model.running_mean += rank
    model.register_buffer("ragged", torch.zeros(1 + rank))
    model.register_buffer("nan", torch.tensor(torch.nan))
    model.register_buffer("view", torch.zeros(1).expand(3))
    first = ranks.first
    ranks.first = lambda tree: first(sent.append(sorted(tree)) or tree)  # type: ignore[method-assign]
    for _ in range(2):
        ranks.share_buffers(model)
    del ranks.first
    return {"sent": sent, "mean": model.running_mean, "ragged": len(model.ragged)}  # type: ignore[arg-type]


def error_of(work: Callable[[], Any]) -> str:
    try:
        work()
    except RuntimeError as error:
        return str(error)
    return "none"


# -- a rank that is lost -------------------------------------------------------------------------------------------

LOST_AFTER = timedelta(seconds=2)


def lost(work: Callable[[], Any]) -> dict[str, Any]:
    """What a rank is told that has lost the others, with everything that led to it, and after how many seconds."""
    started, told = time.monotonic(), "nothing"
    try:
        work()
    except LostRanksError as error:
        told = "".join(traceback.format_exception(error))
    return {"told": told, "seconds": time.monotonic() - started}


def absent(folder: Path, met: bool, rank: int) -> dict[str, Any]:
    """Rank 1 comes when the others have given it up; they have met before or not."""
    ranks = Ranks(distributed.get_world_size(), deadline=LOST_AFTER)
    others = [folder / f"gave-up-{other}" for other in range(ranks.world) if other != 1]
    if met:
        ranks.gather(True)
    while rank == 1 and not all(path.exists() for path in others):
        time.sleep(0.05)
    found = lost(partial(agreed, ranks, partial(failed_already, rank)))
    (folder / f"gave-up-{rank}").touch()
    return found


def agreed(ranks: Ranks, work: Callable[[], Any]) -> None:
    with ranks.agree("the work"):
        work()


def in_step(ranks: Ranks, work: Callable[[], Any]) -> None:
    with ranks.in_step():
        work()


def failed_already(rank: int) -> None:
    raise ArithmeticError(f"already failed on rank {rank}")


def gone(rank: int) -> dict[str, Any]:
    """Rank 1 ends; rank 0 asks for everything that ranks can be asked for, and its model for the other rank."""
    ranks, model = Ranks(2, deadline=LOST_AFTER), DigitNet()
    if not all(ranks.gather(True)) or rank == 1:
        return {}
    asked: dict[str, Callable[[], Any]] = {
        "agree": lambda: agreed(ranks, lambda: 1),
        "gather": lambda: ranks.gather(1),
        "failing": lambda: ranks.failing([]),
        "together": lambda: ranks.together({"x": torch.zeros(1)}, 1),
        "total": lambda: ranks.total(1),
        "first": lambda: ranks.first([1]),
        "share_buffers": lambda: ranks.share_buffers(model),
        "in_step": lambda: in_step(ranks, taken_for_another),
    }
    return {name: lost(ask) for name, ask in asked.items()}


class Wired(DigitNet):
    """Its forward needs all ranks, at first or from later on, though its weights are all here."""

    wired = True

    def forward(self, x: Tensor) -> Tensor:
        if self.wired:
            distributed.all_reduce(torch.zeros(1))
        return super().forward(x)


def wired(folder: Path, rank: int) -> dict[str, Any]:
    """A model that needs the other rank, for shares of four samples and of three, and a method that fails on one of them."""
    model = Wired()
    model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
    methods = {"bad": FailsOn(1, ArithmeticError("no map on rank 1")), **SHARDED}
    metrics = {"infidelity": METRICS["infidelity"]}
    explainer = Explainer(methods, metrics, raising=False, ranks=Ranks(2))
    ready = explainer.check(model.double(), probe(7))
    measured = ready.fastest(model, probe(7))
    return {**seen(ready.explain(model, probe(7))), "measured": measured.limit, "limit": ready.limit}


def not_ready(folder: Path, rank: int) -> dict[str, str]:
    """A model that does not fit the samples of one rank."""
    few = probe(4) if rank == 0 else Probe(torch.zeros(4, 1, 3, 3).double())
    try:
        Explainer(SHARDED, {}, ranks=Ranks(2)).check(network(folder, 0), few)
    except Exception as error:
        return {"error": type(error).__name__}
    return {"error": "none"}


def taken_for_another() -> None:
    """What a check makes of a collective that fails in the model."""
    try:
        distributed.all_reduce(torch.zeros(1))
    except RuntimeError as error:
        raise ValueError("The model cannot be called.") from error


def in_own_collective(how: str, rank: int) -> dict[str, Any]:
    """Rank 1 fails where rank 0 waits for it in the model: in a method, or in a sharded forward."""
    model = (DigitNet if how == "sharded" else Wired)().double()
    ranks = Ranks(2, sharded=how == "sharded", deadline=LOST_AFTER)
    methods = {"saliency": m.Saliency(), "bad": FailsOn(1, ArithmeticError("no map on rank 1"))}
    if isinstance(model, Wired):
        # So that nobody has seen it when the explanation begins.
        model.wired = False
    ready = Explainer(methods, {}, raising=False, ranks=ranks).check(model, probe(4))
    if isinstance(model, Wired):
        model.wired = True
    if how == "sharded":
        fully_shard(model.block)
        if rank == 1:
            # Before the weights of the block are gathered, for which rank 0 waits.
            model.stem.register_forward_hook(lambda *arguments: failed_already(rank))
    return lost(partial(ready.explain, model, probe(4)))


def on_lost_ranks(folder: Path) -> dict[str, Any]:
    """Each on ranks of its own, for they are good for nothing afterwards."""
    scenarios: dict[str, tuple[int, Callable[[int], Any]]] = {
        "late": (2, partial(absent, folder / "late", True)),
        "late_of_three": (3, partial(absent, folder / "late_of_three", True)),
        "never_met": (2, partial(absent, folder / "never_met", False)),
        "gone": (2, gone),
        **{how: (2, partial(in_own_collective, how)) for how in ("method", "sharded")},
    }
    found = {}
    for name, (world, work) in scenarios.items():
        (inner := folder / name).mkdir()
        found[name] = on_ranks(world, work, inner)
    return found


def on_one(folder: Path, rank: int) -> dict[str, Any]:
    found = {"seven": explained(folder, 7, rank), "two": explained(folder, 2, rank)}
    return {**found, "forecasts": forecasts()}


def on_two(folder: Path, rank: int) -> dict[str, Any]:
    found = {"seven": explained(folder, 7, rank), "failing": failing(folder, rank, False)}
    OutOfMemory.limits.clear()
    sharded = explained(folder, 7, rank, True, SHARDED, {"infidelity": METRICS["infidelity"]})
    uneven = explained(folder, 7, rank, True, {"bad": Uneven(), **SHARDED}, {}, raising=False)
    no, needing = no_targets(folder, rank), {"wired": wired(folder, rank), "not_ready": not_ready(folder, rank)}
    of_sharded = {"sharded": sharded, "failing_sharded": failing(folder, rank, True), "uneven": uneven}
    return {**found, **of_sharded, "target": no, **needing, "forecasts": forecasts()}


def on_three(folder: Path, rank: int) -> dict[str, Any]:
    found = {"seven": explained(folder, 7, rank), "two": explained(folder, 2, rank), "exchange": exchange(rank)}
    few = explained(folder, 2, rank, True, SHARDED, {"infidelity": METRICS["infidelity"]})
    return {**found, "two_sharded": few}


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    scenarios: dict[int, Callable[[int], Any]] = {
        1: partial(on_one, folder),
        2: partial(on_two, folder),
        3: partial(on_three, folder),
        4: lambda rank: {"seven": explained(folder, 7, rank)},
    }
    torch.save({world: on_ranks(world, work, folder) for world, work in scenarios.items()}, folder / "found.pt")
    torch.save(on_lost_ranks(folder), folder / "lost.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
