"""What ``lightning-explain compare`` prints."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from lightning_explain import Report
from lightning_explain.cli.main import app
from lightning_explain.core.run_info import RunInfo
from lightning_explain.store.report_files import load_reports, save_report
from lightning_explain.store.run_files import save_run


def run(*arguments: object, **env: str) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"NO_COLOR": "1", **env})


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of three samples; the second one scores 1 more, and its first map is turned around."""
    ids = torch.tensor([30, 10, 20])
    for name, more in {"a": 0.0, "b": 1.0}.items():
        for step in (4, 8):
            maps = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
            maps[0] *= 1 - 2 * more
            scores: dict[str, Any] = {
                "mass": {"ig|x": torch.tensor([1.0, 2.0, torch.nan]) + more * step},
                "raw": {"ig|x": torch.ones(3)},
            }
            info = RunInfo("explain", fingerprint="f", higher_is_better={"mass": False}, incomparable=["raw"])
            report = Report({"ig|x": maps}, scores, {}, torch.zeros(3), ids * 0, ids, ids, step=step, epoch=step // 4)
            folder = tmp_path / name / "explain"
            save_report(Report(**{**vars(report), "fingerprint": "f", "run": info}), folder)
            save_run(info, folder)
    return tmp_path / "a", tmp_path / "b"


def test_tables_are_whole_in_a_pipe(runs: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    shown = run(*runs)
    assert shown.exit_code == 0, shown.output
    assert "b/explain" not in shown.output
    assert f"b: {runs[1]} (epoch 2, step 8)" in shown.output
    (line,) = (line for line in shown.output.splitlines() if "mass" in line and "lower" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        *("mass", "ig|x", "1.5", "9.5", "8", "0", "", "2", "lower")
    ]
    (line,) = (line for line in shown.output.splitlines() if "raw" in line and "not comparable between runs" in line)
    assert "…" not in shown.output
    assert "30" in next(line for line in shown.output.splitlines() if line.startswith("│") and "-1" in line)


def test_json_and_markdown_say_the_same(runs: tuple[Path, Path]) -> None:
    found = json.loads(run(*runs, "--format", "json", "--step", 4, "--most", 1).output)
    assert found["a"] == {"run": str(runs[0]), "at": "epoch 1, step 4"}
    assert found["differences"][0] == {
        "score": "mass",
        "method": "ig|x",
        "a": 1.5,
        "b": 5.5,
        "change": 4.0,
        "error": 0.0,
        "drawing_error": None,
        "samples": 2,
        "better": "lower",
    }
    (most,) = found["most_changed"]
    assert (most["sample"], most["cosine"]) == (30, pytest.approx(-1.0))
    written = run(*runs, "--format", "markdown", "--step", 4).output
    assert "| mass | ig\\|x | 1.5 | 5.5 | 4 | 0 |  | 2 | lower |" in written
    assert {line.count("|") - line.count("\\|") for line in written.splitlines() if line.startswith("| mass")} == {10}


def test_what_cannot_be_compared_is_one_line_and_exit_code_2(runs: tuple[Path, Path]) -> None:
    for arguments, message in {
        (runs[0], runs[1], "--step", 5): r"step=5: the run has reports of the steps [4, 8]",
        (runs[0], runs[0].parent): "and 2 runs below it; give one of",
        (runs[0], "nowhere"): "No reports in 'nowhere'",
    }.items():
        shown = run(*arguments)
        assert shown.exit_code == 2
        assert message in shown.stderr
        assert len(shown.stderr.splitlines()) == 1


def test_runs_that_explain_something_else_say_so_before_all_scores(runs: tuple[Path, Path], tmp_path: Path) -> None:
    assert "do not explain the same" not in run(*runs).output
    others = []
    for name, target, layer in (("c", "label", 0), ("d", "predicted", 3)):
        (last,) = load_reports(runs[0])[-1:]
        assert last.run is not None
        methods = {"ig|x": f"LayerGradCam(layer='net.{layer}')"}
        info = replace(last.run, settings={"target": target}, methods=methods)
        save_report(replace(last, run=info), tmp_path / name / "explain")
        save_run(info, tmp_path / name / "explain")
        others.append(tmp_path / name)
    pair = "LayerGradCam(layer='net.0') in a, LayerGradCam(layer='net.3') in b"
    for form, dash in {"table": "  ", "markdown": "  - "}.items():
        lines = run(*others, "--format", form).output.splitlines()
        assert "The two do not explain the same" in lines[2]
        assert lines[3:5] == [f'{dash}target: "label" in a, "predicted" in b', f"{dash}method 'ig|x': {pair}"]
    found = json.loads(run(*others, "--format", "json").output)
    assert found["differing"]["target"] == {"a": '"label"', "b": '"predicted"'}
    assert list(found)[:3] == ["a", "b", "differing"]
