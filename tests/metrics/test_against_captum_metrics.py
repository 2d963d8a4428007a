from __future__ import annotations

import captum.attr as ca
import pytest
import torch
from torch import Tensor, nn

from captum_reference import metrics, primary
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import Method
from lightning_explain.core.draws import KeyedDraws
from lightning_explain.core.probe import Samples
from lightning_explain.modalities.image import upsample
from networks import OutOfPlace, samples, trained

METHODS = {
    "saliency": m.Saliency(abs=False),
    "ig": m.IntegratedGradients(n_steps=7),
    "cam": m.LayerGradCam("block.relu2"),
    "guided": m.GuidedBackprop(),
    "occlusion": m.Occlusion((1, 4, 4)),
}


def draws(kind: str, purpose: str, x: Tensor, count: int) -> Tensor:
    """Our draws ``(N, count, ...)``."""
    ids = torch.arange(len(x)).repeat_interleave(count)
    repeated = Samples((), (), (), ids, torch.zeros_like(ids))
    found = getattr(KeyedDraws(0), kind)(
        purpose, repeated, torch.arange(count).repeat(len(x)), x.repeat_interleave(count, 0)
    )
    return found.unflatten(0, (len(x), count))


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-4) -> bool:
    return bool(((ours - theirs).abs() <= tolerance * theirs.abs().max()).all())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("limit", [3, 64])
def test_infidelity_equals_captum_on_the_same_perturbations(normalize: bool, limit: int) -> None:
    x, y = samples()
    metric = q.Infidelity("gaussian", n_perturb_samples=8, stdevs=0.2, normalize=normalize)
    report = explain(trained().double(), Probe(x, y), METHODS, [metric], max_examples_per_pass=limit)
    noise = draws("normal", "infidelity/0", x.double(), 8) * 0.2
    model = trained(OutOfPlace).double().eval()
    assert sum(method.multiplies_by_inputs for method in METHODS.values()) == 3
    for name, found in report.attributions.items():
        placed = upsample(found, (8, 8)) if name == "cam" else found
        divided = METHODS[name].multiplies_by_inputs
        theirs = metrics.infidelity(model, x.double(), y, placed.detach(), noise, normalize, divided)
        assert close(report.scores["infidelity"][name], theirs, 1e-8)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm_ord", ["fro", "inf", 1])
@pytest.mark.parametrize("limit", [1, 3, 64])
def test_sensitivity_equals_captum_on_the_same_perturbations(norm_ord: str | int, limit: int) -> None:
    x, y = samples()
    metric = q.SensitivityMax(n_perturb_samples=5, perturb_radius=0.1, norm_ord=norm_ord)
    methods = {name: METHODS[name] for name in ("saliency", "ig", "cam")}
    report = explain(trained().double(), Probe(x, y), methods, [metric], max_examples_per_pass=limit)
    x = x.double()
    points = x[:, None] + (2 * draws("uniform", "sensitivity/0", x, 5) - 1) * 0.1
    model = trained(OutOfPlace).double().eval()
    explanations = {
        "saliency": lambda inputs, target: primary.saliency(model, inputs, target),
        "ig": lambda inputs, target: ig(model, inputs, target),
        "cam": lambda inputs, target: upsample(cam(model, inputs, target), (8, 8)),
    }
    for name, explanation in explanations.items():
        order = float("inf") if norm_ord == "inf" else norm_ord
        theirs = metrics.sensitivity_max(explanation, x, y, points, order)
        # Captum rounds the weights of a quadrature to float32.
        assert close(report.scores["sensitivity_max"][name], theirs, 1e-6 if name == "ig" else 1e-8)


