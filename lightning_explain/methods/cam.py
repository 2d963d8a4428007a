"""Class activation maps that weigh each place by itself: activation and gradient of a layer in, a map at its resolution out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lightning_explain.methods.layer import LayerGradCam


@dataclass(frozen=True)
class HiResCAM(LayerGradCam):
    r"""Activation of a layer times its gradient at each place (Draelos & Carin 2020; ``pytorch_grad_cam.HiResCAM``).

    Where Grad-CAM takes the mean of the gradient over places, each place keeps its own. Behind global average pooling both are the
    same up to rounding. Right before a single linear layer, the map adds up to the output without its bias.

    Formula: \phi = \sum_c \frac{\partial f(x)}{\partial a_c} \odot a_c
    Cost: 1 forward, 1 backward.
    Signed: unless ``relu_attributions``.
    Not for: layers far from the output, whose gradient varies from place to place by more than it tells; layers without a
        feature map (vectors).

    Args:
        relu_attributions: Keep only positive values, as ``pytorch_grad_cam`` does.

    Further arguments: :class:`LayerGradCam`, :class:`LayerActivation`.

    Example:
        >>> report = explain(model, probe, methods=[m.HiResCAM("conv")], metrics=[])
        >>> report.attributions["hi_res_cam"].shape
        torch.Size([2, 1, 8, 8])
    """

    averages_places = False

    def weights(self, gradient: Tensor) -> Tensor:
        """The gradient itself, ``(N, C, ...)``."""
        return gradient


@dataclass(frozen=True)
class LayerCAM(LayerGradCam):
    r"""Activation of a layer times the positive part of its gradient (Jiang et al. 2021; ``pytorch_grad_cam.LayerCAM``).

    It shows finer detail than Grad-CAM at layers of high resolution.

    Formula: \phi = \sum_c \max\left(\frac{\partial f(x)}{\partial a_c}, 0\right) \odot a_c
    Cost: 1 forward, 1 backward.
    Signed: no: negative gradients are dropped, and with them the evidence against the output.
    Not for: metrics that need signs, such as Infidelity; layers whose activations are negative where they matter (without
        ReLU); layers without a feature map (vectors).

    Args:
        relu_attributions: Keep only positive values, as ``pytorch_grad_cam`` does.

    Further arguments: :class:`LayerGradCam`, :class:`LayerActivation`.

    Example:
        >>> report = explain(model, probe, methods=[m.LayerCAM("conv")], metrics=[])
        >>> report.attributions["layer_cam"].shape
        torch.Size([2, 1, 8, 8])
    """

    averages_places = False

    @property
    def signed(self) -> bool:
        """No: evidence against the output is dropped."""
        return False

    def weights(self, gradient: Tensor) -> Tensor:
        """The positive part of the gradient, ``(N, C, ...)``."""
        return gradient.clamp(min=0)
