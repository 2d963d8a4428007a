from __future__ import annotations

import functools
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from captum_reference import perturbation
from comparing import LIMITS, ORDER, by_hand, distance, ours, permutations, seeded_samples, together
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from networks import samples, trained

GRID = (torch.arange(8)[:, None] // 4 * 2 + torch.arange(8) // 4).reshape(1, 1, 8, 8)
STRIPES = torch.tensor([0, 0, 1, 2, 2, 3, 4, 4]).expand(1, 1, 8, 8).contiguous()
# Each sample has features of its own: stripes that are shifted by its number.
OWN = torch.stack([STRIPES[0].roll(i, -1) for i in range(7)])


def sample_by_sample(theirs: object, mask: Tensor) -> object:
    return lambda model, x, y: seeded_samples(lambda sample, label: theirs(model, sample, label, mask))


def with_own_features(theirs: object) -> object:
    """Captum is given one sample and its mask at a time."""

    def call(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        masks = iter(OWN)
        return seeded_samples(lambda sample, label: theirs(model, sample, label, next(masks)[None]))

    return call


CASES = {
    "feature_ablation": (
        m.FeatureAblation(baselines=0.3, feature_mask=STRIPES),
        partial(perturbation.feature_ablation, mask=STRIPES),
    ),
    "feature_ablation_each": (m.FeatureAblation(baselines=0.3), perturbation.feature_ablation),
    "feature_ablation_own": (
        m.FeatureAblation(baselines=0.3, feature_mask=OWN),
        with_own_features(perturbation.feature_ablation),
    ),
    "feature_permutation": (
        m.FeaturePermutation(feature_mask=STRIPES),
        lambda model, x, y: perturbation.feature_permutation(model, x, y, STRIPES, permutations(5)),
    ),
    "feature_permutation_each": (
        m.FeaturePermutation(),
        lambda model, x, y: perturbation.feature_permutation(
            model, x, y, torch.arange(64).reshape(1, 1, 8, 8), permutations(64)
        ),
    ),
    "shapley_values": (
        m.ShapleyValues(baselines=0.3, feature_mask={"grid": 4}),
        partial(perturbation.shapley_values, mask=GRID),
    ),
    "shapley_values_own": (
        m.ShapleyValues(baselines=0.3, feature_mask=OWN),
        with_own_features(perturbation.shapley_values),
    ),
}
RANDOM = {
    "shapley_value_sampling": (
        m.ShapleyValueSampling(n_samples=6, baselines=0.3, feature_mask=STRIPES),
        sample_by_sample(perturbation.shapley_value_sampling, STRIPES),
    ),
    "shapley_value_sampling_own": (
        m.ShapleyValueSampling(n_samples=6, baselines=0.3, feature_mask=OWN),
        with_own_features(perturbation.shapley_value_sampling),
    ),
    "lime": (
        m.Lime(n_samples=17, baselines=0.3, feature_mask=STRIPES),
        sample_by_sample(perturbation.lime, STRIPES),
    ),
    "lime_own": (
        m.Lime(n_samples=17, baselines=0.3, feature_mask=OWN),
        with_own_features(perturbation.lime),
    ),
    "lime_ridge": (
        m.Lime(
            n_samples=17,
            baselines=0.3,
            feature_mask=STRIPES,
            interpretable_model=perturbation.SkLearnRidge(alpha=0.1),
            similarity_func=perturbation.get_exp_kernel_similarity_function("euclidean", 3.0),
            perturb_func=perturbation.uneven_features,
            return_input_shape=False,
        ),
        sample_by_sample(perturbation.lime_ridge, STRIPES),
    ),
    "kernel_shap": (
        m.KernelShap(n_samples=17, baselines=0.3, feature_mask=STRIPES),
        sample_by_sample(perturbation.kernel_shap, STRIPES),
    ),
    "kernel_shap_own": (
        m.KernelShap(n_samples=17, baselines=0.3, feature_mask=OWN),
        with_own_features(perturbation.kernel_shap),
    ),
}


@functools.cache
def explained(limit: int, mixed: bool = False) -> tuple:
    # Masks for each sample stand in the order of the probe.
    methods = {name: method for name, (method, _) in (CASES | RANDOM).items() if not (mixed and "own" in name)}
    return together(methods, limit, order=ORDER if mixed else None)


@functools.cache
def expected(name: str) -> Tensor:
    return (CASES | RANDOM)[name][1](by_hand(), *samples())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("name", CASES | RANDOM)
def test_a_perturbation_method_equals_captum_on_the_same_draws_in_any_chunk(name: str, limit: int) -> None:
    report, largest = explained(limit)
    assert distance(report.attributions[name], expected(name)) <= 1e-5
    assert largest[name] <= limit


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in CASES | RANDOM if "own" not in name])
def test_samples_in_another_order_give_the_same_numbers(name: str) -> None:
    report, _ = explained(3, mixed=True)
    assert distance(report.attributions[name], explained(64)[0].attributions[name][ORDER]) <= 1e-5


