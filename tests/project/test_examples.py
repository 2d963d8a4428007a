"""The Hydra application that users copy."""

from __future__ import annotations

import csv
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import pytest
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


OBJECTIVES = (
    "+objectives.score.metric=val_accuracy",
    "+objectives.explanation.metric=explain/relevance_mass/ig",
)


def run(train: ModuleType, output: Path, *overrides: str) -> list[float]:
    """One job in this process, as Hydra runs it."""
    given = [*SMALL, "logger=csv", f"hydra.runtime.output_dir={output}", *overrides]
    with initialize_config_dir(str(ROOT / "configs"), version_base="1.3"), warnings.catch_warnings():
        # What Lightning says of so small a run, and torch of Lightning.
        warnings.filterwarnings("ignore", ".*(isinstance.treespec, LeafSpec|many workers|number of training batches)")
        config = compose("train", given, return_hydra_config=True)
        HydraConfig.instance().set_config(config)
        return list(train.main(OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])))


@pytest.fixture(scope="module")
def job(train: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], Path]:
    """The objectives that one job returns, and where it writes."""
    output = tmp_path_factory.mktemp("job")
    return run(train, output, *OBJECTIVES), output


def test_the_objectives_are_the_last_score_and_the_last_explanations(job: tuple[list[float], Path]) -> None:
    values, output = job
    with (output / "csv" / "metrics.csv").open() as file:
        (score,) = [float(sample["val_accuracy"]) for sample in csv.DictReader(file) if sample["val_accuracy"]]
    (report,) = load_reports(output / "csv" / "explain")
    mass = float(report.scores["relevance_mass"]["ig"].nanmean())
    assert 0 < mass < 1
    assert values == pytest.approx([score, mass], abs=1e-6)


def test_an_objective_of_two_different_epochs_is_refused_before_the_training(train: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"The last epoch would not be explained.*monitor\.every_n_epochs"):
        run(train, tmp_path, "trainer.max_epochs=3", "monitor.every_n_epochs=2")
    assert not list(tmp_path.iterdir())


def test_a_sweep_runs_its_jobs_in_directories_and_wandb_runs_of_their_own(
    tmp_path: Path, job: tuple[list[float], Path]
) -> None:
    overrides = ["seed=1,2", "model.lr=3e-3", "logger=wandb", "logger.offline=true", "hydra.sweep.dir=sweep"]
    finish_together([[str(SCRIPT), "-m", *SMALL, *overrides]], tmp_path, 120)
    jobs = [tmp_path / "sweep" / "0", tmp_path / "sweep" / "1"]
    assert [OmegaConf.load(path / ".hydra" / "config.yaml").seed for path in jobs] == [1, 2]
    assert [len(list(path.glob("wandb/offline-run-*"))) for path in jobs] == [1, 1]
    folders = [run.parent for path in jobs for run in path.rglob("run.json")]
    assert [len(load_reports(folder)) for folder in folders] == [1, 1]
    masses = [load_reports(folder)[-1].scores["relevance_mass"]["ig"].nanmean().item() for folder in sorted(folders)]
    # The seed is all that differs, and it is all that there is of chance.
    assert masses[0] == pytest.approx(job[0][1], abs=1e-6)
    assert masses[0] != masses[1]
