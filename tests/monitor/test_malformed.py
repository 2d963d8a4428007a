"""Whatever is wrong with what a user gives is answered before the first training batch, by an error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import Alert, ExplanationMonitor, Probe, ProbeSelection
from lightning_explain import methods as m
from lightning_explain import metrics as q
from networks import digits
from training import QUIET, DigitModule, trainer

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore::UserWarning")]

NAN, INF = float("nan"), float("inf")
X, Y = (part[:4] for part in digits())
CALM = {"methods": {"saliency": m.Saliency(abs=False)}, "metrics": {"concentration": q.Concentration()}}


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 10))


class Begun(pl.Callback):
    """Sees the first batch."""

    def __init__(self) -> None:
        self.batches = 0

    def on_train_batch_start(self, *arguments: Any) -> None:
        self.batches += 1


def ip(**arguments: Any) -> dict[str, Any]:
    """A monitor with a method in YAML's words."""
    return {"methods": {"it": arguments}}


def q_(**arguments: Any) -> dict[str, Any]:
    return {"metrics": {"it": arguments}}


def alert(**arguments: Any) -> dict[str, Any]:
    return {"alerts": [{"metric": "concentration/saliency", **arguments}]}


def made(**arguments: Any) -> Any:
    """A probe that is made when the case runs, for it may not get that far."""
    return lambda: {"probe": Probe(**{"inputs": X, "targets": Y, **arguments})}


def chosen(**arguments: Any) -> Any:
    return lambda: {"probe": ProbeSelection(**arguments)}


MASKED = {"metrics": ["RelevanceMass"]}

