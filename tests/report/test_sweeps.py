"""The end of a sweep: its members, the Pareto front, the table and the page, and the presets that lead there."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import instantiate
from omegaconf import OmegaConf

from finished import finished, images
from lightning_explain import ExplanationMonitor, methods
from lightning_explain.report.sweeps import SweepReport, load_members, pareto_front, write_sweep

CONFIGS = Path(__file__).parents[2] / "configs"
OBJECTIVES = {
    "score": {"metric": "acc", "direction": "maximize"},
    "explanation": {"metric": "mass", "direction": "minimize"},
}
PLUGINS = {"sweeper": ["optuna"], "launcher": ["joblib", "ray", "submitit_local"]}


def config(sweep: Path, name: str, *overrides: str) -> dict[str, Any]:
    """What Hydra gives its callbacks."""
    runtime = {"output_dir": str(sweep / name)}
    return {"hydra": {"sweep": {"dir": str(sweep)}, "runtime": runtime, "overrides": {"task": list(overrides)}}}


def member(sweep: Path, name: str, returned: Any, *overrides: str) -> JobReturn:
    """A member that returns something, or raises it, and has two explanations."""
    callback, given = SweepReport(OBJECTIVES), config(sweep, name, *overrides)
    callback.on_job_start(given)
    finished(sweep / name, images(), steps=(10, 20), seed=len(name))
    failed = isinstance(returned, Exception)
    found = JobReturn(status=JobStatus.FAILED if failed else JobStatus.COMPLETED)
    found.return_value = returned
    callback.on_job_end(given, found)
    return found


def table(sweep: Path) -> list[dict[str, str]]:
    with (sweep / "members.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_sweep_ends_with_a_table_of_all_members_and_a_page_of_their_runs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    member(tmp_path, "0", [0.75, 0.5], "lr=0.1", "seed=1")
    member(tmp_path, "1", (0.5, 0.5), "lr=0.01", "seed=1")
    member(tmp_path, "10", [0.9, 0.75], "lr=1", "+seed=1")
    member(tmp_path, "2", OSError("disk\nfull"), "lr=3", "seed=1")
    with caplog.at_level(logging.INFO):
        SweepReport(OBJECTIVES).on_multirun_end(config(tmp_path, ""))
    assert [list(line.values()) for line in table(tmp_path)] == [
        ["0", "0.1", "0.75", "0.5", "best", ""],
        ["1", "0.01", "0.5", "0.5", "", ""],
        ["2", "3", "", "", "", "OSError: disk full"],
        ["10", "1", "0.9", "0.75", "best", ""],
    ]
    assert list(table(tmp_path)[0]) == ["member", "lr", "acc ↑", "mass ↓", "Pareto front", "failed"]
    assert "10      1     0.9    0.75    best" in caplog.text
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    shown = re.search(r'<section id="members".*?</section>', page, re.DOTALL)
    assert shown is not None
    assert re.findall(r'<th scope="row" data-value="(\w+)"', shown[0]) == ["0", "1", "2", "10"]
    # The front comes first, and what is left of a failed member is shown, too.
    assert re.findall(r'class="show-run" value="\d"[^>]*> (\w+)<', page) == ["10", "0", "1", "2"]


def test_a_member_whose_process_died_is_in_the_table_of_an_interrupted_sweep(tmp_path: Path) -> None:
    member(tmp_path, "0", [0.75, 0.5], "lr=1")
    SweepReport(OBJECTIVES).on_job_start(config(tmp_path, "1", "lr=2"))
    write_sweep(tmp_path)
    assert [line["failed"] for line in table(tmp_path)] == ["", "its process ended, or is still running"]


@pytest.mark.parametrize("returned", [[0.5, float("nan")], [float("inf"), 0.5], [0.5], 0.5, None, ["a", "b"]])
def test_a_member_without_finite_objectives_has_failed_so_that_optuna_goes_on(returned: Any, tmp_path: Path) -> None:
    found = member(tmp_path, "0", returned)
    assert found.status is JobStatus.FAILED
    with pytest.raises(ValueError, match=r"a finite number for each of acc, mass|could not convert"):
        _ = found.return_value
    assert [one.values for one in load_members(tmp_path)] == [None]


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ([(1, 0), (1, 0), (0.5, 0.5)], [0, 1]),
        ([(0.5, 0.1), (0.9, 0.5), (0.7, 0.3), (0.6, 0.4)], [1, 2, 0]),
        ([(1, 1)], [0]),
    ],
)
def test_the_front_has_those_that_no_other_beats_the_best_score_first(
    values: Sequence[tuple[float, float]], best: list[int], tmp_path: Path
) -> None:
    for i, pair in enumerate(values):
        callback, found = SweepReport(OBJECTIVES), JobReturn(status=JobStatus.COMPLETED)
        found.return_value = pair
        callback.on_job_end(config(tmp_path, str(i)), found)
    assert [int(one.name) for one in pareto_front(load_members(tmp_path))] == best


def test_what_is_no_sweep_and_no_direction_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No member\.json below .*a preset of hparams_search"):
        load_members(tmp_path)
    (tmp_path / "member.json").write_text("[]")
    with pytest.raises(ValueError, match=r"member\.json' is broken .*delete it"):
        load_members(tmp_path)
    with pytest.raises(ValueError, match="direction='up' of acc: give one of 'maximize', 'minimize'"):
        SweepReport({"score": {"metric": "acc", "direction": "up"}})


@pytest.fixture
def plugins() -> Iterator[None]:
    """Open configurations in the place of the plugins', which are not installed."""
    store = ConfigStore.instance()
    ours = [(group, name) for group, names in PLUGINS.items() for name in names]
    kept = {(group, name): store.repo.get("hydra", {}).get(group, {}).get(f"{name}.yaml") for group, name in ours}
    for group, name in ours:
        store.store(group=f"hydra/{group}", name=name, node={"_target_": name})
    yield
    for (group, name), node in kept.items():
        del store.repo["hydra"][group][f"{name}.yaml"]
        if node is not None:
            store.repo["hydra"][group][f"{name}.yaml"] = node


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("preset", sorted(path.stem for path in (CONFIGS / "hparams_search").iterdir()))
def test_a_preset_maximizes_the_score_and_minimizes_the_explanation(preset: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        found = compose("train", [f"hparams_search={preset}"], return_hydra_config=True)
    sweeper = found.hydra.sweeper
    assert [part.metric for part in found.objectives.values()] == ["val_accuracy", "explain/relevance_mass/ig"]
    assert list(sweeper.direction) == ["maximize", "minimize"]
    assert sweeper.max_failure_rate == 1.0
    assert all(OmegaConf.select(found, key) is not None for key in sweeper.params)
    assert found.hydra.launcher["_target_"].split(".")[-1] in (*PLUGINS["launcher"], "BasicLauncher")
    assert isinstance(instantiate(found.hydra.callbacks.report), SweepReport)


def test_the_callback_file_of_lightning_hydra_template_builds_a_monitor(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(
        f"defaults: [callbacks: explain, _self_]\nhydra: {{searchpath: ['file://{CONFIGS}']}}\n"
    )
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        found = compose("train", ["callbacks.explain.methods.ig.n_steps=4"])
    # As in the template's instantiate_callbacks.
    (callback,) = [instantiate(part) for part in found.callbacks.values() if "_target_" in part]
    assert isinstance(callback, ExplanationMonitor)
    assert callback._explainer.methods["ig"] == methods.IntegratedGradients(n_steps=4)
