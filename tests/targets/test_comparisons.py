"""Reconstruction errors and similarities are those of Captum on the same function written by hand, and are the default where they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from captum.attr import IntegratedGradients, Saliency
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity
from torch.utils.data import DataLoader

from lightning_explain import ExplanationMonitor, Probe, ProbeSelection, explain
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain import targets as t
from lightning_explain.targets.tasks import settled
from training import QUIET

pytestmark = QUIET
METHODS = {"ig": m.IntegratedGradients(n_steps=8), "saliency": m.Saliency(abs=False)}


def encoder() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def autoencoder() -> nn.Module:
    return nn.Sequential(encoder(), nn.Tanh(), nn.Linear(3, 6))


def rows(seed: int = 1) -> Tensor:
    return torch.randn(5, 6, generator=torch.Generator().manual_seed(seed))


def check(found: Any, function: Any, x: Tensor) -> None:
    x = x.clone().requires_grad_()
    by_hand = {
        "ig": IntegratedGradients(function).attribute(x, n_steps=8),
        "saliency": Saliency(function).attribute(x, abs=False),
    }
    for name, expected in by_hand.items():
        assert (found.attributions[name] - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("target", "error"),
    [
        (t.ReconstructionError(), lambda d: d.square().mean(1)),
        (t.ReconstructionError("sum", 1), lambda d: d.abs().sum(1)),
        ("label", lambda d: d.square().mean(1)),
    ],
)
def test_the_reconstruction_error_moves_with_its_input(target: Any, error: Any) -> None:
    net, x = autoencoder(), rows()
    check(explain(net, Probe(x), METHODS, [], target=target), lambda x: error(x - net(x)), x)


def test_its_map_is_complete_and_its_scores_are_finite() -> None:
    net, x = autoencoder(), rows()
    ig = {"ig": m.IntegratedGradients(n_steps=64)}
    report = explain(
        net, Probe(x), ig, [q.Completeness(), q.Infidelity(), q.SensitivityMax()], target=t.ReconstructionError()
    )
    change = report.values - (net(x * 0).square().mean(1)).detach()
    torch.testing.assert_close(report.attributions["ig"].sum(1), change, atol=1e-3, rtol=1e-3)
    assert not any(report.nonfinite().values())


class Vae(nn.Module):
    """Draws in evaluation only if it is told to."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.encode, self.decode, self.draws = nn.Linear(6, 4), nn.Linear(2, 6), draws

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log = self.encode(x).chunk(2, 1)
        return self.decode(mean + torch.randn_like(mean) * self.draws), mean, log


@pytest.mark.filterwarnings("ignore:The model returns 3 tensors:UserWarning")
def test_a_vae_is_explained_by_its_first_output_unless_it_draws_in_evaluation() -> None:
    x = rows()
    net = Vae(draws=False)
    report = explain(net, Probe(x), METHODS, [])
    assert report.task == "reconstruction"
    check(report, lambda x: (x - net(x)[0]).square().mean(1), x)
    with pytest.raises(ValueError, match="the model draws random numbers"):
        explain(Vae(draws=True), Probe(x), METHODS, [])


@pytest.mark.parametrize("labels", [None, "input", "classes"])
def test_an_output_like_the_input_is_a_reconstruction_by_default(labels: str | None) -> None:
    x = torch.rand(3, 1, 4, 4)
    targets = {None: None, "input": x, "classes": torch.tensor([0, 1, 2])}[labels]
    report = explain(nn.Conv2d(1, 1, 3, padding=1), Probe(x, targets), ["Saliency"], [])
    assert report.task == "reconstruction"


