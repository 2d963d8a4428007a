"""Reports of silently wrong maps, scores and batches from public trackers, each as its smallest input (invariant 4).

Each test names repository and number. What comes here is right, or refused or reported with the reason.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_explain import ExplanationMonitor, Method, Probe, Report, explain, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from training import QUIET, DigitModule, trainer

pytestmark = QUIET


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Net(nn.Module):
    """A linear layer, what a test puts behind it, and another linear layer."""

    def __init__(self, between: Any, width: int = 6) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(width, 2)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self, self.first(x), x))


def rows(count: int = 3) -> Probe:
    return Probe(torch.randn(count, 4), torch.arange(count) % 2)


def convolutional(classes: int = 3) -> nn.Module:
    head = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), *head)


# -- DeepLIFT --------------------------------------------------------------------------------------------------------------


def test_captum_1082_deeplift_sees_a_relu_that_is_made_in_the_forward() -> None:
    """meta-pytorch/captum#1082: ``nn.ReLU()(x)`` in the forward gets the plain gradient; here the map adds up."""
    report = explain(Net(lambda net, h, x: nn.ReLU()(h)), rows(), {"it": m.DeepLift()}, [q.Completeness()])
    assert report.scores["completeness"]["it"].abs().max() < 1e-5


def test_captum_1085_deeplift_reports_a_product() -> None:
    """meta-pytorch/captum#1085: DeepLIFT does not converge with ``exp`` or a product; here ``exp`` adds up, a product is reported."""
    exact = explain(Net(lambda net, h, x: h.relu().exp()), rows(), {"it": m.DeepLift()}, [q.Completeness()])
    assert exact.scores["completeness"]["it"].abs().max() < 1e-5
    product = Net(lambda net, h, x: h.relu() * net.gate(x).sigmoid())
    with pytest.warns(UserWarning, match=r"'it': the map misses f\(x\) - f\(baseline\) on \d of 3 samples"):
        explain(product, rows(), {"it": m.DeepLift()}, [])


def test_tangermeme_43_deeplift_of_twins_adds_up() -> None:
    """jmschrei/tangermeme#43: a trunk that also reads a second, unexplained input has convergence deltas that explode."""

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return self.trunk(left) - self.trunk(right)

    left, right = torch.randn(2, 3, 4)
    methods = {"lift": m.DeepLift(), "shap": m.DeepLiftShap()}
    for probe in (Probe(left, forward_args=(right,)), Probe((left, right))):
        report = explain(Twins(), probe, methods, [q.Completeness()], target=1)
        assert all(values.abs().max() < 1e-5 for values in report.scores["completeness"].values())


def test_tangermeme_86_deeplift_refuses_a_softmax_over_channels() -> None:
    """jmschrei/tangermeme#86: ``Softmax(dim=1)`` inside of a (N, C, L) network has no rule of its own."""
    net = nn.Sequential(
        nn.Conv1d(4, 3, 3, padding=1), nn.Softmax(dim=1), nn.Conv1d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    )
    sequences = F.one_hot(torch.randint(0, 4, (2, 8)), 4).transpose(1, 2).float()
    with pytest.raises(ValueError, match="no rule for a softmax inside the model"):
        explain(net, Probe(sequences), {"it": m.DeepLift()}, [], target=0)


# -- other backward rules, activations, windows -------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [F.silu, F.leaky_relu, F.gelu])
def test_monai_6057_guided_backpropagation_says_that_it_guides_nothing(activation: Any) -> None:
    """Project-MONAI/MONAI#6057: GuidedBackpropGrad looks for modules named "relu"; without any it is the plain gradient."""
    with pytest.warns(
        UserWarning, match=r"the model has no ReLU \(its activations are .*\), so this is the plain grad"
    ):
        explain(Net(lambda net, h, x: activation(h)), rows(), {"it": m.GuidedBackprop()}, [])


def test_captum_156_an_activation_is_that_before_a_relu_in_place() -> None:
    """meta-pytorch/captum#156: LayerActivation returns what an in-place ReLU has left of the layer's output."""
    conv, x = nn.Conv2d(3, 4, 3, padding=1), torch.randn(2, 3, 5, 5)
    net = nn.Sequential(conv, nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(100, 2))
    methods = {"of": m.LayerActivation("0"), "into": m.LayerActivation("1", attribute_to_layer_input=True)}
    found = explain(net, Probe(x), methods, [], target=0).attributions
    assert torch.equal(found["of"], conv(x))
    assert torch.equal(found["into"], conv(x))


