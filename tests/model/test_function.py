"""How a module becomes a function of its samples: outputs, targets, layers, and what is refused."""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from lightning_explain import Probe, Report, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.explainer.explainer import Explainer
from lightning_explain.model.layers import find_layer
from lightning_explain.model.targets import Choice, check_target, choose, output_tensor, predictions_of
from networks import DigitNet, samples, trained

SALIENCY = {"saliency": m.Saliency(abs=False)}


class Wrapped(nn.Module):
    """A network whose output is wrapped into something."""

    def __init__(self, wrap: Callable[[Tensor], Any], net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = net or trained()
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.net(x))


class Output(NamedTuple):
    loss: Tensor
    logits: Tensor


class Answer:
    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


def explained(model: nn.Module, labels: Any = "own", **options: Any) -> Report:
    """The report of a saliency map."""
    x, y = samples()
    return explain(model, Probe(x, y if isinstance(labels, str) else labels), SALIENCY, [], **options)


def gradient(of: Callable[[Tensor], Tensor]) -> Tensor:
    """The gradient of a function of the network's ten outputs, by hand."""
    x = samples()[0].requires_grad_()
    return torch.autograd.grad(of(trained().eval()(x)).sum(), x)[0]


def own_label(outputs: Tensor) -> Tensor:
    return outputs[torch.arange(len(outputs)), samples()[1]]


# -- outputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrap", "output_fn"),
    [
        (lambda o: o, None),
        (lambda o: (o, o.sum()), None),
        (lambda o: [o], None),
        (lambda o: {"logits": o, "loss": o.sum()}, None),
        (Answer, None),
        (lambda o: Output(o.sum(), o), None),
        (lambda o: {"loss": o.sum(), "scores": [o]}, lambda found: found["scores"][0]),
        (lambda o: (o.sum(), o), lambda found: found[1]),
    ],
    ids=["tensor", "tuple", "list", "mapping", "object", "named tuple", "output_fn of mapping", "output_fn of tuple"],
)
def test_the_tensor_is_found_in_what_a_model_returns(wrap: Callable[[Tensor], Any], output_fn: Any) -> None:
    report = explained(Wrapped(wrap), output_fn=output_fn)
    assert torch.equal(report.outputs, trained().eval()(samples()[0]))
    assert torch.equal(report.predictions, report.outputs.argmax(1))
    assert torch.equal(report.targets, samples()[1])
    torch.testing.assert_close(report.attributions["saliency"], gradient(own_label))


@pytest.mark.parametrize("keep", [False, True], ids=["(N,)", "(N, 1)"])
@pytest.mark.parametrize("target", ["label", "predicted", 0])
def test_one_number_a_sample_is_explained_whatever_the_label(keep: bool, target: str | int) -> None:
    model = Wrapped(lambda o: o[:, 3:4] if keep else o[:, 3])
    report = explained(model, target=target)
    torch.testing.assert_close(report.attributions["saliency"], gradient(lambda o: o[:, 3]))
    assert torch.equal(report.targets, torch.zeros(len(samples()[0]), dtype=torch.long))
    assert torch.equal(report.predictions, (report.outputs.flatten() > 0).long())
    assert set(report.predictions.tolist()) == {0, 1}


def test_half_precision_outputs_are_reported_in_single_precision() -> None:
    report = explained(Wrapped(lambda o: o.bfloat16()))
    assert report.outputs.dtype == torch.float32


def test_forward_fn_is_called_instead_of_the_module() -> None:
    report = explained(
        trained(), forward_fn=lambda model, x: model.head(torch.ones(len(x), 128)) + x.sum((1, 2, 3))[:, None]
    )
    torch.testing.assert_close(report.attributions["saliency"], torch.ones_like(samples()[0]))


class Two(nn.Module):
    """Two inputs and two arguments that are not explained."""

    def forward(self, a: Tensor, b: Tensor, scale: Tensor, name: str) -> Tensor:
        assert name == "fixed"
        return ((a * scale[:, None]).sum(1) * b.sum(1))[:, None]


