"""The size of noise: numbers, standard deviations, one for each input or number of an input."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn

from lightning_explain import Probe, Report, explain, load_reports
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.deviations import standard_deviations
from lightning_explain.store.report_files import save_report

SCALE = torch.tensor([1.0, 1000.0, 1e-3, 0.0])


class Net(nn.Module):
    """A network that standardizes its inputs, as one does whose columns have other units."""

    def __init__(self, scale: Tensor, shift: float = 5.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scale, self.shift = scale.clamp(min=1e-3), shift
        self.first, self.last = nn.Linear(len(scale), 5), nn.Linear(5, 2)

    def forward(self, *inputs: Tensor) -> Tensor:
        found: Tensor = self.last(torch.tanh(self.first((torch.cat(inputs, 1) - self.shift) / self.scale)))
        return found


X = torch.randn(20, 4, generator=torch.Generator().manual_seed(1)) * SCALE + 5
STD = X.std(0, keepdim=True)
PROBE = Probe(X)
METHODS = {"tunnel": m.NoiseTunnel(nt_samples=3)}


def run(methods: Any, metrics: Any = (), probe: Probe = PROBE) -> Report:
    return explain(Net(SCALE), probe, methods, metrics or [], target=0)


def test_std_is_the_standard_deviation_of_each_number_wherever_noise_is_added() -> None:
    for method in (m.NoiseTunnel, m.GradientShap, m.LayerGradientShap, m.NeuronGradientShap):
        place = {"layer": "first"} if "layer" in method.__dataclass_fields__ else {}
        if method is m.NeuronGradientShap:
            place["neuron_selector"] = 0  # type: ignore[assignment]
        sizes = {"std": "std", "tensor": STD, "tuple": ("std",), "tenth": "0.1 std", "small": STD / 10}
        found = run({name: method(stdevs=size, **place) for name, size in sizes.items()}).attributions
        assert torch.allclose(found["std"], found["tensor"], rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]
        assert torch.equal(found["std"], found["tuple"])  # type: ignore[arg-type]
        assert torch.allclose(found["tenth"], found["small"], rtol=1e-4, atol=1e-6)  # type: ignore[arg-type]
        assert not torch.allclose(found["std"], found["tenth"], rtol=1e-2)  # type: ignore[arg-type]


def test_tables_are_perturbed_in_standard_deviations_by_default() -> None:
    noise = {
        "default": q.SensitivityMax(),
        "std": q.SensitivityMax(perturb_radius="0.02 std"),
        "one": q.SensitivityMax(perturb_radius=0.02),
    }
    found = run(METHODS, noise)
    assert torch.equal(found.scores["default"]["tunnel"], found.scores["std"]["tunnel"])
    assert not torch.allclose(found.scores["default"]["tunnel"], found.scores["one"]["tunnel"])
    assert torch.equal(
        found.attributions["tunnel"], run({"it": m.NoiseTunnel(nt_samples=3, stdevs="std")}).attributions["it"]
    )  # type: ignore[arg-type]


def test_raw_breast_cancer_columns_are_each_moved_by_a_share_of_their_own_spread() -> None:
    x = torch.tensor(load_breast_cancer().data[:64], dtype=torch.float32)
    seen: list[Tensor] = []

    class Watched(Net):
        def forward(self, *inputs: Tensor) -> Tensor:
            seen.append(inputs[0].detach())
            return super().forward(*inputs)

    model = Watched(x.std(0))
    explain(model, Probe(x), [m.Saliency()], [q.SensitivityMax(n_perturb_samples=4)], target=0)
    moved = torch.stack([part - x for part in seen if len(part) == 64 and not torch.equal(part, x)])
    share = moved.abs().amax((0, 1)) / x.std(0)
    assert share.shape == (30,)
    assert (share <= 0.0201).all()
    assert (share >= 0.015).all()


def test_images_keep_a_number_and_few_samples_have_none_of_their_own() -> None:
    image, few = X.reshape(20, 1, 2, 2), Probe(X[:8])

    class Flat(Net):
        def forward(self, *inputs: Tensor) -> Tensor:
            return super().forward(inputs[0].flatten(1))

    by_default = explain(Flat(SCALE), Probe(image), METHODS, [], target=0).attributions["tunnel"]
    numbers = explain(Flat(SCALE), Probe(image), {"it": m.NoiseTunnel(nt_samples=3, stdevs=1.0)}, [], target=0)
    assert torch.equal(by_default, numbers.attributions["it"])  # type: ignore[arg-type]
    asked: dict[str, Any] = {
        "tunnel": m.NoiseTunnel(m.Lime(), stdevs="std"),
        "shap": m.GradientShap(stdevs=("0.5 std",)),
        "neuron": m.NeuronGradientShap("first", 0, stdevs="std"),
    }
    with pytest.raises(
        ValueError, match=r'(?s)\'tunnel\'.*\'shap\'.*perturb_radius="std" needs .* 8 samples are too few.*Probe\(stds'
    ) as error:
        run(asked, {"sensitivity": q.SensitivityMax(perturb_radius="std")}, few)
    assert "'neuron'" in str(error.value)
    run(METHODS, [q.SensitivityMax()], few)


def test_standard_deviations_stay_with_the_probe_and_its_report(tmp_path: Any) -> None:
    stored = Probe(X[:8], stds=STD)
    found = run({"it": m.NoiseTunnel(stdevs="std")}, [], stored)
    whole = run({"it": m.NoiseTunnel(stdevs="std")})
    assert torch.allclose(found.attributions["it"], whole.attributions["it"][:8], rtol=1e-4)  # type: ignore[arg-type,call-overload]
    save_report(replace(found, step=3), tmp_path)
    assert torch.equal(load_reports(tmp_path)[0].stds[0], STD)
    with pytest.raises(ValueError, match=r"Probe\(stds=\.\.\.\).*of shape \(1, 4\)"):
        Probe(X, stds=(STD[:, :3],))


def test_each_input_has_its_own_noise_and_what_does_not_fit_is_refused() -> None:
    two = Probe((X[:, :1], X[:, 1:]))
    sizes = (0.0, STD[:, 1:])
    found = run(
        {
            "it": m.NoiseTunnel(m.InputXGradient(), stdevs=sizes),
            "std": m.NoiseTunnel(m.InputXGradient(), stdevs=(0, "std")),
        },
        [],
        two,
    )
    for a, b in zip(found.attributions["it"], found.attributions["std"], strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-6)
    run(METHODS, [q.SensitivityMax(perturb_radius=(0.1, "std"))], two)
    with pytest.raises(
        ValueError, match=r"(?s)stdevs has shape \(4,\).*perturb_radius=\(0.1, 0.2, 0.3\) has 3 entries for 2"
    ):
        run({"it": m.NoiseTunnel(stdevs=torch.ones(4))}, [q.SensitivityMax(perturb_radius=(0.1, 0.2, 0.3))], two)
    for wrong in (-1, "sd", True, (), torch.tensor([-1.0]), ("std", -1), float("nan")):
        with pytest.raises(ValueError, match=r"stdevs=.*give a number of at least 0, \"std\""):
            m.NoiseTunnel(stdevs=wrong)


def test_a_missing_value_counts_in_no_standard_deviation() -> None:
    x = X.clone()
    x[3, 0] = torch.nan
    (found,) = standard_deviations([(x,)])
    assert torch.allclose(found[0, 0], torch.cat([X[:3, 0], X[4:, 0]]).std())
    assert found[0, 3] == 0
    assert standard_deviations([(x[:15],)]) == ()


def test_a_radius_is_optional_in_a_function_of_the_users() -> None:
    bare, both = (q.SensitivityMax(perturb_func=f) for f in (lambda x: x + 0.02, lambda x, radius: x + radius))
    keyword = q.SensitivityMax(perturb_func=lambda x, *, radius=5.0: x + 0.02)
    found = run(METHODS, {"bare": bare, "both": both, "keyword": keyword})
    for name in ("both", "keyword"):
        assert torch.equal(found.scores["bare"]["tunnel"], found.scores[name]["tunnel"])


@pytest.mark.parametrize("around", [m.IntegratedGradients, m.LayerIntegratedGradients])
def test_the_steps_of_noisy_copies_are_not_those_of_the_samples(around: Any) -> None:
    place = {"layer": "first"} if around is m.LayerIntegratedGradients else {}
    auto = around(n_steps="auto", tolerance=1e-2, **place)
    noisy = m.NoiseTunnel(auto, nt_samples=2, stdevs=0.1)
    twice, few = m.NoiseTunnel(noisy, nt_samples=2, stdevs=0.1), Probe(X[:3])
    alone = run({"auto": auto}, probe=few).n_steps["auto"]
    for methods in (
        {"noisy": noisy, "auto": auto},
        {"twice": twice, "noisy": noisy, "auto": auto},
        {"auto": auto, "noisy": noisy},
    ):
        steps = run(methods, probe=few).n_steps
        assert list(steps) == ["auto"]
        assert torch.equal(steps["auto"], alone)
    assert run({"noisy": noisy}, probe=few).n_steps == {}
