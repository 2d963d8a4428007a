"""Infidelity by removal, and the part of the output changes that a map leaves unexplained."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
import torch
from captum import metrics as captum
from torch import Tensor, nn

from captum_reference import metrics
from given import Given, Linear
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import ExplainedFunction, Method
from lightning_explain.core.probe import Attribution, Samples, flat
from lightning_explain.explainer.registry import METHODS
from lightning_explain.metrics.infidelity import relative_infidelity

# What the map of each method is: with its own arguments where these decide.
GRADIENT_LIKE = [
    "AttentionRollout",
    "Deconvolution",
    "GuidedBackprop",
    "GuidedGradCam",
    "InternalInfluence",
    "NeuronDeconvolution",
]
GRADIENT_LIKE += ["NeuronGradient", "NeuronGuidedBackprop", "NoiseTunnel", "Saliency"]


class Multiplied(Given):
    """A map that a user declares to contain input minus baseline."""

    multiplies_by_inputs = True


def built(name: str, **arguments: Any) -> Method:
    """A method with those of the arguments that it has."""
    known = {part.name for part in fields(METHODS[name])}
    made: Method = METHODS[name](**{key: value for key, value in arguments.items() if key in known})
    return made


def test_every_method_says_whether_its_map_contains_the_input() -> None:
    assert [name for name in sorted(METHODS) if not built(name).multiplies_by_inputs] == sorted(GRADIENT_LIKE)
    for name in METHODS:
        if "multiply_by_inputs" in {part.name for part in fields(METHODS[name])}:
            assert not built(name, multiply_by_inputs=False).multiplies_by_inputs, name
            assert not m.NoiseTunnel(built(name, multiply_by_inputs=False)).multiplies_by_inputs, name
        assert m.NoiseTunnel(m.NoiseTunnel(built(name))).multiplies_by_inputs == built(name).multiplies_by_inputs
    mine = Multiplied(torch.ones(3))
    assert mine.multiplies_by_inputs
    assert not Given(torch.ones(3)).multiplies_by_inputs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["remove", "square", "gaussian"])
def test_complete_maps_of_a_linear_model_predict_every_change(kind: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Identity(), nn.Flatten(), nn.Linear(12, 2)).double()
    x, references = torch.randn(2, 3, 1, 4, 3, dtype=torch.float64)
    shared = {"layer": "0", "n_steps": 4, "n_samples": 2, "neuron_selector": (0, 1, 2)}
    complete = {}
    for name in METHODS:
        one = references[:1] if built(name).takes_distribution else "mean"
        method = built(name, **shared, baselines=one)
        if name.startswith("Neuron"):
            method = built(name, **{**shared, "layer": "2", "neuron_selector": (1,)}, baselines=one)
        if method.completeness is not None:
            complete[name] = method
    assert len(complete) == 15
    # Its sum is that between the ends of the path, which only this rule has at the baseline and the sample.
    complete["LayerConductance"] = m.LayerConductance("0", 4, "riemann_trapezoid", baselines="mean")
    complete["set"] = m.DeepLiftShap(baselines=references)
    complete["signed"] = m.Saliency(abs=False)
    complete["times_input"] = m.InputXGradient()
    for normalize in (True, False):
        metric = q.Infidelity(kind, normalize=normalize, baselines=0.3)
        scores = explain(net, Probe(x, torch.zeros(3, dtype=torch.long)), complete, [metric]).scores
        for score in ("infidelity", "infidelity_relative"):
            assert set(scores[score]) == set(complete)
            worst = {name: float(values.max()) for name, values in scores[score].items()}
            assert max(worst.values()) <= 1e-10, worst


SEEN: list[tuple[Tensor, ...]] = []


class Recorded(Linear):
    """Keeps the samples that went through it, where the isolation does not put them back."""

    def forward(self, *inputs: Tensor) -> Tensor:
        SEEN.extend(zip(*inputs, strict=True))
        return torch.stack([flat(x * w).sum(1) for x, w in zip(inputs, self.weights, strict=True)]).sum(0)


@pytest.mark.parametrize("shapes", [[(9,)], [(2, 5)], [()], [(), ()], [(7,), (4,)]])
def test_half_of_the_units_are_removed_in_every_draw(shapes: list[tuple[int, ...]]) -> None:
    inputs = tuple(torch.rand(2, *shape) + 1 for shape in shapes)
    model = Recorded(*(torch.ones(shape) for shape in shapes))
    SEEN.clear()
    probe = Probe(inputs if len(inputs) > 1 else inputs[0])
    report = explain(model, probe, {"it": Given(*inputs, by_sample=True)}, ["Infidelity"])
    units = sum(x[0].numel() for x in inputs)
    removed = [int(sum((part == 0).sum() for part in sample)) for sample in SEEN]
    assert removed[-32:] == [units // 2] * 32, "16 draws of both samples"
    assert report.scores["infidelity_relative"]["it"].isnan().all() == (units == 1)


def test_one_square_of_each_image_is_removed_and_half_of_the_units_beside_it() -> None:
    inputs = torch.rand(2, 3, 9, 8) + 1, torch.rand(2, 6) + 1
    model = Recorded(torch.ones(3, 9, 8), torch.ones(6))
    explain(model, Probe(inputs), {"it": Given(*(x[0] for x in inputs))}, ["Infidelity"])
    for image, table in SEEN[-32:]:
        gone = image[0] == 0
        assert (gone.any(1).sum(), gone.any(0).sum(), gone.sum(), (table == 0).sum()) == (2, 2, 4, 3)
        assert ((image == 0) == gone).all(), "all channels of a pixel"


@pytest.mark.parametrize("common", [False, True], ids=["signs", "one sign"])
def test_a_map_without_information_scores_the_null(common: bool) -> None:
    torch.manual_seed(1)
    units, count = 600, 120
    weights, x = torch.randn(units), torch.randn(count, units)
    x = x * (x * weights).sign() if common else x
    exact = x * weights
    orders = torch.rand(count, units).argsort(1)
    maps = {
        "random": torch.randn(count, units),
        "positive": torch.rand(count, units),
        "shuffled": exact.gather(1, orders),
        "constant": torch.full((count, units), 0.1),
        "zero": torch.zeros(count, units),
        "exact": exact * 7,
    }
    methods = {name: Multiplied(values, by_sample=True) for name, values in maps.items()}
    scores = explain(Linear(weights), Probe(x), methods, [q.Infidelity()]).scores["infidelity_relative"]
    for name in ("random", "positive", "shuffled"):
        error = scores[name].std() / count**0.5
        assert (scores[name].mean() - (1 - 1 / 15)).abs() <= 3 * error + 1 / units, name
        assert error < 0.01
    assert (scores["constant"] == 1).all()
    assert (scores["zero"] == 1).all()
    assert scores["exact"].max() < 1e-10


def test_it_is_one_minus_the_squared_correlation_and_its_error_leaves_out_each_draw() -> None:
    products, changes = torch.randn(2, 4, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kept = [[j for j in range(17) if j != i] for i in range(17)]
    for normalize in (True, False):

        def one(p: Tensor, d: Tensor, normalize: bool = normalize) -> Tensor:
            if not normalize:
                return (p - d).square().mean(1) / d.square().mean(1)
            return torch.stack([1 - torch.corrcoef(torch.stack(pair))[0, 1] ** 2 for pair in zip(p, d, strict=True)])

        value, error = relative_infidelity(products, changes, normalize=normalize)
        left_out = torch.stack([one(products[:, k], changes[:, k]) for k in kept], 1)
        assert torch.allclose(value, one(products, changes))
        assert torch.allclose(error, (16 * left_out.var(1, unbiased=False)).sqrt())
    assert torch.allclose(
        relative_infidelity(3 * products + 1, -2 * changes + 5)[0], relative_infidelity(products, changes)[0]
    )
    zero, _ = relative_infidelity(0 * products, changes, normalize=False)
    assert torch.equal(zero, torch.ones(4, dtype=torch.float64))


def test_only_the_plain_score_grows_with_the_output() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    probe = Probe(torch.randn(3, 1, 6, 6).double())
    metrics = {kind: q.Infidelity(kind) for kind in ("remove", "gaussian")}
    maps = {"ig": m.IntegratedGradients(n_steps=20), "saliency": m.Saliency(abs=False)}
    before = explain(net, probe, maps, metrics).scores
    net[3].weight.data *= 10
    net[3].bias.data *= 10
    after = explain(net, probe, maps, metrics).scores
    for kind in metrics:
        for name in maps:
            assert torch.allclose(after[kind][name], 100 * before[kind][name])
            assert torch.allclose(after[f"{kind}_relative"][name], before[f"{kind}_relative"][name])
            assert after[f"{kind}_relative"][name].min() > 1e-6


class Bf16(Linear):
    def forward(self, *inputs: Tensor) -> Tensor:
        return super().forward(*inputs).bfloat16()


@pytest.mark.parametrize("normalize", [True, False])
def test_changes_within_rounding_are_undefined(normalize: bool) -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(3, 20), 1e-3 * torch.randn(20)
    x[1] *= 1e-4
    metric = q.Infidelity(normalize=normalize)
    maps = {"exact": m.InputXGradient(), "zero": Given(torch.zeros(20))}
    wide, narrow = (explain(kind(weights), Probe(x), maps, [metric]) for kind in (Linear, Bf16))
    for name in maps:
        assert wide.scores["infidelity_relative"][name].isnan().tolist() == [False, True, False]
        assert narrow.scores["infidelity_relative"][name].isnan().all()
        assert wide.scores["infidelity"][name].isfinite().all()


def test_each_map_is_compared_with_its_own_baseline_and_equal_points_run_once() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(4, 10), torch.randn(10)
    methods = {
        "zero": m.IntegratedGradients(n_steps=2),
        "none": m.InputXGradient(),
        "mean": m.FeatureAblation(baselines="mean"),
        "again": m.NoiseTunnel(m.IntegratedGradients(n_steps=2, baselines="mean"), stdevs=0.0, nt_samples=1),
        "any": m.Saliency(abs=False),
    }
    metrics = {"it": q.Infidelity(baselines=0.5), "scaled": q.Infidelity(baselines=0.5, normalize=False)}
    alone = explain(Linear(weights), Probe(x), methods, [])
    report = explain(Linear(weights), Probe(x), methods, metrics)
    assert max(float(values.max()) for values in report.scores["it"].values()) < 1e-10
    assert report.passes.forward - alone.passes.forward == 4 * 16 * 3, "zero, the mean, and 0.5"


class Counts(Method):
    """The exact map of a model that adds a weight for each id."""

    multiplies_by_inputs = True
    backward_rule = "none"

    def __init__(self, table: Tensor) -> None:
        self.table = table

    def attribute(self, explained: ExplainedFunction, samples: Samples) -> Attribution:
        return self.table[samples.inputs[0]] - self.table[0]


def test_ids_are_removed_and_not_subtracted() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(50, 1), nn.Flatten(), nn.Linear(8, 1, bias=False), nn.Flatten(0)).double()
    net[2].weight.data.fill_(1.0)
    table = net[0].weight.detach()[:, 0]
    report = explain(net, Probe(torch.randint(1, 50, (5, 8))), {"it": Counts(table)}, [q.Infidelity(normalize=False)])
    assert report.scores["infidelity"]["it"].max() < 1e-14


def test_a_function_of_ones_own_keeps_captums_meaning() -> None:
    torch.manual_seed(0)
    x, noise = torch.rand(3, 6).double() + 1, torch.randn(3, 20, 6).double()
    model = Linear(torch.randn(6).double())
    seen: list[int] = []

    def perturb(inputs: Tensor) -> tuple[Tensor, Tensor]:
        sample, draw = int((x == inputs).all(1).nonzero()), len(seen) % 20
        seen.append(sample)
        return noise[sample, draw][None], inputs - noise[sample, draw]

    report = explain(model, Probe(x), ["InputXGradient"], [q.Infidelity(perturb, 20)], max_examples_per_pass=1)
    theirs = metrics.infidelity(model, x, None, report.attributions["input_x_gradient"], noise, True)  # type: ignore[arg-type]
    assert torch.allclose(report.scores["infidelity"]["input_x_gradient"], theirs)


def test_squares_equal_captum_with_its_decorator() -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 3, 8, 8).double() + 1
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(72, 1), nn.Flatten(0)).double()
    kept: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, arguments: kept.append(arguments[0].detach().clone()))
    methods = {"ig": m.IntegratedGradients(baselines=0.5), "saliency": m.Saliency(abs=False)}
    metric = q.Infidelity("square", baselines=0.5)
    report = explain(model, Probe(x), methods, [metric], max_examples_per_pass=64)
    points = kept[-1]
    assert len(points) == 64
    for name, divided in (("ig", True), ("saliency", False)):
        perturb = captum.infidelity_perturb_func_decorator(divided)(lambda inputs, baselines: points)
        theirs = captum.infidelity(
            model, perturb, x, report.attributions[name], 0.5, n_perturb_samples=16, normalize=True
        )
        assert torch.allclose(report.scores["infidelity"][name], theirs)


X = torch.randn(6, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
TWO: dict[str, Method] = {"gradient": m.Saliency(abs=False), "ig": m.IntegratedGradients(n_steps=4)}
COUNTS = (16, 24, 32, 40)


def smooth() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 2)).double()


class TestAsManyDrawsAsNeeded:
    """``n_perturb_samples="auto"``; the slow twin is a run with each fixed number."""

    def run(self, methods: Any = None, places: Any = slice(None), limit: int = 64, **arguments: Any) -> Any:
        probe = Probe(X[places], ids=torch.arange(6)[places])
        metric = q.Infidelity(
            **{"n_perturb_samples": "auto", "tolerance": 0.05, "max_perturb_samples": 40, **arguments}
        )
        methods = TWO if methods is None else methods
        return explain(smooth(), probe, methods, {"i": metric}, target=0, max_examples_per_pass=limit)

    def test_a_score_is_that_of_the_first_number_of_draws_whose_error_is_small_enough(self) -> None:
        found, fixed = self.run(), {count: self.run(n_perturb_samples=count) for count in COUNTS}
        stopped = set()
        for name in TWO:
            for i in range(6):
                small = (k for k in COUNTS if fixed[k].standard_errors["i_relative"][name][i] <= 0.05)
                count = next(small, 40)
                stopped.add(count)
                assert found.n_draws["i"][name][i] == count
                for parts in ("scores", "standard_errors"):
                    for key in ("i", "i_relative"):
                        expected = getattr(fixed[count], parts)[key][name][i]
                        torch.testing.assert_close(getattr(found, parts)[key][name][i], expected, rtol=1e-9, atol=1e-12)
        assert len(stopped) > 2, "samples stop at different numbers"
        mean = found.n_draws["i"]["ig"].double().mean().item()
        assert found.scalars()["n_draws/i/ig"] == pytest.approx(mean)
        assert fixed[16].n_draws == {}
        assert fixed[16].passes.forward < found.passes.forward < fixed[40].passes.forward

    def test_it_depends_on_neither_the_other_methods_nor_the_other_samples_nor_the_chunk(self) -> None:
        whole = self.run().scores["i_relative"]
        alone = self.run({"ig": TWO["ig"]}).scores["i_relative"]["ig"]
        few, one = (self.run(places=torch.tensor([5, 1]), limit=limit).scores["i_relative"] for limit in (64, 1))
        torch.testing.assert_close(alone, whole["ig"], rtol=1e-9, atol=1e-12)
        for name in TWO:
            for found in (few, one):
                torch.testing.assert_close(found[name], whole[name][[5, 1]], rtol=1e-9, atol=1e-12)

    def test_the_least_and_the_most_draws(self) -> None:
        equal = {
            "loose": ({"tolerance": 10.0}, 16),
            "strict": ({"tolerance": 1e-9}, 40),
            "odd": ({"max_perturb_samples": 21, "tolerance": 1e-9}, 21),
        }
        for arguments, count in equal.values():
            found, fixed = self.run(**arguments), self.run(n_perturb_samples=count)
            torch.testing.assert_close(found.scores, fixed.scores, rtol=1e-9, atol=1e-12)
            assert found.passes == fixed.passes

    def test_samples_without_a_score_stop_at_once(self) -> None:
        def constant(model: nn.Module, x: Tensor) -> Tensor:
            return model(x) * 0 + 1

        metric = q.Infidelity(n_perturb_samples="auto")
        found = explain(smooth(), Probe(X), TWO, {"i": metric}, target=0, forward_fn=constant)
        fixed = explain(smooth(), Probe(X), TWO, {"i": q.Infidelity()}, target=0, forward_fn=constant)
        assert found.scores["i_relative"]["ig"].isnan().all()
        assert found.passes == fixed.passes

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ({"n_perturb_samples": "all"}, r"n_perturb_samples='all'.*at least 1, or 'auto'"),
            ({"max_perturb_samples": 15}, r"max_perturb_samples=15.*at least 16"),
            ({"tolerance": 0}, r"tolerance=0"),
        ],
    )
    def test_what_is_not_allowed_is_refused(self, arguments: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            q.Infidelity(**arguments)
