"""The Hydra application that users copy."""

from __future__ import annotations

import csv
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lightning_explain import load_reports
from processes import finish_together

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "train.py"
SMALL = ("monitor=fast", "trainer=fast", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1")


@pytest.fixture(scope="module")
def train() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(train: ModuleType, output: Path, *overrides: str) -> float:
    """One job in this process, as Hydra runs it."""
    given = [*SMALL, "logger=csv", f"hydra.runtime.output_dir={output}", *overrides]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"), warnings.catch_warnings():
        # What Lightning says of so small a run, and torch of Lightning.
        warnings.filterwarnings("ignore", ".*(isinstance.treespec, LeafSpec|many workers|number of training batches)")
        config = compose("train", given, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        return float(train.main(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])))


@pytest.fixture(scope="module")
def job(train: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[float, Path]:
    """What one job returns, and where it writes."""
    output = tmp_path_factory.mktemp("job")
    return run(train, output), output


def test_a_good_score_for_a_bad_reason_is_worth_less(train: ModuleType) -> None:
    metrics = {"accuracy": torch.tensor(0.75), "mass": torch.tensor(0.5)}
    assert train.objective(metrics, score="accuracy", explanation="mass", weight=0.5) == 0.5


def test_the_objective_is_the_score_minus_the_explanation(job: tuple[float, Path]) -> None:
    value, output = job
    with (output / "csv" / "metrics.csv").open() as file:
        (score,) = [float(sample["val_accuracy"]) for sample in csv.DictReader(file) if sample["val_accuracy"]]
    (report,) = load_reports(output / "csv" / "explain")
    mass = float(report.scores["relevance_mass"]["ig"].nanmean())
    assert 0 < mass < 1
    assert value == pytest.approx(score - mass, abs=1e-6)


def test_an_objective_of_two_different_epochs_is_refused_before_the_training(train: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The last epoch would not be explained.*monitor\.every_n_epochs"):
        run(train, tmp_path, "trainer.max_epochs=3", "monitor.every_n_epochs=2")
    assert not list(tmp_path.iterdir())


def test_a_sweep_runs_its_jobs_in_directories_and_wandb_runs_of_their_own(
    tmp_path: Path, job: tuple[float, Path]
) -> None:
    overrides = ["seed=1,2", "model.lr=3e-3", "logger=wandb", "logger.offline=true", "hydra.sweep.dir=sweep"]
    finish_together([[str(SCRIPT), "-m", *SMALL, *overrides]], tmp_path, 120)
    jobs = [tmp_path / "sweep" / "0", tmp_path / "sweep" / "1"]
    assert [OmegaConf.load(path / ".hydra" / "config.yaml").seed for path in jobs] == [1, 2]
    assert [len(list(path.glob("wandb/offline-run-*"))) for path in jobs] == [1, 1]
    folders = [run.parent for path in jobs for run in path.rglob("run.json")]
    assert [len(load_reports(folder)) for folder in folders] == [1, 1]
    values = [float((path / "train.log").read_text().rpartition("objective: ")[2]) for path in jobs]
    # The seed is all that differs, and it is all that there is of chance.
    assert values[0] == pytest.approx(job[0], abs=1e-6)
    assert values[0] != values[1]
