"""Every argument that cannot be is refused when the monitor is made, with what came and what is allowed."""

from __future__ import annotations

import doctest
import warnings
from typing import Any

import captum.attr as captum
import pytest
import torch

from lightning_explain import ExplanationMonitor, Probe, ProbeSelection
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.monitor import callback
from networks import samples

REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no epochs": ({"every_n_epochs": 0}, ValueError, "every_n_epochs=0; give a whole number of at least 1"),
    "negative steps": ({"every_n_train_steps": -5}, ValueError, "every_n_train_steps=-5; give a whole number"),
    "half an epoch": ({"every_n_epochs": 0.5}, ValueError, "every_n_epochs=0.5; give a whole number"),
    "a flag for a count": ({"every_n_epochs": True}, ValueError, "every_n_epochs=True; give a whole number"),
    "both schedules": ({"every_n_epochs": 1, "every_n_train_steps": 5}, ValueError, "exclude each other"),
    "steps after validation": (
        {"every_n_train_steps": 5, "hook": "validation_epoch_end"},
        ValueError,
        'every_n_train_steps and hook="validation_epoch_end" exclude each other',
    ),
    "hook": (
        {"hook": "epoch_end"},
        ValueError,
        "hook='epoch_end'; give one of 'train_epoch_end', 'validation_epoch_end'",
    ),
    "on_error": ({"on_error": "ignore"}, ValueError, "on_error='ignore'; give one of 'warn', 'raise'"),
    "slash at the end": ({"name": "explain/"}, ValueError, "name='explain/'; give a word"),
    "parent folder": ({"name": ".."}, ValueError, r"name='\.\.'; give a word"),
    "no name": ({"name": ""}, ValueError, "name=''; give a word"),
    "no overhead": ({"max_overhead": 0}, ValueError, "max_overhead=0; give None or a share above 0"),
    "overhead in words": ({"max_overhead": "5%"}, ValueError, "max_overhead='5%'; give None or a share"),
    "overhead as a flag": ({"max_overhead": True}, ValueError, "max_overhead=True; give None or a share"),
    "target": ({"target": "lable"}, ValueError, "target='lable': did you mean 'label'"),
    "target as a flag": ({"target": True}, TypeError, "target=True; give target"),
    "no samples a pass": (
        {"max_examples_per_pass": 0},
        ValueError,
        "max_examples_per_pass=0; give a whole number of at least 1, or 'auto'",
    ),
    "probe": ({"probe": "val"}, TypeError, r"probe is a str; give a ProbeSelection, a Probe"),
    "indices": ({"probe": [1, "2"]}, TypeError, r"indices\[1\]='2'\); give a whole number"),
    "negative index": ({"probe": [-1]}, ValueError, r"indices\[0\]=-1\); give a whole number of at least 0"),
    "method": (
        {"methods": ["Salience"]},
        ValueError,
        r"methods\[0\]: there is no method 'Salience': did you mean 'Saliency'",
    ),
    "method itself": ({"methods": m.Saliency}, TypeError, "methods=.*write a list of methods"),
    "metric": (
        {"metrics": {"x": "Infidelty"}},
        ValueError,
        "there is no metric 'Infidelty': did you mean 'Infidelity'",
    ),
    "metric for a method": ({"methods": [q.Infidelity()]}, TypeError, "which is not a method"),
    "panels": ({"panels": [("heatmap", "all")]}, ValueError, "no panel kind 'heatmap': did you mean 'heat_map'"),
    "panels of a method that is not there": (
        {"methods": ["Saliency"], "panels": {"salency": [("heat_map", "all")]}},
        ValueError,
        "panels names a method 'salency': did you mean 'saliency'",
    ),
    "colors of a method that is not there": (
        {"cmap": {"cams": "viridis"}},
        ValueError,
        r"cmap names a method 'cams': did you mean 'cam'\? Use one of 'saliency', 'ig', 'cam', 'ablation', 'default'",
    ),
    "no method": ({"methods": []}, ValueError, r"methods is empty, .*enabled=False"),
    "a method of Captum's": (
        {"methods": {"it": captum.Saliency(torch.nn.ReLU())}},
        TypeError,
        r"methods\['it'\] is captum.attr.Saliency, which is bound to a model; give lightning_explain.methods.Saliency",
    ),
    "tensors for samples": ({"probe": samples(3)}, TypeError, r"made of tensors; give Probe\(inputs, targets\)"),
    "sign of a method": ({"panels": {"ig": [("heat_map", "postive")]}}, ValueError, "did you mean 'positive'"),
    "outliers": ({"outlier_perc": {"ig": 200}}, ValueError, "outlier_perc=200; give a number from 0 to 100"),
}


@pytest.mark.parametrize(("arguments", "error", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_an_argument_that_cannot_be_is_refused(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ExplanationMonitor(**arguments)


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ProbeSelection\(count=0\); give a whole number of at least 1"):
        ProbeSelection(count=0)


@pytest.mark.parametrize(
    "arguments",
    [
        {"probe": [4, 2]},
        {"probe": range(4)},
        {"probe": Probe(*samples(3))},
        {"probe": ProbeSelection(count=3)},
        {"name": "runs/late"},
        {"max_overhead": 2},
        {"target": [1, 2]},
        {"metrics": []},
    ],
    ids=str,
)
def test_arguments_that_can_be_are_taken(arguments: dict[str, Any]) -> None:
    assert ExplanationMonitor(**arguments).last_report is None


def test_given_samples_are_the_monitors_samples_at_once() -> None:
    probe = Probe(*samples(3))
    assert ExplanationMonitor(probe=probe).probe is probe


def test_a_map_without_signs_is_not_scored_silently() -> None:
    with pytest.warns(
        UserWarning, match=r"\['saliency'\] hold no evidence against the output, but \['infidelity'\] need signed maps"
    ):
        ExplanationMonitor(methods=[m.Saliency()], metrics=[q.Infidelity()])


@pytest.mark.parametrize(("signed", "metric"), [(True, q.Infidelity()), (False, q.SensitivityMax())], ids=str)
def test_a_map_that_fits_its_scores_is_not_warned_of(signed: bool, metric: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ExplanationMonitor(methods=[m.Saliency(abs=not signed)], metrics=[metric])


def test_the_example_in_the_docstring_runs() -> None:
    found = doctest.testmod(callback)
    assert found.attempted >= 3
    assert found.failed == 0
