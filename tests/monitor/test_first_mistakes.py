"""Mistakes that newcomers make with what is right in itself: refused or told before the first batch, not found out later."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from given import doctor
from lightning_explain import ExplanationMonitor, Probe, ProbeSelection, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.monitor.metric_watchers import last_due
from networks import digits, samples, trained
from training import QUIET, DigitModule, loader, report_of, trainer
from training import monitor_of_digits as monitor

pytestmark = QUIET


def fit(root: Path, watch: ExplanationMonitor, net: nn.Module | None = None, *others: Any, **run: Any) -> Any:
    module = DigitModule(net)
    made = trainer(root, watch, *others, **run)
    made.fit(module, loader(0, 16), loader(100, 8))
    return made


# -- scores that will never be ---------------------------------------------------------------------------------------

UNSCORED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a layer without a place": (
        {"methods": {"it": m.LayerGradCam("net.head")}, "metrics": ["Infidelity"]},
        "explain/infidelity/it",
        "'infidelity' will score none of the methods; it needs a map that has a place on the image",
    ),
    "no promise": (
        {"methods": {"it": m.Saliency(abs=False)}, "metrics": ["Completeness"]},
        "explain/completeness/it",
        "'completeness' will score none of the methods; it needs a method whose map promises a sum",
    ),
    "nobody to agree with": (
        {"methods": {"it": m.Saliency(abs=False)}, "metrics": ["Agreement"]},
        "explain/agreement/it",
        "'agreement' will score none of the methods; it needs two methods",
    ),
}


@pytest.mark.parametrize(("given", "key", "told"), UNSCORED.values(), ids=UNSCORED)
def test_a_score_that_will_never_be_is_told_and_nobody_may_watch_it(
    given: dict[str, Any], key: str, told: str, tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=told):
        found = fit(tmp_path, monitor(**given))
    assert key not in found.callback_metrics
    best = ModelCheckpoint(tmp_path / "best", monitor=key)
    with (
        pytest.warns(UserWarning, match=told),
        pytest.raises(ValueError, match=r"ModelCheckpoint\(monitor='explain/.*'\) monitors a score that is not logged"),
    ):
        fit(tmp_path, monitor(**given), None, best)
    alert = {"metric": key.removeprefix("explain/"), "above": 1}
    with pytest.warns(UserWarning, match=told), pytest.raises(ValueError, match=r"alert|Alert"):
        fit(tmp_path, monitor(**given, alerts=[alert]))


def test_charts_have_the_scores_that_will_be(tmp_path: Path) -> None:
    methods = {"ig": m.IntegratedGradients(n_steps=2), "head": m.LayerActivation("net.head")}
    watch = monitor(methods=methods, metrics=[q.Completeness(), q.Infidelity(n_perturb_samples=2)])
    with pytest.warns(UserWarning, match="No metric will score 'head': its map has no place on the image"):
        fit(tmp_path, watch)
    assert watch.charts["explain"] == {
        "completeness": ["explain/completeness/ig"],
        "completeness_delta": ["explain/completeness_delta/ig"],
        "infidelity": ["explain/infidelity/ig"],
    }


# -- inputs ----------------------------------------------------------------------------------------------------------


class Bytes(nn.Module):
    """Takes images of whole numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.float() / 255)


def bytes_probe(count: int = 3) -> Probe:
    x, y = samples(count)
    return Probe((x.clamp(0, 1) * 255).byte(), y)


def test_default_scores_that_whole_numbers_have_not_are_left_out_and_told() -> None:
    with pytest.warns(UserWarning, match="is left out") as told:
        report = explain(Bytes(), bytes_probe(), {"it": m.FeatureAblation(feature_mask={"grid": 2})})
    assert set(report.scores) == {"infidelity", "infidelity_relative"}, "units of whole numbers can be removed"
    (text,) = (str(w.message) for w in told)
    assert "'sensitivity_max' (" in text
    assert ") is left out: " in text
    assert "torch.uint8" in text


@pytest.mark.parametrize(
    "metric", [q.Infidelity("gaussian"), q.SensitivityMax()], ids=lambda metric: type(metric).__name__
)
def test_scores_that_whole_numbers_have_not_are_refused_if_asked_for(metric: Any) -> None:
    with pytest.raises(
        ValueError, match=r"perturbs floating-point inputs, but these are torch.uint8; leave it out, or give"
    ):
        explain(Bytes(), bytes_probe(), {"it": m.FeatureAblation(feature_mask={"grid": 2})}, [metric])