@pytest.mark.parametrize("labels", [torch.tensor([0, 9, 4, 4, 2]), torch.tensor([0, 1, 0, 0, 1.0]), None], ids=str)
@pytest.mark.parametrize("target", ["label", t.ReconstructionError()], ids=["default", "given"])
def test_a_flat_reconstruction_of_images_is_compared_with_them(labels: Tensor | None, target: Any) -> None:
    torch.manual_seed(0)
    net, x = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.Tanh(), nn.Linear(3, 64)), torch.rand(5, 1, 8, 8)
    report = explain(net, Probe(x, labels), METHODS, [], target=target)
    assert report.task == "reconstruction"
    check(report, lambda x: (x.flatten(1) - net(x)).square().mean(1), x)
    if labels is not None and not labels.is_floating_point():
        line = settled("auto", "label", net(x), labels, inputs=(x,)).line
        assert line.endswith('if that is a coincidence, give task="multiclass"')


def test_a_table_with_as_many_outputs_as_columns_is_a_classifier_whose_line_names_the_reconstruction() -> None:
    net, x = autoencoder(), rows()
    anomalies = torch.tensor([0, 1, 0, 0, 1])
    report = explain(net, Probe(x, anomalies), METHODS, [])
    assert report.task == "multiclass"
    check(report, lambda x: net(x)[torch.arange(len(x)), anomalies.repeat(len(x) // 5)], x)
    line = settled("auto", "label", net(x), anomalies, inputs=(x,)).line
    assert line.endswith("if they reconstruct it, give target=ReconstructionError()")
    given = explain(net, Probe(x, anomalies), METHODS, [], target=t.ReconstructionError())
    check(given, lambda x: (x - net(x)).square().mean(1), x)
    assert "ReconstructionError" not in settled("multiclass", "label", net(x), anomalies, inputs=(x,)).line


@pytest.mark.parametrize("shape", [(2,), (10,), (64,), (1, 64), (1, 5, 5)], ids=str)
def test_rare_classes_and_sorted_labels_are_those_of_a_classifier(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, *shape)
    outputs = torch.randn(16, x[0].numel())
    for labels in (torch.zeros(16, dtype=torch.long), torch.arange(16) // 10):
        assert settled("auto", "label", outputs, labels, inputs=(x,)).name == "multiclass"


@pytest.mark.parametrize(
    ("labels", "named", "last"),
    [
        (torch.tensor([0, 5, 1, 0, 2]), False, nn.Identity()),  # Classes of six.
        (torch.tensor([0, 1]), False, nn.Identity()),  # Two samples do not tell.
        (torch.tensor([0, 1, 0, 0, 1]), True, nn.Identity()),
        (torch.tensor([0, 1, 0, 0, 1]), False, nn.Softmax(1)),
    ],
    ids=["high", "few", "named", "softmax"],
)
def test_a_classifier_of_as_many_classes_as_columns_is_none_of_them(labels: Tensor, named: bool, last: Any) -> None:
    net, x = nn.Sequential(autoencoder(), last), rows()[: len(labels)]
    names = list("abcdef") if named else None
    report = explain(net, Probe(x, labels, class_names=names), ["Saliency"], [])
    assert report.task == "multiclass"
    torch.testing.assert_close(report.values, net(x)[torch.arange(len(x)), labels].detach())


def test_similarity_of_a_pair_and_to_references() -> None:
    net, a, b = encoder(), rows(), rows(2)
    reference = net(b).detach()

    def both(model: nn.Module, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return model(a), model(b)

    pair = explain(net, Probe(a, forward_args=(b,)), METHODS, [], target=t.Similarity(), forward_fn=both)
    check(pair, lambda x: cosine_similarity(net(x), reference.repeat(len(x) // 5, 1)), a)
    query = explain(net, Probe(a), METHODS, [], target=t.Similarity(reference[0]))
    check(query, lambda x: cosine_similarity(net(x), reference[:1]), a)
    labels = torch.tensor([0, 1, 1, 0, 1])
    of_class = explain(net, Probe(a, labels), METHODS, [], target=t.Similarity(reference[:2]))
    torch.testing.assert_close(of_class.values, cosine_similarity(net(a), reference[:2][labels]).detach())


def test_two_embeddings_of_two_inputs_are_compared_by_default() -> None:
    class Siamese(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = encoder()

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(a), self.net(b)

    report = explain(Siamese(), Probe((rows(), rows(2)), torch.tensor([0, 1, 0, 1, 1])), METHODS, [])
    expected = cosine_similarity(*Siamese()(rows(), rows(2)))
    torch.testing.assert_close(report.values, expected.detach())


class ImagesAndTexts(nn.Module):
    """Embeddings of rows and of ids; ``pairs``: the similarities of all of them to each other, as CLIP returns."""

    def __init__(self, pairs: bool = False) -> None:
        super().__init__()
        self.net, self.words, self.pairs = encoder(), nn.Embedding(9, 3), pairs

    def forward(self, image: Tensor, text: Tensor) -> Any:
        a, b = self.net(image), self.words(text).mean(1)
        return (a @ b.T, b @ a.T) if self.pairs else (a, b)


TEXTS = torch.randint(9, (5, 4), generator=torch.Generator().manual_seed(3))


def test_embeddings_of_two_kinds_of_things_are_compared_by_default() -> None:
    net = ImagesAndTexts()
    text = net.words(TEXTS).mean(1).detach()
    found = explain(net, Probe(rows(), forward_args=(TEXTS,)), METHODS, [])
    check(found, lambda x: cosine_similarity(net.net(x), text.repeat(len(x) // 5, 1)), rows())


def test_mean_and_deviation_are_no_pair_of_embeddings() -> None:
    class Encoder(nn.Module):
        def forward(self, x: Tensor, of: Tensor) -> tuple[Tensor, Tensor]:
            return x[:, :3], x[:, 3:] + of[:, None]

    with pytest.warns(UserWarning, match="returns 2 tensors, of which the first"):
        report = explain(Encoder(), Probe(rows(), forward_args=(torch.tensor([0, 1, 0, 1, 1]),)), METHODS, [])
    assert report.values.abs().max() > 1.01, "it is no cosine"


def test_similarities_of_all_pairs_in_a_batch_are_refused_with_the_fix() -> None:
    with pytest.raises(ValueError, match=r"all pairs of samples: 5 for each of 5, 3 for each of 3. Give forward_fn="):
        explain(ImagesAndTexts(pairs=True), Probe(rows(), forward_args=(TEXTS,)), METHODS, [])


def test_another_view_is_no_label() -> None:
    report = explain(encoder(), Probe(rows(), rows(2)), METHODS, [])
    assert report.task == "embedding"
    torch.testing.assert_close(report.values, encoder()(rows()).norm(dim=1).detach())


class Normalized(nn.Module):
    """An encoder as of contrastive learning, whose outputs all have the norm ``length``."""

    def __init__(self, length: float = 1.0) -> None:
        super().__init__()
        self.net, self.length = encoder(), length

    def forward(self, x: Tensor) -> Tensor:
        return self.length * nn.functional.normalize(self.net(x))


@pytest.mark.parametrize("labels", [rows(2), torch.tensor([0, 1, 0, 1, 1])], ids=["view", "classes"])
@pytest.mark.parametrize("task", ["auto", "embedding"])
def test_of_normalized_embeddings_the_norm_is_not_explained(labels: Tensor, task: str) -> None:
    net, x = Normalized(), rows()
    report = explain(net, Probe(x, labels), METHODS, [], task=task)
    largest = net(x).argmax(1)
    assert report.task == "embedding"
    check(report, lambda x: net(x)[torch.arange(len(x)), largest.repeat(len(x) // 5)], x)
    line = settled(task, "label", net(x), labels, inputs=(x,)).line
    fix = (
        "forward_fn=lambda model, a, b: (model(a), model(b))" if labels.is_floating_point() else "Similarity(to=means)"
    )
    assert "largest output of each sample, because all outputs have the same norm" in line
    assert fix in line


@pytest.mark.parametrize("length", [1.0, 16.0])
def test_a_norm_that_all_samples_share_is_refused(length: float) -> None:
    with pytest.raises(ValueError, match=r"the same for every sample.*forward_fn=lambda model, a, b"):
        explain(Normalized(length), Probe(rows()), METHODS, [], target=t.Norm())
    with pytest.raises(ValueError, match="the same for every sample"):
        explain(nn.Sequential(Normalized(), nn.Unflatten(1, (3, 1))), Probe(rows()), METHODS, [], task="embedding")


def test_classes_beside_two_views_are_no_outputs_of_an_encoder() -> None:
    torch.manual_seed(0)
    net, x, labels = nn.Sequential(encoder(), nn.Linear(3, 32)), rows(), torch.tensor([0, 1, 0, 1, 1])
    report = explain(net, Probe(x, labels, views=True), METHODS, [])
    assert report.task == "embedding"
    check(report, lambda x: net(x).norm(dim=1), x)
    line = settled("auto", "label", net(x), labels, inputs=(x,), views=True).line
    assert line.endswith('the norm of the output; if the outputs are those of classes, give task="multiclass"')
    for other in (Probe(x, labels), Probe(x, labels + 30, views=True)):
        assert explain(net, other, METHODS, []).task == "multiclass", "as AugMix trains a classifier"
    assert explain(net, Probe(x, labels, views=True), METHODS, [], task="multiclass").task == "multiclass"


def test_two_views_of_a_classifier_with_a_rare_class_are_explained_by_their_label() -> None:
    torch.manual_seed(0)
    net, x, labels = nn.Linear(4, 2), torch.randn(16, 4), torch.zeros(16, dtype=torch.long)
    report = explain(net, Probe(x, labels, views=True), METHODS, [])
    assert report.task == "multiclass"
    torch.testing.assert_close(report.values, net(x)[:, 0].detach())
    line = settled("auto", "label", net(x), labels, inputs=(x,), views=True).line
    assert line.endswith('if the outputs are an embedding of the first view, give task="embedding"')


class Contrastive(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(encoder(), nn.Linear(3, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (first, second), _ = batch
        return -cosine_similarity(self(first), self(second)).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_a_training_of_two_views_with_labels_explains_the_norm(tmp_path: Path) -> None:
    data = [([x, x + 0.1], int(x[0] > 0)) for x in torch.randn(8, 6, generator=torch.Generator().manual_seed(3))]
    monitor = ExplanationMonitor(methods=METHODS, metrics=[], probe=ProbeSelection(count=8, source="train"))
    trainer = pl.Trainer(
        max_epochs=1, callbacks=[monitor], default_root_dir=tmp_path, logger=False, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    module = Contrastive()
    with pytest.warns(UserWarning, match="tensor 1 of the first part"):
        trainer.fit(module, DataLoader(data, 4))  # type: ignore[arg-type]
    report = monitor.last_report
    assert report is not None
    assert report.task == "embedding"
    x = torch.stack([views[0] for views, _ in data])[report.ids]
    torch.testing.assert_close(report.values, module(x).norm(dim=1).detach())


def test_what_does_not_fit_is_refused_with_the_fix() -> None:
    net, x = encoder(), rows()
    with pytest.raises(ValueError, match=r"needs an output of the shape of an input .*output_fn"):
        explain(net, Probe(x), METHODS, [], target=t.ReconstructionError())
    with pytest.raises(ValueError, match=r"compares two embeddings.*Similarity\(to=embedding\)"):
        explain(net, Probe(x), METHODS, [], target=t.Similarity())
    with pytest.raises(ValueError, match="the reference has 2 numbers, but embeddings have 3"):
        explain(net, Probe(x), METHODS, [], target=t.Similarity([1.0, 0.0]))
    with pytest.raises(ValueError, match="a reference for each class needs whole labels"):
        explain(net, Probe(x), METHODS, [], target=t.Similarity(torch.eye(3)))
    with pytest.raises(ValueError, match="Similarity"):
        t.Similarity("other")
    with pytest.raises(ValueError, match="reduction"):
        t.ReconstructionError("median")
    with pytest.raises(ValueError, match="norm"):
        t.ReconstructionError(norm=0)
