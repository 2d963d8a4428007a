"""Tasks beside classification: several outputs, pairs, views, reconstructions, ordinal classes; and a network that cannot be called."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from _setups import images
from _setups._base import Setup, Task, labels_of, tensors
from _setups.images import SIZE, SQUARE

OTHER = (..., slice(20, 28), slice(2, 10))


def in_place(*squares: Any, inputs_with: int = 1) -> Any:
    """The cause is in these squares of each input."""

    def cause(inputs: tuple[Tensor, ...], labels: Any) -> tuple[Tensor, ...]:
        masks = tuple(torch.zeros(len(x), 1, *x.shape[2:], dtype=torch.bool) for x in inputs)
        for mask in masks[:inputs_with]:
            for square in squares:
                mask[square] = True
        return masks

    return cause


def noise(count: int, generator: torch.Generator, channels: int = 3) -> Tensor:
    return 0.3 * torch.randn(count, channels, SIZE, SIZE, generator=generator)


# -- several outputs -------------------------------------------------------------------------------------------------------


class Named(Dataset[Any]):
    """The color of one square is a class, the brightness of another one a number."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.x, self.kind = noise(count, generator), labels_of(count, generator, 3)
        self.size = torch.rand(count, 1, generator=generator) * 2 - 1
        self.x[SQUARE] += 2 * F.one_hot(self.kind, 3)[:, :, None, None]
        self.x[OTHER] += 2 * (self.size + 1.5 * self.size.sign())[:, :, None, None]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], {"kind": self.kind[i], "size": self.size[i]}


class Heads(Task):
    """A mapping of two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 16, 5, 2, 2),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, 2, 1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
        )
        self.kind, self.size = nn.Linear(256, 3), nn.Linear(256, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x)
        return {"kind": self.kind(h), "size": self.size(h)}

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        found = self(x)
        return F.cross_entropy(found["kind"], y["kind"]) + F.mse_loss(found["size"], y["size"])


# -- ordinal ---------------------------------------------------------------------------------------------------------------


class Coral(Task):
    """Ordinal logits: one number, and a threshold for each step to the next class."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.thresholds = images.cnn(1), nn.Parameter(torch.linspace(1, -1, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) + self.thresholds

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        above = (y[:, None] > torch.arange(3, device=y.device)).float()
        return F.binary_cross_entropy_with_logits(self(x), above)


def grades(count: int, generator: torch.Generator) -> Dataset[Any]:
    """The brighter the square, the higher the class."""
    x, y = noise(count, generator), labels_of(count, generator, 4)
    x[SQUARE] += (2.0 * y - 3)[:, None, None, None]
    return tensors(x, y)


# -- embeddings ------------------------------------------------------------------------------------------------------------


def views(count: int, generator: torch.Generator) -> TensorDataset:
    """Two views of a sample have a square of one color, and noise of their own."""
    first, second = noise(count, generator), noise(count, generator)
    color = torch.randn(count, 3, 1, 1, generator=generator)
    color = 3 * color / color.norm(dim=1, keepdim=True)
    first[SQUARE] += color
    second[SQUARE] += color
    return tensors(first, second)


def encoder() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 5, 2, 2), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(16, 16))


class Contrastive(Task):
    """SimCLR in small: views of a sample are alike, and unlike those of others."""

    def __init__(self) -> None:
        super().__init__()
        self.net = encoder()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, b = (F.normalize(self(view), dim=1) for view in batch)
        return F.cross_entropy(a @ b.T / 0.2, torch.arange(len(a), device=a.device))