def test_a_layer_behind_whole_numbers_is_explained_as_with_floating_ones() -> None:
    probe, layer = bytes_probe(), "net.block.bn2"
    assert isinstance(probe.inputs, Tensor)
    found = explain(Bytes(), probe, {"it": m.LayerGradCam(layer)}, []).attributions["it"]
    floating = Probe(probe.inputs.float() / 255, probe.targets)
    expected = explain(trained(), floating, {"it": m.LayerGradCam("block.bn2")}, []).attributions["it"]
    torch.testing.assert_close(found, expected)
    (verdict,) = doctor(Bytes(), {"it": m.Saliency()}, probe)
    assert verdict.state == "refused"
    assert "convert the inputs to floating point" in verdict.fix


@pytest.mark.parametrize(
    ("metric", "inputs", "match"),
    [
        (
            q.Infidelity("square"),
            torch.rand(3, 5),
            r"needs images \(N, C, H, W\), got \(3, 5\); give those, or a perturb_func of your own",
        ),
        (
            q.Infidelity("square", size=9),
            torch.rand(3, 1, 8, 8),
            r"size=9\) needs squares no larger than the shorter side of the images, 8 pixels",
        ),
    ],
    ids=["a table", "too large"],
)
def test_squares_that_do_not_fit_are_refused(metric: q.Infidelity, inputs: Tensor, match: str) -> None:
    model = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    model(inputs)
    with pytest.raises(ValueError, match=match):
        explain(model, Probe(inputs), {"it": m.Saliency(abs=False)}, [metric])


def test_a_baseline_outside_of_the_vocabulary_is_refused() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3))
    with pytest.raises(
        ValueError,
        match=r"'it' \(FeatureAblation\): it does not fit the samples: index out of range in self\. Fix: check its arguments: Feat",
    ):
        explain(model, Probe(torch.ones(2, 3, dtype=torch.long)), {"it": m.FeatureAblation(baselines=99)}, [])


def test_samples_that_are_not_finite_are_told() -> None:
    x, y = samples(3)
    x[1, 0, 2, 2] = torch.nan
    with pytest.warns(UserWarning, match=r"The probe samples \[1\] contain NaN or infinite values"):
        explain(trained(), Probe(x, y), {"it": m.Saliency(abs=False)}, [])


NOWHERE: dict[str, dict[str, Any]] = {
    "output_fn": {"output_fn": lambda output: output.masked_fill(torch.arange(len(output))[:, None] == 1, torch.nan)},
    "target": {"target": lambda output: output[:, 0] / (torch.arange(len(output)) != 1)},
}


@pytest.mark.parametrize("given", NOWHERE.values(), ids=NOWHERE)
@pytest.mark.filterwarnings("ignore:.*has a map or score")
def test_an_explained_output_that_is_not_finite_is_told_with_its_samples_before_the_first_batch(
    given: dict[str, Any], tmp_path: Path
) -> None:
    x, y = samples(3)
    watch = monitor(probe=Probe(x, y, ids=torch.tensor([7, 8, 9])), **given)
    with pytest.warns(UserWarning, match=r"The explained output is NaN or infinite on the probe samples \[8\]"):
        fit(tmp_path, watch, max_steps=1)


# -- outputs ---------------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """Gives features and logits, and has a head that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.aux = trained(), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.aux(x.flatten(1))
        return x.flatten(1), self.net(x)


def test_a_choice_among_tensors_that_nobody_made_is_told() -> None:
    x, _ = samples(3)
    with pytest.warns(
        UserWarning, match=r"returns 2 tensors, of which the first, \(3, 64\), is explained; .* output_fn"
    ):
        explain(Two(), Probe(x), {"it": m.Saliency()}, [])


@pytest.mark.parametrize(
    "method", [m.LayerGradCam("aux"), m.LayerGradientXActivation("aux"), m.LayerConductance("aux")]
)
def test_a_layer_that_leads_nowhere_is_refused(method: Any) -> None:
    x, _ = samples(3)
    with pytest.raises(ValueError, match="no gradient flows from the explained output back to the layer 'aux'"):
        explain(Two(), Probe(x), {"it": method}, [], output_fn=lambda found: found[1])


def test_layers_that_lead_on_are_not_accused() -> None:
    x, _ = samples(3)
    model = Two()
    methods = {
        name: m.LayerGradientXActivation(name)
        for name, _ in model.named_modules()
        if name and not name.startswith("aux")
    }
    options = {"output_fn": lambda found: found[1]}
    assert {v.state for v in doctor(model, methods, Probe(x), **options)} == {"fine"}
    forward_only = doctor(model, {"it": m.LayerActivation("aux")}, Probe(x), **options)
    assert forward_only[0].state == "fine"


