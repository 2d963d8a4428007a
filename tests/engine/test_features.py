from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.core.contracts import ExplainedFunction
from lightning_explain.core.probe import Samples
from lightning_explain.engine.features import Features, check_feature_mask, features_of
from lightning_explain.modalities import guess


def subject_of(*inputs: Tensor, ids: Tensor | None = None) -> ExplainedFunction:
    numbers = torch.arange(len(inputs[0])) if ids is None else ids
    probe = Samples(inputs, inputs, (), numbers, torch.zeros_like(numbers))
    return ExplainedFunction(
        forward=torch.nn.Identity(),
        layer=lambda name: torch.nn.Identity(),
        baseline=lambda spec, samples: samples.clean,
        distribution=lambda spec, samples: samples.clean,
        draws=None,
        limit=4,
        probe=probe,
        execute=None,
        modalities=guess(inputs),
    )


def features(spec: object, *inputs: Tensor) -> Features:
    explained = subject_of(*inputs)
    return features_of(spec, explained, explained.probe)


def test_without_a_mask_each_element_is_a_feature_of_its_own() -> None:
    found = features(None, torch.zeros(5, 2, 3), torch.zeros(5, 4))
    assert found.count == 10
    assert torch.equal(found.masks[0], torch.arange(6).reshape(1, 2, 3))
    assert torch.equal(found.masks[1], torch.arange(6, 10).reshape(1, 4))


def test_a_grid_has_square_patches_that_are_the_same_in_all_channels_and_smaller_at_the_border() -> None:
    found = features({"grid": 2}, torch.zeros(3, 2, 4, 5))
    expected = torch.tensor([[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5], [3, 3, 4, 4, 5]])
    assert found.count == 6
    assert torch.equal(found.masks[0], expected.expand(1, 2, 4, 5))


def test_patches_of_different_inputs_are_different_features() -> None:
    found = features({"grid": 2}, torch.zeros(3, 1, 2, 2), torch.zeros(3, 1, 2, 4))
    assert [mask.unique().tolist() for mask in found.masks] == [[0], [1, 2]]


def test_a_number_in_the_tensors_of_two_inputs_is_one_feature() -> None:
    found = features((torch.tensor([7, 9]), torch.tensor([9, 20, 20])), torch.zeros(4, 2), torch.zeros(4, 3))
    assert found.count == 3
    assert [mask.tolist() for mask in found.masks] == [[[0, 1]], [[1, 2, 2]]]


def test_what_is_made_beside_a_tensor_gets_numbers_of_its_own() -> None:
    found = features((None, torch.tensor([0, 0, 5])), torch.zeros(4, 2), torch.zeros(4, 3))
    assert [mask.tolist() for mask in found.masks] == [[[2, 3]], [[0, 0, 1]]]


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (2, 4, 4), (1, 1, 4, 4), (1, 2, 4, 4)])
def test_a_tensor_broadcasts_to_the_samples(shape: tuple[int, ...]) -> None:
    mask = torch.arange(4).expand(shape)
    found = features(mask, torch.zeros(3, 2, 4, 4))
    assert torch.equal(found.masks[0], torch.arange(4).expand(1, 2, 4, 4))


def test_a_mask_for_each_sample_follows_the_samples_ids_and_is_renumbered_sample_by_sample() -> None:
    mask = torch.tensor([[0, 1, 2], [5, 5, 5], [3, 9, 3]])
    explained = subject_of(torch.zeros(3, 3), ids=torch.tensor([10, 30, 20]))
    found = features_of(mask, explained, explained.probe[torch.tensor([2, 1])])
    assert found.masks[0].tolist() == [[0, 1, 0], [0, 0, 0]]
    assert found.count == 2


