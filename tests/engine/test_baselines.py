"""A tensor with a baseline for each sample of the probe, in the probe's order, wherever the sample is explained."""

from __future__ import annotations

import pytest
import torch
from captum import attr as captum

from comparing import distance
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from networks import samples, trained

WINDOW = (1, 2, 2)
PAIRS = {
    "ig": (m.IntegratedGradients, captum.IntegratedGradients, {"n_steps": 5}),
    "gradient_times": (m.IntegratedGradients, captum.IntegratedGradients, {"n_steps": 3, "method": "riemann_left"}),
    "feature_ablation": (m.FeatureAblation, captum.FeatureAblation, {}),
    "occlusion": (m.Occlusion, captum.Occlusion, {"sliding_window_shapes": WINDOW}),
}


@pytest.mark.filterwarnings("ignore:(Setting|Input Tensor):UserWarning")
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("limit", [1, 3, 64])
def test_each_sample_has_its_own_baseline(name: str, limit: int) -> None:
    ours, theirs, options = PAIRS[name]
    model, (x, y) = trained(), samples(7)
    # Numbers that are neither in order nor positions.
    ids = torch.tensor([40, 3, 17, 5, 99, 8, 21])
    baselines = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    method = ours(baselines=baselines, **options)
    found = explain(
        model,
        Probe(x, y, ids=ids),
        {"it": method},
        [q.SensitivityMax(n_perturb_samples=2)],
        max_examples_per_pass=limit,
    ).attributions["it"]
    expected = theirs(model.eval()).attribute(x, target=y, baselines=baselines, **options)
    assert distance(found, expected) <= 1e-5


def test_deeplift_adds_up_to_what_each_own_baseline_leaves() -> None:
    model, (x, y) = trained().eval().double(), samples(7)
    baselines = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    found = explain(model, Probe(x, y), {"it": m.DeepLift(baselines=baselines)}, [], max_examples_per_pass=8)
    with torch.no_grad():
        gap = (model(x.double()) - model(baselines.double())).gather(1, y[:, None]).squeeze(1)
    assert torch.allclose(found.attributions["it"].flatten(1).sum(1), gap, atol=1e-9)


def test_other_numbers_of_baselines_are_refused_with_what_is_allowed() -> None:
    x, y = samples(7)
    method = m.IntegratedGradients(baselines=torch.rand(4, *x.shape[1:]))
    with pytest.raises(ValueError, match=r"first dimension of 7: an entry for each sample of the probe"):
        explain(trained(), Probe(x, y), {"it": method}, [])


def test_layer_baselines_are_for_all_samples() -> None:
    x, y = samples(4)
    model = trained()
    layer = next(name for name, module in model.named_modules() if isinstance(module, torch.nn.Conv2d))
    method = m.LayerFeatureAblation(layer=layer, layer_baselines=torch.rand(4, 1, 1, 1))
    with pytest.raises(ValueError, match=r"layer_baselines has shape \(4, 1, 1, 1\)"):
        explain(model, Probe(x, y), {"it": method}, [])


def test_an_unknown_way_of_upsampling_is_refused_when_it_is_given() -> None:
    with pytest.raises(ValueError, match=r"interpolate_mode='bilinaer'.*did you mean 'bilinear'"):
        m.GuidedGradCam(interpolate_mode="bilinaer")


def test_a_baseline_that_requires_gradients_is_a_baseline() -> None:
    net, start = torch.nn.Linear(3, 1), torch.zeros(1, 3, requires_grad=True)
    methods = {
        "kernel": m.KernelShap(baselines=start),
        "lime": m.Lime(baselines=start),
        "shapley": m.ShapleyValues(baselines=start),
        "ablation": m.FeatureAblation(baselines=start),
    }
    found = explain(net, Probe(torch.ones(2, 3)), methods, [], target=0).attributions
    torch.testing.assert_close(found["kernel"], found["shapley"], rtol=1e-3, atol=1e-4)
    assert not any(value.requires_grad for value in found.values())
