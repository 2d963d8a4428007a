"""Methods that only look forward, as a user would call Captum by hand."""

from __future__ import annotations

import captum.attr as ca
import torch
from captum._utils.models.linear_model import SkLearnRidge
from captum.attr._core.lime import get_exp_kernel_similarity_function
from torch import Tensor, nn


def occlusion(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    window: tuple[int, ...] = (1, 3, 2),
    strides: tuple[int, ...] = (1, 2, 1),
) -> Tensor:
    return ca.Occlusion(model).attribute(x, window, strides=strides, baselines=-0.7, target=y)


def layer_feature_ablation(
    model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, layer_mask: Tensor, baseline: float = 0.4
) -> Tensor:
    return ca.LayerFeatureAblation(model, layer).attribute(x, baseline, target=y, layer_mask=layer_mask)


def ablation_of_several_tensors(
    model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, of_input: bool = False, **arguments: object
) -> tuple[Tensor, ...]:
    return ca.LayerFeatureAblation(model, layer).attribute(x, target=y, attribute_to_layer_input=of_input, **arguments)


def neuron_feature_ablation(
    model: nn.Module, x: Tensor, y: Tensor, layer: nn.Module, neuron: object, mask: Tensor
) -> Tensor:
    return ca.NeuronFeatureAblation(model, layer).attribute(x, neuron, 0.3, feature_mask=mask)


def feature_ablation(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    return ca.FeatureAblation(model).attribute(x, 0.3, target=y, feature_mask=mask)


def feature_permutation(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor, permutations: Tensor) -> Tensor:
    """FeaturePermutation with given permutations ``(features, N)``: which sample each sample takes the feature from."""
    remaining = iter(permutations)

    def permute(inputs: Tensor, feature: Tensor) -> Tensor:
        return torch.where(feature, inputs[next(remaining)], inputs)

    return ca.FeaturePermutation(model, permute).attribute(x, target=y, feature_mask=mask)


def shapley_values(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return ca.ShapleyValues(model).attribute(x, 0.3, target=y, feature_mask=mask, perturbations_per_eval=8)


def shapley_value_sampling(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return ca.ShapleyValueSampling(model).attribute(x, 0.3, target=y, feature_mask=mask, n_samples=6)


def lime(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return ca.Lime(model).attribute(x, 0.3, target=y, feature_mask=mask, n_samples=17)


def lime_ridge(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    explainer = ca.Lime(
        model, SkLearnRidge(alpha=0.1), get_exp_kernel_similarity_function("euclidean", 3.0), uneven_features
    )
    return explainer.attribute(x, 0.3, target=y, feature_mask=mask, n_samples=17, return_input_shape=False)


def uneven_features(inputs: Tensor, **options: int) -> Tensor:
    return (torch.rand(1, options["num_interp_features"]) < 0.7).long()


def kernel_shap(model: nn.Module, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return ca.KernelShap(model).attribute(x, 0.3, target=y, feature_mask=mask, n_samples=17)