def test_superpixels_divide_each_clean_sample_along_its_edges_and_are_computed_once() -> None:
    pytest.importorskip("skimage")
    left, top = torch.zeros(3, 16, 16), torch.zeros(3, 16, 16)
    left[:, :, :8], top[:, :8] = 1.0, 1.0
    explained = subject_of(torch.stack([left, top]))
    moved = explained.probe.at((torch.randn(2, 3, 16, 16),))
    found = features_of({"superpixels": 8}, explained, moved)
    assert found.masks[0].shape == (2, 3, 16, 16)
    assert found.count >= 4
    for mask, image in zip(found.masks[0], (left, top), strict=True):
        for segment in mask.unique():
            assert len(image[mask == segment].unique()) == 1
    assert len(explained.memory) == 2
    again = features_of({"superpixels": 8}, explained, explained.probe)
    assert torch.equal(again.masks[0], found.masks[0])
    assert len(explained.memory) == 2


def test_superpixels_of_gray_images_follow_their_edges_too() -> None:
    pytest.importorskip("skimage")
    image = torch.zeros(1, 1, 16, 16)
    image[..., 5:] = 1.0
    found = features({"superpixels": 4}, image)
    for segment in found.masks[0].unique():
        assert len(image[found.masks[0] == segment].unique()) == 1


def test_superpixels_reach_a_method() -> None:
    pytest.importorskip("skimage")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 2))
    methods = {
        name: getattr(m, name)(feature_mask={"superpixels": 6})
        for name in ("FeatureAblation", "Lime", "KernelShap", "ShapleyValues", "ShapleyValueSampling")
    }
    images = torch.linspace(0, 1, 16).expand(3, 3, 16, 16).clone()
    images[0] = 0.5  # a flat image may have one segment only
    images[1, :, :8] += 1
    report = explain(model, Probe(images), methods, [], max_examples_per_pass=2)
    for found in report.attributions.values():
        assert 2 <= len(found[1].unique()) <= 9
    torch.testing.assert_close(
        report.attributions["FeatureAblation"], report.attributions["ShapleyValues"], rtol=1e-4, atol=1e-5
    )


def test_kernel_shap_of_one_feature_is_the_whole_difference() -> None:
    model = torch.nn.Linear(3, 1)
    x = torch.tensor([[1.0, 2.0, 3.0]])
    methods = {
        "map": m.KernelShap(feature_mask=torch.zeros(3).long()),
        "values": m.KernelShap(feature_mask=torch.zeros(3).long(), return_input_shape=False),
    }
    report = explain(model, Probe(x), methods, [])
    difference = (model(x) - model(x * 0)).detach()
    torch.testing.assert_close(report.attributions["map"], difference.expand(1, 3))
    torch.testing.assert_close(report.attributions["values"], difference)


def test_without_scikit_image_superpixels_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-explain\[superpixels\]", or use \{"grid": 8\}'):
        m.Lime(feature_mask={"superpixels": 50})


