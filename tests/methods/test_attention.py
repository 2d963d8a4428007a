"""AttentionRollout: the product of the attention weights, whichever way the model computes attention."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain import modalities as d
from lightning_explain.core.verdict import RefusedError
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.render.composite import composite
from lightning_explain.render.figure import draw
from lightning_explain.render.options import Options

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
IDS = torch.tensor([[3, 4, 5, 6, 7], [8, 9, 3, 0, 0], [5, 5, 4, 2, 0]])
DIM, HEADS = 16, 4


class Attention(nn.Module):
    """Attention as people write it; keeps its weights, which the tests multiply up."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.weights = how, torch.empty(0)
        self.qkv, self.proj, self.drop = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM), nn.Dropout(0.2)
        self.multi = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        with torch.no_grad():
            self.multi.in_proj_weight.copy_(3 * self.qkv.weight)
            self.qkv.weight *= 3  # So that weights are not all alike.
            self.multi.in_proj_bias.copy_(self.qkv.bias)
        self.multi.out_proj = self.proj  # type: ignore[assignment]

    def forward(self, x: Tensor, hidden: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / 2
        scores = scores if hidden is None else scores.masked_fill(hidden[:, None, None], -torch.inf)
        self.weights = scores.detach().softmax(-1)
        if self.how == "multi":
            return self.multi(x, x, x, key_padding_mask=hidden, need_weights=False)[0]
        if self.how == "fused":
            mask = None if hidden is None else ~hidden[:, None, None].expand(-1, HEADS, x.shape[1], -1)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        elif self.how == "bmm":
            mixed = torch.bmm(scores.flatten(0, 1).softmax(-1), v.flatten(0, 1)).unflatten(0, (-1, HEADS))
        else:
            mixed = self.drop(F.softmax(scores, dim=-1)) @ v
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Two blocks on patches or ids; the output reads the class token, or the mean over tokens."""

    def __init__(self, how: str = "fused", read: str = "token", text: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.read, self.text, self.patches, self.words = read, text, nn.Conv2d(3, DIM, 4, 4), nn.Embedding(10, DIM)
        self.token = nn.Parameter(torch.randn(1, 1, DIM))
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(2))
        self.blocks, self.head = nn.ModuleList(Attention(how) for _ in range(2)), nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = x == 0 if self.text else None
        x = self.words(x) if self.text else self.patches(x).flatten(2).transpose(1, 2)
        if self.read == "token" and not self.text:
            x = torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x), hidden)
        return self.head(x[:, 0] if self.read == "token" else x.mean(1))

    def by_hand(self, x: Tensor, fuse: Callable[[Tensor], Tensor] = lambda weights: weights.mean(1)) -> Tensor:
        """Abnar & Zuidema's rollout ``(N, T, T)`` in a few lines."""
        self.eval()(x)
        rolled = torch.eye(self.blocks[0].weights.shape[-1])
        for block in self.blocks:
            layer = 0.5 * fuse(block.weights) + 0.5 * torch.eye(rolled.shape[-1])
            rolled = layer / layer.sum(-1, keepdim=True) @ rolled
        return rolled


def rollout(model: nn.Module, x: Any, **arguments: Any) -> Tensor:
    found = explain(model, Probe(x), {"it": m.AttentionRollout(**arguments)}, [], target=0).attributions["it"]
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("how", ["fused", "multi", "by hand", "bmm"])
@pytest.mark.parametrize("read", ["token", "mean"])
def test_a_rollout_is_the_product_of_the_weights_at_the_tokens_that_are_read(how: str, read: str) -> None:
    model = Transformer(how, read)
    rolled = model.by_hand(IMAGES)
    expected = rolled[:, 0, 1:] if read == "token" else rolled.mean(1)
    torch.testing.assert_close(rollout(model, IMAGES), expected.unflatten(1, (1, 4, 4)), atol=1e-6, rtol=1e-5)
    assert expected.std() > 1e-3, "tokens differ"


@pytest.mark.parametrize(("fusion", "fuse"), [("max", lambda w: w.amax(1)), ("min", lambda w: w.amin(1))])
def test_heads_are_fused_by_maximum_or_minimum(fusion: str, fuse: Callable[[Tensor], Tensor]) -> None:
    model = Transformer()
    expected = model.by_hand(IMAGES, fuse)[:, 0, 1:].unflatten(1, (1, 4, 4))
    torch.testing.assert_close(rollout(model, IMAGES, head_fusion=fusion), expected, atol=1e-6, rtol=1e-5)


def test_the_maps_of_the_heads_add_up_to_the_rollout() -> None:
    heads = rollout(Transformer(), IMAGES, attr_head_summation=False)
    assert heads.shape == (3, HEADS, 4, 4)
    torch.testing.assert_close(heads.sum(1, keepdim=True), rollout(Transformer(), IMAGES))


def test_discarded_weights_are_the_smallest_of_each_sample() -> None:
    method, weights = m.AttentionRollout(discard_ratio=0.5), torch.tensor([[[0.1, 0.9], [0.7, 0.3]]])
    expected = torch.tensor([[[0.5, 0.9 / 2], [0.7 / 2, 0.5]]])
    torch.testing.assert_close(method.mixed(weights), expected / expected.sum(-1, keepdim=True))
    assert not torch.allclose(rollout(Transformer(), IMAGES, discard_ratio=0.9), rollout(Transformer(), IMAGES))


@pytest.mark.parametrize("how", ["fused", "multi", "by hand"])
@pytest.mark.parametrize("summed", [True, False])
def test_padding_of_texts_gets_nothing(how: str, summed: bool) -> None:
    model = Transformer(how, text=True)
    expected = model.by_hand(IDS)[:, 0]
    report = explain(model, Probe(IDS), {"it": m.AttentionRollout(attr_head_summation=summed)}, [], target=0)
    found = report.attributions["it"]
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found if summed else found.sum(-1), expected, atol=1e-6, rtol=1e-5)
    assert not expected[IDS == 0].any()
    assert summed or torch.allclose(report.maps["it"][0], expected, atol=1e-6)


