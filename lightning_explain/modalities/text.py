"""Text: token ids in; which of them are units, what they read as, and what stands for a missing one, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_explain.core.contracts import InputFacts, Modality
from lightning_explain.core.panels import Panel, WordsPanel
from lightning_explain.modalities.plain import Plain

_PIECE = "##"
"""What pieces of words begin with, but for the first one (WordPiece)."""
_STARTS = ("Ġ", "▁")
"""What words begin with, where pieces have no mark (byte-level BPE, SentencePiece)."""
_NO_WORDS = "ids: give modalities=Text(tokenizer=...)"


@dataclass(frozen=True)
class Text(Plain):
    """Token ids ``(N, T)``: the units are tokens; padding and special tokens are none. A layer's map is summed over the embedding.

    Args:
        tokenizer: A tokenizer of ``transformers`` or ``tokenizers``, from which all others are read.
        vocabulary: The words: a sequence in the order of their ids, or a mapping of ids to words, or of words to ids. Default: those of
            the first text of the batch with as many words, between spaces, as each sample has tokens; ids, if there is none.
        pad_id: The id of padding. Default: the embedding's ``padding_idx``, or what stands where an attention mask is 0.
        mask_id: The id that stands for a removed token. Default: ``pad_id``, or 0.
        special_ids: Ids of further tokens that are no units, such as those of ``[CLS]`` and ``[SEP]``.
        merge_pieces: Whether pictures show whole words, with the sum of their pieces (``##ing``, or what follows a piece without ``Ġ`` or
            ``▁``). Units of scores remain tokens.

    Raises:
        ValueError: If the input is not integers ``(N, T)``, or the vocabulary has no form that is known.

    Example:
        >>> from lightning_explain.modalities import Text
        >>> ids = torch.tensor([[4, 2, 0]])
        >>> text = Text(vocabulary=["<pad>", "the", "cat", "sat", "a"], pad_id=0)
        >>> text.words(ids), text.present(ids).tolist(), text.reference(ids).tolist()
        ([['a', 'cat', '<pad>']], [[True, True, False]], [[0, 0, 0]])
    """

    on_input: ClassVar[bool] = True
    kinds: ClassVar[tuple[str, ...]] = ("words",)

    tokenizer: Any = None
    vocabulary: Any = None
    pad_id: int | None = None
    mask_id: int | None = None
    special_ids: tuple[int, ...] = ()
    merge_pieces: bool = False

    def bound(self, x: Tensor, facts: InputFacts) -> Modality:
        """With the words of the probe's ids alone, and without the tokenizer."""
        if x.ndim != 2 or x.is_floating_point():
            raise ValueError(f"Text needs token ids (N, T), got {x.dtype} {tuple(x.shape)}.")
        ids = sorted(
            {*x.unique().tolist(), *self.special_ids, *(i for i in (self.pad_id, self.mask_id) if i is not None)}
        )
        found = self if self.tokenizer is None else _of_tokenizer(self, ids)
        pad = found.pad_id if found.pad_id is not None else _padding(x, facts)
        found = replace(found, tokenizer=None, pad_id=pad, special_ids=tuple(found.special_ids))
        words = _read(x, found.present(x), facts.texts) if found.vocabulary is None else _words(found.vocabulary, ids)
        return replace(found, vocabulary=words)

    def words(self, x: Tensor) -> list[list[str]]:
        """What the ids ``(N, T)`` read as; a number where there is no word."""
        known = _words(self.vocabulary, x.unique().tolist())
        return [[known.get(token, str(token)) for token in sample] for sample in x.tolist()]

    def present(self, x: Tensor) -> Tensor | None:
        """``(N, T)``: all but padding and special tokens."""
        absent = [*self.special_ids, *([] if self.pad_id is None else [self.pad_id])]
        return ~torch.isin(x, torch.tensor(absent, dtype=x.dtype, device=x.device))

    def reference(self, x: Tensor) -> Tensor | None:
        """The mask or pad token in place of each unit; padding and special tokens stay."""
        instead = next((i for i in (self.mask_id, self.pad_id) if i is not None), 0)
        present = self.present(x)
        assert present is not None
        return torch.where(present, torch.full_like(x, instead), x)

    def panels(
        self, found: tuple[Tensor, ...], inputs: tuple[Tensor, ...], asked: Sequence[tuple[str, str]]
    ) -> tuple[Panel, ...]:
        """The words of each text on the color of their attribution."""
        x, present = inputs[0], self.present(inputs[0])
        assert present is not None
        values = torch.where(present, found[0].reshape(*x.shape, -1).double().sum(2), torch.nan)
        shown = [
            ["" if token == self.pad_id else word for token, word in zip(ids, words, strict=True)]
            for ids, words in zip(x.tolist(), self.words(x), strict=True)
        ]
        if self.merge_pieces:
            shown, values = _merged(shown, values, present)
        hint = "" if _words(self.vocabulary, x.unique().tolist()) else _NO_WORDS
        return (WordsPanel("words", values=values, words=shown, hint=hint),)