@pytest.mark.parametrize(
    ("output_fn", "match"),
    [
        (lambda found: found["logit"], "output_fn failed on what the model returned, a tuple: TypeError"),
        (lambda found: found[7], "output_fn failed on what the model returned, a tuple: IndexError"),
        (lambda found: 3, "output_fn returned int; change it to return a tensor"),
    ],
    ids=["key", "index", "number"],
)
def test_an_output_fn_that_fails_is_named(output_fn: Any, match: str) -> None:
    with pytest.raises(TypeError, match=f"^{match}"):
        explain(Two(), Probe(samples(3)[0]), {"it": m.Saliency()}, [], output_fn=output_fn)


def test_a_batch_fn_that_fails_is_named_with_the_batch(tmp_path: Path) -> None:
    watch = monitor(batch_fn=lambda batch: (batch["image"], batch["label"]), probe=ProbeSelection(count=4))
    with pytest.raises(TypeError, match=r"batch_fn failed on a batch, a list of \['Tensor', 'Tensor'\]: TypeError"):
        fit(tmp_path, watch)


@pytest.mark.parametrize("swapped", [True, False])
def test_arguments_in_the_wrong_order_are_refused(swapped: bool) -> None:
    x, _ = samples(3)
    given: tuple[Any, Any] = (Probe(x), trained()) if swapped else (trained(), x)
    with pytest.raises(
        TypeError, match=r"explain\(model, probe, ...\) got \w+ and \w+; give a torch.nn.Module and a Probe"
    ):
        explain(*given)


class Blind(nn.Module):
    """Says the same of all images."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(0 * x) + 0 * x.sum()


def test_a_map_that_is_zero_everywhere_is_told(tmp_path: Path) -> None:
    with pytest.warns(
        RuntimeWarning, match="the map of 'saliency' is zero everywhere, on all samples, and its scores mean"
    ):
        fit(tmp_path, monitor(), Blind())


# -- times, names, checkpoints ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (
            {"every_n_epochs": 3},
            "explains after every 3 epochs, but this training ends after 2: nothing will be explained",
        ),
        ({"every_n_train_steps": 9}, "explains after every 9 steps, but this training ends after 4"),
        (
            {"hook": "validation_epoch_end", "every_n_epochs": 2},
            "explains after every 2 epochs, but this training ends after 2",
        ),
    ],
    ids=["epochs", "steps", "rare validations"],
)
def test_a_training_that_ends_before_the_first_explanation_is_told(
    given: dict[str, Any], told: str, tmp_path: Path
) -> None:
    run = {"check_val_every_n_epoch": 3} if "hook" in given else {}
    with pytest.warns(UserWarning, match=told):
        fit(tmp_path, monitor(**given), None, max_epochs=2, **run)
    fit(tmp_path, monitor(**given, at_start=True), None, max_epochs=2, **run)


@pytest.mark.parametrize(
    ("given", "run", "told"),
    [
        ({"every_n_epochs": 2}, {}, "ends after epoch 3, is explained for the last time after epoch 2"),
        (
            {"every_n_train_steps": 2},
            {"max_steps": 5},
            "ends after step 5, is explained for the last time after step 4",
        ),
        (
            {"hook": "validation_epoch_end"},
            {"check_val_every_n_epoch": 2},
            "ends after epoch 3, is explained for the last time after epoch 2",
        ),
        ({}, {}, None),
    ],
    ids=str,
)
def test_an_end_that_is_not_explained_is_told_before_the_training(
    given: dict[str, Any], run: dict[str, Any], told: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(tmp_path, watch := monitor(**given, metrics=[]), max_epochs=3, **run)
    assert (told in caplog.text) if told else ("explained for the last time" not in caplog.text)
    last = report_of(watch)
    assert told is None or told.endswith(f"epoch {last.epoch + 1}" if "epoch" in told else f"step {last.step}")


def test_the_last_count_that_is_due_is_that_of_counting_whatever_the_length() -> None:
    for end, every, between in itertools.product(range(1, 30), range(1, 9), range(1, 9)):
        last = 0
        for count in range(0, end + 1, between):
            last = count if count // every > last // every else last
        assert last_due(end, every, between) == last, (end, every, between)
    assert last_due(10**12, 7, 3) == 10**12 - 1


def test_names_that_are_too_few_are_told(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="class_names has 2 names, but the model has 10 outputs"):
        fit(tmp_path, monitor(class_names=["zero", "one"]))
    fit(tmp_path, monitor(class_names=list("0123456789")))


def test_a_layer_that_was_chosen_by_itself_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        fit(tmp_path, monitor(methods={"cam": m.LayerGradCam(), "named": m.LayerGradCam("net.stem")}))
    told = [record.getMessage() for record in caplog.records if "explains the layer" in record.getMessage()]
    (line,) = told
    chosen = "ExplanationMonitor: 'cam' explains the layer 'net.block', chosen for this model, by LayerGradCam; "
    assert line.startswith(f"{chosen}after the layer 'net.block' each place has weights of its own")


class Frames(nn.Module):
    """A convolution on each frame, and a recurrent network over what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.rnn, self.head = nn.Conv2d(3, 4, 3), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        codes = self.first(x.flatten(0, 1)).relu().mean((2, 3)).unflatten(0, x.shape[:2])
        return self.head(self.rnn(codes)[0][:, -1])


