"""One rank of many trainings in turn, each with a fault: ``python runs.py FOLDER FIRST``, started by ``table.py``."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shutil
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from faults.fault import Fault
from faults.in_checkpoints import KEY
from faults.in_sinks import unlimited
from faults.injected import FAULTS
from faults.scene import Scene


@dataclass(frozen=True)
class MetricInputs:
    """A fault on some ranks, and what the monitor is to do about it."""

    fault: Fault
    on_error: str
    struck: str  # "all" or "rank 1"

    @property
    def expected(self) -> str:
        """``"survived"``, or ``"raised"`` on all ranks."""
        raised = self.fault.refused or (self.on_error == "raise" and self.fault.raises)
        return "raised" if raised else "survived"


def cases(world: int, only: str = "") -> list[MetricInputs]:
    """All cases for so many ranks, of faults whose ``place: name`` a regular expression finds."""
    chosen = [fault for fault in FAULTS if re.search(only, f"{fault.place}: {fault.name}")]
    found = []
    for fault in chosen:
        both = world == 1 or fault.writing or fault.place == "checkpoint"
        for struck in ("all",) if both else ("all", "rank 1"):
            modes = ("warn",) if fault.refused or not fault.raises else ("warn", "raise")
            found += [MetricInputs(fault, mode, struck) for mode in modes]
    return found


def run(case: MetricInputs, root: Path, rank: int, world: int, saved: dict[str, Any], expected: Any) -> dict[str, Any]:
    """What became of one training on this rank."""
    injured = case.struck == "all" or rank == 1
    scene = Scene(root, rank, injured, {"on_error": case.on_error})
    if case.fault.place == "checkpoint" and "cannot hold" not in case.fault.name:
        scene.checkpoint = copy.deepcopy(saved)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            case.fault.inject(scene)
            weights = scene.run(world)
            same = all(torch.equal(value, expected[name]) for name, value in weights.items())
            outcome, detail = ("survived" if same else "other weights"), ""
        except Exception as error:
            outcome, detail = "raised", f"{type(error).__name__}: {error}"
        finally:
            unlimited(root)
    texts = [str(w.message) for w in told if "ExplanationMonitor" in str(w.message)]
    return {"outcome": outcome, "detail": detail[:300], "fired": scene.fired, "told": texts}


def main() -> None:
    folder, first, only = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    rank, world = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    os.environ["WANDB_SILENT"] = "true"
    root = folder / f"training-{first}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = Scene(root / "alone", rank, False).run(world, watched=False)
        Scene(root / "watched", rank, False).run(world)
        saved = torch.load(root / "watched" / "checkpoints" / "epoch=1.ckpt", weights_only=False)
    assert KEY in saved["callbacks"]
    for number, case in list(enumerate(cases(world, only)))[first:]:
        started, mine = time.perf_counter(), root / str(number)
        found = run(case, mine, rank, world, saved, expected)
        line = {"number": number, **found, "seconds": time.perf_counter() - started}
        # In one write: who reads it meanwhile, or after this rank was killed, finds no part of a line.
        with (folder / f"{rank}.jsonl").open("ab", buffering=0) as file:
            file.write(f"{json.dumps(line)}\n".encode())
        if rank == 0:
            shutil.rmtree(mine, ignore_errors=True)


if __name__ == "__main__":
    main()
