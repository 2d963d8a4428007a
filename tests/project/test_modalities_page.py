"""What docs/how-to/modalities.md shows runs, word for word."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from lightning_explain import ExplanationMonitor
from lightning_explain.targets import Horizon

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "modalities.md").read_text()


def test_its_examples_run_one_after_the_other() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 6
    space: dict[str, object] = {}
    for block in blocks:
        exec(block, space)
    assert space["picture"].shape == (430, 700, 3)  # type: ignore[attr-defined]


def test_its_configuration_makes_a_monitor() -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    monitor = ExplanationMonitor.from_config(yaml.safe_load(block))
    assert monitor._explainer.target == Horizon(-1)
    assert monitor._explainer.modalities.rate == 250.0