@pytest.mark.parametrize("limit", [1, 2, 9])
def test_several_inputs_and_further_arguments_are_split_by_samples(limit: int) -> None:
    a, b, scale = torch.rand(5, 3), torch.rand(5, 2), torch.rand(5)
    probe = Probe((a, b), forward_args=(scale, "fixed"))
    report = explain(Two(), probe, SALIENCY, [], max_examples_per_pass=limit)
    found = report.attributions["saliency"]
    assert isinstance(found, tuple)
    torch.testing.assert_close(found[0], (scale * b.sum(1))[:, None].expand(5, 3))
    torch.testing.assert_close(found[1], (a * scale[:, None]).sum(1, keepdim=True).expand(5, 2))


@pytest.mark.parametrize(
    ("wrap", "error", "match"),
    [
        (
            lambda o: {"a": 3.0, "b": None},
            TypeError,
            r"returned dict with keys \['a', 'b'\]; allowed .* output_fn=lambda",
        ),
        (lambda o: (), TypeError, "returned tuple; allowed are a tensor"),
        (lambda o: ({"logits": o},), TypeError, "returned dict with keys"),
        (lambda o: 3.0, TypeError, "returned float; allowed are a tensor, a tuple that starts with one"),
        (lambda o: (o.sum(), o), ValueError, "one number for all samples, such as a loss; .* output_fn=lambda"),
        (
            lambda o: o.mean(0, keepdim=True),
            ValueError,
            r"returned 1 samples for 7; its output must be \(N, ...\)",
        ),
    ],
)
def test_an_output_that_is_none_is_refused(wrap: Callable[[Tensor], Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        explained(Wrapped(wrap))


def test_an_output_fn_that_returns_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match=r"output_fn returned list; change it to return a tensor \(N, ...\)"):
        explained(trained(), output_fn=lambda output: [output])


def test_a_tensor_is_its_own_output() -> None:
    x = torch.ones(3)
    assert output_tensor(x) is x


# -- targets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "of", "indices"),
    [
        ("label", own_label, samples()[1]),
        ("predicted", lambda o: o.amax(1), None),
        (4, lambda o: o[:, 4], torch.full((7,), 4)),
        ((6,), lambda o: o[:, 6], torch.full((7,), -1)),
        ([6], lambda o: o[:, 6], torch.full((7,), -1)),
        (lambda o: o[:, 2] - o[:, 3], lambda o: o[:, 2] - o[:, 3], torch.full((7,), -1)),
    ],
    ids=["label", "predicted", "int", "tuple", "list", "callable"],
)
@pytest.mark.parametrize("limit", [3, 32])
def test_a_target_chooses_the_explained_number(
    target: Any, of: Callable[[Tensor], Tensor], indices: Any, limit: int
) -> None:
    report = explained(trained(), target=target, max_examples_per_pass=limit)
    torch.testing.assert_close(report.attributions["saliency"], gradient(of))
    assert torch.equal(report.targets, report.predictions if indices is None else indices)


def test_a_label_that_is_not_there_is_the_prediction() -> None:
    report = explained(trained(), labels=None)
    assert torch.equal(report.targets, report.predictions)
    torch.testing.assert_close(report.attributions["saliency"], gradient(lambda o: o.amax(1)))


@pytest.mark.parametrize("target", [(3, 1, 0), lambda o: o[:, 3, 1, 0]], ids=["tuple", "callable"])
def test_dense_outputs_are_explained_at_a_place(target: Any) -> None:
    report = explained(Wrapped(lambda o: o.reshape(-1, 5, 2, 1)), target=target)
    torch.testing.assert_close(report.attributions["saliency"], gradient(lambda o: o[:, 7]))
    assert torch.equal(report.targets, torch.full((7,), -1))
    assert torch.equal(report.predictions, torch.zeros(7, dtype=torch.long))


