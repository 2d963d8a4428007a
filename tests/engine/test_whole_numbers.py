"""Inputs that are whole numbers: baselines keep their fractions, ids stay ids, and odd types work or are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum import attr as captum
from torch import Tensor, nn

from comparing import distance
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q

W = torch.tensor([1.0, 2, 3, 4])
X = torch.tensor([[0, 1, 2, 3], [4, 0, 1, 2]])


class Linear(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() @ W


class Brightness(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x.float() / 255).flatten(1) @ torch.arange(192.0) / 192


class Tokens(nn.Module):
    def __init__(self, casts: bool) -> None:
        super().__init__()
        self.embedding, self.head, self.casts = nn.Embedding(10, 4), nn.Linear(4, 2), casts

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.embedding(x.long() if self.casts else x).mean(1))
        return found


def maps(model: nn.Module, x: Tensor, **methods: Any) -> dict[str, Tensor]:
    found: Any = explain(model, Probe(x), methods, [], normalization=(0.5, 0.25)).attributions
    return dict(found)


def test_a_fractional_baseline_of_whole_numbers_is_not_cut_off() -> None:
    found = maps(
        Linear(),
        X,
        ablation=m.FeatureAblation(baselines=0.2),
        occlusion=m.Occlusion((1,), baselines=0.2),
        sampling=m.ShapleyValueSampling(baselines=0.2, n_samples=2),
        shapley=m.ShapleyValues(baselines=0.2),
        kernel=m.KernelShap(baselines=0.2, n_samples=200),
        tensor=m.FeatureAblation(baselines=torch.full((1, 4), 0.2)),
        tunnel=m.FeatureAblation(baselines=0.2, feature_mask=torch.arange(4)),
    )
    for name, value in found.items():
        assert torch.allclose(value, W * (X - 0.2), atol=1e-4), name
    whole = maps(Linear(), X, it=m.FeatureAblation(baselines=300), byte=m.FeatureAblation(baselines=torch.tensor(300)))
    assert torch.allclose(whole["it"], W * (X - 300))
    assert torch.equal(whole["it"], whole["byte"])
    captums = captum.FeatureAblation(Linear()).attribute(X.float(), baselines=0.2)
    assert distance(found["ablation"], captums) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16])
def test_baselines_of_whole_number_images_are_those_of_the_same_images_as_floats(dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    for baselines in (127.5, "blur", "black", "mean", 3, torch.tensor([[[[0.5]], [[1.0]], [[2.0]]]])):
        method = {"it": m.FeatureAblation(baselines=baselines, feature_mask={"grid": 4})}
        found, expected = (maps(Brightness(), part, **method)["it"] for part in (x.to(dtype), x.float()))
        assert distance(found, expected) <= 1e-5, baselines


@pytest.mark.parametrize("casts", [False, True])
def test_fractions_in_the_place_of_ids_are_refused_and_whole_numbers_are_not(casts: bool) -> None:
    model = Tokens(casts)

    def run(baselines: Any) -> None:
        methods = [
            m.FeatureAblation(baselines=baselines),
            m.ShapleyValueSampling(baselines=baselines, n_samples=2),
            m.LayerIntegratedGradients("embedding", baselines=baselines, n_steps=2),
        ]
        explain(model, Probe(X), methods, [q.Deletion(baselines=baselines)], target=0)

    run(2)
    run(torch.tensor([[1, 2, 3, 4]]))
    for baselines in (0.5, "mean", torch.tensor([[1, 2, 3, 4.5]])):
        with pytest.raises(ValueError, match=r"(?s)'layer_integrated.*reads inputs\[0\] as ids.*'deletion'.*as ids"):
            run(baselines)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16])
def test_images_of_unsigned_numbers_are_scored_as_those_of_signed_ones(dtype: torch.dtype) -> None:
    x = torch.randint(0, 256, (2, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    found, expected = (
        explain(
            Brightness(),
            Probe(images),
            [m.Occlusion((3, 2, 2), (3, 2, 2))],
            [q.Infidelity()],
            normalization=(0.5, 0.25),
        )
        for images in (x.to(dtype), x)
    )
    assert expected.scores["infidelity"]["occlusion"].isfinite().all()
    assert torch.equal(found.scores["infidelity"]["occlusion"], expected.scores["infidelity"]["occlusion"])


def test_booleans_and_unsigned_numbers_are_explained_and_complex_ones_refused() -> None:
    methods: list[Any] = [
        m.FeatureAblation(),
        m.Occlusion((1,)),
        m.ShapleyValues(),
        m.ShapleyValueSampling(),
        m.KernelShap(n_samples=200),
    ]
    for dtype in (torch.uint16, torch.bool, torch.uint32):
        found = explain(Linear(), Probe(X.to(dtype)), methods, [q.Deletion(), q.Completeness()])
        for value in found.attributions.values():
            assert torch.allclose(value, W * X.to(dtype).float(), atol=1e-4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="takes the gradient at the inputs, but they are booleans"):
        explain(Linear(), Probe(X.bool()), [m.Saliency()], [])
    for dtype in (torch.complex64, torch.complex128):
        with pytest.raises(TypeError, match=r"complex numbers .*view_as_real"):
            Probe((X.float(), X.to(dtype)))


class Both(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.relu, self.last = nn.Linear(3 + width, 4), nn.ReLU(), nn.Linear(4, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = self.last(self.relu(self.first(torch.cat([x, y], 1))))
        return found


def test_an_input_of_no_numbers_changes_nothing() -> None:
    torch.manual_seed(0)
    model, x, none = Both(0).eval(), torch.randn(4, 3), torch.zeros(4, 0)
    methods: dict[str, Any] = {
        "ig": m.IntegratedGradients(n_steps=4),
        "deeplift": m.DeepLift(),
        "shap": m.GradientShap(),
        "ablation": m.FeatureAblation(),
        "sampling": m.ShapleyValueSampling(n_samples=2),
        "shapley": m.ShapleyValues(),
        "permutation": m.FeaturePermutation(),
    }
    scored = [q.Completeness(), q.Concentration(), q.Deletion(), q.SensitivityMax(n_perturb_samples=2)]
    found = explain(model, Probe((x, none)), methods, scored, target=0)
    alone = explain(model, Probe(x, forward_args=(none,)), methods, scored, target=0)
    for name, value in alone.attributions.items():
        assert torch.allclose(found.attributions[name][0], value, atol=1e-6), name  # type: ignore[arg-type]
        assert found.attributions[name][1].shape == (4, 0)
        for metric in (metric for metric, scores in alone.scores.items() if name in scores):
            assert torch.allclose(found.scores[metric][name], alone.scores[metric][name], atol=1e-5), (metric, name)


@pytest.mark.filterwarnings("ignore:(Setting|Input Tensor):UserWarning")
def test_sets_of_baselines_have_a_tensor_for_each_input_as_in_captum() -> None:
    torch.manual_seed(0)
    model, inputs, sets = Both(2).eval(), (torch.randn(3, 3), torch.randn(3, 2)), (torch.randn(5, 3), torch.randn(5, 2))
    names = (
        "DeepLiftShap",
        "GradientShap",
        "LayerDeepLiftShap",
        "LayerGradientShap",
        "NeuronDeepLiftShap",
        "NeuronGradientShap",
    )
    options = {"Deep": {}, "Grad": {"n_samples": 200, "stdevs": 0.0}, "Laye": {"layer": "first"}}
    methods = {}
    for name in names:
        given = {"layer": "first", "neuron_selector": 0} if name.startswith("Neuron") else options[name[:4]]
        methods[name] = getattr(m, name)(baselines=sets, **given)
    found = explain(model, Probe(inputs), methods, [q.Completeness()], target=0)
    expected = captum.DeepLiftShap(model).attribute(inputs, baselines=sets, target=0)
    for ours, theirs in zip(found.attributions["DeepLiftShap"], expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
    unit = captum.NeuronDeepLiftShap(model, model.first).attribute(inputs, 0, baselines=sets)
    assert torch.allclose(found.attributions["NeuronDeepLiftShap"][1], unit[1], atol=1e-6)
    (layer,) = (captum.LayerDeepLiftShap(model, model.first).attribute(inputs, baselines=sets, target=0),)
    assert torch.allclose(found.attributions["LayerDeepLiftShap"], layer, atol=1e-6)  # type: ignore[arg-type]
    union = explain(model, Probe(inputs), [m.DeepLiftShap(baselines=("zero", sets))], [], target=0)
    six = tuple(torch.cat([torch.zeros_like(s[:1]), s]) for s in sets)
    again = explain(model, Probe(inputs), [m.DeepLiftShap(baselines=six)], [], target=0)
    assert torch.equal(union.attributions["deep_lift_shap"][0], again.attributions["deep_lift_shap"][0])
    for wrong, match in (((sets[0], sets[1][:3]), "the same K for all inputs"), (sets[0], "1 entries for 2 inputs")):
        with pytest.raises(ValueError, match=match):
            explain(model, Probe(inputs), [m.GradientShap(baselines=wrong)], [], target=0)


def test_the_fraction_of_one_of_several_inputs_is_not_cut_off() -> None:
    class Sum(nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return torch.cat([x.flatten(1) for x in inputs], 1).sum(1)

    inputs = X, torch.rand(2, 3, 2), X[:, :1].int()
    method = m.FeatureAblation(baselines=(0.2, 3.1, 0.4))
    found: Any = explain(Sum(), Probe(inputs), {"it": method}, []).attributions["it"]
    for value, x, baseline in zip(found, inputs, (0.2, 3.1, 0.4), strict=True):
        assert torch.allclose(value, x - baseline, atol=1e-5)
