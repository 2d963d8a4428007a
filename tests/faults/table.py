"""Every fault at every place, on one rank and on two: ``python tests/faults/table.py``.

A fault is survived if the training reaches its end with the very weights of one that nobody watched, on all ranks, and something
was told. A mistake (a wrong ``batch_fn``) ends it before the first batch on all ranks, and so does every failure with
``on_error="raise"``. No training may take longer than the deadline; one that does is killed and counts as hanging. One pair of
ranks runs many trainings in turn. The exit code is 1 if anything went wrong.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from faults.runs import MetricInputs, cases  # noqa: E402
from processes import Started, free_port  # noqa: E402

DEADLINE = 60.0
# Until the first training: two processes import, and two trainings are run to compare with.
START = 180.0
Lines = dict[int, dict[str, Any]]


@contextmanager
def started(folder: Path, world: int, script: str, *arguments: str) -> Iterator[list[Started]]:
    """The ranks of a script in this folder, which are gone afterwards; each writes to ``<rank>.txt``."""
    pair = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
    command, ranks = [str(TESTS / "faults" / script), str(folder), *arguments], []
    for rank in range(world):
        ours = {**pair, "LOCAL_RANK": str(rank)} if world > 1 else {}
        ranks.append(Started(command, folder, folder / f"{rank}.txt", WANDB_MODE="offline", **ours))
    try:
        yield ranks
    finally:
        for process in ranks:
            process.end()


def written(folder: Path, world: int) -> list[Lines]:
    """What each rank has written so far, by case; a line counts once its end is written, as a long one comes in parts."""
    found = []
    for rank in range(world):
        path = folder / f"{rank}.jsonl"
        whole, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
        found.append({line["number"]: line for line in map(json.loads, whole.splitlines())})
    return found


def outcomes(
    folder: Path, world: int, only: str, deadline: float = DEADLINE
) -> Iterator[tuple[MetricInputs, list[dict[str, Any]]]]:
    """Each case with what each rank says of it; the ranks are started again after one that hangs or kills them."""
    todo, at = cases(world, only), 0
    while at < len(todo):
        with started(folder, world, "runs.py", str(at), only) as ranks:
            until = time.monotonic() + START
            while at < len(todo):
                # Asked before the lines are read: a rank writes its last line, and ends.
                codes = [process.poll() for process in ranks]
                lines = written(folder, world)
                if all(at in mine for mine in lines):
                    yield todo[at], [mine[at] for mine in lines]
                    at, until = at + 1, time.monotonic() + deadline
                    continue
                # One that is at its end may be ahead of the others.
                gone = [code for code in codes if code] or [code for code in codes if None not in codes]
                if gone or time.monotonic() > until:
                    what = f"exit code {gone[0]}" if gone else "hanging"
                    yield todo[at], [{"outcome": what, "detail": "", "fired": 1, "told": [], "seconds": deadline}]
                    at += 1
                    break
                time.sleep(0.02)


def fault_of(case: MetricInputs, ranks: list[dict[str, Any]]) -> str:
    """What is wrong with how a case went; empty if nothing is."""
    found = sorted({line["outcome"] for line in ranks})
    if found != [case.expected]:
        return f"{' / '.join(found)} instead of {case.expected}: {ranks[-1]['detail'] or ranks[0]['detail']}"
    if not any(line["fired"] for line in ranks):
        return "the fault never struck"
    told = any(line["told"] for line in ranks)
    if case.fault.raises and case.expected == "survived" and not told:
        return "nothing was told"
    return ""


def show(case: MetricInputs, world: int, ranks: list[dict[str, Any]], wrong: str) -> None:
    where = f"{world} rank" if world == 1 else f"{world} ranks, {case.struck}"
    seconds = max(line["seconds"] for line in ranks)
    name = case.fault.name + (', on_error="raise"' if case.on_error == "raise" else "")
    print(f"{case.fault.place:13} {name:64} {where:16} {wrong or case.expected} ({seconds:.1f} s)", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a regular expression for the 'place: name' of faults")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    given = parser.parse_args()
    counts = {"survived": 0, "raised": 0}
    missed, hanging, slowest, begun = 0, 0, 0.0, time.perf_counter()
    for world in given.ranks:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            for case, ranks in outcomes(folder, world, given.only):
                wrong = fault_of(case, ranks)
                show(case, world, ranks, wrong)
                missed += bool(wrong)
                hanging += any(line["outcome"] == "hanging" for line in ranks)
                counts[case.expected] += not wrong
                slowest = max(slowest, *(line["seconds"] for line in ranks))
                if wrong and "exit code" in wrong:
                    print((folder / "0.txt").read_text()[-2000:])
    total = sum(counts.values()) + missed
    print(
        f"{total} faults injected: {counts['survived']} survived with the weights of an undisturbed training, "
        f"{counts['raised']} ended it on all ranks as they should, {missed} went wrong, {hanging} hung. "
        f"Slowest training {slowest:.1f} s of {DEADLINE:.0f} s; in all {time.perf_counter() - begun:.0f} s."
    )
    return 1 if missed or not total else 0


if __name__ == "__main__":
    sys.exit(main())
