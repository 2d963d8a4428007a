"""Takes files of checkpoints that others may have written; returns what is in them, and when they were saved."""

from __future__ import annotations

import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_explain.core import schema
from lightning_explain.core.schema import MalformedError, one_line
from lightning_explain.loggers.packages import in_both

Given: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"
"""A folder of checkpoints, one checkpoint, or several of both."""

SUFFIX = ".ckpt"


@dataclass(frozen=True)
class Checkpoint:
    """A file of a checkpoint, and when it was saved.

    Args:
        path: The file.
        epoch: The epoch, from 0.
        step: How many optimizer steps the weights have seen.
    """

    path: Path
    epoch: int
    step: int

    def __str__(self) -> str:
        return f"step {self.step}, epoch {self.epoch} ('{self.path.name}')"


def moment_of(checkpoint: Mapping[str, Any]) -> tuple[int, int]:
    """The epoch and the optimizer step of a checkpoint.

    Raises:
        MalformedError: If it lacks one of them.
    """
    for name in ("epoch", "global_step"):
        if name not in checkpoint:
            raise MalformedError(f"it has no {name}, so it is not a checkpoint of a Trainer")
        schema.whole()(checkpoint[name], name)
    return checkpoint["epoch"], checkpoint["global_step"]


def load(path: Path, weights_only: bool = True) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU; weights are read from the file only where they are used.

    Args:
        path: A file that a Trainer saved.
        weights_only: Whether to load tensors and plain values only; all else may run code.

    Raises:
        MalformedError: If it cannot be loaded, or is not a checkpoint of a Trainer.
    """
    if path.is_dir():
        raise MalformedError(
            "it is a folder, as sharded models have it; make it a file: python -m lightning.pytorch.utilities.consolidate_checkpoint"
        )
    try:
        mapped = zipfile.is_zipfile(path)
        found = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise MalformedError(_unsafe(str(error)) if weights_only else _broken(error)) from error
    # Unpickling may raise anything.
    except Exception as error:
        raise MalformedError(_broken(error)) from error
    if not isinstance(found, dict) or not isinstance(found.get("state_dict"), dict):
        raise MalformedError("it has no state_dict, so it is not a checkpoint of a Trainer")
    moment_of(found)
    return found


def check_module(model: object) -> None:
    """Refuses what is no LightningModule.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(model, in_both(pl.LightningModule)):
        raise TypeError(f"model is a {type(model).__name__}; give the LightningModule that was trained.")


def load_weights(module: pl.LightningModule, content: dict[str, Any]) -> None:
    """Puts the weights of a checkpoint into its module; ``strict_loading`` says whether all of them must be there."""
    module.on_load_checkpoint(content)
    module.load_state_dict(content["state_dict"], strict=module.strict_loading)


def logged_in(content: Mapping[str, Any], name: str) -> dict[str, float]:
    """What ModelCheckpoints monitored when a checkpoint was saved under this file name, such as ``{"val_loss": 0.3}``."""
    states = content.get("callbacks")
    found = dict[str, float]()
    for state in states.values() if isinstance(states, Mapping) else ():
        if isinstance(state, Mapping) and isinstance(state.get("best_k_models"), Mapping):
            kept = {Path(str(path)).name: score for path, score in state["best_k_models"].items()}
            if isinstance(state.get("monitor"), str) and name in kept:
                with suppress(TypeError, ValueError, RuntimeError):
                    found[state["monitor"]] = float(kept[name])
    return found


def _broken(error: Exception) -> str:
    return f"it cannot be loaded ({one_line(f'{type(error).__name__}: {error}', 120)})"


def _unsafe(text: str) -> str:
    """What to do about a file that holds more than tensors and plain values; torch's own text is several pages long."""
    kinds = re.search(r"(?:GLOBAL|global:?|class) ([\w.]+\.[\w.]+)", text)
    if kinds is None:
        return "it cannot be loaded (torch.save did not write it, or it is damaged)"
    return (
        f"it holds more than tensors and plain values ({one_line(kinds[1], 80)}), which may run code; if you trust it, say "
        "weights_only=False (--trust)"
    )


def find(given: Given, weights_only: bool = True) -> tuple[list[Checkpoint], dict[Path, str]]:
    """The checkpoints in a folder, by step, and why others are left out; of several with the same step and weights only the first one.

    Args:
        given: A folder, of which the files ``*.ckpt`` at any depth are taken, a file, or several of both.
        weights_only: As :func:`load` takes it.

    Raises:
        FileNotFoundError: If there are none.
    """
    found, left_out = list[Checkpoint](), dict[Path, str]()
    for path in _paths(given):
        try:
            found.append(Checkpoint(path, *moment_of(load(path, weights_only))))
        except MalformedError as error:
            left_out[path] = str(error)
    if not found and not left_out:
        raise FileNotFoundError(
            f"No checkpoints (*{SUFFIX}) in {schema.brief(given)}; give their folder, or their files."
        )
    kept: list[Checkpoint] = []
    # Of equal ones, last.ckpt comes behind that which says when it was saved.
    for one in sorted(found, key=lambda one: (one.step, one.epoch, one.path.name.startswith("last"), str(one.path))):
        same = [other for other in kept if other.step == one.step]
        if any(_same_weights(one.path, other.path, weights_only) for other in same):
            continue
        clash = next((other for other in same if other.epoch == one.epoch), None)
        if clash is None:
            kept.append(one)
        else:
            left_out[one.path] = (
                f"it has the step and the epoch of '{clash.path.name}', but other weights: keep runs apart"
            )
    return kept, left_out


def saved_arguments(given: Given, weights_only: bool = True) -> dict[str, Any]:
    """The arguments with which the module of the checkpoints was built, if ``save_hyperparameters()`` put them there."""
    for path in _paths(given):
        with suppress(MalformedError):
            content = load(path, weights_only)
            found, name = content.get("hyper_parameters"), content.get("hparams_name")
            # A module with an argument for all of them together takes them by its name.
            plain = {str(key): value for key, value in found.items()} if isinstance(found, Mapping) else {}
            return {**plain, str(name): plain} if name and name != "kwargs" else plain
    return {}


def _paths(given: Given) -> Iterator[Path]:
    """All files, and the folders of sharded checkpoints, each once."""
    several = [given] if isinstance(given, (str, os.PathLike)) else given
    seen: set[Path] = set()
    for path in map(Path, several):
        folder = path.is_dir() and path.suffix != SUFFIX
        for one in sorted(path.rglob(f"*{SUFFIX}")) if folder else [path]:
            if one.resolve() not in seen:
                seen.add(one.resolve())
                yield one


def _same_weights(a: Path, b: Path, weights_only: bool) -> bool:
    one, other = load(a, weights_only)["state_dict"], load(b, weights_only)["state_dict"]
    return one.keys() == other.keys() and all(_equal(one[name], other[name]) for name in one)


def _equal(a: Any, b: Any) -> bool:
    """Whether two values of a state are the same bit for bit, NaN included."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return type(a) is type(b) and bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(*(x.reshape(-1).contiguous().view(torch.uint8) for x in (a, b)))
