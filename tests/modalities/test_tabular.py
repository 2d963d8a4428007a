"""Tables: columns, groups of one-hot columns and categories are units, by names, in methods, metrics and pictures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from captum import attr as captum
from torch import Tensor, nn

from lightning_explain import Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.contracts import InputFacts
from lightning_explain.core.panels import FeaturesPanel
from lightning_explain.core.report import Report
from lightning_explain.explainer.registry import build_modalities
from lightning_explain.modalities import Tabular, restored, stored
from lightning_explain.probes.binding import samples_of
from lightning_explain.probes.signature import signature_of

NAMES = ["age", "c_red", "c_blue", "income"]
GROUPS = {"color": ["c_red", "c_blue"]}
WEIGHTS = torch.tensor([[1.5, -2.0, 0.7, 0.0]], dtype=torch.float64)
X = torch.tensor(
    [[0.3, 1.0, 0.0, 2.0], [-1.2, 0.0, 1.0, 0.5], [2.0, 0.0, 1.0, -1.0], [0.1, 1.0, 0.0, 0.7]], dtype=torch.float64
)


def additive() -> nn.Module:
    net = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    net.weight.data = WEIGHTS.clone()
    return net


class Mixed(nn.Module):
    """Codes of categories, each looked up alone, beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embeddings = nn.ModuleList(nn.Embedding(5, 3) for _ in range(2))
        self.head = nn.Linear(2 * 3 + 4, 2)

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        found = [embedding(codes[:, i]) for i, embedding in enumerate(self.embeddings)]
        out: Tensor = self.head(torch.cat([*found, numbers], 1))
        return out


class OneTable(Mixed):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x[:, :2].long(), x[:, 2:])


CODES = torch.tensor([[0, 4], [1, 2], [3, 3], [4, 0]])


def grouped(report: Report, name: str) -> Tensor:
    table = report.probe.modalities[0]  # type: ignore[union-attr]
    found: Tensor = table.by_unit(report.attributions[name])
    return found


@pytest.mark.parametrize("spelled", [Tabular(NAMES, GROUPS), Tabular(groups={"color": [1, 2]})])
def test_a_group_is_one_unit_of_methods_and_scores_which_are_exact_on_an_additive_model(spelled: Tabular) -> None:
    methods: dict[str, Any] = {
        "ablation": m.FeatureAblation(),
        "shapley": m.ShapleyValues(),
        "ig": m.IntegratedGradients(),
    }
    methods |= {"sampling": m.ShapleyValueSampling(n_samples=2), "saliency": m.Saliency(abs=False)}
    metrics = {"infidelity": q.Infidelity(), "deletion": q.Deletion(normalize=False)}
    report = explain(additive(), Probe(X), methods, metrics, modalities=spelled)
    parts = X * WEIGHTS
    exact = torch.stack([parts[:, 0], parts[:, 1] + parts[:, 2], parts[:, 3]], 1)
    for name in ("ablation", "shapley", "sampling", "ig"):
        # Captum's sampling returns float32.
        close = 1e-6 if name == "sampling" else 1e-10
        torch.testing.assert_close(grouped(report, name).double(), exact, rtol=0, atol=close)
        curve = torch.cat([torch.zeros(4, 1), exact.sort(1, descending=True).values.cumsum(1)], 1)
        area = torch.trapezoid(additive()(X) - curve, dx=1 / 3)
        torch.testing.assert_close(report.scores["deletion"][name].double(), area, rtol=0, atol=1e-10)
    for name in methods.keys() - {"sampling"}:
        assert report.scores["infidelity"][name].abs().max() < 1e-10, name
        assert report.scores["infidelity_relative"][name].abs().max() < 1e-10, name
    # Captum gives each column the number of its group; ours add up to it.
    mask = torch.tensor([[0, 1, 1, 2]])
    by_hand = captum.FeatureAblation(additive()).attribute(X, feature_mask=mask)
    torch.testing.assert_close(grouped(report, "ablation"), by_hand[:, [0, 1, 3]].double(), rtol=0, atol=1e-6)


def test_categories_beside_numbers_are_explained_together_as_captum_does() -> None:
    net, numbers = Mixed(), X.float()
    report = explain(
        net, Probe({"numbers": numbers, "codes": CODES}), {"it": m.FeatureAblation()}, [q.Infidelity()], target=1
    )
    codes, numeric = report.probe.modalities  # type: ignore[union-attr]
    assert [type(one) for one in (numeric, codes)] == [Tabular, Tabular]
    assert codes.named(CODES) == ["codes 0", "codes 1"]
    others = codes.reference(CODES)
    assert (others != CODES).all(), "a category is replaced by another one"
    assert torch.isin(others, CODES).all()
    with torch.no_grad():
        baselines = (others, torch.zeros_like(numbers))
        found = captum.FeatureAblation(net).attribute((CODES, numbers), baselines=baselines, target=1)
    for ours, captums in zip(report.attributions["it"], found, strict=True):
        torch.testing.assert_close(ours, captums.to(ours), rtol=0, atol=1e-5)
    assert report.scores["infidelity_relative"]["it"].max() < 1e-4, "the model is additive"


