"""Layer methods without a layer explain one that lies on the input and matters to the output, or are left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import SwinTransformer, VisionTransformer, resnet18

from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.registry import build_methods
from lightning_explain.targets import Pixels


class Attention(nn.Module):
    """Attention with normalized queries and keys, by torch's function or by hand."""

    def __init__(self, dim: int, heads: int, by_hand: bool) -> None:
        super().__init__()
        self.heads, self.by_hand = heads, by_hand
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.q_norm, self.k_norm = nn.LayerNorm(dim // heads), nn.LayerNorm(dim // heads)
        self.softmax, self.drop = nn.Softmax(-1), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.by_hand:
            weights = self.drop(self.softmax(q @ k.transpose(-2, -1) / k.shape[-1] ** 0.5))
            mixed = weights @ v
        else:
            mixed = F.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, by_hand: bool) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), Attention(dim, heads, by_hand)
        self.norm2, self.mlp = (
            nn.LayerNorm(dim),
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Scaled(Block):
    """The same with a parameter of its own, as BEiT, CaiT and XCiT scale what a block adds."""

    def __init__(self, dim: int, heads: int, by_hand: bool) -> None:
        super().__init__(dim, heads, by_hand)
        self.gamma = nn.Parameter(0.1 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma * self.attn(self.norm1(x))
        return x + self.gamma * self.mlp(self.norm2(x))


class Shortcut(Block):
    """The same with a module that passes on what enters it, as in MaxViT."""

    def __init__(self, dim: int, heads: int, by_hand: bool) -> None:
        super().__init__(dim, heads, by_hand)
        self.shortcut = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.shortcut(x) + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Tokens(nn.Module):
    """A transformer on images, with a class token or with the mean over all tokens."""

    def __init__(self, by_hand: bool = False, mean: bool = False, block: type[Block] = Block) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mean, self.patches = mean, nn.Conv2d(3, 16, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.blocks, self.norm = nn.Sequential(*(block(16, 4, by_hand) for _ in range(2))), nn.LayerNorm(16)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x if self.mean else torch.cat([self.token.expand(len(x), -1, -1), x], 1)
        x = self.norm(self.blocks(x))
        return self.head(x.mean(1) if self.mean else x[:, 0])


class Flat(nn.Module):
    """Attention in the model's own forward, whose softmax module and norms return heads and pairs of tokens."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.norm, self.qkv = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16), nn.Linear(16, 48)
        self.q_norm, self.softmax, self.drop, self.head = (
            nn.LayerNorm(4),
            nn.Softmax(-1),
            nn.Dropout(),
            nn.Linear(16, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        q, k, v = self.qkv(x).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
        weights = self.drop(self.softmax(self.q_norm(q) @ k.transpose(-2, -1)))
        return self.head((weights @ v).transpose(1, 2).flatten(2).mean(1))


class Shared(nn.Module):
    """Blocks of attention that call one module of the whole model, which returns heads (as CoaT's position encoding)."""

    class Attention(nn.Module):
        def __init__(self, mixing: nn.Module) -> None:
            super().__init__()
            self.qkv, self.mixing = nn.Linear(16, 48), mixing

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).unflatten(2, (3, 4, 4)).permute(2, 0, 3, 1, 4)
            return (q @ (k.softmax(2).transpose(-2, -1) @ v) + self.mixing(v)).transpose(1, 2).flatten(2)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mixing, self.patches, self.norm = nn.Linear(4, 4), nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.blocks = nn.Sequential(*(self.Attention(self.mixing) for _ in range(2)))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.patches(x).flatten(2).transpose(1, 2))
        return self.head(self.blocks(x).mean(1))


class Biased(nn.Module):
    """Adds a bias that a module of its own makes for all samples together."""

    class Bias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.randn(1, 4, 6, 6))

        def forward(self) -> Tensor:
            return self.table.tanh()

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bias, self.head = nn.Conv2d(3, 4, 3, 2), self.Bias(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.head((x + self.bias()[..., :1, :1]).relu().mean((2, 3)))


class Frames(nn.Module):
    """Sees every image as two frames, which its convolution takes for samples."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.first, self.head = nn.Conv2d(3, 2, 3), nn.Conv2d(2, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.early(x)
        frames = torch.stack([x, x.flip(-1)], 1).flatten(0, 1)
        return self.head(self.first(frames).relu().mean((2, 3)).unflatten(0, (-1, 2)).mean(1))


class Series(nn.Module):
    """A transformer on series, whose attention maps are no places on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.block, self.head = nn.Linear(5, 16), Block(16, 4, True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.lift(x)).mean(1))


class Mean(nn.Module):
    """The mean over all tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NETS: dict[str, tuple[nn.Module, Tensor, str | None]] = {
    "a class token": (Tokens(), IMAGES, "blocks.0"),
    "a class token, attention by hand": (Tokens(by_hand=True), IMAGES, "blocks.0"),
    "the mean over tokens": (Tokens(mean=True), IMAGES, "blocks.0"),
    "the mean over tokens, attention by hand": (Tokens(by_hand=True, mean=True), IMAGES, "blocks.0"),
    "blocks with parameters of their own": (Tokens(block=Scaled), IMAGES, "blocks.0"),
    "the mean over tokens of such blocks": (Tokens(mean=True, block=Scaled), IMAGES, "blocks.0"),
    "blocks that pass on what enters them": (Tokens(block=Shortcut), IMAGES, "blocks.0"),
    "torchvision's ViT": (
        VisionTransformer(16, 4, 2, 4, 16, 32, num_classes=3),
        IMAGES,
        "encoder.layers.encoder_layer_0",
    ),
    "torchvision's Swin": (
        SwinTransformer([2, 2], 8, [1, 1], [2, 2], [2, 2], num_classes=3),
        torch.randn(4, 3, 16, 16),
        "features.2",
    ),
    "attention in the model's own forward": (Flat(), IMAGES, "qkv"),
    "a module that attention shares": (Shared(), IMAGES, "blocks.0"),
    "a bias of its own": (Biased(), IMAGES, "first"),
    "frames": (Frames(), IMAGES, "early"),
    "a series": (Series(), torch.randn(4, 7, 5), "lift"),
    "a table": (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(4, 5), None),
    "a convolutional network": (resnet18(num_classes=3), torch.randn(4, 3, 64, 64), "layer4"),
}


@pytest.mark.parametrize(("model", "x", "layer"), NETS.values(), ids=NETS)
def test_the_default_layer_lies_on_the_input_and_matters(model: nn.Module, x: Tensor, layer: str | None) -> None:
    model.eval()
    if layer is None:
        with pytest.raises(ValueError, match=r"'cam' \(LayerGradCam\): it names no layer"):
            explain(model, Probe(x), {"cam": m.LayerGradCam()}, [])
        assert "cam" not in explain(model, Probe(x), metrics=[]).attributions
        return
    checked = Explainer({"cam": m.LayerGradCam()}, {}).check(model, Probe(x))
    assert checked.methods["cam"].layer == layer
    report = explain(model, Probe(x), {"cam": m.LayerGradCam(), "named": m.LayerGradCam(layer)}, [])
    assert torch.equal(report.attributions["cam"], report.attributions["named"])
    if "torchvision" not in type(model).__module__:  # Their heads begin with zeros.
        assert report.attributions["cam"].flatten(1).any(1).all(), "some place matters in every sample"


@pytest.mark.parametrize(
    ("model", "x", "method"),
    [
        (Tokens(), IMAGES, m.LayerIntegratedGradients),
        (VisionTransformer(16, 4, 2, 4, 16, 32, num_classes=3), IMAGES, m.LayerIntegratedGradients),
        (Tokens(mean=True), IMAGES, m.LayerGradCam),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(784, 3)), IMAGES, m.LayerIntegratedGradients),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
            IMAGES,
            m.LayerGradCam,
        ),
        (nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 3, 2, 2)), IMAGES, m.HiResCAM),
    ],
    ids=[
        "a class token",
        "a head of zeros",
        "the mean over tokens",
        "a flattened map before one linear layer",
        "global pooling",
        "a segmentation",
    ],
)
def test_grad_cam_is_not_the_default_where_its_mean_over_places_is_wrong(
    model: nn.Module, x: Tensor, method: type
) -> None:
    defaults = Explainer(build_methods(None), {}, default_methods=True).check(model.eval(), Probe(x))
    assert type(defaults.methods["cam"]) is method
    named = Explainer({"cam": m.LayerGradCam()}, {}).check(model, Probe(x))
    assert type(named.methods["cam"]) is m.LayerGradCam, "what was named is never changed"
    said = method is not m.LayerGradCam and not isinstance(model, VisionTransformer)  # Of zeros, nothing is known yet.
    assert ("cam" in named.findings) == said
    if said:
        assert named.findings["cam"].endswith(f"Fix: use {method.__name__}."), "that of the default"


@pytest.mark.parametrize("pre", [False, True], ids=["norms behind", "norms before"])
def test_a_transformer_on_series_is_explained_at_what_enters_its_last_block(pre: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 16, batch_first=True, norm_first=pre)
    net = nn.Sequential(nn.Linear(5, 16), nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), Mean()).eval()
    found = Explainer(build_methods(None), {}, default_methods=True).check(net, Probe(torch.randn(4, 7, 5)))
    assert type(found.methods["cam"]) is m.LayerGradCam
    assert found.methods["cam"].layer == "1.layers.1"
    assert "cam" not in found.findings, "the mean reads all tokens"


def test_a_convolution_behind_attention_makes_a_feature_map() -> None:
    class Hybrid(Tokens):
        def __init__(self) -> None:
            super().__init__(mean=True)
            self.last = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.blocks(self.patches(x).flatten(2).transpose(1, 2))
            return self.head(self.last(x.transpose(1, 2).unflatten(2, (4, 4))).mean((2, 3)))

    found = Explainer(build_methods(None), {}, default_methods=True).check(Hybrid().eval(), Probe(IMAGES))
    assert found.methods["cam"] == m.LayerGradCam("last")


def test_before_further_layers_that_read_a_flattened_map_grad_cam_stays_with_a_finding() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(784, 8), nn.ReLU(), nn.Linear(8, 3)
    ).eval()
    found = Explainer(build_methods(None), {}, default_methods=True).check(net, Probe(IMAGES))
    assert type(found.methods["cam"]) is m.LayerGradCam
    assert "each place has weights of its own" in found.findings["cam"]
    other = Explainer({"exact": m.HiResCAM(), "layer": m.LayerCAM()}, {}).check(net, Probe(IMAGES))
    assert not other.findings, "they average nothing"


class Strided(nn.Module):
    """The mean of each quarter of an image, less 3; a function of that; and a convolution that weighs the quarters by themselves."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.means, self.between, self.last = nn.Conv2d(1, 1, 4, 4), between, nn.Conv2d(1, 1, 2)
        nn.init.constant_(self.means.weight, 1 / 16)
        nn.init.constant_(self.means.bias, -3.0)
        with torch.no_grad():
            self.last.weight.copy_(torch.tensor([[[[-0.1, -0.2], [-0.3, -0.4]]]]))

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(self.last(self.between(self.means(x)))).flatten(1)


def test_where_features_below_zero_are_read_the_default_map_lies_on_what_differs_from_the_baseline() -> None:
    x = torch.zeros(4, 1, 8, 8)
    for i, (row, column) in enumerate([(0, 0), (0, 4), (4, 0), (4, 4)]):
        x[i, 0, row : row + 4, column : column + 4] = 1
    net = Strided(nn.Identity()).eval()
    cam = Explainer(build_methods(None), {}, default_methods=True).check(net, Probe(x)).methods["cam"]
    assert type(cam) is m.LayerIntegratedGradients
    found = explain(net, Probe(x), {"cam": cam, "mean": m.LayerGradCam(cam.layer)}, []).attributions
    own = torch.eye(4, dtype=torch.bool)
    strengths = {name: of_quarters(one) for name, one in found.items()}
    assert not strengths["cam"][~own].any(), "the other quarters are those of the baseline"
    assert strengths["cam"][own].all()
    assert (strengths["mean"].argmax(1) != torch.arange(4)).all(), "-3 of the other quarters is more than -2"


def of_quarters(found: Tensor) -> Tensor:
    """The strength of a map at each quarter of an image, ``(N, 4)``."""
    return F.adaptive_max_pool2d(found.detach().abs(), 2).flatten(1)


def test_features_below_zero_that_later_maps_read_are_explained_by_grad_cam() -> None:
    class Apart(nn.Module):
        """A convolution that takes each channel for a sample."""

        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(1, 1, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(x.flatten(0, 1)[:, None]).sigmoid().mean((1, 2, 3)).unflatten(0, x.shape[:2])

    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), Apart(), nn.Flatten(), nn.Linear(2, 3), nn.Softplus()).eval()
    found = Explainer(build_methods(None), {}, default_methods=True).check(net, Probe(torch.randn(4, 1, 8, 8)))
    assert found.methods["cam"] == m.LayerGradCam("0")


