"""What ``lightning-explain check`` prints, and its exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lightning_explain import Report
from lightning_explain.cli.main import app
from lightning_explain.store.report_files import save_report


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, ids = tmp_path_factory.mktemp("runs"), torch.arange(2)
    for step, value in {4: 0.2, 8: 0.4}.items():
        scores = {"mass": {"ig": torch.full((2,), value)}, "empty": {"ig": torch.full((2,), torch.nan)}}
        report = Report({"ig": torch.ones(2, 3)}, scores, {}, torch.zeros(2), ids, ids, ids, step=step)
        save_report(report, folder / "version_0" / "explain")
    return folder


def check(run: object, *expressions: str) -> Result:
    options = [word for expression in expressions for word in ("--fail-if", expression)]
    return CliRunner().invoke(app, ["check", str(run), *options], env={"NO_COLOR": "1"})


@pytest.mark.parametrize(
    ("expressions", "code", "shown"),
    [
        (["mass/ig > 0.5", "mass/ig > 0.3 for 2"], 0, "passed: 'mass/ig > 0.5': 0.4 at step 8 (mean of 2 samples)"),
        (["mass/ig > 0.5", "mass/ig > 0.3"], 1, "failed: 'mass/ig > 0.3': 0.4 at step 8 (mean of 2 samples)"),
        (["mass/ig > 0.3", "mass/ig ~ 0.3"], 2, "not read: 'mass/ig ~ 0.3': compares nothing; write"),
        (["mas/ig > 0.3"], 2, "there is no such score at step 8: did you mean 'mass/ig'"),
        (["empty/ig > 0.3"], 2, "no sample has a finite score at step 8"),
        (["mass/ig > 0.3 for 3"], 2, "the run has only 2 of 3 reports"),
    ],
)
def test_the_exit_code_says_whether_it_passed(run: Path, expressions: list[str], code: int, shown: str) -> None:
    result = check(run, *expressions)
    assert result.exit_code == code
    assert shown in result.output
    assert len(result.output.splitlines()) == len(expressions)


def test_a_run_that_cannot_be_read_is_one_line_and_exit_code_2(run: Path, tmp_path: Path) -> None:
    (tmp_path / "step=00000004.safetensors").write_bytes(b"cut")
    for path, message in {tmp_path: "is broken", tmp_path / "nowhere": "No reports in"}.items():
        result = check(path, "mass/ig > 1")
        assert result.exit_code == 2
        assert message in result.stderr
        assert len(result.stderr.splitlines()) == 1


@settings(deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=200).map(lambda text: f"mass/ig {text}"))
def test_any_expression_is_read_or_exit_code_2_in_one_short_line(run: Path, text: str) -> None:
    result = check(run, text)
    assert result.exit_code in (0, 1, 2)
    assert len(result.output) <= 601
    assert result.output.rstrip("\n").isprintable()
