"""``n_steps="auto"``: each sample takes as many points as its map needs to add up, and none is evaluated twice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from captum import attr as captum
from torch import Tensor, nn

from comparing import distance
from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.report.stored_runs import load_runs
from lightning_explain.report.summary import facts
from lightning_explain.store.report_files import load_reports, save_report
from networks import samples, trained


class Kinked(nn.Module):
    """Linear for the first samples, with many kinks for those whose first element is large."""

    def forward(self, x: Tensor) -> Tensor:
        return (x.sum(1) + torch.relu(torch.sin(12 * x[:, 0] * (x[:, 0] > 1))).sqrt().nan_to_num())[:, None]


def test_maps_add_up_to_the_tolerance_and_the_samples_say_how_many_points_they_took() -> None:
    x, y = samples()
    methods = {"auto": m.IntegratedGradients("auto", tolerance=0.002), "few": m.IntegratedGradients(9)}
    report = explain(trained().double(), Probe(x, y), methods, [q.Completeness()])
    assert report.scores["completeness"]["auto"].max() <= 0.002
    taken = report.n_steps["auto"]
    assert taken.shape == (7,)
    assert set(taken.tolist()) <= {8 * 2**i + 1 for i in range(8)}
    assert len(set(taken.tolist())) > 1, "samples differ in what they need"
    assert list(report.n_steps) == ["auto"]
    assert report.scalars()["n_steps/auto"] == pytest.approx(taken.double().mean().item())
    # 1 for f(x), 9 for the fixed line, Completeness looks at the baseline once.
    assert report.passes.backward == int(taken.sum()) + 7 * 9


def test_the_map_is_captums_integral() -> None:
    x, y = samples(3)
    model = trained().double()
    found = explain(model, Probe(x, y), {"it": m.IntegratedGradients("auto", tolerance=1e-5)}, []).attributions["it"]
    # Not Captum's default rule, whose 1,000 nodes take longer to find than the integral.
    rule = {"n_steps": 1000, "method": "riemann_middle"}
    exact = captum.IntegratedGradients(model.eval()).attribute(x.double(), target=y, **rule)
    assert distance(found, exact) < 5e-3


def test_a_linear_function_takes_the_fewest_points_and_a_crooked_one_ends() -> None:
    x = torch.tensor([[0.5, 1.0], [3.0, 1.0]])
    report = explain(Kinked(), Probe(x), {"it": m.IntegratedGradients("auto", tolerance=1e-6)}, [])
    assert report.n_steps["it"].tolist() == [9, 1025]
    assert torch.allclose(report.attributions["it"][0], x[0])


def test_samples_are_the_same_in_any_chunk_and_inside_other_methods() -> None:
    x, y = samples()
    methods = {
        "auto": m.IntegratedGradients("auto"),
        "noisy": m.NoiseTunnel(m.IntegratedGradients("auto"), nt_samples=2, stdevs=0.1),
        "neuron": m.NeuronIntegratedGradients(neuron_selector=(0, 1, 1), n_steps="auto"),
    }
    one, all_ = (
        explain(trained().double(), Probe(x, y), methods, [], max_examples_per_pass=limit) for limit in (1, 64)
    )
    for name in methods:
        torch.testing.assert_close(one.attributions[name], all_.attributions[name], rtol=1e-9, atol=1e-12)
    assert torch.equal(one.n_steps["auto"], all_.n_steps["auto"])
    assert torch.equal(one.n_steps["neuron"], all_.n_steps["neuron"])
    assert set(one.n_steps) == {"auto", "neuron"}


def test_points_are_kept_in_the_reports_file(tmp_path: Path) -> None:
    x, y = samples()
    auto = q.Infidelity(n_perturb_samples="auto", max_perturb_samples=24)
    report = explain(trained(), Probe(x, y), {"it": m.IntegratedGradients("auto")}, {"draws": auto})
    save_report(report, tmp_path)
    (read,) = load_reports(tmp_path)
    assert torch.equal(read.n_steps["it"], report.n_steps["it"])
    assert torch.equal(read.n_draws["draws"]["it"], report.n_draws["draws"]["it"])
    (run,) = load_runs([tmp_path])
    said = dict(facts([run])["Cost"][0][1])
    steps = report.n_steps["it"]
    assert said["it"].startswith(
        f'"auto" took {int(steps.min())} to {int(steps.max())} points on the path for a sample'
    )
    assert re.fullmatch(r'"auto" took \d+( to \d+)? draws for .*', said["draws/it"])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_steps": "many"}, r"IntegratedGradients\(n_steps='many'\); give a whole number"),
        ({"n_steps": "auto", "tolerance": 0}, r"IntegratedGradients\(tolerance=0\); give a number above 0"),
        ({"tolerance": True}, r"tolerance=True"),
    ],
)
def test_what_is_no_number_of_steps_or_tolerance_is_refused(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        m.IntegratedGradients(**arguments)


def test_whole_number_inputs_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 1), nn.Flatten())
    with pytest.raises(ValueError, match="it takes the gradient at the inputs, but they are integers"):
        explain(model, Probe(torch.ones(2, 1, dtype=torch.long)), {"it": m.IntegratedGradients("auto")}, [])


class Around(nn.Module):
    """Half of the output goes around the layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 6)
        self.inner = nn.Sequential(nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(3 * self.layer(x)) + torch.sin(x).sum(1, keepdim=True)


@pytest.mark.parametrize("of_input", [False, True])
def test_a_layers_map_adds_up_to_what_the_layer_changes_also_beside_a_way_around_it(of_input: bool) -> None:
    x, model = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double(), Around().double()
    name = "inner.0" if of_input else "layer"
    auto = m.LayerIntegratedGradients(name, "auto", attribute_to_layer_input=of_input, tolerance=1e-3)
    report = explain(model, Probe(x), {"auto": auto}, [], max_examples_per_pass=4)
    found, taken = report.attributions["auto"], report.n_steps["auto"]
    assert isinstance(found, Tensor)
    with torch.no_grad():
        alone = model.inner(3 * model.layer(x)) - model.inner(3 * model.layer(torch.zeros_like(x)))
    assert ((found.sum(1) - alone[:, 0]).abs() / alone[:, 0].abs()).max() <= 1e-3
    assert 9 <= taken.min() < taken.max() < 1025, "each sample takes what it needs"
    layer = model.get_submodule(name)
    explainer = captum.LayerIntegratedGradients(lambda x: model(x)[:, 0], layer)
    # Not Captum's default rule, whose 3,000 nodes take longer to find than the integral.
    exact = explainer.attribute(x, n_steps=3000, method="riemann_middle", attribute_to_layer_input=of_input)
    assert distance(found, exact[0] if isinstance(exact, tuple) else exact) <= 2e-3


def test_a_layers_mean_gradient_is_refined_as_its_map() -> None:
    x, y = samples()
    layer = {"layer": "block.bn2", "n_steps": "auto"}
    methods = {
        "map": m.LayerIntegratedGradients(**layer),
        "mean": m.LayerIntegratedGradients(**layer, multiply_by_inputs=False),
    }
    report = explain(trained().double(), Probe(x, y), methods, [])
    zero = explain(trained().double(), Probe(torch.zeros_like(x)), {"at": m.LayerActivation("block.bn2")}, [])
    here = explain(trained().double(), Probe(x, y), {"at": m.LayerActivation("block.bn2")}, [])
    change = here.attributions["at"] - zero.attributions["at"]
    torch.testing.assert_close(report.attributions["map"], report.attributions["mean"] * change)
    assert torch.equal(report.n_steps["map"], report.n_steps["mean"])


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n_steps": "many"}, r"LayerIntegratedGradients\(n_steps='many'\); give a whole number"),
        ({"tolerance": -1}, r"LayerIntegratedGradients\(tolerance=-1\); give a number above 0"),
    ],
)
def test_layers_refuse_what_is_no_number_of_steps_or_tolerance(arguments: dict[str, object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        m.LayerIntegratedGradients(**arguments)
