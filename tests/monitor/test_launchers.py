"""Law 2, however the ranks are started: processes that Lightning spawns or forks, or a node of torchrun for each rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from distributed_run import plain
from lightning_explain import Probe, explain, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from networks import digits
from processes import TESTS, finish_together, free_port

DEADLINE = 120


def commands(how: str, folder: Path) -> list[list[str]]:
    script = str(TESTS / "launched_run.py")
    if how != "torchrun":
        return [[script, str(folder), how, "1"]]
    address = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={free_port()}"]
    agent = [str(TESTS / "torchrun.py"), *address]
    return [[*agent, f"--node-rank={node}", script, str(folder), "ddp", "2"] for node in range(2)]


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp_spawn", "ddp_fork", "torchrun"])
def test_two_ranks_find_what_one_process_finds(how: str, tmp_path: Path) -> None:
    finish_together(commands(how, tmp_path), tmp_path, DEADLINE)
    seen: list[dict[str, Any]] = [torch.load(path, weights_only=True) for path in sorted(tmp_path.glob("?.pt"))]
    # Processes that Lightning starts give the one that started them the scores and the weights of rank zero.
    assert [found["world"] for found in seen] == ([2, 2] if how == "torchrun" else [2])
    assert all(found["scores"] == seen[0]["scores"] for found in seen)

    former, last = load_reports(tmp_path / "explain")
    assert (former.step, last.step) == (2, 4)
    (x, y), net = digits(), plain().net
    net.load_state_dict(seen[0]["weights"])
    probe = Probe(x[100 + last.ids], y[100 + last.ids], ids=last.ids)
    methods = {"saliency": m.Saliency(abs=False), "cam": m.LayerGradCam()}
    alone = explain(net, probe, methods, [q.Infidelity(n_perturb_samples=2)])
    torch.testing.assert_close(dict(last.attributions), dict(alone.attributions))
    torch.testing.assert_close(dict(last.scores["infidelity"]), dict(alone.scores["infidelity"]))
    assert seen[0]["scores"]["explain/infidelity/cam"] == pytest.approx(last.scalars()["infidelity/cam"])