def ig(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return ca.IntegratedGradients(model).attribute(x, target=y, n_steps=7)


def cam(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    # The ReLU of this block is a function; what comes out of the block is what comes out of it.
    return ca.LayerGradCam(model, model.block).attribute(x, target=y)


@pytest.mark.filterwarnings("ignore:.*hold no evidence against:UserWarning")
def test_infidelity_of_captums_own_example_has_captums_values() -> None:
    models = pytest.importorskip("captum.testing.helpers.basic_models", reason="Captum 0.8 comes without its models")
    x = torch.arange(1.0, 13.0).reshape(4, 3)

    def ones(inputs: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(inputs), torch.zeros_like(inputs)

    metrics = {
        "raw": q.Infidelity(perturb_func=ones, n_perturb_samples=2, normalize=False),
        "normalised": q.Infidelity(perturb_func=ones, n_perturb_samples=2),
    }
    probe = Probe(x, forward_args=(x.clone(), True))
    report = explain(models.BasicModel_MultiLayer(), probe, [m.Saliency()], metrics, target=(0, 1, 1))
    assert report.scores["raw"]["saliency"].tolist() == [4096.0, 147456.0, 451584.0, 921600.0]
    assert report.scores["normalised"]["saliency"].tolist() == [0.0] * 4


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


class Constant(Method):
    """A map that does not look at the model."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def attribute(self, explained: object, samples: Samples) -> Tensor:
        return self.values.expand_as(samples.inputs[0])


def test_infidelity_of_a_linear_model_has_its_closed_form() -> None:
    w, s = torch.tensor([1.0, -2.0, 3.0]), 0.1
    maps = {"exact": Constant(w), "zero": Constant(0 * w), "double": Constant(2 * w)}
    probe = Probe(torch.randn(4, 3))
    metrics = {
        "raw": q.Infidelity("gaussian", n_perturb_samples=4000, stdevs=s, normalize=False),
        "normalised": q.Infidelity("gaussian", n_perturb_samples=50, stdevs=s),
    }
    report = explain(Linear(), probe, maps, metrics)
    raw, normalised = report.scores["raw"], report.scores["normalised"]
    assert raw["exact"].abs().max() < 1e-10
    for name in ("zero", "double"):
        error = (raw[name] - 14 * s**2).abs() / report.standard_errors["raw"][name]
        assert error.max() < 4, "more than four standard errors from s^2 |w - phi|^2"
    assert normalised["double"].abs().max() < 1e-10


def test_the_standard_error_of_infidelity_is_the_spread_over_independent_seeds() -> None:
    x, y = samples(3)
    runs = [
        explain(trained(), Probe(x, y), [m.Saliency(abs=False)], [q.Infidelity("gaussian", 20)], seed=seed)
        for seed in range(30)
    ]
    spread = torch.stack([r.scores["infidelity"]["saliency"] for r in runs]).std(0)
    stated = torch.stack([r.standard_errors["infidelity"]["saliency"] for r in runs]).mean(0)
    assert ((stated / spread).log().abs() < 0.7).all()


def test_a_constant_explainer_is_not_sensitive() -> None:
    report = explain(Linear(), Probe(torch.randn(4, 3)), {"it": Constant(torch.ones(3))}, [q.SensitivityMax()])
    assert torch.equal(report.scores["sensitivity_max"]["it"], torch.zeros(4))
    assert report.standard_errors == {}


def test_perturbed_samples_of_infidelity_go_through_the_model_once_for_all_methods() -> None:
    x, y = samples(16)
    model, calls = trained(), []
    model.register_forward_hook(lambda module, arguments, output: calls.append(len(output)))
    five = {f"method{i}": Constant(torch.full((8, 8), float(i + 1))) for i in range(5)}
    from lightning_explain.explainer.explainer import Explainer

    explainer = Explainer(five, {"infidelity": q.Infidelity(n_perturb_samples=10)}, limit=24)
    report = explainer.explain(model, Probe(x, y))
    assert sum(calls) == report.passes.forward == 16 + 160
    assert max(calls) <= 24
    assert report.passes.backward == 0


@pytest.mark.parametrize("limit", [1, 3, 64])
def test_scores_do_not_depend_on_the_order_of_samples_or_chunks(limit: int) -> None:
    x, y = samples()
    # Passes of one sample take long: three samples alone score what they score among all.
    order = torch.tensor([3, 0, 6] if limit == 1 else [3, 0, 6, 1, 5, 2, 4])
    metrics = {
        "local": q.Infidelity(n_perturb_samples=5),
        "square": q.Infidelity(perturb_func="square", n_perturb_samples=5),
        "own": q.Infidelity(lambda x: ((noise := torch.randn_like(x) * 0.1), x - noise), n_perturb_samples=5),
        "sensitivity": q.SensitivityMax(perturb_radius=0.1, n_perturb_samples=3),
        "own_sensitivity": q.SensitivityMax(perturb_func=lambda x, r: x + torch.rand_like(x) * r, n_perturb_samples=3),
    }
    straight = explain(trained().double(), Probe(x, y), METHODS, metrics)
    mixed = explain(
        trained().double(), Probe(x[order], y[order], ids=order), METHODS, metrics, max_examples_per_pass=limit
    )
    for metric, by_method in straight.scores.items():
        for method, values in by_method.items():
            assert close(mixed.scores[metric][method], values[order], 1e-9), (metric, method)


def test_relevance_mass_is_the_share_of_the_positive_map_inside_the_mask() -> None:
    masks = torch.zeros(2, 2, 2, dtype=torch.bool)
    masks[:, 0] = True
    values = torch.tensor([[[[3.0, 1.0], [4.0, -5.0]]], [[[-1.0, -1.0], [-1.0, -1.0]]]])
    assert torch.equal(q.localisation.relevance_mass(values, masks)[:1], torch.tensor([0.5]))
    assert q.localisation.relevance_mass(values, masks)[1].isnan()


def test_samples_that_are_not_finite_are_named_and_counted_and_left_out_of_means() -> None:
    class Broken(Constant):
        def attribute(self, explained: object, samples: Samples) -> Tensor:
            found = self.values.expand_as(samples.inputs[0]).clone()
            found[samples.ids == 12] = torch.nan
            return found

    probe = Probe(torch.randn(3, 3), ids=torch.tensor([10, 12, 14]))
    report = explain(Linear(), probe, {"it": Broken(torch.ones(3))}, [q.Infidelity()])
    assert report.nonfinite() == {"it": [12]}
    scalars = report.scalars()
    assert scalars["nonfinite/it"] == 1
    assert scalars["infidelity/it"] == pytest.approx(report.scores["infidelity"]["it"][[0, 2]].mean().item())


@pytest.mark.parametrize("normalize", [True, False])
def test_the_standard_error_is_the_jackknife_written_out(normalize: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    products, changes = torch.randn(2, 4, 6, generator=generator, dtype=torch.float64)
    kept = [[j for j in range(6) if j != i] for i in range(6)]
    left_out = torch.stack([q.infidelity.infidelity(products[:, k], changes[:, k], normalize) for k in kept], 1)
    expected = (5 / 6 * (left_out - left_out.mean(1, keepdim=True)).square().sum(1)).sqrt()
    assert torch.allclose(q.infidelity.jackknife(products, changes, normalize), expected)
