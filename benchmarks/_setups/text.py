"""Text: ids of words, padded at the end; the planted cause is one word of each class, somewhere in the sentence."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import Dataset

from _setups._base import Setup, Task, binary, labels_of, tensors

WORDS, LENGTH, PAD, START, PRONOUN = 100, 14, 0, 1, 2
DECOYS = torch.tensor([3, 4, 5])
_FIRST_WORD = 10


def sentences(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Ids ``(count, LENGTH)`` without any decoy, and which of them are words."""
    ids = torch.randint(_FIRST_WORD, WORDS, (count, LENGTH), generator=generator)
    lengths = torch.randint(LENGTH // 2, LENGTH + 1, (count,), generator=generator)
    real = torch.arange(LENGTH) < lengths[:, None]
    ids[:, 0] = START
    return ids.where(real, PAD), real


def put(ids: Tensor, real: Tensor, words: Tensor, generator: torch.Generator) -> Tensor:
    """The sentences with one word each ``(count,)`` at a random place, never the first."""
    draws = torch.rand(ids.shape, generator=generator).where(real & (ids >= _FIRST_WORD), -1)
    return ids.scatter(1, draws.argmax(1, keepdim=True), words[:, None])


def one_decoy(count: int, generator: torch.Generator) -> Dataset[Any]:
    ids, real = sentences(count, generator)
    labels = labels_of(count, generator)
    return tensors(put(ids, real, DECOYS[labels], generator), labels)


def with_lengths(count: int, generator: torch.Generator) -> Dataset[Any]:
    ids, labels = one_decoy(count, generator).tensors  # type: ignore[attr-defined]
    return tensors(ids, (ids != PAD).sum(1), labels)


def several_decoys(count: int, generator: torch.Generator) -> Dataset[Any]:
    """Every label has a word of its own, and at least one is there."""
    ids, real = sentences(count, generator)
    labels = torch.rand(count, 3, generator=generator) < 0.4
    labels[torch.arange(count), labels_of(count, generator, 3)] = True
    for i, decoy in enumerate(DECOYS):
        ids = put(ids, real, decoy.expand(count), generator).where(labels[:, i : i + 1], ids)
    return tensors(ids, labels.float())


def tagged(count: int, generator: torch.Generator) -> Dataset[Any]:
    """Only the pronoun has a tag, which another word of the sentence decides."""
    ids, labels = one_decoy(count, generator).tensors  # type: ignore[attr-defined]
    ids = put(ids, ids != PAD, torch.full((count,), PRONOUN), generator)
    return tensors(ids, labels[:, None].where(ids == PRONOUN, -100))


class Mappings(Dataset[Any]):
    """Samples as Hugging Face's collators give them."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.ids, self.labels = one_decoy(count, generator).tensors  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        ids = self.ids[i]
        return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": self.labels[i]}


def decoy_words(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
    """Where the decoys are, in the ids; nowhere in the other inputs."""
    return (torch.isin(inputs[0], DECOYS), *(torch.zeros(x.shape, dtype=torch.bool) for x in inputs[1:]))


class Recurrent(Task):
    """The last state of an LSTM or a GRU."""

    def __init__(self, kind: type[nn.LSTM] | type[nn.GRU], outputs: int = 2, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.embedding = nn.Embedding(WORDS, 16, padding_idx=PAD)
        self.rnn = kind(16, 32, batch_first=True, bidirectional=True)
        self.head = nn.Linear(64, outputs)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(ids))[0].amax(1))


class Packed(Recurrent):
    """A recurrent network that is told the lengths."""

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.embedding(ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        state = self.rnn(packed)[1]
        return self.head(torch.cat([state[-2], state[-1]], 1))


class Bag(Task):
    """The mean of the embeddings."""

    def __init__(self, summing: bool) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(WORDS, 16, padding_idx=PAD) if summing else nn.Embedding(WORDS, 16, PAD)
        self.head = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2))

    def forward(self, ids: Tensor) -> Tensor:
        found = self.embedding(ids)
        return self.head(found if found.ndim == 2 else found.sum(1) / (ids != PAD).sum(1, keepdim=True))


class Convolutional(Task):
    """Windows of three words, and the maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, 16, PAD)
        self.convolution = nn.Conv1d(16, 32, 3, padding=1)
        self.head = nn.Linear(32, 2)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(F.relu(self.convolution(self.embedding(ids).transpose(1, 2))).amax(2))


class Encoder(Task):
    """A TransformerEncoder that masks the padding, with positions from an embedding of their own."""

    def __init__(self) -> None:
        super().__init__(lr=2e-3)
        self.embedding, self.positions = nn.Embedding(WORDS, 32, PAD), nn.Embedding(LENGTH, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 2)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        found = self.encoder(self.embedding(ids) + self.positions(places), src_key_padding_mask=ids == PAD)
        return self.head(found[:, 0])


class Tagger(Recurrent):
    """A tag for each word."""

    def __init__(self) -> None:
        super().__init__(nn.LSTM, loss=lambda outputs, tags: F.cross_entropy(outputs.flatten(0, 1), tags.flatten()))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.rnn(self.embedding(ids))[0])


class HuggingFace(Task):
    """A network of Hugging Face, made from a small configuration, called with the batch."""

    def __init__(self, name: str, **configuration: Any) -> None:
        super().__init__(lr=2e-3)
        import transformers

        made = getattr(transformers, f"{name}Config")(vocab_size=WORDS, num_labels=2, pad_token_id=PAD, **configuration)
        self.model = getattr(transformers, f"{name}ForSequenceClassification")(made)

    def forward(self, **batch: Tensor) -> Any:
        return self.model(**batch)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self(**batch).loss


def setups() -> Iterator[tuple[str, Setup]]:
    yield "LSTM", Setup(lambda: Recurrent(nn.LSTM), one_decoy, decoy_words)
    yield "GRU, packed", Setup(lambda: Packed(nn.GRU), with_lengths, decoy_words)
    yield "LSTM, one logit", Setup(lambda: Recurrent(nn.LSTM, 1, loss=binary), one_decoy, decoy_words)
    several = F.binary_cross_entropy_with_logits
    yield "GRU, multilabel", Setup(lambda: Recurrent(nn.GRU, 3, loss=several), several_decoys, decoy_words, 6)
    yield "bag of embeddings", Setup(lambda: Bag(False), one_decoy, decoy_words, 6)
    yield "EmbeddingBag", Setup(lambda: Bag(True), one_decoy, decoy_words, 6)
    yield "text CNN", Setup(Convolutional, one_decoy, decoy_words)
    yield "TransformerEncoder", Setup(Encoder, one_decoy, decoy_words, 6)
    yield "LSTM tagger", Setup(Tagger, tagged, decoy_words, 6)
    if importlib.util.find_spec("transformers"):
        bert = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
        yield "HF BERT", Setup(lambda: HuggingFace("Bert", **bert), Mappings, decoy_words, 8)
        distilled = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
        yield "HF DistilBERT", Setup(lambda: HuggingFace("DistilBert", **distilled), Mappings, decoy_words, 8)