@pytest.mark.parametrize(
    ("target", "error", "match"),
    [
        ("lable", ValueError, "target='lable': did you mean 'label'.* Or give an int, a tuple, or a callable"),
        ("x", ValueError, "target='x': use one of 'label', 'predicted'"),
        ((1, "a"), TypeError, r"target=\(1, 'a'\); give target=\"label\".* an int, a tuple such as"),
        ([0.5], TypeError, r"target=\[0\.5\]; give target"),
        (1.5, TypeError, "target=1.5; give target"),
        (True, TypeError, "target=True; give target"),
        (None, TypeError, "target=None; give target"),
    ],
)
def test_what_can_never_be_a_target_is_refused(target: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        check_target(target)
    with pytest.raises(error, match=match):
        explained(trained(), target=target)


@pytest.mark.parametrize(
    ("wrap", "labels", "target", "match"),
    [
        (
            None,
            "own",
            10,
            r"target=10 gives indices 10 to 10 of 10 outputs; use indices from 0 to 9",
        ),
        (None, "own", -1, "target=-1 gives indices -1 to -1"),
        (None, torch.arange(5, 12), "label", "target='label' gives indices 5 to 11"),
        (None, torch.full((7,), -100), "label", "indices -100 to -100"),
        (None, torch.rand(7), "label", r"needs integer labels \(7,\), got torch.float32 \(7,\)"),
        (
            None,
            torch.zeros(7, 9, dtype=torch.long),
            "label",
            r"got torch.int64 \(7, 9\); give such labels .* or use target=\"predicted\"",
        ),
        (lambda o: o[:, 0], "own", 1, r"target=1, but the model returns one number per sample, \(7,\); use target=0"),
        (
            lambda o: o[:, :1],
            "own",
            2,
            r"target=2, but the model returns one number per sample, \(7, 1\); use target=0",
        ),
        (
            lambda o: o.reshape(-1, 5, 2),
            "own",
            "label",
            r"needs outputs \(N, C\), got \(7, 5, 2\); use a tuple such as",
        ),
        (lambda o: o.reshape(-1, 5, 2), "own", 3, r"target=3 needs outputs \(N, C\)"),
        (
            lambda o: o.reshape(-1, 5, 2),
            "own",
            (3,),
            r"target=\(3,\) chose \(7, 2\) from outputs \(7, 5, 2\); give a target that chooses",
        ),
        (None, "own", (10,), r"target=\(10,\) does not fit outputs \(7, 10\): IndexError: index 10 is out of bounds"),
        (None, "own", (1, 2), r"target=\(1, 2\) does not fit outputs \(7, 10\): IndexError: too many indices"),
        (None, "own", lambda o: o, r"chose \(7, 10\) from outputs \(7, 10\); give a target that chooses \(7,\)"),
        (None, "own", lambda o: 3, r"chose int from outputs \(7, 10\)"),
    ],
)
def test_a_target_that_does_not_fit_the_outputs_is_refused(wrap: Any, labels: Any, target: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        explained(Wrapped(wrap) if wrap else trained(), labels=labels, target=target)


def test_predictions_of_dense_outputs_are_zeros() -> None:
    assert predictions_of(torch.rand(2, 3, 4, 4)).tolist() == [0, 0]


# -- layers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("block.con1", r"no layer 'block.con1' in DigitNet: did you mean .*'block.conv1'"),
        ("layer4", "no layer 'layer4' in DigitNet: use one of 'stem', 'stem.0'"),
        ("", "no layer '' in DigitNet"),
    ],
)
def test_an_unknown_layer_is_refused_with_the_nearest_names(name: str, match: str) -> None:
    x, y = samples()
    with pytest.raises(ValueError, match=match):
        explain(trained(), Probe(x, y), {"cam": m.LayerGradCam(name)}, [])
    with pytest.raises(ValueError, match=match):
        explain(trained(), Probe(x, y), {"tunnel": m.NoiseTunnel(m.LayerGradCam(name))}, [])


def test_a_layer_is_found_by_its_name_in_a_compiled_module_and_the_other_way_round() -> None:
    model = trained()
    layer = model.block.conv1
    compiled = torch.compile(model, backend="eager")
    assert find_layer(compiled, "block.conv1") is layer
    assert find_layer(compiled, "_orig_mod.block.conv1") is layer
    assert find_layer(model, "_orig_mod.block.conv1") is layer
    model.block = torch.compile(model.block, backend="eager")
    assert find_layer(model, "block.conv1") is layer


@pytest.mark.parametrize("compiled", [False, True])
def test_the_last_feature_map_is_the_last_to_return_one(compiled: bool) -> None:
    model = torch.compile(trained(), backend="eager") if compiled else trained()
    x, y = samples()
    default = explain(model, Probe(x, y), {"cam": m.LayerGradCam()}, [])
    named = explain(model, Probe(x, y), {"cam": m.LayerGradCam("block")}, [])
    assert torch.equal(default.attributions["cam"], named.attributions["cam"])