@pytest.mark.parametrize(
    ("spec", "error", "match"),
    [
        ({"grid": 0}, ValueError, r"M\(feature_mask=\{'grid': 0\}\); give None .* \(whole numbers above 0\)"),
        ({"grid": 2.0}, ValueError, "whole numbers above 0"),
        ({"patches": 3}, ValueError, r"\{'patches': 3\}\); give None"),
        ({"grid": 3, "superpixels": 4}, ValueError, "give None"),
        (torch.zeros(3), ValueError, r"a tensor of torch.float32; number features in an integer tensor"),
        (8, TypeError, r"M\(feature_mask=...\) is a int; give None"),
        ([None, "grid"], TypeError, "is a str"),
    ],
)
def test_what_is_no_mask_is_refused_at_once(spec: object, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        check_feature_mask("M(feature_mask", spec)


@pytest.mark.parametrize(
    ("spec", "inputs", "match"),
    [
        ({"grid": 2}, (torch.zeros(3, 4),), r"a grid needs images \(N, C, H, W\), got \(3, 4\)"),
        ({"grid": 2}, (torch.zeros(3, 4, 6),), r"a grid needs images \(N, C, H, W\), got \(3, 4, 6\)"),
        ({"superpixels": 2}, (torch.zeros(3, 4, 4),), r"need images \(N, C, H, W\), got \(3, 4, 4\)"),
        (torch.zeros(2, 5).long(), (torch.zeros(3, 5),), r"shape \(2, 5\), which does not fit \(5,\); give"),
        (torch.zeros(5).long(), (torch.zeros(3, 4),), "does not fit"),
        (torch.zeros(4).long(), (torch.zeros(3, 4), torch.zeros(3, 4)), "one tensor for 2 inputs"),
        ([None], (torch.zeros(3, 4), torch.zeros(3, 4)), "has 1 entries for 2 inputs"),
    ],
)
def test_a_mask_that_does_not_fit_is_refused(spec: object, inputs: tuple[Tensor, ...], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        features(spec, *inputs)


def test_a_mask_for_each_sample_needs_ids_that_tell_samples_apart() -> None:
    explained = subject_of(torch.zeros(2, 3), ids=torch.tensor([4, 4]))
    with pytest.raises(ValueError, match="give distinct Probe"):
        features_of(torch.zeros(2, 3).long(), explained, explained.probe)


class Product(torch.nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x[:, 0] * y[:, 0] + x[:, 1] + 10 * y[:, 1]


def test_one_number_in_the_masks_of_two_inputs_is_one_feature_to_every_method() -> None:
    x, y = torch.tensor([[2.0, 3.0], [4.0, 5.0]]), torch.tensor([[5.0, 7.0], [1.0, 2.0]])
    shared, apart = ((torch.tensor([0, 1]), torch.tensor(other)) for other in ([0, 2], [3, 2]))
    product, half = x[:, 0] * y[:, 0], x[:, 0] * y[:, 0] / 2
    methods: dict[str, Any] = {
        "ablation": m.FeatureAblation,
        "shapley": m.ShapleyValues,
        "sampling": partial(m.ShapleyValueSampling, n_samples=100),
        "kernel": partial(m.KernelShap, n_samples=400),
    }
    for name, method in methods.items():
        given = {
            "one": method(feature_mask=shared),
            "two": method(feature_mask=apart),
            "mixed": method(feature_mask=(shared[0], None)),
        }
        found = explain(Product(), Probe((x, y)), given, []).attributions
        alone = product if name == "ablation" else half
        for key, value in (("one", product), ("two", alone), ("mixed", alone)):
            for part, rest in zip(found[key], (x[:, 1], 10 * y[:, 1]), strict=True):
                expected = torch.stack([value, rest], 1)
                assert torch.allclose(part, expected, rtol=0.2 if value is half else 1e-3, atol=0.01), (name, key)


def test_coefficients_of_samples_with_fewer_features_are_filled_up_with_zeros() -> None:
    x, mask = torch.rand(3, 4) + 1, torch.tensor([[0, 1, 2, 3], [0, 0, 0, 0], [0, 0, 1, 1]])
    methods: dict[str, Any] = {
        kind.__name__: kind(n_samples=50, feature_mask=mask, return_input_shape=False)
        for kind in (m.Lime, m.KernelShap)
    }
    model = torch.nn.Sequential(torch.nn.Linear(4, 1), torch.nn.Flatten(0))
    for limit in (1, 64):
        found = explain(model, Probe(x), methods, [], max_examples_per_pass=limit).attributions
        for name, value in found.items():
            assert value.shape == (3, 4), name  # type: ignore[union-attr]
            assert not value[1, 1:].any()  # type: ignore[call-overload,union-attr]
            assert not value[2, 2:].any()  # type: ignore[call-overload,union-attr]
            assert value[:, 0].all()  # type: ignore[call-overload,union-attr]


def test_several_layers_are_refused_with_one_reason_by_methods_of_one_layer() -> None:
    for kind in (m.LayerConductance, m.LayerActivation, m.NeuronGradient, m.LayerGradCam):
        for layers in (["a", "b"], ("a",)):
            with pytest.raises(TypeError, match=r"the name of one module.*for several layers, one method for each"):
                kind(layer=layers)  # type: ignore[arg-type]
