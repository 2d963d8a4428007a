"""Faults of pictures, loggers and files."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger

from faults.fault import Fault, Inject, argument, fails
from faults.scene import Around, Scene


class Colors:
    """A color map that is fine until the monitor's turn comes."""

    armed = False

    def __init__(self, scene: Scene, found: Callable[..., Any]) -> None:
        self.scene, self.found = scene, found

    def __call__(self, values: Any, *arguments: Any, **named: Any) -> Any:
        if not self.armed:
            return [(value, value, value, 1.0) for value in values]
        self.scene.strike()
        return self.found(values)


def colors(found: Callable[..., Any]) -> Inject:
    def inject(scene: Scene) -> None:
        made = Colors(scene, found)
        scene.arguments["cmap"] = made
        scene.before.append(Around(lambda trainer: setattr(made, "armed", True)))

    return inject


def wrong_normalization(scene: Scene) -> dict[str, Any]:
    scene.strike()
    return {"normalization": ((0.5, 0.5, 0.5), (0.2, 0.2, 0.2))}


def pictures() -> Iterator[Fault]:
    """The faults of this kind."""
    yield Fault("render", "the color map raises", colors(fails(ValueError("no color"))), writing=True)
    yield Fault("render", "the color map gives one color", colors(lambda values: (0, 0, 0)), writing=True)
    yield Fault("render", "the color map gives words", colors(lambda values: "red"), writing=True)
    yield Fault("render", "a normalization of other channels", argument(wrong_normalization), refused=True)


class BrokenCSV(CSVLogger):
    scene: Scene

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        if any(key.startswith("explain/") for key in metrics):
            self.scene.strike()
            raise OSError("no space left on device")
        super().log_metrics(metrics, step)


def csv(scene: Scene) -> None:
    scene.loggers = BrokenCSV(scene.root)
    scene.loggers.scene = scene


class CutWandb(WandbLogger):
    """Its run cannot be had while ``armed``, as when the server is gone."""

    scene: Scene
    armed = False

    @property
    def experiment(self) -> Any:
        if self.armed:
            fails(ConnectionError("wandb: network is unreachable"), self.scene)()
        return super().experiment


def armed(scene: Scene) -> None:
    """What is cut is cut in the monitor's turn, for Lightning writes to the logger, too."""
    scene.before.append(Around(lambda trainer: setattr(scene.loggers, "armed", True)))
    scene.after.append(Around(lambda trainer: setattr(scene.loggers, "armed", False)))


class Homeless(TensorBoardLogger):
    """Does not say where it writes, once the monitor asks."""

    scene: Scene
    armed = False

    @property
    def log_dir(self) -> str:
        if self.armed:
            fails(ConnectionError("no route to host"), self.scene)()
        return super().log_dir


class AtSetup(pl.Callback):
    """Arms a logger while the monitor opens its sinks."""

    def __init__(self, scene: Scene, value: bool) -> None:
        self.scene, self.value = scene, value

    def setup(self, *arguments: Any, **named: Any) -> None:
        self.scene.loggers[1].armed = self.value


def homeless(scene: Scene) -> None:
    scene.loggers = [CSVLogger(scene.root), Homeless(scene.root)]
    scene.loggers[1].scene = scene
    scene.before.append(AtSetup(scene, True))
    scene.after.append(AtSetup(scene, False))


def tensorboard(scene: Scene, work: Callable[[Path], None], undo: Callable[[Path], None]) -> None:
    """What strikes our own event file; that of the logger is written outside of our turn."""
    scene.loggers = TensorBoardLogger(scene.root, name="", version="run")
    on_zero(work, undo)(scene)


def wandb_gone(scene: Scene) -> None:
    scene.loggers = CutWandb(save_dir=scene.root, offline=True, project="p")
    scene.loggers.scene = scene
    scene.root.mkdir(parents=True, exist_ok=True)
    armed(scene)


def loggers() -> Iterator[Fault]:
    """The faults of this kind."""
    yield Fault("sink", "a logger raises", csv, writing=True)
    yield Fault("sink", "W&B cannot be reached", wandb_gone, writing=True)
    yield Fault("sink", "TensorBoard: no folder", homeless, writing=True)
    full, none = partial(tensorboard, work=limited, undo=unlimited), partial(tensorboard, work=closed, undo=unlimited)
    yield Fault("sink", "TensorBoard: the disk is full (limit of file sizes)", full, writing=True)
    yield Fault("sink", "TensorBoard: no file can be opened", none, writing=True)


def on_zero(work: Callable[[Path], None], undo: Callable[[Path], None] | None = None) -> Inject:
    """Does something to ``<run>/explain`` right before the monitor's turn, on rank zero."""

    def inject(scene: Scene) -> None:
        def strike(trainer: pl.Trainer) -> None:
            if scene.rank == 0:
                scene.strike()
                work(scene.root / "explain")

        scene.before.append(Around(strike))
        if undo is not None and scene.rank == 0:
            scene.after.append(Around(lambda trainer: undo(scene.root / "explain")))

    return inject


def gone(path: Path) -> None:
    if path.is_symlink() or path.is_file():
        path.unlink()
    shutil.rmtree(path, ignore_errors=True)
    path.parent.mkdir(parents=True, exist_ok=True)


def replaced_by_a_file(path: Path) -> None:
    gone(path)
    path.write_text("in the way")


def unwritable(path: Path) -> None:
    """Where nobody may write, not even an administrator."""
    gone(path)
    path.symlink_to("/proc")


def full(name: str) -> Callable[[Path], None]:
    """A file whose disk is full."""

    def work(path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        (path / name).unlink(missing_ok=True)
        (path / name).symlink_to("/dev/full")

    return work


def taken(path: Path) -> None:
    """Folders where the reports of the next steps belong."""
    for step in range(1, 50):
        (path / f"step={step:08d}.safetensors").mkdir(parents=True, exist_ok=True)


def limited(path: Path) -> None:
    """No file may grow beyond some bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))


def unlimited(path: Path) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_NOFILE, OPEN)


OPEN = resource.getrlimit(resource.RLIMIT_NOFILE)


def closed(path: Path) -> None:
    """No further file may be opened."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, OPEN[1]))


def files() -> Iterator[Fault]:
    """The faults of this kind."""
    yield Fault("sink", "the folder is a file", on_zero(replaced_by_a_file), writing=True)
    yield Fault("sink", "the folder cannot be written", on_zero(unwritable), writing=True)
    yield Fault("sink", "the folder is deleted", on_zero(gone), writing=True, raises=False)
    yield Fault("sink", "the disk is full (limit of file sizes)", on_zero(limited, unlimited), writing=True)
    yield Fault("sink", "the disk is full for scalars", on_zero(full("scalars.jsonl")), writing=True)
    yield Fault("sink", "folders where reports belong", on_zero(taken), writing=True)
