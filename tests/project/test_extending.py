"""A user's own method, metric, target and sink, as docs/how-to/extending.md shows them, work without a change to the package."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import pytest
import torch

from lightning_explain import Method, Probe, Sink, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.probe import Attribution, Samples
from networks import samples, trained
from training import QUIET, loader

pytestmark = QUIET
PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "extending.md").read_text(encoding="utf-8")
LONGEST = 10


@pytest.fixture
def names(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    quiet = {"default_root_dir": tmp_path, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        code = block.replace("max_epochs=2)", f"max_epochs=2, enable_progress_bar=False, **{quiet!r})")
        exec(code.replace(repr(tmp_path), repr(str(tmp_path))), found)
    return found


def test_each_class_on_the_page_has_at_most_ten_lines_of_work() -> None:
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        body = [line for line in block.splitlines() if line.startswith("    ") and '"""' not in line]
        assert len(body) <= LONGEST + 1


def test_they_work_together_in_a_training(names: dict[str, Any]) -> None:
    module = L.LightningModule()
    module.net = trained()
    module.forward = module.net.forward
    module.training_step = lambda batch, batch_idx: torch.nn.functional.cross_entropy(module.net(batch[0]), batch[1])
    module.validation_step = lambda batch, batch_idx: None
    module.configure_optimizers = lambda: torch.optim.SGD(module.net.parameters(), 0.01)
    names["trainer"].fit(module, loader(0, 32), loader(100, 24))
    lines = Path("scores.txt").read_text().splitlines()
    assert [line.split()[0] for line in lines] == ["explain", "4", "8"]
    assert "'half_off': {'class': 'HalfOff'}" in lines[0]
    assert "explain/center/half_off" in lines[1]
    assert 0 <= float(names["trainer"].callback_metrics["explain/center/half_off"]) <= 1


def test_a_map_and_a_target_of_ones_own_have_the_right_values(names: dict[str, Any]) -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            s = x.flatten(1).sum(1)
            return torch.stack([s, 0 * s, -s], 1)

    x = torch.rand(3, 1, 8, 8)
    report = explain(
        Sum(), Probe(x), {"it": names["HalfOff"]()}, {"c": names["CenterMass"]()}, target=names["Margin"]()
    )
    halves = torch.cat([part.sum((1, 2, 3), keepdim=True).expand_as(part) for part in x.chunk(2, -1)], -1)
    torch.testing.assert_close(report.attributions["it"], halves)
    assert report.scores["c"]["it"].shape == (3,)


def test_a_subclass_of_any_method_is_that_method() -> None:
    for name in m.__all__:
        base = getattr(m, name)
        mine = type("Mine", (base,), {})
        for attribute in ("place", "backward_rule", "reaches_input", "at_sample", "replaces_layer", "samples_needed"):
            assert getattr(mine, attribute) == getattr(base, attribute)


class LayerShaped(Method):
    """A user's own map of a layer, which it chooses itself."""

    layer_shaped = True

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        return samples.inputs[0][:, :1, ::2, ::2]


@dataclass(frozen=True)
class AtNamedLayer(LayerShaped):
    """The same, of the layer that it is given."""

    place: ClassVar[str] = "layer"
    reaches_input: ClassVar[bool] = False

    layer: str | None = None


@pytest.mark.parametrize(
    "method", [LayerShaped(), AtNamedLayer(), AtNamedLayer("stem")], ids=["none", "default", "named"]
)
def test_a_map_shaped_as_a_layer_lies_on_the_image(method: Method) -> None:
    x, y = samples()
    report = explain(trained(), Probe(x, y), {"it": method}, {"concentration": q.Concentration()})
    assert report.attributions["it"].shape == (len(x), 1, x.shape[2] // 2, x.shape[3] // 2)
    assert report.scores["concentration"]["it"].shape == (len(x),)


def test_no_contract_is_read_with_a_default_and_no_class_by_its_name() -> None:
    package = Path(__file__).parents[2] / "lightning_explain"
    for path in package.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"getattr\((inner|method|metric|self\.attribution_method|sink)\b[^)]*, [^)]*,", text), path
        if path.parent.name == "checks":
            assert not re.search(r"__name__ (==|!=|in|not in) ", text), path
    assert not [path for path in package.rglob("*.py") if "unittest.mock" in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("sinks", ["tensorboard", [q.Infidelity()], Sink], ids=["a word", "no sink", "a class"])
def test_what_is_no_sink_is_refused(names: dict[str, Any], sinks: Any) -> None:
    with pytest.raises(TypeError, match=r"sinks=.*give \"auto\" or a list of Sink objects"):
        names["ExplanationMonitor"](sinks=sinks)