def default_layer(model: nn.Module, x: Tensor) -> str | None:
    (method,) = Explainer({"cam": m.LayerGradCam()}, {}, target=0).check(model, Probe(x)).methods.values()
    assert all(not module._forward_hooks for module in model.modules())
    return method.layer


def test_a_map_of_one_pixel_is_not_a_feature_map() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert default_layer(model, samples()[0]) == "0"


class WithDecoder(nn.Module):
    """Makes a picture of its features, after the classifier and beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.head, self.decoder = nn.Conv2d(1, 2, 3), nn.Linear(2, 10), nn.Conv2d(2, 1, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder(x)
        return self.head(x.mean((2, 3))), self.decoder(x)


@pytest.mark.filterwarnings("ignore:The model returns 2 tensors")
def test_a_feature_map_that_does_not_lead_to_the_output_is_passed_over() -> None:
    assert default_layer(WithDecoder(), samples()[0]) == "encoder"


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:FutureWarning")
def test_a_part_in_torchscript_is_passed_over() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))
    model = nn.Sequential(scripted, nn.Identity(), nn.Flatten(), nn.Linear(72, 10))
    x, y = samples()
    report = explain(model, Probe(x, y), {"cam": m.LayerGradCam(), **SALIENCY}, [])
    assert report.attributions["cam"].shape == (7, 1, 6, 6)


def test_hooks_are_removed_when_the_look_at_the_model_fails() -> None:
    model = trained()
    with pytest.raises(ValueError, match="channels"):
        explain(model, Probe(torch.ones(1, 2, 8, 8)), SALIENCY, [])
    assert all(not module._forward_hooks for module in model.modules())


FLAT = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_without_a_feature_map_a_layer_method_is_refused() -> None:
    x, y = samples()
    with pytest.raises(ValueError, match=r"'cam' \(LayerGradCam\): it names no layer, and no module .* give layer=..."):
        explain(FLAT, Probe(x, y), {"cam": m.LayerGradCam()}, [])


def test_without_a_feature_map_the_default_methods_leave_it_out_and_say_so() -> None:
    x, y = samples()
    with pytest.warns(
        UserWarning,
        match=r"'cam' \(LayerGradCam\) is left out: it names no layer",
    ):
        report = explain(FLAT, Probe(x, y), metrics=[])
    assert list(report.attributions) == ["saliency", "ig"]


# -- passes --------------------------------------------------------------------------------------------------------


class Counting(DigitNet):
    """Counts the samples it sees, and those a gradient comes back for."""

    def __init__(self) -> None:
        super().__init__()
        self.load_state_dict(trained().state_dict())

    def forward(self, x: Tensor) -> Tensor:
        SEEN["forward"] += len(x)
        output = super().forward(x)
        if output.requires_grad:
            output.register_hook(lambda gradient: SEEN.update(backward=SEEN["backward"] + len(gradient)))
        return output


SEEN = {"forward": 0, "backward": 0}


@pytest.mark.parametrize(
    ("method", "forward", "backward"),
    [
        (m.Saliency(abs=False), 1, 1),
        (m.IntegratedGradients(n_steps=6), 1 + 6, 6),
        (m.NoiseTunnel(nt_samples=3), 1 + 3, 3),
        (m.Occlusion(strides=(1, 4, 4)), 4 + 1, 0),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else str(value),
)
@pytest.mark.parametrize("metrics", [{}, {"infidelity": q.Infidelity(n_perturb_samples=4)}], ids=["alone", "scored"])
def test_samples_through_the_model_are_counted(
    method: Any, forward: int, backward: int, metrics: dict[str, q.Infidelity]
) -> None:
    x, y = samples(4)
    explainer = Explainer({"it": method}, metrics, limit=4)
    SEEN.update(forward=0, backward=0)
    report = explainer.explain(Counting(), Probe(x, y))
    assert {"forward": report.passes.forward, "backward": report.passes.backward} == SEEN
    # The sample itself is seen once, for its output and for whoever looks there.
    assert report.passes.forward == 4 * (forward + 4 * len(metrics))
    assert report.passes.backward == 4 * backward


def test_a_layer_is_found_by_each_of_its_names() -> None:
    shared = nn.ReLU()
    model = nn.Sequential(OrderedDict(first=shared, second=shared))
    assert find_layer(model, "first") is find_layer(model, "second") is shared


def test_the_model_itself_is_no_layer() -> None:
    with pytest.raises(ValueError, match="There is no layer '' in Sequential"):
        find_layer(nn.Sequential(nn.ReLU()), "")


class Positions(nn.Module):
    """An argument that is the same for all samples, and may be as long as some of them are many."""

    def forward(self, x: Tensor, positions: Tensor, offset: Tensor) -> Tensor:
        return (x * positions).sum(1, keepdim=True) ** 2 + offset


SHARING = [m.IntegratedGradients(n_steps=4), m.GradientShap(2), m.Occlusion((1,)), m.Lime(5), m.FeaturePermutation()]


@pytest.mark.parametrize("limit", [1, 2, 3, 64])
@pytest.mark.parametrize("method", SHARING, ids=lambda method: type(method).__name__)
def test_an_argument_that_all_samples_share_stays_whole_however_many_samples_there_are(method: Any, limit: int) -> None:
    # Three numbers in blocks of three samples, too.
    x, positions = torch.rand(7, 3), torch.tensor([1.0, 2.0, 3.0])
    found, expected = (
        explain(model, probe, {"it": method}, [], max_examples_per_pass=limit).attributions["it"]
        for model, probe in (
            (Positions(), Probe(x, forward_args=(positions, torch.tensor(0.5)))),
            (Wrapped(lambda x: (x * positions).sum(1, keepdim=True) ** 2 + 0.5, nn.Identity()), Probe(x)),
        )
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("shape", "labels", "mean"),
    [
        ((3, 4, 5, 6), (3, 5, 6), lambda outputs: outputs[:, 1].mean((1, 2))),
        ((3, 4, 5, 6), None, lambda outputs: outputs[:, 1].mean((1, 2))),
        ((3, 7, 5), (3, 7), lambda outputs: outputs[:, :, 1].mean(1)),
        ((3, 5, 7), (3, 7), lambda outputs: outputs[:, 1].mean(1)),
    ],
    ids=["pixels", "without labels", "tokens", "places behind the classes"],
)
def test_outputs_with_a_class_for_each_place_are_refused_with_a_target_that_runs(
    shape: tuple[int, ...], labels: tuple[int, ...] | None, mean: Callable[[Tensor], Tensor]
) -> None:
    model = nn.Sequential(nn.Linear(8, math.prod(shape[1:])), nn.Unflatten(1, shape[1:]))
    probe = Probe(torch.randn(3, 8), None if labels is None else torch.zeros(labels, dtype=torch.long))
    with pytest.raises(ValueError, match=r"needs outputs \(N, C\)") as refused:
        explain(model, probe, SALIENCY, [], target="label" if labels is None else "predicted")
    proposed = eval(re.search("target=(lambda.*), the mean of class 1", str(refused.value))[1])  # type: ignore[index]
    report = explain(model, probe, SALIENCY, [], target=proposed)
    x = probe.inputs.clone().requires_grad_()
    mean(model(x)).sum().backward()
    torch.testing.assert_close(report.attributions["saliency"], x.grad)


def test_labels_made_in_inference_mode_choose_targets_that_a_backward_pass_can_save() -> None:
    outputs = torch.rand(2, 3, requires_grad=True)
    with torch.inference_mode():
        labels = torch.tensor([2, 0])
    choice = Choice("label", labels)
    choose(outputs, choice(outputs), "label").sum().backward()
    assert outputs.grad is not None
    assert outputs.grad.tolist() == [[0, 0, 1], [1, 0, 0]]


class Gated(nn.Module):
    """Passes only what is above a threshold of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.score_thresh, self.weight = 0.5, nn.Parameter(torch.tensor([1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x.where(x > self.score_thresh, torch.zeros_like(x))


def test_a_threshold_of_a_model_that_is_no_detector_stays() -> None:
    report = explain(Gated(), Probe(torch.tensor([[0.2, 0.9], [0.7, 0.1]])), SALIENCY, [], target=lambda o: o.sum(1))
    assert report.values.tolist() == pytest.approx([1.8, 0.7])
