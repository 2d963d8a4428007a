"""The benchmark of the default monitor: it sees planted causes, and it sees when a map misses them."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import one_line

from _setups import SETUPS
from lightning_explain.core.probe import as_tuple, flat
from lightning_explain.probes.binding import samples_of

# Recorded by the benchmark, which prints what is left out.
pytestmark = pytest.mark.filterwarnings("default")


def nowhere(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(x.shape, dtype=torch.bool) for x in inputs)


@pytest.mark.parametrize("name", ["MLP", "LSTM (N, T, C)"])
def test_one_line_finds_the_planted_cause_and_changes_no_weight(name: str) -> None:
    result = one_line.run(replace(SETUPS[name][1], epochs=2))
    assert not result.error
    assert result.learned
    assert result.undisturbed
    assert result.finite
    assert result.pointing["ig"] >= 0.5
    assert result.times["ig"] > 1.5


def test_a_map_beside_the_cause_is_not_useful() -> None:
    result = one_line.run(replace(SETUPS["MLP"][1], epochs=1, cause=nowhere), seed=1)
    assert set(result.pointing.values()) == {0.0}
    assert not result.useful
    assert not result.learned


def test_pictures_have_numbers_for_names_and_their_key_lies_elsewhere(tmp_path: Path) -> None:
    result = one_line.run(replace(SETUPS["small CNN"][1], epochs=1))
    assert set(result.pictures) == {f"explain_maps/{name}" for name in ("overview", *result.pointing)}
    one_line.write_pictures({"small CNN": result}, tmp_path / "seen")
    files = sorted((tmp_path / "seen").iterdir())
    assert [file.name for file in files] == [f"{i:03}.png" for i in range(1, len(files) + 1)]
    key = json.loads((tmp_path / "seen-key.json").read_text())
    for file in files:
        assert key[file.stem]["set-up"] == "small CNN"
        assert file.read_bytes() == result.pictures[key[file.stem]["tag"]]
        assert b"CNN" not in file.read_bytes()


def test_there_are_set_ups_of_every_modality() -> None:
    known = {"text", "tabular", "series", "images", "dense", "tasks", "volumes", "detection"}
    assert {modality for modality, _ in SETUPS.values()} >= known


@pytest.mark.parametrize("name", list(SETUPS))
def test_every_probe_sample_has_a_cause(name: str) -> None:
    data = SETUPS[name][1].data(16, torch.Generator().manual_seed(0))
    collate = SETUPS[name][1].collate
    batch = (collate or default_collate)([data[i] for i in range(16)])
    probe = samples_of(batch)
    *inputs, labels = batch.values() if isinstance(batch, dict) else batch
    known = (as_tuple(probe.inputs), probe.targets) if collate else (tuple(inputs), labels)
    masks = SETUPS[name][1].cause(*known)
    assert torch.cat([flat(mask) for mask in masks], 1).any(1).all()
