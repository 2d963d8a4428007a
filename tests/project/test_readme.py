"""What README and the how-to on configuration show runs, word for word."""

from __future__ import annotations

import re
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import lightning.pytorch
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from cat_or_dog import CatOrDog, data
from lightning_explain import ExplanationMonitor, load_reports
from lightning_explain.cli.main import app
from training import QUIET

pytestmark = QUIET
ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONFIGURATION = (ROOT / "docs" / "how-to" / "configuration.md").read_text()


def blocks(language: str, page: str) -> list[str]:
    """The code of that language, in order."""
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def trainer(root: Path, epochs: int = 2, **arguments: Any) -> lightning.pytorch.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    return lightning.pytorch.Trainer(
        default_root_dir=root, accelerator="cpu", max_epochs=epochs, log_every_n_steps=1, **quiet, **arguments
    )


def test_the_script_runs_as_it_stands_and_leaves_what_the_table_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (len(re.findall("```", README)), len(blocks("python", README))) == (2, 1)
    here: dict[str, Any] = {}
    exec(blocks("python", README)[0], here)
    report = load_reports("lightning_logs/version_0")[-1]
    assert report.epoch == 2
    images, maps = report.probe.inputs, report.attributions["ig"].abs()
    assert maps[images > 0.5].sum() > 0.3 * maps.sum(), "the maps lie on the squares, 6% of each image"
    seen = tags(tmp_path / "lightning_logs" / "version_0")
    where = re.findall(r"^\| `(explain\S*)` \|", README, re.MULTILINE)
    assert len(where) == 5
    for tag in where:
        pattern = tag.replace("<method>", "ig").replace("<metric>", "infidelity_relative")
        assert {pattern, f"{pattern}/text_summary"} & seen, tag
    for command in re.findall(r"^\| `lightning-explain (.*?)` \|", README, re.MULTILINE):
        arguments = shlex.split(command.replace("RUN", "lightning_logs/version_0"))
        assert CliRunner().invoke(app, arguments).exit_code == 0, command
    assert (tmp_path / "page.html").is_file()


def tags(run: Path) -> set[str]:
    """Tags of everything that TensorBoard shows of a run."""
    found: set[str] = set()
    for file in run.glob("events*"):
        events = EventAccumulator(str(file)).Reload().Tags()
        found |= {tag for kind in ("images", "scalars", "tensors") for tag in events[kind]}
    return found


def test_all_arguments_of_the_how_to_run_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(L, "Trainer", partial(trainer, tmp_path))
    here: dict[str, Any] = {}
    exec(blocks("python", CONFIGURATION)[0], here)
    here["trainer"].fit(CatOrDog(), data(), data())
    report = here["monitor"].last_report
    assert report.epoch == 1
    assert set(report.scores) >= {"infidelity", "infidelity_relative", "sensitivity_max"}


class Reader(CatOrDog):
    """Reads digits in color; keeps its validation accuracy after each epoch."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.layer4 = nn.Sequential(first, nn.Conv2d(8, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.head = nn.Linear(32, 10)
        self.accuracies: list[float] = []

    def on_validation_epoch_end(self) -> None:
        self.accuracies.append(self.accuracy())

    @torch.no_grad()
    def accuracy(self) -> float:
        x, y = colored(VALIDATION)
        return float((self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), 0.02)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)]


TRAINING, VALIDATION = slice(0, 1300), slice(1300, None)


def colored(which: slice) -> tuple[Tensor, Tensor]:
    """Digits ``(N, 3, 8, 8)``, normalized as in the how-to."""
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[which], dtype=torch.float32).reshape(-1, 1, 8, 8).expand(-1, 3, -1, -1) / 16
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (x - mean[:, None, None]) / std[:, None, None], torch.tensor(labels[which])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_what_the_how_to_watches_stops_no_healthy_training_and_keeps_good_weights(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(seed)
    monkeypatch.setattr(L, "Trainer", partial(trainer, tmp_path, epochs=10))
    here: dict[str, Any] = {}
    code = blocks("python", CONFIGURATION)[0]
    code = code.replace('["cat", "dog"]', "list(map(str, range(10)))")
    # What no alert looks at takes half of the time: one seed has it, too.
    others = "q.SensitivityMax(), q.Drift()"
    assert others in code
    exec(code.replace(others, "") if seed else code, here)
    module, fitted = Reader(), here["trainer"]
    fitted.fit(
        module,
        DataLoader(TensorDataset(*colored(TRAINING)), 100, shuffle=True),
        DataLoader(TensorDataset(*colored(VALIDATION)), 500),
    )
    assert (fitted.current_epoch, len(module.accuracies)) == (10, 10), "not stopped"
    assert max(module.accuracies) > 0.9
    scores = [report.scalars()["infidelity_relative/ig"] for report in load_reports(tmp_path / "explain")]
    assert len(scores) == 5
    assert max(scores) < 0.7
    kept = Reader()
    kept.load_state_dict(torch.load(here["best"].best_model_path, weights_only=True)["state_dict"])
    assert kept.eval().accuracy() >= max(module.accuracies) - 0.01


def test_it_is_read_in_two_minutes_and_on_a_package_index() -> None:
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    assert len(prose.split()) < 850
    home = re.search(r'^Source = "(\S+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert home is not None
    links = re.findall(r"\]\(([^)\s]+)\)", README)
    own = [link for link in links if "lightning-explain" in link]
    assert len(own) > 8
    for link in own:
        repository, path = re.split(r"/(?:blob/)?main/", link)
        assert repository in (home[1], home[1].replace("github.com", "raw.githubusercontent.com"))
        assert (ROOT / path).is_file(), link
    assert not [link for link in links if "://" not in link]


def test_yaml_runs(tmp_path: Path) -> None:
    (tmp_path / "monitor.yaml").write_text(blocks("yaml", CONFIGURATION)[0])
    watch = ExplanationMonitor.from_config(OmegaConf.load(tmp_path / "monitor.yaml"))
    trainer(tmp_path, callbacks=[watch], enable_checkpointing=False).fit(CatOrDog(), data(), data())
    assert watch.last_report is not None
    assert set(watch.last_report.attributions) == {"ig", "smooth"}