# What is given to the monitor, and a word that the error must hold: the argument's name.
MALFORMED: list[tuple[Any, str]] = [
    # names, times and choices
    ({"name": ""}, "name"),
    ({"name": 3}, "name"),
    ({"name": "/a"}, "name"),
    ({"name": "a\x00b"}, "name"),
    ({"name": "a" * 201}, "name"),
    ({"name": ".."}, "name"),
    ({"name": None}, "name"),
    ({"hook": "epoch_end"}, "hook"),
    ({"hook": None}, "hook"),
    ({"hook": ["train_epoch_end"]}, "hook"),
    ({"on_error": "ignore"}, "on_error"),
    ({"on_error": True}, "on_error"),
    ({"every_n_epochs": 0}, "every_n_epochs"),
    ({"every_n_epochs": -1}, "every_n_epochs"),
    ({"every_n_epochs": 1.5}, "every_n_epochs"),
    ({"every_n_epochs": True}, "every_n_epochs"),
    ({"every_n_epochs": "2"}, "every_n_epochs"),
    ({"every_n_train_steps": 0}, "every_n_train_steps"),
    ({"every_n_train_steps": NAN}, "every_n_train_steps"),
    ({"every_n_train_steps": 2, "every_n_epochs": 1}, "exclude"),
    ({"every_n_train_steps": 2, "hook": "validation_epoch_end"}, "exclude"),
    ({"max_overhead": 0}, "max_overhead"),
    ({"max_overhead": -0.1}, "max_overhead"),
    ({"max_overhead": NAN}, "max_overhead"),
    ({"max_overhead": INF}, "max_overhead"),
    ({"max_overhead": "5%"}, "max_overhead"),
    ({"max_overhead": True}, "max_overhead"),
    ({"max_examples_per_pass": 0}, "max_examples_per_pass"),
    ({"max_examples_per_pass": "all"}, "max_examples_per_pass"),
    ({"max_examples_per_pass": 2.0}, "max_examples_per_pass"),
    ({"max_examples_per_pass": True}, "max_examples_per_pass"),
    ({"max_examples_per_pass": None}, "max_examples_per_pass"),
    ({"seed": "0"}, "seed"),
    ({"seed": -1}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"seed": None}, "seed"),
    ({"at_start": "yes"}, "at_start"),
    ({"enabled": 1}, "enabled"),
    ({"save_probe": None}, "save_probe"),
    ({"save_reports": "no"}, "save_reports"),
    ({"forward_fn": 3}, "forward_fn"),
    ({"output_fn": "logits"}, "output_fn"),
    ({"batch_fn": 7}, "batch_fn"),
    # targets
    ({"target": "lable"}, "target"),
    ({"target": 10}, "target"),
    ({"target": -11}, "target"),
    ({"target": 1.0}, "target"),
    ({"target": True}, "target"),
    ({"target": (1, 2)}, "target"),
    ({"target": None}, "target"),
    ({"target": lambda outputs: outputs}, "target"),
    ({"target": lambda outputs: 3}, "target"),
    ({"target": 2**70}, "target"),
    ({"target": -(2**70)}, "target"),
    ({"target": (2**70,)}, "target"),
    ({"target": lambda outputs: outputs[:, 99]}, "target"),
    ({"target": lambda outputs: outputs["logits"]}, "target"),
    ({"target": lambda outputs: outputs @ torch.ones(3)}, "target"),
    ({"target": lambda outputs, sample, labels: outputs[:, 0]}, "target"),
    ({"target": lambda outputs: outputs.detach()[:, 0]}, "target"),
    ({"target": lambda outputs: outputs.argmax(1)}, "target"),
    ({"target": lambda outputs: torch.rand(len(outputs))}, "target"),
    ({"target": lambda outputs: torch.tensor([sample[0].item() for sample in outputs])}, "target"),
    # methods
    ({"methods": "Saliency"}, "methods"),
    ({"methods": 3}, "methods"),
    ({"methods": ["Salience"]}, "Salience"),
    ({"methods": ["Saliency", "Saliency"]}, "twice"),
    ({"methods": {"": "Saliency"}}, "methods"),
    ({"methods": {"a\x00b": "Saliency"}}, "methods has the key 'a\\x00b', which contains a control character"),
    ({"methods": {"a\nb": "Saliency"}}, "methods has the key 'a\\nb', which contains a control character"),
    (
        {"methods": {"\ud800": "Saliency"}},
        "methods has the key '\\ud800', which contains a control character or a lone",
    ),
    ({"methods": {"a" * 201: "Saliency"}}, "which has 201 bytes in UTF-8, more than the 200 allowed"),
    ({"metrics": {"\u00e4" * 101: "Concentration"}}, "which has 202 bytes in UTF-8, more than the 200 allowed"),
    ({"metrics": {"a\tb": "Concentration"}}, "metrics has the key 'a\\tb', which contains a control character"),
    ({"methods": {3: "Saliency"}}, "methods"),
    ({"methods": {"a": 3}}, "methods"),
    ({"methods": {"a": "Saliency", "A": "Saliency"}}, "methods"),
    ({"methods": {"a": {"n_steps": 3}}}, "methods"),
    (ip(name="Saliency", absolute=True), "absolute"),
    (ip(name="Saliency", abs="no"), "abs"),
    (ip(name="Saliency", abs=None), "abs"),
    (ip(name="IntegratedGradients", n_steps=0), "n_steps"),
    (ip(name="IntegratedGradients", n_steps=-3), "n_steps"),
    (ip(name="IntegratedGradients", n_steps=2.5), "n_steps"),
    (ip(name="IntegratedGradients", n_steps=True), "n_steps"),
    (ip(name="IntegratedGradients", method="simpson"), "method"),
    (ip(name="IntegratedGradients", baselines="blak"), "baselines"),
    (ip(name="IntegratedGradients", baselines="black"), "normalization"),
    (ip(name="IntegratedGradients", baselines={"a": 1}), "baselines"),
    (ip(name="IntegratedGradients", baselines=torch.zeros(1, 1, 9, 9)), "baselines"),
    (ip(name="IntegratedGradients", baselines=[0, 0]), "baselines"),
    (ip(name="IntegratedGradients", baselines=NAN), "baselines"),
    (ip(name="IntegratedGradients", multiply_by_inputs="yes"), "multiply_by_inputs"),
    (ip(name="GradientShap", n_samples=0), "n_samples"),
    (ip(name="GradientShap", stdevs=-1.0), "stdevs"),
    (ip(name="GradientShap", stdevs=NAN), "stdevs"),
    (ip(name="GradientShap", stdevs="big"), "stdevs"),
    (ip(name="GradientShap", baselines=torch.zeros(2, 3)), "baselines"),
    (ip(name="NoiseTunnel", nt_samples=0), "nt_samples"),
    (ip(name="NoiseTunnel", nt_type="smooth"), "nt_type"),
    (ip(name="NoiseTunnel", attribution_method=3), "attribution_method"),
    (ip(name="NoiseTunnel", attribution_method={"name": "Nothing"}), "attribution_method"),
    (ip(name="LayerGradCam", layer="layer4"), "layer4"),
    (ip(name="LayerGradCam", layer=4), "layer"),
    (ip(name="LayerGradCam", layer=""), "layer"),
    (ip(name="LayerGradCam", reshape="token"), "reshape"),
    (ip(name="LayerGradCam", reshape=[5, 5]), "reshape"),
    (ip(name="LayerConductance", layer="net.0", n_steps=0), "n_steps"),
    (ip(name="LayerIntegratedGradients", layer="net.9"), "net.9"),
    (ip(name="NeuronGradient", layer="net.0", neuron_selector=[9, 9, 9]), "neuron_selector"),
    (ip(name="NeuronGradient", layer="net.0", neuron_selector="all"), "neuron_selector"),
    (ip(name="Occlusion", sliding_window_shapes=[1, 9, 9]), "sliding_window_shapes"),
    (ip(name="Occlusion", sliding_window_shapes=[3, 3]), "sliding_window_shapes"),
    (ip(name="Occlusion", sliding_window_shapes=[0, 1, 1]), "sliding_window_shapes"),
    (ip(name="Occlusion", sliding_window_shapes=[1, 2, 2], strides=0), "strides"),
    (ip(name="Occlusion", sliding_window_shapes=[1, 2, 2], strides=[1, 4, 4]), "strides"),
    (ip(name="FeatureAblation", feature_mask={"grid": 0}), "feature_mask"),
    (ip(name="FeatureAblation", feature_mask={"grd": 2}), "feature_mask"),
    (ip(name="FeatureAblation", feature_mask=torch.zeros(1, 1, 7, 7, dtype=torch.long)), "feature_mask"),
    (ip(name="FeatureAblation", feature_mask=torch.zeros(1, 1, 8, 8)), "feature_mask"),
    (ip(name="ShapleyValues"), "feature_mask"),
    (ip(name="ShapleyValueSampling", n_samples=0), "n_samples"),
    (ip(name="DeepLift", eps=0), "eps"),
    (ip(name="DeepLift", eps=NAN), "eps"),
    (ip(name="DeepLift", baselines="probe"), "baselines"),
    (ip(name="Lime", n_samples="many"), "n_samples"),
    (ip(name="Lime", n_samples=1), "n_samples=1); give a whole number of at least 2"),
    (ip(name="KernelShap", n_samples=1), "n_samples=1); give a whole number of at least 2"),
    (ip(name="NoiseTunnel", nt_type="vargrad", nt_samples=1), "nt_samples=1); give a whole number of at least 2"),
    (made(inputs=X.to_sparse()), "inputs[0]=...) has the layout sparse_coo"),
    (made(targets=Y.to_sparse()), "targets=...) has the layout sparse_coo"),
    # metrics
    ({"metrics": "Infidelity"}, "metrics"),
    ({"metrics": ["Infidelty"]}, "Infidelty"),
    ({"metrics": {"saliency": "Concentration"}}, "saliency"),
    ({"metrics": {"nonfinite": "Concentration"}}, "metrics"),
    ({"metrics": ["Saliency"]}, "metric"),
    (q_(name="Infidelity", n_perturb_samples=0), "n_perturb_samples"),
    (q_(name="Infidelity", n_perturb_samples=True), "n_perturb_samples"),
    (q_(name="Infidelity", perturb_func="cube"), "perturb_func"),
    (q_(name="Infidelity", normalize="yes"), "normalize"),
    (q_(name="Infidelity", stdev=0), "stdev"),
    (q_(name="SensitivityMax", perturb_radius=0), "perturb_radius"),
    (q_(name="SensitivityMax", perturb_radius=NAN), "perturb_radius"),
    (q_(name="SensitivityMax", norm_ord="three"), "norm_ord"),
    (q_(name="Deletion", n_steps=0), "n_steps"),
    (q_(name="PointingGame", tolerance=-1), "tolerance"),
    (q_(name="Randomization", n_layers=0), "n_layers"),
    (q_(name="Randomization", methods=["ig"]), "'ig'"),
    (q_(name="Randomization", methods="saliency"), "methods"),
    (q_(name="Drift", abs=1), "abs"),
    (q_(name="Drift", ssim="no"), "ssim"),
    (q_(name="Drift", methods=["ig"]), "'ig'"),
    (q_(name="Agreement", abs=None), "abs"),
    ({"metrics": ["RelevanceMass"]}, "masks"),
    # samples
    ({"probe": 16}, "probe"),
    ({"probe": "all"}, "probe"),
    ({"probe": []}, "indices"),
    ({"probe": [0, 0]}, "indices"),
    ({"probe": [-1]}, "indices"),
    ({"probe": [10_000]}, "10000"),
    ({"probe": [1.5]}, "indices"),
    ({"probe": {"count": 4}}, "probe"),
    (chosen(count=0), "count"),
    (chosen(count=-1), "count"),
    (chosen(count="4"), "count"),
    (chosen(count=True), "count"),
    (chosen(source="valid"), "source"),
    (chosen(seed=-1), "seed"),
    (chosen(per_class=1), "per_class"),
    (chosen(dataloader_idx=1), "dataloader_idx"),
    (chosen(per_class=True, indices=[1]), "per_class"),
    (made(inputs=X.numpy()), "inputs"),
    (made(inputs=()), "inputs"),
    (made(inputs=X[:0], targets=Y[:0]), "inputs"),
    (made(inputs=torch.tensor(1.0)), "inputs"),
    (made(inputs=(X, Y[:2])), "inputs"),
    (made(inputs=X[:, :, :5]), "inputs"),
    (made(inputs=X.repeat(1, 3, 1, 1)), "inputs"),
    (made(inputs=X[:, 0, 0]), "inputs"),
    (made(inputs=X.long()), "inputs"),
    (made(inputs=(X, X)), "inputs"),
    (made(targets=[1, 2, 3, 4]), "targets"),
    (made(targets=Y[:2]), "targets"),
    (made(targets=Y + 100), "target"),
    (made(targets=Y - 100), "target"),
    (made(targets=Y.float() + 0.5), "target"),
    (made(ids=[0, 1, 2, 3]), "ids"),
    (made(ids=torch.tensor([0, 0, 1, 2])), "ids"),
    (made(ids=torch.rand(4)), "ids"),
    (made(ids=torch.zeros(4, 2, dtype=torch.long)), "ids"),
    (lambda: {**made(masks=torch.ones(4, 5, 5, dtype=torch.bool))(), **MASKED}, "masks"),
    (lambda: {**made(masks=torch.ones(4, 1, 8, 8, dtype=torch.bool))(), **MASKED}, "masks"),
    (lambda: {**made(masks=torch.rand(4, 8, 8))(), **MASKED}, "masks"),
    (made(masks="all"), "masks"),
    (made(forward_args=X), "forward_args"),
    (made(forward_args=(1,)), "forward_args"),
    (made(class_names=3), "class_names"),
    (made(class_names="cat"), "class_names"),
    # pictures
    ({"class_names": 3}, "class_names"),
    ({"class_names": "cat"}, "class_names"),
    ({"normalization": 3}, "normalization"),
    ({"normalization": (1,)}, "normalization"),
    ({"normalization": ("a", "b")}, "normalization"),
    ({"normalization": (0.5, 0)}, "normalization"),
    ({"normalization": (0.5, NAN)}, "normalization"),
    ({"normalization": (NAN, 1.0)}, "normalization"),
    ({"normalization": ([0.1, 0.2, 0.3], [1, 1, 1])}, "normalization"),
    ({"normalization": ([0.1, 0.2], [1, 1, 1])}, "normalization"),
    ({"panels": []}, "panels"),
    ({"panels": "heat_map"}, "panels"),
    ({"panels": [("heatmap", "all")]}, "heatmap"),
    ({"panels": [("heat_map", "both")]}, "both"),
    ({"panels": [("heat_map",)]}, "panels"),
    ({"panels": [3]}, "panels"),
    ({"panels": {"ig": [("heat_map", "all")]}}, "'ig'"),
    ({"cmap": "virdis"}, "virdis"),
    ({"cmap": 3}, "cmap"),
    ({"cmap": [(0.5, "red")]}, "cmap"),
    ({"cmap": [(0, "red"), (1, "rot")]}, "rot"),
    ({"cmap": {"ig": "jet"}}, "'ig'"),
    ({"outlier_perc": -1}, "outlier_perc"),
    ({"outlier_perc": 101}, "outlier_perc"),
    ({"outlier_perc": NAN}, "outlier_perc"),
    ({"outlier_perc": "2"}, "outlier_perc"),
    ({"scale": "each"}, "scale"),
    ({"outlier_perc": {"ig": 2}}, "'ig'"),
    # alerts
    (alert(), "above"),
    (alert(above=NAN), "above"),
    (alert(above="0.3"), "above"),
    (alert(above=True), "above"),
    (alert(above=1, below=0), "below"),
    (alert(times=0), "times"),
    (alert(above=1, patience=0), "patience"),
    (alert(above=1, patience=1.5), "patience"),
    (alert(above=1, action="email"), "action"),
    (alert(above=1, action="wandb"), "wandb"),
    (alert(over=1), "over"),
    ({"alerts": 3}, "alerts"),
    ({"alerts": [3]}, "alerts"),
    ({"alerts": [{"above": 1}]}, "metric"),
    ({"alerts": [Alert("concentration/ig", above=1)]}, "concentration/ig"),
]


def fit(given: Any, root: Path, begun: Begun) -> None:
    arguments = given() if callable(given) else given
    watch = ExplanationMonitor(**{**CALM, "probe": ProbeSelection(count=2), **arguments})
    run = trainer(root, watch, begun, limit_train_batches=1, limit_val_batches=0)
    data = DataLoader(TensorDataset(X, Y), batch_size=2)
    run.fit(DigitModule(net()), data, data)


@pytest.mark.parametrize(("given", "word"), MALFORMED, ids=[f"{i}-{word}" for i, (_, word) in enumerate(MALFORMED)])
def test_what_is_malformed_is_refused_before_the_first_batch(given: Any, word: str, tmp_path: Path) -> None:
    begun = Begun()
    with pytest.raises((ValueError, TypeError, ImportError, MisconfigurationException)) as caught:
        fit(given, tmp_path, begun)
    assert begun.batches == 0
    assert word in str(caught.value)


def test_what_is_not_malformed_trains(tmp_path: Path) -> None:
    begun = Begun()
    fit({}, tmp_path, begun)
    assert begun.batches == 1
    assert len(MALFORMED) > 200
