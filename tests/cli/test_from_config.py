"""``lightning-explain doctor``: from a file to a verdict on each method."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

from lightning_explain import methods as m
from lightning_explain.cli.from_config import configured_model
from lightning_explain.cli.main import app

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "doctor.yaml"


class Functional(nn.Module):
    """A ReLU that Captum does not see."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4 * 36, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.first(x)).flatten(1))


class Samples:
    """The part of a data module that is asked for samples."""

    def prepare_data(self) -> None:
        self.prepared = True

    def setup(self, stage: str) -> None:
        assert self.prepared
        self.stage = stage

    def train_dataloader(self) -> Any:
        raise AssertionError("the validation samples were asked for")

    def val_dataloader(self) -> list[DataLoader[Any]]:
        assert self.stage == "fit"
        return [DataLoader(samples())]


def samples(count: int = 6) -> TensorDataset:
    return TensorDataset(torch.ones(count, 1, 8, 8), torch.arange(count) % 3)


def lines(config: Any, *overrides: str, code: int) -> list[str]:
    """What the command prints, for a file or for what is written to one."""
    path = config
    if not isinstance(config, Path):
        path = Path("config.yaml")
        path.write_text(config if isinstance(config, str) else OmegaConf.to_yaml(OmegaConf.create(config)))
    environment = {"COLUMNS": "250", "NO_COLOR": "1", "TERMINAL_WIDTH": "250"}
    result = CliRunner().invoke(app, ["doctor", str(path), *overrides], env=environment)
    assert result.exit_code == code, result.output
    return result.output.splitlines()


def verdicts(shown: Sequence[str]) -> dict[str, str]:
    cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in shown if line.startswith("│")]
    return {method: state for method, state in cells if method}


def tiny(**other: Any) -> dict[str, Any]:
    return {"model": {"_target_": f"{__name__}.Functional"}, "input_shape": [1, 8, 8], **other}


def test_the_example_is_examined_and_nothing_is_refused() -> None:
    found = verdicts(lines(EXAMPLE, code=0))
    assert found == {"ig": "fine", "cam": "fine", "guided": "fine", "deep_lift": "fine", "smooth": "fine"}


REFUSED = {"attention_rollout", "lrp", "layer_lrp", "shapley_values"}


def test_without_methods_all_are_examined_and_a_refusal_is_an_exit_code() -> None:
    shown = lines(EXAMPLE, "~monitor.methods", "input_shape=[3,32,32]", code=1)
    found = verdicts(shown)
    assert len(found) == len(m.__all__) == 41
    assert {name for name, state in found.items() if state == "refused"} == REFUSED
    assert any("LRP does not see what is computed outside of layers: add in 'layer1.0'" in line for line in shown)
    assert any("use IntegratedGradients" in line for line in shown)


def test_a_functional_relu_is_guided() -> None:
    shown = lines(tiny(monitor={"methods": ["Saliency", "GuidedBackprop"]}), code=0)
    assert verdicts(shown) == {"saliency": "fine", "guided_backprop": "fine"}


def test_methods_that_find_no_layer_are_refused_with_the_others_examined() -> None:
    config = {"model": {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 2}, "input_shape": [4]}
    config["monitor"] = {"methods": ["LayerGradCam", "Saliency"]}
    shown = lines(config, code=1)
    assert verdicts(shown) == {"layer_grad_cam": "refused", "saliency": "fine"}
    assert any("no module of this model returns a map" in line and "give layer=..." in line for line in shown)


def test_a_composed_configuration_is_examined_with_its_own_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "lightning_explain.demo.digits._digits", lambda: (torch.rand(2000, 1, 28, 28), torch.arange(2000) % 10)
    )
    found = verdicts(lines(ROOT / "configs" / "train.yaml", "monitor=full", code=0))
    assert found["ig"] == found["guided_backprop"] == found["smoothgrad"] == "fine"


@pytest.mark.parametrize("data", ["Samples", "samples"])
def test_samples_are_those_of_the_data(data: str) -> None:
    Path("config.yaml").write_text(
        OmegaConf.to_yaml(
            tiny(input_shape=None, data={"_target_": f"{__name__}.{data}"}, monitor={"probe": {"indices": [4, 1]}})
        )
    )
    _, _, probe = configured_model(Path("config.yaml"))
    assert probe.sample_ids.tolist() == [4, 1]
    assert probe.targets.tolist() == [1, 1]


