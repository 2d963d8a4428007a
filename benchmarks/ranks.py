"""Compares ranks: all 38 methods and the metrics on one to four gloo ranks, on a sharded model, and under torchrun.

    python benchmarks/ranks.py [numbers] [nodes] [speed]

- numbers: the largest difference to one rank, max|a - b| / max|b|, per sample for maps and over all samples for scores,
  in float64 (is the computation the same?) and float32 (how far does rounding move it?). Trained network, 7 samples, and
  2 samples on 3 ranks; unsharded and under FSDP2. ``failed``: what is left out under FSDP2, with the reason.
  ``zero up to rounding``: unitless scores below ten times the precision of their dtype, which have no relative
  difference. Completeness errors are rounding errors, too, and are not compared.
- nodes: the same explanation by two torchrun agents on the loopback interface, each a node with one rank.
- speed: the monitor's workload (ResNet-20, 16 samples, nine methods, two metrics) with one thread per rank: one rank
  against two, and against two independent processes, which are the most that the machine can do; the interval is that of the median of
  rounds, by the bootstrap.

The benchmark fails if a difference in float64 is above 1e-5.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard

import _workload as workload
from _cases import Bench, comparisons
from _measure import first_samples, ratios, with_interval
from forked import on_ranks
from lightning_explain import Probe
from lightning_explain import metrics as q
from lightning_explain.distributed.fsdp import is_sharded
from lightning_explain.distributed.ranks import Ranks
from lightning_explain.explainer.explainer import Explainer
from networks import Added, Layered, samples
from processes import free_port

EQUAL = 1e-5
REPEAT, ROUNDS = 2, 5
console = Console(width=150)


# -- numbers -------------------------------------------------------------------------------------------------------


def bench(dtype: torch.dtype) -> Bench:
    """The network whose layer names suit all methods."""
    model = Layered(Added)
    model.load_state_dict(torch.load(os.environ["RANKS_WEIGHTS"], weights_only=True))
    x, y = samples(7)
    by_hand = Layered(Added)
    by_hand.load_state_dict(model.state_dict())
    return Bench("digits", model.to(dtype), by_hand.to(dtype).eval(), x.to(dtype), y, "block.bn2", "block")


def explainer(b: Bench, ranks: Ranks) -> Explainer:
    methods = {pair.name: pair.method for pair in comparisons(b)}
    few = ("Saliency", "LayerGradCam", "NeuronGradient", "KernelShap")
    metrics = {
        "infidelity": q.Infidelity(n_perturb_samples=3),
        "sensitivity": q.SensitivityMax(n_perturb_samples=2),
        "completeness": q.Completeness(),
        "agreement": q.Agreement(),
        "concentration": q.Concentration(),
        "deletion": q.Deletion(n_steps=4),
        "randomization": q.Randomization(2, 2, methods=few),
    }
    return Explainer(methods, metrics, raising=False, ranks=ranks)


def explained(dtype: torch.dtype, count: int, sharded: bool, rank: int) -> dict[str, Any]:
    """Maps, scores and failures of one rank."""
    warnings.simplefilter("ignore")
    b = bench(dtype)
    if sharded:
        fully_shard(b.model.block)
        fully_shard(b.model)
    elif rank:
        for name, buffer in b.model.named_buffers():
            if name.endswith("running_mean"):
                buffer += rank
    probe = Probe(b.x[:count], b.y[:count])
    ranks = Ranks(distributed.get_world_size(), sharded=is_sharded(b.model))
    report = explainer(b, ranks).check(b.model, probe).explain(b.model, probe)
    scores = {f"{metric}/{method}": v for metric, by in report.scores.items() for method, v in by.items()}
    failed = {name: text.strip().splitlines()[-1] for name, text in report.failures.items()}
    return {"maps": dict(report.attributions), "scores": scores, "failed": failed}


def far(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest number of the sample (maps) or of all samples (scores)."""
    a, b = (v.double().flatten(1) if v.ndim > 1 else v.double()[None] for v in (ours, theirs))
    if not torch.equal(a.isnan(), b.isnan()):
        return float("inf")
    scale = b.abs().nan_to_num(0).amax(1)
    gaps = (a - b).abs().nan_to_num(0).amax(1)
    return (gaps / scale.clamp(min=torch.finfo(b.dtype).tiny)).max().item()


def vanishing(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, float]:
    """Unitless scores that are zero up to rounding on both sides, with their absolute difference; a ratio would mean nothing."""
    found = {}
    for name, value in theirs.items():
        if name.split("/")[0].split("_")[0] in ("sensitivity", "concentration") and name in ours:
            both, least = torch.stack([ours[name], value]).abs().nan_to_num(0), 10 * torch.finfo(value.dtype).eps
            if both.max() < least:
                found[name] = (ours[name] - value).abs().nan_to_num(0).max().item()
    return found


def furthest(ours: dict[str, Any], theirs: dict[str, Any]) -> tuple[float, str]:
    """The largest difference and its name. Completeness errors are rounding errors already, and are left out."""
    aside = vanishing(ours, theirs) if all(v.ndim == 1 for v in theirs.values()) else {}
    compared = [k for k in theirs if k in ours and k not in aside and not k.startswith("completeness")]
    found = {k: far(ours[k], theirs[k]) for k in compared}
    name = max(found, key=lambda key: found[key])
    return found[name], name


RUNS = [("one", 1, 7, False), ("two", 2, 7, False), ("three", 3, 7, False), ("four", 4, 7, False)]
RUNS += [("three, two samples", 3, 2, False), ("two, FSDP2", 2, 7, True), ("three, FSDP2, two samples", 3, 2, True)]