class Siamese(Task):
    """The embeddings of a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.net = encoder()

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(a), self.net(b)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        a, b, same = batch
        return F.cosine_embedding_loss(*self(a, b), 2 * same - 1, margin=0.2)


def pairs(count: int, generator: torch.Generator) -> Dataset[Any]:
    """Squares of the same color in a half of the pairs."""
    (a, b), same = views(count, generator).tensors, labels_of(count, generator)
    b[SQUARE] = b[SQUARE].where(same.bool()[:, None, None, None], b[SQUARE].roll(1, 0))
    return tensors(a, b, same)


class Pretext(Task):
    """Self-supervised: the embedding of an image predicts the color in another view of it; no labels."""

    def __init__(self) -> None:
        super().__init__(lr=1e-2)
        self.net, self.head = encoder(), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, view = batch
        return F.mse_loss(self.head(self(x)), view[SQUARE].mean((2, 3)))


# -- reconstructions -------------------------------------------------------------------------------------------------------


def patterns(count: int, generator: torch.Generator) -> Dataset[Any]:
    """Noise, and a square with one of two patterns, the one the negative of the other; the image is its own label."""
    x, y = 0.3 * noise(count, generator, 1), labels_of(count, generator)
    stripes = torch.ones(8, 8)
    stripes[:, ::2] = -1
    x[SQUARE] += 2 * (2.0 * y - 1)[:, None, None, None] * stripes
    return tensors(x, x.clone())


class Autoencoder(Task):
    """A few numbers between encoder and decoder."""

    def __init__(self) -> None:
        super().__init__(lr=1e-2)
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, 32), nn.ReLU(), nn.Linear(32, 2))
        self.decode = nn.Sequential(
            nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, SIZE * SIZE), nn.Unflatten(1, (1, SIZE, SIZE))
        )

    def forward(self, x: Tensor) -> Any:
        return self.decode(self.encode(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.mse_loss(self(batch[0]), batch[1])


class VAE(Autoencoder):
    """The same with a distribution between, of which the mean counts in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.spread = nn.Linear(SIZE * SIZE, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log = self.encode(x), self.spread(x.flatten(1)).clamp(max=0)
        code = mean + torch.randn_like(mean) * (log / 2).exp() if self.training else mean
        return self.decode(code), mean, log

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        found, mean, log = self(batch[0])
        return F.mse_loss(found, batch[1]) + 1e-4 * (mean.square() + log.exp() - 1 - log).mean()


class SamplingVAE(VAE):
    """The same, but it draws in evaluation, too: no two forward passes are alike."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log = self.encode(x), self.spread(x.flatten(1)).clamp(max=0)
        return self.decode(mean + torch.randn_like(mean) * (log / 2).exp()), mean, log


class Gan(Task):
    """A generator of numbers, and a discriminator of images; the module is called with numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator = nn.Sequential(
            nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, SIZE * SIZE), nn.Unflatten(1, (1, SIZE, SIZE))
        )
        self.discriminator = nn.Sequential(
            nn.Flatten(), nn.Linear(SIZE * SIZE, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1)
        )

    def forward(self, z: Tensor) -> Tensor:
        return self.generator(z)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, _ = batch
        made = self(torch.randn(len(x), 8))
        loss = F.softplus(-self.discriminator(x)).mean() + F.softplus(self.discriminator(made.detach())).mean()
        if self.training:
            first, second = self.optimizers()
            for optimizer, value in ((first, loss), (second, None)):
                optimizer.zero_grad()
                self.manual_backward(F.softplus(-self.discriminator(made)).mean() if value is None else value)
                optimizer.step()
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self) -> Any:
        return [torch.optim.Adam(part.parameters(), 1e-3) for part in (self.discriminator, self.generator)]


def setups() -> Iterator[tuple[str, Setup]]:
    both = in_place(SQUARE, OTHER)
    own = {"kind": in_place(SQUARE), "size": in_place(OTHER)}
    yield "two outputs", Setup(Heads, Named, both, 8, own)
    yield "ordinal (CORAL)", Setup(Coral, grades, in_place(SQUARE), 6)
    yield "contrastive views", Setup(Contrastive, views, in_place(SQUARE), 6)
    yield "siamese pairs", Setup(Siamese, pairs, in_place(SQUARE, inputs_with=2), 6)
    yield "self-supervised embedding", Setup(Pretext, views, in_place(SQUARE), 6)
    yield "autoencoder", Setup(Autoencoder, patterns, in_place(SQUARE), 6)
    yield "VAE", Setup(VAE, patterns, in_place(SQUARE), 6)
    yield "VAE that samples", Setup(SamplingVAE, patterns, in_place(SQUARE), 6)
    yield "GAN", Setup(Gan, patterns, in_place(SQUARE), 2)
