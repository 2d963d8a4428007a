"""One look at the model before the first batch: how often it runs, and what is said of a request that cannot be carried out."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clock import Clock
from lightning_explain import ExplanationMonitor, Metric, Probe, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.core.timing import Stopwatch
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.explainer.registry import build_methods, build_metrics
from lightning_explain.model.inventory import ModuleInventory
from lightning_explain.model.isolation import STATE_SAVERS
from lightning_explain.probes.binding import samples_of
from lightning_explain.probes.signature import signature_of
from networks import samples, trained
from training import QUIET, DigitModule, loader, trainer

pytestmark = QUIET


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows by one whenever the isolation is entered."""
    found: list[str] = []

    @contextmanager
    def noted(inventory: ModuleInventory) -> Iterator[None]:
        found.append("entered")
        yield

    monkeypatch.setitem(STATE_SAVERS, "noted", noted)
    return found


def counted(model: nn.Module) -> list[int]:
    """The number of samples in each call of the model from now on."""
    sizes: list[int] = []
    model.register_forward_pre_hook(lambda module, arguments: sizes.append(len(arguments[0])))
    return sizes


@pytest.mark.parametrize("arguments", [{}, {"max_examples_per_pass": 16}], ids=["default", "a limit"])
def test_a_default_monitor_enters_the_isolation_once_and_runs_the_model_three_times(
    arguments: dict[str, Any], tmp_path: Path, entries: list[str]
) -> None:
    module, before = DigitModule(), dict[str, Any]()
    sizes = counted(module.net)

    class Stop(ExplanationMonitor):
        def on_train_batch_start(self, *given: Any) -> None:
            before.setdefault("entered", len(entries))
            before.setdefault("sizes", list(sizes))

    run = trainer(tmp_path, Stop(**arguments), max_epochs=1, num_sanity_val_steps=0)
    batches = DataLoader(loader(0, 64).dataset, batch_size=64)  # There is a choice of pass sizes.
    run.fit(module, batches, loader(100, 16))
    assert before == {"entered": 1, "sizes": [16, 3, 1]}


QUIETER = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (".*the model has no ReLU", ".*None of the methods", ".*No metric", ".*The metric")
]
NOT_HERE = {"LRP", "LayerLRP", "ShapleyValues", "AttentionRollout"}
GUIDING = {"GuidedBackprop", "Deconvolution", "GuidedGradCam", "NeuronGuidedBackprop", "NeuronDeconvolution"}


@pytest.mark.parametrize("name", sorted(set(m.__all__) - NOT_HERE))
def test_no_method_takes_more_runs_but_those_that_guide_relus(name: str, entries: list[str]) -> None:
    model, (x, y) = trained(), samples(5)
    sizes = counted(model)
    Explainer(build_methods([name]), build_metrics(None)).check(model, Probe(x, y))
    # Two baselines on pairs of three samples: whether something acts as a ReLU without being called one has to be measured.
    assert sizes == [5, 3, 1] + ([6, 6] if name in GUIDING else [])
    assert entries == ["entered"]


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(20, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.embedding(ids).tanh().mean(1))


IDS = torch.randint(0, 20, (5, 7), generator=torch.Generator().manual_seed(0))


def proposed(message: str) -> dict[str, Any]:
    """The configuration at the end of a refusal."""
    line = message.splitlines()[-1]
    assert line.startswith("This would run: ")
    found: dict[str, Any] = eval(f"dict({line.removeprefix('This would run: ').rstrip('.')})", {**vars(m), **vars(q)})
    return found


REFUSED: dict[str, tuple[nn.Module, Probe, dict[str, Any], tuple[str, ...]]] = {
    "several kinds at once": (
        trained(),
        Probe(*samples(5)),
        {
            "methods": {
                "ok": m.Saliency(abs=False),
                "cam": m.LayerGradCam("nowhere"),
                "lrp": m.LRP(),
                "o": m.Occlusion((9, 9, 9)),
            },
            "metrics": [q.RelevanceMass(), q.Infidelity(n_perturb_samples=2)],
        },
        (
            "'cam' (LayerGradCam): There is no layer 'nowhere'",
            "'lrp' (LRP): ",
            "'o' (Occlusion): ",
            "'relevance_mass' (RelevanceMass): it needs masks",
        ),
    ),
    "nothing that was asked for": (
        Tokens(),
        Probe(IDS),
        {"methods": ["InputXGradient", "IntegratedGradients"], "metrics": ["PointingGame"]},
        (
            "'input_x_gradient' (InputXGradient), 'integrated_gradients' (IntegratedGradients): it takes the gradient",
            "'pointing_game' (PointingGame): it needs masks",
        ),
    ),
}


