"""What the inputs are is settled before the first batch, from what the model does with them, and kept with the samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_explain import Probe, explain, modalities
from lightning_explain import methods as m
from lightning_explain import metrics as q
from lightning_explain.modalities import Tabular, Text, TimeSeries, restored, stored
from lightning_explain.probes.binding import samples_of
from lightning_explain.probes.signature import signature_of
from lightning_explain.store.run_files import save_probe

IDS = torch.tensor([[3, 4, 5, 0], [5, 6, 0, 0]])


class Words(nn.Module):
    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(9, 5, **arguments), nn.Linear(5, 2)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        found: Tensor = self.head(self.embedding(x).mean(1))
        return found


class Channels(nn.Module):
    def __init__(self, layer: nn.Module, turns: bool) -> None:
        super().__init__()
        self.layer, self.turns = layer, turns

    def forward(self, x: Tensor) -> Tensor:
        found = self.layer(x.transpose(1, 2) if self.turns else x)
        return (found[0] if isinstance(found, tuple) else found).flatten(1)[:, :3]


def test_ids_that_an_embedding_looks_up_are_text_and_explained_at_the_embedding() -> None:
    model, probe = Words(padding_idx=0), Probe(IDS)
    report = explain(model, probe, metrics=[])
    assert report.probe is not None
    (text,) = report.probe.modalities
    assert isinstance(text, Text)
    assert text.pad_id == 0
    assert text.present(IDS).tolist() == (IDS != 0).tolist()  # type: ignore[union-attr]
    assert set(report.attributions) == {"ig", "ablation"}
    by_hand = explain(model, probe, {"it": m.LayerIntegratedGradients("embedding", n_steps=16)}, [])
    assert torch.equal(report.attributions["ig"], by_hand.attributions["it"])  # type: ignore[arg-type]


def test_padding_is_what_stands_where_the_mask_is_zero() -> None:
    ids = torch.tensor([[3, 4, 8, 8], [5, 8, 8, 8]])
    report = explain(Words(), Probe({"x": ids, "attention_mask": (ids != 8).long()}), metrics=[])
    assert report.probe is not None
    assert report.probe.modalities[0].pad_id == 8


@pytest.mark.parametrize(
    ("layer", "turns", "layout"),
    [
        (nn.Conv1d(6, 2, 1), False, "NCT"),
        (nn.Conv1d(7, 2, 1), True, "NTC"),
        (nn.GRU(7, 2, batch_first=True), False, "NTC"),
        (nn.Linear(6, 2), True, "NCT"),
    ],
)
def test_the_first_layer_says_which_dimension_is_time(layer: nn.Module, turns: bool, layout: str) -> None:
    report = explain(Channels(layer, turns), Probe(torch.randn(4, 6, 7)), ["Saliency"], [])
    assert report.probe is not None
    (series,) = report.probe.modalities
    assert isinstance(series, TimeSeries)
    assert series.layout == layout


def test_a_modality_that_does_not_fit_is_refused_before_anything_is_explained() -> None:
    table, net = Probe(torch.randn(4, 3)), nn.Linear(3, 2)
    with pytest.raises(ValueError, match=r"has 2 feature_names for \(4, 3\)"):
        explain(net, table, modalities=Tabular(feature_names=["a", "b"]))
    with pytest.raises(ValueError, match=r"Text needs token ids \(N, T\), got torch.float32"):
        explain(net, table, modalities={"name": "Text"})
    with pytest.raises(ValueError, match="modalities names the input 'y'"):
        explain(net, table, modalities={"y": Tabular()})


def test_they_are_kept_as_plain_values_beside_the_samples(tmp_path: Path) -> None:
    words = ["<pad>", *"abcdefgh"]
    report = explain(Words(padding_idx=0), Probe(IDS), metrics=[], modalities=Text(vocabulary=words))
    assert report.probe is not None
    (text,) = report.probe.modalities
    assert set(text.vocabulary) == {0, 3, 4, 5, 6}, "no more than the samples have"
    (again,) = restored(stored(report.probe.modalities)) or ()
    assert again == text
    assert b"Text" in save_probe(report.probe, tmp_path).read_bytes()
    assert restored([{"class": "MyOwn"}]) is None
    with pytest.raises(ValueError, match="not a list of dictionaries"):
        restored({"class": "Text"})


def test_no_baseline_is_the_reference_token_and_zero_is_zero() -> None:
    model, probe, text = Words(), Probe(IDS), Text(pad_id=0, mask_id=7)
    methods = {
        "none": m.FeatureAblation(),
        "zero": m.FeatureAblation(baselines=0),
        "mask": m.FeatureAblation(baselines=7),
    }
    report = explain(model, probe, methods, [q.Infidelity()], modalities=text)
    masked = torch.where(IDS != 0, report.attributions["mask"], 0)  # type: ignore[arg-type]
    torch.testing.assert_close(report.attributions["none"], masked, rtol=0, atol=1e-6)
    alone = explain(model, probe, {"zero": methods["zero"]}, [q.Infidelity()], modalities=text)
    together = report.scores["infidelity"]["zero"]
    torch.testing.assert_close(together, alone.scores["infidelity"]["zero"], rtol=1e-5, atol=0)


def test_whole_numbers_without_an_embedding_are_not_text() -> None:
    assert type(modalities.guess((IDS,))[0]).__name__ == "Plain"


@pytest.mark.parametrize("listed", [False, True])
def test_words_are_those_of_the_first_text_of_the_batch_with_as_many_as_there_are_tokens(listed: bool) -> None:
    sentences = ["a dull ##est", "odd film"]
    texts: Any = [one.split() for one in sentences] if listed else sentences
    found = samples_of({"x": IDS, "path": ["a.txt", "b.txt"], "text": texts}, None, signature_of(Words()))
    report = explain(Words(padding_idx=0), found, ["FeatureAblation"], [], modalities=Text(merge_pieces=True))
    assert report.probe is not None
    (text,) = report.probe.modalities
    assert text.words(IDS) == [["a", "dull", "5", "0"], ["5", "film", "0", "0"]], "5 stands for two words"
    clear = Probe(IDS[:1], meta={"path": ["a.txt"], "text": sentences[:1]}, modalities=Text(merge_pieces=True))
    report = explain(Words(padding_idx=0), clear, {"it": m.FeatureAblation()}, [])
    (panel,) = report.probe.modalities[0].panels((report.attributions["it"],), (IDS[:1],), ())  # type: ignore[union-attr]
    assert panel.words == [["a", "dullest", "", ""]], "pieces are merged"
    (text,) = explain(Words(), Probe(IDS, meta={"text": sentences}), ["FeatureAblation"], []).probe.modalities  # type: ignore[union-attr]
    assert text.words(IDS)[0] == ["3", "4", "5", "0"], "no padding is known, so that the text has too few words"