@pytest.mark.parametrize("as_module", [True, False])
def test_behind_a_rectifier_no_value_below_zero_is_read_and_grad_cam_stays(as_module: bool) -> None:
    class Functional(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            return x.relu()

    torch.manual_seed(0)
    net = Strided(nn.ReLU() if as_module else Functional()).eval()
    found = Explainer(build_methods(None), {}, default_methods=True).check(net, Probe(10 * torch.rand(4, 1, 8, 8)))
    assert type(found.methods["cam"]) is m.LayerGradCam
    assert "each place has weights of its own" in found.findings["cam"]


def test_a_segmentation_that_predicts_one_class_everywhere_before_it_learns_is_explained_by_its_region_later() -> None:
    torch.manual_seed(0)
    last = nn.Conv2d(4, 2, 1)
    nn.init.constant_(last.bias, 0.0)
    with torch.no_grad():
        last.bias[1] = 9.0
    net = nn.Sequential(nn.Conv2d(1, 4, 4, 4), nn.ReLU(), last, nn.Upsample(scale_factor=4.0, mode="bilinear")).eval()
    x, labels = torch.rand(4, 1, 16, 16), torch.zeros(4, 16, 16, dtype=torch.long)
    labels[:, :4, :4] = 1
    checked = Explainer(build_methods(None), {}, default_methods=True).check(net, Probe(x, labels))
    report = explain(net, Probe(x, labels), {"pixels": m.Saliency()}, [])
    assert report.explained["pixels"].eq(256).all(), "the region is the whole image"
    assert type(checked.methods["cam"]) is m.HiResCAM


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}