def test_several_inputs_have_a_shape_each() -> None:
    Path("config.yaml").write_text(OmegaConf.to_yaml(tiny(input_shape=[[1, 8, 8], [5]])))
    _, _, probe = configured_model(Path("config.yaml"))
    assert [tuple(x.shape[1:]) for x in probe.inputs] == [(1, 8, 8), (5,)]


def test_a_module_in_the_current_directory_is_found() -> None:
    Path("mine.py").write_text("import torch\n\nclass Net(torch.nn.Linear):\n    pass\n")
    config = {"model": {"_target_": "mine.Net", "in_features": 4, "out_features": 2}, "input_shape": [4]}
    try:
        assert verdicts(lines({**config, "monitor": {"methods": ["Saliency"]}}, code=0)) == {"saliency": "fine"}
    finally:
        sys.modules.pop("mine", None)
    assert str(Path.cwd()) not in sys.path


WRONG = {
    "an import path": (
        tiny(model={"_target_": "torchvision.models.resnt18"}),
        "model cannot be built: Error locating target 'torchvision.models.resnt18'",
    ),
    "an argument": (
        tiny(model={"_target_": f"{__name__}.Functional", "size": 3}),
        "unexpected keyword argument 'size'",
    ),
    "no model": ({"input_shape": [3]}, "model=None names no class; write model: {_target_:"),
    "a model that is text": (tiny(model="resnet18"), "model='resnet18' names no class; write model: {_target_:"),
    "no module": (
        tiny(model={"_target_": "torch.tensor", "data": 2}),
        "model is a Tensor; give what returns a torch.nn.Module",
    ),
    "no samples": (
        tiny(input_shape=None),
        "The configuration has no samples for the model; write input_shape: [3, 64, 64]",
    ),
    "a shape": (tiny(input_shape="3x64x64"), "input_shape='3x64x64'; give the shape of one sample"),
    "a method": (tiny(monitor={"methods": ["Salience"]}), "there is no method 'Salience': did you mean 'Saliency'"),
    "a key": (tiny(monitor={"method": []}), "Unknown key 'method' in the configuration of the monitor"),
    "a group": ("defaults: [model: resnet]\n", "cannot be composed: In 'config.yaml': Could not find 'model/resnet'"),
    "what is no YAML": ("model: [\n", "config.yaml cannot be composed: "),
    "another size": (
        tiny(input_shape=[1, 9, 9]),
        "on samples of shape [(4, 1, 9, 9)]: ValueError: The model cannot be called with",
    ),
}