def numbers(folder: Path) -> bool:
    table = Table("ranks", "dtype", "methods", "maps", "of", "scores", "of", "seconds", title="Difference to one rank")
    wrong, failed, aside = False, {}, {}
    for dtype in (torch.float64, torch.float32):
        alone = {n: on_ranks(1, partial(explained, dtype, n, False), fresh(folder))[0] for n in (7, 2)}
        for name, world, count, sharded in RUNS:
            started = time.perf_counter()
            found = on_ranks(world, partial(explained, dtype, count, sharded), fresh(folder), 900)
            seconds = time.perf_counter() - started
            worst = [max(furthest(rank[k], alone[count][k]) for rank in found) for k in ("maps", "scores")]
            for rank in found:
                zeros = vanishing(rank["scores"], alone[count]["scores"]).items()
                aside |= {f"{key}, {name}, {str(dtype)[6:]}": gap for key, gap in zeros if gap}
            wrong |= dtype == torch.float64 and not max(worst)[0] <= EQUAL
            failed |= {f"{key}, {name}": text for rank in found for key, text in rank["failed"].items()}
            cells = [cell for gap, what in worst for cell in (f"{gap:.1e}", what)]
            table.add_row(name, str(dtype)[6:], str(len(found[0]["maps"])), *cells, f"{seconds:.0f}")
    console.print(table)
    for name, text in failed.items():
        console.print(f"failed: {name}: {text[:300]}")
    for name, gap in aside.items():
        console.print(f"zero up to rounding: {name}: {gap:.1e} apart")
    return wrong


def fresh(folder: Path) -> Path:
    return Path(tempfile.mkdtemp(dir=folder))


# -- nodes ---------------------------------------------------------------------------------------------------------


def nodes(folder: Path) -> bool:
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen([*command, f"--node-rank={node}", __file__, "rank", str(folder)], env=environment)
        for node in range(2)
    ]
    codes = [agent.wait(600) for agent in agents]
    (alone,) = on_ranks(1, partial(explained, torch.float64, 7, False), fresh(folder))
    found = [torch.load(folder / f"node-{rank}.pt", weights_only=True) for rank in range(2)]
    gaps = {kind: max(furthest(rank[kind], alone[kind])[0] for rank in found) for kind in ("maps", "scores")}
    console.print(f"Two nodes under torchrun (exit codes {codes}), float64: {gaps}")
    return not max(gaps.values()) <= EQUAL


def as_node(folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank = distributed.get_rank()
    torch.save(explained(torch.float64, 7, False, rank), folder / f"node-{rank}.pt")
    distributed.destroy_process_group()


# -- speed ---------------------------------------------------------------------------------------------------------


def timed(weights: Path, shared: bool, rank: int) -> list[list[float]]:
    """Wall and CPU seconds of each explanation on this rank, at the pass size that a monitor would choose.

    Args:
        weights: The network's weights.
        shared: Whether the ranks explain the samples together; otherwise, each explains its share alone.
        rank: Of this process.
    """
    warnings.simplefilter("ignore")
    model: nn.Module = workload.ResNet()
    model.load_state_dict(torch.load(weights, weights_only=True))
    world = distributed.get_world_size()
    probe = workload.probe() if shared else first_samples(workload.probe(), workload.SAMPLES // world)
    ranks = Ranks(world if shared else 1)
    ready = Explainer(workload.methods(), workload.metrics(), ranks=ranks).check(model, probe).fastest(model, probe)
    ready = replace(ready, limit=int(ranks.first(ready.limit)))
    found = []
    for _ in range(REPEAT):
        distributed.barrier()
        started = time.perf_counter(), time.process_time()
        ready.explain(model, probe)
        found.append([time.perf_counter() - started[0], time.process_time() - started[1]])
    return found


def speed(folder: Path) -> bool:
    weights = folder / "resnet.pt"
    script = f"import _workload, torch; torch.save(_workload.trained().state_dict(), {str(weights)!r})"
    # In a separate process: one that has already computed something cannot be forked.
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parent)
    ways = {"one rank": (1, True), "two ranks": (2, True), "two processes, a half each": (2, False)}
    found: dict[str, list[list[float]]] = {name: [] for name in ways}
    for number in range(ROUNDS):
        for name in reversed(ways) if number % 2 else ways:
            world, shared = ways[name]
            # The slowest rank counts, and the best of several explanations.
            times = torch.tensor(on_ranks(world, partial(timed, weights, shared), fresh(folder), 1800)).amax(0).amin(0)
            found[name].append(times.tolist())
    table = Table(
        f"16 samples, one thread each, {ROUNDS} rounds", "wall, s", "gain (95%)", "processor, s", "gain (95%)"
    )
    for name, values in found.items():
        cells = []
        for one, own in zip(zip(*found["one rank"], strict=True), zip(*values, strict=True), strict=True):
            cells += [f"{statistics.median(own):.2f}", with_interval(ratios(one, own))]
        table.add_row(name, *cells)
    console.print(table)
    return False


def main(names: list[str]) -> int:
    if names[:1] == ["rank"]:
        as_node(Path(names[1]))
        return 0
    warnings.simplefilter("ignore")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    parts = {"numbers": numbers, "nodes": nodes, "speed": speed}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"
        os.environ["RANKS_WEIGHTS"] = str(weights)
        script = (
            f"import torch; from networks import *; torch.save(trained(Added, Layered).state_dict(), {str(weights)!r})"
        )
        subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[1] / "tests")
        wrong = [name for name in names or parts if parts[name](Path(folder))]
    console.print(f"failed: {', '.join(wrong)}" if wrong else f"all within {EQUAL:.0e}")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