@pytest.mark.filterwarnings("ignore:RNN module weights")
@pytest.mark.parametrize(
    ("net", "shape", "said"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 2, 2), nn.Upsample(scale_factor=2), nn.Conv2d(4, 2, 1)), (3, 8, 8), "HiResCAM"),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), (3, 8, 8), "LayerIntegratedGradients"),
        (Frames(), (5, 3, 8, 8), "LayerIntegratedGradients"),
    ],
    ids=["a segmentation", "a flattened map", "a video"],
)
def test_the_reason_why_a_layer_is_not_explained_by_grad_cam_is_true(
    net: nn.Module, shape: tuple[int, ...], said: str
) -> None:
    torch.manual_seed(0)
    watch = ExplanationMonitor()
    labels = torch.ones(4, 8, 8, dtype=torch.long) if said == "HiResCAM" else torch.tensor([0, 1, 0, 1])
    watch._ready = watch._explainer.check(net.eval(), Probe(torch.randn(4, *shape), labels))
    layer = "first" if isinstance(net, Frames) else "0"
    why = "each of its places has weights of its own after it, over which Grad-CAM would average"
    if isinstance(net, Frames):
        why = "each place of each frame has weights of its own after it, and Grad-CAM may mark other frames"
    assert watch._layer_line("cam") == f"explains the layer {layer!r}, chosen for this model, by {said}, because {why}."


@pytest.mark.parametrize(
    "asked",
    [{"probe": [1, 2]}, {"probe": ProbeSelection(count=3)}, {"probe": ProbeSelection(count=4, seed=1)}],
    ids=str,
)
def test_other_samples_than_those_of_the_checkpoint_are_not_ignored_silently(
    asked: dict[str, Any], tmp_path: Path
) -> None:
    saved = ModelCheckpoint(tmp_path / "saved", filename="it")
    fit(tmp_path, monitor(probe=ProbeSelection(count=4)), None, saved)
    path = tmp_path / "saved" / "it.ckpt"

    def resume(**given: Any) -> ExplanationMonitor:
        watch = monitor(**{"probe": ProbeSelection(count=4), **given})
        again = ModelCheckpoint(tmp_path / "again", filename="it")
        trainer(tmp_path, watch, again, max_epochs=2).fit(DigitModule(), loader(0, 16), loader(100, 8), ckpt_path=path)
        return watch

    with pytest.warns(UserWarning, match=r"keeps the probe samples .* of the checkpoint, chosen by Probe"):
        other = resume(**asked)
    same = resume()
    assert other.probe is not None
    assert same.probe is not None
    assert torch.equal(other.probe.sample_ids, same.probe.sample_ids)


def test_a_name_stands_for_a_method_inside_a_noise_tunnel() -> None:
    config = {"methods": {"it": {"name": "NoiseTunnel", "attribution_method": "IntegratedGradients", "nt_samples": 2}}}
    watch = ExplanationMonitor.from_config(config)
    assert watch._explainer.methods["it"] == m.NoiseTunnel(m.IntegratedGradients(), nt_samples=2)
    config["methods"]["it"]["attribution_method"] = "Salience"
    with pytest.raises(ValueError, match="there is no method 'Salience': did you mean 'Saliency'"):
        ExplanationMonitor.from_config(config)


def test_digits_have_ten_classes() -> None:
    # What the messages above count.
    assert set(digits()[1].tolist()) == set(range(10))