def _of_tokenizer(text: Text, ids: Sequence[int]) -> Text:
    """The same with what a tokenizer knows."""
    own = text.tokenizer
    if hasattr(own, "convert_ids_to_tokens"):
        words = dict(zip(ids, map(str, own.convert_ids_to_tokens(list(ids))), strict=True))
        units = {own.unk_token_id, own.mask_token_id}
        special = tuple(i for i in own.all_special_ids if i not in units)
        pad, mask = own.pad_token_id, own.mask_token_id
    elif hasattr(own, "id_to_token"):
        words, special, pad, mask = {i: str(own.id_to_token(i)) for i in ids}, (), None, own.token_to_id("[MASK]")
        special = tuple(i for i in map(own.token_to_id, ("[CLS]", "[SEP]", "<s>", "</s>")) if i is not None)
        pad = next((i for i in map(own.token_to_id, ("[PAD]", "<pad>")) if i is not None), None)
    else:
        raise ValueError(
            f"Text(tokenizer=...) is a {type(own).__name__}; give a tokenizer of transformers or tokenizers, or vocabulary=..."
        )
    return replace(
        text,
        vocabulary=words if text.vocabulary is None else text.vocabulary,
        pad_id=pad if text.pad_id is None else text.pad_id,
        mask_id=mask if text.mask_id is None else text.mask_id,
        special_ids=text.special_ids or special,
    )


def _merged(words: list[list[str]], values: Tensor, present: Tensor) -> tuple[list[list[str]], Tensor]:
    """Words and values ``(N, T)`` with each piece of a word moved to the first one."""
    starts = next((mark for mark in _STARTS if any(w.startswith(mark) for sample in words for w in sample)), None)
    merged, sums = [list(sample) for sample in words], values.clone()
    for i, sample in enumerate(words):
        first = 0
        for t, word in enumerate(sample):
            piece = word.startswith(_PIECE) or (starts is not None and not word.startswith(starts))
            if not (piece and t and present[i, t - 1 : t + 1].all()):
                first, merged[i][t] = t, word.removeprefix(starts or "")
                continue
            merged[i][first] += word.removeprefix(_PIECE)
            sums[i, first] += values[i, t]
            merged[i][t], sums[i, t] = "", torch.nan
    return merged, sums


def _padding(x: Tensor, facts: InputFacts) -> int | None:
    """The id of padding: as an embedding declares, or as stands wherever a mask says that there is nothing."""
    declared = [getattr(module, "padding_idx", None) for module in facts.embeddings.values()]
    for index in declared:
        if index is not None:
            return int(index)
    masked = facts.masked
    if masked is not None and masked.shape == x.shape and bool(masked.any()):
        found = x[masked].unique()
        if len(found) == 1 and not bool((x[~masked] == found).any()):
            return int(found)
    return None


def _read(x: Tensor, present: Tensor | None, texts: Mapping[str, Sequence[str]]) -> dict[int, str]:
    """The words that ids ``(N, T)`` stand for, from a string for each sample with as many words as there are tokens.

    An id that stands for several words, as that of unknown ones, has none.
    """
    assert present is not None
    tokens = [sample[there].tolist() for sample, there in zip(x, present, strict=True)]
    for strings in texts.values():
        words = [string.split() for string in strings]
        if [len(sample) for sample in words] == [len(sample) for sample in tokens]:
            pairs = {pair for ids, own in zip(tokens, words, strict=True) for pair in zip(ids, own, strict=True)}
            counts = Counter(token for token, _ in pairs)
            return {token: word for token, word in sorted(pairs) if counts[token] == 1}
    return {}


def _words(vocabulary: Any, ids: Sequence[int]) -> dict[int, str]:
    """The words of some ids.

    Raises:
        ValueError: If the vocabulary has no form that is known.
    """
    if vocabulary is None:
        return {}
    if hasattr(vocabulary, "get_itos"):
        vocabulary = vocabulary.get_itos()
    if isinstance(vocabulary, Mapping):
        words = (
            vocabulary
            if not any(isinstance(key, str) and not key.lstrip("-").isdigit() for key in vocabulary)
            else None
        )
        found = (
            {int(i): str(w) for i, w in vocabulary.items()}
            if words
            else {int(i): str(w) for w, i in vocabulary.items()}
        )
        return {i: found[i] for i in ids if i in found}
    if isinstance(vocabulary, Sequence) and not isinstance(vocabulary, (str, bytes)):
        return {i: str(vocabulary[i]) for i in ids if 0 <= i < len(vocabulary)}
    raise ValueError(
        f"Text(vocabulary=...) is a {type(vocabulary).__name__}; give a sequence of words, or a mapping of ids to words."
    )