def hugging_face(name: str, task: str, **arguments: object) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(num_labels=3, **arguments)
    return getattr(transformers, f"{name}For{task}Classification")(config).eval()


def test_the_vit_of_hugging_face_is_explained_where_its_last_block_begins() -> None:
    model = hugging_face("ViT", "Image", image_size=16, patch_size=4, **SMALL)
    cam = Explainer(build_methods(None), {}, default_methods=True).check(model, Probe(IMAGES)).methods["cam"]
    assert type(cam) is m.LayerIntegratedGradients
    # Before transformers 5 its blocks return tuples.
    assert cam.layer in ("vit.layers.0", "vit.encoder.layer.0", "vit.encoder.layer.1.layernorm_before")


def test_the_swin_of_hugging_face_is_explained_before_its_last_attention() -> None:
    sizes = {"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 2}
    model = hugging_face("Swin", "Image", **sizes)
    cam = Explainer(build_methods(None), {}, default_methods=True).check(model, Probe(IMAGES)).methods["cam"]
    assert type(cam) is m.LayerGradCam
    assert cam.layer in ("swin.encoder.layers.1.blocks.0", "swin.encoder.layers.1.blocks.1.layernorm_before")


def test_the_bert_of_hugging_face_is_explained_at_its_words() -> None:
    model = hugging_face("Bert", "Sequence", vocab_size=20, **SMALL)
    ids = torch.randint(1, 20, (4, 6), generator=torch.Generator().manual_seed(0))
    found = Explainer(build_methods(None), {}, default_methods=True).check(model, Probe(ids)).methods
    assert {name: method.layer for name, method in found.items()} == {
        "ig": "bert.embeddings.word_embeddings",
        "ablation": None,
    }


def test_the_default_map_of_a_segmentation_is_zero_where_the_explained_region_does_not_look() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 4, 4), nn.ConvTranspose2d(4, 2, 4, 4)).eval()
    x, labels = torch.randn(2, 1, 16, 16), torch.zeros(2, 16, 16, dtype=torch.long)
    labels[:, :4, :4] = 1
    region = Pixels(1, "label")
    explainer = Explainer(build_methods(None), {}, default_methods=True, target=region)
    cam = explainer.check(net, Probe(x, labels)).methods["cam"]
    found = explain(net, Probe(x, labels), {"cam": cam, "mean": m.LayerGradCam("0")}, [], target=region).attributions
    assert cam.layer == "0"
    assert found["cam"][:, :, 0, 0].any(1).all()
    assert not found["cam"].flatten(1)[:, 1:].any(), "the other places lead to other pixels"
    assert found["mean"].flatten(1)[:, 1:].any()
