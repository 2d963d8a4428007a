"""What may happen to the process that explains beside a training, or to that training: ``python tests/faults/beside.py``.

Each fault strikes a training of its own, in a process of its own, while an explanation is being made. The training must go on with the
weights that it has without a monitor (or end as it would without one), the explanations that are possible must be there, and nothing may
be left behind: no process, no shared memory, no temporary file.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch

from lightning_explain import ExplanationMonitor, load_reports
from lightning_explain import methods as m
from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.probe import Attribution, Samples
from lightning_explain.monitor import beside

sys.path.insert(0, str(Path(__file__).parents[1]))

from processes import Started
from training import Blind, loader, monitor_of_digits, trainer

DEADLINE = 90.0
PATIENCE = 2.0
# Seconds in which a machine that does much else gets to the end of a process.
GONE_AFTER = 30.0
SHARED = Path("/dev/shm")
T = TypeVar("T")
PLAIN = "no monitor"


@dataclass(frozen=True)
class Case:
    """A fault and what is to become of it.

    Args:
        name: The fault.
        steps: The explanations that must be there.
        code: With which the process ends; ``None``: with any but 0.
        told: A part of what it must say.
    """

    name: str
    steps: Sequence[int]
    code: int | None = 0
    told: str = ""


CASES = (
    Case("none", (2, 4)),
    Case("worker killed", (2, 4), told="was ended by signal 9 (SIGKILL). It is started once more"),
    Case("worker killed twice", (), told="Nothing more is explained in this training"),
    Case("worker stopped", (2, 4), told="did nothing for"),
    # What is left is a report without that method, as if training waited for it.
    Case("worker out of memory", (2, 4), told="OutOfMemoryError"),
    Case("module that cannot be pickled", (), code=None, told="the module.lock cannot be pickled"),
    Case("module that cannot be pickled later", (), told="cannot pickle"),
    Case("disk full", (), told="Saving the report"),
    Case("error of the training", (), code=None, told="of the training"),
    Case("Ctrl-C", (), code=None),
    Case(
        "worker killed, then Ctrl-C", (2,), code=None, told="was ended by signal 9 (SIGKILL). It is started once more"
    ),
    Case("training killed", (), code=-signal.SIGKILL),
)


# -- one training ------------------------------------------------------------------------------------------------------


class Late(m.Saliency):
    """In the worker, is not done before the fault has struck, which a file says."""

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        if os.getpid() != self.training:
            if self.runs_out:
                raise torch.OutOfMemoryError("out of memory")
            while not struck(self.root, explanations(self.root)).exists():
                time.sleep(0.01)
        return torch.ones_like(samples.inputs[0])

    training: int = 0
    runs_out: bool = False
    root: Path = Path()


def explanations(root: Path) -> int:
    """How many explanations there are by now."""
    return len(list((root / "explain").glob("step=*")))


def struck(root: Path, number: int) -> Path:
    """The file that says that the fault of an explanation has struck."""
    return root / f"struck-{number}"


class Strike(pl.Callback):
    """The fault, right after the first explanation is handed over, or the second one; notes the workers' processes."""

    def __init__(self, name: str, watch: ExplanationMonitor, root: Path) -> None:
        self.faults, self.watch, self.root = name.split(", then "), watch, root
        self.number = 0

    def worker(self) -> int | None:
        found = self.watch._besides._worker
        return None if found is None else found.process.pid

    def kill_another(self, former: int) -> None:
        while (worker := self.worker()) in (former, None):
            time.sleep(0.01)
        assert worker is not None
        os.kill(worker, signal.SIGKILL)

    def on_train_batch_end(self, trainer: pl.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        worker = self.worker()
        with (self.root / "workers.txt").open("a") as file:
            file.write(f"{worker or ''}\n")
        if batch_idx % 2 and worker is not None:
            # By then it is known whether those before are there.
            number, self.number = self.number, self.number + 1
            if number < len(self.faults):
                torch.save(module.state_dict(), self.root / "weights.pt")
                self.strike(self.faults[number], worker)
            struck(self.root, number).touch()

    def strike(self, fault: str, worker: int) -> None:
        if fault in ("worker killed", "worker killed twice"):
            os.kill(worker, signal.SIGKILL)
        if fault == "worker killed twice":
            threading.Thread(target=self.kill_another, args=(worker,), daemon=True).start()
        if fault == "worker stopped":
            os.kill(worker, signal.SIGSTOP)
        elif fault == "error of the training":
            raise ArithmeticError("of the training")
        elif fault == "Ctrl-C":
            os.killpg(os.getpgrp(), signal.SIGINT)
        elif fault == "training killed":
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if self.faults == ["module that cannot be pickled later"] and batch_idx == 1:
            module.lock = threading.Lock()


def train(name: str, root: Path) -> None:
    """A training with a fault; writes its weights."""
    # A shell lets what it runs in the background ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("always")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if name == "worker stopped":  # Others only seem to do nothing where the machine does much else.
        beside.PATIENCE = PATIENCE
    module = Blind()
    method = Late(abs=False)
    vars(method).update(training=os.getpid(), runs_out=name == "worker out of memory", root=root)
    if name == "module that cannot be pickled":
        module.lock = threading.Lock()  # type: ignore[assignment]
    if name == "disk full":
        (root / "explain").write_text("There is no room for a folder.")
    callbacks: list[pl.Callback] = []
    if name != PLAIN:
        arguments: dict[str, Any] = {"every_n_train_steps": 2, "when_busy": "wait", "max_examples_per_pass": 8}
        watch = monitor_of_digits(methods={"late": method}, metrics=[], beside=True, **arguments)
        callbacks = [watch, Strike(name, watch, root)]
    trainer(root, *callbacks).fit(module, loader())
    torch.save(module.state_dict(), root / "weights.pt")


# -- all of them -------------------------------------------------------------------------------------------------------


def wrong(case: Case, root: Path, process: Started, before: set[str]) -> Iterator[str]:
    """What is not as it should be, once a training has ended."""
    code, told = process.returncode, (root / "output.txt").read_text()
    if code != case.code and not (case.code is None and code not in (0, None)):
        yield f"ended with {code}"
    if case.told not in told:
        yield f"did not say {case.told!r}"
    folder = root / "explain"
    steps = tuple(report.step for report in load_reports(folder)) if folder.is_dir() else ()
    if steps != tuple(case.steps):
        yield f"explained steps {steps}"
    if code == 0 or case.steps:
        ours, theirs = (
            torch.load(path / "weights.pt", weights_only=True) for path in (root, root.parent / "no-monitor")
        )
        if not all(torch.equal(ours[name], theirs[name]) for name in theirs):
            yield "has other weights"
    workers = root / "workers.txt"
    pids = {int(line) for line in workers.read_text().split()} if workers.exists() else set[int]()
    if alive := last(lambda: [pid for pid in pids if is_alive(pid)]):
        yield f"left the processes {alive}"
    if left := [path.name for path in (root / "tmp").iterdir()]:
        yield f"left the temporary files {left}"
    # That of other processes of the machine comes and goes.
    if memory := last(lambda: sorted(shared() - before)):
        yield f"left shared memory: {memory}"


def last(found: Callable[[], list[T]]) -> list[T]:
    """What is still found after a while; nothing as soon as nothing is."""
    until = time.monotonic() + GONE_AFTER
    while (left := found()) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def is_alive(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def shared() -> set[str]:
    return {path.name for path in SHARED.iterdir()} if SHARED.is_dir() else set()


def outcomes(cases: Sequence[Case], folder: Path) -> dict[str, list[str]]:
    """What is wrong after a training with each of these faults, which run at once, and one without a monitor."""
    before, roots = (
        shared(),
        {name: folder / name.replace(" ", "-") for name in (PLAIN, *(case.name for case in cases))},
    )
    processes = {name: start(name, root) for name, root in roots.items()}
    try:
        for process in processes.values():
            process.wait(DEADLINE)
    finally:
        # The workers are in its session, but are to have ended by themselves.
        for process in processes.values():
            if process.returncode is None:
                process.end()
    assert processes[PLAIN].returncode == 0, (roots[PLAIN] / "output.txt").read_text()
    return {case.name: [*wrong(case, roots[case.name], processes[case.name], before)] for case in cases}


def start(name: str, root: Path) -> Started:
    """Starts a training with a fault in a process of its own."""
    (root / "tmp").mkdir(parents=True)
    temporary = {"TMPDIR": str(root / "tmp")}
    return Started([__file__, "--one", name, str(root)], root, root / "output.txt", **temporary)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; the arguments are those of the process by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="the faults whose names a regular expression finds")
    parser.add_argument("--one", nargs=2, help="a fault and a folder: only that training, in this process")
    given = parser.parse_args(arguments)
    if given.one is not None:
        train(given.one[0], Path(given.one[1]))
        return 0
    missed, cases = 0, [case for case in CASES if re.search(given.only, case.name)]
    for case in cases:
        started = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            (found,) = outcomes([case], Path(folder)).values()
        missed += bool(found)
        seconds = time.perf_counter() - started
        print(f"{case.name}: {'; '.join(found) or 'as it should be'} ({seconds:.1f} s)", flush=True)
    print(f"{len(cases) - missed} of {len(cases)} faults were survived, and nothing was left behind.")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