def test_zennit_80_one_number_as_stride_is_the_stride() -> None:
    """chr5tphr/zennit#80: a stride that is one number was taken for the size of the window."""

    class Weighted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x * torch.arange(1.0, 7.0)).sum(1)

    methods = {"one": m.Occlusion((3,), strides=1), "two": m.Occlusion((2,), strides=2)}
    found = explain(Weighted(), Probe(torch.ones(1, 6)), methods, [], target=0).attributions
    # Windows of weights 1..6: each element has the mean of those that cover it.
    assert found["one"][0].tolist() == [6, 7.5, 9, 12, 13.5, 15]
    assert found["two"][0].tolist() == [3, 3, 7, 7, 11, 11]


# -- Grad-CAM --------------------------------------------------------------------------------------------------------------


def test_monai_1710_the_predicted_class_has_the_map_of_the_label_where_it_is_right() -> None:
    """Project-MONAI/MONAI#1710: GradCAM without a class differs from GradCAM of the same class by number."""
    net, x = convolutional(), torch.randn(5, 3, 8, 8)
    probe, cam = Probe(x, net(x).argmax(1)), {"it": m.LayerGradCam("0")}
    by_label, predicted = (explain(net, probe, cam, [], target).attributions["it"] for target in ("label", "predicted"))
    assert torch.equal(by_label, predicted)


def test_pytorch_grad_cam_328_one_class_explains_all_samples() -> None:
    """jacobgil/pytorch-grad-cam#328: one target for a batch explains the first sample, and the others are zero."""
    net, x, cam = convolutional(), torch.randn(5, 3, 8, 8), {"it": m.LayerGradCam("0")}
    together = explain(net, Probe(x), cam, [], target=2).attributions["it"]
    alone = [explain(net, Probe(x[i : i + 1]), cam, [], target=2).attributions["it"] for i in range(5)]
    torch.testing.assert_close(together, torch.cat(alone))