@pytest.mark.parametrize(("model", "probe", "asked", "told"), REFUSED.values(), ids=REFUSED)
@pytest.mark.filterwarnings("ignore:No metric will score")
def test_all_refusals_come_at_once_and_end_with_a_configuration_that_runs(
    model: nn.Module, probe: Probe, asked: dict[str, Any], told: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="cannot be carried out on this model") as caught:
        explain(model, probe, **asked)
    lines = str(caught.value).splitlines()
    assert len(lines) == len(told) + 2
    for text in told:
        assert any(line.startswith(text) for line in lines), text
    configuration = proposed(str(caught.value))
    report = explain(model, probe, **configuration)
    assert set(report.attributions) == set(configuration["methods"])
    assert report.attributions


def test_what_is_wrong_with_the_probe_is_said_beside_the_rest() -> None:
    x, y = samples(3)
    with pytest.raises(ValueError, match="cannot be carried out") as caught:
        explain(trained(), Probe(x, y, ids=torch.tensor([1, 1, 2])), ["LRP"], ["PointingGame"])
    for text in ("has an id twice", "'lrp' (LRP)", "'pointing_game' (PointingGame)"):
        assert text in str(caught.value)


class Unfit(Metric):
    def fitted(self, inputs: tuple[Tensor, ...], modalities: Any) -> Metric:
        raise ValueError("it has no score of anything; leave it out")

    def score(self, metric_inputs: Any) -> Any:
        raise AssertionError


def test_one_metric_that_does_not_fit_is_refused_alone() -> None:
    with pytest.raises(ValueError, match="cannot be carried out") as caught:
        explain(trained(), Probe(*samples(3)), ["Saliency"], {"unfit": Unfit(), "c": q.Concentration()})
    assert set(proposed(str(caught.value))["metrics"]) == {"c"}


class Dropping(nn.Module):
    """Draws random numbers in eval mode as well, so nothing can be explained."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained()

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.net(x), 0.5)


def test_defaults_never_refuse(tmp_path: Path) -> None:
    module = DigitModule(Dropping())
    watch = ExplanationMonitor()
    run = trainer(tmp_path, watch, max_epochs=1)
    with (
        pytest.warns(
            UserWarning, match="none of the default methods can be used on this model, so nothing is explained"
        ),
        pytest.warns(
            UserWarning, match=r"'saliency' \(Saliency\), 'ig' .*, 'cam' .* is left out: two forward passes .* differ"
        ),
    ):
        run.fit(module, loader(0, 16), loader(100, 16))
    assert run.state.finished
    assert watch.last_report is None
    with (
        pytest.warns(UserWarning, match="is left out"),
        pytest.raises(ValueError, match="None of the default methods can be used on this model"),
    ):
        explain(Dropping(), Probe(*samples(3)))
    with pytest.raises(ValueError, match="No method would run before that is changed"):
        explain(Dropping(), Probe(*samples(3)), ["Saliency"], [])


@pytest.mark.parametrize(("limit", "largest"), [("auto", 256), (5, 5)])
def test_a_large_probe_is_not_sent_through_the_model_at_once(limit: Any, largest: int) -> None:
    model, (x, y) = trained(), samples(7)
    sizes = counted(model)
    many = Probe(x.repeat(50, 1, 1, 1), y.repeat(50))
    explain(model, many, {"it": m.LayerActivation("head")}, [], max_examples_per_pass=limit)
    assert max(sizes) == largest


class Fails(nn.Module):
    """Fails in one call, forward or backward."""

    def __init__(self, call: int, back: bool) -> None:
        super().__init__()
        self.net, self.call, self.back = trained(), call, back
        self.calls = itertools.count(1)  # Not a container, which the isolation would put back.

    def forward(self, x: Tensor) -> Tensor:
        out = self.net(x)
        if next(self.calls) == self.call and not self.back:
            raise RuntimeError("not this time")
        if self.back and out.requires_grad and not self.training:
            out.register_hook(lambda gradient: 1 / 0)
        return out


@pytest.mark.filterwarnings("ignore:The model's forward changes 'net.calls'")
@pytest.mark.parametrize("model", [Fails(3, back=False), Fails(0, back=True)], ids=["alone, once", "backward"])
def test_a_failure_of_the_model_in_the_look_at_it_ends_no_training(model: nn.Module, tmp_path: Path) -> None:
    # Whether something acts as a ReLU without being called one is measured, forward and backward.
    watch = ExplanationMonitor(methods=["GuidedBackprop"], metrics=[], max_examples_per_pass=16)
    run = trainer(tmp_path, watch, max_epochs=1, num_sanity_val_steps=0)
    with pytest.warns(RuntimeWarning, match="The methods cannot be checked on this model"):
        run.fit(DigitModule(model), loader(0, 16), loader(100, 16))
    assert run.state.finished
    assert watch.last_report is None


class WritesIntoEmbeddings(nn.Module):
    """One number of every embedding is shared by all words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.shared, self.head = nn.Embedding(5, 4), nn.Parameter(torch.ones(1)), nn.Linear(4, 3)

    def forward(self, ids: Tensor) -> Tensor:
        found = self.words(ids)
        found[..., :1] = self.shared
        found += 1
        return self.head(found).mean(1)


