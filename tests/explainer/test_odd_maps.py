"""Maps that cannot be placed, and samples that are one number: one method's trouble is its own (invariant 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_explain import ExplanationMonitor, Method, Probe, Report, explain, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import Arrangement, ExplainedFunction
from lightning_explain.core.probe import Attribution
from lightning_explain.explainer.explainer import Explainer
from networks import DigitNet, samples, trained
from training import QUIET, DigitModule, fit, told_in, trainer
from training import monitor_of_digits as monitor

pytestmark = QUIET


class Unplaceable(m.LayerActivation):
    """A user's method at a layer, whose map cannot be placed on the image."""

    error: ClassVar[Exception]

    def arrangement(self, explained: ExplainedFunction, found: Attribution) -> Arrangement:
        raise self.error


def unplaceable(error: Exception, layer: str = "block.bn2") -> Unplaceable:
    return type("Odd", (Unplaceable,), {"error": error})(layer)


ERRORS = [IndexError("no such dimension"), ValueError("reshape does not fit"), AttributeError("no 'shape'")]
OTHERS = {"saliency": m.Saliency(abs=False), "cam": m.LayerGradCam("block.bn2")}


@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_a_method_whose_map_cannot_be_placed_is_left_out_alone(error: Exception) -> None:
    x, y = samples()
    seen: list[str] = []
    explainer = Explainer({"odd": unplaceable(error), **OTHERS}, {"infidelity": q.Infidelity()}, raising=False)
    found = explainer.explain(trained(), Probe(x, y), seen.append)
    expected = explain(trained(), Probe(x, y), OTHERS, [q.Infidelity()])
    assert list(found.failures) == ["odd"]
    assert str(error) in found.failures["odd"]
    assert list(found.attributions) == list(OTHERS)
    assert all(torch.equal(found.attributions[name], expected.attributions[name]) for name in OTHERS)
    assert all(torch.equal(v, found.scores["infidelity"][k]) for k, v in expected.scores["infidelity"].items())
    assert sorted(seen) == ["cam", "infidelity", "odd", "saliency"]


def test_explain_raises_what_cannot_be_placed() -> None:
    x, y = samples()
    with pytest.raises(IndexError, match="no such dimension"):
        explain(trained(), Probe(x, y), {"odd": unplaceable(ERRORS[0])}, [])


def test_a_training_goes_on_with_the_other_methods(tmp_path: Path) -> None:
    watch = monitor(methods={"odd": unplaceable(ERRORS[0], "net.block.bn2"), "saliency": m.Saliency(abs=False)})
    with pytest.warns(RuntimeWarning, match="'odd' failed") as told:
        finished = fit(tmp_path, watch, max_epochs=4)
    assert finished.current_epoch == 4
    reports = load_reports(tmp_path / "explain")
    assert [list(report.attributions) for report in reports] == [["saliency"]] * 4
    assert sum("'odd' failed and is left out" in text for text in told_in(told)) == 1
    assert sum("'odd'" in text and "switched off" in text for text in told_in(told)) == 1


class Flattened(DigitNet):
    """Ends in a layer whose output is one number for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.flat = nn.Linear(10, 1), nn.Flatten(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.flat(self.last(super().forward(x)))


class Regression(DigitModule):
    """Learns one number for each sample."""

    def _loss(self, batch: Any) -> Tensor:
        x, y = batch
        return (self(x) - y.float()).square().mean()


def test_a_layer_whose_map_is_one_number_is_explained_in_training(tmp_path: Path) -> None:
    methods = {"flat": m.LayerActivation("net.flat"), "x": m.LayerGradientXActivation("net.flat"), "s": m.Saliency()}
    watch = monitor(methods=methods, metrics=[q.Randomization(n_layers=2), q.Drift()], on_error="raise")
    fit(tmp_path, watch, module=Regression(Flattened()), max_epochs=2)
    report = load_reports(tmp_path / "explain")[-1]
    assert {name: value.ndim for name, value in report.attributions.items()} == {"flat": 1, "x": 1, "s": 4}
    torch.testing.assert_close(report.attributions["x"], report.attributions["flat"])


# -- samples that are one number -----------------------------------------------------------------------------------


class Line(nn.Module):
    """f(x) = a x, of samples that are one number."""

    def __init__(self, slope: float = 3.0) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(slope))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope * x


def scored(x: Tensor, metrics: list[Any], methods: dict[str, Method]) -> Report:
    return explain(Line().to(x.dtype), Probe(x), methods, metrics, target=0)


SLOPES = {"saliency": m.Saliency(abs=False), "tunnel": m.NoiseTunnel(m.Saliency(abs=False), nt_samples=2)}
CHANGES = {
    "ig": m.IntegratedGradients(n_steps=3),
    "auto": m.IntegratedGradients(n_steps="auto"),
    "deeplift": m.DeepLift(),
    "ablation": m.FeatureAblation(),
    "x": m.InputXGradient(),
    "occlusion": m.Occlusion(()),
    "shapley": m.ShapleyValues(),
    "sampled": m.ShapleyValueSampling(n_samples=2),
}


@pytest.mark.parametrize("x", [torch.tensor([1.0, -2.0, 0.5]), torch.tensor([4.0]), torch.tensor([1.0, 2.0]).double()])
def test_the_map_of_a_line_is_its_slope_or_its_change(x: Tensor) -> None:
    found = scored(x, [], {**SLOPES, **CHANGES}).attributions
    for name, value in found.items():
        expected = torch.full_like(x, 3.0) if name in SLOPES else 3 * x
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6, check_dtype=False, msg=name)


@pytest.mark.parametrize("x", [torch.tensor([1.0, -2.0, 0.5]), torch.tensor([4.0, 1.0]).double()])
def test_scores_of_a_line_are_those_of_an_exact_map(x: Tensor) -> None:
    metrics = [
        q.Completeness(),
        q.Infidelity(perturb_func="gaussian", normalize=False),
        q.SensitivityMax(),
        q.Deletion(),
    ]
    report = scored(x, metrics, {**SLOPES, **CHANGES})
    zero = torch.zeros_like(x)
    for name in CHANGES:
        assert torch.isfinite(report.scores["sensitivity_max"][name]).all()
        assert torch.isfinite(report.scores["deletion"][name]).all()
    for values in report.scores["completeness"].values():
        torch.testing.assert_close(values, zero, rtol=0, atol=1e-5, check_dtype=False)
    for name in SLOPES:
        torch.testing.assert_close(report.scores["infidelity"][name], zero, rtol=0, atol=1e-5, msg=name)


def test_a_training_on_single_numbers_is_explained(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 16)
    loader = DataLoader(TensorDataset(x, 2 * x), batch_size=8)
    watch = ExplanationMonitor(
        methods={"s": m.Saliency(), "d": m.DeepLift()}, metrics=[q.Completeness()], on_error="raise"
    )
    trainer(tmp_path, watch).fit(Regression(Line()), loader, loader)
    report = load_reports(tmp_path / "explain")[-1]
    assert report.attributions["s"].shape == (16,)
    assert report.scores["completeness"]["d"].abs().max() < 1e-5
