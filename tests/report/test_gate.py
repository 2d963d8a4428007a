"""What the gate lets pass, what it lets fail, and what it cannot read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_explain import Report, check
from lightning_explain.report.gate import findings
from lightning_explain.store.report_files import save_report

NAN = torch.nan
METHODS = ("ig", "ig@other", "smooth/ig", "NoiseTunnel(Saliency(), nt_samples=2)")


def report(*values: float, step: int = 4, **changes: Any) -> Report:
    ids = torch.arange(len(values))
    scores = {"mass": dict.fromkeys(METHODS, torch.tensor(values)), "a/b": {"c/d": torch.tensor(values)}}
    about: dict[str, Any] = {"step": step, "epoch": step // 4, **changes}
    return Report({"ig": torch.ones(len(values), 3)}, scores, {}, torch.zeros(len(values)), ids, ids, ids, **about)


RUN = [
    report(0.1, 0.3),
    report(0.3, 0.5, step=8),
    report(0.5, NAN, step=12, undefined_reasons={"mass": "an empty mask"}),
]


def states(run: Any, *expressions: str) -> list[str]:
    return [one.state for one in findings(run, expressions)]


@pytest.mark.parametrize("name", [*(f"mass/{method}" for method in METHODS), "a/b/c/d"])
def test_the_mean_of_the_last_report_counts_with_every_sign(name: str) -> None:
    found = states(RUN, f"{name} > 0.5", f"{name} >= 0.5", f"{name} < 0.5", f"{name} <= 0.5", f"{name} > 0.49")
    assert found == ["passed", "failed", "passed", "failed", "failed"]


def test_for_n_needs_each_of_the_last_reports() -> None:
    assert states(RUN, "mass/ig > 0.3 for 2", "mass/ig > 0.3 for 3", "mass/ig > 0.1 for 3") == [
        "failed",
        "passed",
        "failed",
    ]


def test_the_mean_is_the_one_that_is_logged_and_the_line_says_what_was_read() -> None:
    (one,) = findings(RUN, ["mass/ig > 0.3 for 2"])
    assert one.found == (
        f"{RUN[1].scalars()['mass/ig']:.6g} at epoch 2, step 8 (mean of 2 samples), "
        f"{RUN[2].scalars()['mass/ig']:.6g} at epoch 3, step 12 (mean of 1 of 2 samples)"
    )
    assert str(findings(RUN, ["undefined/mass/ig > 0"])[0]) == "failed: 'undefined/mass/ig > 0': 1 at epoch 3, step 12"


UNREAD: dict[str, tuple[Any, str, str]] = {
    "broken": (RUN, "mass/ig", "compares nothing; write <metric>/<method> > 0.3"),
    "empty": (RUN, "", "compares nothing"),
    "missing": (RUN, "mas/ig > 1", "no such score at epoch 3, step 12: did you mean 'mass/ig'"),
    "failed": (
        [report(0.1, failures={"drift": "no map of before"})],
        "drift/ig > 1",
        r"no such score at .* \(drift failed: 'no map of before'\)",
    ),
    "all undefined": (
        [report(NAN, NAN, undefined_reasons={"mass": "an empty mask"})],
        "mass/ig > 1",
        r"no sample has a finite score at .* \('an empty mask'\)",
    ),
    "all infinite": ([report(torch.inf, -torch.inf)], "mass/ig > 1", "no sample has a finite score"),
    "one of two": ([report(NAN), report(1.0)], "mass/ig < 1 for 2", "no sample has a finite score at epoch 1, step 4"),
    "too few": (RUN, "mass/ig > 1 for 4", "the run has only 3 of 4 reports"),
}


@pytest.mark.parametrize(("run", "expression", "message"), UNREAD.values(), ids=UNREAD.keys())
def test_what_cannot_be_read_never_passes(run: Any, expression: str, message: str) -> None:
    (one,) = findings(run, [expression])
    assert one.state == "not read"
    with pytest.raises(AssertionError, match=message):
        check(run, ["mass/ig > 99", expression])


def test_check_says_everything_that_was_read() -> None:
    check(RUN, ["mass/ig > 0.5"])
    with pytest.raises(AssertionError) as raised:
        check(RUN, ["mass/ig > 0.5", "mass/ig >= 0.5"])
    assert [line.partition(":")[0] for line in str(raised.value).splitlines()] == ["passed", "failed"]


def test_a_stored_run_gives_the_same_and_stages_are_apart(tmp_path: Path) -> None:
    for one in (*RUN, report(0.9, step=12, stage="test")):
        save_report(one, tmp_path / "version_0" / "explain")
    assert findings(tmp_path, ["mass/ig > 0.3 for 2"]) == findings(RUN, ["mass/ig > 0.3 for 2"])
    check(tmp_path, ["mass/ig > 0.8"])
    with pytest.raises(AssertionError, match=r"0\.9 at epoch 3, step 12, test"):
        check(tmp_path, ["mass/ig > 0.8"], stage="test")


@pytest.mark.parametrize(
    ("fail_if", "error", "message"),
    [
        ("mass/ig > 1", TypeError, "fail_if='mass/ig > 1'; give a list of expressions"),
        ([1], TypeError, r"fail_if=\[1\]; give a list"),
        ([], ValueError, "fail_if has no expression"),
    ],
)
def test_what_is_no_list_of_expressions_is_refused(fail_if: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        check(RUN, fail_if)


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=300))
def test_any_text_gives_a_finding(text: str) -> None:
    for expression in (text, f"{text} > 0.1", f"mass/ig > {text}", f"mass/ig > 0.1 for {text}"):
        (one,) = findings(RUN, [expression])
        assert re.match("(passed|failed|not read): ", str(one))
