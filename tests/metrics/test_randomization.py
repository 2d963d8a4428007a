from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from given import Given
from lightning_explain import Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import Method
from lightning_explain.core.probe import Samples
from lightning_explain.metrics.randomization import depths
from networks import samples, trained


class EdgeDetector(Method):
    """Sobel's: a picture of the input that ignores the network."""

    def attribute(self, explained: object, samples: Samples) -> Tensor:
        x = samples.inputs[0]
        kernel = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]).to(x)[None, None]
        across, down = F.conv2d(x, kernel, padding=1), F.conv2d(x, kernel.transpose(2, 3), padding=1)
        return (across.square() + down.square()).sqrt()


METHODS = {
    "edges": EdgeDetector(),
    "gradient": m.Saliency(abs=False),
    "ig": m.IntegratedGradients(n_steps=8),
    "guided": m.GuidedBackprop(),
    "cam": m.LayerGradCam("block"),
}


@pytest.fixture(scope="module")
def report() -> Report:
    x, y = samples(16)
    return explain(trained(), Probe(x, y), METHODS, {"it": q.Randomization(n_layers=None, n_draws=3)})


def test_an_edge_detector_does_not_notice_and_the_gradient_of_a_trained_network_does(report: Report) -> None:
    for score in ("it", "it_top", "it_full"):
        means = {name: report.scores[score][name].mean().item() for name in METHODS}
        assert means["edges"] == pytest.approx(1, abs=1e-6)
        for name in ("gradient", "ig", "cam"):
            assert means[name] < 0.25, (score, name)


def test_guided_backpropagation_looks_at_the_network_far_less_than_the_gradient(report: Report) -> None:
    # What Adebayo et al. (2018) found.
    means = {name: value.mean().item() for name, value in report.scores["it"].items()}
    assert means["gradient"] + 0.3 < means["guided"] < means["edges"]


def test_the_standard_error_is_the_spread_over_random_networks(report: Report) -> None:
    x, y = samples(16)
    runs = [
        explain(trained(), Probe(x, y), {"gradient": METHODS["gradient"]}, [q.Randomization(2, 6)], seed=seed)
        for seed in range(12)
    ]
    spread = torch.stack([run.scores["randomization"]["gradient"] for run in runs]).std(0)
    stated = torch.stack([run.standard_errors["randomization"]["gradient"] for run in runs]).mean(0)
    assert abs((stated.mean() / spread.mean()).log()) < 0.4
    assert torch.equal(report.standard_errors["it"]["edges"] < 1e-6, torch.ones(16, dtype=torch.bool))


def test_one_random_network_has_no_standard_error() -> None:
    x, y = samples(2)
    report = explain(trained(), Probe(x, y), {"gradient": METHODS["gradient"]}, [q.Randomization(1, 1)])
    assert report.standard_errors == {}
    assert set(report.scores) == {"randomization", "randomization_top", "randomization_full"}
    assert torch.equal(report.scores["randomization"]["gradient"], report.scores["randomization_full"]["gradient"])


def test_equal_seeds_give_equal_numbers_whatever_the_global_generator_says() -> None:
    x, y = samples(3)

    def once(seed: int) -> Tensor:
        torch.manual_seed(int(torch.randint(1000, ())))
        metric = q.Randomization(n_layers=2, n_draws=1)
        return explain(trained(), Probe(x, y), {"it": METHODS["ig"]}, [metric], seed=seed).scores["randomization"]["it"]

    assert torch.equal(once(0), once(0))
    assert not torch.equal(once(0), once(1))


def test_maps_without_a_place_in_input_space_are_compared_in_their_own_shape() -> None:
    x, y = samples(3)
    report = explain(trained(), Probe(x, y), {"head": m.LayerActivation("head")}, [q.Randomization(n_layers=1)])
    assert report.scores["randomization"]["head"].abs().max() < 1


def test_by_size_a_map_and_its_negative_are_the_same() -> None:
    class Negated(Given):
        calls = 0

        def attribute(self, explained: object, samples: Samples) -> Tensor:
            self.calls += 1
            return self.values[0].expand(len(samples), *self.values[0].shape) * (1 if self.calls == 1 else -1)

    x, y = samples(2)
    metrics = [("signed", q.Randomization(1, 1)), ("sizes", q.Randomization(1, 1, abs=True))]
    for (name, metric), value in zip(metrics, (-1, 1), strict=True):
        methods = {"it": Negated(torch.randn(1, 8, 8))}
        report = explain(trained(), Probe(x, y), methods, {name: metric})
        assert report.scores[name]["it"].tolist() == pytest.approx([value, value])


def test_constant_maps_do_not_count() -> None:
    x, y = samples(2)
    values = torch.stack([torch.zeros(1, 8, 8), torch.randn(1, 8, 8)])
    found = explain(trained(), Probe(x, y), {"it": Given(values, by_sample=True)}, [q.Randomization()]).scores
    for by_method in found.values():
        assert by_method["it"].isnan().tolist() == [True, False]


def test_stages_are_spread_evenly_from_the_top_layer_to_all_of_them() -> None:
    assert depths(4, None) == depths(4, 9) == [1, 2, 3, 4]
    assert depths(41, 5) == [1, 11, 21, 31, 41]
    assert depths(7, 2) == [1, 7]
    assert depths(7, 1) == [7]


@pytest.mark.parametrize("arguments", [{"n_layers": 0}, {"n_draws": 0}, {"abs": "yes"}])
def test_arguments_are_checked(arguments: dict[str, object]) -> None:
    name = next(iter(arguments))
    with pytest.raises((TypeError, ValueError), match=rf"Randomization\({name}=.*give "):
        q.Randomization(**arguments)  # type: ignore[arg-type]


def test_a_model_without_parameters_is_refused() -> None:
    class Sum(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1)

    with pytest.raises(ValueError, match="needs a model with parameters"):
        explain(Sum(), Probe(torch.randn(2, 3)), {"it": Given(torch.randn(3))}, [q.Randomization()])


@pytest.mark.parametrize("parametrization", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights_are_randomized_and_put_back(parametrization: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        parametrization(nn.Conv2d(1, 4, 3)), nn.ReLU(), nn.Flatten(), parametrization(nn.Linear(144, 4))
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x, y = samples(4)
    found = explain(model, Probe(x, y % 4), {"it": m.Saliency(abs=False)}, [q.Randomization()])
    assert found.scores["randomization_full"]["it"].abs().max() < 0.9
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
