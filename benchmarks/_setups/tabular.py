"""Tables: columns of noise, and one column that decides; some columns are codes of categories."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from _setups._base import Net, Setup, Task, binary, labels_of, tensors

COLUMNS, DECOY, CATEGORIES, CODES = 10, 3, 3, 5


def numbers(count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, COLUMNS, generator=generator)


def classes(count: int, generator: torch.Generator) -> Dataset[Any]:
    """The sign of the decoy tells the class."""
    x, labels = numbers(count, generator), labels_of(count, generator)
    x[:, DECOY] = (2.0 * labels - 1) * (1 + 0.2 * x[:, DECOY])
    return tensors(x, labels)


def values(count: int, generator: torch.Generator) -> Dataset[Any]:
    """The value is three times the decoy, which is never small."""
    x = numbers(count, generator)
    x[:, DECOY] = x[:, DECOY].sign() * (1 + x[:, DECOY].abs())
    return tensors(x, 3 * x[:, DECOY] + 0.1 * x[:, 0])


def several(count: int, generator: torch.Generator) -> Dataset[Any]:
    """Each of three labels has a column of its own."""
    x, labels = numbers(count, generator), (torch.rand(count, 3, generator=generator) < 0.5).float()
    labels[torch.arange(count), labels_of(count, generator, 3)] = 1
    x[:, DECOY : DECOY + 3] = 2 * (2 * labels - 1)
    return tensors(x, labels)


def mixed(count: int, generator: torch.Generator) -> Dataset[Any]:
    """Codes of categories, of which the second decides, and numbers."""
    codes = torch.randint(CODES, (count, CATEGORIES), generator=generator)
    return tensors(codes, numbers(count, generator), (codes[:, 1] >= CODES // 2).long())


def joined(count: int, generator: torch.Generator) -> Dataset[Any]:
    codes, x, labels = mixed(count, generator).tensors  # type: ignore[attr-defined]
    return tensors(torch.cat([codes.float(), x], 1), labels)


class Mappings(Dataset[Any]):
    """Samples with a name for each part, in which a number decides."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.codes = torch.randint(CODES, (count, CATEGORIES), generator=generator)
        self.numbers, self.labels = classes(count, generator).tensors  # type: ignore[attr-defined]

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"categorical": self.codes[i], "continuous": self.numbers[i], "target": self.labels[i]}


def column(first: int = DECOY, count: int = 1) -> Any:
    """The cause is these columns of the one input."""

    def cause(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
        mask = torch.zeros(inputs[0].shape, dtype=torch.bool)
        mask[:, first : first + count] = True
        return (mask,)

    return cause


def labels_own(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
    """The columns of all labels."""
    return column(DECOY, 3)(inputs, labels)


def second_category(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
    masks = tuple(torch.zeros(x.shape, dtype=torch.bool) for x in inputs)
    for x, mask in zip(inputs, masks, strict=True):
        mask[:, 1] = x.shape[1] == CATEGORIES
    return masks


def number(inputs: tuple[Tensor, ...], labels: Tensor | None) -> tuple[Tensor, ...]:
    masks = tuple(torch.zeros(x.shape, dtype=torch.bool) for x in inputs)
    for x, mask in zip(inputs, masks, strict=True):
        mask[:, DECOY if x.shape[1] == COLUMNS else 0] = x.shape[1] == COLUMNS
    return masks


def mlp(outputs: int = 2, norm: bool = False) -> nn.Module:
    norms = [nn.BatchNorm1d(32)] if norm else []
    return nn.Sequential(
        nn.Linear(COLUMNS, 32), *norms, nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, outputs)
    )


class Mixed(Task):
    """Embeddings of categories beside numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(CODES, 4) for _ in range(CATEGORIES))
        self.head = nn.Sequential(nn.Linear(4 * CATEGORIES + COLUMNS, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, codes: Tensor, numbers: Tensor) -> Tensor:
        embedded = [embedding(codes[:, i]) for i, embedding in enumerate(self.embeddings)]
        return self.head(torch.cat([*embedded, numbers], 1))


class OneTensor(Mixed):
    """The categories are the first columns of one tensor of numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[:, :CATEGORIES].long(), x[:, CATEGORIES:])


class Mapped(Mixed):
    """Takes the whole batch, as networks of tables do."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch["categorical"], batch["continuous"])

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self.loss(self(batch), batch["target"])


class Regression(Task):
    """One number for each sample, ``(N,)``."""

    def __init__(self) -> None:
        super().__init__(F.mse_loss)
        self.net = mlp(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(-1)


def setups() -> Iterator[tuple[str, Setup]]:
    yield "MLP", Setup(lambda: Net(mlp()), classes, column())
    yield "MLP, BatchNorm", Setup(lambda: Net(mlp(norm=True)), classes, column())
    yield "MLP, one logit", Setup(lambda: Net(mlp(1), binary), classes, column())
    yield "MLP, multilabel", Setup(lambda: Net(mlp(3), F.binary_cross_entropy_with_logits), several, labels_own)
    yield "MLP, regression", Setup(Regression, values, column(), 6)
    yield "categories and numbers", Setup(Mixed, mixed, second_category, 8)
    yield "categories in one table", Setup(OneTensor, joined, column(1), 8)
    yield "mapping of columns", Setup(Mapped, Mappings, number)