def test_where_no_gradient_reaches_a_column_defaults_ablate_and_others_warn() -> None:
    class OneHot(OneTable):
        def forward(self, x: Tensor) -> Tensor:
            codes = nn.functional.one_hot(x[:, :2].long(), 5).float() @ torch.ones(5, 3).cumsum(0)
            out: Tensor = self.head(torch.cat([codes.flatten(1), x[:, 2:]], 1))
            return out

    table = torch.cat([CODES.float(), X.float()], 1)
    with pytest.warns(UserWarning, match="'saliency', 'ig' are left out: no gradient reaches the columns x0, x1"):
        report = explain(OneHot(), Probe(table), metrics=[], target=1)
    assert set(report.attributions) == {"ablation"}
    assert report.attributions["ablation"][:, :2].abs().amax(0).gt(0).all()  # type: ignore[index]
    with pytest.warns(UserWarning, match="no gradient reaches the columns x0, x1"):
        asked = explain(OneTable(), Probe(table), {"ig": m.IntegratedGradients()}, [], target=1)
    assert set(asked.attributions) == {"ig"}, "what was asked for is explained all the same"


def test_a_mapping_of_columns_is_bound_whole_each_under_its_own_name() -> None:
    class Columns(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return torch.stack([batch["age"], -batch["city"][:, 0].float()], 1)

    batch = {"age": X[:, 0].float(), "city": CODES[:, :1], "target": torch.tensor([0, 1, 1, 0])}
    probe = samples_of(batch, None, signature_of(Columns()))
    assert probe.places == (("batch", "age"), ("batch", "city"))
    report = explain(Columns(), probe, ["FeatureAblation"], [], target=0)
    names = [one.named(x) for one, x in zip(report.probe.modalities, probe.inputs, strict=True)]  # type: ignore[union-attr]
    assert names == [["age"], ["city"]]
    torch.testing.assert_close(report.attributions["feature_ablation"][0], batch["age"])  # type: ignore[arg-type]


def test_panels_have_names_values_in_words_and_levels_of_what_has_an_order() -> None:
    table = Tabular(NAMES, GROUPS, categorical=["income"]).bound(X, InputFacts())
    assert restored(stored((table,))) == (table,)
    panels = table.panels((X * WEIGHTS,), (X,), ())
    assert [panel.kind for panel in panels] == ["beeswarm", "importance", "features", "waterfall"]
    first = panels[0]
    assert isinstance(first, FeaturesPanel)
    assert first.names == ["age", "color", "income"]
    assert first.texts[0] == ["0.3", "c_red", "2"]
    assert first.levels is not None
    assert first.levels.isfinite().all(0).tolist() == [True, False, False]


def test_it_is_written_in_yaml_and_wrong_columns_are_refused() -> None:
    made = build_modalities({"name": "Tabular", "feature_names": NAMES, "groups": {"color": ["c_red", "c_blue"]}})
    assert made == Tabular(NAMES, GROUPS)
    for wrong, message in (
        (Tabular(NAMES[:2]), "2 feature_names for"),
        (Tabular(NAMES, {"color": ["c_rde"]}), "no column 'c_rde'.*c_red"),
        (Tabular(NAMES, {"a": [0, 1], "b": [1]}), "a column twice"),
        (Tabular(NAMES, {"a": "age"}), "give a list of names or indices"),
        (Tabular(NAMES, categorical=[9]), "no column 9"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong.bound(X, InputFacts())


def test_noise_is_in_standard_deviations_of_the_columns_and_constant_ones_get_none() -> None:
    x = torch.randn(32, 4, generator=torch.Generator().manual_seed(0)) * 5
    x[:, 3] = 7.0

    seen: list[Tensor] = []

    class Noted(nn.Module):
        def forward(self, given: Tensor) -> Tensor:
            seen.append(given.detach().clone())
            return given @ WEIGHTS.float().T

    report = explain(
        Noted(), Probe(x), {"saliency": m.Saliency(abs=False)}, [q.Infidelity(perturb_func="gaussian", stdevs="std")]
    )
    new = torch.cat(seen)
    new = new[(new[:, None] != x).any(2).all(1) & (new[:, 3] == 7)]
    assert len(new) >= 32, "noise on all columns but the constant one"
    assert report.scores["infidelity"]["saliency"].isfinite().all()


def test_colors_of_values_are_measured_in_standard_deviations_of_the_probe_not_of_the_samples_drawn() -> None:
    x = torch.tensor([[0.0], [0.0], [0.0], [4.0]])
    table = Tabular().bound(x, InputFacts())
    panel = table.panels((x[:2],), (x[:2],), ())[0]
    assert panel.levels.flatten().tolist() == pytest.approx([-1 / 3**0.5] * 2)  # type: ignore[attr-defined]
    given = Tabular(means=[2.0], stds=[0.5]).bound(x, InputFacts())
    assert given.panels((x,), (x,), ())[0].levels.flatten().tolist() == [-4, -4, -4, 4]  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"Tabular has 2 means for \(4, 1\); give one for each column"):
        Tabular(means=[0.0, 1.0]).bound(x, InputFacts())