@pytest.mark.parametrize("size", [(12, 1), (1, 12)])
def test_pytorch_grad_cam_452_images_one_pixel_wide_keep_their_shape(size: tuple[int, int]) -> None:
    """jacobgil/pytorch-grad-cam#452: the map of an image of 60 x 1 pixels with 11 channels is 11 x 60."""
    net = nn.Sequential(nn.Conv2d(5, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    methods: dict[str, Method] = {"cam": m.LayerGradCam(), "guided": m.GuidedGradCam()}
    report = explain(net, Probe(torch.randn(3, 5, *size)), methods, [q.Concentration()], target=1)
    assert report.attributions["cam"].shape == (3, 1, *size)
    assert report.attributions["guided"].shape == (3, 5, *size)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.qkv, self.mlp = nn.LayerNorm(8), nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = x + F.scaled_dot_product_attention(*self.qkv(self.norm1(x)).chunk(3, -1))
        return x + F.gelu(self.mlp(self.norm2(x)))


class Transformer(nn.Module):
    """Patches that a convolution cuts, a class token that alone is read, and two blocks."""

    def __init__(self, kernel: tuple[int, int], stride: tuple[int, int]) -> None:
        super().__init__()
        self.embed, self.token = nn.Conv2d(1, 8, kernel, stride), nn.Parameter(torch.randn(1, 1, 8))
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.embed(x).flatten(2).transpose(1, 2)
        return self.head(self.blocks(torch.cat([self.token.expand(len(x), -1, -1), patches], 1))[:, 0])


@pytest.mark.parametrize("layer", ["blocks.1", "blocks.1.norm2"])
def test_pytorch_grad_cam_513_a_map_behind_the_last_attention_is_not_zero_unsaid(layer: str) -> None:
    """jacobgil/pytorch-grad-cam#513: only the class token is read there, so that gradients at all patches are zero."""
    net, probe = Transformer((4, 4), (4, 4)), Probe(torch.randn(2, 1, 16, 24))
    with pytest.warns(
        UserWarning, match=r"reads none of the patches, only a class token: the map is zero\. Fix: name an earl"
    ):
        explain(net, probe, {"it": m.LayerGradCam(layer)}, [], target=1)
    chosen = explain(net, probe, {"it": m.LayerGradCam()}, [], target=1).attributions["it"]
    assert (chosen.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("kernel", "stride", "grid"),
    [((8, 2), (8, 2), (2, 8)), ((2, 8), (2, 8), (8, 2)), ((6, 4), (5, 2), (3, 7)), ((4, 16), (1, 1), (13, 1))],
)
def test_timm_2737_patches_that_are_not_square_lie_where_they_were_cut(
    kernel: tuple[int, int], stride: tuple[int, int], grid: tuple[int, int]
) -> None:
    """huggingface/pytorch-image-models#2737: a grid of (2, 8) patches is taken for one of (4, 4), which has as many."""
    net, probe = Transformer(kernel, stride), Probe(torch.randn(2, 1, 16, 16))
    layers = {"inferred": None, "told": grid} if grid != (13, 1) else {"told": grid}
    methods = {name: m.LayerGradCam("blocks.1.norm1", reshape=reshape) for name, reshape in layers.items()}
    found = explain(net, probe, methods, [], target=1).attributions
    assert all(value.shape == (2, 1, *grid) for value in found.values())
    assert all(torch.equal(value, found["told"]) for value in found.values())


# -- scores ----------------------------------------------------------------------------------------------------------------


class Fixed(Method):
    """A map that is given."""

    backward_rule = "none"

    def __init__(self, value: Tensor) -> None:
        self.value = value

    def attribute(self, explained: Any, samples: Any) -> Tensor:
        return self.value.expand_as(samples.inputs[0])


def test_torchmetrics_444_ties_share_their_rank() -> None:
    """Lightning-AI/torchmetrics#444: Spearman's correlation of these was 0.107; scipy has 0.353."""
    a, b = torch.tensor([1.0, 0, 4, 1, 0, 3, 0]), torch.tensor([4.0, 0, 3, 3, 3, 1, 1])
    net, probe = nn.Linear(7, 1), Probe(torch.randn(2, 7))
    report = explain(net, probe, {"a": Fixed(a), "b": Fixed(b)}, {"agreement": q.Agreement()}, target=0)
    (found,) = {round(v, 6) for values in scores_of(report, "agreement") for v in values.tolist()}
    assert found == 0.352941


def scores_of(report: Report, metric: str) -> list[Tensor]:
    return [values for name, found in report.scores.items() if name.startswith(metric) for values in found.values()]


def test_torchmetrics_3322_one_zero_pixel_makes_no_score_undefined() -> None:
    """Lightning-AI/torchmetrics#3322: a single pixel that is zero makes the whole score NaN."""
    net, x = convolutional(), torch.randn(2, 3, 8, 8)
    x[:, :, 5, 3] = 0
    methods = {"x": m.InputXGradient(), "ig": m.IntegratedGradients(n_steps=4)}
    metrics = [q.Infidelity(), q.SensitivityMax(), q.Concentration(), q.Agreement(), q.Deletion(), q.Completeness()]
    first = explain(net, Probe(x), methods, metrics, target=0)
    report = explain(net, Probe(x), methods, [*metrics, q.Drift()], target=0, history=[first])
    assert (report.attributions["x"][:, :, 5, 3] == 0).all()
    assert all(torch.isfinite(values).all() for found in report.scores.values() for values in found.values())


# -- batches ---------------------------------------------------------------------------------------------------------------


def test_lightning_3668_a_mapping_has_as_many_samples_as_its_tensors(tmp_path: Path) -> None:
    """Lightning-AI/pytorch-lightning#3668: a mapping of two tensors counts as a batch of two."""

    class Pair(DigitModule):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.net(a) - self.net(b)

        def _loss(self, batch: Any) -> Tensor:
            return self(batch["a"], batch["b"]).square().mean()

    data = [{"b": torch.full((4,), float(i)), "a": torch.zeros(4)} for i in range(5)]
    loader = DataLoader(data, batch_size=5)  # type: ignore[arg-type]
    watch = ExplanationMonitor(methods={"it": m.InputXGradient()}, metrics=[], target=0, on_error="raise")
    trainer(tmp_path, watch).fit(Pair(nn.Linear(4, 2)), loader, loader)
    (report, *_) = load_reports(tmp_path / "explain")
    of_a, of_b = report.attributions["it"]
    assert len(of_a) == len(of_b) == 5
    # The product of zeros with the gradient is zero; the input named "a" comes first.
    assert (of_a == 0).all()
    assert (of_b[1:] != 0).all()