def test_masks_for_each_sample_are_found_by_position_in_the_probe() -> None:
    mixed, _ = together({"it": m.FeatureAblation(baselines=0.3, feature_mask=OWN[ORDER])}, 3, order=ORDER)
    straight, _ = together({"it": m.FeatureAblation(baselines=0.3, feature_mask=OWN)}, 64)
    assert distance(mixed.attributions["it"], straight.attributions["it"][ORDER]) <= 1e-5


def test_many_features_go_through_the_network_at_once() -> None:
    _, largest = together({"it": m.FeaturePermutation(), "ablation": m.FeatureAblation()}, 64)
    assert min(largest["it"], largest["ablation"]) == 63


def test_random_methods_do_not_move_the_global_generators() -> None:
    model = trained()
    state = torch.get_rng_state()
    together({"lime": m.Lime(feature_mask={"grid": 4}), "shapley": m.ShapleyValueSampling(2)}, 64, lambda: model)
    assert torch.equal(torch.get_rng_state(), state)


def test_nested_samples_have_draws_of_their_own() -> None:
    inner = m.ShapleyValueSampling(n_samples=1, feature_mask={"grid": 4})
    tunnel = m.NoiseTunnel(inner, nt_type="vargrad", nt_samples=4, stdevs=0.0)
    assert ours(tunnel).abs().max() > 0


# --- FeaturePermutation


def test_a_sample_takes_the_feature_of_another_sample_whatever_samples_are_explained_with_it() -> None:
    # f is the sum of the input: what a permutation takes from one sample it gives to another.
    x = torch.arange(12.0).reshape(4, 3)
    model = nn.Linear(3, 1, bias=False)
    nn.init.ones_(model.weight)
    for limit in (1, 2, 64):
        report = explain(model, Probe(x), {"it": m.FeaturePermutation()}, [], max_examples_per_pass=limit)
        found = report.attributions["it"]
        torch.testing.assert_close(found.sum(0), torch.zeros(3))
        assert (found.abs().sum(0) > 0).all()


def test_a_permutation_always_moves_samples() -> None:
    x = torch.tensor([[0.0] * 50, [1.0] * 50])
    model = nn.Linear(50, 1, bias=False)
    nn.init.ones_(model.weight)
    report = explain(model, Probe(x), {"it": m.FeaturePermutation()}, [])
    torch.testing.assert_close(report.attributions["it"], torch.stack([-torch.ones(50), torch.ones(50)]))


def test_a_users_own_permutation_sees_the_clean_probe_in_the_order_of_ids() -> None:
    def backwards(inputs: Tensor, feature: Tensor) -> Tensor:
        return torch.where(feature, inputs.flip(0), inputs)

    methods = {"it": m.FeaturePermutation(feature_mask=STRIPES, perm_func=backwards)}
    x, y = samples()
    theirs = perturbation.feature_permutation(by_hand(), x, y, STRIPES, torch.arange(7).flip(0).expand(5, 7))
    for limit in LIMITS:
        report, _ = together(methods, limit, order=ORDER)
        torch.testing.assert_close(report.attributions["it"], theirs[ORDER], rtol=1e-5, atol=1e-5)


