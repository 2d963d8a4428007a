"""Transformers on images, of timm and Hugging Face, that read a class token or the mean over tokens; texts are in ``text.py``."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from _setups._base import Net, Setup
from _setups.images import SIZE, in_square, squares

_SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 192}
# Class in Hugging Face's transformers, and its smallest configuration.
HUGGING_FACE: dict[str, dict[str, Any]] = {
    "ViT": {"image_size": SIZE, "patch_size": 8, **_SMALL},
    "Swin": {
        "image_size": SIZE,
        "patch_size": 2,
        "embed_dim": 24,
        "depths": [2, 2],
        "num_heads": [2, 4],
        "window_size": 4,
    },
}
_TIMM = {"img_size": SIZE, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 3}


class HuggingFace(nn.Module):
    """A classifier of images of Hugging Face's transformers; returns what it does, with the logits in it."""

    def __init__(self, name: str) -> None:
        super().__init__()
        import transformers

        config = getattr(transformers, f"{name}Config")(num_labels=3, **HUGGING_FACE[name])
        self.model = getattr(transformers, f"{name}ForImageClassification")(config)

    def forward(self, x: Tensor) -> Tensor:
        return self.model(pixel_values=x).logits


def mean_of_tokens() -> nn.Module:
    """A ViT of timm without a class token."""
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(class_token=False, global_pool="avg", **_TIMM)


def setups() -> Iterator[tuple[str, Setup]]:
    if importlib.util.find_spec("timm"):
        yield "timm ViT, mean of tokens", Setup(lambda: Net(mean_of_tokens(), lr=2e-3), squares, in_square, 8)
    if importlib.util.find_spec("transformers"):
        for name in HUGGING_FACE:
            epochs = 16 if name == "Swin" else 8
            yield f"HF {name}", Setup(lambda name=name: Net(HuggingFace(name), lr=2e-3), squares, in_square, epochs)