def test_a_model_that_writes_into_its_embeddings_is_explained() -> None:
    torch.manual_seed(0)
    model, ids = WritesIntoEmbeddings(), torch.arange(20).reshape(4, 5) % 5
    report = explain(model, Probe(ids, torch.arange(4) % 3), {"ig": m.LayerIntegratedGradients("words", n_steps=4)}, [])
    (own,) = [report.attributions["ig"]]
    assert isinstance(own, Tensor)
    assert float(own[..., 0].abs().max()) == 0, "nothing depends on what is written over"
    assert float(own[..., 1:].abs().max()) > 0


COLD = [(80.0, 80.0), (6.0, 6.0), (3.0, 3.0)]
WARM = [(8.0, 8.0), (6.0, 6.0), (3.0, 3.0)]
LOADED = [(80.0, 72.0), (300.0, 12.0), (90.0, 3.0)]
THREADS = [(8.0, 32.0), (6.0, 24.0), (3.0, 12.0)]


@pytest.mark.parametrize(("runs", "each"), [(COLD, 2.0), (WARM, 1.0), (LOADED, 3.0), (THREADS, 1.0)])
def test_the_estimate_is_that_of_the_fastest_run_in_time_of_this_process(
    runs: list[tuple[float, float]], each: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the wall and of the CPU, a run of 8 samples, which pays what is paid once, one of 3, and one of 1 take so many seconds."""
    clock, cpu, left = Clock(monkeypatch), [0.0], [*runs]
    monkeypatch.setattr(time, "process_time", lambda: sum(cpu))

    def run(model: nn.Module, x: Tensor) -> Any:
        wall, computed = left.pop(0)
        clock.go_on(wall)
        cpu.append(computed)
        return model(x)

    probe = Probe(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3)
    explainer = Explainer({"saliency": m.Saliency(abs=False)}, {}, forward_fn=run)
    ready = explainer.check(nn.Linear(4, 3).eval(), probe, timed=True)
    assert not left, "three runs"
    assert ready.estimate is not None
    assert ready.estimate.seconds == pytest.approx(3 * each), "forward and backward"


def test_an_accelerator_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    monkeypatch.setattr(time, "process_time", lambda: 0.5)
    watch = Stopwatch()
    clock.go_on(2.0)
    assert (watch.seconds(), watch.seconds(on_cpu=False)) == (0.0, 2.0)


class ReadsLabels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 3)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.net(batch["x"])
        return {"loss": nn.functional.cross_entropy(logits, batch["label"]), "logits": logits}


def test_a_model_that_reads_labels_is_refused_with_a_fix_that_works() -> None:
    x, label = torch.randn(4, 6), torch.tensor([0, 2, 1, 0])
    batch = {"x": x, "label": label}
    probe = samples_of(batch, None, signature_of(ReadsLabels()))
    with pytest.raises(
        ValueError,
        match=r"what it gets has no 'label'. Labels are not passed.*Probe\(\{'batch': batch\}, batch\['label'\]\)",
    ):
        explain(ReadsLabels(), probe, ["Saliency"], [])
    passed = samples_of(batch, lambda batch: Probe({"batch": batch}, batch["label"]), signature_of(ReadsLabels()))
    assert torch.equal(explain(ReadsLabels(), passed, ["Saliency"], []).targets, label)