def test_permutation_of_one_sample_is_refused_before_anything_runs() -> None:
    x, y = samples(1)
    for method in (m.FeaturePermutation(), m.NoiseTunnel(m.FeaturePermutation())):
        with pytest.raises(
            ValueError, match=r"'it' \(.*\): it permutes features across samples, but the probe has only one"
        ):
            explain(trained(), Probe(x, y), {"it": method}, [])


def test_permutation_of_features_that_differ_from_sample_to_sample_is_refused() -> None:
    with pytest.raises(ValueError, match="FeaturePermutation needs the same features in all samples"):
        ours(m.FeaturePermutation(feature_mask=OWN))


def test_permutation_has_a_sensitivity_which_is_small_where_the_network_is_flat() -> None:
    x, y = samples()
    method = {"it": m.FeaturePermutation(feature_mask={"grid": 4})}
    metric = q.SensitivityMax(n_perturb_samples=3, perturb_radius=1e-6)
    report = explain(trained().double(), Probe(x, y), method, [metric])
    assert report.scores["sensitivity_max"]["it"].max() < 1e-3


# --- Shapley


class Product(nn.Module):
    """f = x0 * x1 + x2: the product is shared by halves."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0] * x[:, 1] + x[:, 2]


def test_shapley_values_share_a_product_by_halves() -> None:
    report = explain(Product(), Probe(torch.tensor([[2.0, 3.0, 5.0]])), {"it": m.ShapleyValues()}, [])
    torch.testing.assert_close(report.attributions["it"], torch.tensor([[3.0, 3.0, 5.0]]))


def test_shapley_values_cost_one_sample_for_each_set() -> None:
    x, y = samples(2)
    report = explain(trained(), Probe(x, y), {"it": m.ShapleyValues(feature_mask={"grid": 4})}, [])
    assert report.passes.forward == 2 * (2**4 + 1)  # one more for the outputs


def test_shapley_values_of_too_many_features_are_refused_with_a_fix() -> None:
    with pytest.raises(ValueError, match="all sets of the 64 features; give a feature_mask with at most 12 of them"):
        ours(m.ShapleyValues())


def test_shapley_sampling_comes_close_to_the_exact_values() -> None:
    x, y = samples(1)
    methods = {
        "sampled": m.ShapleyValueSampling(n_samples=300, feature_mask={"grid": 4}),
        "exact": m.ShapleyValues(feature_mask={"grid": 4}),
    }
    report = explain(trained(), Probe(x, y), methods, [])
    assert distance(report.attributions["sampled"], report.attributions["exact"]) <= 0.1


@pytest.mark.parametrize(
    ("cls", "arguments", "error", "match"),
    [
        (m.ShapleyValueSampling, {"n_samples": 0}, ValueError, r"ShapleyValueSampling\(n_samples=0\)"),
        (m.Lime, {"n_samples": 0}, ValueError, r"Lime\(n_samples=0\)"),
        (m.Lime, {"perturb_func": 1}, TypeError, r"Lime\(perturb_func=1\); give None or a callable"),
        (m.Lime, {"similarity_func": "cosine"}, TypeError, r"Lime\(similarity_func='cosine'\)"),
        (
            m.KernelShap,
            {"feature_mask": {"patch": 3}},
            ValueError,
            r"KernelShap\(feature_mask=\{'patch': 3\}\); give None",
        ),
        (m.FeaturePermutation, {"perm_func": 1}, TypeError, r"FeaturePermutation\(perm_func=1\)"),
        (m.FeatureAblation, {"baselines": "probe"}, ValueError, "baselines='probe'"),
    ],
)
def test_what_is_not_allowed_is_refused_at_once(cls: type, arguments: dict, error: type, match: str) -> None:
    with pytest.raises(error, match=match):
        cls(**arguments)


@pytest.mark.parametrize("cls", [m.Lime, m.KernelShap])
def test_without_scikit_learn_the_error_names_the_fix(cls: type, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    fix = r"pip install 'lightning-explain\[surrogates\]'"
    with pytest.raises(ImportError, match=rf"{cls.__name__} fits its model with scikit-learn: {fix}"):
        cls()
    if cls is m.Lime:
        m.Lime(interpretable_model=object())