def test_a_causal_model_is_read_at_its_last_token() -> None:
    class Causal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(DIM, HEADS, 32, batch_first=True)
            self.words, self.head = nn.Embedding(10, DIM), nn.Linear(DIM, 3)
            self.encoder = nn.TransformerEncoder(layer, 2)

        def forward(self, x: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
            return self.head(self.encoder(self.words(x), mask, is_causal=True)[:, 3])

    found = rollout(Causal(), IDS)
    assert (found[:, :4] > 0).all()
    assert not found[:, 4].any(), "a later token reaches none before it"
    torch.testing.assert_close(found.sum(1), torch.ones(3))


def test_it_takes_one_pass_and_leaves_the_outputs_as_they_are() -> None:
    model, alone = Transformer(), {"saliency": m.Saliency(abs=False)}
    report = explain(model, Probe(IMAGES), {**alone, "it": m.AttentionRollout()}, [], target=0)
    before = explain(model, Probe(IMAGES), alone, [], target=0)
    assert (report.passes.forward - before.passes.forward, report.passes.backward - before.passes.backward) == (3, 3)
    assert torch.equal(report.attributions["saliency"], before.attributions["saliency"])  # type: ignore[arg-type]
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    Explainer({"it": m.AttentionRollout()}, {}, target=0).check(model, Probe(IMAGES))
    assert sizes == [3, 3, 1], "its checks take no run of their own"


def test_samples_alone_and_together_have_the_same_map() -> None:
    report = explain(Transformer(), Probe(IMAGES), [m.AttentionRollout()], [], target=0, max_examples_per_pass=1)
    torch.testing.assert_close(report.attributions["attention_rollout"], rollout(Transformer(), IMAGES))


class Windows(nn.Module):
    """Attention within halves of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block, self.head = nn.Conv2d(3, DIM, 4, 4), Attention("fused"), nn.Linear(DIM, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2).unflatten(1, (2, 8)).flatten(0, 1)
        return self.head(self.block(x).unflatten(0, (-1, 2)).flatten(1, 2).mean(1))


class Merging(Transformer):
    """Half of the tokens are dropped after the first block."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[0](self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.blocks[1](x[:, ::2]).mean(1))


class Pooling(Transformer):
    """A learned query reads the tokens."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(
            F.scaled_dot_product_attention(self.token.expand(len(x), -1, -1)[:, None], x[:, None], x[:, None])[:, 0, 0]
        )


CNN = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 3), nn.Softmax(-1))


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (CNN, "no attention runs in this model"),
        (Windows(), "attention is computed within 2 windows of 8 tokens"),
        (Merging(), r"the number of tokens changes from layer to layer \(16 to 8\)"),
        (Pooling(), "attention goes from 1 tokens to 16 others"),
    ],
    ids=["no attention", "windows", "merging", "pooling"],
)
def test_what_does_not_multiply_up_is_refused_before_the_first_batch(model: nn.Module, reason: str) -> None:
    with pytest.raises(RefusedError, match=f"{reason}.*use LayerGradCam, HiResCAM or IntegratedGradients"):
        explain(model, Probe(IMAGES), [m.AttentionRollout()], [], target=0)


def test_tokens_that_lie_on_no_input_are_refused() -> None:
    probe = Probe(IMAGES[:, 0].flatten(1)[:, :40], modalities=d.Tabular())
    model = nn.Sequential(nn.Unflatten(1, (5, 8)), nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), nn.Flatten())
    with pytest.raises(RefusedError, match="the 5 tokens of its attention do not lie on an input"):
        explain(model, probe, [m.AttentionRollout()], [], target=0)


def test_infidelity_leaves_it_out_with_the_reason() -> None:
    methods = {"it": m.AttentionRollout(), "saliency": m.Saliency(abs=False)}
    with pytest.warns(
        UserWarning, match=r"'infidelity' leaves out 'it': it needs .* belongs to the explained output, as att"
    ):
        report = explain(Transformer(), Probe(IMAGES), methods, [q.Infidelity()], target=0)
    assert set(report.scores["infidelity"]) == {"saliency"}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"head_fusion": "sum"}, r"AttentionRollout\(head_fusion='sum'"),
        ({"discard_ratio": 1.5}, r"AttentionRollout\(discard_ratio=1.5\); give a number from 0 to 1"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        m.AttentionRollout(**arguments)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_rollout_of_hugging_face_is_that_of_its_own_weights(attention: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 16}
    config = transformers.ViTConfig(image_size=16, patch_size=4, num_labels=3, initializer_range=1.0, **small)
    config._attn_implementation = "eager"
    model = transformers.ViTForImageClassification(config).eval()
    with torch.no_grad():
        weights = model(IMAGES, output_attentions=True).attentions
    rolled = torch.eye(17)
    for layer in weights:
        rolled = (0.5 * layer.mean(1) + 0.5 * torch.eye(17)) @ rolled
    model.set_attn_implementation(attention)
    expected = rolled[:, 0, 1:].unflatten(1, (1, 4, 4))
    torch.testing.assert_close(rollout(model, IMAGES), expected, atol=1e-6, rtol=1e-5)
    assert model.config._attn_implementation == attention


def test_the_panel_of_channels_shows_the_heads_beside_the_rollout() -> None:
    probe, names = Probe(IMAGES), {"it": m.AttentionRollout(attr_head_summation=False)}
    report = explain(Transformer(), probe, names, [], target=0)
    one = [("heat_map", "positive")]
    drawn = {
        panels: composite(report, probe, Options(panels=panels, colorbar=False))["it"]
        for panels in (tuple(one), (("channels", "positive"),), (*one, ("channels", "positive")))
    }
    alone, heads, both = drawn.values()
    assert not np.array_equal(alone, heads)
    assert both.shape[1] > alone.shape[1] == heads.shape[1]
    assert draw(report, probe, Options(panels=[*one, ("channels", "positive")]))["it"].any()
