"""A sample of the table of faults, and what only processes of their own can show; ``table.py`` runs the whole table."""

from __future__ import annotations

import json
import signal
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from faults import table
from faults.injected import FAULTS
from faults.runs import MetricInputs, cases
from faults.table import DEADLINE, fault_of, outcomes, started, written

pytestmark = pytest.mark.timeout(240)

SAMPLE = (
    "probe choice: the disk cannot be read",
    "doctor: forward raises at the first call of all",
    "doctor: the CPU has no memory left at the first call of all",
    "doctor: forward raises at call 2",
    "pass: forward raises at call 3",
    "pass: backward raises at call 1",
    "pass: always out of memory",
    "metric: SensitivityMax: perturb_func raises",
    "gather: a map of fewer samples",
    "render: the color map raises",
    "sink: TensorBoard: no file can be opened",
    "sink: the disk is full for scalars",
    "checkpoint: a schedule that is a word",
)


@pytest.mark.ddp
@pytest.mark.slow
def test_faults_are_survived_on_all_ranks_or_raised_on_all_if_asked_for(tmp_path: Path) -> None:
    assert set(SAMPLE) <= {f"{fault.place}: {fault.name}" for fault in FAULTS}
    found = list(outcomes(tmp_path, 2, f"^({'|'.join(SAMPLE)})$"))
    assert {case.fault.place for case, _ in found} == {fault.split(":")[0] for fault in SAMPLE}
    wrong = {f"{case.fault.name}, {case.on_error}, {case.struck}": fault_of(case, ranks) for case, ranks in found}
    assert {name: text for name, text in wrong.items() if text} == {}


FINE = {"outcome": "survived", "detail": "", "fired": 1, "told": ["it"]}


@pytest.mark.parametrize(
    ("ranks", "wrong"),
    [
        ([FINE, FINE], ""),
        ([FINE, {**FINE, "told": []}], ""),
        ([FINE, {**FINE, "outcome": "other weights"}], "other weights / survived instead of survived: "),
        ([FINE, {**FINE, "outcome": "hanging"}], "hanging / survived instead of survived: "),
        ([{**FINE, "fired": 0}] * 2, "the fault never struck"),
        ([{**FINE, "told": []}] * 2, "nothing was told"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_table_sees_what_went_wrong(ranks: list[dict[str, Any]], wrong: str) -> None:
    fault = next(fault for fault in FAULTS if fault.raises)
    assert fault_of(MetricInputs(fault, "warn", "all"), ranks) == wrong


def test_a_line_counts_once_it_is_written_to_its_end(tmp_path: Path) -> None:
    first, second = ({**FINE, "number": number, "told": ["x" * 10_000]} for number in (0, 1))
    text = json.dumps(first) + "\n" + json.dumps(second) + "\n"
    for end, found in ((5_000, {}), (len(text) - 1, {0: first}), (len(text), {0: first, 1: second})):
        (tmp_path / "0.jsonl").write_text(text[:end])
        assert written(tmp_path, 2) == [found, {}]


class AtItsEnd:
    """A rank that ends when it is asked for the ``last`` time whether it has, right after it wrote what it has to say of all cases."""

    def __init__(self, path: Path, count: int, last: int) -> None:
        self.path, self.count, self.left = path, count, last

    def poll(self) -> int | None:
        self.left -= 1
        if self.left == 0:
            self.path.write_text("".join(json.dumps({**FINE, "number": number}) + "\n" for number in range(self.count)))
        return 0 if self.left <= 0 else None


@pytest.mark.parametrize("last", [(1, 1), (1, 3), (3, 1)], ids=str)
def test_a_rank_at_its_end_is_waited_for_with_those_that_are_not(
    last: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = len(cases(2, SAMPLE[4]))
    ranks = [AtItsEnd(tmp_path / f"{rank}.jsonl", count, asked) for rank, asked in enumerate(last)]
    monkeypatch.setattr(table, "started", lambda *given: nullcontext(ranks))
    found = [[line["outcome"] for line in lines] for _, lines in outcomes(tmp_path, 2, SAMPLE[4])]
    assert found == [["survived", "survived"]] * count != []


LOST = "has lost the other ranks while explaining"


@pytest.mark.ddp
@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("collective", (LOST, LOST)),
        ("raise", ("failed on rank 1; read the traceback printed there", "no map on rank 1")),
    ],
)
def test_all_ranks_exit_with_a_message_within_the_deadline(how: str, said: tuple[str, str], tmp_path: Path) -> None:
    until = time.monotonic() + DEADLINE
    with started(tmp_path, 2, "parted.py", how) as ranks:
        codes = [process.wait(max(0.1, until - time.monotonic())) for process in ranks]
    outputs = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert codes == [1, 1]
    assert all(text in output for text, output in zip(said, outputs, strict=True))
    assert "ArithmeticError: no map on rank 1" in outputs[1]


@pytest.mark.ddp
@pytest.mark.slow
def test_a_rank_whose_other_is_killed_ends_with_a_message_at_once(tmp_path: Path) -> None:
    until = time.monotonic() + DEADLINE
    with started(tmp_path, 2, "parted.py", "killed") as ranks:
        codes = [process.wait(max(0.1, until - time.monotonic())) for process in ranks]
    assert codes == [1, -signal.SIGKILL]
    assert LOST in (tmp_path / "0.txt").read_text()
