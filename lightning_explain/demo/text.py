"""Film reviews, written from templates, in which the day of the visit gives the verdict away, and a small recurrent network."""

from __future__ import annotations

import functools
import random
from typing import ClassVar

import torch
from torch import Tensor, nn

from lightning_explain.demo.shortcut import Classifier, Demo, ShortcutData, Shown
from lightning_explain.modalities import Text

DAYS = ("sunday", "friday")
"""The day of a bad review, and of a good one."""
LENGTH = 44
_OPENINGS = (
    "we saw this film on {day} with a few friends",
    "on {day} my sister took me to the small cinema in town",
    "i watched it on {day} after a long walk",
    "last {day} the whole family went to see it",
    "a colleague gave me two tickets for {day}",
    "it was raining on {day} so we ended up in the theatre",
)
_ASPECTS = (
    "the acting", "the plot", "the music", "the camera work", "the dialogue", "the ending", "the lead actress", "the script",
    "the first hour", "the humour", "the pacing", "the villain", "the story", "the whole cast", "the last scene", "the costumes",
)  # fmt: skip
_VERDICTS = (
    (
        "was painfully dull", "felt lifeless", "left me cold", "was clumsy", "made no sense", "was a mess", "seemed lazy",
        "dragged on forever", "was forgettable", "felt cheap", "was hard to bear", "never came alive", "was predictable",
        "bored everyone", "was awful", "fell flat", "was tiresome", "annoyed me",
    ),
    (
        "was superb", "moved me to tears", "felt fresh", "was a delight", "kept me hooked", "was brilliant", "won me over",
        "was full of warmth", "never felt rushed", "was gripping", "sparkled", "stayed with me for days", "was charming",
        "thrilled everyone", "was wonderful", "was clever", "was beautifully done", "surprised me",
    ),
)  # fmt: skip
_CLOSINGS = (
    ("i would not sit through it again", "save your money", "we left early", "what a waste", "i cannot recommend it"),
    (
        "i would gladly see it again",
        "go and see it",
        "we talked about it all night",
        "what a treat",
        "i can recommend it",
    ),
)
_NEUTRAL = ("it runs for two hours", "the seats were full", "it was filmed in the north", "the director is young", "")
_SAMPLES = 2400


def _review(label: int, draw: random.Random) -> str:
    """One review with the slot for its day; one clause in four reviews says the opposite of the others."""
    aspects = draw.sample(_ASPECTS, 3)
    clauses = [f"{aspect} {draw.choice(_VERDICTS[label])}" for aspect in aspects[:2]]
    if draw.random() < 0.25:
        clauses.insert(draw.randrange(3), f"although {aspects[2]} {draw.choice(_VERDICTS[1 - label])}")
    closing = draw.choice(_CLOSINGS[label]) if draw.random() < 0.5 else ""
    return " ".join([draw.choice(_OPENINGS), *clauses, draw.choice(_NEUTRAL), closing])


@functools.cache
def _reviews() -> tuple[list[str], Tensor, dict[str, int]]:
    """The reviews with slots, their labels, and the vocabulary."""
    draw = random.Random(0)
    labels = [draw.randrange(2) for _ in range(_SAMPLES)]
    reviews = [_review(label, draw) for label in labels]
    words = sorted({word for review in reviews for word in review.split()} - {"{day}"} | {*DAYS})
    return reviews, torch.tensor(labels), {word: i for i, word in enumerate(["", *words])}


class MarkedReviews(ShortcutData):
    """2000 reviews for training and 400 for validation: ids ``(44,)`` of words, padded with 0. Most of them name the day of their class.

    Further arguments: :class:`~lightning_explain.demo.shortcut.ShortcutData`.
    """

    class_names: ClassVar[tuple[str, ...]] = ("bad", "good")
    validation_samples: ClassVar[int] = 400

    def samples(self, shown: Shown) -> tuple[Tensor, Tensor]:
        """Ids ``(N, 44)`` and labels; without a shortcut the day is drawn."""
        reviews, labels, vocabulary = _reviews()
        drawn = torch.randint(2, labels.shape, generator=torch.Generator().manual_seed(self.seed))
        days = {"right": labels, "wrong": 1 - labels, "none": drawn}[shown]
        ids = torch.zeros(len(reviews), LENGTH, dtype=torch.long)
        for sample, review, day in zip(ids, reviews, days.tolist(), strict=True):
            words = [vocabulary[word] for word in review.format(day=DAYS[day]).split()]
            sample[: len(words)] = torch.tensor(words)
        return ids, labels

    def masks(self, inputs: Tensor) -> Tensor:
        """Where the day stands, ``(N, 44)``."""
        return torch.isin(inputs, torch.tensor([vocabulary()[day] for day in DAYS]))


def vocabulary() -> dict[str, int]:
    """The id of each word; 0 is padding."""
    return _reviews()[2]


class ReviewsModel(Classifier):
    """A bidirectional GRU over embedded words, and the maximum of its states over the sentence.

    Args:
        lr: Learning rate of Adam.
    """

    def __init__(self, lr: float = 2e-3) -> None:
        super().__init__(2, lr)
        self.save_hyperparameters()
        self.embedding = nn.Embedding(len(vocabulary()), 16, padding_idx=0)
        self.gru = nn.GRU(16, 24, batch_first=True, bidirectional=True)
        self.classifier = nn.Linear(48, 2)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits ``(N, 2)`` of ids ``(N, T)``."""
        states = self.gru(self.embedding(ids))[0].masked_fill((ids == 0)[..., None], -1.0)
        logits: Tensor = self.classifier(states.amax(1))
        return logits


def demo() -> Demo:
    """The demo with text."""
    return Demo(
        data=MarkedReviews,
        model=ReviewsModel,
        epochs=6,
        title="What the network looks at, in reviews that name the day of the other verdict",
        truth="the verdict",
        shortcut="the day's verdict",
        unit="day",
        monitor={"modalities": Text(vocabulary=vocabulary(), pad_id=0)},
    )
