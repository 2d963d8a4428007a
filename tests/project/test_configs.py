"""The presets of methods and metrics on disk are the ones that ``make docs`` writes."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from lightning_explain import methods as m
from lightning_explain.core.contracts import Method

ROOT = Path(__file__).parents[2]


def load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_configs", ROOT / "docs" / "generate_configs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


generate = load()
PRESETS: dict[Path, str] = generate.presets()


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_preset_on_disk_is_what_its_class_says(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == PRESETS[path], f"{path.name} is not current: run `make docs`."


@pytest.mark.parametrize("group", generate.GROUPS)
def test_no_preset_is_left_of_a_class_that_is_gone(group: str) -> None:
    assert set((generate.CONFIGS / group).iterdir()) == {path for path in PRESETS if path.parent.name == group}


@dataclass(frozen=True)
class Around(Method):
    """Every kind of argument."""

    required: int
    inside: Method = field(default_factory=lambda: m.NoiseTunnel(nt_samples=3))
    shapes: tuple[int, ...] = (1, 2)
    eps: float = 1e-10
    word: str = "null"
    perm_func: Any = None
    hidden: int = field(default=1, init=False)


def test_every_kind_of_argument_is_written_so_that_yaml_reads_it_back() -> None:
    text = generate.preset(Around)
    assert yaml.safe_load(text) == {
        "defaults": [{"/method@inside": "noise_tunnel"}, "_self_"],
        "name": "Around",
        "required": "???",
        "inside": {"nt_samples": 3},
        "shapes": [1, 2],
        "eps": 1e-10,
        "word": "null",
    }


def test_writing_deletes_what_no_class_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for group in generate.GROUPS:
        (tmp_path / group).mkdir()
        (tmp_path / group / "gone.yaml").write_text("name: Gone\n")
    monkeypatch.setattr(generate, "CONFIGS", tmp_path)
    generate.main()
    written = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.yaml")}
    assert written == {path.relative_to(ROOT / "configs"): text for path, text in PRESETS.items()}
