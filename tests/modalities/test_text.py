"""What texts read as, and maps of networks of texts beside a few lines of Captum."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from captum.attr import FeatureAblation, LayerIntegratedGradients
from torch import Tensor, nn

from lightning_explain import Probe, explain
from lightning_explain.core.contracts import InputFacts
from lightning_explain.core.panels import WordsPanel
from lightning_explain.modalities import Text, restored, stored

VOCABULARY = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", "play", "##ing", "##s", "is", "fun"]
IDS = torch.tensor([[1, 5, 6, 8, 9, 2, 0, 0], [1, 9, 8, 5, 7, 6, 2, 0]])


def tokenizer(of: str) -> Any:
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({w: i for i, w in enumerate(VOCABULARY)}, unk_token="[UNK]")
    )
    if of == "tokenizers":
        return made
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "cls", "sep", "unk", "mask")}
    return pytest.importorskip("transformers").PreTrainedTokenizerFast(tokenizer_object=made, **names)


@pytest.mark.parametrize("of", ["tokenizers", "transformers"])
def test_a_tokenizer_says_all_that_is_known_of_the_ids_and_is_not_kept(of: str) -> None:
    text = Text(tokenizer(of)).bound(IDS, InputFacts())
    assert isinstance(text, Text)
    assert text.words(IDS)[0] == ["[CLS]", "play", "##ing", "is", "fun", "[SEP]", "[PAD]", "[PAD]"]
    assert (text.tokenizer, text.pad_id, text.mask_id, {*text.special_ids} - {0}) == (None, 0, 4, {1, 2})
    assert torch.equal(text.present(IDS), IDS > 2)  # type: ignore[arg-type]
    assert text.reference(IDS)[0].tolist() == [1, 4, 4, 4, 4, 2, 0, 0]  # type: ignore[index]
    assert restored(stored((text,))) == restored(json.loads(json.dumps(stored((text,))))) == (text,)


def shown(text: Text, ids: Tensor) -> tuple[list[list[str]], Tensor]:
    (panel,) = text.panels((torch.arange(1.0, 1 + ids.numel()).reshape(ids.shape),), (ids,), [])
    assert isinstance(panel, WordsPanel)
    return [list(words) for words in panel.words], panel.values


def test_pieces_are_shown_as_one_word_with_the_sum_of_their_values() -> None:
    text = Text(vocabulary=VOCABULARY, pad_id=0, special_ids=(1, 2), merge_pieces=True)
    words, values = shown(text, IDS)
    assert words[0] == ["[CLS]", "playing", "", "is", "fun", "[SEP]", "", ""]
    assert words[1] == ["[CLS]", "fun", "is", "playsing", "", "", "[SEP]", ""]
    assert values[0].nan_to_num(-1).tolist() == [-1, 2 + 3, -1, 4, 5, -1, -1, -1]
    assert values[1, 3] == 12 + 13 + 14
    for start in ("Ġ", "▁"):
        marked = Text(
            vocabulary=["<s>", "play", "ing", f"{start}is", f"{start}f", "un"], special_ids=(0,), merge_pieces=True
        )
        words, values = shown(marked, torch.tensor([[0, 1, 2, 3, 4, 5]]))
        assert words == [["<s>", "playing", "", "is", "fun", ""]]
        assert values[0].nan_to_num(-1).tolist() == [-1, 5, -1, 4, 11, -1]


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.head = (
            nn.Embedding(10, 8, padding_idx=0),
            nn.LSTM(8, 8, batch_first=True),
            nn.Linear(8, 2),
        )

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found: Tensor = self.head((self.rnn(self.embedding(input_ids))[0] * attention_mask[..., None]).sum(1))
        return found


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "initializer_range": 0.5,
    }
    return transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=10, **sizes)).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize(("make", "layer"), [(Reader, "embedding"), (bert, "bert.embeddings.word_embeddings")])
def test_default_maps_are_those_of_a_few_lines_of_captum(make: Any, layer: str) -> None:
    torch.manual_seed(0)
    model, labels, mask = make(), torch.tensor([0, 1]), (IDS != 0).long()
    # Far from its first weights, so that maps are not tiny.
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(2)
    text = Text(vocabulary=VOCABULARY, pad_id=0, mask_id=4, special_ids=(1, 2))
    report = explain(model, Probe({"input_ids": IDS, "attention_mask": mask}, labels, modalities=text), metrics=[])

    def f(ids: Tensor, mask: Tensor) -> Tensor:
        found = model(input_ids=ids, attention_mask=mask)
        return found if isinstance(found, Tensor) else found.logits  # type: ignore[no-any-return]

    arguments: dict[str, Any] = {
        "baselines": torch.where(IDS > 2, 4, IDS),
        "target": labels,
        "additional_forward_args": (mask,),
    }
    at_layer = LayerIntegratedGradients(f, model.get_submodule(layer)).attribute(IDS, n_steps=16, **arguments)
    removed = FeatureAblation(f).attribute(IDS, **arguments)
    for name, by_hand in {"ig": at_layer, "ablation": removed}.items():
        ours = report.attributions[name]
        assert isinstance(ours, Tensor)
        assert by_hand.abs().max() > 1e-3
        assert ((ours - by_hand).abs().max() / by_hand.abs().max()).item() <= 1e-5, name


def test_ids_that_a_bag_of_embeddings_sums_are_explained_by_ablation() -> None:
    class Bag(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.EmbeddingBag(10, 4, mode="sum", padding_idx=0), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.head(self.embedding(x))
            return found

    model = Bag()
    report = explain(model, Probe(IDS, torch.tensor([0, 1])), metrics=[])
    assert list(report.attributions) == ["ablation"]
    found, weights = report.attributions["ablation"], model.embedding.weight @ model.head.weight.T
    assert isinstance(found, Tensor)
    assert torch.allclose(found[1], weights[IDS[1], 1] * (IDS[1] != 0), atol=1e-6)