@pytest.mark.parametrize(("config", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_told_in_a_sentence(config: Any, message: str) -> None:
    shown = "\n".join(lines(config, code=2))
    assert message in shown
    assert "Traceback" not in shown


def test_a_file_that_is_not_there_is_told() -> None:
    assert "'nowhere.yaml' does not exist" in "\n".join(lines(Path("nowhere.yaml"), code=2))


def test_without_hydra_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hydra", None)
    assert "pip install 'lightning-explain[hydra]'" in "\n".join(lines(EXAMPLE, code=2))


class Trained(pl.LightningModule):
    """A module whose arguments a checkpoint holds."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


NET = [f"{__name__}:Trained", "--input-shape", "5", "monitor.methods=[Saliency,LayerGradCam]"]


def saved(path: str = "x.ckpt", **other: Any) -> Trained:
    module = Trained(5)
    content = {"state_dict": module.state_dict(), "hyper_parameters": {"width": 5}, "epoch": 0, "global_step": 2}
    torch.save(content | other, path)
    return module


def doctor(*arguments: str, code: int) -> str:
    result = CliRunner().invoke(app, ["doctor", *arguments], env={"NO_COLOR": "1", "COLUMNS": None})
    assert result.exit_code == code, result.output
    return result.output


def test_a_model_is_examined_by_its_import_path_and_a_shape() -> None:
    assert verdicts(doctor(*NET, "model.width=5", code=1).splitlines()) == {
        "saliency": "fine",
        "layer_grad_cam": "refused",
    }
    found = json.loads(doctor(*NET, "model.width=5", "--format", "json", code=1))
    assert [(one["method"], one["state"]) for one in found] == [("saliency", "fine"), ("layer_grad_cam", "refused")]
    assert "| saliency | fine |  |  |" in doctor(*NET, "model.width=5", "--format", "markdown", code=1)


def test_a_checkpoint_gives_weights_and_what_is_not_said() -> None:
    module = saved()
    doctor(*NET, "--checkpoint", "x.ckpt", code=1)
    model, _, probe = configured_model(Path(NET[0]), ["input_shape=[5]"], checkpoint=Path("x.ckpt"))
    assert torch.equal(model.head.weight, module.head.weight)
    assert tuple(probe.inputs[0].shape if isinstance(probe.inputs, tuple) else probe.inputs.shape) == (4, 5)


def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line() -> None:
    saved()
    assert "'x.ckpt' does not fit the model: RuntimeError" in doctor(
        *NET, "model.width=4", "--checkpoint", "x.ckpt", code=2
    )
    assert "model is a Functional; give the LightningModule" in doctor(
        f"{__name__}:Functional", "--input-shape", "1,8,8", "--checkpoint", "x.ckpt", code=2
    )
    saved("y.ckpt", more=Functional())
    assert "which may run code; if you trust it" in doctor(*NET, "model.width=5", "--checkpoint", "y.ckpt", code=2)


IMPORTS = {
    "a name": (
        ["torch.nn:Linaer", "--input-shape", "3"],
        "'torch.nn:Linaer' cannot be imported: module 'torch.nn' has",
    ),
    "a package": (["nowhere:Net"], "'nowhere:Net' cannot be imported: No module named 'nowhere'"),
    "an argument": (["torch.nn:Linear", "model.size=3"], "'torch.nn:Linear' cannot be built: TypeError"),
    "no key": (
        ["torch.nn:ReLU", "size=3"],
        "'size=3' is not an override; write key=value, with a key of model, monitor",
    ),
    "no samples": (["torch.nn:ReLU"], "on the command line --input-shape 3,64,64"),
    "a shape": (["torch.nn:ReLU", "--input-shape", "3x4"], "input_shape='3x4'; give the shape of one sample"),
}


@pytest.mark.parametrize(("arguments", "message"), IMPORTS.values(), ids=IMPORTS)
def test_a_wrong_import_path_is_told_in_a_sentence(arguments: list[str], message: str) -> None:
    assert message in doctor(*arguments, code=2)


def test_a_plan_tells_seconds_beside_passes_in_every_format() -> None:
    Path("config.yaml").write_text(
        OmegaConf.to_yaml(tiny(monitor={"methods": ["Saliency"], "metrics": [], "probe": {"count": 2}}))
    )
    shown = {
        form: CliRunner()
        .invoke(app, ["methods", "--plan", "config.yaml", "--format", form], env={"COLUMNS": None})
        .output
        for form in ("table", "json", "markdown")
    }
    (share,) = json.loads(shown["json"])["shares"]
    assert share["methods"] == "saliency"
    assert (share["forward"], share["backward"]) == (1, 1)
    assert share["seconds"] > 0
    assert "| saliency | AtInput | 1 | 1 | 1 |" in shown["markdown"]
    assert "2 samples: 2 forward, 2 backward, at most about" in shown["table"]


class Two(nn.Module):
    """The sum of what it gets, which shows where each part went."""

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        return torch.stack([image.sum(1), 10 * reference.sum(1)], 1)


def named() -> list[dict[str, Any]]:
    return [{"reference": torch.ones(2), "image": torch.zeros(3) + i, "label": i % 2, "path": str(i)} for i in range(6)]


def test_batches_are_bound_by_name() -> None:
    Path("config.yaml").write_text(
        OmegaConf.to_yaml(
            {
                "model": {"_target_": f"{__name__}.Two"},
                "data": {"_target_": f"{__name__}.named"},
                "monitor": {"methods": ["InputXGradient"], "metrics": []},
            }
        )
    )
    model, explainer, probe = configured_model(Path("config.yaml"))
    assert probe.parameters == (("image",), ("reference",))
    report = explainer.check(model, probe).explain(model, probe)
    assert torch.equal(report.outputs, model(*probe.inputs))
